/* Targets are synthetic: their times, noise and mistakes are known, and time passes only as they say. */
#include "bench/measure.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>

#include "tests/bench/synthetic.h"

static fake_machine machine;
static char log_[FAKE_LOG];
static tpl_err err;

static void setup(void)
{
    machine = (fake_machine){.now = 1000};
    memset(log_, 0, sizeof log_);
    err = (tpl_err){0};
}

TestSuite(measure, .init = setup);

static fake_target quiet(char name, double cold_us, double hot_us)
{
    return (fake_target){.m = &machine,
                         .name = name,
                         .log = log_,
                         .cold_us = cold_us,
                         .hot_us = hot_us,
                         .random = rng_make(1, (uint64_t)name)};
}

static measure_result run_one(fake_target *t, measure_options o)
{
    bench_target b = fake_bench(t);
    bench_clock clock = fake_clock(&machine);
    measure_result r;
    o.clock = &clock;
    tpl_code rc = measure_run(&b, 1, &o, &r, &err);
    cr_assert(rc == TPL_OK, "%s: %s", err.where, err.what);
    return r;
}

/* ---- what is timed ---- */

Test(measure, cold_and_hot_times_are_the_targets_own)
{
    fake_target t = quiet('a', 300, 100);
    measure_result r = run_one(&t, (measure_options){0});
    cr_expect(r.status == RS_OK, "%s", r.reason);
    cr_expect_float_eq(r.cold.median, 300, 1e-9);
    cr_expect_float_eq(r.hot.median, 100, 1e-9);
    cr_expect(r.n_cold == 20 && r.n_hot == 20 && r.n_all == 40);
    cr_expect_str_eq(r.stop_reason, "noise");
    cr_expect(isnan(r.cold.p99) && isnan(r.clock_mhz));
    cr_expect(t.n_prepared == 1 && t.n_released == 1 && t.n_verified == 2);
    measure_result_fini(&r);
}

Test(measure, reading_the_clock_costs_two_readings_a_sample)
{
    fake_target t = quiet('a', 50, 50);
    machine.tick_ns = 40;
    measure_result r = run_one(&t, (measure_options){.hot_samples = -1});
    cr_expect_float_eq(r.cold.median, 50.04, 1e-9, "%g: one tick lies between the two readings", r.cold.median);
    measure_result_fini(&r);
}

Test(measure, short_runs_are_batched_when_hot)
{
    fake_target t = quiet('a', 2, 0.5);
    machine.tick_ns = 40;
    measure_result r = run_one(&t, (measure_options){0});
    cr_expect(r.hot.median < 0.5 * 1.005, "%g: the clock's part is under half a percent", r.hot.median);
    measure_result_fini(&r);
}

/* The budget is 0.5 us; a loaded machine may take longer. */
Test(measure, overhead_of_a_sample_on_this_machine)
{
    double us = -1;
    cr_assert(measure_overhead(&us, &err) == TPL_OK);
    printf("# timer and loop overhead: median %.3f us a sample (budget 0.5 us)\n", us);
    cr_expect(us >= 0 && us < 5);
}

Test(measure, times_are_per_unit)
{
    fake_target t = quiet('a', 640, 640);
    bench_target b = fake_bench(&t);
    bench_clock clock = fake_clock(&machine);
    measure_options o = {.clock = &clock};
    measure_result r;
    b.units = 64;
    cr_assert(measure_run(&b, 1, &o, &r, &err) == TPL_OK);
    cr_expect_float_eq(r.cold.median, 10, 1e-9);
    cr_expect_float_eq(r.hot.median, 10, 1e-9);
    measure_result_fini(&r);
}

Test(measure, warm_up_lasts_until_runs_are_stationary)
{
    fake_target t = quiet('a', 100, 100);
    t.first_us = 5000; /* falls to 100 over ten runs */
    measure_result r = run_one(&t, (measure_options){0});
    cr_expect_float_eq(r.cold.max, 100, 1e-9, "%g: a warm-up run was taken for a sample", r.cold.max);
    measure_result_fini(&r);
}

static void note_warmed(void *self)
{
    fake_log(self, '|');
}

