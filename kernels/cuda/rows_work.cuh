/* rows_work.cuh - ropes, norms and a kv_append of few rows that follow each other, by single blocks.
 * For:    join_rows.cu, and join_heads.cu, where such blocks stand beside those of a product.
 * Enter:  kernels/cuda only.
 * Owns:   nothing.
 * Fails:  never; rows_work_takes() says which calls.
 *
 * A unit is a block's work: the operations of one row, one after another; or a group of heads of the rope in front,
 * where the others do not touch its values (the queries'). The usual ends, up to the cache, are done in one go: all is
 * read before anything is written. */
#ifndef TPL_KERNELS_CUDA_ROWS_WORK_CUH
#define TPL_KERNELS_CUDA_ROWS_WORK_CUH

#include "kernels/cuda/launch.cuh"

enum { RW_MOST_OPS = 4, RW_MOST_ROWS = 128, RW_PAIRS = 256, RW_SPACE = 32, RW_EACH = 4, RW_ROUNDS = 4 };

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
    cu_bf16 *copy; /* ropes: where the turned values go too, or NULL */
    int64_t ld_copy;
    int copy_stride;
    const cu_bf16 *b; /* kv_append: x and b at columns a_off and b_off */
    int64_t ldb;
    int b_cols, a_off, b_off;
    bool kv_f32;
    cu_cache kv;
} row_op;

/* Ends that are done in one go: norm, rope of one head, both into the cache; rope, then all of a row into the cache. */
typedef enum { CHAIN_NONE, CHAIN_LATENT, CHAIN_KEYS } rows_chain;

typedef struct {
    row_op op[RW_MOST_OPS];
    int n, first;            /* first: of those that the row's unit does */
    int rows, group, groups; /* heads a unit of the rope in front, units a row of it */
    rows_chain chain;        /* of the row's unit */
    cu_batch batch;
} rows_args;

static __device__ __forceinline__ void row_norm(const row_op &o, int row, float *space)
{
    for (int g = 0; g < o.groups; g++) {
        const cu_bf16 *from = o.x + row * o.ldx + (int64_t)g * o.cols;
        cu_bf16 *to = o.out + row * o.ldo + (int64_t)g * o.cols;
        float sum = 0;
        for (int c = threadIdx.x; c < o.cols; c += blockDim.x)
            sum += cu_get(from[c]) * cu_get(from[c]);
        sum = cu_block_sum(sum, space);
        float by = 1.f / sqrtf((o.alpha ? o.alpha[g] * sum / o.rank : sum / (float)o.cols) + o.eps);
        for (int c = threadIdx.x; c < o.cols; c += blockDim.x)
            cu_put(to + c, cu_get(from[c]) * by * (o.weight ? cu_load(o.weight, o.weight_type, c) : 1.f));
    }
}

/* Pair p of a head: read and turned. */
static __device__ __forceinline__ float2 row_turn(const row_op &o, const cu_bf16 *head, int p, int pos)
{
    int half = o.dim / 2;
    float c = o.cosine[(int64_t)pos * half + p], s = o.sine[(int64_t)pos * half + p];
    float a = cu_get(head[o.interleaved ? 2 * p : p]), b = cu_get(head[o.interleaved ? 2 * p + 1 : p + half]);
    return make_float2(a * c - b * s, b * c + a * s);
}

static __device__ __forceinline__ void row_put_pair(cu_bf16 *head, int p, int half, float2 v)
{
    cu_put(head + p, v.x);
    cu_put(head + p + half, v.y);
}

