/* card_clock.h - the measuring loop's clock where a card does the work: the host's time, the card's own word on its speed.
 * For:    benches with backend "cuda".
 * Enter:  bench/, cli/, tests/.
 * Owns:   card_watches_close() closes the watches, which must stay open as long as the clock is used.
 * Fails:  never; without a watch, or where it does not know, samples are kept. */
#ifndef TPL_BENCH_CARD_CLOCK_H
#define TPL_BENCH_CARD_CLOCK_H

#include "bench/measure.h"
#include "device/card_watch.h"

enum { CARD_MAX_WATCHED = 16 };

/* A card with more of its memory taken before a command has allocated anything has another program on it; what earlier
 * commands of a process leave, contexts and the buffers of libraries, is less. */
static const double card_taken_limit = 2e9;

/* The cards that work together; any of them that is held down spoils a sample. */
typedef struct {
    card_watch *card[CARD_MAX_WATCHED];
    int n;
} card_watches;

void card_watches_close(card_watches *w);
/* With no watch clocks are not readable, and nothing is thrown away. The speed is the slowest card's. */
bench_clock card_clock(card_watches *w);

#endif
