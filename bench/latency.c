#include "bench/latency.h"

#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "bench/latency_impl.h"
#include "device/gpu_trace.h"

/* ---- one group: all variants at one tp, batch and context ---- */

/* Cells that do not fit are not measured, so they keep no others from standing side by side. */
static tpl_code measure_group(lat_group *g, const latency_request *q, tpl_err *e)
{
    bench_target targets[LAT_MAX_VARIANTS];
    double bytes[LAT_MAX_VARIANTS];
    for (int i = 0; i < g->n; i++) {
        bytes[i] = lat_check_fits(&g->cells[i], NULL) == TPL_OK ? lat_bytes_needed(&g->cells[i]) : 0;
        g->cells[i].n_itl = 0;
        targets[i] = lat_target(&g->cells[i]);
    }
    g->mode = pair_choose(bytes, g->n, q->free_bytes);
    measure_options o = q->measure;
    o.hot_samples = -1; /* a decode step walks weights and cache once: there is no hot and cold */
    return pair_measure(targets, g->n, g->mode, &o, g->tpot, e);
}

/* Of a group that took long: where the time went. */
static void say_spent(const lat_group *g)
{
    enum { LONG_S = 10 };
    measure_spent all = {0};
    for (int i = 0; i < g->n; i++) {
        const measure_spent *one = &g->tpot[i].spent;
        all.prepare_s += one->prepare_s;
        all.verify_s += one->verify_s;
        all.warm_s += one->warm_s;
        all.sample_s += one->sample_s;
        all.n_prepared += one->n_prepared;
    }
    double sum = all.prepare_s + all.verify_s + all.warm_s + all.sample_s;
    if (sum >= LONG_S)
        log_note("%d cells took %.1f s: %.1f making teams and caches (%d times), %.1f checking, %.1f warming up, %.1f "
                 "sampling",
                 g->n, sum, all.prepare_s, all.n_prepared, all.verify_s, all.warm_s, all.sample_s);
}

static bool was_refused(const measure_result *r)
{
    return r->status == RS_OUT_OF_MEMORY || r->status == RS_UNSUPPORTED;
}

/* After a signal: what was sampled of a group is kept, as rows that a resumed run measures again. */
static void keep_sampled(lat_group *g, const latency_request *q, run_dir *rd)
{
    for (int i = 0; i < g->n; i++)
        if (g->tpot[i].n_cold == 0 && !was_refused(&g->tpot[i]))
            return;
    for (int i = 0; i < g->n; i++) {
        measure_result *r = &g->tpot[i];
        if (was_refused(r))
            continue;
        r->status = RS_INCOMPLETE;
        snprintf(r->reason, sizeof r->reason,
                 "a signal ended sampling after %d samples; answers were not checked again", r->n_cold);
    }
    lat_write_group(g, q, rd, NULL);
}

/* The first variant against itself: what difference this machine shows where there is none. */
static tpl_code noise_floor(const latency_request *q, lat_group *g, lat_place at, tpl_err *e)
{
    lat_cell twins[2];
    bstat_ratio aa;
    for (int i = 0; i < 2; i++)
        lat_cell_init(&twins[i], q, g->cells[0].v, at, g->cells[0].rd);
    bench_target targets[2] = {lat_target(&twins[0]), lat_target(&twins[1])};
    double bytes[2] = {lat_bytes_needed(&twins[0]), lat_bytes_needed(&twins[1])};
    measure_options o = q->measure;
    o.hot_samples = -1;
    tpl_code rc = pair_measure_aa(targets, pair_choose(bytes, 2, q->free_bytes), &o, &aa, e);
    for (int i = 0; i < 2; i++)
        lat_cell_fini(&twins[i]);
    TPL_TRY(rc);
    g->noise_floor = bstat_noise_floor(aa);
    log_note("noise floor (A/A, tp=%d batch %d context %d): %.2f%%", at.tp, g->cells[0].batch, at.context,
             100 * g->noise_floor);
    return TPL_OK;
}

