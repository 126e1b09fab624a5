/* card_clock.h - the measuring loop's clock where a card does the work: the host's time, the card's own word on its speed.
 * For:    benches with backend "cuda".
 * Enter:  bench/, cli/, tests/.
 * Owns:   nothing; the watch must stay open as long as the clock is used.
 * Fails:  never; without a watch, or where it does not know, samples are kept. */
#ifndef TPL_BENCH_CARD_CLOCK_H
#define TPL_BENCH_CARD_CLOCK_H

#include "bench/measure.h"
#include "device/card_watch.h"

/* watch NULL: clocks are not readable, nothing is thrown away. */
bench_clock card_clock(card_watch *watch);

#endif
