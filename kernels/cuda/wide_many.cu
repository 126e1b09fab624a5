/* attn_mha, and attn_gqa of many vectors, on warpgroups (wgmma, compute capability 9.0): a block owns 128 query
 * vectors, 64 a warpgroup, and walks all tokens that they see in tiles of 128; the third warpgroup brings keys and
 * values in. A warpgroup multiplies the next tile's scores while it still adds up this one's values, and its softmax
 * runs beside both; the two begin their products in turns, so that one's softmax falls into the other's products.
 *
 * flops  2 * heads * pairs * (dk + dv), and in MHA form the expansion; bound: matrix units
 * check  ref, tolerance "bf16_attn". */
#include "kernels/cuda/wide_alone.cuh"

/* Columns of keys: K1 expanded or cached, K2 cached; of values. */
template <int K1_, int K2_, int DV_, wide_way WAY_> struct many_shape {
    static const wide_way WAY = WAY_;
    enum {
        K1 = K1_,
        K1_BLOCKS = K1_ / 64,
        K_BLOCKS = (K1_ + K2_) / 64,
        DV = DV_,
        MT = 128,
        TN = 128,
        BOXES = TN / 64, /* of 64 tokens, as pages have them */
        BOX = 64 * 128,
        STAGES = 2,
        QUERY_BLOCK = MT * 128, /* bytes of 64 columns */
        TILE_BLOCK = TN * 128,
        QUERIES = K_BLOCKS * QUERY_BLOCK,
        KEYS = K_BLOCKS * TILE_BLOCK,
        STAGE = KEYS + DV_ / 64 * TILE_BLOCK,
        SHARED_BYTES = QUERIES + STAGES * STAGE + 8 * (1 + 4 * STAGES),
        THREADS = 384
    };
    static_assert((int)SHARED_BYTES <= 227 << 10, "what a block may have");
};

typedef struct {
    uint64_t *queries, *keys, *values, *free_keys, *free_values; /* all but the first: one a stage */
} many_barriers;

template <typename S> static __device__ __forceinline__ many_barriers many_barriers_of(char *space)
{
    uint64_t *at = (uint64_t *)(space + S::QUERIES + S::STAGES * S::STAGE);
    return {at, at + 1, at + 1 + S::STAGES, at + 1 + 2 * S::STAGES, at + 1 + 3 * S::STAGES};
}

/* The block's vectors and tokens; longest first. */
template <typename S> static __device__ __forceinline__ wide_piece many_piece(const flash_args &a, int *m0)
{
    wide_piece p;
    const cu_batch &b = a.batch;
    p.seq = a.seq0 + blockIdx.z;
    p.row0 = b.seq_row0[p.seq];
    int rows = b.seq_row0[p.seq + 1] - p.row0, slot0 = cu_slot0(b, p.seq);
    p.n_vectors = rows * a.group;
    *m0 = (gridDim.x - 1 - blockIdx.x) * S::MT;
    int first_row = min(*m0 / a.group, rows), last_row = min((*m0 + S::MT - 1) / a.group, rows - 1);
    int seen = b.mask ? slot0 + rows : slot0 + last_row + 1;
    int from = a.window > 0 ? max(0, slot0 + first_row - a.window + 1) : 0;
    p.n_tok = min(cu_kept(a.kv.mod, a.kv.rem, seen), a.first + a.n_tok);
    p.tile0 = max(cu_kept(a.kv.mod, a.kv.rem, from), a.first) / S::TN;
    p.tile1 = max((p.n_tok + S::TN - 1) / S::TN, p.tile0);
    p.clear_slots = a.window > 0 ? 0 : b.mask ? b.seq_prefix[p.seq] : slot0 + first_row + 1;
    p.kv_head = blockIdx.y;
    p.tiles = p.place = 0;
    return p;
}

/* ---- bringing in ---- */

/* The row of the cache that holds token t; -1 where the block has no such token. */
static __device__ __forceinline__ int many_find(const flash_args &a, const wide_piece &p, int t)
{
    if (t < a.first || t >= p.n_tok)
        return -1;
    int page = a.kv.table[(int64_t)p.seq * a.kv.max_pages + t / a.kv.page_tok];
    return page * a.kv.page_tok + t % a.kv.page_tok;
}

