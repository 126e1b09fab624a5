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

size_t cpu_scratch_head_matmul(const op_call *call)
{
    const op_head_matmul *o = &call->head_matmul;
    return gemm_scratch_bytes(o->x.rows, o->transposed ? o->w.cols : o->w.rows, o->transposed ? o->w.rows : o->w.cols);
}

tpl_code cpu_head_matmul(const simd_ops *v, kernel_ctx *ctx, const op_call *call, tpl_err *e)
{
    const op_head_matmul *o = &call->head_matmul;
    gemm_env env = {v, ctx->compute, ctx->scratch};
    int64_t k = o->transposed ? o->w.cols : o->w.rows, n = o->transposed ? o->w.rows : o->w.cols;
    for (int64_t h = 0; h < o->w.heads; h++) {
        mat x = o->x, out = o->out;
        x.data = (float *)o->x.data + h * o->x_head_stride;
        x.cols = k;
        out.data = (float *)o->out.data + h * o->out_head_stride;
        out.cols = n;
        mat w = {.dtype = o->w.dtype, .rows = o->w.rows, .cols = o->w.cols, .stride = o->w.row_stride};
        w.data = (char *)(uintptr_t)o->w.data + (size_t)(h * o->w.head_stride) * dtype_bytes(o->w.dtype);
        gemm_small(&env, &x, &w, &out, o->transposed, o->accumulate);
    }
    return TPL_OK;
}
