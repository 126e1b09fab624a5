/* spec_card.h - what is measured of a speculating pair beside its runs: single passes, time by block of a card's own
 * clock, and the drafting time of k devices from the times of one.
 * For:    bench/speculate.c, bench/spec_profile.c.
 * Enter:  bench/, tests/.
 * Owns:   nothing.
 * Fails:  as session_forward(). */
#ifndef TPL_BENCH_SPEC_CARD_H
#define TPL_BENCH_SPEC_CARD_H

#include "bench/spec_profile.h"

bool spec_on_card(session *s);

/* Median seconds of an exact pass of one token behind a prompt, and of choosing its likeliest tokens if `choose`. */
tpl_code spec_time_one_token(session *s, const int32_t *prompt, int n_prompt, bool choose, double *seconds, tpl_err *e);

/* Runs a prompt under the card's clock, whose stamps between blocks are part of the recorded walks; what it says goes into
 * *out as spec_profile_run() says. */
tpl_code spec_profile_card(speculator *s, session *base, session *draft, spec_run run, spec_profile *out, tpl_err *e);

/* Seconds of attention that a pass saves where a group's layers run on k devices (layer i of a group on device i mod k,
 * `blocks`: on device i / ceil(size / k)), and how many groups exchange anything. */
double spec_saved_by_devices(const layer_groups *g, int k, bool blocks, const double *attention_of_layer,
                             int *n_exchanges);

/* An iteration's drafting on k devices: `first` and `level` are the seconds of its first and its other passes on one. */
typedef struct {
    double first_s, level_s, levels; /* levels: passes an iteration beyond the first */
    double exchange_s;               /* a group's broadcast and gather */
} spec_draft_times;
double spec_draft_on_devices(const spec_draft_times *t, double saved_s, int n_exchanges);

#endif
