/* Rows of the latency bench: times, memory, bounds, ratios. */
#include <math.h>
#include <stdarg.h>
#include <stdio.h>

#include "base/log.h"
#include "bench/card_clock.h"
#include "bench/latency_impl.h"

typedef struct {
    const lat_cell *c;
    const measure_result *tpot;
    const pair_ratio *ratio; /* NULL for the baseline */
    const lat_cell *base;
    const char *base_id;
    pair_mode mode;
    double bound_ms;
    char bound_by[BOUND_TEXT];
} row_parts;

static tpl_code plan_of(const lat_cell *c, plan **out, tpl_err *e)
{
    plan_options o = {.attention_only = model_attention_only(lab_model(c->q->lab))};
    return plan_create(model_cfg(lab_model(c->q->lab)), c->v, c->tp, 0, o, out, e);
}

static batch_shape step_shape(const lat_cell *c)
{
    batch_shape shape = batch_shape_uniform(c->batch, c->context + c->decode_tok / 2, 1);
    shape.logit_rows = c->batch;
    return shape;
}

/* `by`, if not NULL, says which ceilings it is made of. */
static double bound_of(const lat_cell *c, char by[BOUND_TEXT])
{
    const latency_request *q = c->q;
    int sharers = lat_sharers(q, c->tp);
    plan *p;
    if (plan_of(c, &p, NULL) != TPL_OK)
        return NAN;
    batch_shape shape = step_shape(c);
    double ms = bound_plan_us(q->ceil, p, PHASE_DECODE, &shape, lat_types(q), lat_compute(q), sharers) / 1e3;
    bound_parts parts = bound_plan_parts(q->ceil, p, PHASE_DECODE, &shape, lat_types(q), lat_compute(q), sharers);
    if (by)
        bound_describe(&parts, by);
    plan_destroy(p);
    return ms;
}

/* What the kernels reach of their bound: collectives that were not hidden are taken out, where they were measured. */
static double kernels_frac(const lat_cell *c, double bound_ms, const measure_result *tpot)
{
    double ms = tpot->cold.median / 1e3;
    return bound_ms / (isfinite(c->silent_us) ? fmin(ms, c->silent_us / 1e3) : ms);
}

static void set_real(rs_row *r, int column, double v)
{
    if (isfinite(v))
        row_set_real(r, column, v);
}

