#include "engine/calibrate.h"

#include <assert.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "engine/linalg.h"
#include "engine/session.h"

/* ---- taps: what the model's own forward pass shows of each layer ---- */

typedef struct {
    const model_config *cfg;
    calibration *cal;
    int n_heads; /* of this rank */
} moment_tap;

/* sum [n, n] += rows^T rows; in double, through an f32 block transposed product would lose digits. */
static void add_outer(double *sum, const double *x, int64_t rows, int n)
{
    for (int64_t t = 0; t < rows; t++) {
        const double *v = x + t * n;
        for (int i = 0; i < n; i++) {
            double vi = v[i], *row = sum + (size_t)i * n;
            for (int j = 0; j < n; j++)
                row[j] += vi * v[j];
        }
    }
}

static void tap_latent(const moment_tap *tap, int layer, mat kv)
{
    int r = tap->cfg->kv_lora_rank;
    calib_layer *l = &tap->cal->layers[layer];
    double *c = tpl_malloc(sizeof *c * (size_t)kv.rows * (size_t)r);
    for (int64_t t = 0; t < kv.rows; t++)
        for (int i = 0; i < r; i++)
            c[t * r + i] = ((const float *)kv.data)[t * kv.stride + i];
    add_outer(l->raw, c, kv.rows, r);
    for (int64_t t = 0; t < kv.rows; t++) {
        double ss = 0, *v = c + t * r;
        for (int i = 0; i < r; i++)
            ss += v[i] * v[i];
        double scale = 1 / sqrt(ss / r + tap->cfg->latent_eps);
        for (int i = 0; i < r; i++)
            l->mean[i] += v[i] *= scale;
    }
    add_outer(l->chat, c, kv.rows, r);
    free(c);
}

static void tap_query(const moment_tap *tap, int layer, int head0, mat q)
{
    const model_config *c = tap->cfg;
    int n = c->nope_dim, width = n + c->rope_dim, heads = (int)(q.cols / width);
    double *x = tpl_malloc(sizeof *x * (size_t)q.rows * (size_t)n);
    for (int h = 0; h < heads; h++) {
        for (int64_t t = 0; t < q.rows; t++)
            for (int i = 0; i < n; i++)
                x[t * n + i] = ((const float *)q.data)[t * q.stride + h * width + i];
        add_outer(tap->cal->layers[layer].q_nope + (size_t)(head0 + h) * (size_t)(n * n), x, q.rows, n);
    }
    free(x);
}

/* Ranks write disjoint parts: rank 0 the latent, each its own heads. */
static void on_step(void *user, int rank, const plan_step *step, const op_call *call, mat out)
{
    const moment_tap *tap = user;
    if (step->layer < 0)
        return;
    if (rank == 0 && strcmp(step->name, "attn.kv_a") == 0)
        tap_latent(tap, step->layer, out);
    if (strcmp(step->name, "attn.q_b") == 0)
        tap_query(tap, step->layer, rank * tap->n_heads, out);
}

/* Runs the first n_rows rows through exact MLA with an observer. */
static tpl_code run_rows(const model *m, const text_rows *rows, int n_rows, int tp, step_observer o, const char *what, tpl_err *e)
{
    const model_config *c = model_cfg(m);
    variant exact = variant_exact(c);
    team *t = NULL;
    session *s = NULL;
    batch_row *batch = tpl_calloc((size_t)rows->row_tok, sizeof *batch);
    tpl_code rc;
    TPL_GOTO(rc, team_create(m, NULL, &exact, &(team_options){.tp = tp}, &t, e), done);
    session_options so = {.max_seqs = 1, .max_tok = rows->row_tok, .max_rows = rows->row_tok, .max_logits = 1};
    TPL_GOTO(rc, session_create(t, &so, &s, e), done);
    session_observe(s, o);
    for (int i = 0; i < n_rows; i++) {
        if (interrupt_seen()) {
            rc = tpl_fail(e, TPL_E_INTERRUPTED, what, "stopped by a signal");
            goto done;
        }
        progress_show(i, n_rows, "%s", what);
        int seq = session_add_seq(s);
        for (int k = 0; k < rows->row_tok; k++)
            batch[k] = (batch_row){seq, rows->tokens[i * rows->row_tok + k], ROW_CHAIN, false};
        TPL_GOTO(rc, session_forward(s, PHASE_PREFILL, batch, rows->row_tok, e), done);
        session_drop_seq(s, seq);
    }
done:
    progress_clear();
    session_destroy(s);
    team_destroy(t);
    free(batch);
    return rc;
}

static void divide(double *x, size_t n, double by)
{
    for (size_t i = 0; i < n; i++)
        x[i] /= by;
}

