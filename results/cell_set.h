/* cell_set.h - the cells that a file already holds.
 * For:    results/run_dir.c.  Enter: results/.
 * Owns:   a zeroed cell_set is empty; it owns its slots until cell_set_fini().
 * Fails:  never; ids must be valid (cell_id_is_valid()). */
#ifndef TPL_RESULTS_CELL_SET_H
#define TPL_RESULTS_CELL_SET_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct {
    uint64_t *slot; /* [cap] id + 1, 0 where free; cap is a power of two, at most half full */
    size_t n, cap;
} cell_set;

void cell_set_fini(cell_set *s);
void cell_set_add(cell_set *s, const char *cell_id);
bool cell_set_has(const cell_set *s, const char *cell_id);

#endif
