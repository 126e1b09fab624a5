/* simd_body.h - the text of simd.h's functions, included once an instruction set.
 * For:    simd_portable.c, simd_avx2.c, simd_avx512.c.
 * Enter:  those three, which define SIMD_BYTES (a vector), SIMD_TILE_ROWS (of gemm_nn), SIMD_THIN_COLS (of gemm_nt),
 *         SIMD_SET (the table), SIMD_NAME and simd_set_available().
 * Owns:   nothing.
 * Fails:  never. */
#include <math.h>
#include <string.h>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "kernels/cpu/simd.h"

enum { L = SIMD_BYTES / 4, MR = SIMD_TILE_ROWS, THIN_ROWS = 4, THIN_COLS = SIMD_THIN_COLS, FAR_VALUES = 1 << 20, SHORT_K = 1024 };

typedef float vf __attribute__((vector_size(SIMD_BYTES)));
typedef int32_t vi __attribute__((vector_size(SIMD_BYTES)));
typedef uint32_t vu __attribute__((vector_size(SIMD_BYTES)));
typedef uint16_t vh __attribute__((vector_size(SIMD_BYTES / 2)));
typedef uint8_t vb __attribute__((vector_size(SIMD_BYTES / 4)));
typedef float v4 __attribute__((vector_size(16)));
typedef int32_t v4i __attribute__((vector_size(16)));

#define INLINE static inline __attribute__((always_inline))

/* ---- loads, stores, selects ---- */

INLINE vf load(const float *p)
{
    vf v;
    memcpy(&v, p, sizeof v);
    return v;
}

INLINE void store(float *p, vf v)
{
    memcpy(p, &v, sizeof v);
}

INLINE vf splat(float x)
{
    return x - (vf){0};
}

INLINE vf select_f(vi mask, vf yes, vf no)
{
    return (vf)((mask & (vi)yes) | (~mask & (vi)no));
}

/* a > b ? a : b, one instruction where the compiler would make three; a NaN in b passes. */
INLINE vf max_f(vf a, vf b)
{
#if SIMD_BYTES == 64 && defined(__AVX512F__)
    return (vf)_mm512_max_ps((__m512)a, (__m512)b);
#elif SIMD_BYTES == 32 && defined(__AVX2__)
    return (vf)_mm256_max_ps((__m256)a, (__m256)b);
#else
    return select_f((vi)(a > b), a, b);
#endif
}

/* y where x is not below the floor, else 0; a NaN in x is not below. */
INLINE vf zero_below(vf x, vf y, float floor)
{
#if SIMD_BYTES == 64 && defined(__AVX512F__)
    return (vf)_mm512_maskz_mov_ps(_mm512_cmp_ps_mask((__m512)x, _mm512_set1_ps(floor), _CMP_NLT_UQ), (__m512)y);
#else
    return (vf)(~(vi)(x < floor) & (vi)y);
#endif
}

/* L integers of 16 or 8 bits, widened with zeros. The compiler's own conversion takes many steps for what is one load.
 */
INLINE vu load_u16(const void *p)
{
#if SIMD_BYTES == 64 && defined(__AVX512F__)
    return (vu)_mm512_cvtepu16_epi32(_mm256_loadu_si256(p));
#elif SIMD_BYTES == 32 && defined(__AVX2__)
    return (vu)_mm256_cvtepu16_epi32(_mm_loadu_si128(p));
#else
    vh h;
    memcpy(&h, p, sizeof h);
    return __builtin_convertvector(h, vu);
#endif
}

INLINE vu load_u8(const void *p)
{
#if SIMD_BYTES == 64 && defined(__AVX512F__)
    return (vu)_mm512_cvtepu8_epi32(_mm_loadu_si128(p));
#elif SIMD_BYTES == 32 && defined(__AVX2__)
    return (vu)_mm256_cvtepu8_epi32(_mm_loadl_epi64(p));
#else
    vb b;
    memcpy(&b, p, sizeof b);
    return __builtin_convertvector(b, vu);
#endif
}

/* Stores the lower halves. */
INLINE void store_u16(void *p, vu v)
{
#if SIMD_BYTES == 64 && defined(__AVX512F__)
    _mm256_storeu_si256(p, _mm512_cvtepi32_epi16((__m512i)v));
#else
    vh h = __builtin_convertvector(v, vh);
    memcpy(p, &h, sizeof h);
#endif
}

INLINE vf load_bf16(const void *p)
{
    return (vf)(load_u16(p) << 16);
}

