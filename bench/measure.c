#include "bench/measure.h"

#include <assert.h>
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "base/arena.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/text.h"
#include "bench/measure_impl.h"

enum { WARM_WINDOW = 3, WARM_MAX_RUNS = 200, MIN_BLOCK = 5, MIN_BLOCKS = 6 };

/* Warm-up ends when two neighbouring windows agree within this share, or after this share of the timeout. */
static const double warm_change = 0.02, warm_time_share = 0.25;

/* ---- clocks ---- */

static int64_t real_now_ns(void *self)
{
    return clock_ns();
}

static double real_mhz(void *self)
{
    char *text = NULL;
    size_t len;
    double khz;
    if (text_read_file("/sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq", &text, &len, NULL) != TPL_OK)
        return NAN;
    khz = strtod(text, NULL);
    free(text);
    return khz > 0 ? khz / 1000 : NAN;
}

bench_clock bench_real_clock(void)
{
    bool readable = text_is_file("/sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq");
    return (bench_clock){.now_ns = real_now_ns, .mhz = readable ? real_mhz : NULL};
}

/* ---- state ---- */

static measure_options with_defaults(measure_options o)
{
    assert(o.block == 0 || o.block >= MIN_BLOCK);
    o.min_samples = o.min_samples ? o.min_samples : 20;
    o.max_samples = o.max_samples ? o.max_samples : 400;
    o.hot_samples = o.hot_samples ? o.hot_samples : 20;
    o.stop_ci_frac = o.stop_ci_frac > 0 ? o.stop_ci_frac : 0.005;
    o.noisy_ci_frac = o.noisy_ci_frac > 0 ? o.noisy_ci_frac : 0.05;
    o.timeout_s = o.timeout_s > 0 ? o.timeout_s : 2;
    o.throttle_frac = o.throttle_frac > 0 ? o.throttle_frac : 0.95;
    if (o.block > 0 && o.min_samples < MIN_BLOCKS * o.block)
        o.min_samples = MIN_BLOCKS * o.block;
    if (o.max_samples < o.min_samples)
        o.max_samples = o.min_samples;
    return o;
}

static void loop_init(measure_loop *l, const bench_target *targets, int n, const measure_options *o,
                      measure_result *results)
{
    *l = (measure_loop){.o = with_defaults(*o), .n = n, .sides = tpl_calloc((size_t)n, sizeof(measure_side))};
    l->clock = o->clock ? *o->clock : bench_real_clock();
    l->block = l->o.block > 0 ? l->o.block : 1;
    l->max_rounds = 2 * l->o.max_samples;
    int32_t hot = l->o.hot_samples > 0 ? l->o.hot_samples : 0, most = l->max_rounds + l->block;
    for (int i = 0; i < n; i++) {
        results[i] = (measure_result){.status = RS_OK, .stop_reason = "", .clock_mhz = NAN};
        results[i].all = tpl_calloc((size_t)(most + hot), sizeof(bench_sample));
        results[i].cold_us = tpl_calloc((size_t)most, sizeof(double));
        results[i].hot_us = tpl_calloc((size_t)hot + 1, sizeof(double));
        l->sides[i] = (measure_side){.t = &targets[i], .r = &results[i], .hot_batch = 1};
        l->sides[i].turn_us = tpl_calloc((size_t)l->block, sizeof(double));
        l->sides[i].turn_mhz = tpl_calloc((size_t)l->block, sizeof(double));
        l->sides[i].turn_limits = tpl_calloc((size_t)l->block, sizeof(int));
    }
}

void measure_release(measure_side *s)
{
    if (s->prepared && s->t->release)
        s->t->release(s->t->self);
    s->prepared = false;
}

static void loop_fini(measure_loop *l)
{
    for (int i = 0; i < l->n; i++) {
        measure_release(&l->sides[i]);
        free(l->sides[i].turn_us);
        free(l->sides[i].turn_mhz);
        free(l->sides[i].turn_limits);
    }
    free(l->sides);
}

void measure_result_fini(measure_result *r)
{
    free(r->all);
    free(r->cold_us);
    free(r->hot_us);
    r->all = NULL;
    r->cold_us = r->hot_us = NULL;
    r->n_all = r->n_cold = r->n_hot = 0;
}

