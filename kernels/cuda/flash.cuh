/* flash.cuh - attention on matrix units, second rung: mma.sync m16n8k16 in bf16 with f32 sums, from compute
 * capability 8.0. For:    flash_latent.cu, flash_gqa.cu, flash_mha.cu: the same kernel over three sources of keys and
 * values. Enter:  kernels/cuda only. Owns:   nothing. Fails:  never; launchers check.
 *
 * A block owns MT query vectors (rows x the heads that share a key head, heads fastest) of one sequence and key head,
 * and one of n_splits equal shares of the tokens they may see; shares follow the lengths on the card, their number only
 * the batch's shape. It walks its share in tiles of TN tokens, two in flight. Its warps stand WM x WN: WM = MT / 16
 * over the queries, WN over a tile's tokens for the scores and over the value columns for the sums.
 *
 * Shared memory: queries [MT][DK], two stages of keys [TN][DK] and, unless values are the first DV columns of the keys,
 * values [TN][DV]; probabilities [MT][TN] where WN > 1. Rows are cut into 16-byte chunks; chunk c of row r lies at c ^
 * (r % 8), so that the eight rows of an ldmatrix touch all banks. Tokens past the end are zero: 0 x NaN would not be.
 */
#ifndef TPL_KERNELS_CUDA_FLASH_CUH
#define TPL_KERNELS_CUDA_FLASH_CUH

#include "kernels/cuda/copies.cuh"

/* Two-part rows: DK1 columns from one place, DK2 from another (rope parts). SHARED: values are the first DV columns. */
template <int DK1_, int DK2_, int DV_, bool SHARED_, int MT_, int TN_, int WARPS_> struct flash_shape {
    enum {
        DK1 = DK1_,
        DK2 = DK2_,
        DK = DK1_ + DK2_,
        DV = DV_,
        MT = MT_,
        TN = TN_,
        WARPS = WARPS_,
        THREADS = 32 * WARPS_,
        WM = MT_ / 16,
        WN = WARPS_ / (MT_ / 16),
        CHUNKS_K = DK / 8,
        PITCH_K = (DK / 8 + 7) / 8 * 8, /* of a row, in 16-byte chunks */
        CHUNKS_V = DV / 8,
        PITCH_V = (DV / 8 + 7) / 8 * 8,
        PITCH_P = 8 > TN_ / 8 ? 8 : TN_ / 8,
        Q_CHUNKS = MT * PITCH_K,
        K_CHUNKS = TN * PITCH_K,
        V_CHUNKS = SHARED_ ? 0 : TN * PITCH_V,
        STAGE_CHUNKS = K_CHUNKS + V_CHUNKS,
        P_CHUNKS = WN > 1 ? MT *PITCH_P : 0,
        N_S = TN / WN / 8,
        N_O = DV / WN / 8, /* 8-column tiles of a warp: scores, sums */
        EXTRA_BYTES = (2 * WN * MT) * 4 + 2 * TN * 8,
        SHARED_BYTES = (Q_CHUNKS + 2 * STAGE_CHUNKS + P_CHUNKS) * 16 + EXTRA_BYTES
    };
    static const bool SHARED = SHARED_;
    static_assert(MT % 16 == 0 && WARPS % (MT / 16) == 0, "warps tile the queries");
    static_assert(TN % (8 * WN) == 0 && DV % (8 * WN) == 0 && DK % 16 == 0 && TN % 16 == 0, "warps tile the tokens");
    static_assert(DK1_ % 8 == 0 && DK2_ % 8 == 0, "rows are whole chunks");
};

/* Strides in elements. Parts: o [split, row, head, DV] f32, lse [split, row, head]; a state is part 0. */
typedef struct {
    const cu_bf16 *q, *q2;
    int64_t q_stride, q2_stride, q_step, q2_step; /* a row, a head */
    cu_cache kv;
    int k_off, k2_off, v_off, k_step, v_step; /* columns; steps from key head to key head */
    const cu_bf16 *xk, *xv;                   /* expanded first parts of keys, and values; or NULL */
    int64_t xk_row, xv_row;
    int first, n_tok; /* of expanded tokens, else 0 and no limit */
    cu_batch batch;
    int seq0, group, heads, kv_heads, n_splits, window; /* kv_heads: of shares as in wide_work.cuh */
    float scale_log2;                                   /* scale * log2(e) */
    cu_bf16 *out;
    int64_t out_stride;
    float *lse;
    int64_t lse_stride;
    float *part_o, *part_lse;
    bool accumulate, join, finish; /* as in the first rung */
} flash_args;

