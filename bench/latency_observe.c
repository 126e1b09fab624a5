/* Decode steps of a cell under observation: where their time goes. */
#include <math.h>
#include <stdlib.h>

#include "base/clock.h"
#include "base/log.h"
#include "bench/latency_impl.h"
#include "bench/trace_table.h"
#include "engine/card_trace.h"

enum { OBSERVED_STEPS = 16, WARM_STEPS = 2 };

static int n_steps(const lat_cell *c)
{
    return c->q->decode_tok < OBSERVED_STEPS ? c->q->decode_tok : OBSERVED_STEPS;
}

/* ---- the trace's files ---- */

static void config_trace(void *user, rs_row *r)
{
    const lat_cell *c = user;
    rs_row of_cell;
    lat_config_row(c, &of_cell);
    static const int columns[][2] = {{TRACE_model, LAT_model},       {TRACE_weights, LAT_weights},
                                     {TRACE_variant, LAT_variant},   {TRACE_tp, LAT_tp},
                                     {TRACE_ranks, LAT_ranks},       {TRACE_backend, LAT_backend},
                                     {TRACE_device, LAT_device},     {TRACE_compute, LAT_compute},
                                     {TRACE_kv_dtype, LAT_kv_dtype}, {TRACE_batch, LAT_batch},
                                     {TRACE_context_tok, LAT_context_tok}, {TRACE_command, LAT_command}};
    for (size_t i = 0; i < sizeof columns / sizeof *columns; i++)
        row_set_named(r, rs_columns(RS_TRACES)[columns[i][0]].name, row_get(&of_cell, columns[i][1]), "trace", NULL);
    row_set_text(r, TRACE_bench, "latency");
    row_fini(&of_cell);
}

static tpl_code write_trace(lat_cell *c, const spans *sp, const card_trace_check *check, double overhead, tpl_err *e)
{
    const latency_request *q = c->q;
    char text[VARIANT_TEXT], title[VARIANT_TEXT + 80];
    int n = team_n_local(c->run.team);
    const plan **plans = tpl_calloc((size_t)n, sizeof *plans);
    rs_cell_id id = lat_cell_id(c);
    variant_format(c->v, text);
    snprintf(title, sizeof title, "%s tp=%d context %d batch %d", text, c->tp, c->context, c->batch);
    for (int i = 0; i < n; i++)
        plans[i] = team_plan(c->run.team, i);
    trace_table t = {.s = sp,
                     .name = id.hex,
                     .title = title,
                     .n_ranks = n,
                     .plans = plans,
                     .phase = PHASE_DECODE,
                     .shape = batch_shape_uniform(c->batch, c->context + n_steps(c) / 2, 1),
                     .types = lat_types(q),
                     .compute = lat_compute(q),
                     .ceil = q->ceil,
                     .sharers = lat_sharers(q, c->tp),
                     .source = lat_on_card(q) ? "CUPTI" : "timer",
                     .overhead = overhead,
                     .n_dropped = check->n_dropped + spans_dropped(sp),
                     .n_unlike = check->n_unlike,
                     .unlike = check->first_unlike};
    t.shape.logit_rows = c->batch;
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
        rc = write_trace(c, sp, &(card_trace_check){0}, NAN, e);
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

static void report(const lat_cell *c, const spans *sp, const card_trace_check *check, double plain_us, double traced_us)
{
    spans_pass_time t = spans_passes(sp, 0);
    char text[VARIANT_TEXT];
    variant_format(c->v, text);
    log_note("trace %s: %s tp=%d context %d batch %d: a step takes %.1f us, traced %.1f us (%+.1f%%); no kernel runs in "
             "%.2f%% of it; %lld records lost",
             lat_cell_id(c).hex, text, c->tp, c->context, c->batch, plain_us, traced_us, 100 * (traced_us / plain_us - 1),
             t.pass_ns ? 100 * (double)t.idle_ns / (double)t.pass_ns : 0, (long long)check->n_dropped);
    if (check->n_unlike || check->n_unmarked)
        log_note("trace %s: %lld records belong to no step, %lld steps are not what was recorded: %s", lat_cell_id(c).hex,
                 (long long)check->n_unmarked, (long long)check->n_unlike, check->first_unlike);
}

static tpl_code observe_card(lat_cell *c, tpl_err *e)
{
    double plain_us = 0, traced_us = 0;
    gpu_trace *t = NULL;
    card_trace_check check;
    TPL_TRY(run_steps(c, false, &plain_us, e));
    TPL_TRY(gpu_trace_begin(&t, e));
    tpl_code rc = run_steps(c, true, &traced_us, e);
    if (rc == TPL_OK)
        rc = gpu_trace_end(t, e);
    if (rc == TPL_OK) {
        spans *sp = card_trace_spans(c->s, t, n_steps(c), true, &check);
        report(c, sp, &check, plain_us, traced_us);
        c->split = trace_split_json(sp, n_steps(c));
        rc = write_trace(c, sp, &check, traced_us / plain_us, e);
        spans_destroy(sp);
    }
    gpu_trace_destroy(t);
    return rc;
}

tpl_code lat_observe(lat_cell *c, tpl_err *e)
{
    return lat_on_card(c->q) ? observe_card(c, e) : observe_host(c, e);
}
