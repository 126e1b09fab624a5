#include "engine/lab.h"

#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/rng.h"
#include "device/procs.h"
#include "engine/remote.h"
#include "engine/shape.h"

enum { CALIB_ROWS = 48, CALIB_ROW_TOK = 2048, FIT_ROWS = 2, RANDOM_ROW_TOK = 64 };

struct lab {
    model *m;
    tokenizer *tok;
    lab_calibration c;
    bool calibrated;
    text_rows rows;
    calibration cal;
    int64_t remote_id; /* 0: no followers */
};

static tpl_code announce_text(remote_call call, const int64_t *args, int n, const char *first, const char *second, tpl_err *e)
{
    text_buf b = {0};
    text_addf(&b, "%s\n%s", first, second ? second : "");
    tpl_code rc = remote_announce(call, args, n, b.data, e);
    text_fini(&b);
    return rc;
}

static tpl_code open_checkpoint(lab *l, const char *dir, tpl_err *e)
{
    TPL_TRY(model_open(dir, &l->m, e));
    TPL_TRY(tokenizer_open(dir, &l->tok, e));
    if (tokenizer_vocab(l->tok) > model_cfg(l->m)->vocab)
        return tpl_fail(e, TPL_E_INPUT, dir, "tokenizer has %d tokens, the model's vocabulary %d", tokenizer_vocab(l->tok), model_cfg(l->m)->vocab);
    return model_check_finite(l->m, e);
}

tpl_code lab_open(const char *dir, const lab_calibration *c, lab **out, tpl_err *e)
{
    lab *l = tpl_calloc(1, sizeof *l);
    tpl_code rc;
    l->c = *c;
    if (shape_is_spec(dir))
        TPL_GOTO(rc, model_open_shape(dir, NULL, &l->m, e), fail);
    else
        TPL_GOTO(rc, open_checkpoint(l, dir, e), fail);
    if (remote_leads()) {
        int64_t id = remote_new_id(), args[] = {id, c->rows, c->row_tok, c->cache, c->tp};
        TPL_GOTO(rc, announce_text(REMOTE_LAB_OPEN, args, 5, dir, c->text, e), fail);
        l->remote_id = id;
    }
    *out = l;
    return TPL_OK;
fail:
    lab_close(l);
    return rc;
}

void lab_close(lab *l)
{
    if (!l)
        return;
    if (l->remote_id)
        remote_announce(REMOTE_LAB_CLOSE, &l->remote_id, 1, NULL, NULL);
    if (l->calibrated)
        calibration_free(&l->cal);
    text_rows_free(&l->rows);
    tokenizer_close(l->tok);
    model_close(l->m);
    free(l);
}

model *lab_model(lab *l)
{
    return l->m;
}

const tokenizer *lab_tokenizer(const lab *l)
{
    return l->tok;
}

int32_t lab_bos(const lab *l)
{
    const model_config *c = model_cfg(l->m);
    return c->bos_id >= 0 ? c->bos_id : c->eos_id;
}

const calibration *lab_calibrated(const lab *l)
{
    return l->calibrated ? &l->cal : NULL;
}

/* A shape has no text: its weights are random, so any tokens do, and its basis has no meaning but its cost. */
static void random_row(int vocab, int row_tok, text_rows *out)
{
    rng r = rng_make(1, 0);
    *out = (text_rows){.tokens = tpl_malloc(sizeof(int32_t) * (size_t)row_tok), .n_rows = 1, .row_tok = row_tok, .path = "random tokens"};
    for (int i = 0; i < row_tok; i++)
        out->tokens[i] = (int32_t)rng_below(&r, (uint64_t)vocab);
}

static tpl_code read_rows(lab *l, tpl_err *e)
{
    const model_config *c = model_cfg(l->m);
    int row_tok = l->c.row_tok ? l->c.row_tok : CALIB_ROW_TOK, rows = l->c.rows ? l->c.rows : CALIB_ROWS;
    if (row_tok > c->max_pos)
        row_tok = c->max_pos;
    if (!l->tok) {
        random_row(c->vocab, row_tok < RANDOM_ROW_TOK ? row_tok : RANDOM_ROW_TOK, &l->rows);
        return TPL_OK;
    }
    if (!l->c.text)
        return tpl_fail(e, TPL_E_USAGE, "--calibrate", "is not given, but a variant needs a calibration text");
    return text_rows_read(l->c.text, l->tok, lab_bos(l), rows, row_tok, &l->rows, e);
}