/* ---- one target's calls ---- */

static void __attribute__((format(printf, 3, 4))) set_status(measure_side *s, rs_status status, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    s->r->status = status;
    vsnprintf(s->r->reason, sizeof s->r->reason, fmt, ap);
    va_end(ap);
}

/* A failure that ends one target only becomes its status; others go on. */
tpl_code measure_absorb(measure_side *s, tpl_code rc, tpl_err *e)
{
    if (rc != TPL_E_UNSUPPORTED && rc != TPL_E_MEMORY)
        return rc;
    set_status(s, rc == TPL_E_MEMORY ? RS_OUT_OF_MEMORY : RS_UNSUPPORTED, "%.90s: %.150s", e->where, e->what);
    measure_release(s);
    s->dead = true;
    return TPL_OK;
}

static double seconds_since(const measure_loop *l, int64_t begin_ns)
{
    return (double)(l->clock.now_ns(l->clock.self) - begin_ns) * 1e-9;
}

tpl_code measure_prepare(measure_loop *l, measure_side *s, tpl_err *e)
{
    if (s->prepared || s->dead)
        return TPL_OK;
    int64_t begin = l->clock.now_ns(l->clock.self);
    s->prepared = true;
    tpl_code rc = s->t->prepare ? measure_absorb(s, s->t->prepare(s->t->self, e), e) : TPL_OK;
    s->r->spent.prepare_s += seconds_since(l, begin);
    s->r->spent.n_prepared++;
    return rc;
}

static tpl_code side_verify(measure_loop *l, measure_side *s, tpl_err *e)
{
    int64_t wrong = 0, begin = l->clock.now_ns(l->clock.self);
    if (s->dead || !s->t->verify)
        return TPL_OK;
    if (interrupt_seen())
        return tpl_fail(e, TPL_E_INTERRUPTED, "measuring", "stopped by a signal");
    TPL_TRY(measure_absorb(s, s->t->verify(s->t->self, &wrong, e), e));
    s->r->spent.verify_s += seconds_since(l, begin);
    if (wrong > s->r->n_wrong)
        s->r->n_wrong = wrong;
    return TPL_OK;
}

/* Time of `runs` runs in a row, in us a unit. Nothing but the runs lies between the two readings. */
tpl_code measure_time_runs(measure_loop *l, measure_side *s, int32_t runs, double *us, tpl_err *e)
{
    const bench_target *t = s->t;
    tpl_code rc = TPL_OK;
    int64_t begin = l->clock.now_ns(l->clock.self);
    for (int32_t i = 0; i < runs && rc == TPL_OK; i++)
        rc = t->run(t->self, e);
    int64_t end = l->clock.now_ns(l->clock.self);
    *us = (double)(end - begin) * 1e-3 / runs / (t->units > 0 ? t->units : 1);
    return rc;
}

tpl_code measure_reset(const measure_side *s, tpl_err *e)
{
    return s->t->reset ? s->t->reset(s->t->self, e) : TPL_OK;
}

/* ---- warm up ---- */

static bool is_stationary(const double *us, int n)
{
    if (n < 2 * WARM_WINDOW)
        return false;
    double before = bstat_median(us + n - 2 * WARM_WINDOW, WARM_WINDOW),
           now = bstat_median(us + n - WARM_WINDOW, WARM_WINDOW);
    return fabs(now - before) <= warm_change * before;
}

static void note_clock(measure_loop *l, double mhz)
{
    if (mhz > l->best_mhz)
        l->best_mhz = mhz;
}

double measure_read_mhz(measure_loop *l)
{
    double mhz = l->clock.mhz ? l->clock.mhz(l->clock.self) : NAN;
    note_clock(l, mhz);
    return mhz;
}

int measure_read_limits(measure_loop *l, double mhz)
{
    if (l->clock.limits)
        return l->clock.limits(l->clock.self);
    return mhz < l->o.throttle_frac * l->best_mhz ? BENCH_THROTTLED : 0;
}

/* In later blocks a side is known to settle and where: two runs bring back what was released, a third one where the
 * second is not yet as its samples are. */
static bool is_back(const measure_side *s, const double *us, int n)
{
    double settled = bstat_median(s->r->cold_us, (size_t)s->r->n_cold);
    return s->was_warm && n >= 2 && us[n - 1] <= (1 + warm_change) * settled;
}

