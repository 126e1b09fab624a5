/* Experts of few rows, a route at a time: the weights of the experts that were chosen are streamed once a route
 * (skinny.cuh). Two launches: silu(gate x) * up x of all routes, then each row's weighted sum of its routes' products;
 * experts that all rows go to, and the residual add, are done along.
 * bytes  routes * 6 * dim * ffn; flops 6 * routes * dim * ffn; bound: memory. check  ref, tolerance "bf16_experts". */
#include "kernels/cuda/skinny.cuh"

#include "kernels/cuda/joins.h"

enum {
    MOST_SEGMENTS = 32,
    DOWN_DEPTH = 8,
    DOWN_RING = DOWN_DEPTH * 2 * SK_THREADS,
    MOST_INNER = 24576,
    MOST_ROWS = 2,
    MOST_DIM = 4096
};

/* Segments: first n_shared of the experts that all rows go to, then a row's routes. */
typedef struct {
    const cu_bf16 *inner, *w;         /* inner [rows * top_k, ffn]; w [experts][dim, ffn] */
    const cu_bf16 *shared, *w_shared; /* [rows, n_shared * ffn], [dim, n_shared * ffn] */
    cu_bf16 *out, *residual;          /* residual += out; or NULL */
    const int32_t *ids;
    const float *weights;
    int64_t ldw, w_step, ldw_shared, ld_shared, ldo, ldr, ids_stride, weights_stride;
    int top_k, n_shared, expert0, n_local, ffn, dim, pitch; /* pitch: pieces of a segment of x in shared memory */
    bool accumulate;
} down_args;

typedef struct {
    const cu_bf16 *w[MOST_SEGMENTS], *x[MOST_SEGMENTS]; /* NULL: not here */
    float weight[MOST_SEGMENTS];
    float red[2][SK_WARPS][8];
} down_space;

/* What segment k is. Routes are read past the first-level cache, as this may be before the launch in front has ended;
 * that launch let this one begin only after it had waited for the routes. */
static __device__ __forceinline__ void set_segment(const down_args &a, down_space &s, int k)
{
    int64_t row = blockIdx.y;
    if (k < a.n_shared) {
        s.w[k] = a.w_shared + (int64_t)k * a.ffn;
        s.x[k] = a.shared + row * a.ld_shared + (int64_t)k * a.ffn;
        s.weight[k] = 1;
        return;
    }
    int j = k - a.n_shared, e = __ldcg(a.ids + row * a.ids_stride + j) - a.expert0;
    bool here = e >= 0 && e < a.n_local;
    s.w[k] = here ? a.w + e * a.w_step : NULL;
    s.x[k] = here ? a.inner + (row * a.top_k + j) * a.ffn : NULL;
    s.weight[k] = __ldcg(a.weights + row * a.weights_stride + j);
}

/* Where a warp's steps have come to: step i is chunk warp + SK_WARPS * i of all segments' chunks, one after another. */
typedef struct {
    int tile, step, slot;
} down_place;

static __device__ __forceinline__ void fill_down(const down_args &a, const down_space &s, uint4 *ring, down_place &p,
                                                 int each, int steps, int tiles)
{
    int lane = threadIdx.x % 32, chunk = threadIdx.x / 32 + p.step * SK_WARPS, k = chunk / each;
    int c = (chunk - k * each) * SK_CHUNK + lane % 4 * 8, row = p.tile * 8 + lane / 4;
    bool there = p.tile < tiles && k < a.n_shared + a.top_k && row < a.dim && s.w[k];
    const cu_bf16 *w = there ? s.w[k] + row * (k < a.n_shared ? a.ldw_shared : a.ldw) + c : a.w;
    uint4 *to = ring + p.slot * 2 * SK_THREADS + threadIdx.x;
#pragma unroll
    for (int h = 0; h < 2; h++) {
        bool inside = there && c + 32 * h < a.ffn;
        copy_stream(to + h * SK_THREADS, inside ? w + 32 * h : a.w, inside);
    }
    copies_commit();
    p.slot = p.slot + 1 == DOWN_DEPTH ? 0 : p.slot + 1;
    if (++p.step == steps) {
        p.step = 0;
        p.tile += gridDim.x;
    }
}