/* Heads [head0, head0 + n); values move, so that rounds of whole heads are read before they are written. */
static __device__ __forceinline__ void row_rope(const row_op &o, int row, int pos, int head0, int n)
{
    int half = o.dim / 2, at_once = RW_PAIRS / half, end = head0 + n;
    int p = threadIdx.x % half, own = (int)threadIdx.x < at_once * half ? (int)threadIdx.x / half : n;
    for (int h0 = head0; h0 < end; h0 += at_once * RW_ROUNDS) {
        cu_bf16 *heads = o.x + row * o.ldx;
        float2 v[RW_ROUNDS];
#pragma unroll
        for (int i = 0; i < RW_ROUNDS; i++) {
            int h = h0 + i * at_once + own;
            v[i] = h < end ? row_turn(o, heads + (int64_t)h * o.head_stride, p, pos) : make_float2(0, 0);
        }
        __syncthreads();
#pragma unroll
        for (int i = 0; i < RW_ROUNDS; i++) {
            int h = h0 + i * at_once + own;
            if (h >= end)
                continue;
            row_put_pair(heads + (int64_t)h * o.head_stride, p, half, v[i]);
            if (o.copy)
                row_put_pair(o.copy + row * o.ld_copy + (int64_t)h * o.copy_stride, p, half, v[i]);
        }
    }
}

/* Where the row's slot lies in the cache; NULL where this rank does not keep it. */
template <typename K> static __device__ __forceinline__ K *row_slot(const row_op &o, const cu_batch &batch, int row)
{
    int seq = batch.row_seq[row], slot = cu_slot0(batch, seq) + row - batch.seq_row0[seq];
    return slot % o.kv.mod == o.kv.rem ? (K *)o.kv.pages + cu_cached_row(o.kv, seq, slot / o.kv.mod) : NULL;
}

template <typename K> static __device__ __forceinline__ void row_append(const row_op &o, const cu_batch &batch, int row)
{
    K *to = row_slot<K>(o, batch, row);
    for (int c = threadIdx.x; to && c < o.cols; c += blockDim.x)
        cu_put(to + o.a_off + c, cu_get(o.x[row * o.ldx + c]));
    for (int c = threadIdx.x; to && c < o.b_cols; c += blockDim.x)
        cu_put(to + o.b_off + c, cu_get(o.b[row * o.ldb + c]));
}

template <typename K>
static __device__ __forceinline__ void row_latent(const row_op &norm, const row_op &rope, const row_op &append,
                                                  const cu_batch &batch, int row, float *space)
{
    const cu_bf16 *from = norm.x + row * norm.ldx;
    cu_bf16 *to = norm.out + row * norm.ldo, *key = rope.x + row * rope.ldx;
    K *slot = row_slot<K>(append, batch, row);
    bool turns = (int)threadIdx.x < rope.dim / 2;
    float v[RW_EACH], w[RW_EACH], sum = 0;
    float2 pair = make_float2(0, 0);
#pragma unroll
    for (int i = 0; i < RW_EACH; i++) {
        int c = threadIdx.x + i * blockDim.x;
        v[i] = c < norm.cols ? cu_get(from[c]) : 0.f;
        w[i] = c < norm.cols && norm.weight ? cu_load(norm.weight, norm.weight_type, c) : 1.f;
        sum += v[i] * v[i];
    }
    if (turns)
        pair = row_turn(rope, key, threadIdx.x, batch.row_pos[row]);
    sum = cu_block_sum(sum, space);
    float by = 1.f / sqrtf((norm.alpha ? norm.alpha[0] * sum / norm.rank : sum / (float)norm.cols) + norm.eps);
#pragma unroll
    for (int i = 0; i < RW_EACH; i++) {
        int c = threadIdx.x + i * blockDim.x;
        if (c >= norm.cols)
            continue;
        cu_bf16 stored = __float2bfloat16_rn(v[i] * by * w[i]);
        to[c] = stored;
        if (slot)
            cu_put(slot + append.a_off + c, cu_get(stored));
    }
    if (turns) {
        cu_bf16 a = __float2bfloat16_rn(pair.x), b = __float2bfloat16_rn(pair.y);
        int p = threadIdx.x, half = rope.dim / 2;
        key[p] = a;
        key[p + half] = b;
        if (slot) {
            cu_put(slot + append.b_off + p, cu_get(a));
            cu_put(slot + append.b_off + p + half, cu_get(b));
        }
    }
}