/* ---- the instructions ---- */

static __device__ __forceinline__ void load_x4(unsigned r[4], const uint4 *at)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(smem_at(at)));
}

static __device__ __forceinline__ void load_x4_turned(unsigned r[4], const uint4 *at)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(smem_at(at)));
}

static __device__ __forceinline__ void load_x2(unsigned r[2], const uint4 *at)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(smem_at(at)));
}

static __device__ __forceinline__ void load_x2_turned(unsigned r[2], const uint4 *at)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(smem_at(at)));
}

static __device__ __forceinline__ void mma(float c[4], const unsigned a[4], const unsigned b[2])
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

static __device__ __forceinline__ unsigned pack(float a, float b)
{
    __nv_bfloat162 v = __floats2bfloat162_rn(a, b);
    return *(unsigned *)&v;
}

/* Chunk c of row r in rows of `pitch` chunks. */
static __device__ __forceinline__ int chunk_at(int r, int c, int pitch)
{
    return r * pitch + (c ^ (r & 7));
}

/* ---- one block ---- */

/* The share of tokens of one block: tiles [tile0, tile1) of TN tokens. */
typedef struct {
    int seq, row0, n_vectors, m0, kv_head, split;
    int n_tok;                     /* no query of the block sees a token from here on */
    int tile0, tile1, clear_slots; /* every query sees all slots below clear_slots */
} flash_span;

template <typename S> static __device__ __forceinline__ flash_span span_of(const flash_args &a)
{
    flash_span s;
    const cu_batch &b = a.batch;
    s.seq = a.seq0 + blockIdx.z;
    s.kv_head = blockIdx.y / a.n_splits;
    s.split = blockIdx.y % a.n_splits;
    s.row0 = b.seq_row0[s.seq];
    int rows = b.seq_row0[s.seq + 1] - s.row0, slot0 = cu_slot0(b, s.seq);
    s.n_vectors = rows * a.group;
    s.m0 = blockIdx.x * S::MT;
    int first_row = min(s.m0 / a.group, rows), last_row = min((s.m0 + S::MT - 1) / a.group, rows - 1);
    int seen = b.mask ? slot0 + rows : slot0 + last_row + 1;
    int from = a.window > 0 ? max(0, slot0 + first_row - a.window + 1) : 0;
    s.n_tok = min(cu_kept(a.kv.mod, a.kv.rem, seen), a.first + a.n_tok);
    int begin = max(cu_kept(a.kv.mod, a.kv.rem, from), a.first) / S::TN, end = (s.n_tok + S::TN - 1) / S::TN;
    int each = max(end - begin + a.n_splits - 1, 0) / a.n_splits;
    s.tile0 = min(begin + s.split * each, end);
    s.tile1 = min(s.tile0 + each, end);
    s.clear_slots = a.window > 0 ? 0 : b.mask ? b.seq_prefix[s.seq] : slot0 + first_row + 1;
    return s;
}

template <typename S>
static __device__ __forceinline__ void load_queries(const flash_args &a, const flash_span &s, uint4 *q)
{
    for (int i = threadIdx.x; i < S::MT * S::CHUNKS_K; i += S::THREADS) {
        int r = i / S::CHUNKS_K, c = i % S::CHUNKS_K, m = s.m0 + r;
        bool there = m < s.n_vectors;
        int64_t row = s.row0 + (there ? m / a.group : 0), head = s.kv_head * a.group + (there ? m % a.group : 0);
        const cu_bf16 *from = c < S::DK1 / 8 ? a.q + row * a.q_stride + head * a.q_step + c * 8
                                             : a.q2 + row * a.q2_stride + head * a.q2_step + (c - S::DK1 / 8) * 8;
        copy_chunk(q + chunk_at(r, c, S::PITCH_K), from, there);
    }
}

