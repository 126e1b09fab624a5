/* measure_impl.h - the inside of the measuring loop: how what was sampled is judged.
 * For:    measure.c (the loop) and measure_judge.c.  Enter: those two files.
 * Owns:   nothing.  Fails: never. */
#ifndef TPL_BENCH_MEASURE_IMPL_H
#define TPL_BENCH_MEASURE_IMPL_H

#include "bench/measure.h"

/* Below this many samples there is no interval; slow targets get this many timeouts to take them. */
enum { MEASURE_FEWEST = 6, MEASURE_SLOW_TIMEOUTS = 4 };

/* Medians, quartiles, the clock, of the samples that were kept. */
void measure_summarise(measure_result *r);
/* The status of a target that was sampled to the end. knows_limits: the clock says itself what held it down. */
void measure_judge(const measure_options *o, bool knows_limits, double best_mhz, bool warm_cache, measure_result *r);

#endif