static bool is_there(const lat_cell *c, const run_dir *rd)
{
    return rd && rd_has_cell(rd, RS_LATENCY, lat_cell_id(c).hex);
}

static bool all_there(const lat_group *g, const run_dir *rd)
{
    for (int i = 0; i < g->n; i++)
        if (!is_there(&g->cells[i], rd))
            return false;
    return true;
}

/* A run that goes on keeps the largest batch that it had found: what is free may differ by a little now. */
static void take_recorded_batch(lat_cell *c, const run_dir *rd)
{
    int planned = c->batch;
    for (int n = planned + planned / 16 + 2; n > 0 && n >= planned - planned / 16 - 2; n--) {
        c->batch = n; /* only the id is asked for */
        if (is_there(c, rd)) {
            lat_cell_set_batch(c, n);
            c->batch_proven = true;
            return;
        }
    }
    c->batch = planned;
}

static tpl_code make_cells(lat_group *g, const latency_request *q, lat_place at, run_dir *rd, tpl_err *e)
{
    const model_config *m = model_cfg(lab_model(q->lab));
    for (int v = 0; v < q->n_variants; v++) {
        lat_cell *c = &g->cells[g->n];
        if (variant_fit(&q->variants[v], m, at.tp, e) != TPL_OK && at.tp != 1)
            continue;
        lat_cell_init(c, q, &q->variants[v], at, rd);
        g->n++;
        if (c->own_max && rd)
            take_recorded_batch(c, rd);
    }
    return TPL_OK;
}

static void list_cells(const lat_group *g, const run_dir *rd, FILE *list)
{
    for (int i = 0; i < g->n; i++) {
        const lat_cell *c = &g->cells[i];
        char text[VARIANT_TEXT], steps[48] = "";
        variant_format(c->v, text);
        if (c->steps < c->decode_tok)
            snprintf(steps, sizeof steps, " (%d steps)", c->steps);
        fprintf(list, "%s %s tp=%d batch=%d%s context=%d decode=%d%s%s\n", lat_cell_id(c).hex, text, c->tp, c->batch,
                c->own_max ? " (max)" : "", c->context, c->decode_tok, steps, is_there(c, rd) ? " (done)" : "");
    }
}

static tpl_code measure_cells(lat_group *g, const latency_request *q, lat_place at, run_dir *rd, tpl_err *e)
{
    if (q->aa)
        TPL_TRY(noise_floor(q, g, at, e));
    tpl_code rc = measure_group(g, q, e);
    if (rc == TPL_E_INTERRUPTED)
        keep_sampled(g, q, rd);
    TPL_TRY(rc);
    say_spent(g);
    return lat_write_group(g, q, rd, e);
}

/* How many of the sweep's cells ran, and why the first that did not fit did not. */
typedef struct {
    int n_ran, n_too_large;
    char reason[256];
} sweep;

static void count_cells(const lat_group *g, sweep *s)
{
    for (int i = 0; i < g->n; i++) {
        bool too_large = g->tpot[i].status == RS_OUT_OF_MEMORY;
        if (too_large && s->n_too_large++ == 0)
            snprintf(s->reason, sizeof s->reason, "%s", g->tpot[i].reason);
        s->n_ran += !too_large;
    }
}

static tpl_code run_group(const latency_request *q, lat_place at, run_dir *rd, FILE *list, sweep *s, tpl_err *e)
{
    lat_group *g = tpl_calloc(1, sizeof *g);
    tpl_code rc = make_cells(g, q, at, rd, e);
    if (list)
        list_cells(g, rd, list);
    else if (rc == TPL_OK && g->n > 0 && all_there(g, rd))
        s->n_ran += g->n;
    else if (rc == TPL_OK && g->n > 0) {
        rc = measure_cells(g, q, at, rd, e);
        count_cells(g, s);
    }
    for (int i = 0; i < g->n; i++) {
        lat_cell_fini(&g->cells[i]);
        measure_result_fini(&g->tpot[i]);
    }
    free(g);
    return rc;
}

