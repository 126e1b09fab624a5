#include "bench/stats.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/arena.h"
#include "base/rng.h"

enum { DRAWS = 2000, MIN_BLOCKS = 6 };

static int compare_doubles(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double *sorted_copy(const double *x, size_t n)
{
    double *s = tpl_malloc((n + 1) * sizeof *s);
    if (n > 0)
        memcpy(s, x, n * sizeof *s);
    qsort(s, n, sizeof *s, compare_doubles);
    return s;
}

double bstat_quantile(const double *sorted, size_t n, double p)
{
    if (n == 0)
        return NAN;
    double at = p * (double)(n - 1);
    size_t i = (size_t)at;
    if (i + 1 >= n)
        return sorted[n - 1];
    return sorted[i] + (at - (double)i) * (sorted[i + 1] - sorted[i]);
}

double bstat_median(const double *x, size_t n)
{
    double *s = sorted_copy(x, n), median = bstat_quantile(s, n, 0.5);
    free(s);
    return median;
}

/* The order statistics n/2 -+ 1.96 sqrt(n)/2 hold the median between them with 95% (normal form of the binomial). */
static double median_ci_frac(const double *sorted, size_t n, double median)
{
    if (n < MIN_BLOCKS)
        return INFINITY;
    double half = 1.959963984540054 * sqrt((double)n) / 2;
    double lo = floor((double)n / 2 - half), hi = ceil((double)n / 2 + half);
    size_t i = lo > 0 ? (size_t)lo : 0, j = hi < (double)(n - 1) ? (size_t)hi : n - 1;
    return (sorted[j] - sorted[i]) / 2 / median;
}

bstat_summary bstat_summarise(const double *x, size_t n)
{
    double *s = sorted_copy(x, n);
    bstat_summary r = {.n = n};
    r.min = bstat_quantile(s, n, 0);
    r.q1 = bstat_quantile(s, n, 0.25);
    r.median = bstat_quantile(s, n, 0.5);
    r.q3 = bstat_quantile(s, n, 0.75);
    r.max = bstat_quantile(s, n, 1);
    r.p90 = bstat_quantile(s, n, 0.90);
    r.p99 = n >= BSTAT_P99_SAMPLES ? bstat_quantile(s, n, 0.99) : NAN;
    r.iqr_frac = (r.q3 - r.q1) / r.median;
    r.ci_frac = median_ci_frac(s, n, r.median);
    free(s);
    return r;
}

/* ---- the interval of a ratio ---- */

/* One side, prepared so that the median of a draw needs no sorting. */
typedef struct {
    const double *x;
    size_t *order; /* [n] indices by ascending value */
} ranked;

typedef struct {
    double value;
    size_t index;
} ranked_value;

static int compare_ranked(const void *a, const void *b)
{
    const ranked_value *x = a, *y = b;
    if (x->value != y->value)
        return x->value < y->value ? -1 : 1;
    return (x->index > y->index) - (x->index < y->index);
}

static ranked rank_values(const double *x, size_t n)
{
    ranked_value *v = tpl_malloc(n * sizeof *v);
    ranked r = {x, tpl_malloc(n * sizeof(size_t))};
    for (size_t i = 0; i < n; i++)
        v[i] = (ranked_value){x[i], i};
    qsort(v, n, sizeof *v, compare_ranked);
    for (size_t i = 0; i < n; i++)
        r.order[i] = v[i].index;
    free(v);
    return r;
}

/* Median of the sample in which value i stands times[i] times, `total` values in all. */
static double drawn_median(const ranked *r, const unsigned *times, size_t total)
{
    size_t seen = 0, at = 0, low = (total - 1) / 2, high = total / 2;
    while (seen + times[r->order[at]] <= low)
        seen += times[r->order[at++]];
    double first = r->x[r->order[at]];
    while (seen + times[r->order[at]] <= high)
        seen += times[r->order[at++]];
    return (first + r->x[r->order[at]]) / 2;
}

/* Draws as many blocks as there are; gives how many values that makes. The last block may be short. */
static size_t draw_blocks(rng *r, unsigned *times, size_t n, size_t block)
{
    size_t n_blocks = (n + block - 1) / block, total = 0;
    memset(times, 0, n * sizeof *times);
    for (size_t k = 0; k < n_blocks; k++) {
        size_t begin = (size_t)rng_below(r, n_blocks) * block;
        for (size_t i = begin; i < n && i < begin + block; i++, total++)
            times[i]++;
    }
    return total;
}

static void draw_interval(const double *base, const double *other, size_t n, size_t block, uint64_t seed,
                          bstat_ratio *out)
{
    ranked a = rank_values(base, n), b = rank_values(other, n);
    unsigned *times = tpl_malloc(n * sizeof *times);
    double *ratios = tpl_malloc(DRAWS * sizeof *ratios);
    rng r = rng_make(seed, 0);
    for (int d = 0; d < DRAWS; d++) {
        size_t total = draw_blocks(&r, times, n, block);
        ratios[d] = drawn_median(&a, times, total) / drawn_median(&b, times, total);
    }
    qsort(ratios, DRAWS, sizeof *ratios, compare_doubles);
    out->lo = bstat_quantile(ratios, DRAWS, 0.025);
    out->hi = bstat_quantile(ratios, DRAWS, 0.975);
    free(ratios);
    free(times);
    free(a.order);
    free(b.order);
}

bstat_ratio bstat_ratio_of_medians(const double *base, const double *other, size_t n, size_t block, uint64_t seed)
{
    bstat_ratio r = {NAN, NAN, NAN};
    double a = bstat_median(base, n), b = bstat_median(other, n);
    if (!(a > 0 && b > 0))
        return r;
    r.ratio = a / b;
    if (block < 1)
        block = 1;
    if ((n + block - 1) / block >= MIN_BLOCKS)
        draw_interval(base, other, n, block, seed, &r);
    return r;
}

bstat_verdict bstat_judge(bstat_ratio r)
{
    return r.lo > 1 ? BSTAT_FASTER : r.hi < 1 ? BSTAT_SLOWER : BSTAT_SAME;
}

double bstat_noise_floor(bstat_ratio aa)
{
    return fmax(fabs(aa.hi - 1), fabs(1 - aa.lo));
}
