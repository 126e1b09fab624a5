#include "bench/card_clock.h"

#include <math.h>

#include "base/clock.h"

static int64_t now_ns(void *self)
{
    return clock_ns();
}

static double mhz(void *self)
{
    return self ? card_watch_glance(self).sm_mhz : NAN;
}

static int limits(void *self)
{
    uint32_t reasons = self ? card_watch_glance(self).reasons : 0;
    return (reasons & CARD_THROTTLED ? BENCH_THROTTLED : 0) | (reasons & CARD_SLOW_POWER_CAP ? BENCH_POWER_CAPPED : 0);
}

bench_clock card_clock(card_watch *watch)
{
    return (bench_clock){.now_ns = now_ns, .mhz = mhz, .self = watch, .limits = limits};
}
