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
                                  .flops = 3e9,
                                  .attn_flops = 0.6e9,
                                  .seconds = 0.36,
                                  .alone_tok = 18,
                                  .alone_seconds = 0.54};

Test(scoring_report, factors)
{
    cr_assert(epsilon_eq(dbl, scoring_sharing(&work), 96.0 / 36, 1e-12));
    cr_assert(epsilon_eq(dbl, scoring_batching(&work), 3, 1e-12)); /* 30 ms a row against 10 */
    cr_assert(epsilon_eq(dbl, scoring_gflops(&work), 10, 1e-12));
}

Test(scoring_report, lines)
{
    char line[SCORING_LINE], split[SCORING_LINE];
    scoring_work w = work;
    w.kind_seconds[OP_MATMUL] = 0.27;
    w.kind_seconds[OP_COUNT + COMM_ALL_REDUCE] = 0.036;
    scoring_format(&w, &(scoring_ceiling){12.5, 12, "f32"}, line, split);
    cr_assert(eq(str, line,
                 "arc: 2 items, 8 choices; 96 tokens scored as 36 (sharing 2.67x), 18.0 rows a pass (batching 3.00x); "
                 "10.0 GFLOP/s, attention's products included: 0.80 of the f32 ceiling 12.5, 0.83 of 12.0 that products of "
                 "these shapes reach (without attention 8.3: 0.67, 0.69)"));
    cr_assert(eq(str, split, "arc: of 0.360 s: matmul 75.0%, all_reduce 10.0%, between passes 15.0%"));
}

/* Two matmuls of one shape and one over logit rows; the FLOPs of both kinds by hand. */
Test(scoring_report, what_a_plan_multiplies)
{
    model_config c;
    variant v;
    plan *p;
    tpl_err e;
    cr_assert(eq(int, model_config_read("models/worldlet-mla", &c, &e), TPL_OK));
    cr_assert(eq(int, variant_parse("mla", &v, &e), TPL_OK));
    cr_assert(eq(int, plan_create(&c, &v, 1, 0, (plan_options){0}, &p, &e), TPL_OK));
    scoring_work w = {0};
    scoring_list_products(p, 100, 7, &w);
    int64_t per_tok = 0, per_logit = 0, gates = 0;
    for (int i = 0; i < w.n_products; i++) {
        const scoring_product *s = &w.products[i];
        *(s->rows == 100 ? &per_tok : &per_logit) += s->n * s->k * s->times;
        gates += s->n == 512 && s->k == 192 ? s->times : 0;
    }
    int64_t layer = 192 * 96 + 96 * 8 * 48 + 192 * 80 + 8 * 32 * 192 + 3 * 192 * 512;
    cr_assert(eq(i64, per_tok, 6 * layer));
    cr_assert(eq(i64, per_logit, 2048 * 192));
    cr_assert(eq(i64, gates, 12)); /* gate and up of 6 layers */
    batch_shape b = {.rows = 10, .logit_rows = 3, .seqs = 1, .ctx_tok = 10, .visible_pairs = 55};
    scoring_add_flops(p, PHASE_PREFILL, &b, &w);
    cr_assert(epsilon_eq(dbl, w.flops, 2. * (10. * 6 * (double)layer + 3. * 2048 * 192), 1));
    cr_assert(epsilon_eq(dbl, w.attn_flops, 6 * (2. * 8 * (32 + 16 + 32) * 55 + 2. * 10 * 8 * 64 * (32 + 32)), 1));
    plan_destroy(p);
}
