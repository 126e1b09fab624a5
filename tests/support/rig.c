#include "tests/support/rig.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include <criterion/criterion.h>

#include "base/rng.h"

/* out [n, n] = sum of `terms` outer products of random vectors / terms: symmetric, positive definite for terms > n. */
static void random_moment(rng *r, int n, int terms, double *out)
{
    double *x = tpl_malloc(sizeof *x * (size_t)n);
    for (int t = 0; t < terms; t++) {
        for (int i = 0; i < n; i++)
            x[i] = rng_normal(r) * (1 + 3. / (1 + i));
        for (int i = 0; i < n; i++)
            for (int j = 0; j < n; j++)
                out[(size_t)i * (size_t)n + (size_t)j] += x[i] * x[j] / terms;
    }
    free(x);
}

static void random_calibration(calibration *cal, const model_config *c)
{
    rng r = rng_make(11, 0);
    calibration_init(cal, c->n_layers, c->kv_lora_rank, c->n_heads, c->nope_dim);
    cal->n_tok = 4096;
    for (int l = 0; l < c->n_layers; l++) {
        calib_layer *k = &cal->layers[l];
        random_moment(&r, c->kv_lora_rank, 4 * c->kv_lora_rank, k->raw);
        random_moment(&r, c->kv_lora_rank, 4 * c->kv_lora_rank, k->chat);
        for (int i = 0; i < c->kv_lora_rank; i++)
            k->mean[i] = 0.05 * rng_normal(&r);
        for (int h = 0; h < c->n_heads; h++)
            random_moment(&r, c->nope_dim, 4 * c->nope_dim, k->q_nope + (size_t)h * (size_t)(c->nope_dim * c->nope_dim));
    }
}

void fixture_open(fixture *f, const model_config *c, tpl_dtype dtype, uint64_t seed)
{
    tpl_err e = {0};
    *f = (fixture){.cfg = *c};
    arena_init(&f->mem);
    f->dir = ckpt_temp_dir(&f->mem);
    cr_assert(f->dir != NULL);
    f->cfg.weight_dtype = dtype;
    f->list = ckpt_tensors(&f->mem, &f->cfg, dtype, seed);
    cr_assert(ckpt_save(f->dir, ckpt_config_text(&f->mem, &f->cfg, NULL), &f->list, 1, &e) == TPL_OK, "%s", e.what);
    cr_assert(model_open(f->dir, &f->m, &e) == TPL_OK, "%s: %s", e.where, e.what);
    f->cfg = *model_cfg(f->m);
    if (c->attn == ATTN_MLA)
        random_calibration(&f->cal, c);
}

void fixture_close(fixture *f)
{
    calibration_free(&f->cal);
    model_close(f->m);
    ckpt_remove_dir(f->dir);
    arena_fini(&f->mem);
}

void rig_open(rig *r, const fixture *f, const char *variant_text, const team_options *o, const session_options *so)
{
    tpl_err e = {0};
    const model_config *c = model_cfg(f->m);
    session_options s = so ? *so : (session_options){0};
    s.max_seqs = s.max_seqs ? s.max_seqs : 4;
    s.max_tok = s.max_tok ? s.max_tok : c->max_pos;
    s.max_rows = s.max_rows ? s.max_rows : c->max_pos;
    s.max_logits = s.max_logits ? s.max_logits : s.max_rows;
    *r = (rig){0};
    cr_assert(variant_parse(variant_text, &r->v, &e) == TPL_OK, "%s: %s", e.where, e.what);
    if (variant_needs_transform(&r->v)) {
        const calibration *cal = f->cal.layers ? &f->cal : NULL;
        cr_assert(transform_build(f->m, &r->v, cal, NULL, &r->t, &e) == TPL_OK, "%s: %s", e.where, e.what);
        cr_assert(transform_fold(f->m, r->t, o->compute == DT_BF16 ? DT_BF16 : DT_F32, &r->f, &e) == TPL_OK);
    }
    cr_assert(team_create(f->m, r->f, &r->v, o, &r->team, &e) == TPL_OK, "%s tp %d: %s: %s", variant_text, o->tp,
              e.where, e.what);
    cr_assert(session_create(r->team, &s, &r->s, &e) == TPL_OK, "%s: %s: %s", variant_text, e.where, e.what);
}

void rig_close(rig *r)
{
    session_destroy(r->s);
    team_destroy(r->team);
    folded_destroy(r->f);
    transform_destroy(r->t);
    *r = (rig){0};
}

void rig_forward(rig *r, plan_phase phase, const batch_row *rows, int n)
{
    tpl_err e = {0};
    cr_assert(session_forward(r->s, phase, rows, n, &e) == TPL_OK, "%s: %s", e.where, e.what);
}

float *rig_logits(rig *r, const int32_t *tokens, int n, int n_prefill, int chunk)
{
    size_t vocab = (size_t)team_plan(r->team, 0)->cfg.vocab;
    float *logits = tpl_malloc(sizeof *logits * (size_t)n * vocab);
    batch_row *rows = tpl_malloc(sizeof *rows * (size_t)n);
    int seq = session_add_seq(r->s);
    cr_assert(seq >= 0);
    for (int at = 0; at < n;) {
        int left = n_prefill - at, len = left <= 0 ? 1 : left < chunk ? left : chunk;
        for (int i = 0; i < len; i++)
            rows[i] = (batch_row){seq, tokens[at + i], ROW_CHAIN, true};
        rig_forward(r, at < n_prefill ? PHASE_PREFILL : PHASE_DECODE, rows, len);
        for (int i = 0; i < len; i++)
            memcpy(logits + (size_t)(at + i) * vocab, session_logits(r->s, i), sizeof *logits * vocab);
        at += len;
    }
    session_drop_seq(r->s, seq);
    free(rows);
    return logits;
}

float *rig_run(const fixture *f, const char *variant_text, const team_options *o, const int32_t *tokens, int n,
               int n_prefill, int chunk)
{
    rig r;
    rig_open(&r, f, variant_text, o, NULL);
    float *logits = rig_logits(&r, tokens, n, n_prefill, chunk);
    rig_close(&r);
    return logits;
}

void rig_tokens(int32_t *tokens, int n, int vocab, uint64_t seed)
{
    rng r = rng_make(seed, 77);
    for (int i = 0; i < n; i++)
        tokens[i] = (int32_t)rng_below(&r, (uint64_t)vocab);
}

double rig_distance(const float *a, const float *b, size_t n)
{
    double worst = 0;
    for (size_t i = 0; i < n; i++) {
        double d = fabs((double)a[i] - b[i]);
        if (isnan(d))
            return INFINITY;
        worst = fmax(worst, d);
    }
    return worst;
}
