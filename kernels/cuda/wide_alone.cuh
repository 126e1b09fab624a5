/* wide_alone.cuh - decode attention of warpgroups that hold all columns of 64 vectors and need no other: each has
 * vectors of its own where a block has 128, else every second tile of the same ones, which are joined as parts. And how
 * decode attention on warpgroups is launched. For:    wide_latent.cu, wide_gqa.cu. Enter:  kernels/cuda only. Owns:
 * nothing. Fails:  launches turn CUDA's errors into TPL_E_DEVICE with the operation's name. */
#ifndef TPL_KERNELS_CUDA_WIDE_ALONE_CUH
#define TPL_KERNELS_CUDA_WIDE_ALONE_CUH

#include "kernels/cuda/boxes.cuh"
#include "kernels/cuda/wide.cuh"

/* The frame of decode attention; WORK::multiply<S> is what the first two warpgroups do. A block of 64 vectors gives
 * each half of a tile back by the four warps of one warpgroup, one of 128 by all eight. */
template <typename S, typename WORK>
static __global__ void __launch_bounds__(S::THREADS, 1)
    wide_kernel(const __grid_constant__ flash_args a, const __grid_constant__ CUtensorMap map, int n_seqs)
{
    extern __shared__ __align__(1024) char space_wide[];
    wide_barriers bar = barriers_of<S>(space_wide);
    if (threadIdx.x == 0)
        barriers_open<S>(bar, WORK::template readers<S>());
    __syncthreads();
    cu_begin();
    if (threadIdx.x >= 256) {
        registers_down<40>();
        bring<S>(a, &map, n_seqs, space_wide, bar);
    } else {
        registers_up<232>();
        WORK::template multiply<S>(a, n_seqs, space_wide, bar);
    }
}

template <typename S>
static __device__ __forceinline__ void alone_multiply(const flash_args &a, int n_seqs, char *space, wide_barriers bar)
{
    enum { N = S::DV / 8, TURNS = S::MT == 64 };
    static_assert(!TURNS || S::STAGES % 2 == 0, "a stage belongs to one warpgroup");
    wide_run run = run_open(a, n_seqs, S::TN);
    wide_piece p;
    unsigned n_pieces = 0, n_tiles = 0;
    int wg = threadIdx.x / 128, lane = threadIdx.x % 32, half = TURNS ? 0 : wg;
    int m0 = blockIdx.x * S::MT;
    uint64_t q = wide_operand(space + half * 64 * 128, 0);
    float o[N][4], v[8][4];
    unsigned prob[4][4];
    while (run_next(a, &run, &p)) {
        if (m0 >= p.n_vectors)
            continue;
        wide_rows w = wide_rows_of(a, p, m0 + half * 64, p.kv_head * a.group);
#pragma unroll
        for (int n = 0; n < N; n++)
            o[n][0] = o[n][1] = o[n][2] = o[n][3] = 0;
        barrier_wait(bar.queries, n_pieces & 1);
        wide_show();
        for (int tile = p.tile0; tile < p.tile1; tile++, n_tiles++) {
            unsigned stage = n_tiles % S::STAGES, turn = n_tiles / S::STAGES;
            char *at = space + S::QUERIES + stage * S::STAGE;
            if (TURNS && (int)n_tiles % 2 != wg)
                continue;
            await_tile<S>(bar.tile + stage, turn & 1);
            wide_scores<S>(q, wide_operand(at, 0), v);
            wide_wait<0>();
            wide_pin(v);
            wide_mask(a, p, tile * S::TN, w, v);
            wide_soften(a.scale_log2, &w, v);
            wide_pack(v, prob);
            wide_shrink(w.keep, o);
            clear_end<S>(p, tile, 0, S::V_BLOCKS, at + S::VALUES);
            uint64_t values = wide_operand(at + S::VALUES, S::TILE_BLOCK);
            wide_begin();
#pragma unroll
            for (int i = 0; i < 4; i++)
                wide_values<N>(o, prob[i], wide_ahead(values, i * 2048));
            wide_commit();
            wide_wait<0>();
            wide_pin(o);
            release_tile(bar.free_tile + stage);
        }
        if (lane == 0)
            barrier_arrive(bar.free_queries);
        wide_sum_lanes(&w);
        int64_t part = part_at(blockIdx.y, p.place, gridDim.x, blockIdx.x, 1 + TURNS, TURNS ? wg : 0);
        if (p.tile1 - p.tile0 == p.tiles)
            part = TURNS ? whole_at(gridDim.y, p.seq * a.kv_heads + p.kv_head, gridDim.x, blockIdx.x, 2, wg) : -1;
        wide_store<N>(a, w, S::DV, 0, part, S::MT, half * 64, o);
        n_pieces++;
    }
}

/* Scores of the block's n-th tile, once it is there; under way on return. */
template <typename S>
static __device__ __forceinline__ void ahead_scores(uint64_t q, char *space, unsigned n, wide_barriers bar,
                                                    float (&v)[8][4])
{
    await_tile<S>(bar.tile + n % S::STAGES, n / S::STAGES & 1);
    wide_scores<S>(q, wide_operand(space + S::QUERIES + n % S::STAGES * S::STAGE, 0), v);
}

