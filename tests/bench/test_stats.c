/* Quantiles: numpy.quantile(x, p) of the same values. Ratios: synthetic samples whose true ratio is known. */
#include "bench/stats.h"

#include <criterion/criterion.h>
#include <math.h>

#include "base/rng.h"

TestSuite(stats);

static bool near(double a, double b)
{
    return fabs(a - b) <= 1e-12 * fmax(1, fabs(b));
}

/* ---- one sample ---- */

Test(stats, quantiles_interpolate_as_numpy_does)
{
    static const struct {
        double x[5];
        size_t n;
        double p, expected;
    } cases[] = {
        {{1, 2, 3, 4}, 4, 0.5, 2.5},
        {{1, 2, 3, 4}, 4, 0.25, 1.75},
        {{1, 2, 3, 4}, 4, 0.99, 3.97},
        {{1, 2, 4, 8, 16}, 5, 0.9, 12.8},
        {{1, 2, 4, 8, 16}, 5, 0, 1},
        {{1, 2, 4, 8, 16}, 5, 1, 16},
        {{7}, 1, 0.99, 7},
        {{1, 10}, 2, 0.1, 1.9},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        double got = bstat_quantile(cases[i].x, cases[i].n, cases[i].p);
        cr_expect(near(got, cases[i].expected), "case %zu: %g, expected %g", i, got, cases[i].expected);
    }
    cr_expect(isnan(bstat_quantile(NULL, 0, 0.5)));
}

Test(stats, a_summary_sorts_and_measures_spread)
{
    const double x[] = {5, 1, 4, 2, 3, 9};
    bstat_summary s = bstat_summarise(x, 6);
    cr_expect(s.n == 6 && s.min == 1 && s.max == 9);
    cr_expect(near(s.median, 3.5) && near(s.q1, 2.25) && near(s.q3, 4.75));
    cr_expect(near(s.iqr_frac, 2.5 / 3.5));
    cr_expect(x[0] == 5, "the samples stay in order");
    cr_expect(isinf(bstat_summarise(x, 5).ci_frac), "5 samples hold no 95%% interval");
    cr_expect(isnan(bstat_summarise(x, 0).median));
}

Test(stats, p99_needs_200_samples)
{
    double x[200];
    for (int i = 0; i < 200; i++)
        x[i] = i + 1;
    cr_expect(isnan(bstat_summarise(x, 199).p99));
    cr_expect(near(bstat_summarise(x, 200).p99, 198.01));
}

/* ---- two sides ---- */

enum { MAX_PAIRS = 100, TRIALS = 1000 };

typedef struct {
    double base[MAX_PAIRS], other[MAX_PAIRS];
} pairs;

typedef enum { EVEN, ONE_SIDED, BURSTS, DRIFT } noise_kind;

static double noise(rng *r, noise_kind kind)
{
    double e = 0.01 * rng_normal(r);
    if (kind == ONE_SIDED) /* interrupts only ever add time */
        return fabs(e) + (rng_uniform(r) < 0.1 ? 0.3 * rng_uniform(r) : 0);
    return e;
}

/* What both samples of a pair meet: another process for eight pairs, or a clock that sinks by a tenth. */
static double shared(rng *r, noise_kind kind, int i, int n, int *burst)
{
    if (kind == DRIFT)
        return 1 + 0.1 * i / n;
    if (kind != BURSTS)
        return 1;
    if (*burst == 0 && rng_uniform(r) < 0.05)
        *burst = 8;
    return *burst > 0 && (*burst)-- ? 1.4 : 1;
}

/* base takes 100 us, other 100 / truth. */
static void draw_pairs(pairs *p, int n, double truth, noise_kind kind, uint64_t trial)
{
    rng r = rng_make(20240611 + (uint64_t)kind, trial);
    int burst = 0;
    for (int i = 0; i < n; i++) {
        double both = shared(&r, kind, i, n, &burst);
        p->base[i] = 100 * both * (1 + noise(&r, kind));
        p->other[i] = 100 / truth * both * (1 + noise(&r, kind));
    }
}

typedef struct {
    double covered, faster, slower; /* share of trials */
} trial_shares;

static trial_shares run_trials(int n, double truth, noise_kind kind)
{
    trial_shares s = {0};
    pairs p;
    for (int t = 0; t < TRIALS; t++) {
        draw_pairs(&p, n, truth, kind, (uint64_t)t);
        bstat_ratio r = bstat_ratio_of_medians(p.base, p.other, (size_t)n, 1, (uint64_t)t);
        s.covered += (r.lo <= truth && truth <= r.hi) / (double)TRIALS;
        s.faster += (bstat_judge(r) == BSTAT_FASTER) / (double)TRIALS;
        s.slower += (bstat_judge(r) == BSTAT_SLOWER) / (double)TRIALS;
    }
    return s;
}

