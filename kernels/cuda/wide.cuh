/* wide.cuh - decode attention on warpgroups: what its kernels share. The third warpgroup of a block brings
 * queries and tiles of cached tokens in, the first two multiply.
 * For:    wide_latent.cu, wide_alone.cuh; wide_many.cu takes masks and softmax.
 * Enter:  kernels/cuda only.
 * Owns:   nothing.
 * Fails:  never.
 *
 * Shared memory: queries [K_BLOCKS][MT][64], STAGES tiles [K_BLOCKS][TN][64] of keys, and of values where these are not
 * the first blocks of keys (wgmma.cuh says how blocks lie), what the kernel adds, barriers. Values past the end are
 * zero: 0 x NaN would not be. */
#ifndef TPL_KERNELS_CUDA_WIDE_CUH
#define TPL_KERNELS_CUDA_WIDE_CUH

#include <cuda.h>

#include "kernels/cuda/wgmma.cuh"
#include "kernels/cuda/wide_work.cuh"

/* How tiles come in: each thread its 16 bytes, from pages of any length; or whole boxes by a tensor map, from pages of
 * whole tiles. (Boxes for two blocks at once, by multicast, were slower than two blocks that meet in the L2 cache.) */
typedef enum { BY_CHUNKS, BY_BOXES } wide_way;

/* K1 columns of keys and K2 from elsewhere in the row (rope parts), DV of values: the first ones of the keys, or their
 * own. MT vectors of a block; EXTRA bytes that the kernel adds. */
template <int K1_, int K2_, int DV_, bool OWN_VALUES_, int MT_, int STAGES_, int EXTRA_, wide_way WAY_>
struct wide_shape {
    static const wide_way WAY = WAY_;
    enum {
        K1 = K1_,
        DV = DV_,
        STEPS = (K1_ + K2_) / 16,
        K1_BLOCKS = (K1_ + 63) / 64,
        K_BLOCKS = K1_BLOCKS + K2_ / 64,
        V_BLOCKS = (DV_ + 63) / 64,
        OWN_V_BLOCKS = OWN_VALUES_ ? V_BLOCKS : 0,
        MT = MT_,
        TN = 64,
        STAGES = STAGES_,
        QUERY_BLOCK = MT_ * 128, /* bytes of 64 columns */
        TILE_BLOCK = TN * 128,
        VALUES = OWN_VALUES_ ? K_BLOCKS * TILE_BLOCK : 0, /* where they begin in a stage */
        STAGE = (K_BLOCKS + OWN_V_BLOCKS) * TILE_BLOCK,
        QUERIES = K_BLOCKS * QUERY_BLOCK,
        EXTRA = EXTRA_,
        SHARED_BYTES = QUERIES + STAGES * STAGE + EXTRA_ + 16 * (STAGES_ + 1),
        THREADS = 384
    };
    static_assert(K2_ % 64 == 0 && (K2_ == 0 || K1_ % 64 == 0) && K1_ % 16 == 0 && EXTRA_ % 16 == 0, "k steps of 16");
};

typedef struct {
    uint64_t *queries, *free_queries, *tile, *free_tile; /* the last two: one a stage */
} wide_barriers;

template <typename S> static __device__ __forceinline__ wide_barriers barriers_of(char *space)
{
    uint64_t *at = (uint64_t *)(space + S::QUERIES + S::STAGES * S::STAGE + S::EXTRA);
    return {at, at + 1, at + 2, at + 2 + S::STAGES};
}

/* By one thread; `readers`: warps of the block that read each tile. */
template <typename S> static __device__ __forceinline__ void barriers_open(wide_barriers b, int readers)
{
    barrier_init(b.queries, 128);
    barrier_init(b.free_queries, 8);
    for (int i = 0; i < S::STAGES; i++) {
        barrier_init(b.tile + i, S::WAY == BY_CHUNKS ? 128 : 1);
        barrier_init(b.free_tile + i, readers);
    }
    barriers_stand();
}

/* ---- bringing in: lane l of a warp brings chunk l % 8 of a row and block; four rows at a time ---- */

/* Whether the chunk has columns of the keys at all. */
template <typename S> static __device__ __forceinline__ bool is_key(int block, int c)
{
    return block >= S::K1_BLOCKS || block * 64 + c * 8 < S::K1;
}

