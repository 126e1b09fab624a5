/* Routing of few rows in one launch, with the norm in front of it: a cluster a row. Its warps have an expert's row of
 * the router each, on its way before the norm's input is awaited; the first block's first warp then chooses. bytes
 * router; bound: launches. check  the calls one by one. */
#include "kernels/cuda/copies.cuh"
#include "kernels/cuda/launch.cuh"

#include "kernels/cuda/joins.h"

enum { BLOCKS = 8, WARPS = 8, THREADS = 32 * WARPS, LANE_EXPERTS = 4, MOST_EXPERTS = 32 * LANE_EXPERTS };
enum { PIECES = 8, MOST_COLS = PIECES * 256, MOST_ROWS = 8 };

typedef struct {
    const cu_bf16 *x, *gamma, *w;
    cu_bf16 *xn; /* NULL: no norm in front */
    const float *bias;
    int32_t *ids;
    float *weights;
    int64_t ldx, ld_xn, ldw, ids_stride, weights_stride;
    int k, n, top_k;
    float eps, scale;
    bool sigmoid, normalise;
} route_few_args;

/* This lane's pieces of a row of k values. */
static __device__ __forceinline__ void load_pieces(const cu_bf16 *row, int k, bool there, uint4 v[PIECES])
{
#pragma unroll
    for (int i = 0; i < PIECES; i++) {
        int c = (threadIdx.x % 32 + 32 * i) * 8;
        v[i] = there && c < k ? *(const uint4 *)(row + c) : make_uint4(0, 0, 0, 0);
    }
}

/* The same to shared memory; a lane reads what it copied itself. */
static __device__ __forceinline__ void copy_pieces(const cu_bf16 *row, int k, bool there, uint4 to[MOST_COLS / 8])
{
#pragma unroll
    for (int i = 0; i < PIECES; i++) {
        int p = threadIdx.x % 32 + 32 * i;
        copy_stream(to + p, there && p * 8 < k ? row + p * 8 : row, there && p * 8 < k);
    }
}

/* The greatest of a warp's values, the lowest expert among equals; lane l has experts l, l + 32, ... */
static __device__ __forceinline__ int best_expert(const float v[LANE_EXPERTS], unsigned taken, int n)
{
    float best = -INFINITY;
    int at = n;
#pragma unroll
    for (int j = 0; j < LANE_EXPERTS; j++) {
        int e = threadIdx.x % 32 + 32 * j;
        if (e < n && !(taken >> j & 1) && (at == n || v[j] > best)) {
            best = v[j];
            at = e;
        }
    }
    cu_warp_best(&best, &at, n);
    return at;
}

static __device__ __forceinline__ void score(const route_few_args &a, float s[LANE_EXPERTS])
{
    float top = -INFINITY, sum = 0;
#pragma unroll
    for (int j = 0; j < LANE_EXPERTS; j++)
        if ((int)threadIdx.x + 32 * j < a.n)
            top = fmaxf(top, s[j]);
    for (int d = 16; d > 0; d /= 2)
        top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, d));
#pragma unroll
    for (int j = 0; j < LANE_EXPERTS; j++) {
        bool there = (int)threadIdx.x + 32 * j < a.n;
        s[j] = a.sigmoid ? 1.f / (1.f + expf(-s[j])) : there ? expf(s[j] - top) : 0.f;
        sum += s[j];
    }
    sum = cu_warp_sum(sum);
#pragma unroll
    for (int j = 0; j < LANE_EXPERTS; j++)
        s[j] = a.sigmoid ? s[j] : s[j] / sum;
}

/* One warp: scores, the best top_k, their weights. logits: of a block's experts, at the same place in every block. */
static __device__ __forceinline__ void choose(const route_few_args &a, int row, const float *logits)
{
    float s[LANE_EXPERTS], v[LANE_EXPERTS], mine = 0, sum = 0;
    unsigned taken = 0;
    int lane = threadIdx.x;
#pragma unroll
    for (int j = 0; j < LANE_EXPERTS; j++) {
        int e = lane + 32 * j;
        s[j] = e < a.n ? cu_cluster_get(logits + e / BLOCKS, e % BLOCKS) : 0.f;
    }
    score(a, s);
#pragma unroll
    for (int j = 0; j < LANE_EXPERTS; j++)
        v[j] = s[j] + (a.bias && lane + 32 * j < a.n ? a.bias[lane + 32 * j] : 0.f);
    for (int k = 0; k < a.top_k; k++) {
        int at = best_expert(v, taken, a.n);
        float of = 0;
#pragma unroll
        for (int j = 0; j < LANE_EXPERTS; j++)
            of = at / 32 == j ? s[j] : of;
        of = __shfl_sync(0xffffffffu, of, at % 32);
        taken |= at % 32 == lane ? 1u << (at / 32) : 0;
        sum += of;
        if (lane == k) {
            mine = of;
            a.ids[row * a.ids_stride + k] = at;
        }
    }
    if (lane < a.top_k)
        a.weights[row * a.weights_stride + lane] = mine * (a.normalise && sum > 0 ? a.scale / sum : a.scale);
}

