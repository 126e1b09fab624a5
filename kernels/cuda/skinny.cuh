/* skinny.cuh - products of few rows, bf16 with f32 sums: out [rows, n] = x [rows, k] w [n, k]^T for up to 8 rows.
 * For:    skinny.cu, and what joins a product with its neighbours.
 * Enter:  kernels/cuda only.
 * Owns:   nothing.
 * Fails:  never; launchers check.
 *
 * Such a product is a stream of weights. A block owns tiles of 8 R weight rows, one after another; its warps share the
 * columns in chunks of 64, and the blocks of a cluster in equal runs of chunks. A thread copies 16-byte pieces of
 * weights into a ring of its own in shared memory, DEPTH steps ahead, over the ends of tiles too, and begins before the
 * launch before this one has ended, as nothing writes weights. x waits for that end and lies in shared memory whole.
 *
 * mma.sync m16n8k16 with x as A (row i at place i; rows past the last repeat it, their results are dropped) and weights
 * as B. Products do not mind the order of k: lane (g, t) takes the 8 columns at 8 t of each 32 from row g, so that a
 * fragment is one 16-byte piece. Sums over warps, then over the cluster, are taken in order. */
#ifndef TPL_KERNELS_CUDA_SKINNY_CUH
#define TPL_KERNELS_CUDA_SKINNY_CUH

#include "kernels/cuda/copies.cuh"
#include "kernels/cuda/launch.cuh"

enum { SK_THREADS = 256, SK_WARPS = 8, SK_CHUNK = 64, SK_PARTS = 4, SK_MOST_ROWS = 8, SK_NORM_PIECES = 4 };
enum { SK_NEXT = 8 }; /* tiles that a block has drawn and not forgotten */

/* One of the products that share x: what it writes. */
typedef struct {
    const cu_bf16 *w;
    void *out;                     /* NULL: kept nowhere (SwiGLU) */
    const void *bias;              /* [n] or NULL */
    cu_bf16 *residual;             /* += out; or NULL */
    int64_t ldw, ldo, ldr, w_step; /* w_step: from head to head, from expert to expert */
    int n, tile0, bias_type;
    bool out_f32, accumulate;
} skinny_part;

typedef struct {
    const cu_bf16 *x;
    int64_t ldx;
    int rows, k, n_parts, tiles, block_chunks; /* tiles: of all parts; block_chunks: of one block of the cluster */
    int64_t x_step, out_step;                  /* from grid row to grid row: heads, or routes */
    skinny_part part[SK_PARTS];
    const cu_bf16 *gamma; /* norm in front: [k] or NULL for ones */
    cu_bf16 *xn;          /* where it is written, [rows, k] */
    int64_t ld_xn;
    float eps;
    cu_bf16 *inner; /* SwiGLU behind: silu(part 0) * part 1 */
    int64_t ld_inner;
    /* Experts (rows is 1): a row of x has grid rows for n_shared experts that all rows go to, whose weights are
     * parts 2 and 3 and whose results go to `shared`, then for its routes. */
    const int32_t *ids;
    cu_bf16 *shared;
    int64_t ids_stride, ld_shared;
    int top_k, n_shared, expert0, n_local;
    /* Tiles in no fixed order: how many are drawn, 0 before and after the launch; NULL: in a fixed order. A block's
     * first `ahead` are fixed. */
    unsigned *drawn;
    int ahead;
} skinny_args;

template <int R_, int DEPTH_, bool NORM_ = false, bool SWIGLU_ = false, bool EXPERTS_ = false> struct skinny_shape {
    enum { R = R_, DEPTH = DEPTH_, NT = 8 * R_, RING = DEPTH_ * 2 * R_ * SK_THREADS };
    static const bool NORM = NORM_, SWIGLU = SWIGLU_, EXPERTS = EXPERTS_;
    static size_t shared_bytes(int rows, int block_chunks)
    {
        size_t x = (size_t)rows * (size_t)(block_chunks * 8 + 4), red = 2 * (size_t)(SK_WARPS + 1) * NT * (size_t)rows;
        return (RING + x) * 16 + (red + SK_NEXT) * 4 + (NORM_ ? SK_WARPS * SK_MOST_ROWS * 4 : 0);
    }
};

static __device__ __forceinline__ void sk_mma(float c[4], unsigned a0, unsigned a1, unsigned a2, unsigned a3,
                                              unsigned b0, unsigned b1)
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

