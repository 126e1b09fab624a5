/* procs_mpi.c - processes that mpirun started, on one host or several. */
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include <mpi.h>

#include "base/arena.h"
#include "device/procs_kind.h"

static int rank, count = 1;

static tpl_code check(int rc, const char *what, tpl_err *e)
{
    if (rc == MPI_SUCCESS)
        return TPL_OK;
    char text[MPI_MAX_ERROR_STRING];
    int n;
    MPI_Error_string(rc, text, &n);
    return tpl_fail(e, TPL_E_DEVICE, what, "rank %d: %s", rank, text);
}

/* Processes that can share memory are on one host. */
static tpl_code find_local(procs_place *p, tpl_err *e)
{
    MPI_Comm host;
    TPL_TRY(check(MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, rank, MPI_INFO_NULL, &host),
                  "MPI_Comm_split_type", e));
    MPI_Comm_rank(host, &p->local_rank);
    MPI_Comm_size(host, &p->local_count);
    MPI_Comm_free(&host);
    return TPL_OK;
}

tpl_code procs_mpi_open(procs_place *out, tpl_err *e)
{
    int given;
    TPL_TRY(check(MPI_Init_thread(NULL, NULL, MPI_THREAD_FUNNELED, &given), "MPI_Init_thread", e));
    MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &count);
    out->rank = rank;
    out->count = count;
    return find_local(out, e);
}

static void close_mpi(void)
{
    MPI_Finalize();
}

static tpl_code broadcast(void *data, size_t bytes, tpl_err *e)
{
    char *at = data;
    while (bytes > 0) {
        int n = bytes > INT_MAX ? INT_MAX : (int)bytes;
        TPL_TRY(check(MPI_Bcast(at, n, MPI_BYTE, 0, MPI_COMM_WORLD), "MPI_Bcast", e));
        at += n;
        bytes -= (size_t)n;
    }
    return TPL_OK;
}

static void abort_all(int status)
{
    MPI_Abort(MPI_COMM_WORLD, status);
    abort();
}

/* ---- collectives ---- */

typedef struct {
    MPI_Comm *groups; /* [first * (count + 1) + size], MPI_COMM_NULL until made */
    float *own, *all; /* packed rows of this rank, and of the whole group */
    size_t own_len, all_len;
} procs_comm;

static float *room(float **buf, size_t *len, size_t n)
{
    if (*len < n) {
        free(*buf);
        *buf = tpl_malloc(n * sizeof(float));
        *len = n;
    }
    return *buf;
}

/* Communicators are made together, in the order in which plans first name groups: every process of the group is there.
 */
static tpl_code group_comm(procs_comm *p, comm_group g, MPI_Comm *out, tpl_err *e)
{
    if (g.size == count) {
        *out = MPI_COMM_WORLD;
        return TPL_OK;
    }
    MPI_Comm *c = &p->groups[g.first * (count + 1) + g.size];
    if (*c == MPI_COMM_NULL) {
        MPI_Group world, part;
        int range[1][3] = {{g.first, g.first + g.size - 1, 1}};
        MPI_Comm_group(MPI_COMM_WORLD, &world);
        MPI_Group_range_incl(world, 1, range, &part);
        int rc = MPI_Comm_create_group(MPI_COMM_WORLD, part, g.first, c);
        MPI_Group_free(&part);
        MPI_Group_free(&world);
        TPL_TRY(check(rc, "MPI_Comm_create_group", e));
        MPI_Comm_set_errhandler(*c, MPI_ERRORS_RETURN);
    }
    *out = *c;
    return TPL_OK;
}

static void pack(float *to, const float *from, int64_t stride, int64_t rows, int64_t width)
{
    for (int64_t i = 0; i < rows; i++)
        memcpy(to + i * width, from + i * stride, (size_t)width * sizeof *to);
}

static void unpack(float *to, int64_t stride, const float *from, int64_t rows, int64_t width)
{
    for (int64_t i = 0; i < rows; i++)
        memcpy(to + i * stride, from + i * width, (size_t)width * sizeof *to);
}

/* sum = part 0 + part 1 + ..., each [n], in this order. */
static void add_parts(float *sum, const float *parts, int n_parts, int64_t n)
{
    memcpy(sum, parts, (size_t)n * sizeof *sum);
    for (int r = 1; r < n_parts; r++)
        for (int64_t i = 0; i < n; i++)
            sum[i] += parts[r * n + i];
}

