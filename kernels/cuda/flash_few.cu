/* attn_gqa of at most 16 query vectors a key head: decode, from compute capability 8.0 on. A warp needs no other: it
 * takes 16 tokens of a tile of 64, its copies of the next ones are under way meanwhile, and its sums of all columns
 * stay in registers; the four warps of a block join at the end of a piece (wide_work.cuh). bytes  2 * (2 rows * heads *
 * dim + 2 tokens * kv_heads * dim); flops 4 * heads * pairs * dim; bound memory check  ref, tolerance "bf16_attn". */
#include "kernels/cuda/few.cuh"

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

/* The warps' sums, through the shared memory that the ring had, to out or to a part. */
template <typename S>
static __device__ __forceinline__ void few_join(const flash_args &a, const wide_piece &p, pair_rows *w, float *space,
                                                const float (&o)[S::N_O][4])
{
    bool whole = p.tile1 - p.tile0 == p.tiles;
    int64_t part = part_at(blockIdx.y, p.place, 1, 0, 1, 0) * 16;
    few_put_sums<S>(w, space, o);
    __syncthreads();
    for (int i = threadIdx.x; i < p.n_vectors * (S::DIM / 4); i += S::THREADS) {
        int m = i / (S::DIM / 4), c = i % (S::DIM / 4) * 4;
        float lse;
        float4 x = few_sum<S>(space, m, c, &lse);
        if (whole) {
            int64_t row = p.row0 + m / a.group, head = p.kv_head * a.group + m % a.group;
            *(uint2 *)(a.out + row * a.out_stride + head * S::DIM + c) = make_uint2(pack(x.x, x.y), pack(x.z, x.w));
            continue;
        }
        *(float4 *)(a.part_o + (part + m) * S::DIM + c) = x;
        if (c == 0)
            a.part_lse[part + m] = lse * 0.69314718f;
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
