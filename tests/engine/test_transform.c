#include "engine/transform.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <criterion/criterion.h>

#include "base/log.h"
#include "base/rng.h"
#include "engine/calibrate.h"
#include "engine/linalg.h"
#include "tests/support/double_model.h"
#include "tests/support/rig.h"

enum { R = 16, LAYERS = 2 };

static void build(const fixture *f, const char *text, const calibration *cal, const float *mu, transform **t)
{
    variant v;
    tpl_err e = {0};
    cr_assert(variant_parse(text, &v, &e) == TPL_OK, "%s", e.what);
    cr_assert(transform_build(f->m, &v, cal, mu, t, &e) == TPL_OK, "%s: %s: %s", text, e.where, e.what);
}

static void open_fixture(fixture *f)
{
    model_config c = ckpt_small_mla();
    fixture_open(f, &c, DT_F32, 80);
}

/* ---- Hadamard ---- */

/* Low bits of the first 16 draws of numpy's RandomState(seed), 32 bits each; layer l of a seed uses seed + l. */
static const struct {
    int seed;
    const char *bits;
} mt_bits[] = {{1234, "1101000111110010"}, {1235, "1001111010000010"}};

Test(transform, hadamard_signs_are_those_of_numpys_generator)
{
    static const struct {
        const char *text;
        int layer, row;
    } cases[] = {{"tpla:u=hadamard", 0, 0}, {"tpla:u=hadamard", 1, 1}, {"tpla:u=hadamard:seed=1235", 0, 1}};
    fixture f;
    open_fixture(&f);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        transform *t = NULL;
        build(&f, cases[i].text, NULL, NULL, &t);
        const double *u = t->layers[cases[i].layer].value;
        cr_expect(linalg_orthogonality(R, u) < 1e-14);
        for (int a = 0; a < R; a++) {
            double sign = mt_bits[cases[i].row].bits[a] == '1' ? 1 : -1;
            for (int b = 0; b < R; b++) {
                int shared = 0; /* H_ab = (-1)^(bits that a and b share) */
                for (int bit = 1; bit < R; bit *= 2)
                    shared += (a & bit) && (b & bit);
                cr_expect(u[a * R + b] == sign * (shared % 2 ? -.25 : .25), "%s layer %d: entry %d,%d", cases[i].text,
                          cases[i].layer, a, b);
            }
        }
        transform_destroy(t);
    }
    fixture_close(&f);
}

/* ---- PCA ---- */

/* v [R, R]: the reflection 1 - 2 w w^T / w.w, w = (1, 2, ..., R): orthogonal, no entry 0. */
static void reflection(double *v)
{
    double square = R * (R + 1) * (2. * R + 1) / 6;
    for (int i = 0; i < R; i++)
        for (int j = 0; j < R; j++)
            v[i * R + j] = (i == j) - 2. * (i + 1) * (j + 1) / square;
}

/* moment = v diag(values) v^T. */
static void moment_of(const double *v, const double *values, double *moment)
{
    for (int i = 0; i < R; i++)
        for (int j = 0; j < R; j++) {
            moment[i * R + j] = 0;
            for (int k = 0; k < R; k++)
                moment[i * R + j] += v[i * R + k] * values[k] * v[j * R + k];
        }
}

/* Eigenvalues 2^0 ... 2^15 in scattered order: the shares of 4 slices, largest first, are (2^16 - 2^12) / (2^16 - 1) ... */
Test(transform, pca_finds_a_known_basis_largest_first)
{
    fixture f;
    transform *t = NULL;
    double v[R * R], values[R];
    open_fixture(&f);
    reflection(v);
    for (int k = 0; k < R; k++)
        values[k] = ldexp(1, k * 7 % R);
    for (int l = 0; l < LAYERS; l++)
        moment_of(v, values, f.cal.layers[l].raw);
    build(&f, "tpla:g=4:u=pca", &f.cal, NULL, &t);
    for (int l = 0; l < LAYERS; l++) {
        const transform_layer *tl = &t->layers[l];
        for (int k = 0; k < R; k++) {
            int column = R - 1 - k * 7 % R;
            double dot = 0;
            for (int i = 0; i < R; i++)
                dot += v[i * R + k] * tl->value[i * R + column];
            cr_expect(fabs(fabs(dot) - 1) < 1e-9, "layer %d: eigenvector %d is not in column %d (%g)", l, k, column, dot);
        }
        for (int j = 0; j < 4; j++) {
            double share = 15 * ldexp(1, 12 - 4 * j) / 65535;
            cr_expect(fabs(tl->share[j] - share) < 1e-6 * share, "slice %d has share %g, expected %g", j, tl->share[j], share);
            cr_expect(fabs(tl->alpha[j] - 1 / share) < 1e-6 / share && tl->mu[j] == tl->alpha[j]);
        }
    }
    transform_destroy(t);
    fixture_close(&f);
}

