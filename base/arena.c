#include "base/arena.h"

#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"

enum { ALIGN = 64, BLOCK_BYTES = 1 << 16 };

struct arena_block {
    arena_block *next; /* older block */
    size_t used, size;
    _Alignas(ALIGN) unsigned char data[];
};

static void die_of_memory(size_t bytes)
{
    fprintf(stderr, "tplabench: out of memory: a request for %zu bytes failed\n", bytes);
    exit(tpl_exit_status(TPL_E_MEMORY));
}

void *tpl_malloc(size_t bytes)
{
    void *p = malloc(bytes ? bytes : 1);
    if (!p)
        die_of_memory(bytes);
    return p;
}

void *tpl_calloc(size_t n, size_t size)
{
    void *p = calloc(n ? n : 1, size ? size : 1);
    if (!p)
        die_of_memory(n * size);
    return p;
}

void *tpl_realloc(void *old, size_t bytes)
{
    void *p = realloc(old, bytes ? bytes : 1);
    if (!p)
        die_of_memory(bytes);
    return p;
}

char *tpl_strdup(const char *s)
{
    size_t n = strlen(s) + 1;
    return memcpy(tpl_malloc(n), s, n);
}

void arena_init(arena *a)
{
    a->head = NULL;
}

void arena_fini(arena *a)
{
    arena_reset(a, (arena_mark){0});
}

static arena_block *add_block(arena *a, size_t bytes)
{
    size_t size = bytes > BLOCK_BYTES ? bytes : BLOCK_BYTES;
    void *raw = NULL;
    if (posix_memalign(&raw, ALIGN, sizeof(arena_block) + size) != 0)
        die_of_memory(size);
    arena_block *b = raw;
    b->next = a->head;
    b->used = 0;
    b->size = size;
    a->head = b;
    return b;
}

void *arena_alloc(arena *a, size_t bytes)
{
    if (bytes > SIZE_MAX / 2) /* rounding it up would wrap */
        die_of_memory(bytes);
    size_t need = (bytes + ALIGN - 1) / ALIGN * ALIGN;
    arena_block *b = a->head;
    if (!b || b->size - b->used < need)
        b = add_block(a, need);
    void *p = b->data + b->used;
    b->used += need;
    return memset(p, 0, need);
}

char *arena_strndup(arena *a, const char *s, size_t n)
{
    char *p = arena_alloc(a, n + 1);
    memcpy(p, s, n);
    p[n] = 0;
    return p;
}

char *arena_strdup(arena *a, const char *s)
{
    return arena_strndup(a, s, strlen(s));
}

char *arena_printf(arena *a, const char *fmt, ...)
{
    va_list ap, again;
    va_start(ap, fmt);
    va_copy(again, ap);
    char probe[1];
    int n = vsnprintf(probe, sizeof probe, fmt, ap);
    va_end(ap);
    char *p = arena_alloc(a, (size_t)n + 1);
    vsnprintf(p, (size_t)n + 1, fmt, again);
    va_end(again);
    return p;
}

arena_mark arena_get_mark(const arena *a)
{
    return (arena_mark){a->head, a->head ? a->head->used : 0};
}

void arena_reset(arena *a, arena_mark m)
{
    while (a->head != m.block) {
        arena_block *dead = a->head;
        a->head = dead->next;
        free(dead);
    }
    if (a->head)
        a->head->used = m.used;
}
