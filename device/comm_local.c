#include "device/comm.h"

#include <assert.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "base/arena.h"
#include "base/threads.h"

const char *comm_op_name(comm_op op)
{
    static const char *const names[] = {"all_reduce", "all_gather", "reduce_scatter", "broadcast"};
    return names[op];
}

double comm_bytes_sent(comm_op op, int size, double bytes)
{
    switch (op) {
    case COMM_ALL_REDUCE:
        return 2.0 * (size - 1) / size * bytes;
    case COMM_ALL_GATHER:
        return (size - 1) * bytes;
    case COMM_REDUCE_SCATTER:
        return (double)(size - 1) / size * bytes;
    default:
        return bytes;
    }
}

void comm_destroy(comm *c)
{
    if (c)
        c->destroy(c);
}

/* ---- threads of one process ---- */

/* What a rank lends to the others while a collective runs. */
typedef struct {
    float *data;
    int64_t stride;
} lent_rows;

/* Each rank's own cache line, so that publishing does not disturb the others. */
typedef struct {
    _Alignas(64) lent_rows lent;
    float *sum; /* scratch for reductions, grown as needed */
    size_t sum_len;
} rank_slot;

/* Copies of a rank's small data that the others read. A group's collectives use the two in turn: before a rank fills one
 * again it has met the others in the collective between, and so they have read what it held. */
typedef struct {
    _Alignas(64) float *copy[2];
    size_t len[2];
    unsigned turn; /* collectives of this kind that the rank has begun */
} rank_stage;

typedef struct {
    barrier all;
    rank_stage *stages; /* [size], made with the group */
} local_group;

typedef struct {
    int n;
    atomic_int alive;
    rank_slot *slots;
    local_group *groups; /* [first * (n + 1) + size] */
} local_shared;

static local_group *group_of(local_shared *s, comm_group g)
{
    return &s->groups[g.first * (s->n + 1) + g.size];
}

static float *sum_space(rank_slot *slot, size_t n)
{
    if (slot->sum_len < n) {
        free(slot->sum);
        slot->sum = tpl_malloc(n * sizeof(float));
        slot->sum_len = n;
    }
    return slot->sum;
}

/* y = x of the first rank, += x of the others. */
static void add_row(float *y, const float *x, int64_t width, bool first)
{
    if (first)
        memcpy(y, x, (size_t)width * sizeof *y);
    else
        for (int64_t j = 0; j < width; j++)
            y[j] += x[j];
}

/* Up to here a copy costs less than a second meeting. */
enum { STAGE_FLOATS = 1 << 12 };

/* sum[rows, width] = columns [col, col + width) of all the group's rows, added in rank order. */
static void add_ranks(const local_shared *s, comm_group g, float *sum, int64_t rows, int64_t col, int64_t width)
{
    for (int r = 0; r < g.size; r++) {
        lent_rows from = s->slots[g.first + r].lent;
        for (int64_t i = 0; i < rows; i++)
            add_row(sum + i * width, from.data + i * from.stride + col, width, r == 0);
    }
}

static void copy_rows(float *to, int64_t to_stride, const float *from, int64_t from_stride, int64_t rows, int64_t width)
{
    for (int64_t i = 0; i < rows; i++)
        memcpy(to + i * to_stride, from + i * from_stride, (size_t)width * sizeof *to);
}

/* Large all-reduce: rank i adds up the i-th share of the rows' columns and gives it to all. */
enum { SPLIT_FLOATS = 1 << 14 };

/* Columns [col, col + width) of all the group's rows become their sums; nobody else touches them meanwhile. */
static void reduce_columns(const local_shared *s, comm_group g, float *sum, int64_t rows, int64_t col, int64_t width)
{
    for (int64_t i = 0; i < rows; i++) {
        for (int r = 0; r < g.size; r++) {
            lent_rows from = s->slots[g.first + r].lent;
            add_row(sum, from.data + i * from.stride + col, width, r == 0);
        }
        for (int r = 0; r < g.size; r++) {
            lent_rows to = s->slots[g.first + r].lent;
            memcpy(to.data + i * to.stride + col, sum, (size_t)width * sizeof *sum);
        }
    }
}

