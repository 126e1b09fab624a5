#include "engine/transform.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "engine/linalg.h"

static double *square(int n)
{
    return tpl_calloc((size_t)n * (size_t)n, sizeof(double));
}

/* ---- calibration moments as values ---- */

void calibration_init(calibration *c, int n_layers, int r, int n_heads, int nope)
{
    *c = (calibration){.n_layers = n_layers, .r = r, .n_heads = n_heads, .nope = nope};
    c->layers = tpl_calloc((size_t)n_layers, sizeof *c->layers);
    for (int l = 0; l < n_layers; l++)
        c->layers[l] = (calib_layer){square(r), tpl_calloc((size_t)r, sizeof(double)), square(r), tpl_calloc((size_t)n_heads * (size_t)(nope * nope), sizeof(double))};
}

void calibration_free(calibration *c)
{
    for (int l = 0; l < c->n_layers && c->layers; l++) {
        free(c->layers[l].raw);
        free(c->layers[l].mean);
        free(c->layers[l].chat);
        free(c->layers[l].q_nope);
    }
    free(c->layers);
    *c = (calibration){0};
}

/* ---- bases: U [r, r], orthogonal, slice j in columns [j s, (j + 1) s) ---- */

static void basis_identity(int r, double *u)
{
    for (int i = 0; i < r; i++)
        u[(size_t)i * r + i] = 1;
}

/* diag(signs) H_r / sqrt(r), Sylvester's H. Signs: the low bits of MT19937 draws seeded with seed + layer. */
static void basis_hadamard(int r, int seed, int layer, double *u)
{
    mt19937 m;
    mt19937_seed(&m, (uint32_t)(seed + layer));
    for (int i = 0; i < r; i++) {
        double sign = (mt19937_u32(&m) & 1) ? 1 : -1;
        for (int j = 0; j < r; j++)
            u[(size_t)i * r + j] = (__builtin_parity((unsigned)(i & j)) ? -sign : sign) / sqrt(r);
    }
}

static tpl_code basis_pca(int r, const calib_layer *c, double *u, const char *where, tpl_err *e)
{
    double *values = tpl_malloc(sizeof *values * (size_t)r);
    tpl_code rc = linalg_eigh(r, c->raw, values, u, where, e);
    free(values);
    return rc;
}

/* ---- the basis `mix`: what matters for scores and for values, together ---- */

/* W_UK,h diag(gamma) or W_UV,h diag(gamma) of one head as doubles, [rows, r]. */
static void head_times_gamma(const model *m, int layer, int head, bool value, double *out)
{
    const model_config *c = model_cfg(m);
    mat kv_b = model_weight(m, W_KV_B, layer), gamma = model_weight(m, W_KV_A_NORM, layer);
    int r = c->kv_lora_rank, rows = value ? c->v_dim : c->nope_dim;
    int64_t row0 = (int64_t)head * (c->nope_dim + c->v_dim) + (value ? c->nope_dim : 0);
    float *w = tpl_malloc(sizeof *w * (size_t)r), *g = tpl_malloc(sizeof *g * (size_t)r);
    dtype_to_f32(g, gamma.data, gamma.dtype, (size_t)r);
    for (int i = 0; i < rows; i++) {
        model_read_row(&kv_b, row0 + i, 0, r, w);
        for (int j = 0; j < r; j++)
            out[(size_t)i * r + j] = (double)w[j] * g[j];
    }
    free(w);
    free(g);
}

/* W_O,h W_O,h^T's counterpart on the value side: o [dim, v] of one head, gram [v, v] = o^T o. */
static void output_gram(const model *m, int layer, int head, double *gram)
{
    const model_config *c = model_cfg(m);
    mat o = model_weight(m, W_O, layer);
    int v = c->v_dim;
    float *row = tpl_malloc(sizeof *row * (size_t)v);
    memset(gram, 0, sizeof *gram * (size_t)(v * v));
    for (int i = 0; i < c->dim; i++) {
        model_read_row(&o, i, (int64_t)head * v, v, row);
        for (int a = 0; a < v; a++)
            for (int b = 0; b < v; b++)
                gram[a * v + b] += (double)row[a] * row[b];
    }
    free(row);
}