static __device__ __forceinline__ float sk_square(unsigned two)
{
    float2 f = __bfloat1622float2(*(const __nv_bfloat162 *)&two);
    return f.x * f.x + f.y * f.y;
}

static __device__ __forceinline__ float sk_round(float v)
{
    return __bfloat162float(__float2bfloat16_rn(v));
}

/* What a block of a cluster has: chunks [first, end), and the shared memory's parts. */
typedef struct {
    uint4 *ring, *x;
    float *red, *part, *space;
    int pitch, first, end; /* pitch: of a row of x, in pieces: half a bank line off, so that two rows touch all banks */
    int matrix, parts;     /* which head's or expert's weights, from which part on */
    const cu_bf16 *from;   /* x */
    cu_bf16 *inner;        /* SwiGLU's result */
    int64_t step;          /* to where parts put theirs */
    int *next;             /* [SK_NEXT] tiles that were drawn */
} skinny_block;

template <typename S> static __device__ __forceinline__ skinny_block sk_block(const skinny_args &a, uint4 *shared)
{
    skinny_block b;
    int total = (a.k + SK_CHUNK - 1) / SK_CHUNK;
    b.pitch = a.block_chunks * 8 + 4;
    b.first = (int)cu_cluster_rank() * a.block_chunks;
    b.end = min(b.first + a.block_chunks, total);
    b.ring = shared;
    b.x = shared + S::RING;
    b.red = (float *)(b.x + a.rows * b.pitch);
    b.part = b.red + 2 * SK_WARPS * S::NT * a.rows;
    b.next = (int *)(b.part + 2 * S::NT * a.rows);
    b.space = (float *)(b.next + SK_NEXT);
    b.matrix = blockIdx.y;
    b.parts = 0;
    b.from = a.x + blockIdx.y * a.x_step;
    b.inner = a.inner;
    b.step = blockIdx.y * a.out_step;
    return b;
}

static __device__ __forceinline__ void sk_bring_x(const skinny_args &a, const skinny_block &b, const cu_bf16 *x)
{
    int pieces = a.block_chunks * 8, n = a.rows * pieces;
#pragma unroll 8
    for (int i = threadIdx.x; i < n; i += SK_THREADS) {
        int m = i / pieces, p = i % pieces, c = b.first * SK_CHUNK + p * 8;
        b.x[m * b.pitch + p] = c < a.k ? *(const uint4 *)(x + m * a.ldx + c) : make_uint4(0, 0, 0, 0);
    }
}

/* The same, normalised; every block of a cluster reads whole rows and keeps its chunks. */
static __device__ __forceinline__ void sk_bring_norm(const skinny_args &a, const skinny_block &b,
                                                     const uint4 gamma[SK_NORM_PIECES], bool writes)
{
    int pieces = a.k / 8, p0 = b.first * 8, kept = a.block_chunks * 8;
    for (int m = 0; m < a.rows; m++) {
        uint4 v[SK_NORM_PIECES];
        float sum = 0;
#pragma unroll
        for (int i = 0; i < SK_NORM_PIECES; i++) {
            int p = threadIdx.x + i * SK_THREADS;
            v[i] = p < pieces ? *(const uint4 *)(a.x + m * a.ldx + p * 8) : make_uint4(0, 0, 0, 0);
        }
#pragma unroll
        for (int i = 0; i < SK_NORM_PIECES; i++) {
            int p = threadIdx.x + i * SK_THREADS - p0;
            sum += sk_square(v[i].x) + sk_square(v[i].y) + sk_square(v[i].z) + sk_square(v[i].w);
            if (p >= 0 && p < kept)
                b.x[m * b.pitch + p] = v[i];
        }
        sum = cu_warp_sum(sum);
        if (threadIdx.x % 32 == 0)
            b.space[m * SK_WARPS + threadIdx.x / 32] = sum;
    }
    __syncthreads();
    for (int m = 0; m < a.rows; m++) {
        float sum = 0;
        for (int w = 0; w < SK_WARPS; w++)
            sum += b.space[m * SK_WARPS + w];
        float by = 1.f / sqrtf(sum / (float)a.k + a.eps);
#pragma unroll
        for (int i = 0; i < SK_NORM_PIECES; i++) {
            int p = threadIdx.x + i * SK_THREADS - p0;
            if (p < 0 || p >= kept || p + p0 >= pieces)
                continue;
            uint4 v = cu_scale_8(b.x[m * b.pitch + p], gamma[i], a.gamma != NULL, by);
            b.x[m * b.pitch + p] = v;
            if (writes)
                *(uint4 *)(a.xn + m * a.ld_xn + (p + p0) * 8) = v;
        }
    }
    for (int i = threadIdx.x; i < a.rows * kept; i += SK_THREADS) /* past the row's end */
        if (i % kept + p0 >= pieces)
            b.x[i / kept * b.pitch + i % kept] = make_uint4(0, 0, 0, 0);
}

