#include "engine/linalg.h"

#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include <lapacke.h>

#include "base/arena.h"

void linalg_matmul(int m, int n, int k, const double *a, int transpose_a, const double *b, int transpose_b, double *c)
{
    memset(c, 0, sizeof *c * (size_t)m * (size_t)n);
    for (int i = 0; i < m; i++) {
        for (int l = 0; l < k; l++) {
            double x = transpose_a ? a[(size_t)l * m + i] : a[(size_t)i * k + l];
            if (transpose_b)
                for (int j = 0; j < n; j++)
                    c[(size_t)i * n + j] += x * b[(size_t)j * k + l];
            else
                for (int j = 0; j < n; j++)
                    c[(size_t)i * n + j] += x * b[(size_t)l * n + j];
        }
    }
}

double linalg_orthogonality(int n, const double *q)
{
    double *p = tpl_malloc(sizeof *p * (size_t)n * (size_t)n), worst = 0;
    linalg_matmul(n, n, n, q, 1, q, 0, p);
    for (int i = 0; i < n; i++)
        for (int j = 0; j < n; j++)
            worst = fmax(worst, fabs(p[(size_t)i * n + j] - (i == j)));
    free(p);
    return worst;
}

/* A decomposition is good if it is orthogonal and rebuilds its input to this share of the input's largest element. */
static const double TOLERANCE = 1e-9;

static double largest(size_t n, const double *a)
{
    double w = 0;
    for (size_t i = 0; i < n; i++)
        w = fmax(w, fabs(a[i]));
    return w;
}

tpl_code linalg_eigh(int n, const double *a, double *values, double *vectors, const char *where, tpl_err *e)
{
    size_t nn = (size_t)n * (size_t)n;
    double *w = tpl_malloc(sizeof *w * (size_t)n), *v = tpl_malloc(sizeof *v * nn), *scaled = tpl_malloc(sizeof *v * nn), *back = tpl_malloc(sizeof *v * nn);
    memcpy(v, a, sizeof *v * nn);
    lapack_int info = LAPACKE_dsyevd(LAPACK_ROW_MAJOR, 'V', 'U', n, v, n, w);
    for (int j = 0; j < n; j++) { /* largest first */
        values[j] = w[n - 1 - j];
        for (int i = 0; i < n; i++)
            vectors[(size_t)i * n + j] = v[(size_t)i * n + n - 1 - j];
    }
    for (int i = 0; i < n; i++)
        for (int j = 0; j < n; j++)
            scaled[(size_t)i * n + j] = vectors[(size_t)i * n + j] * values[j];
    linalg_matmul(n, n, n, scaled, 0, vectors, 1, back);
    double off = 0;
    for (size_t i = 0; i < nn; i++)
        off = fmax(off, fabs(back[i] - a[i]));
    bool good = info == 0 && off <= TOLERANCE * largest(nn, a) && linalg_orthogonality(n, vectors) <= TOLERANCE;
    free(w);
    free(v);
    free(scaled);
    free(back);
    return good ? TPL_OK
                : tpl_fail(e, TPL_E_DEVICE, where, "LAPACK's eigenvectors of a %d x %d matrix do not rebuild it (info %d, off by %g): a broken BLAS or input with NaN", n, n,
                           (int)info, off);
}

tpl_code linalg_orthonormalise(int n, const double *a, double *q, const char *where, tpl_err *e)
{
    size_t nn = (size_t)n * (size_t)n;
    double *tau = tpl_malloc(sizeof *tau * (size_t)n);
    memcpy(q, a, sizeof *q * nn);
    lapack_int info = LAPACKE_dgeqrf(LAPACK_ROW_MAJOR, n, n, q, n, tau);
    char *flip = tpl_malloc((size_t)n);
    for (int j = 0; j < n; j++)
        flip[j] = q[(size_t)j * n + j] < 0;
    if (info == 0)
        info = LAPACKE_dorgqr(LAPACK_ROW_MAJOR, n, n, n, q, n, tau);
    for (int i = 0; i < n; i++)
        for (int j = 0; j < n; j++)
            if (flip[j])
                q[(size_t)i * n + j] = -q[(size_t)i * n + j];
    free(flip);
    free(tau);
    if (info != 0 || !(linalg_orthogonality(n, q) <= TOLERANCE))
        return tpl_fail(e, TPL_E_DEVICE, where, "LAPACK's QR of a %d x %d matrix is not orthogonal (info %d): a broken BLAS or input with NaN", n, n, (int)info);
    return TPL_OK;
}
