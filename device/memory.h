/* memory.h - large buffers of one rank: weights, caches, activations.
 * For:    engine/team and session; counted, so that a plan's bytes can be checked against what was allocated.
 * Enter:  engine/, bench/, tests/.
 * Owns:   dev_alloc() gives page-aligned zeroed memory; dev_free() takes it back.
 * Fails:  TPL_E_MEMORY with the bytes asked for and what the machine has left. */
#ifndef TPL_DEVICE_MEMORY_H
#define TPL_DEVICE_MEMORY_H

#include <stddef.h>

#include "base/error.h"

typedef struct {
    void *data;
    size_t bytes; /* as asked for; the mapping is rounded up to pages */
} dev_buf;

/* `what` names the buffer in messages ("KV cache of rank 1"). */
tpl_code dev_alloc(dev_buf *b, size_t bytes, const char *what, tpl_err *e);
void dev_free(dev_buf *b);

/* Fills with NaN patterns (0xff bytes are NaN in f32, bf16 and f16), so that a read of memory that nobody wrote shows. */
void dev_poison(void *data, size_t bytes);

#endif
