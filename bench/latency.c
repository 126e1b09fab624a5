#include "bench/latency.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "bench/pair.h"
#include "engine/generate.h"
#include "engine/spans.h"

enum { PREFILL_ROWS = 512, CARD_PREFILL_ROWS = 2048, MAX_STEPS = 1 << 16, MAX_VARIANTS = 32, MAX_TTFT = 64, OBSERVED_STEPS = 16 };

/* One variant of one cell: a team, a session, its sequences filled to the context. */
typedef struct {
    const latency_request *q;
    const variant *v;
    int tp, batch, context;
    lab_run run;
    session *s;
    int *seqs;           /* [batch] */
    int32_t *prompt;     /* [context] random tokens, the same for all variants */
    int32_t *next;       /* [batch] token to feed next */
    batch_row *rows;     /* [batch] */
    float *first_logits; /* [vocab] of the first decode step when verified before timing; NULL until then */
    float *expected;     /* [vocab] the same by the prefill list; NULL where decode is an approximation of it */
    double *itl_us;      /* every step's time of the measured runs, sequence by sequence is the same */
    int64_t n_itl, cap_itl;
    int64_t kv_used, peak_bytes;
    double ttft_us[MAX_TTFT]; /* [q->ttft_runs] */
    run_dir *rd;              /* where the trace goes */
    char *split;              /* time of a decode step by operation; NULL until observed */
} cell;

/* ---- backends ---- */

static bool on_card(const latency_request *q)
{
    return q->backend && strcmp(q->backend, "cuda") == 0;
}

/* Types as the engine takes them where none are named; activations are f32 on a host. */
static tpl_dtype compute_of(const latency_request *q)
{
    return q->compute != DT_NONE ? q->compute : on_card(q) ? DT_BF16 : DT_F32;
}

static plan_types types_of(const latency_request *q)
{
    tpl_dtype compute = compute_of(q);
    return (plan_types){.act = on_card(q) ? compute : DT_F32, .kv = q->kv == DT_NONE ? compute : q->kv, .weight = on_card(q) ? compute : DT_NONE, .folded = compute};
}

/* How many ranks work on one machine's ceilings at once. */
static int sharers(const latency_request *q, int tp)
{
    return q->ranks == RANKS_SOLO || q->ranks == RANKS_NCCL ? 1 : tp;
}

static int prefill_rows(const latency_request *q)
{
    return on_card(q) ? CARD_PREFILL_ROWS : PREFILL_ROWS;
}

/* ---- running ---- */

static tpl_code prefill_all(cell *c, tpl_err *e)
{
    for (int b = 0; b < c->batch; b++) {
        session_truncate(c->s, c->seqs[b], 0);
        TPL_TRY(generate_prefill(c->s, c->seqs[b], c->prompt, c->context, e));
        c->next[b] = session_best(c->s, 0);
    }
    return TPL_OK;
}

/* One decode step of the whole batch; greedy. */
static tpl_code decode_step(cell *c, tpl_err *e)
{
    for (int b = 0; b < c->batch; b++)
        c->rows[b] = (batch_row){c->seqs[b], c->next[b], ROW_CHAIN, true};
    TPL_TRY(session_forward(c->s, PHASE_DECODE, c->rows, c->batch, e));
    for (int b = 0; b < c->batch; b++)
        c->next[b] = session_best(c->s, b);
    return TPL_OK;
}

static tpl_code back_to_context(void *self, tpl_err *e)
{
    cell *c = self;
    for (int b = 0; b < c->batch; b++) {
        session_truncate(c->s, c->seqs[b], c->context);
        c->next[b] = c->prompt[b % c->context];
    }
    return TPL_OK;
}

static tpl_code run_decode(void *self, tpl_err *e)
{
    cell *c = self;
    int64_t at = clock_ns();
    for (int i = 0; i < c->q->decode_tok; i++) {
        TPL_TRY(decode_step(c, e));
        int64_t now = clock_ns();
        if (c->n_itl < c->cap_itl)
            c->itl_us[c->n_itl++] = (double)(now - at) / 1e3;
        at = now;
    }
    return TPL_OK;
}

