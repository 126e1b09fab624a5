/* Matrix products: few rows of bf16 by skinny.cu, some by panel.cu, all else through cuBLAS: f32 without TF32, or bf16
 * with f32 sums. cuBLAS counts columns first, so that a row-major out [rows, n] = x w^T is its [n, rows] = w x^T. */
#include <cublas_v2.h>

#include "kernels/cuda/cuda.cuh"

static cudaDataType_t type_of(tpl_dtype t)
{
    return t == DT_F32 ? CUDA_R_32F : CUDA_R_16BF;
}

static tpl_code library_multiply(kernel_ctx *ctx, const cuda_product *p, const void *x, const void *w, void *out,
                                 tpl_err *e)
{
    float one = 1, old = p->accumulate ? 1 : 0;
    cublasStatus_t rc = cublasGemmStridedBatchedEx(
        (cublasHandle_t)gpu_queue_blas(ctx->queue), p->w_transposed ? CUBLAS_OP_N : CUBLAS_OP_T, CUBLAS_OP_N, (int)p->n,
        (int)p->rows, (int)p->k, &one, w, type_of(p->in), (int)p->ldw, p->w_step, x, type_of(p->in), (int)p->ldx,
        p->x_step, &old, out, type_of(p->out), (int)p->ldo, p->out_step, p->batch, CUBLAS_COMPUTE_32F,
        CUBLAS_GEMM_DEFAULT);
    if (rc == CUBLAS_STATUS_SUCCESS)
        return TPL_OK;
    return tpl_fail(e, TPL_E_DEVICE, "cuBLAS", "product [%lld, %lld] x [%lld, %lld] of %d: %s", (long long)p->rows,
                    (long long)p->k, (long long)p->n, (long long)p->k, p->batch, cublasGetStatusString(rc));
}

template <typename T> static __global__ void bias_kernel(T *out, int64_t stride, const void *bias, int type, int64_t n)
{
    int64_t c = (int64_t)blockIdx.y * blockDim.x + threadIdx.x;
    if (c < n)
        cu_put(out + blockIdx.x * stride + c, cu_get(out[blockIdx.x * stride + c]) + cu_load(bias, type, c));
}

tpl_code cuda_multiply(kernel_ctx *ctx, const cuda_product *p, const void *x, const void *w, void *out, tpl_err *e)
{
    if (p->rows == 0 || p->n == 0)
        return TPL_OK;
    if (cuda_skinny_takes(p, x, w) && cuda_skinny_multiply(ctx, p, x, w, out))
        return cu_launched("matmul", e);
    if (cuda_panel_takes(p, x, w) && cuda_panel_multiply(ctx, p, x, w, out))
        return cu_launched("matmul", e);
    TPL_TRY(library_multiply(ctx, p, x, w, out, e));
    if (!p->bias)
        return TPL_OK;
    dim3 grid((unsigned)p->rows, (unsigned)((p->n + 255) / 256));
    CU_BY_TYPE(p->out, T,
               bias_kernel<T><<<grid, 256, 0, cu_stream(ctx)>>>((T *)out, p->ldo, p->bias, p->bias_type, p->n));
    return cu_launched("matmul", e);
}

tpl_code cuda_matmul(kernel_ctx *ctx, const op_call *call, tpl_err *e)
{
    const op_matmul *o = &call->matmul;
    cuda_product p = {.rows = o->out.rows,
                      .n = o->w.rows,
                      .k = o->w.cols,
                      .ldx = o->x.stride,
                      .ldw = o->w.stride,
                      .ldo = o->out.stride,
                      .x_step = 0,
                      .w_step = 0,
                      .out_step = 0,
                      .batch = 1,
                      .in = o->x.dtype,
                      .out = o->out.dtype,
                      .w_transposed = false,
                      .accumulate = o->accumulate,
                      .bias = o->bias.data,
                      .bias_type = o->bias.dtype};
    return cuda_multiply(ctx, &p, o->x.data, o->w.data, o->out.data, e);
}

cuda_product cuda_head_product(const op_head_matmul *o)
{
    cuda_product p = {.rows = o->out.rows,
                      .n = o->transposed ? o->w.rows : o->w.cols,
                      .k = o->transposed ? o->w.cols : o->w.rows,
                      .ldx = o->x.stride,
                      .ldw = o->w.row_stride,
                      .ldo = o->out.stride,
                      .x_step = o->x_head_stride,
                      .w_step = o->w.head_stride,
                      .out_step = o->out_head_stride,
                      .batch = o->w.heads,
                      .in = o->x.dtype,
                      .out = o->out.dtype,
                      .w_transposed = !o->transposed,
                      .accumulate = o->accumulate,
                      .bias = NULL,
                      .bias_type = DT_NONE};
    return p;
}

tpl_code cuda_head_matmul(kernel_ctx *ctx, const op_call *call, tpl_err *e)
{
    const op_head_matmul *o = &call->head_matmul;
    cuda_product p = cuda_head_product(o);
    return cuda_multiply(ctx, &p, o->x.data, o->w.data, o->out.data, e);
}
