#include "base/arena.h"

#include <stdint.h>
#include <string.h>

#include <criterion/criterion.h>

Test(arena, memory_is_zeroed_aligned_and_disjoint)
{
    static const size_t sizes[] = {0, 1, 63, 64, 65, 1000, 70000, 1 << 20, 3};
    unsigned char *p[9];
    arena a;
    arena_init(&a);
    for (int i = 0; i < 9; i++) {
        p[i] = arena_alloc(&a, sizes[i]);
        cr_assert(p[i] && (uintptr_t)p[i] % 64 == 0);
        for (size_t k = 0; k < sizes[i]; k++)
            cr_assert(p[i][k] == 0, "allocation %d byte %zu", i, k);
        memset(p[i], i + 1, sizes[i]);
    }
    for (int i = 0; i < 9; i++)
        for (size_t k = 0; k < sizes[i]; k++)
            cr_assert(p[i][k] == i + 1, "allocation %d was written over", i);
    arena_fini(&a);
}

Test(arena, reset_gives_back_what_came_after_the_mark_and_keeps_the_rest)
{
    arena a;
    arena_init(&a);
    char *kept = arena_strdup(&a, "kept");
    for (int round = 0; round < 5; round++) {
        arena_mark m = arena_get_mark(&a);
        int32_t *x = arena_array(&a, int32_t, 100);
        for (int i = 0; i < 100; i++)
            cr_assert(x[i] == 0, "memory used again is zeroed again");
        memset(x, 0xff, 100 * sizeof *x);
        arena_alloc(&a, 1 << 18); /* a block of its own */
        arena_reset(&a, m);
        cr_expect(arena_get_mark(&a).block == m.block && arena_get_mark(&a).used == m.used);
        cr_expect_str_eq(kept, "kept");
    }
    arena_mark empty = {0};
    arena_reset(&a, empty);
    cr_expect(a.head == NULL);
    arena_fini(&a);
    arena_fini(&a);
}

Test(arena, strings)
{
    arena a;
    arena_init(&a);
    cr_expect_str_eq(arena_strdup(&a, ""), "");
    cr_expect_str_eq(arena_strndup(&a, "abcdef", 3), "abc");
    cr_expect_str_eq(arena_printf(&a, "%s-%d", "x", 42), "x-42");
    cr_expect(strlen(arena_printf(&a, "%*d", 100000, 1)) == 100000);
    arena_fini(&a);
}

/* Sizes that wrap when they are rounded up must not come back as small blocks: one line, exit status 4. */
Test(arena, a_size_that_wraps_ends_the_program, .exit_code = 4)
{
    arena a;
    arena_init(&a);
    arena_alloc(&a, SIZE_MAX);
}

Test(arena, a_size_that_wraps_with_its_header_ends_the_program, .exit_code = 4)
{
    arena a;
    arena_init(&a);
    arena_alloc(&a, SIZE_MAX - 100);
}
