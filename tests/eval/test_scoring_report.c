/* Expected values: worked by hand. */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>

#include "eval/scoring_report.h"

/* Two items of four choices: contexts of 10 tokens, choices of 3, so 2 rows of each choice's own. */
static const scoring_work work = {.task = "arc",
                                  .n_items = 2,
                                  .n_choices = 8,
                                  .n_tok_unshared = 8 * (10 + 2),
                                  .n_tok = 2 * 10 + 8 * 2,
                                  .n_pass = 2,
                                  .threads = 1,
                                  .flops = 3.6e9,
                                  .seconds = 0.36,
                                  .alone_tok = 18,
                                  .alone_seconds = 0.54};

Test(scoring_report, factors)
{
    cr_assert(epsilon_eq(dbl, scoring_sharing(&work), 96.0 / 36, 1e-12));
    cr_assert(epsilon_eq(dbl, scoring_batching(&work), 3, 1e-12)); /* 30 ms a row against 10 */
    cr_assert(epsilon_eq(dbl, scoring_gflops(&work), 10, 1e-12));
}

Test(scoring_report, line)
{
    char line[256];
    scoring_format(&work, 12.5, "f32", line, sizeof line);
    cr_assert(eq(str, line,
                 "arc: 2 items, 8 choices; 96 tokens scored as 36 (sharing 2.67x), 18.0 rows a pass (batching 3.00x); "
                 "matrix products 10.0 GFLOP/s, 0.80 of the f32 ceiling"));
}