static void fill_times(const row_parts *p, rs_row *r)
{
    const lat_cell *c = p->c;
    double tpot_ms = p->tpot->cold.median / 1e3, ttft_ms = bstat_median(c->ttft_us, (size_t)c->n_ttft) / 1e3;
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
    set_real(r, LAT_e2el_ms, ttft_ms + c->decode_tok * tpot_ms);
    /* where the two took turns, of that minute */
    set_real(r, LAT_comm_exposed_ms, (isfinite(c->alone_us) ? c->joint_us / 1e3 : tpot_ms) - c->silent_us / 1e3);
    row_set_text(r, LAT_comm_source, c->q->ranks == RANKS_SOLO ? "none" : "measured");
    set_real(r, LAT_bound_ms, p->bound_ms);
    row_set_text(r, LAT_bound_by, p->bound_by);
    set_real(r, LAT_bound_frac, p->bound_ms / tpot_ms);
    set_real(r, LAT_attn_ms, c->attention_us / 1e3);
    if (isfinite(c->attention_us))
        set_real(r, LAT_attn_bound_frac, lat_attention_frac(c));
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

static void fill_ratio(const row_parts *p, rs_row *r)
{
    const lat_cell *c = p->c;
    char text[160];
    row_set_text(r, LAT_pairing, pair_mode_name(p->mode));
    row_set_text(r, LAT_baseline_cell, p->base_id);
    set_real(r, LAT_ratio, p->ratio->ratio.ratio);
    set_real(r, LAT_ratio_lo, p->ratio->ratio.lo);
    set_real(r, LAT_ratio_hi, p->ratio->ratio.hi);
    pair_describe(p->ratio, text, sizeof text);
    row_set_text(r, LAT_note, p->ratio->status == RS_UNLIKE ? p->ratio->reason : text);
    if (c->n_ttft == 0 || c->n_ttft != p->base->n_ttft)
        return;
    bstat_ratio ttft = bstat_ratio_of_medians(p->base->ttft_us, c->ttft_us, (size_t)c->n_ttft, 1, 1);
    set_real(r, LAT_ttft_ratio, ttft.ratio);
    set_real(r, LAT_ttft_ratio_lo, ttft.lo);
    set_real(r, LAT_ttft_ratio_hi, ttft.hi);
}

/* Times may be used as they stand where only the ratio is no claim; the status says which. */
static void judge(const row_parts *p, rs_row *r)
{
    rs_status status = p->tpot->status;
    const char *reason = p->tpot->reason;
    char provisional[200];
    if (status == RS_OK && p->bound_ms / (p->tpot->cold.median / 1e3) > bound_bad_frac) {
        status = RS_BAD_CEILING;
        reason = "faster than the bound allows";
    } else if (status == RS_OK && p->ratio && p->ratio->status == RS_KERNEL_BELOW_BOUND) {
        status = RS_KERNEL_BELOW_BOUND;
        reason = provisional;
        snprintf(provisional, sizeof provisional, "the ratio is provisional: %.150s", p->ratio->reason);
    }
    row_set_status(r, status, status == RS_OK ? NULL : reason);
}

static void __attribute__((format(printf, 2, 3))) add_note(rs_row *r, const char *fmt, ...)
{
    char text[1024];
    va_list ap;
    const char *old = row_get(r, LAT_note);
    int n = snprintf(text, sizeof text, "%.500s%s", old, *old ? "; " : "");
    va_start(ap, fmt);
    vsnprintf(text + n, sizeof text - (size_t)n, fmt, ap);
    va_end(ap);
    row_set_text(r, LAT_note, text);
}

static tpl_code set_modelled(const row_parts *p, const plan *own, rs_row *r, tpl_err *e)
{
    const lat_cell *c = p->c;
    batch_shape shape = step_shape(c);
    link_cost step;
    double prefill_us = NAN;
    TPL_TRY(links_plan(c->q->links, own, PHASE_DECODE, &shape, lat_types(c->q), &step, e));
    if (c->n_ttft)
        TPL_TRY(lat_prefill_comm_us(c, own, &prefill_us, e));
    row_set_text(r, LAT_comm_source, "modelled");
    set_real(r, LAT_comm_ms_modelled, step.us / 1e3);
    set_real(r, LAT_tpot_ms_modelled, (step.us + p->tpot->cold.median) / 1e3);
    if (c->n_ttft)
        set_real(r, LAT_ttft_ms_modelled, (prefill_us + bstat_median(c->ttft_us, (size_t)c->n_ttft)) / 1e3);
    add_note(r, "%s", step.numbers);
    return TPL_OK;
}

/* What the link model says of the row's collectives, and its numbers into the note. */
static void fill_modelled(const row_parts *p, rs_row *r)
{
    plan *own;
    tpl_err e;
    if (plan_of(p->c, &own, NULL) != TPL_OK)
        return;
    if (set_modelled(p, own, r, &e) != TPL_OK)
        add_note(r, "%s", e.what);
    plan_destroy(own);
}

/* What the ranks gain by working at once, beside what they would without waiting for each other. */
static void note_gain(const lat_cell *c, rs_row *r)
{
    double gain = c->tp * c->alone_us / c->joint_us, most = c->tp * c->alone_us / c->silent_us;
    char text[VARIANT_TEXT];
    variant_format(c->v, text);
    add_note(r, "%d ranks gain %.2f over one rank's work alone, %.2f without collectives: %.2f of it", c->tp, gain,
             most, gain / most);
    log_note("%s tp=%d batch %d context %d: %.3f ms a step, one rank's work alone %.3f ms: gain %.2f of the %.2f that "
             "independent "
             "threads show (%.2f)",
             text, c->tp, c->batch, c->context, c->joint_us / 1e3, c->alone_us / 1e3, gain, most, gain / most);
}

static tpl_code append(const row_parts *p, run_dir *rd, tpl_err *e)
{
    rs_row r;
    lat_config_row(p->c, &r);
    if (p->tpot->n_cold > 0) {
        fill_times(p, &r);
        fill_memory(p->c, &r);
        lat_fill_prefill(p->c, &r);
        row_set_text(&r, LAT_split, p->c->split);
    }
    if (p->ratio)
        fill_ratio(p, &r);
    if (p->tpot->n_power_capped)
        add_note(&r, "at the power limit in %d of %d samples", p->tpot->n_power_capped, p->tpot->n_cold);
    if (p->tpot->n_cold > 0 && p->c->q->links)
        fill_modelled(p, &r);
    if (isfinite(p->c->alone_us))
        note_gain(p->c, &r);
    if (lat_on_card(p->c->q) && p->c->tp > 2 && p->c->q->ranks != RANKS_SOLO && p->c->q->ranks != RANKS_LOCAL)
        add_note(&r, "which collectives of more than two cards go through peer memory is not measured");
    if (p->c->q->taken_bytes > card_taken_limit)
        add_note(&r, "%.1f GiB of a card were taken before: another program was on it", p->c->q->taken_bytes / 0x1p30);
    if (p->c->after_trace)
        add_note(&r, "timed in a process that had traced before");
    judge(p, &r);
    tpl_code rc = rd_append(rd, &r, e);
    row_fini(&r);
    return rc;
}

/* Bytes that one rank sends for a decoded token; NaN: no plan. */
static double bytes_sent(const lat_cell *c)
{
    plan *p;
    batch_shape one = batch_shape_uniform(1, c->context, 1);
    if (plan_create(model_cfg(lab_model(c->q->lab)), c->v, c->tp, 0, lat_plan_options(c->q), &p, NULL) != TPL_OK)
        return NAN;
    double bytes = plan_cost(p, PHASE_DECODE, &one, lat_types(c->q)).bytes_sent;
    plan_destroy(p);
    return bytes;
}

/* Ranks alone exchange nothing, so that only variants which would send the same may be compared. */
static void refuse_other_communication(pair_ratio *ratio, const lat_cell *base, const lat_cell *c)
{
    double theirs = bytes_sent(base), own = bytes_sent(c);
    if (c->q->ranks != RANKS_SOLO || ratio->status == RS_UNLIKE || theirs == own)
        return;
    ratio->status = RS_UNLIKE;
    ratio->ratio = (bstat_ratio){NAN, NAN, NAN};
    snprintf(ratio->reason, sizeof ratio->reason,
             "no ratio: communication is not measured, and would be %.0f B a token against the baseline's %.0f", own,
             theirs);
}

/* At batches of their own, tokens a second over tokens a second. */
static void scale_ratio(pair_ratio *p, double by)
{
    p->ratio.ratio *= by;
    p->ratio.lo *= by;
    p->ratio.hi *= by;
}

tpl_code lat_write_group(lat_group *g, const latency_request *q, run_dir *rd, tpl_err *e)
{
    tpl_code rc = TPL_OK;
    bool wrong = false;
    const lat_cell *first = &g->cells[0];
    rs_cell_id base = lat_cell_id(first);
    pair_side base_side = {&g->tpot[0], kernels_frac(first, bound_of(first, NULL), &g->tpot[0]),
                           lat_attention_frac(first)};
    for (int i = 0; i < g->n && rc == TPL_OK; i++) {
        lat_cell *c = &g->cells[i];
        row_parts p = {.c = c, .tpot = &g->tpot[i], .base = first, .base_id = base.hex, .mode = g->mode};
        p.bound_ms = bound_of(c, p.bound_by);
        pair_ratio ratio;
        if (i > 0) {
            pair_side side = {&g->tpot[i], kernels_frac(c, p.bound_ms, &g->tpot[i]), lat_attention_frac(c)};
            ratio = pair_compare(base_side, side, g->mode, g->noise_floor, 1);
            scale_ratio(&ratio, (double)c->batch / first->batch);
            refuse_other_communication(&ratio, first, c);
            p.ratio = &ratio;
        }
        wrong = wrong || g->tpot[i].status == RS_WRONG_ANSWER;
        if (q->samples)
            rc = measure_write_samples(q->samples, lat_cell_id(c).hex, &g->tpot[i], e);
        if (rc == TPL_OK && !rd_has_cell(rd, RS_LATENCY, lat_cell_id(c).hex))
            rc = append(&p, rd, e);
    }
    if (rc == TPL_OK && wrong)
        rc = tpl_fail(e, TPL_E_MISMATCH, "latency", "a variant's answers were wrong: rows with status wrong_answer");
    return rc;
}