/* Key columns and value columns of this block's head, of token t in row `row` of the cache. */
static __device__ __forceinline__ const cu_bf16 *many_keys_at(const flash_args &a, int t, int64_t row)
{
    return (a.xk ? a.xk + (int64_t)(t - a.first) * a.xk_row
                 : (const cu_bf16 *)a.kv.pages + row * a.kv.width + a.k_off) +
           (int64_t)blockIdx.y * a.k_step;
}

static __device__ __forceinline__ const cu_bf16 *many_values_at(const flash_args &a, int t, int64_t row)
{
    return (a.xv ? a.xv + (int64_t)(t - a.first) * a.xv_row
                 : (const cu_bf16 *)a.kv.pages + row * a.kv.width + a.v_off) +
           (int64_t)blockIdx.y * a.v_step;
}

template <typename S>
static __device__ __forceinline__ void many_bring(const flash_args &a, const wide_piece &p, char *space,
                                                  many_barriers bar)
{
    int r0 = threadIdx.x / 32 % 4 * 4 + threadIdx.x % 32 / 8, c = threadIdx.x % 8; /* rows r0, r0 + 16, ... */
    int turned = r0 * 128 + ((c ^ (r0 & 7)) << 4);
    for (int tile = p.tile0, n = 0; tile < p.tile1; tile++, n++) {
        int stage = n % S::STAGES, turn = n / S::STAGES, t0 = tile * S::TN + r0;
        char *to = space + S::QUERIES + stage * S::STAGE + turned;
        barrier_wait(bar.free_keys + stage, ~turn & 1);
#pragma unroll 2
        for (int k = 0; k < S::TN / 16; k++) {
            int row = many_find(a, p, t0 + k * 16);
            bool there = row >= 0;
            const cu_bf16 *keys = many_keys_at(a, there ? t0 + k * 16 : a.first, there ? row : 0) + c * 8;
            const cu_bf16 *more =
                (const cu_bf16 *)a.kv.pages + (there ? (int64_t)row * a.kv.width : 0) + a.k2_off + c * 8;
#pragma unroll
            for (int b = 0; b < S::K_BLOCKS; b++)
                copy_chunk((uint4 *)(to + k * 2048 + b * S::TILE_BLOCK),
                           b < S::K1_BLOCKS ? keys + b * 64 : more + (b - S::K1_BLOCKS) * 64, there);
        }
        barrier_arrive_after_copies(bar.keys + stage);
        barrier_wait(bar.free_values + stage, ~turn & 1);
#pragma unroll 2
        for (int k = 0; k < S::TN / 16; k++) {
            int row = many_find(a, p, t0 + k * 16);
            bool there = row >= 0;
            const cu_bf16 *values = many_values_at(a, there ? t0 + k * 16 : a.first, there ? row : 0) + c * 8;
#pragma unroll
            for (int b = 0; b < S::DV / 64; b++)
                copy_chunk((uint4 *)(to + S::KEYS + k * 2048 + b * S::TILE_BLOCK), values + b * 64, there);
        }
        barrier_arrive_after_copies(bar.values + stage);
    }
}

/* What boxes are cut from: expanded keys and values, and the cache. */
typedef struct {
    CUtensorMap keys, values, cache;
} many_maps;

template <typename S>
static __device__ __forceinline__ void many_bring_boxes(const flash_args &a, const wide_piece &p, const many_maps &maps,
                                                        char *space, many_barriers bar)
{
    int k = (a.xk ? 0 : a.k_off) + blockIdx.y * a.k_step, v = (a.xv ? 0 : a.v_off) + blockIdx.y * a.v_step;
    for (int tile = p.tile0, n = 0; tile < p.tile1; tile++, n++) {
        int stage = n % S::STAGES, turn = n / S::STAGES, t0 = tile * S::TN, y[S::BOXES];
        char *to = space + S::QUERIES + stage * S::STAGE;
#pragma unroll
        for (int i = 0; i < S::BOXES; i++) {
            int row = many_find(a, p, t0 + i * 64);
            y[i] = row < 0 ? -64 : row; /* before the first row all is zero */
        }
        barrier_wait(bar.free_keys + stage, ~turn & 1);
        barrier_expect(bar.keys + stage, S::KEYS);
#pragma unroll
        for (int j = 0; j < S::K_BLOCKS * S::BOXES; j++) {
            int b = j / S::BOXES, i = j % S::BOXES, own = t0 + i * 64 - a.first;
            char *at = to + b * S::TILE_BLOCK + i * S::BOX;
            if (b < S::K1_BLOCKS)
                bring_box(a.xk ? &maps.keys : &maps.cache, k + b * 64, a.xk ? own : y[i], at, bar.keys + stage);
            else
                bring_box(&maps.cache, a.k2_off + (b - S::K1_BLOCKS) * 64, y[i], at, bar.keys + stage);
        }
        barrier_wait(bar.free_values + stage, ~turn & 1);
        barrier_expect(bar.values + stage, S::STAGE - S::KEYS);
#pragma unroll
        for (int j = 0; j < S::DV / 64 * S::BOXES; j++) {
            int b = j / S::BOXES, i = j % S::BOXES, own = t0 + i * 64 - a.first;
            bring_box(a.xv ? &maps.values : &maps.cache, v + b * 64, a.xv ? own : y[i],
                      to + S::KEYS + b * S::TILE_BLOCK + i * S::BOX, bar.values + stage);
        }
    }
}

