/* attn_mha on matrix units: keys and values of a block of tokens are expanded by matrix products, the rotary part comes
 * from the cache. Blocks of tokens follow each other; between them a row's sums wait in the state. flops  2 * heads *
 * (tokens * lat * (nope + v) + pairs * (nope + rope + v)); bound: matrix units check  ref, tolerance "bf16_attn". */
#include "kernels/cuda/flash.cuh"

typedef flash_shape<128, 64, 128, false, 128, 64, 8> mha_128;
typedef flash_shape<32, 16, 32, false, 64, 64, 4> mha_32;

#define EACH_SHAPE(X)                                                                                                  \
    X(128, 64, 128, mha_128)                                                                                           \
    X(32, 16, 32, mha_32)

bool cuda_flash_has_mha(const op_attn_mha *o)
{
    bool has = false;
#define HAS(nope_, rope_, v_, S) has = has || (o->nope == nope_ && o->rope == rope_ && o->v_dim == v_);
    EACH_SHAPE(HAS)
#undef HAS
    return has && flash_aligned(o->q.data, o->q.stride, o->rope_off, 0) &&
           flash_aligned(o->kv.pages, o->kv.width, o->out.stride, 0) && (uintptr_t)o->out.data % 4 == 0;
}

template <typename S>
static tpl_code run_block(kernel_ctx *ctx, const op_attn_mha *o, const mha_space *x, int32_t seq, int32_t first,
                          int32_t n, bool last, tpl_err *e)
{
    const batch_view *b = o->batch;
    flash_args a = {};
    a.q = (const cu_bf16 *)o->q.data;
    a.q2 = a.q + o->nope;
    a.q_stride = a.q2_stride = o->q.stride;
    a.q_step = a.q2_step = o->nope + o->rope;
    a.kv = cu_cache_of(&o->kv);
    a.k2_off = o->rope_off;
    a.k_step = o->nope;
    a.v_step = o->v_dim;
    a.xk = (const cu_bf16 *)x->keys;
    a.xv = (const cu_bf16 *)x->values;
    a.xk_row = (int64_t)o->heads * o->nope;
    a.xv_row = (int64_t)o->heads * o->v_dim;
    a.first = first;
    a.n_tok = n;
    a.batch = cu_batch_of(b);
    a.seq0 = seq;
    a.group = 1;
    a.heads = o->heads;
    a.n_splits = 1;
    a.scale_log2 = o->scale * 1.44269504f;
    a.out = (cu_bf16 *)o->out.data;
    a.out_stride = o->out.stride;
    a.part_o = x->state;
    a.part_lse = x->state_lse;
    a.accumulate = o->accumulate;
    a.join = first > 0;
    a.finish = last;
    return flash_launch<S>(ctx, a, b->max_seq_rows, o->heads, 1, n, "attn_mha", e);
}

template <typename S> static tpl_code run(kernel_ctx *ctx, const op_attn_mha *o, tpl_err *e)
{
    mha_space x;
    cuda_mha_layout(o, ctx->scratch, &x);
    int32_t n_tok = cu_kept(o->kv.mod, 0, o->batch->max_slots), block = (int32_t)x.block_tok;
    for (int32_t seq = 0; seq < o->batch->n_seqs; seq++)
        for (int32_t first = 0; first < n_tok; first += block) {
            int32_t n = n_tok - first < block ? n_tok - first : block;
            TPL_TRY(cuda_mha_expand(ctx, o, &x, seq, first, n, e));
            TPL_TRY(run_block<S>(ctx, o, &x, seq, first, n, first + n >= n_tok, e));
        }
    return TPL_OK;
}

tpl_code cuda_flash_mha(kernel_ctx *ctx, const op_call *call, tpl_err *e)
{
    const op_attn_mha *o = &call->attn_mha;
    if (o->batch->n_rows == 0)
        return TPL_OK;
#define RUN(nope_, rope_, v_, S)                                                                                       \
    if (o->nope == nope_ && o->rope == rope_ && o->v_dim == v_)                                                        \
        return run<S>(ctx, o, e);
    EACH_SHAPE(RUN)
#undef RUN
    return tpl_fail(e, TPL_E_UNSUPPORTED, "attn_mha", "no instance for nope %d, rope %d, v %d", o->nope, o->rope,
                    o->v_dim);
}
