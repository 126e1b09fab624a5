/* card_comm.h - a collective between cards as a target of the measuring loop, inside recorded walks.
 * For:    bench/links_bench.c.
 * Enter:  bench/, tests/.
 * Owns:   card_links_open() owns cards and communicators; a target owns its buffers and its graph while prepared.
 * Fails:  TPL_E_UNSUPPORTED where the way cannot carry the operation; TPL_E_DEVICE; TPL_E_MEMORY.
 *
 * A run is one replay of a graph in which every card's queue has the collective many times over; the time is that of
 * one. Verification compares all elements of all ranks with sums of whole numbers. */
#ifndef TPL_BENCH_CARD_COMM_H
#define TPL_BENCH_CARD_COMM_H

#include "bench/measure.h"
#include "device/gpu_comm.h"

typedef struct card_links card_links;

/* Ranks on cards 0 .. ranks - 1, joined through NCCL and, where they can, peer memory; or, `shared`, all on card 0,
 * which peer memory alone can join. */
tpl_code card_links_open(int ranks, bool shared, card_links **out, tpl_err *e);
void card_links_close(card_links *l);
const char *card_links_device(const card_links *l);
/* "NCCL 2.28.3 and peer memory", "NCCL 2.28.3 alone (why)", "peer memory" */
const char *card_links_joined_by(const card_links *l);
/* Why a way cannot be taken; "" where it can. */
const char *card_links_why_not(const card_links *l, gpu_comm_way way);
/* Whether teams take this way for the operation and bytes. */
bool card_links_prefer(const card_links *l, gpu_comm_way way, comm_op op, tpl_dtype t, int64_t width);

typedef struct card_comm card_comm;

/* data [1, width] a rank. */
card_comm *card_comm_create(card_links *l, gpu_comm_way way, comm_op op, tpl_dtype t, int64_t width);
void card_comm_destroy(card_comm *c);
bench_target card_comm_bench(card_comm *c);

#endif