/* Where the cached rows of a tile begin, in elements. */
template <typename S>
static __device__ __forceinline__ void find_rows(const flash_args &a, const flash_span &s, int tile, int64_t *rows)
{
    for (int r = threadIdx.x; r < S::TN; r += S::THREADS) {
        int t = tile * S::TN + r;
        rows[r] = t < s.n_tok && t >= a.first ? cu_cached_row(a.kv, s.seq, t) : -1;
    }
}

template <typename S>
static __device__ __forceinline__ void load_tile(const flash_args &a, const flash_span &s, int tile,
                                                 const int64_t *rows, uint4 *stage)
{
    const cu_bf16 *pages = (const cu_bf16 *)a.kv.pages;
    for (int i = threadIdx.x; i < S::TN * S::CHUNKS_K; i += S::THREADS) {
        int r = i / S::CHUNKS_K, c = i % S::CHUNKS_K;
        bool there = rows[r] >= 0;
        const cu_bf16 *from = pages + (there ? rows[r] : 0);
        if (c >= S::DK1 / 8)
            from += a.k2_off + (c - S::DK1 / 8) * 8;
        else if (a.xk)
            from = a.xk + (there ? (int64_t)(tile * S::TN + r - a.first) : 0) * a.xk_row + s.kv_head * a.k_step + c * 8;
        else
            from += a.k_off + s.kv_head * a.k_step + c * 8;
        copy_chunk(stage + chunk_at(r, c, S::PITCH_K), from, there);
    }
    for (int i = threadIdx.x; !S::SHARED && i < S::TN * S::CHUNKS_V; i += S::THREADS) {
        int r = i / S::CHUNKS_V, c = i % S::CHUNKS_V;
        bool there = rows[r] >= 0;
        const cu_bf16 *from = pages + (there ? rows[r] : 0) + a.v_off + s.kv_head * a.v_step + c * 8;
        if (a.xv)
            from = a.xv + (there ? (int64_t)(tile * S::TN + r - a.first) : 0) * a.xv_row + s.kv_head * a.v_step + c * 8;
        copy_chunk(stage + S::K_CHUNKS + chunk_at(r, c, S::PITCH_V), from, there);
    }
}

/* scores [16, TN / WN] of a warp = Q K^T. */
template <typename S>
static __device__ __forceinline__ void score_tile(const uint4 *q, const uint4 *k, int wm, int wn, float s[S::N_S][4])
{
    int lane = threadIdx.x % 32;
#pragma unroll
    for (int n = 0; n < S::N_S; n++)
        s[n][0] = s[n][1] = s[n][2] = s[n][3] = 0;
#pragma unroll 4
    for (int step = 0; step < S::DK / 16; step++) {
        unsigned a[4];
        load_x4(a, q + chunk_at(wm * 16 + lane % 16, step * 2 + lane / 16, S::PITCH_K));
#pragma unroll
        for (int n = 0; n + 1 < S::N_S; n += 2) {
            unsigned b[4];
            int row = (wn * S::N_S + n) * 8 + lane / 16 * 8 + lane % 8;
            load_x4(b, k + chunk_at(row, step * 2 + lane / 8 % 2, S::PITCH_K));
            mma(s[n], a, b);
            mma(s[n + 1], a, b + 2);
        }
        if constexpr (S::N_S % 2 == 1) {
            unsigned b[2];
            int row = (wn * S::N_S + S::N_S - 1) * 8 + lane % 8;
            load_x2(b, k + chunk_at(row, step * 2 + lane / 8 % 2, S::PITCH_K));
            mma(s[S::N_S - 1], a, b);
        }
    }
}

/* sums [16, DV / WN] += P V for the tokens 16 step .. 16 step + 15 of the tile, with P in registers. */
template <typename S>
static __device__ __forceinline__ void sum_step(const unsigned a[4], const uint4 *v, int pitch, int step, int wn,
                                                float o[S::N_O][4])
{
    int lane = threadIdx.x % 32;
#pragma unroll
    for (int n = 0; n + 1 < S::N_O; n += 2) {
        unsigned b[4];
        load_x4_turned(b, v + chunk_at(step * 16 + lane % 16, wn * S::N_O + n + lane / 16, pitch));
        mma(o[n], a, b);
        mma(o[n + 1], a, b + 2);
    }
    if constexpr (S::N_O % 2 == 1) {
        unsigned b[2];
        load_x2_turned(b, v + chunk_at(step * 16 + lane % 16, wn * S::N_O + S::N_O - 1, pitch));
        mma(o[S::N_O - 1], a, b);
    }
}

