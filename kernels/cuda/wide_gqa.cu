/* attn_gqa on warpgroups (wgmma, compute capability 9.0): of 17 to 64 query vectors a key head, decode of many heads to
 * a key head (wide_alone.cuh); and of more, prefill (wide_many.cu). bytes  2 * (2 rows * heads * dim + 2 tokens *
 * kv_heads * dim); flops 4 * heads * pairs * dim check  ref, tolerance "bf16_attn". */
#include "kernels/cuda/wide_alone.cuh"

template <wide_way WAY> using gqa_144 = wide_shape<144, 0, 144, true, 64, 4, 0, WAY>;
template <wide_way WAY> using gqa_128 = wide_shape<128, 0, 128, true, 64, 4, 0, WAY>;

static bool has_some(const op_attn_gqa *o)
{
    const batch_view *b = o->batch;
    int64_t vectors = b ? (int64_t)b->max_seq_rows * (o->heads / o->kv_heads) : 0;
    return vectors > 16 && vectors <= 64 && (o->head_dim == 144 || o->head_dim == 128) && o->window == 0 &&
           (uintptr_t)o->out.data % 8 == 0;
}

bool cuda_wide_has_gqa(const op_attn_gqa *o)
{
    return (has_some(o) || cuda_many_has_gqa(o)) && o->scale >= 0 &&
           flash_aligned(o->q.data, o->q.stride, o->k_off, o->v_off) &&
           flash_aligned(o->kv.pages, o->kv.width, o->out.stride, 0) && (uintptr_t)o->out.data % 4 == 0;
}

size_t cuda_scratch_wide_gqa(const op_call *call)
{
    const op_attn_gqa *o = &call->attn_gqa;
    size_t wholes = o->batch ? (size_t)o->batch->n_seqs * (size_t)o->kv_heads : 0;
    size_t own = wide_scratch_bytes(128, (size_t)o->head_dim, wholes), other = cuda_scratch_flash_gqa(call);
    return own > other ? own : other; /* of fewer rows the second rung may be asked */
}

template <typename S>
static tpl_code run(kernel_ctx *ctx, flash_args a, const op_attn_gqa *o, const CUtensorMap &map, tpl_err *e)
{
    wide_cut c = wide_cut_of<S>(&o->kv, o->batch, (int64_t)o->batch->max_seq_rows * a.group, o->kv_heads, 700);
    wide_lay_parts<S>(ctx, c, (int)o->batch->n_seqs, &a);
    TPL_TRY(wide_launch<S>(ctx, wide_kernel<S, alone>, c, "attn_gqa", e, a, map, (int)o->batch->n_seqs));
    return wide_finish<S>(ctx, a, c, o->batch->n_seqs, "attn_gqa", e);
}

template <template <wide_way> class S>
static tpl_code run_by(kernel_ctx *ctx, const flash_args &a, const op_attn_gqa *o, tpl_err *e)
{
    CUtensorMap map = {};
    if (!map_cache(&o->kv, &map))
        return run<S<BY_CHUNKS>>(ctx, a, o, map, e);
    return run<S<BY_BOXES>>(ctx, a, o, map, e);
}

tpl_code cuda_wide_gqa(kernel_ctx *ctx, const op_call *call, tpl_err *e)
{
    const op_attn_gqa *o = &call->attn_gqa;
    if (o->batch->n_rows == 0)
        return TPL_OK;
    if (!has_some(o))
        return cuda_many_gqa(ctx, o, e);
    flash_args a = cuda_gqa_args(o);
    return o->head_dim == 144 ? run_by<gqa_144>(ctx, a, o, e) : run_by<gqa_128>(ctx, a, o, e);
}
