/* Operations on rows of activations: bandwidth only, one pass where the arithmetic allows it. Sums are f32. */
#include "kernels/cuda/launch.cuh"

#include "kernels/cuda/joins.h"

enum { THREADS = 256 };

/* A matrix as a kernel sees it. */
template <typename T> struct cu_mat {
    T *data;
    int64_t stride;
};

template <typename T> static cu_mat<T> view(const mat *m)
{
    cu_mat<T> v = {(T *)m->data, m->stride};
    return v;
}

static unsigned blocks_of(int64_t n)
{
    return (unsigned)((n + THREADS - 1) / THREADS);
}

/* ---- embed, gather ---- */

/* out[r] = table[index[r]]; grid (rows, columns / THREADS). */
template <typename T>
static __global__ void embed_kernel(const void *table, int type, int64_t stride, int64_t vocab, const int32_t *token,
                                    cu_mat<T> out, int64_t width)
{
    cu_begin();
    int64_t row = min((int64_t)max(token[blockIdx.x], 0), vocab - 1), c = (int64_t)blockIdx.y * THREADS + threadIdx.x;
    if (c < width)
        cu_put(out.data + blockIdx.x * out.stride + c, cu_load(table, type, row * stride + c));
}

tpl_code cuda_embed(kernel_ctx *ctx, const op_call *call, tpl_err *e)
{
    const op_embed *o = &call->embed;
    dim3 grid((unsigned)o->out.rows, blocks_of(o->out.cols));
    if (o->out.rows == 0)
        return TPL_OK;
    CU_BY_TYPE(o->out.dtype, T,
               cu_launch(cu_stream(ctx), embed_kernel<T>, grid, THREADS, 0, o->table.data, o->table.dtype,
                         o->table.stride, o->table.rows, o->batch->row_token, view<T>(&o->out), o->out.cols));
    return cu_launched("embed", e);
}

template <typename X, typename T>
static __global__ void gather_kernel(cu_mat<X> x, const int32_t *index, cu_mat<T> out, int64_t width)
{
    cu_begin();
    int64_t c = (int64_t)blockIdx.y * THREADS + threadIdx.x;
    if (c < width)
        cu_put(out.data + blockIdx.x * out.stride + c, cu_get(x.data[index[blockIdx.x] * x.stride + c]));
}

tpl_code cuda_gather_rows(kernel_ctx *ctx, const op_call *call, tpl_err *e)
{
    const op_gather_rows *o = &call->gather_rows;
    dim3 grid((unsigned)o->out.rows, blocks_of(o->out.cols));
    if (o->out.rows == 0)
        return TPL_OK;
    CU_BY_TYPE(o->x.dtype, X,
               CU_BY_TYPE(o->out.dtype, T,
                          cu_launch(cu_stream(ctx), gather_kernel<X, T>, grid, THREADS, 0, view<X>(&o->x), o->index,
                                    view<T>(&o->out), o->out.cols)));
    return cu_launched("gather_rows", e);
}

/* ---- norms: a block a row and group ---- */

template <typename T>
static __global__ void rmsnorm_kernel(cu_mat<T> x, cu_mat<T> out, const void *weight, int weight_type, int64_t width,
                                      float eps)
{
    cu_begin();
    __shared__ float space[THREADS / 32];
    const T *from = x.data + blockIdx.x * x.stride + blockIdx.y * width;
    T *to = out.data + blockIdx.x * out.stride + blockIdx.y * width;
    float sum = 0;
    for (int64_t c = threadIdx.x; c < width; c += blockDim.x)
        sum += cu_get(from[c]) * cu_get(from[c]);
    float by = 1.f / sqrtf(cu_block_sum(sum, space) / (float)width + eps);
    for (int64_t c = threadIdx.x; c < width; c += blockDim.x)
        cu_put(to + c, cu_get(from[c]) * by * (weight ? cu_load(weight, weight_type, c) : 1.f));
}

/* The same for bf16 rows of whole 16-byte pieces, read once and held in registers: decode has a row or two, and one
 * block must bring all of it in at once. Before: 25 us for a cold row of 7168 on an H100; the weight is read beside the
 * row. ADD: y is added to the row first, which is stored. */
