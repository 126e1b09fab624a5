#include "results/cell_set.h"

#include <stdlib.h>

#include "base/arena.h"

/* An id is 48 bits of a hash, so its low bits spread well as they are. */
static uint64_t *find_slot(const cell_set *s, uint64_t key)
{
    size_t i = key & (s->cap - 1);
    while (s->slot[i] && s->slot[i] != key)
        i = (i + 1) & (s->cap - 1);
    return &s->slot[i];
}

static uint64_t to_key(const char *cell_id)
{
    return strtoull(cell_id, NULL, 16) + 1;
}

static void grow(cell_set *s)
{
    cell_set bigger = {.cap = s->cap ? 2 * s->cap : 64, .n = s->n};
    bigger.slot = tpl_calloc(bigger.cap, sizeof *bigger.slot);
    for (size_t i = 0; i < s->cap; i++)
        if (s->slot[i])
            *find_slot(&bigger, s->slot[i]) = s->slot[i];
    free(s->slot);
    *s = bigger;
}

void cell_set_add(cell_set *s, const char *cell_id)
{
    if (2 * (s->n + 1) > s->cap)
        grow(s);
    uint64_t key = to_key(cell_id), *slot = find_slot(s, key);
    s->n += *slot == 0;
    *slot = key;
}

bool cell_set_has(const cell_set *s, const char *cell_id)
{
    return s->cap && *find_slot(s, to_key(cell_id)) != 0;
}

void cell_set_fini(cell_set *s)
{
    free(s->slot);
    *s = (cell_set){0};
}
