/* Mixtures of experts. Routes are found and read on the card: a step's launches do not depend on them. */
#include "kernels/cuda/launch.cuh"

#include "kernels/cuda/joins.h"

enum { ROUTE_THREADS = 128, WARPS = 8, THREADS = 32 * WARPS };

/* ---- routing: a block a row ---- */

typedef struct {
    const float *logits, *bias;
    int32_t *ids;
    float *weights;
    int64_t ids_stride, weights_stride;
    int n, top_k, n_group, topk_group, sigmoid, normalise;
    float scale;
} route_args;

/* The place of the greatest of value[0..n) that is not taken (NaN: -inf), the lowest among equals; in every thread. */
static __device__ int block_best(const float *value, const unsigned char *taken, int n, float *best_of, int *at_of)
{
    float best = -INFINITY;
    int at = n;
    for (int i = threadIdx.x; i < n; i += blockDim.x)
        if (!taken[i] && (at == n || value[i] > best)) {
            best = value[i];
            at = i;
        }
    cu_warp_best(&best, &at, n);
    __syncthreads();
    if (threadIdx.x % 32 == 0) {
        best_of[threadIdx.x / 32] = best;
        at_of[threadIdx.x / 32] = at;
    }
    __syncthreads();
    best = best_of[0];
    at = at_of[0];
    for (int i = 1; i < ROUTE_THREADS / 32; i++)
        if (at_of[i] < n && (at == n || best_of[i] > best || (best_of[i] == best && at_of[i] < at))) {
            best = best_of[i];
            at = at_of[i];
        }
    return at;
}

/* Scores from logits, in place. */
static __device__ void score_row(const route_args &a, float *score, float *space)
{
    float top = -INFINITY, sum = 0;
    if (a.sigmoid) {
        for (int i = threadIdx.x; i < a.n; i += blockDim.x)
            score[i] = 1.f / (1.f + expf(-score[i]));
        __syncthreads();
        return;
    }
    for (int i = 0; i < a.n; i++)
        top = fmaxf(top, score[i]);
    __syncthreads();
    for (int i = threadIdx.x; i < a.n; i += blockDim.x) {
        score[i] = expf(score[i] - top);
        sum += score[i];
    }
    sum = cu_block_sum(sum, space);
    for (int i = threadIdx.x; i < a.n; i += blockDim.x)
        score[i] /= sum;
    __syncthreads();
}

/* A group's value: its best, or with a bias the sum of its two best. */
static __device__ float group_value(const float *value, int n, bool two)
{
    float best = -INFINITY, second = -INFINITY;
    for (int i = 0; i < n; i++) {
        second = fmaxf(second, fminf(best, value[i]));
        best = fmaxf(best, value[i]);
    }
    return two && n > 1 ? best + second : best;
}

/* Marks the experts of all but the best groups as taken. */
static __device__ void limit_groups(const route_args &a, const float *value, unsigned char *taken, float *group,
                                    unsigned char *group_taken, float *best_of, int *at_of)
{
    int size = a.n / a.n_group;
    for (int g = threadIdx.x; g < a.n_group; g += blockDim.x) {
        group[g] = group_value(value + g * size, size, a.bias != NULL);
        group_taken[g] = 0;
    }
    __syncthreads();
    for (int i = 0; i < a.topk_group; i++) {
        int g = block_best(group, group_taken, a.n_group, best_of, at_of);
        if (threadIdx.x == 0)
            group_taken[g] = 1;
        __syncthreads();
    }
    for (int i = threadIdx.x; i < a.n; i += blockDim.x)
        taken[i] = !group_taken[i / size];
    __syncthreads();
}

static __global__ void __launch_bounds__(ROUTE_THREADS) route_kernel(route_args a)
{
    extern __shared__ float score[];
    __shared__ float best_of[ROUTE_THREADS / 32];
    __shared__ int at_of[ROUTE_THREADS / 32];
    float *value = score + a.n, *group = value + a.n;
    unsigned char *taken = (unsigned char *)(group + a.n_group), *group_taken = taken + a.n;
    int32_t *ids = a.ids + blockIdx.x * a.ids_stride;
    float *weights = a.weights + blockIdx.x * a.weights_stride, sum = 0;
    cu_begin();
    for (int i = threadIdx.x; i < a.n; i += blockDim.x)
        score[i] = a.logits[(int64_t)blockIdx.x * a.n + i];
    __syncthreads();
    score_row(a, score, best_of);
    for (int i = threadIdx.x; i < a.n; i += blockDim.x) {
        value[i] = a.bias ? score[i] + a.bias[i] : score[i];
        taken[i] = 0;
    }
    __syncthreads();
    if (a.n_group > 1)
        limit_groups(a, value, taken, group, group_taken, best_of, at_of);
    for (int k = 0; k < a.top_k; k++) {
        int at = block_best(value, taken, a.n, best_of, at_of);
        if (threadIdx.x == 0) {
            taken[at] = 1;
            ids[k] = at;
        }
        sum += score[at];
        __syncthreads();
    }
    float by = a.normalise && sum > 0 ? a.scale / sum : a.scale;
    for (int k = threadIdx.x; k < a.top_k; k += blockDim.x)
        weights[k] = score[ids[k]] * by;
}

