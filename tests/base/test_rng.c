#include "base/rng.h"

#include <math.h>
#include <stdlib.h>

#include <criterion/criterion.h>

/* The C++ standard gives the 10,000th output of mt19937 with seed 5489; the first ones by numpy's RandomState. */
Test(rng, mt19937_gives_the_known_draws)
{
    static const struct {
        uint32_t seed, first[5];
    } cases[] = {{5489, {3499211612u, 581869302u, 3890346734u, 3586334585u, 545404204u}},
                 {1234, {822569775u, 2137449171u, 2671936806u, 3512589365u, 1880026316u}},
                 {1235, {4096379083u, 3613105954u, 4261150722u, 3397365999u, 2059878851u}}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        mt19937 m;
        mt19937_seed(&m, cases[i].seed);
        for (int k = 0; k < 5; k++)
            cr_expect(mt19937_u32(&m) == cases[i].first[k], "seed %u draw %d", cases[i].seed, k);
    }
    mt19937 m;
    mt19937_seed(&m, 5489);
    for (int k = 1; k < 10000; k++)
        mt19937_u32(&m);
    cr_expect(mt19937_u32(&m) == 4123659995u);
}

/* splitmix64 with state 0 and 1234567: the values of its authors' reference code. */
Test(rng, splitmix64_gives_the_known_draws)
{
    rng r = {0};
    cr_expect(rng_u64(&r) == 0xe220a8397b1dcdafu && rng_u64(&r) == 0x6e789e6aa1b965f4u && rng_u64(&r) == 0x06c45d188009454fu);
    r = (rng){1234567};
    cr_expect(rng_u64(&r) == 6457827717110365317u && rng_u64(&r) == 3203168211198807973u);
}

Test(rng, streams_repeat_and_differ)
{
    rng a = rng_make(1, 1), b = rng_make(1, 1), c = rng_make(1, 2), d = rng_make(2, 1);
    int equal = 0;
    for (int i = 0; i < 1000; i++) {
        uint64_t x = rng_u64(&a);
        cr_assert(x == rng_u64(&b));
        equal += x == rng_u64(&c);
        equal += x == rng_u64(&d);
    }
    cr_expect(equal == 0);
}

/* 100,000 draws: the mean of a uniform has standard deviation sqrt(1/12/n) = 0.0009, of a normal 0.0032, its variance
 * sqrt(2/n) = 0.0045; five times that is never seen. */
Test(rng, uniform_and_normal_have_their_moments)
{
    enum { N = 100000 };
    rng r = rng_make(3, 0);
    double u = 0, x = 0, xx = 0, lo = 1, hi = 0;
    for (int i = 0; i < N; i++) {
        double v = rng_uniform(&r), n = rng_normal(&r);
        lo = fmin(lo, v);
        hi = fmax(hi, v);
        u += v / N;
        x += n / N;
        xx += n * n / N;
        cr_assert(isfinite(n));
    }
    cr_expect(lo >= 0 && hi < 1 && fabs(u - .5) < .0045, "mean %g", u);
    cr_expect(fabs(x) < .016 && fabs(xx - 1) < .0225, "mean %g, variance %g", x, xx);
}

/* 70,000 draws below 7: each count has standard deviation 93. */
Test(rng, numbers_below_a_bound_are_even)
{
    int count[7] = {0};
    rng r = rng_make(4, 0);
    for (int i = 0; i < 70000; i++)
        count[rng_below(&r, 7)]++;
    for (int k = 0; k < 7; k++)
        cr_expect(abs(count[k] - 10000) < 465, "%d came %d times", k, count[k]);
    cr_expect(rng_below(&r, 1) == 0);
    for (int i = 0; i < 100; i++)
        cr_expect(rng_below(&r, (UINT64_C(1) << 63) + 1) <= UINT64_C(1) << 63);
}
