#include "eval/scoring_report.h"

#include <inttypes.h>
#include <stdio.h>

double scoring_flops(const plan *p, plan_phase phase, int64_t rows, int64_t logit_rows)
{
    const plan_types t = {.act = DT_F32, .kv = DT_F32};
    batch_shape b = batch_shape_uniform(1, 0, rows);
    double sum = 0;
    b.logit_rows = logit_rows;
    for (int i = 0; i < p->list[phase].n; i++) {
        const plan_step *s = &p->list[phase].steps[i];
        op_kind op = s->call.kind;
        if (s->active && !s->is_comm && (op == OP_MATMUL || op == OP_HEAD_MATMUL || op == OP_MOE_EXPERTS))
            sum += plan_step_cost(p, s, &b, t).flops;
    }
    return sum;
}

static double ratio(double a, double b)
{
    return b > 0 ? a / b : 0;
}

double scoring_sharing(const scoring_work *w)
{
    return ratio((double)w->n_tok_unshared, (double)w->n_tok);
}

double scoring_batching(const scoring_work *w)
{
    return ratio(ratio(w->alone_seconds, w->alone_tok), ratio(w->seconds, (double)w->n_tok));
}

double scoring_gflops(const scoring_work *w)
{
    return ratio(w->flops * 1e-9, w->seconds);
}

void scoring_format(const scoring_work *w, double ceiling, const char *name, char *buf, size_t bytes)
{
    snprintf(buf, bytes,
             "%s: %" PRId64 " items, %" PRId64 " choices; %" PRId64 " tokens scored as %" PRId64
             " (sharing %.2fx), %.1f rows a pass (batching %.2fx); "
             "matrix products %.1f GFLOP/s, %.2f of the %s ceiling",
             w->task, w->n_items, w->n_choices, w->n_tok_unshared, w->n_tok, scoring_sharing(w),
             ratio((double)w->n_tok, (double)w->n_pass), scoring_batching(w), scoring_gflops(w),
             ratio(scoring_gflops(w), ceiling), name);
}
