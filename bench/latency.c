#include "bench/latency.h"

#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "bench/latency_impl.h"
#include "device/gpu_trace.h"

/* ---- one group: all variants at one tp, batch and context ---- */

static tpl_code measure_group(lat_group *g, const latency_request *q, tpl_err *e)
{
    bench_target targets[LAT_MAX_VARIANTS];
    double bytes[LAT_MAX_VARIANTS];
    for (int i = 0; i < g->n; i++)
        bytes[i] = lat_bytes_needed(&g->cells[i]);
    g->mode = pair_choose(bytes, g->n, lat_on_card(q) ? q->card_free_bytes : pair_free_bytes());
    measure_options o = q->measure;
    for (int i = 0; i < g->n; i++) {
        g->cells[i].n_itl = 0;
        targets[i] = lat_target(&g->cells[i]);
    }
    o.hot_samples = -1; /* a decode step walks weights and cache once: there is no hot and cold */
    return pair_measure(targets, g->n, g->mode, &o, g->tpot, e);
}

/* The first variant against itself: what difference this machine shows where there is none. */
static tpl_code noise_floor(const latency_request *q, lat_group *g, tpl_err *e)
{
    lat_cell twins[2];
    bstat_ratio aa;
    for (int i = 0; i < 2; i++)
        lat_cell_init(&twins[i], q, g->cells[0].v, g->cells[0].tp, g->cells[0].batch, g->cells[0].context,
                      g->cells[0].rd);
    bench_target targets[2] = {lat_target(&twins[0]), lat_target(&twins[1])};
    measure_options o = q->measure;
    o.hot_samples = -1;
    tpl_code rc = pair_measure_aa(targets, PAIR_SAMPLE, &o, &aa, e);
    for (int i = 0; i < 2; i++)
        lat_cell_fini(&twins[i]);
    TPL_TRY(rc);
    g->noise_floor = bstat_noise_floor(aa);
    log_note("noise floor (A/A, tp=%d batch %d context %d): %.2f%%", g->cells[0].tp, g->cells[0].batch,
             g->cells[0].context, 100 * g->noise_floor);
    return TPL_OK;
}

static bool all_there(const lat_group *g, const run_dir *rd)
{
    for (int i = 0; i < g->n; i++)
        if (!rd || !rd_has_cell(rd, RS_LATENCY, lat_cell_id(&g->cells[i]).hex))
            return false;
    return true;
}

static tpl_code run_group(const latency_request *q, int tp, int batch, int context, run_dir *rd, FILE *list, tpl_err *e)
{
    lat_group *g = tpl_calloc(1, sizeof *g);
    const model_config *m = model_cfg(lab_model(q->lab));
    tpl_code rc = TPL_OK;
    for (int v = 0; v < q->n_variants && g->n < LAT_MAX_VARIANTS; v++)
        if (variant_fit(&q->variants[v], m, tp, e) == TPL_OK || tp == 1)
            lat_cell_init(&g->cells[g->n++], q, &q->variants[v], tp, batch, context, rd);
    for (int i = 0; list && i < g->n; i++) {
        char text[VARIANT_TEXT], id[16];
        variant_format(g->cells[i].v, text);
        snprintf(id, sizeof id, "%s", lat_cell_id(&g->cells[i]).hex);
        fprintf(list, "%s %s tp=%d batch=%d context=%d%s\n", id, text, tp, batch, context,
                rd && rd_has_cell(rd, RS_LATENCY, id) ? " (done)" : "");
    }
    if (!list && g->n > 0 && !all_there(g, rd)) {
        if (q->aa)
            rc = noise_floor(q, g, e);
        if (rc == TPL_OK)
            rc = measure_group(g, q, e);
        if (rc == TPL_OK)
            rc = lat_write_group(g, q, rd, e);
    }
    for (int i = 0; i < g->n; i++) {
        lat_cell_fini(&g->cells[i]);
        measure_result_fini(&g->tpot[i]);
    }
    free(g);
    return rc;
}

static tpl_code check_request(const latency_request *q, tpl_err *e)
{
    const model_config *m = model_cfg(lab_model(q->lab));
    if (q->n_variants > LAT_MAX_VARIANTS)
        return tpl_fail(e, TPL_E_USAGE, "--variant", "has %d variants, at most %d", q->n_variants, LAT_MAX_VARIANTS);
    if (q->trace && lat_on_card(q))
        TPL_TRY(gpu_trace_check(e));
    if (q->ttft_runs < 0 || q->ttft_runs > LAT_MAX_TTFT)
        return tpl_fail(e, TPL_E_USAGE, "--ttft-runs", "is %d, expected 0 to %d", q->ttft_runs, LAT_MAX_TTFT);
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