static tpl_code warm_up(measure_loop *l, measure_side *s, tpl_err *e)
{
    double us[WARM_MAX_RUNS];
    int64_t begin = l->clock.now_ns(l->clock.self);
    int most = s->was_warm ? WARM_WINDOW : WARM_MAX_RUNS;
    for (int n = 0; n < most && !is_stationary(us, n) && !is_back(s, us, n) && !s->dead; n++) {
        if (interrupt_seen())
            return tpl_fail(e, TPL_E_INTERRUPTED, "measuring", "stopped by a signal");
        TPL_TRY(measure_reset(s, e));
        TPL_TRY(measure_absorb(s, measure_time_runs(l, s, 1, &us[n], e), e));
        measure_read_mhz(l);
        if (seconds_since(l, begin) > warm_time_share * l->o.timeout_s && n + 1 >= WARM_WINDOW)
            break;
    }
    s->r->spent.warm_s += seconds_since(l, begin);
    s->was_warm = true;
    if (s->t->warmed && !s->dead)
        s->t->warmed(s->t->self);
    return TPL_OK;
}

/* ---- cold samples ---- */

static tpl_code take_turn(measure_loop *l, measure_side *s, tpl_err *e)
{
    int64_t begin = l->clock.now_ns(l->clock.self);
    for (int32_t i = 0; i < l->block && !s->dead; i++) {
        TPL_TRY(measure_reset(s, e));
        if (s->t->make_cold && !s->t->make_cold(s->t->self))
            s->warm_cache = true;
        TPL_TRY(measure_absorb(s, measure_time_runs(l, s, 1, &s->turn_us[i], e), e));
        s->turn_mhz[i] = measure_read_mhz(l);
        s->turn_limits[i] = measure_read_limits(l, s->turn_mhz[i]);
    }
    s->r->spent.sample_s += seconds_since(l, begin);
    return TPL_OK;
}

/* Keeps the i-th samples of all sides, or none of them. */
static void keep_samples(measure_loop *l, int32_t i)
{
    bool keep = true;
    for (int k = 0; k < l->n; k++)
        keep = keep && (l->sides[k].dead || !(l->sides[k].turn_limits[i] & BENCH_THROTTLED));
    for (int k = 0; k < l->n; k++) {
        measure_side *s = &l->sides[k];
        if (s->dead)
            continue;
        s->r->all[s->r->n_all++] = (bench_sample){s->turn_us[i], s->turn_mhz[i], s->turn_limits[i], false, keep};
        s->r->n_power_capped += keep && s->turn_limits[i] & BENCH_POWER_CAPPED;
        if (keep)
            s->r->cold_us[s->r->n_cold++] = s->turn_us[i];
        else
            s->r->n_discarded++;
    }
}

static int32_t n_kept(const measure_loop *l)
{
    for (int k = 0; k < l->n; k++)
        if (!l->sides[k].dead)
            return l->sides[k].r->n_cold;
    return 0;
}

/* No other round follows, unless samples of this one are thrown away. */
static bool is_last_round(const measure_loop *l)
{
    return n_kept(l) + l->block >= l->o.max_samples || l->rounds + l->block >= l->max_rounds;
}

/* A block with all that belongs to it. What is verified before and after samples is the same preparation; it costs one,
 * so it is done in the first block and in the last. */
static tpl_code take_block(measure_loop *l, measure_side *s, tpl_err *e)
{
    bool last = is_last_round(l) && l->o.hot_samples <= 0, check = l->rounds == 0 || last;
    TPL_TRY(measure_prepare(l, s, e));
    if (check)
        TPL_TRY(side_verify(l, s, e));
    if (!s->dead)
        TPL_TRY(warm_up(l, s, e));
    TPL_TRY(take_turn(l, s, e));
    if (check)
        TPL_TRY(side_verify(l, s, e));
    s->verified = last;
    measure_release(s);
    return TPL_OK;
}

