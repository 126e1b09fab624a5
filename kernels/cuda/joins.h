/* joins.h - runs of calls that one launch does, of the CUDA rows.
 * For:    table.c, which lists them.
 * Enter:  kernels/cuda only.
 * Owns:   nothing.
 * Fails:  as the rows do. takes: how many of the first n calls, 0: none. */
#ifndef TPL_KERNELS_CUDA_JOINS_H
#define TPL_KERNELS_CUDA_JOINS_H

#include "kernels/kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

/* No element of one is an element of the other. */
bool cuda_mats_apart(const mat *a, const mat *b);
/* n products of one launch, whose blocks run in any order: none writes what another writes, or x. */
bool cuda_products_apart(const op_call *calls, int n);

/* [norm,] up to four products of its result [, silu_mul of two]; or one product and the add of its result. */
int cuda_join_products_takes(const op_call *calls, int n);
tpl_code cuda_join_products(kernel_ctx *ctx, const op_call *calls, int n, tpl_err *e);

/* Up to four products of the same rows, more than the above takes. */
int cuda_join_panels_takes(const op_call *calls, int n);
tpl_code cuda_join_panels(kernel_ctx *ctx, const op_call *calls, int n, tpl_err *e);

/* The residual add of more rows, and the norm of what comes out. */
int cuda_join_add_norm_takes(const op_call *calls, int n);
tpl_code cuda_join_add_norm(kernel_ctx *ctx, const op_call *calls, int n, tpl_err *e);

/* Ropes, norms and a kv_append that follow each other. */
int cuda_join_rows_takes(const op_call *calls, int n);
tpl_code cuda_join_rows(kernel_ctx *ctx, const op_call *calls, int n, tpl_err *e);

/* The above with the queries' rope in front, the product a head of their other parts [, a copy of the turned ones]. */
int cuda_join_heads_takes(const op_call *calls, int n);
tpl_code cuda_join_heads(kernel_ctx *ctx, const op_call *calls, int n, tpl_err *e);

/* The ropes of queries and keys, the kv_append, and the decode attention of single rows over few tokens. */
int cuda_join_gqa_takes(const op_call *calls, int n);
tpl_code cuda_join_gqa(kernel_ctx *ctx, const op_call *calls, int n, tpl_err *e);

/* The latent decode attention of one row over few tokens, and the product a head of its results. */
int cuda_join_latent_takes(const op_call *calls, int n);
tpl_code cuda_join_latent(kernel_ctx *ctx, const op_call *calls, int n, tpl_err *e);

/* A norm and the routing of its result; and the routing alone: false where it does not take the shape. */
int cuda_join_route_takes(const op_call *calls, int n);
tpl_code cuda_join_route(kernel_ctx *ctx, const op_call *calls, int n, tpl_err *e);
bool cuda_route_few(kernel_ctx *ctx, const op_moe_route *o);

/* Few rows' routed experts, then the SwiGLU of the experts that all rows go to, added up [, and the residual add]. */
int cuda_join_experts_takes(const op_call *calls, int n);
tpl_code cuda_join_experts(kernel_ctx *ctx, const op_call *calls, int n, tpl_err *e);

#ifdef __cplusplus
}
#endif

#endif