/* The running softmax of the two query vectors whose values a thread holds: vectors lane / 4 and lane / 4 + 8 of a
 * warp's 16. */
typedef struct {
    float top[2], sum[2]; /* log2 domain; sum only over this thread's columns */
    cu_sight sight[2];
    bool there[2];
} flash_rows;

/* Scales, masks, and finds each vector's greatest score over the warp's columns. */
template <typename S>
static __device__ __forceinline__ void mask_tile(const flash_args &a, const flash_span &s, int tile, int wn,
                                                 const flash_rows &w, float v[S::N_S][4], float top[2])
{
    int t0 = tile * S::TN, lane = threadIdx.x % 32, last = t0 + S::TN - 1;
    bool clear = last < s.n_tok && t0 >= a.first && last * a.kv.mod + a.kv.rem < s.clear_slots;
    top[0] = top[1] = -INFINITY;
#pragma unroll
    for (int n = 0; n < S::N_S; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            int t = t0 + (wn * S::N_S + n) * 8 + lane % 4 * 2 + i % 2;
            bool seen = clear || (t < s.n_tok && t >= a.first && w.there[i / 2] &&
                                  cu_sees(w.sight[i / 2], t * a.kv.mod + a.kv.rem));
            v[n][i] = seen ? v[n][i] * a.scale_log2 : -INFINITY;
            top[i / 2] = fmaxf(top[i / 2], v[n][i]);
        }
#pragma unroll
    for (int i = 0; i < 2; i++) {
        top[i] = fmaxf(top[i], __shfl_xor_sync(0xffffffffu, top[i], 1));
        top[i] = fmaxf(top[i], __shfl_xor_sync(0xffffffffu, top[i], 2));
    }
}

/* The greatest over all WN warps of the same vectors; leaves it in top. `space` is [WN][MT]. */
template <typename S> static __device__ __forceinline__ void share_top(float *space, int wm, int wn, float top[2])
{
    int at = wm * 16 + threadIdx.x % 32 / 4;
    if (S::WN == 1)
        return;
    if (threadIdx.x % 4 == 0) {
        space[wn * S::MT + at] = top[0];
        space[wn * S::MT + at + 8] = top[1];
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < S::WN; i++) {
        top[0] = fmaxf(top[0], space[i * S::MT + at]);
        top[1] = fmaxf(top[1], space[i * S::MT + at + 8]);
    }
}

/* Probabilities in place of scores; sums scaled to the new greatest score. */
template <typename S>
static __device__ __forceinline__ void soften(const float top[2], flash_rows *w, float v[S::N_S][4], float o[S::N_O][4])
{
    float keep[2], base[2];
#pragma unroll
    for (int i = 0; i < 2; i++) {
        float next = fmaxf(w->top[i], top[i]);
        base[i] = next == -INFINITY ? 0.f : next;
        keep[i] = exp2f(w->top[i] - base[i]);
        w->top[i] = next;
        w->sum[i] *= keep[i];
    }
#pragma unroll
    for (int n = 0; n < S::N_S; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            v[n][i] = exp2f(v[n][i] - base[i / 2]);
            w->sum[i / 2] += v[n][i];
        }
#pragma unroll
    for (int n = 0; n < S::N_O; n++)
#pragma unroll
        for (int i = 0; i < 4; i++)
            o[n][i] *= keep[i / 2];
}

