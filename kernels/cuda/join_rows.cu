/* Ropes, norms and a kv_append of few rows that follow each other, in one launch of a block a unit (rows_work.cuh).
 * bytes  as the calls'; bound: launches. check  the calls one by one. */
#include "kernels/cuda/rows_work.cuh"

#include "kernels/cuda/joins.h"

enum { THREADS = 256, MANY_ROWS = 16 /* have units enough for the card with more heads each */ };

static __global__ void __launch_bounds__(THREADS) rows_kernel(const __grid_constant__ rows_args a)
{
    __shared__ float space[RW_SPACE];
    cu_begin();
    rows_unit(a, blockIdx.x, space);
}

/* ---- which calls ---- */

const mat *cuda_rows_touched(const op_call *c)
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
    const mat *x = cuda_rows_touched(c);
    if (!x || x->dtype != DT_BF16 || x->rows < 1 || x->rows > RW_MOST_ROWS)
        return false;
    if (c->kind == OP_RMSNORM)
        return c->rmsnorm.groups == 1 && c->rmsnorm.x.data == c->rmsnorm.out.data;
    if (c->kind == OP_SLICED_NORM)
        return c->sliced_norm.x.data == c->sliced_norm.out.data;
    return c->kind != OP_ROPE || (c->rope.dim > 1 && c->rope.dim <= 2 * RW_PAIRS);
}

bool cuda_mats_apart(const mat *a, const mat *b)
{
    const char *p = (const char *)a->data, *q = (const char *)b->data;
    int64_t each = (int64_t)dtype_bytes(a->dtype), step = a->stride * each, width = a->cols * each;
    int64_t other = (int64_t)dtype_bytes(b->dtype), b_step = b->stride * other, b_width = b->cols * other;
    if (p + (a->rows - 1) * step + width <= q || q + (b->rows - 1) * b_step + b_width <= p)
        return true;
    if (step != b_step || step < 1)
        return false;
    int64_t d = ((q - p) % step + step) % step; /* other columns of the same rows */
    return d >= width && d + b_width <= step;
}

/* Whether the rope in front may run beside the others. */
static bool is_free(const op_call *calls, int n)
{
    bool free = calls[0].kind == OP_ROPE;
    for (int i = 1; i < n; i++)
        free = free && cuda_mats_apart(&calls[0].rope.x, cuda_rows_touched(&calls[i])) &&
               (calls[i].kind != OP_KV_APPEND || !calls[i].kv_append.b.data ||
                cuda_mats_apart(&calls[0].rope.x, &calls[i].kv_append.b));
    return free;
}

int cuda_rows_work_takes(const op_call *calls, int n, bool *free)
{
    int taken = 0;
    bool has_batch = false, ends = false;
    for (; taken < n && taken < RW_MOST_OPS && !ends && is_row_op(&calls[taken]); taken++) {
        if (cuda_rows_touched(&calls[taken])->rows != cuda_rows_touched(&calls[0])->rows)
            break;
        has_batch = has_batch || batch_of(&calls[taken]);
        ends = calls[taken].kind == OP_KV_APPEND;
    }
    taken = taken > 1 && has_batch ? taken : 0;
    *free = taken > 0 && is_free(calls, taken);
    return taken;
}

int cuda_join_rows_takes(const op_call *calls, int n)
{
    bool free;
    return cuda_rows_work_takes(calls, n, &free);
}

static row_op op_of(const op_call *c)
{
    const mat *x = cuda_rows_touched(c);
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

static bool is_latent(const op_call *calls, int n)
{
    if (n != 3 || calls[1].kind != OP_ROPE || calls[2].kind != OP_KV_APPEND || calls[1].rope.heads != 1)
        return false;
    const mat *x = cuda_rows_touched(&calls[0]), *key = &calls[1].rope.x;
    const op_kv_append *o = &calls[2].kv_append;
    bool whole = calls[0].kind == OP_RMSNORM || (calls[0].kind == OP_SLICED_NORM && calls[0].sliced_norm.n_slices == 1);
    return whole && x->cols <= RW_EACH * RW_PAIRS && o->a.data == x->data && o->a.cols == x->cols &&
           o->b.data == key->data && o->b.cols == calls[1].rope.dim && o->b.cols % 2 == 0 && cuda_mats_apart(x, key);
}

static bool is_keys(const op_call *calls, int n)
{
    const op_rope *q = &calls[0].rope;
    const op_kv_append *o = &calls[n - 1].kv_append;
    if (n != 2 || calls[0].kind != OP_ROPE || calls[1].kind != OP_KV_APPEND || o->b.data)
        return false;
    int64_t keys = (int64_t)q->heads * q->dim, most = RW_EACH * RW_PAIRS;
    return q->dim % 2 == 0 && q->head_stride == q->dim && o->a.data == q->x.data && o->a.stride == q->x.stride &&
           o->a.cols >= keys && o->a.cols - keys <= most && keys / 2 <= most;
}

static rows_chain chain_of(const op_call *calls, int n)
{
    return is_latent(calls, n) ? CHAIN_LATENT : is_keys(calls, n) ? CHAIN_KEYS : CHAIN_NONE;
}

rows_args cuda_rows_work_of(const op_call *calls, int n)
{
    rows_args a = {};
    for (int i = 0; i < n; i++) {
        a.op[i] = op_of(&calls[i]);
        if (batch_of(&calls[i]))
            a.batch = cu_batch_of(batch_of(&calls[i]));
    }
    a.n = n;
    a.rows = (int)cuda_rows_touched(&calls[0])->rows;
    a.first = is_free(calls, n);
    if (a.first) {
        a.group = 2 * RW_PAIRS / a.op[0].dim * (a.rows < MANY_ROWS ? 1 : RW_ROUNDS);
        a.groups = (a.op[0].heads + a.group - 1) / a.group;
    }
    a.chain = chain_of(calls + a.first, n - a.first);
    return a;
}

tpl_code cuda_join_rows(kernel_ctx *ctx, const op_call *calls, int n, tpl_err *e)
{
    rows_args a = cuda_rows_work_of(calls, n);
    cu_launch(cu_stream(ctx), rows_kernel, dim3((unsigned)rows_units(a)), dim3(THREADS), 0, a);
    return cu_launched("rows", e);
}