/* A calibration text with fewer directions than the latent leaves slices without energy. */
Test(transform, a_slice_without_energy_gets_a_finite_positive_scale)
{
    fixture f;
    transform *t = NULL;
    double v[R * R], values[R] = {3, 2, 1};
    open_fixture(&f);
    reflection(v);
    for (int l = 0; l < LAYERS; l++)
        moment_of(v, values, f.cal.layers[l].raw);
    build(&f, "tpla:g=4:u=pca", &f.cal, NULL, &t);
    for (int l = 0; l < LAYERS; l++)
        for (int j = 0; j < 4; j++)
            cr_expect(t->layers[l].share[j] > 0 && t->layers[l].alpha[j] >= 1 && isfinite(t->layers[l].alpha[j]), "slice %d: %g", j,
                      t->layers[l].alpha[j]);
    transform_destroy(t);
    fixture_close(&f);
}

/* ---- mix ---- */

/* out [R, R] = a b. */
static void product(const double *a, const double *b, double *out)
{
    for (int i = 0; i < R; i++)
        for (int j = 0; j < R; j++) {
            out[i * R + j] = 0;
            for (int k = 0; k < R; k++)
                out[i * R + j] += a[i * R + k] * b[k * R + j];
        }
}

/* sum [R, R] += w^T gram w with w [n, R]; gives the trace of what was added times cov through `cov`. */
static void add_form(const double *w, const double *gram, int n, double *sum)
{
    for (int a = 0; a < R; a++)
        for (int b = 0; b < R; b++)
            for (int i = 0; i < n; i++)
                for (int j = 0; j < n; j++)
                    sum[a * R + b] += w[i * R + a] * gram[i * n + j] * w[j * R + b];
}

static double trace(const double *a)
{
    double t = 0;
    for (int i = 0; i < R; i++)
        t += a[i * R + i];
    return t;
}

/* G of tpla.md's recipe for `mix`, from the tensors; cov [R, R]. */
static void metric_of(const dm *m, const model_config *c, const calib_layer *k, int layer, double delta, const double *cov, double *g)
{
    double gs[R * R] = {0}, gv[R * R] = {0}, tmp[R * R], *gram = tpl_calloc((size_t)(c->v_dim * c->v_dim), sizeof *gram);
    const double *o = dm_layer_tensor(m, layer, "self_attn.o_proj");
    for (int h = 0; h < c->n_heads; h++) {
        add_form(dm_uk(m, layer, h), k->q_nope + h * c->nope_dim * c->nope_dim, c->nope_dim, gs);
        for (int i = 0; i < c->v_dim; i++)
            for (int j = 0; j < c->v_dim; j++) {
                gram[i * c->v_dim + j] = 0;
                for (int d = 0; d < c->dim; d++)
                    gram[i * c->v_dim + j] += o[(d * c->n_heads + h) * c->v_dim + i] * o[(d * c->n_heads + h) * c->v_dim + j];
            }
        add_form(dm_uv(m, layer, h), gram, c->v_dim, gv);
    }
    product(gs, cov, tmp);
    double ts = trace(tmp);
    product(gv, cov, tmp);
    double tv = trace(tmp);
    for (int i = 0; i < R * R; i++)
        g[i] = gs[i] / (2 * ts) + gv[i] / (2 * tv) + (i % (R + 1) == 0 ? delta / trace(cov) : 0);
    free(gram);
}

