/* compare.h - how kernel tests build matrices that catch stray writes, run every row of the table, and compare.
 * For:    tests of kernels/.  Enter: tests/kernels.
 * Owns:   guard_make(), mats_random() and mats_typed() give memory that mats_free() takes back.
 * Fails:  by Criterion assertions that name the case, the kernel and the worst element. */
#ifndef TPL_TESTS_KERNELS_COMPARE_H
#define TPL_TESTS_KERNELS_COMPARE_H

#include <stdbool.h>

#include "base/rng.h"
#include "kernels/kernels.h"

/* |got - expected| <= abs + rel |expected|; NaN exactly where expected. */
typedef struct {
    const char *name;
    double abs, rel;
} tolerance;

/* The one table of tolerances: a row by its name. */
const tolerance *tolerance_find(const char *name);

/* An f32 matrix of NaNs with a stride wider than its columns and guards all around. */
mat guard_make(int64_t rows, int64_t cols);
/* Asserts that nothing outside of the matrix was written. */
void guard_check(const mat *m, const char *what);
/* Asserts the guards, and that got is close to expected [rows, cols] (packed). */
void compare_mat(const mat *got, const double *expected, const char *tol, const char *what);

/* Uniform in [-size, size); f32, strided, guarded. */
mat mats_random(rng *r, int64_t rows, int64_t cols, double size);
/* The same numbers rounded to a weight's type, exactly `cols` wide plus a stride of 3 more (f8: with block scales). */
mat mats_typed(rng *r, int64_t rows, int64_t cols, tpl_dtype t, double size);
void mats_free(mat *m);
double mats_get(const mat *m, int64_t r, int64_t c);
/* Copies rows of an f32 matrix into another of the same size. */
void mats_copy(const mat *to, const mat *from);

/* As a product takes a value in. */
double as_input(tpl_dtype compute, double v);

/* Runs one row of the table in scratch that is just large enough and full of NaNs. */
void run_row(const kernel_row *row, tpl_dtype compute, const op_call *call, const char *what);
/* The row if this machine has it and it takes the call, by index; NULL past the end. Skips others. */
const kernel_row *next_row(op_kind op, int *index);

#define EACH_ROW(row, op)                                                                                              \
    for (int row##_index_ = 0, row##_once_ = 1; row##_once_; row##_once_ = 0)                                          \
        for (const kernel_row *row; (row = next_row(op, &row##_index_));)

#endif
