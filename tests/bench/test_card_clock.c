/* The measuring loop on a card: samples taken while it was too hot or braked go, those at the power limit stay. */
#include <criterion/criterion.h>
#include <dlfcn.h>

#include "bench/card_clock.h"
#include "tests/support/fake_nvml.h"

/* A target that puts the card into a state at each run. */
typedef struct {
    fake_nvml_state *card;
    int n_samples;
    int slow_from, slow_to; /* samples during which `reasons` hold; warm-up is as sample 0 */
    unsigned long long reasons;
} target;

static tpl_code run(void *self, tpl_err *e)
{
    target *t = self;
    bool slow = t->n_samples >= t->slow_from && t->n_samples < t->slow_to;
    t->card->reasons = slow ? t->reasons : 0;
    t->card->sm_mhz = slow ? 900 : 1980;
    for (volatile int i = 0; i < 20000; i++)
        ;
    return TPL_OK;
}

/* Called before each sample, and at no other time. */
static bool count(void *self)
{
    ((target *)self)->n_samples++;
    return true;
}

static measure_result measure(target *t)
{
    void *library = dlopen(FAKE_NVML, RTLD_NOW);
    card_watches w = {.n = 1};
    tpl_err e = {0};
    measure_result r;
    cr_assert_not_null(library);
    t->card = dlsym(library, "fake_nvml");
    cr_assert_eq(card_watch_open(FAKE_NVML, NULL, 0, &w.card[0], &e), TPL_OK);
    bench_clock clock = card_clock(&w);
    measure_options o = {.min_samples = 20, .max_samples = 40, .stop_ci_frac = 1e-9, .noisy_ci_frac = 10, .timeout_s = 20, .hot_samples = -1, .clock = &clock};
    bench_target b = {.self = t, .run = run, .make_cold = count};
    cr_assert(measure_run(&b, 1, &o, &r, &e) == TPL_OK, "%s: %s", e.where, e.what);
    card_watches_close(&w);
    return r;
}

Test(card_clock, samples_of_a_throttled_card_are_thrown_away_and_counted)
{
    static const uint32_t reasons[] = {CARD_SLOW_HARDWARE, CARD_SLOW_THERMAL_SOFTWARE, CARD_SLOW_THERMAL_HARDWARE, CARD_SLOW_POWER_BRAKE};
    for (size_t i = 0; i < sizeof reasons / sizeof *reasons; i++) {
        target t = {.slow_from = 0, .slow_to = 0};
        measure_result r = measure(&t);
        cr_expect(r.status == RS_OK && r.n_discarded == 0 && r.n_power_capped == 0, "%s", r.reason);
        cr_expect_eq(r.clock_mhz, 1980);
        measure_result_fini(&r);
        t = (target){.slow_from = 5, .slow_to = 9, .reasons = reasons[i]};
        r = measure(&t);
        int32_t kept_slow = 0;
        for (int32_t k = 0; k < r.n_all; k++)
            kept_slow += r.all[k].kept && r.all[k].mhz < 1980;
        cr_expect_eq(kept_slow, 0, "reason %x", reasons[i]);
        cr_expect_eq(r.n_discarded, 4, "reason %x", reasons[i]);
        cr_expect(r.n_cold + r.n_discarded == r.n_all && r.n_cold >= 20, "%d of %d kept", r.n_cold, r.n_all);
        measure_result_fini(&r);
    }
}

Test(card_clock, too_few_left_is_throttled)
{
    target t = {.slow_from = 0, .slow_to = 1 << 30, .reasons = CARD_SLOW_THERMAL_SOFTWARE};
    measure_result r = measure(&t);
    cr_expect_eq(r.status, RS_THROTTLED);
    cr_expect_eq(r.n_cold, 0);
    cr_expect_eq(r.n_discarded, 80, "%d: twice the most samples were tried", r.n_discarded);
    cr_expect_str_eq(r.reason, "heat, power brake or hardware held the clock down in 80 of 80 samples");
    measure_result_fini(&r);
}

Test(card_clock, the_power_limit_is_counted_only)
{
    target t = {.slow_from = 0, .slow_to = 1 << 30, .reasons = CARD_SLOW_POWER_CAP};
    measure_result r = measure(&t);
    cr_expect(r.status == RS_OK, "%s", r.reason);
    cr_expect_eq(r.n_discarded, 0);
    cr_expect_eq(r.n_power_capped, r.n_cold);
    cr_expect_eq(r.clock_mhz, 900, "a low clock alone is not throttling where reasons are known");
    measure_result_fini(&r);
}

Test(card_clock, without_a_watch_all_samples_stay)
{
    card_watches none = {0};
    bench_clock c = card_clock(&none);
    cr_expect_eq(c.limits(c.self), 0);
    cr_expect(c.mhz(c.self) != c.mhz(c.self));
    cr_expect_gt(c.now_ns(c.self), 0);
}