/* E's rows e satisfy G C e^T = l e^T, largest l first. So the first n columns of U span a subspace that G C maps into
 * itself, and G C restricted to it has the n largest eigenvalues: U^T G C U is upper triangular with a falling diagonal. */
static void expect_mix(const fixture *f, const dm *m, int g_slices)
{
    char text[VARIANT_TEXT];
    transform *t = NULL;
    snprintf(text, sizeof text, "tpla:g=%d:u=mix", g_slices);
    build(f, text, &f->cal, NULL, &t);
    for (int l = 0; l < LAYERS; l++) {
        double cov[R * R], g[R * R], gc[R * R], tmp[R * R], tri[R * R];
        const double *u = t->layers[l].value, *ut = t->layers[l].store;
        const calib_layer *k = &f->cal.layers[l];
        for (int i = 0; i < R; i++)
            for (int j = 0; j < R; j++)
                cov[i * R + j] = k->chat[i * R + j] - k->mean[i] * k->mean[j];
        metric_of(m, &f->cfg, k, l, g_slices > 2 ? 3 : 0, cov, g);
        product(g, cov, gc);
        product(gc, u, tmp);
        product(ut, tmp, tri);
        cr_expect(linalg_orthogonality(R, u) < 1e-9);
        for (int i = 0; i < R; i++) {
            cr_expect(i == 0 || tri[i * R + i] <= tri[(i - 1) * R + i - 1] + 1e-9, "%s layer %d: eigenvalue %d rises", text, l, i);
            for (int j = 0; j < i; j++)
                cr_expect(fabs(tri[i * R + j]) < 1e-7 * tri[0], "%s layer %d: entry %d,%d is %g of %g", text, l, i, j,
                          tri[i * R + j], tri[0]);
        }
        /* rows of U^T are the store, columns of U read scores (times mu) and values */
        for (int i = 0; i < R; i++)
            for (int j = 0; j < R; j++)
                cr_expect(ut[j * R + i] == u[i * R + j]);
    }
    transform_destroy(t);
}

Test(transform, mix_orders_directions_by_what_their_loss_costs)
{
    fixture f;
    open_fixture(&f);
    dm *m = dm_create(&f.cfg, &f.list);
    expect_mix(&f, m, 2);
    expect_mix(&f, m, 4);
    dm_destroy(m);
    fixture_close(&f);
}

/* ---- scales ---- */

/* Eigenvalues 6 x 8 and 2 x 8 in the identity basis after PCA: shares 3/4 and 1/4. */
Test(transform, scales_follow_their_keys)
{
    static const struct {
        const char *text;
        float alpha[2], mu[2];
    } cases[] = {
        {"tpla:u=pca", {4.f / 3, 4}, {4.f / 3, 4}},
        {"tpla:u=pca:alpha=share", {.75f, .25f}, {.75f, .25f}},
        {"tpla:u=pca:alpha=one", {1, 1}, {1, 1}},
        {"tpla:u=pca:mu=one", {4.f / 3, 4}, {1, 1}},
        {"tpla:u=pca:mu=fit", {4.f / 3, 4}, {5, 7}},
        {"tpla:u=pca:slice=norm", {4.f / 3, 4}, {1, 1}},
        {"tpla:u=pca:slice=none", {4.f / 3, 4}, {1, 1}},
        {"tpla:u=pca:slice=none:mu=fit", {4.f / 3, 4}, {1, 1}},
        {"tpla:u=id", {2, 2}, {2, 2}},
        {"tpla:u=hadamard:mu=one", {2, 2}, {1, 1}},
        {"gla:g=2", {2, 2}, {1, 1}},
        {"gla:g=2:mu=g", {2, 2}, {2, 2}},
    };
    static const float fit[2 * LAYERS] = {5, 7, 5, 7};
    fixture f;
    double v[R * R], values[R];
    open_fixture(&f);
    reflection(v);
    for (int k = 0; k < R; k++)
        values[k] = k < R / 2 ? 6 + k * 1e-9 : 2 + k * 1e-9;
    for (int l = 0; l < LAYERS; l++)
        moment_of(v, values, f.cal.layers[l].raw);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        transform *t = NULL;
        build(&f, cases[i].text, &f.cal, fit, &t);
        for (int l = 0; l < LAYERS; l++) {
            const transform_layer *tl = &t->layers[l];
            for (int j = 0; j < 2; j++)
                cr_expect(fabsf(tl->alpha[j] - cases[i].alpha[j]) < 1e-5f && fabsf(tl->mu[j] - cases[i].mu[j]) < 1e-5f,
                          "%s slice %d: alpha %g, mu %g", cases[i].text, j, tl->alpha[j], tl->mu[j]);
            for (int a = 0; a < R * R; a++)
                cr_expect(tl->score[a] == tl->value[a] * tl->mu[a % R / (R / 2)], "%s: score entry %d", cases[i].text, a);
        }
        transform_destroy(t);
    }
    fixture_close(&f);
}

