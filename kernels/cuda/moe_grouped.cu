/* Experts, second rung: grouped products on matrix units for many rows. Routes are sorted by expert on the card; the
 * number of tiles that a launch covers is an upper bound known from the shape, and blocks past the last tile end at
 * once. bytes  experts hit * 6 * dim * ffn; flops 6 * routes * dim * ffn; bound: memory until some tens of routes an
 * expert check  ref, tolerance "bf16_experts". */
#include "kernels/cuda/flash.cuh"

enum { TILE_M = 64, TILE_N = 64, TILE_K = 64, THREADS = 128, STAGES = 3, SORT_THREADS = 1024, MAX_EXPERTS = 1024 };
enum { PITCH = TILE_K / 8, TILE_CHUNKS = 64 * PITCH }; /* an operand's tile: 64 rows of 8 chunks */

/* Where a card keeps the sorted routes. */
typedef struct {
    int32_t *begin; /* [n_local + 1] first sorted route of an expert */
    int32_t *tile;  /* [n_local + 1] first tile of an expert */
    int32_t *route; /* [rows * top_k] route (row * top_k + k) in sorted order */
    cu_bf16 *inner; /* [rows * top_k, ffn] in sorted order */
    float *y;       /* [rows * top_k, dim] by route */
} group_space;

static char *cut(char *base, size_t *used, size_t bytes)
{
    char *at = base ? base + *used : NULL;
    *used += (bytes + 255) / 256 * 256;
    return at;
}

static size_t lay(const op_moe_experts *o, void *base, group_space *s)
{
    size_t used = 0, routes = (size_t)(o->x.rows * o->ids.cols), n = (size_t)o->n_local + 1;
    s->begin = (int32_t *)cut((char *)base, &used, n * sizeof(int32_t));
    s->tile = (int32_t *)cut((char *)base, &used, n * sizeof(int32_t));
    s->route = (int32_t *)cut((char *)base, &used, routes * sizeof(int32_t));
    s->inner = (cu_bf16 *)cut((char *)base, &used, routes * (size_t)o->ffn * sizeof(cu_bf16));
    s->y = (float *)cut((char *)base, &used, routes * (size_t)o->x.cols * sizeof(float));
    return used;
}

size_t cuda_scratch_moe_experts(const op_call *call)
{
    const op_moe_experts *o = &call->moe_experts;
    group_space s;
    size_t simple = (size_t)(o->x.rows * o->ids.cols) * (size_t)o->ffn * dtype_bytes(o->out.dtype) + 256;
    size_t grouped = o->out.dtype == DT_BF16 ? lay(o, NULL, &s) : 0;
    return simple > grouped ? simple : grouped;
}

bool cuda_grouped_has(const op_moe_experts *o)
{
    bool shapes = o->ffn % TILE_N == 0 && o->x.cols % TILE_N == 0 && o->n_local <= MAX_EXPERTS && o->n_local > 0;
    if (!shapes || !flash_aligned(o->x.data, o->x.stride, 0, 0))
        return false;
    for (int i = 0; o->gate && o->gate[0].data && i < o->n_local; i++)
        if (!flash_aligned(o->gate[i].data, o->gate[i].stride, 0, 0) ||
            !flash_aligned(o->up[i].data, o->up[i].stride, 0, 0) ||
            !flash_aligned(o->down[i].data, o->down[i].stride, 0, 0))
            return false;
    return true;
}

/* One block: counts, sums up, and places each route in its expert's range in the order of routes, so that results do
 * not depend on timing: a thread owns an expert and reads all routes. */
static __global__ void __launch_bounds__(SORT_THREADS)
    sort_kernel(const int32_t *ids, int64_t ids_stride, int top_k, int routes, int expert0, int n_local, group_space s)
{
    __shared__ int32_t count[MAX_EXPERTS + 1], tiles[MAX_EXPERTS + 1];
    for (int x = threadIdx.x; x < n_local; x += SORT_THREADS)
        count[x] = 0;
    __syncthreads();
    for (int i = threadIdx.x; i < routes; i += SORT_THREADS) {
        int x = ids[(int64_t)(i / top_k) * ids_stride + i % top_k] - expert0;
        if (x >= 0 && x < n_local)
            atomicAdd(&count[x], 1);
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        int sum = 0, n_tiles = 0;
        for (int x = 0; x <= n_local; x++) {
            int n = x < n_local ? count[x] : 0;
            count[x] = sum;
            tiles[x] = n_tiles;
            sum += n;
            n_tiles += (n + TILE_M - 1) / TILE_M;
        }
    }
    __syncthreads();
    for (int x = threadIdx.x; x <= n_local; x += SORT_THREADS) {
        s.begin[x] = count[x];
        s.tile[x] = tiles[x];
    }
    for (int x = threadIdx.x / 32; x < n_local; x += SORT_THREADS / 32) {
        int at = count[x], end = count[x + 1], lane = threadIdx.x % 32;
        for (int i0 = 0; i0 < routes && at < end; i0 += 32) {
            int i = i0 + lane;
            bool mine = i < routes && ids[(int64_t)(i / top_k) * ids_stride + i % top_k] - expert0 == x;
            unsigned all = __ballot_sync(0xffffffffu, mine);
            if (mine)
                s.route[at + __popc(all & ((1u << lane) - 1))] = i;
            at += __popc(all);
        }
    }
}