/* ---- multiplying ---- */

/* The scores of the block's tile n, once its keys are there; under way on return. */
template <typename S>
static __device__ __forceinline__ void many_scores(uint64_t q, char *space, int n, many_barriers bar,
                                                   float (&v)[S::TN / 8][4])
{
    uint64_t k = wide_operand(space + S::QUERIES + n % S::STAGES * S::STAGE, 0);
    barrier_wait(bar.keys + n % S::STAGES, n / S::STAGES & 1);
    if (S::WAY == BY_CHUNKS)
        wide_show();
    wide_begin();
#pragma unroll
    for (int b = 0; b < S::K_BLOCKS; b++)
#pragma unroll
        for (int step = 0; step < 4; step++)
            wide_keys<S::TN / 8>(v, wide_ahead(q, b * S::QUERY_BLOCK + step * 32),
                                 wide_ahead(k, b * S::TILE_BLOCK + step * 32), b + step > 0);
    wide_commit();
}

template <typename S>
static __device__ __forceinline__ void many_values(const flash_args &a, const wide_piece &p,
                                                   const unsigned (&prob)[S::TN / 16][4], char *space, int n,
                                                   many_barriers bar, float (&o)[S::DV / 8][4])
{
    char *at = space + S::QUERIES + n % S::STAGES * S::STAGE + S::KEYS;
    uint64_t v = wide_operand(at, S::TILE_BLOCK);
    barrier_wait(bar.values + n % S::STAGES, n / S::STAGES & 1);
    if (S::WAY == BY_CHUNKS)
        wide_show();
    else if (!a.xv) /* what is expanded is zero past the end */
        clear_end<S>(p, p.tile0 + n, 0, S::DV / 64, at);
    wide_begin();
#pragma unroll
    for (int i = 0; i < S::TN / 16; i++)
        wide_values<S::DV / 8>(o, prob[i], wide_ahead(v, i * 2048));
    wide_commit();
}

/* The tile's keys are done with. */
template <typename S>
static __device__ __forceinline__ void many_soften(const flash_args &a, const wide_piece &p, int n, many_barriers bar,
                                                   wide_rows *w, float (&v)[S::TN / 8][4])
{
    if (threadIdx.x % 32 == 0)
        barrier_arrive(bar.free_keys + n % S::STAGES);
    wide_mask(a, p, (p.tile0 + n) * S::TN, *w, v);
    wide_soften(a.scale_log2, w, v);
}

/* What earlier blocks of tokens have left is joined; to out where this is the last one. */
template <typename S>
static __device__ __forceinline__ void many_store(const flash_args &a, const wide_rows &w, float (&o)[S::DV / 8][4])
{
    int lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < 2; i++) {
        int64_t at = w.row[i] * a.heads + w.head[i];
        float own = w.sum[i] > 0 ? (w.top[i] * a.scale_log2 + log2f(w.sum[i])) * 0.69314718f : -INFINITY;
        float old = a.join && w.there[i] ? a.part_lse[at] : -INFINITY, top = fmaxf(own, old);
        float lse = top == -INFINITY ? top : top + logf(expf(own - top) + expf(old - top));
        float by_new = w.sum[i] > 0 ? expf(own - lse) / w.sum[i] : 0.f,
              by_old = old > -INFINITY ? expf(old - lse) : 0.f;
        __syncwarp(); /* all four lanes of a vector have read its state */
        if (!w.there[i])
            continue;
        float *part = a.part_o + at * S::DV + lane % 4 * 2;
        cu_bf16 *out = a.out + w.row[i] * a.out_stride + (int64_t)w.head[i] * S::DV + lane % 4 * 2;
#pragma unroll
        for (int n = 0; n < S::DV / 8; n++) {
            float x = o[n][2 * i] * by_new, y = o[n][2 * i + 1] * by_new;
            if (a.join && by_old > 0) {
                float2 state = *(float2 *)(part + n * 8);
                x += by_old * state.x;
                y += by_old * state.y;
            }
            if (!a.finish) {
                *(float2 *)(part + n * 8) = make_float2(x, y);
                continue;
            }
            unsigned *to = (unsigned *)(out + n * 8);
            if (a.accumulate) {
                __nv_bfloat162 had = *(__nv_bfloat162 *)to;
                x += __low2float(had);
                y += __high2float(had);
            }
            *to = pack(x, y);
        }
        if (lane % 4 == 0 && !a.finish)
            a.part_lse[at] = lse;
    }
}

