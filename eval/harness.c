#include "eval/harness.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "eval/baseline.h"
#include "eval/cells.h"
#include "eval/long_task.h"
#include "eval/mc_task.h"
#include "eval/stats.h"
#include "eval/text_task.h"
#include "results/table.h"

typedef struct {
    const eval_request *q;
    run_dir *rd;
    arena mem;
    text_rows text;
    baseline base; /* scores of the exact variant at the current tp */
    variant exact;
} harness;

/* ---- one task of one variant ---- */

/* Adds a metric's row: value and standard error, and the paired difference where the baseline has the same items. */
static tpl_code append_metric(harness *h, const cell_key *k, const metric_values *m, tpl_err *e)
{
    rs_row row;
    cell_row(k, m->metric, &row);
    row_set_real(&row, ACC_value, m->value);
    if (isfinite(m->stderr_))
        row_set_real(&row, ACC_stderr, m->stderr_);
    row_set_int(&row, ACC_n_items, m->n);
    row_set_int(&row, ACC_n_truncated, m->n_truncated);
    row_set_real(&row, ACC_sliced_tok_frac, m->sliced_tok_frac);
    if (m->sliced_tok_frac == 0)
        row_set_text(&row, ACC_note, k->is_exact ? "exact" : "exact by construction: no scored token attends through sliced latents");
    row_set_text(&row, ACC_items_id, m->items_id);
    if (m->scores && !k->is_baseline)
        baseline_compare(&h->base, k, m, &row);
    row_set_status(&row, RS_OK, NULL);
    bool there = rd_has_cell(h->rd, RS_ACCURACY, row_cell_id(&row).hex); /* a run that was cut off between a task's metrics */
    tpl_code rc = there ? TPL_OK : rd_append(h->rd, &row, e);
    row_fini(&row);
    return rc;
}

/* How much of what is scored attends through sliced latents: all, or only rows of the decode list. */
static double sliced_fraction(const variant *v, double decoded_frac)
{
    bool sliced = v->kind == VAR_GLA || (v->kind == VAR_TPLA && v->slice != SLICE_NONE && v->g > 1);
    if (!sliced)
        return 0;
    return v->kind == VAR_TPLA && v->pd ? decoded_frac : 1;
}

static double perplexity_of(const double *nll, int n)
{
    return exp(fmin(stat_mean(nll, (size_t)n), 30));
}

/* The error of exp(mean) by the delta method, over rows of text. */
static double perplexity_stderr(const double *nll, int n)
{
    double s;
    return stat_stderr(nll, (size_t)n, &s) ? s * perplexity_of(nll, n) : NAN;
}

static tpl_code write_text_items(harness *h, const text_result *r, const char *name, tpl_err *e)
{
    static const char *const columns[] = {"row", "nll_prefill", "nll_decode", "kl", "top1"};
    rd_items *items;
    TPL_TRY(rd_items_open(h->rd, name, columns, 5, &items, e));
    for (int i = 0; i < r->n_rows; i++) {
        char cell[5][32];
        snprintf(cell[0], 32, "%d", i);
        snprintf(cell[1], 32, "%.17g", r->nll_prefill[i]);
        snprintf(cell[2], 32, "%.17g", r->nll_decode[i]);
        snprintf(cell[3], 32, "%.17g", r->kl[i]);
        snprintf(cell[4], 32, "%.17g", r->top1[i]);
        rd_items_append(items, (const char *const[]){cell[0], cell[1], cell[2], cell[3], cell[4]});
    }
    return rd_items_close(items, e);
}

static tpl_code append_text(harness *h, const cell_key *k, const text_result *r, tpl_err *e)
{
    int n = r->n_rows;
    double *all = tpl_malloc(sizeof *all * (size_t)n), s;
    char items[16];
    cell_name(k, "ppl", items);
    for (int i = 0; i < n; i++)
        all[i] = (r->nll_prefill[i] * (double)r->n_prefill + r->nll_decode[i] * (double)r->n_decode) / (double)(r->n_prefill + r->n_decode);
    double half = sliced_fraction(k->v, 1), none = sliced_fraction(k->v, 0);
    double whole = sliced_fraction(k->v, (double)r->n_decode / (double)(r->n_prefill + r->n_decode));
    metric_values rows[] = {
        {.metric = "ppl", .value = perplexity_of(all, n), .stderr_ = perplexity_stderr(all, n), .sliced_tok_frac = whole},
        {.metric = "ppl_prefill", .value = perplexity_of(r->nll_prefill, n), .stderr_ = perplexity_stderr(r->nll_prefill, n), .sliced_tok_frac = none},
        {.metric = "ppl_decode", .value = perplexity_of(r->nll_decode, n), .stderr_ = perplexity_stderr(r->nll_decode, n), .sliced_tok_frac = half},
        {.metric = "kl", .value = stat_mean(r->kl, (size_t)n), .stderr_ = stat_stderr(r->kl, (size_t)n, &s) ? s : NAN, .sliced_tok_frac = half},
        {.metric = "top1", .value = stat_mean(r->top1, (size_t)n), .stderr_ = stat_stderr(r->top1, (size_t)n, &s) ? s : NAN, .sliced_tok_frac = half},
    };
    tpl_code rc = write_text_items(h, r, items, e);
    for (size_t i = 0; i < sizeof rows / sizeof *rows && rc == TPL_OK; i++) {
        rows[i].n = n;
        rows[i].items_id = items;
        rc = append_metric(h, k, &rows[i], e);
    }
    free(all);
    return rc;
}