template <typename S>
static __device__ __forceinline__ void ahead_values(const wide_piece &p, int tile, char *space, unsigned n,
                                                    const unsigned (&prob)[4][4], float (&o)[S::DV / 8][4])
{
    char *at = space + S::QUERIES + n % S::STAGES * S::STAGE + S::VALUES;
    clear_end<S>(p, tile, 0, S::V_BLOCKS, at);
    uint64_t values = wide_operand(at, S::TILE_BLOCK);
    wide_begin();
#pragma unroll
    for (int i = 0; i < 4; i++)
        wide_values<S::DV / 8>(o, prob[i], wide_ahead(values, i * 2048));
    wide_commit();
}

template <typename S>
static __device__ __forceinline__ void ahead_soften(const flash_args &a, const wide_piece &p, int tile, int m0,
                                                    wide_rows *w, float (&v)[8][4])
{
    if (!wide_is_clear(a, p, tile * S::TN, S::TN))
        wide_mask(a, p, tile * S::TN, wide_rows_of(a, p, m0, p.kv_head * a.group), v);
    wide_soften(a.scale_log2, w, v);
}

/* A piece's tiles, the n-th of the block and on: one warpgroup's products, the next tile's scores and this one's
 * values, run while the other one is at its softmax. */
template <typename S>
static __device__ __forceinline__ void ahead_piece(const flash_args &a, const wide_piece &p, int m0, char *space,
                                                   wide_barriers bar, unsigned n, wide_rows *w,
                                                   float (&o)[S::DV / 8][4])
{
    int wg = threadIdx.x / 128;
    uint64_t q = wide_operand(space + wg * 64 * 128, 0);
    float v[8][4];
    unsigned prob[4][4];
    ahead_scores<S>(q, space, n, bar, v);
    wide_wait<0>();
    wide_pin(v);
    ahead_soften<S>(a, p, p.tile0, m0, w, v);
    wide_pack(v, prob);
    if (wg == 1 && p.tile0 + 1 < p.tile1)
        pass(6, 256);
    for (int tile = p.tile0 + 1; tile < p.tile1; tile++, n++) {
        meet(6 + wg, 256);
        ahead_scores<S>(q, space, n + 1, bar, v);
        ahead_values<S>(p, tile - 1, space, n, prob, o);
        if (wg == 0 || tile + 1 < p.tile1)
            pass(7 - wg, 256);
        wide_wait<1>();
        wide_pin(v);
        ahead_soften<S>(a, p, tile, m0, w, v);
        wide_before(w->sum[0] + w->sum[1]);
        wide_wait<0>();
        wide_pin(o);
        wide_pin(v);
        release_tile(bar.free_tile + n % S::STAGES);
        wide_shrink(w->keep, o);
        wide_pack(v, prob);
    }
    ahead_values<S>(p, p.tile1 - 1, space, n, prob, o);
    wide_wait<0>();
    wide_pin(o);
    release_tile(bar.free_tile + n % S::STAGES);
}

template <typename S>
static __device__ __forceinline__ void ahead_multiply(const flash_args &a, int n_seqs, char *space, wide_barriers bar)
{
    static_assert(S::MT == 128, "vectors of its own");
    enum { N = S::DV / 8 };
    wide_run run = run_open(a, n_seqs, S::TN);
    wide_piece p;
    unsigned n_pieces = 0, n_tiles = 0;
    int half = threadIdx.x / 128, m0 = blockIdx.x * S::MT + half * 64;
    float o[N][4];
    while (run_next(a, &run, &p)) {
        if ((int)blockIdx.x * S::MT >= p.n_vectors)
            continue;
        wide_rows w;
        w.top[0] = w.top[1] = -INFINITY;
        w.sum[0] = w.sum[1] = 0;
#pragma unroll
        for (int n = 0; n < N; n++)
            o[n][0] = o[n][1] = o[n][2] = o[n][3] = 0;
        barrier_wait(bar.queries, n_pieces++ & 1);
        wide_show();
        ahead_piece<S>(a, p, m0, space, bar, n_tiles, &w, o);
        n_tiles += (unsigned)(p.tile1 - p.tile0);
        if (threadIdx.x % 32 == 0)
            barrier_arrive(bar.free_queries);
        wide_sum_lanes(&w);
        wide_rows whole = wide_rows_of(a, p, m0, p.kv_head * a.group);
#pragma unroll
        for (int i = 0; i < 2; i++) {
            whole.top[i] = w.top[i];
            whole.sum[i] = w.sum[i];
        }
        int64_t part = p.tile1 - p.tile0 == p.tiles ? -1 : part_at(blockIdx.y, p.place, gridDim.x, blockIdx.x, 1, 0);
        wide_store<N>(a, whole, S::DV, 0, part, S::MT, half * 64, o);
    }
}

