/* kernels_rows.h - runs a request of the kernels bench into a fresh run directory and gives its rows.
 * For:    tests/bench/test_kernels_bench.c, tests/gpu/test_kernels.c.
 * Enter:  tests/.
 * Owns:   the caller owns the rows (csv_table_destroy()).
 * Fails:  by Criterion assertions. */
#ifndef TPL_TESTS_BENCH_KERNELS_ROWS_H
#define TPL_TESTS_BENCH_KERNELS_ROWS_H

#include <criterion/criterion.h>

#include "base/text.h"
#include "bench/kernels_bench.h"
#include "results/csv_table.h"

/* The run lies in dir/runs; err is that of a run that was expected to fail. */
static inline csv_table *kernels_rows(const kernels_request *q, arena *mem, const char *dir, const char *label,
                                      tpl_code expected, tpl_err *err)
{
    rd_options o = {.root = text_path_join(mem, dir, "runs"), .label = label, .now = 1735790645};
    run_dir *rd;
    csv_table *t = NULL;
    cr_assert(rd_create(&o, &rd, err) == TPL_OK, "%s", err->what);
    tpl_code rc = kernels_bench_run(q, rd, NULL, err);
    cr_assert(rc == expected, "%s: %s: %s", tpl_code_word(rc), err->where, err->what);
    char *path = text_path_join(mem, rd_path(rd), "kernels.csv");
    rd_close(rd);
    tpl_err unread;
    cr_assert(csv_table_load(path, &t, &unread) == TPL_OK, "%s", unread.what);
    return t;
}

#endif