template <typename S>
static __device__ __forceinline__ void sum_tile(float v[S::N_S][4], uint4 *p, const uint4 *values, int pitch, int wm,
                                                int wn, float o[S::N_O][4])
{
    int lane = threadIdx.x % 32;
    if constexpr (S::WN == 1) {
#pragma unroll
        for (int step = 0; step < S::TN / 16; step++) {
            unsigned a[4] = {pack(v[2 * step][0], v[2 * step][1]), pack(v[2 * step][2], v[2 * step][3]),
                             pack(v[2 * step + 1][0], v[2 * step + 1][1]),
                             pack(v[2 * step + 1][2], v[2 * step + 1][3])};
            sum_step<S>(a, values, pitch, step, 0, o);
        }
    } else {
#pragma unroll
        for (int n = 0; n < S::N_S; n++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                int row = wm * 16 + lane / 4 + half * 8, chunk = wn * S::N_S + n;
                unsigned *at = (unsigned *)(p + chunk_at(row, chunk, S::PITCH_P)) + lane % 4;
                *at = pack(v[n][2 * half], v[n][2 * half + 1]);
            }
        __syncthreads();
#pragma unroll
        for (int step = 0; step < S::TN / 16; step++) {
            unsigned a[4];
            load_x4(a, p + chunk_at(wm * 16 + lane % 16, step * 2 + lane / 16, S::PITCH_P));
            sum_step<S>(a, values, pitch, step, wn, o);
        }
    }
}

/* Whole sums of the vectors over lanes and warps. */
template <typename S> static __device__ __forceinline__ void share_sum(float *space, int wm, int wn, float sum[2])
{
    int at = wm * 16 + threadIdx.x % 32 / 4;
#pragma unroll
    for (int i = 0; i < 2; i++) {
        sum[i] += __shfl_xor_sync(0xffffffffu, sum[i], 1);
        sum[i] += __shfl_xor_sync(0xffffffffu, sum[i], 2);
    }
    if (S::WN == 1)
        return;
    __syncthreads();
    if (threadIdx.x % 4 == 0) {
        space[wn * S::MT + at] = sum[0];
        space[wn * S::MT + at + 8] = sum[1];
    }
    __syncthreads();
    sum[0] = sum[1] = 0;
#pragma unroll
    for (int i = 0; i < S::WN; i++) {
        sum[0] += space[i * S::MT + at];
        sum[1] += space[i * S::MT + at + 8];
    }
}

/* One vector's columns of this thread, to out, or to its part. Where a state of earlier tokens is joined, every thread
 * of the vector must have read the state's lse before one of them replaces it: hence two calls of the pieces. */
template <typename S>
static __device__ __forceinline__ void store_vector(const flash_args &a, int64_t row, int head, int64_t at, int wn,
                                                    int half, float by_new, float by_old, const float o[S::N_O][4])
{
#pragma unroll
    for (int n = 0; n < S::N_O; n++) {
        int c = (wn * S::N_O + n) * 8 + threadIdx.x % 4 * 2;
        float x = o[n][2 * half] * by_new, y = o[n][2 * half + 1] * by_new;
        float2 *part = (float2 *)(a.part_o + at * S::DV + c);
        if (a.join && by_old > 0) {
            x += by_old * part->x;
            y += by_old * part->y;
        }
        if (!a.finish) {
            *part = make_float2(x, y);
            continue;
        }
        unsigned *to = (unsigned *)(a.out + row * a.out_stride + (int64_t)head * S::DV + c);
        if (a.accumulate) {
            __nv_bfloat162 old = *(__nv_bfloat162 *)to;
            x += __low2float(old);
            y += __high2float(old);
        }
        *to = pack(x, y);
    }
}

template <typename S>
static __device__ __forceinline__ void store(const flash_args &a, const flash_span &s, int wm, int wn,
                                             const flash_rows &w, const float o[S::N_O][4])
{
    float lse[2], by_new[2], by_old[2];
    int64_t at[2], row[2];
    int head[2];
#pragma unroll
    for (int i = 0; i < 2; i++) {
        int m = s.m0 + wm * 16 + threadIdx.x % 32 / 4 + 8 * i;
        row[i] = s.row0 + (w.there[i] ? m / a.group : 0);
        head[i] = s.kv_head * a.group + (w.there[i] ? m % a.group : 0);
        at[i] = (int64_t)s.split * a.batch.n_rows * a.heads + row[i] * a.heads + head[i];
        float own = w.sum[i] > 0 ? (w.top[i] + log2f(w.sum[i])) * 0.69314718f : -INFINITY;
        float old = a.join && w.there[i] ? a.part_lse[at[i]] : -INFINITY, top = fmaxf(own, old);
        lse[i] = top == -INFINITY ? top : top + logf(expf(own - top) + expf(old - top));
        by_new[i] = w.sum[i] > 0 ? expf(own - lse[i]) / w.sum[i] : 0.f;
        by_old[i] = old > -INFINITY ? expf(old - lse[i]) : 0.f;
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < 2; i++) {
        if (!w.there[i])
            continue;
        store_vector<S>(a, row[i], head[i], at[i], wn, i, by_new[i], by_old[i], o);
        if (threadIdx.x % 4 || wn)
            continue;
        if (!a.finish)
            a.part_lse[at[i]] = lse[i];
        else if (a.lse)
            a.lse[row[i] * a.lse_stride + head[i]] = lse[i];
    }
}