/* Fills the cache; timed runs first, if any are wanted. */
static tpl_code time_prefill(cell *c, tpl_err *e)
{
    for (int i = 0; i < c->q->ttft_runs; i++) {
        int64_t begin = clock_ns();
        TPL_TRY(prefill_all(c, e));
        c->ttft_us[i] = (double)(clock_ns() - begin) / 1e3;
    }
    return c->q->ttft_runs ? TPL_OK : prefill_all(c, e);
}

/* ---- what a cell is called ---- */

static void config_row(const cell *c, rs_row *r)
{
    const latency_request *q = c->q;
    model *m = lab_model(q->lab);
    char text[VARIANT_TEXT];
    tpl_dtype compute = compute_of(q);
    variant_format(c->v, text);
    row_init(r, RS_LATENCY);
    row_set_text(r, LAT_model, model_cfg(m)->name);
    row_set_text(r, LAT_weights, model_is_random(m) ? "random" : "checkpoint");
    row_set_text(r, LAT_variant, text);
    row_set_int(r, LAT_tp, c->tp);
    row_set_text(r, LAT_ranks, ranks_name(q->ranks));
    row_set_text(r, LAT_backend, q->backend ? q->backend : "cpu");
    row_set_text(r, LAT_compute, dtype_name(compute));
    row_set_text(r, LAT_kv_dtype, dtype_name(q->kv == DT_NONE ? compute : q->kv));
    row_set_int(r, LAT_threads, 1);
    row_set_int(r, LAT_batch, c->batch);
    row_set_int(r, LAT_context_tok, c->context);
    row_set_int(r, LAT_decode_tok, q->decode_tok);
    row_set_text(r, LAT_graph, on_card(q) ? "on" : "off");
    row_set_text(r, LAT_device, q->device);
    row_set_text(r, LAT_command, q->command);
}

static rs_cell_id id_of(const cell *c)
{
    rs_row r;
    config_row(c, &r);
    rs_cell_id id = row_cell_id(&r);
    row_fini(&r);
    return id;
}

/* ---- one observed run ---- */

/* {"matmul": 1.23, ...}: milliseconds of one decode step on rank 0. */
static char *split_json(const spans *sp, int steps)
{
    int64_t total[SPANS_N_KINDS];
    text_buf b = {0};
    spans_totals(sp, 0, total);
    text_addf(&b, "{");
    for (int k = 0; k < SPANS_N_KINDS; k++)
        if (total[k])
            text_addf(&b, "%s\"%s\":%.4g", b.len > 1 ? "," : "", spans_kind_name(k), (double)total[k] / 1e6 / steps);
    text_addf(&b, "}");
    return b.data;
}

static tpl_code write_trace(const cell *c, const spans *sp, tpl_err *e)
{
    char *path, text[VARIANT_TEXT];
    arena a;
    arena_init(&a);
    variant_format(c->v, text);
    tpl_code rc = rd_trace_path(c->rd, id_of(c).hex, &a, &path, e);
    if (rc == TPL_OK)
        rc = spans_write_chrome(sp, arena_printf(&a, "%s tp=%d context %d batch %d", text, c->tp, c->context, c->batch),
                                path, e);
    arena_fini(&a);
    return rc;
}

/* Decode steps under observation: the split of their time, and the trace if one is wanted. Their time is in no row. */
static tpl_code observe(cell *c, tpl_err *e)
{
    int n = team_n_local(c->run.team), steps = c->q->decode_tok < OBSERVED_STEPS ? c->q->decode_tok : OBSERVED_STEPS;
    spans *sp = spans_create(n, (int64_t)steps * team_plan(c->run.team, 0)->list[PHASE_DECODE].n);
    tpl_code rc = back_to_context(c, e);
    session_observe(c->s, spans_observer(sp));
    for (int i = 0; i < steps && rc == TPL_OK; i++)
        rc = decode_step(c, e);
    session_observe(c->s, (step_observer){0});
    if (rc == TPL_OK)
        c->split = split_json(sp, steps);
    if (rc == TPL_OK && c->q->trace)
        rc = write_trace(c, sp, e);
    spans_destroy(sp);
    return rc;
}

/* ---- checking ---- */

