#include "bench/speculate.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "bench/spec_card.h"
#include "bench/spec_live.h"
#include "bench/spec_trace.h"
#include "engine/generate.h"
#include "engine/sampler.h"

/* ---- running ---- */

static bool skippable(tpl_code rc)
{
    return rc == TPL_E_UNSUPPORTED || rc == TPL_E_MEMORY || rc == TPL_E_USAGE;
}

static tpl_code open_cell(spec_bench *b, spec_live *c, tpl_err *e)
{
    const speculate_request *q = b->q;
    spec_options o = spec_cell_options(q, &c->cell);
    spec_cell_name(q, &c->cell, c->name);
    c->seconds = tpl_calloc((size_t)q->n_prompts, sizeof *c->seconds);
    c->tokens = tpl_calloc((size_t)q->n_prompts, sizeof *c->tokens);
    c->out = tpl_calloc((size_t)q->max_new, sizeof *c->out);
    c->failed = spec_pool_open_cell(&b->pool, q, &c->cell, &c->base, &c->draft, &c->err);
    if (!c->failed)
        c->failed = spec_create(c->base, c->draft, &o, &c->s, &c->err);
    if (!c->failed || skippable(c->failed))
        return TPL_OK;
    *e = c->err;
    return c->failed;
}

static spec_run run_of(const spec_bench *b, const spec_live *c, int prompt, const spec_record *replay)
{
    const speculate_request *q = b->q;
    return (spec_run){.prompt = q->prompts[prompt].tokens,
                      .n_prompt = q->prompts[prompt].n,
                      .max_new = q->max_new,
                      .stop_id = q->stop_id,
                      .stream = (uint64_t)prompt,
                      .out = c->out,
                      .replay = replay};
}

static tpl_code run_prompt(spec_bench *b, spec_live *c, int prompt, tpl_err *e)
{
    const speculate_request *q = b->q;
    spec_record record = {0};
    spec_stats x = {0};
    const spec_record *replay = NULL;
    if (q->replay && c->cell.method != SPEC_VANILLA && !(replay = spec_replay_find(q->replay, c->name, prompt)))
        return tpl_fail(e, TPL_E_INPUT, "--replay", "has no run '%s' of prompt %d", c->name, prompt);
    spec_run run = run_of(b, c, prompt, replay);
    run.record = q->record ? &record : NULL;
    tpl_code rc = spec_generate(c->s, &run, &x, e);
    if (rc == TPL_OK && q->record && c->cell.method != SPEC_VANILLA)
        rc = spec_replay_write(q->record, c->name, prompt, &record, e);
    c->n_out = run.n_out;
    c->seconds[prompt] = spec_run_seconds(&x);
    c->tokens[prompt] = (double)x.n_tok;
    spec_stats_add(&c->sum, &x);
    spec_record_free(&record);
    return rc;
}

/* Whether vanilla's text has a near-tie where the other one leaves it. */
static tpl_code is_near_tie(const spec_bench *b, const spec_live *plain, int prompt, int at, bool *near, tpl_err *e)
{
    const spec_prompt *p = &b->q->prompts[prompt];
    int vocab = model_cfg(lab_model(b->q->base))->vocab, n = p->n + at, seq = session_add_seq(plain->base);
    int32_t *text = tpl_malloc(sizeof *text * (size_t)n);
    memcpy(text, p->tokens, sizeof *text * (size_t)p->n);
    memcpy(text + p->n, plain->out, sizeof *text * (size_t)at);
    tpl_code rc = generate_prefill(plain->base, seq, text, n, e);
    if (rc == TPL_OK) {
        const float *x = session_logits(plain->base, 0);
        int best = sampler_argmax(x, vocab);
        double second = -INFINITY, largest = 0;
        for (int v = 0; v < vocab; v++) {
            second = v != best && x[v] > second ? x[v] : second;
            largest = fabs((double)x[v]) > largest ? fabs((double)x[v]) : largest;
        }
        *near = x[best] - second < spec_near_tie(model_cfg(lab_model(b->q->base)), spec_compute(b->q), largest);
    }
    session_drop_seq(plain->base, seq);
    free(text);
    return rc;
}

