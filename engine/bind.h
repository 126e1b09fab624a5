/* bind.h - turns a step of a plan into an operation call: sizes from the batch, pointers from the rank (or none, to count).
 * For:    engine/exec.c (to run) and engine/cost.c (to count).
 * Enter:  engine/, tests/.
 * Owns:   nothing.
 * Fails:  never. */
#ifndef TPL_ENGINE_BIND_H
#define TPL_ENGINE_BIND_H

#include "engine/plan.h"

/* One of plan.weights in memory: `m` for matrices and vectors, `h` for per-head matrices. Experts lie anywhere: `experts`
 * are they, `h` has their sizes. */
typedef struct {
    mat m;
    head_mat h;
    const mat *experts; /* [h.heads] */
} bound_weight;

/* Everything a step's operands may refer to. Pointers may be NULL where only sizes are wanted. */
typedef struct {
    const plan *p;
    int64_t rows, logit_rows;
    tpl_dtype act;
    const bound_weight *weights;   /* [n_weights]; sizes and types must be right even when counting */
    void *const *bufs;             /* [n_bufs] or NULL */
    const batch_view *batch;
    const kv_view *streams;        /* [KV_N_STREAMS], pages of layer 0; pages NULL when counting */
    const int64_t *layer_bytes;    /* [KV_N_STREAMS] bytes from one layer's pages to the next */
    const float *rope_cos, *rope_sin;
    const float *const *alpha;     /* [n_layers] each [g], or NULL */
    const int32_t *logit_index;    /* [logit_rows] batch rows whose logits are wanted */
} bind_env;

op_call step_bind(const plan_step *s, const bind_env *env);
/* The matrix a reference stands for. */
mat ref_bind(plan_ref r, const bind_env *env);
/* Sizes of plan.weights as a model stores them (`weight`), without data. */
bound_weight weight_sizes(const plan *p, int w, tpl_dtype weight);

#endif
