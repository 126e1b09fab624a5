/* card_trace.h - what a card did, as spans of a session's steps, and whether it is what the plan says.
 * For:    --trace on cards; the GPU tests.
 * Enter:  bench/, tests/.
 * Owns:   card_trace_spans() gives spans; kernel names in them are lent by the gpu_trace.
 * Fails:  never; what does not fit together is counted.
 *
 * The caller numbers the passes it wants to see, gpu_trace_pass(0), (1), ..., and everything else stays outside. */
#ifndef TPL_ENGINE_CARD_TRACE_H
#define TPL_ENGINE_CARD_TRACE_H

#include "device/gpu_trace.h"
#include "engine/spans.h"

typedef struct {
    int64_t n_dropped;  /* records that the tracer lost */
    int64_t n_unmarked; /* records in a pass that no step claims */
    int64_t n_unlike;   /* (pass, step) whose records are not as many as were recorded for replay */
    char first_unlike[160];
} card_trace_check;

/* Spans of all local ranks in passes [0, n_passes). `replayed`: each pass was one replay of a graph that was recorded
 * under the trace, so that each step's records are known beforehand. */
spans *card_trace_spans(session *s, const gpu_trace *t, int32_t n_passes, bool replayed, card_trace_check *check);

#endif