static int64_t count_wrong(const float *got, const float *want, int n, double tolerance)
{
    double scale = 0;
    int64_t wrong = 0;
    for (int i = 0; i < n; i++)
        scale = fmax(scale, fabs((double)want[i]));
    for (int i = 0; i < n; i++)
        wrong += !(fabs((double)got[i] - want[i]) <= tolerance * scale);
    return wrong;
}

/* Decode is another algebraic form of prefill's attention (absorbed against MHA form), so the two must agree, except
 * under prefill-decode separation, where decode approximates. Timing may change nothing: the step must come out the
 * same, bit for bit, before and after. Tolerances: f32 sums of up to ~1e4 terms, and bf16 inputs rounded to 2^-9
 * through all layers. */
static tpl_code verify_decode(void *self, int64_t *n_wrong, tpl_err *e)
{
    cell *c = self;
    int vocab = team_plan(c->run.team, 0)->cfg.vocab;
    bool bf16_used = team_opts(c->run.team)->compute == DT_BF16 || team_opts(c->run.team)->kv == DT_BF16;
    TPL_TRY(back_to_context(c, e));
    TPL_TRY(decode_step(c, e));
    const float *got = session_logits(c->s, 0);
    *n_wrong = 0;
    for (int i = 0; i < vocab; i++)
        *n_wrong += !isfinite(got[i]);
    if (c->expected)
        *n_wrong += count_wrong(got, c->expected, vocab, bf16_used ? 0.1 : 1e-3);
    bool first = !c->first_logits;
    if (first) {
        c->first_logits = tpl_malloc(sizeof *got * (size_t)vocab);
        memcpy(c->first_logits, got, sizeof *got * (size_t)vocab);
    }
    for (int i = 0; i < vocab; i++)
        *n_wrong += memcmp(&got[i], &c->first_logits[i], sizeof *got) != 0;
    if (!first && !c->split && !on_card(c->q)) /* what a card does is not seen from outside */
        TPL_TRY(observe(c, e));
    return back_to_context(c, e);
}

/* Alone, a rank of a team that spreads tokens sees only its own when it decodes. */
static bool decode_approximates(const cell *c)
{
    const variant *v = c->v;
    if (v->kind == VAR_MLA_DCP && c->q->ranks == RANKS_SOLO && c->tp > 1)
        return true;
    return v->kind == VAR_TPLA && v->pd && v->slice != SLICE_NONE && v->g > 1;
}

/* The first decode step's logits by the prefill list: the context and one more token. */
static tpl_code expect(cell *c, tpl_err *e)
{
    int vocab = team_plan(c->run.team, 0)->cfg.vocab;
    if (decode_approximates(c))
        return TPL_OK;
    batch_row row = {c->seqs[0], c->prompt[0], ROW_CHAIN, true};
    TPL_TRY(session_forward(c->s, PHASE_PREFILL, &row, 1, e));
    c->expected = tpl_malloc(sizeof(float) * (size_t)vocab);
    memcpy(c->expected, session_logits(c->s, 0), sizeof(float) * (size_t)vocab);
    return TPL_OK;
}

/* ---- life ---- */

static int64_t bytes_of_rank(const cell *c)
{
    const session_options *o = session_opts(c->s);
    const plan *p = team_plan(c->run.team, 0);
    plan_types t = types_of(c->q);
    return team_weight_bytes(c->run.team, 0) + session_kv_bytes(c->s, 0, KV_MAIN) +
           session_kv_bytes(c->s, 0, KV_PREFILL) + plan_act_bytes(p, o->max_rows, o->max_logits, t);
}

static tpl_code prepare(void *self, tpl_err *e)
{
    cell *c = self;
    const latency_request *q = c->q;
    model *m = lab_model(q->lab);
    team_options o = {.tp = c->tp,
                      .ranks = q->ranks,
                      .backend = q->backend,
                      .compute = q->compute,
                      .kv = q->kv,
                      .plan = {.attention_only = model_attention_only(m)}};
    TPL_TRY(lab_run_open(q->lab, c->v, &o, &c->run, e));
    int rows = c->batch > prefill_rows(q) ? c->batch : prefill_rows(q);
    session_options so = {
        .max_seqs = c->batch, .max_tok = c->context + q->decode_tok + 1, .max_rows = rows, .max_logits = c->batch};
    TPL_TRY(session_create(c->run.team, &so, &c->s, e));
    for (int b = 0; b < c->batch; b++)
        c->seqs[b] = session_add_seq(c->s);
    c->peak_bytes = bytes_of_rank(c);
    TPL_TRY(time_prefill(c, e));
    TPL_TRY(expect(c, e));
    TPL_TRY(back_to_context(c, e));
    c->kv_used = session_kv_used_bytes(c->s, 0, KV_MAIN);
    return TPL_OK;
}

