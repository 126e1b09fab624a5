/* attn_latent of one row of few heads at short contexts, and the product a head of its results (unabsorb): the parts
 * that attention's blocks leave are joined where they are multiplied. A block has 32 of a head's outputs; their weights
 * are on their way before attention has ended. bytes  as the calls'; bound: launches. check  the calls one by one. */
#include "kernels/cuda/wide_work.cuh"

#include "kernels/cuda/joins.h"

enum { THREADS = 512, WARPS = THREADS / 32, ROWS = 32, HELD = 12 };

typedef struct {
    const cu_bf16 *w;
    cu_bf16 *out;
    int64_t ldw, w_step, out_step; /* steps: a head */
} unabsorb_args;

template <int LAT> struct unabsorb_shape {
    enum { C = LAT / 4, WAYS = THREADS / C, PIECES = LAT / 8 };
    static_assert(PIECES % 32 == 0 && ROWS * PIECES % THREADS == 0, "whole warps, equal shares");
};

template <typename S> static __device__ __forceinline__ void bring_weights(const unabsorb_args &u, int head, uint4 *to)
{
    const cu_bf16 *from = u.w + head * u.w_step + (int64_t)blockIdx.x * ROWS * u.ldw;
#pragma unroll
    for (int k = 0; k < ROWS * S::PIECES / THREADS; k++) {
        int i = threadIdx.x + k * THREADS;
        copy_chunk(to + i, from + i / S::PIECES * u.ldw + i % S::PIECES * 8, true);
    }
    copies_commit();
}

/* A head's result from its parts, to x; the first block writes it too. */
template <int LAT>
static __device__ __forceinline__ void join_parts(const flash_args &a, const wide_join &j, const join_row &w, int head,
                                                  const int *places, float *shares, float4 *sums, uint2 *x)
{
    typedef unabsorb_shape<LAT> S;
    int way = threadIdx.x / S::C, c = threadIdx.x % S::C;
    float4 held[HELD], v = make_float4(0, 0, 0, 0);
    const float *part = j.part_o + (int64_t)w.r * LAT + c * 4;
    for (int i = threadIdx.x; i < w.n; i += THREADS)
        shares[i] = j.part_lse[(int64_t)places[i] * j.mt + w.r];
#pragma unroll
    for (int k = 0; k < HELD; k++) {
        int i = way + S::WAYS * k;
        held[k] = i < w.n ? *(const float4 *)(part + (int64_t)places[i] * j.mt * LAT) : v;
    }
    __syncthreads();
    if (threadIdx.x < 32) {
        float lse = join_weights(w.n, shares);
        if (a.lse && threadIdx.x == 0 && blockIdx.x == 0)
            a.lse[head] = lse;
    }
    __syncthreads();
#pragma unroll
    for (int k = 0; k < HELD; k++)
        if (way + S::WAYS * k < w.n)
            join_add(&v, shares[way + S::WAYS * k], held[k]);
    for (int i = way + S::WAYS * HELD; i < w.n; i += S::WAYS)
        join_add(&v, shares[i], *(const float4 *)(part + (int64_t)places[i] * j.mt * LAT));
    sums[threadIdx.x] = v;
    __syncthreads();
    if (way > 0)
        return;
    for (int i = 1; i < S::WAYS; i++)
        join_add(&v, 1, sums[i * S::C + c]);
    x[c] = make_uint2(pack(v.x, v.y), pack(v.z, v.w));
    if (blockIdx.x == 0)
        join_put(a, 0, (int64_t)head * LAT + c * 4, v);
}