typedef struct {
    const cu_bf16 *a; /* rows of x, or of inner */
    int64_t a_stride;
    const cu_bf16 *b, *b2; /* experts' matrices [n, k]; b2 NULL: one product, else silu(a b) * (a b2) */
    int64_t b_stride, b_step, b2_stride, b2_step;
    int n, k, top_k, n_local;
    bool by_row; /* a's rows are batch rows: route / top_k; else sorted places */
    group_space s;
} group_args;

/* The expert of a tile, by halving: s.tile is increasing. */
static __device__ __forceinline__ int expert_of(const group_args &g, int tile)
{
    int lo = 0, hi = g.n_local;
    while (hi - lo > 1) {
        int mid = (lo + hi) / 2;
        if (g.s.tile[mid] <= tile)
            lo = mid;
        else
            hi = mid;
    }
    return lo;
}

/* Loads [64, TILE_K] of A and B (and B2) at column k0. rows: element offsets of A's rows, -1: none. */
static __device__ __forceinline__ void load_stage(const group_args &g, const int64_t *rows, const cu_bf16 *b,
                                                  const cu_bf16 *b2, int k0, uint4 *stage)
{
    for (int i = threadIdx.x; i < TILE_CHUNKS; i += THREADS) {
        int r = i / PITCH, c = i % PITCH, at = chunk_at(r, c, PITCH);
        bool there = rows[r] >= 0;
        copy_chunk(stage + at, g.a + (there ? rows[r] : 0) + k0 + c * 8, there);
        copy_chunk(stage + TILE_CHUNKS + at, b + r * g.b_stride + k0 + c * 8, true);
        if (b2)
            copy_chunk(stage + 2 * TILE_CHUNKS + at, b2 + r * g.b2_stride + k0 + c * 8, true);
    }
}

/* Each of the 4 warps: 16 rows x 64 columns. */
static __device__ __forceinline__ void multiply_stage(const uint4 *a, const uint4 *b, float c[8][4])
{
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
    for (int step = 0; step < TILE_K / 16; step++) {
        unsigned x[4], w[4];
        load_x4(x, a + chunk_at(warp * 16 + lane % 16, step * 2 + lane / 16, PITCH));
#pragma unroll
        for (int n = 0; n < 8; n += 2) {
            load_x4(w, b + chunk_at(n * 8 + lane / 16 * 8 + lane % 8, step * 2 + lane / 8 % 2, PITCH));
            mma(c[n], x, w);
            mma(c[n + 1], x, w + 2);
        }
    }
}

static __device__ __forceinline__ void store_tile(const group_args &g, int first, int n_rows, int n0,
                                                  const float c[8][4], const float u[8][4])
{
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        int r = warp * 16 + lane / 4 + half * 8;
        if (r >= n_rows)
            continue;
#pragma unroll
        for (int n = 0; n < 8; n++) {
            int col = n0 + n * 8 + lane % 4 * 2;
            float p = c[n][2 * half], q = c[n][2 * half + 1];
            if (g.b2)
                *(unsigned *)(g.s.inner + (int64_t)(first + r) * g.n + col) =
                    pack(p / (1.f + expf(-p)) * u[n][2 * half], q / (1.f + expf(-q)) * u[n][2 * half + 1]);
            else
                *(float2 *)(g.s.y + (int64_t)g.s.route[first + r] * g.n + col) = make_float2(p, q);
        }
    }
}

/* grid (columns / TILE_N, most tiles) */
static __global__ void __launch_bounds__(THREADS) group_kernel(const __grid_constant__ group_args g)
{
    extern __shared__ uint4 space[];
    __shared__ int64_t rows[TILE_M];
    if ((int)blockIdx.y >= g.s.tile[g.n_local])
        return;
    int x = expert_of(g, blockIdx.y), first = g.s.begin[x] + (blockIdx.y - g.s.tile[x]) * TILE_M;
    int n_rows = min(g.s.begin[x + 1] - first, (int)TILE_M), n0 = blockIdx.x * TILE_N, operands = g.b2 ? 3 : 2;
    if (threadIdx.x < TILE_M) {
        int at = first + threadIdx.x;
        rows[threadIdx.x] = (int)threadIdx.x < n_rows ? (g.by_row ? g.s.route[at] / g.top_k : at) * g.a_stride : -1;
    }
    __syncthreads();
    const cu_bf16 *b = g.b + x * g.b_step + n0 * g.b_stride,
                  *b2 = g.b2 ? g.b2 + x * g.b2_step + n0 * g.b2_stride : NULL;
    float c[8][4] = {}, u[8][4] = {};
    int n_steps = g.k / TILE_K;
    for (int i = 0; i < STAGES - 1; i++) {
        if (i < n_steps)
            load_stage(g, rows, b, b2, i * TILE_K, space + i * operands * TILE_CHUNKS);
        copies_commit();
    }
    for (int i = 0; i < n_steps; i++) {
        copies_wait<STAGES - 2>();
        __syncthreads();
        int ahead = i + STAGES - 1;
        if (ahead < n_steps)
            load_stage(g, rows, b, b2, ahead * TILE_K, space + ahead % STAGES * operands * TILE_CHUNKS);
        copies_commit();
        const uint4 *stage = space + i % STAGES * operands * TILE_CHUNKS;
        multiply_stage(stage, stage + TILE_CHUNKS, c);
        if (b2)
            multiply_stage(stage, stage + 2 * TILE_CHUNKS, u);
    }
    store_tile(g, first, n_rows, n0, c, u);
}

