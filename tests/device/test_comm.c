#include "device/comm.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include <criterion/criterion.h>

#include "base/arena.h"
#include "base/rng.h"
#include "base/threads.h"

enum { MAX_RANKS = 9, GUARD = 3 };

static const float GUARD_VALUE = -12345.f;

/* One collective on one group; every rank outside the group stays away. */
typedef struct {
    int n_ranks;
    comm_op op;
    comm_group group;
    int64_t rows, width, pad; /* pad: columns between rows, in and out */
} case_spec;

typedef struct {
    case_spec spec;
    comm *handle;
    float *data, *out; /* [rows, width + pad], [rows, out_width + pad] */
    tpl_code rc;
} rank_job;

static int64_t out_width(const case_spec *c)
{
    return c->op == COMM_ALL_GATHER ? c->width * c->group.size : c->op == COMM_REDUCE_SCATTER ? c->width / c->group.size : 0;
}

static void *run_rank(void *arg)
{
    rank_job *j = arg;
    const case_spec *c = &j->spec;
    int me = j->handle->rank;
    bool in = me >= c->group.first && me < c->group.first + c->group.size;
    if (in)
        j->rc = j->handle->run(j->handle, c->op, c->group, j->data, c->width + c->pad, j->out, out_width(c) + c->pad, c->rows,
                               c->width, NULL);
    return NULL;
}

static float value_of(int rank, int64_t row, int64_t col)
{
    rng r = rng_make(5, (uint64_t)(rank * 1000003 + row * 7919 + col));
    return (float)(rng_normal(&r) * (1 + rank * 100)); /* sizes apart, so that the order of a sum shows */
}

/* The sum of a column in rank order, as floats add. */
static float sum_of(const case_spec *c, int64_t row, int64_t col)
{
    float s = value_of(c->group.first, row, col);
    for (int r = 1; r < c->group.size; r++)
        s += value_of(c->group.first + r, row, col);
    return s;
}

static float want_data(const case_spec *c, int rank, bool in, int64_t row, int64_t col)
{
    if (col >= c->width)
        return GUARD_VALUE;
    if (in && c->op == COMM_ALL_REDUCE)
        return sum_of(c, row, col);
    return value_of(in && c->op == COMM_BROADCAST ? c->group.first : rank, row, col);
}

static float want_out(const case_spec *c, int rank, bool in, int64_t row, int64_t col)
{
    if (!in || col >= out_width(c))
        return GUARD_VALUE;
    if (c->op == COMM_ALL_GATHER)
        return value_of(c->group.first + (int)(col / c->width), row, col % c->width);
    return sum_of(c, row, (rank - c->group.first) * out_width(c) + col);
}

static void fill(rank_job *j, int rank)
{
    const case_spec *c = &j->spec;
    int64_t stride = c->width + c->pad, out_stride = out_width(c) + c->pad;
    j->data = tpl_malloc(sizeof(float) * (size_t)(c->rows * stride + 1));
    j->out = tpl_malloc(sizeof(float) * (size_t)(c->rows * out_stride + 1));
    for (int64_t i = 0; i < c->rows * out_stride; i++)
        j->out[i] = GUARD_VALUE;
    for (int64_t i = 0; i < c->rows; i++)
        for (int64_t k = 0; k < stride; k++)
            j->data[i * stride + k] = k < c->width ? value_of(rank, i, k) : GUARD_VALUE;
}

static void check(const rank_job *j, int rank)
{
    const case_spec *c = &j->spec;
    int64_t stride = c->width + c->pad, out_stride = out_width(c) + c->pad, wrong = 0;
    bool in = rank >= c->group.first && rank < c->group.first + c->group.size;
    for (int64_t i = 0; i < c->rows; i++) {
        for (int64_t k = 0; k < stride; k++)
            wrong += j->data[i * stride + k] != want_data(c, rank, in, i, k);
        for (int64_t k = 0; k < out_stride; k++)
            wrong += j->out[i * out_stride + k] != want_out(c, rank, in, i, k);
    }
    cr_expect(wrong == 0 && j->rc == TPL_OK, "%s of %d ranks, group %d+%d, %lld x %lld: rank %d has %lld wrong values",
              comm_op_name(c->op), c->n_ranks, c->group.first, c->group.size, (long long)c->rows, (long long)c->width, rank,
              (long long)wrong);
}

