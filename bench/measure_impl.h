/* measure_impl.h - the inside of the measuring loop.
 * For:    measure.c (the loop), measure_hot.c, measure_judge.c.  Enter: those files.
 * Owns:   nothing.  Fails: never. */
#ifndef TPL_BENCH_MEASURE_IMPL_H
#define TPL_BENCH_MEASURE_IMPL_H

#include "bench/measure.h"

/* Below this many samples there is no interval; slow targets get this many timeouts to take them. */
enum { MEASURE_FEWEST = 6, MEASURE_SLOW_TIMEOUTS = 4 };

typedef struct {
    const bench_target *t;
    measure_result *r;
    bool prepared, dead; /* dead: its status is final, it takes no more turns */
    bool was_warm;       /* warmed up in an earlier block */
    bool verified;       /* after its last sample */
    bool warm_cache;
    double *turn_us, *turn_mhz; /* [block] this turn's samples */
    int *turn_limits;           /* [block] */
    int32_t hot_batch;
} measure_side;

typedef struct {
    measure_options o;
    bench_clock clock;
    measure_side *sides;
    int n;
    int32_t block;   /* samples a turn */
    double best_mhz; /* the fastest clock seen */
    int64_t begin_ns;
    int32_t rounds, max_rounds;
} measure_loop;

/* ---- measure.c: one target's calls ---- */

/* A failure that ends one target only becomes its status; others go on. */
tpl_code measure_absorb(measure_side *s, tpl_code rc, tpl_err *e);
tpl_code measure_prepare(measure_loop *l, measure_side *s, tpl_err *e);
void measure_release(measure_side *s);
tpl_code measure_reset(const measure_side *s, tpl_err *e);
/* Time of `runs` runs in a row, in us a unit. Nothing but the runs lies between the two readings. */
tpl_code measure_time_runs(measure_loop *l, measure_side *s, int32_t runs, double *us, tpl_err *e);
double measure_read_mhz(measure_loop *l);
int measure_read_limits(measure_loop *l, double mhz);

/* ---- measure_hot.c ---- */

/* Hot samples take half of the time that cold ones may, and take turns like them, except that in blocks a side takes
 * all of its hot samples at once. */
tpl_code measure_hot(measure_loop *l, tpl_err *e);

/* ---- measure_judge.c ---- */

/* Medians, quartiles, the clock, of the samples that were kept. */
void measure_summarise(measure_result *r);
/* The status of a target that was sampled to the end. knows_limits: the clock says itself what held it down. */
void measure_judge(const measure_options *o, bool knows_limits, double best_mhz, bool warm_cache, measure_result *r);

#endif
