/* text_task.h - perplexity on running text, and how far a variant's predictions are from the exact model's.
 * For:    task `text` of the harness.  Enter: eval/, tests/.
 * Owns:   text_result arrays (text_result_free).
 * Fails:  what session_forward() fails with; TPL_E_INTERRUPTED.
 *
 * Each row of T tokens is a sequence of its own. Its first half is prefilled, its second half goes through the decode list, as
 * one chunk of rows that see each other causally: what a decoder would have computed token by token. Position t predicts
 * token t + 1. Definition: the fixture's README. */
#ifndef TPL_EVAL_TEXT_TASK_H
#define TPL_EVAL_TEXT_TASK_H

#include "engine/lab.h"
#include "eval/logit_store.h"

typedef struct {
    int32_t n_rows;
    int64_t n_prefill, n_decode;  /* predictions a row in each half */
    double *nll_prefill;          /* [n_rows] mean over the first half's predictions, nats */
    double *nll_decode;           /* [n_rows] mean over the second half's predictions */
    double *kl, *top1;            /* [n_rows] means over the second half; NULL without reference logits */
} text_result;

/* `reference`: filled if `fill`, else compared against (NULL: no comparison). */
tpl_code text_task_run(const lab_run *run, const text_rows *rows, logit_store *reference, bool fill, text_result *out, tpl_err *e);
void text_result_free(text_result *r);

#endif
