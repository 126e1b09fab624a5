/* Expected values: upstream harnesses (tests/data/metric-vectors.jsonl), or exact rational and 50-digit arithmetic. */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <math.h>
#include <stdlib.h>

#include "eval/exp_sum.h"
#include "eval/stats.h"
#include "tests/vectors.h"

static bool is_near(double got, double want)
{
    return fabs(got - want) <= 1e-12 * fmax(1, fabs(want));
}

static void check_mean(const json_t *v)
{
    const json_t *x = json_object_get(v, "prediction"), *want = json_object_get(v, "expected");
    size_t n = json_is_array(x) ? json_array_size(x) : (size_t)vectors_number(x, "n");
    double *values = calloc(n, sizeof *values), error = -1;
    for (size_t i = 0; i < n; i++)
        values[i] = json_is_array(x) ? json_number_value(json_array_get(x, i)) : i < vectors_number(x, "ones");
    cr_expect(is_near(stat_mean(values, n), vectors_number(want, "mean")));
    cr_expect(stat_stderr(values, n, &error));
    cr_expect(is_near(error, vectors_number(want, "stderr")), "%.17g", error);
    free(values);
}

Test(stats, mean_and_standard_error_match_upstream)
{
    cr_expect(eq(int, vectors_each("metric-vectors.jsonl", "mean_and_stderr", check_mean), 4));
}

Test(stats, one_item_has_no_standard_error)
{
    double x = 3, error = -1;
    cr_expect(not(stat_stderr(&x, 1, &error)));
    cr_expect(not(stat_stderr(&x, 0, &error)));
    cr_expect(error == -1);
    cr_expect(stat_mean(&x, 1) == 3);
    cr_expect(isnan(stat_mean(&x, 0)));
}

Test(stats, argmax_takes_the_lowest_index_and_the_first_nan)
{
    static const struct {
        double x[4];
        size_t want;
    } cases[] = {{{1, 3, 3, 2}, 1},
                 {{-INFINITY, -INFINITY, -INFINITY, -INFINITY}, 0},
                 {{1, NAN, INFINITY, NAN}, 1},
                 {{NAN, 9, 9, 9}, 0},
                 {{-4, -3, -2, -1}, 3}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        float f[4];
        for (int j = 0; j < 4; j++)
            f[j] = (float)cases[i].x[j];
        cr_expect(eq(sz, stat_argmax(cases[i].x, 4), cases[i].want), "case %zu", i);
        cr_expect(eq(sz, stat_argmax_f32(f, 4), cases[i].want), "case %zu", i);
    }
}

Test(stats, perplexity_is_the_exponential_of_the_mean)
{
    cr_expect(is_near(stat_perplexity(4 * log(3.0), 4, INFINITY), 3));
    cr_expect(is_near(stat_perplexity(100, 2, 30), exp(30)));
    cr_expect(is_near(stat_perplexity(100, 2, INFINITY), exp(50)));
    cr_expect(isnan(stat_perplexity(NAN, 2, 30)));
}

static const float P[] = {0.5f, -1.25f, 3.0f, 2.75f}, Q[] = {1.0f, 0.0f, 2.5f, 3.5f};

Test(stats, log_probabilities_and_divergence_match_50_digits)
{
    cr_expect(is_near(stat_log_prob(P, 4, 1), -4.8786886645441738));
    stat_divergence d = stat_compare_rows(P, Q, 4);
    cr_expect(is_near(d.kl_nats, 0.18721638880968539), "%.17g", d.kl_nats);
    cr_expect(not(d.top1_same));
    d = stat_compare_rows(P, P, 4);
    cr_expect(d.kl_nats == 0);
    cr_expect(d.top1_same);
}

Test(stats, large_logits_do_not_overflow)
{
    static const float big[] = {1e30f, 1e30f}, shifted[] = {1000.5f, 998.75f, 1003.0f, 1002.75f};
    cr_expect(is_near(stat_log_prob(big, 2, 0), -log(2.0)));
    cr_expect(is_near(stat_log_prob(shifted, 4, 1), -4.8786886645441738));
}

