/* exp_sum.h - what a log-softmax sums up, in double and eight values at a time.
 * For:    stats.c: most of what scoring does outside the model.  Enter: eval/, tests/.
 * Owns:   nothing.
 * Fails:  never. */
#ifndef TPL_EVAL_EXP_SUM_H
#define TPL_EVAL_EXP_SUM_H

#include <stddef.h>

/* The greatest of x [n], n >= 1; NaN if there is one. */
float exp_sum_top(const float *x, size_t n);
/* Sum of e^(x[i] - top) for x[i] <= top; a term is right to 2 units of its last place and 0 below e^-708. */
double exp_sum(const float *x, size_t n, double top);

#endif
