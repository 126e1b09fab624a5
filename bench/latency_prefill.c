/* What the prefill of a cell's prompts costs one rank: its bound, its FLOPs, its modelled communication. Chunk by
 * chunk, sequence after sequence, as it is run. */
#include <math.h>

#include "bench/latency_impl.h"

typedef struct {
    double us, flops, comm_us;
} prefill_sum;

/* Adds one sequence's chunks; only the last one wants logits. */
static tpl_code add_chunks(const lat_cell *c, const plan *own, bool modelled, prefill_sum *sum, tpl_err *e)
{
    const latency_request *q = c->q;
    int chunk = lat_prefill_rows(q), sharers = lat_sharers(q, c->tp);
    plan_types types = lat_types(q);
    for (int at = 0; at < c->context; at += chunk) {
        int rows = c->context - at < chunk ? c->context - at : chunk;
        batch_shape shape = batch_shape_uniform(1, at, rows);
        shape.logit_rows = at + rows == c->context;
        sum->us += bound_plan_us(q->ceil, own, PHASE_PREFILL, &shape, types, lat_compute(q), sharers);
        sum->flops += plan_cost(own, PHASE_PREFILL, &shape, types).flops;
        link_cost cost = {0};
        if (modelled)
            TPL_TRY(links_plan(q->links, own, PHASE_PREFILL, &shape, types, &cost, e));
        sum->comm_us += cost.us;
    }
    return TPL_OK;
}

tpl_code lat_prefill_comm_us(const lat_cell *c, const plan *own, double *us, tpl_err *e)
{
    prefill_sum one = {0};
    TPL_TRY(add_chunks(c, own, true, &one, e));
    *us = c->batch * one.comm_us;
    return TPL_OK;
}

void lat_fill_prefill(const lat_cell *c, rs_row *r)
{
    const latency_request *q = c->q;
    plan_options o = {.attention_only = model_attention_only(lab_model(q->lab))};
    double us = bstat_median(c->ttft_us, (size_t)c->n_ttft);
    prefill_sum one = {0};
    plan *own;
    if (c->n_ttft == 0 || plan_create(model_cfg(lab_model(q->lab)), c->v, c->tp, 0, o, &own, NULL) != TPL_OK)
        return;
    add_chunks(c, own, false, &one, NULL);
    plan_destroy(own);
    double bound_ms = c->batch * one.us / 1e3, rate = c->batch * one.flops / us / 1e3; /* 1e9 FLOP/s of one rank */
    int sharers = lat_sharers(q, c->tp);
    row_set_real(r, LAT_ttft_tflop_s, rate / 1e3);
    if (isfinite(bound_ms)) {
        row_set_real(r, LAT_ttft_bound_ms, bound_ms);
        row_set_real(r, LAT_ttft_bound_frac, bound_ms / (us / 1e3));
    }
    double most = bound_matrix_rate(q->ceil, lat_compute(q), sharers);
    if (most > 0)
        row_set_real(r, LAT_ttft_matrix_frac, sharers * rate / most);
}