static tpl_code run_text(harness *h, const cell_key *k, const lab_run *run, tpl_err *e)
{
    bool fill = k->is_baseline && !h->base.logits_ready;
    text_result r;
    TPL_TRY(baseline_logits(&h->base, h->q->lab, &h->exact, k, &h->text, fill, e));
    TPL_TRY(text_task_run(run, &h->text, &h->base.logits, fill, &r, e));
    h->base.logits_ready = true;
    tpl_code rc = append_text(h, k, &r, e);
    text_result_free(&r);
    return rc;
}

static tpl_code write_mc_items(harness *h, const ds_mc_item *items, const mc_result *r, const char *name, tpl_err *e)
{
    static const char *const columns[] = {"id", "gold", "pred", "pred_norm", "acc", "acc_norm", "loglik"};
    rd_items *file;
    text_buf ll = {0};
    bool bytes = h->q->protocol == DS_FIXTURE;
    TPL_TRY(rd_items_open(h->rd, name, columns, 7, &file, e));
    for (int i = 0; i < r->n; i++) {
        const mc_score *s = &r->scores[i];
        char gold[16], pred[16], norm[16];
        ll.len = 0;
        for (int c = 0; c < items[i].n_choices; c++)
            text_addf(&ll, "%s%.9g", c ? " " : "", r->loglik[i][c]);
        snprintf(gold, sizeof gold, "%d", items[i].gold);
        snprintf(pred, sizeof pred, "%d", s->pred);
        snprintf(norm, sizeof norm, "%d", bytes ? s->pred_bytes : s->pred_norm);
        rd_items_append(file, (const char *const[]){items[i].id, gold, pred, norm, s->acc ? "1" : "0", (bytes ? s->acc_bytes : s->acc_norm) ? "1" : "0", ll.data});
    }
    text_fini(&ll);
    return rd_items_close(file, e);
}

static tpl_code append_mc(harness *h, const cell_key *k, const ds_mc_item *items, const mc_result *r, tpl_err *e)
{
    size_t n = (size_t)r->n;
    double *acc = tpl_malloc(sizeof *acc * n), *norm = tpl_malloc(sizeof *norm * n), s;
    char name[16];
    cell_name(k, "acc", name);
    for (size_t i = 0; i < n; i++) {
        acc[i] = r->scores[i].acc;
        norm[i] = h->q->protocol == DS_FIXTURE ? r->scores[i].acc_bytes : r->scores[i].acc_norm;
    }
    metric_values m = {.n = r->n, .n_truncated = r->n_truncated, .items_id = name, .sliced_tok_frac = sliced_fraction(k->v, (double)r->n_branch_tok / (double)r->n_scored_tok)};
    tpl_code rc = write_mc_items(h, items, r, name, e);
    for (int which = 0; which < 2 && rc == TPL_OK; which++) {
        m.metric = which ? "acc_norm" : "acc";
        m.scores = which ? norm : acc;
        m.value = stat_mean(m.scores, n);
        m.stderr_ = stat_stderr(m.scores, n, &s) ? s : NAN;
        if (k->is_baseline)
            baseline_keep(&h->base, k, &m);
        rc = append_metric(h, k, &m, e);
    }
    free(acc);
    free(norm);
    return rc;
}

/* Scores the first items one by one, for the gain of batching. */
static tpl_code score_alone(const lab_run *run, const mc_options *o, const ds_mc_item *items, int n, scoring_work *w, tpl_err *e)
{
    for (int i = 0; i < n && i < SCORING_ALONE; i++) {
        mc_result r;
        TPL_TRY(mc_task_run(run, o, &items[i], 1, &r, e));
        w->alone_tok += (double)(r.n_ctx_tok + r.n_branch_tok);
        w->alone_seconds += r.seconds;
        mc_result_free(&r);
    }
    return TPL_OK;
}

