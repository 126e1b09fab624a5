/* What decode attention takes of a cell's step when nothing else runs, beside its own bound: a slow kernel would decide
 * a ratio of variants that the step as a whole hides. */
#include <math.h>

#include "base/clock.h"
#include "bench/latency_impl.h"
#include "device/gpu.h"

/* MIN_L2: caches at least so many times as large as the card's L2 cache, or replays would find parts of them there. */
enum { ATTENTION_WARM = 2, ATTENTION_RUNS = 5, ATTENTION_STEPS = 4, MIN_L2 = 8 };

static bool is_attention(const plan_step *s)
{
    return s->active && !s->is_comm && op_is_attention(s->call.kind);
}

/* Bytes that one rank's attention of one step reads, and what the ceilings allow for it. */
static double attention_reads(const lat_cell *c, const plan *p, double *us)
{
    const latency_request *q = c->q;
    const plan_list *l = &p->list[PHASE_DECODE];
    batch_shape shape = batch_shape_uniform(c->batch, c->context + c->decode_tok / 2, 1);
    double read = 0;
    *us = 0;
    for (int i = 0; i < l->n; i++) {
        const plan_step *s = &l->steps[i];
        if (!is_attention(s))
            continue;
        step_cost one = plan_step_cost(p, s, &shape, lat_types(q));
        op_cost_sum cost = {one.bytes_read, one.bytes_written, one.flops};
        read += cost.bytes_read;
        *us += bound_us(q->ceil, cost, bound_step_in_place(s), bound_rate_type(s->call.kind, lat_compute(q)),
                        lat_sharers(q, c->tp));
    }
    return read;
}

double lat_attention_bound_us(const lat_cell *c)
{
    const model *m = lab_model(c->q->lab);
    plan_options o = {.attention_only = model_attention_only(m)};
    double us = NAN;
    plan *p;
    if (plan_create(model_cfg(m), c->v, c->tp, 0, o, &p, NULL) != TPL_OK)
        return NAN;
    attention_reads(c, p, &us);
    plan_destroy(p);
    return us;
}

double lat_attention_frac(const lat_cell *c)
{
    return isfinite(c->attention_us) ? lat_attention_bound_us(c) / c->attention_us : 0;
}

static double card_l2(void)
{
    gpu *card;
    if (gpu_open(0, &card, NULL) != TPL_OK)
        return INFINITY;
    double bytes = (double)gpu_get_facts(card)->l2_bytes;
    gpu_close(card);
    return bytes;
}

bool lat_has_attention(const lat_cell *c)
{
    double us;
    if (!lat_on_card(c->q) || ranks_are_processes(c->q->ranks))
        return false;
    return attention_reads(c, team_plan(c->run.team, 0), &us) >= MIN_L2 * card_l2();
}

static tpl_code time_one(lat_cell *c, double *us, tpl_err *e)
{
    TPL_TRY(lat_back_to_context(c, e));
    int64_t begin = clock_ns();
    TPL_TRY(lat_run_decode(c, e));
    *us = (double)(clock_ns() - begin) / 1e3 / c->steps;
    return TPL_OK;
}

/* Fewer steps than a sample has, spread as evenly over the decode. */
tpl_code lat_time_attention(lat_cell *c, tpl_err *e)
{
    double us[ATTENTION_RUNS], warm;
    int steps = c->steps;
    c->sampling = false;
    c->steps = steps < ATTENTION_STEPS ? steps : ATTENTION_STEPS;
    tpl_code rc = session_set_attention_alone(c->s, true, e);
    for (int i = -ATTENTION_WARM; i < ATTENTION_RUNS && rc == TPL_OK; i++)
        rc = time_one(c, i < 0 ? &warm : &us[i], e);
    c->steps = steps;
    if (rc == TPL_OK)
        c->attention_us = bstat_median(us, ATTENTION_RUNS);
    tpl_code off = session_set_attention_alone(c->s, false, e);
    return rc == TPL_OK ? off : rc;
}
