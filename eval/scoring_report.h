/* scoring_report.h - how cheaply a set of choices was scored: what sharing prefills and batching items saved.
 * For:    `tplabench eval --scoring-report`.  Enter: eval/, cli/, tests/.
 * Owns:   nothing.
 * Fails:  never. */
#ifndef TPL_EVAL_SCORING_REPORT_H
#define TPL_EVAL_SCORING_REPORT_H

#include "engine/plan.h"

typedef struct {
    const char *task;
    int64_t n_items, n_choices;
    int64_t n_tok_unshared, n_tok; /* rows that every choice with a context of its own would take, and rows computed */
    int64_t n_pass;
    int32_t threads;  /* ranks of this process, a thread each */
    double flops;     /* of the matrix products of these rows, all ranks of this process */
    double seconds;   /* of the passes and of what is made of their logits */
    double alone_tok; /* the first items one by one: rows and seconds */
    double alone_seconds;
} scoring_work;

enum { SCORING_ALONE = 8 }; /* items scored one by one */

/* FLOPs of the matrix products of one pass of `rows` rows, of which `logit_rows` make logits. */
double scoring_flops(const plan *p, plan_phase phase, int64_t rows, int64_t logit_rows);
double scoring_sharing(const scoring_work *w);  /* rows without sharing over rows computed */
double scoring_batching(const scoring_work *w); /* seconds a row of items alone over seconds a row of the set */
double scoring_gflops(const scoring_work *w);   /* 1e9 a second */
/* One line. `ceiling`: what matrix products reach here at most, 1e9 a second, called `name`. */
void scoring_format(const scoring_work *w, double ceiling, const char *name, char *buf, size_t bytes);

#endif
