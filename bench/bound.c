#include "bench/bound.h"

#include <math.h>
#include <stdio.h>

static double bytes_seconds(const ceilings *c, double read, double written, bool in_place, int threads)
{
    double copy = 1e9 * ceilings_rate(c, in_place ? CEIL_UPDATE : CEIL_COPY, threads);
    double only_read = 1e9 * ceilings_rate(c, CEIL_READ, threads);
    if (written > read)
        return (read + written) / copy;
    return (written > 0 ? 2 * written / copy : 0) + (read - written) / only_read;
}

/* The same by ceiling, in us. */
static void add_bytes(const ceilings *c, double read, double written, bool in_place, int threads, bound_parts *p)
{
    ceil_kind copy = in_place ? CEIL_UPDATE : CEIL_COPY;
    double both = written > read ? read + written : 2 * written, rest = written > read ? 0 : read - written;
    p->us[copy] += both > 0 ? 1e-3 * both / ceilings_rate(c, copy, threads) : 0;
    p->us[CEIL_READ] += rest > 0 ? 1e-3 * rest / ceilings_rate(c, CEIL_READ, threads) : 0;
}

double bound_matrix_rate(const ceilings *c, tpl_dtype compute, int threads)
{
    double f32 = ceilings_rate(c, CEIL_F32, threads);
    return compute == DT_BF16 ? fmax(f32, ceilings_rate(c, CEIL_BF16, threads)) : f32;
}

static double flop_rate(const ceilings *c, tpl_dtype compute, int threads)
{
    return 1e9 * bound_matrix_rate(c, compute, threads);
}

double bound_us(const ceilings *c, op_cost_sum cost, bool in_place, tpl_dtype compute, int threads)
{
    double bytes = bytes_seconds(c, threads * cost.bytes_read, threads * cost.bytes_written, in_place, threads);
    double flops = cost.flops > 0 ? threads * cost.flops / flop_rate(c, compute, threads) : 0;
    double seconds = fmax(bytes, flops);
    return isfinite(seconds) ? 1e6 * seconds : NAN;
}

void bound_add_parts(const ceilings *c, op_cost_sum cost, bool in_place, tpl_dtype compute, int threads, bound_parts *p)
{
    double bytes = bytes_seconds(c, threads * cost.bytes_read, threads * cost.bytes_written, in_place, threads);
    double flops = cost.flops > 0 ? threads * cost.flops / flop_rate(c, compute, threads) : 0;
    bool f32 = compute != DT_BF16 || ceilings_rate(c, CEIL_F32, threads) > ceilings_rate(c, CEIL_BF16, threads);
    if (flops > bytes)
        p->us[f32 ? CEIL_F32 : CEIL_BF16] += 1e6 * flops;
    else
        add_bytes(c, threads * cost.bytes_read, threads * cost.bytes_written, in_place, threads, p);
}

void bound_describe(const bound_parts *p, char text[BOUND_TEXT])
{
    double left[CEIL_N], sum = 0;
    int n = 0;
    for (int k = 0; k < CEIL_N; k++) {
        left[k] = p->us[k];
        sum += p->us[k];
    }
    *text = 0;
    while (sum > 0 && isfinite(sum)) {
        int most = 0;
        for (int k = 1; k < CEIL_N; k++)
            most = left[k] > left[most] ? k : most;
        if (left[most] < 0.05 * sum)
            return;
        bool all = n == 0 && left[most] > 0.95 * sum;
        n += snprintf(text + n, (size_t)(BOUND_TEXT - n), "%s%s", n ? " " : "", ceil_name((ceil_kind)most));
        if (!all)
            n += snprintf(text + n, (size_t)(BOUND_TEXT - n), " %.0f%%", 100 * left[most] / sum);
        left[most] = 0;
    }
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

bound_parts bound_plan_parts(const ceilings *c, const plan *p, plan_phase phase, const batch_shape *b, plan_types t,
                             tpl_dtype compute, int threads)
{
    bound_parts parts = {0};
    for (int i = 0; i < p->list[phase].n; i++) {
        const plan_step *s = &p->list[phase].steps[i];
        step_cost cost = plan_step_cost(p, s, b, t);
        if (s->active && !s->is_comm)
            bound_add_parts(c, (op_cost_sum){cost.bytes_read, cost.bytes_written, cost.flops}, bound_step_in_place(s),
                            bound_rate_type(s->call.kind, compute), threads, &parts);
    }
    return parts;
}

double bound_plan_us(const ceilings *c, const plan *p, plan_phase phase, const batch_shape *b, plan_types t,
                     tpl_dtype compute, int threads)
{
    bound_parts parts = bound_plan_parts(c, p, phase, b, t, compute, threads);
    double sum = 0;
    for (int k = 0; k < CEIL_N; k++)
        sum += parts.us[k];
    return isfinite(sum) ? sum : NAN;
}