/* The part and weight row that n-tile r of a tile begins with. */
template <typename S>
static __device__ __forceinline__ const skinny_part &sk_part_of(const skinny_args &a, const skinny_block &b, int tile,
                                                                int r, int *row)
{
    if (S::SWIGLU) {
        *row = tile * (S::NT / 2) + r / 2 * 8;
        return a.part[b.parts + r % 2];
    }
    int i = 0;
#pragma unroll
    for (int j = 1; j < SK_PARTS; j++)
        i += j < a.n_parts && tile >= a.part[j].tile0;
    *row = (tile - a.part[i].tile0) * S::NT + r * 8;
    return a.part[i];
}

/* more: what the residual has there, read early. */
static __device__ __forceinline__ float sk_finish(const skinny_part &p, int64_t step, int m, int row, float v,
                                                  float more)
{
    if (p.bias)
        v += cu_load(p.bias, p.bias_type, row);
    if (!p.out)
        return v;
    if (p.out_f32) {
        float *to = (float *)p.out + step + m * p.ldo + row;
        *to = v = p.accumulate ? *to + v : v;
        return v;
    }
    cu_bf16 *to = (cu_bf16 *)p.out + step + m * p.ldo + row;
    v = sk_round(p.accumulate ? cu_get(*to) + v : v);
    cu_put(to, v);
    if (p.residual)
        cu_put(p.residual + m * p.ldr + row, more + v);
    return v;
}

/* What this thread's value of a tile is added to: a tile has no more values than a block has threads. */
template <typename S>
static __device__ __forceinline__ float sk_residual(const skinny_args &a, const skinny_block &b, int tile)
{
    int i = threadIdx.x, m = i / 8 % a.rows, row;
    if (S::NORM || S::SWIGLU || !a.part[0].residual || i >= S::NT * a.rows || cu_cluster_rank() > 0)
        return 0;
    const skinny_part &p = sk_part_of<S>(a, b, tile, i / 8 / a.rows, &row);
    row += i % 8;
    return p.residual && row < p.n ? cu_get(p.residual[m * p.ldr + row]) : 0.f;
}

/* The sums of a tile's values over the warps of this block, and over the cluster in its first block: `value(i)` of
 * place i = (n-tile * rows + row) * 8 + column. */
template <typename S>
static __device__ __forceinline__ float sk_sum(const skinny_args &a, const skinny_block &b, int odd, int i)
{
    float v = 0;
#pragma unroll
    for (int w = 0; w < SK_WARPS; w++)
        v += b.red[(odd * SK_WARPS + w) * S::NT * a.rows + i];
    return v;
}

template <typename S>
static __device__ __forceinline__ float sk_value(const skinny_args &a, const skinny_block &b, int odd, int i,
                                                 unsigned blocks)
{
    if (blocks == 1)
        return sk_sum<S>(a, b, odd, i);
    float v = 0;
    for (unsigned c = 0; c < blocks; c++)
        v += cu_cluster_get(b.part + odd * S::NT * a.rows + i, c);
    return v;
}

