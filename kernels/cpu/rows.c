/* Operations that treat each row alone: copies, norms, rotary embedding, gates. All are bound by memory; what matters
 * is that rows are walked once and conversions are vectors. */
#include <math.h>
#include <string.h>

#include "kernels/cpu/cpu.h"
#include "kernels/paging.h"

tpl_code cpu_embed(const simd_ops *v, kernel_ctx *ctx, const op_call *call, tpl_err *e)
{
    const op_embed *o = &call->embed;
    const mat *t = &o->table;
    for (int64_t r = 0; r < o->out.rows; r++) {
        size_t at = (size_t)(o->batch->row_token[r] * t->stride) * dtype_bytes(t->dtype);
        v->widen(cpu_row(&o->out, r), (const char *)t->data + at, t->dtype, o->out.cols);
    }
    return TPL_OK;
}

tpl_code cpu_gather_rows(const simd_ops *v, kernel_ctx *ctx, const op_call *call, tpl_err *e)
{
    const op_gather_rows *o = &call->gather_rows;
    for (int64_t r = 0; r < o->out.rows; r++)
        memcpy(cpu_row(&o->out, r), cpu_row(&o->x, o->index[r]), (size_t)o->out.cols * sizeof(float));
    return TPL_OK;
}

tpl_code cpu_add(const simd_ops *v, kernel_ctx *ctx, const op_call *call, tpl_err *e)
{
    const op_add *o = &call->add;
    for (int64_t r = 0; r < o->out.rows; r++)
        v->add(cpu_row(&o->out, r), cpu_row(&o->x, r), o->out.cols);
    return TPL_OK;
}

tpl_code cpu_copy_heads(const simd_ops *v, kernel_ctx *ctx, const op_call *call, tpl_err *e)
{
    const op_copy_heads *o = &call->copy_heads;
    for (int64_t r = 0; r < o->out.rows; r++)
        for (int64_t h = 0; h < o->heads; h++)
            memcpy(cpu_row(&o->out, r) + h * o->out_head_stride, cpu_row(&o->x, r) + h * o->x_head_stride,
                   (size_t)o->cols * sizeof(float));
    return TPL_OK;
}

tpl_code cpu_silu_mul(const simd_ops *v, kernel_ctx *ctx, const op_call *call, tpl_err *e)
{
    const op_silu_mul *o = &call->silu_mul;
    for (int64_t r = 0; r < o->out.rows; r++)
        v->silu_mul(cpu_row(&o->out, r), cpu_row(&o->gate, r), cpu_row(&o->up, r), o->out.cols);
    return TPL_OK;
}

size_t cpu_scratch_rmsnorm(const op_call *call)
{
    return (size_t)call->rmsnorm.weight.cols * sizeof(float);
}

tpl_code cpu_rmsnorm(const simd_ops *v, kernel_ctx *ctx, const op_call *call, tpl_err *e)
{
    const op_rmsnorm *o = &call->rmsnorm;
    int64_t width = o->x.cols / o->groups;
    float *weight = o->weight.data ? ctx->scratch : NULL;
    if (weight)
        v->widen(weight, o->weight.data, o->weight.dtype, width);
    for (int64_t r = 0; r < o->x.rows; r++)
        for (int64_t g = 0; g < o->groups; g++) {
            const float *x = cpu_row(&o->x, r) + g * width;
            float *out = cpu_row(&o->out, r) + g * width;
            float by = 1.f / sqrtf(v->sum_squares(x, width) / (float)width + o->eps);
            if (weight)
                v->multiply(out, x, by, weight, width);
            for (int64_t c = 0; c < width && !weight; c++)
                out[c] = x[c] * by;
        }
    return TPL_OK;
}

