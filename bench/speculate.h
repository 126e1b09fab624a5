/* speculate.h - tokens a second of speculative decoding against plain decoding, with where the time goes and what is
 *               accepted: the ladder vanilla, tp, sd, tree, easyspec, and ablations of the last.
 * For:    `tplabench speculate`.
 * Enter:  cli/, tests/.
 * Owns:   nothing; labs and run directory are the caller's.
 * Fails:  what is wrong with the request; a cell that cannot run becomes a row and the sweep goes on. TPL_E_MISMATCH
 * where a greedy text differs from vanilla's at more than near-ties; TPL_E_INTERRUPTED after a signal.
 *
 * Cells of one temperature take turns prompt by prompt, so that all meet the same state of the machine; speed-ups are
 * over vanilla on the fewest ranks, with a bootstrap interval over prompts. Prefill is not part of any time. */
#ifndef TPL_BENCH_SPECULATE_H
#define TPL_BENCH_SPECULATE_H

#include "bench/spec_replay.h"
#include "results/run_dir.h"

typedef struct {
    int32_t *tokens;
    int32_t n;
} spec_prompt;

typedef struct {
    lab *base, *draft;                           /* draft may be NULL where only vanilla is asked for */
    const variant *base_variant, *draft_variant; /* NULL: the exact ones */
    const spec_method *methods;
    int n_methods;
    const int64_t *tps; /* of the base: vanilla at each, all else at the last */
    int n_tps;
    int draft_tp; /* k: ranks of easyspec's draft; ordinary drafts run at every tp from 1 to k that fits */
    const double *temperatures;
    int n_temperatures;
    char *const *groups; /* as groups_parse() takes them */
    int n_groups;
    const int64_t *widths; /* of tree (above 1) and easyspec */
    int n_widths;
    int depth;
    bool calibrated, uncalibrated;     /* easyspec with, without calibration */
    bool attention_only, whole_layers; /* what is parallel in a group */
    bool visit, blocks;                /* plan_fuzzy's choices */
    spec_options sampling;             /* children, top_p, draft_temperature, stop_confidence, seed, assume_accept */
    const spec_prompt *prompts;
    int n_prompts;
    const char *task;
    int max_new;
    int32_t stop_id;
    tpl_dtype compute, kv;
    const char *backend; /* NULL: "cpu" */
    ranks_kind ranks;    /* of teams of several: RANKS_LOCAL or RANKS_NCCL */
    bool no_graph;       /* card: enqueue every step of every pass */
    joins_kind joins;    /* card: which steps share a launch */
    double exchange_us;  /* > 0: drafting of ranks that share a card is modelled as on a card each, with a group's
                          * exchange taken to last so long */
    const spec_replay *replay; /* may be NULL */
    FILE *record;              /* may be NULL */
    bool trace;
    const char *device, *command;
} speculate_request;

tpl_code speculate_bench_run(const speculate_request *q, run_dir *rd, tpl_err *e);
/* One line a cell that speculate_bench_run() would measure. */
tpl_code speculate_bench_list(const speculate_request *q, FILE *out, tpl_err *e);

/* Tokens and seconds of n prompts. */
typedef struct {
    const double *tokens, *seconds;
} spec_times;

/* Rate of `other` (all tokens over all seconds) over that of `base`, and its 95% percentile interval over 2,000
 * resamplings of the prompts, which stay paired; NaN for a single prompt. */
typedef struct {
    double ratio, lo, hi;
} spec_ratio;
spec_ratio spec_ratio_of_rates(spec_times other, spec_times base, int n, uint64_t seed);

#endif
