/* skinny_heads.cuh - a small product a head with weights [k, n], few rows: out_h = x_h w_h (absorb).
 * For:    skinny.cu, join_heads.cu.
 * Enter:  kernels/cuda only.
 * Owns:   nothing.
 * Fails:  never; the launcher checks.
 *
 * A block has 64 columns of one head; 8 threads side by side read 128 bytes of a weight row, 32 such groups share the
 * rows. The first rows are on their way before x is awaited. Sums over groups are taken in order. */
#ifndef TPL_KERNELS_CUDA_SKINNY_HEADS_CUH
#define TPL_KERNELS_CUDA_SKINNY_HEADS_CUH

#include "kernels/cuda/launch.cuh"

enum { SH_THREADS = 256, SH_COLS = 64, SH_GROUPS = 32, SH_AHEAD = 4, SH_MOST_ROWS = 2 };

typedef struct {
    const cu_bf16 *x, *w;
    cu_bf16 *out;
    int64_t ldx, ldw, ldo, x_step, w_step, out_step;
    int rows, k, n;
    bool accumulate;
} heads_args;

static __device__ __forceinline__ void sh_load(const heads_args &a, const cu_bf16 *w, int k0, bool there,
                                               uint4 v[SH_AHEAD])
{
#pragma unroll
    for (int i = 0; i < SH_AHEAD; i++) {
        int k = k0 + i * SH_GROUPS;
        v[i] = there && k < a.k ? *(const uint4 *)(w + k * a.ldw) : make_uint4(0, 0, 0, 0);
    }
}

template <int M>
static __device__ __forceinline__ void sh_add(const heads_args &a, const float *x, int k0, const uint4 v[SH_AHEAD],
                                              float acc[M][8])
{
#pragma unroll
    for (int i = 0; i < SH_AHEAD; i++) {
        const __nv_bfloat162 *p = (const __nv_bfloat162 *)&v[i];
        int k = k0 + i * SH_GROUPS;
#pragma unroll
        for (int m = 0; m < M; m++) {
            float f = k < a.k && m < a.rows ? x[m * a.k + k] : 0.f;
#pragma unroll
            for (int c = 0; c < 4; c++) {
                float2 w = __bfloat1622float2(p[c]);
                acc[m][2 * c] += f * w.x;
                acc[m][2 * c + 1] += f * w.y;
            }
        }
    }
}

/* Of a grid (columns / SH_COLS, heads); M >= rows. space: heads_bytes() */
template <int M> static __device__ __forceinline__ void heads_block(const heads_args &a, float *space)
{
    float *x = space, *red = space + a.rows * a.k; /* red [warps, M, SH_COLS] */
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, col = blockIdx.x * SH_COLS + lane % 8 * 8;
    int group = warp * 4 + lane / 8;
    bool there = col < a.n;
    const cu_bf16 *w = a.w + blockIdx.y * a.w_step + col;
    uint4 v[SH_AHEAD];
    float acc[M][8] = {};
    sh_load(a, w, group, there, v);
    cu_let_next();
    cu_wait_before();
    for (int i = threadIdx.x; i < a.rows * a.k; i += SH_THREADS)
        x[i] = cu_get(a.x[i / a.k * a.ldx + blockIdx.y * a.x_step + i % a.k]);
    __syncthreads();
    for (int k0 = group; k0 < a.k; k0 += SH_AHEAD * SH_GROUPS) {
        if (k0 > group)
            sh_load(a, w, k0, there, v);
        sh_add<M>(a, x, k0, v, acc);
    }
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int c = 0; c < 8; c++) {
            acc[m][c] += __shfl_xor_sync(0xffffffffu, acc[m][c], 8);
            acc[m][c] += __shfl_xor_sync(0xffffffffu, acc[m][c], 16);
            if (lane < 8)
                red[(warp * M + m) * SH_COLS + lane * 8 + c] = acc[m][c];
        }
    __syncthreads();
    for (int i = threadIdx.x; i < a.rows * SH_COLS; i += SH_THREADS) {
        int m = i / SH_COLS, c = i % SH_COLS;
        if (blockIdx.x * SH_COLS + c >= a.n)
            continue;
        cu_bf16 *to = a.out + m * a.ldo + blockIdx.y * a.out_step + blockIdx.x * SH_COLS + c;
        float sum = a.accumulate ? cu_get(*to) : 0.f;
        for (int g = 0; g < SH_THREADS / 32; g++)
            sum += red[(g * M + m) * SH_COLS + c];
        cu_put(to, sum);
    }
}

template <int M> static inline size_t heads_bytes(const heads_args &a)
{
    return (size_t)(a.rows * a.k + SH_THREADS / 32 * M * SH_COLS) * sizeof(float);
}

static inline unsigned heads_blocks(const heads_args &a)
{
    return (unsigned)((a.n + SH_COLS - 1) / SH_COLS);
}

static inline heads_args heads_args_of(const cuda_product *p, const void *x, const void *w, void *out)
{
    heads_args a = {};
    a.x = (const cu_bf16 *)x;
    a.w = (const cu_bf16 *)w;
    a.out = (cu_bf16 *)out;
    a.ldx = p->ldx;
    a.ldw = p->ldw;
    a.ldo = p->ldo;
    a.x_step = p->x_step;
    a.w_step = p->w_step;
    a.out_step = p->out_step;
    a.rows = (int)p->rows;
    a.k = (int)p->k;
    a.n = (int)p->n;
    a.accumulate = p->accumulate;
    return a;
}

#endif
