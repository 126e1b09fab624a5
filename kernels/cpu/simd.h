/* simd.h - the vector work of the CPU kernels, one set of functions an instruction set.
 * For:    the drivers in kernels/cpu, which know shapes and pages but no instructions.
 * Enter:  kernels/cpu, tests/kernels.
 * Owns:   nothing.
 * Fails:  never; call a set only if its available() says so.
 *
 * All sets come from one text (simd_body.h), compiled for 16-, 32- and 64-byte vectors. Lengths and strides are in
 * elements and need no alignment. Products of bf16 values are exact in f32, so that bf16 inputs lose nothing here. */
#ifndef TPL_KERNELS_CPU_SIMD_H
#define TPL_KERNELS_CPU_SIMD_H

#include <stdbool.h>
#include <stdint.h>

#include "base/dtype.h"

enum { SIMD_MAX_LANES = 16 };

/* c [m, n] (+)= a [m, k] times b. */
typedef struct {
    int64_t m, n, k;
    const float *a;
    int64_t lda;
    const void *b; /* gemm_nn: [k, n]; gemm_nt: [n, k] */
    int64_t ldb;
    bool b_bf16; /* else f32 */
    float *c;
    int64_t ldc;
    bool accumulate;
} simd_gemm;

/* Decode attention of up to 8 query heads that share a key, against tokens of a bf16 cache in place. Rows of `o`, `max`
 * and `sum` are the instruction set's own order, gqa_end() knows it; at first o and sum are 0, max -inf. */
enum { SIMD_GQA_HEADS = 8, SIMD_GQA_TOK = 64 };

typedef struct {
    int64_t n, dim;            /* tokens, at most SIMD_GQA_TOK; a head's width, a multiple of 32 */
    const bf16 *keys, *values; /* of the first token's key head, tokens `step` elements apart */
    int64_t step;
    const bf16 *q;           /* [dim / 4][SIMD_GQA_HEADS][4] */
    float scale_log2;        /* of scores, times log2 e */
    float *o, *max, *sum;    /* [SIMD_GQA_HEADS * dim], [SIMD_MAX_LANES] */
    const char *ahead;       /* memory to bring nearer meanwhile */
    int64_t ahead_bytes;
} simd_gqa;

/* Products of bf16 values two by two, where the processor has them faster than f32 products. A pair is a 4-byte word whose
 * lower half comes first; arrays of words are typed float so that they move through transpose() and share simd_gemm. */
typedef struct {
    bool (*available)(void);
    /* Like gemm_nn, for a and b that hold pairs: k counts words, a pair's two products enter the same sum. Subnormal
     * inputs and results count as 0. Reads b's columns like gemm_nn. */
    void (*gemm)(const simd_gemm *g);
    /* dst[i] = the pair (even[i], odd[i]); odd NULL: zeros. */
    void (*interleave)(float *dst, const bf16 *even, const bf16 *odd, int64_t n);
    void (*gqa_add)(const simd_gqa *g);                            /* NULL: none */
    void (*gqa_end)(const simd_gqa *g, int64_t heads, float *out); /* out [heads, dim]: averages, 0 where nothing was seen */
} simd_pairs;

typedef struct {
    const char *name;
    const simd_pairs *pairs; /* may be NULL; ask its available() */
    int32_t lanes; /* f32 values a vector, at most SIMD_MAX_LANES */
    bool (*available)(void);

    /* For few or many rows, packed b. Reads the columns of b up to the next multiple of `lanes`; they may hold
     * anything. */
    void (*gemm_nn)(const simd_gemm *g);
    /* For few rows: reads b once, along its rows, as it is stored. */
    void (*gemm_nt)(const simd_gemm *g);
    /* A weight w [n, k] (bf16 or f32) for gemm_nn, by panels of 2 lanes columns: dst [ceil(n / (2 lanes))][k][2 lanes]
     * = w^T; of columns past n the first up to a multiple of lanes are 0, the rest anything. NULL where gemm_nn is slower
     * than the library. */
    void (*pack)(float *dst, const void *w, bool is_bf16, int64_t ldw, int64_t n, int64_t k);

    /* dst [cols, rows] = src [rows, cols]. */
    void (*transpose)(float *dst, int64_t ldd, const float *src, int64_t lds, int64_t rows, int64_t cols);

    void (*widen)(float *dst, const void *src, tpl_dtype t, int64_t n);
    void (*to_bf16)(bf16 *dst, const float *src, int64_t n);
    void (*round_bf16)(float *dst, const float *src, int64_t n); /* to bf16 and back; dst may be src */
    void (*scale)(float *x, float by, int64_t n);
    float (*sum_squares)(const float *x, int64_t n);
    void (*add)(float *to, const float *x, int64_t n);
    void (*multiply)(float *out, const float *x, float by, const float *weight, int64_t n); /* x by weight; out may be x */
    /* x [2 half] = (a cos - b sin, b cos + a sin) of the pairs (a, b) of old: interleaved, or its two halves. */
    void (*rotate)(float *x, const float *old, const float *cosine, const float *sine, int64_t half, bool interleaved);
    void (*silu_mul)(float *out, const float *gate, const float *up, int64_t n); /* out may be gate */

    /* out = e^x within 2 ulp; results below the smallest normal number are 0. out may be x. */
    void (*exp)(float *out, const float *x, int64_t n);
    /* One row of a running softmax: s = exp(by * s - max'), max and sum brought up to date; gives the factor that
     * everything summed before must take. Values whose bit in `keep` is 0 count as -inf (keep NULL: all count); value i's
     * is bit i % 64 of word i / 64. n is a multiple of `lanes`. */
    float (*softmax_row)(float *s, const uint64_t *keep, int64_t n, float by, float *max, float *sum);
} simd_ops;

extern const simd_ops simd_portable, simd_avx2, simd_avx512;
extern const simd_pairs simd_avx512bf16;
void simd_pack_avx512(float *dst, const void *w, bool is_bf16, int64_t ldw, int64_t n, int64_t k); /* simd_avx512's pack */
/* A gemm_nt's columns by 16 at a time, for short k; returns how many it did. Bit for bit what simd_avx512's own does. */
int64_t simd_thin_avx512(const simd_gemm *g);
void simd_gqa_add(const simd_gqa *g); /* of simd_avx512bf16 */
void simd_gqa_end(const simd_gqa *g, int64_t heads, float *out);

#endif
