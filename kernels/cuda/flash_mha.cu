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
static tpl_code run_block(kernel_ctx *ctx, const op_attn_mha *o, const mha_space *x, mha_block b, tpl_err *e)
{
    return flash_launch<S>(ctx, cuda_mha_args(o, x, b), o->batch->max_seq_rows, o->heads, 1, b.n, "attn_mha", e);
}

tpl_code cuda_flash_mha(kernel_ctx *ctx, const op_call *call, tpl_err *e)
{
    const op_attn_mha *o = &call->attn_mha;
    if (o->batch->n_rows == 0)
        return TPL_OK;
#define RUN(nope_, rope_, v_, S)                                                                                       \
    if (o->nope == nope_ && o->rope == rope_ && o->v_dim == v_)                                                        \
        return cuda_mha_blocks(ctx, o, run_block<S>, e);
    EACH_SHAPE(RUN)
#undef RUN
    return tpl_fail(e, TPL_E_UNSUPPORTED, "attn_mha", "no instance for nope %d, rope %d, v %d", o->nope, o->rope,
                    o->v_dim);
}
