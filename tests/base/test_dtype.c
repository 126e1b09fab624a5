#include "base/dtype.h"

#include <math.h>
#include <string.h>

#include <criterion/criterion.h>

#include "base/rng.h"

/* A format of 1 sign bit, e exponent and m mantissa bits, by its definition; `finite`: no infinities, one NaN (e4m3fn). */
static double value_of(unsigned bits, int e, int m, bool finite)
{
    int exponent = (int)(bits >> m) & ((1 << e) - 1), bias = (1 << (e - 1)) - 1, all = (1 << e) - 1;
    unsigned mantissa = bits & ((1u << m) - 1);
    double sign = bits >> (e + m) ? -1 : 1;
    if (exponent == all && !finite)
        return mantissa ? NAN : sign * INFINITY;
    if (exponent == all && mantissa == (1u << m) - 1)
        return NAN;
    if (exponent == 0)
        return sign * ldexp(mantissa, 1 - bias - m);
    return sign * ldexp(mantissa + (1u << m), exponent - bias - m);
}

static bool same(double a, double b)
{
    return (isnan(a) && isnan(b)) || (a == b && signbit(a) == signbit(b));
}

Test(dtype, every_bf16_and_f16_widens_by_definition_and_comes_back)
{
    int wrong = 0;
    for (unsigned u = 0; u < 65536; u++) {
        float b = bf16_to_f32((bf16)u), h = f16_to_f32((f16)u);
        wrong += !same(b, value_of(u, 8, 7, false)) + !same(h, value_of(u, 5, 10, false));
        wrong += isnan(b) ? !isnan(bf16_to_f32(bf16_from_f32(b))) : bf16_from_f32(b) != u;
        wrong += isnan(h) ? !isnan(f16_to_f32(f16_from_f32(h))) : f16_from_f32(h) != u;
    }
    cr_expect(wrong == 0, "%d wrong", wrong);
}

Test(dtype, every_f8_widens_by_definition)
{
    for (unsigned u = 0; u < 256; u++)
        cr_expect(same(f8e4m3_to_f32((uint8_t)u), value_of(u, 4, 3, true)), "%02x gives %g", u, f8e4m3_to_f32((uint8_t)u));
    cr_expect(f8e4m3_to_f32(0x7e) == 448 && f8e4m3_to_f32(0x01) == 0x1p-9f);
}

/* Between each two neighbours: the middle goes to the even one, a hair either side of it to the nearer. */
static int count_misrounded(int e, int m, uint16_t (*narrow)(float))
{
    int wrong = 0;
    unsigned largest = ((1u << e) - 1) << m; /* infinity: the neighbour that the largest number rounds up to */
    for (unsigned u = 0; u < largest; u++) {
        double low = value_of(u, e, m, false), high = u + 1 == largest ? 2 * low - value_of(u - 1, e, m, false) : value_of(u + 1, e, m, false);
        float middle = (float)((low + high) / 2);
        unsigned even = u % 2 ? u + 1 : u;
        if (middle != (low + high) / 2) /* below f32's own steps: nothing to test */
            continue;
        for (int sign = 0; sign < 2; sign++) {
            float s = sign ? -1.f : 1.f;
            unsigned bit = sign ? 1u << (e + m) : 0;
            wrong += narrow(s * middle) != (even | bit);
            wrong += narrow(s * nextafterf(middle, 0)) != (u | bit);
            wrong += narrow(s * nextafterf(middle, INFINITY)) != ((u + 1) | bit);
        }
    }
    return wrong;
}

Test(dtype, narrowing_rounds_to_nearest_even_everywhere)
{
    int b = count_misrounded(8, 7, bf16_from_f32), h = count_misrounded(5, 10, f16_from_f32);
    cr_expect(b == 0, "bf16: %d wrong", b);
    cr_expect(h == 0, "f16: %d wrong", h);
}

