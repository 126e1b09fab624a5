/* arena.h - bump allocation: many small objects with one owner and one end.
 * For:    configs, plans, parsed files; scratch by mark and reset.
 * Enter:  all rooms.
 * Owns:   arena_init() owns a chain of blocks; arena_fini() frees them all. Pointers live until fini or reset.
 * Fails:  allocation never returns NULL: a host that cannot give a few MiB ends the program with one line (exit 4).
 *         Large, size-checked buffers (weights, caches, activations) go through device/memory.h instead. */
#ifndef TPL_BASE_ARENA_H
#define TPL_BASE_ARENA_H

#include <stddef.h>

typedef struct arena_block arena_block;

typedef struct {
    arena_block *head; /* newest block */
} arena;

typedef struct {
    arena_block *block;
    size_t used;
} arena_mark;

void arena_init(arena *a);
void arena_fini(arena *a);

/* Zeroed, 64-byte aligned. */
void *arena_alloc(arena *a, size_t bytes);
#define arena_array(a, type, n) ((type *)arena_alloc((a), sizeof(type) * (size_t)(n)))

char *arena_strdup(arena *a, const char *s);
char *arena_strndup(arena *a, const char *s, size_t n);
char *arena_printf(arena *a, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

arena_mark arena_get_mark(const arena *a);
void arena_reset(arena *a, arena_mark m);

/* malloc, calloc and realloc that end the program with one line instead of returning NULL; free with free(). */
void *tpl_malloc(size_t bytes);
void *tpl_calloc(size_t n, size_t size);
void *tpl_realloc(void *p, size_t bytes);
char *tpl_strdup(const char *s);

#endif
