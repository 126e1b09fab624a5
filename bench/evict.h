/* evict.h - takes memory out of the caches, so that the next run reads it from memory as a real decode step would.
 * For:    cold samples.
 * Enter:  bench/, tests/.
 * Owns:   evict_create() owns a buffer larger than the last-level cache.
 * Fails:  TPL_E_MEMORY; evict_works() says whether eviction shows on this machine. */
#ifndef TPL_BENCH_EVICT_H
#define TPL_BENCH_EVICT_H

#include <stdbool.h>
#include <stddef.h>

#include "base/error.h"

typedef struct {
    const void *data;
    size_t bytes;
} evict_range;

typedef struct evict evict;

tpl_code evict_create(evict **out, tpl_err *e);
void evict_destroy(evict *v);

/* Flushes the lines of n ranges where the processor can (x86: clflush), else walks the buffer. */
void evict_ranges(evict *v, const evict_range *r, int n);
/* Walks the buffer: for data whose place is not known. */
void evict_all(evict *v);

/* Whether reading a probe after evict_ranges() and after evict_all() was slower than reading it again, measured once at
 * creation. */
bool evict_works(const evict *v);
size_t evict_cache_bytes(void); /* of the last-level cache as the system tells it; 32 MiB where it does not */

#endif