template <typename S>
static __device__ __forceinline__ void bring_queries(const flash_args &a, const wide_piece &p, int m0, char *to)
{
    int warp = threadIdx.x / 32 % 4, row = threadIdx.x % 32 / 8, c = threadIdx.x % 8;
#pragma unroll 1
    for (int r = warp * 4 + row; r < S::MT; r += 16) {
        int m = m0 + r;
        bool there = m < p.n_vectors;
        int64_t q_row = p.row0 + (there ? m / a.group : 0), head = p.kv_head * a.group + (there ? m % a.group : 0);
        const cu_bf16 *q = a.q + q_row * a.q_stride + head * a.q_step + c * 8;
        const cu_bf16 *q2 = a.q2 + q_row * a.q2_stride + head * a.q2_step + c * 8;
        char *at = to + r * 128 + ((c ^ (r & 7)) << 4);
#pragma unroll
        for (int b = 0; b < S::K_BLOCKS; b++)
            if (is_key<S>(b, c))
                copy_chunk((uint4 *)(at + b * S::QUERY_BLOCK),
                           b < S::K1_BLOCKS ? q + b * 64 : q2 + (b - S::K1_BLOCKS) * 64, there);
    }
}

/* Where a thread's four rows of a tile lie in the cache; NULL past the end. */
template <typename S>
static __device__ __forceinline__ void find_tile(const flash_args &a, const wide_piece &p, int tile,
                                                 const cu_bf16 *from[4])
{
    int warp = threadIdx.x / 32 % 4, row = threadIdx.x % 32 / 8, c = threadIdx.x % 8;
#pragma unroll
    for (int k = 0; k < 4; k++) {
        int t = tile * S::TN + k * 16 + warp * 4 + row;
        from[k] = t < p.n_tok ? (const cu_bf16 *)a.kv.pages + cu_cached_row(a.kv, p.seq, t) + c * 8 : NULL;
    }
}

template <typename S>
static __device__ __forceinline__ void bring_tile(const flash_args &a, const wide_piece &p,
                                                  const cu_bf16 *const from[4], char *to)
{
    int warp = threadIdx.x / 32 % 4, row = threadIdx.x % 32 / 8, c = threadIdx.x % 8;
#pragma unroll
    for (int k = 0; k < 4; k++) {
        int r = k * 16 + warp * 4 + row;
        bool there = from[k] != NULL;
        const cu_bf16 *cached = there ? from[k] : (const cu_bf16 *)a.kv.pages;
        const cu_bf16 *k1 = cached + a.k_off + p.kv_head * a.k_step, *k2 = cached + a.k2_off;
        const cu_bf16 *v = cached + a.v_off + p.kv_head * a.v_step;
        char *at = to + r * 128 + ((c ^ (r & 7)) << 4);
#pragma unroll
        for (int b = 0; b < S::K_BLOCKS; b++)
            if (is_key<S>(b, c))
                copy_chunk((uint4 *)(at + b * S::TILE_BLOCK),
                           b < S::K1_BLOCKS ? k1 + b * 64 : k2 + (b - S::K1_BLOCKS) * 64, there);
#pragma unroll
        for (int b = 0; b < S::OWN_V_BLOCKS; b++)
            if (b * 64 + c * 8 < S::DV)
                copy_chunk((uint4 *)(at + S::VALUES + b * S::TILE_BLOCK), v + b * 64, there);
    }
}

/* The box of 64 columns from x and TN rows from y. */
static __device__ __forceinline__ void bring_box(const CUtensorMap *map, int x, int y, char *to, uint64_t *full)
{
#if WIDE_CODE
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], "
                 "[%2];" ::"r"(smem_at(to)),
                 "l"(map), "r"(smem_at(full)), "r"(x), "r"(y)
                 : "memory");
#endif
}

