/* comm_target.h - a collective between thread ranks as a target of the measuring loop.
 * For:    bench/kernels_bench.c.
 * Enter:  bench/, tests/.
 * Owns:   comm_target_create() owns handle and buffers until destroyed.
 * Fails:  TPL_E_UNSUPPORTED where the width does not divide by the ranks; TPL_E_MEMORY; TPL_E_DEVICE.
 *
 * A run is COMM_RUNS collectives one after another on threads that are already awake, as in a forward pass; the time is
 * that of one. Data stay in the caches: that is where the ranks' steps leave them. */
#ifndef TPL_BENCH_COMM_TARGET_H
#define TPL_BENCH_COMM_TARGET_H

#include "bench/measure.h"
#include "device/comm.h"

enum { COMM_RUNS = 64 };

typedef struct comm_target comm_target;

/* data [rows, width] f32 a rank, as comm.h says for the operation. */
comm_target *comm_target_create(comm_op op, int ranks, int64_t rows, int64_t width);
void comm_target_destroy(comm_target *t);
bench_target comm_target_bench(comm_target *t);

#endif