enum { WIDE_THREADS = 1024, WIDE_PIECES = 2, WIDE_MOST = WIDE_THREADS * WIDE_PIECES * 8 };

static __device__ __forceinline__ void widen(const uint4 &v, float f[8])
{
    const __nv_bfloat162 *p = (const __nv_bfloat162 *)&v;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        float2 two = __bfloat1622float2(p[i]);
        f[2 * i] = two.x;
        f[2 * i + 1] = two.y;
    }
}

static __device__ __forceinline__ uint4 narrow(const float f[8])
{
    uint4 v;
    __nv_bfloat162 *p = (__nv_bfloat162 *)&v;
#pragma unroll
    for (int i = 0; i < 4; i++)
        p[i] = __floats2bfloat162_rn(f[2 * i], f[2 * i + 1]);
    return v;
}

template <bool ADD>
static __global__ void __launch_bounds__(WIDE_THREADS)
    rmsnorm_wide_kernel(cu_bf16 *x, int64_t x_stride, const cu_bf16 *y, int64_t y_stride, cu_bf16 *out,
                        int64_t out_stride, const cu_bf16 *weight, int width, float eps)
{
    __shared__ float space[WIDE_THREADS / 32];
    uint4 *from = (uint4 *)(x + blockIdx.x * x_stride + blockIdx.y * width);
    const uint4 *more = (const uint4 *)(y + blockIdx.x * y_stride);
    uint4 *to = (uint4 *)(out + blockIdx.x * out_stride + blockIdx.y * width), v[WIDE_PIECES], w[WIDE_PIECES];
    int n = width / 8;
    float f[8], g[8], sum = 0;
    cu_let_next();
#pragma unroll
    for (int i = 0; i < WIDE_PIECES; i++) {
        int at = threadIdx.x + i * blockDim.x;
        w[i] = at < n && weight ? ((const uint4 *)weight)[at] : make_uint4(0, 0, 0, 0);
    }
    cu_wait_before();
#pragma unroll
    for (int i = 0; i < WIDE_PIECES; i++) {
        int at = threadIdx.x + i * blockDim.x;
        v[i] = at < n ? from[at] : make_uint4(0, 0, 0, 0);
        if (!ADD || at >= n)
            continue;
        widen(v[i], f);
        widen(more[at], g);
        for (int k = 0; k < 8; k++)
            f[k] += g[k];
        from[at] = v[i] = narrow(f);
    }
#pragma unroll
    for (int i = 0; i < WIDE_PIECES; i++) {
        widen(v[i], f);
        for (int k = 0; k < 8; k++)
            sum += f[k] * f[k];
    }
    float by = 1.f / sqrtf(cu_block_sum(sum, space) / (float)width + eps);
#pragma unroll
    for (int i = 0; i < WIDE_PIECES; i++) {
        int at = threadIdx.x + i * blockDim.x;
        widen(v[i], f);
        widen(w[i], g);
        for (int k = 0; k < 8; k++)
            f[k] *= weight ? by * g[k] : by;
        if (at < n)
            to[at] = narrow(f);
    }
}

static bool is_wide(const op_rmsnorm *o, int64_t width)
{
    uintptr_t at = (uintptr_t)o->x.data | (uintptr_t)o->out.data | (uintptr_t)o->weight.data;
    int64_t steps = o->x.stride | o->out.stride | width;
    return o->x.dtype == DT_BF16 && at % 16 == 0 && steps % 8 == 0 && width <= WIDE_MOST &&
           (!o->weight.data || o->weight.dtype == DT_BF16);
}

static unsigned wide_threads(int64_t width)
{
    int64_t pieces = (width / 8 + 31) / 32 * 32;
    return (unsigned)(pieces < (int64_t)WIDE_THREADS ? pieces : (int64_t)WIDE_THREADS);
}

/* Threads that have something to do: whole warps. */
static unsigned threads_for(int64_t width)
{
    return width >= THREADS ? (unsigned)THREADS : (unsigned)((width + 31) / 32 * 32);
}

