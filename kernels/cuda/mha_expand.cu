/* The multi-head form of MLA: latents of a block of tokens gathered into one array, keys and values by matrix products.
 */
#include "kernels/cuda/cuda.cuh"

enum { SPACE_BYTES = 256 << 20, TOKENS = 64 }; /* of expanded keys and values; blocks are whole multiples of TOKENS */

/* Cuts arrays off scratch, 256-byte aligned; with base NULL it only counts. */
static char *cut(char *base, size_t *used, size_t bytes)
{
    char *at = base ? base + *used : NULL;
    *used += (bytes + 255) / 256 * 256;
    return at;
}

/* Values of an expanded token, and how many tokens there are and have room. */
typedef struct {
    int64_t token, all, most;
} extent;

static extent extent_of(const op_attn_mha *o)
{
    extent x = {.token = (int64_t)o->heads * (o->nope + o->v_dim) + o->lat};
    int64_t kept = cu_kept(o->kv.mod, 0, o->batch->max_slots);
    x.most = SPACE_BYTES / (x.token * (int64_t)dtype_bytes(o->out.dtype)) / TOKENS * TOKENS;
    x.most = x.most < TOKENS ? (int64_t)TOKENS : x.most;
    x.all = (kept + TOKENS - 1) / TOKENS * TOKENS;
    return x;
}

static size_t lay_out(const op_attn_mha *o, void *base, mha_space *s)
{
    size_t size = dtype_bytes(o->out.dtype), used = 0;
    extent x = extent_of(o);
    int64_t all = x.all, most = x.most;
    s->block_tok = all < most ? all : most;
    size_t tok = (size_t)s->block_tok, rows = (size_t)o->batch->n_rows * (size_t)o->heads;
    s->latents = cut((char *)base, &used, tok * (size_t)o->lat * size);
    s->keys = cut((char *)base, &used, tok * (size_t)o->heads * (size_t)o->nope * size);
    s->values = cut((char *)base, &used, tok * (size_t)o->heads * (size_t)o->v_dim * size);
    s->state = NULL;
    s->state_lse = NULL;
    if (all > most) {
        s->state = (float *)cut((char *)base, &used, rows * (size_t)o->v_dim * sizeof(float));
        s->state_lse = (float *)cut((char *)base, &used, rows * sizeof(float));
    }
    return used;
}

size_t cuda_scratch_attn_mha(const op_call *call)
{
    mha_space s;
    return lay_out(&call->attn_mha, NULL, &s);
}

/* grid (tokens), a thread a column; tokens past the sequence's end are zero, so that products of them stay finite. */
template <typename T, typename K>
static __global__ void gather_kernel(T *to, int width, int off, cu_cache kv, cu_batch b, int seq, int first)
{
    int t = first + blockIdx.x, n_slots = cu_slot0(b, seq) + b.seq_row0[seq + 1] - b.seq_row0[seq];
    bool inside = t < cu_kept(kv.mod, kv.rem, n_slots);
    const K *from = inside ? (const K *)kv.pages + cu_cached_row(kv, seq, t) + off : NULL;
    for (int c = threadIdx.x; c < width; c += blockDim.x)
        cu_put(to + (int64_t)blockIdx.x * width + c, inside ? cu_get(from[c]) : 0.f);
}

/* Every head's product at once where the heads' matrices follow each other, else one product a head. */
static tpl_code expand(kernel_ctx *ctx, const head_mat *w, const void *latents, int64_t n_tok, void *out, tpl_err *e)
{
    bool joined = w->head_stride == (int64_t)w->rows * w->row_stride;
    int64_t wide = (int64_t)w->heads * w->rows;
    cuda_product p = {.rows = n_tok,
                      .n = joined ? wide : w->rows,
                      .k = w->cols,
                      .ldx = w->cols,
                      .ldw = w->row_stride,
                      .ldo = wide,
                      .x_step = 0,
                      .w_step = joined ? 0 : w->head_stride,
                      .out_step = joined ? 0 : w->rows,
                      .batch = joined ? 1 : w->heads,
                      .in = w->dtype,
                      .out = w->dtype,
                      .w_transposed = false,
                      .accumulate = false};
    return cuda_multiply(ctx, &p, latents, w->data, out, e);
}

