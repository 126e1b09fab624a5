/* attn_gqa on matrix units: the vectors of a block are the heads that share a key head, of neighbouring rows. Decode
 * has few (16 a block, warps side by side over tokens and columns), prefill many (64 a block, warps one above the
 * other). bytes  2 * (2 rows * heads * dim + 2 tokens * kv_heads * dim); flops 4 * heads * pairs * dim; bound memory in
 * decode check  ref, tolerance "bf16_attn". */
#include "kernels/cuda/flash.cuh"

typedef flash_shape<144, 0, 144, false, 16, 64, 2> few_144;
typedef flash_shape<144, 0, 144, false, 64, 64, 4> many_144;
typedef flash_shape<128, 0, 128, false, 16, 64, 4> few_128;
typedef flash_shape<128, 0, 128, false, 64, 64, 4> many_128;
typedef flash_shape<64, 0, 64, false, 16, 64, 4> few_64;
typedef flash_shape<64, 0, 64, false, 64, 64, 4> many_64;
typedef flash_shape<32, 0, 32, false, 16, 64, 4> few_32;
typedef flash_shape<32, 0, 32, false, 64, 64, 4> many_32;

#define EACH_DIM(X) X(144) X(128) X(64) X(32)

bool cuda_flash_has_gqa(const op_attn_gqa *o)
{
    bool has = false;
#define HAS(dim) has = has || o->head_dim == dim;
    EACH_DIM(HAS)
#undef HAS
    return has && flash_aligned(o->q.data, o->q.stride, o->k_off, o->v_off) &&
           flash_aligned(o->kv.pages, o->kv.width, o->out.stride, 0) && (uintptr_t)o->out.data % 4 == 0;
}

size_t cuda_scratch_flash_gqa(const op_call *call)
{
    size_t bytes = 0;
#define BYTES(dim)                                                                                                     \
    if (call->attn_gqa.head_dim == dim)                                                                                \
        bytes = flash_part_bytes<many_##dim>(flash_blocks_an_sm<many_##dim>() * 2);
    EACH_DIM(BYTES)
#undef BYTES
    return bytes > cuda_scratch_few_gqa() ? bytes : cuda_scratch_few_gqa();
}

template <typename S> static tpl_code run(kernel_ctx *ctx, const op_attn_gqa *o, tpl_err *e)
{
    const batch_view *b = o->batch;
    int64_t vectors = (int64_t)b->max_seq_rows * (o->heads / o->kv_heads), tokens = cu_kept(o->kv.mod, 0, b->max_slots);
    flash_args a = cuda_gqa_args(o);
    a.n_splits = flash_splits<S>(vectors, o->kv_heads, b->n_seqs, tokens, flash_blocks_an_sm<S>());
    a.finish = true;
    return flash_launch<S>(ctx, a, vectors, o->kv_heads, b->n_seqs, tokens, "attn_gqa", e);
}

tpl_code cuda_flash_gqa(kernel_ctx *ctx, const op_call *call, tpl_err *e)
{
    const op_attn_gqa *o = &call->attn_gqa;
    bool few = (int64_t)o->batch->max_seq_rows * (o->heads / o->kv_heads) <= 16;
    if (o->batch->n_rows == 0)
        return TPL_OK;
    if (cuda_row_has_gqa(o))
        return cuda_row_gqa(ctx, o, e);
    if (cuda_few_has_gqa(o))
        return cuda_few_gqa(ctx, o, e);
#define RUN(dim)                                                                                                       \
    if (o->head_dim == dim)                                                                                            \
        return few ? run<few_##dim>(ctx, o, e) : run<many_##dim>(ctx, o, e);
    EACH_DIM(RUN)
#undef RUN
    return tpl_fail(e, TPL_E_UNSUPPORTED, "attn_gqa", "no instance for heads of %d", o->head_dim);
}