INLINE vf load_b(const void *b, bool is_bf16, int64_t i)
{
    return is_bf16 ? load_bf16((const bf16 *)b + i) : load((const float *)b + i);
}

/* The first n values, zeros behind them. */
INLINE vf load_part(const void *b, bool is_bf16, int64_t i, int64_t n)
{
    if (is_bf16) {
        bf16 part[L] = {0};
        memcpy(part, (const bf16 *)b + i, (size_t)n * sizeof *part);
        return load_bf16(part);
    }
    float part[L] = {0};
    memcpy(part, (const float *)b + i, (size_t)n * sizeof *part);
    return load(part);
}

INLINE float sum_lanes(vf v)
{
    v4 part[L / 4];
    memcpy(part, &v, sizeof v);
    for (int n = L / 8; n > 0; n /= 2)
        for (int i = 0; i < n; i++)
            part[i] += part[i + n];
    return (part[0][0] + part[0][2]) + (part[0][1] + part[0][3]);
}

INLINE float max_of(float a, float b)
{
    return a > b ? a : b;
}

INLINE float max_lanes(vf v)
{
#if SIMD_BYTES == 64 && defined(__AVX512F__)
    return _mm512_reduce_max_ps((__m512)v);
#else
    float part[L];
    memcpy(part, &v, sizeof v);
    for (int n = L / 2; n > 0; n /= 2)
        for (int i = 0; i < n; i++)
            part[i] = max_of(part[i], part[i + n]);
    return part[0];
#endif
}

/* ---- element types ---- */

INLINE vf f16_bits(vu h)
{
    vu sign = (h & 0x8000) << 16, low = h & 0x7fff;
    vu finite = (vu)((vf)(low << 13) * 0x1p112f); /* moves the exponent's bias; exact for subnormals too */
    vu special = 0x7f800000 | (low << 13);
    vu is_special = (vu)(low >= 0x7c00);
    return (vf)(sign | (is_special & special) | (~is_special & finite));
}

INLINE vf f8_bits(vu b)
{
    vu sign = (b & 0x80) << 24, low = b & 0x7f;
    vu finite = (vu)((vf)(low << 20) * 0x1p120f);
    vu is_nan = (vu)(low == 0x7f);
    return (vf)(sign | (is_nan & 0x7fc00000) | (~is_nan & finite));
}

INLINE vf widen_vector(const char *src, tpl_dtype t)
{
    switch (t) {
    case DT_BF16:
        return load_bf16(src);
    case DT_F16:
        return f16_bits(load_u16(src));
    case DT_F8E4M3:
        return f8_bits(load_u8(src));
    default:
        return load((const float *)(const void *)src);
    }
}

INLINE void widen_all(float *dst, const char *src, tpl_dtype t, int64_t n)
{
    int64_t bytes = (int64_t)dtype_bytes(t), i = 0;
    for (; i + L <= n; i += L)
        store(dst + i, widen_vector(src + i * bytes, t));
    if (i == n)
        return;
    char tail[L * 4] = {0};
    float wide[L];
    memcpy(tail, src + i * bytes, (size_t)((n - i) * bytes));
    store(wide, widen_vector(tail, t));
    memcpy(dst + i, wide, (size_t)(n - i) * sizeof *dst);
}

static void simd_widen(float *dst, const void *src, tpl_dtype t, int64_t n)
{
    switch (t) {
    case DT_BF16:
        widen_all(dst, src, DT_BF16, n);
        return;
    case DT_F16:
        widen_all(dst, src, DT_F16, n);
        return;
    case DT_F8E4M3:
        widen_all(dst, src, DT_F8E4M3, n);
        return;
    default:
        memcpy(dst, src, (size_t)n * sizeof *dst);
    }
}

/* Round to nearest, ties to even; a NaN keeps its upper half and becomes quiet. */
INLINE vu bf16_bits(vf x)
{
    vu u = (vu)x;
    vu is_nan = (vu)((u & 0x7fffffff) > 0x7f800000);
    vu rounded = u + 0x7fff + (u >> 16 & 1), quiet = u | 0x400000;
    return ((is_nan & quiet) | (~is_nan & rounded)) & 0xffff0000;
}

static void simd_to_bf16(bf16 *dst, const float *src, int64_t n)
{
    int64_t i = 0;
    for (; i + L <= n; i += L) {
        store_u16(dst + i, bf16_bits(load(src + i)) >> 16);
    }
    for (; i < n; i++)
        dst[i] = bf16_from_f32(src[i]);
}