static tpl_code measure(const model *m, const calibrate_options *o, calibration *cal, tpl_err *e)
{
    const model_config *c = model_cfg(m);
    moment_tap tap = {c, cal, c->n_heads / o->tp};
    TPL_TRY(run_rows(m, o->rows, o->rows->n_rows, o->tp, (step_observer){.end = on_step, .user = &tap}, "calibrating", e));
    cal->n_tok = (int64_t)o->rows->n_rows * o->rows->row_tok;
    size_t rr = (size_t)c->kv_lora_rank * (size_t)c->kv_lora_rank;
    for (int l = 0; l < c->n_layers; l++) {
        divide(cal->layers[l].raw, rr, (double)cal->n_tok);
        divide(cal->layers[l].chat, rr, (double)cal->n_tok);
        divide(cal->layers[l].mean, (size_t)c->kv_lora_rank, (double)cal->n_tok);
        divide(cal->layers[l].q_nope, (size_t)c->n_heads * (size_t)(c->nope_dim * c->nope_dim), (double)cal->n_tok);
    }
    return TPL_OK;
}

/* ---- cache ---- */

static const char MAGIC[8] = {'t', 'p', 'l', 'c', 'a', 'l', '1', '\n'};

/* Calls part(user, data, bytes) for everything between header and checksum, in file order. */
static void each_part(const calibration *c, void (*part)(void *user, void *data, size_t bytes), void *user)
{
    size_t r = (size_t)c->r, nn = (size_t)(c->nope * c->nope);
    for (int l = 0; l < c->n_layers; l++) {
        part(user, c->layers[l].raw, r * r * sizeof(double));
        part(user, c->layers[l].mean, r * sizeof(double));
        part(user, c->layers[l].chat, r * r * sizeof(double));
        part(user, c->layers[l].q_nope, (size_t)c->n_heads * nn * sizeof(double));
    }
}

static void write_part(void *user, void *data, size_t bytes)
{
    text_add(user, data, bytes);
}

static void read_part(void *user, void *data, size_t bytes)
{
    const char **at = user;
    memcpy(data, *at, bytes);
    *at += bytes;
}

static void count_part(void *user, void *data, size_t bytes)
{
    *(size_t *)user += bytes;
}

enum { HEADER_BYTES = 8 + 5 * 8, SHA_BYTES = 64 };

static void save_cache(const calibration *c)
{
    text_buf b = {0};
    int64_t head[5] = {c->n_layers, c->r, c->n_heads, c->nope, c->n_tok};
    tpl_err e;
    text_add(&b, MAGIC, sizeof MAGIC);
    text_add(&b, (const char *)head, sizeof head);
    each_part(c, write_part, &b);
    sha256_hex sum = sha256_bytes(b.data, b.len);
    text_add(&b, sum.hex, SHA_BYTES);
    if (text_write_file(c->path, b.data, b.len, &e) != TPL_OK)
        log_warn("transform cache not written: %s: %s", e.where, e.what);
    text_fini(&b);
}

static bool load_cache(calibration *c)
{
    char *data;
    size_t len, body = 0;
    if (!text_is_file(c->path) || text_read_file(c->path, &data, &len, NULL) != TPL_OK)
        return false;
    each_part(c, count_part, &body);
    int64_t head[5];
    bool good = len == HEADER_BYTES + body + SHA_BYTES && memcmp(data, MAGIC, sizeof MAGIC) == 0;
    if (good) {
        sha256_hex sum = sha256_bytes(data, len - SHA_BYTES);
        memcpy(head, data + sizeof MAGIC, sizeof head);
        good = memcmp(sum.hex, data + len - SHA_BYTES, SHA_BYTES) == 0 && head[0] == c->n_layers && head[1] == c->r && head[2] == c->n_heads && head[3] == c->nope;
    }
    if (good) {
        const char *at = data + HEADER_BYTES;
        each_part(c, read_part, (void *)&at);
        c->n_tok = head[4];
    } else {
        log_warn("%s is damaged and is made again", c->path);
    }
    free(data);
    return good;
}

tpl_code calibrate(const model *m, const calibrate_options *o, calibration *out, tpl_err *e)
{
    const model_config *c = model_cfg(m);
    assert(c->attn == ATTN_MLA);
    calibration cal;
    calibration_init(&cal, c->n_layers, c->kv_lora_rank, c->n_heads, c->nope_dim);
    text_buf key = {0};
    text_addf(&key, "moments 1\ntext %s\nmodel %s\ntokenizer %s\nrows %d of %d\n", o->rows->sha.hex, o->model_sha.hex, o->tokenizer_sha.hex, o->rows->n_rows, o->rows->row_tok);
    cal.key = sha256_bytes(key.data, key.len);
    cal.text_sha = o->rows->sha;
    text_fini(&key);
    if (o->cache_dir) {
        snprintf(cal.path, sizeof cal.path, "%s/%.32s.moments", o->cache_dir, cal.key.hex);
        cal.from_cache = load_cache(&cal);
    }
    tpl_code rc = cal.from_cache ? TPL_OK : measure(m, o, &cal, e);
    if (rc != TPL_OK) {
        calibration_free(&cal);
        return rc;
    }
    if (o->cache_dir && !cal.from_cache)
        save_cache(&cal);
    *out = cal;
    return TPL_OK;
}

/* ---- mu=fit ---- */

