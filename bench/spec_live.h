/* spec_live.h - cells of a speculation bench while they are measured, shared by speculate.c (runs) and spec_rows.c (rows).
 * For:    those two files.  Enter: nobody else.  Owns: see speculate.h.  Fails: see speculate.h. */
#ifndef TPL_BENCH_SPEC_LIVE_H
#define TPL_BENCH_SPEC_LIVE_H

#include "bench/spec_cells.h"

/* One cell while it is measured. */
typedef struct {
    spec_cell cell;
    char name[SPEC_CELL_NAME];
    session *base, *draft;
    speculator *s;
    tpl_code failed; /* it cannot run; the words are in err */
    tpl_err err;
    spec_stats sum;
    double *seconds, *tokens; /* [n_prompts] */
    int32_t *out;             /* [max_new] of the prompt at hand */
    int32_t n_out;
    int n_differ, n_wrong; /* texts that differ from vanilla's, those of them at more than a near-tie */
    spec_profile profile;
    bool profiled;
    double one_token_s, base_token_s; /* exact pass of one token of the draft, decode step of the base; 0: not timed */
    bool modelled;          /* drafting times are a model's, see spec_model_devices() */
    double draft_s_timed;   /* sum.draft_s before */
} spec_live;

typedef struct {
    const speculate_request *q;
    run_dir *rd;
    spec_pool pool;
    spec_live *cells;
    int n;
    bool wrong;
} spec_bench;

/* Seconds of a run without its prefill. */
double spec_run_seconds(const spec_stats *x);
/* Vanilla on as many ranks of the base, else on any; NULL: none ran. */
const spec_live *spec_vanilla_like(const spec_bench *b, const spec_live *of);
/* Only judged greedy texts must equal vanilla's. */
bool spec_is_compared(const spec_bench *b, const spec_live *c);
/* Puts the drafting time of a card a rank in place of what ranks that share one card took, where the request asks for
 * it: the ordinary draft's passes on one rank, less the attention that a group's ranks do at once, by measured times of
 * each layer, and an exchange a group more. Calibration is as timed. */
void spec_model_devices(const spec_bench *b, spec_live *c);
/* Once all cells were run and profiled. */
tpl_code spec_write_row(spec_bench *b, spec_live *c, tpl_err *e);

#endif
