/* attn_latent of at most 16 query vectors a sequence and a few tokens a block: decode of few heads at short contexts,
 * where a launch is all latency, from compute capability 8.0 on. Cached tokens are on their way before the queries are
 * there. Four warps share a tile of 32 tokens: 8 tokens each for the scores, a quarter of the columns each for the
 * sums. bytes  2 * (rows * heads * (2 lat + rope) + tokens * (lat + rope)); flops 2 * heads * pairs * (2 lat + rope);
 * bound: launches, then memory. check  ref, tolerance "bf16_attn". */
#include "kernels/cuda/wide_work.cuh"

template <int LAT_> struct latent_shape {
    enum {
        LAT = LAT_,
        WARPS = 4,
        THREADS = 128,
        MT = 16,                  /* vectors */
        TN = 32,                  /* tokens of a tile: 8 a warp, a lane of each warp for one */
        CHUNKS = (LAT_ + 64) / 8, /* of a row */
        STEPS = (LAT_ + 64) / 16,
        N_O = LAT_ / WARPS / 8, /* 8-column tiles of a warp's sums */
        STAGE = TN * CHUNKS,
        P_PITCH = 8,
        SHARED_BYTES = (2 * STAGE + MT * CHUNKS + MT * P_PITCH) * 16
    };
    static_assert(CHUNKS % 8 == 0 && STEPS % 4 == 0, "chunks are turned by eight rows");
};

/* The tokens from t0 on; zeros past the end. */
template <typename S>
static __device__ __forceinline__ void latent_bring(const flash_args &a, const wide_piece &p, int t0, uint4 *stage)
{
    int lane = threadIdx.x % 32, first = threadIdx.x / 32 * 8, t = t0 + lane, row = -1;
    if (t < p.n_tok)
        row = a.kv.table[(int64_t)p.seq * a.kv.max_pages + t / a.kv.page_tok] * a.kv.page_tok + t % a.kv.page_tok;
#pragma unroll 6
    for (int i = 0; i < 8 * S::CHUNKS / 32; i++) {
        int r = (i * 32 + lane) / S::CHUNKS, c = (i * 32 + lane) % S::CHUNKS;
        int at = __shfl_sync(0xffffffffu, row, first + r);
        int from = c < S::LAT / 8 ? a.k_off + c * 8 : a.k2_off + (c - S::LAT / 8) * 8;
        copy_chunk(stage + chunk_at(first + r, c, S::CHUNKS),
                   (const cu_bf16 *)a.kv.pages + (at < 0 ? 0 : (int64_t)at * a.kv.width) + from, at >= 0);
    }
}

template <typename S>
static __device__ __forceinline__ void latent_queries(const flash_args &a, const wide_piece &p, uint4 *q)
{
#pragma unroll 3
    for (int i = threadIdx.x; i < S::MT * S::CHUNKS; i += S::THREADS) {
        int m = i / S::CHUNKS, c = i % S::CHUNKS;
        bool there = m < p.n_vectors;
        int64_t row = p.row0 + (there ? m / a.group : 0), head = there ? m % a.group : 0;
        copy_chunk(q + chunk_at(m, c, S::CHUNKS),
                   c < S::LAT / 8 ? a.q + row * a.q_stride + head * a.q_step + c * 8
                                  : a.q2 + row * a.q2_stride + head * a.q2_step + (c - S::LAT / 8) * 8,
                   there);
    }
}

/* Scores of this warp's 8 tokens. */
template <typename S>
static __device__ __forceinline__ void latent_scores(const uint4 *q, const uint4 *k, float (&v)[4])
{
    int lane = threadIdx.x % 32, r = threadIdx.x / 32 * 8 + lane % 8;
    float sum[4][4] = {};
#pragma unroll 3
    for (int s = 0; s < S::STEPS; s += 4)
#pragma unroll
        for (int j = 0; j < 4; j += 2) {
            unsigned x[4], y[4], b[4];
            load_x4(b, k + chunk_at(r, (s + j) * 2 + lane / 8, S::CHUNKS));
            load_x4(x, q + chunk_at(lane % 16, (s + j) * 2 + lane / 16, S::CHUNKS));
            load_x4(y, q + chunk_at(lane % 16, (s + j) * 2 + 2 + lane / 16, S::CHUNKS));
            mma(sum[j], x, b);
            mma(sum[j + 1], y, b + 2);
        }
#pragma unroll
    for (int i = 0; i < 4; i++)
        v[i] = (sum[0][i] + sum[1][i]) + (sum[2][i] + sum[3][i]);
}