/* ---- the sweep ---- */

tpl_code latency_check(const latency_request *q, tpl_err *e)
{
    const model_config *m = model_cfg(lab_model(q->lab));
    if (q->n_variants > LAT_MAX_VARIANTS)
        return tpl_fail(e, TPL_E_USAGE, "--variant", "has %d variants, at most %d", q->n_variants, LAT_MAX_VARIANTS);
    if (q->trace && lat_on_card(q))
        TPL_TRY(gpu_trace_check(e));
    if (q->ttft_runs < 0 || q->ttft_runs > LAT_MAX_TTFT)
        return tpl_fail(e, TPL_E_USAGE, "--ttft-runs", "is %d, expected 0 to %d", q->ttft_runs, LAT_MAX_TTFT);
    if (q->ttft_runs > 0 && q->fill_random)
        return tpl_fail(e, TPL_E_USAGE, "--ttft-runs", "is %d, expected 0 with --fill random, which prefills nothing",
                        q->ttft_runs);
    if (q->fill_random && ranks_are_processes(q->ranks))
        return tpl_fail(e, TPL_E_UNSUPPORTED, "--fill", "is random, which ranks in several processes cannot do");
    for (int v = 0; v < q->n_variants; v++) {
        if (q->variants[v].kind == VAR_TPLA && q->variants[v].slice == SLICE_NORM)
            return tpl_fail(e, TPL_E_USAGE, "--variant",
                            "slice=norm keeps the whole cache on every rank and exists for accuracy only; time "
                            "slice=softmax or both");
        for (int i = 0; i < q->n_tps; i++)
            TPL_TRY(variant_fit(&q->variants[v], m, (int)q->tps[i], e));
    }
    for (int i = 0; i < q->n_contexts; i++)
        for (int d = 0; d < q->n_decode_toks; d++)
            if (q->contexts[i] + q->decode_toks[d] + 1 > m->max_pos)
                return tpl_fail(e, TPL_E_INPUT, m->name,
                                "context %lld and %lld decoded tokens exceed max_position_embeddings %d",
                                (long long)q->contexts[i], (long long)q->decode_toks[d], m->max_pos);
    return TPL_OK;
}

/* The n-th place: contexts change fastest, ranks slowest. */
static lat_place place_of(const latency_request *q, int n)
{
    int context = n % q->n_contexts, decode = n / q->n_contexts % q->n_decode_toks,
        batch = n / q->n_contexts / q->n_decode_toks % q->n_batches,
        tp = n / q->n_contexts / q->n_decode_toks / q->n_batches;
    return (lat_place){(int)q->tps[tp], (int)q->batches[batch], (int)q->contexts[context], (int)q->decode_toks[decode]};
}

static tpl_code each_group(const latency_request *q, run_dir *rd, FILE *list, tpl_err *e)
{
    int total = q->n_tps * q->n_batches * q->n_contexts * q->n_decode_toks;
    bool wrong = false;
    sweep s = {0};
    TPL_TRY(latency_check(q, e));
    for (int i = 0; i < total; i++) {
        lat_place at = place_of(q, i);
        char batch[16] = "max";
        if (at.batch != LATENCY_BATCH_MAX)
            snprintf(batch, sizeof batch, "%d", at.batch);
        if (!list)
            progress_show(i, total, "latency tp=%d batch %s context %d", at.tp, batch, at.context);
        tpl_code rc = run_group(q, at, rd, list, &s, e);
        if (rc != TPL_OK && rc != TPL_E_MISMATCH)
            return rc;
        wrong = wrong || rc == TPL_E_MISMATCH; /* the sweep goes on; the exit status says it at the end */
    }
    progress_clear();
    if (!list && s.n_ran == 0 && s.n_too_large > 0)
        return tpl_fail(e, TPL_E_MEMORY, "no cell fits", "%s", s.reason);
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