/* Keys that are turned and what lies behind them, values, are the row that goes into the cache. */
template <typename K>
static __device__ __forceinline__ void row_keys(const row_op &rope, const row_op &append, const cu_batch &batch,
                                                int row)
{
    cu_bf16 *x = rope.x + row * rope.ldx;
    K *slot = row_slot<K>(append, batch, row);
    int half = rope.dim / 2, pairs = rope.heads * half, keys = rope.heads * rope.dim, pos = batch.row_pos[row];
    float2 v[RW_EACH];
    cu_bf16 rest[RW_EACH];
#pragma unroll
    for (int i = 0; i < RW_EACH; i++) {
        int at = threadIdx.x + i * blockDim.x, c = keys + at;
        v[i] = at < pairs ? row_turn(rope, x + (int64_t)(at / half) * rope.dim, at % half, pos) : make_float2(0, 0);
        rest[i] = slot && c < append.cols ? x[c] : __float2bfloat16_rn(0);
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < RW_EACH; i++) {
        int at = threadIdx.x + i * blockDim.x, c = keys + at, head = at / half * rope.dim, p = at % half;
        if (at < pairs) {
            cu_bf16 a = __float2bfloat16_rn(v[i].x), b = __float2bfloat16_rn(v[i].y);
            x[head + p] = a;
            x[head + p + half] = b;
            if (slot) {
                cu_put(slot + append.a_off + head + p, cu_get(a));
                cu_put(slot + append.a_off + head + p + half, cu_get(b));
            }
        }
        if (slot && c < append.cols)
            cu_put(slot + append.a_off + c, cu_get(rest[i]));
    }
}

/* Unit u of rows_units(); space: a float a warp. By a block of at least RW_PAIRS threads, which has waited. */
static __device__ __forceinline__ void rows_unit(const rows_args &a, int u, float *space)
{
    int row = u % a.rows, place = u / a.rows;
    if (place > 0) {
        int head0 = (place - 1) * a.group;
        row_rope(a.op[0], row, a.batch.row_pos[row], head0, min(a.group, a.op[0].heads - head0));
        return;
    }
    if (a.chain == CHAIN_KEYS) {
        const row_op &rope = a.op[a.first], &append = a.op[a.first + 1];
        if (append.kv_f32)
            row_keys<float>(rope, append, a.batch, row);
        else
            row_keys<cu_bf16>(rope, append, a.batch, row);
        return;
    }
    if (a.chain == CHAIN_LATENT) {
        const row_op &norm = a.op[a.first], &rope = a.op[a.first + 1], &append = a.op[a.first + 2];
        if (append.kv_f32)
            row_latent<float>(norm, rope, append, a.batch, row, space);
        else
            row_latent<cu_bf16>(norm, rope, append, a.batch, row, space);
        return;
    }
    for (int i = a.first; i < a.n; i++) {
        const row_op &o = a.op[i];
        if (o.kind == OP_ROPE)
            row_rope(o, row, a.batch.row_pos[row], 0, o.heads);
        else if (o.kind != OP_KV_APPEND)
            row_norm(o, row, space);
        else if (o.kv_f32)
            row_append<float>(o, a.batch, row);
        else
            row_append<cu_bf16>(o, a.batch, row);
        __syncthreads();
    }
}

/* ---- on the host ---- */

/* How many of the first n calls are such work, at least two; `free`: the rope in front has units of its own. */
int cuda_rows_work_takes(const op_call *calls, int n, bool *free);
rows_args cuda_rows_work_of(const op_call *calls, int n);

static __host__ __device__ __forceinline__ int rows_units(const rows_args &a)
{
    return a.rows * (1 + a.groups);
}

/* What a call reads and writes in place. */
const mat *cuda_rows_touched(const op_call *c);

#endif
