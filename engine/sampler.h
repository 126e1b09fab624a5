/* sampler.h - the next token from logits: greedy, or by temperature and top-p with a seeded generator.
 * For:    generate.c, speculation.  Enter: engine/, eval/, bench/, cli/, tests/.
 * Owns:   sampler_init() owns scratch of the vocabulary's size (sampler_fini).
 * Fails:  never; logits that are all NaN or -inf give token 0. */
#ifndef TPL_ENGINE_SAMPLER_H
#define TPL_ENGINE_SAMPLER_H

#include <stdint.h>

#include "base/rng.h"

typedef struct {
    float temperature; /* 0: greedy, the lowest index among equal maxima */
    float top_p;       /* keep the smallest set of likeliest tokens whose mass reaches it; 1: all */
    rng r;
    int32_t vocab;
    float *prob;    /* [vocab] */
    int32_t *order; /* [vocab] */
} sampler;

void sampler_init(sampler *s, int vocab, float temperature, float top_p, uint64_t seed);
void sampler_fini(sampler *s);
int32_t sampler_next(sampler *s, const float *logits);

int32_t sampler_argmax(const float *logits, int n);
/* prob[n] = softmax(logits / temperature), accumulated in double, cut to top_p. temperature > 0. `order` is scratch. */
void sampler_probabilities(const float *logits, int n, float temperature, float top_p, float *prob, int32_t *order);

#endif
