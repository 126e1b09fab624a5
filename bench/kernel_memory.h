/* kernel_memory.h - the memory of one thread's copy of a case, filled with seeded numbers.
 * For:    bench/kernel_world.c, kernel_card.c.
 * Enter:  bench/.
 * Owns:   memory_init() owns everything until memory_fini(), which a failed init needs too.
 * Fails:  TPL_E_MEMORY. */
#ifndef TPL_BENCH_KERNEL_MEMORY_H
#define TPL_BENCH_KERNEL_MEMORY_H

#include "bench/evict.h"
#include "bench/kernel_case.h"
#include "device/memory.h"
#include "engine/bind.h"
#include "kernels/kernels.h"

typedef struct {
    arena a;                 /* page tables, batch arrays, ranges */
    plan *p;                 /* NULL: hadamard */
    dev_buf *bufs, *weights; /* [p->n_bufs], [p->n_weights]; hadamard: x and out; the matrix */
    int32_t n_bufs, n_weights;
    bound_weight *bound;
    dev_buf kv[KV_N_STREAMS], rope_cos, rope_sin, alpha;
    kv_view views[KV_N_STREAMS];
    batch_view batch;
    op_call calls[KERNEL_MAX_STEPS];
    int32_t n_calls;
} kernel_memory;

/* Where the operands of calls lie: in kernel_memory itself, or in copies of it on a card. */
typedef struct {
    tpl_dtype act;             /* of activations that the plan does not keep in f32 */
    void *const *bufs;         /* [n_bufs] */
    const bound_weight *bound; /* [n_weights] */
    const kv_view *views;      /* [KV_N_STREAMS] */
    const batch_view *batch;
    const float *rope_cos, *rope_sin, *alpha;
} kernel_places;

/* Calls of the case's steps on operands that lie `at`; gives how many, KERNEL_MAX_STEPS at most. */
int memory_bind(const kernel_memory *m, const kernel_case *c, const kernel_places *at, op_call *calls);

tpl_code memory_init(kernel_memory *m, const kernel_case *c, tpl_err *e);
void memory_fini(kernel_memory *m);

/* Writes the activations' seeded values again: what runs in place starts from the same numbers. */
void memory_fill_activations(kernel_memory *m);

/* All operands, for eviction; up to `cap`; gives how many. */
int memory_ranges(const kernel_memory *m, evict_range *r, int cap);

/* What a call writes. */
const mat *call_output(const op_call *call);
/* Whether its old content matters: in place, or added to. */
bool call_updates_output(const op_call *call);

#endif
