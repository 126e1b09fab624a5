/* attn_gqa of at most 16 query vectors a key head: decode, from compute capability 8.0 on. A warp needs no other: it
 * takes 16 tokens of a tile of 64, its copies of the next ones are under way meanwhile, and its sums of all columns
 * stay in registers; the four warps of a block join at the end of a piece (wide_work.cuh). bytes  2 * (2 rows * heads *
 * dim + 2 tokens * kv_heads * dim); flops 4 * heads * pairs * dim; bound memory check  ref, tolerance "bf16_attn". */
#include "kernels/cuda/wide_work.cuh"

template <int DIM_> struct few_shape {
    enum {
        DIM = DIM_,
        WARPS = 4,
        THREADS = 128,
        TOK = 16,          /* of a warp */
        TN = WARPS * TOK,  /* of a tile */
        CHUNKS = DIM_ / 8, /* of a row */
        STAGES = 3,
        STAGE = 2 * TOK * CHUNKS, /* chunks: keys, values */
        PITCH = DIM_ + 4,         /* floats of a vector's sums */
        RING_BYTES = WARPS * STAGES * STAGE * 16,
        JOIN_BYTES = WARPS * 16 * (PITCH + 1) * 4,
        SHARED_BYTES = RING_BYTES > JOIN_BYTES ? RING_BYTES : JOIN_BYTES,
        N_O = DIM_ / 8,
        STEPS = DIM_ / 16
    };
    static_assert(DIM_ % 64 == 0, "chunks are turned by eight rows");
};

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

/* Token t0 + lane % 16 of this warp: its row of the cache, or -1. */
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

/* The warps' sums, through the shared memory that the ring had, to out or to a part. */
template <typename S>
static __device__ __forceinline__ void few_join(const flash_args &a, const wide_piece &p, pair_rows *w, float *space,
                                                const float (&o)[S::N_O][4])
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
    __syncthreads();
    bool whole = p.tile1 - p.tile0 == p.tiles;
    int64_t part = part_at(blockIdx.y, p.place, 1, 0, 1, 0) * 16;
    for (int i = threadIdx.x; i < p.n_vectors * (S::DIM / 4); i += S::THREADS) {
        int m = i / (S::DIM / 4), c = i % (S::DIM / 4) * 4;
        float top = -INFINITY, sum = 0, x[4] = {0, 0, 0, 0};
#pragma unroll
        for (int k = 0; k < S::WARPS; k++)
            top = fmaxf(top, lse[k * 16 + m]);
#pragma unroll
        for (int k = 0; k < S::WARPS; k++) {
            float by = top > -INFINITY ? exp2f(lse[k * 16 + m] - top) : 0.f;
            float4 one = *(const float4 *)(space + (k * 16 + m) * S::PITCH + c);
            sum += by;
            x[0] += by * one.x;
            x[1] += by * one.y;
            x[2] += by * one.z;
            x[3] += by * one.w;
        }
        float scale = sum > 0 ? 1 / sum : 0.f;
        if (whole) {
            int64_t row = p.row0 + m / a.group, head = p.kv_head * a.group + m % a.group;
            *(uint2 *)(a.out + row * a.out_stride + head * S::DIM + c) =
                make_uint2(pack(x[0] * scale, x[1] * scale), pack(x[2] * scale, x[3] * scale));
            continue;
        }
        *(float4 *)(a.part_o + (part + m) * S::DIM + c) =
            make_float4(x[0] * scale, x[1] * scale, x[2] * scale, x[3] * scale);
        if (c == 0)
            a.part_lse[part + m] = sum > 0 ? (top + log2f(sum)) * 0.69314718f : -INFINITY;
    }
    __syncthreads();
}

