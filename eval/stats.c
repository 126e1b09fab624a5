#include "eval/stats.h"

#include <math.h>

#include "eval/exp_sum.h"

size_t stat_argmax(const double *x, size_t n)
{
    size_t best = 0;
    for (size_t i = 0; i < n && !isnan(x[best]); i++)
        if (x[i] > x[best] || isnan(x[i]))
            best = i;
    return best;
}

size_t stat_argmax_f32(const float *x, size_t n)
{
    size_t best = 0;
    for (size_t i = 0; i < n && !isnan(x[best]); i++)
        if (x[i] > x[best] || isnan(x[i]))
            best = i;
    return best;
}

double stat_mean(const double *x, size_t n)
{
    double sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += x[i];
    return sum / (double)n;
}

bool stat_stderr(const double *x, size_t n, double *out)
{
    if (n <= 1)
        return false;
    double mean = stat_mean(x, n), sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += (x[i] - mean) * (x[i] - mean);
    *out = sqrt(sum / (double)(n - 1)) / sqrt((double)n);
    return true;
}

double stat_perplexity(double sum_nll_nats, int64_t n_tok, double cap_nats)
{
    double mean = sum_nll_nats / (double)n_tok;
    return exp(mean > cap_nats ? cap_nats : mean);
}

/* ---- logits ---- */

stat_normaliser stat_normalise(const float *logits, size_t n)
{
    double top = exp_sum_top(logits, n);
    return (stat_normaliser){top, log(exp_sum(logits, n, top))};
}

double stat_log_prob_of(float logit, stat_normaliser z)
{
    return (logit - z.top) - z.log_sum;
}

double stat_log_prob(const float *logits, size_t n, size_t target)
{
    return stat_log_prob_of(logits[target], stat_normalise(logits, n));
}

stat_divergence stat_compare_rows(const float *p_logits, const float *q_logits, size_t n)
{
    stat_normaliser p = stat_normalise(p_logits, n), q = stat_normalise(q_logits, n);
    double kl = 0;
    for (size_t i = 0; i < n; i++) {
        double log_p = stat_log_prob_of(p_logits[i], p);
        if (log_p != -INFINITY) /* 0 log 0 counts as 0 */
            kl += exp(log_p) * (log_p - stat_log_prob_of(q_logits[i], q));
    }
    return (stat_divergence){kl, stat_argmax_f32(p_logits, n) == stat_argmax_f32(q_logits, n)};
}

/* ---- pairs ---- */

double stat_mcnemar_p(int64_t n_won, int64_t n_lost)
{
    int64_t n = n_won + n_lost, k = n_won < n_lost ? n_won : n_lost;
    if (2 * k == n)
        return 1.0;
    int sign;
    long double log_top = lgammal_r((long double)n + 1, &sign) - lgammal_r((long double)k + 1, &sign) -
                          lgammal_r((long double)(n - k) + 1, &sign) - (long double)n * logl(2);
    long double term = 1, sum = 1; /* C(n, i) over C(n, k) for i = k, k - 1, ..., 0 */
    for (int64_t i = k; i > 0 && term > 1e-25L * sum; i--) {
        term *= (long double)i / (long double)(n - i + 1);
        sum += term;
    }
    long double p = 2 * sum * expl(log_top);
    return p < 1 ? (double)p : 1.0;
}

stat_paired stat_pair(const double *base, const double *variant, size_t n)
{
    const double z95 = 1.959963984540054; /* 97.5% quantile of the normal distribution */
    double sum = 0, squares = 0;
    stat_paired r = {.n = (int64_t)n, .diff_lo = NAN, .diff_hi = NAN};
    for (size_t i = 0; i < n; i++) {
        r.n_won += variant[i] > base[i];
        r.n_lost += variant[i] < base[i];
        sum += variant[i] - base[i];
    }
    r.mean_diff = sum / (double)n;
    for (size_t i = 0; i < n; i++) {
        double d = variant[i] - base[i] - r.mean_diff;
        squares += d * d;
    }
    if (n > 1) {
        double half = z95 * sqrt(squares / (double)(n - 1)) / sqrt((double)n);
        r.diff_lo = r.mean_diff - half;
        r.diff_hi = r.mean_diff + half;
    }
    r.p = stat_mcnemar_p(r.n_won, r.n_lost);
    return r;
}
