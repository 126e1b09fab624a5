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

static size_t lay_out(const op_attn_mha *o, void *base, mha_space *s)
{
    size_t size = dtype_bytes(o->out.dtype), used = 0, wide = (size_t)o->heads * (size_t)(o->nope + o->v_dim);
    int64_t kept = cu_kept(o->kv.mod, 0, o->batch->max_slots);
    int64_t most = (int64_t)SPACE_BYTES / (int64_t)((wide + (size_t)o->lat) * size);
    int64_t all = (kept + TOKENS - 1) / TOKENS * TOKENS;
    most = most < (int64_t)TOKENS ? (int64_t)TOKENS : most / TOKENS * TOKENS;
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

tpl_code cuda_mha_blocks(kernel_ctx *ctx, const op_attn_mha *o, cuda_mha_run *run, tpl_err *e)
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