tpl_code cuda_rmsnorm(kernel_ctx *ctx, const op_call *call, tpl_err *e)
{
    const op_rmsnorm *o = &call->rmsnorm;
    int64_t width = o->x.cols / o->groups;
    dim3 grid((unsigned)o->x.rows, (unsigned)o->groups);
    if (o->x.rows == 0)
        return TPL_OK;
    if (is_wide(o, width)) {
        cu_launch(cu_stream(ctx), rmsnorm_wide_kernel<false>, grid, wide_threads(width), 0, (cu_bf16 *)o->x.data,
                  o->x.stride, nullptr, 0, (cu_bf16 *)o->out.data, o->out.stride, (const cu_bf16 *)o->weight.data,
                  (int)width, o->eps);
        return cu_launched("rmsnorm", e);
    }
    CU_BY_TYPE(o->x.dtype, T,
               cu_launch(cu_stream(ctx), rmsnorm_kernel<T>, grid, threads_for(width), 0, view<T>(&o->x),
                         view<T>(&o->out), o->weight.data, o->weight.dtype, width, o->eps));
    return cu_launched("rmsnorm", e);
}

/* Of more rows than products take with a norm in front. */
int cuda_join_add_norm_takes(const op_call *calls, int n)
{
    const op_add *y = &calls[0].add;
    const op_rmsnorm *o = n > 1 ? &calls[1].rmsnorm : NULL;
    if (!o || calls[0].kind != OP_ADD || calls[1].kind != OP_RMSNORM || y->x.dtype != DT_BF16 ||
        y->out.dtype != DT_BF16 || !is_wide(o, o->x.cols))
        return 0;
    bool same = o->x.data == y->out.data && o->x.stride == y->out.stride && o->x.cols == y->out.cols &&
                o->x.rows == y->out.rows && o->groups == 1;
    bool pieces = (uintptr_t)y->x.data % 16 == 0 && y->x.stride % 8 == 0;
    return same && pieces && o->x.rows > 4 && o->out.data != o->x.data && o->out.data != y->x.data ? 2 : 0;
}

tpl_code cuda_join_add_norm(kernel_ctx *ctx, const op_call *calls, int n, tpl_err *e)
{
    (void)n;
    const op_add *y = &calls[0].add;
    const op_rmsnorm *o = &calls[1].rmsnorm;
    cu_launch(cu_stream(ctx), rmsnorm_wide_kernel<true>, dim3((unsigned)o->x.rows), wide_threads(o->x.cols), 0,
              (cu_bf16 *)o->x.data, o->x.stride, (const cu_bf16 *)y->x.data, y->x.stride, (cu_bf16 *)o->out.data,
              o->out.stride, (const cu_bf16 *)o->weight.data, (int)o->x.cols, o->eps);
    return cu_launched("add and rmsnorm", e);
}

template <typename T>
static __global__ void sliced_norm_kernel(cu_mat<T> x, cu_mat<T> out, const float *alpha, int64_t width, float rank,
                                          float eps)
{
    cu_begin();
    __shared__ float space[THREADS / 32];
    const T *from = x.data + blockIdx.x * x.stride + blockIdx.y * width;
    T *to = out.data + blockIdx.x * out.stride + blockIdx.y * width;
    float sum = 0;
    for (int64_t c = threadIdx.x; c < width; c += blockDim.x)
        sum += cu_get(from[c]) * cu_get(from[c]);
    float by = 1.f / sqrtf(alpha[blockIdx.y] * cu_block_sum(sum, space) / rank + eps);
    for (int64_t c = threadIdx.x; c < width; c += blockDim.x)
        cu_put(to + c, cu_get(from[c]) * by);
}

tpl_code cuda_sliced_norm(kernel_ctx *ctx, const op_call *call, tpl_err *e)
{
    const op_sliced_norm *o = &call->sliced_norm;
    int64_t width = o->x.cols / o->n_slices;
    dim3 grid((unsigned)o->x.rows, (unsigned)o->n_slices);
    if (o->x.rows == 0)
        return TPL_OK;
    CU_BY_TYPE(o->x.dtype, T,
               cu_launch(cu_stream(ctx), sliced_norm_kernel<T>, grid, threads_for(width), 0, view<T>(&o->x),
                         view<T>(&o->out), o->alpha, width, (float)o->kv_lora_rank, o->eps));
    return cu_launched("sliced_norm", e);
}