template <typename S>
static __device__ __forceinline__ flash_rows rows_of(const flash_args &a, const flash_span &s, int wm)
{
    flash_rows w;
#pragma unroll
    for (int i = 0; i < 2; i++) {
        int m = s.m0 + wm * 16 + threadIdx.x % 32 / 4 + 8 * i;
        w.there[i] = m < s.n_vectors;
        w.top[i] = -INFINITY;
        w.sum[i] = 0;
        w.sight[i] = cu_sight_of(a.batch, s.seq, s.row0 + (w.there[i] ? m / a.group : 0), a.window);
    }
    return w;
}

/* grid (tiles of MT vectors, key heads x splits, sequences from seq0). */
template <typename S>
static __global__ void __launch_bounds__(S::THREADS) flash_kernel(const __grid_constant__ flash_args a)
{
    extern __shared__ uint4 space[];
    uint4 *q = space, *stages = q + S::Q_CHUNKS, *p = stages + 2 * S::STAGE_CHUNKS;
    float *tops = (float *)(p + S::P_CHUNKS);
    int64_t *rows = (int64_t *)(tops + 2 * S::WN * S::MT);
    int warp = threadIdx.x / 32, wm = warp % S::WM, wn = warp / S::WM;
    flash_span s = span_of<S>(a);
    if (s.m0 >= s.n_vectors)
        return;
    flash_rows w = rows_of<S>(a, s, wm);
    float o[S::N_O][4], v[S::N_S][4], top[2];
#pragma unroll
    for (int n = 0; n < S::N_O; n++)
        o[n][0] = o[n][1] = o[n][2] = o[n][3] = 0;

    /* the first tile, with the queries */
    if (s.tile0 < s.tile1) {
        find_rows<S>(a, s, s.tile0, rows);
        __syncthreads();
        load_queries<S>(a, s, q);
        load_tile<S>(a, s, s.tile0, rows, stages);
    }
    copies_commit();
    for (int tile = s.tile0, turn = 0; tile < s.tile1; tile++, turn ^= 1) {
        /* the next one, while this one arrives */
        int64_t *next_rows = rows + (turn ^ 1) * S::TN;
        if (tile + 1 < s.tile1) {
            find_rows<S>(a, s, tile + 1, next_rows);
            __syncthreads();
            load_tile<S>(a, s, tile + 1, next_rows, stages + (turn ^ 1) * S::STAGE_CHUNKS);
        }
        copies_commit();
        copies_wait<1>();
        __syncthreads();

        const uint4 *k = stages + turn * S::STAGE_CHUNKS;
        score_tile<S>(q, k, wm, wn, v);
        mask_tile<S>(a, s, tile, wn, w, v, top);
        share_top<S>(tops, wm, wn, top);
        soften<S>(top, &w, v, o);
        sum_tile<S>(v, p, S::SHARED ? k : k + S::K_CHUNKS, S::SHARED ? (int)S::PITCH_K : (int)S::PITCH_V, wm, wn, o);
        __syncthreads();
    }
    share_sum<S>(tops + S::WN * S::MT, wm, wn, w.sum);
    store<S>(a, s, wm, wn, w, o);
}

/* ---- joining splits: grid (rows, heads, columns / JOIN_THREADS), a thread a column ---- */

enum { JOIN_THREADS = 128, MAX_SPLITS = 512 };

