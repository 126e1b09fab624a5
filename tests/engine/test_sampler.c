#include "engine/sampler.h"

#include <math.h>
#include <string.h>

#include <criterion/criterion.h>

Test(sampler, greedy_takes_the_lowest_index_of_the_largest)
{
    static const struct {
        const char *name;
        float logits[5];
        int32_t want;
    } cases[] = {
        {"plain", {1, 5, 2, 4, 3}, 1},
        {"tie", {1, 7, 7, 7, 0}, 1},
        {"last", {-4, -3, -2, -1, -0.5f}, 4},
        {"nan is skipped", {NAN, 2, NAN, 3, NAN}, 3},
        {"all nan", {NAN, NAN, NAN, NAN, NAN}, 0},
        {"all -inf", {-INFINITY, -INFINITY, -INFINITY, -INFINITY, -INFINITY}, 0},
        {"-inf and a number", {-INFINITY, -INFINITY, -9e30f, -INFINITY, NAN}, 2},
        {"inf", {3, INFINITY, 4, 5, NAN}, 1},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        sampler s;
        sampler_init(&s, 5, 0, 1, 1);
        cr_expect(sampler_next(&s, cases[i].logits) == cases[i].want, "%s", cases[i].name);
        cr_expect(sampler_argmax(cases[i].logits, 5) == cases[i].want, "%s", cases[i].name);
        sampler_fini(&s);
    }
}

/* exp(log 4 / 1) : exp(log 2) : 1 : 1 = 4 : 2 : 1 : 1; at temperature 1/2 the squares 16 : 4 : 1 : 1. */
Test(sampler, probabilities_follow_temperature_and_top_p)
{
    const float logits[4] = {logf(2), 0, logf(4), 0};
    static const struct {
        float temperature, top_p;
        double want[4];
    } cases[] = {
        {1, 1, {2. / 8, 1. / 8, 4. / 8, 1. / 8}},
        {.5f, 1, {4. / 22, 1. / 22, 16. / 22, 1. / 22}},
        {1, .5f, {0, 0, 1, 0}},
        {1, .51f, {2. / 6, 0, 4. / 6, 0}},
        {1, .8f, {2. / 7, 1. / 7, 4. / 7, 0}}, /* among equals the lower index goes first */
        {1, 0, {0, 0, 1, 0}},                  /* the likeliest token always stays */
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        float prob[4];
        int32_t order[4];
        sampler_probabilities(logits, 4, cases[i].temperature, cases[i].top_p, prob, order);
        for (int k = 0; k < 4; k++)
            cr_expect(fabs(prob[k] - cases[i].want[k]) < 1e-6, "case %zu token %d: %g, expected %g", i, k, prob[k],
                      cases[i].want[k]);
    }
}

Test(sampler, logits_that_are_no_numbers_give_a_token_all_the_same)
{
    static const struct {
        const char *name;
        float logits[4];
        int32_t want;
    } cases[] = {
        {"all nan", {NAN, NAN, NAN, NAN}, 0},
        {"all -inf", {-INFINITY, -INFINITY, -INFINITY, -INFINITY}, 0},
        {"one number", {NAN, -INFINITY, 3, NAN}, 2},
        {"inf", {1, 2, INFINITY, 3}, 2},
        {"huge", {-3e38f, 3e38f, -3e38f, NAN}, 1},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        for (int p = 0; p < 2; p++) {
            sampler s;
            sampler_init(&s, 4, 1, p ? .9f : 1, 7);
            for (int k = 0; k < 20; k++)
                cr_expect(sampler_next(&s, cases[i].logits) == cases[i].want, "%s", cases[i].name);
            sampler_fini(&s);
        }
    }
}

/* 20,000 draws: the share of a token of probability p has standard deviation sqrt(p (1 - p) / n) < 0.0036. */
Test(sampler, draws_follow_the_probabilities_and_the_seed)
{
    enum { N = 20000 };
    const float logits[4] = {logf(2), 0, logf(4), 0};
    const double want[4] = {.25, .125, .5, .125};
    int count[4] = {0}, same = 0;
    sampler a, b, other;
    sampler_init(&a, 4, 1, 1, 42);
    sampler_init(&b, 4, 1, 1, 42);
    sampler_init(&other, 4, 1, 1, 43);
    for (int i = 0; i < N; i++) {
        int32_t t = sampler_next(&a, logits);
        cr_assert(t >= 0 && t < 4 && t == sampler_next(&b, logits));
        same += t == sampler_next(&other, logits);
        count[t]++;
    }
    for (int k = 0; k < 4; k++)
        cr_expect(fabs((double)count[k] / N - want[k]) < 5 * .0036, "token %d: %d of %d", k, count[k], N);
    cr_expect(same < N / 2, "seeds 42 and 43 agree %d times of %d", same, N);
    sampler_fini(&a);
    sampler_fini(&b);
    sampler_fini(&other);
}
