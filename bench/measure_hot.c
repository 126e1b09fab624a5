/* Hot samples: runs back to back, operands where the run before left them. */
#include <math.h>

#include "base/log.h"
#include "bench/measure_impl.h"

/* Hot samples take batches of at least this long, so that reading the clock (some 0.05 us) is below 0.5% of them. */
static const double hot_batch_us = 20;

static void size_hot_batch(measure_side *s, double us)
{
    double units = s->t->units > 0 ? s->t->units : 1, runs = us > 0 ? ceil(hot_batch_us / (us * units)) : 1000;
    s->hot_batch = runs < 1 ? 1 : runs < 1000 ? (int32_t)runs : 1000;
}

static tpl_code take_hot(measure_loop *l, measure_side *s, tpl_err *e)
{
    double us = 0, mhz;
    /* A reset may touch other memory; the run after it, which is not kept, brings the operands back. */
    TPL_TRY(measure_reset(s, e));
    TPL_TRY(measure_absorb(s, measure_time_runs(l, s, 1, &us, e), e));
    if (s->dead)
        return TPL_OK;
    bool resets = s->t->reset != NULL;
    if (resets)
        TPL_TRY(measure_reset(s, e));
    else if (s->r->n_hot == 0)
        size_hot_batch(s, us);
    TPL_TRY(measure_absorb(s, measure_time_runs(l, s, s->hot_batch, &us, e), e));
    if (s->dead)
        return TPL_OK;
    mhz = measure_read_mhz(l);
    int limits = measure_read_limits(l, mhz);
    bool keep = !(limits & BENCH_THROTTLED);
    s->r->all[s->r->n_all++] = (bench_sample){us, mhz, limits, true, keep};
    if (keep)
        s->r->hot_us[s->r->n_hot++] = us;
    return TPL_OK;
}

/* Hot samples take half of the time that cold ones may, and take turns like them, except that in blocks a side takes
 * all of its hot samples at once. */
tpl_code measure_hot(measure_loop *l, tpl_err *e)
{
    int outer = l->o.block > 0 ? 1 : l->o.hot_samples, inner = l->o.block > 0 ? l->o.hot_samples : 1;
    int64_t begin = l->clock.now_ns(l->clock.self);
    for (int i = 0; i < outer; i++)
        for (int k = 0; k < l->n; k++) {
            measure_side *s = &l->sides[k];
            TPL_TRY(measure_prepare(l, s, e));
            for (int j = 0; j < inner && !s->dead; j++) {
                if (interrupt_seen())
                    return tpl_fail(e, TPL_E_INTERRUPTED, "measuring", "stopped by a signal");
                double spent = (double)(l->clock.now_ns(l->clock.self) - begin) * 1e-9;
                if (s->r->n_hot > 0 && spent > l->o.timeout_s * l->n / 2)
                    break;
                TPL_TRY(take_hot(l, s, e));
            }
            if (l->o.block > 0)
                measure_release(s);
        }
    return TPL_OK;
}
