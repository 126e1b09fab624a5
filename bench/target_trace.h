/* target_trace.h - what cards do in runs of a bench target whose work is no plan's list, as a trace by kernel.
 * For:    --trace of hand-offs and of collectives by size.
 * Enter:  bench/.
 * Owns:   nothing.
 * Fails:  TPL_E_UNSUPPORTED where no trace can be taken, TPL_E_IO, and as the target does. */
#ifndef TPL_BENCH_TARGET_TRACE_H
#define TPL_BENCH_TARGET_TRACE_H

#include "bench/measure.h"
#include "results/run_dir.h"

typedef struct {
    const bench_target *target;
    const char *name, *title, *phase; /* of the file in traces/; of its processes; of the rows */
    void (*config)(void *user, rs_row *r);
    void *user;
} target_trace;

/* Prepares the target, runs it a few times without and then, prepared again, with a tracer, and writes the trace: a
 * process a card, rows by kernel. What tracing cost is said on stderr. */
tpl_code target_trace_write(const target_trace *t, run_dir *rd, tpl_err *e);

#endif
