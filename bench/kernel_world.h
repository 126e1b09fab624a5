/* kernel_world.h - a case made runnable: seeded inputs, weights and cache in memory, the calls of its steps, the check
 *                  against the reference.
 * For:    bench/kernels_bench.c.
 * Enter:  bench/, tests/.
 * Owns:   kernel_world_create() owns the case's memory from prepare to release, and the reference's outputs until
 * destroyed. Fails:  prepare: TPL_E_MEMORY, TPL_E_UNSUPPORTED (no row of the backend takes the shape), TPL_E_DEVICE
 * (threads).
 *
 * Inputs are normal numbers. Cached rows beyond a sequence's length are NaN, page tables are shuffled and wild beyond a
 * sequence's pages, outputs are NaN before a check. With several threads each has a world of its own. */
#ifndef TPL_BENCH_KERNEL_WORLD_H
#define TPL_BENCH_KERNEL_WORLD_H

#include "bench/evict.h"
#include "bench/kernel_case.h"
#include "kernels/kernels.h"

typedef struct kernel_world kernel_world;

/* Borrows case and evict. inject: a row that stands in for the backend's own wherever its operation is run; NULL: none.
 */
kernel_world *kernel_world_create(const kernel_case *c, evict *ev, const kernel_row *inject);
void kernel_world_destroy(kernel_world *w);

bench_target kernel_world_target(kernel_world *w);
/* Name of the table row that runs the case ("cpu_avx512"); "" before the first prepare. */
const char *kernel_world_row(const kernel_world *w);
/* Output elements that a verification looks at; 0 before the first. */
int64_t kernel_world_n_checked(const kernel_world *w);
/* About what prepare allocates. */
double kernel_world_bytes(const kernel_case *c);

#endif
