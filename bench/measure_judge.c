/* What the samples say: summaries, the status of a target, samples as a file. */
#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "base/arena.h"
#include "bench/measure_impl.h"
#include "results/real_text.h"

/* More discarded samples than this share: throttled. */
static const double discarded_share = 0.25;

void measure_summarise(measure_result *r)
{
    double *mhz = tpl_malloc(((size_t)r->n_all + 1) * sizeof *mhz);
    size_t n = 0;
    for (int32_t i = 0; i < r->n_all; i++)
        if (r->all[i].kept && !isnan(r->all[i].mhz))
            mhz[n++] = r->all[i].mhz;
    r->clock_mhz = bstat_median(mhz, n);
    r->cold = bstat_summarise(r->cold_us, (size_t)r->n_cold);
    r->hot = bstat_summarise(r->hot_us, (size_t)r->n_hot);
    free(mhz);
}

static void __attribute__((format(printf, 3, 4))) say(measure_result *r, rs_status status, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    r->status = status;
    vsnprintf(r->reason, sizeof r->reason, fmt, ap);
    va_end(ap);
}

static void say_throttled(const measure_options *o, bool knows_limits, double best_mhz, measure_result *r)
{
    int32_t all = r->n_cold + r->n_discarded;
    if (knows_limits)
        say(r, RS_THROTTLED, "heat, power brake or hardware held the clock down in %d of %d samples", r->n_discarded, all);
    else
        say(r, RS_THROTTLED, "clock below %g of %.0f MHz in %d of %d samples", o->throttle_frac, best_mhz, r->n_discarded,
            all);
}

void measure_judge(const measure_options *o, bool knows_limits, double best_mhz, bool warm_cache, measure_result *r)
{
    if (r->n_wrong > 0)
        say(r, RS_WRONG_ANSWER, "%lld output elements differ from the reference", (long long)r->n_wrong);
    else if (warm_cache)
        say(r, RS_WARM_CACHE, "operands could not be taken out of the caches");
    else if (r->n_discarded > discarded_share * (r->n_cold + r->n_discarded))
        say_throttled(o, knows_limits, best_mhz, r);
    else if (r->n_cold < MEASURE_FEWEST)
        say(r, RS_TOO_NOISY, "%d samples before the %s of %d times %g s, expected at least %d", r->n_cold, r->stop_reason,
            MEASURE_SLOW_TIMEOUTS, o->timeout_s, MEASURE_FEWEST);
    else if (r->cold.ci_frac > o->noisy_ci_frac)
        say(r, RS_TOO_NOISY, "median known to +-%.1f%% when the %s ended sampling, expected +-%.1f%%", 100 * r->cold.ci_frac,
            r->stop_reason, 100 * o->noisy_ci_frac);
}

/* ---- samples as a file ---- */

tpl_code measure_write_samples(FILE *f, const char *cell_id, const measure_result *r, tpl_err *e)
{
    if (ftell(f) == 0)
        fputs("cell_id,mode,index,time_us,clock_mhz,kept\n", f);
    for (int32_t i = 0; i < r->n_all; i++) {
        const bench_sample *s = &r->all[i];
        fprintf(f, "%s,%s,%d,%s,%s,%d\n", cell_id, s->hot ? "hot" : "cold", i, real_to_text(s->us).s,
                isnan(s->mhz) ? "" : real_to_text(s->mhz).s, s->kept);
    }
    if (fflush(f) != 0)
        return tpl_fail(e, TPL_E_IO, "samples", "cannot write: %s", strerror(errno));
    return TPL_OK;
}