static __device__ __forceinline__ void bring_inner(const down_args &a, const down_space &s, uint4 *x)
{
    int n = (a.n_shared + a.top_k) * a.pitch;
#pragma unroll 8
    for (int i = threadIdx.x; i < n; i += SK_THREADS) {
        int k = i / a.pitch, p = i % a.pitch;
        x[i] = s.x[k] && p * 8 < a.ffn ? *(const uint4 *)(s.x[k] + p * 8) : make_uint4(0, 0, 0, 0);
    }
}

static __device__ __forceinline__ void weigh(const down_space &s, int k, float acc[4], float sum[2])
{
    if (s.w[k]) {
        sum[0] += s.weight[k] * acc[0];
        sum[1] += s.weight[k] * acc[1];
    }
    acc[0] = acc[1] = acc[2] = acc[3] = 0;
}

/* What a tile's sums are added to. */
typedef struct {
    float out, residual;
} down_before;

static __device__ __forceinline__ down_before before_down(const down_args &a, int tile)
{
    int row = tile * 8 + threadIdx.x;
    down_before b = {0, 0};
    if (threadIdx.x < 8 && row < a.dim) {
        b.out = a.accumulate ? cu_get(a.out[blockIdx.y * a.ldo + row]) : 0.f;
        b.residual = a.residual ? cu_get(a.residual[blockIdx.y * a.ldr + row]) : 0.f;
    }
    return b;
}

static __device__ __forceinline__ void store_down(const down_args &a, down_space &s, int tile, int odd, down_before b)
{
    int row = tile * 8 + threadIdx.x;
    if (threadIdx.x >= 8 || row >= a.dim)
        return;
    float v = b.out;
    for (int w = 0; w < SK_WARPS; w++)
        v += s.red[odd][w][threadIdx.x];
    v = sk_round(v);
    cu_put(a.out + blockIdx.y * a.ldo + row, v);
    if (a.residual)
        cu_put(a.residual + blockIdx.y * a.ldr + row, b.residual + v);
}

/* grid (blocks that share the tiles of 8 columns, rows) */
static __global__ void __launch_bounds__(SK_THREADS) down_kernel(const __grid_constant__ down_args a)
{
    extern __shared__ uint4 shared[];
    __shared__ down_space s;
    uint4 *ring = shared, *x = shared + DOWN_RING;
    int warp = threadIdx.x / 32, t = threadIdx.x % 4, each = (a.ffn + SK_CHUNK - 1) / SK_CHUNK,
        n = a.n_shared + a.top_k;
    int steps = (each * n + SK_WARPS - 1) / SK_WARPS, tiles = (a.dim + 7) / 8, slot = 0, odd = 0;
    down_place to = {(int)blockIdx.x, 0, 0};
    cu_let_next();
    if ((int)threadIdx.x < n)
        set_segment(a, s, threadIdx.x);
    __syncthreads();
    for (int i = 0; i < DOWN_DEPTH; i++)
        fill_down(a, s, ring, to, each, steps, tiles);
    cu_wait_before();
    bring_inner(a, s, x);
    __syncthreads();
    for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x, odd ^= 1) {
        float acc[4] = {}, sum[2] = {};
        down_before before = before_down(a, tile);
        int last = warp / each;
        for (int i = 0; i < steps; i++) {
            int chunk = warp + i * SK_WARPS, k = chunk / each;
            copies_wait<DOWN_DEPTH - 1>();
            if (k < n) {
                if (k != last)
                    weigh(s, last, acc, sum);
                last = k;
                const uint4 *v = ring + slot * 2 * SK_THREADS + threadIdx.x;
                const uint4 *from = x + k * a.pitch + (chunk - k * each) * 8 + t;
#pragma unroll
                for (int h = 0; h < 2; h++) {
                    uint4 p = from[4 * h], q = v[h * SK_THREADS];
                    sk_mma(acc, p.x, p.x, p.y, p.y, q.x, q.y);
                    sk_mma(acc, p.z, p.z, p.w, p.w, q.z, q.w);
                }
            }
            fill_down(a, s, ring, to, each, steps, tiles);
            slot = slot + 1 == DOWN_DEPTH ? 0 : slot + 1;
        }
        if (last < n)
            weigh(s, last, acc, sum);
        if (threadIdx.x % 32 < 4)
            *(float2 *)&s.red[odd][warp][2 * t] = make_float2(sum[0], sum[1]);
        __syncthreads();
        store_down(a, s, tile, odd, before);
    }
}