template <typename S>
static __device__ __forceinline__ void many_multiply(const flash_args &a, const wide_piece &p, int m0, char *space,
                                                     many_barriers bar)
{
    int wg = threadIdx.x / 128, lane = threadIdx.x % 32, n_tiles = p.tile1 - p.tile0;
    uint64_t q = wide_operand(space + wg * 64 * 128, 0);
    wide_rows w = wide_rows_of(a, p, m0 + wg * 64, blockIdx.y * a.group);
    float o[S::DV / 8][4], v[S::TN / 8][4];
    unsigned prob[S::TN / 16][4];
#pragma unroll
    for (int n = 0; n < S::DV / 8; n++)
        o[n][0] = o[n][1] = o[n][2] = o[n][3] = 0;
    barrier_wait(bar.queries, 0);
    wide_show();
    if (n_tiles > 0) {
        many_scores<S>(q, space, 0, bar, v);
        wide_wait<0>();
        wide_pin(v);
        many_soften<S>(a, p, 0, bar, &w, v);
        wide_pack(v, prob);
        if (wg == 1 && n_tiles > 1)
            pass(6, 256);
        for (int n = 1; n < n_tiles; n++) {
            meet(6 + wg, 256);
            many_scores<S>(q, space, n, bar, v);
            many_values<S>(a, p, prob, space, n - 1, bar, o);
            if (wg == 0 || n + 1 < n_tiles)
                pass(7 - wg, 256);
            wide_wait<1>();
            wide_pin(v);
            many_soften<S>(a, p, n, bar, &w, v);
            wide_before(w.sum[0] + w.sum[1]);
            wide_wait<0>();
            wide_pin(o);
            wide_pin(v);
            if (lane == 0)
                barrier_arrive(bar.free_values + (n - 1) % S::STAGES);
            wide_shrink(w.keep, o);
            wide_pack(v, prob);
        }
        many_values<S>(a, p, prob, space, n_tiles - 1, bar, o);
        wide_wait<0>();
        wide_pin(o);
    }
    wide_sum_lanes(&w);
    many_store<S>(a, w, o);
}

template <typename S> static __device__ __forceinline__ void many_barriers_open(many_barriers bar)
{
    barrier_init(bar.queries, 128);
    for (int i = 0; i < S::STAGES; i++) {
        barrier_init(bar.keys + i, S::WAY == BY_CHUNKS ? 128 : 1);
        barrier_init(bar.values + i, S::WAY == BY_CHUNKS ? 128 : 1);
        barrier_init(bar.free_keys + i, 8);
        barrier_init(bar.free_values + i, 8);
    }
    barriers_stand();
}

/* The third warpgroup. */
template <typename S>
static __device__ __forceinline__ void many_bring_all(const flash_args &a, const wide_piece &p, int m0,
                                                      const many_maps &maps, char *space, many_barriers bar)
{
    bring_queries<S>(a, p, m0, space);
    barrier_arrive_after_copies(bar.queries);
    if constexpr (S::WAY == BY_CHUNKS)
        many_bring<S>(a, p, space, bar);
    else if (threadIdx.x == 256)
        many_bring_boxes<S>(a, p, maps, space, bar);
    copies_wait<0>();
}

