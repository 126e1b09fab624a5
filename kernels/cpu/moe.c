/* Mixtures of experts: an expert's weights are read once for all rows (up to EXPERT_ROWS) that go to it. */
#include <string.h>

#include "kernels/cpu/cpu.h"
#include "kernels/cpu/gemm.h"
#include "kernels/route.h"

enum { ROUTE_ROWS = 256, EXPERT_ROWS = 256 };

static int64_t least(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static size_t round_64(size_t bytes)
{
    return (bytes + 63) / 64 * 64;
}

/* A piece of scratch; with *at NULL it only counts. */
static void *piece(char **at, size_t *used, size_t bytes)
{
    void *p = *at ? *at + *used : NULL;
    *used += round_64(bytes);
    return p;
}

/* ---- routing ---- */

typedef struct {
    void *product, *choice;
    float *logits; /* [ROUTE_ROWS, n_experts] */
    double *row;   /* [n_experts] */
} route_work;

static size_t route_cut(const op_moe_route *o, char *base, route_work *w)
{
    size_t used = 0, n = (size_t)o->w.rows;
    int64_t rows = least(ROUTE_ROWS, o->x.rows);
    w->product = piece(&base, &used, gemm_scratch_bytes(rows, o->w.cols, o->w.rows));
    w->choice = piece(&base, &used, route_scratch_bytes(o));
    w->logits = piece(&base, &used, (size_t)rows * n * sizeof(float));
    w->row = piece(&base, &used, n * sizeof(double));
    return used;
}

size_t cpu_scratch_moe_route(const op_call *call)
{
    route_work w;
    return route_cut(&call->moe_route, NULL, &w);
}

tpl_code cpu_moe_route(const simd_ops *v, kernel_ctx *ctx, const op_call *call, tpl_err *e)
{
    const op_moe_route *o = &call->moe_route;
    route_work w;
    route_cut(o, ctx->scratch, &w);
    gemm_env env = {v, ctx->compute, w.product};
    int64_t n = o->w.rows;
    for (int64_t r = 0; r < o->x.rows; r += ROUTE_ROWS) {
        mat x = o->x, logits = {.data = w.logits, .dtype = DT_F32, .cols = n, .stride = n};
        x.data = cpu_row(&o->x, r);
        x.rows = logits.rows = least(ROUTE_ROWS, o->x.rows - r);
        TPL_TRY(gemm_nt(&env, &x, &o->w, &logits, false, e));
        for (int64_t i = 0; i < x.rows; i++) {
            for (int64_t c = 0; c < n; c++)
                w.row[c] = w.logits[i * n + c];
            route_row(o, r + i, w.row, w.choice);
        }
    }
    return TPL_OK;
}

/* ---- experts ---- */

typedef struct {
    void *product;
    int32_t *rows;   /* [EXPERT_ROWS] rows at hand */
    float *weight;   /* [EXPERT_ROWS] */
    mat x, gate, up; /* [EXPERT_ROWS, dim], [EXPERT_ROWS, ffn] twice; the result takes x's place */
    int64_t n;       /* rows at hand */
} expert_work;

static mat work_mat(void *data, int64_t cols)
{
    return (mat){.data = data, .dtype = DT_F32, .cols = cols, .stride = cols};
}

static size_t expert_cut(const op_moe_experts *o, char *base, expert_work *w)
{
    size_t used = 0;
    int64_t rows = least(EXPERT_ROWS, o->x.rows), dim = o->x.cols, wide = dim > o->ffn ? dim : o->ffn;
    w->product = piece(&base, &used, gemm_scratch_bytes(rows, wide, wide));
    w->rows = piece(&base, &used, (size_t)rows * sizeof *w->rows);
    w->weight = piece(&base, &used, (size_t)rows * sizeof *w->weight);
    w->x = work_mat(piece(&base, &used, (size_t)(rows * dim) * sizeof(float)), dim);
    w->gate = work_mat(piece(&base, &used, (size_t)(rows * o->ffn) * sizeof(float)), o->ffn);
    w->up = work_mat(piece(&base, &used, (size_t)(rows * o->ffn) * sizeof(float)), o->ffn);
    return used;
}

size_t cpu_scratch_moe_experts(const op_call *call)
{
    expert_work w;
    return expert_cut(&call->moe_experts, NULL, &w);
}

static tpl_code run_expert(const simd_ops *v, const gemm_env *env, const op_moe_experts *o, int64_t expert,
                           expert_work *w, tpl_err *e)
{
    size_t dim = (size_t)o->x.cols;
    w->x.rows = w->gate.rows = w->up.rows = w->n;
    for (int64_t i = 0; i < w->n; i++)
        memcpy(cpu_row(&w->x, i), cpu_row(&o->x, w->rows[i]), dim * sizeof(float));
    TPL_TRY(gemm_nt(env, &w->x, &o->gate[expert], &w->gate, false, e));
    TPL_TRY(gemm_nt(env, &w->x, &o->up[expert], &w->up, false, e));
    v->silu_mul(w->gate.data, w->gate.data, w->up.data, w->n * o->ffn);
    TPL_TRY(gemm_nt(env, &w->gate, &o->down[expert], &w->x, false, e));
    for (int64_t i = 0; i < w->n; i++) {
        float *to = cpu_row(&o->out, w->rows[i]);
        const float *from = cpu_row(&w->x, i);
        for (size_t c = 0; c < dim; c++)
            to[c] += w->weight[i] * from[c];
    }
    w->n = 0;
    return TPL_OK;
}

/* All rows that go to one expert, in batches; rows in order, so that the result does not depend on anything else. */
static tpl_code feed_expert(const simd_ops *v, const gemm_env *env, const op_moe_experts *o, int64_t expert,
                            expert_work *w, tpl_err *e)
{
    for (int64_t r = 0; r < o->x.rows; r++) {
        const int32_t *ids = (const int32_t *)o->ids.data + r * o->ids.stride;
        for (int64_t i = 0; i < o->ids.cols; i++) {
            if ((int64_t)ids[i] - o->expert0 != expert)
                continue;
            w->rows[w->n] = (int32_t)r;
            w->weight[w->n++] = cpu_row(&o->weights, r)[i];
            if (w->n == least(EXPERT_ROWS, o->x.rows))
                TPL_TRY(run_expert(v, env, o, expert, w, e));
        }
    }
    return w->n > 0 ? run_expert(v, env, o, expert, w, e) : TPL_OK;
}

tpl_code cpu_moe_experts(const simd_ops *v, kernel_ctx *ctx, const op_call *call, tpl_err *e)
{
    const op_moe_experts *o = &call->moe_experts;
    expert_work w = {.n = 0};
    expert_cut(o, ctx->scratch, &w);
    gemm_env env = {v, ctx->compute, w.product};
    for (int64_t r = 0; r < o->x.rows && !o->accumulate; r++)
        memset(cpu_row(&o->out, r), 0, (size_t)o->x.cols * sizeof(float));
    for (int64_t expert = 0; expert < o->n_local; expert++)
        TPL_TRY(feed_expert(v, &env, o, expert, &w, e));
    return TPL_OK;
}
