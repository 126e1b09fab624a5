/* Products of few rows by streaming the weights (skinny.cuh), instead of a library's tiles made for many.
 * bytes  weights; flops 2 * rows * n * k; bound: memory. check  ref, as every product. */
#include "kernels/cuda/skinny.cuh"
#include "kernels/cuda/skinny_heads.cuh"

static bool in_pieces(const void *data, int64_t a, int64_t b)
{
    return (uintptr_t)data % 16 == 0 && a % 8 == 0 && b % 8 == 0;
}

/* As measured on an H100 beside cuBLAS: above that, its tiles made for many rows do as well or better. */
bool cuda_skinny_wins(int rows, int64_t k)
{
    return rows <= 2 || (rows <= 4 && k <= 8192);
}

bool cuda_skinny_takes(const cuda_product *p, const void *x, const void *w)
{
    if (p->in != DT_BF16 || !in_pieces(w, p->ldw, p->w_step))
        return false;
    if (p->w_transposed)
        return p->rows <= SH_MOST_ROWS && p->out == DT_BF16 && p->n % 8 == 0 && !p->bias && p->rows * p->k <= 8192;
    return cuda_skinny_wins((int)p->rows, p->k) && p->batch <= 64 && p->k % 8 == 0 && in_pieces(x, p->ldx, p->x_step);
}

template <int M> static __global__ void __launch_bounds__(SH_THREADS) heads_kernel(const __grid_constant__ heads_args a)
{
    extern __shared__ float space[];
    heads_block<M>(a, space);
}

template <int M> static void launch_heads(cudaStream_t stream, const heads_args &a, int heads)
{
    static unsigned ready;
    if (!cu_done_here(&ready))
        cudaFuncSetAttribute(heads_kernel<M>, cudaFuncAttributeMaxDynamicSharedMemorySize, 64 << 10);
    cu_launch(stream, heads_kernel<M>, dim3(heads_blocks(a), (unsigned)heads), dim3(SH_THREADS), heads_bytes<M>(a), a);
}

static void multiply_heads(cudaStream_t stream, const cuda_product *p, const void *x, const void *w, void *out)
{
    heads_args a = heads_args_of(p, x, w, out);
    if (a.rows == 1)
        launch_heads<1>(stream, a, p->batch);
    else
        launch_heads<2>(stream, a, p->batch);
}

bool cuda_skinny_multiply(kernel_ctx *ctx, const cuda_product *p, const void *x, const void *w, void *out)
{
    if (p->w_transposed) {
        multiply_heads(cu_stream(ctx), p, x, w, out);
        return true;
    }
    skinny_args a = {};
    a.x = (const cu_bf16 *)x;
    a.ldx = p->ldx;
    a.rows = (int)p->rows;
    a.k = (int)p->k;
    a.n_parts = 1;
    a.x_step = p->x_step;
    a.out_step = p->out_step;
    a.part[0].w_step = p->w_step;
    a.part[0].w = (const cu_bf16 *)w;
    a.part[0].ldw = p->ldw;
    a.part[0].n = (int)p->n;
    a.part[0].out = out;
    a.part[0].ldo = p->ldo;
    a.part[0].out_f32 = p->out == DT_F32;
    a.part[0].accumulate = p->accumulate;
    a.part[0].bias = p->bias;
    a.part[0].bias_type = p->bias_type;
    return skinny_run<false, false>(ctx, a, p->batch);
}