static void release(void *self)
{
    cell *c = self;
    session_destroy(c->s);
    if (c->run.team || c->run.folded || c->run.transform)
        lab_run_close(&c->run);
    free(c->first_logits);
    free(c->expected);
    c->s = NULL;
    c->first_logits = c->expected = NULL;
}

static void cell_init(cell *c, const latency_request *q, const variant *v, int tp, int batch, int context, run_dir *rd)
{
    int vocab = model_cfg(lab_model(q->lab))->vocab;
    rng r = rng_make(17, 0);
    *c = (cell){.q = q, .v = v, .tp = tp, .batch = batch, .context = context, .cap_itl = MAX_STEPS, .rd = rd};
    c->seqs = tpl_calloc((size_t)batch, sizeof *c->seqs);
    c->next = tpl_calloc((size_t)batch, sizeof *c->next);
    c->rows = tpl_calloc((size_t)batch, sizeof *c->rows);
    c->prompt = tpl_calloc((size_t)context, sizeof *c->prompt);
    c->itl_us = tpl_calloc(MAX_STEPS, sizeof *c->itl_us);
    for (int i = 0; i < context; i++)
        c->prompt[i] = (int32_t)rng_below(&r, (uint64_t)vocab);
}

static void cell_fini(cell *c)
{
    free(c->seqs);
    free(c->next);
    free(c->rows);
    free(c->prompt);
    free(c->itl_us);
    free(c->split);
}

/* ---- rows ---- */

typedef struct {
    const cell *c;
    const measure_result *tpot;
    const pair_ratio *ratio; /* NULL for the baseline */
    const char *base_id;
    pair_mode mode;
    double bound_ms;
} row_parts;

static double bound_of(const cell *c)
{
    const latency_request *q = c->q;
    plan *p;
    plan_options o = {.attention_only = model_attention_only(lab_model(q->lab))};
    if (plan_create(model_cfg(lab_model(q->lab)), c->v, c->tp, 0, o, &p, NULL) != TPL_OK)
        return NAN;
    batch_shape shape = batch_shape_uniform(c->batch, c->context + q->decode_tok / 2, 1);
    shape.logit_rows = c->batch;
    double ms = bound_plan_us(q->ceil, p, PHASE_DECODE, &shape, types_of(q), compute_of(q), sharers(q, c->tp)) / 1e3;
    plan_destroy(p);
    return ms;
}

static void set_real(rs_row *r, int column, double v)
{
    if (isfinite(v))
        row_set_real(r, column, v);
}

static void fill_times(const row_parts *p, rs_row *r)
{
    const cell *c = p->c;
    double tpot_ms = p->tpot->cold.median / 1e3,
           ttft_ms = c->q->ttft_runs ? bstat_median(c->ttft_us, (size_t)c->q->ttft_runs) / 1e3 : NAN;
    bstat_summary itl = bstat_summarise(c->itl_us, (size_t)c->n_itl);
    set_real(r, LAT_ttft_ms, ttft_ms);
    set_real(r, LAT_tpot_ms, tpot_ms);
    set_real(r, LAT_tpot_ms_p99, p->tpot->cold.p99 / 1e3);
    set_real(r, LAT_tpot_ms_min, p->tpot->cold.min / 1e3);
    set_real(r, LAT_tpot_ms_q1, p->tpot->cold.q1 / 1e3);
    set_real(r, LAT_tpot_ms_q3, p->tpot->cold.q3 / 1e3);
    set_real(r, LAT_itl_ms_p50, itl.median / 1e3);
    set_real(r, LAT_itl_ms_p90, itl.p90 / 1e3);
    set_real(r, LAT_itl_ms_p99, itl.p99 / 1e3);
    set_real(r, LAT_tok_per_s, c->batch / tpot_ms * 1e3);
    set_real(r, LAT_e2el_ms, ttft_ms + c->q->decode_tok * tpot_ms);
    row_set_text(r, LAT_comm_source, c->q->ranks == RANKS_SOLO ? "none" : "measured");
    set_real(r, LAT_bound_ms, p->bound_ms);
    set_real(r, LAT_bound_frac, p->bound_ms / tpot_ms);
    row_set_int(r, LAT_n_samples, p->tpot->n_cold);
    row_set_int(r, LAT_n_discarded, p->tpot->n_discarded);
    set_real(r, LAT_clock_mhz, p->tpot->clock_mhz);
    row_set_text(r, LAT_stop_reason, p->tpot->stop_reason);
}