/* One thread. A sequence without a token here has no page: then nothing comes. */
template <typename S>
static __device__ __forceinline__ void bring_boxes(const flash_args &a, const wide_piece &p, const CUtensorMap *map,
                                                   int y, char *to, uint64_t *full)
{
    barrier_expect(full, y < 0 ? 0 : (int)S::STAGE);
    if (y < 0)
        return;
    int k = a.k_off + p.kv_head * a.k_step, v = a.v_off + p.kv_head * a.v_step;
#pragma unroll
    for (int b = 0; b < S::K_BLOCKS; b++)
        bring_box(map, b < S::K1_BLOCKS ? k + b * 64 : a.k2_off + (b - S::K1_BLOCKS) * 64, y, to + b * S::TILE_BLOCK,
                  full);
#pragma unroll
    for (int b = 0; b < S::OWN_V_BLOCKS; b++)
        bring_box(map, v + b * 64, y, to + S::VALUES + b * S::TILE_BLOCK, full);
}

static __device__ __forceinline__ int box_row(const flash_args &a, const wide_piece &p, int t0)
{
    if (t0 >= p.n_tok)
        return -1;
    int page = a.kv.table[(int64_t)p.seq * a.kv.max_pages + t0 / a.kv.page_tok];
    return page * a.kv.page_tok + t0 % a.kv.page_tok;
}

/* The third warpgroup. */
template <typename S>
static __device__ __forceinline__ void bring(const flash_args &a, const CUtensorMap *map, int n_seqs, char *space,
                                             wide_barriers bar)
{
    wide_run run = run_open(a, n_seqs, S::TN);
    wide_piece p;
    unsigned n_pieces = 0, n_tiles = 0;
    const cu_bf16 *from[4];
    int y = 0, m0 = blockIdx.x * S::MT;
    while (run_next(a, &run, &p)) {
        if (m0 >= p.n_vectors)
            continue;
        if constexpr (S::WAY == BY_CHUNKS)
            find_tile<S>(a, p, p.tile0, from);
        else
            y = box_row(a, p, p.tile0 * S::TN);
        barrier_wait(bar.free_queries, ~n_pieces++ & 1);
        bring_queries<S>(a, p, m0, space);
        barrier_arrive_after_copies(bar.queries);
        bool brings = S::WAY == BY_CHUNKS || threadIdx.x == 256;
        for (int tile = p.tile0; tile < p.tile1 && brings; tile++, n_tiles++) {
            unsigned stage = n_tiles % S::STAGES, turn = n_tiles / S::STAGES;
            char *to = space + S::QUERIES + stage * S::STAGE;
            barrier_wait(bar.free_tile + stage, ~turn & 1);
            if constexpr (S::WAY == BY_CHUNKS) {
                bring_tile<S>(a, p, from, to);
                barrier_arrive_after_copies(bar.tile + stage);
                if (tile + 1 < p.tile1)
                    find_tile<S>(a, p, tile + 1, from);
            } else {
                bring_boxes<S>(a, p, map, y, to, bar.tile + stage);
                if (tile + 1 < p.tile1)
                    y = box_row(a, p, (tile + 1) * S::TN);
            }
        }
        __syncwarp();
    }
    copies_wait<0>();
}

/* Boxes bring what lies behind a sequence's end: zero in columns [block0, block0 + n) of 64 before they are values. By
 * one warpgroup, for itself. */
template <typename S>
static __device__ __forceinline__ void clear_end(const wide_piece &p, int tile, int block0, int n, char *at)
{
    if constexpr (S::WAY != BY_CHUNKS) {
        int wg = threadIdx.x / 128, first = p.n_tok - tile * S::TN;
        if (first >= S::TN)
            return;
        for (int i = threadIdx.x % 128; i < (S::TN - first) * n * 8; i += 128)
            *(uint4 *)(at + (block0 + i / 8 % n) * S::TILE_BLOCK + (first + i / (8 * n)) * 128 + i % 8 * 16) =
                make_uint4(0, 0, 0, 0);
        wide_show();
        meet(4 + wg, 128);
    }
}

/* The tile of a stage is there and may be multiplied. */
template <typename S> static __device__ __forceinline__ void await_tile(uint64_t *tile, unsigned parity)
{
    barrier_wait(tile, parity);
    if (S::WAY == BY_CHUNKS)
        wide_show();
}

/* A warp has done with a stage. */
static __device__ __forceinline__ void release_tile(uint64_t *free_tile)
{
    if (threadIdx.x % 32 == 0)
        barrier_arrive(free_tile);
}

/* ---- what multiplying warps do ---- */

