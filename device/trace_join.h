/* trace_join.h - joins a card's activity records to marks and passes; knows nothing of CUPTI.
 * For:    device/gpu_trace.c.  Enter: that file and tests/.
 * Owns:   a trace_log owns its arrays and names (trace_log_fini()).
 * Fails:  never. */
#ifndef TPL_DEVICE_TRACE_JOIN_H
#define TPL_DEVICE_TRACE_JOIN_H

#include <stddef.h>

#include "device/gpu_trace.h"

/* An id that stood when the API call `correlation` was made. */
typedef struct {
    uint32_t correlation;
    uint64_t id;
} trace_outer;

typedef struct {
    uint64_t node, mark;
} trace_node;

/* A node that a recorded graph holds: what a replay of it does. */
typedef struct {
    uint64_t node, mark; /* mark: known after trace_join() */
    gpu_did did;
} trace_held;

/* A growing array. */
typedef struct {
    void *items;
    size_t n, cap;
} trace_list;

typedef struct {
    trace_list slices;        /* gpu_slice; mark and pass not yet known */
    trace_list marks, passes; /* trace_outer */
    trace_list nodes;         /* trace_node */
    trace_list held;          /* trace_held */
    trace_list names;         /* what the tool calls a kernel, and what we do */
} trace_log;

void trace_log_fini(trace_log *l);

void trace_add_slice(trace_log *l, gpu_slice s);
void trace_add_mark(trace_log *l, uint32_t correlation, uint64_t mark);
void trace_add_pass(trace_log *l, uint32_t correlation, int32_t pass);
/* mark 0: not kept. A copy may be told of as a new node too, at a time when no mark stands. */
void trace_add_node(trace_log *l, uint64_t node, uint64_t mark);
/* Node `node` does what `original` does, and belongs to the same mark. */
void trace_add_clone(trace_log *l, uint64_t node, uint64_t original);
void trace_add_held(trace_log *l, uint64_t node, gpu_did did);
/* The name of a kernel as a reader wants it; lives as long as the log. `given` is told apart by its address. */
const char *trace_name(trace_log *l, const char *given);

/* Fills in marks and passes, and sorts slices by time of beginning. */
void trace_join(trace_log *l);
/* After that: nodes of the kind that were made under a mark and that a recorded graph holds. What a library makes
 * elsewhere while a step is recorded is no part of it. */
int64_t trace_recorded(const trace_log *l, uint64_t mark, gpu_did did);

/* "void tpl::decode<4, bf16>(args<x>)" -> "tpl::decode", in place. */
void trace_shorten(char *name);

#endif