static void run_case(const case_spec *spec)
{
    comm *handles[MAX_RANKS];
    rank_job jobs[MAX_RANKS] = {0};
    pthread_t threads[MAX_RANKS];
    cr_assert(comm_local_create(spec->n_ranks, handles, NULL) == TPL_OK);
    for (int i = 0; i < spec->n_ranks; i++) {
        jobs[i].spec = *spec;
        jobs[i].handle = handles[i];
        fill(&jobs[i], i);
    }
    for (int i = 0; i < spec->n_ranks; i++)
        cr_assert(pthread_create(&threads[i], NULL, run_rank, &jobs[i]) == 0);
    for (int i = 0; i < spec->n_ranks; i++)
        pthread_join(threads[i], NULL);
    for (int i = 0; i < spec->n_ranks; i++) {
        check(&jobs[i], i);
        free(jobs[i].data);
        free(jobs[i].out);
        comm_destroy(handles[i]);
    }
}

/* 63 x 260 floats is below the size from which an all-reduce is split over the ranks, 64 x 260 above it; 9 ranks do not
 * divide 260, so that case is not split. */
Test(comm, collectives_equal_sums_in_rank_order_bit_by_bit)
{
    static const comm_group groups[][2] = {{{2, 2}, {0, 1}}, {{1, 3}, {0, 2}}, {{4, 4}, {3, 5}}};
    static const int ranks[] = {1, 2, 3, 4, 8, 9};
    for (size_t n = 0; n < sizeof ranks / sizeof *ranks; n++) {
        for (int op = 0; op < COMM_N_OPS; op++) {
            int k = ranks[n];
            case_spec whole = {.n_ranks = k, .op = (comm_op)op, .group = {0, k}, .rows = 3, .width = 5 * k, .pad = GUARD};
            run_case(&whole);
            whole.rows = 1;
            whole.pad = 0;
            run_case(&whole);
        }
    }
    for (size_t g = 0; g < 3; g++)
        for (int op = 0; op < COMM_N_OPS; op++)
            for (int k = 0; k < 2; k++) {
                comm_group group = groups[g][k];
                case_spec part = {.n_ranks = 8, .op = (comm_op)op, .group = group, .rows = 4, .width = 7 * group.size, .pad = 1};
                run_case(&part);
            }
}