/* grid (rows): a row's routes in order. */
static __global__ void gather_kernel(const float *y, const int32_t *ids, int64_t ids_stride, const float *weights,
                                     int64_t weights_stride, int top_k, int expert0, int n_local, cu_bf16 *out,
                                     int64_t out_stride, int dim, bool accumulate)
{
    int64_t row = blockIdx.x;
    for (int c = threadIdx.x; c < dim; c += blockDim.x) {
        float sum = accumulate ? cu_get(out[row * out_stride + c]) : 0.f;
        for (int k = 0; k < top_k; k++) {
            int x = ids[row * ids_stride + k] - expert0;
            if (x >= 0 && x < n_local)
                sum += weights[row * weights_stride + k] * y[(row * top_k + k) * dim + c];
        }
        cu_put(out + row * out_stride + c, sum);
    }
}

static tpl_code launch_group(kernel_ctx *ctx, const group_args &g, int routes, tpl_err *e)
{
    static unsigned ready;
    size_t bytes = (size_t)STAGES * 3 * TILE_CHUNKS * 16;
    int most = g.n_local < routes ? g.n_local : routes;
    dim3 grid((unsigned)(g.n / TILE_N), (unsigned)(most + routes / TILE_M));
    if (!cu_done_here(&ready) &&
        cudaFuncSetAttribute(group_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes) != cudaSuccess)
        return tpl_fail(e, TPL_E_DEVICE, "moe_experts", "needs %zu bytes of shared memory a block", bytes);
    group_kernel<<<grid, THREADS, bytes, cu_stream(ctx)>>>(g);
    return cu_launched("moe_experts", e);
}

static int64_t step_of(const mat *m, int n)
{
    return n > 1 ? (const cu_bf16 *)m[1].data - (const cu_bf16 *)m[0].data : 0;
}

tpl_code cuda_grouped_experts(kernel_ctx *ctx, const op_call *call, tpl_err *e)
{
    const op_moe_experts *o = &call->moe_experts;
    int top_k = (int)o->ids.cols, routes = (int)o->x.rows * top_k, n = o->n_local;
    const int32_t *ids = (const int32_t *)o->ids.data;
    if (routes <= 8 * top_k) /* so few rows share hardly a weight */
        return cuda_few_has(o) ? cuda_few_experts(ctx, call, e) : cuda_moe_experts(ctx, call, e);
    group_args g = {};
    lay(o, ctx->scratch, &g.s);
    sort_kernel<<<1, SORT_THREADS, 0, cu_stream(ctx)>>>(ids, o->ids.stride, top_k, routes, o->expert0, n, g.s);
    TPL_TRY(cu_launched("moe_experts", e));
    group_args in = g, out = g;
    in.a = (const cu_bf16 *)o->x.data;
    in.a_stride = o->x.stride;
    in.by_row = true;
    in.b = (const cu_bf16 *)o->gate[0].data;
    in.b_stride = o->gate[0].stride;
    in.b_step = step_of(o->gate, n);
    in.b2 = (const cu_bf16 *)o->up[0].data;
    in.b2_stride = o->up[0].stride;
    in.b2_step = step_of(o->up, n);
    in.n = o->ffn;
    in.k = (int)o->x.cols;
    in.top_k = out.top_k = top_k;
    in.n_local = out.n_local = n;
    TPL_TRY(launch_group(ctx, in, routes, e));
    out.a = g.s.inner;
    out.a_stride = o->ffn;
    out.b = (const cu_bf16 *)o->down[0].data;
    out.b_stride = o->down[0].stride;
    out.b_step = step_of(o->down, n);
    out.n = (int)o->x.cols;
    out.k = o->ffn;
    TPL_TRY(launch_group(ctx, out, routes, e));
    gather_kernel<<<(unsigned)o->x.rows, 256, 0, cu_stream(ctx)>>>(
        g.s.y, ids, o->ids.stride, (const float *)o->weights.data, o->weights.stride, top_k, o->expert0, n,
        (cu_bf16 *)o->out.data, o->out.stride, (int)o->out.cols, o->accumulate);
    return cu_launched("moe_experts", e);
}
