/* attn_gqa_decode.h - one new token a sequence against a bf16 cache of grouped keys, which is multiplied as it lies.
 * For:    attn.c, for the sequences of a batch that it fits.  Enter: kernels/cpu.
 * Owns:   nothing; scratch is the caller's.
 * Fails:  never. */
#ifndef TPL_KERNELS_CPU_ATTN_GQA_DECODE_H
#define TPL_KERNELS_CPU_ATTN_GQA_DECODE_H

#include "kernels/cpu/simd.h"
#include "kernels/ops.h"

/* Whether the instruction set and the sizes allow it; each sequence must still have one row, no window and no mask. */
bool gqa_decode_fits(const simd_ops *v, tpl_dtype compute, const op_attn_gqa *o);
size_t gqa_decode_scratch(const op_attn_gqa *o);
void gqa_decode(const simd_ops *v, const op_attn_gqa *o, int32_t seq, void *scratch);

#endif
