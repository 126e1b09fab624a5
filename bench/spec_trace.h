/* spec_trace.h - whether a group's layers really run side by side, and a card's trace of it.
 * For:    bench/speculate.c, bench/spec_profile.c.
 * Enter:  bench/, tests/.
 * Owns:   nothing.
 * Fails:  as session_forward() and gpu_trace_begin(); TPL_E_IO where a trace cannot be written. */
#ifndef TPL_BENCH_SPEC_TRACE_H
#define TPL_BENCH_SPEC_TRACE_H

#include "engine/spans.h"

/* Of ranks 0 and 1, within a group of several layers of a fuzzy pass: the time between the first's beginning and the last's
 * end of attention that both have in common, over that of the shorter one; mean over groups and passes. NaN where no
 * group has attention on both. */
double spec_attention_overlap(const spans *s, team *t);

/* Traces some fuzzy passes of one token behind a prompt on a draft with layer groups, and writes them for Perfetto. */
tpl_code spec_trace_card(session *draft, const int32_t *prompt, int n_prompt, const char *path, double *overlap,
                         tpl_err *e);

#endif
