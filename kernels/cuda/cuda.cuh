/* cuda.cuh - what the CUDA kernels share: element types, launch checks, reductions, the paged cache and the row masks.
 * For:    the .cu files of this folder.
 * Enter:  kernels/cuda only.
 * Owns:   nothing.
 * Fails:  LAUNCHED() turns a launch error into TPL_E_DEVICE with the kernel's name. */
#ifndef TPL_KERNELS_CUDA_CUDA_CUH
#define TPL_KERNELS_CUDA_CUDA_CUH

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <stdint.h>

extern "C" {
#include "device/gpu.h"
#include "kernels/cuda/cuda.h"
#include "kernels/kernels.h"
}

typedef __nv_bfloat16 cu_bf16;

/* Reports a launch that failed; `name` is the operation's. */
static inline tpl_code cu_launched(const char *name, tpl_err *e)
{
    cudaError_t rc = cudaGetLastError();
    if (rc == cudaSuccess)
        return TPL_OK;
    return tpl_fail(e, TPL_E_DEVICE, name, "launch failed: %s: %s", cudaGetErrorName(rc), cudaGetErrorString(rc));
}

static inline cudaStream_t cu_stream(const kernel_ctx *ctx)
{
    return (cudaStream_t)gpu_queue_stream(ctx->queue);
}

/* Whether something was done on the current card already, by a static word of bits; marks it done. */
static inline bool cu_done_here(unsigned *cards)
{
    int card = 0;
    cudaGetDevice(&card);
    bool done = card < 32 && (*cards >> card & 1);
    *cards |= card < 32 ? 1u << card : 0;
    return done;
}

template <typename T> struct cu_type;
template <> struct cu_type<float> {
    static const tpl_dtype id = DT_F32;
};
template <> struct cu_type<cu_bf16> {
    static const tpl_dtype id = DT_BF16;
};

/* Calls the lambda with a value of the C++ type that a tpl_dtype names; f32 or bf16. */
#define CU_BY_TYPE(dtype_, T, ...)                                                                                     \
    do {                                                                                                               \
        if ((dtype_) == DT_F32) {                                                                                      \
            typedef float T;                                                                                           \
            __VA_ARGS__;                                                                                               \
        } else {                                                                                                       \
            typedef cu_bf16 T;                                                                                         \
            __VA_ARGS__;                                                                                               \
        }                                                                                                              \
    } while (0)

static __device__ __forceinline__ float cu_get(float v)
{
    return v;
}

static __device__ __forceinline__ float cu_get(cu_bf16 v)
{
    return __bfloat162float(v);
}

static __device__ __forceinline__ void cu_put(float *to, float v)
{
    *to = v;
}

static __device__ __forceinline__ void cu_put(cu_bf16 *to, float v)
{
    *to = __float2bfloat16_rn(v);
}

/* Element i of an array whose type is known only on the host: weights of norms, embeddings. */
static __device__ __forceinline__ float cu_load(const void *data, int dtype, int64_t i)
{
    if (dtype == DT_F32)
        return ((const float *)data)[i];
    if (dtype == DT_BF16)
        return __bfloat162float(((const cu_bf16 *)data)[i]);
    return __half2float(((const __half *)data)[i]);
}

static __device__ __forceinline__ float cu_warp_sum(float v)
{
    for (int d = 16; d > 0; d /= 2)
        v += __shfl_xor_sync(0xffffffffu, v, d);
    return v;
}

/* The sum over a block, in every thread. `space` has room for a value a warp. */
static __device__ __forceinline__ float cu_block_sum(float v, float *space)
{
    int n_warps = (blockDim.x + 31) / 32;
    v = cu_warp_sum(v);
    __syncthreads();
    if (threadIdx.x % 32 == 0)
        space[threadIdx.x / 32] = v;
    __syncthreads();
    float sum = 0;
    for (int i = 0; i < n_warps; i++)
        sum += space[i];
    return sum;
}

/* ---- the rules of paging.h, on the card ---- */

typedef struct {
    const char *pages;
    const int32_t *table;
    int32_t max_pages, page_tok, width, mod, rem;
} cu_cache;

