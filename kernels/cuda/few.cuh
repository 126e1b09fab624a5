/* few.cuh - decode attention over shared key heads by warps that need no other: 16 tokens of a tile each, whose keys
 * and values lie in the warp's own ring, sums of all columns in registers. For:    flash_few.cu and row_gqa.cu. Enter:
 * kernels/cuda only. Owns:   nothing. Fails:  never.
 *
 * A shape S has DIM, the columns of a head, and what follows from it; TOK, tokens of a warp; STAGE, chunks of a ring's
 * stage: keys, then values. */
#ifndef TPL_KERNELS_CUDA_FEW_CUH
#define TPL_KERNELS_CUDA_FEW_CUH

#include "kernels/cuda/wide_work.cuh"

/* The queries as first operands. */
template <typename S>
static __device__ __forceinline__ void few_queries(const flash_args &a, const pair_rows &w, unsigned (&q)[S::STEPS][4])
{
    int c = threadIdx.x % 4 * 2;
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const unsigned *from = (const unsigned *)(a.q + w.row[i] * a.q_stride + w.head[i] * a.q_step + c);
#pragma unroll
        for (int s = 0; s < S::STEPS; s++) {
            q[s][i] = w.there[i] ? from[s * 8] : 0;
            q[s][i + 2] = w.there[i] ? from[s * 8 + 4] : 0;
        }
    }
}

/* Token t0 + lane % 16: its row of the cache, or -1. */
static __device__ __forceinline__ int few_find(const flash_args &a, const wide_piece &p, int t0)
{
    int t = t0 + threadIdx.x % 16;
    if (t >= p.n_tok)
        return -1;
    int page = a.kv.table[(int64_t)p.seq * a.kv.max_pages + t / a.kv.page_tok];
    return page * a.kv.page_tok + t % a.kv.page_tok;
}

template <typename S>
static __device__ __forceinline__ void few_bring(const flash_args &a, const wide_piece &p, int row, uint4 *stage)
{
    enum { AT_ONCE = 32 / S::CHUNKS };
    int c = threadIdx.x % S::CHUNKS, r0 = threadIdx.x % 32 / S::CHUNKS;
#pragma unroll
    for (int i = 0; i < S::TOK / AT_ONCE; i++) {
        int r = i * AT_ONCE + r0, at = __shfl_sync(0xffffffffu, row, r);
        const cu_bf16 *from = (const cu_bf16 *)a.kv.pages + (at < 0 ? 0 : (int64_t)at * a.kv.width) + c * 8;
        copy_chunk(stage + chunk_at(r, c, S::CHUNKS), from + a.k_off + p.kv_head * a.k_step, at >= 0);
        copy_chunk(stage + S::TOK * S::CHUNKS + chunk_at(r, c, S::CHUNKS), from + a.v_off + p.kv_head * a.v_step,
                   at >= 0);
    }
}

template <typename S>
static __device__ __forceinline__ void few_scores(const unsigned (&q)[S::STEPS][4], const uint4 *k, float (&v)[2][4])
{
    int lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < 4; i++)
        v[0][i] = v[1][i] = 0;
#pragma unroll
    for (int s = 0; s < S::STEPS; s++) {
        unsigned b[4];
        load_x4(b, k + chunk_at(lane / 16 * 8 + lane % 8, s * 2 + lane / 8 % 2, S::CHUNKS));
        mma(v[0], q[s], b);
        mma(v[1], q[s], b + 2);
    }
}

/* Probabilities in place of scores; sums shrink to the new top. */
template <typename S>
static __device__ __forceinline__ void few_soften(const flash_args &a, const wide_piece &p, int t0, pair_rows *w,
                                                  float (&v)[2][4], float (&o)[S::N_O][4])
{
    int last = t0 + S::TOK - 1;
    bool clear = last < p.n_tok && last * a.kv.mod + a.kv.rem < p.clear_slots;
    float keep[2];
#pragma unroll
    for (int i = 0; i < 2; i++) {
        float top = w->top[i];
#pragma unroll
        for (int n = 0; n < 4; n++) {
            int t = t0 + n / 2 * 8 + threadIdx.x % 4 * 2 + n % 2;
            bool seen = clear || (t < p.n_tok && cu_sees(w->sight[i], t * a.kv.mod + a.kv.rem));
            float *x = &v[n / 2][2 * i + n % 2];
            *x = seen ? *x * a.scale_log2 : -INFINITY;
            top = fmaxf(top, *x);
        }
        top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 1));
        top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 2));
        float base = top == -INFINITY ? 0.f : top;
        keep[i] = exp2f(w->top[i] - base);
        w->top[i] = top;
        w->sum[i] *= keep[i];
