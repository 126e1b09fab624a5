/* dtype.h - element types of tensors, and exact conversions between them and f32.
 * For:    checkpoints, kernels, caches.  Enter: all rooms.  Owns: nothing.
 * Fails:  never; unknown names give DT_NONE. */
#ifndef TPL_BASE_DTYPE_H
#define TPL_BASE_DTYPE_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

typedef enum { DT_NONE, DT_F32, DT_BF16, DT_F16, DT_F8E4M3, DT_I32, DT_F64 } tpl_dtype;

typedef uint16_t bf16; /* the upper half of an f32 */
typedef uint16_t f16;  /* IEEE binary16 */

size_t dtype_bytes(tpl_dtype t);
const char *dtype_name(tpl_dtype t);            /* "f32", "bf16", ... as CSV cells and options write it */
tpl_dtype dtype_from_name(const char *name);    /* inverse of dtype_name */
tpl_dtype dtype_from_safetensors(const char *s); /* "F32", "BF16", "F16", "F8_E4M3", "I32", "F64" */

static inline float bf16_to_f32(bf16 v)
{
    uint32_t u = (uint32_t)v << 16;
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}

/* Round to nearest, ties to even; NaN stays NaN. */
static inline bf16 bf16_from_f32(float f)
{
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    if ((u & 0x7fffffffu) > 0x7f800000u)
        return (bf16)((u >> 16) | 0x40);
    return (bf16)((u + 0x7fffu + ((u >> 16) & 1)) >> 16);
}

float f16_to_f32(f16 v);
f16 f16_from_f32(float f);
float f8e4m3_to_f32(uint8_t v);

/* dst[n] = src[n] widened; src has type t (DT_F64 narrows). */
void dtype_to_f32(float *dst, const void *src, tpl_dtype t, size_t n);
/* dst[n] of type t (f32, bf16, f16) = src[n] rounded to nearest even. */
void dtype_from_f32(void *dst, tpl_dtype t, const float *src, size_t n);

#endif
