/* several.cuh - products of several rows, bf16 with f32 sums: out [rows, n] = x [rows, k] w [n, k]^T for up to 64 rows.
 * For:    join_products.cu, where rows are more than skinny.cuh is made for.
 * Enter:  kernels/cuda only.
 * Owns:   nothing.
 * Fails:  never; launchers check.
 *
 * Such a product is still a stream of weights, but x does not fit shared memory whole. A block owns tiles of 128 weight
 * rows, 16 a warp; columns come in chunks of 64 through a ring of DEPTH stages, x's beside the weights'. A thread
 * copies the weights that it will multiply itself, and begins before the launch before this one has ended; x is shared
 * by all and waits for that end. Where tiles are few the blocks of a cluster share a tile's chunks, and each adds up
 * and finishes its share of the results, in order.
 *
 * mma.sync m16n8k16 with weights as A and x as B, so that 8 rows of x cost one. The order of k is skinny.cuh's: lane
 * (g, t) takes the 8 columns at 8 t of each 32, of weight rows g and g + 8 and of row g of x. With SwiGLU behind, a
 * warp has 8 rows of both factors: row g is the gate's, g + 8 the other's. */
#ifndef TPL_KERNELS_CUDA_SEVERAL_CUH
#define TPL_KERNELS_CUDA_SEVERAL_CUH

#include "kernels/cuda/skinny.cuh"

enum { SV_THREADS = 256, SV_TILE = 128, SV_MOST_ROWS = 64, SV_WEIGHTS = 4 * SV_THREADS, SV_MOST_CLUSTER = 8 };

/* MT: eights of rows. A stage is SV_WEIGHTS pieces of 16 bytes and 8 pieces a row of x. */
template <int MT_, bool SWIGLU_> struct several_shape {
    enum { MT = MT_, DEPTH = MT_ > 5 ? 4 : 5, STAGE = SV_WEIGHTS + 64 * MT_, TILE = SWIGLU_ ? SV_TILE / 2 : SV_TILE };
    enum { BYTES = 16 * DEPTH * STAGE };
    static const bool SWIGLU = SWIGLU_;
};

/* Where a ring is filled: this lane's two weight rows, NULL past the end, and the chunk that comes next. */
typedef struct {
    const cu_bf16 *lo, *hi;
    int tile, chunk, slot;
} several_source;

/* The part and weight row of row `i` (0 to 127) of a tile; the row may lie past the part's end. */
template <typename S>
static __device__ __forceinline__ const skinny_part &sv_part_of(const skinny_args &a, int tile, int i, int *row)
{
    if (S::SWIGLU) {
        *row = tile * S::TILE + i / 16 * 8 + i % 8;
        return a.part[i / 8 % 2];
    }
    int p = 0;
#pragma unroll
    for (int j = 1; j < SK_PARTS; j++)
        p += j < a.n_parts && tile >= a.part[j].tile0;
    *row = (tile - a.part[p].tile0) * S::TILE + i;
    return a.part[p];
}

template <typename S>
static __device__ __forceinline__ const cu_bf16 *sv_weight_row(const skinny_args &a, int tile, int i)
{
    int row;
    if (tile >= a.tiles)
        return NULL;
    const skinny_part &p = sv_part_of<S>(a, tile, i, &row);
    return row < p.n ? p.w + row * p.ldw + threadIdx.x % 4 * 8 : NULL;
}

template <typename S> static __device__ __forceinline__ void sv_aim(const skinny_args &a, several_source &s)
{
    int i = threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4;
    s.lo = sv_weight_row<S>(a, s.tile, i);
    s.hi = sv_weight_row<S>(a, s.tile, i + 8);
}

/* Copies one chunk of weights and goes on to the next. */
template <typename S>
static __device__ __forceinline__ void sv_fill_weights(const skinny_args &a, uint4 *ring, several_source &s, int first,
                                                       int end, int stride)
{
    uint4 *to = ring + s.slot * S::STAGE + threadIdx.x;
    int at = s.chunk * SK_CHUNK, c = at + threadIdx.x % 4 * 8;
#pragma unroll
    for (int h = 0; h < 2; h++) {
        bool in = s.tile < a.tiles && c + 32 * h < a.k;
        if (s.tile < a.tiles) {
            sk_copy(to + h * SV_THREADS, in && s.lo ? s.lo + at + 32 * h : a.part[0].w, in && s.lo);
            sk_copy(to + (2 + h) * SV_THREADS, in && s.hi ? s.hi + at + 32 * h : a.part[0].w, in && s.hi);
        }
    }
    s.slot = s.slot + 1 == S::DEPTH ? 0 : s.slot + 1;
    if (++s.chunk == end) {
        s.chunk = first;
        s.tile += stride;
        sv_aim<S>(a, s);
    }
}