Test(transform, calibration_that_does_not_fit_is_refused)
{
    fixture f;
    variant v;
    transform *t = NULL;
    tpl_err e = {0};
    open_fixture(&f);
    cr_assert(variant_parse("tpla:u=pca", &v, &e) == TPL_OK);
    cr_expect(transform_build(f.m, &v, NULL, NULL, &t, &e) == TPL_E_USAGE && strstr(e.what, "needs a calibration text"));
    calibration other;
    calibration_init(&other, LAYERS, R / 2, f.cfg.n_heads, f.cfg.nope_dim);
    cr_expect(transform_build(f.m, &v, &other, NULL, &t, &e) == TPL_E_INPUT && strstr(e.what, "2 layers of rank 8, expected 2 of 16"));
    calibration_free(&other);
    f.cal.layers[1].raw[5] = NAN;
    cr_expect(transform_build(f.m, &v, &f.cal, NULL, &t, &e) == TPL_E_DEVICE && strstr(e.where, "layer 1"));
    cr_assert(variant_parse("tpla:u=id:mu=fit", &v, &e) == TPL_OK);
    cr_expect(transform_build(f.m, &v, &f.cal, NULL, &t, &e) == TPL_E_USAGE && strstr(e.what, "fit"), "%s", e.what);
    cr_expect(t == NULL);
    fixture_close(&f);
}

/* ---- calibration ---- */

enum { ROWS = 3, ROW_TOK = 24 };

typedef struct {
    const dm *m;
    const model_config *c;
    double raw[LAYERS][R * R], chat[LAYERS][R * R], mean[LAYERS][R], q[LAYERS][4][8 * 8];
    /* for mu=fit */
    const transform *t;
    double lat[LAYERS][ROW_TOK][R], cross[LAYERS][4], square[LAYERS][4];
} direct;

static void see_moments(void *user, const dm_view *v)
{
    direct *d = user;
    double ss = 0, chat[R];
    int n = d->c->nope_dim, count = ROWS * ROW_TOK;
    for (int i = 0; i < R; i++)
        ss += v->c[i] * v->c[i];
    for (int i = 0; i < R; i++)
        chat[i] = v->c[i] / sqrt(ss / R + d->c->rms_eps);
    for (int i = 0; i < R; i++) {
        d->mean[v->layer][i] += chat[i] / count;
        for (int j = 0; j < R; j++) {
            d->raw[v->layer][i * R + j] += v->c[i] * v->c[j] / count;
            d->chat[v->layer][i * R + j] += chat[i] * chat[j] / count;
        }
    }
    for (int h = 0; h < d->c->n_heads; h++)
        for (int i = 0; i < n; i++)
            for (int j = 0; j < n; j++)
                d->q[v->layer][h][i * n + j] += v->q_nope[h * n + i] * v->q_nope[h * n + j] / count;
}