/* The experts that all rows go to: the calls after the routed ones, and the residual add. */
typedef struct {
    const op_matmul *gate, *up, *down;
    const op_silu_mul *silu;
    const op_add *add;
    int n; /* in experts' widths */
} shared_calls;

static bool in_pieces(const mat *m, int n)
{
    for (int i = 0; i < n; i++)
        if ((uintptr_t)m[i].data % 16 || m[i].stride % 8)
            return false;
    return true;
}

bool cuda_few_has(const op_moe_experts *o)
{
    if (o->x.cols % 8 || o->ffn % 8 || o->n_local < 1 || o->ids.cols > MOST_SEGMENTS || o->x.rows > MOST_ROWS ||
        o->ids.cols * ((o->ffn + 63) / 64 * 64) > MOST_INNER || o->x.cols > MOST_DIM || !in_pieces(&o->x, 1))
        return false;
    return !o->gate || !o->gate[0].data ||
           (in_pieces(o->gate, o->n_local) && in_pieces(o->up, o->n_local) && in_pieces(o->down, o->n_local));
}

static int64_t step_of(const mat *m, int n)
{
    return n > 1 ? (const cu_bf16 *)m[1].data - (const cu_bf16 *)m[0].data : 0;
}

static void set_shared(skinny_args *a, const shared_calls *c)
{
    const op_matmul *both[2] = {c->gate, c->up};
    for (int i = 0; i < 2; i++) {
        skinny_part *p = &a->part[2 + i];
        *p = a->part[i];
        p->w = (const cu_bf16 *)both[i]->w.data;
        p->ldw = both[i]->w.stride;
        p->w_step = p->n * p->ldw;
        p->out = both[i]->out.data == c->silu->out.data ? NULL : both[i]->out.data;
        p->ldo = both[i]->out.stride;
    }
    a->shared = (cu_bf16 *)c->silu->out.data;
    a->ld_shared = c->silu->out.stride;
    a->n_shared = c->n;
}

/* False: shared memory does not do for rows that long. */
static bool launch_inner(kernel_ctx *ctx, const op_moe_experts *o, const shared_calls *c)
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
    if (c)
        set_shared(&a, c);
    return skinny_launch<skinny_shape<2, 3, false, true, true>>(ctx, a, (int)o->x.rows * (a.top_k + a.n_shared), 64);
}

static void launch_down(kernel_ctx *ctx, const op_moe_experts *o, const shared_calls *c)
{
    static unsigned ready;
    down_args a = {};
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
    if (c) {
        a.n_shared = c->n;
        a.shared = (const cu_bf16 *)c->silu->out.data;
        a.ld_shared = c->silu->out.stride;
        a.w_shared = (const cu_bf16 *)c->down->w.data;
        a.ldw_shared = c->down->w.stride;
        a.residual = c->add ? (cu_bf16 *)c->add->out.data : NULL;
        a.ldr = c->add ? c->add->out.stride : 0;
    }
    size_t bytes = ((size_t)DOWN_RING + (size_t)((a.n_shared + a.top_k) * a.pitch)) * 16;
    if (!cu_done_here(&ready))
        cudaFuncSetAttribute(down_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             (DOWN_RING + MOST_INNER / 8) * 16);
    int tiles = (a.dim + 7) / 8, most = 2 * cuda_sm_count() / (int)o->x.rows;
    dim3 grid((unsigned)(tiles < most ? tiles : most < 1 ? 1 : most), (unsigned)o->x.rows);
    cu_launch(cu_stream(ctx), down_kernel, grid, dim3(SK_THREADS), bytes, a);
}