typedef struct {
    const int32_t *row_seq, *row_pos, *seq_row0, *seq_prefix, *seq_open;
    const uint64_t *mask;
    int32_t mask_words, n_rows;
} cu_batch;

static inline cu_cache cu_cache_of(const kv_view *kv)
{
    cu_cache c = {(const char *)kv->pages, kv->page_table, kv->max_pages, kv->page_tok, kv->width, kv->mod, kv->rem};
    return c;
}

static inline cu_batch cu_batch_of(const batch_view *b)
{
    cu_batch c = {b->row_seq,  b->row_pos,  b->seq_row0,   b->seq_prefix,
                  b->seq_open, b->row_mask, b->mask_words, b->n_rows};
    return c;
}

static __device__ __host__ __forceinline__ int cu_kept(int mod, int rem, int n_slots)
{
    return n_slots > rem ? (n_slots - rem + mod - 1) / mod : 0;
}

/* First element of the cached row of a local token. */
static __device__ __forceinline__ int64_t cu_cached_row(const cu_cache &kv, int seq, int token)
{
    int64_t page = kv.table[(int64_t)seq * kv.max_pages + token / kv.page_tok];
    return (page * kv.page_tok + token % kv.page_tok) * kv.width;
}

/* First slot of this batch's rows of a sequence. */
static __device__ __forceinline__ int cu_slot0(const cu_batch &b, int seq)
{
    return b.seq_prefix[seq] + (b.seq_open ? b.seq_open[seq] : 0);
}

/* Of 8 values by 8. */
static __device__ __forceinline__ float cu_dot_8(uint4 a, uint4 b)
{
    const __nv_bfloat162 *p = (const __nv_bfloat162 *)&a, *q = (const __nv_bfloat162 *)&b;
    float sum = 0;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        float2 u = __bfloat1622float2(p[i]), v = __bfloat1622float2(q[i]);
        sum += u.x * v.x + u.y * v.y;
    }
    return sum;
}

/* v * by * gamma in 8 places; gamma counts where weighted. */
static __device__ __forceinline__ uint4 cu_scale_8(uint4 v, uint4 gamma, bool weighted, float by)
{
    __nv_bfloat162 *p = (__nv_bfloat162 *)&v;
    const __nv_bfloat162 *g = (const __nv_bfloat162 *)&gamma;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        float2 f = __bfloat1622float2(p[i]), w = weighted ? __bfloat1622float2(g[i]) : make_float2(1.f, 1.f);
        p[i] = __floats2bfloat162_rn(f.x * by * w.x, f.y * by * w.y);
    }
    return v;
}

/* Of a warp's candidates the greatest, the lowest place among equals; at == n is none. */
static __device__ __forceinline__ void cu_warp_best(float *best, int *at, int n)
{
    for (int d = 16; d > 0; d /= 2) {
        float other = __shfl_xor_sync(0xffffffffu, *best, d);
        int other_at = __shfl_xor_sync(0xffffffffu, *at, d);
        if (other_at < n && (*at == n || other > *best || (other == *best && other_at < *at))) {
            *best = other;
            *at = other_at;
        }
    }
}

/* What one row sees: slots below `prefix`, its own, and those of its mask or, without one, all below its own; with a
 * window only the last ones. */
typedef struct {
    int own, prefix, window, words;
    const uint64_t *mask;
} cu_sight;

static __device__ __forceinline__ cu_sight cu_sight_of(const cu_batch &b, int seq, int row, int window)
{
    cu_sight s;
    s.own = cu_slot0(b, seq) + row - b.seq_row0[seq];
    s.prefix = b.seq_prefix[seq];
    s.window = window;
    s.words = b.mask_words;
    s.mask = b.mask ? b.mask + (int64_t)row * b.mask_words : NULL;
    return s;
}

static __device__ __forceinline__ bool cu_sees(const cu_sight &s, int slot)
{
    int j = slot - s.prefix;
    if (s.window > 0 && s.own - slot >= s.window)
        return false;
    if (j < 0 || slot == s.own)
        return true;
    if (!s.mask)
        return slot < s.own;
    return j / 64 < s.words && (s.mask[j / 64] >> (j % 64) & 1);
}

#endif
