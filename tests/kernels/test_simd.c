#include "kernels/cpu/simd.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"

static const simd_ops *const sets[] = {&simd_portable, &simd_avx2, &simd_avx512};

#define EACH_SET(v)                                                                                                    \
    for (int v##_i = 0; v##_i < 3; v##_i++)                                                                            \
        for (const simd_ops *v = sets[v##_i]; v; v = NULL)                                                             \
            if (!v->available || v->available())

static bool same(float a, float b)
{
    return isnan(a) ? isnan(b) : memcmp(&a, &b, sizeof a) == 0;
}

/* Every value there is, in runs of odd length, so that tails meet all of them. */
static void check_widen(const simd_ops *v, tpl_dtype t, int64_t n_values)
{
    static uint16_t half[65536];
    static uint8_t byte[256];
    static float got[65536], want[65536];
    for (int i = 0; i < 65536; i++)
        half[i] = (uint16_t)i;
    for (int i = 0; i < 256; i++)
        byte[i] = (uint8_t)i;
    const char *src = t == DT_F8E4M3 ? (const char *)byte : (const char *)half;
    dtype_to_f32(want, src, t, (size_t)n_values);
    for (int64_t i = 0; i < n_values; i += 37)
        v->widen(got + i, src + (size_t)i * dtype_bytes(t), t, n_values - i < 37 ? n_values - i : 37);
    for (int64_t i = 0; i < n_values; i++)
        cr_assert(same(got[i], want[i]), "%s %s %lx: %a, expected %a", v->name, dtype_name(t), (long)i, got[i],
                  want[i]);
}

Test(simd, widens_every_value)
{
    EACH_SET(v)
    {
        check_widen(v, DT_BF16, 65536);
        check_widen(v, DT_F16, 65536);
        check_widen(v, DT_F8E4M3, 256);
    }
}

Test(simd, rounds_to_bf16_as_the_scalar_does)
{
    rng r = rng_make(51, 0);
    EACH_SET(v)
    for (int round = 0; round < 2000; round++) {
        float x[35], back[35];
        bf16 h[35];
        for (int i = 0; i < 35; i++) {
            uint32_t u = (uint32_t)rng_u64(&r);
            if (i % 5 == 0)
                u = (u & 0xffff0000) | 0x8000; /* a tie */
            if (i % 7 == 0)
                u |= 0x7f800000; /* infinite or NaN */
            memcpy(&x[i], &u, sizeof u);
        }
        v->to_bf16(h, x, 35);
        v->round_bf16(back, x, 35);
        for (int i = 0; i < 35; i++)
            cr_assert(h[i] == bf16_from_f32(x[i]) && same(back[i], bf16_to_f32(h[i])), "%s: %a", v->name, x[i]);
    }
}

/* Units in the last place between an f32 and the exact value. */
static double ulps(float got, double want)
{
    int e;
    frexp(want, &e);
    return fabs(got - want) / ldexp(1, e - 24);
}

Test(simd, exp_within_two_ulp)
{
    static float x[65536], y[65536];
    EACH_SET(v)
    {
        for (int i = 0; i < 65536; i++)
            x[i] = (float)(-87.3 + i * (88.7 + 87.3) / 65535);
        v->exp(y, x, 65536);
        for (int i = 0; i < 65536; i++)
            cr_assert(ulps(y[i], exp(x[i])) <= 2, "%s: exp(%.9g) is %.9g, expected %.9g", v->name, x[i], y[i],
                      exp(x[i]));
    }
}

Test(simd, exp_at_the_ends)
{
    static const float x[] = {0, -0.f, 1, -INFINITY, -1e30f, -88, INFINITY, 1e30f, 89, NAN, 88.7228f};
    static const float want[] = {1, 1, 2.71828183f, 0, 0, 0, INFINITY, INFINITY, INFINITY, NAN, 3.402798e38f};
    EACH_SET(v)
    {
        float y[11];
        v->exp(y, x, 11);
        for (int i = 0; i < 11; i++)
            cr_assert(same(y[i], want[i]) || fabsf(y[i] - want[i]) <= 1e-4f * want[i], "%s: exp(%g) is %g", v->name,
                      x[i], y[i]);
    }
}

/* Whatever bits a NaN holds, it stays one. */
Test(simd, exp_keeps_every_nan)
{
    rng r = rng_make(52, 0);
    EACH_SET(v)
    for (int round = 0; round < 500; round++) {
        float x[16], sum = 0, max = 0;
        for (int i = 0; i < 16; i++) {
            uint32_t u = (uint32_t)rng_u64(&r) | 0x7fc00000;
            memcpy(&x[i], &u, sizeof u);
        }
        float y[16];
        v->exp(y, x, 16);
        v->softmax_row(x, NULL, 16, 1, &max, &sum);
        for (int i = 0; i < 16; i++)
            cr_assert(isnan(y[i]) && isnan(x[i]), "%s: %d", v->name, i);
        cr_assert(isnan(sum), "%s", v->name);
    }
}

Test(simd, transposes_any_size)
{
    static float src[40 * 50], dst[50 * 44];
    for (int i = 0; i < 40 * 50; i++)
        src[i] = (float)i;
    EACH_SET(v)
    for (int rows = 0; rows <= 40; rows += 3)
        for (int cols = 0; cols <= 45; cols += 5) {
            memset(dst, 0xff, sizeof dst);
            v->transpose(dst, 44, src, 50, rows, cols);
            for (int i = 0; i < 50 * 44; i++) {
                bool inside = i / 44 < cols && i % 44 < rows;
                cr_assert(inside ? dst[i] == src[i % 44 * 50 + i / 44] : isnan(dst[i]), "%s [%d, %d] at %d", v->name,
                          rows, cols, i);
            }
        }
}

/* Whole numbers: sums are exact, so that every tail and tile must give the very same result. */
static void check_gemm(const simd_ops *v, int m, int n, int k, bool bf16_, bool nt, bool accumulate)
{
    static float a[20 * 70], b[70 * 100], c[20 * 80];
    static bf16 bh[70 * 100];
    int ldb = nt ? k + 1 : n + 20;
    for (int i = 0; i < 20 * 70; i++)
        a[i] = (float)(i % 11 - 5);
    for (int i = 0; i < 70 * 100; i++) {
        b[i] = (float)(i % 7 - 3);
        bh[i] = bf16_from_f32(b[i]);
    }
    for (int i = 0; i < 20 * 80; i++)
        c[i] = (float)(i % 3);
    simd_gemm g = {m, n, k, a, 70, bf16_ ? (const void *)bh : b, ldb, bf16_, c, 80, accumulate};
    if (nt)
        v->gemm_nt(&g);
    else
        v->gemm_nn(&g);
    for (int i = 0; i < 20 * 80; i++) {
        int row = i / 80, col = i % 80;
        float want = row < m && col < n && !accumulate ? 0 : (float)(i % 3);
        for (int p = 0; p < k && row < m && col < n; p++)
            want += a[row * 70 + p] * (nt ? b[col * ldb + p] : b[p * ldb + col]);
        cr_assert_eq(c[i], want, "%s %s [%d, %d, %d]: [%d, %d] is %g, expected %g", v->name, nt ? "nt" : "nn", m, n, k,
                     row, col, c[i], want);
    }
}

Test(simd, gemm_of_any_size)
{
    EACH_SET(v)
    for (int m = 1; m <= 19; m++)
        for (int n = 1; n <= 70; n += 1 + n / 8)
            for (int k = 1; k <= 60; k += 1 + k / 2)
                for (int way = 0; way < 8; way++)
                    check_gemm(v, m, n, k, way & 1, way & 2, way & 4);
}

/* Few rows with a weight as it lies: a sum is the same, bit for bit, whatever rows and columns are computed with it, so
 * that verifying several tokens in one pass rounds as decoding them one by one. */
Test(simd, thin_sums_depend_on_nothing_beside_them)
{
    enum { M = 9, N = 37, K = 131 };
    static float a[M * K], b[N * K], all[M * N];
    static bf16 bh[N * K];
    rng r = rng_make(58, 1);
    for (int i = 0; i < M * K; i++)
        a[i] = (float)rng_normal(&r);
    for (int i = 0; i < N * K; i++) {
        b[i] = (float)rng_normal(&r);
        bh[i] = bf16_from_f32(b[i]);
    }
    EACH_SET(v)
    for (int way = 0; way < 2; way++)
        for (int m = 1; m <= M; m++)
            for (int k = 16; k <= K; k += 23) {
                const char *w = way ? (const char *)bh : (const char *)b;
                simd_gemm g = {m, N, k, a, K, w, K, way, all, N, false};
                v->gemm_nt(&g);
                for (int i = 0; i < m * N; i++) {
                    float alone;
                    int row = i / N, col = i % N;
                    simd_gemm one = {1, 1,   k,      a + row * K, K,    w + (size_t)(col * K) * (way ? 2 : 4),
                                     K, way, &alone, 1,           false};
                    v->gemm_nt(&one);
                    cr_assert(memcmp(&alone, &all[i], sizeof alone) == 0, "%s: [%d, %d] of %d rows, k %d: %a, alone %a",
                              v->name, row, col, m, k, all[i], alone);
                }
            }
}

/* c's other columns and rows stay as they were; b's columns past n hold NaN. */
static void check_pairs(const simd_pairs *p, int m, int n, int k, bool accumulate)
{
    enum { LDA = 64, LDB = 80, LDC = 83 };
    static float a[20 * LDA], b[60 * LDB], c[20 * LDC];
    rng r = rng_make(57, (uint64_t)((m * 100 + n) * 100 + k));
    bf16 *pa = (bf16 *)a, *pb = (bf16 *)b;
    for (int i = 0; i < m * LDA * 2; i++)
        pa[i] = bf16_from_f32((float)rng_normal(&r));
    for (int i = 0; i < k * LDB * 2; i++)
        pb[i] = i / 2 % LDB < n ? bf16_from_f32((float)rng_normal(&r)) : 0x7fc0;
    for (int i = 0; i < 20 * LDC; i++)
        c[i] = 3;
    simd_gemm g = {
        .m = m, .n = n, .k = k, .a = a, .lda = LDA, .b = b, .ldb = LDB, .c = c, .ldc = LDC, .accumulate = accumulate};
    p->gemm(&g);
    for (int i = 0; i < 20; i++)
        for (int j = 0; j < LDC; j++) {
            double want = accumulate || i >= m || j >= n ? 3 : 0, size = 3;
            for (int w = 0; w < 2 * k && i < m && j < n; w++) {
                double x = bf16_to_f32(pa[i * LDA * 2 + w]) * (double)bf16_to_f32(pb[(w / 2 * LDB + j) * 2 + w % 2]);
                want += x;
                size += fabs(x);
            }
            cr_assert(fabs(c[i * LDC + j] - want) <= size * 1e-6, "m %d n %d k %d: c[%d, %d] is %g, expected %g", m, n,
                      k, i, j, c[i * LDC + j], want);
        }
}

/* Every value at its place in its panel, whatever the sizes; columns that fill up a vector are 0; nothing behind it. */
Test(simd, packs_weights_of_any_size)
{
    enum { N = 70, K = 37, LD = 40, ROOM = 3 * 32 * K };
    float w[N * LD], dst[ROOM];
    bf16 half[N * LD];
    for (int i = 0; i < N * LD; i++) {
        half[i] = bf16_from_f32((float)i);
        w[i] = (float)i;
    }
    EACH_SET(v)
    {
        int panel = 2 * v->lanes, lanes = v->lanes;
        for (int n = 1; v->pack && n <= N; n++)
            for (int k = 1; k <= K; k += n % 5 + 1)
                for (int is_bf16 = 0; is_bf16 < 2; is_bf16++) {
                    for (int i = 0; i < ROOM; i++)
                        dst[i] = NAN;
                    v->pack(dst, is_bf16 ? (void *)half : w, is_bf16, LD, n, k);
                    for (int p = 0; p < k; p++)
                        for (int j = 0; j < (n + lanes - 1) / lanes * lanes; j++) {
                            float got = dst[j / panel * panel * k + p * panel + j % panel];
                            int at = j < n ? j * LD + p : 0; /* [0, 0] is 0, as rows past the last are */
                            float want = is_bf16 ? bf16_to_f32(half[at]) : w[at];
                            cr_assert_eq(got, want, "%s: n %d k %d: [%d, %d] is %g", v->name, n, k, j, p, got);
                        }
                    int end = (n + panel - 1) / panel * panel * k;
                    for (int i = end; i < ROOM; i++)
                        cr_assert(isnan(dst[i]), "%s: n %d k %d: wrote past the end", v->name, n, k);
                }
    }
}

Test(simd, products_of_pairs_of_any_size)
{
    EACH_SET(v)
    for (int m = 1; m <= 19 && v->pairs && v->pairs->available(); m++)
        for (int n = 1; n <= 70; n += 1 + n / 8)
            for (int k = 0; k <= 60; k += 1 + k / 2)
                for (int accumulate = 0; accumulate < 2; accumulate++)
                    check_pairs(v->pairs, m, n, k, accumulate);
}

Test(simd, interleaves_rows_of_any_length)
{
    bf16 even[70], odd[70];
    for (int i = 0; i < 70; i++) {
        even[i] = (bf16)(3 * i + 1);
        odd[i] = (bf16)(0xffff - i);
    }
    EACH_SET(v)
    for (int n = 0; n <= 70 && v->pairs && v->pairs->available(); n++)
        for (int whole = 0; whole < 2; whole++) {
            uint32_t got[71];
            memset(got, 0xa5, sizeof got);
            v->pairs->interleave((float *)got, even, whole ? odd : NULL, n);
            for (int i = 0; i < 71; i++) {
                uint32_t want = i < n ? even[i] | (whole ? (uint32_t)odd[i] << 16 : 0) : 0xa5a5a5a5;
                cr_assert_eq(got[i], want, "n %d: word %d is %x, expected %x", n, i, got[i], want);
            }
        }
}

/* Two blocks of one row: weights relative to the greatest score so far, hidden ones 0 even where they are NaN. */
Test(simd, softmax_row_runs_over_blocks)
{
    EACH_SET(v)
    {
        float s[16], max = -INFINITY, sum = 0;
        uint64_t keep[1] = {0};
        for (int i = 0; i < 16; i++)
            s[i] = NAN;
        cr_assert_eq(v->softmax_row(s, keep, 16, 2, &max, &sum), 1, "%s", v->name);
        cr_assert(max == -INFINITY && sum == 0 && s[7] == 0, "%s: a hidden block counts", v->name);
        s[3] = 1;
        s[9] = 2;
        for (int i = 0; i < 16; i++)
            if (i != 3 && i != 9)
                s[i] = NAN;
        keep[0] = 1u << 3 | 1u << 9;
        v->softmax_row(s, keep, 16, 2, &max, &sum);
        cr_assert(max == 4 && fabs(sum - 1 - exp(-2)) < 1e-6 && s[9] == 1 && s[0] == 0, "%s: sum %g", v->name, sum);
        for (int i = 0; i < 16; i++)
            s[i] = 3;
        float factor = v->softmax_row(s, NULL, 16, 2, &max, &sum);
        cr_assert(max == 6 && fabs(factor - exp(-2)) < 1e-7 && fabs(sum - 16 - exp(-2) * (1 + exp(-2))) < 1e-5,
                  "%s: sum %g", v->name, sum);
    }
}

Test(simd, sums_squares_of_any_length)
{
    float x[200];
    for (int i = 0; i < 200; i++)
        x[i] = (float)(i % 9 - 4);
    EACH_SET(v)
    for (int n = 0; n <= 200; n++) {
        float want = 0;
        for (int i = 0; i < n; i++)
            want += x[i] * x[i];
        cr_assert_eq(v->sum_squares(x, n), want, "%s %d", v->name, n);
    }
}
