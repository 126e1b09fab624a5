/* spec_trace.h - whether a group's layers really run side by side, and a card's trace of it.
 * For:    bench/speculate.c, bench/spec_profile.c.
 * Enter:  bench/, tests/.
 * Owns:   nothing.
 * Fails:  as session_forward() and gpu_trace_begin(); TPL_E_IO where a trace cannot be written. */
#ifndef TPL_BENCH_SPEC_TRACE_H
#define TPL_BENCH_SPEC_TRACE_H

#include "engine/spans.h"
#include "engine/speculate.h"

/* Of ranks 0 and 1, within a group of several layers of a fuzzy pass: the time between the first's beginning and the last's
 * end of attention that both have in common, over that of the shorter one; mean over groups and passes. NaN where no
 * group has attention on both. */
double spec_attention_overlap(const spans *s, team *t);

/* The card's records of a prompt's run, those of the draft where there is one, for Perfetto. A card's tracer slows launches
 * from then on, so that nothing should be timed behind it. */
tpl_code spec_trace_card(speculator *s, session *base, session *draft, spec_run run, const char *path, tpl_err *e);
/* spec_attention_overlap() of some fuzzy passes of one token behind a prompt, by the card's tracer. */
tpl_code spec_overlap_card(session *draft, const int32_t *prompt, int n_prompt, double *overlap, tpl_err *e);

#endif