static void fill_memory(const cell *c, rs_row *r)
{
    const latency_request *q = c->q;
    plan *p;
    if (plan_create(model_cfg(lab_model(q->lab)), c->v, c->tp, 0, (plan_options){0}, &p, NULL) != TPL_OK)
        return;
    row_set_real(r, LAT_kv_bytes_per_tok_rank, plan_kv_bytes_per_tok(p, KV_MAIN, types_of(q)));
    plan_destroy(p);
    row_set_real(r, LAT_kv_bytes_per_tok_rank_alloc, (double)c->kv_used / ((double)c->batch * c->context));
    row_set_int(r, LAT_peak_bytes, c->peak_bytes);
}

static tpl_code append(const row_parts *p, run_dir *rd, tpl_err *e)
{
    rs_row r;
    config_row(p->c, &r);
    rs_status status = p->tpot->status;
    const char *reason = p->tpot->reason;
    bool timed = p->tpot->n_cold > 0;
    if (timed) {
        fill_times(p, &r);
        fill_memory(p->c, &r);
        row_set_text(&r, LAT_split, p->c->split);
        double frac = p->bound_ms / (p->tpot->cold.median / 1e3);
        if (status == RS_OK && frac > bound_bad_frac) {
            status = RS_BAD_CEILING;
            reason = "faster than the bound allows";
        }
    }
    if (p->ratio) {
        row_set_text(&r, LAT_pairing, pair_mode_name(p->mode));
        row_set_text(&r, LAT_baseline_cell, p->base_id);
        set_real(&r, LAT_ratio, p->ratio->ratio.ratio);
        set_real(&r, LAT_ratio_lo, p->ratio->ratio.lo);
        set_real(&r, LAT_ratio_hi, p->ratio->ratio.hi);
        char text[160];
        pair_describe(p->ratio, text, sizeof text);
        row_set_text(&r, LAT_note, p->ratio->status == RS_OK ? text : p->ratio->reason);
    }
    row_set_status(&r, status, status == RS_OK ? NULL : reason);
    tpl_code rc = rd_append(rd, &r, e);
    row_fini(&r);
    return rc;
}

/* ---- one group: all variants at one tp, batch and context ---- */

typedef struct {
    cell cells[MAX_VARIANTS];
    int n;
    measure_result tpot[MAX_VARIANTS];
    double noise_floor;
    pair_mode mode;
} group;

static bench_target decode_target(cell *c)
{
    return (bench_target){.self = c,
                          .prepare = prepare,
                          .release = release,
                          .verify = verify_decode,
                          .reset = back_to_context,
                          .run = run_decode,
                          .units = c->q->decode_tok};
}

static double bytes_needed(const cell *c)
{
    const model_config *m = model_cfg(lab_model(c->q->lab));
    plan *p;
    if (plan_create(m, c->v, c->tp, 0, (plan_options){.attention_only = model_attention_only(lab_model(c->q->lab))}, &p, NULL) != TPL_OK)
        return 0;
    plan_types t = types_of(c->q);
    double tok = (double)c->batch * (c->context + c->q->decode_tok);
    double kv = (plan_kv_bytes_per_tok(p, KV_MAIN, t) + plan_kv_bytes_per_tok(p, KV_PREFILL, t)) * tok +
                (double)plan_act_bytes(p, prefill_rows(c->q), c->batch, t);
    double weights = on_card(c->q) ? (double)plan_weight_bytes(p, N_PHASES, t) : 0; /* a host's are the file's, shared */
    plan_destroy(p);
    return (kv + weights) * sharers(c->q, c->tp);
}

