/* card_marks.h - how the card's executor marks what it enqueues, so that a trace finds the step again.
 * For:    exec_cuda.c, which sets marks, and card_trace.c, which reads them back.
 * Enter:  engine/ and tests/.  Owns: nothing.  Fails: never. */
#ifndef TPL_ENGINE_CARD_MARKS_H
#define TPL_ENGINE_CARD_MARKS_H

#include "engine/plan.h"

/* Work of a pass that belongs to no step. */
enum { CARD_MARK_CONTENTS = 0xfffffe, CARD_MARK_BEST = 0xffffff };

/* Step `index` of a phase's list on a local rank, or one of the above, in the session of that tag. Never 0. */
static inline uint64_t card_mark(uint8_t tag, int rank, plan_phase phase, int index)
{
    return (uint64_t)1 << 48 | (uint64_t)tag << 56 | (uint64_t)phase << 40 | (uint64_t)rank << 24 | (uint64_t)index;
}

static inline int card_mark_index(uint64_t mark)
{
    return (int)(mark & 0xffffff);
}

static inline int card_mark_rank(uint64_t mark)
{
    return (int)(mark >> 24 & 0xffff);
}

static inline plan_phase card_mark_phase(uint64_t mark)
{
    return (plan_phase)(mark >> 40 & 0xff);
}

static inline uint8_t card_mark_tag(uint64_t mark)
{
    return (uint8_t)(mark >> 56);
}

#endif
