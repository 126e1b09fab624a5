#include "bench/bound.h"

#include <math.h>

static double bytes_seconds(const ceilings *c, double read, double written, bool in_place, int threads)
{
    double copy = 1e9 * ceilings_rate(c, in_place ? CEIL_UPDATE : CEIL_COPY, threads);
    double only_read = 1e9 * ceilings_rate(c, CEIL_READ, threads);
    if (written > read)
        return (read + written) / copy;
    return (written > 0 ? 2 * written / copy : 0) + (read - written) / only_read;
}

static double flop_rate(const ceilings *c, tpl_dtype compute, int threads)
{
    double f32 = ceilings_rate(c, CEIL_F32, threads);
    return 1e9 * (compute == DT_BF16 ? fmax(f32, ceilings_rate(c, CEIL_BF16, threads)) : f32);
}

double bound_us(const ceilings *c, op_cost_sum cost, bool in_place, tpl_dtype compute, int threads)
{
    double bytes = bytes_seconds(c, threads * cost.bytes_read, threads * cost.bytes_written, in_place, threads);
    double flops = cost.flops > 0 ? threads * cost.flops / flop_rate(c, compute, threads) : 0;
    double seconds = fmax(bytes, flops);
    return isfinite(seconds) ? 1e6 * seconds : NAN;
}

bool bound_step_in_place(const plan_step *s)
{
    if (s->out.buf < 0)
        return s->stream < 0; /* rotations and merges; what goes to the cache goes elsewhere */
    for (int i = 0; i < STEP_MAX_IN; i++)
        if (s->in[i].buf == s->out.buf && s->in[i].col == s->out.col)
            return true;
    return s->call.kind == OP_ADD;
}

tpl_dtype bound_rate_type(op_kind op, tpl_dtype compute)
{
    switch (op) {
    case OP_MATMUL:
    case OP_HEAD_MATMUL:
    case OP_ATTN_LATENT:
    case OP_ATTN_MHA:
    case OP_ATTN_GQA:
    case OP_MOE_ROUTE:
    case OP_MOE_EXPERTS:
        return compute;
    default:
        return DT_F32;
    }
}

double bound_plan_us(const ceilings *c, const plan *p, plan_phase phase, const batch_shape *b, plan_types t,
                     tpl_dtype compute, int threads)
{
    double sum = 0;
    for (int i = 0; i < p->list[phase].n; i++) {
        const plan_step *s = &p->list[phase].steps[i];
        step_cost cost = plan_step_cost(p, s, b, t);
        if (s->active && !s->is_comm)
            sum += bound_us(c, (op_cost_sum){cost.bytes_read, cost.bytes_written, cost.flops}, bound_step_in_place(s),
                            bound_rate_type(s->call.kind, compute), threads);
    }
    return sum;
}
