/* Mixtures of experts. */
#include <math.h>

#include "kernels/ref/ref.h"
#include "kernels/route.h"

size_t ref_scratch_moe_route(const op_call *call)
{
    return route_scratch_bytes(&call->moe_route) + (size_t)call->moe_route.w.rows * sizeof(double);
}

static double dot(const kernel_ctx *ctx, const mat *x, int64_t row, const mat *w, int64_t w_row)
{
    double sum = 0;
    for (int64_t i = 0; i < w->cols; i++)
        sum += ref_in(ctx, ref_get(x, row, i)) * ref_in(ctx, ref_get(w, w_row, i));
    return sum;
}

tpl_code ref_moe_route(kernel_ctx *ctx, const op_call *call, tpl_err *e)
{
    const op_moe_route *o = &call->moe_route;
    double *logits = (double *)(void *)((char *)ctx->scratch + route_scratch_bytes(o));
    for (int64_t r = 0; r < o->x.rows; r++) {
        for (int64_t i = 0; i < o->w.rows; i++)
            logits[i] = dot(ctx, &o->x, r, &o->w, i);
        route_row(o, r, logits, ctx->scratch);
    }
    return TPL_OK;
}

size_t ref_scratch_moe_experts(const op_call *call)
{
    return (size_t)(call->moe_experts.ffn + call->moe_experts.x.cols) * sizeof(double);
}

/* sum [dim] += weight * down (silu(gate x) * up x) of one expert and row; `inner` holds [ffn]. */
static void add_expert(const kernel_ctx *ctx, const op_moe_experts *o, int64_t row, int64_t expert, double weight,
                       double *inner, double *sum)
{
    for (int64_t i = 0; i < o->ffn; i++) {
        double g = dot(ctx, &o->x, row, &o->gate[expert], i), u = dot(ctx, &o->x, row, &o->up[expert], i);
        inner[i] = ref_in(ctx, g / (1 + exp(-g)) * u);
    }
    for (int64_t c = 0; c < o->x.cols; c++) {
        double y = 0;
        for (int64_t i = 0; i < o->ffn; i++)
            y += inner[i] * ref_in(ctx, ref_get(&o->down[expert], c, i));
        sum[c] += weight * y;
    }
}

tpl_code ref_moe_experts(kernel_ctx *ctx, const op_call *call, tpl_err *e)
{
    const op_moe_experts *o = &call->moe_experts;
    double *inner = ctx->scratch, *sum = inner + o->ffn;
    for (int64_t r = 0; r < o->x.rows; r++) {
        const int32_t *ids = (const int32_t *)o->ids.data + r * o->ids.stride;
        for (int64_t c = 0; c < o->x.cols; c++)
            sum[c] = o->accumulate ? ref_get(&o->out, r, c) : 0;
        for (int64_t i = 0; i < o->ids.cols; i++) {
            int64_t expert = (int64_t)ids[i] - o->expert0;
            if (expert >= 0 && expert < o->n_local)
                add_expert(ctx, o, r, expert, ref_get(&o->weights, r, i), inner, sum);
        }
        for (int64_t c = 0; c < o->x.cols; c++)
            ref_put(&o->out, r, c, sum[c]);
    }
    return TPL_OK;
}
