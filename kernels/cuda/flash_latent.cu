/* attn_latent on matrix units: all heads of a rank share one latent, so that a block's 64 vectors are heads of one row
 * (or of neighbouring rows), and keys are read once for all of them. bytes  2 * (rows * heads * (2 lat + rope) + tokens
 * * (lat + rope)); flops 2 * heads * pairs * (2 lat + rope) bound  memory up to about 128 vectors a token on a card of
 * 300 FLOPs a byte check  ref, tolerance "bf16_attn"; shapes below, one instance each. */
#include "kernels/cuda/flash.cuh"

/* lat, rope; tile of tokens where 227 KiB of shared memory can be had, and where only 163 KiB can. */
typedef flash_shape<512, 64, 512, true, 64, 64, 8> latent_512;
typedef flash_shape<512, 64, 512, true, 64, 32, 8> latent_512_small;
typedef flash_shape<256, 64, 256, true, 64, 64, 8> latent_256;
typedef flash_shape<128, 64, 128, true, 64, 64, 8> latent_128;
typedef flash_shape<64, 16, 64, true, 16, 64, 4> latent_64;
typedef flash_shape<32, 16, 32, true, 16, 64, 4> latent_32;
typedef flash_shape<16, 16, 16, true, 16, 32, 2> latent_16;

#define EACH_SHAPE(X)                                                                                                  \
    X(512, 64, latent_512_small)                                                                                       \
    X(512, 64, latent_512)                                                                                             \
    X(256, 64, latent_256)                                                                                             \
    X(128, 64, latent_128)                                                                                             \
    X(64, 16, latent_64)                                                                                               \
    X(32, 16, latent_32)                                                                                               \
    X(16, 16, latent_16)

bool cuda_flash_has_latent(const op_attn_latent *o)
{
    bool has = false;
#define HAS(lat_, rope_, S)                                                                                            \
    has = has || (o->lat == lat_ && o->rope == rope_ && (int)S::SHARED_BYTES <= cuda_block_shared_bytes());
    EACH_SHAPE(HAS)
#undef HAS
    return has && flash_aligned(o->q_lat.data, o->q_lat.stride, o->q_lat_head_stride, o->lat_off) &&
           flash_aligned(o->q_pe.data, o->q_pe.stride, o->q_pe_head_stride, o->rope_off) &&
           flash_aligned(o->kv.pages, o->kv.width, o->out.stride, 0) && (uintptr_t)o->out.data % 4 == 0;
}

size_t cuda_scratch_flash_latent(const op_call *call)
{
    const op_attn_latent *o = &call->attn_latent;
    size_t bytes = 0;
#define BYTES(lat_, rope_, S)                                                                                          \
    if (o->lat == lat_ && o->rope == rope_)                                                                            \
        bytes = flash_part_bytes<S>(flash_blocks_an_sm<S>());
    EACH_SHAPE(BYTES)
#undef BYTES
    return bytes;
}

template <typename S> static tpl_code run(kernel_ctx *ctx, const op_attn_latent *o, tpl_err *e)
{
    const batch_view *b = o->batch;
    int64_t vectors = (int64_t)b->max_seq_rows * o->heads, tokens = cu_kept(o->kv.mod, 0, b->max_slots);
    flash_args a = cuda_latent_args(o);
    a.n_splits = flash_splits<S>(vectors, 1, b->n_seqs, tokens, flash_blocks_an_sm<S>());
    a.finish = true;
    return flash_launch<S>(ctx, a, vectors, 1, b->n_seqs, tokens, "attn_latent", e);
}

tpl_code cuda_flash_latent(kernel_ctx *ctx, const op_call *call, tpl_err *e)
{
    const op_attn_latent *o = &call->attn_latent;
    if (o->batch->n_rows == 0)
        return TPL_OK;
    if (cuda_few_has_latent(o))
        return cuda_few_latent(ctx, o, e);
#define RUN(lat_, rope_, S)                                                                                            \
    if (o->lat == lat_ && o->rope == rope_ && (int)S::SHARED_BYTES <= cuda_block_shared_bytes() &&                     \
        ((int)S::TN == 64 || lat_ != 512 || (int)latent_512::SHARED_BYTES > cuda_block_shared_bytes()))                \
        return run<S>(ctx, o, e);
    EACH_SHAPE(RUN)
#undef RUN
    return tpl_fail(e, TPL_E_UNSUPPORTED, "attn_latent", "no instance for lat %d, rope %d", o->lat, o->rope);
}