static tpl_code ensure_calibrated(lab *l, tpl_err *e)
{
    if (l->calibrated)
        return TPL_OK;
    arena a;
    arena_init(&a);
    char *cache = NULL, *path = text_path_join(&a, model_dir(l->m), "tokenizer.json");
    calibrate_options o = {.rows = &l->rows, .tp = l->c.tp ? l->c.tp : 1};
    tpl_err why;
    tpl_code rc = TPL_OK;
    if (!l->rows.tokens)
        TPL_GOTO(rc, read_rows(l, e), done);
    if (l->c.cache && text_cache_dir(&a, &cache, &why) != TPL_OK)
        log_warn("no transform cache: %s: %s", why.where, why.what);
    if (cache && l->tok) {
        TPL_GOTO(rc, sha256_file(path, &o.tokenizer_sha, e), done);
        TPL_GOTO(rc, model_sha256(l->m, &o.model_sha, e), done);
        o.cache_dir = cache;
    }
    TPL_GOTO(rc, calibrate(l->m, &o, &l->cal, e), done);
    l->calibrated = true;
done:
    arena_fini(&a);
    return rc;
}

static tpl_code build_transform(lab *l, const variant *v, transform **out, tpl_err *e)
{
    const calibration *cal = NULL;
    if (variant_needs_calibration(v)) {
        TPL_TRY(ensure_calibrated(l, e));
        cal = &l->cal;
    }
    if (v->mu != MU_FIT || v->kind != VAR_TPLA)
        return transform_build(l->m, v, cal, NULL, out, e);
    transform *plain = NULL;
    variant one = *v;
    one.mu = MU_ONE;
    float *mu = tpl_calloc((size_t)(model_cfg(l->m)->n_layers * v->g), sizeof *mu);
    tpl_code rc = transform_build(l->m, &one, cal, NULL, &plain, e);
    if (rc == TPL_OK)
        rc = calibrate_fit_mu(l->m, &l->rows, FIT_ROWS, plain, mu, e);
    if (rc == TPL_OK)
        rc = transform_build(l->m, v, cal, mu, out, e);
    transform_destroy(plain);
    free(mu);
    return rc;
}

/* Followers open the same run beside this one. */
static tpl_code announce_run(const lab *l, const variant *v, team_options *o, int64_t *id, tpl_err *e)
{
    char text[VARIANT_TEXT];
    variant_format(v, text);
    *id = o->remote_id = remote_new_id();
    int64_t args[] = {*id, l->remote_id, o->tp, o->compute, o->kv, o->isolate, o->plan.attention_only | o->plan.expert_parallel << 1};
    return announce_text(REMOTE_RUN_OPEN, args, 7, text, o->backend, e);
}

tpl_code lab_run_open(lab *l, const variant *v, const team_options *given, lab_run *out, tpl_err *e)
{
    lab_run r = {0};
    team_options own = *given, *o = &own;
    tpl_code rc;
    if (ranks_are_processes(o->ranks) && o->plan.fuzzy.groups.n > 0)
        return tpl_fail(e, TPL_E_UNSUPPORTED, "--groups", "ranks in several processes cannot run layer groups, expected local ranks");
    TPL_TRY(plan_fit(model_cfg(l->m), v, o->tp, &o->plan, e));
    TPL_TRY(ranks_check(o->ranks, o->tp, e));
    if (ranks_are_processes(o->ranks) && remote_leads())
        TPL_TRY(announce_run(l, v, o, &r.remote_id, e));
    if (model_is_random(l->m) && (!o->backend || strcmp(o->backend, "cuda") != 0))
        TPL_GOTO(rc, model_make_weights(l->m, e), fail);
    if (variant_needs_transform(v) && !model_is_random(l->m)) {
        TPL_GOTO(rc, build_transform(l, v, &r.transform, e), fail);
        TPL_GOTO(rc, transform_fold(l->m, r.transform, o->compute == DT_BF16 ? DT_BF16 : DT_F32, &r.folded, e), fail);
    }
    TPL_GOTO(rc, team_create(l->m, r.folded, v, o, &r.team, e), fail);
    *out = r;
    return TPL_OK;
fail:
    lab_run_close(&r);
    return rc;
}

void lab_run_close(lab_run *r)
{
    if (r->remote_id)
        remote_announce(REMOTE_RUN_CLOSE, &r->remote_id, 1, NULL, NULL);
    team_destroy(r->team);
    folded_destroy(r->folded);
    transform_destroy(r->transform);
    *r = (lab_run){0};
}
