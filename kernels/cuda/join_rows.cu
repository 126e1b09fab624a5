/* Ropes, norms and a kv_append of few rows that follow each other, in one launch. A block a row does them one after
 * another; a rope in front that the others do not touch (the queries') has blocks of its own.
 * bytes  as the calls'; bound: launches. check  the calls one by one. */
#include "kernels/cuda/launch.cuh"

#include "kernels/cuda/joins.h"

enum { MOST_OPS = 4, THREADS = 256, MOST_ROWS = 64, ROPE_VALUES = 512 };

typedef struct {
    op_kind kind;
    cu_bf16 *x, *out;
    int64_t ldx, ldo;
    int cols, groups; /* norms: columns of a group */
    const void *weight;
    int weight_type;
    const float *alpha; /* sliced norms: [groups] */
    float eps, rank;
    const float *cosine, *sine; /* ropes */
    int heads, head_stride, dim;
    bool interleaved;
    const cu_bf16 *b; /* kv_append: x and b at columns a_off and b_off */
    int64_t ldb;
    int b_cols, a_off, b_off;
    bool kv_f32;
    cu_cache kv;
} row_op;

typedef struct {
    row_op op[MOST_OPS];
    int n, first; /* first: of those that the block of the row does */
    int group;    /* heads a block of the rope in front */
    cu_batch batch;
} rows_args;

static __device__ __forceinline__ void norm_row(const row_op &o, int row, float *space)
{
    for (int g = 0; g < o.groups; g++) {
        const cu_bf16 *from = o.x + row * o.ldx + (int64_t)g * o.cols;
        cu_bf16 *to = o.out + row * o.ldo + (int64_t)g * o.cols;
        float sum = 0;
        for (int c = threadIdx.x; c < o.cols; c += THREADS)
            sum += cu_get(from[c]) * cu_get(from[c]);
        sum = cu_block_sum(sum, space);
        float by = 1.f / sqrtf((o.alpha ? o.alpha[g] * sum / o.rank : sum / (float)o.cols) + o.eps);
        for (int c = threadIdx.x; c < o.cols; c += THREADS)
            cu_put(to + c, cu_get(from[c]) * by * (o.weight ? cu_load(o.weight, o.weight_type, c) : 1.f));
    }
}

/* Heads [head0, head0 + n): space [ROPE_VALUES], read whole before it is written. */
static __device__ __forceinline__ void rope_row(const row_op &o, int row, int pos, int head0, int n, float *space)
{
    int half = o.dim / 2, at_once = ROPE_VALUES / o.dim;
    const float *cosine = o.cosine + (int64_t)pos * half, *sine = o.sine + (int64_t)pos * half;
    for (int h0 = head0; h0 < head0 + n; h0 += at_once) {
        int heads = min(at_once, head0 + n - h0);
        cu_bf16 *x = o.x + row * o.ldx + (int64_t)h0 * o.head_stride;
        for (int i = threadIdx.x; i < heads * o.dim; i += THREADS)
            space[i] = cu_get(x[(int64_t)(i / o.dim) * o.head_stride + i % o.dim]);
        __syncthreads();
        for (int i = threadIdx.x; i < heads * half; i += THREADS) {
            int h = i / half, p = i % half;
            float a = space[h * o.dim + (o.interleaved ? 2 * p : p)];
            float b = space[h * o.dim + (o.interleaved ? 2 * p + 1 : p + half)];
            cu_bf16 *to = x + (int64_t)h * o.head_stride;
            cu_put(to + p, a * cosine[p] - b * sine[p]);
            cu_put(to + p + half, b * cosine[p] + a * sine[p]);
        }
        __syncthreads();
    }
}

template <typename K> static __device__ __forceinline__ void append_row(const row_op &o, const cu_batch &batch, int row)
{
    int seq = batch.row_seq[row], slot = cu_slot0(batch, seq) + row - batch.seq_row0[seq];
    if (slot % o.kv.mod != o.kv.rem)
        return;
    K *to = (K *)o.kv.pages + cu_cached_row(o.kv, seq, slot / o.kv.mod);
    for (int c = threadIdx.x; c < o.cols; c += THREADS)
        cu_put(to + o.a_off + c, cu_get(o.x[row * o.ldx + c]));
    for (int c = threadIdx.x; c < o.b_cols; c += THREADS)
        cu_put(to + o.b_off + c, cu_get(o.b[row * o.ldb + c]));
}

/* grid (rows, 1 + blocks of the rope in front) */
static __global__ void __launch_bounds__(THREADS) rows_kernel(const __grid_constant__ rows_args a)
{
    __shared__ float space[ROPE_VALUES];
    int row = blockIdx.x;
    cu_begin();
    if (blockIdx.y > 0) {
        int head0 = (blockIdx.y - 1) * a.group;
        rope_row(a.op[0], row, a.batch.row_pos[row], head0, min(a.group, a.op[0].heads - head0), space);
        return;
    }
    for (int i = a.first; i < a.n; i++) {
        const row_op &o = a.op[i];
        if (o.kind == OP_ROPE)
            rope_row(o, row, a.batch.row_pos[row], 0, o.heads, space);
        else if (o.kind != OP_KV_APPEND)
            norm_row(o, row, space);
        else if (o.kv_f32)
            append_row<float>(o, a.batch, row);
        else
            append_row<cu_bf16>(o, a.batch, row);
        __syncthreads();
    }
}

