/* Attention, first rung: any widths, any types, no matrix units. A block serves one row and head; its warps take tokens
 * in turn and keep a running softmax each, and join at the end. Its only merit is that it is easy to believe. */
#include "kernels/cuda/cuda.cuh"

enum { WARPS = 4, THREADS = 32 * WARPS };

/* Where keys and values come from: columns of the cache, or, where `xk` is given, K's first part and V from packed
 * arrays of tokens [first, first + n). */
template <typename T> struct simple_source {
    cu_cache kv;
    int k_off, k2_off, v_off; /* columns; k2 follows k in the query */
    int k_step, v_step;       /* columns or elements from one key head to the next */
    const T *xk, *xv;
    int64_t xk_row, xv_row; /* elements a token */
    int first, n;
};

template <typename T> struct simple_io {
    const T *q, *q2;
    int64_t q_stride, q2_stride, q_step, q2_step;
    T *out;
    float *lse, *state, *state_lse;
    int64_t out_stride, lse_stride;
    float scale;
    int dk, dk2, dv, group, window, seq0;
    bool accumulate, join, finish; /* join: with the state; finish: into out, else into the state */
};

/* Adds weight * value to a warp's running sums. */
template <typename V> static __device__ void add_value(float *acc, const V *value, int n, float keep, float weight)
{
    for (int c = threadIdx.x % 32; c < n; c += 32)
        acc[c] = acc[c] * keep + weight * cu_get(value[c]);
}

template <typename A> static __device__ float dot_part(const float *q, const A *k, int n)
{
    float sum = 0;
    for (int c = threadIdx.x % 32; c < n; c += 32)
        sum += q[c] * cu_get(k[c]);
    return sum;
}

/* The running softmax of one warp over its share of the tokens. */
template <typename T, typename K>
static __device__ void walk_tokens(const simple_source<T> &s, const simple_io<T> &io, const cu_batch &b, int seq,
                                   int row, int head, const float *q, float *acc, float *top, float *sum)
{
    cu_sight sight = cu_sight_of(b, seq, row, io.window);
    int kv_head = head / io.group, n_slots = cu_slot0(b, seq) + b.seq_row0[seq + 1] - b.seq_row0[seq];
    int end = min(cu_kept(s.kv.mod, s.kv.rem, n_slots), s.first + s.n);
    for (int t = s.first + threadIdx.x / 32; t < end; t += WARPS) {
        if (!cu_sees(sight, t * s.kv.mod + s.kv.rem))
            continue;
        const K *cached = (const K *)s.kv.pages + cu_cached_row(s.kv, seq, t);
        float score = dot_part(q + io.dk, cached + s.k2_off, io.dk2);
        if (s.xk)
            score += dot_part(q, s.xk + (int64_t)(t - s.first) * s.xk_row + (int64_t)kv_head * s.k_step, io.dk);
        else
            score += dot_part(q, cached + s.k_off + (int64_t)kv_head * s.k_step, io.dk);
        score = cu_warp_sum(score) * io.scale;
        float max = fmaxf(*top, score), keep = *sum > 0 ? expf(*top - max) : 0.f, weight = expf(score - max);
        *sum = *sum * keep + weight;
        *top = max;
        if (s.xv)
            add_value(acc, s.xv + (int64_t)(t - s.first) * s.xv_row + (int64_t)kv_head * s.v_step, io.dv, keep, weight);
        else
            add_value(acc, cached + s.v_off + (int64_t)kv_head * s.v_step, io.dv, keep, weight);
    }
}