/* Scores of the newest token against all before it, slice by slice. */
static void see_scores(void *user, const dm_view *v)
{
    direct *d = user;
    const double *u = d->t->layers[v->layer].value;
    int n = d->c->nope_dim, g = d->t->g, s = R / g;
    double ss = 0;
    for (int i = 0; i < R; i++)
        ss += v->c[i] * v->c[i];
    for (int j = 0; j < R; j++) {
        d->lat[v->layer][v->pos][j] = 0;
        for (int i = 0; i < R; i++)
            d->lat[v->layer][v->pos][j] += v->c[i] / sqrt(ss / R + d->c->rms_eps) * u[i * R + j];
    }
    for (int h = 0; h < d->c->n_heads; h++) {
        const double *uk = dm_uk(d->m, v->layer, h);
        double q_lat[R] = {0};
        for (int k = 0; k < n; k++)
            for (int i = 0; i < R; i++)
                for (int j = 0; j < R; j++)
                    q_lat[j] += v->q_nope[h * n + k] * uk[k * R + i] * u[i * R + j];
        for (int t = 0; t <= v->pos; t++) {
            double part[4] = {0}, full = 0;
            for (int j = 0; j < R; j++) {
                part[j / s] += q_lat[j] * d->lat[v->layer][t][j];
                full += q_lat[j] * d->lat[v->layer][t][j];
            }
            for (int j = 0; j < g; j++) {
                d->cross[v->layer][j] += full * part[j];
                d->square[v->layer][j] += part[j] * part[j];
            }
        }
    }
}

static void make_rows(text_rows *rows, int32_t *tokens, int vocab)
{
    rig_tokens(tokens, ROWS * ROW_TOK, vocab, 90);
    *rows = (text_rows){.tokens = tokens, .n_rows = ROWS, .row_tok = ROW_TOK, .sha = sha256_bytes("text", 4)};
}

static void run_direct(direct *d, int n_rows, const int32_t *tokens, void (*see)(void *, const dm_view *))
{
    dm_form exact = {.g = 1};
    for (int i = 0; i < n_rows; i++)
        dm_forward(d->m, &exact, tokens + i * ROW_TOK, ROW_TOK, NULL, see, d);
}

static void expect_moment(const double *got, const double *want, int n, const char *name, int layer, int tp)
{
    double worst = 0, size = 0;
    for (int i = 0; i < n; i++) {
        worst = fmax(worst, fabs(got[i] - want[i]));
        size = fmax(size, fabs(want[i]));
    }
    cr_expect(worst <= 2e-6 * size, "%s of layer %d at tp %d is off by %g of %g", name, layer, tp, worst, size);
}

/* The engine's f32 activations against double: relative 2e-6 of the largest entry. */
Test(transform, calibration_measures_the_moments_of_the_equations)
{
    fixture f;
    int32_t tokens[ROWS * ROW_TOK];
    text_rows rows;
    direct *d = tpl_calloc(1, sizeof *d);
    open_fixture(&f);
    dm *m = dm_create(&f.cfg, &f.list);
    d->m = m;
    d->c = &f.cfg;
    make_rows(&rows, tokens, f.cfg.vocab);
    run_direct(d, ROWS, tokens, see_moments);
    for (int tp = 1; tp <= 2; tp++) {
        calibration cal;
        tpl_err e = {0};
        calibrate_options o = {.rows = &rows, .tp = tp};
        cr_assert(calibrate(f.m, &o, &cal, &e) == TPL_OK, "%s", e.what);
        cr_expect(cal.n_tok == ROWS * ROW_TOK && !cal.from_cache && cal.path[0] == 0);
        for (int l = 0; l < LAYERS; l++) {
            expect_moment(cal.layers[l].raw, d->raw[l], R * R, "raw", l, tp);
            expect_moment(cal.layers[l].chat, d->chat[l], R * R, "chat", l, tp);
            expect_moment(cal.layers[l].mean, d->mean[l], R, "mean", l, tp);
            for (int h = 0; h < f.cfg.n_heads; h++)
                expect_moment(cal.layers[l].q_nope + h * 64, d->q[l][h], 64, "q_nope", l, tp);
        }
        calibration_free(&cal);
    }
    dm_destroy(m);
    free(d);
    fixture_close(&f);
}