template <typename S>
static __device__ __forceinline__ void sk_store(const skinny_args &a, const skinny_block &b, int tile, int odd,
                                                unsigned blocks, const float acc[S::R][4], float more)
{
    int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4, size = S::NT * a.rows;
    float *red = b.red + (odd * SK_WARPS + threadIdx.x / 32) * size;
#pragma unroll
    for (int r = 0; r < S::R; r++) {
        if (g < a.rows)
            *(float2 *)(red + (r * a.rows + g) * 8 + 2 * t) = make_float2(acc[r][0], acc[r][1]);
    }
    __syncthreads();
    if (blocks > 1) {
        for (int i = threadIdx.x; i < size; i += SK_THREADS)
            b.part[odd * size + i] = sk_sum<S>(a, b, odd, i);
        cu_cluster_sync();
        if (cu_cluster_rank() > 0)
            return;
    }
    for (int i = threadIdx.x; i < (S::SWIGLU ? size / 2 : size); i += SK_THREADS) {
        int c = i % 8, m = i / 8 % a.rows, r = i / 8 / a.rows * (S::SWIGLU ? 2 : 1), row;
        const skinny_part &p = sk_part_of<S>(a, b, tile, r, &row);
        int at = (r * a.rows + m) * 8 + c;
        row += c;
        if (row >= p.n)
            continue;
        float v = sk_finish(p, b.step, m, row, sk_value<S>(a, b, odd, at, blocks), more);
        if (S::SWIGLU) {
            float u =
                sk_finish(a.part[b.parts + 1], b.step, m, row, sk_value<S>(a, b, odd, at + 8 * a.rows, blocks), 0);
            cu_put(b.inner + m * a.ld_inner + row, v / (1.f + expf(-v)) * u);
        }
    }
}

/* Where the ring is filled: warps' steps through the tiles of the block. */
template <typename S> struct skinny_source {
    const cu_bf16 *w[S::R];   /* this lane's row and columns, NULL past the end */
    int tile, chunk, slot, n; /* n: which of the block's tiles */
};

/* The block's n-th tile, n > 0. */
static __device__ __forceinline__ int sk_next(const skinny_args &a, const skinny_block &b, int n, int tile, int stride)
{
    return a.drawn && n >= a.ahead ? b.next[n % SK_NEXT] : tile + stride;
}

template <typename S>
static __device__ __forceinline__ void sk_aim(const skinny_args &a, const skinny_block &b, skinny_source<S> &s)
{
    int lane = threadIdx.x % 32;
    s.chunk = b.first + threadIdx.x / 32;
#pragma unroll
    for (int r = 0; r < S::R; r++) {
        int row;
        s.w[r] = NULL;
        if (s.tile >= a.tiles)
            continue;
        const skinny_part &p = sk_part_of<S>(a, b, s.tile, r, &row);
        if (row + lane / 4 < p.n)
            s.w[r] = p.w + b.matrix * p.w_step + (row + lane / 4) * p.ldw + lane % 4 * 8;
    }
}

/* Copies one chunk's pieces and goes on to the next. */
template <typename S>
static __device__ __forceinline__ void sk_fill(const skinny_args &a, const skinny_block &b, skinny_source<S> &s,
                                               int stride)
{
    uint4 *slot = b.ring + s.slot * 2 * S::R * SK_THREADS + threadIdx.x;
    int c = s.chunk * SK_CHUNK + threadIdx.x % 4 * 8;
#pragma unroll
    for (int r = 0; r < S::R; r++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            bool there = s.w[r] && s.chunk < b.end && c + 32 * h < a.k;
            if (s.tile < a.tiles)
                copy_stream(slot + (2 * r + h) * SK_THREADS, there ? s.w[r] + s.chunk * SK_CHUNK + 32 * h : a.part[0].w,
                            there);
        }
    copies_commit();
    s.slot = s.slot + 1 == S::DEPTH ? 0 : s.slot + 1;
    s.chunk += SK_WARPS;
    if (s.chunk - (int)threadIdx.x / 32 >= b.first + a.block_chunks) {
        s.tile = sk_next(a, b, ++s.n, s.tile, stride);
        sk_aim<S>(a, b, s);
    }
}

template <typename S>
static __device__ __forceinline__ void sk_multiply(const skinny_args &a, const skinny_block &b, int slot, int chunk,
                                                   float acc[S::R][4])
{
    int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const uint4 *w = b.ring + slot * 2 * S::R * SK_THREADS + threadIdx.x;
    const uint4 *x = b.x + (chunk - b.first) * 8 + t;
    x += min(g, a.rows - 1) * b.pitch;
#pragma unroll
    for (int h = 0; h < 2; h++) {
        uint4 p = x[4 * h];
#pragma unroll
        for (int r = 0; r < S::R; r++) {
            uint4 v = w[(2 * r + h) * SK_THREADS];
            sk_mma(acc[r], p.x, 0, p.y, 0, v.x, v.y);
            sk_mma(acc[r], p.z, 0, p.w, 0, v.z, v.w);
        }
    }
}

/* Points the block at its route, or at its share of the experts that all rows go to: these come first, as their weights
 * are known before routes are. The launch behind may begin only when this one has waited: it reads the routes early.
 * False: the route's expert is not here. */
