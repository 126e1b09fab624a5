/* own_products.cu - matrix products without cuBLAS, for a run under compute-sanitizer's racecheck, which breaks cuBLAS's
 * bf16 kernels (an illegal access, even where it is told to look at none). Stands in front of the library's function in
 * every card test; with TPL_OWN_PRODUCTS=1 it computes, slowly, else it hands on. */
#include <dlfcn.h>
#include <stdlib.h>

#include <cublas_v2.h>
#include <cuda_bf16.h>

/* Column-major, as cuBLAS counts: out [m, n] (+)= op(a) [m, k] x b [k, n]. */
typedef struct {
    const void *a, *b;
    void *out;
    long long a_step, b_step, out_step;
    int m, n, k, lda, ldb, ldo;
    bool a_bf16, b_bf16, out_bf16, turned, adds;
} product;

static __device__ double value(const void *from, bool bf16, long long at)
{
    return bf16 ? (double)__bfloat162float(((const __nv_bfloat16 *)from)[at]) : (double)((const float *)from)[at];
}

/* grid (elements / 256, batch) */
static __global__ void own_product(product p)
{
    long long at = (long long)blockIdx.x * blockDim.x + threadIdx.x, i = at % p.m, j = at / p.m;
    if (j >= p.n)
        return;
    long long a = blockIdx.y * p.a_step + (p.turned ? i * p.lda : i), a_next = p.turned ? 1 : p.lda,
              b = blockIdx.y * p.b_step + j * p.ldb, to = blockIdx.y * p.out_step + j * p.ldo + i;
    double sum = p.adds ? value(p.out, p.out_bf16, to) : 0;
    for (int x = 0; x < p.k; x++)
        sum += value(p.a, p.a_bf16, a + x * a_next) * value(p.b, p.b_bf16, b + x);
    if (p.out_bf16)
        ((__nv_bfloat16 *)p.out)[to] = __float2bfloat16((float)sum);
    else
        ((float *)p.out)[to] = (float)sum;
}

typedef cublasStatus_t (*library_product)(cublasHandle_t, cublasOperation_t, cublasOperation_t, int, int, int,
                                          const void *, const void *, cudaDataType, int, long long, const void *,
                                          cudaDataType, int, long long, const void *, void *, cudaDataType, int,
                                          long long, int, cublasComputeType_t, cublasGemmAlgo_t);

extern "C" cublasStatus_t cublasGemmStridedBatchedEx(cublasHandle_t handle, cublasOperation_t turn_a,
                                                     cublasOperation_t turn_b, int m, int n, int k, const void *by,
                                                     const void *a, cudaDataType type_a, int lda, long long a_step,
                                                     const void *b, cudaDataType type_b, int ldb, long long b_step,
                                                     const void *old, void *out, cudaDataType type_out, int ldo,
                                                     long long out_step, int batch, cublasComputeType_t compute,
                                                     cublasGemmAlgo_t algorithm)
{
    const char *own = getenv("TPL_OWN_PRODUCTS");
    cudaStream_t stream;
    if (!own || *own != '1') {
        library_product library = (library_product)dlsym(RTLD_NEXT, "cublasGemmStridedBatchedEx");
        return library(handle, turn_a, turn_b, m, n, k, by, a, type_a, lda, a_step, b, type_b, ldb, b_step, old, out,
                       type_out, ldo, out_step, batch, compute, algorithm);
    }
    if (turn_b != CUBLAS_OP_N || *(const float *)by != 1 || cublasGetStream(handle, &stream) != CUBLAS_STATUS_SUCCESS)
        return CUBLAS_STATUS_NOT_SUPPORTED;
    product p = {.a = a,
                 .b = b,
                 .out = out,
                 .a_step = a_step,
                 .b_step = b_step,
                 .out_step = out_step,
                 .m = m,
                 .n = n,
                 .k = k,
                 .lda = lda,
                 .ldb = ldb,
                 .ldo = ldo,
                 .a_bf16 = type_a == CUDA_R_16BF,
                 .b_bf16 = type_b == CUDA_R_16BF,
                 .out_bf16 = type_out == CUDA_R_16BF,
                 .turned = turn_a == CUBLAS_OP_T,
                 .adds = *(const float *)old != 0};
    dim3 grid((unsigned)(((long long)m * n + 255) / 256), (unsigned)batch);
    own_product<<<grid, 256, 0, stream>>>(p);
    return cudaGetLastError() == cudaSuccess ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_EXECUTION_FAILED;
}