/* Where latents of 256 leave room for two tiles' scores and values at once. */
struct ahead {
    template <typename S> static __device__ constexpr int readers()
    {
        return 8;
    }
    template <typename S>
    static __device__ __forceinline__ void multiply(const flash_args &a, int n_seqs, char *space, wide_barriers bar)
    {
        ahead_multiply<S>(a, n_seqs, space, bar);
    }
};

struct alone {
    template <typename S> static __device__ constexpr int readers()
    {
        return S::MT == 64 ? 4 : 8;
    }
    template <typename S>
    static __device__ __forceinline__ void multiply(const flash_args &a, int n_seqs, char *space, wide_barriers bar)
    {
        alone_multiply<S>(a, n_seqs, space, bar);
    }
};

/* ---- launching ---- */

/* How a call is cut: tiles of vectors, runs, parts of a piece. early: launched before the launch in front has ended. */
typedef struct {
    int n_m, n_runs, halves;
    bool early;
} wide_cut;

/* `work_ns`: of a tile on a block. */
template <typename S>
static wide_cut wide_cut_of(const kv_view *kv, const batch_view *b, int64_t vectors, int kv_heads, double work_ns)
{
    enum { TURNS = S::DV < 512 && S::MT == 64 };
    int64_t tiles = (cu_kept(kv->mod, 0, b->max_slots) + S::TN - 1) / S::TN;
    wide_cut c = {.n_m = (int)((vectors + S::MT - 1) / S::MT), .n_runs = 1, .halves = 1 + TURNS};
    int64_t most = c.n_m > 0 ? cuda_sm_count() / c.n_m : 1;
    double parts = 2.0 * S::MT * S::DV * sizeof(float) * c.halves * c.n_m;
    wide_price p = {.work_ns = work_ns, .tile_ns = S::STAGE / 3e3, .parts_ns = parts / 3e3};
    c.n_runs = cheapest_runs(p, most < 1 ? 1 : most, (int64_t)b->n_seqs * kv_heads, tiles < 1 ? 1 : tiles);
    /* measured on an H100, V3's layer: latents of 512 gain 2 us of it at one sequence of 4K and lose 8 at 32 of 32K */
    c.early = S::DV < 512 || tiles * b->n_seqs * kv_heads < 8 * (int64_t)c.n_runs;
    return c;
}

/* Parts of the largest launch that has any: its blocks fit the card at once. `vectors`: of a block, all halves.
 * `wholes`: sequences times key heads that may be in one piece, of 64 vectors in two halves. */
static inline size_t wide_scratch_bytes(size_t vectors, size_t dv, size_t wholes)
{
    return ((size_t)cuda_sm_count() * 2 * vectors + wholes * 128) * (dv + 1) * sizeof(float) + 256;
}

template <typename S> static void wide_lay_parts(kernel_ctx *ctx, wide_cut c, int n_seqs, flash_args *a)
{
    int64_t parts = ((int64_t)c.n_runs * 2 + (c.halves > 1 ? (int64_t)n_seqs * a->kv_heads : 0)) * c.n_m * c.halves;
    a->part_o = (float *)ctx->scratch;
    a->part_lse = a->part_o + parts * S::MT * S::DV;
}

template <typename S>
static tpl_code wide_finish(kernel_ctx *ctx, const flash_args &a, wide_cut c, int n_seqs, const char *name, tpl_err *e)
{
    if (c.n_runs == 1 && c.halves == 1)
        return TPL_OK;
    wide_join j = {a.part_o, a.part_lse, c.n_runs, n_seqs, S::TN, S::MT, c.n_m, c.halves, S::DV, c.halves == 1};
    return join_runs(ctx, a, j, a.heads, name, e);
}

/* Rows without gaps, in boxes of 64. */
static inline bool map_rows(const void *data, int64_t width, int64_t rows, CUtensorMap *map)
{
    return boxes_map({data, width, rows, width, 0, 0, 64}, map);
}

/* A cache whose pages are whole tiles; how many there are is not known here. */
static inline bool map_cache(const kv_view *kv, CUtensorMap *map)
{
    return kv->page_tok % 64 == 0 && map_rows(kv->pages, kv->width, INT32_MAX, map);
}

template <typename S, typename K, typename... A>
static tpl_code wide_launch(kernel_ctx *ctx, K *kernel, wide_cut c, const char *name, tpl_err *e, const A &...args)
{
    static unsigned ready;
    cudaError_t rc = cudaSuccess;
    if (!cu_done_here(&ready))
        rc = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)S::SHARED_BYTES);
    if (rc != cudaSuccess)
        return tpl_fail(e, TPL_E_DEVICE, name, "needs %d bytes of shared memory a block: %s", (int)S::SHARED_BYTES,
                        cudaGetErrorString(rc));
    dim3 grid((unsigned)c.n_m, (unsigned)c.n_runs);
    if (c.early)
        cu_launch(cu_stream(ctx), kernel, grid, dim3(S::THREADS), (size_t)S::SHARED_BYTES, args...);
    else
        kernel<<<grid, S::THREADS, S::SHARED_BYTES, cu_stream(ctx)>>>(args...);
    return cu_launched(name, e);
}

#endif
