/* Experts of few rows, a route at a time: the weights of the experts that were chosen are streamed once a route
 * (skinny.cuh). Two launches: silu(gate x) * up x of all routes, then each row's weighted sum of its routes' products.
 * bytes  routes * 6 * dim * ffn; flops 6 * routes * dim * ffn; bound: memory. check  ref, tolerance "bf16_experts". */
#include "kernels/cuda/skinny.cuh"

enum { MOST_TOP_K = 32, DOWN_DEPTH = 8, DOWN_RING = DOWN_DEPTH * 2 * SK_THREADS, MOST_INNER = 24576, MOST_ROWS = 8 };

typedef struct {
    const cu_bf16 *inner, *w; /* inner [rows * top_k, ffn]; w [experts][dim, ffn] */
    cu_bf16 *out;
    const int32_t *ids;
    const float *weights;
    int64_t ldw, w_step, ldo, ids_stride, weights_stride;
    int top_k, expert0, n_local, ffn, dim, pitch; /* pitch: pieces of an expert's part of x in shared memory */
    bool accumulate;
} down_args;

/* What a block knows of its row: of each route the expert's matrix, -1: not here, and the weight. */
typedef struct {
    int matrix[MOST_TOP_K];
    float weight[MOST_TOP_K];
    float red[2][SK_WARPS][8];
} down_space;

/* Step i of a warp is chunk warp + SK_WARPS * i of all routes' chunks, one after another. */
static __device__ __forceinline__ void fill_down(const down_args &a, const down_space &s, uint4 *ring, int slot,
                                                 int tile, int chunk, int each)
{
    int lane = threadIdx.x % 32, k = chunk / each, row = tile * 8 + lane / 4;
    int c = (chunk - k * each) * SK_CHUNK + lane % 4 * 8;
    int x = k < a.top_k && row < a.dim ? s.matrix[k] : -1;
    const cu_bf16 *w = a.w + (x < 0 ? 0 : x * a.w_step + row * a.ldw + c);
    uint4 *to = ring + slot * 2 * SK_THREADS + threadIdx.x;
#pragma unroll
    for (int h = 0; h < 2; h++) {
        bool there = x >= 0 && c + 32 * h < a.ffn;
        sk_copy(to + h * SK_THREADS, there ? w + 32 * h : a.w, there);
    }
    sk_commit();
}

static __device__ __forceinline__ void bring_inner(const down_args &a, const down_space &s, uint4 *x)
{
    int n = a.top_k * a.pitch;
#pragma unroll 4
    for (int i = threadIdx.x; i < n; i += SK_THREADS) {
        int k = i / a.pitch, p = i % a.pitch;
        bool there = s.matrix[k] >= 0 && p * 8 < a.ffn;
        x[i] = there ? *(const uint4 *)(a.inner + ((int64_t)blockIdx.y * a.top_k + k) * a.ffn + p * 8)
                     : make_uint4(0, 0, 0, 0);
    }
}

/* grid (blocks that share the tiles of 8 columns, rows) */
static __global__ void __launch_bounds__(SK_THREADS) down_kernel(const __grid_constant__ down_args a)
{
    extern __shared__ uint4 shared[];
    __shared__ down_space s;
    uint4 *ring = shared, *x = shared + DOWN_RING;
    int warp = threadIdx.x / 32, t = threadIdx.x % 4, each = (a.ffn + SK_CHUNK - 1) / SK_CHUNK;
    int steps = (each * a.top_k + SK_WARPS - 1) / SK_WARPS, tiles = (a.dim + 7) / 8, slot = 0, odd = 0;
    cu_begin();
    if ((int)threadIdx.x < a.top_k) {
        int e = a.ids[blockIdx.y * a.ids_stride + threadIdx.x] - a.expert0;
        s.matrix[threadIdx.x] = e >= 0 && e < a.n_local ? e : -1;
        s.weight[threadIdx.x] = a.weights[blockIdx.y * a.weights_stride + threadIdx.x];
    }
    __syncthreads();
    int to_tile = blockIdx.x, to_step = 0;
    for (int i = 0; i < DOWN_DEPTH; i++) {
        fill_down(a, s, ring, i, to_tile, to_tile < tiles ? warp + to_step * SK_WARPS : each * a.top_k, each);
        if (++to_step == steps) {
            to_step = 0;
            to_tile += gridDim.x;
        }
    }
    bring_inner(a, s, x);
    __syncthreads();
    for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x, odd ^= 1) {
        float acc[4] = {}, sum[2] = {};
        int last = 0;
        for (int i = 0; i < steps; i++) {
            int chunk = warp + i * SK_WARPS, k = chunk / each;
            sk_wait<DOWN_DEPTH - 1>();
            if (k != last && k < a.top_k) { /* a new expert: the old one's sum is weighed */
                if (s.matrix[last] >= 0) {
                    sum[0] += s.weight[last] * acc[0];
                    sum[1] += s.weight[last] * acc[1];
                }
                acc[0] = acc[1] = acc[2] = acc[3] = 0;
                last = k;
            }
            if (k < a.top_k) {
                const uint4 *v = ring + slot * 2 * SK_THREADS + threadIdx.x;
                const uint4 *from = x + k * a.pitch + (chunk - k * each) * 8 + t;
#pragma unroll
                for (int h = 0; h < 2; h++) {
                    uint4 p = from[4 * h], q = v[h * SK_THREADS];
                    sk_mma(acc, p.x, p.x, p.y, p.y, q.x, q.y);
                    sk_mma(acc, p.z, p.z, p.w, p.w, q.z, q.w);
                }
            }
            fill_down(a, s, ring, slot, to_tile, to_tile < tiles ? warp + to_step * SK_WARPS : each * a.top_k, each);
            if (++to_step == steps) {
                to_step = 0;
                to_tile += gridDim.x;
            }
            slot = slot + 1 == DOWN_DEPTH ? 0 : slot + 1;
        }
        if (s.matrix[last] >= 0) {
            sum[0] += s.weight[last] * acc[0];
            sum[1] += s.weight[last] * acc[1];
        }
        if (threadIdx.x % 32 < 4)
            *(float2 *)&s.red[odd][warp][2 * t] = make_float2(sum[0], sum[1]);
        __syncthreads();
        int row = tile * 8 + threadIdx.x;
        if (threadIdx.x < 8 && row < a.dim) {
            cu_bf16 *to = a.out + blockIdx.y * a.ldo + row;
            float v = a.accumulate ? cu_get(*to) : 0.f;
            for (int w = 0; w < SK_WARPS; w++)
                v += s.red[odd][w][threadIdx.x];
            cu_put(to, v);
        }
    }
}

