/* metrics.h - scores of one answer: the bundled protocol's text metrics, and multiple choice.
 * For:    items of an evaluation; LongBench's own scorers stand in longbench.h, aggregates in stats.h.
 * Enter:  eval/, cli/.
 * Owns:   nothing.
 * Fails:  metric_score_fixture() with TPL_E_USAGE for a task that has no text metric; the others never. Texts are
 *         0-terminated UTF-8; a byte that is not counts as U+FFFD. */
#ifndef TPL_EVAL_METRICS_H
#define TPL_EVAL_METRICS_H

#include <stdbool.h>
#include <stddef.h>

#include "base/arena.h"
#include "base/error.h"
#include "datasets/unicode.h"

/* ---- text, protocol=fixture: all in 0..1 ---- */

double metric_f1(const char *prediction, const char *answer); /* words without case, punctuation, a, an, the */
double metric_rouge_l(const char *prediction,
                      const char *answer); /* words without case; F of the longest common ones */
double metric_difflib(const char *prediction,
                      const char *answer);                     /* SequenceMatcher(None, prediction, answer).ratio() */
bool metric_exact(const char *prediction, const char *answer); /* equal once blanks at both ends are cut */

/* Scores generated text as the bundled protocol does: leading line feeds dropped, first line kept, blanks cut, then the
 * metric of the task (a name of datasets/tasks.h, kind DS_LONG). */
tpl_code metric_score_fixture(const char *task, const char *generated, const char *answer, double *score, bool *exact,
                              tpl_err *e);

/* ---- parts that longbench.c shares ---- */

/* Lower case; code points that `drop` names deleted; whole words a, an, the replaced by a blank. */
uni_text metric_normalise(arena *a, const char *s, bool (*drop)(int32_t c));

typedef struct {
    size_t n_prediction, n_answer, n_shared; /* words; shared ones counted with multiplicity */
} metric_overlap;

metric_overlap metric_count_words(arena *a, uni_text prediction, uni_text answer);

/* ---- multiple choice ---- */

typedef struct {
    int pred, pred_norm, pred_bytes; /* chosen index by log-likelihood, by that over code points, over UTF-8 bytes */
    bool acc, acc_norm, acc_bytes;   /* it is the gold one */
} mc_score;

/* loglik [n] and texts [n] as ds_mc_item's choice_texts. Of equal maxima the lowest index wins, a NaN wins over all; an
 * empty text divides by zero as IEEE has it. The fixture's normalised accuracy is acc_bytes, lm-eval's is acc_norm. */
mc_score metric_choose(const double *loglik, char *const *texts, int n, int gold);

#endif
