/* transform.h - reparameterised latent attention: which basis the latent is sliced in, and the weights folded into it.
 * For:    transform_build() chooses the basis of a variant; transform_fold() folds it into a model's weights.
 * Enter:  engine/, eval/, bench/, cli/, tests/.
 * Owns:   a transform owns its matrices; a folded set owns the folded weights; both are immutable.
 * Fails:  TPL_E_INPUT for calibration data that does not fit (too short, another model); library failures name the layer.
 *
 * A layer's transform is three matrices a slice j of s = r / g columns: what is stored (B_j chat), how the score is read from
 * it (W_UK,h A_j) and how the value is read (W_UV,h V_j). An orthogonal basis U is the case B_j = U_j^T, A_j = mu_j U_j,
 * V_j = U_j. Source: TPLA, Sections on reparameterisation; the basis `mix` is this project's own (docs/transforms.md). */
#ifndef TPL_ENGINE_TRANSFORM_H
#define TPL_ENGINE_TRANSFORM_H

#include "engine/model.h"
#include "engine/variant.h"

/* Second moments of one layer's activations over a calibration text, in double. */
typedef struct {
    double *raw;    /* [r, r] sum of c c^T / n, uncentred, c = x W_DKV before the norm */
    double *mean;   /* [r] of chat = c / RMS(c), gamma not applied */
    double *chat;   /* [r, r] uncentred second moment of chat */
    double *q_nope; /* [n_heads, nope, nope] uncentred second moments of the queries' position-free part */
} calib_layer;

typedef struct {
    int32_t n_layers, r, n_heads, nope;
    int64_t n_tok;
    calib_layer *layers;
    sha256_hex text_sha; /* of the calibration text */
    sha256_hex key;      /* of text, weights, tokenizer and row count: the cache's file name */
    char path[512];      /* the cache file; empty if not cached */
    bool from_cache;
} calibration;

void calibration_init(calibration *c, int n_layers, int r, int n_heads, int nope);
void calibration_free(calibration *c);

typedef struct {
    double *store; /* [r, r]: rows [j s, (j + 1) s) are B_j */
    double *score; /* [r, r]: columns [j s, (j + 1) s) are A_j */
    double *value; /* [r, r]: columns [j s, (j + 1) s) are V_j */
    float *alpha;  /* [g] scales of the sliced norm */
    float *mu;     /* [g] scales of the sliced scores, already contained in `score` */
    float *share;  /* [g] energy share of each slice over the calibration text (1/g where none is needed) */
} transform_layer;

typedef struct {
    variant v;
    int32_t n_layers, g, r;
    transform_layer *layers;
} transform;

/* Builds a variant's transform. `calib` may be NULL where variant_needs_calibration() is false. mu=fit needs mu_fit:
 * [n_layers * g] least-squares scales from calibrate_fit_mu(); else NULL. */
tpl_code transform_build(const model *m, const variant *v, const calibration *calib, const float *mu_fit, transform **out, tpl_err *e);
void transform_destroy(transform *t);

/* The weights that change: in rotated coordinates, gamma folded. */
typedef struct folded folded;
tpl_code transform_fold(const model *m, const transform *t, tpl_dtype dtype, folded **out, tpl_err *e);
void folded_destroy(folded *f);
mat folded_kv_a(const folded *f, int layer);      /* [r + rope, dim]: U^T W_DKV over the unchanged key part */
head_mat folded_uk(const folded *f, int layer);   /* [nope, r] a head: W_UK diag(gamma) [A_0 A_1 ...] */
/* For exact scores over all slices together: W_UK diag(gamma) [V_0 V_1 ...], as V = B^-1. The same memory as folded_uk()
 * where no slice has a score scale of its own. */
head_mat folded_uk_whole(const folded *f, int layer);
head_mat folded_uv(const folded *f, int layer);   /* [v_dim, r] a head: W_UV diag(gamma) [V_0 V_1 ...] */
const float *const *folded_alpha(const folded *f); /* [n_layers] each [g] */

#endif
