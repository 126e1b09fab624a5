/* Decode steps of a cell under observation: where their time goes. */
#include <math.h>
#include <stdlib.h>

#include "base/clock.h"
#include "base/log.h"
#include "bench/latency_impl.h"
#include "bench/trace_table.h"
#include "engine/card_trace.h"
#include "engine/generate.h"

enum { OBSERVED_STEPS = 16, WARM_STEPS = 2 };

/* One graph serves contexts up to a multiple of this; a trace shows replays of one. */
enum { ONE_GRAPH_TOK = 1024 };

static int n_steps(const lat_cell *c)
{
    int n = c->decode_tok < OBSERVED_STEPS ? c->decode_tok : OBSERVED_STEPS,
        left = ONE_GRAPH_TOK - c->context % ONE_GRAPH_TOK;
    return lat_on_card(c->q) && left < n ? left : n;
}

/* ---- the trace's files ---- */

static void config_trace(void *user, rs_row *r)
{
    const lat_cell *c = user;
    rs_row of_cell;
    lat_config_row(c, &of_cell);
    static const int columns[][2] = {{TRACE_model, LAT_model},
                                     {TRACE_weights, LAT_weights},
                                     {TRACE_variant, LAT_variant},
                                     {TRACE_tp, LAT_tp},
                                     {TRACE_ranks, LAT_ranks},
                                     {TRACE_backend, LAT_backend},
                                     {TRACE_device, LAT_device},
                                     {TRACE_compute, LAT_compute},
                                     {TRACE_kv_dtype, LAT_kv_dtype},
                                     {TRACE_batch, LAT_batch},
                                     {TRACE_context_tok, LAT_context_tok},
                                     {TRACE_command, LAT_command}};
    for (size_t i = 0; i < sizeof columns / sizeof *columns; i++)
        row_set_named(r, rs_columns(RS_TRACES)[columns[i][0]].name, row_get(&of_cell, columns[i][1]), "trace", NULL);
    row_set_text(r, TRACE_bench, "latency");
    if (ranks_are_processes(c->q->ranks))
        row_set_text(r, TRACE_note, "other ranks are processes of their own, which were not traced");
    row_fini(&of_cell);
}

/* What was observed of one phase. */
typedef struct {
    const spans *s;
    plan_phase phase;
    batch_shape shape;
    card_trace_check check;
    double overhead;
} observation;

static batch_shape decode_shape(const lat_cell *c)
{
    batch_shape s = batch_shape_uniform(c->batch, c->context + n_steps(c) / 2, 1);
    s.logit_rows = c->batch;
    return s;
}

static tpl_code write_trace(lat_cell *c, const observation *o, tpl_err *e)
{
    const latency_request *q = c->q;
    char text[VARIANT_TEXT], title[VARIANT_TEXT + 80], name[32];
    int n = team_n_local(c->run.team);
    const plan **plans = tpl_calloc((size_t)n, sizeof *plans);
    rs_cell_id id = lat_cell_id(c);
    variant_format(c->v, text);
    snprintf(title, sizeof title, "%s tp=%d context %d batch %d, %s", text, c->tp, c->context, c->batch,
             phase_name(o->phase));
    snprintf(name, sizeof name, "%s%s", id.hex, o->phase == PHASE_PREFILL ? "-prefill" : "");
    for (int i = 0; i < n; i++)
        plans[i] = team_plan(c->run.team, i);
    trace_table t = {.s = o->s,
                     .name = name,
                     .title = title,
                     .n_ranks = n,
                     .plans = plans,
                     .phase = o->phase,
                     .shape = o->shape,
                     .types = lat_types(q),
                     .compute = lat_compute(q),
                     .ceil = q->ceil,
                     .sharers = lat_sharers(q, c->tp),
                     .source = lat_on_card(q) ? "CUPTI" : "timer",
                     .overhead = o->overhead,
                     .n_dropped = o->check.n_dropped + spans_dropped(o->s),
                     .n_unlike = o->check.n_unlike,
                     .unlike = o->check.first_unlike};
    tpl_code rc = trace_table_write(&t, config_trace, c, c->rd, e);
    free(plans);
    return rc;
}

/* ---- on a host: timers around each step ---- */

static tpl_code observe_host(lat_cell *c, tpl_err *e)
{
    int n = team_n_local(c->run.team), steps = n_steps(c);
    spans *sp = spans_create(n, (int64_t)steps * team_plan(c->run.team, 0)->list[PHASE_DECODE].n);
    tpl_code rc = lat_back_to_context(c, e);
    session_observe(c->s, spans_observer(sp));
    for (int i = 0; i < steps && rc == TPL_OK; i++)
        rc = lat_decode_step(c, e);
    session_observe(c->s, (step_observer){0});
    if (rc == TPL_OK)
        c->split = trace_split_json(sp, steps);
    if (rc == TPL_OK && c->q->trace)
        rc = write_trace(c, &(observation){.s = sp, .phase = PHASE_DECODE, .shape = decode_shape(c), .overhead = NAN},
                         e);
    spans_destroy(sp);
    return rc;
}

