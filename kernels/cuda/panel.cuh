/* panel.cuh - products of some rows on warpgroups (wgmma, compute capability 9.0): out [rows, n] = x [rows, k] w^T,
 * bf16 with f32 sums, for up to 128 rows. For:    panel.cu. Enter:  kernels/cuda only. Owns:   nothing. Fails:  never;
 * the launcher checks.
 *
 * Such a product is a stream of weights, as with fewer rows (skinny.cuh), but with work for the matrix units. A block
 * has 128 weight rows or 192, 64 a warpgroup, and its share of the columns: the blocks of a cluster share them. One
 * more warp brings both operands in by boxes of 64 columns: weights before the launch before this one has ended, as
 * nothing writes them. Weights are the first operand, rows of x the second, N with those past the end as zeros; sums
 * over the cluster are taken in order. Weights [k, n] come as boxes of 64 x 64 and are read along their rows
 * (MN-major). */
#ifndef TPL_KERNELS_CUDA_PANEL_CUH
#define TPL_KERNELS_CUDA_PANEL_CUH

#include "kernels/cuda/boxes.cuh"
#include "kernels/cuda/panel_mma.cuh"
#include "kernels/cuda/rows_work.cuh"

enum {
    PN_PARTS = 4,
    PN_MOST_ROWS = 128,
    PN_TILE = 128,             /* weight rows of a block of two warpgroups */
    PN_COLS = BOX_COLS,        /* of a stage */
    PN_BOX = 64 * PN_COLS * 2, /* bytes of a warpgroup's weights in it */
    PN_ROOM = 114688,          /* of the ring: two blocks an SM */
    PN_ROOM_ALONE = 200 << 10, /* one */
    PN_MOST_STAGES = 10,
    PN_MOST_BYTES = PN_ROOM_ALONE + 1024
};

/* GROUPS: warpgroups, which multiply; one more warp brings their operands. */
template <int N_, bool TURNED_, int GROUPS_ = 2> struct panel_shape {
    enum {
        N = N_,
        GROUPS = GROUPS_,
        TILE = 64 * GROUPS,
        SUMS = 128 * GROUPS, /* threads that multiply */
        THREADS = SUMS + 32,
        PITCH = TILE + 4, /* of sums: so that a warp's stores touch all banks */
        WEIGHTS = GROUPS * PN_BOX,
        STAGE = WEIGHTS + N_ * PN_COLS * 2
    };
    static const bool TURNED = TURNED_; /* weights [k, n] */
};

/* One of the products that share x. */
typedef struct {
    void *out;
    const void *bias; /* [n] or NULL */
    int64_t ldo;
    int n, tile0, bias_type;
    bool out_f32, accumulate, pieces; /* pieces: four results lie together in memory, aligned */
} panel_part;

typedef struct {
    panel_part part[PN_PARTS];
    int64_t out_step; /* from grid row to grid row: heads */
    int n_parts, rows, chunks, block_chunks, stages, barriers_at;
} panel_args;

typedef struct {
    CUtensorMap w[PN_PARTS], x;
} panel_maps;

/* A box of 64 columns from x on, rows from y on, of matrix z. */
static __device__ __forceinline__ void panel_box(const CUtensorMap *map, int x, int y, int z, char *to, uint64_t *full)
{
#if WIDE_CODE
    asm volatile(
        "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5}], "
        "[%2];" ::"r"(smem_at(to)),
        "l"(map), "r"(smem_at(full)), "r"(x), "r"(y), "r"(z)
        : "memory");
#endif
}

/* Fetches what describes a matrix ahead of its first box. */
static __device__ __forceinline__ void panel_map_ahead(const CUtensorMap *map)
{
#if WIDE_CODE
    asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
#endif
}

/* What a block has: a tile of one part's weight rows, and chunks of columns. */
typedef struct {
    int part, row0, first, n; /* row0: first weight row; first, n: chunks */
    char *space;
    uint64_t *full, *empty; /* [stages] */
} panel_block;

template <typename S>
static __device__ __forceinline__ panel_block panel_block_of(const panel_args &a, char *space, int blocks)
{
    panel_block b;
    int tile = blockIdx.x / blocks;
    b.part = 0;
#pragma unroll
    for (int i = 1; i < PN_PARTS; i++)
        b.part += i < a.n_parts && tile >= a.part[i].tile0;
    b.row0 = (tile - a.part[b.part].tile0) * S::TILE;
    b.first = (int)cu_cluster_rank() * a.block_chunks;
    b.n = min(a.block_chunks, a.chunks - b.first);
    b.space = space;
    b.full = (uint64_t *)(space + a.barriers_at);
    b.empty = b.full + a.stages;
    return b;
}

/* Announces the stage of chunk i, and brings its weights. */
template <typename S>
static __device__ __forceinline__ void panel_bring_weights(const panel_maps &maps, const panel_block &b, int i, int s)
{
    const CUtensorMap *map = &maps.w[b.part];
    char *to = b.space + s * S::STAGE;
    int k = (b.first + i) * PN_COLS;
    barrier_expect(b.full + s, S::STAGE);
    if (S::TURNED) {
#pragma unroll
        for (int g = 0; g < S::GROUPS; g++)
            panel_box(map, b.row0 + 64 * g, k, blockIdx.y, to + g * PN_BOX, b.full + s);
    } else {
        panel_box(map, k, b.row0, blockIdx.y, to, b.full + s);
    }
}

