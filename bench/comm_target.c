#include "bench/comm_target.h"

#include <stdlib.h>
#include <string.h>

#include "bench/crew.h"
#include "device/memory.h"

typedef struct {
    comm *c;
    dev_buf data, out;
    int64_t wrong;
} rank_state;

struct comm_target {
    comm_op op;
    int ranks;
    int64_t rows, width, out_width;
    rank_state *r; /* [ranks] */
    crew *crew;
};

comm_target *comm_target_create(comm_op op, int ranks, int64_t rows, int64_t width)
{
    comm_target *t = tpl_calloc(1, sizeof *t);
    *t = (comm_target){.op = op, .ranks = ranks, .rows = rows, .width = width};
    t->out_width = op == COMM_ALL_GATHER ? width * ranks : op == COMM_REDUCE_SCATTER ? width / ranks : 0;
    t->r = tpl_calloc((size_t)ranks, sizeof *t->r);
    return t;
}

void comm_target_destroy(comm_target *t)
{
    if (!t)
        return;
    free(t->r);
    free(t);
}

/* Zeros, so that sums over many runs stay what they are. */
static tpl_code init_member(void *arg, int i, tpl_err *e)
{
    comm_target *t = arg;
    size_t row = (size_t)t->rows * sizeof(float);
    TPL_TRY(dev_alloc(&t->r[i].data, row * (size_t)t->width, "collective data", e));
    return dev_alloc(&t->r[i].out, row * (size_t)t->out_width, "collective data", e);
}

static tpl_code prepare(void *self, tpl_err *e)
{
    comm_target *t = self;
    comm **handles = tpl_calloc((size_t)t->ranks, sizeof *handles);
    tpl_code rc = TPL_OK;
    if (t->op == COMM_REDUCE_SCATTER && t->width % t->ranks)
        rc = tpl_fail(e, TPL_E_UNSUPPORTED, comm_op_name(t->op), "width %lld over %d ranks", (long long)t->width,
                      t->ranks);
    if (rc == TPL_OK)
        rc = crew_create(t->ranks, &t->crew, e);
    if (rc == TPL_OK)
        rc = comm_local_create(t->ranks, handles, e);
    for (int i = 0; i < t->ranks && rc == TPL_OK; i++)
        t->r[i].c = handles[i];
    free(handles);
    return rc == TPL_OK ? crew_run(t->crew, init_member, t, e) : rc;
}

static void release(void *self)
{
    comm_target *t = self;
    crew_destroy(t->crew);
    t->crew = NULL;
    for (int i = 0; i < t->ranks; i++) {
        comm_destroy(t->r[i].c);
        dev_free(&t->r[i].data);
        dev_free(&t->r[i].out);
        t->r[i].c = NULL;
    }
}

static tpl_code run_once(comm_target *t, int i, tpl_err *e)
{
    rank_state *r = &t->r[i];
    return r->c->run(r->c, t->op, (comm_group){0, t->ranks}, r->data.data, t->width, r->out.data, t->out_width, t->rows,
                     t->width, e);
}

static tpl_code run_member(void *arg, int i, tpl_err *e)
{
    for (int k = 0; k < COMM_RUNS; k++)
        TPL_TRY(run_once(arg, i, e));
    return TPL_OK;
}

static tpl_code run(void *self, tpl_err *e)
{
    comm_target *t = self;
    return crew_run(t->crew, run_member, t, e);
}

/* ---- verify: whole numbers, whose sums are exact ---- */

static float value_of(int rank, int64_t row, int64_t col)
{
    return (float)((rank + 1) * (int)((row * 31 + col) % 251));
}

static float sum_of(const comm_target *t, int64_t row, int64_t col)
{
    float sum = 0;
    for (int r = 0; r < t->ranks; r++)
        sum += value_of(r, row, col);
    return sum;
}

/* What rank i's result must hold at a place of its out, or of its data for the operations in place. */
static float expected_at(const comm_target *t, int i, int64_t row, int64_t col)
{
    switch (t->op) {
    case COMM_ALL_REDUCE:
        return sum_of(t, row, col);
    case COMM_ALL_GATHER:
        return value_of((int)(col / t->width), row, col % t->width);
    case COMM_REDUCE_SCATTER:
        return sum_of(t, row, i * t->out_width + col);
    default:
        return value_of(0, row, col);
    }
}

static tpl_code verify_member(void *arg, int i, tpl_err *e)
{
    comm_target *t = arg;
    rank_state *r = &t->r[i];
    float *data = r->data.data;
    for (int64_t k = 0; k < t->rows * t->width; k++)
        data[k] = value_of(i, k / t->width, k % t->width);
    dev_poison(r->out.data, r->out.bytes);
    TPL_TRY(run_once(t, i, e));
    bool in_place = t->out_width == 0;
    const float *got = in_place ? data : r->out.data;
    int64_t width = in_place ? t->width : t->out_width;
    r->wrong = 0;
    for (int64_t k = 0; k < t->rows * width; k++)
        r->wrong += got[k] != expected_at(t, i, k / width, k % width);
    memset(r->data.data, 0, r->data.bytes);
    return TPL_OK;
}

static tpl_code verify(void *self, int64_t *n_wrong, tpl_err *e)
{
    comm_target *t = self;
    TPL_TRY(crew_run(t->crew, verify_member, t, e));
    *n_wrong = 0;
    for (int i = 0; i < t->ranks; i++)
        *n_wrong += t->r[i].wrong;
    return TPL_OK;
}

bench_target comm_target_bench(comm_target *t)
{
    return (bench_target){
        .self = t, .prepare = prepare, .release = release, .verify = verify, .run = run, .units = COMM_RUNS};
}
