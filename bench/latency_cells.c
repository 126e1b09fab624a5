/* One cell of the latency bench: how it is prepared, verified, run and called. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "bench/latency_impl.h"
#include "device/gpu_trace.h"
#include "engine/generate.h"

enum { PREFILL_ROWS = 512, CARD_PREFILL_ROWS = 2048, MAX_STEPS = 1 << 16 };

/* ---- backends ---- */

bool lat_on_card(const latency_request *q)
{
    return q->backend && strcmp(q->backend, "cuda") == 0;
}

tpl_dtype lat_compute(const latency_request *q)
{
    return q->compute != DT_NONE ? q->compute : lat_on_card(q) ? DT_BF16 : DT_F32;
}

plan_types lat_types(const latency_request *q)
{
    tpl_dtype compute = lat_compute(q);
    return (plan_types){.act = lat_on_card(q) ? compute : DT_F32,
                        .kv = q->kv == DT_NONE ? compute : q->kv,
                        .weight = lat_on_card(q) ? compute : DT_NONE,
                        .folded = compute};
}

int lat_sharers(const latency_request *q, int tp)
{
    return q->ranks == RANKS_SOLO || q->ranks == RANKS_NCCL ? 1 : tp;
}

int lat_prefill_rows(const latency_request *q)
{
    return lat_on_card(q) ? CARD_PREFILL_ROWS : PREFILL_ROWS;
}

/* ---- running ---- */

static tpl_code prefill_all(lat_cell *c, tpl_err *e)
{
    for (int b = 0; b < c->batch; b++) {
        session_truncate(c->s, c->seqs[b], 0);
        TPL_TRY(generate_prefill(c->s, c->seqs[b], c->prompt, c->context, e));
        c->next[b] = session_best(c->s, 0);
    }
    return TPL_OK;
}

tpl_code lat_decode_step(lat_cell *c, tpl_err *e)
{
    for (int b = 0; b < c->batch; b++)
        c->rows[b] = (batch_row){c->seqs[b], c->next[b], ROW_CHAIN, true};
    TPL_TRY(session_forward(c->s, PHASE_DECODE, c->rows, c->batch, e));
    for (int b = 0; b < c->batch; b++)
        c->next[b] = session_best(c->s, b);
    return TPL_OK;
}

tpl_code lat_back_to_context(void *self, tpl_err *e)
{
    lat_cell *c = self;
    for (int b = 0; b < c->batch; b++) {
        session_truncate(c->s, c->seqs[b], c->context);
        c->next[b] = c->prompt[b % c->context];
    }
    return TPL_OK;
}

static tpl_code run_decode(void *self, tpl_err *e)
{
    lat_cell *c = self;
    int64_t at = clock_ns();
    for (int i = 0; i < c->q->decode_tok; i++) {
        TPL_TRY(lat_decode_step(c, e));
        int64_t now = clock_ns();
        if (c->n_itl < c->cap_itl)
            c->itl_us[c->n_itl++] = (double)(now - at) / 1e3;
        at = now;
    }
    return TPL_OK;
}

/* Fills the cache; timed runs first, if any are wanted. */
static tpl_code time_prefill(lat_cell *c, tpl_err *e)
{
    for (int i = 0; i < c->q->ttft_runs; i++) {
        int64_t begin = clock_ns();
        TPL_TRY(prefill_all(c, e));
        c->ttft_us[i] = (double)(clock_ns() - begin) / 1e3;
    }
    return c->q->ttft_runs ? TPL_OK : prefill_all(c, e);
}

/* ---- what a cell is called ---- */

void lat_config_row(const lat_cell *c, rs_row *r)
{
    const latency_request *q = c->q;
    model *m = lab_model(q->lab);
    char text[VARIANT_TEXT];
    tpl_dtype compute = lat_compute(q);
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
    row_set_text(r, LAT_graph, lat_on_card(q) ? "on" : "off");
    row_set_text(r, LAT_device, q->device);
    row_set_text(r, LAT_command, q->command);
}

rs_cell_id lat_cell_id(const lat_cell *c)
{
    rs_row r;
    lat_config_row(c, &r);
    rs_cell_id id = row_cell_id(&r);
    row_fini(&r);
    return id;
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
    lat_cell *c = self;
    int vocab = team_plan(c->run.team, 0)->cfg.vocab;
    bool bf16_used = team_opts(c->run.team)->compute == DT_BF16 || team_opts(c->run.team)->kv == DT_BF16;
    TPL_TRY(lat_back_to_context(c, e));
    TPL_TRY(lat_decode_step(c, e));
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
    if (!first && !c->split && (c->q->trace || !lat_on_card(c->q))) /* only a tracer sees what a card does */
        TPL_TRY(lat_observe(c, e));
    return lat_back_to_context(c, e);
}