/* grid (outputs of a head / ROWS, heads) */
template <int LAT>
static __global__ void __launch_bounds__(THREADS)
    unabsorb_kernel(const __grid_constant__ flash_args a, const __grid_constant__ wide_join j,
                    const __grid_constant__ unabsorb_args u)
{
    typedef unabsorb_shape<LAT> S;
    extern __shared__ uint4 weights_of_rows[];
    __shared__ float shares[2 * MAX_RUNS];
    __shared__ int places[2 * MAX_RUNS];
    __shared__ float4 sums[THREADS];
    __shared__ uint4 x[LAT / 8];
    int head = blockIdx.y, lane = threadIdx.x % 32;
    bring_weights<S>(u, head, weights_of_rows);
    cu_let_next();
    join_row w = join_row_of(a, j, 0, head);
    for (int i = threadIdx.x; i < w.n; i += THREADS)
        places[i] = join_place(j, w, i);
    __syncthreads();
    cu_wait_before();
    if (!w.whole)
        join_parts<LAT>(a, j, w, head, places, shares, sums, (uint2 *)x);
    else if (threadIdx.x < LAT / 4) /* attention has written it */
        ((uint2 *)x)[threadIdx.x] = *(const uint2 *)(a.out + (int64_t)head * LAT + threadIdx.x * 4);
    copies_wait<0>();
    __syncthreads();
    for (int r = threadIdx.x / 32; r < ROWS; r += WARPS) {
        float sum = 0;
#pragma unroll
        for (int k = 0; k < S::PIECES; k += 32)
            sum += cu_dot_8(weights_of_rows[r * S::PIECES + k + lane], x[k + lane]);
        sum = cu_warp_sum(sum);
        if (lane == 0)
            cu_put(u.out + head * u.out_step + blockIdx.x * ROWS + r, sum);
    }
}

/* ---- launching ---- */

static bool is_unabsorb(const op_call *c, const op_attn_latent *o)
{
    const op_head_matmul *p = &c->head_matmul;
    return c->kind == OP_HEAD_MATMUL && p->transposed && !p->accumulate && p->x.data == o->out.data &&
           p->x_head_stride == o->lat && p->w.heads == o->heads && p->w.cols == o->lat && p->w.rows % ROWS == 0 &&
           p->w.rows > 0 && p->w.dtype == DT_BF16 && p->out.dtype == DT_BF16 && (uintptr_t)p->w.data % 16 == 0 &&
           p->w.row_stride % 8 == 0 && p->w.head_stride % 8 == 0 && cuda_mats_apart(&p->out, &o->out);
}

int cuda_join_latent_takes(const op_call *calls, int n)
{
    if (n < 2 || calls[0].kind != OP_ATTN_LATENT)
        return 0;
    const op_attn_latent *o = &calls[0].attn_latent;
    const kernel_row *row = kernel_find("cuda", &calls[0]);
    bool matrix_units = row && (row->run == cuda_flash_latent || row->run == cuda_wide_latent);
    return matrix_units && o->batch->n_rows == 1 && o->batch->n_seqs == 1 && (o->lat == 512 || o->lat == 256) &&
                   cuda_few_has_latent(o) && is_unabsorb(&calls[1], o)
               ? 2
               : 0;
}

template <int LAT>
static void launch(cudaStream_t stream, const flash_args &a, const wide_join &j, const op_head_matmul *p)
{
    static unsigned ready;
    unabsorb_args u = {(const cu_bf16 *)p->w.data, (cu_bf16 *)p->out.data, p->w.row_stride, p->w.head_stride,
                       p->out_head_stride};
    if (!cu_done_here(&ready)) /* beside what is not dynamic */
        cudaFuncSetAttribute(unabsorb_kernel<LAT>, cudaFuncAttributeMaxDynamicSharedMemorySize, ROWS * LAT * 2);
    cu_launch(stream, unabsorb_kernel<LAT>, dim3((unsigned)(p->w.rows / ROWS), (unsigned)p->w.heads), dim3(THREADS),
              ROWS * LAT * 2, a, j, u);
}

tpl_code cuda_join_latent(kernel_ctx *ctx, const op_call *calls, int n, tpl_err *e)
{
    flash_args a;
    wide_join j;
    TPL_TRY(cuda_few_latent_parts(ctx, &calls[0].attn_latent, &a, &j, e));
    if (j.n_runs == 1)
        return kernel_run("cuda", ctx, &calls[1], e);
    if (j.dv == 512)
        launch<512>(cu_stream(ctx), a, j, &calls[1].head_matmul);
    else
        launch<256>(cu_stream(ctx), a, j, &calls[1].head_matmul);
    return cu_launched("attn_latent", e);
}
