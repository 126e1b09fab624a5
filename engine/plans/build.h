/* build.h - the pieces from which plans are put together: buffers, weights, steps.
 * For:    engine/plan.c and engine/plans/ only; one small function a variant appends that variant's attention.
 * Enter:  engine/plan.c, engine/plans/.
 * Owns:   a builder borrows the plan it fills.
 * Fails:  never; sizes were checked by variant_fit(). */
#ifndef TPL_ENGINE_PLANS_BUILD_H
#define TPL_ENGINE_PLANS_BUILD_H

#include "engine/plan.h"

typedef struct {
    plan *p;
    plan_options o;
    plan_phase phase; /* of the list being filled */
    int32_t layer;
    int32_t cap_steps[N_PHASES], cap_weights, cap_bufs;
    /* For fuzzy.c. idle: this rank takes no part in the steps that are added, and needs no weights for them. The refs (cols
     * 0: as in an ordinary layer) say where attention leaves its output instead of adding it to the residual stream, and
     * what the feed-forward reads and is added to. */
    bool idle;
    plan_ref attn_to, mlp_from, mlp_to;
} builder;

/* A latent slice layout: which columns of the latent a rank caches and which heads it computes. */
typedef struct {
    int32_t parts;           /* ranks over which one head range's slices are spread: min(tp, g) */
    int32_t slice0, n_slices; /* this rank's slices */
    int32_t width;           /* values a slice */
    int32_t head0, n_heads;  /* heads whose slices this rank computes */
    comm_group group;        /* the `parts` ranks that share the head range */
} slice_layout;

slice_layout slices_of(const plan *p);

plan_ref whole(const builder *b, int buf);
plan_ref columns(int buf, int col, int cols);
extern const plan_ref no_ref;

/* Finds a buffer by name or adds it; a buffer's width grows to the largest asked for. */
int need_buf(builder *b, const char *name, int cols);
/* Finds an equal region or adds it, and marks it used in the current phase. */
int need_weight(builder *b, int source, int row0, int rows, int col0, int cols);
int need_heads(builder *b, int source, int head0, int n_heads, int rows, int col0, int cols);
/* Rows [row0, row0 + rows) of experts [first, first + n). */
int need_expert_rows(builder *b, int source, int first, int n, int row0, int rows);

/* Appenders; each returns the step for fields that only some steps set. */
plan_step *add_matmul(builder *b, const char *name, plan_ref in, int w, plan_ref out);
/* Lets a matmul add the elements [first, first + n) of a bias vector. */
void set_bias(builder *b, plan_step *matmul, bool wanted, int source, int first, int n);
plan_step *add_rmsnorm(builder *b, const char *name, plan_ref in, int w, plan_ref out, int groups);
plan_step *add_sliced_norm(builder *b, const char *name, plan_ref x, int slice0, int n_slices);
/* x: heads of head_stride columns; per head k inputs and n outputs. */
plan_step *add_head_matmul(builder *b, const char *name, plan_ref in, int in_stride, int w, plan_ref out, int out_stride, bool transposed, bool accumulate);
plan_step *add_rope(builder *b, const char *name, plan_ref x, int heads, int head_stride);
plan_step *add_kv_append(builder *b, const char *name, plan_ref a, plan_ref pe, int stream, int a_off, int pe_off);
plan_step *add_attn_latent(builder *b, const char *name, plan_ref q_lat, plan_ref q_pe, int pe_stride, int heads, int lat, int lat_off, int rope_off, plan_ref out, plan_ref lse);
plan_step *add_attn_mha(builder *b, const char *name, plan_ref q, int uk, int uv, int heads, int lat, int lat_off, int rope_off, int stream, plan_ref out, bool accumulate);
plan_step *add_attn_gqa(builder *b, const char *name, plan_ref q, int heads, int kv_heads, plan_ref out);
plan_step *add_binary(builder *b, op_kind op, const char *name, plan_ref in0, plan_ref in1, plan_ref out);
plan_step *add_copy(builder *b, const char *name, plan_ref in, plan_ref out);
/* Left out when the group has one rank. */
void add_comm(builder *b, const char *name, comm_op op, comm_group group, plan_ref data, plan_ref out);

comm_group all_ranks(const plan *p);

/* The parts shared by variants (plans/common.c). `x` is the residual stream, `xn` its normalised copy. */
void plan_embed(builder *b);
/* Norm and attention of builder.layer, by the plan's variant. */
void plan_attention(builder *b);
void plan_mlp(builder *b);
void plan_logits(builder *b);
/* q projection for heads [head0, head0 + n): normalised, roped, in buffer "q" with head stride nope + rope. */
plan_ref plan_mla_query(builder *b, int head0, int n_heads);
/* o [rows, n_heads * v_dim] times the columns of W_O of these heads, all-reduced and added to the residual. */
void plan_attn_out(builder *b, plan_ref o, int head0, int n_heads, int o_dim);

/* One function a variant: the attention of builder.layer in builder.phase, from "xn" to the residual. */
void plan_attn_gqa(builder *b);
void plan_attn_mla(builder *b);
void plan_attn_dcp(builder *b);
void plan_attn_gla(builder *b);
void plan_attn_tpla(builder *b);
/* The list of builder.phase on rank `rank` of `tp`, of a plan with groups. */
void plan_fill_fuzzy(builder *b, int tp, int rank);

/* Moves products that read the same columns together. */
void plan_order(plan_list *l);

/* Sets the streams' widths and slots of a variant. */
void plan_streams_gqa(plan *p);
void plan_streams_mla(plan *p);
void plan_streams_dcp(plan *p);
void plan_streams_gla(plan *p);
void plan_streams_tpla(plan *p);

#endif