template <typename S>
static __device__ __forceinline__ void panel_bring_x(const panel_maps &maps, const panel_block &b, int i, int s)
{
    panel_box(&maps.x, (b.first + i) * PN_COLS, 0, blockIdx.y, b.space + s * S::STAGE + S::WEIGHTS, b.full + s);
}

/* By one thread. */
template <typename S>
static __device__ __forceinline__ void panel_bring(const panel_args &a, const panel_maps &maps, const panel_block &b)
{
    int ahead = min(a.stages, b.n), s = 0, turn = 1;
    for (int i = 0; i < ahead; i++)
        panel_bring_weights<S>(maps, b, i, i);
    cu_wait_before();
    for (int i = 0; i < ahead; i++)
        panel_bring_x<S>(maps, b, i, i);
    for (int i = ahead; i < b.n; i++) {
        barrier_wait(b.empty + s, ~turn & 1);
        panel_bring_weights<S>(maps, b, i, s);
        panel_bring_x<S>(maps, b, i, s);
        s = s + 1 == a.stages ? 0 : s + 1;
        turn += s == 0;
    }
}

/* By the warpgroups: the block's sums, to the ring's place: [x row][PITCH]. */
template <typename S> static __device__ __forceinline__ void panel_multiply(const panel_args &a, const panel_block &b)
{
    int lane = threadIdx.x % 32, wg = threadIdx.x / 128, s = 0, before = 0, turn = 0;
    float d[S::N / 8][4];
    for (int i = 0; i < b.n; i++) {
        char *at = b.space + s * S::STAGE;
        uint64_t w = wide_operand(at + wg * PN_BOX, 0), x = wide_operand(at + S::WEIGHTS, 0);
        barrier_wait(b.full + s, turn & 1);
        wide_begin();
#pragma unroll
        for (int k = 0; k < 4; k++)
            panel_mma<S::TURNED>(d, wide_ahead(w, k * (S::TURNED ? 2048 : 32)), wide_ahead(x, k * 32), i + k > 0);
        wide_commit();
        wide_wait<1>();
        if (i > 0 && lane == 0)
            barrier_arrive(b.empty + before);
        before = s;
        s = s + 1 == a.stages ? 0 : s + 1;
        turn += s == 0;
    }
    wide_wait<0>();
    wide_pin(d);
    meet(1, S::THREADS);
    float *sums = (float *)b.space + threadIdx.x / 32 * 16 + lane / 4 + lane % 4 * 2 * S::PITCH;
#pragma unroll
    for (int j = 0; j < S::N / 8; j++) {
        sums[(8 * j) * S::PITCH] = d[j][0];
        sums[(8 * j + 1) * S::PITCH] = d[j][1];
        sums[(8 * j) * S::PITCH + 8] = d[j][2];
        sums[(8 * j + 1) * S::PITCH + 8] = d[j][3];
    }
}

static __device__ __forceinline__ void panel_put_one(const panel_part &p, int64_t at, float v)
{
    if (p.out_f32) {
        float *to = (float *)p.out + at;
        *to = p.accumulate ? *to + v : v;
    } else {
        cu_bf16 *to = (cu_bf16 *)p.out + at;
        cu_put(to, p.accumulate ? cu_get(*to) + v : v);
    }
}

static __device__ __forceinline__ float4 panel_add(float4 a, float4 b)
{
    return make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w);
}

/* Four results of a row, those of weight rows from `row` on, to element `at`. */
static __device__ __forceinline__ void panel_put(const panel_part &p, int64_t at, int row, float4 v)
{
    if (p.bias) {
        float *f = &v.x;
#pragma unroll
        for (int k = 0; k < 4; k++)
            f[k] += row + k < p.n ? cu_load(p.bias, p.bias_type, row + k) : 0.f;
    }
    if (!p.pieces) {
        const float *f = &v.x;
#pragma unroll
        for (int k = 0; k < 4; k++)
            if (row + k < p.n)
                panel_put_one(p, at + k, f[k]);
    } else if (p.out_f32) {
        float4 *to = (float4 *)((float *)p.out + at);
        *to = p.accumulate ? panel_add(*to, v) : v;
    } else {
        uint2 *to = (uint2 *)((cu_bf16 *)p.out + at), old = p.accumulate ? *to : make_uint2(0, 0);
        __nv_bfloat162 *two = (__nv_bfloat162 *)&old;
        float2 lo = __bfloat1622float2(two[0]), hi = __bfloat1622float2(two[1]);
        two[0] = __floats2bfloat162_rn(lo.x + v.x, lo.y + v.y);
        two[1] = __floats2bfloat162_rn(hi.x + v.z, hi.y + v.w);
        *to = old;
    }
}