static __global__ void __launch_bounds__(JOIN_THREADS)
    flash_join_kernel(const float *part_o, const float *part_lse, int n_parts, int dv, cu_bf16 *out, int64_t out_stride,
                      float *lse, int64_t lse_stride)
{
    __shared__ float weights[MAX_SPLITS], space[JOIN_THREADS / 32];
    int64_t n = (int64_t)gridDim.x * gridDim.y, at = (int64_t)blockIdx.x * gridDim.y + blockIdx.y;
    int c = blockIdx.z * JOIN_THREADS + threadIdx.x;
    float top = -INFINITY, sum = 0, v = 0;
    for (int p = threadIdx.x; p < n_parts; p += JOIN_THREADS)
        weights[p] = part_lse[p * n + at];
    __syncthreads();
    for (int p = 0; p < n_parts; p++)
        top = fmaxf(top, weights[p]);
    __syncthreads();
    for (int p = threadIdx.x; p < n_parts; p += JOIN_THREADS) {
        weights[p] = top > -INFINITY ? expf(weights[p] - top) : 0.f;
        sum += weights[p];
    }
    sum = cu_block_sum(sum, space);
#pragma unroll 8
    for (int p = 0; p < n_parts; p++)
        v += c < dv && weights[p] > 0 ? weights[p] * part_o[(p * n + at) * dv + c] : 0.f;
    if (c < dv)
        out[blockIdx.x * out_stride + (int64_t)blockIdx.y * dv + c] = __float2bfloat16_rn(sum > 0 ? v / sum : 0.f);
    if (lse && c == 0)
        lse[blockIdx.x * lse_stride + blockIdx.y] = sum > 0 ? top + logf(sum) : -INFINITY;
}

/* ---- launching ---- */

/* So many shares that the blocks fill the card about once, and no share is under two tiles. */
template <typename S>
static int flash_splits(int64_t vectors, int kv_heads, int n_seqs, int64_t tokens, int blocks_an_sm)
{
    int64_t blocks = (vectors + S::MT - 1) / S::MT * kv_heads * n_seqs, room = (int64_t)cuda_sm_count() * blocks_an_sm;
    int64_t most = tokens / (2 * S::TN), n = blocks > 0 ? room / blocks : 1;
    n = n < most ? n : most;
    n = n < (int64_t)MAX_SPLITS ? n : (int64_t)MAX_SPLITS;
    return n < 1 ? 1 : (int)n;
}

/* Parts of the largest launch that splits at all: its blocks fit the card at once. */
template <typename S> static size_t flash_part_bytes(int blocks_an_sm)
{
    return (size_t)cuda_sm_count() * (size_t)blocks_an_sm * S::MT * (S::DV + 1) * sizeof(float) + 256;
}

template <typename S> static int flash_blocks_an_sm()
{
    int n = 228 * 1024 / ((int)S::SHARED_BYTES + 1024);
    return n < 1 ? 1 : n > 2 ? 2 : n;
}

/* Lays the parts out in scratch, launches, joins. `vectors`: the most of one sequence. */
template <typename S>
static tpl_code flash_launch(kernel_ctx *ctx, flash_args a, int64_t vectors, int kv_heads, int n_seqs, int64_t tokens,
                             const char *name, tpl_err *e)
{
    static unsigned ready;
    if (!cu_done_here(&ready)) {
        cudaError_t rc =
            cudaFuncSetAttribute(flash_kernel<S>, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)S::SHARED_BYTES);
        if (rc != cudaSuccess)
            return tpl_fail(e, TPL_E_DEVICE, name, "needs %d bytes of shared memory a block: %s", (int)S::SHARED_BYTES,
                            cudaGetErrorString(rc));
    }
    bool whole = a.n_splits == 1;
    dim3 grid((unsigned)((vectors + S::MT - 1) / S::MT), (unsigned)(kv_heads * a.n_splits), (unsigned)n_seqs);
    if (!whole) {
        int64_t n = (int64_t)a.n_splits * a.batch.n_rows * a.heads;
        a.part_o = (float *)ctx->scratch;
        a.part_lse = a.part_o + n * S::DV;
        a.finish = false;
    }
    if (grid.x == 0 || grid.z == 0)
        return TPL_OK;
    flash_kernel<S><<<grid, S::THREADS, S::SHARED_BYTES, cu_stream(ctx)>>>(a);
    TPL_TRY(cu_launched(name, e));
    if (whole)
        return TPL_OK;
    dim3 all((unsigned)a.batch.n_rows, (unsigned)a.heads, (unsigned)((S::DV + JOIN_THREADS - 1) / JOIN_THREADS));
    flash_join_kernel<<<all, JOIN_THREADS, 0, cu_stream(ctx)>>>(a.part_o, a.part_lse, a.n_splits, S::DV, a.out,
                                                                a.out_stride, a.lse, a.lse_stride);
    return cu_launched(name, e);
}

