/* spans.h - when each step ran on each rank: for time splits and traces.
 * For:    bench/ (split by operation, overlap of ranks) and --trace.
 * Enter:  bench/, eval/, cli/, tests/.
 * Owns:   spans_create() owns room for a fixed number of spans a rank; further ones are counted, not kept.
 * Fails:  spans_write_chrome() with TPL_E_IO. Times are CPU timers around the call, taken on the rank's own thread. */
#ifndef TPL_ENGINE_SPANS_H
#define TPL_ENGINE_SPANS_H

#include "engine/session.h"

typedef struct {
    const plan_step *step; /* borrows from the team's plan */
    int64_t begin_ns, end_ns;
    int32_t pass; /* which forward pass since spans_clear() */
} span;

typedef struct spans spans;

spans *spans_create(int n_ranks, int64_t per_rank);
void spans_destroy(spans *s);
/* What to give session_observe(). */
step_observer spans_observer(spans *s);
void spans_clear(spans *s);

int64_t spans_count(const spans *s, int rank);
const span *spans_at(const spans *s, int rank, int64_t i);
int64_t spans_dropped(const spans *s);

/* Time of one rank by operation ("matmul", "attn_latent", "all_reduce", ...), nanoseconds; collectives' time contains the
 * wait for the others. total[n] in the order of names[n]; both have SPANS_N_KINDS entries. */
enum { SPANS_N_KINDS = OP_COUNT + COMM_N_OPS };
const char *spans_kind_name(int kind);
int spans_kind(const plan_step *step);
void spans_totals(const spans *s, int rank, int64_t total_ns[SPANS_N_KINDS]);

/* Share of rank a's time in steps named `name` during which rank b is in such a step too, 0..1. */
double spans_overlap(const spans *s, const char *name, int a, int b);

/* Chrome/Perfetto JSON: one process, one track a rank; a span's arguments are its layer and pass. `title` names the process. */
tpl_code spans_write_chrome(const spans *s, const char *title, const char *path, tpl_err *e);

#endif