static size_t logit_bytes(const op_moe_route *o)
{
    return ((size_t)(o->x.rows * o->w.rows) * sizeof(float) + 255) / 256 * 256;
}

size_t cuda_scratch_moe_route(const op_call *call)
{
    return logit_bytes(&call->moe_route);
}

tpl_code cuda_moe_route(kernel_ctx *ctx, const op_call *call, tpl_err *e)
{
    const op_moe_route *o = &call->moe_route;
    int n = (int)o->w.rows;
    cuda_product p = {.rows = o->x.rows,
                      .n = n,
                      .k = o->w.cols,
                      .ldx = o->x.stride,
                      .ldw = o->w.stride,
                      .ldo = n,
                      .x_step = 0,
                      .w_step = 0,
                      .out_step = 0,
                      .batch = 1,
                      .in = o->x.dtype,
                      .out = DT_F32,
                      .w_transposed = false,
                      .accumulate = false,
                      .bias = NULL,
                      .bias_type = DT_NONE};
    route_args a = {(const float *)ctx->scratch,
                    (const float *)o->bias.data,
                    (int32_t *)o->ids.data,
                    (float *)o->weights.data,
                    o->ids.stride,
                    o->weights.stride,
                    n,
                    o->top_k,
                    o->n_group,
                    o->topk_group,
                    o->scoring == MOE_SIGMOID,
                    o->normalise,
                    o->scale};
    size_t space = (size_t)(2 * n + o->n_group) * sizeof(float) + (size_t)(n + o->n_group);
    if (o->x.rows == 0)
        return TPL_OK;
    if (cuda_route_few(ctx, o))
        return cu_launched("moe_route", e);
    TPL_TRY(cuda_multiply(ctx, &p, o->x.data, o->w.data, ctx->scratch, e));
    cu_launch(cu_stream(ctx), route_kernel, (unsigned)o->x.rows, ROUTE_THREADS, space, a);
    return cu_launched("moe_route", e);
}

/* ---- experts, first rung: a warp a value, for any shape; each weight is read once a route, so that it suits few rows
 * ---- */

/* Matrices of n_local experts at equal distances. */
template <typename T> struct expert_set {
    const T *data;
    int64_t stride, step;
};

template <typename T> static expert_set<T> experts_of(const mat *m, int n)
{
    expert_set<T> s = {(const T *)m->data, m->stride, n > 1 ? (const T *)m[1].data - (const T *)m[0].data : 0};
    return s;
}

template <typename T> struct expert_args {
    const T *x;
    T *out, *inner; /* inner [rows, top_k, ffn] */
    int64_t x_stride, out_stride;
    const int32_t *ids;
    const float *weights;
    int64_t ids_stride, weights_stride;
    expert_set<T> gate, up, down;
    int top_k, expert0, n_local, ffn, dim;
    bool wide; /* 16-byte loads fit everywhere */
    bool accumulate;
};

static __device__ __forceinline__ float dot_8(const uint4 &a, const uint4 &b)
{
    const __nv_bfloat162 *p = (const __nv_bfloat162 *)&a, *q = (const __nv_bfloat162 *)&b;
    float sum = 0;
    for (int i = 0; i < 4; i++) {
        float2 u = __bfloat1622float2(p[i]), v = __bfloat1622float2(q[i]);
        sum += u.x * v.x + u.y * v.y;
    }
    return sum;
}

static __device__ __forceinline__ float warp_dot(const float *a, const float *b, int n, bool wide)
{
    float sum = 0;
    for (int i = threadIdx.x % 32; i < n; i += 32)
        sum += a[i] * b[i];
    return cu_warp_sum(sum);
}

static __device__ __forceinline__ float warp_dot(const cu_bf16 *a, const cu_bf16 *b, int n, bool wide)
{
    float sum = 0;
    if (wide)
        for (int i = threadIdx.x % 32; i < n / 8; i += 32)
            sum += dot_8(((const uint4 *)a)[i], ((const uint4 *)b)[i]);
    else
        for (int i = threadIdx.x % 32; i < n; i += 32)
            sum += cu_get(a[i]) * cu_get(b[i]);
    return cu_warp_sum(sum);
}

