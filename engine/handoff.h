/* handoff.h - a sequence's cache from a prefill team to a decode team, which may have another number of ranks: what
 * goes where, and the moving of it. For:    bench/handoff.c and tests; teams of one process that run the same model in
 * the same variant. Enter:  bench/, cli/, tests/. Owns:   handoff_open() owns the list of parts and, on cards, page
 * tables and a queue a rank; it borrows both sessions. Fails:  TPL_E_USAGE where the sessions do not fit together;
 * TPL_E_UNSUPPORTED for ranks in several processes and cards that cannot map each other's memory; TPL_E_MEMORY where
 * the decode team's cache is full.
 *
 * Only the stream that decode reads is moved. Every rank of the decode team gets the columns and slots that its plan
 * keeps, from a rank of the prefill team that has them; columns that several have come from the one with its own
 * number, so that sources share the work. On cards, rows are written straight into the other card's pages, through peer
 * memory. */
#ifndef TPL_ENGINE_HANDOFF_H
#define TPL_ENGINE_HANDOFF_H

#include "engine/session.h"

typedef struct handoff handoff;

/* Rows of some slots of one rank to one rank, all layers. Slot s moves if s % from_mod == from_rem and s % to_mod ==
 * to_rem; columns count from the start of a rank's cached row. */
typedef struct {
    int32_t from, to;
    int32_t from_mod, from_rem, to_mod, to_rem;
    int32_t from_col, to_col, cols;
} handoff_part;

/* The parts that bring a cache of the plans from[n_from] to the plans to[n_to], malloc'ed. TPL_E_USAGE where a column
 * has no source. */
tpl_code handoff_list(const plan *const *from, int n_from, const plan *const *to, int n_to, handoff_part **parts,
                      int *n, tpl_err *e);
/* How many of slots 0 .. n_tok - 1 a part moves, and the first of them (-1: none); they are `step` slots apart. */
int64_t handoff_part_slots(const handoff_part *p, int64_t n_tok, int64_t *first, int64_t *step);

tpl_code handoff_open(session *from, session *to, handoff **out, tpl_err *e);
void handoff_close(handoff *h);

/* Makes `to_seq`, which is empty, or holds what an earlier call brought, a copy of from_seq's cache as decode reads it.
 * Returns when all has arrived. */
tpl_code handoff_run(handoff *h, int from_seq, int to_seq, tpl_err *e);
/* Bytes that a run with n_tok tokens moves, all ranks and layers. */
double handoff_bytes(const handoff *h, int64_t n_tok);
/* Of these, what goes from one card to another; 0 on a host. */
double handoff_crossed_bytes(const handoff *h, int64_t n_tok);

#endif
