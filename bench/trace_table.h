/* trace_table.h - a trace as files: traces/<name>.json for Perfetto, and its totals by step as rows of traces.csv.
 * For:    --trace of the benches, on hosts and on cards alike.
 * Enter:  bench/, tests/.
 * Owns:   nothing.
 * Fails:  TPL_E_IO. */
#ifndef TPL_BENCH_TRACE_TABLE_H
#define TPL_BENCH_TRACE_TABLE_H

#include "bench/bound.h"
#include "engine/spans.h"
#include "results/run_dir.h"

typedef struct {
    const spans *s;
    const char *name, *title; /* of the file in traces/; of its processes */
    int n_ranks;
    const plan *const *plans; /* [n_ranks] */
    plan_phase phase;
    const char *what; /* instead of the phase's name, where no list was walked; NULL */
    batch_shape shape;
    plan_types types;
    tpl_dtype compute;
    const ceilings *ceil; /* NULL: no bounds */
    int sharers;          /* ranks that work on the ceilings at once */
    const char *source;   /* "CUPTI", "timer" */
    double overhead;      /* a pass's time with the trace over without; NaN: not known */
    int64_t n_dropped, n_unlike;
    const char *unlike; /* the first one; "" */
} trace_table;

/* `config` gives each row its configuration; rank, step, trace and values are filled in here. */
tpl_code trace_table_write(const trace_table *t, void (*config)(void *user, rs_row *r), void *user, run_dir *rd,
                           tpl_err *e);

/* {"matmul": 1.23, ...}: milliseconds of one pass on rank 0, by operation. The caller frees it. */
char *trace_split_json(const spans *s, int n_passes);

#endif
