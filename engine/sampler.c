#define _GNU_SOURCE
#include "engine/sampler.h"

#include <math.h>
#include <stdlib.h>

#include "base/arena.h"

int32_t sampler_argmax(const float *logits, int n)
{
    int32_t best = -1;
    for (int32_t i = 0; i < n; i++)
        if (!isnan(logits[i]) && (best < 0 || logits[i] > logits[best]))
            best = i;
    return best < 0 ? 0 : best;
}

static int by_falling_value(const void *a, const void *b, void *prob)
{
    int32_t i = *(const int32_t *)a, j = *(const int32_t *)b;
    const float *p = prob;
    if (p[i] != p[j])
        return p[i] > p[j] ? -1 : 1;
    return i < j ? -1 : 1;
}

/* Zeroes everything outside the nucleus and rescales the rest to sum 1. */
static void cut_to_top_p(int n, float top_p, float *prob, int32_t *order)
{
    for (int32_t i = 0; i < n; i++)
        order[i] = i;
    qsort_r(order, (size_t)n, sizeof *order, by_falling_value, prob);
    double mass = prob[order[0]];
    int keep = 1;
    while (keep < n && mass < top_p)
        mass += prob[order[keep++]];
    for (int i = keep; i < n; i++)
        prob[order[i]] = 0;
    for (int i = 0; i < keep; i++)
        prob[order[i]] = (float)(prob[order[i]] / mass);
}

void sampler_probabilities(const float *logits, int n, float temperature, float top_p, float *prob, int32_t *order)
{
    int32_t best = sampler_argmax(logits, n);
    double most = logits[best], sum = 0;
    for (int i = 0; i < n; i++) {
        double x = isnan(logits[i]) ? 0 : exp((logits[i] - most) / temperature);
        if (!isfinite(most)) /* nothing to weigh against: all on the one */
            x = i == best;
        prob[i] = (float)x;
        sum += x;
    }
    for (int i = 0; i < n; i++)
        prob[i] = (float)(prob[i] / sum);
    if (top_p < 1)
        cut_to_top_p(n, top_p, prob, order);
}

void sampler_init(sampler *s, int vocab, float temperature, float top_p, uint64_t seed)
{
    *s = (sampler){.temperature = temperature, .top_p = top_p, .r = rng_make(seed, 0), .vocab = vocab};
    s->prob = tpl_calloc((size_t)vocab, sizeof *s->prob);
    s->order = tpl_calloc((size_t)vocab, sizeof *s->order);
}

void sampler_fini(sampler *s)
{
    free(s->prob);
    free(s->order);
}

int32_t sampler_next(sampler *s, const float *logits)
{
    if (s->temperature <= 0)
        return sampler_argmax(logits, s->vocab);
    sampler_probabilities(logits, s->vocab, s->temperature, s->top_p, s->prob, s->order);
    double at = rng_uniform(&s->r), sum = 0;
    int32_t last = 0;
    for (int32_t i = 0; i < s->vocab; i++) {
        if (s->prob[i] <= 0)
            continue;
        sum += s->prob[i];
        last = i;
        if (at < sum)
            return i;
    }
    return last;
}
