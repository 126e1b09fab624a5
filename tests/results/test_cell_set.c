#include "results/cell_set.h"

#include <stdio.h>

#include <criterion/criterion.h>

Test(cell_set, holds_what_was_added_and_nothing_else)
{
    cell_set s = {0};
    char id[16];
    cr_expect(!cell_set_has(&s, "000000000000"));
    for (unsigned i = 0; i < 3000; i += 3) {
        snprintf(id, sizeof id, "%012x", i * 64); /* low bits alike: long probes */
        cell_set_add(&s, id);
        cell_set_add(&s, id);
    }
    cr_expect(s.n == 1000, "%zu", s.n);
    for (unsigned i = 0; i < 3000; i++) {
        snprintf(id, sizeof id, "%012x", i * 64);
        cr_assert(cell_set_has(&s, id) == (i % 3 == 0), "%s", id);
    }
    cell_set_add(&s, "ffffffffffff");
    cr_expect(cell_set_has(&s, "ffffffffffff") && !cell_set_has(&s, "fffffffffffe"));
    cell_set_fini(&s);
}
