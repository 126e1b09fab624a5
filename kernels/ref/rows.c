/* Operations that treat each row alone: copies, norms, rotary embedding, gates. */
#include <math.h>

#include "kernels/paging.h"
#include "kernels/ref/ref.h"

tpl_code ref_embed(kernel_ctx *ctx, const op_call *call, tpl_err *e)
{
    const op_embed *o = &call->embed;
    for (int64_t r = 0; r < o->out.rows; r++)
        for (int64_t c = 0; c < o->out.cols; c++)
            ref_put(&o->out, r, c, ref_get(&o->table, o->batch->row_token[r], c));
    return TPL_OK;
}

tpl_code ref_gather_rows(kernel_ctx *ctx, const op_call *call, tpl_err *e)
{
    const op_gather_rows *o = &call->gather_rows;
    for (int64_t r = 0; r < o->out.rows; r++)
        for (int64_t c = 0; c < o->out.cols; c++)
            ref_put(&o->out, r, c, ref_get(&o->x, o->index[r], c));
    return TPL_OK;
}

tpl_code ref_add(kernel_ctx *ctx, const op_call *call, tpl_err *e)
{
    const op_add *o = &call->add;
    for (int64_t r = 0; r < o->out.rows; r++)
        for (int64_t c = 0; c < o->out.cols; c++)
            ref_put(&o->out, r, c, ref_get(&o->out, r, c) + ref_get(&o->x, r, c));
    return TPL_OK;
}

tpl_code ref_copy_heads(kernel_ctx *ctx, const op_call *call, tpl_err *e)
{
    const op_copy_heads *o = &call->copy_heads;
    for (int64_t r = 0; r < o->out.rows; r++)
        for (int64_t h = 0; h < o->heads; h++)
            for (int64_t c = 0; c < o->cols; c++)
                ref_put(&o->out, r, h * o->out_head_stride + c, ref_get(&o->x, r, h * o->x_head_stride + c));
    return TPL_OK;
}

tpl_code ref_silu_mul(kernel_ctx *ctx, const op_call *call, tpl_err *e)
{
    const op_silu_mul *o = &call->silu_mul;
    for (int64_t r = 0; r < o->out.rows; r++)
        for (int64_t c = 0; c < o->out.cols; c++) {
            double g = ref_get(&o->gate, r, c);
            ref_put(&o->out, r, c, g / (1 + exp(-g)) * ref_get(&o->up, r, c));
        }
    return TPL_OK;
}

/* Sum of squares of columns [c0, c0 + n). */
static double sum_squares(const mat *x, int64_t row, int64_t c0, int64_t n)
{
    double sum = 0;
    for (int64_t c = c0; c < c0 + n; c++)
        sum += ref_get(x, row, c) * ref_get(x, row, c);
    return sum;
}

tpl_code ref_rmsnorm(kernel_ctx *ctx, const op_call *call, tpl_err *e)
{
    const op_rmsnorm *o = &call->rmsnorm;
    int64_t width = o->x.cols / o->groups;
    for (int64_t r = 0; r < o->x.rows; r++)
        for (int64_t g = 0; g < o->groups; g++) {
            double by = 1 / sqrt(sum_squares(&o->x, r, g * width, width) / (double)width + o->eps);
            for (int64_t c = 0; c < width; c++) {
                double weight = o->weight.data ? ref_get(&o->weight, 0, c) : 1;
                ref_put(&o->out, r, g * width + c, ref_get(&o->x, r, g * width + c) * by * weight);
            }
        }
    return TPL_OK;
}

tpl_code ref_sliced_norm(kernel_ctx *ctx, const op_call *call, tpl_err *e)
{
    const op_sliced_norm *o = &call->sliced_norm;
    int64_t width = o->x.cols / o->n_slices;
    for (int64_t r = 0; r < o->x.rows; r++)
        for (int64_t j = 0; j < o->n_slices; j++) {
            double sum = o->alpha[j] * sum_squares(&o->x, r, j * width, width);
            double by = 1 / sqrt(sum / o->kv_lora_rank + o->eps);
            for (int64_t c = j * width; c < (j + 1) * width; c++)
                ref_put(&o->out, r, c, ref_get(&o->x, r, c) * by);
        }
    return TPL_OK;
}