/* What all kernels of attn_gqa are told. */
static inline flash_args cuda_gqa_args(const op_attn_gqa *o)
{
    flash_args a = {};
    a.q = a.q2 = (const cu_bf16 *)o->q.data;
    a.q_stride = o->q.stride;
    a.q_step = o->head_dim;
    a.kv = cu_cache_of(&o->kv);
    a.k_off = o->k_off;
    a.v_off = o->v_off;
    a.k_step = a.v_step = o->head_dim;
    a.n_tok = INT32_MAX;
    a.batch = cu_batch_of(o->batch);
    a.group = o->heads / o->kv_heads;
    a.heads = o->heads;
    a.kv_heads = o->kv_heads;
    a.window = o->window;
    a.scale_log2 = o->scale * 1.44269504f;
    a.out = (cu_bf16 *)o->out.data;
    a.out_stride = o->out.stride;
    return a;
}

/* What all kernels of attn_latent are told. */
static inline flash_args cuda_latent_args(const op_attn_latent *o)
{
    flash_args a = {};
    a.q = (const cu_bf16 *)o->q_lat.data;
    a.q2 = (const cu_bf16 *)o->q_pe.data;
    a.q_stride = o->q_lat.stride;
    a.q2_stride = o->q_pe.stride;
    a.q_step = o->q_lat_head_stride;
    a.q2_step = o->q_pe_head_stride;
    a.kv = cu_cache_of(&o->kv);
    a.k_off = o->lat_off;
    a.k2_off = o->rope_off;
    a.n_tok = INT32_MAX;
    a.batch = cu_batch_of(o->batch);
    a.group = a.heads = o->heads;
    a.kv_heads = 1;
    a.scale_log2 = o->scale * 1.44269504f;
    a.out = (cu_bf16 *)o->out.data;
    a.out_stride = o->out.stride;
    a.lse = (float *)o->lse.data;
    a.lse_stride = o->lse.stride;
    return a;
}

/* What all kernels of attn_mha are told of one block of expanded tokens. */
static inline flash_args cuda_mha_args(const op_attn_mha *o, const mha_space *x, mha_block b)
{
    flash_args a = {};
    a.q = (const cu_bf16 *)o->q.data;
    a.q2 = a.q + o->nope;
    a.q_stride = a.q2_stride = o->q.stride;
    a.q_step = a.q2_step = o->nope + o->rope;
    a.kv = cu_cache_of(&o->kv);
    a.k2_off = o->rope_off;
    a.k_step = o->nope;
    a.v_step = o->v_dim;
    a.xk = (const cu_bf16 *)x->keys;
    a.xv = (const cu_bf16 *)x->values;
    a.xk_row = (int64_t)o->heads * o->nope;
    a.xv_row = (int64_t)o->heads * o->v_dim;
    a.first = b.first;
    a.n_tok = b.n;
    a.batch = cu_batch_of(o->batch);
    a.seq0 = b.seq;
    a.group = 1;
    a.heads = o->heads;
    a.n_splits = 1;
    a.scale_log2 = o->scale * 1.44269504f;
    a.out = (cu_bf16 *)o->out.data;
    a.out_stride = o->out.stride;
    a.part_o = x->state;
    a.part_lse = x->state_lse;
    a.accumulate = o->accumulate;
    a.join = b.first > 0;
    a.finish = b.last;
    return a;
}

/* 16-byte pieces everywhere: base and strides are whole multiples of 8 values. */
static inline bool flash_aligned(const void *p, int64_t a, int64_t b, int64_t c)
{
    return (uintptr_t)p % 16 == 0 && a % 8 == 0 && b % 8 == 0 && c % 8 == 0;
}

#endif