static void simd_round_bf16(float *dst, const float *src, int64_t n)
{
    int64_t i = 0;
    for (; i + L <= n; i += L)
        store(dst + i, (vf)bf16_bits(load(src + i)));
    for (; i < n; i++)
        dst[i] = bf16_to_f32(bf16_from_f32(src[i]));
}

/* ---- products ---- */

/* c [mr, nv vectors] (+)= a [mr, k] b [k, nv vectors], all sums in registers. */
INLINE void tile(const int mr, const int nv, const simd_gemm *g, const float *a, const void *b, float *c, int64_t ldc)
{
    vf sum[MR][2];
#pragma GCC unroll 8
    for (int i = 0; i < mr; i++)
#pragma GCC unroll 2
        for (int j = 0; j < nv; j++)
            sum[i][j] = g->accumulate ? load(c + i * ldc + j * L) : splat(0);
    for (int i = 0; i < mr; i++) /* so that lines of c come while sums are made */
        for (int j = 0; j < nv; j++)
            __builtin_prefetch(c + i * ldc + j * L, 1);
    for (int64_t p = 0; p < g->k; p++) {
        vf row[2];
#pragma GCC unroll 2
        for (int j = 0; j < nv; j++)
            row[j] = load_b(b, g->b_bf16, p * g->ldb + j * L);
#pragma GCC unroll 8
        for (int i = 0; i < mr; i++)
#pragma GCC unroll 2
            for (int j = 0; j < nv; j++)
                sum[i][j] += a[i * g->lda + p] * row[j];
    }
#pragma GCC unroll 8
    for (int i = 0; i < mr; i++)
#pragma GCC unroll 2
        for (int j = 0; j < nv; j++)
            store(c + i * ldc + j * L, sum[i][j]);
}

INLINE void tile_of(int mr, const int nv, const simd_gemm *g, const float *a, const void *b, float *c, int64_t ldc)
{
#define TILE(rows)                                                                                                     \
    case rows:                                                                                                         \
        tile(rows, nv, g, a, b, c, ldc);                                                                               \
        break;
    switch (mr) {
        TILE(1)
        TILE(2)
        TILE(3)
        TILE(4)
#if SIMD_TILE_ROWS == 8
        TILE(5)
        TILE(6)
        TILE(7)
        TILE(8)
#endif
    }
#undef TILE
}

/* Columns [0, n) of all rows, n <= nv * L. A last panel that is not full goes through a copy of c. */
INLINE void panel(const int nv, const simd_gemm *g, const void *b, float *c, int64_t n)
{
    for (int64_t i = 0; i < g->m; i += MR) {
        int mr = g->m - i < MR ? (int)(g->m - i) : MR;
        const float *a = g->a + i * g->lda;
        float *to = c + i * g->ldc;
        if (n == nv * L) {
            tile_of(mr, nv, g, a, b, to, g->ldc);
            continue;
        }
        float copy[MR * 2 * L] = {0};
        for (int r = 0; g->accumulate && r < mr; r++)
            memcpy(copy + r * 2 * L, to + r * g->ldc, (size_t)n * sizeof *to);
        tile_of(mr, nv, g, a, b, copy, 2 * L);
        for (int r = 0; r < mr; r++)
            memcpy(to + r * g->ldc, copy + r * 2 * L, (size_t)n * sizeof *to);
    }
}

INLINE void panels(const simd_gemm *g)
{
    int64_t bytes = g->b_bf16 ? 2 : 4;
    for (int64_t j = 0; j < g->n; j += 2 * L) {
        int64_t n = g->n - j < 2 * L ? g->n - j : 2 * L;
        const char *b = (const char *)g->b + j * bytes;
        if (n > L)
            panel(2, g, b, g->c + j, n);
        else
            panel(1, g, b, g->c + j, n);
    }
}

static void panels_f32(const simd_gemm *g)
{
    simd_gemm f = *g;
    f.b_bf16 = false;
    panels(&f);
}

static void panels_bf16(const simd_gemm *g)
{
    simd_gemm f = *g;
    f.b_bf16 = true;
    panels(&f);
}

static void simd_gemm_nn(const simd_gemm *g)
{
    if (g->b_bf16)
        panels_bf16(g);
    else
        panels_f32(g);
}

