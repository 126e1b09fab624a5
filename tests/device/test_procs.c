/* Processes that the program starts itself: collectives larger and smaller than what they share, groups, broadcasts,
 * and how a launch ends. A rank checks its own values and ends with 0 if all are right. */
#include "device/procs.h"

#include <criterion/criterion.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

/* Starts n ranks of `body` and gives the launch's exit status; a rank ends with what body returns. */
static int launch(int n, int (*body)(int rank))
{
    int status = 0;
    tpl_err e = {0};
    cr_assert(procs_start(n, &status, &e) == TPL_OK, "%s", e.what);
    if (status != PROCS_IS_RANK)
        return status;
    _exit(body(procs_rank()));
}

static float value_of(int rank, int64_t i)
{
    return (float)((rank + 1) * (int)(i % 251));
}

static float *new_rows(int rank, int64_t rows, int64_t width, int64_t stride)
{
    float *x = malloc(sizeof *x * (size_t)(rows * stride));
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < stride; j++)
            x[i * stride + j] = j < width ? value_of(rank, i * width + j) : -7;
    return x;
}

static float sum_of(comm_group g, int64_t i)
{
    float s = 0;
    for (int r = 0; r < g.size; r++)
        s += value_of(g.first + r, i);
    return s;
}

static float expected(comm_op op, comm_group g, int me, int64_t width, int64_t row, int64_t col)
{
    switch (op) {
    case COMM_ALL_REDUCE:
        return sum_of(g, row * width + col);
    case COMM_ALL_GATHER:
        return value_of(g.first + (int)(col / width), row * width + col % width);
    case COMM_REDUCE_SCATTER:
        return sum_of(g, row * width + me * (width / g.size) + col);
    default:
        return value_of(g.first, row * width + col);
    }
}

/* Number of wrong elements, those between the rows included. */
static int64_t try_op(comm *c, comm_op op, comm_group g, int64_t rows, int64_t width)
{
    int me = c->rank - g.first;
    bool apart = op == COMM_ALL_GATHER || op == COMM_REDUCE_SCATTER;
    int64_t got_width = op == COMM_ALL_GATHER ? width * g.size : op == COMM_REDUCE_SCATTER ? width / g.size : width;
    int64_t stride = width + 3, out_stride = got_width + 5, wrong = 0;
    float *data = new_rows(c->rank, rows, width, stride), *out = malloc(sizeof *out * (size_t)(rows * out_stride));
    for (int64_t i = 0; i < rows * out_stride; i++)
        out[i] = -7;
    if (c->run(c, op, g, data, stride, apart ? out : NULL, out_stride, rows, width, NULL) != TPL_OK)
        return -1;
    const float *got = apart ? out : data;
    int64_t step = apart ? out_stride : stride;
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < step; j++)
            wrong += got[i * step + j] != (j < got_width ? expected(op, g, me, width, i, j) : -7);
    free(data);
    free(out);
    return wrong;
}

static int run_all(int rank)
{
    static const struct {
        int64_t rows, width;
    } sizes[] = {{1, 12}, {7, 60}, {300, 1200}, {2, 900000}, {1, 262152}}; /* an area holds 262,144 */
    comm *c;
    int64_t wrong = 0;
    if (comm_procs_create(&c, NULL) != TPL_OK)
        return 2;
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        for (int op = 0; op < COMM_N_OPS; op++) {
            wrong += try_op(c, (comm_op)op, (comm_group){0, 4}, sizes[i].rows, sizes[i].width) != 0;
            wrong += try_op(c, (comm_op)op, (comm_group){rank / 2 * 2, 2}, sizes[i].rows, sizes[i].width) != 0;
        }
    c->barrier(c, NULL);
    comm_destroy(c);
    return wrong ? 3 : 0;
}

Test(procs, collectives_of_all_sizes_and_groups, .timeout = 60)
{
    cr_expect_eq(launch(4, run_all), 0);
}

static int hear_all(int rank)
{
    size_t n = (5u << 20) + 3; /* several areas and a rest */
    unsigned char *data = malloc(n);
    memset(data, rank ? 0 : 0x5a, n);
    data[n - 1] = rank ? 0 : 0xa5;
    if (procs_broadcast(data, n, NULL) != TPL_OK)
        return 2;
    for (size_t i = 0; i < n; i++)
        if (data[i] != (i == n - 1 ? 0xa5 : 0x5a))
            return 3;
    return procs_count() == 3 && procs_opened() && procs_are_own() ? 0 : 4;
}

Test(procs, broadcasts_longer_than_the_shared_area, .timeout = 60)
{
    cr_expect_eq(launch(3, hear_all), 0);
}

/* Rank 1 dies; the others would wait for it for ever. */
static int wait_for_dead(int rank)
{
    comm *c;
    comm_procs_create(&c, NULL);
    if (rank == 1)
        raise(SIGKILL);
    c->barrier(c, NULL);
    return 0;
}

Test(procs, a_dead_rank_ends_the_launch_within_seconds, .timeout = 60)
{
    time_t begin = time(NULL);
    cr_expect_eq(launch(3, wait_for_dead), tpl_exit_status(TPL_E_DEVICE));
    cr_expect(time(NULL) - begin <= 10, "took %ld s", (long)(time(NULL) - begin));
}

static int give_up(int rank)
{
    comm *c;
    comm_procs_create(&c, NULL);
    if (rank == 2)
        procs_abort("no memory", 4);
    c->barrier(c, NULL);
    return 0;
}

Test(procs, a_rank_that_gives_up_gives_its_status, .timeout = 60)
{
    cr_expect_eq(launch(3, give_up), 4);
}

static int end_with_rank_0(int rank)
{
    return rank == 0 ? 1 : 0;
}

Test(procs, the_status_is_rank_0s, .timeout = 60)
{
    cr_expect_eq(launch(2, end_with_rank_0), 1);
}

/* Rank 0 has ended; a rank that does not follow is ended too. */
static int stay_behind(int rank)
{
    if (rank == 1)
        pause();
    return 0;
}

Test(procs, a_rank_that_stays_behind_is_ended, .timeout = 60)
{
    cr_expect_eq(launch(2, stay_behind), 0);
}

Test(procs, counts_out_of_range_are_refused)
{
    int status;
    tpl_err e = {0};
    cr_expect(procs_start(0, &status, &e) == TPL_E_USAGE);
    cr_expect(procs_start(PROCS_MAX + 1, &status, &e) == TPL_E_USAGE);
    cr_expect(strstr(e.what, "expected 1 to 64") != NULL, "%s", e.what);
    cr_expect(!procs_opened() && procs_count() == 1);
}
