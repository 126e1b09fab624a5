/* Decode steps of a cell under observation: where their time goes. */
#include "bench/latency_impl.h"
#include "engine/spans.h"

enum { OBSERVED_STEPS = 16 };

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

static tpl_code write_trace(const lat_cell *c, const spans *sp, tpl_err *e)
{
    char *path, text[VARIANT_TEXT];
    arena a;
    arena_init(&a);
    variant_format(c->v, text);
    tpl_code rc = rd_trace_path(c->rd, lat_cell_id(c).hex, &a, &path, e);
    if (rc == TPL_OK)
        rc = spans_write_chrome(sp, arena_printf(&a, "%s tp=%d context %d batch %d", text, c->tp, c->context, c->batch),
                                path, e);
    arena_fini(&a);
    return rc;
}

tpl_code lat_observe(lat_cell *c, tpl_err *e)
{
    int n = team_n_local(c->run.team), steps = c->decode_tok < OBSERVED_STEPS ? c->decode_tok : OBSERVED_STEPS;
    spans *sp = spans_create(n, (int64_t)steps * team_plan(c->run.team, 0)->list[PHASE_DECODE].n);
    tpl_code rc = lat_back_to_context(c, e);
    session_observe(c->s, spans_observer(sp));
    for (int i = 0; i < steps && rc == TPL_OK; i++)
        rc = lat_decode_step(c, e);
    session_observe(c->s, (step_observer){0});
    if (rc == TPL_OK)
        c->split = split_json(sp, steps);
    if (rc == TPL_OK && c->q->trace)
        rc = write_trace(c, sp, e);
    spans_destroy(sp);
    return rc;
}
