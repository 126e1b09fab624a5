/* longbench.h - LongBench v1's scorers for its English, code and label-matching datasets.
 * For:    protocol=longbench; definitions follow THUDM/LongBench 2e00731 with rouge 1.0.1 and fuzzywuzzy 0.18.0.
 * Enter:  eval/, cli/.
 * Owns:   nothing.
 * Fails:  TPL_E_UNSUPPORTED for the three datasets whose metric needs Chinese word segmentation; TPL_E_INPUT for an
 *         answer that is not of the metric's form. Texts are 0-terminated UTF-8. */
#ifndef TPL_EVAL_LONGBENCH_H
#define TPL_EVAL_LONGBENCH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

typedef enum {
    LB_QA_F1,
    LB_ROUGE,          /* F of ROUGE-L over distinct words, sentence by sentence */
    LB_CLASSIFICATION, /* 1 / classes that the prediction names, if the right one is among them */
    LB_RETRIEVAL,      /* share of the prediction's numbers that are the paragraph's */
    LB_RETRIEVAL_ZH,
    LB_COUNT,    /* share of the prediction's numbers that equal the answer */
    LB_CODE_SIM, /* whole per cent of similarity to the first line of code */
    LB_SEGMENTED /* needs a Chinese segmenter: not offered */
} lb_metric;

typedef struct {
    const char *name, *category;
    lb_metric metric;
    int max_new_tok;
    bool first_line; /* only the prediction's first line counts */
    bool plain;      /* never wrapped in a chat template */
    bool in_e;       /* part of LongBench-E */
} lb_dataset;

const lb_dataset *lb_find_dataset(const char *name); /* NULL if there is none */

typedef struct {
    bool recursion_limit; /* ROUGE-L is 0 where the reference would exceed CPython's default recursion limit */
    bool levenshtein; /* code similarity by longest common subsequence, as with python-Levenshtein, not by difflib */
} lb_options;

typedef struct {
    const char *prediction;
    char *const *answers;
    int n_answers; /* 1 or more */
    char *const *all_classes;
    int n_classes;
} lb_item;

/* One prediction against one answer, 0..1; no cutting. */
tpl_code lb_score_answer(lb_metric metric, const lb_options *o, const lb_item *item, const char *answer, double *score,
                         tpl_err *e);
/* The dataset's rule: cut to the first line where it says so, then the best over the answers. */
tpl_code lb_score_item(const lb_dataset *d, const lb_options *o, const lb_item *item, double *score, tpl_err *e);

/* Per cent of the items' scores, rounded to two places as Python rounds. */
double lb_score_dataset(const double *scores, size_t n);
/* LongBench-E: the same in the length classes 0-4k, 4-8k, 8k+ (`n_words` of the record), with numpy's summation and
 * rounding; NaN for an empty class. */
void lb_score_by_length(const double *scores, const int64_t *n_words, size_t n, double per_cent[3]);

double lb_round2(double x);       /* Python: the nearest decimal of the exact binary value */
double lb_round2_numpy(double x); /* numpy: scaled by 100, rounded half to even, scaled back */

#endif