static tpl_code run(kernel_ctx *ctx, const op_moe_experts *o, const shared_calls *c, tpl_err *e)
{
    if (o->x.rows == 0)
        return TPL_OK;
    if (!launch_inner(ctx, o, c))
        return tpl_fail(e, TPL_E_UNSUPPORTED, "moe_experts", "a row of %lld does not fit a block's shared memory",
                        (long long)o->x.cols);
    TPL_TRY(cu_launched("moe_experts", e));
    launch_down(ctx, o, c);
    return cu_launched("moe_experts", e);
}

tpl_code cuda_few_experts(kernel_ctx *ctx, const op_call *call, tpl_err *e)
{
    return run(ctx, &call->moe_experts, NULL, e);
}

/* ---- with the experts that all rows go to ---- */

static bool same_place(const mat *a, const mat *b)
{
    return a->data == b->data && a->cols == b->cols && a->rows == b->rows && a->stride == b->stride;
}

static bool is_wide(const op_matmul *o, const mat *x, int64_t n, int64_t k)
{
    return same_place(&o->x, x) && o->w.rows == n && o->w.cols == k && !o->bias.data && in_pieces(&o->w, 1) &&
           o->w.dtype == DT_BF16 && o->out.dtype == DT_BF16;
}

static shared_calls shared_of(const op_call *calls, int n)
{
    shared_calls c = {};
    c.gate = &calls[1].matmul;
    c.up = &calls[2].matmul;
    c.silu = &calls[3].silu_mul;
    c.down = &calls[4].matmul;
    c.add = n > 5 ? &calls[5].add : NULL;
    c.n = (int)(c.gate->w.rows / calls[0].moe_experts.ffn);
    return c;
}

int cuda_join_experts_takes(const op_call *calls, int n)
{
    const op_moe_experts *o = &calls[0].moe_experts;
    static const op_kind kinds[] = {OP_MOE_EXPERTS, OP_MATMUL, OP_MATMUL, OP_SILU_MUL, OP_MATMUL};
    for (int i = 0; i < 5; i++)
        if (n < 5 || calls[i].kind != kinds[i])
            return 0;
    if (o->x.dtype != DT_BF16 || o->accumulate || o->x.rows < 1 || !cuda_few_has(o) || !kernel_find("cuda", calls))
        return 0;
    shared_calls c = shared_of(calls, n);
    int64_t f = (int64_t)c.n * o->ffn, dim = o->x.cols;
    bool fits = c.n > 0 && is_wide(c.gate, &o->x, f, dim) && is_wide(c.up, &o->x, f, dim) &&
                is_wide(c.down, &c.silu->out, dim, f) && !c.gate->accumulate && !c.up->accumulate &&
                c.down->accumulate && same_place(&c.down->out, &o->out) && same_place(&c.silu->gate, &c.gate->out) &&
                same_place(&c.silu->up, &c.up->out) && c.gate->out.stride == c.up->out.stride &&
                c.silu->out.data != c.up->out.data && in_pieces(&c.silu->out, 1) &&
                o->ids.cols + c.n <= MOST_SEGMENTS && (o->ids.cols + c.n) * ((o->ffn + 63) / 64 * 64) <= MOST_INNER;
    if (!fits)
        return 0;
    bool adds = n > 5 && calls[5].kind == OP_ADD && same_place(&calls[5].add.x, &o->out) &&
                calls[5].add.out.data != o->out.data && calls[5].add.out.data != o->x.data;
    return adds ? 6 : 5;
}

tpl_code cuda_join_experts(kernel_ctx *ctx, const op_call *calls, int n, tpl_err *e)
{
    shared_calls c = shared_of(calls, n);
    return run(ctx, &calls[0].moe_experts, &c, e);
}
