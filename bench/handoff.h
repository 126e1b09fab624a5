/* handoff.h - what it takes to hand a prompt's cache from a prefill team to a decode team, by variant, rank counts and
 * context.
 * For:    `tplabench handoff`.  Enter: cli/, tests/.
 * Owns:   nothing; lab and run directory are the caller's.
 * Fails:  what is wrong with the request; a cell that does not fit or is not supported becomes a row and the sweep goes
 * on. TPL_E_MISMATCH if the decode team answered otherwise than the prefill team; TPL_E_INTERRUPTED after a signal.
 *
 * Both teams stand side by side in one process. A prompt is prefilled by the one (or its cache made random, for sizes
 * that only time is of interest of), its cache moved to the other, and the next step computed by both before and after
 * timing. */
#ifndef TPL_BENCH_HANDOFF_H
#define TPL_BENCH_HANDOFF_H

#include "bench/measure.h"
#include "engine/lab.h"
#include "results/run_dir.h"

typedef struct {
    int32_t from, to; /* ranks of the teams */
} handoff_pair;

typedef struct {
    lab *lab;
    const variant *variants;
    const handoff_pair *pairs;
    const int64_t *contexts;
    int n_variants, n_pairs, n_contexts;
    ranks_kind ranks; /* of both: RANKS_LOCAL, or RANKS_NCCL with cards of their own as far as there are enough */
    const char *backend;
    tpl_dtype compute, kv;
    bool fill_random, trace; /* trace: of cards only */
    measure_options measure;
    const char *device, *command;
} handoff_request;

/* What is wrong with a request, before anything runs. */
tpl_code handoff_bench_check(const handoff_request *q, tpl_err *e);
tpl_code handoff_bench_run(const handoff_request *q, run_dir *rd, tpl_err *e);

#endif