/* A pass over all rows of a phase at once, as far as FLOPs go. */
static batch_shape all_rows(int64_t rows, int64_t logit_rows, int64_t pairs)
{
    return (batch_shape){.rows = rows, .logit_rows = logit_rows, .seqs = 1, .ctx_tok = rows, .visible_pairs = pairs};
}

static tpl_code report_mc(const harness *h, const char *task, const lab_run *run, const mc_options *o, const ds_mc_item *items, const mc_result *r, const scoring_clock *clock, tpl_err *e)
{
    scoring_work w = {.task = task, .n_items = r->n, .n_choices = r->n_choices, .n_tok_unshared = r->n_ctx_tok_unshared + r->n_branch_tok,
                      .n_tok = r->n_ctx_tok + r->n_branch_tok, .n_pass = r->n_pass, .threads = team_n_local(run->team), .seconds = r->seconds};
    batch_shape ctx = all_rows(r->n_ctx_tok, r->n_ctx, r->n_ctx_pairs), branch = all_rows(r->n_branch_tok, r->n_branch_tok, r->n_branch_pairs);
    mc_options plain = *o;
    plain.observe = (step_observer){0};
    for (int i = 0; i < w.threads; i++) {
        scoring_add_flops(team_plan(run->team, i), PHASE_PREFILL, &ctx, &w);
        if (branch.rows > 0)
            scoring_add_flops(team_plan(run->team, i), o->decode_choices ? PHASE_DECODE : PHASE_PREFILL, &branch, &w);
    }
    scoring_list_products(team_plan(run->team, 0), w.n_tok / w.n_pass, (r->n_ctx + r->n_branch_tok) / w.n_pass, &w);
    scoring_clock_read(clock, &w);
    TPL_TRY(score_alone(run, &plain, items, r->n, &w, e));
    return h->q->report(h->q->report_user, &w, e);
}

static tpl_code run_mc(harness *h, const cell_key *k, const lab_run *run, tpl_err *e)
{
    const eval_request *q = h->q;
    arena_mark mark = arena_get_mark(&h->mem);
    ds_mc_item *items;
    int n;
    mc_result r;
    scoring_clock *clock = q->report ? scoring_clock_create(team_n_local(run->team)) : NULL;
    mc_options o = {.tok = lab_tokenizer(q->lab), .bos = lab_bos(q->lab), .protocol = q->protocol, .decode_choices = k->v->kind == VAR_TPLA && k->v->pd};
    if (q->protocol == DS_LM_EVAL)
        o.bos = -1; /* the bundled tokenizers add none of their own */
    if (clock)
        o.observe = scoring_clock_observer(clock);
    tpl_code rc = ds_read_mc(&h->mem, q->data_dir, k->task, q->protocol, q->limit, &items, &n, e);
    if (rc == TPL_OK)
        rc = mc_task_run(run, &o, items, n, &r, e);
    if (rc == TPL_OK) {
        rc = append_mc(h, k, items, &r, e);
        if (rc == TPL_OK && clock)
            rc = report_mc(h, k->task, run, &o, items, &r, clock, e);
        mc_result_free(&r);
    }
    scoring_clock_destroy(clock);
    arena_reset(&h->mem, mark);
    return rc;
}

static tpl_code append_long(harness *h, const cell_key *k, const ds_long_item *items, const long_result *r, tpl_err *e)
{
    static const char *const columns[] = {"id", "dataset", "prompt_tok", "score", "prediction", "answer"};
    rd_items *file;
    char name[16];
    double s;
    cell_name(k, "score", name);
    TPL_TRY(rd_items_open(h->rd, name, columns, 6, &file, e));
    for (int i = 0; i < r->n; i++) {
        char tok[16], score[32];
        snprintf(tok, sizeof tok, "%d", r->n_prompt[i]);
        snprintf(score, sizeof score, "%.17g", r->score[i]);
        rd_items_append(file, (const char *const[]){items[i].id, items[i].dataset, tok, score, r->prediction[i], items[i].answers[0]});
    }
    TPL_TRY(rd_items_close(file, e));
    double decoded = r->n_generated > r->n ? (double)(r->n_generated - r->n) / (double)r->n_generated : 0;
    metric_values m = {.metric = "score", .n = r->n, .n_truncated = r->n_truncated, .items_id = name, .scores = r->score, .value = stat_mean(r->score, (size_t)r->n),
                       .stderr_ = stat_stderr(r->score, (size_t)r->n, &s) ? s : NAN, .sliced_tok_frac = sliced_fraction(k->v, decoded)};
    if (k->is_baseline)
        baseline_keep(&h->base, k, &m);
    TPL_TRY(append_metric(h, k, &m, e));
    if (!r->exact)
        return TPL_OK;
    m.metric = "exact";
    m.scores = r->exact;
    m.value = stat_mean(r->exact, (size_t)r->n);
    m.stderr_ = stat_stderr(r->exact, (size_t)r->n, &s) ? s : NAN;
    if (k->is_baseline)
        baseline_keep(&h->base, k, &m);
    return append_metric(h, k, &m, e);
}