static tpl_code compare_text(spec_bench *b, spec_live *c, int prompt, tpl_err *e)
{
    const spec_live *plain = spec_is_compared(b, c) ? spec_vanilla_like(b, c) : NULL;
    int at = 0;
    bool near = false;
    while (plain && at < plain->n_out && at < c->n_out && plain->out[at] == c->out[at])
        at++;
    if (!plain || (at == plain->n_out && at == c->n_out))
        return TPL_OK;
    c->n_differ++;
    TPL_TRY(is_near_tie(b, plain, prompt, at, &near, e));
    c->n_wrong += !near;
    return TPL_OK;
}

/* The first prompt, beforehand: once in short, or on a card until all walks that it needs are recorded. */
static tpl_code warm_up(spec_bench *b, spec_live *c, tpl_err *e)
{
    bool card = spec_is_card(b->q);
    for (int i = 0; i < (card ? 3 : 1); i++) {
        spec_stats warm = {0};
        const spec_record *replay = b->q->replay ? spec_replay_find(b->q->replay, c->name, 0) : NULL;
        spec_run run = run_of(b, c, 0, card ? replay : NULL);
        run.max_new = run.max_new < 16 || card ? run.max_new : 16;
        TPL_TRY(spec_generate(c->s, &run, &warm, e));
    }
    return TPL_OK;
}

/* Every cell runs the prompt, one after the other. */
static tpl_code run_prompts(spec_bench *b, double temperature, tpl_err *e)
{
    for (int p = -1; p < b->q->n_prompts; p++) {
        progress_show(p < 0 ? 0 : p, b->q->n_prompts, "speculate at temperature %g: %d cells", temperature, b->n);
        for (int i = 0; i < b->n; i++) {
            spec_live *c = &b->cells[i];
            if (interrupt_seen())
                return tpl_fail(e, TPL_E_INTERRUPTED, "speculate", "stopped by a signal");
            if (c->failed)
                continue;
            if (p < 0) {
                TPL_TRY(warm_up(b, c, e));
                continue;
            }
            TPL_TRY(run_prompt(b, c, p, e));
            TPL_TRY(compare_text(b, c, p, e));
        }
    }
    return TPL_OK;
}

static tpl_code trace_path(const spec_bench *b, const spec_live *c, arena *a, char **path, tpl_err *e)
{
    rs_row r;
    spec_cell_row(b->q, &c->cell, &r);
    rs_cell_id id = row_cell_id(&r);
    row_fini(&r);
    return rd_trace_path(b->rd, id.hex, a, path, e);
}

/* After everything that is timed. */
static tpl_code trace_cell(spec_bench *b, spec_live *c, arena *a, tpl_err *e)
{
    char *path;
    const spec_prompt *prompt = &b->q->prompts[0];
    const spec_record *replay = b->q->replay ? spec_replay_find(b->q->replay, c->name, 0) : NULL;
    if (!b->q->trace || !spec_is_card(b->q))
        return TPL_OK;
    TPL_TRY(trace_path(b, c, a, &path, e));
    TPL_TRY(spec_trace_card(c->s, c->base, c->draft, run_of(b, c, 0, replay), path, e));
    if (c->cell.method != SPEC_EASYSPEC || c->cell.draft_tp < 2)
        return TPL_OK;
    return spec_overlap_card(c->draft, prompt->tokens, prompt->n, &c->profile.overlap, e);
}

static tpl_code profile_cell(spec_bench *b, spec_live *c, arena *a, tpl_err *e)
{
    char *path = NULL;
    const spec_record *replay = b->q->replay ? spec_replay_find(b->q->replay, c->name, 0) : NULL;
    if (b->q->trace && !spec_is_card(b->q))
        TPL_TRY(trace_path(b, c, a, &path, e));
    TPL_TRY(spec_profile_run(c->s, c->base, c->draft, run_of(b, c, 0, replay), path, &c->profile, e));
    c->profiled = true;
    if (c->cell.method == SPEC_VANILLA)
        return TPL_OK;
    const spec_prompt *prompt = &b->q->prompts[0];
    TPL_TRY(spec_time_one_token(c->base, prompt->tokens, prompt->n, false, &c->base_token_s, e));
    if (c->cell.method == SPEC_EASYSPEC && prompt->n < session_opts(c->draft)->max_tok)
        TPL_TRY(spec_time_one_token(c->draft, prompt->tokens, prompt->n, true, &c->one_token_s, e));
    return TPL_OK;
}