/* The log of 5 samples a block: "(" prepared, "a" a run, "|" warm, ")" released. Quiet runs settle after two windows of
 * three; what settled once takes two runs, a third where the second is not yet as the samples were. */
Test(measure, later_blocks_warm_up_less)
{
    fake_target t = quiet('a', 100, 100);
    char text[FAKE_LOG] = "";
    t.log = text;
    bench_target b = fake_bench(&t);
    bench_clock clock = fake_clock(&machine);
    measure_options o = {.clock = &clock, .block = 5, .min_samples = 30, .max_samples = 30, .hot_samples = -1};
    measure_result r;
    b.warmed = note_warmed;
    cr_assert(measure_run(&b, 1, &o, &r, &err) == TPL_OK);
    cr_expect_str_eq(text, "(aaaaaa|aaaaa)(aa|aaaaa)(aa|aaaaa)(aa|aaaaa)(aa|aaaaa)(aa|aaaaa)");
    cr_expect_eq(r.n_cold, 30);
    cr_expect(r.spent.n_prepared == 6 && t.n_verified == 4, "%d prepared, %d verified", r.spent.n_prepared, t.n_verified);
    cr_expect_float_eq(r.spent.sample_s, 30 * 100e-6, 1e-9);
    cr_expect_float_eq(r.spent.warm_s, 16 * 100e-6, 1e-9);
    measure_result_fini(&r);
}

/* What noise ends before the last block could be known is prepared once more, to be verified. */
Test(measure, blocks_that_end_early_are_verified_too)
{
    fake_target t = quiet('a', 100, 100);
    t.wrong_at_verify[2] = 3;
    measure_result r = run_one(&t, (measure_options){.block = 5, .max_samples = 200, .hot_samples = -1});
    cr_expect_str_eq(r.stop_reason, "noise");
    cr_expect(r.spent.n_prepared == 7 && t.n_verified == 3 && r.status == RS_WRONG_ANSWER, "%d prepared, %d verified",
              r.spent.n_prepared, t.n_verified);
    measure_result_fini(&r);
}

/* ---- when sampling stops ---- */

Test(measure, stop_rules_name_what_stopped)
{
    static const struct {
        double noise;
        measure_options o;
        const char *reason;
        rs_status status;
    } cases[] = {
        {0.01, {.stop_ci_frac = 0.01}, "noise", RS_OK},
        {0.05, {.stop_ci_frac = 0.001, .max_samples = 60, .timeout_s = 60}, "count", RS_OK},
        {0.05, {.stop_ci_frac = 0.001, .timeout_s = 0.03}, "timeout", RS_OK},
        {0.25, {.stop_ci_frac = 0.001, .max_samples = 30, .timeout_s = 60}, "count", RS_TOO_NOISY},
        {0.25, {.stop_ci_frac = 0.001, .timeout_s = 0.01}, "timeout", RS_TOO_NOISY},
        {0.0, {.timeout_s = 0.003}, "timeout", RS_OK},        /* samples of 1 ms: six are waited for ... */
        {0.0, {.timeout_s = 0.001}, "timeout", RS_TOO_NOISY}, /* ... up to four timeouts */
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        fake_target t = quiet('a', 1000, 1000);
        t.noise = cases[i].noise;
        measure_result r = run_one(&t, cases[i].o);
        cr_expect_str_eq(r.stop_reason, cases[i].reason, "case %zu", i);
        cr_expect(r.status == cases[i].status, "case %zu: %s %s", i, rs_status_word(r.status), r.reason);
        cr_expect(r.status == RS_OK || *r.reason, "case %zu", i);
        measure_result_fini(&r);
    }
}

Test(measure, noise_stop_reaches_the_wanted_interval)
{
    int far = 0;
    for (uint64_t seed = 0; seed < 200; seed++) {
        fake_target t = quiet('a', 1000, 1000);
        t.noise = 0.02;
        t.random = rng_make(5, seed);
        t.log = NULL;
        measure_result r = run_one(&t, (measure_options){.stop_ci_frac = 0.01, .hot_samples = -1, .timeout_s = 60});
        cr_expect_str_eq(r.stop_reason, "noise");
        cr_expect(r.cold.ci_frac <= 0.01);
        far += fabs(r.cold.median / 1000 - 1) > 0.01;
        measure_result_fini(&r);
    }
    cr_expect(far <= 20, "median off by more than the interval in %d of 200", far);
}