/* c [mr, nc] (+)= a [mr, k] b [nc, k]^T. */
INLINE void thin(const int mr, const int nc, const bool is_bf16, const simd_gemm *g, int64_t row, int64_t col)
{
    vf sum[THIN_ROWS][4];
    const float *a = g->a + row * g->lda;
    bool ahead = row == 0 && g->n * g->ldb > FAR_VALUES;
#pragma GCC unroll 4
    for (int i = 0; i < mr; i++)
#pragma GCC unroll 4
        for (int j = 0; j < nc; j++)
            sum[i][j] = splat(0);
    int64_t p = 0;
    for (; p + L <= g->k; p += L) {
        vf w[4];
#pragma GCC unroll 4
        for (int j = 0; j < nc; j++)
            w[j] = load_b(g->b, is_bf16, (col + j) * g->ldb + p);
        for (int j = 0; j < nc && ahead; j++) /* the rows of b that come next, into the second cache */
            __builtin_prefetch((const char *)g->b + ((col + nc + j) * g->ldb + p) * (is_bf16 ? 2 : 4), 0, 2);
#pragma GCC unroll 4
        for (int i = 0; i < mr; i++) {
            vf x = load(a + i * g->lda + p);
#pragma GCC unroll 4
            for (int j = 0; j < nc; j++)
                sum[i][j] += x * w[j];
        }
    }
#pragma GCC unroll 4
    for (int i = 0; i < mr; i++)
#pragma GCC unroll 4
        for (int j = 0; j < nc; j++) {
            if (p < g->k)
                sum[i][j] += load_part(a, false, i * g->lda + p, g->k - p) *
                             load_part(g->b, is_bf16, (col + j) * g->ldb + p, g->k - p);
            float *c = g->c + (row + i) * g->ldc + col + j;
            *c = sum_lanes(sum[i][j]) + (g->accumulate ? *c : 0);
        }
}

INLINE void thin_rows(const int nc, const bool is_bf16, const simd_gemm *g, int64_t col)
{
    int64_t i = 0;
    for (; i + THIN_ROWS <= g->m; i += THIN_ROWS)
        thin(THIN_ROWS, nc, is_bf16, g, i, col);
    switch (g->m - i) {
    case 1:
        thin(1, nc, is_bf16, g, i, col);
        break;
    case 2:
        thin(2, nc, is_bf16, g, i, col);
        break;
    case 3:
        thin(3, nc, is_bf16, g, i, col);
        break;
    }
}

/* Columns from `col` on. */
static void thin_f32(const simd_gemm *g, int64_t col)
{
    int64_t j = col;
    for (; j + THIN_COLS <= g->n; j += THIN_COLS)
        thin_rows(THIN_COLS, false, g, j);
    for (; j < g->n; j++)
        thin_rows(1, false, g, j);
}

static void thin_bf16(const simd_gemm *g, int64_t col)
{
    int64_t j = col;
    for (; j + THIN_COLS <= g->n; j += THIN_COLS)
        thin_rows(THIN_COLS, true, g, j);
    for (; j < g->n; j++)
        thin_rows(1, true, g, j);
}

static void simd_gemm_nt(const simd_gemm *g)
{
    int64_t done = 0;
#ifdef SIMD_THIN
    /* Weights that come from afar keep to the few rows of b at a time that thin() fetches ahead of need. */
    if (g->k <= SHORT_K && g->n * g->ldb <= FAR_VALUES)
        done = SIMD_THIN(g);
#endif
    if (g->b_bf16)
        thin_bf16(g, done);
    else
        thin_f32(g, done);
}

/* 4 x 4 blocks in 16-byte registers: two rounds of interleaving. */
INLINE void transpose_4x4(float *dst, int64_t ldd, const float *src, int64_t lds)
{
    v4 r[4];
    for (int i = 0; i < 4; i++)
        memcpy(&r[i], src + i * lds, sizeof r[i]);
    v4 a = __builtin_shuffle(r[0], r[2], (v4i){0, 4, 1, 5}), b = __builtin_shuffle(r[0], r[2], (v4i){2, 6, 3, 7});
    v4 c = __builtin_shuffle(r[1], r[3], (v4i){0, 4, 1, 5}), d = __builtin_shuffle(r[1], r[3], (v4i){2, 6, 3, 7});
    r[0] = __builtin_shuffle(a, c, (v4i){0, 4, 1, 5});
    r[1] = __builtin_shuffle(a, c, (v4i){2, 6, 3, 7});
    r[2] = __builtin_shuffle(b, d, (v4i){0, 4, 1, 5});
    r[3] = __builtin_shuffle(b, d, (v4i){2, 6, 3, 7});
    for (int i = 0; i < 4; i++)
        memcpy(dst + i * ldd, &r[i], sizeof r[i]);
}

