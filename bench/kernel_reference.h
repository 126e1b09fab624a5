/* kernel_reference.h - what the reference says of a case's outputs: a few rectangles of each, kept once.
 * For:    bench/kernel_world.c and kernel_card.c.
 * Enter:  bench/, tests/.
 * Owns:   reference_make() owns its values until reference_fini(), which a failed one needs too.
 * Fails:  what the reference's kernels fail with.
 *
 * Of attention and per-head products some heads are looked at, of long attention one head of four sequences, of
 * products corners and the middle, of the rest all. */
#ifndef TPL_BENCH_KERNEL_REFERENCE_H
#define TPL_BENCH_KERNEL_REFERENCE_H

#include "bench/kernel_memory.h"

/* A rectangle of one call's output. */
typedef struct {
    int call;
    int64_t row0, col0, rows, cols;
    float *values; /* [rows, cols] */
} reference_part;

typedef struct {
    reference_part parts[4 * KERNEL_MAX_STEPS];
    int n_parts; /* 0: has not run yet */
    int64_t n_checked;
} kernel_reference;

/* Runs the reference on m's memory, whose activations it fills afresh. ctx needs the reference's scratch. */
tpl_code reference_make(kernel_reference *r, kernel_memory *m, const kernel_case *c, kernel_ctx *ctx, tpl_err *e);
void reference_fini(kernel_reference *r);
/* Elements of what lies in a call's output, which is f32, that are wrong for products computed in `compute`. */
int64_t reference_wrong(const kernel_reference *r, const kernel_memory *m, int call, tpl_dtype compute);

/* Elements that differ from `expected` by more than tol * (root mean square of expected + |expected|), or are NaN where
 * it is not, or the reverse. Both [rows, cols], row strides in elements. */
int64_t kernel_count_wrong(const float *got, int64_t got_stride, const float *expected, int64_t rows, int64_t cols,
                           double tol);

#endif
