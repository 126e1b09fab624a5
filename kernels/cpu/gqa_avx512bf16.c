/* Decode attention of grouped queries over a bf16 cache as it lies, with AVX-512's vdpbf16ps: keys and values go from
 * the cache into registers once, without a copy, and what comes next is fetched meanwhile. On other processors the file
 * compiles to nothing.
 *
 * Lanes. Eight heads share a key. Four values of a key stand in all 8 quadwords, beside four of each query, so that a
 * token's sums of products end as (even, odd) pairs of 8 heads; two tokens then share a vector of scores: in each
 * quarter two heads of the first and the same two of the second. The running softmax goes lane by lane. A weight word
 * holds a head's weights of two tokens, and meets their values interleaved; these come out in quarters of 8 dimensions,
 * the lower four in the first vector, which `o` keeps until the end. */
#include "kernels/cpu/simd.h"

#if defined(__x86_64__)
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")
#include <float.h>
#include <immintrin.h>
#include <math.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))

enum { HEADS = SIMD_GQA_HEADS, TOK = SIMD_GQA_TOK, TILE = 8, LINE = 64, PAGE = 4096 };

/* The cache lines that are still to be fetched. */
typedef struct {
    const char *at, *end;
} fetch;

/* Each line is asked for twice, first a page earlier: where many are under way some are dropped (measured: 5% of the
 * time; nearer or farther, into the first cache, several streams or plain loads are all slower). */
INLINE void fetch_line(fetch *f)
{
    if (f->at < f->end) {
        _mm_prefetch(f->at + PAGE, _MM_HINT_T1);
        _mm_prefetch(f->at, _MM_HINT_T1);
        f->at += LINE;
    }
}

INLINE __m512bh everywhere_64(const bf16 *four)
{
    int64_t bits;
    memcpy(&bits, four, sizeof bits);
    return (__m512bh)_mm512_set1_epi64(bits);
}

INLINE __m512bh query_at(const simd_gqa *g, int64_t c)
{
    return (__m512bh)_mm512_loadu_si512(g->q + c * HEADS);
}

/* Scores of tokens [t, t + 8): 4 vectors of two tokens each. Tokens past the end repeat the last one. Half of the tokens
 * go through their key's halves in the other order: where tokens lie 4 KiB apart their lines share a set of the cache. */
INLINE void score_tile(const simd_gqa *g, int64_t t, float *scores, fetch *f)
{
    const bf16 *key[TILE];
    __m512 sum[TILE];
#pragma GCC unroll 8
    for (int i = 0; i < TILE; i++) {
        key[i] = g->keys + (t + i < g->n ? t + i : g->n - 1) * g->step;
        sum[i] = _mm512_setzero_ps();
    }
    int64_t half = g->dim / 2;
    for (int64_t c = 0; c < half; c += 4) {
        __m512bh q[2] = {query_at(g, c), query_at(g, c + half)};
#pragma GCC unroll 2
        for (int turn = 0; turn < 2; turn++) {
            fetch_line(f);
#pragma GCC unroll 8
            for (int i = 0; i < TILE; i++) {
                int part = (i < TILE / 2) ^ turn;
                sum[i] = _mm512_dpbf16_ps(sum[i], everywhere_64(key[i] + c + part * half), q[part]);
            }
        }
    }
#pragma GCC unroll 4
    for (int i = 0; i < TILE; i += 2) {
        __m512 even = _mm512_shuffle_ps(sum[i], sum[i + 1], 0x88), odd = _mm512_shuffle_ps(sum[i], sum[i + 1], 0xdd);
        _mm512_storeu_ps(scores + (t + i) * HEADS, _mm512_mul_ps(_mm512_add_ps(even, odd), _mm512_set1_ps(g->scale_log2)));
    }
}

INLINE __m512 swap_tokens(__m512 v)
{
    return _mm512_shuffle_ps(v, v, 0x4e);
}

/* 2^x for x <= 0 to 3e-6 of itself, far closer than the bf16 that it becomes; 0 below 2^-149; a NaN stays one. */
INLINE __m512 exp2_negative(__m512 x)
{
    x = _mm512_max_ps(_mm512_set1_ps(-200), x);
    __m512 whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC), r = _mm512_sub_ps(x, whole);
    __m512 s = _mm512_fmadd_ps(_mm512_set1_ps(1.33335581e-3f), r, _mm512_set1_ps(9.61812911e-3f));
    s = _mm512_fmadd_ps(s, r, _mm512_set1_ps(5.55041087e-2f));
    s = _mm512_fmadd_ps(s, r, _mm512_set1_ps(2.40226507e-1f));
    s = _mm512_fmadd_ps(s, r, _mm512_set1_ps(6.93147181e-1f));
    s = _mm512_fmadd_ps(s, r, _mm512_set1_ps(1));
    return _mm512_scalef_ps(s, whole);
}

/* Tokens two by two, up to a multiple of 4: (t0, t1) of head 0, of head 1, ... */
INLINE void store_weights(float *words, __m512 first, __m512 second)
{
    __m512i w = (__m512i)_mm512_cvtne2ps_pbh(second, first);
    _mm512_storeu_si512(words, _mm512_shufflehi_epi16(_mm512_shufflelo_epi16(w, 0xd8), 0xd8));
}