/* Masks, scales, and leaves each vector's greatest of this warp's tokens in `tops` [WARPS, MT]. */
template <typename S>
static __device__ __forceinline__ void latent_mask(const flash_args &a, const wide_piece &p, int t0,
                                                   const pair_rows &w, float (&v)[4], float *tops)
{
    int lane = threadIdx.x % 32, t = t0 + threadIdx.x / 32 * 8 + lane % 4 * 2, last = t0 + S::TN - 1;
    bool clear = last < p.n_tok && is_old(a, p, last);
#pragma unroll
    for (int i = 0; i < 2; i++) {
        float top = -INFINITY;
#pragma unroll
        for (int n = 0; n < 2; n++) {
            bool seen = clear || (t + n < p.n_tok && cu_sees(w.sight[i], (t + n) * a.kv.mod + a.kv.rem));
            v[2 * i + n] = seen ? v[2 * i + n] * a.scale_log2 : -INFINITY;
            top = fmaxf(top, v[2 * i + n]);
        }
        top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 1));
        top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 2));
        if (lane % 4 == 0)
            tops[threadIdx.x / 32 * S::MT + lane / 4 + 8 * i] = top;
    }
}

/* Probabilities of this warp's tokens into shared memory; what was summed before shrinks to the new top. */
template <typename S>
static __device__ __forceinline__ void latent_soften(const float *tops, pair_rows *w, const float (&v)[4],
                                                     uint4 *prob, float (&o)[S::N_O][4])
{
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
    for (int i = 0; i < 2; i++) {
        int m = lane / 4 + 8 * i;
        float top = w->top[i];
#pragma unroll
        for (int k = 0; k < S::WARPS; k++)
            top = fmaxf(top, tops[k * S::MT + m]);
        float base = top == -INFINITY ? 0.f : top, keep = exp2f(w->top[i] - base);
        float x = exp2f(v[2 * i] - base), y = exp2f(v[2 * i + 1] - base);
        w->top[i] = top;
        w->sum[i] = w->sum[i] * keep + x + y;
        ((unsigned *)(prob + chunk_at(m, warp, S::P_PITCH)))[lane % 4] = pack(x, y);
#pragma unroll
        for (int n = 0; n < S::N_O; n++) {
            o[n][2 * i] *= keep;
            o[n][2 * i + 1] *= keep;
        }
    }
}

template <typename S>
static __device__ __forceinline__ void latent_values(const uint4 *prob, const uint4 *k, float (&o)[S::N_O][4])
{
    int lane = threadIdx.x % 32, c0 = threadIdx.x / 32 * S::N_O;
#pragma unroll
    for (int s = 0; s < S::TN / 16; s++) {
        unsigned p[4];
        load_x4(p, prob + chunk_at(lane % 16, s * 2 + lane / 16, S::P_PITCH));
#pragma unroll
        for (int n = 0; n < S::N_O; n += 2) {
            unsigned b[4];
            load_x4_turned(b, k + chunk_at(s * 16 + lane % 16, c0 + n + lane / 16, S::CHUNKS));
            mma(o[n], p, b);
            mma(o[n + 1], p, b + 2);
        }
    }
}

/* A piece's sums, to out or to a part. sums: [WARPS, MT] floats of shared memory. */
template <typename S>
static __device__ __forceinline__ void latent_store(const flash_args &a, const wide_piece &p, pair_rows *w,
                                                    float *sums, const float (&o)[S::N_O][4])
{
    int lane = threadIdx.x % 32, c = threadIdx.x / 32 * S::N_O * 8 + lane % 4 * 2;
    bool whole = p.tile1 - p.tile0 == p.tiles;
    int64_t part = part_at(blockIdx.y, p.place, 1, 0, 1, 0) * S::MT;
    __syncthreads();
#pragma unroll
    for (int i = 0; i < 2; i++) {
        w->sum[i] += __shfl_xor_sync(0xffffffffu, w->sum[i], 1);
        w->sum[i] += __shfl_xor_sync(0xffffffffu, w->sum[i], 2);
        if (lane % 4 == 0)
            sums[threadIdx.x / 32 * S::MT + lane / 4 + 8 * i] = w->sum[i];
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < 2; i++) {
        int m = lane / 4 + 8 * i;
        float sum = (sums[m] + sums[S::MT + m]) + (sums[2 * S::MT + m] + sums[3 * S::MT + m]);
        float scale = sum > 0 ? 1 / sum : 0.f, lse = sum > 0 ? (w->top[i] + log2f(sum)) * 0.69314718f : -INFINITY;
        if (!w->there[i])
            continue;
        if (threadIdx.x / 32 == 0 && lane % 4 == 0) {
            if (!whole)
                a.part_lse[part + m] = lse;
            else if (a.lse)
                a.lse[w->row[i] * a.lse_stride + w->head[i]] = lse;
        }
        float *part_o = a.part_o + (part + m) * S::LAT + c;
        cu_bf16 *out = a.out + w->row[i] * a.out_stride + (int64_t)w->head[i] * S::LAT + c;
#pragma unroll
        for (int n = 0; n < S::N_O; n++) {
            float x = o[n][2 * i] * scale, y = o[n][2 * i + 1] * scale;
            if (whole)
                *(unsigned *)(out + n * 8) = pack(x, y);
            else
                *(float2 *)(part_o + n * 8) = make_float2(x, y);
        }
    }
}