static tpl_code run_long(harness *h, const cell_key *k, const lab_run *run, tpl_err *e)
{
    const eval_request *q = h->q;
    arena_mark mark = arena_get_mark(&h->mem);
    ds_protocol protocol = q->protocol == DS_LM_EVAL ? DS_LONGBENCH : DS_FIXTURE;
    ds_long_item *items;
    int n;
    long_result r;
    const model_config *c = model_cfg(lab_model(q->lab));
    long_options o = {.tok = lab_tokenizer(q->lab), .bos = lab_bos(q->lab), .eos = c->eos_id, .task = k->task, .protocol = protocol};
    if (protocol == DS_LONGBENCH)
        o.bos = -1;
    TPL_TRY(ds_read_long(&h->mem, q->data_dir, k->task, protocol, q->long_limit, &items, &n, e));
    tpl_code rc = long_task_run(run, &o, items, n, &r, e);
    if (rc == TPL_OK) {
        rc = append_long(h, k, items, &r, e);
        long_result_free(&r);
    }
    arena_reset(&h->mem, mark);
    return rc;
}

/* ---- the grid ---- */

static bool needs_running(const harness *h, const cell_key *k)
{
    char name[16];
    for (const char *const *metric = cell_metrics(k->kind, h->q->protocol); *metric; metric++) {
        cell_name(k, *metric, name);
        if (!rd_has_cell(h->rd, RS_ACCURACY, name))
            return true;
    }
    return false;
}

static tpl_code run_task(harness *h, const cell_key *k, const lab_run *run, tpl_err *e)
{
    switch (k->kind) {
    case DS_TEXT:
        return run_text(h, k, run, e);
    case DS_MC:
        return run_mc(h, k, run, e);
    default:
        return run_long(h, k, run, e);
    }
}

static bool same_variant(const variant *a, const variant *b)
{
    char x[VARIANT_TEXT], y[VARIANT_TEXT];
    variant_format(a, x);
    variant_format(b, y);
    return strcmp(x, y) == 0;
}

static cell_key key_of(const harness *h, int v, int tp, int task)
{
    const eval_request *q = h->q;
    const variant *var = &q->variants[v];
    const ds_task *t = ds_find_task(q->tasks[task]);
    bool exact = !variant_needs_transform(var);
    return (cell_key){.q = q, .v = var, .tp = tp, .task = t->name, .kind = t->kind, .text = &h->text, .is_baseline = same_variant(var, &h->exact), .is_exact = exact};
}

/* All tasks of one variant at one tp; the team is made only if something is left to measure. */
static tpl_code run_variant(harness *h, int v, int tp, int *done, int total, tpl_err *e)
{
    const eval_request *q = h->q;
    char text[VARIANT_TEXT];
    lab_run run = {0};
    tpl_code rc = TPL_OK;
    variant_format(&q->variants[v], text);
    for (int t = 0; t < q->n_tasks && rc == TPL_OK; t++, ++*done) {
        cell_key k = key_of(h, v, tp, t);
        if (!needs_running(h, &k))
            continue;
        log_note("[%d/%d] %s tp=%d %s", *done + 1, total, text, tp, k.task);
        if (!run.team)
            rc = lab_run_open(q->lab, k.v, &(team_options){.tp = tp, .ranks = q->ranks, .compute = q->compute, .kv = q->kv}, &run, e);
        const calibration *cal = lab_calibrated(q->lab);
        if (cal && variant_needs_calibration(k.v))
            k.calib_sha = cal->text_sha.hex;
        if (rc == TPL_OK)
            rc = run_task(h, &k, &run, e);
    }
    if (run.team)
        lab_run_close(&run);
    return rc;
}

