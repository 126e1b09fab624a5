/* kernel_card.h - a case made runnable on a card: its operands copied there, its calls recorded and replayed, the check
 * against the reference.
 * For:    bench/kernels_bench.c.
 * Enter:  bench/, tests/.
 * Owns:   kernel_card_create() owns what prepare acquires until release, and the reference's outputs until destroyed.
 * Fails:  prepare: TPL_E_MEMORY (host or card), TPL_E_UNSUPPORTED (no row of the backend takes the shape),
 * TPL_E_DEVICE.
 *
 * The operands lie on the card as many times as it takes to exceed its L2 cache, three times over; a replay walks
 * through all copies and goes on until it takes milliseconds, so that each call finds its operands in memory only and
 * the host's part in a sample is small. Calls of a replay follow each other as an engine's steps do: one may begin
 * before the one in front has ended. Activations have the type that products compute in, as in a team on cards. */
#ifndef TPL_BENCH_KERNEL_CARD_H
#define TPL_BENCH_KERNEL_CARD_H

#include "bench/kernel_case.h"
#include "device/gpu.h"

typedef struct kernel_card kernel_card;

/* Borrows the case, the card and the queue, which is used by nobody else meanwhile. bound_us: least time of the case's
 * calls, NaN where it is not known; with it the length of a replay is chosen. inject: see kernel_world_create(). */
kernel_card *kernel_card_create(const kernel_case *c, gpu *card, gpu_queue *q, double bound_us,
                                const kernel_row *inject);
void kernel_card_destroy(kernel_card *k);

bench_target kernel_card_target(kernel_card *k);
/* Name of the table row that runs the case ("cuda_wgmma"); "" before the first prepare. */
const char *kernel_card_row(const kernel_card *k);
/* Output elements that a verification looks at; 0 before the first. */
int64_t kernel_card_n_checked(const kernel_card *k);
/* Copies of the operands, and how often a replay runs the case. */
int kernel_card_copies(const kernel_card *k);
int kernel_card_runs(const kernel_card *k);
/* About what prepare allocates on the card. */
double kernel_card_bytes(const kernel_case *c, const gpu *card);

#endif
