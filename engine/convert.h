/* convert.h - a reparameterised checkpoint written back: gamma and U folded into weights that any engine can load.
 * For:    `tplabench convert`.
 * Enter:  cli/, tests/.
 * Owns:   nothing; files stay.
 * Fails:  TPL_E_USAGE (the folder is not empty, the variant has no basis), TPL_E_IO, TPL_E_INTERRUPTED. What was
 * written of a file that failed is removed; config.json comes last, so that half a folder does not load.
 *
 * Of each layer three tensors change: kv_a_proj_with_mqa becomes U^T W_DKV over the unchanged key part, kv_a_layernorm
 * ones, kv_b_proj W diag(gamma) U, keys and values alike. As plain MLA that is the same model, for the norm does not
 * see a rotation. All floating tensors take the type asked for, f8 weights too, except correction biases, which stay as
 * stored.
 *
 * tpla.json says how to slice it: columns [j r/g, (j + 1) r/g) of the latent are slice j; a layer's alpha[j] scales the
 * slice's mean square under a sliced norm (c^j / sqrt(alpha_j |c^j|^2 / r + eps)), mu[j] its scores. */
#ifndef TPL_ENGINE_CONVERT_H
#define TPL_ENGINE_CONVERT_H

#include "engine/text_rows.h"
#include "engine/transform.h"

typedef struct {
    const char *out;          /* folder, made if need be */
    tpl_dtype dtype;          /* DT_F32 or DT_BF16 */
    const calibration *calib; /* NULL: the basis needed none */
    int64_t shard_bytes;      /* largest weight file; 0: 4 GiB */
} convert_options;

typedef struct {
    int32_t n_tensors, n_files;
    int64_t bytes;
} convert_report;

/* `f` is m folded with t in f32. */
tpl_code convert_write(model *m, const transform *t, const folded *f, const convert_options *o, convert_report *out,
                       tpl_err *e);

/* How two models' exact logits differ over a text. */
typedef struct {
    int64_t n_tok;
    double max_diff;  /* largest absolute difference of two logits */
    double deviation; /* standard deviation of the first model's logits */
    double kl_nats;   /* mean KL divergence of the second's distribution from the first's */
    double same_top1; /* part of the positions at which both prefer the same token */
} convert_difference;

tpl_code convert_compare(const model *a, const model *b, const text_rows *rows, convert_difference *out, tpl_err *e);

#endif