/* The running softmax of the two query vectors whose values a thread holds: rows lane / 4 and lane / 4 + 8 of its
 * warp's
 * 16. Scores are kept unscaled: top too; sums are of this thread's columns. */
typedef struct {
    float top[2], sum[2], keep[2];
    cu_sight sight[2];
    int64_t row[2];
    int head[2];
    bool there[2];
} wide_rows;

static __device__ __forceinline__ wide_rows wide_rows_of(const flash_args &a, const wide_piece &p, int m0, int head0)
{
    wide_rows w;
#pragma unroll
    for (int i = 0; i < 2; i++) {
        int m = m0 + threadIdx.x / 32 % 4 * 16 + threadIdx.x % 32 / 4 + 8 * i;
        w.there[i] = m < p.n_vectors;
        w.top[i] = -INFINITY;
        w.sum[i] = 0;
        w.row[i] = p.row0 + (w.there[i] ? m / a.group : 0);
        w.head[i] = head0 + (w.there[i] ? m % a.group : 0);
        w.sight[i] = cu_sight_of(a.batch, p.seq, (int)w.row[i], a.window);
    }
    return w;
}

/* v [64, 64] of a warpgroup = Q K^T. */
template <typename S> static __device__ __forceinline__ void wide_scores(uint64_t q, uint64_t k, float (&v)[8][4])
{
    wide_begin();
#pragma unroll
    for (int i = 0; i < S::STEPS; i++)
        wide_keys<8>(v, wide_ahead(q, i / 4 * S::QUERY_BLOCK + i % 4 * 32),
                     wide_ahead(k, i / 4 * S::TILE_BLOCK + i % 4 * 32), i > 0);
    wide_commit();
}

/* Which of a thread's two columns of each of N 8-token tiles from t0 on vector i sees: bit 2 n + column. */
template <int N>
static __device__ __forceinline__ unsigned wide_seen(const flash_args &a, const wide_piece &p, int t0,
                                                     const wide_rows &w, int i)
{
    unsigned bits = 0;
    if (!a.batch.mask && a.window <= 0) {
        int end = cu_kept(a.kv.mod, a.kv.rem, w.sight[i].own + 1) - t0 - (int)threadIdx.x % 4 * 2;
#pragma unroll
        for (int n = 0; n < N; n++)
            bits |= (end > n * 8 ? 1u << 2 * n : 0) | (end > n * 8 + 1 ? 2u << 2 * n : 0);
        return bits;
    }
#pragma unroll 1
    for (int n = 0; n < 2 * N; n++) {
        int t = t0 + n / 2 * 8 + threadIdx.x % 4 * 2 + n % 2;
        bits |= cu_sees(w.sight[i], t * a.kv.mod + a.kv.rem) ? 1u << n : 0;
    }
    return bits;
}

/* Whether every query sees all of the n tokens from t0 on. */
static __device__ __forceinline__ bool wide_is_clear(const flash_args &a, const wide_piece &p, int t0, int n)
{
    int last = t0 + n - 1;
    return t0 >= a.first && last < p.n_tok && last * a.kv.mod + a.kv.rem < p.clear_slots;
}

/* Scores that no query may use become -inf. v: of the 8 N tokens from t0 on. */
template <int N>
static __device__ __forceinline__ void wide_mask(const flash_args &a, const wide_piece &p, int t0, const wide_rows &w,
                                                 float (&v)[N][4])
{
    if (wide_is_clear(a, p, t0, 8 * N))
        return;
    int from = a.first - t0 - (int)threadIdx.x % 4 * 2, end = p.n_tok - t0 - (int)threadIdx.x % 4 * 2;
#pragma unroll
    for (int i = 0; i < 2; i++) {
        unsigned bits = wide_seen<N>(a, p, t0, w, i);
#pragma unroll
        for (int n = 0; n < N; n++)
#pragma unroll
            for (int j = 0; j < 2; j++) {
                bool seen = (bits >> (2 * n + j) & 1) && n * 8 + j >= from && n * 8 + j < end;
                v[n][2 * i + j] = seen ? v[n][2 * i + j] : -INFINITY;
            }
    }
}

enum { WIDE_SLACK = 8 }; /* bits */