/* ---- rope: a block a row; threads share heads and pairs. Each pair of stored values comes from one pair of read ones,
 * but in another place, so that a block reads all it turns before it writes ---- */

enum { ROPE_SPACE = 2048 }; /* bytes of shared memory: so few heads a block that even one row keeps many blocks busy */

template <typename T>
static __global__ void rope_kernel(cu_mat<T> x, int heads, int head_stride, int dim, const float *cosine,
                                   const float *sine, bool interleaved, const int32_t *pos, int group)
{
    cu_begin();
    extern __shared__ float old[];
    int half = dim / 2, head0 = blockIdx.y * group, n = min(group, heads - head0) * dim;
    T *row = x.data + blockIdx.x * x.stride + (int64_t)head0 * head_stride;
    const float *c = cosine + (int64_t)pos[blockIdx.x] * half, *s = sine + (int64_t)pos[blockIdx.x] * half;
    for (int i = threadIdx.x; i < n; i += blockDim.x)
        old[i] = cu_get(row[(int64_t)(i / dim) * head_stride + i % dim]);
    __syncthreads();
    for (int i = threadIdx.x; i < n / 2; i += blockDim.x) {
        int h = i / half, p = i % half;
        float a = old[h * dim + (interleaved ? 2 * p : p)], b = old[h * dim + (interleaved ? 2 * p + 1 : p + half)];
        T *to = row + (int64_t)h * head_stride;
        cu_put(to + p, a * c[p] - b * s[p]);
        cu_put(to + p + half, b * c[p] + a * s[p]);
    }
}

tpl_code cuda_rope(kernel_ctx *ctx, const op_call *call, tpl_err *e)
{
    const op_rope *o = &call->rope;
    if (o->x.rows == 0 || o->dim == 0)
        return TPL_OK;
    int most = ROPE_SPACE / (o->dim * (int)sizeof(float)), group = most < 1 ? 1 : most < o->heads ? most : o->heads;
    dim3 grid((unsigned)o->x.rows, (unsigned)((o->heads + group - 1) / group));
    size_t space = (size_t)group * (size_t)o->dim * sizeof(float);
    CU_BY_TYPE(o->x.dtype, T,
               cu_launch(cu_stream(ctx), rope_kernel<T>, grid, THREADS, space, view<T>(&o->x), o->heads, o->head_stride,
                         o->dim, o->cos, o->sin, o->interleaved, o->batch->row_pos, group));
    return cu_launched("rope", e);
}

/* ---- kv_append: a block a row ---- */

template <typename T, typename K>
static __global__ void append_kernel(cu_mat<T> a, int a_cols, int a_off, cu_mat<T> b, int b_cols, int b_off,
                                     cu_cache kv, cu_batch batch)
{
    cu_begin();
    int row = blockIdx.x, seq = batch.row_seq[row], slot = cu_slot0(batch, seq) + row - batch.seq_row0[seq];
    if (slot % kv.mod != kv.rem)
        return;
    K *to = (K *)kv.pages + cu_cached_row(kv, seq, slot / kv.mod);
    for (int c = threadIdx.x; c < a_cols; c += blockDim.x)
        cu_put(to + a_off + c, cu_get(a.data[row * a.stride + c]));
    for (int c = threadIdx.x; c < b_cols; c += blockDim.x)
        cu_put(to + b_off + c, cu_get(b.data[row * b.stride + c]));
}

tpl_code cuda_kv_append(kernel_ctx *ctx, const op_call *call, tpl_err *e)
{
    const op_kv_append *o = &call->kv_append;
    if (o->batch->n_rows == 0)
        return TPL_OK;
    int b_cols = o->b.data ? (int)o->b.cols : 0;
    CU_BY_TYPE(o->a.dtype, T,
               CU_BY_TYPE(o->kv.dtype, K,
                          cu_launch(cu_stream(ctx), append_kernel<T, K>, (unsigned)o->batch->n_rows, THREADS, 0,
                                    view<T>(&o->a), (int)o->a.cols, o->a_off, view<T>(&o->b), b_cols, o->b_off,
                                    cu_cache_of(&o->kv), cu_batch_of(o->batch))));
    return cu_launched("kv_append", e);
}