static tpl_code measure_group(group *g, const latency_request *q, tpl_err *e)
{
    bench_target targets[MAX_VARIANTS];
    double bytes[MAX_VARIANTS];
    for (int i = 0; i < g->n; i++)
        bytes[i] = bytes_needed(&g->cells[i]);
    g->mode = pair_choose(bytes, g->n, on_card(q) ? q->card_free_bytes : pair_free_bytes());
    measure_options o = q->measure;
    for (int i = 0; i < g->n; i++) {
        g->cells[i].n_itl = 0;
        targets[i] = decode_target(&g->cells[i]);
    }
    o.hot_samples = -1; /* a decode step walks weights and cache once: there is no hot and cold */
    return pair_measure(targets, g->n, g->mode, &o, g->tpot, e);
}

static tpl_code write_group(group *g, const latency_request *q, run_dir *rd, tpl_err *e)
{
    tpl_code rc = TPL_OK;
    bool wrong = false;
    rs_cell_id base = id_of(&g->cells[0]);
    double base_bound = bound_of(&g->cells[0]);
    pair_side base_side = {&g->tpot[0], base_bound / (g->tpot[0].cold.median / 1e3)};
    for (int i = 0; i < g->n && rc == TPL_OK; i++) {
        cell *c = &g->cells[i];
        row_parts p = {.c = c, .tpot = &g->tpot[i], .base_id = base.hex, .mode = g->mode, .bound_ms = bound_of(c)};
        pair_ratio ratio;
        if (i > 0) {
            pair_side side = {&g->tpot[i], p.bound_ms / (g->tpot[i].cold.median / 1e3)};
            ratio = pair_compare(base_side, side, g->mode, g->noise_floor, 1);
            p.ratio = &ratio;
        }
        wrong = wrong || g->tpot[i].status == RS_WRONG_ANSWER;
        if (rc == TPL_OK && q->samples)
            rc = measure_write_samples(q->samples, id_of(c).hex, &g->tpot[i], e);
        if (rc == TPL_OK && !rd_has_cell(rd, RS_LATENCY, id_of(c).hex))
            rc = append(&p, rd, e);
    }
    if (rc == TPL_OK && wrong)
        rc = tpl_fail(e, TPL_E_MISMATCH, "latency", "a variant's answers were wrong: rows with status wrong_answer");
    return rc;
}

/* The first variant against itself: what difference this machine shows where there is none. */
static tpl_code noise_floor(const latency_request *q, group *g, tpl_err *e)
{
    cell twins[2];
    bstat_ratio aa;
    for (int i = 0; i < 2; i++)
        cell_init(&twins[i], q, g->cells[0].v, g->cells[0].tp, g->cells[0].batch, g->cells[0].context, g->cells[0].rd);
    bench_target targets[2] = {decode_target(&twins[0]), decode_target(&twins[1])};
    measure_options o = q->measure;
    o.hot_samples = -1;
    tpl_code rc = pair_measure_aa(targets, PAIR_SAMPLE, &o, &aa, e);
    for (int i = 0; i < 2; i++)
        cell_fini(&twins[i]);
    TPL_TRY(rc);
    g->noise_floor = bstat_noise_floor(aa);
    log_note("noise floor (A/A, tp=%d batch %d context %d): %.2f%%", g->cells[0].tp, g->cells[0].batch,
             g->cells[0].context, 100 * g->noise_floor);
    return TPL_OK;
}

static bool all_there(const group *g, const run_dir *rd)
{
    for (int i = 0; i < g->n; i++)
        if (!rd || !rd_has_cell(rd, RS_LATENCY, id_of(&g->cells[i]).hex))
            return false;
    return true;
}