static void all_reduce(local_shared *s, comm_group g, int me, barrier *b, float *data, int64_t stride, int64_t rows, int64_t width)
{
    rank_slot *slot = &s->slots[g.first + me];
    int64_t share = width / g.size;
    if (rows * width >= SPLIT_FLOATS && width % g.size == 0) {
        reduce_columns(s, g, sum_space(slot, (size_t)share), rows, me * share, share);
        barrier_wait(b); /* all shares are there */
        return;
    }
    float *sum = sum_space(slot, (size_t)(rows * width));
    add_ranks(s, g, sum, rows, 0, width);
    barrier_wait(b); /* everybody has read; data may change */
    copy_rows(data, stride, sum, width, rows, width);
}

/* out[rows, width] = columns [col, col + width) of all stages' rows of `stage_width`, added in rank order. */
static void add_stages(const local_group *lg, comm_group g, unsigned at, int64_t stage_width, float *out, int64_t stride, int64_t rows, int64_t col, int64_t width)
{
    for (int r = 0; r < g.size; r++)
        for (int64_t i = 0; i < rows; i++)
            add_row(out + i * stride, lg->stages[r].copy[at] + i * stage_width + col, width, r == 0);
}

/* Ranks meet once: each has copied its data before, and reads the others' copies after. */
static void run_staged(local_group *lg, comm_op op, comm_group g, int me, float *data, int64_t data_stride, float *out, int64_t out_stride, int64_t rows, int64_t width)
{
    rank_stage *mine = &lg->stages[me];
    unsigned at = mine->turn++ & 1;
    size_t need = (size_t)(rows * width);
    if (op != COMM_BROADCAST || me == 0) {
        if (mine->len[at] < need) {
            free(mine->copy[at]);
            mine->copy[at] = tpl_malloc(need * sizeof(float));
            mine->len[at] = need;
        }
        copy_rows(mine->copy[at], width, data, data_stride, rows, width);
    }
    barrier_wait(&lg->all);
    if (op == COMM_ALL_REDUCE)
        add_stages(lg, g, at, width, data, data_stride, rows, 0, width);
    else if (op == COMM_REDUCE_SCATTER)
        add_stages(lg, g, at, width, out, out_stride, rows, me * (width / g.size), width / g.size);
    else if (op == COMM_ALL_GATHER)
        for (int r = 0; r < g.size; r++)
            copy_rows(out + r * width, out_stride, lg->stages[r].copy[at], width, rows, width);
    else if (me != 0)
        copy_rows(data, data_stride, lg->stages[0].copy[at], width, rows, width);
}

static tpl_code local_run(comm *c, comm_op op, comm_group g, float *data, int64_t data_stride, float *out, int64_t out_stride, int64_t rows, int64_t width, tpl_err *e)
{
    local_shared *s = c->self;
    int me = c->rank - g.first;
    assert(me >= 0 && me < g.size && g.first + g.size <= s->n);
    local_group *lg = group_of(s, g);
    barrier *b = &lg->all;
    if (rows * width <= STAGE_FLOATS) {
        run_staged(lg, op, g, me, data, data_stride, out, out_stride, rows, width);
        return TPL_OK;
    }
    s->slots[c->rank].lent = (lent_rows){data, data_stride};
    barrier_wait(b);
    switch (op) {
    case COMM_ALL_REDUCE:
        all_reduce(s, g, me, b, data, data_stride, rows, width);
        return TPL_OK;
    case COMM_ALL_GATHER:
        for (int r = 0; r < g.size; r++)
            copy_rows(out + r * width, out_stride, s->slots[g.first + r].lent.data, s->slots[g.first + r].lent.stride, rows, width);
        break;
    case COMM_REDUCE_SCATTER: {
        int64_t share = width / g.size;
        float *sum = sum_space(&s->slots[c->rank], (size_t)(rows * share));
        add_ranks(s, g, sum, rows, me * share, share);
        copy_rows(out, out_stride, sum, share, rows, share);
        break;
    }
    default:
        if (me != 0)
            copy_rows(data, data_stride, s->slots[g.first].lent.data, s->slots[g.first].lent.stride, rows, width);
    }
    barrier_wait(b); /* nobody's data is read any more */
    return TPL_OK;
}

