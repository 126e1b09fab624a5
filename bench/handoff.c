#include "bench/handoff.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "bench/target_trace.h"
#include "device/gpu.h"
#include "device/gpu_trace.h"
#include "engine/generate.h"
#include "engine/handoff.h"

enum { PREFILL_ROWS = 512, FILL_SEED = 23 };

typedef struct {
    lab_run run;
    session *s;
    int seq;
} side;

typedef struct {
    const handoff_request *q;
    const variant *v;
    handoff_pair pair;
    int context;
    int32_t *prompt;
    side from, to;
    handoff *h;
    double stored_per_tok, moved_per_tok, crossed_per_tok;
    bool after_trace; /* a card's tracer had run in this process before the cell was timed */
} cell;

/* ---- types, as the engine takes them where none are named ---- */

static bool on_card(const handoff_request *q)
{
    return q->backend && strcmp(q->backend, "cuda") == 0;
}

static tpl_dtype kv_of(const handoff_request *q)
{
    tpl_dtype compute = q->compute != DT_NONE ? q->compute : on_card(q) ? DT_BF16 : DT_F32;
    return q->kv == DT_NONE ? compute : q->kv;
}

static const char *way_of(const handoff_request *q)
{
    return !on_card(q) ? "memory" : q->ranks == RANKS_NCCL ? "peer" : "card";
}

/* ---- rows ---- */

static void config_row(const cell *c, rs_row *r)
{
    const handoff_request *q = c->q;
    model *m = lab_model(q->lab);
    char text[VARIANT_TEXT];
    variant_format(c->v, text);
    row_init(r, RS_HANDOFF);
    row_set_text(r, HAND_model, model_cfg(m)->name);
    row_set_text(r, HAND_weights, model_is_random(m) ? "random" : "checkpoint");
    row_set_text(r, HAND_variant, text);
    row_set_int(r, HAND_from_tp, c->pair.from);
    row_set_int(r, HAND_to_tp, c->pair.to);
    row_set_text(r, HAND_ranks, ranks_name(q->ranks));
    row_set_text(r, HAND_backend, q->backend ? q->backend : "cpu");
    row_set_text(r, HAND_device, q->device);
    row_set_text(r, HAND_kv_dtype, dtype_name(kv_of(q)));
    row_set_int(r, HAND_context_tok, c->context);
    if (model_is_random(m))
        row_set_int(r, HAND_layers, model_cfg(m)->n_layers);
    row_set_text(r, HAND_cache_fill, q->fill_random ? "random" : NULL);
    row_set_text(r, HAND_way, way_of(q));
    row_set_text(r, HAND_command, q->command);
}

static void set_real(rs_row *r, int column, double v)
{
    if (isfinite(v))
        row_set_real(r, column, v);
}

static tpl_code append(const cell *c, const measure_result *m, run_dir *rd, tpl_err *e)
{
    rs_row r;
    config_row(c, &r);
    if (m->n_cold > 0) {
        double us = m->cold.median;
        set_real(&r, HAND_kv_bytes_per_tok_rank, c->stored_per_tok);
        set_real(&r, HAND_moved_bytes_per_tok, c->moved_per_tok);
        set_real(&r, HAND_crossed_bytes_per_tok, on_card(c->q) ? c->crossed_per_tok : NAN);
        set_real(&r, HAND_time_us, us);
        set_real(&r, HAND_time_us_min, m->cold.min);
        set_real(&r, HAND_time_us_q1, m->cold.q1);
        set_real(&r, HAND_time_us_q3, m->cold.q3);
        set_real(&r, HAND_us_per_tok, us / c->context);
        set_real(&r, HAND_gb_s, c->moved_per_tok * c->context / us * 1e-3);
        row_set_int(&r, HAND_n_wrong, m->n_wrong);
        row_set_int(&r, HAND_n_samples, m->n_cold);
        row_set_text(&r, HAND_stop_reason, m->stop_reason);
    }
    if (c->after_trace)
        row_set_text(&r, HAND_note, "timed in a process that had traced before");
    row_set_status(&r, m->status, m->status == RS_OK ? NULL : m->reason);
    tpl_code rc = rd_append(rd, &r, e);
    row_fini(&r);
    return rc;
}

/* ---- a target of the measuring loop ---- */

/* The decode team's cards: those behind the prefill team's, or, where there are too few, the last ones. */
static int first_card(const cell *c)
{
    int cards = gpu_count();
    if (!on_card(c->q) || c->q->ranks != RANKS_NCCL || c->pair.to > cards)
        return 0;
    return c->pair.from + c->pair.to <= cards ? c->pair.from : cards - c->pair.to;
}