/* The blocks of a cluster finish their tile together: half a warp takes 64 results of a row at a time. */
template <typename S>
static __device__ __forceinline__ void panel_store(const panel_args &a, const panel_block &b, int blocks)
{
    enum { HALVES = S::THREADS / 16, ACROSS = S::TILE / 64 };
    const panel_part p = a.part[b.part];
    const float *sums = (const float *)b.space;
    for (int u = (int)cu_cluster_rank() * HALVES + threadIdx.x / 16; u < a.rows * ACROSS; u += HALVES * blocks) {
        int m = u / ACROSS, c = u % ACROSS * 64 + threadIdx.x % 16 * 4;
        const float *own = sums + m * S::PITCH + c;
        if (b.row0 + c >= p.n)
            continue;
        float4 v = make_float4(0, 0, 0, 0);
        if (blocks == 1)
            v = *(const float4 *)own;
        else
#pragma unroll 4
            for (int i = 0; i < blocks; i++)
                v = panel_add(v, cu_cluster_get_4(own, i));
        panel_put(p, blockIdx.y * a.out_step + m * p.ldo + b.row0 + c, b.row0 + c, v);
    }
}

/* Of a grid (tiles x blocks of a cluster, heads). */
template <typename S>
static __device__ __forceinline__ void panel_work(const panel_args &a, const panel_maps &maps, int blocks, char *space)
{
    panel_block b = panel_block_of<S>(a, space, blocks);
    if (threadIdx.x == S::SUMS) {
        panel_map_ahead(&maps.w[b.part]);
        panel_map_ahead(&maps.x);
    }
    if (threadIdx.x == 0) {
        for (int i = 0; i < a.stages; i++) {
            barrier_init(b.full + i, 1);
            barrier_init(b.empty + i, S::SUMS / 32);
        }
        barriers_stand();
    }
    __syncthreads();
    cu_let_next();
    if (threadIdx.x >= S::SUMS) {
        if (threadIdx.x == S::SUMS)
            panel_bring<S>(a, maps, b);
        __syncwarp();
        cu_wait_before();
        meet(1, S::THREADS); /* nothing to wait for: racecheck wants all warps to have met as often */
    } else {
        cu_wait_before();
        panel_multiply<S>(a, b);
    }
    __syncthreads();
    if (blocks > 1)
        cu_cluster_sync();
    panel_store<S>(a, b, blocks);
    if (blocks > 1)
        cu_cluster_leave();
}

/* ---- launching ---- */

/* x as the launch for so many rows brings it in. */
static inline bool panel_map_x(const void *x, int64_t k, int64_t rows, int64_t n, int64_t stride, int64_t step,
                               CUtensorMap *map)
{
    int box = rows <= 64 ? (int)(rows + 15) / 16 * 16 : rows <= 96 ? 96 : 128;
    return boxes_map({x, k, rows, stride, n, step, box}, map);
}

static inline bool panel_has_pieces(const void *out, tpl_dtype type, int64_t ldo, int64_t n, int64_t step)
{
    return (uintptr_t)out % (4 * dtype_bytes(type)) == 0 && ldo % 4 == 0 && n % 4 == 0 && step % 4 == 0;
}

/* One product, a head or more, in tiles of so many weight rows: its arguments and maps; false where there are no such
 * maps. */
static inline bool panel_prepare(const cuda_product *p, const void *x, const void *w, void *out, int tile,
                                 panel_args *a, panel_maps *maps)
{
    int64_t rows = p->w_transposed ? p->k : p->n, cols = p->w_transposed ? p->n : p->k;
    a->part[0] = {out,
                  p->bias,
                  p->ldo,
                  (int)p->n,
                  0,
                  (int)p->bias_type,
                  p->out == DT_F32,
                  p->accumulate,
                  panel_has_pieces(out, p->out, p->ldo, p->n, p->out_step)};
    a->n_parts = 1;
    a->out_step = p->out_step;
    a->rows = (int)p->rows;
    a->chunks = (int)((p->k + PN_COLS - 1) / PN_COLS);
    return boxes_map({w, cols, rows, p->ldw, p->batch, p->w_step, p->w_transposed ? PN_COLS : tile}, &maps->w[0]) &&
           panel_map_x(x, p->k, p->rows, p->batch, p->ldx, p->x_step, &maps->x);
}

/* Shares the columns over a cluster of `blocks` and lays shared memory out, `room` for the ring; returns its bytes. */
template <typename S> static size_t panel_lay(int room, panel_args *a, int *blocks)
{
    int most = room / (int)S::STAGE < PN_MOST_STAGES ? room / (int)S::STAGE : (int)PN_MOST_STAGES;
    a->block_chunks = (a->chunks + *blocks - 1) / *blocks;
    *blocks = (a->chunks + a->block_chunks - 1) / a->block_chunks;
    a->stages = a->block_chunks < most ? a->block_chunks : most;
    int ring = a->stages * S::STAGE, sums = S::N * S::PITCH * (int)sizeof(float);
    a->barriers_at = ring > sums ? ring : sums;
    return (size_t)(a->barriers_at + 16 * a->stages);
}

#endif