/* Turns scores into weight words; gives whether what was summed before must be multiplied with factor[16]. */
INLINE bool softmax(const simd_gqa *g, float *scores, float *words, float *factor)
{
    int64_t vectors = (g->n + 3) / 4 * 2;
    for (int64_t t = g->n; t < vectors * 2; t++) /* hidden */
        for (int64_t h = 0; h < HEADS; h++)
            scores[t / 2 * 16 + h / 2 * 4 + t % 2 * 2 + h % 2] = -INFINITY;
    __m512 old = _mm512_loadu_ps(g->max), top = old, sum = _mm512_setzero_ps();
    for (int64_t i = 0; i < vectors; i++)
        top = _mm512_max_ps(top, _mm512_loadu_ps(scores + i * 16));
    top = _mm512_max_ps(top, swap_tokens(top));
    __m512 base = _mm512_max_ps(top, _mm512_set1_ps(-FLT_MAX)); /* where all is -inf */
    for (int64_t i = 0; i < vectors; i += 2) {
        __m512 a = exp2_negative(_mm512_sub_ps(_mm512_loadu_ps(scores + i * 16), base));
        __m512 b = exp2_negative(_mm512_sub_ps(_mm512_loadu_ps(scores + i * 16 + 16), base));
        sum = _mm512_add_ps(sum, _mm512_add_ps(a, b));
        store_weights(words + i * HEADS, a, b);
    }
    __m512 by = exp2_negative(_mm512_sub_ps(old, base));
    _mm512_storeu_ps(g->sum, _mm512_fmadd_ps(_mm512_loadu_ps(g->sum), by, sum));
    _mm512_storeu_ps(g->max, top);
    _mm512_storeu_ps(factor, by);
    return _mm512_cmp_ps_mask(old, top, _CMP_NEQ_UQ) != 0;
}

/* Adds weights times values [c, c + 32) of all tokens. */
INLINE void mix_columns(const simd_gqa *g, int64_t c, const float *words, const float *factor, fetch *f)
{
    __m512 sum[HEADS][2];
    float *o = g->o + c * HEADS;
#pragma GCC unroll 8
    for (int h = 0; h < HEADS; h++)
#pragma GCC unroll 2
        for (int k = 0; k < 2; k++) {
            sum[h][k] = _mm512_loadu_ps(o + h * 32 + k * 16);
            if (factor)
                sum[h][k] = _mm512_mul_ps(sum[h][k], _mm512_set1_ps(factor[h / 2 * 4 + h % 2]));
        }
    const bf16 *value = g->values + c;
    for (int64_t t = 0; t < g->n; t += 2, value += 2 * g->step) {
        __m512i even = _mm512_loadu_si512(value), odd = _mm512_loadu_si512(value + (t + 1 < g->n ? g->step : 0));
        __m512bh low = (__m512bh)_mm512_unpacklo_epi16(even, odd), high = (__m512bh)_mm512_unpackhi_epi16(even, odd);
        fetch_line(f);
        fetch_line(f);
#pragma GCC unroll 8
        for (int h = 0; h < HEADS; h++) {
            int32_t bits;
            memcpy(&bits, words + t / 2 * HEADS + h, sizeof bits);
            __m512bh w = (__m512bh)_mm512_set1_epi32(bits);
            sum[h][0] = _mm512_dpbf16_ps(sum[h][0], low, w);
            sum[h][1] = _mm512_dpbf16_ps(sum[h][1], high, w);
        }
    }
#pragma GCC unroll 8
    for (int h = 0; h < HEADS; h++)
#pragma GCC unroll 2
        for (int k = 0; k < 2; k++)
            _mm512_storeu_ps(o + h * 32 + k * 16, sum[h][k]);
}

void simd_gqa_add(const simd_gqa *g)
{
    float scores[TOK * HEADS], words[TOK / 2 * HEADS], factor[16];
    fetch f = {g->ahead, g->ahead + g->ahead_bytes};
    for (int64_t t = 0; t < g->n; t += TILE)
        score_tile(g, t, scores, &f);
    bool changed = softmax(g, scores, words, factor);
    for (int64_t c = 0; c < g->dim; c += 32)
        if (changed)
            mix_columns(g, c, words, factor, &f);
        else
            mix_columns(g, c, words, NULL, &f);
    while (f.at < f.end)
        fetch_line(&f);
}

void simd_gqa_end(const simd_gqa *g, int64_t heads, float *out)
{
    for (int64_t h = 0; h < heads; h++) {
        int64_t lane = h / 2 * 4 + h % 2;
        float sum = g->sum[lane] + g->sum[lane + 2], by = sum == 0 ? 0 : 1 / sum;
        for (int64_t c = 0; c < g->dim; c++) /* quarter c / 8 % 4, lower or upper four */
            out[h * g->dim + c] = by * g->o[(c / 32 * HEADS + h) * 32 + c / 4 % 2 * 16 + c / 8 % 4 * 4 + c % 4];
    }
}
#endif