/* sum [r, r] += w^T gram w, w [k, r]. */
static void add_quadratic(int r, int k, const double *w, const double *gram, double *sum)
{
    double *gw = tpl_malloc(sizeof *gw * (size_t)k * (size_t)r), *part = square(r);
    linalg_matmul(k, r, k, gram, 0, w, 0, gw);
    linalg_matmul(r, r, k, w, 1, gw, 0, part);
    for (size_t i = 0; i < (size_t)r * (size_t)r; i++)
        sum[i] += part[i];
    free(gw);
    free(part);
}

static double trace_of_product(int r, const double *a, const double *b)
{
    double t = 0;
    for (int i = 0; i < r; i++)
        for (int j = 0; j < r; j++)
            t += a[(size_t)i * r + j] * b[(size_t)j * r + i];
    return t;
}

/* G = G_s / (2 tr(G_s C)) + G_v / (2 tr(G_v C)) + delta I / tr(C): how much an error in a latent direction costs. */
static void mix_metric(const model *m, int layer, const calib_layer *k, const double *cov, double delta, double *g)
{
    const model_config *c = model_cfg(m);
    int r = c->kv_lora_rank, wide = c->nope_dim > c->v_dim ? c->nope_dim : c->v_dim;
    double *gs = square(r), *gv = square(r), *w = tpl_malloc(sizeof *w * (size_t)wide * (size_t)r), *gram = square(wide), trace = 0;
    for (int h = 0; h < c->n_heads; h++) {
        head_times_gamma(m, layer, h, false, w);
        add_quadratic(r, c->nope_dim, w, k->q_nope + (size_t)h * (size_t)(c->nope_dim * c->nope_dim), gs);
        head_times_gamma(m, layer, h, true, w);
        output_gram(m, layer, h, gram);
        add_quadratic(r, c->v_dim, w, gram, gv);
    }
    double ts = 2 * trace_of_product(r, gs, cov), tv = 2 * trace_of_product(r, gv, cov);
    for (int i = 0; i < r; i++)
        trace += cov[(size_t)i * r + i];
    for (size_t i = 0; i < (size_t)r * (size_t)r; i++)
        g[i] = gs[i] / ts + gv[i] / tv;
    for (int i = 0; i < r; i++)
        g[(size_t)i * r + i] += delta / trace;
    free(gs);
    free(gv);
    free(w);
    free(gram);
}

/* out = V diag(f(values)) V^T with f the square root (power .5) or its inverse (-.5); values floored. */
static void matrix_power(int r, const double *values, const double *v, double power, double *out)
{
    double *scaled = square(r), floor_at = values[0] * 1e-6;
    for (int i = 0; i < r; i++)
        for (int j = 0; j < r; j++)
            scaled[(size_t)i * r + j] = v[(size_t)i * r + j] * pow(fmax(values[j], floor_at), power);
    linalg_matmul(r, r, r, scaled, 0, v, 1, out);
    free(scaled);
}

/* The columns of E^T, E = V^T C^-1/2 with V the eigenvectors of C^1/2 G C^1/2, orthonormalised in order. */
static tpl_code basis_mix(const model *m, int layer, int g_slices, const calib_layer *k, double *u, const char *where, tpl_err *e)
{
    int r = model_cfg(m)->kv_lora_rank;
    double *cov = square(r), *metric = square(r), *half = square(r), *inverse = square(r), *vec = square(r), *val = tpl_malloc(sizeof *val * (size_t)r);
    double *tmp = square(r), *et = square(r);
    for (int i = 0; i < r; i++)
        for (int j = 0; j < r; j++)
            cov[(size_t)i * r + j] = k->chat[(size_t)i * r + j] - k->mean[i] * k->mean[j];
    mix_metric(m, layer, k, cov, g_slices > 2 ? 3 : 0, metric);
    tpl_code rc;
    TPL_GOTO(rc, linalg_eigh(r, cov, val, vec, where, e), done);
    matrix_power(r, val, vec, .5, half);
    matrix_power(r, val, vec, -.5, inverse);
    linalg_matmul(r, r, r, metric, 0, half, 0, tmp);
    linalg_matmul(r, r, r, half, 0, tmp, 0, metric);
    for (int i = 0; i < r; i++) /* rounding leaves it a little unsymmetric */
        for (int j = 0; j < i; j++)
            metric[(size_t)i * r + j] = metric[(size_t)j * r + i] = (metric[(size_t)i * r + j] + metric[(size_t)j * r + i]) / 2;
    TPL_GOTO(rc, linalg_eigh(r, metric, val, vec, where, e), done);
    linalg_matmul(r, r, r, inverse, 0, vec, 0, et);
    rc = linalg_orthonormalise(r, et, u, where, e);
done:
    free(cov);
    free(metric);
    free(half);
    free(inverse);
    free(vec);
    free(val);
    free(tmp);
    free(et);
    return rc;
}