static void simd_transpose(float *dst, int64_t ldd, const float *src, int64_t lds, int64_t rows, int64_t cols)
{
    int64_t r4 = rows & ~(int64_t)3, c4 = cols & ~(int64_t)3;
    for (int64_t c = 0; c < c4; c += 4)
        for (int64_t r = 0; r < r4; r += 4)
            transpose_4x4(dst + c * ldd + r, ldd, src + r * lds + c, lds);
    for (int64_t c = 0; c < cols; c++)
        for (int64_t r = c < c4 ? r4 : 0; r < rows; r++)
            dst[c * ldd + r] = src[r * lds + c];
}

/* ---- element by element ---- */

/* x = n ln 2 + r with n whole; e^r by its power series to r^7 (|r| <= ln(2)/2, so that the rest is below 6e-9). ln 2
 * comes in two pieces, the first with few enough bits that n times it is exact. */
INLINE vf exp_parts(vf x, vu *n)
{
    const float shift = 0x1.8p23f; /* adding it leaves n in the lowest bits */
    vf shifted = x * 1.44269504f + shift, whole = shifted - shift;
    vf r = (x - whole * 0.693359375f) - whole * -2.12194440e-4f;
    vf s = r * (1.f / 5040) + 1.f / 720;
    s = s * r + 1.f / 120;
    s = s * r + 1.f / 24;
    s = s * r + 1.f / 6;
    s = s * r + 0.5f;
    *n = (vu)shifted - (vu)splat(shift);
    return s * (r * r) + r + 1.f;
}

/* 2^n for n in [-126, 127]; a product with it keeps a NaN, which arithmetic on bits would not. */
INLINE vf power_of_2(vu n)
{
    return (vf)((n + 127) << 23);
}

/* e^x for x <= 0 (or NaN). Below the range the parts are nonsense, which the last step drops. */
INLINE vf exp_negative(vf x)
{
    vu n;
    vf s = exp_parts(x, &n);
    return zero_below(x, s * power_of_2(n), -87.33f);
}

/* e^x for any x. 2^128 is no f32, hence the two steps. */
INLINE vf exp_f(vf x)
{
    vu n;
    vf s = exp_parts(x, &n);
    vu half = (vu)((vi)n >> 1);
    s = s * power_of_2(half) * power_of_2(n - half);
    s = select_f((vi)(x > 88.722835f), splat(INFINITY), s);
    return zero_below(x, s, -87.33f);
}

INLINE vf silu_mul_f(vf gate, vf up)
{
    return gate / (1.f + exp_f(-gate)) * up;
}

static void simd_exp(float *out, const float *x, int64_t n)
{
    int64_t i = 0;
    for (; i + L <= n; i += L)
        store(out + i, exp_f(load(x + i)));
    if (i == n)
        return;
    float part[L];
    store(part, exp_f(load_part(x, false, i, n - i)));
    memcpy(out + i, part, (size_t)(n - i) * sizeof *out);
}

static void simd_silu_mul(float *out, const float *gate, const float *up, int64_t n)
{
    int64_t i = 0;
    for (; i + L <= n; i += L)
        store(out + i, silu_mul_f(load(gate + i), load(up + i)));
    if (i == n)
        return;
    float part[L];
    store(part, silu_mul_f(load_part(gate, false, i, n - i), load_part(up, false, i, n - i)));
    memcpy(out + i, part, (size_t)(n - i) * sizeof *out);
}

static void simd_scale(float *x, float by, int64_t n)
{
    int64_t i = 0;
    for (; i + L <= n; i += L)
        store(x + i, load(x + i) * by);
    for (; i < n; i++)
        x[i] *= by;
}

static void simd_add(float *restrict to, const float *restrict x, int64_t n)
{
    int64_t i = 0;
    for (; i + L <= n; i += L)
        store(to + i, load(to + i) + load(x + i));
    for (; i < n; i++)
        to[i] += x[i];
}

static void simd_multiply(float *out, const float *x, float by, const float *weight, int64_t n)
{
    int64_t i = 0;
    for (; i + L <= n; i += L)
        store(out + i, load(x + i) * by * load(weight + i));
    for (; i < n; i++)
        out[i] = x[i] * by * weight[i];
}

