/* ref.h - the reference backend: what every other kernel answers to. Double accumulation, one loop a sum, any types.
 * For:    the rows of backend "ref".
 * Enter:  kernels/ref only.
 * Owns:   nothing; scratch is the caller's.
 * Fails:  never; shapes were checked. */
#ifndef TPL_KERNELS_REF_REF_H
#define TPL_KERNELS_REF_REF_H

#include <assert.h>

#include "kernels/kernels.h"

/* The kernels, and the scratch some of them want. */
#define REF_RUN(kind, name) tpl_code ref_##name(kernel_ctx *ctx, const op_call *call, tpl_err *e);
OP_LIST(REF_RUN)
#undef REF_RUN
size_t ref_scratch_matmul(const op_call *call);
size_t ref_scratch_moe_route(const op_call *call);
size_t ref_scratch_moe_experts(const op_call *call);
size_t ref_scratch_rope(const op_call *call);
size_t ref_scratch_attn_latent(const op_call *call);
size_t ref_scratch_attn_mha(const op_call *call);
size_t ref_scratch_attn_gqa(const op_call *call);

/* Element i of an array of type t. */
static inline double ref_load(const void *data, tpl_dtype t, int64_t i)
{
    switch (t) {
    case DT_F32:
        return ((const float *)data)[i];
    case DT_BF16:
        return bf16_to_f32(((const bf16 *)data)[i]);
    case DT_F16:
        return f16_to_f32(((const f16 *)data)[i]);
    case DT_F8E4M3:
        return f8e4m3_to_f32(((const uint8_t *)data)[i]);
    default:
        assert(!"not a type of kernels");
        return 0;
    }
}

static inline double ref_get(const mat *m, int64_t row, int64_t col)
{
    double v = ref_load(m->data, m->dtype, row * m->stride + col);
    return m->scale ? v * m->scale[row / 128 * ((m->cols + 127) / 128) + col / 128] : v;
}

static inline double ref_head_get(const head_mat *w, int64_t head, int64_t row, int64_t col)
{
    return ref_load(w->data, w->dtype, head * w->head_stride + row * w->row_stride + col);
}

static inline void ref_put(const mat *m, int64_t row, int64_t col, double v)
{
    float f = (float)v;
    size_t at = (size_t)(row * m->stride + col) * dtype_bytes(m->dtype);
    dtype_from_f32((char *)m->data + at, m->dtype, &f, 1);
}

/* A value as a matrix product or an attention takes it in. */
static inline double ref_in(const kernel_ctx *ctx, double v)
{
    return ctx->compute == DT_BF16 ? bf16_to_f32(bf16_from_f32((float)v)) : v;
}

#endif
