#include "kernels/table.h"

#include "kernels/parts.h"
#include "kernels/ref/ref.h"

enum { WIDE = 1 << DT_F32 | 1 << DT_BF16 | 1 << DT_F16 };

static bool supports(const op_call *call)
{
    call_parts p = call_split(call);
    return parts_have_types(&p, WIDE, WIDE | 1 << DT_F8E4M3, WIDE, WIDE);
}

#define ROW(op_, name_, scratch_)                                                                                      \
    {                                                                                                                  \
        .op = op_, .backend = "ref", .name = "ref", .supports = supports, .scratch_bytes = scratch_,                   \
        .run = ref_##name_                                                                                             \
    }

const kernel_row table_ref_rows[TABLE_N_REF] = {
    ROW(OP_EMBED, embed, NULL),
    ROW(OP_RMSNORM, rmsnorm, NULL),
    ROW(OP_SLICED_NORM, sliced_norm, NULL),
    ROW(OP_MATMUL, matmul, ref_scratch_matmul),
    ROW(OP_HEAD_MATMUL, head_matmul, NULL),
    ROW(OP_ROPE, rope, ref_scratch_rope),
    ROW(OP_KV_APPEND, kv_append, NULL),
    ROW(OP_ATTN_LATENT, attn_latent, ref_scratch_attn_latent),
    ROW(OP_ATTN_MHA, attn_mha, ref_scratch_attn_mha),
    ROW(OP_ATTN_GQA, attn_gqa, ref_scratch_attn_gqa),
    ROW(OP_LSE_MERGE, lse_merge, NULL),
    ROW(OP_SILU_MUL, silu_mul, NULL),
    ROW(OP_ADD, add, NULL),
    ROW(OP_COPY_HEADS, copy_heads, NULL),
    ROW(OP_GATHER_ROWS, gather_rows, NULL),
    ROW(OP_MOE_ROUTE, moe_route, ref_scratch_moe_route),
    ROW(OP_MOE_EXPERTS, moe_experts, ref_scratch_moe_experts),
};