#pragma unroll
        for (int n = 0; n < 4; n++) {
            float *x = &v[n / 2][2 * i + n % 2];
            *x = exp2f(*x - base);
            w->sum[i] += *x;
        }
    }
    if (!__any_sync(0xffffffffu, keep[0] != 1.f || keep[1] != 1.f))
        return;
#pragma unroll
    for (int n = 0; n < S::N_O; n++)
#pragma unroll
        for (int i = 0; i < 4; i++)
            o[n][i] *= keep[i / 2];
}

template <typename S>
static __device__ __forceinline__ void few_values(const float (&v)[2][4], const uint4 *values, float (&o)[S::N_O][4])
{
    int lane = threadIdx.x % 32;
    unsigned p[4] = {pack(v[0][0], v[0][1]), pack(v[0][2], v[0][3]), pack(v[1][0], v[1][1]), pack(v[1][2], v[1][3])};
#pragma unroll
    for (int n = 0; n < S::N_O; n += 2) {
        unsigned b[4];
        load_x4_turned(b, values + chunk_at(lane % 16, n + lane / 16, S::CHUNKS));
        mma(o[n], p, b);
        mma(o[n + 1], p, b + 2);
    }
}

/* This warp's sums into `space`, [WARPS, 16, PITCH] and behind it [WARPS, 16] log-sum-exps in the log2 domain, when all
 * warps of the block are done with what lay there. */
template <typename S>
static __device__ __forceinline__ void few_put_sums(pair_rows *w, float *space, const float (&o)[S::N_O][4])
{
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    float *lse = space + S::WARPS * 16 * S::PITCH;
    __syncthreads();
#pragma unroll
    for (int i = 0; i < 2; i++) {
        int m = lane / 4 + 8 * i;
        w->sum[i] += __shfl_xor_sync(0xffffffffu, w->sum[i], 1);
        w->sum[i] += __shfl_xor_sync(0xffffffffu, w->sum[i], 2);
        float scale = w->sum[i] > 0 ? 1 / w->sum[i] : 0.f;
        float *to = space + (warp * 16 + m) * S::PITCH + lane % 4 * 2;
#pragma unroll
        for (int n = 0; n < S::N_O; n++)
            *(float2 *)(to + n * 8) = make_float2(o[n][2 * i] * scale, o[n][2 * i + 1] * scale);
        if (lane % 4 == 0)
            lse[warp * 16 + m] = w->sum[i] > 0 ? w->top[i] + log2f(w->sum[i]) : -INFINITY;
    }
}

/* Columns c to c + 3 of vector m over all warps of the block. */
template <typename S>
static __device__ __forceinline__ float4 few_sum(const float *space, int m, int c, float *whole_lse)
{
    const float *lse = space + S::WARPS * 16 * S::PITCH;
    float top = -INFINITY, sum = 0;
    float4 x = make_float4(0, 0, 0, 0);
#pragma unroll
    for (int k = 0; k < S::WARPS; k++)
        top = fmaxf(top, lse[k * 16 + m]);
#pragma unroll
    for (int k = 0; k < S::WARPS; k++) {
        float by = top > -INFINITY ? exp2f(lse[k * 16 + m] - top) : 0.f;
        float4 one = *(const float4 *)(space + (k * 16 + m) * S::PITCH + c);
        sum += by;
        x.x += by * one.x;
        x.y += by * one.y;
        x.z += by * one.z;
        x.w += by * one.w;
    }
    float scale = sum > 0 ? 1 / sum : 0.f;
    *whole_lse = sum > 0 ? top + log2f(sum) : -INFINITY;
    return make_float4(x.x * scale, x.y * scale, x.z * scale, x.w * scale);
}

#endif