static tpl_code local_barrier(comm *c, tpl_err *e)
{
    local_shared *s = c->self;
    barrier_wait(&group_of(s, (comm_group){0, s->n})->all);
    return TPL_OK;
}

/* Zeroed, at the start of a cache line; bytes are whole lines. */
static void *calloc_lines(size_t bytes)
{
    void *at = aligned_alloc(64, bytes ? bytes : 64);
    if (!at)
        abort();
    return memset(at, 0, bytes);
}

static void group_init(local_group *g, int size)
{
    barrier_init(&g->all, size ? size : 1);
    g->stages = calloc_lines(sizeof *g->stages * (size_t)size);
}

static void group_fini(local_group *g, int size)
{
    for (int r = 0; r < size; r++)
        for (int k = 0; k < 2; k++)
            free(g->stages[r].copy[k]);
    free(g->stages);
    barrier_fini(&g->all);
}

static void local_destroy(comm *c)
{
    local_shared *s = c->self;
    free(c);
    if (atomic_fetch_sub(&s->alive, 1) > 1)
        return;
    for (int i = 0; i < s->n; i++)
        free(s->slots[i].sum);
    for (int i = 0; i < s->n * (s->n + 1); i++)
        group_fini(&s->groups[i], i % (s->n + 1));
    free(s->groups);
    free(s->slots);
    free(s);
}

tpl_code comm_local_create(int n, comm **handles, tpl_err *e)
{
    local_shared *s = tpl_calloc(1, sizeof *s);
    s->n = n;
    atomic_init(&s->alive, n);
    s->slots = calloc_lines(sizeof(rank_slot) * (size_t)n);
    s->groups = calloc_lines(sizeof *s->groups * (size_t)(n * (n + 1)));
    for (int i = 0; i < n * (n + 1); i++)
        group_init(&s->groups[i], i % (n + 1));
    for (int i = 0; i < n; i++) {
        handles[i] = tpl_malloc(sizeof **handles);
        *handles[i] = (comm){.rank = i, .n_ranks = n, .backend = "local", .run = local_run, .barrier = local_barrier, .destroy = local_destroy, .self = s};
    }
    return TPL_OK;
}

/* ---- one rank alone ---- */

void comm_alone(comm_op op, int rank, comm_group g, const float *data, int64_t data_stride, float *out, int64_t out_stride, int64_t rows, int64_t width)
{
    if (op == COMM_ALL_GATHER)
        for (int r = 0; r < g.size; r++)
            copy_rows(out + r * width, out_stride, data, data_stride, rows, width);
    if (op == COMM_REDUCE_SCATTER)
        copy_rows(out, out_stride, data + (rank - g.first) * (width / g.size), data_stride, rows, width / g.size);
}

static tpl_code solo_run(comm *c, comm_op op, comm_group g, float *data, int64_t data_stride, float *out, int64_t out_stride, int64_t rows, int64_t width, tpl_err *e)
{
    comm_alone(op, c->rank, g, data, data_stride, out, out_stride, rows, width);
    return TPL_OK;
}

static tpl_code solo_barrier(comm *c, tpl_err *e)
{
    return TPL_OK;
}

static void solo_destroy(comm *c)
{
    free(c);
}

tpl_code comm_solo_create(int n, comm **handle, tpl_err *e)
{
    *handle = tpl_malloc(sizeof **handle);
    **handle = (comm){.rank = 0, .n_ranks = n, .backend = "solo", .run = solo_run, .barrier = solo_barrier, .destroy = solo_destroy};
    return TPL_OK;
}