Test(stats, impossible_tokens_follow_the_limits)
{
    static const float two[] = {0, 0, -INFINITY}, three[] = {0, 0, 0}, bad[] = {0, NAN, 0};
    cr_expect(is_near(stat_compare_rows(two, three, 3).kl_nats, log(1.5)));
    cr_expect(stat_compare_rows(three, two, 3).kl_nats == INFINITY);
    cr_expect(is_near(stat_compare_rows(two, two, 3).kl_nats, 0));
    cr_expect(isnan(stat_compare_rows(bad, three, 3).kl_nats));
    cr_expect(isnan(stat_compare_rows(three, bad, 3).kl_nats));
}

Test(stats, mcnemar_is_exact)
{
    static const struct {
        int64_t won, lost;
        double p;
    } cases[] = {
        {0, 0, 1},
        {0, 1, 1},
        {0, 5, 0.0625},
        {1, 5, 0.21875},
        {6, 17, 0.034689664840698242},
        {15, 34, 0.0093992415238730587},
        {49, 68, 0.095672715009604559},
        {42, 45, 0.83037300968575378},
        {3, 3, 1},
        {1000, 1100, 0.030720707864242296},
        {400000, 401500, 0.094059028062380354},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        double p = stat_mcnemar_p(cases[i].won, cases[i].lost);
        cr_expect(fabs(p / cases[i].p - 1) <= 1e-10, "%zu: %.17g, expected %.17g", i, p, cases[i].p);
        cr_expect(stat_mcnemar_p(cases[i].lost, cases[i].won) == p);
    }
}

Test(stats, pairs_count_who_won_and_who_lost)
{
    /* differences 1 1 -1 0 1: mean 0.4, sample deviation sqrt(0.8), half width 1.96 sqrt(0.8 / 5) */
    static const double base[] = {0, 0, 1, 1, 0}, variant[] = {1, 1, 0, 1, 1};
    stat_paired r = stat_pair(base, variant, 5);
    cr_expect(eq(i64, r.n, 5));
    cr_expect(eq(i64, r.n_won, 3));
    cr_expect(eq(i64, r.n_lost, 1));
    cr_expect(is_near(r.mean_diff, 0.4));
    cr_expect(is_near(r.diff_lo, 0.4 - 1.959963984540054 * 0.4));
    cr_expect(is_near(r.diff_hi, 0.4 + 1.959963984540054 * 0.4));
    cr_expect(is_near(r.p, 0.625)); /* 2 (1 + 4) / 16 */
    r = stat_pair(base, variant, 1);
    cr_expect(isnan(r.diff_lo) && isnan(r.diff_hi) && r.p == 1);
    cr_expect(isnan(stat_pair(base, variant, 0).mean_diff));
}

/* Against the C library in long double: every length up to some vectors, from the top down to where terms vanish. */
Test(stats, exponential_sums_of_any_length)
{
    enum { N = 83 };
    float x[N];
    for (int n = 1; n <= N; n++)
        for (int scale = 1; scale <= 1000; scale *= 10) {
            long double want = 0;
            float top = -INFINITY;
            for (int i = 0; i < n; i++) {
                x[i] = (float)scale * sinf((float)(i * 7 + n));
                top = x[i] > top ? x[i] : top;
            }
            for (int i = 0; i < n; i++)
                want += expl((long double)x[i] - top);
            cr_assert(exp_sum_top(x, (size_t)n) == top);
            double got = exp_sum(x, (size_t)n, top);
            cr_assert(fabsl(got - want) <= 4e-16L * want, "n %d, scale %d: %.17g, expected %.17Lg", n, scale, got, want);
        }
}

/* One value at a time: within 2 units of the last place, and what overflows or vanishes. */
Test(stats, exponentials_of_one_value)
{
    for (int i = 0; i < 200000; i++) {
        float x = -(float)i * (707.f / 200000);
        double got = exp_sum(&x, 1, 0), want = (double)expl(x);
        cr_assert(fabs(got - want) <= 2 * (nextafter(want, 2) - want), "e^%.9g is %.17g, expected %.17g", (double)x, got, want);
    }
    float far[] = {-709, -1e30f, -INFINITY, 0};
    cr_assert(exp_sum(far, 4, 0) == 1);
    float bad[] = {1, 2, NAN, 3};
    cr_assert(isnan(exp_sum_top(bad, 4)) && isnan(exp_sum(bad, 4, 3)));
    cr_assert(isnan(exp_sum((float[]){-INFINITY, -INFINITY}, 2, -INFINITY)));
}
