/* Products of few rows with a weight as it lies, whose rows are short: what counts then is adding up each sum's 16
 * lanes, which is done for 16 sums at once. On other processors the file compiles to nothing. */
#include "kernels/cpu/simd.h"

#if defined(__x86_64__)
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")
#include <immintrin.h>

#define INLINE static inline __attribute__((always_inline))

enum { L = 16, COLS = 16 };

INLINE __m512 weights(const void *w, const bool is_bf16, int64_t at, __mmask16 m)
{
    if (is_bf16)
        return _mm512_castsi512_ps(
            _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(m, (const bf16 *)w + at)), 16));
    return _mm512_maskz_loadu_ps(m, (const float *)w + at);
}

/* Lane 4 g + e is the sum of v[4 e + g], in the order of sum_lanes() in simd_body.h: halves, quarters, pairs, single
 * values. */
INLINE __m512 sum_lanes_16(const __m512 v[16])
{
    __m512 half[8], quarter[4], two[2];
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++)
        half[i] = _mm512_add_ps(_mm512_shuffle_f32x4(v[2 * i], v[2 * i + 1], 0x44),
                                _mm512_shuffle_f32x4(v[2 * i], v[2 * i + 1], 0xee));
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++)
        quarter[i] = _mm512_add_ps(_mm512_shuffle_f32x4(half[2 * i], half[2 * i + 1], 0x88),
                                   _mm512_shuffle_f32x4(half[2 * i], half[2 * i + 1], 0xdd));
#pragma GCC unroll 2
    for (int i = 0; i < 2; i++)
        two[i] = _mm512_add_ps(_mm512_shuffle_ps(quarter[2 * i], quarter[2 * i + 1], 0x44),
                               _mm512_shuffle_ps(quarter[2 * i], quarter[2 * i + 1], 0xee));
    return _mm512_add_ps(_mm512_shuffle_ps(two[0], two[1], 0x88), _mm512_shuffle_ps(two[0], two[1], 0xdd));
}

/* c [rows, 16 / most] (+)= a [rows, k] w [16 / most, k]^T for rows <= most; most is 1, 2 or 4. */
INLINE void tile(const int rows, const int most, const bool is_bf16, const simd_gemm *g, const float *a, int64_t w,
                 float *c)
{
    const int nc = COLS / most;
    __m512 sum[COLS];
#pragma GCC unroll 16
    for (int i = 0; i < COLS; i++)
        sum[i] = _mm512_setzero_ps();
    for (int64_t p = 0; p < g->k; p += L) {
        __mmask16 m = g->k - p >= L ? (__mmask16)0xffff : (__mmask16)((1u << (g->k - p)) - 1);
        __m512 x[4];
#pragma GCC unroll 4
        for (int i = 0; i < rows; i++)
            x[i] = _mm512_maskz_loadu_ps(m, a + i * g->lda + p);
#pragma GCC unroll 16
        for (int j = 0; j < nc; j++) {
            __m512 b = weights(g->b, is_bf16, w + j * g->ldb + p, m);
#pragma GCC unroll 4
            for (int i = 0; i < rows; i++) {
                int lane = i * nc + j;
                sum[4 * (lane % 4) + lane / 4] = _mm512_fmadd_ps(x[i], b, sum[4 * (lane % 4) + lane / 4]);
            }
        }
    }
    __m512 all = sum_lanes_16(sum);
#pragma GCC unroll 4
    for (int i = 0; i < rows; i++, c += g->ldc) {
        if (most == 1)
            _mm512_storeu_ps(c, g->accumulate ? _mm512_add_ps(all, _mm512_loadu_ps(c)) : all);
        __m256 half = i == 0 ? _mm512_castps512_ps256(all) : _mm512_extractf32x8_ps(all, 1);
        if (most == 2)
            _mm256_storeu_ps(c, g->accumulate ? _mm256_add_ps(half, _mm256_loadu_ps(c)) : half);
        __m128 part = i == 0   ? _mm512_castps512_ps128(all)
                      : i == 1 ? _mm512_extractf32x4_ps(all, 1)
                      : i == 2 ? _mm512_extractf32x4_ps(all, 2)
                               : _mm512_extractf32x4_ps(all, 3);
        if (most == 4)
            _mm_storeu_ps(c, g->accumulate ? _mm_add_ps(part, _mm_loadu_ps(c)) : part);
    }
}

/* Columns [col, col + 16) of rows [row, row + rows): one function each, so that each has all registers for itself. */
#define BLOCK(name, rows, most, is_bf16)                                                                               \
    static __attribute__((noinline)) void name(const simd_gemm *g, int64_t row, int64_t col)                           \
    {                                                                                                                  \
        const float *a = g->a + row * g->lda;                                                                          \
        for (int64_t j = col; j < col + COLS; j += COLS / (most))                                                      \
            tile(rows, most, is_bf16, g, a, j * g->ldb, g->c + row * g->ldc + j);                                      \
    }
BLOCK(bf16_1, 1, 1, true)
BLOCK(bf16_2, 2, 2, true)
BLOCK(bf16_3, 3, 4, true)
BLOCK(bf16_4, 4, 4, true)
BLOCK(f32_1, 1, 1, false)
BLOCK(f32_2, 2, 2, false)
BLOCK(f32_3, 3, 4, false)
BLOCK(f32_4, 4, 4, false)

int64_t simd_thin_avx512(const simd_gemm *g)
{
    static void (*const blocks[2][4])(const simd_gemm *, int64_t, int64_t) = {{f32_1, f32_2, f32_3, f32_4},
                                                                              {bf16_1, bf16_2, bf16_3, bf16_4}};
    int64_t j = 0;
    for (; j + COLS <= g->n; j += COLS)
        for (int64_t i = 0; i < g->m; i += 4)
            blocks[g->b_bf16][g->m - i < 4 ? g->m - i - 1 : 3](g, i, j);
    return j;
}
#endif