tpl_code cpu_sliced_norm(const simd_ops *v, kernel_ctx *ctx, const op_call *call, tpl_err *e)
{
    const op_sliced_norm *o = &call->sliced_norm;
    int64_t width = o->x.cols / o->n_slices;
    for (int64_t r = 0; r < o->x.rows; r++)
        for (int64_t j = 0; j < o->n_slices; j++) {
            const float *x = cpu_row(&o->x, r) + j * width;
            float *out = cpu_row(&o->out, r) + j * width;
            float by = 1.f / sqrtf(o->alpha[j] * v->sum_squares(x, width) / (float)o->kv_lora_rank + o->eps);
            for (int64_t c = 0; c < width; c++)
                out[c] = x[c] * by;
        }
    return TPL_OK;
}

size_t cpu_scratch_rope(const op_call *call)
{
    return (size_t)call->rope.dim * sizeof(float);
}

/* The old values are set aside first: interleaved pairs are stored apart. */
static void rope_head(const simd_ops *v, const op_rope *o, float *x, int64_t pos, float *old)
{
    int64_t half = o->dim / 2;
    memcpy(old, x, (size_t)o->dim * sizeof *old);
    v->rotate(x, old, o->cos + pos * half, o->sin + pos * half, half, o->interleaved);
}

tpl_code cpu_rope(const simd_ops *v, kernel_ctx *ctx, const op_call *call, tpl_err *e)
{
    const op_rope *o = &call->rope;
    for (int64_t r = 0; r < o->x.rows; r++)
        for (int64_t h = 0; h < o->heads; h++)
            rope_head(v, o, cpu_row(&o->x, r) + h * o->head_stride, o->batch->row_pos[r], ctx->scratch);
    return TPL_OK;
}

static void append_columns(const simd_ops *v, const kv_view *kv, int32_t seq, int64_t token, int32_t off,
                           const mat *from, int64_t row)
{
    void *to = paging_row(kv, seq, token, off);
    if (kv->dtype == DT_BF16)
        v->to_bf16(to, cpu_row(from, row), from->cols);
    else
        memcpy(to, cpu_row(from, row), (size_t)from->cols * sizeof(float));
}

tpl_code cpu_kv_append(const simd_ops *v, kernel_ctx *ctx, const op_call *call, tpl_err *e)
{
    const op_kv_append *o = &call->kv_append;
    for (int32_t r = 0; r < o->batch->n_rows; r++) {
        int64_t slot = batch_row_slot(o->batch, r);
        if (slot % o->kv.mod != o->kv.rem)
            continue;
        int32_t seq = o->batch->row_seq[r];
        append_columns(v, &o->kv, seq, slot / o->kv.mod, o->a_off, &o->a, r);
        if (o->b.data)
            append_columns(v, &o->kv, seq, slot / o->kv.mod, o->b_off, &o->b, r);
    }
    return TPL_OK;
}

/* exp(lse of this part - lse of all parts), 0 where this part saw nothing. */
static float merge_weight(const op_lse_merge *o, const float *lse, int64_t head)
{
    float own = lse[(int64_t)o->part * o->heads + head], max = -INFINITY, sum = 0;
    if (own == -INFINITY)
        return 0;
    for (int64_t p = 0; p < o->parts; p++)
        max = fmaxf(max, lse[p * o->heads + head]);
    for (int64_t p = 0; p < o->parts; p++)
        sum += expf(lse[p * o->heads + head] - max);
    return expf(own - max) / sum;
}

tpl_code cpu_lse_merge(const simd_ops *v, kernel_ctx *ctx, const op_call *call, tpl_err *e)
{
    const op_lse_merge *o = &call->lse_merge;
    for (int64_t r = 0; r < o->o.rows; r++)
        for (int64_t h = 0; h < o->heads; h++) {
            float *part = cpu_row(&o->o, r) + h * o->lat;
            float weight = merge_weight(o, cpu_row(&o->lse, r), h);
            if (weight == 0)
                memset(part, 0, (size_t)o->lat * sizeof *part);
            else
                v->scale(part, weight, o->lat);
        }
    return TPL_OK;
}
