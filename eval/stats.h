/* stats.h - numbers over items and over logits: means, perplexity, divergence, paired differences.
 * For:    aggregates of an evaluation; pure functions, accumulated in double, in order.
 * Enter:  eval/, cli/.
 * Owns:   nothing.
 * Fails:  never; where a figure does not exist (a standard error of one item) the function says so. */
#ifndef TPL_EVAL_STATS_H
#define TPL_EVAL_STATS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Lowest index of the maximum; the first NaN wins over any number (numpy). n >= 1. */
size_t stat_argmax(const double *x, size_t n);
size_t stat_argmax_f32(const float *x, size_t n);

double stat_mean(const double *x, size_t n); /* NaN for n = 0 */
/* Standard error of the mean, sample deviation / sqrt(n); false and *out left alone for n <= 1. */
bool stat_stderr(const double *x, size_t n, double *out);

/* exp of the mean negative log-likelihood in nats, that mean held at `cap_nats` (30 in the bundled protocol,
 * INFINITY for none). */
double stat_perplexity(double sum_nll_nats, int64_t n_tok, double cap_nats);

/* ---- logits [n] of one position ---- */

/* What turns a logit x into a log-probability: (x - top) - log_sum, in this order, so that large logits keep their
 * differences. */
typedef struct {
    double top, log_sum;
} stat_normaliser;

stat_normaliser stat_normalise(const float *logits, size_t n);
double stat_log_prob_of(float logit, stat_normaliser z);
double stat_log_prob(const float *logits, size_t n, size_t target); /* log-softmax at target, nats */

typedef struct {
    double kl_nats; /* KL(p || q) of the two softmax distributions */
    bool top1_same; /* both have their maximum at one index */
} stat_divergence;

stat_divergence stat_compare_rows(const float *p_logits, const float *q_logits, size_t n);

/* ---- the same items under two variants ---- */

typedef struct {
    int64_t n, n_won, n_lost; /* items whose score rose, fell */
    double mean_diff;         /* variant - base; NaN for n = 0 */
    double diff_lo, diff_hi;  /* 95% interval, normal; NaN for n <= 1 */
    double p;                 /* exact McNemar test, two-sided */
} stat_paired;

stat_paired stat_pair(const double *base, const double *variant, size_t n);

/* Two-sided exact McNemar test: how likely a split at least as uneven as won : lost is under fair coins. 1 if both are
 * 0. */
double stat_mcnemar_p(int64_t n_won, int64_t n_lost);

#endif
