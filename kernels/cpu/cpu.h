/* cpu.h - the CPU backend: f32 activations, weights as stored, caches in f32 or bf16, one thread a call.
 * For:    the rows of backend "cpu"; each driver serves every instruction set.
 * Enter:  kernels/cpu only.
 * Owns:   nothing; scratch is the caller's.
 * Fails:  matmul: TPL_E_DEVICE from oneDNN; the others never. Shapes and types were checked. */
#ifndef TPL_KERNELS_CPU_CPU_H
#define TPL_KERNELS_CPU_CPU_H

#include "kernels/cpu/simd.h"
#include "kernels/kernels.h"

#define CPU_RUN(kind, name) tpl_code cpu_##name(const simd_ops *v, kernel_ctx *ctx, const op_call *call, tpl_err *e);
OP_LIST(CPU_RUN)
#undef CPU_RUN

size_t cpu_scratch_rmsnorm(const op_call *call);
size_t cpu_scratch_matmul(const op_call *call);
size_t cpu_scratch_head_matmul(const op_call *call);
size_t cpu_scratch_moe_route(const op_call *call);
size_t cpu_scratch_moe_experts(const op_call *call);
size_t cpu_scratch_rope(const op_call *call);
size_t cpu_scratch_attn_latent(const op_call *call);
size_t cpu_scratch_attn_mha(const op_call *call);
size_t cpu_scratch_attn_gqa(const op_call *call);

static inline float *cpu_row(const mat *m, int64_t row)
{
    return (float *)m->data + row * m->stride;
}

#endif