/* Probabilities in place of scores; `keep`: by what earlier sums shrink. A top stays until it is passed by WIDE_SLACK:
 * probabilities of up to 2^8 are as accurate, and the sums of most tiles need no shrinking. */
template <int N> static __device__ __forceinline__ void wide_soften(float scale_log2, wide_rows *w, float (&v)[N][4])
{
    float base[2];
#pragma unroll
    for (int i = 0; i < 2; i++) {
        float top = w->top[i];
#pragma unroll
        for (int n = 0; n < N; n++)
            top = fmaxf(top, fmaxf(v[n][2 * i], v[n][2 * i + 1]));
        top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 1));
        top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 2));
        bool rises = (top - w->top[i]) * scale_log2 > WIDE_SLACK;
        top = rises ? top : w->top[i];
        base[i] = top == -INFINITY ? 0.f : top * scale_log2;
        w->keep[i] = rises ? power_of_2(w->top[i] * scale_log2 - base[i]) : 1.f;
        w->top[i] = top;
        w->sum[i] *= w->keep[i];
    }
#pragma unroll
    for (int n = 0; n < N; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            v[n][i] = power_of_2(fmaf(v[n][i], scale_log2, -base[i / 2]));
            w->sum[i / 2] += v[n][i];
        }
}

/* Most tiles raise no vector's top: then nothing is to be done. */
template <int N> static __device__ __forceinline__ void wide_shrink(const float keep[2], float (&o)[N][4])
{
    if (!__any_sync(0xffffffffu, keep[0] != 1.f || keep[1] != 1.f))
        return;
#pragma unroll
    for (int n = 0; n < N; n++)
#pragma unroll
        for (int i = 0; i < 4; i++)
            o[n][i] *= keep[i / 2];
}

/* Probabilities as first operands, 16 tokens each. */
template <int N> static __device__ __forceinline__ void wide_pack(const float (&v)[2 * N][4], unsigned (&p)[N][4])
{
#pragma unroll
    for (int s = 0; s < N; s++)
#pragma unroll
        for (int i = 0; i < 4; i++)
            p[s][i] = pack(v[2 * s + i / 2][i % 2 * 2], v[2 * s + i / 2][i % 2 * 2 + 1]);
}

static __device__ __forceinline__ void wide_sum_lanes(wide_rows *w)
{
#pragma unroll
    for (int i = 0; i < 2; i++) {
        w->sum[i] += __shfl_xor_sync(0xffffffffu, w->sum[i], 1);
        w->sum[i] += __shfl_xor_sync(0xffffffffu, w->sum[i], 2);
    }
}

/* Columns [c0, c0 + 8 N) of a warpgroup's 64 vectors, to out or, with part >= 0, to that part (rows from r0). */
template <int N>
static __device__ __forceinline__ void wide_store(const flash_args &a, const wide_rows &w, int dv, int c0, int64_t part,
                                                  int mt, int r0, const float (&o)[N][4])
{
    int lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < 2; i++) {
        if (!w.there[i])
            continue;
        float scale = w.sum[i] > 0 ? 1 / w.sum[i] : 0.f;
        float lse = w.sum[i] > 0 ? (w.top[i] * a.scale_log2 + log2f(w.sum[i])) * 0.69314718f : -INFINITY;
        int64_t at = part * mt + r0 + threadIdx.x / 32 % 4 * 16 + lane / 4 + 8 * i;
        if (lane % 4 == 0 && c0 == 0) {
            if (part >= 0)
                a.part_lse[at] = lse;
            else if (a.lse)
                a.lse[w.row[i] * a.lse_stride + w.head[i]] = lse;
        }
        float *part_o = a.part_o + at * dv + c0 + lane % 4 * 2;
        cu_bf16 *out = a.out + w.row[i] * a.out_stride + (int64_t)w.head[i] * dv + c0 + lane % 4 * 2;
#pragma unroll
        for (int n = 0; n < N; n++) {
            if (part >= 0)
                *(float2 *)(part_o + n * 8) = make_float2(o[n][2 * i] * scale, o[n][2 * i + 1] * scale);
            else
                *(unsigned *)(out + n * 8) = pack(o[n][2 * i] * scale, o[n][2 * i + 1] * scale);
        }
    }
}

#endif
