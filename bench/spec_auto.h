/* spec_auto.h - groups, width and depth for a model pair, from a short trial and the cost of what was seen.
 * For:    `tplabench speculate --auto`.
 * Enter:  bench/, cli/, tests/.
 * Owns:   nothing; choices are values.
 * Fails:  as spec_generate(); TPL_E_USAGE where no candidate can run.
 *
 * A candidate (groups, width) is run on a few prompts at the largest depth. Level i is then kept with chance r_i given
 * that level i - 1 was; a tree of n levels is the first n levels of the deeper one, so that for every n tokens/s(n) =
 * (1 + sum over i <= n of r_1 ... r_i) / (T_first + (n - 1) T_level + T_verify(1 + n width) + T_rest) with T_first the
 * draft's first pass, T_level a further one, T_verify a line through one row and the deepest tree. */
#ifndef TPL_BENCH_SPEC_AUTO_H
#define TPL_BENCH_SPEC_AUTO_H

#include "bench/speculate.h"

typedef struct {
    const char *groups; /* the request's */
    int width, depth;
    double tok_per_s; /* expected */
} spec_choice;

enum { SPEC_AUTO_MAX = 64 };

/* What a candidate's trial showed. */
typedef struct {
    double first_s, level_s, verify_one_s, verify_row_s,
        rest_s;                  /* seconds; verify_row_s: of each row beyond the first */
    double keep[SPEC_MAX_DEPTH]; /* r_1, r_2, ... */
} spec_trial;

double spec_expected_tok_per_s(const spec_trial *t, int width, int depth);
/* Depth up to max_depth with the most tokens/s. */
int spec_best_depth(const spec_trial *t, int width, int max_depth);

/* Tries every group list and width of the request on up to 4 of its prompts, depths up to max_depth. Gives each
 * candidate with its best depth, best first; returns TPL_OK with *n of them. vanilla_tok_per_s is plain decoding on the
 * same prompts. */
tpl_code spec_auto_run(const speculate_request *q, int max_depth, spec_choice choices[SPEC_AUTO_MAX], int *n,
                       double *vanilla_tok_per_s, tpl_err *e);

#endif
