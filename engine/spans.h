/* spans.h - when each step ran on each rank: for time splits and traces, of hosts and of cards.
 * For:    bench/ (split by operation, overlap of ranks) and --trace.
 * Enter:  bench/, eval/, cli/, tests/; card_trace.h fills them from a card's records.
 * Owns:   spans_create() owns room for a fixed number of spans a rank; further ones are counted, not kept.
 * Fails:  spans_write_chrome() with TPL_E_IO. On a host times are CPU timers around the call, taken on the rank's own
 *         thread; on a card they are what the card's tracer recorded, a span a kernel, copy or fill. */
#ifndef TPL_ENGINE_SPANS_H
#define TPL_ENGINE_SPANS_H

#include "engine/session.h"

typedef struct {
    const plan_step *step; /* borrows from the team's plan */
    int64_t begin_ns, end_ns;
    int32_t pass; /* which forward pass since spans_clear() */
    int32_t n_steps; /* steps from `step` on that were done at once; 0 is 1 */
    bool outside; /* no step of the list, but what a pass needs besides: contents, best tokens, the launch of a replay */
    /* Of a card's record; NULL, NULL, 0 of a host's step. */
    const char *name, *kind; /* of the kernel, lent by the trace; "kernel", "copy", "fill", "replay" */
    uint32_t queue, correlation;
    uint64_t id, node; /* external id, id of the graph's node */
} span;

typedef struct spans spans;

spans *spans_create(int n_ranks, int64_t per_rank);
void spans_destroy(spans *s);
/* What to give session_observe(). */
step_observer spans_observer(spans *s);
void spans_add(spans *s, int rank, span x);
void spans_clear(spans *s);

int64_t spans_count(const spans *s, int rank);
const span *spans_at(const spans *s, int rank, int64_t i);
int64_t spans_dropped(const spans *s);

/* Time of one rank by operation ("matmul", "attn_latent", "all_reduce", ...), nanoseconds; collectives' time contains the
 * wait for the others. total[n] in the order of names[n]; both have SPANS_N_KINDS entries. */
enum { SPANS_N_KINDS = OP_COUNT + COMM_N_OPS };
const char *spans_kind_name(int kind);
int spans_kind_of(const plan_step *step);
void spans_totals(const spans *s, int rank, int64_t total_ns[SPANS_N_KINDS]);

/* Share of rank a's time in steps named `name` during which rank b is in such a step too, 0..1. */
double spans_overlap(const spans *s, const char *name, int a, int b);

/* Passes as seen on one rank, summed: from the first kernel's begin to the last one's end (on a host: step's); the part of
 * it in which none runs, in how many pieces; and between passes, from a last one's end to the next pass's first. */
typedef struct {
    int64_t pass_ns, idle_ns, between_ns, n_idle, n_kernels;
    int32_t n_passes;
} spans_pass_time;

spans_pass_time spans_passes(const spans *s, int rank);
/* own_ns [spans_count()]: by how much each span moves on the end of what a pass has done so far; with the idle time they
 * add up to the passes. Launches that begin while those in front run, waiting for them, count from those's end. Zero of
 * what spans_passes() does not look at. */
void spans_own_ns(const spans *s, int rank, int64_t *own_ns);

/* Chrome/Perfetto JSON: a process a rank; in it one track, or on a card one a queue. Spans are named after steps, their
 * arguments are layer and pass, and the card's record. `title` names the processes. */
tpl_code spans_write_chrome(const spans *s, const char *title, const char *path, tpl_err *e);

#endif