typedef struct {
    const model *m;
    const transform *t;
    double *cross, *square; /* [n_layers * g]: sum s s_j, sum s_j^2 */
    double *chat;           /* [row_tok, r] of the row and layer in flight, in the transform's basis */
    double *uk;             /* [n_layers][n_heads, nope, r] gamma and U folded */
} fit_tap;

static void fit_latent(fit_tap *f, int layer, mat kv)
{
    const model_config *c = model_cfg(f->m);
    int r = c->kv_lora_rank;
    double *plain = tpl_malloc(sizeof *plain * (size_t)r);
    for (int64_t t = 0; t < kv.rows; t++) {
        const float *x = (const float *)kv.data + t * kv.stride;
        double ss = 0;
        for (int i = 0; i < r; i++)
            ss += (double)x[i] * x[i];
        double scale = 1 / sqrt(ss / r + c->latent_eps);
        for (int i = 0; i < r; i++)
            plain[i] = x[i] * scale;
        linalg_matmul(1, r, r, plain, 0, f->t->layers[layer].store, 1, f->chat + t * r);
    }
    free(plain);
}

/* One head's scores over all causal pairs, slice by slice. */
static void fit_head(fit_tap *f, int layer, const double *q_lat, int64_t rows)
{
    int r = f->t->r, g = f->t->g, s = r / g;
    double *cross = f->cross + layer * g, *sq = f->square + layer * g, part[64];
    for (int64_t i = 0; i < rows; i++) {
        for (int64_t k = 0; k <= i; k++) {
            double full = 0;
            for (int j = 0; j < g; j++) {
                part[j] = 0;
                for (int d = j * s; d < (j + 1) * s; d++)
                    part[j] += q_lat[i * r + d] * f->chat[k * r + d];
                full += part[j];
            }
            for (int j = 0; j < g; j++) {
                cross[j] += full * part[j];
                sq[j] += part[j] * part[j];
            }
        }
    }
}

static void on_fit_step(void *user, int rank, const plan_step *step, const op_call *call, mat out)
{
    fit_tap *f = user;
    const model_config *c = model_cfg(f->m);
    int r = c->kv_lora_rank, n = c->nope_dim, width = n + c->rope_dim;
    if (step->layer >= 0 && strcmp(step->name, "attn.kv_a") == 0)
        fit_latent(f, step->layer, out);
    /* The latent of a layer comes after its queries; by the time attention runs, both are there. */
    if (step->layer < 0 || strcmp(step->name, "attn.mha") != 0)
        return;
    mat q = call->attn_mha.q;
    double *q_nope = tpl_malloc(sizeof *q_nope * (size_t)q.rows * (size_t)n), *q_lat = tpl_malloc(sizeof *q_lat * (size_t)q.rows * (size_t)r);
    for (int h = 0; h < c->n_heads; h++) {
        for (int64_t t = 0; t < q.rows; t++)
            for (int i = 0; i < n; i++)
                q_nope[t * n + i] = ((const float *)q.data)[t * q.stride + h * width + i];
        linalg_matmul((int)q.rows, r, n, q_nope, 0, f->uk + ((size_t)step->layer * (size_t)c->n_heads + (size_t)h) * (size_t)(n * r), 0, q_lat);
        fit_head(f, step->layer, q_lat, q.rows);
    }
    free(q_nope);
    free(q_lat);
}

tpl_code calibrate_fit_mu(const model *m, const text_rows *rows, int n_rows, const transform *t, float *mu, tpl_err *e)
{
    const model_config *c = model_cfg(m);
    size_t lg = (size_t)(t->n_layers * t->g), head = (size_t)(c->nope_dim * t->r);
    folded *f = NULL;
    TPL_TRY(transform_fold(m, t, DT_F32, &f, e));
    fit_tap tap = {.m = m, .t = t, .cross = tpl_calloc(lg, sizeof(double)), .square = tpl_calloc(lg, sizeof(double))};
    tap.chat = tpl_malloc(sizeof(double) * (size_t)rows->row_tok * (size_t)t->r);
    tap.uk = tpl_malloc(sizeof(double) * (size_t)t->n_layers * (size_t)c->n_heads * head);
    for (int l = 0; l < t->n_layers; l++)
        for (size_t i = 0; i < (size_t)c->n_heads * head; i++)
            tap.uk[(size_t)l * (size_t)c->n_heads * head + i] = ((const float *)folded_uk(f, l).data)[i];
    int n = n_rows < rows->n_rows ? n_rows : rows->n_rows;
    tpl_code rc = run_rows(m, rows, n, 1, (step_observer){.end = on_fit_step, .user = &tap}, "fitting mu", e);
    for (size_t i = 0; i < lg && rc == TPL_OK; i++)
        mu[i] = tap.square[i] > 0 ? (float)(tap.cross[i] / tap.square[i]) : 1.f;
    folded_destroy(f);
    free(tap.cross);
    free(tap.square);
    free(tap.chat);
    free(tap.uk);
    return rc;
}