/* What a block has found, joined with the state of earlier blocks of tokens, into the state or into out. */
template <typename T>
static __device__ void store(const simple_io<T> &io, int64_t row, int head, const float *acc, const float *tops,
                             const float *sums)
{
    float top = -INFINITY, sum = 0, weight[WARPS];
    for (int w = 0; w < WARPS; w++)
        top = fmaxf(top, tops[w]);
    int64_t at = row * gridDim.y + head;
    float old_lse = io.join ? io.state_lse[at] : -INFINITY;
    top = fmaxf(top, old_lse);
    float old = old_lse > -INFINITY ? expf(old_lse - top) : 0.f;
    sum = old;
    for (int w = 0; w < WARPS; w++) {
        weight[w] = tops[w] > -INFINITY ? expf(tops[w] - top) : 0.f;
        sum += weight[w] * sums[w];
    }
    __syncthreads(); /* everybody has read the old state */
    for (int c = threadIdx.x; c < io.dv; c += THREADS) {
        float v = io.join && old > 0 ? old * io.state[at * io.dv + c] : 0.f;
        for (int w = 0; w < WARPS; w++)
            v += weight[w] > 0 ? weight[w] * acc[w * io.dv + c] : 0.f;
        v = sum > 0 ? v / sum : 0.f;
        T *to = io.out + row * io.out_stride + (int64_t)head * io.dv + c;
        if (!io.finish)
            io.state[at * io.dv + c] = v;
        else
            cu_put(to, io.accumulate ? cu_get(*to) + v : v);
    }
    float lse = sum > 0 ? top + logf(sum) : -INFINITY;
    if (threadIdx.x == 0 && !io.finish)
        io.state_lse[at] = lse;
    if (threadIdx.x == 0 && io.finish && io.lse)
        io.lse[row * io.lse_stride + head] = lse;
}

/* grid (rows, heads); `only` >= 0: rows of other sequences are left alone. */
template <typename T, typename K>
static __global__ void __launch_bounds__(THREADS)
    simple_kernel(simple_source<T> s, simple_io<T> io, cu_batch b, int only)
{
    extern __shared__ float space[];
    int row = blockIdx.x, head = blockIdx.y, seq = b.row_seq[row], warp = threadIdx.x / 32;
    if (only >= 0 && seq != only)
        return;
    float *q = space, *acc = q + io.dk + io.dk2, *tops = acc + WARPS * io.dv, *sums = tops + WARPS;
    for (int c = threadIdx.x; c < io.dk; c += THREADS)
        q[c] = cu_get(io.q[row * io.q_stride + head * io.q_step + c]);
    for (int c = threadIdx.x; c < io.dk2; c += THREADS)
        q[io.dk + c] = cu_get(io.q2[row * io.q2_stride + head * io.q2_step + c]);
    for (int c = threadIdx.x; c < WARPS * io.dv; c += THREADS)
        acc[c] = 0;
    __syncthreads();
    float top = -INFINITY, sum = 0;
    walk_tokens<T, K>(s, io, b, seq, row, head, q, acc + warp * io.dv, &top, &sum);
    if (threadIdx.x % 32 == 0) {
        tops[warp] = top;
        sums[warp] = sum;
    }
    __syncthreads();
    store(io, row, head, acc, tops, sums);
}

template <typename T>
static tpl_code launch(kernel_ctx *ctx, const simple_source<T> &s, tpl_dtype cache, const simple_io<T> &io,
                       const batch_view *b, int heads, int only, tpl_err *e)
{
    dim3 grid((unsigned)b->n_rows, (unsigned)heads);
    size_t space = (size_t)(io.dk + io.dk2 + WARPS * (io.dv + 2)) * sizeof(float);
    if (b->n_rows == 0)
        return TPL_OK;
    if (space > 48u << 10)
        return tpl_fail(e, TPL_E_UNSUPPORTED, "attention",
                        "keys of %d and values of %d columns need %zu bytes of shared memory", io.dk + io.dk2, io.dv,
                        space);
    CU_BY_TYPE(cache, K, simple_kernel<T, K><<<grid, THREADS, space, cu_stream(ctx)>>>(s, io, cu_batch_of(b), only));
    return cu_launched("attention", e);
}

enum { ALL_TOKENS = 1 << 30 };

