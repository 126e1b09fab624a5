/* A rank that runs alone computes what it would in its team: up to the first collective, its results are its shard's.
 */
#include <criterion/criterion.h>

#include "tests/support/partials.h"

static const struct {
    const char *variant;
    int tp;
} cases[] = {{"mla", 2},
             {"mla", 4},
             {"mla-dcp", 2},
             {"gla:g=2", 2},
             {"tpla:g=2:u=hadamard", 2},
             {"tpla:g=2:u=hadamard:slice=both:pd=on:proj=rs", 4},
             {"tpla:g=2:u=hadamard:slice=both:proj=rs+agq", 2}};

Test(solo, partial_results_are_those_of_the_shard)
{
    tpl_err e = {0};
    lab *l;
    cr_assert(lab_open(SOURCE_ROOT "/models/worldlet-mla", &(lab_calibration){0}, &l, &e) == TPL_OK, "%s: %s", e.where,
              e.what);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        partials alone, joint;
        partials_collect(l, cases[i].variant, &(team_options){.tp = cases[i].tp, .backend = "ref"}, &joint);
        partials_collect(l, cases[i].variant, &(team_options){.tp = cases[i].tp, .ranks = RANKS_SOLO}, &alone);
        partials_expect_equal(&alone, &joint, 1e-4, cases[i].variant);
        partials_free(&alone);
        partials_free(&joint);
    }
    lab_close(l);
}
