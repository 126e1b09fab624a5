/* route.h - which experts a row goes to, once its scores are known.
 * For:    moe_route of the host's backends.
 * Enter:  kernels/ref, kernels/cpu.
 * Owns:   nothing; scratch is the caller's.
 * Fails:  never; with NaN scores the choice is arbitrary, but its ids are in range and distinct. */
#ifndef TPL_KERNELS_ROUTE_H
#define TPL_KERNELS_ROUTE_H

#include <stddef.h>

#include "kernels/ops.h"

/* Bytes of scratch for route_row(), a multiple of 64. */
size_t route_scratch_bytes(const op_moe_route *o);

/* Turns a row's logits [n_experts] into scores, in place, and writes the row's ids and weights: the best first, the
 * lower id among equals. */
void route_row(const op_moe_route *o, int64_t row, double *logits, void *scratch);

#endif