Test(comm, large_reductions_are_split_and_still_add_in_rank_order)
{
    static const case_spec cases[] = {
        {.n_ranks = 4, .op = COMM_ALL_REDUCE, .group = {0, 4}, .rows = 63, .width = 260, .pad = 2},
        {.n_ranks = 4, .op = COMM_ALL_REDUCE, .group = {0, 4}, .rows = 64, .width = 260, .pad = 2},
        {.n_ranks = 9, .op = COMM_ALL_REDUCE, .group = {0, 9}, .rows = 64, .width = 260, .pad = 2},
        {.n_ranks = 5, .op = COMM_ALL_REDUCE, .group = {1, 4}, .rows = 1, .width = 1 << 15, .pad = 0},
        {.n_ranks = 4, .op = COMM_REDUCE_SCATTER, .group = {0, 4}, .rows = 80, .width = 512, .pad = 0},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        run_case(&cases[i]);
}

/* ---- many calls in a row ---- */

typedef struct {
    comm *handle;
    int wrong;
} marathon;

enum { ROUNDS = 300 };

/* Mixes sizes, groups and operations without a pause, so that a buffer given back too early shows. */
static void *run_marathon(void *arg)
{
    marathon *m = arg;
    int me = m->handle->rank, n = m->handle->n_ranks;
    static const int widths[] = {8, 2048 * 8, 16, 4096 * 8};
    float *data = tpl_malloc(sizeof(float) * (4096 * 8)), *out = tpl_malloc(sizeof(float) * (4096 * 8 * MAX_RANKS));
    for (int k = 0; k < ROUNDS; k++) {
        int width = widths[k % 4];
        comm_group g = k % 3 == 2 ? (comm_group){me / 2 * 2, 2} : (comm_group){0, n};
        int first = g.first, size = g.size;
        for (int i = 0; i < width; i++)
            data[i] = (float)(me + k);
        m->handle->run(m->handle, COMM_ALL_REDUCE, g, data, width, NULL, 0, 1, width, NULL);
        float sum = 0;
        for (int r = first; r < first + size; r++)
            sum += (float)(r + k);
        m->wrong += data[0] != sum || data[width - 1] != sum;
        data[0] = (float)me;
        m->handle->run(m->handle, COMM_ALL_GATHER, g, data, 1, out, size, 1, 1, NULL);
        for (int r = 0; r < size; r++)
            m->wrong += out[r] != (float)(first + r);
    }
    free(data);
    free(out);
    return NULL;
}

Test(comm, more_ranks_than_cores_run_without_a_pause, .timeout = 60)
{
    int n = 8;
    comm *handles[MAX_RANKS];
    marathon m[MAX_RANKS] = {0};
    pthread_t threads[MAX_RANKS];
    cr_assert(comm_local_create(n, handles, NULL) == TPL_OK);
    for (int i = 0; i < n; i++) {
        m[i].handle = handles[i];
        cr_assert(pthread_create(&threads[i], NULL, run_marathon, &m[i]) == 0);
    }
    for (int i = 0; i < n; i++) {
        pthread_join(threads[i], NULL);
        cr_expect(m[i].wrong == 0, "rank %d: %d wrong", i, m[i].wrong);
        comm_destroy(handles[i]);
    }
}

/* ---- barrier ---- */

typedef struct {
    barrier *b;
    atomic_int *arrived;
    int n, early;
} waiter;

static void *wait_often(void *arg)
{
    waiter *w = arg;
    for (int k = 1; k <= ROUNDS; k++) {
        atomic_fetch_add(w->arrived, 1);
        barrier_wait(w->b);
        w->early += atomic_load(w->arrived) < k * w->n;
        barrier_wait(w->b); /* nobody starts the next round before all have looked */
    }
    return NULL;
}

Test(comm, a_barrier_holds_every_thread_until_the_last, .timeout = 60)
{
    int counts[] = {1, 2, 4 * threads_usable_cores() + 1};
    for (int c = 0; c < 3; c++) {
        int n = counts[c] < 64 ? counts[c] : 64;
        barrier b;
        atomic_int arrived = 0;
        waiter w[64];
        pthread_t threads[64];
        barrier_init(&b, n);
        for (int i = 0; i < n; i++) {
            w[i] = (waiter){&b, &arrived, n, 0};
            cr_assert(pthread_create(&threads[i], NULL, wait_often, &w[i]) == 0);
        }
        for (int i = 0; i < n; i++) {
            pthread_join(threads[i], NULL);
            cr_expect(w[i].early == 0, "%d of %d threads: %d left early", i, n, w[i].early);
        }
        cr_expect(atomic_load(&arrived) == n * ROUNDS);
        barrier_fini(&b);
    }
}

/* ---- one rank alone, and what is counted ---- */

Test(comm, a_rank_alone_keeps_its_own_parts)
{
    comm *c;
    float data[2][4] = {{1, 2, 3, 4}, {5, 6, 7, 8}}, gathered[2][8], part[2][2];
    comm_group all = {0, 2};
    cr_assert(comm_solo_create(2, &c, NULL) == TPL_OK);
    cr_expect(c->rank == 0 && c->n_ranks == 2);
    cr_expect_str_eq(c->backend, "solo");
    cr_assert(c->run(c, COMM_ALL_REDUCE, all, data[0], 4, NULL, 0, 2, 4, NULL) == TPL_OK);
    cr_expect(data[0][0] == 1 && data[1][3] == 8);
    cr_assert(c->run(c, COMM_ALL_GATHER, all, data[0], 4, gathered[0], 8, 2, 4, NULL) == TPL_OK);
    cr_expect(memcmp(gathered[1], data[1], sizeof data[1]) == 0 && memcmp(gathered[1] + 4, data[1], sizeof data[1]) == 0);
    cr_assert(c->run(c, COMM_REDUCE_SCATTER, all, data[0], 4, part[0], 2, 2, 4, NULL) == TPL_OK);
    cr_expect(part[0][0] == 1 && part[0][1] == 2 && part[1][0] == 5 && part[1][1] == 6);
    cr_assert(c->barrier(c, NULL) == TPL_OK);
    comm_destroy(c);
}

/* Ring algorithm over k ranks, by hand for k = 4 and 1,200 bytes: 2 * 3/4 * 1,200; 3 * 1,200; 3/4 * 1,200; 1,200. */
Test(comm, bytes_sent_are_those_of_a_ring)
{
    cr_expect(comm_bytes_sent(COMM_ALL_REDUCE, 4, 1200) == 1800);
    cr_expect(comm_bytes_sent(COMM_ALL_GATHER, 4, 1200) == 3600);
    cr_expect(comm_bytes_sent(COMM_REDUCE_SCATTER, 4, 1200) == 900);
    cr_expect(comm_bytes_sent(COMM_BROADCAST, 4, 1200) == 1200);
    cr_expect(comm_bytes_sent(COMM_ALL_REDUCE, 1, 1200) == 0);
}