/* ---- element by element: a thread an element, rows in x ---- */

template <typename T> static __global__ void silu_mul_kernel(cu_mat<T> gate, cu_mat<T> up, cu_mat<T> out, int64_t width)
{
    cu_begin();
    int64_t c = (int64_t)blockIdx.y * blockDim.x + threadIdx.x, r = blockIdx.x;
    if (c >= width)
        return;
    float g = cu_get(gate.data[r * gate.stride + c]), u = cu_get(up.data[r * up.stride + c]);
    cu_put(out.data + r * out.stride + c, g / (1.f + expf(-g)) * u);
}

tpl_code cuda_silu_mul(kernel_ctx *ctx, const op_call *call, tpl_err *e)
{
    const op_silu_mul *o = &call->silu_mul;
    dim3 grid((unsigned)o->out.rows, blocks_of(o->out.cols));
    if (o->out.rows == 0)
        return TPL_OK;
    CU_BY_TYPE(o->out.dtype, T,
               cu_launch(cu_stream(ctx), silu_mul_kernel<T>, grid, THREADS, 0, view<T>(&o->gate), view<T>(&o->up),
                         view<T>(&o->out), o->out.cols));
    return cu_launched("silu_mul", e);
}

template <typename T> static __global__ void add_kernel(cu_mat<T> x, cu_mat<T> out, int64_t width)
{
    cu_begin();
    int64_t c = (int64_t)blockIdx.y * blockDim.x + threadIdx.x, r = blockIdx.x;
    if (c < width)
        cu_put(out.data + r * out.stride + c, cu_get(out.data[r * out.stride + c]) + cu_get(x.data[r * x.stride + c]));
}

tpl_code cuda_add(kernel_ctx *ctx, const op_call *call, tpl_err *e)
{
    const op_add *o = &call->add;
    dim3 grid((unsigned)o->out.rows, blocks_of(o->out.cols));
    if (o->out.rows == 0)
        return TPL_OK;
    CU_BY_TYPE(
        o->out.dtype, T,
        cu_launch(cu_stream(ctx), add_kernel<T>, grid, THREADS, 0, view<T>(&o->x), view<T>(&o->out), o->out.cols));
    return cu_launched("add", e);
}

template <typename T>
static __global__ void copy_heads_kernel(cu_mat<T> x, int x_step, cu_mat<T> out, int out_step, int heads, int cols)
{
    cu_begin();
    int i = blockIdx.y * blockDim.x + threadIdx.x;
    if (i >= heads * cols)
        return;
    int64_t h = i / cols, c = i % cols;
    out.data[blockIdx.x * out.stride + h * out_step + c] = x.data[blockIdx.x * x.stride + h * x_step + c];
}

/* Whether all that is copied lies in pieces of 16 bytes. */
static bool is_copy_of_pieces(const op_copy_heads *o)
{
    uintptr_t at = (uintptr_t)o->x.data | (uintptr_t)o->out.data;
    int64_t steps = o->x.stride | o->out.stride | o->x_head_stride | o->out_head_stride | o->cols;
    return o->x.dtype == DT_BF16 && at % 16 == 0 && steps % 8 == 0;
}

tpl_code cuda_copy_heads(kernel_ctx *ctx, const op_call *call, tpl_err *e)
{
    const op_copy_heads *o = &call->copy_heads;
    dim3 grid((unsigned)o->out.rows, blocks_of((int64_t)o->heads * o->cols));
    if (o->out.rows == 0 || o->cols == 0)
        return TPL_OK;
    if (is_copy_of_pieces(o)) {
        cu_mat<uint4> x = {(uint4 *)o->x.data, o->x.stride / 8}, out = {(uint4 *)o->out.data, o->out.stride / 8};
        grid.y = blocks_of((int64_t)o->heads * o->cols / 8);
        cu_launch(cu_stream(ctx), copy_heads_kernel<uint4>, grid, THREADS, 0, x, o->x_head_stride / 8, out,
                  o->out_head_stride / 8, o->heads, o->cols / 8);
        return cu_launched("copy_heads", e);
    }
    CU_BY_TYPE(o->x.dtype, T,
               cu_launch(cu_stream(ctx), copy_heads_kernel<T>, grid, THREADS, 0, view<T>(&o->x), o->x_head_stride,
                         view<T>(&o->out), o->out_head_stride, o->heads, o->cols));
    return cu_launched("copy_heads", e);
}

