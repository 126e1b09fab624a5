#include "kernels/table.h"

#include <cuda_runtime_api.h>

#include "device/gpu.h"
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/joins.h"
#include "kernels/parts.h"

enum { F32 = 1 << DT_F32, WIDE_BF16 = 1 << DT_BF16, WIDE_F16 = 1 << DT_F16 };

static int attribute(enum cudaDeviceAttr a, int otherwise)
{
    int device, value;
    if (cudaGetDevice(&device) == cudaSuccess && cudaDeviceGetAttribute(&value, a, device) == cudaSuccess)
        return value;
    cudaGetLastError();
    return otherwise;
}

int cuda_sm_count(void)
{
    static int n;
    if (!n)
        n = attribute(cudaDevAttrMultiProcessorCount, 132);
    return n;
}

int cuda_block_shared_bytes(void)
{
    static int n;
    if (!n)
        n = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, 227 << 10);
    return n;
}

static bool has_card(void)
{
    static int n = -1;
    if (n < 0)
        n = gpu_count();
    return n > 0;
}

/* Weights that a product multiplies must have the activations' type; norms, embeddings and biases may have any. */
static bool multiplies(op_kind op)
{
    return op == OP_MATMUL || op == OP_MOE_ROUTE || op == OP_MOE_EXPERTS;
}

/* Experts at equal distances. */
static bool evenly_spaced(const mat *m, int32_t n)
{
    for (int32_t i = 2; m && m[0].data && i < n; i++)
        if ((char *)m[i].data - (char *)m[i - 1].data != (char *)m[1].data - (char *)m[0].data ||
            m[i].stride != m[0].stride)
            return false;
    return true;
}

/* The outputs of a lm_head and of a router, and what attention passes on about itself, are f32 whatever the rest is. */
static bool types_agree(const op_call *c, tpl_dtype act)
{
    switch (c->kind) {
    case OP_MATMUL:
        return c->matmul.out.dtype == act || c->matmul.out.dtype == DT_F32;
    case OP_HEAD_MATMUL:
        return c->head_matmul.out.dtype == act;
    case OP_RMSNORM:
        return c->rmsnorm.out.dtype == act;
    case OP_SLICED_NORM:
        return c->sliced_norm.out.dtype == act;
    case OP_SILU_MUL:
        return c->silu_mul.up.dtype == act && c->silu_mul.out.dtype == act;
    case OP_ADD:
        return c->add.out.dtype == act;
    case OP_COPY_HEADS:
        return c->copy_heads.out.dtype == act;
    case OP_KV_APPEND:
        return c->kv_append.a.dtype == act;
    case OP_ATTN_LATENT:
        return c->attn_latent.out.dtype == act && (c->attn_latent.rope == 0 || c->attn_latent.q_pe.dtype == act) &&
               (c->attn_latent.lse.cols == 0 || c->attn_latent.lse.dtype == DT_F32);
    case OP_ATTN_MHA:
        return c->attn_mha.out.dtype == act;
    case OP_ATTN_GQA:
        return c->attn_gqa.out.dtype == act;
    case OP_LSE_MERGE:
        return c->lse_merge.lse.dtype == DT_F32;
    case OP_MOE_ROUTE:
        return c->moe_route.weights.dtype == DT_F32;
    case OP_MOE_EXPERTS:
        return c->moe_experts.weights.dtype == DT_F32 && c->moe_experts.out.dtype == act &&
               evenly_spaced(c->moe_experts.gate, c->moe_experts.n_local) &&
               evenly_spaced(c->moe_experts.up, c->moe_experts.n_local) &&
               evenly_spaced(c->moe_experts.down, c->moe_experts.n_local);
    default:
        return true;
    }
}

static tpl_dtype act_of(const op_call *c, const call_parts *p)
{
    if (c->kind == OP_LSE_MERGE)
        return c->lse_merge.o.dtype;
    if (c->kind == OP_KV_APPEND)
        return c->kv_append.a.dtype;
    return p->act[0]->dtype;
}

static bool supports(const op_call *call)
{
    call_parts p = call_split(call);
    tpl_dtype act = act_of(call, &p);
    unsigned own = 1u << act;
    return (act == DT_F32 || act == DT_BF16) && types_agree(call, act) &&
           parts_have_types(&p, F32 | WIDE_BF16, multiplies(call->kind) ? own : F32 | WIDE_BF16 | WIDE_F16, own,
                            F32 | WIDE_BF16);
}