static __device__ __forceinline__ bool sk_route(const skinny_args &a, skinny_block &b, bool *shared)
{
    int all = a.top_k + a.n_shared, row = blockIdx.y / all, j = blockIdx.y % all;
    b.from = a.x + row * a.ldx;
    *shared = j < a.n_shared;
    if (*shared) {
        b.parts = 2;
        b.matrix = j;
        b.inner = a.shared + row * a.ld_shared + (int64_t)b.matrix * a.part[2].n;
        b.step = row * a.part[2].ldo + (int64_t)b.matrix * a.part[2].n;
        return true;
    }
    cu_wait_before();
    cu_let_next();
    j -= a.n_shared;
    b.inner = a.inner + ((int64_t)row * a.top_k + j) * a.ld_inner;
    b.matrix = a.ids[row * a.ids_stride + j] - a.expert0;
    return b.matrix >= 0 && b.matrix < a.n_local;
}

/* grid (blocks that share the tiles x cluster, heads or routes) */
template <typename S>
static __global__ void __launch_bounds__(SK_THREADS, S::R <= 2 ? 3 : 2)
    skinny_kernel(const __grid_constant__ skinny_args a)
{
    extern __shared__ uint4 shared[];
    unsigned blocks = (unsigned)((a.k + SK_CHUNK - 1) / SK_CHUNK + a.block_chunks - 1) / a.block_chunks;
    skinny_block b = sk_block<S>(a, shared);
    int stride = gridDim.x / blocks, steps = (a.block_chunks + SK_WARPS - 1) / SK_WARPS, slot = 0, odd = 0;
    skinny_source<S> s;
    s.tile = blockIdx.x / blocks;
    s.slot = s.n = 0;
    bool waits = true;
    if (S::EXPERTS && !sk_route(a, b, &waits))
        return;
    sk_aim<S>(a, b, s);
#pragma unroll 1
    for (int i = 0; i < S::DEPTH; i++)
        sk_fill<S>(a, b, s, stride);
    if (!S::EXPERTS)
        cu_let_next();
    if (S::NORM) {
        uint4 gamma[SK_NORM_PIECES];
#pragma unroll
        for (int i = 0; i < SK_NORM_PIECES; i++) {
            int p = threadIdx.x + i * SK_THREADS;
            gamma[i] = a.gamma && p < a.k / 8 ? ((const uint4 *)a.gamma)[p] : make_uint4(0, 0, 0, 0);
        }
        cu_wait_before();
        sk_bring_norm(a, b, gamma, blockIdx.x < blocks);
    } else {
        if (waits)
            cu_wait_before();
        if (S::EXPERTS)
            cu_let_next();
        sk_bring_x(a, b, b.from);
    }
    __syncthreads();
    int tile = blockIdx.x / blocks;
    for (int n = 0; tile < a.tiles; tile = sk_next(a, b, ++n, tile, stride), odd ^= 1) {
        bool draws = a.drawn && threadIdx.x == 0;
        unsigned drawn = draws ? atomicAdd(a.drawn, 1) : 0;
        float acc[S::R][4] = {}, more = sk_residual<S>(a, b, tile);
        for (int i = 0, chunk = b.first + threadIdx.x / 32; i < steps; i++, chunk += SK_WARPS) {
            copies_wait<S::DEPTH - 1>();
            if (chunk < b.end)
                sk_multiply<S>(a, b, slot, chunk, acc);
            sk_fill<S>(a, b, s, stride);
            slot = slot + 1 == S::DEPTH ? 0 : slot + 1;
        }
        if (draws) {
            b.next[(n + a.ahead) % SK_NEXT] = (int)(a.ahead * gridDim.x + drawn);
            if (drawn == (unsigned)a.tiles - 1) /* as many are drawn as there are: the last */
                *a.drawn = 0;
        }
        sk_store<S>(a, b, tile, odd, blocks, acc, more);
    }
    if (blocks > 1)
        cu_cluster_sync();
}

/* ---- launching ---- */

/* Blocks of a cluster: what keeps a block's part of x at 32 KB, and, where tiles are few, the card busy. */
static inline int sk_cluster(int rows, int64_t k, int64_t tiles, int64_t heads)
{
    int64_t chunks = (k + SK_CHUNK - 1) / SK_CHUNK;
    int n = 1;
    while (n < 8 && ((int64_t)rows * chunks * SK_CHUNK > 16384 * n ||
                     (tiles * heads * n < cuda_sm_count() && chunks >= 2 * n * SK_WARPS)))
        n *= 2;
    return cuda_code_level() >= CODE_EARLY ? n : 1;
}

