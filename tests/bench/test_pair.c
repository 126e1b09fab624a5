/* Two synthetic targets of known times on a machine whose speed drifts, as a shared one does. */
#include "bench/pair.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>

#include "tests/bench/synthetic.h"

static fake_machine machine;
static tpl_err err;

static void setup(void)
{
    machine = (fake_machine){.now = 1000};
    err = (tpl_err){0};
}

TestSuite(pair, .init = setup);

static fake_target target(char name, double us, double noise, uint64_t seed)
{
    return (fake_target){.m = &machine,
                         .name = name,
                         .cold_us = us,
                         .hot_us = us,
                         .noise = noise,
                         .random = rng_make(seed, (uint64_t)name)};
}

static pair_ratio compare(double base_us, double other_us, double noise, pair_mode mode, double fracs[2], double floor_,
                          uint64_t seed)
{
    fake_target a = target('a', base_us, noise, seed), b = target('b', other_us, noise, seed);
    bench_target both[] = {fake_bench(&a), fake_bench(&b)};
    bench_clock clock = fake_clock(&machine);
    measure_options o = {.clock = &clock, .hot_samples = -1, .timeout_s = 60};
    measure_result r[2];
    cr_assert(pair_measure(both, 2, mode, &o, r, &err) == TPL_OK);
    pair_ratio p = pair_compare((pair_side){&r[0], fracs[0], 0}, (pair_side){&r[1], fracs[1], 0}, mode, floor_, seed);
    measure_result_fini(&r[0]);
    measure_result_fini(&r[1]);
    return p;
}

static double good[] = {0.9, 0.85};

Test(pair, a_slowdown_of_3_percent_is_claimed_and_a_tie_is_not)
{
    int found = 0, wrong = 0, invented = 0;
    for (uint64_t seed = 0; seed < 100; seed++) {
        pair_ratio slow = compare(1000, 1030, 0.01, PAIR_SAMPLE, good, 0, seed);
        found += pair_claim(&slow) == BSTAT_SLOWER;
        wrong += pair_claim(&slow) == BSTAT_FASTER;
        pair_ratio tie = compare(1000, 1000, 0.01, PAIR_SAMPLE, good, 0, 1000 + seed);
        invented += pair_claim(&tie) == BSTAT_FASTER;
    }
    cr_expect(found >= 95 && wrong == 0, "found %d, wrong %d", found, wrong);
    cr_expect(invented <= 8, "%d of 100 ties called faster (5 expected at most on average)", invented);
}

Test(pair, blocks_give_the_same_ratio)
{
    pair_ratio p = compare(1000, 800, 0.01, PAIR_BLOCK, good, 0, 3);
    cr_expect(fabs(p.ratio.ratio - 1.25) < 0.02 && p.ratio.lo > 1.2 && p.ratio.hi < 1.3, "%g", p.ratio.ratio);
    cr_expect(p.status == RS_OK && pair_claim(&p) == BSTAT_FASTER);
}

Test(pair, a_side_far_from_its_bound_is_never_a_claim)
{
    static const struct {
        double fracs[2];
        rs_status status;
        const char *says;
    } cases[] = {
        {{0.80, 0.80}, RS_OK, ""},
        {{0.79, 0.95}, RS_KERNEL_BELOW_BOUND, "the baseline reaches 0.79 of its bound, expected 0.80 for a claim"},
        {{0.95, 0.5}, RS_KERNEL_BELOW_BOUND, "the variant reaches 0.50 of its bound, expected 0.80 for a claim"},
        {{NAN, 0.9}, RS_KERNEL_BELOW_BOUND, NULL},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        double fracs[] = {cases[i].fracs[0], cases[i].fracs[1]};
        pair_ratio p = compare(1000, 500, 0.01, PAIR_SAMPLE, fracs, 0, i);
        cr_expect(p.status == cases[i].status, "case %zu", i);
        cr_expect(fabs(p.ratio.ratio - 2) < 0.05, "case %zu: the ratio is printed all the same", i);
        cr_expect((pair_claim(&p) == BSTAT_FASTER) == (cases[i].status == RS_OK), "case %zu", i);
        if (cases[i].says)
            cr_expect_str_eq(p.reason, cases[i].says);
    }
}

