#include "eval/exp_sum.h"

#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

enum { L = 8 };
typedef double vd __attribute__((vector_size(8 * L)));
typedef int64_t vl __attribute__((vector_size(8 * L)));
typedef float vf __attribute__((vector_size(4 * L)));
typedef int32_t vi __attribute__((vector_size(4 * L)));

#define INLINE static inline __attribute__((always_inline))

/* x = n ln 2 + r with n whole; e^r by its power series to r^13 (|r| <= ln(2)/2: the rest is below 5e-18). ln 2 comes in
 * two pieces, the first with so few bits that n times it is exact. */
INLINE void exp_negative(vd *x)
{
    const double shift = 0x1.8p52; /* adding it leaves n in the lowest bits */
    vd shifted = *x * 0x1.71547652b82fep0 + shift, whole = shifted - shift;
    vd r = (*x - whole * 0x1.62e42fefap-1) - whole * 0x1.cf79abc9e3b3ap-40;
    vd s = r * (1. / 6227020800) + 1. / 479001600;
    s = s * r + 1. / 39916800;
    s = s * r + 1. / 3628800;
    s = s * r + 1. / 362880;
    s = s * r + 1. / 40320;
    s = s * r + 1. / 5040;
    s = s * r + 1. / 720;
    s = s * r + 1. / 120;
    s = s * r + 1. / 24;
    s = s * r + 1. / 6;
    s = s * r + 0.5;
    s = s * (r * r) + r + 1.;
    vl n = (vl)shifted - (vl)(shift - (vd){0});
    vd p = s * (vd)((n + 1023) << 52);
    *x = (vd)((vl)p & ~(vl)(*x < -708.)); /* a NaN is not below */
}

INLINE void load(vf *to, const float *x, size_t n, float fill)
{
    float part[L];
    for (size_t i = n; i < L; i++)
        part[i] = fill;
    memcpy(part, x, n * sizeof *x);
    memcpy(to, part, sizeof part);
}

INLINE double sum_of(const float *x, size_t n, double top)
{
    vd sum[2] = {{0}};
    size_t i = 0;
    if (top == -INFINITY) /* no number, nor what fills up the last vector */
        return NAN;
    for (; i + 2 * L <= n; i += 2 * L)
        for (int k = 0; k < 2; k++) {
            vf v;
            memcpy(&v, x + i + k * L, sizeof v);
            vd d = __builtin_convertvector(v, vd) - top;
            exp_negative(&d);
            sum[k] += d;
        }
    for (; i < n; i += L) {
        vf v;
        load(&v, x + i, n - i < L ? n - i : L, -INFINITY);
        vd d = __builtin_convertvector(v, vd) - top;
        exp_negative(&d);
        sum[0] += d;
    }
    double all = 0;
    for (int k = 0; k < L; k++)
        all += sum[0][k] + sum[1][k];
    return all;
}

INLINE float top_of(const float *x, size_t n)
{
    vf top[4];
    vi nan[4] = {{0}};
    for (int k = 0; k < 4; k++)
        top[k] = x[0] - (vf){0};
    for (size_t i = 0; i < n; i += 4 * L)
        for (size_t k = 0; k < 4 && i + k * L < n; k++) {
            vf v;
            size_t at = i + k * L;
            if (at + L <= n)
                memcpy(&v, x + at, sizeof v);
            else
                load(&v, x + at, n - at, x[0]);
            nan[k] |= v != v;
            top[k] = (vf)(((vi)v & (v > top[k])) | ((vi)top[k] & ~(v > top[k])));
        }
    float best = x[0];
    int any = 0;
    for (int k = 0; k < 4; k++)
        for (int j = 0; j < L; j++) {
            any |= nan[k][j];
            best = top[k][j] > best ? top[k][j] : best;
        }
    return any ? NAN : best;
}

/* One body for three instruction sets; the choice is made anew at each call, which costs nothing beside a row. */
#if defined(__x86_64__)
#define SET(name, isa)                                                                                                 \
    __attribute__((target(isa)))    static double sum_##name(const float *x, size_t n, double top)                     \
    {                                                                                                                  \
        return sum_of(x, n, top);                                                                                      \
    }                                                                                                                  \
    __attribute__((target(isa)))    static float top_##name(const float *x, size_t n)                                  \
    {                                                                                                                  \
        return top_of(x, n);                                                                                           \
    }
SET(avx512, "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")
SET(avx2, "avx2,fma")

static bool has_avx512(void)
{
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

static bool has_avx2(void)
{
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

#define CHOOSE(name, ...) has_avx512() ? name##_avx512(__VA_ARGS__) : has_avx2() ? name##_avx2(__VA_ARGS__) : name##_of(__VA_ARGS__)
#else
#define CHOOSE(name, ...) name##_of(__VA_ARGS__)
#endif

double exp_sum(const float *x, size_t n, double top)
{
    return CHOOSE(sum, x, n, top);
}

float exp_sum_top(const float *x, size_t n)
{
    return CHOOSE(top, x, n);
}