/* ---- what goes wrong ---- */

Test(measure, wrong_answers_before_or_after_are_seen)
{
    for (int when = 0; when < 2; when++) {
        fake_target t = quiet('a', 100, 100);
        t.wrong_at_verify[when] = 7;
        measure_result r = run_one(&t, (measure_options){0});
        cr_expect(r.status == RS_WRONG_ANSWER && r.n_wrong == 7, "%s", rs_status_word(r.status));
        cr_expect(strstr(r.reason, "7 output elements") != NULL, "%s", r.reason);
        measure_result_fini(&r);
    }
}

Test(measure, warm_caches_are_said)
{
    fake_target t = quiet('a', 100, 50);
    t.cannot_cool = true;
    measure_result r = run_one(&t, (measure_options){0});
    cr_expect(r.status == RS_WARM_CACHE);
    measure_result_fini(&r);
}

Test(measure, samples_at_a_low_clock_are_thrown_away)
{
    fake_target t = quiet('a', 100, 100);
    t.throttle_from = 12;
    t.throttle_to = 14;
    measure_result r = run_one(&t, (measure_options){0});
    cr_expect(r.status == RS_OK, "%s", r.reason);
    cr_expect(r.n_discarded == 2 && r.n_cold == 20, "%d discarded, %d kept", r.n_discarded, r.n_cold);
    cr_expect_float_eq(r.cold.max, 100, 1e-9);
    cr_expect_float_eq(r.clock_mhz, 3000, 1e-9);
    measure_result_fini(&r);
}

Test(measure, a_clock_that_stays_low_is_throttled)
{
    fake_target t = quiet('a', 100, 100);
    t.throttle_from = 16;
    t.throttle_to = 100000;
    measure_result r = run_one(&t, (measure_options){.max_samples = 40});
    cr_expect(r.status == RS_THROTTLED, "%s %s", rs_status_word(r.status), r.reason);
    cr_expect(r.n_discarded > r.n_cold);
    measure_result_fini(&r);
}

Test(measure, what_a_target_cannot_do_ends_that_target_only)
{
    static const struct {
        tpl_code prepare, run;
        rs_status status;
    } cases[] = {{TPL_E_MEMORY, TPL_OK, RS_OUT_OF_MEMORY},
                 {TPL_E_UNSUPPORTED, TPL_OK, RS_UNSUPPORTED},
                 {TPL_OK, TPL_E_UNSUPPORTED, RS_UNSUPPORTED}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        fake_target bad = quiet('a', 100, 100), good = quiet('b', 100, 100);
        bad.fail_prepare = cases[i].prepare;
        bad.fail_run = cases[i].run;
        bench_target both[] = {fake_bench(&bad), fake_bench(&good)};
        bench_clock clock = fake_clock(&machine);
        measure_options o = {.clock = &clock};
        measure_result r[2];
        cr_assert(measure_run(both, 2, &o, r, &err) == TPL_OK);
        cr_expect(r[0].status == cases[i].status && strstr(r[0].reason, "planned failure"), "case %zu", i);
        cr_expect(bad.n_released == bad.n_prepared, "case %zu", i);
        cr_expect(r[1].status == RS_OK && r[1].n_cold == 20, "case %zu", i);
        measure_result_fini(&r[0]);
        measure_result_fini(&r[1]);
    }
}

Test(measure, a_failing_device_ends_the_run_and_releases)
{
    fake_target t = quiet('a', 100, 100);
    bench_target b = fake_bench(&t);
    bench_clock clock = fake_clock(&machine);
    measure_options o = {.clock = &clock};
    measure_result r;
    t.fail_run = TPL_E_DEVICE;
    cr_expect(measure_run(&b, 1, &o, &r, &err) == TPL_E_DEVICE);
    cr_expect_str_eq(err.what, "planned failure");
    cr_expect(t.n_released == 1 && !t.alive);
    measure_result_fini(&r);
}

