/* Matrix products. */
#include "kernels/ref/ref.h"

size_t ref_scratch_matmul(const op_call *call)
{
    return (size_t)call->matmul.w.cols * sizeof(double);
}

static double dot_row(const kernel_ctx *ctx, const mat *x, int64_t row, const double *w, int64_t k)
{
    double sum = 0;
    for (int64_t i = 0; i < k; i++)
        sum += ref_in(ctx, ref_get(x, row, i)) * w[i];
    return sum;
}

tpl_code ref_matmul(kernel_ctx *ctx, const op_call *call, tpl_err *e)
{
    const op_matmul *o = &call->matmul;
    int64_t k = o->w.cols;
    double *w = ctx->scratch; /* one row of the weight */
    for (int64_t n = 0; n < o->w.rows; n++) {
        for (int64_t i = 0; i < k; i++)
            w[i] = ref_in(ctx, ref_get(&o->w, n, i));
        double bias = o->bias.data ? ref_get(&o->bias, 0, n) : 0;
        for (int64_t r = 0; r < o->x.rows; r++) {
            double old = o->accumulate ? ref_get(&o->out, r, n) : 0;
            ref_put(&o->out, r, n, old + dot_row(ctx, &o->x, r, w, k) + bias);
        }
    }
    return TPL_OK;
}

/* Output n of one head and row. */
static double head_dot(const kernel_ctx *ctx, const op_head_matmul *o, int64_t row, int64_t head, int64_t n)
{
    int64_t k = o->transposed ? o->w.cols : o->w.rows;
    double sum = 0;
    for (int64_t i = 0; i < k; i++) {
        double w = o->transposed ? ref_head_get(&o->w, head, n, i) : ref_head_get(&o->w, head, i, n);
        sum += ref_in(ctx, ref_get(&o->x, row, head * o->x_head_stride + i)) * ref_in(ctx, w);
    }
    return sum;
}

tpl_code ref_head_matmul(kernel_ctx *ctx, const op_call *call, tpl_err *e)
{
    const op_head_matmul *o = &call->head_matmul;
    int64_t n = o->transposed ? o->w.rows : o->w.cols;
    for (int64_t r = 0; r < o->x.rows; r++)
        for (int64_t h = 0; h < o->w.heads; h++)
            for (int64_t i = 0; i < n; i++) {
                int64_t c = h * o->out_head_stride + i;
                double old = o->accumulate ? ref_get(&o->out, r, c) : 0;
                ref_put(&o->out, r, c, old + head_dot(ctx, o, r, h, i));
            }
    return TPL_OK;
}