/* grid (1, runs). Lengths and pages are the pass's contents, which are there before its first launch. */
template <typename S>
static __global__ void __launch_bounds__(S::THREADS) few_kernel(const __grid_constant__ flash_args a, int n_seqs)
{
    extern __shared__ uint4 space[];
    int warp = threadIdx.x / 32;
    uint4 *ring = space + warp * S::STAGES * S::STAGE;
    wide_piece p;
    cu_let_next();
    wide_run run = run_open(a, n_seqs, S::TN);
    while (run_next(a, &run, &p)) {
        pair_rows w = pair_rows_of(a, p);
        unsigned q[S::STEPS][4];
        float o[S::N_O][4], v[2][4];
        int t0 = p.tile0 * S::TN + warp * S::TOK, n_tiles = p.tile1 - p.tile0;
        int row = few_find(a, p, t0);
#pragma unroll
        for (int n = 0; n < S::STAGES - 1; n++) {
            if (n < n_tiles && !is_old(a, p, t0 + n * S::TN + S::TOK - 1))
                cu_wait_before();
            if (n < n_tiles)
                few_bring<S>(a, p, row, ring + n * S::STAGE);
            copies_commit();
            row = few_find(a, p, t0 + (n + 1) * S::TN);
        }
        cu_wait_before();
        few_queries<S>(a, w, q);
#pragma unroll
        for (int n = 0; n < S::N_O; n++)
            o[n][0] = o[n][1] = o[n][2] = o[n][3] = 0;
        for (int n = 0; n < n_tiles; n++) {
            int ahead = n + S::STAGES - 1;
            __syncwarp();
            if (ahead < n_tiles)
                few_bring<S>(a, p, row, ring + ahead % S::STAGES * S::STAGE);
            copies_commit();
            row = few_find(a, p, t0 + (ahead + 1) * S::TN);
            copies_wait<S::STAGES - 1>();
            __syncwarp();
            const uint4 *stage = ring + n % S::STAGES * S::STAGE;
            few_scores<S>(q, stage, v);
            few_soften<S>(a, p, t0 + n * S::TN, &w, v, o);
            few_values<S>(v, stage + S::TOK * S::CHUNKS, o);
        }
        copies_wait<0>();
        few_join<S>(a, p, &w, (float *)space, o);
    }
    cu_wait_before(); /* of blocks without work too */
}

/* ---- launching ---- */

bool cuda_few_has_gqa(const op_attn_gqa *o)
{
    const batch_view *b = o->batch;
    return (o->head_dim == 128 || o->head_dim == 64) && o->window == 0 && b &&
           (int64_t)b->max_seq_rows * (o->heads / o->kv_heads) <= 16 && (uintptr_t)o->out.data % 8 == 0;
}

template <typename S> static int few_runs(const op_attn_gqa *o)
{
    int64_t tiles = (cu_kept(o->kv.mod, 0, o->batch->max_slots) + S::TN - 1) / S::TN;
    int each = 228 * 1024 / ((int)S::SHARED_BYTES + 1024);
    wide_price p = {
        .work_ns = 1500, .tile_ns = 4.0 * S::TN * S::DIM / 3e3, .parts_ns = 2.0 * 16 * S::DIM * sizeof(float) / 3e3};
    return cheapest_runs(p,
                         (int64_t)cuda_sm_count() * (each < 1   ? 1
                                                     : each > 4 ? 4
                                                                : each),
                         (int64_t)o->kv_heads * o->batch->n_seqs, tiles < 1 ? 1 : tiles);
}

size_t cuda_scratch_few_gqa(void)
{
    return (size_t)MAX_RUNS * 2 * 16 * (128 + 1) * sizeof(float) + 256;
}

template <typename S> static tpl_code run(kernel_ctx *ctx, const flash_args &given, const op_attn_gqa *o, tpl_err *e)
{
    static unsigned ready;
    flash_args a = given;
    int n_runs = few_runs<S>(o), n_seqs = o->batch->n_seqs;
    if (!cu_done_here(&ready)) {
        cudaError_t rc =
            cudaFuncSetAttribute(few_kernel<S>, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)S::SHARED_BYTES);
        if (rc != cudaSuccess)
            return tpl_fail(e, TPL_E_DEVICE, "attn_gqa", "needs %d bytes of shared memory a block: %s",
                            (int)S::SHARED_BYTES, cudaGetErrorString(rc));
    }
    a.part_o = (float *)ctx->scratch;
    a.part_lse = a.part_o + (int64_t)n_runs * 2 * 16 * S::DIM;
    cu_launch(cu_stream(ctx), few_kernel<S>, dim3(1, (unsigned)n_runs), dim3(S::THREADS), S::SHARED_BYTES, a, n_seqs);
    TPL_TRY(cu_launched("attn_gqa", e));
    if (n_runs == 1)
        return TPL_OK;
    wide_join j = {a.part_o, a.part_lse, n_runs, n_seqs, S::TN, 16, 1, 1, S::DIM, 1};
    return join_runs(ctx, a, j, o->heads, "attn_gqa", e);
}

tpl_code cuda_few_gqa(kernel_ctx *ctx, const op_attn_gqa *o, tpl_err *e)
{
    flash_args a = cuda_gqa_args(o);
    return o->head_dim == 128 ? run<few_shape<128>>(ctx, a, o, e) : run<few_shape<64>>(ctx, a, o, e);
}
