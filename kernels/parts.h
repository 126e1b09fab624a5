/* parts.h - an op_call seen as a list of its operands, whatever the operation.
 * For:    type checks, messages and shape checks that are the same for every operation.
 * Enter:  kernels/ only.
 * Owns:   nothing; pointers lead into the call.
 * Fails:  never. */
#ifndef TPL_KERNELS_PARTS_H
#define TPL_KERNELS_PARTS_H

#include <stddef.h>

#include "kernels/ops.h"

enum { PARTS_MAX_MATS = 4 };

typedef struct {
    const mat *act[PARTS_MAX_MATS]; /* activations; the last one is written */
    int n_act;
    const mat *weight; /* NULL: none; data NULL in the call: an absent optional weight */
    const mat *bias;
    const head_mat *head[2]; /* NULL from the first absent one on */
    const kv_view *kv;       /* NULL: no cache */
    const batch_view *batch; /* NULL: no batch */
} call_parts;

call_parts call_split(const op_call *call);

/* True if every activation is one of the types in `act` (bit 1 << dtype), and so for weights, head weights and cache.
 */
bool parts_have_types(const call_parts *p, unsigned act, unsigned weight, unsigned head, unsigned kv);

/* "act [3, 64] f32, weight [8, 64] f16, ..." into buf. */
void parts_describe(const call_parts *p, char *buf, size_t bytes);

#endif
