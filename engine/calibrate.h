/* calibrate.h - second moments of a model's activations over a text, measured by the engine itself, and their cache.
 * For:    engine/lab.c; transforms are built from the result.
 * Enter:  engine/, cli/, tests/.
 * Owns:   see calibration_free() in transform.h.
 * Fails:  what the engine fails with; TPL_E_INTERRUPTED. A cache file that is damaged or of another recipe is remade.
 *
 * Cache file, little-endian, written at once through a rename:
 *   magic "tplcal1\n" | i64 n_layers, r, n_heads, nope, n_tok | per layer: f64 raw[r,r], mean[r], chat[r,r],
 *   q_nope[n_heads,nope,nope] | sha-256 (64 hex digits) of all before it. */
#ifndef TPL_ENGINE_CALIBRATE_H
#define TPL_ENGINE_CALIBRATE_H

#include "engine/text_rows.h"
#include "engine/transform.h"

typedef struct {
    const text_rows *rows;
    sha256_hex model_sha, tokenizer_sha;
    const char *cache_dir; /* NULL: no cache */
    int32_t tp;            /* ranks used for the forward passes */
} calibrate_options;

tpl_code calibrate(const model *m, const calibrate_options *o, calibration *out, tpl_err *e);

/* mu=fit: least squares of the full score on each slice's score, over all causal pairs of the first `n_rows` rows:
 * mu[l * g + j] = sum s s_j / sum s_j^2, s = q_lat . chat, s_j = q_lat^j . chat^j in the basis of `t` (which has mu 1). */
tpl_code calibrate_fit_mu(const model *m, const text_rows *rows, int n_rows, const transform *t, float *mu, tpl_err *e);

#endif
