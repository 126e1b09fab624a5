/* spec_profile.h - where one run's time goes: attention's share of a draft pass, idle time of every rank, and the most
 * that running a group's attention in parallel can gain. For:    bench/speculate.c. Enter:  bench/, tests/. Owns:
 * nothing. Fails:  as spec_generate(); spec_profile_run() also with TPL_E_IO where a trace cannot be written. */
#ifndef TPL_BENCH_SPEC_PROFILE_H
#define TPL_BENCH_SPEC_PROFILE_H

#include "engine/groups.h"
#include "engine/speculate.h"

enum { SPEC_PROFILE_RANKS = 16 };

typedef struct {
    int n_ranks; /* ranks of base and draft share cores: rank i of both is worker i */
    double idle_s_per_100_tok[SPEC_PROFILE_RANKS];
    double attn_share;   /* A: attention over attention and feed-forward, of the draft's layers; NaN without a draft */
    double attn_of_pass; /* attention over the whole drafting stage, head and choice of tokens included */
    double layers_of_pass;
    double overlap; /* spec_attention_overlap(); NaN on a card, where a trace says it */
    /* On a card only, of the draft: passes, all time of exchanges on rank 0 (s), attention of each layer a pass (s). */
    int64_t draft_passes;
    double exchange_s, attention_of_layer[GROUPS_MAX];
} spec_profile;

/* Runs one prompt with observers. trace_path (may be NULL): the draft's steps as a Chrome trace. Timing itself slows
 * small models, so that no tokens/s are taken from this run. */
tpl_code spec_profile_run(speculator *s, session *base, session *draft, spec_run run, const char *trace_path,
                          spec_profile *out, tpl_err *e);

/* Gain of the drafting stage, calibration counted as one ordinary pass, where communication is free: n / (1 + (n - 1) /
 * g), g = 1 / (1 - part (1 - S / L)); part: attn_of_pass, or layers_of_pass where whole layers are parallel. */
double spec_gain_bound(const layer_groups *groups, int ranks, double part, int depth);

#endif