/* ---- scales ---- */

static const double SHARE_FLOOR = 1e-6;

/* Energy share of each slice of U: f_j = tr(U_j^T M U_j) / tr(M), floored: a text with fewer directions than the latent
 * leaves slices without energy, or below 0 by rounding, whose reciprocal would be no scale. */
static void energy_shares(int r, int g, const double *moment, const double *u, float *share)
{
    double *mu = square(r), total = 0, part[64] = {0};
    linalg_matmul(r, r, r, moment, 0, u, 0, mu);
    for (int j = 0; j < r; j++) {
        double d = 0;
        for (int i = 0; i < r; i++)
            d += u[(size_t)i * r + j] * mu[(size_t)i * r + j];
        part[j / (r / g)] += d;
        total += d;
    }
    for (int j = 0; j < g; j++)
        share[j] = (float)fmax(part[j] / total, SHARE_FLOOR);
    free(mu);
}

static void set_scales(const variant *v, const float *mu_fit, transform_layer *t)
{
    for (int j = 0; j < v->g; j++) {
        t->alpha[j] = v->alpha == ALPHA_RECIP ? 1 / t->share[j] : v->alpha == ALPHA_SHARE ? t->share[j] : 1;
        if (v->kind == VAR_GLA)
            t->alpha[j] = (float)v->g;
        t->mu[j] = v->mu == MU_ALPHA ? t->alpha[j] : v->mu == MU_G ? (float)v->g : v->mu == MU_FIT ? mu_fit[j] : 1;
        if (v->slice == SLICE_NONE || v->slice == SLICE_NORM || v->g == 1)
            t->mu[j] = 1; /* the scores are exact */
    }
}

static tpl_code build_layer(const model *m, const variant *v, int layer, const calibration *calib, const float *mu_fit, transform_layer *t, tpl_err *e)
{
    int r = model_cfg(m)->kv_lora_rank, s = r / v->g;
    char where[48];
    snprintf(where, sizeof where, "transform of layer %d", layer);
    double *u = square(r);
    tpl_code rc = TPL_OK;
    variant_u kind = v->kind == VAR_TPLA ? v->u : U_ID;
    if (kind == U_ID)
        basis_identity(r, u);
    else if (kind == U_HADAMARD)
        basis_hadamard(r, v->seed, layer, u);
    else if (kind == U_PCA)
        rc = basis_pca(r, &calib->layers[layer], u, where, e);
    else
        rc = basis_mix(m, layer, v->g, &calib->layers[layer], u, where, e);
    for (int j = 0; j < v->g; j++)
        t->share[j] = 1.f / (float)v->g;
    if (kind == U_PCA || kind == U_MIX)
        energy_shares(r, v->g, calib->layers[layer].raw, u, t->share);
    set_scales(v, mu_fit, t);
    for (int i = 0; i < r; i++) {
        for (int j = 0; j < r; j++) {
            double x = u[(size_t)i * r + j];
            t->store[(size_t)j * r + i] = x;
            t->value[(size_t)i * r + j] = x;
            t->score[(size_t)i * r + j] = x * (v->kind == VAR_GLA || v->kind == VAR_TPLA ? t->mu[j / s] : 1);
        }
    }
    free(u);
    return rc;
}