Test(transform, fitted_mu_is_the_least_squares_of_all_causal_pairs)
{
    fixture f;
    int32_t tokens[ROWS * ROW_TOK];
    text_rows rows;
    direct *d = tpl_calloc(1, sizeof *d);
    float mu[LAYERS * 4];
    tpl_err e = {0};
    transform *t = NULL;
    open_fixture(&f);
    dm *m = dm_create(&f.cfg, &f.list);
    make_rows(&rows, tokens, f.cfg.vocab);
    build(&f, "tpla:g=4:u=pca:mu=one", &f.cal, NULL, &t);
    d->m = m;
    d->c = &f.cfg;
    d->t = t;
    run_direct(d, 2, tokens, see_scores);
    cr_assert(calibrate_fit_mu(f.m, &rows, 2, t, mu, &e) == TPL_OK, "%s", e.what);
    for (int l = 0; l < LAYERS; l++)
        for (int j = 0; j < 4; j++) {
            double want = d->cross[l][j] / d->square[l][j];
            cr_expect(fabs(mu[l * 4 + j] - want) < 1e-5 * fabs(want), "layer %d slice %d: %g, expected %g", l, j, mu[l * 4 + j], want);
        }
    transform_destroy(t);
    dm_destroy(m);
    free(d);
    fixture_close(&f);
}

/* ---- cache ---- */

static bool cached(const fixture *f, const calibrate_options *o, calibration *out)
{
    tpl_err e = {0};
    cr_assert(calibrate(f->m, o, out, &e) == TPL_OK, "%s: %s", e.where, e.what);
    return out->from_cache;
}

static bool equal_moments(const calibration *a, const calibration *b)
{
    bool same = a->n_tok == b->n_tok;
    for (int l = 0; l < LAYERS; l++)
        same = same && memcmp(a->layers[l].raw, b->layers[l].raw, sizeof(double) * R * R) == 0 &&
               memcmp(a->layers[l].mean, b->layers[l].mean, sizeof(double) * R) == 0 &&
               memcmp(a->layers[l].chat, b->layers[l].chat, sizeof(double) * R * R) == 0 &&
               memcmp(a->layers[l].q_nope, b->layers[l].q_nope, sizeof(double) * 4 * 64) == 0;
    return same;
}

static void damage(char *data, size_t *len, int how)
{
    switch (how) {
    case 0:
        data[*len / 2] ^= 1;
        break;
    case 1:
        *len -= 1;
        break;
    case 2:
        *len = 0;
        break;
    case 3:
        data[0] = 'x';
        break;
    case 4:
        data[8] ^= 1; /* number of layers */
        break;
    default:
        data[*len - 1] ^= 1; /* the checksum itself */
    }
}

Test(transform, the_cache_is_used_remade_when_damaged_and_keyed_by_content)
{
    fixture f;
    int32_t tokens[ROWS * ROW_TOK];
    text_rows rows;
    calibration first, again;
    arena a;
    arena_init(&a);
    char *dir = ckpt_temp_dir(&a);
    log_set_level(LOG_ERROR);
    open_fixture(&f);
    make_rows(&rows, tokens, f.cfg.vocab);
    calibrate_options o = {.rows = &rows, .tp = 1, .cache_dir = dir};
    o.model_sha = sha256_bytes("model", 5);
    o.tokenizer_sha = sha256_bytes("tokenizer", 9);
    cr_expect(!cached(&f, &o, &first));
    cr_expect(cached(&f, &o, &again) && equal_moments(&first, &again), "the second time it comes from the cache");
    cr_expect_str_eq(first.path, again.path);
    calibration_free(&again);
    for (int how = 0; how < 6; how++) {
        char *data;
        size_t len;
        cr_assert(text_read_file(first.path, &data, &len, NULL) == TPL_OK);
        damage(data, &len, how);
        cr_assert(text_write_file(first.path, data, len, NULL) == TPL_OK);
        free(data);
        cr_expect(!cached(&f, &o, &again) && equal_moments(&first, &again), "damage %d is noticed", how);
        calibration_free(&again);
        cr_expect(cached(&f, &o, &again) && equal_moments(&first, &again), "damage %d is repaired", how);
        calibration_free(&again);
    }
    for (int what = 0; what < 5; what++) {
        text_rows other_rows = rows;
        calibrate_options other = o;
        other.rows = &other_rows;
        if (what == 0)
            other_rows.sha = sha256_bytes("texu", 4);
        else if (what == 1)
            other.model_sha = sha256_bytes("modem", 5);
        else if (what == 2)
            other.tokenizer_sha = sha256_bytes("tokenizes", 9);
        else if (what == 3)
            other_rows.n_rows--;
        else
            other_rows.row_tok--;
        cr_expect(!cached(&f, &other, &again), "change %d is another key", what);
        cr_expect(strcmp(first.key.hex, again.key.hex) != 0 && strcmp(first.path, again.path) != 0);
        calibration_free(&again);
    }
    calibration_free(&first);
    ckpt_remove_dir(dir);
    arena_fini(&a);
    fixture_close(&f);
}