template <typename S>
static __global__ void __launch_bounds__(S::THREADS, 1)
    many_kernel(const __grid_constant__ flash_args a, const __grid_constant__ many_maps maps)
{
    extern __shared__ __align__(1024) char space_many[];
    many_barriers bar = many_barriers_of<S>(space_many);
    if (threadIdx.x == 0)
        many_barriers_open<S>(bar);
    __syncthreads();
    int m0;
    if (threadIdx.x >= 256) {
        registers_down<40>();
        wide_piece p = many_piece<S>(a, &m0);
        if (m0 < p.n_vectors)
            many_bring_all<S>(a, p, m0, maps, space_many, bar);
    } else {
        registers_up<232>();
        wide_piece p = many_piece<S>(a, &m0);
        if (m0 < p.n_vectors)
            many_multiply<S>(a, p, m0, space_many, bar);
    }
}

/* ---- launching ---- */

template <wide_way WAY> using mha_128 = many_shape<128, 64, 128, WAY>;
template <wide_way WAY> using gqa_128 = many_shape<128, 0, 128, WAY>;

template <typename S>
static tpl_code launch(kernel_ctx *ctx, const flash_args &a, const many_maps &maps, int64_t vectors, int kv_heads,
                       int n_seqs, const char *name, tpl_err *e)
{
    static unsigned ready;
    if (!cu_done_here(&ready)) {
        cudaError_t rc =
            cudaFuncSetAttribute(many_kernel<S>, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)S::SHARED_BYTES);
        if (rc != cudaSuccess)
            return tpl_fail(e, TPL_E_DEVICE, name, "needs %d bytes of shared memory a block: %s", (int)S::SHARED_BYTES,
                            cudaGetErrorString(rc));
    }
    dim3 grid((unsigned)((vectors + S::MT - 1) / S::MT), (unsigned)kv_heads, (unsigned)n_seqs);
    if (grid.x == 0 || grid.z == 0)
        return TPL_OK;
    many_kernel<S><<<grid, S::THREADS, S::SHARED_BYTES, cu_stream(ctx)>>>(a, maps);
    return cu_launched(name, e);
}

bool cuda_wide_has_mha(const op_attn_mha *o)
{
    return o->nope == 128 && o->rope == 64 && o->v_dim == 128 && o->scale >= 0 &&
           flash_aligned(o->q.data, o->q.stride, o->rope_off, 0) &&
           flash_aligned(o->kv.pages, o->kv.width, o->out.stride, 0) && (uintptr_t)o->out.data % 4 == 0;
}

static tpl_code run_block(kernel_ctx *ctx, const op_attn_mha *o, const mha_space *x, mha_block b, tpl_err *e)
{
    flash_args a = cuda_mha_args(o, x, b);
    many_maps maps = {};
    int rows = o->batch->max_seq_rows;
    if (map_cache(&o->kv, &maps.cache) && map_rows(a.xk, a.xk_row, b.n, &maps.keys) &&
        map_rows(a.xv, a.xv_row, b.n, &maps.values))
        return launch<mha_128<BY_BOXES>>(ctx, a, maps, rows, o->heads, 1, "attn_mha", e);
    return launch<mha_128<BY_CHUNKS>>(ctx, a, maps, rows, o->heads, 1, "attn_mha", e);
}

tpl_code cuda_wide_mha(kernel_ctx *ctx, const op_call *call, tpl_err *e)
{
    const op_attn_mha *o = &call->attn_mha;
    if (o->batch->n_rows == 0)
        return TPL_OK;
    return cuda_mha_blocks(ctx, o, run_block, e);
}

/* Blocks do not share their tokens with others: only where there are enough of them. */
bool cuda_many_has_gqa(const op_attn_gqa *o)
{
    const batch_view *b = o->batch;
    int64_t vectors = b ? (int64_t)b->max_seq_rows * (o->heads / o->kv_heads) : 0;
    return o->head_dim == 128 && vectors > 64 && (vectors + 127) / 128 * o->kv_heads * b->n_seqs >= cuda_sm_count() / 2;
}

tpl_code cuda_many_gqa(kernel_ctx *ctx, const op_attn_gqa *o, tpl_err *e)
{
    flash_args a = cuda_gqa_args(o);
    a.finish = true;
    many_maps maps = {};
    int64_t vectors = (int64_t)o->batch->max_seq_rows * a.group;
    if (map_cache(&o->kv, &maps.cache))
        return launch<gqa_128<BY_BOXES>>(ctx, a, maps, vectors, o->kv_heads, o->batch->n_seqs, "attn_gqa", e);
    return launch<gqa_128<BY_CHUNKS>>(ctx, a, maps, vectors, o->kv_heads, o->batch->n_seqs, "attn_gqa", e);
}