/* grid (BLOCKS, rows), a cluster a row; expert e is block e % BLOCKS's, its warp (e / BLOCKS) % WARPS's */
static __global__ void __launch_bounds__(THREADS, 3) route_few_kernel(const __grid_constant__ route_few_args a)
{
    __shared__ float logits[MOST_EXPERTS / BLOCKS];
    __shared__ uint4 gamma[MOST_COLS / 8], first[WARPS][MOST_COLS / 8]; /* so few registers, that a block fits beside
                                                                           those of the launch before */
    uint4 x[PIECES];
    int rank = (int)cu_cluster_rank(), warp = threadIdx.x / 32, row = blockIdx.y;
    float sum = 0;
    copy_pieces(a.w + (int64_t)(warp * BLOCKS + rank) * a.ldw, a.k, warp * BLOCKS + rank < a.n, first[warp]);
    copies_commit();
    for (int i = threadIdx.x; i < a.k / 8 && a.xn && a.gamma; i += THREADS)
        gamma[i] = ((const uint4 *)a.gamma)[i];
    __syncthreads();
    cu_let_next();
    cu_wait_before();
    load_pieces(a.x + row * a.ldx, a.k, true, x);
    if (a.xn) { /* every warp has the whole row */
#pragma unroll
        for (int i = 0; i < PIECES; i++)
            sum += cu_dot_8(x[i], x[i]);
        float by = 1.f / sqrtf(cu_warp_sum(sum) / (float)a.k + a.eps);
#pragma unroll
        for (int i = 0; i < PIECES; i++) {
            int c = (threadIdx.x % 32 + 32 * i) * 8;
            x[i] = cu_scale_8(x[i], gamma[c / 8], a.gamma != NULL, by);
            if (rank == 0 && i == warp && c < a.k)
                *(uint4 *)(a.xn + row * a.ld_xn + c) = x[i];
        }
    }
    for (int e = warp * BLOCKS + rank; e < a.n; e += WARPS * BLOCKS) {
        sum = 0;
        copies_wait<0>();
#pragma unroll
        for (int i = 0; i < PIECES; i++)
            sum += cu_dot_8(x[i], first[warp][threadIdx.x % 32 + 32 * i]);
        if (e + WARPS * BLOCKS < a.n) {
            copy_pieces(a.w + (int64_t)(e + WARPS * BLOCKS) * a.ldw, a.k, true, first[warp]);
            copies_commit();
        }
        sum = cu_warp_sum(sum);
        if (threadIdx.x % 32 == 0)
            logits[e / BLOCKS] = sum;
    }
    __syncthreads();
    cu_cluster_sync();
    if (rank == 0 && warp == 0)
        choose(a, row, logits);
    __syncwarp();
    cu_cluster_sync();
}

static bool in_pieces(const mat *m)
{
    return m->dtype == DT_BF16 && (uintptr_t)m->data % 16 == 0 && m->stride % 8 == 0;
}

static bool is_few(const op_moe_route *o)
{
    return cuda_code_level() >= CODE_EARLY && o->n_group == 1 && o->w.rows <= MOST_EXPERTS && o->x.cols <= MOST_COLS &&
           o->x.cols % 8 == 0 && o->top_k <= 32 && o->top_k <= o->w.rows && o->x.rows >= 1 && o->x.rows <= MOST_ROWS &&
           in_pieces(&o->x) && in_pieces(&o->w);
}

int cuda_join_route_takes(const op_call *calls, int n)
{
    const op_rmsnorm *o = &calls[0].rmsnorm;
    if (n < 2 || calls[0].kind != OP_RMSNORM || calls[1].kind != OP_MOE_ROUTE || !is_few(&calls[1].moe_route))
        return 0;
    const mat *x = &calls[1].moe_route.x;
    bool feeds = o->out.data == x->data && o->out.cols == x->cols && o->out.rows == x->rows && o->groups == 1;
    return feeds && o->x.data != o->out.data && in_pieces(&o->x) && in_pieces(&o->out) &&
                   (!o->weight.data || in_pieces(&o->weight))
               ? 2
               : 0;
}

static void launch(kernel_ctx *ctx, const op_moe_route *o, const op_rmsnorm *norm)
{
    route_few_args a = {};
    a.x = (const cu_bf16 *)(norm ? norm->x.data : o->x.data);
    a.ldx = norm ? norm->x.stride : o->x.stride;
    if (norm) {
        a.gamma = (const cu_bf16 *)norm->weight.data;
        a.xn = (cu_bf16 *)norm->out.data;
        a.ld_xn = norm->out.stride;
        a.eps = norm->eps;
    }
    a.w = (const cu_bf16 *)o->w.data;
    a.ldw = o->w.stride;
    a.bias = (const float *)o->bias.data;
    a.ids = (int32_t *)o->ids.data;
    a.weights = (float *)o->weights.data;
    a.ids_stride = o->ids.stride;
    a.weights_stride = o->weights.stride;
    a.k = (int)o->x.cols;
    a.n = (int)o->w.rows;
    a.top_k = o->top_k;
    a.scale = o->scale;
    a.sigmoid = o->scoring == MOE_SIGMOID;
    a.normalise = o->normalise;
    cu_launch_cluster(cu_stream(ctx), BLOCKS, route_few_kernel, dim3(BLOCKS, (unsigned)o->x.rows), dim3(THREADS), 0, a);
}

bool cuda_route_few(kernel_ctx *ctx, const op_moe_route *o)
{
    if (!is_few(o))
        return false;
    launch(ctx, o, NULL);
    return true;
}

tpl_code cuda_join_route(kernel_ctx *ctx, const op_call *calls, int n, tpl_err *e)
{
    launch(ctx, &calls[1].moe_route, &calls[0].rmsnorm);
    return cu_launched("moe_route", e);
}