/* ---- on a card: its tracer's records of replayed steps ---- */

/* Time of the observed steps on the host, in us; the first steps after the context are not timed. */
static tpl_code run_steps(lat_cell *c, bool number, double *us, tpl_err *e)
{
    TPL_TRY(lat_back_to_context(c, e));
    for (int i = 0; i < WARM_STEPS; i++) {
        TPL_TRY(lat_decode_step(c, e));
        TPL_TRY(lat_back_to_context(c, e));
    }
    int64_t begin = clock_ns();
    for (int i = 0; i < n_steps(c); i++) {
        if (number)
            gpu_trace_pass(i);
        TPL_TRY(lat_decode_step(c, e));
        if (number)
            gpu_trace_pass(-1);
    }
    *us = (double)(clock_ns() - begin) / 1e3 / n_steps(c);
    return TPL_OK;
}

/* One prefill of the first sequence's prompt, all its chunks as one pass. */
static tpl_code run_prefill(lat_cell *c, bool number, double *us, tpl_err *e)
{
    session_truncate(c->s, c->seqs[0], 0);
    int64_t begin = clock_ns();
    if (number)
        gpu_trace_pass(0);
    tpl_code rc = generate_prefill(c->s, c->seqs[0], c->prompt, c->context, e);
    if (number)
        gpu_trace_pass(-1);
    *us = (double)(clock_ns() - begin) / 1e3;
    return rc;
}

static void report(const lat_cell *c, const observation *o, double plain_us, double traced_us)
{
    spans_pass_time t = spans_passes(o->s, 0);
    char text[VARIANT_TEXT];
    variant_format(c->v, text);
    log_note("trace %s: %s of %s tp=%d context %d batch %d takes %.1f us, traced %.1f us (%+.1f%%); no kernel runs in "
             "%.2f%% "
             "of it; %lld records lost",
             lat_cell_id(c).hex, o->phase == PHASE_DECODE ? "a decode step" : "prefill of a sequence", text, c->tp,
             c->context, c->batch, plain_us, traced_us, 100 * (traced_us / plain_us - 1),
             t.pass_ns ? 100 * (double)t.idle_ns / (double)t.pass_ns : 0, (long long)o->check.n_dropped);
    if (o->check.n_unlike || o->check.n_unmarked)
        log_note("trace %s: %lld records belong to no step, %lld steps are not what was recorded: %s",
                 lat_cell_id(c).hex, (long long)o->check.n_unmarked, (long long)o->check.n_unlike,
                 o->check.first_unlike);
}

static tpl_code observe_phase(lat_cell *c, plan_phase phase, tpl_err *e)
{
    bool decode = phase == PHASE_DECODE;
    tpl_code (*run)(lat_cell *, bool, double *, tpl_err *) = decode ? run_steps : run_prefill;
    int n_passes = decode ? n_steps(c) : 1;
    double plain_us = 0, traced_us = 0;
    gpu_trace *t = NULL;
    TPL_TRY(run(c, false, &plain_us, e));
    TPL_TRY(gpu_trace_begin(&t, e));
    tpl_code rc = run(c, true, &traced_us, e);
    if (rc == TPL_OK)
        rc = gpu_trace_end(t, e);
    if (rc == TPL_OK) {
        observation o = {.phase = phase,
                         .shape = decode ? decode_shape(c) : batch_shape_uniform(1, 0, c->context),
                         .overhead = traced_us / plain_us};
        spans *sp = card_trace_spans(c->s, t, n_passes, decode, &o.check);
        o.s = sp;
        report(c, &o, plain_us, traced_us);
        if (decode)
            c->split = trace_split_json(sp, n_passes);
        rc = write_trace(c, &o, e);
        spans_destroy(sp);
    }
    gpu_trace_destroy(t);
    return rc;
}

static tpl_code observe_card(lat_cell *c, tpl_err *e)
{
    TPL_TRY(observe_phase(c, PHASE_DECODE, e));
    return c->q->fill_random ? TPL_OK : observe_phase(c, PHASE_PREFILL, e);
}

tpl_code lat_observe(lat_cell *c, tpl_err *e)
{
    return lat_on_card(c->q) ? observe_card(c, e) : observe_host(c, e);
}
