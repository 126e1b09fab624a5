/* gemm.h - matrix products of the CPU backend: f32 activations times weights of any type.
 * For:    matmul, head_matmul.
 * Enter:  kernels/cpu.
 * Owns:   oneDNN's engine and compiled products, per thread, freed when the thread ends.
 * Fails:  TPL_E_DEVICE if oneDNN refuses a product that it should have.
 *
 * A weight is widened block by block into scratch, never whole; f32 and bf16 weights are read where they lie if the
 * product can take them so. Few rows are bound by reading the weight and go through simd_ops.gemm_nt. */
#ifndef TPL_KERNELS_CPU_GEMM_H
#define TPL_KERNELS_CPU_GEMM_H

#include "base/error.h"
#include "kernels/cpu/simd.h"
#include "kernels/kernels.h"

typedef struct {
    const simd_ops *simd;
    tpl_dtype compute;
    void *scratch; /* 64-byte aligned, gemm_scratch_bytes() of the product */
} gemm_env;

/* An upper bound for products of up to `rows` rows, k inputs and n outputs. */
size_t gemm_scratch_bytes(int64_t rows, int64_t k, int64_t n);

/* out [rows, n] (+)= x [rows, k] w [n, k]^T, x and out f32. */
tpl_code gemm_nt(const gemm_env *env, const mat *x, const mat *w, const mat *out, bool accumulate, tpl_err *e);

/* The same for a weight of few values (one head's): w [k, n] or, transposed, [n, k]. */
tpl_code gemm_small(const gemm_env *env, const mat *x, const mat *w, const mat *out, bool transposed, bool accumulate,
                    tpl_err *e);

/* ---- oneDNN ---- */

/* A product c [m, n] (+)= a [m, k] b [n, k]^T, or b [k, n] where `plain`; strides in elements. */
typedef struct {
    int64_t m, n, k, lda, ldb, ldc;
    bool accumulate, plain;
} gemm_shape;

/* bf16 inputs, f32 sums. False: this processor or build of oneDNN has no such product. */
bool gemm_has_bf16(void);
tpl_code gemm_bf16(const gemm_shape *s, const bf16 *a, const bf16 *b, float *c, tpl_err *e);

/* Never plain. */
tpl_code gemm_f32(const gemm_shape *s, const float *a, const float *b, float *c, tpl_err *e);

#endif
