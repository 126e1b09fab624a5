/* synthetic.h - a clock and targets whose behaviour is known, so that the measuring loop is tested without a real
 * machine. For:    tests/bench/. Enter:  tests/bench/.  Owns: nothing.  Fails: never. */
#ifndef TPL_TESTS_BENCH_SYNTHETIC_H
#define TPL_TESTS_BENCH_SYNTHETIC_H

#include <math.h>
#include <string.h>

#include "base/rng.h"
#include "bench/measure.h"

/* Time passes only when a target runs (and by `tick_ns` at each reading). */
typedef struct {
    int64_t now;
    int64_t tick_ns;
    long n_reads;
    double mhz; /* 0: not readable */
} fake_machine;

static inline int64_t fake_now(void *self)
{
    fake_machine *m = self;
    m->n_reads++;
    m->now += m->tick_ns;
    return m->now;
}

static inline double fake_mhz(void *self)
{
    fake_machine *m = self;
    return m->mhz > 0 ? m->mhz : NAN;
}

static inline bench_clock fake_clock(fake_machine *m)
{
    return (bench_clock){.now_ns = fake_now, .mhz = fake_mhz, .self = m};
}

enum { FAKE_LOG = 4096 };

typedef struct {
    fake_machine *m;
    char name;                     /* goes into the shared log at each run */
    char *log;                     /* [FAKE_LOG], 0-terminated; NULL: none */
    double cold_us, hot_us, noise; /* noise: standard deviation over the time */
    double first_us;               /* of the first run, falling to hot_us over ten runs; 0: none */
    rng random;
    bool is_cold;
    int n_runs, n_prepared, n_released, n_verified;
    bool alive;
    int64_t wrong_at_verify[3];     /* n_wrong of the first, the second and of later verifications */
    int throttle_from, throttle_to; /* runs at half the clock */
    tpl_code fail_prepare, fail_run;
    bool cannot_cool;
} fake_target;

static inline void fake_log(fake_target *t, char c)
{
    size_t n = t->log ? strlen(t->log) : FAKE_LOG;
    if (n + 1 < FAKE_LOG)
        t->log[n] = c;
}

static inline tpl_code fake_prepare(void *self, tpl_err *e)
{
    fake_target *t = self;
    t->n_prepared++;
    fake_log(t, '(');
    if (t->fail_prepare != TPL_OK)
        return tpl_fail(e, t->fail_prepare, "fake", "planned failure");
    t->alive = true;
    return TPL_OK;
}

static inline void fake_release(void *self)
{
    fake_target *t = self;
    t->n_released++;
    t->alive = false;
    fake_log(t, ')');
}

static inline tpl_code fake_verify(void *self, int64_t *n_wrong, tpl_err *e)
{
    fake_target *t = self;
    *n_wrong = t->wrong_at_verify[t->n_verified < 2 ? t->n_verified : 2];
    t->n_verified++;
    return TPL_OK;
}

static inline bool fake_cool(void *self)
{
    fake_target *t = self;
    t->is_cold = !t->cannot_cool;
    return t->is_cold;
}

static inline tpl_code fake_run(void *self, tpl_err *e)
{
    fake_target *t = self;
    double us = t->is_cold ? t->cold_us : t->hot_us;
    if (t->fail_run != TPL_OK)
        return tpl_fail(e, t->fail_run, "fake", "planned failure");
    if (t->first_us > 0 && t->n_runs < 10)
        us += (t->first_us - us) * (10 - t->n_runs) / 10.;
    us *= 1 + t->noise * rng_normal(&t->random);
    if (t->throttle_to > 0) {
        bool slow = t->n_runs >= t->throttle_from && t->n_runs < t->throttle_to;
        t->m->mhz = slow ? 1500 : 3000;
        us *= slow ? 2 : 1;
    }
    t->m->now += (int64_t)(us * 1000);
    t->is_cold = false;
    t->n_runs++;
    fake_log(t, t->name);
    return TPL_OK;
}

static inline bench_target fake_bench(fake_target *t)
{
    return (bench_target){.self = t,
                          .prepare = fake_prepare,
                          .release = fake_release,
                          .verify = fake_verify,
                          .make_cold = fake_cool,
                          .run = fake_run};
}

#endif