/* ---- which calls ---- */

static const mat *touched(const op_call *c)
{
    switch (c->kind) {
    case OP_ROPE:
        return &c->rope.x;
    case OP_RMSNORM:
        return &c->rmsnorm.x;
    case OP_SLICED_NORM:
        return &c->sliced_norm.x;
    case OP_KV_APPEND:
        return &c->kv_append.a;
    default:
        return NULL;
    }
}

static const batch_view *batch_of(const op_call *c)
{
    return c->kind == OP_ROPE ? c->rope.batch : c->kind == OP_KV_APPEND ? c->kv_append.batch : NULL;
}

static bool is_row_op(const op_call *c)
{
    const mat *x = touched(c);
    if (!x || x->dtype != DT_BF16 || x->rows < 1 || x->rows > MOST_ROWS)
        return false;
    if (c->kind == OP_RMSNORM)
        return c->rmsnorm.groups == 1 && c->rmsnorm.x.data == c->rmsnorm.out.data;
    if (c->kind == OP_SLICED_NORM)
        return c->sliced_norm.x.data == c->sliced_norm.out.data;
    return c->kind != OP_ROPE || (c->rope.dim > 0 && c->rope.dim <= ROPE_VALUES);
}

static bool is_apart(const mat *a, const mat *b)
{
    const cu_bf16 *p = (const cu_bf16 *)a->data, *q = (const cu_bf16 *)b->data;
    return p + (a->rows - 1) * a->stride + a->cols <= q || q + (b->rows - 1) * b->stride + b->cols <= p;
}

/* Whether the rope in front may run beside the others. */
static bool is_free(const op_call *calls, int n)
{
    bool free = calls[0].kind == OP_ROPE;
    for (int i = 1; i < n; i++)
        free = free && is_apart(&calls[0].rope.x, touched(&calls[i])) &&
               (calls[i].kind != OP_KV_APPEND || !calls[i].kv_append.b.data ||
                is_apart(&calls[0].rope.x, &calls[i].kv_append.b));
    return free;
}

int cuda_join_rows_takes(const op_call *calls, int n)
{
    int taken = 0;
    bool has_batch = false;
    for (; taken < n && taken < MOST_OPS && is_row_op(&calls[taken]); taken++) {
        if (touched(&calls[taken])->rows != touched(&calls[0])->rows)
            break;
        has_batch = has_batch || batch_of(&calls[taken]);
        if (calls[taken].kind == OP_KV_APPEND)
            return taken > 0 ? taken + 1 : 0;
    }
    return taken > 1 && has_batch ? taken : 0;
}

static row_op op_of(const op_call *c)
{
    const mat *x = touched(c);
    row_op o = {};
    o.kind = c->kind;
    o.x = (cu_bf16 *)x->data;
    o.ldx = x->stride;
    o.cols = (int)x->cols;
    o.groups = 1;
    if (c->kind == OP_ROPE) {
        o.cosine = c->rope.cos;
        o.sine = c->rope.sin;
        o.heads = c->rope.heads;
        o.head_stride = c->rope.head_stride;
        o.dim = c->rope.dim;
        o.interleaved = c->rope.interleaved;
    } else if (c->kind == OP_RMSNORM) {
        o.out = (cu_bf16 *)c->rmsnorm.out.data;
        o.ldo = c->rmsnorm.out.stride;
        o.weight = c->rmsnorm.weight.data;
        o.weight_type = c->rmsnorm.weight.dtype;
        o.eps = c->rmsnorm.eps;
    } else if (c->kind == OP_SLICED_NORM) {
        o.out = (cu_bf16 *)c->sliced_norm.out.data;
        o.ldo = c->sliced_norm.out.stride;
        o.groups = c->sliced_norm.n_slices;
        o.cols /= o.groups;
        o.alpha = c->sliced_norm.alpha;
        o.rank = (float)c->sliced_norm.kv_lora_rank;
        o.eps = c->sliced_norm.eps;
    } else {
        o.b = (const cu_bf16 *)c->kv_append.b.data;
        o.ldb = c->kv_append.b.stride;
        o.b_cols = o.b ? (int)c->kv_append.b.cols : 0;
        o.a_off = c->kv_append.a_off;
        o.b_off = c->kv_append.b_off;
        o.kv_f32 = c->kv_append.kv.dtype == DT_F32;
        o.kv = cu_cache_of(&c->kv_append.kv);
    }
    return o;
}

tpl_code cuda_join_rows(kernel_ctx *ctx, const op_call *calls, int n, tpl_err *e)
{
    rows_args a = {};
    unsigned wide = 0;
    for (int i = 0; i < n; i++) {
        a.op[i] = op_of(&calls[i]);
        if (batch_of(&calls[i]))
            a.batch = cu_batch_of(batch_of(&calls[i]));
    }
    a.n = n;
    if (is_free(calls, n)) {
        a.first = 1;
        a.group = ROPE_VALUES / a.op[0].dim;
        wide = (unsigned)((a.op[0].heads + a.group - 1) / a.group);
    }
    cu_launch(cu_stream(ctx), rows_kernel, dim3((unsigned)touched(&calls[0])->rows, 1 + wide), dim3(THREADS), 0, a);
    return cu_launched("rows", e);
}
