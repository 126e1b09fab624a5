/* world.h - sequences in a hostile paged cache, and what each row of a batch may see, told without the kernels' help.
 * For:    attention and cache tests.  Enter: tests/kernels.
 * Owns:   world_create() owns everything in the world.
 * Fails:  never.
 *
 * Pages lie in random order among pages that are not owned; all that is not a kept, appended slot is NaN; table entries
 * behind a sequence's pages are INT32_MAX. */
#ifndef TPL_TESTS_KERNELS_WORLD_H
#define TPL_TESTS_KERNELS_WORLD_H

#include "kernels/ops.h"
#include "tests/kernels/compare.h"

enum { WORLD_SEQS = 420 };

typedef struct {
    char name[32];
    int32_t n_seqs, prefix[WORLD_SEQS], rows[WORLD_SEQS];
    int32_t page_tok, mod, rem;
    bool tree;       /* rows have random parents */
    tpl_dtype dtype; /* of the cache */
    int32_t window;
    bool whole; /* whole numbers of up to 4 in size: exact, large scores */
    bool empty; /* nothing appended yet: for kv_append */
} world_spec;

typedef struct {
    world_spec spec;
    batch_view batch;
    kv_view kv;
    int32_t width, max_slots, n_pages;
    double *slots;   /* [n_seqs, max_slots, width] as the cache holds them */
    int32_t *parent; /* [n_rows] row of the same sequence that a row follows, counted within it; -1: the prefix */
} world;

world *world_create(const world_spec *spec, int32_t width, uint64_t seed);
void world_destroy(world *w);
double *world_slot(const world *w, int32_t seq, int64_t slot);
int32_t world_seq_slots(const world *w, int32_t seq);
/* Whether a row sees a slot that this rank keeps. */
bool world_sees(const world *w, int32_t row, int64_t slot);
/* How many values of all pages are NaN. */
int64_t world_count_nan(const world *w);

/* Softmax attention of one row: q [dk], keys [slots, dk], values [slots, dv], by definition, in double. */
void world_attend(const world *w, int32_t row, const double *q, const double *keys, int64_t dk, const double *values,
                  int64_t dv, double scale, double *out, double *lse);

#endif