tpl_code transform_build(const model *m, const variant *v, const calibration *calib, const float *mu_fit, transform **out, tpl_err *e)
{
    const model_config *c = model_cfg(m);
    int r = c->kv_lora_rank;
    char text[VARIANT_TEXT];
    variant_format(v, text);
    if (c->qkv_bias)
        return tpl_fail(e, TPL_E_UNSUPPORTED, text, "needs a latent without bias, but field 'attention_bias' of the model is true");
    if (variant_needs_calibration(v) && !calib)
        return tpl_fail(e, TPL_E_USAGE, text, "needs a calibration text");
    if (v->kind == VAR_TPLA && v->mu == MU_FIT && !mu_fit)
        return tpl_fail(e, TPL_E_USAGE, text, "mu=fit needs scales fitted to the calibration text");
    if (calib && (calib->r != r || calib->n_layers != c->n_layers || calib->n_heads != c->n_heads))
        return tpl_fail(e, TPL_E_INPUT, text, "calibration is of another model: %d layers of rank %d, expected %d of %d", calib->n_layers, calib->r, c->n_layers, r);
    transform *t = tpl_calloc(1, sizeof *t);
    *t = (transform){.v = *v, .n_layers = c->n_layers, .g = v->g, .r = r};
    t->layers = tpl_calloc((size_t)c->n_layers, sizeof *t->layers);
    tpl_code rc = TPL_OK;
    for (int l = 0; l < c->n_layers && rc == TPL_OK; l++) {
        float *scales = tpl_calloc((size_t)v->g * 3, sizeof *scales);
        t->layers[l] = (transform_layer){square(r), square(r), square(r), scales, scales + v->g, scales + 2 * v->g};
        rc = build_layer(m, v, l, calib, mu_fit ? mu_fit + l * v->g : NULL, &t->layers[l], e);
    }
    if (rc != TPL_OK) {
        transform_destroy(t);
        return rc;
    }
    *out = t;
    return TPL_OK;
}

void transform_destroy(transform *t)
{
    if (!t)
        return;
    for (int l = 0; l < t->n_layers; l++) {
        free(t->layers[l].store);
        free(t->layers[l].score);
        free(t->layers[l].value);
        free(t->layers[l].alpha);
    }
    free(t->layers);
    free(t);
}

/* ---- folding ---- */

struct folded {
    model_config cfg;
    tpl_dtype dtype;
    void **kv_a, **uk, **uk_whole, **uv; /* [n_layers]; uk_whole may be uk */
    const float **alpha;     /* [n_layers], each owned, [g] */
};

static void store_row(void *base, tpl_dtype t, size_t row, int cols, const double *x, float *narrow)
{
    for (int j = 0; j < cols; j++)
        narrow[j] = (float)x[j];
    dtype_from_f32((char *)base + row * (size_t)cols * dtype_bytes(t), t, narrow, (size_t)cols);
}

/* Rows [0, r): store W_DKV; rows [r, r + rope): as they were. */
static void fold_kv_a(const model *m, int layer, const double *store, tpl_dtype t, void *out)
{
    const model_config *c = model_cfg(m);
    mat w = model_weight(m, W_KV_A, layer);
    int r = c->kv_lora_rank, rows = r + c->rope_dim, d = c->dim;
    float *wide = tpl_malloc(sizeof *wide * (size_t)rows * (size_t)d);
    double *x = tpl_malloc(sizeof *x * (size_t)rows * (size_t)d), *y = tpl_malloc(sizeof *y * (size_t)rows * (size_t)d);
    for (int i = 0; i < rows; i++)
        model_read_row(&w, i, 0, d, wide + (size_t)i * d);
    for (size_t i = 0; i < (size_t)rows * (size_t)d; i++)
        x[i] = wide[i];
    linalg_matmul(r, d, r, store, 0, x, 0, y);
    memcpy(y + (size_t)r * d, x + (size_t)r * d, sizeof *x * (size_t)c->rope_dim * (size_t)d);
    for (int i = 0; i < rows; i++)
        store_row(out, t, (size_t)i, d, y + (size_t)i * d, wide);
    free(wide);
    free(x);
    free(y);
}

