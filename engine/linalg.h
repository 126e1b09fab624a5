/* linalg.h - the dense double-precision algebra that transforms need, over LAPACK.
 * For:    engine/transform*.c and tests.
 * Enter:  engine/, tests/.
 * Owns:   nothing; all matrices are row-major in the caller's storage.
 * Fails:  TPL_E_DEVICE where the library fails or its result does not reconstruct the input (old BLAS builds compute wrong
 *         results on new processors): every decomposition is checked before it is used. */
#ifndef TPL_ENGINE_LINALG_H
#define TPL_ENGINE_LINALG_H

#include "base/error.h"

/* a [n, n] symmetric -> values [n] descending, vectors [n, n] with eigenvector k in column k; `where` for messages. */
tpl_code linalg_eigh(int n, const double *a, double *values, double *vectors, const char *where, tpl_err *e);
/* Q [n, n] of the QR decomposition of a [n, n]; columns in order span those of a; signs so that R's diagonal is positive. */
tpl_code linalg_orthonormalise(int n, const double *a, double *q, const char *where, tpl_err *e);

/* c [m, n] = a [m, k] b [k, n], with either transposed as stored. */
void linalg_matmul(int m, int n, int k, const double *a, int transpose_a, const double *b, int transpose_b, double *c);
/* Largest |(q^T q - 1)_ij|. */
double linalg_orthogonality(int n, const double *q);

#endif
