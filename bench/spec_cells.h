/* spec_cells.h - the cells of a speculation bench: which there are, the models they run on, and their rows.
 * For:    bench/speculate.c and bench/spec_auto.c.
 * Enter:  bench/.
 * Owns:   a pool owns teams and sessions, shared by all cells that need the same ones (spec_pool_close).
 * Fails:  spec_pool_open_cell() as its parts do. */
#ifndef TPL_BENCH_SPEC_CELLS_H
#define TPL_BENCH_SPEC_CELLS_H

#include "bench/spec_profile.h"
#include "bench/speculate.h"

enum { SPEC_CELL_NAME = 256, SPEC_MAX_CELLS = 512 };

typedef struct {
    spec_method method;
    int base_tp, draft_tp; /* draft_tp 0: no draft */
    const char *groups;    /* NULL but for easyspec */
    int width;
    bool no_calibration, whole_layers;
    double temperature;
} spec_cell;

/* The cells of one temperature, in order of the ladder; returns how many. */
int spec_list_cells(const speculate_request *q, double temperature, spec_cell cells[SPEC_MAX_CELLS]);

/* "easyspec rule:4 w4 n5 t0 raw layers": what acceptance depends on; ranks are left out. */
void spec_cell_name(const speculate_request *q, const spec_cell *c, char name[SPEC_CELL_NAME]);
spec_options spec_cell_options(const speculate_request *q, const spec_cell *c);
/* The columns that say what a cell is. */
void spec_cell_row(const speculate_request *q, const spec_cell *c, rs_row *out);

bool spec_is_card(const speculate_request *q);
/* The type that products take: the engine's where none is asked for. */
tpl_dtype spec_compute(const speculate_request *q);

typedef struct {
    int tp;
    const char *groups; /* NULL: an ordinary plan */
    bool whole_layers, is_draft;
    lab_run run;
    session *s;
} spec_side;

typedef struct {
    spec_side sides[2 * SPEC_MAX_CELLS];
    int n;
    int max_tok;
} spec_pool;

/* Opens (or finds) what a cell runs on. draft is NULL for vanilla. */
tpl_code spec_pool_open_cell(spec_pool *p, const speculate_request *q, const spec_cell *c, session **base,
                             session **draft, tpl_err *e);
void spec_pool_close(spec_pool *p);

#endif
