/* Rows of the latency bench: times, memory, bounds, ratios. */
#include <math.h>

#include "bench/latency_impl.h"

typedef struct {
    const lat_cell *c;
    const measure_result *tpot;
    const pair_ratio *ratio; /* NULL for the baseline */
    const char *base_id;
    pair_mode mode;
    double bound_ms;
} row_parts;

static double bound_of(const lat_cell *c)
{
    const latency_request *q = c->q;
    plan *p;
    plan_options o = {.attention_only = model_attention_only(lab_model(q->lab))};
    if (plan_create(model_cfg(lab_model(q->lab)), c->v, c->tp, 0, o, &p, NULL) != TPL_OK)
        return NAN;
    batch_shape shape = batch_shape_uniform(c->batch, c->context + q->decode_tok / 2, 1);
    shape.logit_rows = c->batch;
    double ms =
        bound_plan_us(q->ceil, p, PHASE_DECODE, &shape, lat_types(q), lat_compute(q), lat_sharers(q, c->tp)) / 1e3;
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
    const lat_cell *c = p->c;
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

static void fill_memory(const lat_cell *c, rs_row *r)
{
    const latency_request *q = c->q;
    plan *p;
    if (plan_create(model_cfg(lab_model(q->lab)), c->v, c->tp, 0, (plan_options){0}, &p, NULL) != TPL_OK)
        return;
    row_set_real(r, LAT_kv_bytes_per_tok_rank, plan_kv_bytes_per_tok(p, KV_MAIN, lat_types(q)));
    plan_destroy(p);
    row_set_real(r, LAT_kv_bytes_per_tok_rank_alloc, (double)c->kv_used / ((double)c->batch * c->context));
    row_set_int(r, LAT_peak_bytes, c->peak_bytes);
}

static void add_note(rs_row *r, const char *what)
{
    char text[512];
    const char *old = row_get(r, LAT_note);
    snprintf(text, sizeof text, "%.400s%s%s", old, *old ? "; " : "", what);
    row_set_text(r, LAT_note, text);
}

static tpl_code append(const row_parts *p, run_dir *rd, tpl_err *e)
{
    rs_row r;
    lat_config_row(p->c, &r);
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
    if (p->c->after_trace)
        add_note(&r, "timed in a process that had traced before");
    row_set_status(&r, status, status == RS_OK ? NULL : reason);
    tpl_code rc = rd_append(rd, &r, e);
    row_fini(&r);
    return rc;
}

tpl_code lat_write_group(lat_group *g, const latency_request *q, run_dir *rd, tpl_err *e)
{
    tpl_code rc = TPL_OK;
    bool wrong = false;
    rs_cell_id base = lat_cell_id(&g->cells[0]);
    double base_bound = bound_of(&g->cells[0]);
    pair_side base_side = {&g->tpot[0], base_bound / (g->tpot[0].cold.median / 1e3)};
    for (int i = 0; i < g->n && rc == TPL_OK; i++) {
        lat_cell *c = &g->cells[i];
        row_parts p = {.c = c, .tpot = &g->tpot[i], .base_id = base.hex, .mode = g->mode, .bound_ms = bound_of(c)};
        pair_ratio ratio;
        if (i > 0) {
            pair_side side = {&g->tpot[i], p.bound_ms / (g->tpot[i].cold.median / 1e3)};
            ratio = pair_compare(base_side, side, g->mode, g->noise_floor, 1);
            p.ratio = &ratio;
        }
        wrong = wrong || g->tpot[i].status == RS_WRONG_ANSWER;
        if (rc == TPL_OK && q->samples)
            rc = measure_write_samples(q->samples, lat_cell_id(c).hex, &g->tpot[i], e);
        if (rc == TPL_OK && !rd_has_cell(rd, RS_LATENCY, lat_cell_id(c).hex))
            rc = append(&p, rd, e);
    }
    if (rc == TPL_OK && wrong)
        rc = tpl_fail(e, TPL_E_MISMATCH, "latency", "a variant's answers were wrong: rows with status wrong_answer");
    return rc;
}
