/* kernels_bench.h - `tplabench kernels`: every case verified, measured, set against its bound and written as a row.
 * For:    cli/, suites.
 * Enter:  cli/, tests/.
 * Owns:   nothing; a request borrows its texts.
 * Fails:  TPL_E_USAGE and TPL_E_INPUT for the axes; TPL_E_MISMATCH at the end if an output was wrong (all rows are
 * there, with status wrong_answer); TPL_E_DEVICE where cases are of a card and there is none; TPL_E_IO;
 * TPL_E_INTERRUPTED, with the rows of finished groups kept.
 *
 * Cases whose cell the run directory already holds are not measured again. Variants of a group take turns; the ratio is
 * against the group's first. A case that cannot run is a row that says why. */
#ifndef TPL_BENCH_KERNELS_BENCH_H
#define TPL_BENCH_KERNELS_BENCH_H

#include "bench/bound.h"
#include "bench/kernel_case.h"
#include "kernels/kernels.h"
#include "results/run_dir.h"
#include "results/table.h"

typedef struct {
    kernel_axes axes;
    measure_options measure;
    const ceilings *ceilings; /* NULL: ceilings_open() with the next, or what card 0 can do */
    ceilings_options ceilings_options;
    bool aa;                  /* first compare each group's first case with itself: the noise floor, in `note` */
    bool trace;               /* of cases on a card: traces/<cell_id>.json and traces.csv, after each group's rows */
    const char *samples_path; /* every sample as a CSV line; NULL: none */
    uint64_t seed;            /* of the bootstrap */
    /* Called after each row was written, for live output; NULL: none. */
    void (*on_row)(void *user, const rs_row *row);
    void *user;
    const kernel_row *inject; /* stands in for the backend's row of its operation (tests); NULL: none */
} kernels_request;

/* The ceilings used go to *used (may be NULL) before the first row, and into run.json. */
tpl_code kernels_bench_run(const kernels_request *q, run_dir *rd, ceilings *used, tpl_err *e);

/* The cases as a table, without measuring. Gives *out (table_destroy). */
tpl_code kernels_bench_list(const kernels_request *q, table **out, tpl_err *e);

#endif
