/* slab.h - one block of memory that exists on the host and on a card, so that an operation can be run on both and
 * compared. For:    tests of backend "cuda". Enter:  tests/gpu. Owns:   slab_create() owns everything on it until
 * slab_destroy(). Fails:  by Criterion assertions that name the case, the kernel and the worst element.
 *
 * All data of a call is cut from the slab; bytes that nobody was given are 0xff, which is NaN in every type. After a
 * run every byte outside the outputs must be as it was, and every output as the reference has it. */
#ifndef TPL_TESTS_GPU_SLAB_H
#define TPL_TESTS_GPU_SLAB_H

#include "base/rng.h"
#include "device/gpu.h"
#include "kernels/kernels.h"

typedef struct slab slab;

/* Where there is no card the test says so and skips. */
slab *slab_create(size_t bytes);
void slab_destroy(slab *s);
/* Forgets all that was cut. */
void slab_reset(slab *s);
void *slab_cut(slab *s, size_t bytes);
void *slab_copy(slab *s, const void *from, size_t bytes);

/* A matrix of values uniform in [-size, size), with `gap` more columns a row that nobody may touch; size 0: left as
 * 0xff. */
mat slab_mat(slab *s, rng *r, int64_t rows, int64_t cols, int64_t gap, tpl_dtype t, double size);

typedef struct {
    double abs, rel;
} slab_tolerance;

/* Products a head with weights [rows, cols] of a head, two more rows and `w_gap` more columns between heads, and
 * x_gap and out_gap more columns between the vectors of a row; turned: with the transposed weights. */
typedef struct {
    int rows, heads, w_rows, w_cols;
    bool turned, accumulate;
    int w_gap, x_gap, row_gap, out_gap;
} slab_heads;

enum { SLAB_MAX_OUT = 3 };

typedef struct {
    op_call call;          /* pointers into the slab, but for batches and arrays of experts */
    tpl_dtype compute;     /* what the reference rounds to */
    mat out[SLAB_MAX_OUT]; /* what the call writes; data NULL: no more. Compared with `tol` */
    slab_tolerance tol[SLAB_MAX_OUT];
} slab_case;

slab_case slab_head_matmul(slab *s, rng *r, tpl_dtype t, const slab_heads *h);

/* Runs every row of backend "cuda" that takes the call against "ref"; returns how many rows there were. */
int slab_check(slab *s, const slab_case *c, const char *what);

enum { SLAB_MAX_CALLS = KERNEL_MAX_JOIN };

/* The one launch that does all n calls, against "ref" doing them one after another; outs as they are at the end. */
void slab_check_join(slab *s, const slab_case *cases, int n, const char *what);

/* Whether the rows on warpgroups run on this card. */
bool slab_has_warpgroups(void);

/* card_best() of rows that lie in the slab without gaps. */
void slab_best(slab *s, const mat *logits, int32_t *out);

#endif
