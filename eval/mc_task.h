/* mc_task.h - multiple choice: the summed log-likelihood of each choice after its context.
 * For:    tasks arc, piqa, hellaswag, winogrande, openbookqa of the harness.  Enter: eval/, tests/.
 * Owns:   mc_result arrays (mc_result_free).
 * Fails:  TPL_E_INPUT (a choice that encodes to nothing), what session_forward() fails with; TPL_E_INTERRUPTED.
 *
 * Contexts are prefilled, once for all choices that share one; the choices branch off it as a tree of rows. With
 * prefill-decode separation a second pass decodes the choices' tokens, else contexts and choices are prefilled in one. The
 * first token of a choice is always predicted by the context's last row. */
#ifndef TPL_EVAL_MC_TASK_H
#define TPL_EVAL_MC_TASK_H

#include "datasets/tasks.h"
#include "engine/generate.h"
#include "engine/lab.h"
#include "eval/metrics.h"

typedef struct {
    int32_t n;
    double **loglik;  /* [n][n_choices] nats */
    mc_score *scores; /* [n] */
    int64_t n_scored_tok, n_branch_tok; /* choice tokens in all; of them predicted by a choice's own row */
    int64_t n_ctx_tok, n_ctx_tok_unshared; /* context tokens computed, and what they were without sharing */
    int64_t n_ctx, n_choices, n_pass;      /* contexts computed, choices, forward passes */
    int64_t n_ctx_pairs, n_branch_pairs;   /* tokens seen, summed over rows: of contexts, of choices */
    double seconds;                        /* of the passes and what is made of their logits */
    int32_t n_truncated;
} mc_result;

typedef struct {
    const tokenizer *tok;
    int32_t bos; /* put before every context; -1: none */
    ds_protocol protocol;
    bool decode_choices; /* run the choices' tokens through the decode list */
    step_observer observe; /* of the passes; {0}: none */
} mc_options;

tpl_code mc_task_run(const lab_run *run, const mc_options *o, const ds_mc_item *items, int n, mc_result *out, tpl_err *e);
void mc_result_free(mc_result *r);

#endif