static tpl_code expand_block(kernel_ctx *ctx, const op_attn_mha *o, const mha_space *s, mha_block block, tpl_err *e)
{
    cu_cache kv = cu_cache_of(&o->kv);
    cu_batch b = cu_batch_of(o->batch);
    CU_BY_TYPE(o->out.dtype, T,
               CU_BY_TYPE(o->kv.dtype, K,
                          gather_kernel<T, K><<<(unsigned)block.n, 128, 0, cu_stream(ctx)>>>(
                              (T *)s->latents, o->lat, o->lat_off, kv, b, block.seq, block.first)));
    TPL_TRY(cu_launched("attn_mha", e));
    TPL_TRY(expand(ctx, &o->w_uk, s->latents, block.n, s->keys, e));
    return expand(ctx, &o->w_uv, s->latents, block.n, s->values, e);
}

/* Where not all tokens of all heads have room: so many heads at once that their tokens have, if these fill the card;
 * else all heads, block by block of tokens, whose sums must be kept between blocks. */
static int32_t heads_at_once(const op_attn_mha *o)
{
    extent x = extent_of(o);
    if (x.all <= x.most)
        return o->heads;
    int64_t fit = (x.most * x.token / x.all - 1 - o->lat) / (o->nope + o->v_dim);
    if (fit < 1)
        return o->heads;
    int64_t groups = (o->heads + fit - 1) / fit, heads = (o->heads + groups - 1) / groups;
    return (o->batch->max_seq_rows + 127) / 128 * heads < cuda_sm_count() ? o->heads : (int32_t)heads;
}

static mat columns_from(mat m, int64_t first, int64_t n)
{
    m.data = (char *)m.data + (size_t)first * dtype_bytes(m.dtype);
    m.cols = n;
    return m;
}

static head_mat heads_from(head_mat w, int32_t first, int32_t n)
{
    w.data = (const char *)w.data + (size_t)(first * w.head_stride) * dtype_bytes(w.dtype);
    w.heads = n;
    return w;
}

/* The same for heads [first, first + n) only. */
static op_attn_mha part_of(const op_attn_mha *o, int32_t first, int32_t n)
{
    op_attn_mha part = *o;
    part.heads = n;
    part.q = columns_from(o->q, (int64_t)first * (o->nope + o->rope), (int64_t)n * (o->nope + o->rope));
    part.out = columns_from(o->out, (int64_t)first * o->v_dim, (int64_t)n * o->v_dim);
    part.w_uk = heads_from(o->w_uk, first, n);
    part.w_uv = heads_from(o->w_uv, first, n);
    return part;
}

static tpl_code run_part(kernel_ctx *ctx, const op_attn_mha *o, cuda_mha_run *run, tpl_err *e)
{
    mha_space x;
    lay_out(o, ctx->scratch, &x);
    int32_t n_tok = cu_kept(o->kv.mod, 0, o->batch->max_slots), size = (int32_t)x.block_tok;
    for (int32_t seq = 0; seq < o->batch->n_seqs; seq++)
        for (int32_t first = 0; first < n_tok; first += size) {
            int32_t n = n_tok - first < size ? n_tok - first : size;
            mha_block b = {seq, first, n, first + n >= n_tok};
            TPL_TRY(expand_block(ctx, o, &x, b, e));
            TPL_TRY(run(ctx, o, &x, b, e));
        }
    return TPL_OK;
}

tpl_code cuda_mha_blocks(kernel_ctx *ctx, const op_attn_mha *o, cuda_mha_run *run, tpl_err *e)
{
    int32_t each = heads_at_once(o);
    for (int32_t first = 0; first < o->heads; first += each) {
        op_attn_mha part = part_of(o, first, o->heads - first < each ? o->heads - first : each);
        TPL_TRY(run_part(ctx, &part, run, e));
    }
    return TPL_OK;
}
