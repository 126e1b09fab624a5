/* measure.h - the one measuring loop of all benches: verify, warm up, sample, stop, verify again.
 * For:    kernels, latency and speculation benches; one target alone or several that take turns.
 * Enter:  bench/, cli/, tests/.
 * Owns:   measure_run() fills results that own their samples (measure_result_fini()).
 * Fails:  TPL_E_INTERRUPTED after a signal, and whatever a target fails with, except that TPL_E_UNSUPPORTED and
 *         TPL_E_MEMORY end that target only: they become its status.
 *
 * Targets take turns sample by sample (A B A B ...), so that all meet the same state of the machine; or, where they do
 * not fit in memory side by side, in blocks, each prepared and released in turn, and verified before and after its
 * samples in the first block and in the last. The i-th samples of all sides belong together; a sample taken while the
 * clock was low is thrown away together with its partners. Between the two clock readings of a sample nothing happens
 * but the run. The loop allocates before it samples, not while. */
#ifndef TPL_BENCH_MEASURE_H
#define TPL_BENCH_MEASURE_H

#include <stdint.h>
#include <stdio.h>

#include "base/error.h"
#include "bench/stats.h"
#include "results/schema.h"

/* Where time comes from. */
typedef struct {
    int64_t (*now_ns)(void *self);
    double (*mhz)(void *self); /* speed of the processor; NULL or NaN: cannot be read */
    void *self;
    /* What held the speed down just now, BENCH_... flags. NULL: not known, and a speed below throttle_frac of the best
     * one is taken for throttled. */
    int (*limits)(void *self);
} bench_clock;

/* Too hot or braked: the sample is thrown away. At the power limit: counted; heavy work meets it in ordinary use. */
enum { BENCH_THROTTLED = 1, BENCH_POWER_CAPPED = 2 };

bench_clock bench_real_clock(void);

/* What is measured. Functions that are not needed are NULL; `run` always is. */
typedef struct {
    void *self;
    tpl_code (*prepare)(void *self, tpl_err *e); /* acquires memory, fills inputs */
    void (*release)(void *self);                 /* undoes prepare; called after a failed prepare too */
    tpl_code (*verify)(void *self, int64_t *n_wrong, tpl_err *e); /* output elements outside tolerance */
    tpl_code (*reset)(void *self, tpl_err *e);                    /* before each run, outside its time */
    bool (*make_cold)(void *self); /* takes operands out of the caches; false: cannot be done */
    tpl_code (*run)(void *self, tpl_err *e);
    void (*warmed)(void *self); /* warm-up is over: the runs that follow are samples */
    int32_t units;              /* equal pieces of work in one run; times are per piece. 0: 1 */
} bench_target;

/* Zero means the default in brackets. */
typedef struct {
    int32_t min_samples, max_samples; /* cold samples [20, 400] */
    int32_t hot_samples;              /* back to back [20]; -1: none */
    double stop_ci_frac;              /* half-width of the median's 95% interval at which sampling stops [0.005] */
    double noisy_ci_frac;             /* above it at the end: too_noisy [0.05] */
    double timeout_s;                 /* sampling time a target [2]; four times that for fewer than 6 samples */
    double throttle_frac;             /* clock below this share of the fastest seen: a throttled sample [0.95] */
    int32_t block;                    /* samples a block; 0: take turns sample by sample, else at least 5 */
    const bench_clock *clock;         /* [the real clock] */
} measure_options;

typedef struct {
    double us, mhz; /* mhz NaN: not readable */
    int limits;     /* BENCH_... flags */
    bool hot, kept;
} bench_sample;

/* Where a target's time went, in seconds. */
typedef struct {
    double prepare_s, verify_s, warm_s, sample_s;
    int32_t n_prepared;
} measure_spent;

typedef struct {
    rs_status status; /* ok, wrong_answer, warm_cache, throttled, too_noisy, unsupported, out_of_memory */
    char reason[256];
    const char *stop_reason; /* "noise", "count", "timeout"; "" where nothing was sampled */
    int64_t n_wrong;         /* the larger of both verifications */
    bench_sample *all;       /* [n_all] in order of taking */
    int32_t n_all;
    double *cold_us; /* [n_cold] kept samples; the i-th of all sides belong together */
    int32_t n_cold, n_discarded;
    int32_t n_power_capped; /* of the kept ones */
    double *hot_us;         /* [n_hot] */
    int32_t n_hot;
    bstat_summary cold, hot;
    double clock_mhz; /* median; NaN where it cannot be read */
    measure_spent spent;
} measure_result;

/* results[n]; on failure they hold what was sampled and still need measure_result_fini(). */
tpl_code measure_run(const bench_target *targets, int n, const measure_options *o, measure_result *results, tpl_err *e);
void measure_result_fini(measure_result *r);

/* What the clock and the loop add to a sample: the median of samples of nothing, in us. */
tpl_code measure_overhead(double *us, tpl_err *e);

/* Appends one CSV line a sample: cell_id, mode (cold or hot), index, time_us, clock_mhz, kept. The header goes first
 * into an empty file. */
tpl_code measure_write_samples(FILE *f, const char *cell_id, const measure_result *r, tpl_err *e);

#endif