Test(stats, intervals_hold_the_truth_95_times_in_100)
{
    static const struct {
        int n;
        double truth;
        noise_kind kind;
    } cases[] = {{20, 1, EVEN}, {60, 1.25, EVEN}, {100, 0.9, EVEN}, {40, 1, ONE_SIDED}, {100, 1.1, ONE_SIDED}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        trial_shares s = run_trials(cases[i].n, cases[i].truth, cases[i].kind);
        cr_expect(s.covered >= 0.93 && s.covered <= 0.97, "case %zu: %.3f", i, s.covered);
    }
}

/* Noise that both sides share widens the interval of each median more than that of their ratio: the interval may hold
 * the truth more often than it says, never less. */
Test(stats, shared_noise_never_makes_intervals_too_narrow)
{
    cr_expect(run_trials(60, 1, BURSTS).covered >= 0.93);
    cr_expect(run_trials(60, 1, DRIFT).covered >= 0.93);
}

Test(stats, equal_sides_are_called_faster_at_most_5_times_in_100)
{
    for (int kind = EVEN; kind <= DRIFT; kind++) {
        trial_shares s = run_trials(40, 1, (noise_kind)kind);
        cr_expect(s.faster <= 0.05 && s.slower <= 0.05, "kind %d: faster %.3f slower %.3f", kind, s.faster, s.slower);
    }
}

Test(stats, a_slowdown_of_3_percent_under_1_percent_noise_is_found)
{
    trial_shares s = run_trials(30, 1 / 1.03, EVEN);
    cr_expect(s.slower >= 0.95, "found %.3f", s.slower);
    cr_expect(s.faster == 0);
}

/* Blocks whose level changes from one to the next (another process came and went between the blocks of the two sides).
 */
Test(stats, blocks_are_drawn_whole)
{
    enum { BLOCK = 5, N = 60 };
    int covered = 0, naive = 0;
    for (int t = 0; t < TRIALS; t++) {
        rng r = rng_make(99, (uint64_t)t);
        double a[N], b[N], level_a = 1, level_b = 1;
        for (int i = 0; i < N; i++) {
            level_a = i % BLOCK ? level_a : 1 + 0.03 * rng_normal(&r);
            level_b = i % BLOCK ? level_b : 1 + 0.03 * rng_normal(&r);
            a[i] = level_a * (1 + 0.002 * rng_normal(&r));
            b[i] = level_b * (1 + 0.002 * rng_normal(&r));
        }
        bstat_ratio whole = bstat_ratio_of_medians(a, b, N, BLOCK, (uint64_t)t);
        bstat_ratio single = bstat_ratio_of_medians(a, b, N, 1, (uint64_t)t);
        covered += whole.lo <= 1 && 1 <= whole.hi;
        naive += single.lo <= 1 && 1 <= single.hi;
    }
    cr_expect(covered >= 0.90 * TRIALS, "%d of %d", covered, TRIALS);
    cr_expect(naive < covered - TRIALS / 10, "single pairs would claim too much: %d against %d", naive, covered);
}

Test(stats, ratios_repeat_and_refuse_nonsense)
{
    pairs p;
    draw_pairs(&p, 40, 1, EVEN, 5);
    bstat_ratio a = bstat_ratio_of_medians(p.base, p.other, 40, 1, 3),
                b = bstat_ratio_of_medians(p.base, p.other, 40, 1, 3);
    cr_expect(a.lo == b.lo && a.hi == b.hi && a.lo < a.ratio && a.ratio < a.hi);
    bstat_ratio few = bstat_ratio_of_medians(p.base, p.other, 5, 1, 3);
    cr_expect(!isnan(few.ratio) && isnan(few.lo) && bstat_judge(few) == BSTAT_SAME);
    bstat_ratio blocks = bstat_ratio_of_medians(p.base, p.other, 25, 5, 3);
    cr_expect(isnan(blocks.hi), "five blocks are too few");
    p.other[0] = p.other[1] = 0;
    cr_expect(isnan(bstat_ratio_of_medians(p.base, p.other, 3, 1, 3).ratio));
    cr_expect(isnan(bstat_ratio_of_medians(NULL, NULL, 0, 1, 3).ratio));
}

Test(stats, noise_floor_is_the_widest_difference_not_excluded)
{
    cr_expect(near(bstat_noise_floor((bstat_ratio){1.001, 0.99, 1.004}), 0.01));
    cr_expect(near(bstat_noise_floor((bstat_ratio){1.02, 1.01, 1.03}), 0.03));
    pairs p;
    draw_pairs(&p, 100, 1, EVEN, 1);
    double floor_ = bstat_noise_floor(bstat_ratio_of_medians(p.base, p.other, 100, 1, 1));
    cr_expect(floor_ > 0 && floor_ < 0.01, "1%% noise over 100 pairs: %g", floor_);
}