/* grid (1, runs). Lengths and pages are the pass's contents, which are there before its first launch. */
template <typename S>
static __global__ void __launch_bounds__(S::THREADS, 3) latent_kernel(const __grid_constant__ flash_args a, int n_seqs)
{
    extern __shared__ uint4 space_latent[];
    __shared__ float tops[S::WARPS * S::MT];
    uint4 *q = space_latent + 2 * S::STAGE, *prob = q + S::MT * S::CHUNKS;
    wide_piece p;
    cu_let_next();
    wide_run run = run_open(a, n_seqs, S::TN);
    while (run_next(a, &run, &p)) {
        pair_rows w = pair_rows_of(a, p);
        float o[S::N_O][4] = {}, v[4];
        if (!is_old(a, p, (p.tile0 + 1) * S::TN - 1))
            cu_wait_before();
        latent_bring<S>(a, p, p.tile0 * S::TN, space_latent);
        cu_wait_before();
        latent_queries<S>(a, p, q);
        copies_commit();
        for (int tile = p.tile0; tile < p.tile1; tile++) {
            const uint4 *stage = space_latent + (tile - p.tile0) % 2 * S::STAGE;
            copies_wait<0>();
            __syncthreads();
            if (tile + 1 < p.tile1)
                latent_bring<S>(a, p, (tile + 1) * S::TN, space_latent + (tile + 1 - p.tile0) % 2 * S::STAGE);
            copies_commit();
            latent_scores<S>(q, stage, v);
            latent_mask<S>(a, p, tile * S::TN, w, v, tops);
            __syncthreads();
            latent_soften<S>(tops, &w, v, prob, o);
            __syncthreads();
            latent_values<S>(prob, stage, o);
        }
        latent_store<S>(a, p, &w, tops, o);
        __syncthreads();
    }
    cu_wait_before(); /* of blocks without work too */
}

/* ---- launching ---- */

enum { TILES_AN_SM = 4 }; /* with more, kernels that keep memory busy do better */

template <typename S> static int64_t tiles_of_call(const op_attn_latent *o)
{
    int64_t tiles = (cu_kept(o->kv.mod, 0, o->batch->max_slots) + S::TN - 1) / S::TN;
    return tiles < 1 ? 1 : tiles;
}

template <typename S> static bool takes(const op_attn_latent *o)
{
    return o->lat == S::LAT && (int)S::SHARED_BYTES <= cuda_block_shared_bytes() &&
           tiles_of_call<S>(o) * o->batch->n_seqs <= (int64_t)TILES_AN_SM * cuda_sm_count();
}

bool cuda_few_has_latent(const op_attn_latent *o)
{
    return o->rope == 64 && (int64_t)o->batch->max_seq_rows * o->heads <= 16 && (uintptr_t)o->out.data % 8 == 0 &&
           (takes<latent_shape<512>>(o) || takes<latent_shape<256>>(o) || takes<latent_shape<128>>(o));
}

/* Runs' parts are no more than those that the other kernels of this operation leave: 64 vectors an SM. */
template <typename S>
static tpl_code run(kernel_ctx *ctx, const op_attn_latent *o, flash_args *args, wide_join *join, tpl_err *e)
{
    static unsigned ready;
    flash_args a = cuda_latent_args(o);
    int n_seqs = o->batch->n_seqs;
    wide_price price = {
        .work_ns = 700, .tile_ns = S::STAGE * 16 / 3e3, .parts_ns = 2.0 * S::MT * S::LAT * sizeof(float) / 3e3};
    int n_runs = cheapest_runs(price, 2 * (int64_t)cuda_sm_count(), n_seqs, tiles_of_call<S>(o));
    if (!cu_done_here(&ready)) {
        cudaError_t rc =
            cudaFuncSetAttribute(latent_kernel<S>, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)S::SHARED_BYTES);
        if (rc != cudaSuccess)
            return tpl_fail(e, TPL_E_DEVICE, "attn_latent", "needs %d bytes of shared memory a block: %s",
                            (int)S::SHARED_BYTES, cudaGetErrorString(rc));
    }
    a.part_o = (float *)ctx->scratch;
    a.part_lse = a.part_o + (int64_t)n_runs * 2 * S::MT * S::LAT;
    cu_launch(cu_stream(ctx), latent_kernel<S>, dim3(1, (unsigned)n_runs), dim3(S::THREADS), S::SHARED_BYTES, a,
              n_seqs);
    *args = a;
    *join = {a.part_o, a.part_lse, n_runs, n_seqs, S::TN, S::MT, 1, 1, S::LAT, 1};
    return cu_launched("attn_latent", e);
}

tpl_code cuda_few_latent_parts(kernel_ctx *ctx, const op_attn_latent *o, flash_args *a, wide_join *j, tpl_err *e)
{
    return o->lat == 512   ? run<latent_shape<512>>(ctx, o, a, j, e)
           : o->lat == 256 ? run<latent_shape<256>>(ctx, o, a, j, e)
                           : run<latent_shape<128>>(ctx, o, a, j, e);
}

tpl_code cuda_few_latent(kernel_ctx *ctx, const op_attn_latent *o, tpl_err *e)
{
    flash_args a;
    wide_join j;
    TPL_TRY(cuda_few_latent_parts(ctx, o, &a, &j, e));
    return j.n_runs == 1 ? TPL_OK : join_runs(ctx, a, j, o->heads, "attn_latent", e);
}