/* Alone, a rank of a team that spreads tokens sees only its own when it decodes. */
static bool decode_approximates(const lat_cell *c)
{
    const variant *v = c->v;
    if (v->kind == VAR_MLA_DCP && c->q->ranks == RANKS_SOLO && c->tp > 1)
        return true;
    return v->kind == VAR_TPLA && v->pd && v->slice != SLICE_NONE && v->g > 1;
}

/* The first decode step's logits by the prefill list: the context and one more token. */
static tpl_code expect(lat_cell *c, tpl_err *e)
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

static int64_t bytes_of_rank(const lat_cell *c)
{
    const session_options *o = session_opts(c->s);
    const plan *p = team_plan(c->run.team, 0);
    plan_types t = lat_types(c->q);
    return team_weight_bytes(c->run.team, 0) + session_kv_bytes(c->s, 0, KV_MAIN) +
           session_kv_bytes(c->s, 0, KV_PREFILL) + plan_act_bytes(p, o->max_rows, o->max_logits, t);
}

static tpl_code prepare(void *self, tpl_err *e)
{
    lat_cell *c = self;
    const latency_request *q = c->q;
    model *m = lab_model(q->lab);
    team_options o = {.tp = c->tp,
                      .ranks = q->ranks,
                      .backend = q->backend,
                      .compute = q->compute,
                      .kv = q->kv,
                      .plan = {.attention_only = model_attention_only(m)}};
    TPL_TRY(lab_run_open(q->lab, c->v, &o, &c->run, e));
    int rows = c->batch > lat_prefill_rows(q) ? c->batch : lat_prefill_rows(q);
    session_options so = {
        .max_seqs = c->batch, .max_tok = c->context + q->decode_tok + 1, .max_rows = rows, .max_logits = c->batch};
    TPL_TRY(session_create(c->run.team, &so, &c->s, e));
    for (int b = 0; b < c->batch; b++)
        c->seqs[b] = session_add_seq(c->s);
    c->peak_bytes = bytes_of_rank(c);
    TPL_TRY(time_prefill(c, e));
    TPL_TRY(expect(c, e));
    TPL_TRY(lat_back_to_context(c, e));
    c->kv_used = session_kv_used_bytes(c->s, 0, KV_MAIN);
    return TPL_OK;
}

static void release(void *self)
{
    lat_cell *c = self;
    session_destroy(c->s);
    if (c->run.team || c->run.folded || c->run.transform)
        lab_run_close(&c->run);
    free(c->first_logits);
    free(c->expected);
    c->s = NULL;
    c->first_logits = c->expected = NULL;
}

void lat_cell_init(lat_cell *c, const latency_request *q, const variant *v, int tp, int batch, int context, run_dir *rd)
{
    int vocab = model_cfg(lab_model(q->lab))->vocab;
    rng r = rng_make(17, 0);
    *c = (lat_cell){.q = q, .v = v, .tp = tp, .batch = batch, .context = context, .cap_itl = MAX_STEPS, .rd = rd, .after_trace = gpu_trace_has_run()};
    c->seqs = tpl_calloc((size_t)batch, sizeof *c->seqs);
    c->next = tpl_calloc((size_t)batch, sizeof *c->next);
    c->rows = tpl_calloc((size_t)batch, sizeof *c->rows);
    c->prompt = tpl_calloc((size_t)context, sizeof *c->prompt);
    c->itl_us = tpl_calloc(MAX_STEPS, sizeof *c->itl_us);
    for (int i = 0; i < context; i++)
        c->prompt[i] = (int32_t)rng_below(&r, (uint64_t)vocab);
}

void lat_cell_fini(lat_cell *c)
{
    free(c->seqs);
    free(c->next);
    free(c->rows);
    free(c->prompt);
    free(c->itl_us);
    free(c->split);
}

bench_target lat_target(lat_cell *c)
{
    return (bench_target){.self = c,
                          .prepare = prepare,
                          .release = release,
                          .verify = verify_decode,
                          .reset = lat_back_to_context,
                          .run = run_decode,
                          .units = c->q->decode_tok};
}