/* ---- algebra ---- */

Test(transform, products_with_either_side_transposed)
{
    static const double a[2 * 3] = {1, 2, 3, 4, 5, 6}, at[3 * 2] = {1, 4, 2, 5, 3, 6};
    static const double b[3 * 2] = {1, 0, -1, 2, 3, 1}, bt[2 * 3] = {1, -1, 3, 0, 2, 1};
    static const double want[4] = {8, 7, 17, 16};
    for (int ta = 0; ta < 2; ta++)
        for (int tb = 0; tb < 2; tb++) {
            double c[4];
            linalg_matmul(2, 2, 3, ta ? at : a, ta, tb ? bt : b, tb, c);
            for (int i = 0; i < 4; i++)
                cr_expect(c[i] == want[i], "%d%d entry %d", ta, tb, i);
        }
}

Test(transform, an_orthonormal_basis_spans_the_columns_in_order)
{
    double a[R * R], q[R * R], r[R * R];
    tpl_err e = {0};
    rng random = rng_make(6, 6);
    for (int i = 0; i < R * R; i++)
        a[i] = rng_normal(&random);
    cr_assert(linalg_orthonormalise(R, a, q, "test", &e) == TPL_OK, "%s", e.what);
    linalg_matmul(R, R, R, q, 1, a, 0, r);
    cr_expect(linalg_orthogonality(R, q) < 1e-13);
    for (int i = 0; i < R; i++) {
        cr_expect(r[i * R + i] > 0, "diagonal %d", i);
        for (int j = 0; j < i; j++)
            cr_expect(fabs(r[i * R + j]) < 1e-12, "entry %d,%d", i, j);
    }
}

/* What a broken library would give is a decomposition that does not rebuild its input. LAPACK reads the upper triangle
 * only, so an input whose lower triangle differs comes back as another matrix. */
Test(transform, a_decomposition_that_does_not_rebuild_its_input_is_refused)
{
    double a[4] = {2, 1, 1, 3}, values[2], vectors[4];
    tpl_err e = {0};
    cr_assert(linalg_eigh(2, a, values, vectors, "test", &e) == TPL_OK);
    cr_expect(fabs(values[0] - (5 + sqrt(5)) / 2) < 1e-12 && fabs(values[1] - (5 - sqrt(5)) / 2) < 1e-12);
    a[2] = 1.001;
    cr_expect(linalg_eigh(2, a, values, vectors, "layer 9", &e) == TPL_E_DEVICE);
    cr_expect(strcmp(e.where, "layer 9") == 0 && strstr(e.what, "do not rebuild it"), "%s", e.what);
    a[1] = a[2] = NAN;
    cr_expect(linalg_eigh(2, a, values, vectors, "test", &e) == TPL_E_DEVICE);
    cr_expect(linalg_orthonormalise(2, a, vectors, "test", &e) == TPL_E_DEVICE && strstr(e.what, "not orthogonal"));
    double skew[4] = {1, 1, 0, 1};
    cr_expect(fabs(linalg_orthogonality(2, skew) - 1) < 1e-15);
}
