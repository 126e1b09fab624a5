/* kernels.h - the table of operations: one row an implementation, chosen by backend at run time.
 * For:    engine/ runs steps through kernel_find() + kernel_run(); bench/ and tests/ also ask for rows by name.
 * Enter:  engine/, bench/, tests/.
 * Owns:   nothing; a kernel_ctx borrows its scratch from the caller.
 * Fails:  kernel_run() returns TPL_E_UNSUPPORTED with the shape if the row cannot do it; kernels themselves trust.
 *
 * Backends: "ref" accumulates in double and is written to be read; "cpu" is the fast path of this machine; "cuda" enqueues
 * on a card and does not wait. */
#ifndef TPL_KERNELS_KERNELS_H
#define TPL_KERNELS_KERNELS_H

#include <stddef.h>

#include "base/error.h"
#include "kernels/ops.h"

/* What one rank's kernels share. compute DT_F32: products in f32; DT_BF16: inputs of matrix products and attention are
 * rounded to bf16 and accumulated in f32. */
typedef struct {
    tpl_dtype compute;
    void *scratch; /* 64-byte aligned, at least kernel_scratch_bytes() of each call made */
    size_t scratch_bytes;
    struct gpu_queue *queue; /* backend "cuda": where calls are enqueued (device/gpu.h); every pointer is the card's */
} kernel_ctx;

typedef struct {
    op_kind op;
    const char *backend; /* "ref", "cpu", "cuda" */
    const char *name;    /* e.g. "cpu_avx512" */
    bool (*available)(void);               /* the machine has the instructions; NULL: always */
    bool (*supports)(const op_call *call); /* shapes and types; pure; NULL: all */
    size_t (*scratch_bytes)(const op_call *call); /* an upper bound that grows with rows; NULL: none */
    tpl_code (*run)(kernel_ctx *ctx, const op_call *call, tpl_err *e);
} kernel_row;

/* The best available row of a backend that supports the call; NULL if there is none. Rows later in a backend's table
 * are preferred (they stand on the shoulders of the earlier ones). */
const kernel_row *kernel_find(const char *backend, const op_call *call);

/* All rows of an operation, for tests and `tplabench kernels`; returns how many. */
int kernel_rows(op_kind op, const kernel_row *const **rows);

/* Checks the call's shapes (assert: a wrong one is the engine's bug), finds the row, runs it. */
tpl_code kernel_run(const char *backend, kernel_ctx *ctx, const op_call *call, tpl_err *e);
/* The most that any row of the backend takes, also of those that would not run this call: a smaller batch may be theirs. */
size_t kernel_scratch_bytes(const char *backend, const op_call *call);

/* ---- runs of calls as one launch ---- */

/* What `n` calls leave when they run one after another, in one launch, up to rounding: all that they write is written.
 * Callers that look at the calls in between run them one by one. */
typedef struct {
    const char *backend, *name;
    bool (*available)(void);
    int (*takes)(const op_call *calls, int n); /* how many of the first n, at least 2; 0: none */
    tpl_code (*run)(kernel_ctx *ctx, const op_call *calls, int n, tpl_err *e);
} kernel_join;

enum { KERNEL_MAX_JOIN = 6 };

/* The join of a backend that takes the most of calls[0..n), and how many; NULL: calls[0] stands alone. */
const kernel_join *kernel_find_join(const char *backend, const op_call *calls, int n, int *taken);
tpl_code kernel_run_join(const kernel_join *j, kernel_ctx *ctx, const op_call *calls, int n, tpl_err *e);

/* Compares oneDNN's matrix products (f32, bf16) against a small product of our own, once a process.
 * Old BLAS builds give wrong results on new processors; better to stop than to print wrong numbers. TPL_E_DEVICE. */
tpl_code kernel_check_library(tpl_err *e);

#endif
