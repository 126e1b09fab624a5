/* gpu_trace.h - what a card did and when, by CUPTI's activity records, each joined to the step that enqueued it.
 * For:    --trace on cards. While no trace runs, marks cost a test of a pointer.
 * Enter:  engine/ sets marks, gpu.c tells what graphs hold; bench/, cli/, tests/ begin, end and read.
 * Owns:   gpu_trace_begin() gives the one trace of this process; its slices and names live until gpu_trace_destroy().
 * Fails:  TPL_E_UNSUPPORTED where this build or machine has no CUPTI or another tool holds it; TPL_E_DEVICE with CUPTI's
 *         words.
 *
 * What is launched directly is joined by the external ids that stood when it was launched: the mark and the pass. What
 * a graph replays carries the pass of its launch, and the mark that stood when its node was recorded, which is known by
 * the node's id; so graphs must be recorded while the trace runs, see gpu_trace_number(). */
#ifndef TPL_DEVICE_GPU_TRACE_H
#define TPL_DEVICE_GPU_TRACE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"

typedef enum { GPU_DID_KERNEL, GPU_DID_COPY, GPU_DID_FILL, GPU_DID_REPLAY } gpu_did;

const char *gpu_did_name(gpu_did d); /* "kernel", "copy", "fill", "replay" */

typedef struct {
    gpu_did kind;     /* GPU_DID_REPLAY: the host's call that launched a graph */
    const char *name; /* a kernel's, without its parameters; else what kind says */
    int64_t begin_ns, end_ns;
    uint64_t mark;    /* 0: none stood */
    int32_t pass;     /* -1: none stood */
    int32_t card;     /* -1: the host */
    uint32_t queue, correlation;
    uint64_t node; /* 0: launched directly */
    int64_t bytes; /* of copies and fills */
} gpu_slice;

typedef struct gpu_trace gpu_trace;

/* Whether a trace could begin, as far as that can be said without beginning one. */
tpl_code gpu_trace_check(tpl_err *e);
bool gpu_trace_has_run(void); /* in this process; from then on launches may take longer */
tpl_code gpu_trace_begin(gpu_trace **out, tpl_err *e);
/* Once everything that was enqueued has run: collects the records, and stops. */
tpl_code gpu_trace_end(gpu_trace *t, tpl_err *e);
void gpu_trace_destroy(gpu_trace *t); /* NULL is fine; ends it too */

/* After gpu_trace_end(), by time of beginning. */
const gpu_slice *gpu_trace_slices(const gpu_trace *t, int64_t *n);
int64_t gpu_trace_dropped(const gpu_trace *t); /* records that CUPTI could not keep */
/* Nodes of the kind that were recorded under a mark into graphs: what each replay must show of it. */
int64_t gpu_trace_recorded(const gpu_trace *t, uint64_t mark, gpu_did did);

/* ---- marks: one thread at a time ---- */

/* What is enqueued or recorded from now on belongs to `mark`; 0: to nothing. */
void gpu_trace_mark(uint64_t mark);
/* What is launched from now on belongs to `pass`; -1: to none. */
void gpu_trace_pass(int32_t pass);
/* A graph that was just recorded holds `node` (a CUgraphNode), which does that. */
void gpu_trace_hold(void *node, gpu_did did);
/* Differs between traces; 0 while none runs. */
int32_t gpu_trace_number(void);

#endif
