/* Matrix products. */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/gemm.h"

size_t cpu_scratch_matmul(const op_call *call)
{
    const op_matmul *o = &call->matmul;
    return gemm_scratch_bytes(o->x.rows, o->w.cols, o->w.rows);
}

static void add_bias(const simd_ops *v, const mat *bias, const mat *out)
{
    enum { STEP = 256 };
    float wide[STEP];
    for (int64_t c = 0; c < out->cols; c += STEP) {
        int64_t n = out->cols - c < STEP ? out->cols - c : STEP;
        v->widen(wide, (const char *)bias->data + (size_t)c * dtype_bytes(bias->dtype), bias->dtype, n);
        for (int64_t r = 0; r < out->rows; r++) {
            float *to = cpu_row(out, r) + c;
            for (int64_t i = 0; i < n; i++)
                to[i] += wide[i];
        }
    }
}

tpl_code cpu_matmul(const simd_ops *v, kernel_ctx *ctx, const op_call *call, tpl_err *e)
{
    const op_matmul *o = &call->matmul;
    gemm_env env = {v, ctx->compute, ctx->scratch};
    TPL_TRY(gemm_nt(&env, &o->x, &o->w, &o->out, o->accumulate, e));
    if (o->bias.data)
        add_bias(v, &o->bias, &o->out);
    return TPL_OK;
}

enum { FEW_ROWS = 4, FAR_VALUES = 16 * 1024, NEAR_VALUES = 128 * 1024 }; /* of a head's weight that is fetched at once */

size_t cpu_scratch_head_matmul(const op_call *call)
{
    const op_head_matmul *o = &call->head_matmul;
    return gemm_scratch_bytes(o->x.rows, o->transposed ? o->w.cols : o->w.rows, o->transposed ? o->w.rows : o->w.cols);
}

/* Brings a head's weight nearer along its rows: products with few rows of x walk it down columns, which no cache
 * foresees. Plain loads, because more of them are under way than of prefetches (measured: 16 against 10 GB/s). */
static void fetch_head(const head_mat *w, int64_t h)
{
    enum { LINE = 64 };
    size_t value = dtype_bytes(w->dtype), row = (size_t)w->cols * value;
    for (int64_t r = 0; r < w->rows; r++) {
        const char *at = (const char *)w->data + (size_t)(h * w->head_stride + r * w->row_stride) * value;
        for (size_t i = 0; i < row; i += LINE)
            (void)*(const volatile char *)(at + i);
    }
}

tpl_code cpu_head_matmul(const simd_ops *v, kernel_ctx *ctx, const op_call *call, tpl_err *e)
{
    const op_head_matmul *o = &call->head_matmul;
    gemm_env env = {v, ctx->compute, ctx->scratch};
    int64_t k = o->transposed ? o->w.cols : o->w.rows, n = o->transposed ? o->w.rows : o->w.cols;
    int64_t values = (int64_t)o->w.rows * o->w.cols;
    bool fetch = o->x.rows <= FEW_ROWS && values >= FAR_VALUES && values <= NEAR_VALUES;
    for (int64_t h = 0; h < o->w.heads; h++) {
        if (fetch)
            fetch_head(&o->w, h);
        mat x = o->x, out = o->out;
        x.data = (float *)o->x.data + h * o->x_head_stride;
        x.cols = k;
        out.data = (float *)o->out.data + h * o->out_head_stride;
        out.cols = n;
        mat w = {.dtype = o->w.dtype, .rows = o->w.rows, .cols = o->w.cols, .stride = o->w.row_stride};
        w.data = (char *)(uintptr_t)o->w.data + (size_t)(h * o->w.head_stride) * dtype_bytes(o->w.dtype);
        TPL_TRY(gemm_small(&env, &x, &w, &out, o->transposed, o->accumulate, e));
    }
    return TPL_OK;
}