static inline int64_t sk_tiles(const skinny_args &a, int nt, bool swiglu)
{
    int64_t tiles = 0;
    for (int i = 0; i < (swiglu ? 1 : a.n_parts); i++)
        tiles += (a.part[i].n + nt - 1) / nt;
    return tiles;
}

/* Lays the tiles out and launches; the parts' sizes stand. per_sm: blocks an SM that share the tiles, as many as tiles
 * where that is more. Where a launch is one wave, shared memory is asked for such that no SM takes more than its share:
 * blocks come in while those of the launch before leave, and would crowd where these left first. draw: blocks have
 * several tiles, and take the next one when they come to it, as they begin and go on at different speeds. False where
 * shared memory does not do. */
template <typename S>
static bool skinny_launch(kernel_ctx *ctx, skinny_args a, int heads, int per_sm, bool draw = false)
{
    static unsigned ready;
    int nt = S::SWIGLU ? S::NT / 2 : S::NT, chunks = (a.k + SK_CHUNK - 1) / SK_CHUNK, first = 0, sms = cuda_sm_count();
    for (int i = 0; i < (S::SWIGLU ? 1 : a.n_parts); i++) {
        a.part[i].tile0 = first;
        first += (a.part[i].n + nt - 1) / nt;
    }
    a.tiles = first;
    int cluster = S::EXPERTS ? 1 : sk_cluster(a.rows, a.k, a.tiles, heads);
    a.block_chunks = (chunks + cluster - 1) / cluster;
    cluster = (chunks + a.block_chunks - 1) / a.block_chunks;
    int64_t most = (int64_t)per_sm * sms / heads / cluster, shares = a.tiles < most ? a.tiles : most;
    shares = shares < 1 ? 1 : shares;
    int64_t wave = (shares * cluster * heads + sms - 1) / sms; /* blocks an SM */
    size_t bytes = S::shared_bytes(a.rows, a.block_chunks), most_bytes = (size_t)cuda_block_shared_bytes();
    size_t apart = wave <= 3 ? (most_bytes + 1024) / (size_t)(wave + 1) : 0;
    if (bytes > most_bytes)
        return false;
    a.ahead = 2 + S::DEPTH / ((a.block_chunks + SK_WARPS - 1) / SK_WARPS); /* the ring is filled to one tile less */
    if (draw && cluster == 1 && heads == 1 && a.ahead < SK_NEXT - 1)
        a.drawn = gpu_queue_counts(ctx->queue);
    if (!cu_done_here(&ready))
        cudaFuncSetAttribute(skinny_kernel<S>, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)most_bytes);
    cu_launch_cluster(cu_stream(ctx), (unsigned)cluster, skinny_kernel<S>,
                      dim3((unsigned)(shares * cluster), (unsigned)heads), dim3(SK_THREADS),
                      bytes > apart ? bytes : apart, a);
    return true;
}

/* Tiles and depth by shape, as measured on an H100: few tiles are cut smaller; short rows need less depth than room for
 * a third block an SM; very many tiles are left to the hardware to spread. */
template <bool NORM, bool SWIGLU> static bool skinny_run(kernel_ctx *ctx, const skinny_args &a, int heads)
{
    int64_t sms = cuda_sm_count(), tiles = sk_tiles(a, SWIGLU ? 8 : 16, SWIGLU) * heads;
    if (heads > 1 && !NORM && !SWIGLU)
        return skinny_launch<skinny_shape<4, 2>>(ctx, a, heads, 64);
    if (tiles < sms && !SWIGLU)
        return skinny_launch<skinny_shape<1, 6, NORM>>(ctx, a, heads, 64);
    if (a.k <= 2048 && tiles >= sms)
        return skinny_launch<skinny_shape<2, 3, NORM, SWIGLU>>(ctx, a, heads, tiles < 4000 ? 3 : 64);
    int per_sm = tiles <= 2 * sms ? 2 : tiles <= 3 * sms ? 3 : tiles < 4000 ? 2 : 64;
    return skinny_launch<skinny_shape<2, 4, NORM, SWIGLU>>(ctx, a, heads, per_sm,
                                                           SWIGLU && tiles > 3 * sms && tiles < 4000);
}

#endif