/* Reads a task's whole file, so that a bad line is known before anything is measured. */
static tpl_code check_items(const eval_request *q, const ds_task *t, arena *a, tpl_err *e)
{
    ds_mc_item *mc;
    ds_long_item *longer;
    int n;
    if (t->kind == DS_MC)
        return ds_read_mc(a, q->data_dir, t->name, q->protocol, q->limit, &mc, &n, e);
    if (t->kind == DS_LONG)
        return ds_read_long(a, q->data_dir, t->name, q->protocol == DS_LM_EVAL ? DS_LONGBENCH : DS_FIXTURE, q->long_limit, &longer, &n, e);
    int max_pos = model_cfg(lab_model(q->lab))->max_pos;
    if (q->row_tok > max_pos)
        return tpl_fail(e, TPL_E_USAGE, "--row-tok", "is %d, expected at most the model's max_position_embeddings %d", q->row_tok, max_pos);
    if (!q->heldout)
        return tpl_fail(e, TPL_E_USAGE, "--heldout", "is not given, but task 'text' needs held-out text");
    return TPL_OK;
}

static tpl_code check_tasks(const eval_request *q, tpl_err *e)
{
    arena a;
    tpl_code rc = TPL_OK;
    arena_init(&a);
    for (int t = 0; t < q->n_tasks && rc == TPL_OK; t++) {
        const ds_task *task = ds_find_task(q->tasks[t]);
        rc = task ? check_items(q, task, &a, e)
                  : tpl_fail(e, TPL_E_USAGE, "--task", "no such task '%s'; tasks are arc, piqa, hellaswag, winogrande, openbookqa, single_doc_qa, multi_hop_qa, "
                             "summarisation, few_shot, synthetic, code, text", q->tasks[t]);
    }
    arena_fini(&a);
    return rc;
}

tpl_code eval_check(const eval_request *q, tpl_err *e)
{
    for (int i = 0; i < q->n_tps; i++)
        for (int v = 0; v < q->n_variants; v++)
            TPL_TRY(variant_fit(&q->variants[v], model_cfg(lab_model(q->lab)), (int)q->tps[i], e));
    return check_tasks(q, e);
}

static tpl_code prepare(harness *h, const eval_request *q, tpl_err *e)
{
    const model_config *c = model_cfg(lab_model(q->lab));
    arena_init(&h->mem);
    TPL_TRY(eval_check(q, e));
    h->exact = variant_exact(c);
    for (int t = 0; t < q->n_tasks; t++) {
        if (ds_find_task(q->tasks[t])->kind != DS_TEXT)
            continue;
        int row_tok = q->row_tok ? q->row_tok : 2048;
        row_tok = row_tok > c->max_pos ? c->max_pos : row_tok;
        return text_rows_read(q->heldout, lab_tokenizer(q->lab), lab_bos(q->lab), q->text_rows, row_tok, &h->text, e);
    }
    return TPL_OK;
}

static void finish(harness *h)
{
    baseline_close(&h->base);
    text_rows_free(&h->text);
    arena_fini(&h->mem);
}

tpl_code eval_run(const eval_request *q, run_dir *rd, tpl_err *e)
{
    harness h = {.q = q, .rd = rd};
    int done = 0, total = q->n_tps * q->n_variants * q->n_tasks;
    tpl_code rc = prepare(&h, q, e);
    for (int i = 0; i < q->n_tps && rc == TPL_OK; i++) {
        baseline_open(&h.base, rd, (int)q->tps[i]);
        for (int pass = 0; pass < 2 && rc == TPL_OK; pass++) /* the baseline first, wherever it stands in the list */
            for (int v = 0; v < q->n_variants && rc == TPL_OK; v++)
                if (same_variant(&q->variants[v], &h.exact) == (pass == 0))
                    rc = run_variant(&h, v, (int)q->tps[i], &done, total, e);
        baseline_close(&h.base);
    }
    finish(&h);
    return rc;
}

tpl_code eval_list(const eval_request *q, const run_dir *rd, FILE *out, tpl_err *e)
{
    harness h = {.q = q};
    tpl_code rc = prepare(&h, q, e);
    for (int i = 0; i < q->n_tps && rc == TPL_OK; i++)
        for (int v = 0; v < q->n_variants; v++)
            for (int t = 0; t < q->n_tasks; t++) {
                cell_key k = key_of(&h, v, (int)q->tps[i], t);
                char text[VARIANT_TEXT], name[16];
                variant_format(k.v, text);
                for (const char *const *metric = cell_metrics(k.kind, q->protocol); *metric; metric++) {
                    cell_name(&k, *metric, name);
                    fprintf(out, "%s %s tp=%d %s %s%s\n", name, text, k.tp, k.task, *metric, rd && rd_has_cell(rd, RS_ACCURACY, name) ? " (done)" : "");
                }
            }
    finish(&h);
    return rc;
}