/* Copies a chunk of x. Odd rows have their halves swapped, so that what a quarter of a warp reads lies in all banks. */
template <typename S>
static __device__ __forceinline__ void sv_fill_x(const skinny_args &a, uint4 *ring, int slot, int chunk)
{
    uint4 *to = ring + slot * S::STAGE + SV_WEIGHTS;
#pragma unroll
    for (int i = threadIdx.x; i < 64 * S::MT; i += SV_THREADS) {
        int m = i / 8, p = i % 8, c = chunk * SK_CHUNK + p * 8;
        if (m < a.rows)
            sk_copy(to + m * 8 + (p ^ (m & 1) * 4), c < a.k ? a.x + m * a.ldx + c : a.x, c < a.k);
    }
}

template <typename S>
static __device__ __forceinline__ void sv_multiply(const uint4 *ring, int slot, float acc[S::MT][4])
{
    int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const uint4 *w = ring + slot * S::STAGE + threadIdx.x, *x = ring + slot * S::STAGE + SV_WEIGHTS + g * 8;
#pragma unroll
    for (int h = 0; h < 2; h++) {
        uint4 lo = w[h * SV_THREADS], hi = w[(2 + h) * SV_THREADS];
        int at = (4 * h + t) ^ (g & 1) * 4;
#pragma unroll
        for (int j = 0; j < S::MT; j++) {
            uint4 v = x[j * 64 + at];
            sk_mma(acc[j], lo.x, hi.x, lo.y, hi.y, v.x, v.y);
            sk_mma(acc[j], lo.z, hi.z, lo.w, hi.w, v.z, v.w);
        }
    }
}

/* Finishes what thread `who` of a block has of rows 8 j to 8 j + 7: two rows of x and two weight rows. */
template <typename S>
static __device__ __forceinline__ void sv_finish(const skinny_args &a, int tile, int who, int j, const float v[4])
{
    int i = who / 32 * 16 + who % 32 / 4, lo, hi;
    const skinny_part &p = sv_part_of<S>(a, tile, i, &lo), &q = sv_part_of<S>(a, tile, i + 8, &hi);
#pragma unroll
    for (int c = 0; c < 2; c++) {
        int m = 8 * j + 2 * (who % 4) + c;
        if (m >= a.rows)
            continue;
        float y = lo < p.n ? sk_finish(p, 0, m, lo, v[c]) : 0, z = hi < q.n ? sk_finish(q, 0, m, hi, v[2 + c]) : 0;
        if (S::SWIGLU && lo < p.n)
            cu_put(a.inner + m * a.ld_inner + lo, y / (1.f + expf(-y)) * z);
    }
}

/* Four floats of another block of the cluster, at the place where this block has `own`. */
static __device__ __forceinline__ float4 sv_cluster_get(const float4 *own, unsigned rank)
{
#if __CUDA_ARCH__ >= 900
    unsigned at = (unsigned)__cvta_generic_to_shared(own), there;
    float4 v;
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(at), "r"(rank));
    asm volatile("ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [%4];"
                 : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
                 : "r"(there)
                 : "memory");
    return v;
#else
    return *own;
#endif
}

/* Adds up a tile over the blocks of the cluster, through the ring, which no copy is on its way to any more. */
template <typename S>
static __device__ __forceinline__ void sv_combine(const skinny_args &a, uint4 *ring, int tile, unsigned blocks,
                                                  const float acc[S::MT][4])
{
    enum { ALL = S::MT * SV_THREADS };
    float4 *part = (float4 *)ring;
    int share = (ALL + blocks - 1) / blocks, first = (int)cu_cluster_rank() * share, end = min(first + share, (int)ALL);
    __syncthreads();
#pragma unroll
    for (int j = 0; j < S::MT; j++)
        part[j * SV_THREADS + threadIdx.x] = make_float4(acc[j][0], acc[j][1], acc[j][2], acc[j][3]);
    cu_cluster_sync();
    for (int i = first + (int)threadIdx.x; i < end; i += SV_THREADS) {
        float v[4] = {};
        for (unsigned c = 0; c < blocks; c++) {
            float4 u = sv_cluster_get(part + i, c);
            v[0] += u.x;
            v[1] += u.y;
            v[2] += u.z;
            v[3] += u.w;
        }
        sv_finish<S>(a, tile, i % SV_THREADS, i / SV_THREADS, v);
    }
    __syncwarp();
    cu_cluster_sync();
}