static tpl_code open_side(cell *c, side *s, int tp, int card, bool decodes_only, tpl_err *e)
{
    const handoff_request *q = c->q;
    team_options o = {.tp = tp,
                      .ranks = q->ranks,
                      .backend = q->backend,
                      .compute = q->compute,
                      .kv = q->kv,
                      .first_card = card,
                      .plan = {.attention_only = model_attention_only(lab_model(q->lab)), .decode_only = decodes_only}};
    session_options so = {
        .max_seqs = 1, .max_tok = c->context + 1, .max_rows = decodes_only ? 1 : PREFILL_ROWS, .max_logits = 1};
    TPL_TRY(lab_run_open(q->lab, c->v, &o, &s->run, e));
    TPL_TRY(session_create(s->run.team, &so, &s->s, e));
    s->seq = session_add_seq(s->s);
    return TPL_OK;
}

static void close_side(side *s)
{
    session_destroy(s->s);
    if (s->run.team || s->run.folded || s->run.transform)
        lab_run_close(&s->run);
    *s = (side){0};
}

static tpl_code fill(cell *c, tpl_err *e)
{
    if (!c->q->fill_random)
        return generate_prefill(c->from.s, c->from.seq, c->prompt, c->context, e);
    TPL_TRY(session_fill_random(c->from.s, FILL_SEED, e));
    return session_assume(c->from.s, c->from.seq, c->context, e);
}

static double stored_of(const cell *c)
{
    plan_types t = {.act = DT_F32, .kv = kv_of(c->q)};
    return plan_kv_bytes_per_tok(team_plan(c->to.run.team, 0), KV_MAIN, t);
}

static tpl_code prepare(void *self, tpl_err *e)
{
    cell *c = self;
    TPL_TRY(open_side(c, &c->from, c->pair.from, 0, c->q->fill_random, e));
    TPL_TRY(open_side(c, &c->to, c->pair.to, first_card(c), true, e));
    TPL_TRY(fill(c, e));
    TPL_TRY(handoff_open(c->from.s, c->to.s, &c->h, e));
    c->stored_per_tok = stored_of(c);
    c->moved_per_tok = handoff_bytes(c->h, c->context) / c->context;
    c->crossed_per_tok = handoff_crossed_bytes(c->h, c->context) / c->context;
    return TPL_OK;
}

static void release(void *self)
{
    cell *c = self;
    handoff_close(c->h);
    c->h = NULL;
    close_side(&c->to);
    close_side(&c->from);
}

static tpl_code run(void *self, tpl_err *e)
{
    cell *c = self;
    return handoff_run(c->h, c->from.seq, c->to.seq, e);
}

static tpl_code next_step(const cell *c, side *s, tpl_err *e)
{
    batch_row row = {s->seq, c->prompt[0], ROW_CHAIN, true};
    tpl_code rc = session_forward(s->s, PHASE_DECODE, &row, 1, e);
    if (rc == TPL_OK)
        session_truncate(s->s, s->seq, c->context);
    return rc;
}

/* The next step by both teams: bit for bit where they have the same size; else sums of other orders, in f32 or with
 * bf16 inputs, as in the latency bench. */
static tpl_code verify(void *self, int64_t *n_wrong, tpl_err *e)
{
    cell *c = self;
    int vocab = team_plan(c->to.run.team, 0)->cfg.vocab;
    double scale = 0, tolerance = c->pair.from == c->pair.to                           ? 0
                                  : kv_of(c->q) == DT_BF16 || c->q->compute == DT_BF16 ? 0.1
                                                                                       : 1e-3;
    TPL_TRY(run(c, e));
    TPL_TRY(next_step(c, &c->from, e));
    TPL_TRY(next_step(c, &c->to, e));
    const float *want = session_logits(c->from.s, 0), *got = session_logits(c->to.s, 0);
    *n_wrong = 0;
    for (int i = 0; i < vocab; i++)
        scale = fmax(scale, fabs((double)want[i]));
    for (int i = 0; i < vocab; i++)
        *n_wrong += !(fabs((double)got[i] - want[i]) <= tolerance * scale);
    return TPL_OK;
}

/* ---- its trace ---- */

static void config_trace(void *user, rs_row *r)
{
    const cell *c = user;
    rs_row own;
    config_row(c, &own);
    static const int columns[][2] = {{TRACE_model, HAND_model},       {TRACE_weights, HAND_weights},
                                     {TRACE_variant, HAND_variant},   {TRACE_tp, HAND_to_tp},
                                     {TRACE_ranks, HAND_ranks},       {TRACE_backend, HAND_backend},
                                     {TRACE_device, HAND_device},     {TRACE_kv_dtype, HAND_kv_dtype},
                                     {TRACE_context_tok, HAND_context_tok}, {TRACE_command, HAND_command}};
    for (size_t i = 0; i < sizeof columns / sizeof *columns; i++)
        row_set_named(r, rs_columns(RS_TRACES)[columns[i][0]].name, row_get(&own, columns[i][1]), "trace", NULL);
    row_set_text(r, TRACE_bench, "handoff");
    row_fini(&own);
}