size_t ref_scratch_rope(const op_call *call)
{
    return (size_t)call->rope.dim * sizeof(double);
}

/* The old values are set aside first: the stored order differs from the order read. */
static void rope_head(const op_rope *o, int64_t row, int64_t c0, double *old)
{
    int64_t half = o->dim / 2, at = o->batch->row_pos[row] * half;
    for (int64_t c = 0; c < o->dim; c++)
        old[c] = ref_get(&o->x, row, c0 + c);
    for (int64_t i = 0; i < half; i++) {
        double a = o->interleaved ? old[2 * i] : old[i], b = o->interleaved ? old[2 * i + 1] : old[i + half];
        double cosine = o->cos[at + i], sine = o->sin[at + i];
        ref_put(&o->x, row, c0 + i, a * cosine - b * sine);
        ref_put(&o->x, row, c0 + i + half, b * cosine + a * sine);
    }
}

tpl_code ref_rope(kernel_ctx *ctx, const op_call *call, tpl_err *e)
{
    const op_rope *o = &call->rope;
    for (int64_t r = 0; r < o->x.rows; r++)
        for (int64_t h = 0; h < o->heads; h++)
            rope_head(o, r, h * o->head_stride, ctx->scratch);
    return TPL_OK;
}

static void append_columns(const kv_view *kv, int32_t seq, int64_t token, int32_t off, const mat *from, int64_t row)
{
    for (int64_t c = 0; c < from->cols; c++) {
        float v = (float)ref_get(from, row, c);
        dtype_from_f32(paging_row(kv, seq, token, off + c), kv->dtype, &v, 1);
    }
}

tpl_code ref_kv_append(kernel_ctx *ctx, const op_call *call, tpl_err *e)
{
    const op_kv_append *o = &call->kv_append;
    for (int32_t r = 0; r < o->batch->n_rows; r++) {
        int64_t slot = batch_row_slot(o->batch, r);
        if (slot % o->kv.mod != o->kv.rem)
            continue;
        append_columns(&o->kv, o->batch->row_seq[r], slot / o->kv.mod, o->a_off, &o->a, r);
        if (o->b.data)
            append_columns(&o->kv, o->batch->row_seq[r], slot / o->kv.mod, o->b_off, &o->b, r);
    }
    return TPL_OK;
}

/* Natural log of the sum over parts of exp(lse). */
static double merged_lse(const op_lse_merge *o, int64_t row, int64_t head)
{
    double max = -INFINITY, sum = 0;
    for (int64_t p = 0; p < o->parts; p++)
        max = fmax(max, ref_get(&o->lse, row, p * o->heads + head));
    if (max == -INFINITY)
        return max;
    for (int64_t p = 0; p < o->parts; p++)
        sum += exp(ref_get(&o->lse, row, p * o->heads + head) - max);
    return max + log(sum);
}

tpl_code ref_lse_merge(kernel_ctx *ctx, const op_call *call, tpl_err *e)
{
    const op_lse_merge *o = &call->lse_merge;
    for (int64_t r = 0; r < o->o.rows; r++)
        for (int64_t h = 0; h < o->heads; h++) {
            double own = ref_get(&o->lse, r, (int64_t)o->part * o->heads + h);
            double weight = own == -INFINITY ? 0 : exp(own - merged_lse(o, r, h));
            for (int64_t c = h * o->lat; c < (h + 1) * o->lat; c++)
                ref_put(&o->o, r, c, weight == 0 ? 0 : weight * ref_get(&o->o, r, c));
        }
    return TPL_OK;
}
