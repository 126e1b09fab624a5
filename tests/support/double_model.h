/* double_model.h - a latent-attention model in double precision, written from the equations, one token after another.
 * For:    an outside answer to what the engine computes, and to what its calibration measures.
 * Enter:  tests/ only.
 * Owns:   dm_create() owns the widened weights; it copies what it needs from the tensors.
 * Fails:  a tensor that is missing fails the test.
 *
 * Source: "TPLA", arXiv 2508.15881, in the notation of a row vector x a token. No kernel, plan or cache is shared with
 * the engine: each token keeps its normalised rotated latent and its key part, and each query reads them by definition. */
#ifndef TPL_TESTS_SUPPORT_DOUBLE_MODEL_H
#define TPL_TESTS_SUPPORT_DOUBLE_MODEL_H

#include "tests/support/checkpoint.h"

typedef struct dm dm;

dm *dm_create(const model_config *c, const ckpt_list *list);
void dm_destroy(dm *m);

/* How the latent is read. u, alpha and mu are per layer; u NULL: the identity. */
typedef struct {
    int32_t g;
    bool gla;              /* head i sees slice floor(i g / heads) only */
    bool sliced_norm;      /* each slice estimates the RMS from itself */
    bool sliced_softmax;   /* each slice has its own softmax; the outputs add up */
    int32_t n_exact;       /* tokens before this one are normalised and read exactly (pd=on prefill) */
    const double *const *u;   /* [n_layers] each [r, r], slice j in columns [j r/g, (j + 1) r/g) */
    const double *const *alpha, *const *mu; /* [n_layers] each [g] */
} dm_form;

/* What a layer's attention saw of one token. Pointers hold for the call. */
typedef struct {
    int32_t layer, pos;
    const double *c;      /* [r] x W_DKV */
    const double *q_nope; /* [n_heads, nope] */
} dm_view;

/* logits [n, vocab]. `see` may be NULL. */
void dm_forward(const dm *m, const dm_form *form, const int32_t *tokens, int n, double *logits,
                void (*see)(void *user, const dm_view *v), void *user);

/* W_UK,h diag(gamma) [nope, r] and W_UV,h diag(gamma) [v, r] of a layer; borrowed. */
const double *dm_uk(const dm *m, int layer, int head);
const double *dm_uv(const dm *m, int layer, int head);
/* A tensor by name, widened; borrowed. NULL: no such tensor. */
const double *dm_tensor(const dm *m, const char *name);
const double *dm_layer_tensor(const dm *m, int layer, const char *part);

#endif
