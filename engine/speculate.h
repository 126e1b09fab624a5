/* speculate.h - decoding with a draft model whose proposals the base model verifies several at a time; the output is
 * the base's own (exactly for greedy decoding, in distribution for sampling). For:    `tplabench speculate`,
 * bench/speculate.c. Enter:  bench/, cli/, tests/. Owns:   spec_create() owns tree, scratch and timers; it borrows both
 * sessions, which need nothing else running in them. Fails:  TPL_E_INPUT (vocabularies or tokenizers that differ, an
 * empty prompt), TPL_E_USAGE (options; sessions too small: make them with spec_base_session() and
 * spec_draft_session()), TPL_E_UNSUPPORTED; else as session_forward().
 *
 * One loop for all methods: the draft first runs what it lacks of the text, which gives the tree's first level; then a
 * pass a level, the last level excepted; the base runs the last token and the tree in one pass; what is accepted is
 * kept in both caches. Methods differ in the draft's lists: exact ones, or the fuzzy one of its plan (EasySpec), in
 * which case calibration first takes back every row that a fuzzy pass wrote and runs those tokens through the exact
 * list. */
#ifndef TPL_ENGINE_SPECULATE_H
#define TPL_ENGINE_SPECULATE_H

#include "engine/accept.h"
#include "engine/lab.h"

typedef enum { SPEC_VANILLA, SPEC_SD, SPEC_TREE, SPEC_EASYSPEC, SPEC_N_METHODS } spec_method;

const char *spec_method_name(spec_method m); /* "vanilla", "sd", "tree", "easyspec" */
tpl_code spec_method_find(const char *name, spec_method *out, tpl_err *e);

enum { SPEC_MAX_DEPTH = 64, SPEC_MAX_WIDTH = 64 };

typedef struct {
    spec_method method;
    int32_t depth; /* n, levels drafted an iteration */
    int32_t width; /* nodes a level; sd is always 1 wide */
    tree_children children;
    bool no_calibration;      /* easyspec: keep what fuzzy passes wrote and go on with the fuzzy list */
    float stop_confidence;    /* stop drafting when no path is as likely as this; 0: never */
    float temperature, top_p; /* of base and draft; top_p 0: 1 */
    float draft_temperature;  /* where temperature > 0; 0: the same */
    uint64_t seed;
    double assume_accept; /* > 0: not judged; each level is kept with this chance (for timing) */
    accept_fn accept;     /* NULL: accept_exact */
    void *accept_user;
} spec_options;

/* Accepted tokens of each iteration of one run, to be replayed. */
typedef struct {
    uint8_t *accepted; /* [n] */
    int32_t n, cap;
} spec_record;

void spec_record_add(spec_record *r, int accepted);
void spec_record_free(spec_record *r);

/* Sums over runs. Times are wall-clock seconds of the caller; a run's prefill is apart. */
typedef struct {
    int64_t n_tok, n_iterations, n_drafted; /* tokens put out, iterations, tree nodes verified */
    int64_t n_accepted;
    int64_t judged[SPEC_MAX_DEPTH],
        accepted[SPEC_MAX_DEPTH]; /* by level - 1: iterations that judged, that kept a token there */
    int64_t n_draft_passes;
    /* draft_s contains first_s, an iteration's first pass; calibrate_s: the same where it is easyspec's calibration. */
    double prefill_s, draft_s, first_s, calibrate_s, verify_s, other_s;
} spec_stats;

void spec_stats_add(spec_stats *to, const spec_stats *x);

/* Base and draft must have the same vocabulary and tokenizer files that tokenise alike; two shapes have no tokenizers.
 */
tpl_code spec_check_pair(lab *base, lab *draft, tpl_err *e);

/* What sessions of up to max_tok tokens need for these options. */
session_options spec_base_session(const spec_options *o, int max_tok);
session_options spec_draft_session(const spec_options *o, int max_tok);

/* Two passes of one model over the same tokens in batches of other shapes differ by rounding, so that the likeliest of
 * two nearly equal tokens may change. A logit ends a chain of about 8 products a layer of up to max(dim, ffn) terms;
 * with errors of half an ulp (2^-24; 2^-9 where inputs are bf16) that add up like a random walk, the chain's relative
 * error is about 8 L sqrt(terms) times that. Gaps of less than twice that times the largest logit are near-ties. */
double spec_near_tie(const model_config *c, tpl_dtype compute, double largest_logit);

typedef struct speculator speculator;

/* draft may be NULL for vanilla. */
tpl_code spec_create(session *base, session *draft, const spec_options *o, speculator **out, tpl_err *e);
void spec_destroy(speculator *s);

typedef struct {
    const int32_t *prompt;
    int32_t n_prompt, max_new;
    int32_t stop_id; /* -1: none */
    uint64_t stream; /* of random numbers under the options' seed */
    int32_t *out;    /* [max_new] */
    int32_t n_out;
    bool stopped;              /* by the stop token, which is not in out */
    spec_record *record;       /* filled where given */
    const spec_record *replay; /* accepted counts in place of judging; beyond its end nothing is accepted */
} spec_run;

/* Adds to *stats. */
tpl_code spec_generate(speculator *s, spec_run *run, spec_stats *stats, tpl_err *e);

#endif