static tpl_code take_round(measure_loop *l, tpl_err *e)
{
    for (int k = 0; k < l->n; k++) {
        measure_side *s = &l->sides[k];
        if (s->dead)
            continue;
        TPL_TRY(l->o.block > 0 ? take_block(l, s, e) : take_turn(l, s, e));
    }
    for (int32_t i = 0; i < l->block; i++)
        keep_samples(l, i);
    l->rounds += l->block;
    return TPL_OK;
}

static int n_alive(const measure_loop *l)
{
    int n = 0;
    for (int k = 0; k < l->n; k++)
        n += !l->sides[k].dead;
    return n;
}

static bool all_settled(const measure_loop *l)
{
    for (int k = 0; k < l->n; k++) {
        const measure_side *s = &l->sides[k];
        if (!s->dead && !(bstat_summarise(s->r->cold_us, (size_t)s->r->n_cold).ci_frac <= l->o.stop_ci_frac))
            return false;
    }
    return true;
}

/* NULL while sampling goes on. The spread is looked at ever more seldom, as it changes ever more slowly. */
static const char *stop_reason(const measure_loop *l, int32_t *next_look)
{
    int32_t kept = n_kept(l);
    if (kept >= l->o.min_samples && kept >= *next_look) {
        *next_look = kept + (kept / 8 > 5 ? kept / 8 : 5);
        if (all_settled(l))
            return "noise";
    }
    if (kept >= l->o.max_samples || l->rounds >= l->max_rounds)
        return "count";
    double spent = (double)(l->clock.now_ns(l->clock.self) - l->begin_ns) * 1e-9, limit = l->o.timeout_s * n_alive(l);
    return spent > (kept >= MEASURE_FEWEST ? limit : MEASURE_SLOW_TIMEOUTS * limit) ? "timeout" : NULL;
}

static tpl_code sample_cold(measure_loop *l, tpl_err *e)
{
    const char *why = NULL;
    int32_t next_look = 0;
    l->begin_ns = l->clock.now_ns(l->clock.self);
    while (!why && n_alive(l) > 0) {
        if (interrupt_seen())
            return tpl_fail(e, TPL_E_INTERRUPTED, "measuring", "stopped by a signal");
        TPL_TRY(take_round(l, e));
        why = stop_reason(l, &next_look);
    }
    for (int k = 0; k < l->n; k++)
        if (!l->sides[k].dead)
            l->sides[k].r->stop_reason = why;
    return TPL_OK;
}

/* ---- the whole ---- */

static tpl_code verify_all(measure_loop *l, tpl_err *e)
{
    for (int k = 0; k < l->n; k++) {
        measure_side *s = &l->sides[k];
        if (s->verified)
            continue;
        TPL_TRY(measure_prepare(l, s, e));
        TPL_TRY(side_verify(l, s, e));
        if (l->o.block > 0)
            measure_release(s);
    }
    return TPL_OK;
}

static tpl_code run_phases(measure_loop *l, tpl_err *e)
{
    if (l->o.block == 0)
        TPL_TRY(verify_all(l, e));
    for (int k = 0; k < l->n && l->o.block == 0; k++)
        TPL_TRY(warm_up(l, &l->sides[k], e));
    TPL_TRY(sample_cold(l, e));
    if (l->o.hot_samples > 0)
        TPL_TRY(measure_hot(l, e));
    return verify_all(l, e);
}

tpl_code measure_run(const bench_target *targets, int n, const measure_options *o, measure_result *results, tpl_err *e)
{
    tpl_err own = {0};
    measure_loop l;
    loop_init(&l, targets, n, o, results);
    tpl_code rc = run_phases(&l, e ? e : &own);
    for (int k = 0; k < n; k++) {
        measure_side *s = &l.sides[k];
        measure_summarise(s->r);
        if (!s->dead)
            measure_judge(&l.o, l.clock.limits != NULL, l.best_mhz, s->warm_cache, s->r);
    }
    loop_fini(&l);
    return rc;
}

static tpl_code run_nothing(void *self, tpl_err *e)
{
    return TPL_OK;
}

tpl_code measure_overhead(double *us, tpl_err *e)
{
    bench_target empty = {.run = run_nothing};
    measure_options o = {.min_samples = 400, .hot_samples = -1};
    measure_result r;
    tpl_code rc = measure_run(&empty, 1, &o, &r, e);
    *us = r.cold.median;
    measure_result_fini(&r);
    return rc;
}