/* Everybody's rows to everybody: all [size, rows, width]. */
static tpl_code gather(procs_comm *p, MPI_Comm c, int size, const float *data, int64_t stride, int64_t rows,
                       int64_t width, float **all, tpl_err *e)
{
    int64_t n = rows * width;
    if (n > INT_MAX)
        return tpl_fail(e, TPL_E_UNSUPPORTED, "collective", "of %lld values, at most %d", (long long)n, INT_MAX);
    float *own = room(&p->own, &p->own_len, (size_t)n);
    *all = room(&p->all, &p->all_len, (size_t)(n * size));
    pack(own, data, stride, rows, width);
    return check(MPI_Allgather(own, (int)n, MPI_FLOAT, *all, (int)n, MPI_FLOAT, c), "MPI_Allgather", e);
}

static tpl_code reduce_scatter(procs_comm *p, MPI_Comm c, int size, const float *data, int64_t stride, float *out,
                               int64_t out_stride, int64_t rows, int64_t share, tpl_err *e)
{
    int64_t n = rows * share;
    if (n > INT_MAX)
        return tpl_fail(e, TPL_E_UNSUPPORTED, "collective", "of %lld values, at most %d", (long long)n, INT_MAX);
    float *send = room(&p->own, &p->own_len, (size_t)(n * size)), *got = room(&p->all, &p->all_len, (size_t)(n * size));
    for (int r = 0; r < size; r++)
        pack(send + r * n, data + r * share, stride, rows, share);
    TPL_TRY(check(MPI_Alltoall(send, (int)n, MPI_FLOAT, got, (int)n, MPI_FLOAT, c), "MPI_Alltoall", e));
    add_parts(send, got, size, n);
    unpack(out, out_stride, send, rows, share);
    return TPL_OK;
}

static tpl_code procs_run(comm *c, comm_op op, comm_group g, float *data, int64_t data_stride, float *out,
                          int64_t out_stride, int64_t rows, int64_t width, tpl_err *e)
{
    procs_comm *p = c->self;
    MPI_Comm mpi;
    float *all;
    TPL_TRY(group_comm(p, g, &mpi, e));
    switch (op) {
    case COMM_ALL_REDUCE:
        TPL_TRY(gather(p, mpi, g.size, data, data_stride, rows, width, &all, e));
        add_parts(p->own, all, g.size, rows * width);
        unpack(data, data_stride, p->own, rows, width);
        return TPL_OK;
    case COMM_ALL_GATHER:
        TPL_TRY(gather(p, mpi, g.size, data, data_stride, rows, width, &all, e));
        for (int r = 0; r < g.size; r++)
            unpack(out + r * width, out_stride, all + r * rows * width, rows, width);
        return TPL_OK;
    case COMM_REDUCE_SCATTER:
        return reduce_scatter(p, mpi, g.size, data, data_stride, out, out_stride, rows, width / g.size, e);
    default: {
        float *own = room(&p->own, &p->own_len, (size_t)(rows * width));
        pack(own, data, data_stride, rows, width);
        TPL_TRY(check(MPI_Bcast(own, (int)(rows * width), MPI_FLOAT, 0, mpi), "MPI_Bcast", e));
        unpack(data, data_stride, own, rows, width);
        return TPL_OK;
    }
    }
}

static tpl_code procs_barrier(comm *c, tpl_err *e)
{
    return check(MPI_Barrier(MPI_COMM_WORLD), "MPI_Barrier", e);
}

static void procs_destroy(comm *c)
{
    procs_comm *p = c->self;
    for (int i = 0; i < count * (count + 1); i++)
        if (p->groups[i] != MPI_COMM_NULL)
            MPI_Comm_free(&p->groups[i]);
    free(p->groups);
    free(p->own);
    free(p->all);
    free(p);
    free(c);
}

static tpl_code create_comm(comm **handle, tpl_err *e)
{
    procs_comm *p = tpl_calloc(1, sizeof *p);
    p->groups = tpl_calloc((size_t)(count * (count + 1)), sizeof *p->groups);
    for (int i = 0; i < count * (count + 1); i++)
        p->groups[i] = MPI_COMM_NULL;
    *handle = tpl_malloc(sizeof **handle);
    **handle = (comm){.rank = rank,
                      .n_ranks = count,
                      .backend = "mpi",
                      .run = procs_run,
                      .barrier = procs_barrier,
                      .destroy = procs_destroy,
                      .self = p};
    return TPL_OK;
}

const procs_kind procs_mpi = {
    .broadcast = broadcast, .abort = abort_all, .create_comm = create_comm, .close = close_mpi};
