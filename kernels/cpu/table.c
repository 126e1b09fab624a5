#include "kernels/table.h"

#include "kernels/cpu/cpu.h"
#include "kernels/parts.h"

static bool takes_f8(op_kind op)
{
    return op == OP_MATMUL || op == OP_MOE_EXPERTS;
}

/* What a CPU row takes: f32 activations; f8 (with scales) only where a whole matrix is a weight. */
static bool supports(const op_call *call)
{
    const unsigned f32 = 1 << DT_F32, bf16_ = 1 << DT_BF16, f16_ = 1 << DT_F16, f8 = 1 << DT_F8E4M3;
    call_parts p = call_split(call);
    return parts_have_types(&p, f32, f32 | bf16_ | f16_ | (takes_f8(call->kind) ? f8 : 0), f32 | bf16_ | f16_,
                            f32 | bf16_);
}

static size_t scratch_bytes(const op_call *call)
{
    switch (call->kind) {
    case OP_RMSNORM:
        return cpu_scratch_rmsnorm(call);
    case OP_MATMUL:
        return cpu_scratch_matmul(call);
    case OP_HEAD_MATMUL:
        return cpu_scratch_head_matmul(call);
    case OP_ROPE:
        return cpu_scratch_rope(call);
    case OP_MOE_ROUTE:
        return cpu_scratch_moe_route(call);
    case OP_MOE_EXPERTS:
        return cpu_scratch_moe_experts(call);
    case OP_ATTN_LATENT:
        return cpu_scratch_attn_latent(call);
    case OP_ATTN_MHA:
        return cpu_scratch_attn_mha(call);
    case OP_ATTN_GQA:
        return cpu_scratch_attn_gqa(call);
    default:
        return 0;
    }
}

/* A kernel_row's run() says no instruction set, so each set has its own. */
#define RUN(set, name_)                                                                                                \
    static tpl_code run_##name_##_##set(kernel_ctx *ctx, const op_call *call, tpl_err *e)                              \
    {                                                                                                                  \
        return cpu_##name_(&simd_##set, ctx, call, e);                                                                 \
    }
#define RUN_PORTABLE(kind, name_) RUN(portable, name_)
#define RUN_AVX2(kind, name_) RUN(avx2, name_)
#define RUN_AVX512(kind, name_) RUN(avx512, name_)
OP_LIST(RUN_PORTABLE)
OP_LIST(RUN_AVX2)
OP_LIST(RUN_AVX512)

static bool has_avx2(void)
{
    return simd_avx2.available();
}

static bool has_avx512(void)
{
    return simd_avx512.available();
}

#define ROW(kind, set, name_, has)                                                                                     \
    {.op = kind,                                                                                                       \
     .backend = "cpu",                                                                                                 \
     .name = "cpu_" #set,                                                                                              \
     .available = has,                                                                                                 \
     .supports = supports,                                                                                             \
     .scratch_bytes = scratch_bytes,                                                                                   \
     .run = run_##name_##_##set},
#define ROW_PORTABLE(kind, name_) ROW(kind, portable, name_, NULL)
#define ROW_AVX2(kind, name_) ROW(kind, avx2, name_, has_avx2)
#define ROW_AVX512(kind, name_) ROW(kind, avx512, name_, has_avx512)

const kernel_row table_cpu_rows[TABLE_N_CPU] = {OP_LIST(ROW_PORTABLE) OP_LIST(ROW_AVX2) OP_LIST(ROW_AVX512)};
