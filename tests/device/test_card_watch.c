/* What a card says of itself, told by a library that looks like NVML. */
#include <criterion/criterion.h>
#include <dlfcn.h>
#include <math.h>

#include "device/card_watch.h"
#include "tests/support/fake_nvml.h"

static fake_nvml_state *state(void)
{
    void *library = dlopen(FAKE_NVML, RTLD_NOW);
    cr_assert_not_null(library, "%s", dlerror());
    return dlsym(library, "fake_nvml");
}

static card_watch *watch(const char *bus_id, int index)
{
    card_watch *w = NULL;
    tpl_err e = {0};
    cr_assert(card_watch_open(FAKE_NVML, bus_id, index, &w, &e) == TPL_OK, "%s: %s", e.where, e.what);
    return w;
}

Test(card_watch, facts_and_readings_are_in_our_units)
{
    fake_nvml_state *f = state();
    card_watch *w = watch("00000000:1B:00.0", 0);
    const card_about *a = card_watch_about(w);
    f->reasons = CARD_SLOW_POWER_CAP | CARD_SLOW_THERMAL_HARDWARE;
    card_state s = card_watch_read(w);
    cr_expect_str_eq(a->name, "Fake H100");
    cr_expect_str_eq(a->driver, "580.1");
    cr_expect(a->sm_mhz_max == 1980 && a->memory_mhz_max == 2619 && a->power_limit_w == 700);
    cr_expect(a->ecc == 1 && a->ecc_corrected == 3 && a->ecc_uncorrected == 0);
    cr_expect(s.sm_mhz == 1980 && s.memory_mhz == 2619 && s.power_w == 350.5 && s.temperature_c == 41);
    cr_expect(s.knows_reasons && s.reasons == (CARD_SLOW_POWER_CAP | CARD_SLOW_THERMAL_HARDWARE));
    card_watch_close(w);
    cr_expect_eq(f->n_open, 0, "the library was not closed");
}

Test(card_watch, what_cannot_be_read_is_not_invented)
{
    fake_nvml_state *f = state();
    f->read_error = 3;
    f->reasons = CARD_SLOW_HARDWARE;
    card_watch *w = watch(NULL, 1);
    const card_about *a = card_watch_about(w);
    card_state s = card_watch_read(w);
    cr_expect(isnan(s.sm_mhz) && isnan(s.memory_mhz) && isnan(s.power_w) && isnan(s.temperature_c));
    cr_expect(!s.knows_reasons && s.reasons == 0);
    cr_expect(isnan(a->sm_mhz_max) && isnan(a->power_limit_w) && a->ecc == -1 && a->ecc_corrected == -1);
    card_watch_close(w);
}

Test(card_watch, failures_say_what_is_missing)
{
    card_watch *w = NULL;
    tpl_err e = {0};
    cr_expect_eq(card_watch_open("/nowhere/libnvidia-ml.so.1", NULL, 0, &w, &e), TPL_E_UNSUPPORTED);
    cr_expect_str_eq(e.what, "/nowhere/libnvidia-ml.so.1 cannot be loaded");
    cr_expect_eq(card_watch_open("libm.so.6", NULL, 0, &w, &e), TPL_E_UNSUPPORTED, "a library that is another one");
    cr_expect_str_eq(e.what, "libm.so.6 has no nvmlInit_v2");
    cr_expect_eq(card_watch_open(FAKE_NVML, "00000000:99:00.0", 0, &w, &e), TPL_E_DEVICE);
    cr_expect_str_eq(e.what, "does not know the card at 00000000:99:00.0: error 6");
    cr_expect_eq(card_watch_open(FAKE_NVML, NULL, 5, &w, &e), TPL_E_DEVICE);
    cr_expect_str_eq(e.what, "does not know the card number 5: error 2");
    state()->begin_error = 9;
    cr_expect_eq(card_watch_open(FAKE_NVML, NULL, 0, &w, &e), TPL_E_DEVICE);
    cr_expect_str_eq(e.what, "does not begin: error 9");
    cr_expect_eq(card_watch_count(FAKE_NVML), 0);
    state()->begin_error = 0;
    cr_expect_eq(card_watch_count(FAKE_NVML), 2);
    cr_expect_eq(card_watch_count("/nowhere"), 0);
    cr_expect_null(w);
    cr_expect_eq(state()->n_open, 0);
}

Test(card_watch, reasons_have_words)
{
    char text[128], little[8];
    card_reasons_text(0, text, sizeof text);
    cr_expect_str_eq(text, "none");
    card_reasons_text(CARD_SLOW_POWER_CAP | CARD_SLOW_POWER_BRAKE, text, sizeof text);
    cr_expect_str_eq(text, "power cap, power brake");
    card_reasons_text(CARD_THROTTLED, little, sizeof little);
    cr_expect_str_eq(little, "hardwar");
    cr_expect(!(CARD_THROTTLED & (CARD_SLOW_POWER_CAP | CARD_SLOW_IDLE | CARD_SLOW_SETTING)), "ordinary use is no throttling");
}
