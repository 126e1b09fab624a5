/* Weights laid out for gemm_nn, 16 x 16 values at a time in registers. On other processors the file compiles to nothing. */
#include "kernels/cpu/simd.h"

#if defined(__x86_64__)
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")
#include <immintrin.h>

#define INLINE static inline __attribute__((always_inline))

enum { L = 16, PANEL = 2 * L };

INLINE __m512 row_part(const void *w, const bool is_bf16, int64_t at, __mmask16 m)
{
    if (is_bf16)
        return _mm512_castsi512_ps(
            _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(m, (const bf16 *)w + at)), 16));
    return _mm512_maskz_loadu_ps(m, (const float *)w + at);
}

/* Four rounds: values, pairs and quarters change places between rows 1, 2, 4 and 8 apart. */
INLINE void transpose_16(__m512 r[16])
{
    __m512 t[16];
#pragma GCC unroll 8
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 16; i += 4)
#pragma GCC unroll 2
        for (int h = 0; h < 2; h++) {
            __m512d a = _mm512_castps_pd(t[i + h]), b = _mm512_castps_pd(t[i + 2 + h]);
            r[i + 2 * h] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
            r[i + 2 * h + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
        }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++)
#pragma GCC unroll 2
        for (int h = 0; h < 2; h++) {
            t[8 * h + i] = _mm512_shuffle_f32x4(r[8 * h + i], r[8 * h + 4 + i], 0x88);
            t[8 * h + 4 + i] = _mm512_shuffle_f32x4(r[8 * h + i], r[8 * h + 4 + i], 0xdd);
        }
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) {
        r[i] = _mm512_shuffle_f32x4(t[i], t[8 + i], 0x88);
        r[8 + i] = _mm512_shuffle_f32x4(t[i], t[8 + i], 0xdd);
    }
}

/* Columns [0, 16) of a panel: rows [0, n) of w, zeros behind them. */
INLINE void half_panel(float *dst, const void *w, const bool is_bf16, int64_t at, int64_t ldw, int64_t n, int64_t k)
{
    for (int64_t p = 0; p < k; p += L) {
        __mmask16 m = k - p >= L ? (__mmask16)0xffff : (__mmask16)((1u << (k - p)) - 1);
        __m512 r[16];
#pragma GCC unroll 16
        for (int i = 0; i < 16; i++)
            r[i] = row_part(w, is_bf16, i < n ? at + i * ldw + p : at, i < n ? m : 0);
        for (int i = L; i < 2 * L; i++) /* the rows that come next: 16 short streams are none that caches foresee */
            __builtin_prefetch((const char *)w + (at + i * ldw + p) * (is_bf16 ? 2 : 4));
        transpose_16(r);
#pragma GCC unroll 16
        for (int i = 0; i < 16; i++)
            if (p + i < k)
                _mm512_storeu_ps(dst + (p + i) * PANEL, r[i]);
    }
}

INLINE void panels(float *dst, const void *w, const bool is_bf16, int64_t ldw, int64_t n, int64_t k)
{
    for (int64_t j = 0; j < n; j += L)
        half_panel(dst + j / PANEL * PANEL * k + j % PANEL, w, is_bf16, j * ldw, ldw, n - j, k);
}

void simd_pack_avx512(float *dst, const void *w, bool is_bf16, int64_t ldw, int64_t n, int64_t k)
{
    if (is_bf16)
        panels(dst, w, true, ldw, n, k);
    else
        panels(dst, w, false, ldw, n, k);
}
#endif
