/* shapes.h - the invariants of an op_call that every kernel relies on.
 * For:    kernel_run(), once a call.
 * Enter:  kernels/ only.
 * Owns:   nothing. Reads sizes only, never what pointers lead to (that may be a device's memory).
 * Fails:  by assert: a wrong shape is a bug of the caller, not of the input. */
#ifndef TPL_KERNELS_SHAPES_H
#define TPL_KERNELS_SHAPES_H

#include "kernels/ops.h"

void shapes_check(const op_call *call);

#endif