/* grid: blocks that share the tiles x cluster; a cluster of several blocks has one tile. */
template <typename S>
static __global__ void __launch_bounds__(SV_THREADS, 2) several_kernel(const __grid_constant__ skinny_args a)
{
    extern __shared__ uint4 ring[];
    int chunks = (a.k + SK_CHUNK - 1) / SK_CHUNK, blocks = (chunks + a.block_chunks - 1) / a.block_chunks;
    int first = (int)cu_cluster_rank() * a.block_chunks, end = min(first + a.block_chunks, chunks);
    int stride = gridDim.x / blocks, tile = blockIdx.x / blocks, x_chunk = first, slot = 0;
    int total = (a.tiles - tile + stride - 1) / stride * (end - first);
    several_source s = {NULL, NULL, tile, first, 0};
    sv_aim<S>(a, s);
#pragma unroll 1
    for (int i = 0; i < S::DEPTH - 1; i++)
        sv_fill_weights<S>(a, ring, s, first, end, stride);
    cu_let_next();
    cu_wait_before();
#pragma unroll 1
    for (int i = 0; i < S::DEPTH - 1; i++) {
        if (i < total)
            sv_fill_x<S>(a, ring, i, x_chunk);
        sk_commit();
        x_chunk = x_chunk + 1 == end ? first : x_chunk + 1;
    }
    float acc[S::MT][4] = {};
    for (int it = 0, left = end - first; it < total; it++) {
        int to = s.slot;
        sk_wait<S::DEPTH - 2>();
        __syncthreads();
        sv_fill_weights<S>(a, ring, s, first, end, stride);
        if (it + S::DEPTH - 1 < total)
            sv_fill_x<S>(a, ring, to, x_chunk);
        sk_commit();
        x_chunk = x_chunk + 1 == end ? first : x_chunk + 1;
        sv_multiply<S>(ring, slot, acc);
        slot = slot + 1 == S::DEPTH ? 0 : slot + 1;
        if (--left > 0 || blocks > 1)
            continue;
#pragma unroll
        for (int j = 0; j < S::MT; j++) {
            sv_finish<S>(a, tile, threadIdx.x, j, acc[j]);
            acc[j][0] = acc[j][1] = acc[j][2] = acc[j][3] = 0;
        }
        left = end - first;
        tile += stride;
    }
    if (blocks > 1)
        sv_combine<S>(a, ring, tile, (unsigned)blocks, acc);
}

/* ---- launching ---- */

/* Blocks of `cluster` at a time that the card holds, in clusters; 0 where it cannot be told. */
template <typename S> static int several_clusters(int cluster)
{
    static int known[SV_MOST_CLUSTER + 1];
    if (known[cluster] || cluster < 1)
        return known[cluster];
    cudaLaunchConfig_t config = {};
    cudaLaunchAttribute attr = {};
    config.gridDim = dim3((unsigned)cluster * 64);
    config.blockDim = dim3(SV_THREADS);
    config.dynamicSmemBytes = S::BYTES;
    attr.id = cudaLaunchAttributeClusterDimension;
    attr.val.clusterDim.x = (unsigned)cluster;
    attr.val.clusterDim.y = attr.val.clusterDim.z = 1;
    config.attrs = &attr;
    config.numAttrs = 1;
    int n = 0;
    if (cudaOccupancyMaxActiveClusters(&n, several_kernel<S>, &config) != cudaSuccess) {
        cudaGetLastError();
        n = 0;
    }
    return known[cluster] = n;
}

/* Blocks of a cluster: the most that stand on the card at once and have MIN_CHUNKS each; 1 where tiles fill it. */
template <typename S> static int several_cluster(int tiles, int chunks)
{
    enum { MIN_CHUNKS = 4 };
    int best = 1;
    for (int c = 2; cu_is_hopper() && c <= SV_MOST_CLUSTER; c++)
        if (chunks >= c * MIN_CHUNKS && tiles <= several_clusters<S>(c))
            best = c;
    return best;
}

template <typename S> static void several_launch(cudaStream_t stream, skinny_args a)
{
    static unsigned ready;
    int chunks = (a.k + SK_CHUNK - 1) / SK_CHUNK, first = 0, sms = cuda_sm_count();
    for (int i = 0; i < (S::SWIGLU ? 1 : a.n_parts); i++) {
        a.part[i].tile0 = first;
        first += (a.part[i].n + S::TILE - 1) / S::TILE;
    }
    a.tiles = first;
    if (!cu_done_here(&ready))
        cudaFuncSetAttribute(several_kernel<S>, cudaFuncAttributeMaxDynamicSharedMemorySize, cuda_block_shared_bytes());
    int cluster = several_cluster<S>(a.tiles, chunks);
    a.block_chunks = (chunks + cluster - 1) / cluster;
    cluster = (chunks + a.block_chunks - 1) / a.block_chunks;
    int waves = cluster > 1 ? 1 : (a.tiles + 2 * sms - 1) / (2 * sms), shares = (a.tiles + waves - 1) / waves;
    int alone = cluster == 1 && shares <= sms ? (cuda_block_shared_bytes() + 1024) / 2 : 0; /* not two on one SM */
    cu_launch_cluster(stream, (unsigned)cluster, several_kernel<S>, dim3((unsigned)(shares * cluster)),
                      dim3(SV_THREADS), S::BYTES > alone ? S::BYTES : alone, a);
}

template <bool SWIGLU> static void several_run(cudaStream_t stream, const skinny_args &a)
{
    if (a.rows <= 8)
        several_launch<several_shape<1, SWIGLU>>(stream, a);
    else if (a.rows <= 16)
        several_launch<several_shape<2, SWIGLU>>(stream, a);
    else if (a.rows <= 24)
        several_launch<several_shape<3, SWIGLU>>(stream, a);
    else if (a.rows <= 40)
        several_launch<several_shape<5, SWIGLU>>(stream, a);
    else
        several_launch<several_shape<8, SWIGLU>>(stream, a);
}

#endif
