/* product_rate.h - how fast matrix products of given shapes go when nothing else is done.
 * For:    reports that ask how much of a loss is the shapes' and how much is ours.
 * Enter:  bench/, cli/, tests/.
 * Owns:   nothing.
 * Fails:  TPL_E_MEMORY; TPL_E_DEVICE where threads cannot be started. */
#ifndef TPL_BENCH_PRODUCT_RATE_H
#define TPL_BENCH_PRODUCT_RATE_H

#include "base/dtype.h"
#include "base/error.h"

/* A product [rows, k] x [n, k], which counts `times` times. */
typedef struct {
    int64_t rows, n, k, times;
} product_shape;

/* 1e9 FLOP a second over all shapes and threads: FLOPs over the sum of each shape's best time, by the library (the weight
 * packed beforehand or not) or by ours, on warm operands; every thread multiplies its own. 0 where no shape can be done. */
tpl_code product_rate(const product_shape *s, int n, tpl_dtype compute, int threads, double *gflops, tpl_err *e);

#endif