static void fold_heads(const model *m, int layer, bool value, const double *by, tpl_dtype t, void *out)
{
    const model_config *c = model_cfg(m);
    int r = c->kv_lora_rank, rows = value ? c->v_dim : c->nope_dim;
    double *w = tpl_malloc(sizeof *w * (size_t)rows * (size_t)r), *y = tpl_malloc(sizeof *y * (size_t)rows * (size_t)r);
    float *narrow = tpl_malloc(sizeof *narrow * (size_t)r);
    for (int h = 0; h < c->n_heads; h++) {
        head_times_gamma(m, layer, h, value, w);
        linalg_matmul(rows, r, r, w, 0, by, 0, y);
        for (int i = 0; i < rows; i++)
            store_row(out, t, (size_t)h * (size_t)rows + (size_t)i, r, y + (size_t)i * r, narrow);
    }
    free(w);
    free(y);
    free(narrow);
}

tpl_code transform_fold(const model *m, const transform *t, tpl_dtype dtype, folded **out, tpl_err *e)
{
    const model_config *c = model_cfg(m);
    size_t size = dtype_bytes(dtype), r = (size_t)c->kv_lora_rank, n = (size_t)c->n_layers;
    folded *f = tpl_calloc(1, sizeof *f);
    *f = (folded){.cfg = *c, .dtype = dtype, .kv_a = tpl_calloc(n, sizeof(void *)), .uk = tpl_calloc(n, sizeof(void *)), .uk_whole = tpl_calloc(n, sizeof(void *)), .uv = tpl_calloc(n, sizeof(void *))};
    f->alpha = tpl_calloc(n, sizeof *f->alpha);
    for (int l = 0; l < c->n_layers; l++) {
        const transform_layer *tl = &t->layers[l];
        f->kv_a[l] = tpl_malloc(size * (r + (size_t)c->rope_dim) * (size_t)c->dim);
        f->uk[l] = tpl_malloc(size * (size_t)c->n_heads * (size_t)c->nope_dim * r);
        f->uv[l] = tpl_malloc(size * (size_t)c->n_heads * (size_t)c->v_dim * r);
        fold_kv_a(m, l, tl->store, dtype, f->kv_a[l]);
        fold_heads(m, l, false, tl->score, dtype, f->uk[l]);
        f->uk_whole[l] = f->uk[l];
        if (memcmp(tl->score, tl->value, sizeof(double) * r * r) != 0) {
            f->uk_whole[l] = tpl_malloc(size * (size_t)c->n_heads * (size_t)c->nope_dim * r);
            fold_heads(m, l, false, tl->value, dtype, f->uk_whole[l]);
        }
        fold_heads(m, l, true, tl->value, dtype, f->uv[l]);
        float *alpha = tpl_malloc(sizeof *alpha * (size_t)t->g);
        memcpy(alpha, tl->alpha, sizeof *alpha * (size_t)t->g);
        f->alpha[l] = alpha;
    }
    *out = f;
    return TPL_OK;
}

void folded_destroy(folded *f)
{
    if (!f)
        return;
    for (int l = 0; l < f->cfg.n_layers; l++) {
        free(f->kv_a[l]);
        if (f->uk_whole[l] != f->uk[l])
            free(f->uk_whole[l]);
        free(f->uk[l]);
        free(f->uv[l]);
        free((void *)f->alpha[l]);
    }
    free(f->kv_a);
    free(f->uk);
    free(f->uk_whole);
    free(f->uv);
    free(f->alpha);
    free(f);
}

mat folded_kv_a(const folded *f, int layer)
{
    return (mat){.data = f->kv_a[layer], .dtype = f->dtype, .rows = f->cfg.kv_lora_rank + f->cfg.rope_dim, .cols = f->cfg.dim, .stride = f->cfg.dim};
}

static head_mat head_view(const folded *f, const void *data, int rows)
{
    int r = f->cfg.kv_lora_rank;
    return (head_mat){.data = data, .dtype = f->dtype, .heads = f->cfg.n_heads, .rows = rows, .cols = r, .row_stride = r, .head_stride = (int64_t)rows * r};
}

head_mat folded_uk(const folded *f, int layer)
{
    return head_view(f, f->uk[layer], f->cfg.nope_dim);
}

head_mat folded_uk_whole(const folded *f, int layer)
{
    return head_view(f, f->uk_whole[layer], f->cfg.nope_dim);
}

head_mat folded_uv(const folded *f, int layer)
{
    return head_view(f, f->uv[layer], f->cfg.v_dim);
}

const float *const *folded_alpha(const folded *f)
{
    return f->alpha;
}
