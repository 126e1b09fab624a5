/* Products of bf16 pairs with AVX-512's vdpbf16ps. On other processors the file compiles to nothing and says so. */
#include "kernels/cpu/simd.h"

#if defined(__x86_64__)
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")
#include <immintrin.h>

#define INLINE static inline __attribute__((always_inline))

enum { L = 16, MR = 8 }; /* words a vector; rows of a tile: 16 sums of 16 lanes beside 3 inputs in 32 registers */

static bool available(void)
{
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512bf16");
}

INLINE __m512bh pairs_at(const float *words)
{
    return (__m512bh)_mm512_loadu_ps(words);
}

INLINE __m512bh pair_everywhere(const float *word)
{
    int32_t bits;
    __builtin_memcpy(&bits, word, sizeof bits);
    return (__m512bh)_mm512_set1_epi32(bits);
}

INLINE __mmask16 first_lanes(int64_t n)
{
    return n >= L ? (__mmask16)0xffff : (__mmask16)((1u << n) - 1);
}

/* c [mr, nv vectors, of which n columns are c's] (+)= a [mr, k] b [k, nv vectors], all sums in registers. */
INLINE void tile(const int mr, const int nv, const simd_gemm *g, const float *a, const float *b, float *c, int64_t n)
{
    __m512 sum[MR][2];
#pragma GCC unroll 8
    for (int i = 0; i < mr; i++)
#pragma GCC unroll 2
        for (int j = 0; j < nv; j++)
            sum[i][j] = g->accumulate ? _mm512_maskz_loadu_ps(first_lanes(n - j * L), c + i * g->ldc + j * L)
                                      : _mm512_setzero_ps();
    for (int64_t p = 0; p < g->k; p++, b += g->ldb) {
        __m512bh w[2];
#pragma GCC unroll 2
        for (int j = 0; j < nv; j++)
            w[j] = pairs_at(b + j * L);
#pragma GCC unroll 8
        for (int i = 0; i < mr; i++) {
            __m512bh x = pair_everywhere(a + i * g->lda + p);
#pragma GCC unroll 2
            for (int j = 0; j < nv; j++)
                sum[i][j] = _mm512_dpbf16_ps(sum[i][j], x, w[j]);
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < mr; i++)
#pragma GCC unroll 2
        for (int j = 0; j < nv; j++)
            _mm512_mask_storeu_ps(c + i * g->ldc + j * L, first_lanes(n - j * L), sum[i][j]);
}

INLINE void tile_rows(const int nv, int64_t rows, const simd_gemm *g, int64_t i, int64_t j, int64_t n)
{
    const float *a = g->a + i * g->lda, *b = (const float *)g->b + j;
    float *c = g->c + i * g->ldc + j;
    int64_t left = rows;
    if (left == MR) {
        tile(MR, nv, g, a, b, c, n);
        return;
    }
    if (left >= 4) {
        tile(4, nv, g, a, b, c, n);
        a += 4 * g->lda, c += 4 * g->ldc, left -= 4;
    }
    for (; left > 0; left--, a += g->lda, c += g->ldc)
        tile(1, nv, g, a, b, c, n);
}

static void gemm(const simd_gemm *g)
{
    for (int64_t j = 0; j < g->n; j += 2 * L) {
        int64_t n = g->n - j < 2 * L ? g->n - j : 2 * L;
        for (int64_t i = 0; i < g->m; i += MR) {
            int64_t rows = g->m - i < MR ? g->m - i : MR;
            if (n > L)
                tile_rows(2, rows, g, i, j, n);
            else
                tile_rows(1, rows, g, i, j, n);
        }
    }
}

static void interleave(float *dst, const bf16 *even, const bf16 *odd, int64_t n)
{
    for (int64_t i = 0; i < n; i += L) {
        __mmask16 m = first_lanes(n - i);
        __m512i low = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(m, even + i));
        __m512i high = odd ? _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(m, odd + i)) : _mm512_setzero_si512();
        _mm512_mask_storeu_epi32(dst + i, m, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
    }
}

const simd_pairs simd_avx512bf16 = {.available = available,
                                    .gemm = gemm,
                                    .interleave = interleave,
                                    .gqa_add = simd_gqa_add,
                                    .gqa_end = simd_gqa_end};
#else
static bool available(void)
{
    return false;
}

const simd_pairs simd_avx512bf16 = {.available = available};
#endif