static void simd_rotate(float *restrict x, const float *restrict old, const float *restrict cosine,
                        const float *restrict sine, int64_t half, bool interleaved)
{
    if (interleaved)
        for (int64_t i = 0; i < half; i++) {
            float a = old[2 * i], b = old[2 * i + 1];
            x[i] = a * cosine[i] - b * sine[i];
            x[i + half] = b * cosine[i] + a * sine[i];
        }
    else
        for (int64_t i = 0; i < half; i++) {
            float a = old[i], b = old[i + half];
            x[i] = a * cosine[i] - b * sine[i];
            x[i + half] = b * cosine[i] + a * sine[i];
        }
}

static float simd_sum_squares(const float *x, int64_t n)
{
    vf sum[4] = {{0}};
    int64_t i = 0;
    for (; i + 4 * L <= n; i += 4 * L)
        for (int j = 0; j < 4; j++)
            sum[j] += load(x + i + j * L) * load(x + i + j * L);
    for (; i < n; i += L) {
        vf part = load_part(x, false, i, n - i < L ? n - i : L);
        sum[0] += part * part;
    }
    return sum_lanes((sum[0] + sum[1]) + (sum[2] + sum[3]));
}

/* Values s[i..] whose bits are set, -inf else. */
INLINE vf load_kept(const float *s, const uint64_t *keep, int64_t i)
{
    if (!keep)
        return load(s + i);
    uint32_t bits = (uint32_t)(keep[i / 64] >> (i % 64)); /* lanes divide 64 */
#if SIMD_BYTES == 64 && defined(__AVX512F__)
    return (vf)_mm512_mask_loadu_ps(_mm512_set1_ps(-INFINITY), (__mmask16)bits, s + i);
#else
    vu lane;
    for (int j = 0; j < L; j++)
        lane[j] = 1u << j;
    return select_f((vi)((lane & bits) != 0), load(s + i), splat(-INFINITY));
#endif
}

/* Two running maxima hide half of the instruction's latency. A NaN may hide behind greater values. */
INLINE float max_kept(const float *s, const uint64_t *keep, int64_t n)
{
    vf even = splat(-INFINITY), odd = even;
    int64_t i = 0;
    for (; i + 2 * L <= n; i += 2 * L) {
        even = max_f(even, load_kept(s, keep, i));
        odd = max_f(odd, load_kept(s, keep, i + L));
    }
    if (i < n)
        even = max_f(even, load_kept(s, keep, i));
    return max_lanes(max_f(even, odd));
}

INLINE float exp_kept(float *s, const uint64_t *keep, int64_t n, float by, float top)
{
    vf total = splat(0);
    for (int64_t i = 0; i < n; i += L) {
        vf p = exp_negative(load_kept(s, keep, i) * by - top);
        store(s + i, p);
        total += p;
    }
    return sum_lanes(total);
}

/* Tells that no score counts, from scores among which a NaN hides. */
static bool none_kept(const float *s, const uint64_t *keep, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        if ((!keep || (keep[i / 64] >> (i % 64) & 1)) && s[i] != -INFINITY)
            return false;
    return true;
}

static float simd_softmax_row(float *s, const uint64_t *keep, int64_t n, float by, float *max, float *sum)
{
    float block = by * (keep ? max_kept(s, keep, n) : max_kept(s, NULL, n)), top = max_of(block, *max);
    if (top == -INFINITY && none_kept(s, keep, n)) {
        memset(s, 0, (size_t)n * sizeof *s);
        return 1;
    }
    float total = keep ? exp_kept(s, keep, n, by, top) : exp_kept(s, NULL, n, by, top);
    float factor = *max == top || *max == -INFINITY ? 1 : expf(*max - top); /* -inf: nothing was summed */
    *sum = *sum * factor + total;
    *max = top;
    return factor;
}

const simd_ops SIMD_SET = {
    .name = SIMD_NAME,
#ifdef SIMD_PAIRS
    .pairs = SIMD_PAIRS,
#endif
#ifdef SIMD_PACK
    .pack = SIMD_PACK,
#endif
    .lanes = L,
    .available = simd_set_available,
    .gemm_nn = simd_gemm_nn,
    .gemm_nt = simd_gemm_nt,
    .transpose = simd_transpose,
    .widen = simd_widen,
    .to_bf16 = simd_to_bf16,
    .round_bf16 = simd_round_bf16,
    .scale = simd_scale,
    .sum_squares = simd_sum_squares,
    .add = simd_add,
    .multiply = simd_multiply,
    .rotate = simd_rotate,
    .silu_mul = simd_silu_mul,
    .exp = simd_exp,
    .softmax_row = simd_softmax_row,
};