Test(dtype, the_ends_of_the_range)
{
    static const struct {
        float f;
        bf16 b;
        f16 h;
    } cases[] = {
        {0, 0, 0},
        {-0.f, 0x8000, 0x8000},
        {INFINITY, 0x7f80, 0x7c00},
        {-INFINITY, 0xff80, 0xfc00},
        {65504, 0x4780, 0x7bff},
        {65519.996f, 0x4780, 0x7bff},
        {65520, 0x4780, 0x7c00},
        {3.4028235e38f, 0x7f80, 0x7c00}, /* the largest f32 rounds up in bf16 */
        {0x1p-24f, 0x3380, 0x0001},
        {0x1p-25f, 0x3300, 0x0000},
        {0x1.8p-25f, 0x3340, 0x0001},
        {0x1p-149f, 0x0000, 0x0000},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        cr_expect(bf16_from_f32(cases[i].f) == cases[i].b, "%g as bf16 is %04x", cases[i].f, bf16_from_f32(cases[i].f));
        cr_expect(f16_from_f32(cases[i].f) == cases[i].h, "%g as f16 is %04x", cases[i].f, f16_from_f32(cases[i].f));
    }
    uint32_t quiet[] = {0x7f800001, 0x7fffffff, 0xff800001, 0x7fc00000};
    for (int i = 0; i < 4; i++) {
        float f;
        memcpy(&f, &quiet[i], sizeof f);
        cr_expect(isnan(bf16_to_f32(bf16_from_f32(f))) && isnan(f16_to_f32(f16_from_f32(f))), "NaN %08x", quiet[i]);
    }
}

Test(dtype, arrays_convert_element_by_element)
{
    enum { N = 300 };
    float values[N], back[N];
    double wide[N];
    int32_t whole[N];
    uint16_t narrow[N];
    uint8_t bytes[N];
    rng r = rng_make(1, 2);
    for (int i = 0; i < N; i++) {
        values[i] = (float)rng_normal(&r);
        wide[i] = rng_normal(&r);
        whole[i] = (int32_t)rng_below(&r, 1000) - 500;
        bytes[i] = (uint8_t)i;
    }
    dtype_from_f32(narrow, DT_BF16, values, N);
    dtype_to_f32(back, narrow, DT_BF16, N);
    for (int i = 0; i < N; i++)
        cr_expect(narrow[i] == bf16_from_f32(values[i]) && back[i] == bf16_to_f32(narrow[i]));
    dtype_from_f32(narrow, DT_F16, values, N);
    dtype_to_f32(back, narrow, DT_F16, N);
    for (int i = 0; i < N; i++)
        cr_expect(narrow[i] == f16_from_f32(values[i]) && back[i] == f16_to_f32(narrow[i]));
    dtype_from_f32(back, DT_F32, values, N);
    cr_expect(memcmp(back, values, sizeof back) == 0);
    dtype_to_f32(back, wide, DT_F64, N);
    for (int i = 0; i < N; i++)
        cr_expect(back[i] == (float)wide[i]);
    dtype_to_f32(back, whole, DT_I32, N);
    for (int i = 0; i < N; i++)
        cr_expect(back[i] == (float)whole[i]);
    dtype_to_f32(back, bytes, DT_F8E4M3, N);
    for (int i = 0; i < N; i++)
        cr_expect(same(back[i], f8e4m3_to_f32(bytes[i])));
}

Test(dtype, names_and_sizes)
{
    static const struct {
        tpl_dtype t;
        const char *name, *format;
        size_t bytes;
    } cases[] = {{DT_F32, "f32", "F32", 4},         {DT_BF16, "bf16", "BF16", 2}, {DT_F16, "f16", "F16", 2},
                 {DT_F8E4M3, "f8e4m3", "F8_E4M3", 1}, {DT_I32, "i32", "I32", 4},    {DT_F64, "f64", "F64", 8}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        cr_expect(dtype_bytes(cases[i].t) == cases[i].bytes);
        cr_expect_str_eq(dtype_name(cases[i].t), cases[i].name);
        cr_expect(dtype_from_name(cases[i].name) == cases[i].t && dtype_from_safetensors(cases[i].format) == cases[i].t);
    }
    cr_expect(dtype_from_name("F32") == DT_NONE && dtype_from_name("") == DT_NONE && dtype_from_name("none") == DT_NONE);
    cr_expect(dtype_from_safetensors("f32") == DT_NONE && dtype_from_safetensors("") == DT_NONE);
}
