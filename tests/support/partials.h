/* partials.h - what rank 0 of a team computes before it first meets the others: the results of a rank that runs alone
 * must be those of its shard.
 * For:    tests of ranks alone (engine/solo on a host, gpu/solo on a card).
 * Enter:  tests/ only.
 * Owns:   partials_collect() fills what partials_free() frees.
 * Fails:  through Criterion's assertions, with the engine's own message. */
#ifndef TPL_TESTS_SUPPORT_PARTIALS_H
#define TPL_TESTS_SUPPORT_PARTIALS_H

#include "engine/lab.h"

enum { PARTIALS_MOST = 64 };

typedef struct {
    struct {
        char name[48]; /* of the step */
        float *values;
        size_t n;
    } step[PARTIALS_MOST];
    int n;
} partials;

/* Rank 0's steps, a prefill of nine tokens and then one decoded token, each up to its first collective. */
void partials_collect(lab *l, const char *variant_text, const team_options *o, partials *out);
void partials_free(partials *p);

/* Asserts the same steps, and values within `tolerance` of each result's largest. */
void partials_expect_equal(const partials *got, const partials *want, double tolerance, const char *what);

#endif
