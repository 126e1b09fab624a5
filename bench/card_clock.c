#include "bench/card_clock.h"

#include <math.h>

#include "base/clock.h"

static int64_t now_ns(void *self)
{
    return clock_ns();
}

static double mhz(void *self)
{
    const card_watches *w = self;
    double slowest = NAN;
    for (int i = 0; i < w->n; i++)
        slowest = fmin(slowest, card_watch_glance(w->card[i]).sm_mhz);
    return slowest;
}

static int limits(void *self)
{
    const card_watches *w = self;
    uint32_t reasons = 0;
    for (int i = 0; i < w->n; i++)
        reasons |= card_watch_glance(w->card[i]).reasons;
    return (reasons & CARD_THROTTLED ? BENCH_THROTTLED : 0) | (reasons & CARD_SLOW_POWER_CAP ? BENCH_POWER_CAPPED : 0);
}

bench_clock card_clock(card_watches *w)
{
    return (bench_clock){.now_ns = now_ns, .mhz = mhz, .self = w, .limits = limits};
}

void card_watches_close(card_watches *w)
{
    while (w->n > 0)
        card_watch_close(w->card[--w->n]);
}