/* grid (values / WARPS, rows x top_k) */
template <typename T> static __global__ void __launch_bounds__(THREADS) inner_kernel(expert_args<T> a)
{
    cu_begin();
    int f = blockIdx.x * WARPS + threadIdx.x / 32;
    int64_t row = blockIdx.y / a.top_k, expert = a.ids[row * a.ids_stride + blockIdx.y % a.top_k] - a.expert0;
    if (f >= a.ffn || expert < 0 || expert >= a.n_local)
        return;
    const T *x = a.x + row * a.x_stride;
    float g = warp_dot(x, a.gate.data + expert * a.gate.step + f * a.gate.stride, a.dim, a.wide);
    float u = warp_dot(x, a.up.data + expert * a.up.step + f * a.up.stride, a.dim, a.wide);
    if (threadIdx.x % 32 == 0)
        cu_put(a.inner + (int64_t)blockIdx.y * a.ffn + f, g / (1.f + expf(-g)) * u);
}

/* grid (columns / WARPS, rows) */
template <typename T> static __global__ void __launch_bounds__(THREADS) outer_kernel(expert_args<T> a)
{
    cu_begin();
    int c = blockIdx.x * WARPS + threadIdx.x / 32;
    int64_t row = blockIdx.y;
    if (c >= a.dim)
        return;
    T *to = a.out + row * a.out_stride + c;
    float sum = a.accumulate ? cu_get(*to) : 0.f;
    for (int k = 0; k < a.top_k; k++) {
        int64_t expert = a.ids[row * a.ids_stride + k] - a.expert0;
        if (expert < 0 || expert >= a.n_local)
            continue;
        float y = warp_dot(a.inner + (row * a.top_k + k) * a.ffn,
                           a.down.data + expert * a.down.step + c * a.down.stride, a.ffn, a.wide);
        sum += a.weights[row * a.weights_stride + k] * y;
    }
    if (threadIdx.x % 32 == 0)
        cu_put(to, sum);
}

template <typename T> static bool is_wide(const expert_args<T> &a)
{
    int64_t all = a.x_stride | a.gate.stride | a.gate.step | a.up.stride | a.up.step | a.down.stride | a.down.step |
                  a.ffn | a.dim;
    uintptr_t at = (uintptr_t)a.x | (uintptr_t)a.gate.data | (uintptr_t)a.up.data | (uintptr_t)a.down.data;
    return all % 8 == 0 && at % 16 == 0;
}

template <typename T> static tpl_code run_experts(kernel_ctx *ctx, const op_moe_experts *o, tpl_err *e)
{
    expert_args<T> a = {};
    unsigned rows = (unsigned)o->out.rows;
    a.x = (const T *)o->x.data;
    a.out = (T *)o->out.data;
    a.inner = (T *)ctx->scratch;
    a.x_stride = o->x.stride;
    a.out_stride = o->out.stride;
    a.ids = (const int32_t *)o->ids.data;
    a.weights = (const float *)o->weights.data;
    a.ids_stride = o->ids.stride;
    a.weights_stride = o->weights.stride;
    if (o->n_local > 0) {
        a.gate = experts_of<T>(o->gate, o->n_local);
        a.up = experts_of<T>(o->up, o->n_local);
        a.down = experts_of<T>(o->down, o->n_local);
    }
    a.top_k = (int)o->ids.cols;
    a.expert0 = o->expert0;
    a.n_local = o->n_local;
    a.ffn = o->ffn;
    a.dim = (int)o->x.cols;
    a.wide = is_wide(a);
    a.accumulate = o->accumulate;
    dim3 inner((unsigned)(a.ffn + WARPS - 1) / WARPS, rows * (unsigned)a.top_k),
        outer((unsigned)(a.dim + WARPS - 1) / WARPS, rows);
    if (rows == 0)
        return TPL_OK;
    cu_launch(cu_stream(ctx), inner_kernel<T>, inner, THREADS, 0, a);
    cu_launch(cu_stream(ctx), outer_kernel<T>, outer, THREADS, 0, a);
    return cu_launched("moe_experts", e);
}

tpl_code cuda_moe_experts(kernel_ctx *ctx, const op_call *call, tpl_err *e)
{
    CU_BY_TYPE(call->moe_experts.out.dtype, T, return run_experts<T>(ctx, &call->moe_experts, e));
}