/* The second rungs: bf16 throughout, in the shapes that were compiled in. */
static bool supports_matrix_units(const op_call *call)
{
    call_parts p = call_split(call);
    if (!supports(call) || act_of(call, &p) != DT_BF16 || (p.kv && p.kv->dtype != DT_BF16))
        return false;
    switch (call->kind) {
    case OP_ATTN_LATENT:
        return cuda_flash_has_latent(&call->attn_latent);
    case OP_ATTN_GQA:
        return cuda_flash_has_gqa(&call->attn_gqa);
    case OP_ATTN_MHA:
        return cuda_flash_has_mha(&call->attn_mha);
    default:
        return call->kind == OP_MOE_EXPERTS && cuda_grouped_has(&call->moe_experts);
    }
}

/* The third rung: warpgroups of compute capability 9.0. */
static bool has_wide(void)
{
    return has_card() && cuda_wide_is_here();
}

static bool supports_wide(const op_call *call)
{
    call_parts p = call_split(call);
    if (!supports(call) || act_of(call, &p) != DT_BF16 || (p.kv && p.kv->dtype != DT_BF16))
        return false;
    switch (call->kind) {
    case OP_ATTN_LATENT:
        return cuda_wide_has_latent(&call->attn_latent);
    case OP_ATTN_GQA:
        return cuda_wide_has_gqa(&call->attn_gqa);
    default:
        return call->kind == OP_ATTN_MHA && cuda_wide_has_mha(&call->attn_mha);
    }
}

static size_t scratch_bytes(const op_call *call)
{
    switch (call->kind) {
    case OP_ATTN_MHA:
        return cuda_scratch_attn_mha(call);
    case OP_MOE_ROUTE:
        return cuda_scratch_moe_route(call);
    case OP_MOE_EXPERTS:
        return cuda_scratch_moe_experts(call);
    default:
        return 0;
    }
}

#define ROW(kind, name_)                                                                                               \
    {.op = kind,                                                                                                       \
     .backend = "cuda",                                                                                                \
     .name = "cuda_v1",                                                                                                \
     .available = has_card,                                                                                            \
     .supports = supports,                                                                                             \
     .scratch_bytes = scratch_bytes,                                                                                   \
     .run = cuda_##name_},
#define ROW_2(kind, scratch_, run_)                                                                                    \
    {.op = kind,                                                                                                       \
     .backend = "cuda",                                                                                                \
     .name = "cuda_mma",                                                                                               \
     .available = has_card,                                                                                            \
     .supports = supports_matrix_units,                                                                                \
     .scratch_bytes = scratch_,                                                                                        \
     .run = run_},

#define ROW_3(kind, scratch_, run_)                                                                                    \
    {.op = kind,                                                                                                       \
     .backend = "cuda",                                                                                                \
     .name = "cuda_wgmma",                                                                                             \
     .available = has_wide,                                                                                            \
     .supports = supports_wide,                                                                                        \
     .scratch_bytes = scratch_,                                                                                        \
     .run = run_},

/* clang-format off */
const kernel_row table_cuda_rows[] = {
    OP_LIST(ROW)
    ROW_2(OP_ATTN_LATENT, cuda_scratch_flash_latent, cuda_flash_latent)
    ROW_2(OP_ATTN_GQA, cuda_scratch_flash_gqa, cuda_flash_gqa)
    ROW_2(OP_ATTN_MHA, cuda_scratch_attn_mha, cuda_flash_mha)
    ROW_2(OP_MOE_EXPERTS, cuda_scratch_moe_experts, cuda_grouped_experts)
    ROW_3(OP_ATTN_LATENT, cuda_scratch_wide_latent, cuda_wide_latent)
    ROW_3(OP_ATTN_GQA, cuda_scratch_wide_gqa, cuda_wide_gqa)
    ROW_3(OP_ATTN_MHA, cuda_scratch_attn_mha, cuda_wide_mha)
};
/* clang-format on */
const int table_n_cuda = sizeof table_cuda_rows / sizeof *table_cuda_rows;

const kernel_join table_cuda_joins[] = {
    {"cuda", "products", has_card, cuda_join_products_takes, cuda_join_products},
    {"cuda", "panels", has_card, cuda_join_panels_takes, cuda_join_panels},
    {"cuda", "experts", has_card, cuda_join_experts_takes, cuda_join_experts},
    {"cuda", "route", has_card, cuda_join_route_takes, cuda_join_route},
    {"cuda", "add_norm", has_card, cuda_join_add_norm_takes, cuda_join_add_norm},
    {"cuda", "heads", has_card, cuda_join_heads_takes, cuda_join_heads},
    {"cuda", "rows", has_card, cuda_join_rows_takes, cuda_join_rows},
    {"cuda", "latent", has_card, cuda_join_latent_takes, cuda_join_latent},
    {"cuda", "gqa", has_card, cuda_join_gqa_takes, cuda_join_gqa},
};
const int table_n_cuda_joins = sizeof table_cuda_joins / sizeof *table_cuda_joins;