/* ---- taking turns ---- */

static void run_two(fake_target *a, fake_target *b, measure_options o, measure_result r[2])
{
    bench_target both[] = {fake_bench(a), fake_bench(b)};
    bench_clock clock = fake_clock(&machine);
    o.clock = &clock;
    tpl_code rc = measure_run(both, 2, &o, r, &err);
    cr_assert(rc == TPL_OK, "%s", err.what);
}

Test(measure, two_targets_take_turns_sample_by_sample)
{
    fake_target a = quiet('a', 100, 100), b = quiet('b', 200, 200);
    measure_result r[2];
    run_two(&a, &b, (measure_options){.hot_samples = -1}, r);
    cr_expect(strstr(log_, "abababababababababababababababababababab") != NULL, "%s", log_);
    cr_expect(r[0].n_cold == r[1].n_cold && r[0].cold.median == 100 && r[1].cold.median == 200);
    measure_result_fini(&r[0]);
    measure_result_fini(&r[1]);
}

Test(measure, blocks_hold_one_target_in_memory_at_a_time)
{
    fake_target a = quiet('a', 100, 100), b = quiet('b', 200, 200);
    measure_result r[2];
    run_two(&a, &b, (measure_options){.block = 5, .hot_samples = 3}, r);
    int open = 0;
    for (const char *c = log_; *c; c++) {
        open += *c == '(' ? 1 : *c == ')' ? -1 : 0;
        cr_assert(open == 0 || open == 1, "%s", log_);
    }
    cr_expect(r[0].n_cold >= 30 && r[0].n_cold % 5 == 0 && r[0].n_cold == r[1].n_cold, "six blocks or more");
    cr_expect(r[0].n_hot == 3 && r[1].n_hot == 3);
    cr_expect(a.n_verified == 3 && b.n_verified == 3, "twice in the first block, once at the end");
    measure_result_fini(&r[0]);
    measure_result_fini(&r[1]);
}

Test(measure, a_throttled_sample_takes_its_partner_along)
{
    fake_target a = quiet('a', 100, 100), b = quiet('b', 200, 200);
    a.throttle_from = 13;
    a.throttle_to = 14;
    measure_result r[2];
    run_two(&a, &b, (measure_options){.hot_samples = -1}, r);
    cr_expect(r[0].n_cold == r[1].n_cold && r[0].n_discarded == 1 && r[1].n_discarded == 1);
    measure_result_fini(&r[0]);
    measure_result_fini(&r[1]);
}

/* ---- the samples file ---- */

Test(measure, every_sample_goes_to_the_file)
{
    fake_target t = quiet('a', 100, 100);
    measure_result r = run_one(&t, (measure_options){.hot_samples = 2});
    char *text = NULL;
    size_t len = 0;
    FILE *f = open_memstream(&text, &len);
    cr_assert(measure_write_samples(f, "0123456789ab", &r, &err) == TPL_OK);
    cr_assert(measure_write_samples(f, "ba9876543210", &r, &err) == TPL_OK);
    fclose(f);
    int lines = 0;
    for (const char *s = text; *s; s++)
        lines += *s == '\n';
    cr_expect(lines == 1 + 2 * 22, "%d", lines);
    cr_expect(strncmp(text, "cell_id,mode,index,time_us,clock_mhz,kept\n0123456789ab,cold,0,100,,1\n", 69) == 0, "%s",
              text);
    cr_expect(strstr(text, "ba9876543210,hot,21,100,,1\n") != NULL);
    free(text);
    measure_result_fini(&r);
}

Test(measure, a_full_disk_is_an_error)
{
    fake_target t = quiet('a', 100, 100);
    measure_result r = run_one(&t, (measure_options){0});
    FILE *f = fopen("/dev/full", "w");
    cr_assert(f);
    cr_expect(measure_write_samples(f, "0123456789ab", &r, &err) == TPL_E_IO);
    fclose(f);
    measure_result_fini(&r);
}