static tpl_code finish_cells(spec_bench *b, tpl_err *e)
{
    arena a;
    tpl_code rc = TPL_OK;
    arena_init(&a);
    for (int i = 0; i < b->n && rc == TPL_OK; i++)
        if (!b->cells[i].failed)
            rc = profile_cell(b, &b->cells[i], &a, e);
    for (int i = 0; i < b->n && rc == TPL_OK; i++)
        if (!b->cells[i].failed)
            rc = trace_cell(b, &b->cells[i], &a, e);
    for (int i = 0; i < b->n && rc == TPL_OK; i++)
        spec_model_devices(b, &b->cells[i]);
    for (int i = 0; i < b->n && rc == TPL_OK; i++)
        rc = spec_write_row(b, &b->cells[i], e);
    arena_fini(&a);
    return rc;
}

static bool all_done(const spec_bench *b)
{
    for (int i = 0; i < b->n; i++) {
        rs_row r;
        spec_cell_row(b->q, &b->cells[i].cell, &r);
        rs_cell_id id = row_cell_id(&r);
        row_fini(&r);
        if (!rd_has_cell(b->rd, RS_SPECULATE, id.hex))
            return false;
    }
    return true;
}

static tpl_code run_temperature(spec_bench *b, double temperature, tpl_err *e)
{
    spec_cell *list = tpl_calloc(SPEC_MAX_CELLS, sizeof *list);
    tpl_code rc = TPL_OK;
    b->n = spec_list_cells(b->q, temperature, list);
    b->cells = tpl_calloc((size_t)b->n + 1, sizeof *b->cells);
    for (int i = 0; i < b->n; i++)
        b->cells[i].cell = list[i];
    free(list);
    if (!all_done(b)) {
        for (int i = 0; i < b->n && rc == TPL_OK; i++)
            rc = open_cell(b, &b->cells[i], e);
        if (rc == TPL_OK)
            rc = run_prompts(b, temperature, e);
        progress_clear();
        if (rc == TPL_OK)
            rc = finish_cells(b, e);
    }
    for (int i = 0; i < b->n; i++) {
        spec_destroy(b->cells[i].s);
        free(b->cells[i].seconds);
        free(b->cells[i].tokens);
        free(b->cells[i].out);
    }
    free(b->cells);
    return rc;
}

/* The longest prompt with its continuation and a tree behind it. */
static int tokens_needed(const speculate_request *q)
{
    int prompt = 0, width = 1;
    for (int i = 0; i < q->n_prompts; i++)
        prompt = q->prompts[i].n > prompt ? q->prompts[i].n : prompt;
    for (int i = 0; i < q->n_widths; i++)
        width = q->widths[i] > width ? (int)q->widths[i] : width;
    return prompt + q->max_new + width * q->depth;
}

tpl_code speculate_bench_run(const speculate_request *q, run_dir *rd, tpl_err *e)
{
    spec_bench *b = tpl_calloc(1, sizeof *b);
    tpl_code rc = TPL_OK;
    b->q = q;
    b->rd = rd;
    b->pool.max_tok = tokens_needed(q);
    if (q->draft)
        rc = spec_check_pair(q->base, q->draft, e);
    for (int i = 0; i < q->n_temperatures && rc == TPL_OK; i++)
        rc = run_temperature(b, q->temperatures[i], e);
    spec_pool_close(&b->pool);
    if (rc == TPL_OK && b->wrong)
        rc = tpl_fail(e, TPL_E_MISMATCH, "speculate", "greedy texts differ from vanilla's; see the rows' reasons");
    free(b);
    return rc;
}

tpl_code speculate_bench_list(const speculate_request *q, FILE *out, tpl_err *e)
{
    spec_cell *list = tpl_calloc(SPEC_MAX_CELLS, sizeof *list);
    for (int t = 0; t < q->n_temperatures; t++) {
        int n = spec_list_cells(q, q->temperatures[t], list);
        for (int i = 0; i < n; i++) {
            char name[SPEC_CELL_NAME];
            spec_cell_name(q, &list[i], name);
            fprintf(out, "%s: %s, base tp %d", q->task, name, list[i].base_tp);
            fprintf(out, list[i].draft_tp ? ", draft tp %d\n" : "\n", list[i].draft_tp);
        }
    }
    free(list);
    return ferror(out) ? tpl_fail(e, TPL_E_IO, "output", "cannot be written") : TPL_OK;
}