template <typename T> static tpl_code run_latent(kernel_ctx *ctx, const op_attn_latent *o, tpl_err *e)
{
    simple_source<T> s = {cu_cache_of(&o->kv), o->lat_off, o->rope_off, o->lat_off, 0, 0, NULL, NULL, 0, 0, 0,
                          ALL_TOKENS};
    simple_io<T> io = {(const T *)o->q_lat.data,
                       (const T *)o->q_pe.data,
                       o->q_lat.stride,
                       o->q_pe.stride,
                       o->q_lat_head_stride,
                       o->q_pe_head_stride,
                       (T *)o->out.data,
                       (float *)o->lse.data,
                       NULL,
                       NULL,
                       o->out.stride,
                       o->lse.stride,
                       o->scale,
                       o->lat,
                       o->rope,
                       o->lat,
                       o->heads,
                       0,
                       0,
                       false,
                       false,
                       true};
    return launch<T>(ctx, s, o->kv.dtype, io, o->batch, o->heads, -1, e);
}

tpl_code cuda_attn_latent(kernel_ctx *ctx, const op_call *call, tpl_err *e)
{
    CU_BY_TYPE(call->attn_latent.out.dtype, T, return run_latent<T>(ctx, &call->attn_latent, e));
}

template <typename T> static tpl_code run_gqa(kernel_ctx *ctx, const op_attn_gqa *o, tpl_err *e)
{
    simple_source<T> s = {cu_cache_of(&o->kv), o->k_off, 0, o->v_off, o->head_dim, o->head_dim, NULL, NULL, 0, 0, 0,
                          ALL_TOKENS};
    simple_io<T> io = {(const T *)o->q.data,
                       NULL,
                       o->q.stride,
                       0,
                       o->head_dim,
                       0,
                       (T *)o->out.data,
                       NULL,
                       NULL,
                       NULL,
                       o->out.stride,
                       0,
                       o->scale,
                       o->head_dim,
                       0,
                       o->head_dim,
                       o->heads / o->kv_heads,
                       o->window,
                       0,
                       false,
                       false,
                       true};
    return launch<T>(ctx, s, o->kv.dtype, io, o->batch, o->heads, -1, e);
}

tpl_code cuda_attn_gqa(kernel_ctx *ctx, const op_call *call, tpl_err *e)
{
    CU_BY_TYPE(call->attn_gqa.out.dtype, T, return run_gqa<T>(ctx, &call->attn_gqa, e));
}

/* One block of expanded tokens of one sequence. */
template <typename T>
static tpl_code run_mha_block(kernel_ctx *ctx, const op_attn_mha *o, const mha_space *x, mha_block b, tpl_err *e)
{
    simple_source<T> s = {cu_cache_of(&o->kv),
                          0,
                          o->rope_off,
                          0,
                          o->nope,
                          o->v_dim,
                          (const T *)x->keys,
                          (const T *)x->values,
                          (int64_t)o->heads * o->nope,
                          (int64_t)o->heads * o->v_dim,
                          b.first,
                          b.n};
    const T *q = (const T *)o->q.data;
    int width = o->nope + o->rope;
    simple_io<T> io = {q,
                       q + o->nope,
                       o->q.stride,
                       o->q.stride,
                       width,
                       width,
                       (T *)o->out.data,
                       NULL,
                       x->state,
                       x->state_lse,
                       o->out.stride,
                       0,
                       o->scale,
                       o->nope,
                       o->rope,
                       o->v_dim,
                       1,
                       0,
                       0,
                       o->accumulate,
                       b.first > 0,
                       b.last};
    return launch<T>(ctx, s, o->kv.dtype, io, o->batch, o->heads, b.seq, e);
}

tpl_code cuda_attn_mha(kernel_ctx *ctx, const op_call *call, tpl_err *e)
{
    const op_attn_mha *o = &call->attn_mha;
    CU_BY_TYPE(o->out.dtype, T, return cuda_mha_blocks(ctx, o, run_mha_block<T>, e));
}
