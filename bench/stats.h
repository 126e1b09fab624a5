/* stats.h - numbers over timing samples: quantiles, spread, ratios with an interval, the machine's noise floor.
 * For:    the measuring loop, comparisons, rows.
 * Enter:  bench/, cli/, tests/.
 * Owns:   nothing; scratch is allocated and freed inside.
 * Fails:  never; a figure that does not exist (a percentile of too few samples) is NaN. */
#ifndef TPL_BENCH_STATS_H
#define TPL_BENCH_STATS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { BSTAT_P99_SAMPLES = 200 }; /* below this count a 99th percentile is not reported */

/* Quantile p in [0, 1] of ascending values by linear interpolation (type 7 of Hyndman and Fan; numpy's default).
 * NaN for n = 0. */
double bstat_quantile(const double *sorted, size_t n, double p);
double bstat_median(const double *x, size_t n); /* any order */

typedef struct {
    size_t n;
    double min, q1, median, q3, max;
    double p90;
    double p99;      /* NaN below BSTAT_P99_SAMPLES */
    double iqr_frac; /* (q3 - q1) / median */
    double ci_frac;  /* half-width of a 95% interval of the median over the median; INFINITY below 6 samples */
} bstat_summary;

/* The interval of the median is the distribution-free one between two order statistics. */
bstat_summary bstat_summarise(const double *x, size_t n);

typedef struct {
    double ratio;  /* median of base / median of other: above 1 `other` is faster */
    double lo, hi; /* 95% interval */
} bstat_ratio;

/* base[i] and other[i] are times of neighbouring samples (A B A B ...). Whole runs of `block` neighbouring pairs are
 * drawn with replacement (1: single pairs), so that what both sides of a pair share, and what a block shares, stays
 * together; the interval is the percentile interval of the ratio over 2,000 draws. The same seed gives the same
 * interval. NaN for n = 0 or where a median is not positive; lo = hi = NaN below 6 draws' worth of blocks. */
bstat_ratio bstat_ratio_of_medians(const double *base, const double *other, size_t n, size_t block, uint64_t seed);

typedef enum { BSTAT_SAME, BSTAT_FASTER, BSTAT_SLOWER } bstat_verdict;

/* What the interval says of `other`: faster where it lies above 1, slower below, else the same. */
bstat_verdict bstat_judge(bstat_ratio r);

/* The largest difference (as a fraction) that a comparison of a thing with itself does not exclude: differences up to
 * it say nothing on this machine. */
double bstat_noise_floor(bstat_ratio aa);

#endif
