/* baseline.h - what the exact variant scored on each item, so that other variants are compared item by item.
 * For:    eval/harness.c.  Enter: eval/.
 * Owns:   baseline_open() .. baseline_close() own scores and the exact model's logits.
 * Fails:  as the parts do. Scores of an earlier session are read back from the run directory's items files. */
#ifndef TPL_EVAL_BASELINE_H
#define TPL_EVAL_BASELINE_H

#include "eval/cells.h"
#include "eval/logit_store.h"

enum { BASELINE_MAX = 64 };

typedef struct {
    char task[32], metric[16], cell[16];
    double *scores;
    int64_t n;
} baseline_scores;

typedef struct {
    run_dir *rd;
    int tp;
    baseline_scores kept[BASELINE_MAX];
    int n_kept;
    logit_store logits;
    bool logits_open, logits_ready;
} baseline;

void baseline_open(baseline *b, run_dir *rd, int tp);
void baseline_close(baseline *b);
void baseline_keep(baseline *b, const cell_key *k, const metric_values *m);

/* Fills baseline_cell, diff, its interval, won, lost and mcnemar_p, if the run holds the baseline's same items. */
void baseline_compare(baseline *b, const cell_key *k, const metric_values *m, rs_row *row);

/* Makes the exact model's logits ready to compare with. `fill`: the caller is about to write them itself. */
tpl_code baseline_logits(baseline *b, lab *l, const variant *exact, const cell_key *k, const text_rows *rows, bool fill, tpl_err *e);

#endif
