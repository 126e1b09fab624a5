/* harness.h - variants x tp x tasks of one checkpoint, into the run directory, each row once.
 * For:    `tplabench eval` and suites.  Enter: bench/ never; cli/, tests/.
 * Owns:   nothing; lab and run directory are the caller's.
 * Fails:  the first error that is not of one row alone; rows written before stay. TPL_E_INTERRUPTED after a signal. */
#ifndef TPL_EVAL_HARNESS_H
#define TPL_EVAL_HARNESS_H

#include <stdio.h>

#include "datasets/tasks.h"
#include "engine/lab.h"
#include "eval/scoring_report.h"
#include "results/run_dir.h"

typedef struct {
    lab *lab;
    const variant *variants;
    int n_variants;
    const int64_t *tps;
    int n_tps;
    char *const *tasks; /* names of datasets/tasks.h */
    int n_tasks;
    ds_protocol protocol; /* DS_FIXTURE or DS_LM_EVAL (long tasks then follow LongBench) */
    const char *data_dir, *heldout;
    int limit;               /* items a multiple-choice set; 0: all */
    int long_limit;          /* items a long set; 0: all */
    int text_rows, row_tok;  /* rows of held-out text; 0: all of 2,048 tokens (cut to the model's context) */
    tpl_dtype compute, kv;
    ranks_kind ranks;
    const char *command;     /* what makes the rows again, written into each */
    /* NULL, or told how each choice set was scored; some items are then scored twice. */
    tpl_code (*report)(void *user, const scoring_work *w, tpl_err *e);
    void *report_user;
} eval_request;

/* What is wrong with a request before anything is measured: a variant or tp that does not fit, a task's file that is missing or
 * malformed, a row longer than the model's context. eval_run() and eval_list() ask too. */
tpl_code eval_check(const eval_request *q, tpl_err *e);
/* Measures what the run directory does not have yet. */
tpl_code eval_run(const eval_request *q, run_dir *rd, tpl_err *e);
/* Prints to `out` which cells a run would measure, one a line, and which are there already. rd may be NULL. */
tpl_code eval_list(const eval_request *q, const run_dir *rd, FILE *out, tpl_err *e);

#endif
