/* card_watch.h - what a card says of itself through NVML: clocks, power, temperature, why it is slow, ECC, its driver.
 * For:    run.json, `tplabench info`, and the measuring loop, which throws samples of a throttled card away.
 * Enter:  bench/, cli/, tests/. In every build: the library is loaded at run time and no header of its is needed.
 * Owns:   card_watch_open() owns the library's session until card_watch_close().
 * Fails:  TPL_E_UNSUPPORTED where there is no such library, TPL_E_DEVICE where it has no such card. What a card does not
 *         tell is NaN, -1 or false. */
#ifndef TPL_DEVICE_CARD_WATCH_H
#define TPL_DEVICE_CARD_WATCH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

typedef struct card_watch card_watch;

/* What does not change while a program runs, and counts since the driver was loaded. */
typedef struct {
    char name[96], driver[96];
    double sm_mhz_max, memory_mhz_max, power_limit_w;
    int ecc; /* 1 on, 0 off, -1 not known */
    int64_t ecc_corrected, ecc_uncorrected;
} card_about;

/* Why clocks are not at their highest, as NVML numbers it. */
enum {
    CARD_SLOW_IDLE = 0x1,
    CARD_SLOW_SETTING = 0x2,
    CARD_SLOW_POWER_CAP = 0x4,
    CARD_SLOW_HARDWARE = 0x8,
    CARD_SLOW_SYNC_BOOST = 0x10,
    CARD_SLOW_THERMAL_SOFTWARE = 0x20,
    CARD_SLOW_THERMAL_HARDWARE = 0x40,
    CARD_SLOW_POWER_BRAKE = 0x80,
    CARD_SLOW_DISPLAY = 0x100,
    /* A time taken meanwhile says nothing of the card. The power cap is not among them: heavy work meets it in ordinary
     * use. */
    CARD_THROTTLED = CARD_SLOW_HARDWARE | CARD_SLOW_THERMAL_SOFTWARE | CARD_SLOW_THERMAL_HARDWARE | CARD_SLOW_POWER_BRAKE
};

typedef struct {
    double sm_mhz, memory_mhz, power_w, temperature_c;
    bool knows_reasons;
    uint32_t reasons;
} card_state;

/* How many cards the library sees; 0 without it. library NULL: $TPLABENCH_NVML, else libnvidia-ml.so.1. */
int card_watch_count(const char *library);
/* The card with that PCI bus id ("00000000:1B:00.0"), or, where it is NULL, number `index` of the library. */
tpl_code card_watch_open(const char *library, const char *bus_id, int index, card_watch **out, tpl_err *e);
void card_watch_close(card_watch *w); /* NULL is fine */

const card_about *card_watch_about(const card_watch *w);
card_state card_watch_read(const card_watch *w);
/* Clock of the multiprocessors and reasons only: quick enough to look between samples. */
card_state card_watch_glance(const card_watch *w);

/* "power cap, hardware slowdown"; "none". */
void card_reasons_text(uint32_t reasons, char *out, size_t size);

#endif
