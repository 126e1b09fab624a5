/* latency_impl.h - the inside of the latency bench: cells, what one costs in memory, its rows.
 * For:    latency.c (the sweep), latency_cells.c (one cell runs), latency_verify.c (right or wrong),
 *         latency_attention.c (attention alone),
 *         latency_observe.c (splits, traces), latency_fit.c
 *         (memory), latency_prefill.c (bound and rate of the prefill), latency_report.c (rows).
 * Enter:  those files only.
 * Owns:   lat_cell_init() .. lat_cell_fini(); what a target's prepare() makes, until its release().
 * Fails:  see latency.h. */
#ifndef TPL_BENCH_LATENCY_IMPL_H
#define TPL_BENCH_LATENCY_IMPL_H

#include "bench/latency.h"
#include "bench/pair.h"

enum { LAT_MAX_VARIANTS = 32, LAT_MAX_TTFT = 64 };

/* One variant of one cell: a team, a session, its sequences filled to the context. */
typedef struct {
    const latency_request *q;
    const variant *v;
    int tp, batch, context, decode_tok;
    int steps;         /* decode steps run in one sample, spread evenly over decode_tok */
    bool own_max;      /* batch is the largest that fits */
    bool batch_proven; /* it was allocated, or an earlier run had it */
    lab_run run;
    session *s;
    int *seqs;           /* [batch] */
    int32_t *prompt;     /* [context] random tokens, the same for all variants */
    int32_t *next;       /* [batch] token to feed next */
    batch_row *rows;     /* [batch] */
    float *first_logits; /* [vocab] of the first decode step when verified before timing; NULL until then */
    float *expected;     /* [vocab] the same by the prefill list; NULL where decode is an approximation of it */
    double *itl_us;      /* every step's time of the measured runs, sequence by sequence is the same */
    int64_t n_itl, cap_itl;
    bool sampling;    /* warm-up is over */
    double silent_us; /* a step's time without collectives; NaN: not measured */
    double attention_us; /* of a step's attention alone; NaN: not measured */
    double alone_us;  /* of rank 0's work alone, without the other threads; NaN: not measured */
    double joint_us;  /* of a whole step, in turns with the two above */
    int64_t kv_used, peak_bytes;
    double ttft_us[LAT_MAX_TTFT]; /* [n_ttft] */
    int n_ttft;
    run_dir *rd;      /* where the trace goes */
    char *split;      /* time of a decode step by operation; NULL until observed */
    bool after_trace; /* a card's tracer had run in this process before the cell was timed */
} lat_cell;

/* Where a cell stands in the sweep. */
typedef struct {
    int tp, batch, context, decode_tok;
} lat_place;

/* All variants at one place. */
typedef struct {
    lat_cell cells[LAT_MAX_VARIANTS];
    int n;
    measure_result tpot[LAT_MAX_VARIANTS];
    double noise_floor;
    pair_mode mode;
} lat_group;

/* ---- latency_cells.c ---- */

bool lat_on_card(const latency_request *q);
/* Types as the engine takes them where none are named; activations are f32 on a host. */
tpl_dtype lat_compute(const latency_request *q);
plan_types lat_types(const latency_request *q);
/* How many ranks work on one machine's ceilings, and in one memory, at once. */
int lat_sharers(const latency_request *q, int tp);
int lat_prefill_rows(const latency_request *q); /* of one pass */
plan_options lat_plan_options(const latency_request *q);
/* Steps that a sample of so many decoded tokens runs. */
int lat_steps(const latency_request *q, int decode_tok);

/* The batch of LATENCY_BATCH_MAX is found by the plan, 1 where not even that fits. */
void lat_cell_init(lat_cell *c, const latency_request *q, const variant *v, lat_place at, run_dir *rd);
/* For a cell that decodes with another batch than it was made for. */
void lat_cell_set_batch(lat_cell *c, int batch);
void lat_cell_fini(lat_cell *c);
/* What the row of a cell is called: its configuration, and its id. */
void lat_config_row(const lat_cell *c, rs_row *r);
rs_cell_id lat_cell_id(const lat_cell *c);

/* Its decoding as the measuring loop takes it. */
bench_target lat_target(lat_cell *c);
/* One sample: the decode steps that stand for decode_tok tokens. */
tpl_code lat_run_decode(void *cell, tpl_err *e);
/* One decode step of the whole batch; greedy. */
tpl_code lat_decode_step(lat_cell *c, tpl_err *e);
tpl_code lat_back_to_context(void *cell, tpl_err *e);
/* The session that a cell makes, with another batch. */
session_options lat_session_options(const lat_cell *c, int batch);
/* A team and an empty session, or nothing. */
tpl_code lat_open(lat_cell *c, tpl_err *e);
void lat_release(void *cell);

/* ---- latency_verify.c ---- */

/* The first decode step's logits by the prefill list, where decode is no approximation of it. */
tpl_code lat_expect(lat_cell *c, tpl_err *e);
/* A bench_target's verify(): against these, and bit for bit against the first time. After sampling it also observes the
 * cell, and times its steps without collectives. */
tpl_code lat_verify(void *cell, int64_t *n_wrong, tpl_err *e);

/* ---- latency_observe.c ---- */

/* Decode steps under observation: the split of their time, and the trace if one is wanted. Their time is in no row. */
tpl_code lat_observe(lat_cell *c, tpl_err *e);

/* ---- latency_attention.c ---- */

/* Whether decode attention can be timed alone: on cards, in this process, over caches of which no L2 holds a part. */
bool lat_has_attention(const lat_cell *c);
/* Sets attention_us; values are wrong afterwards. */
tpl_code lat_time_attention(lat_cell *c, tpl_err *e);
double lat_attention_bound_us(const lat_cell *c);
double lat_attention_frac(const lat_cell *c); /* 0: not measured */

/* ---- latency_fit.c ---- */

/* What a cell takes of the memory that its ranks share, by its plan; 0 where it has none. */
double lat_bytes_needed(const lat_cell *c);
/* What one rank of it takes, weights included. */
double lat_rank_bytes(const lat_cell *c);
/* TPL_E_MEMORY, with what would fit, where a cell takes more than there is. */
tpl_code lat_check_fits(const lat_cell *c, tpl_err *e);
/* The largest batch that fits by the plan; 0: none. */
int lat_max_batch(const lat_cell *c);
/* lat_open(); a largest batch that cannot be allocated becomes smaller until it can, once. */
tpl_code lat_open_largest(lat_cell *c, tpl_err *e);

/* ---- latency_prefill.c ---- */

/* Time to first token beside its bound and as a rate: the row's ttft_bound_ms .. ttft_matrix_frac. */
void lat_fill_prefill(const lat_cell *c, rs_row *r);
/* What the link model says of the prefill's collectives. */
tpl_code lat_prefill_comm_us(const lat_cell *c, const plan *own, double *us, tpl_err *e);

/* ---- latency_report.c ---- */

/* Rows of a measured group, ratios against its first cell. TPL_E_MISMATCH if an answer was wrong. */
tpl_code lat_write_group(lat_group *g, const latency_request *q, run_dir *rd, tpl_err *e);

#endif