static bool in_pieces(const mat *m, int n)
{
    for (int i = 0; i < n; i++)
        if ((uintptr_t)m[i].data % 16 || m[i].stride % 8)
            return false;
    return true;
}

bool cuda_few_has(const op_moe_experts *o)
{
    if (o->x.cols % 8 || o->ffn % 8 || o->n_local < 1 || o->ids.cols > MOST_TOP_K || o->x.rows > MOST_ROWS ||
        o->ids.cols * ((o->ffn + 63) / 64 * 64) > MOST_INNER || o->x.cols > 16384 || !in_pieces(&o->x, 1))
        return false;
    return !o->gate || !o->gate[0].data ||
           (in_pieces(o->gate, o->n_local) && in_pieces(o->up, o->n_local) && in_pieces(o->down, o->n_local));
}

static int64_t step_of(const mat *m, int n)
{
    return n > 1 ? (const cu_bf16 *)m[1].data - (const cu_bf16 *)m[0].data : 0;
}

static void launch_inner(kernel_ctx *ctx, const op_moe_experts *o)
{
    skinny_args a = {};
    a.x = (const cu_bf16 *)o->x.data;
    a.ldx = o->x.stride;
    a.rows = 1;
    a.k = (int)o->x.cols;
    a.n_parts = 2;
    for (int i = 0; i < 2; i++) {
        const mat *m = i ? o->up : o->gate;
        a.part[i].w = (const cu_bf16 *)m[0].data;
        a.part[i].ldw = m[0].stride;
        a.part[i].w_step = step_of(m, o->n_local);
        a.part[i].n = o->ffn;
    }
    a.inner = (cu_bf16 *)ctx->scratch;
    a.ld_inner = o->ffn;
    a.ids = (const int32_t *)o->ids.data;
    a.ids_stride = o->ids.stride;
    a.top_k = (int)o->ids.cols;
    a.expert0 = o->expert0;
    a.n_local = o->n_local;
    skinny_launch<skinny_shape<2, 1, 4, false, true, true>>(cu_stream(ctx), a, (int)(o->x.rows * o->ids.cols), 3);
}

tpl_code cuda_few_experts(kernel_ctx *ctx, const op_call *call, tpl_err *e)
{
    static unsigned ready;
    const op_moe_experts *o = &call->moe_experts;
    down_args a = {};
    if (o->x.rows == 0)
        return TPL_OK;
    launch_inner(ctx, o);
    TPL_TRY(cu_launched("moe_experts", e));
    a.inner = (const cu_bf16 *)ctx->scratch;
    a.w = (const cu_bf16 *)o->down[0].data;
    a.ldw = o->down[0].stride;
    a.w_step = step_of(o->down, o->n_local);
    a.out = (cu_bf16 *)o->out.data;
    a.ldo = o->out.stride;
    a.ids = (const int32_t *)o->ids.data;
    a.ids_stride = o->ids.stride;
    a.weights = (const float *)o->weights.data;
    a.weights_stride = o->weights.stride;
    a.top_k = (int)o->ids.cols;
    a.expert0 = o->expert0;
    a.n_local = o->n_local;
    a.ffn = o->ffn;
    a.dim = (int)o->x.cols;
    a.pitch = (o->ffn + SK_CHUNK - 1) / SK_CHUNK * 8;
    a.accumulate = o->accumulate;
    size_t bytes = ((size_t)DOWN_RING + (size_t)(a.top_k * a.pitch)) * 16;
    if (!cu_done_here(&ready))
        cudaFuncSetAttribute(down_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             (DOWN_RING + MOST_INNER / 8) * 16);
    int tiles = (a.dim + 7) / 8, most = 2 * cuda_sm_count() / (int)o->x.rows;
    dim3 grid((unsigned)(tiles < most ? tiles : most < 1 ? 1 : most), (unsigned)o->x.rows);
    cu_launch(cu_stream(ctx), down_kernel, grid, dim3(SK_THREADS), bytes, a);
    return cu_launched("moe_experts", e);
}
