/* cells.h - the configuration behind an accuracy row, and the values that go into it.
 * For:    eval/harness.c and eval/baseline.c.  Enter: eval/.  Owns: nothing.  Fails: never. */
#ifndef TPL_EVAL_CELLS_H
#define TPL_EVAL_CELLS_H

#include "eval/harness.h"

typedef struct {
    const eval_request *q;
    const variant *v;
    int tp;
    const char *task;
    ds_kind kind;
    const text_rows *text;
    const char *calib_sha; /* NULL: nothing was calibrated */
    bool is_baseline;      /* the checkpoint's own exact variant */
    bool is_exact;         /* a variant without approximation */
} cell_key;

typedef struct {
    const char *metric;
    double value, stderr_; /* NaN: none */
    int64_t n, n_truncated;
    double sliced_tok_frac;
    const char *items_id;
    const double *scores; /* [n] one an item, for paired differences; NULL: none */
} metric_values;

/* Metrics of a task kind, NULL-terminated. */
const char *const *cell_metrics(ds_kind kind, ds_protocol protocol);
/* A row with its configuration filled in; row_fini() it. */
void cell_row(const cell_key *k, const char *metric, rs_row *out);
/* The cell_id of that row. */
void cell_name(const cell_key *k, const char *metric, char id[16]);

#endif