/* ---- lse_merge: a block a row and head, or, of bf16 in 16-byte pieces, a warp ---- */

/* Part `part` of parts whose log-sum-exps stand `step` apart. */
static __device__ __forceinline__ float lse_weight(const float *all, int64_t step, int parts, int part)
{
    float own = all[part * step], top = -INFINITY, sum = 0;
    for (int p = 0; p < parts; p++)
        top = fmaxf(top, all[p * step]);
    for (int p = 0; p < parts && top > -INFINITY; p++)
        sum += expf(all[p * step] - top);
    return own == -INFINITY ? 0.f : expf(own - top) / sum;
}

template <typename T>
static __global__ void lse_merge_kernel(cu_mat<T> o, cu_mat<float> lse, int heads, int lat, int parts, int part)
{
    cu_begin();
    const float *all = lse.data + blockIdx.x * lse.stride + blockIdx.y;
    T *to = o.data + blockIdx.x * o.stride + (int64_t)blockIdx.y * lat;
    float weight = lse_weight(all, heads, parts, part);
    for (int c = threadIdx.x; c < lat; c += blockDim.x)
        cu_put(to + c, weight == 0.f ? 0.f : weight * cu_get(to[c]));
}

/* grid (rows, heads / warps of a block) */
static __global__ void __launch_bounds__(THREADS)
    lse_merge_wide_kernel(cu_bf16 *o, int64_t o_stride, const float *lse, int64_t lse_stride, int heads, int pieces,
                          int parts, int part)
{
    enum { AT_ONCE = 4 };
    int head = blockIdx.y * (THREADS / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
    cu_begin();
    if (head >= heads)
        return;
    uint4 *to = (uint4 *)(o + blockIdx.x * o_stride) + (int64_t)head * pieces, none = make_uint4(0, 0, 0, 0);
    float weight = lse_weight(lse + blockIdx.x * lse_stride + head, heads, parts, part);
    for (int c0 = lane; c0 < pieces; c0 += 32 * AT_ONCE) {
        uint4 v[AT_ONCE];
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++)
            v[i] = weight != 0.f && c0 + 32 * i < pieces ? to[c0 + 32 * i] : none;
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++)
            if (c0 + 32 * i < pieces)
                to[c0 + 32 * i] = weight == 0.f ? none : cu_scale_8(v[i], none, false, weight);
    }
}

tpl_code cuda_lse_merge(kernel_ctx *ctx, const op_call *call, tpl_err *e)
{
    const op_lse_merge *o = &call->lse_merge;
    dim3 grid((unsigned)o->o.rows, (unsigned)o->heads);
    if (o->o.rows == 0)
        return TPL_OK;
    if (o->o.dtype == DT_BF16 && (uintptr_t)o->o.data % 16 == 0 && o->o.stride % 8 == 0 && o->lat % 8 == 0) {
        grid.y = (unsigned)((o->heads + THREADS / 32 - 1) / (THREADS / 32));
        cu_launch(cu_stream(ctx), lse_merge_wide_kernel, grid, THREADS, 0, (cu_bf16 *)o->o.data, o->o.stride,
                  (const float *)o->lse.data, o->lse.stride, o->heads, o->lat / 8, o->parts, o->part);
        return cu_launched("lse_merge", e);
    }
    CU_BY_TYPE(o->o.dtype, T,
               cu_launch(cu_stream(ctx), lse_merge_kernel<T>, grid, threads_for(o->lat), 0, view<T>(&o->o),
                         view<float>(&o->lse), o->heads, o->lat, o->parts, o->part));
    return cu_launched("lse_merge", e);
}