/* A slow kernel may hide in a step that is fast as a whole, and a slow step behind a kernel that is fast. */
Test(pair, attention_must_reach_its_bound_as_well_where_it_was_timed)
{
    static const struct {
        double base[2], other[2]; /* of the step, of its attention */
        const char *reason;
    } cases[] = {
        {{0.85, 0.90}, {0.82, 0.80}, ""},
        {{0.85, 0.90}, {0.82, 0}, ""},
        {{0.85, 0.90}, {0.82, 0.74}, "the variant's attention reaches 0.74 of its bound, expected 0.80 for a claim"},
        {{0.85, 0.60}, {0.82, 0.74}, "the baseline's attention reaches 0.60 of its bound, expected 0.80 for a claim"},
        {{0.85, 0.90}, {0.62, 0.95}, "the variant reaches 0.62 of its bound, expected 0.80 for a claim"},
    };
    double us[] = {1, 1, 1, 1, 1, 1, 1};
    measure_result r = {.status = RS_OK, .cold_us = us, .n_cold = 7};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        pair_side base = {&r, cases[i].base[0], cases[i].base[1]}, other = {&r, cases[i].other[0], cases[i].other[1]};
        pair_ratio p = pair_compare(base, other, PAIR_SAMPLE, 0, 0);
        cr_expect_str_eq(p.reason, cases[i].reason);
        cr_expect_eq(p.status, *cases[i].reason ? RS_KERNEL_BELOW_BOUND : RS_OK, "case %zu", i);
    }
}

Test(pair, only_ok_rows_enter_ratios)
{
    double us[] = {1, 1, 1, 1, 1, 1, 1};
    measure_result ok = {.status = RS_OK, .cold_us = us, .n_cold = 7}, noisy = ok;
    noisy.status = RS_TOO_NOISY;
    pair_ratio p = pair_compare((pair_side){&ok, 0.9, 0}, (pair_side){&noisy, 0.9, 0}, PAIR_SAMPLE, 0, 0);
    cr_expect(p.status == RS_UNLIKE && isnan(p.ratio.ratio));
    cr_expect_str_eq(p.reason, "the variant is too_noisy");
    p = pair_compare((pair_side){&noisy, 0.9, 0}, (pair_side){&ok, 0.9, 0}, PAIR_SAMPLE, 0, 0);
    cr_expect_str_eq(p.reason, "the baseline is too_noisy");
}

Test(pair, differences_below_the_noise_floor_are_called_so)
{
    char text[128];
    pair_ratio p = compare(1000, 990, 0.001, PAIR_SAMPLE, good, 0.02, 1);
    cr_expect(bstat_judge(p.ratio) == BSTAT_FASTER && pair_claim(&p) == BSTAT_SAME);
    pair_describe(&p, text, sizeof text);
    cr_expect(strstr(text, "below the noise floor of 2.0%") != NULL, "%s", text);
    p = compare(1000, 900, 0.001, PAIR_SAMPLE, good, 0.02, 1);
    pair_describe(&p, text, sizeof text);
    cr_expect(pair_claim(&p) == BSTAT_FASTER && strstr(text, "): faster") != NULL, "%s", text);
    pair_describe(&p, text, 8);
    cr_expect(strlen(text) < 8);
}

Test(pair, the_floor_of_a_quiet_machine_is_small)
{
    fake_target a = target('a', 1000, 0.01, 1), b = target('a', 1000, 0.01, 2);
    bench_target twins[] = {fake_bench(&a), fake_bench(&b)};
    bench_clock clock = fake_clock(&machine);
    measure_options o = {.clock = &clock, .hot_samples = -1, .timeout_s = 60};
    bstat_ratio aa;
    cr_assert(pair_measure_aa(twins, PAIR_SAMPLE, &o, &aa, &err) == TPL_OK);
    double floor_ = bstat_noise_floor(aa);
    cr_expect(floor_ > 0 && floor_ < 0.02, "%g", floor_);
}

Test(pair, sides_that_do_not_fit_together_take_blocks)
{
    const double small[] = {1e9, 2e9}, large[] = {6e9, 5e9};
    cr_expect(pair_choose(small, 2, 10e9) == PAIR_SAMPLE);
    cr_expect(pair_choose(large, 2, 10e9) == PAIR_BLOCK);
    cr_expect(pair_choose(large, 1, 5e9) == PAIR_SAMPLE, "one side has nobody to wait for");
    cr_expect(pair_free_bytes() > 1e6);
    cr_expect_str_eq(pair_mode_name(PAIR_SAMPLE), "sample");
    cr_expect_str_eq(pair_mode_name(PAIR_BLOCK), "block");
}
