/* scoring_report.h - how cheaply a set of choices was scored: what sharing prefills and batching items saved, how near it
 *                    came to matrix products alone, and where the rest of the time went.
 * For:    `tplabench eval --scoring-report`.  Enter: eval/, cli/, tests/.
 * Owns:   scoring_clock_create() owns its tracks; a scoring_work is a plain value.
 * Fails:  never. */
#ifndef TPL_EVAL_SCORING_REPORT_H
#define TPL_EVAL_SCORING_REPORT_H

#include "engine/spans.h"

enum { SCORING_ALONE = 8,   /* items scored one by one */
       SCORING_SHAPES = 32, /* different matrix products of a list */
       SCORING_LINE = 640 };

/* A product [rows, k] x [n, k] that a pass makes `times` times. */
typedef struct {
    int64_t rows, n, k, times;
} scoring_product;

typedef struct {
    const char *task;
    int64_t n_items, n_choices;
    int64_t n_tok_unshared, n_tok; /* rows that every choice with a context of its own would take, and rows computed */
    int64_t n_pass;
    int32_t threads;  /* ranks of this process, a thread each */
    double flops;     /* of the matrix products of these rows, all ranks of this process */
    double attn_flops; /* of their attention: tokens expanded once, pairs that are seen */
    double seconds;   /* of the passes and of what is made of their logits */
    double alone_tok; /* the first items one by one: rows and seconds */
    double alone_seconds;
    double kind_seconds[SPANS_N_KINDS]; /* of steps by operation, mean of the ranks; the rest of `seconds` lies between passes */
    scoring_product products[SCORING_SHAPES]; /* of rank 0's prefill list at the mean rows of a pass */
    int32_t n_products;
} scoring_work;

typedef struct {
    double matrix; /* what large products reach with as many threads, 1e9 a second */
    double shapes; /* what `products` reach */
    const char *name; /* type of their inputs */
} scoring_ceiling;

/* Adds FLOPs of one pass over a batch of that shape: of matrix products, and of attention. */
void scoring_add_flops(const plan *p, plan_phase phase, const batch_shape *b, scoring_work *w);
/* Fills in w->products. */
void scoring_list_products(const plan *p, int64_t rows, int64_t logit_rows, scoring_work *w);

double scoring_sharing(const scoring_work *w);  /* rows without sharing over rows computed */
double scoring_batching(const scoring_work *w); /* seconds a row of items alone over seconds a row of the set */
double scoring_gflops(const scoring_work *w);   /* products and attention, 1e9 a second */
/* Two lines: rates, and the split of the time. */
void scoring_format(const scoring_work *w, const scoring_ceiling *c, char line[SCORING_LINE], char split[SCORING_LINE]);

/* ---- time by operation, however many steps there are ---- */

typedef struct scoring_clock scoring_clock;

scoring_clock *scoring_clock_create(int n_ranks);
void scoring_clock_destroy(scoring_clock *c);
step_observer scoring_clock_observer(scoring_clock *c);
/* Fills in w->kind_seconds with what was seen so far. */
void scoring_clock_read(const scoring_clock *c, scoring_work *w);

#endif
