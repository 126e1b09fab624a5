/* A rank that runs alone on a card computes what the double-precision reference gives for its shard. */
#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>

#include "device/gpu.h"
#include "tests/support/partials.h"

static const char *const variants[] = {"mla",
                                       "mla-dcp",
                                       "gla:g=2",
                                       "tpla:g=2:u=hadamard",
                                       "tpla:g=2:u=hadamard:slice=both:pd=on:proj=rs",
                                       "tpla:g=2:u=hadamard:slice=both:proj=rs+agq"};

Test(gpu_solo, partial_results_are_those_of_the_shard)
{
    char path[512];
    const char *home = getenv("TPLABENCH_HOME");
    tpl_err e = {0};
    lab *l;
    if (gpu_count() == 0)
        cr_skip_test("no CUDA card is here");
    snprintf(path, sizeof path, "%s/models/worldlet-mla", home && *home ? home : SOURCE_ROOT);
    cr_assert(lab_open(path, &(lab_calibration){0}, &l, &e) == TPL_OK, "%s: %s", e.where, e.what);
    for (size_t i = 0; i < sizeof variants / sizeof *variants; i++) {
        partials alone, joint;
        team_options o = {.tp = 2, .backend = "cuda", .ranks = RANKS_SOLO, .compute = DT_F32};
        partials_collect(l, variants[i], &(team_options){.tp = 2, .backend = "ref"}, &joint);
        partials_collect(l, variants[i], &o, &alone);
        partials_expect_equal(&alone, &joint, 1e-4, variants[i]);
        partials_free(&alone);
        partials_free(&joint);
    }
    lab_close(l);
}
