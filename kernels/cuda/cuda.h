/* cuda.h - the CUDA backend: activations bf16 or f32, weights of the same type, caches bf16 or f32, everything
 * enqueued. For:    the rows of backend "cuda" (table.c) and their drivers (*.cu). Enter:  kernels/cuda only. Owns:
 * nothing; scratch is the caller's and lies on the card. Fails:  TPL_E_DEVICE where a launch or cuBLAS fails. Shapes
 * and types were checked. */
#ifndef TPL_KERNELS_CUDA_CUDA_H
#define TPL_KERNELS_CUDA_CUDA_H

#include "kernels/kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

#define CUDA_RUN(kind, name) tpl_code cuda_##name(kernel_ctx *ctx, const op_call *call, tpl_err *e);
OP_LIST(CUDA_RUN)
#undef CUDA_RUN

/* Second rungs: attention and experts on matrix units (mma.sync, from compute capability 8.0 on), bf16 throughout. */
tpl_code cuda_flash_latent(kernel_ctx *ctx, const op_call *call, tpl_err *e);
tpl_code cuda_flash_gqa(kernel_ctx *ctx, const op_call *call, tpl_err *e);
tpl_code cuda_flash_mha(kernel_ctx *ctx, const op_call *call, tpl_err *e);
tpl_code cuda_grouped_experts(kernel_ctx *ctx, const op_call *call, tpl_err *e);
/* Part of the above for few rows: the chosen experts' weights, streamed. */
bool cuda_few_has(const op_moe_experts *o);
tpl_code cuda_few_experts(kernel_ctx *ctx, const op_call *call, tpl_err *e);
/* Whether a shape was compiled in. Pointers and strides are looked at where data is given. */
bool cuda_flash_has_latent(const op_attn_latent *o);
bool cuda_flash_has_gqa(const op_attn_gqa *o);
bool cuda_flash_has_mha(const op_attn_mha *o);
bool cuda_grouped_has(const op_moe_experts *o);

/* The part of cuda_flash_gqa() that serves decode of common head widths. */
bool cuda_few_has_gqa(const op_attn_gqa *o);
tpl_code cuda_few_gqa(kernel_ctx *ctx, const op_attn_gqa *o, tpl_err *e);
size_t cuda_scratch_few_gqa(void);
/* The part that serves single rows at short contexts, on compute capability 9.0. */
bool cuda_row_has_gqa(const op_attn_gqa *o);
tpl_code cuda_row_gqa(kernel_ctx *ctx, const op_attn_gqa *o, tpl_err *e);

/* The part of cuda_flash_latent() and cuda_wide_latent() that serves decode of few heads at short contexts. */
bool cuda_few_has_latent(const op_attn_latent *o);
tpl_code cuda_few_latent(kernel_ctx *ctx, const op_attn_latent *o, tpl_err *e);

/* Third rungs: attention on warpgroups (wgmma). Whether this card can, and this build has its machine code. */
bool cuda_wide_is_here(void);
tpl_code cuda_wide_latent(kernel_ctx *ctx, const op_call *call, tpl_err *e);
tpl_code cuda_wide_gqa(kernel_ctx *ctx, const op_call *call, tpl_err *e);
tpl_code cuda_wide_mha(kernel_ctx *ctx, const op_call *call, tpl_err *e);
bool cuda_wide_has_latent(const op_attn_latent *o);
bool cuda_wide_has_gqa(const op_attn_gqa *o);
bool cuda_wide_has_mha(const op_attn_mha *o);
/* The part of cuda_wide_gqa() that serves prefill. */
bool cuda_many_has_gqa(const op_attn_gqa *o);
tpl_code cuda_many_gqa(kernel_ctx *ctx, const op_attn_gqa *o, tpl_err *e);

size_t cuda_scratch_flash_latent(const op_call *call);
size_t cuda_scratch_wide_latent(const op_call *call);
size_t cuda_scratch_wide_gqa(const op_call *call);
size_t cuda_scratch_flash_gqa(const op_call *call);
size_t cuda_scratch_attn_mha(const op_call *call); /* of all rungs */
size_t cuda_scratch_moe_route(const op_call *call);
size_t cuda_scratch_moe_experts(const op_call *call); /* of both rungs */

int cuda_sm_count(void); /* of the current card; 132 where there is none, to count */

/* What the code that the current card runs was compiled to: any card's, as PTX of 8.0 is on every newer one; with early
 * launches and clusters (9.0 and newer); or with warpgroups' products too (9.0a, on 9.0 alone). */
typedef enum { CODE_ANY, CODE_EARLY, CODE_WARPGROUPS } cuda_code;
cuda_code cuda_code_level(void); /* CODE_ANY where there is no card */
int cuda_block_shared_bytes(void);

/* Latents of a block's tokens [block_tok, lat], packed, of the activations' type, zero past the sequence's end; of them
 * keys [block_tok, heads, nope] and values [block_tok, heads, v_dim] by matrix products. */
typedef struct {
    void *latents, *keys, *values;
    float *state, *state_lse; /* [rows, heads, v_dim], [rows, heads]; NULL where one block does */
    int64_t block_tok;
} mha_space;

/* Tokens [first, first + n) of a sequence; last: none of it follow. */
typedef struct {
    int32_t seq, first, n;
    bool last;
} mha_block;

typedef tpl_code cuda_mha_run(kernel_ctx *ctx, const op_attn_mha *o, const mha_space *s, mha_block b, tpl_err *e);

/* Every sequence's blocks in turn: expanded, then `run`; where room is short, of some heads after the others. */
tpl_code cuda_mha_blocks(kernel_ctx *ctx, const op_attn_mha *o, cuda_mha_run *run, tpl_err *e);

/* One product of the dense kind: out [rows, n] (+)= x [rows, k] w [n, k]^T, `batch` times with strides. */
typedef struct {
    int64_t rows, n, k, ldx, ldw, ldo, x_step, w_step, out_step;
    int32_t batch;
    tpl_dtype in, out;
    bool w_transposed; /* w is [k, n] */
    bool accumulate;
    const void *bias; /* [n] added, or NULL */
    tpl_dtype bias_type;
} cuda_product;

/* Few rows of bf16 in 16-byte pieces go to kernels of our own, all else to cuBLAS. False from the second: no room. */
bool cuda_skinny_wins(int rows, int64_t k);
bool cuda_skinny_takes(const cuda_product *p, const void *x, const void *w);
bool cuda_skinny_multiply(kernel_ctx *ctx, const cuda_product *p, const void *x, const void *w, void *out);
cuda_product cuda_head_product(const op_head_matmul *o);
/* More rows of the same, on warpgroups. */
bool cuda_panel_takes(const cuda_product *p, const void *x, const void *w);
bool cuda_panel_multiply(kernel_ctx *ctx, const cuda_product *p, const void *x, const void *w, void *out);
tpl_code cuda_multiply(kernel_ctx *ctx, const cuda_product *p, const void *x, const void *w, void *out, tpl_err *e);

#ifdef __cplusplus
}
#endif

#endif