static tpl_code trace(cell *c, const bench_target *t, run_dir *rd, tpl_err *e)
{
    rs_row own;
    char text[VARIANT_TEXT], title[VARIANT_TEXT + 80];
    config_row(c, &own);
    rs_cell_id id = row_cell_id(&own);
    row_fini(&own);
    variant_format(c->v, text);
    snprintf(title, sizeof title, "the hand-off of %s, %d:%d ranks, context %d", text, c->pair.from, c->pair.to, c->context);
    return target_trace_write(&(target_trace){t, id.hex, title, "hand-off", config_trace, c}, rd, e);
}

/* ---- the sweep ---- */

static tpl_code run_cell(cell *c, run_dir *rd, bool *wrong, tpl_err *e)
{
    rs_row r;
    config_row(c, &r);
    bool there = rd_has_cell(rd, RS_HANDOFF, row_cell_id(&r).hex);
    row_fini(&r);
    if (there)
        return TPL_OK;
    rng random = rng_make(17, 0);
    c->prompt = tpl_calloc((size_t)c->context, sizeof *c->prompt);
    for (int i = 0; i < c->context; i++)
        c->prompt[i] = (int32_t)rng_below(&random, (uint64_t)model_cfg(lab_model(c->q->lab))->vocab);
    bench_target t = {.self = c, .prepare = prepare, .release = release, .verify = verify, .run = run};
    measure_options o = c->q->measure;
    measure_result m = {0};
    o.hot_samples = -1;
    c->after_trace = gpu_trace_has_run();
    tpl_code rc = measure_run(&t, 1, &o, &m, e);
    if (rc == TPL_OK)
        rc = append(c, &m, rd, e);
    if (rc == TPL_OK && c->q->trace && m.n_cold > 0)
        rc = trace(c, &t, rd, e);
    *wrong = *wrong || m.status == RS_WRONG_ANSWER;
    measure_result_fini(&m);
    free(c->prompt);
    return rc;
}

tpl_code handoff_bench_check(const handoff_request *q, tpl_err *e)
{
    const model_config *m = model_cfg(lab_model(q->lab));
    if (q->ranks != RANKS_LOCAL && q->ranks != RANKS_NCCL)
        return tpl_fail(e, TPL_E_USAGE, "--ranks", "is %s, expected local or nccl: both teams are in one process",
                        ranks_name(q->ranks));
    if (q->trace && !on_card(q))
        return tpl_fail(e, TPL_E_USAGE, "--trace", "of hand-offs is of cards, expected with --backend cuda");
    if (q->trace)
        TPL_TRY(gpu_trace_check(e));
    for (int v = 0; v < q->n_variants; v++)
        for (int p = 0; p < q->n_pairs; p++) {
            TPL_TRY(variant_fit(&q->variants[v], m, q->pairs[p].from, e));
            TPL_TRY(variant_fit(&q->variants[v], m, q->pairs[p].to, e));
        }
    for (int i = 0; i < q->n_contexts; i++)
        if (q->contexts[i] + 1 > m->max_pos)
            return tpl_fail(e, TPL_E_INPUT, m->name,
                            "context %lld and a decoded token exceed max_position_embeddings %d",
                            (long long)q->contexts[i], m->max_pos);
    return TPL_OK;
}

tpl_code handoff_bench_run(const handoff_request *q, run_dir *rd, tpl_err *e)
{
    int done = 0, total = q->n_variants * q->n_pairs * q->n_contexts;
    bool wrong = false;
    TPL_TRY(handoff_bench_check(q, e));
    for (int v = 0; v < q->n_variants; v++)
        for (int p = 0; p < q->n_pairs; p++)
            for (int i = 0; i < q->n_contexts; i++, done++) {
                cell c = {.q = q, .v = &q->variants[v], .pair = q->pairs[p], .context = (int)q->contexts[i]};
                progress_show(done, total, "hand-off %d:%d, context %d", c.pair.from, c.pair.to, c.context);
                TPL_TRY(run_cell(&c, rd, &wrong, e));
            }
    progress_clear();
    return wrong ? tpl_fail(e, TPL_E_MISMATCH, "hand-off",
                            "a decode team answered otherwise: rows with status wrong_answer")
                 : TPL_OK;
}
