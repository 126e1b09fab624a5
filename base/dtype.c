#include "base/dtype.h"

#include <assert.h>
#include <math.h>

static const struct {
    const char *name, *safetensors;
    size_t bytes;
} types[] = {
    [DT_NONE] = {"none", "", 0},      [DT_F32] = {"f32", "F32", 4},   [DT_BF16] = {"bf16", "BF16", 2},
    [DT_F16] = {"f16", "F16", 2},     [DT_F8E4M3] = {"f8e4m3", "F8_E4M3", 1},
    [DT_I32] = {"i32", "I32", 4},     [DT_F64] = {"f64", "F64", 8},
};

enum { N_TYPES = sizeof types / sizeof *types };

size_t dtype_bytes(tpl_dtype t)
{
    return types[t].bytes;
}

const char *dtype_name(tpl_dtype t)
{
    return types[t].name;
}

tpl_dtype dtype_from_name(const char *name)
{
    for (int t = 1; t < N_TYPES; t++)
        if (strcmp(types[t].name, name) == 0)
            return (tpl_dtype)t;
    return DT_NONE;
}

tpl_dtype dtype_from_safetensors(const char *s)
{
    for (int t = 1; t < N_TYPES; t++)
        if (strcmp(types[t].safetensors, s) == 0)
            return (tpl_dtype)t;
    return DT_NONE;
}

float f16_to_f32(f16 v)
{
    int exponent = (v >> 10) & 31, mantissa = v & 1023;
    float sign = v & 0x8000 ? -1.f : 1.f;
    if (exponent == 31)
        return mantissa ? NAN : sign * INFINITY;
    if (exponent == 0)
        return sign * ldexpf((float)mantissa, -24);
    return sign * ldexpf((float)(mantissa | 1024), exponent - 25);
}

f16 f16_from_f32(float f)
{
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    f16 sign = (f16)((u >> 16) & 0x8000);
    float a = fabsf(f);
    if (isnan(f))
        return (f16)(sign | 0x7e00);
    if (a >= 65520.f)
        return (f16)(sign | 0x7c00);
    if (a < 6.103515625e-05f) /* subnormal: a multiple of 2^-24 */
        return (f16)(sign | (f16)nearbyintf(ldexpf(a, 24)));
    int e;
    float m = frexpf(a, &e); /* a = m 2^e, m in [0.5, 1) */
    uint32_t q = (uint32_t)nearbyintf(ldexpf(m, 11)); /* 1024..2048; 2048 carries into the exponent */
    return (f16)(sign | (f16)(((uint32_t)(e + 14) << 10) + (q - 1024)));
}

float f8e4m3_to_f32(uint8_t v)
{
    int exponent = (v >> 3) & 15, mantissa = v & 7;
    float sign = v & 0x80 ? -1.f : 1.f;
    if (exponent == 15 && mantissa == 7)
        return NAN;
    if (exponent == 0)
        return sign * ldexpf((float)mantissa, -9);
    return sign * ldexpf((float)(mantissa | 8), exponent - 10);
}

void dtype_to_f32(float *dst, const void *src, tpl_dtype t, size_t n)
{
    switch (t) {
    case DT_F32:
        memcpy(dst, src, n * sizeof *dst);
        return;
    case DT_BF16:
        for (size_t i = 0; i < n; i++)
            dst[i] = bf16_to_f32(((const bf16 *)src)[i]);
        return;
    case DT_F16:
        for (size_t i = 0; i < n; i++)
            dst[i] = f16_to_f32(((const f16 *)src)[i]);
        return;
    case DT_F8E4M3:
        for (size_t i = 0; i < n; i++)
            dst[i] = f8e4m3_to_f32(((const uint8_t *)src)[i]);
        return;
    case DT_F64:
        for (size_t i = 0; i < n; i++)
            dst[i] = (float)((const double *)src)[i];
        return;
    case DT_I32:
        for (size_t i = 0; i < n; i++)
            dst[i] = (float)((const int32_t *)src)[i];
        return;
    case DT_NONE:
        break;
    }
    assert(!"no such element type");
}

void dtype_from_f32(void *dst, tpl_dtype t, const float *src, size_t n)
{
    switch (t) {
    case DT_F32:
        memcpy(dst, src, n * sizeof *src);
        return;
    case DT_BF16:
        for (size_t i = 0; i < n; i++)
            ((bf16 *)dst)[i] = bf16_from_f32(src[i]);
        return;
    case DT_F16:
        for (size_t i = 0; i < n; i++)
            ((f16 *)dst)[i] = f16_from_f32(src[i]);
        return;
    default:
        assert(!"no such narrowing");
    }
}