static tpl_code run_group(const latency_request *q, int tp, int batch, int context, run_dir *rd, FILE *list, tpl_err *e)
{
    group *g = tpl_calloc(1, sizeof *g);
    const model_config *m = model_cfg(lab_model(q->lab));
    tpl_code rc = TPL_OK;
    for (int v = 0; v < q->n_variants && g->n < MAX_VARIANTS; v++)
        if (variant_fit(&q->variants[v], m, tp, e) == TPL_OK || tp == 1)
            cell_init(&g->cells[g->n++], q, &q->variants[v], tp, batch, context, rd);
    for (int i = 0; list && i < g->n; i++) {
        char text[VARIANT_TEXT], id[16];
        variant_format(g->cells[i].v, text);
        snprintf(id, sizeof id, "%s", id_of(&g->cells[i]).hex);
        fprintf(list, "%s %s tp=%d batch=%d context=%d%s\n", id, text, tp, batch, context,
                rd && rd_has_cell(rd, RS_LATENCY, id) ? " (done)" : "");
    }
    if (!list && g->n > 0 && !all_there(g, rd)) {
        if (q->aa)
            rc = noise_floor(q, g, e);
        if (rc == TPL_OK)
            rc = measure_group(g, q, e);
        if (rc == TPL_OK)
            rc = write_group(g, q, rd, e);
    }
    for (int i = 0; i < g->n; i++) {
        cell_fini(&g->cells[i]);
        measure_result_fini(&g->tpot[i]);
    }
    free(g);
    return rc;
}

static tpl_code check_request(const latency_request *q, tpl_err *e)
{
    const model_config *m = model_cfg(lab_model(q->lab));
    if (q->n_variants > MAX_VARIANTS)
        return tpl_fail(e, TPL_E_USAGE, "--variant", "has %d variants, at most %d", q->n_variants, MAX_VARIANTS);
    if (q->trace && on_card(q))
        return tpl_fail(e, TPL_E_UNSUPPORTED, "--trace", "shows host timers, which say nothing of a card; expected without it");
    if (q->ttft_runs < 0 || q->ttft_runs > MAX_TTFT)
        return tpl_fail(e, TPL_E_USAGE, "--ttft-runs", "is %d, expected 0 to %d", q->ttft_runs, MAX_TTFT);
    for (int v = 0; v < q->n_variants; v++) {
        if (q->variants[v].kind == VAR_TPLA && q->variants[v].slice == SLICE_NORM)
            return tpl_fail(e, TPL_E_USAGE, "--variant",
                            "slice=norm keeps the whole cache on every rank and exists for accuracy only; time "
                            "slice=softmax or both");
        for (int i = 0; i < q->n_tps; i++)
            TPL_TRY(variant_fit(&q->variants[v], m, (int)q->tps[i], e));
    }
    for (int i = 0; i < q->n_contexts; i++)
        if (q->contexts[i] + q->decode_tok + 1 > m->max_pos)
            return tpl_fail(e, TPL_E_INPUT, m->name,
                            "context %lld and %d decoded tokens exceed max_position_embeddings %d",
                            (long long)q->contexts[i], q->decode_tok, m->max_pos);
    return TPL_OK;
}

static tpl_code each_group(const latency_request *q, run_dir *rd, FILE *list, tpl_err *e)
{
    int done = 0, total = q->n_tps * q->n_batches * q->n_contexts;
    bool wrong = false;
    TPL_TRY(check_request(q, e));
    for (int i = 0; i < q->n_tps; i++)
        for (int b = 0; b < q->n_batches; b++)
            for (int c = 0; c < q->n_contexts; c++, done++) {
                if (!list)
                    progress_show(done, total, "latency tp=%d batch %d context %d", (int)q->tps[i], (int)q->batches[b],
                                  (int)q->contexts[c]);
                tpl_code rc = run_group(q, (int)q->tps[i], (int)q->batches[b], (int)q->contexts[c], rd, list, e);
                if (rc != TPL_OK && rc != TPL_E_MISMATCH)
                    return rc;
                wrong = wrong || rc == TPL_E_MISMATCH; /* the sweep goes on; the exit status says it at the end */
            }
    progress_clear();
    return wrong ? TPL_E_MISMATCH : TPL_OK;
}

tpl_code latency_run(const latency_request *q, run_dir *rd, tpl_err *e)
{
    return each_group(q, rd, NULL, e);
}

tpl_code latency_list(const latency_request *q, const run_dir *rd, FILE *out, tpl_err *e)
{
    return each_group(q, (run_dir *)rd, out, e);
}
