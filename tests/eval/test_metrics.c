/* fixture-metrics.jsonl was made by running the fixture's Python scorers and difflib of CPython 3.11. */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <math.h>

#include "eval/align.h"
#include "eval/metrics.h"
#include "tests/vectors.h"

#define FIXTURE "fixture-metrics.jsonl"

typedef double text_metric(const char *prediction, const char *answer);

static void check(const json_t *v, text_metric *metric)
{
    const char *p = vectors_text(v, "prediction"), *g = vectors_text(v, "answer");
    double got = metric(p, g), want = vectors_number(v, "expected");
    cr_expect(fabs(got - want) <= 1e-12, "'%s' against '%s': %.17g, expected %.17g", p, g, got, want);
}

static void check_f1(const json_t *v)
{
    check(v, metric_f1);
}

static void check_rouge_l(const json_t *v)
{
    check(v, metric_rouge_l);
}

static void check_difflib(const json_t *v)
{
    check(v, metric_difflib);
}

static void check_score(const json_t *v)
{
    const char *p = vectors_text(v, "prediction"), *g = vectors_text(v, "answer"), *task = vectors_text(v, "task");
    double got, want = vectors_number(v, "expected");
    bool exact;
    cr_assert(metric_score_fixture(task, p, g, &got, &exact, NULL) == TPL_OK);
    cr_expect(fabs(got - want) <= 1e-12, "%s '%s': %.17g, expected %.17g", task, p, got, want);
    cr_expect(exact == json_is_true(json_object_get(v, "exact")), "%s '%s'", task, p);
}

Test(metrics, f1_matches_the_reference)
{
    cr_expect(eq(int, vectors_each(FIXTURE, "f1", check_f1), 60));
}

Test(metrics, rouge_l_matches_the_reference)
{
    cr_expect(eq(int, vectors_each(FIXTURE, "rouge_l", check_rouge_l), 60));
}

Test(metrics, difflib_ratio_matches_python)
{
    cr_expect(eq(int, vectors_each(FIXTURE, "difflib", check_difflib), 60));
}

Test(metrics, generated_text_is_cut_and_scored_as_the_reference_does)
{
    cr_expect(eq(int, vectors_each(FIXTURE, "score", check_score), 10));
}

Test(metrics, f1_by_hand)
{
    /* {cat, sat} against {cat, sat, down}: 2 * 2 / (2 + 3) */
    cr_expect(ieee_ulp_eq(dbl, metric_f1("The cat, sat!", "a cat sat down"), 0.8, 1));
    cr_expect(ieee_ulp_eq(dbl, metric_f1("x x x", "x x y"), 4.0 / 6, 1)); /* x shared twice */
    cr_expect(metric_f1("the", "the") == 0.0);                            /* nothing is left of either */
    cr_expect(metric_f1("theatre", "theatre") == 1.0);
    cr_expect(metric_f1("", "x") == 0.0);
}

Test(metrics, rouge_l_by_hand)
{
    /* "a c" of {a b c d} and {a x c}: 2 * 2 / (4 + 3) */
    cr_expect(ieee_ulp_eq(dbl, metric_rouge_l("A b C d", "a x c"), 4.0 / 7, 1));
    cr_expect(metric_rouge_l("", "") == 0.0);
}

Test(metrics, difflib_by_hand)
{
    cr_expect(ieee_ulp_eq(dbl, metric_difflib("abcd", "bcde"), 0.75, 1));
    cr_expect(metric_difflib("", "") == 1.0);
    cr_expect(metric_difflib("a", "") == 0.0);
    cr_expect(ieee_ulp_eq(dbl, metric_difflib("\xc3\xa9x", "\xc3\xa8x"), 0.5, 1)); /* code points, not bytes */
}

Test(metrics, exact_match_cuts_unicode_blanks)
{
    cr_expect(metric_exact(" a\xe2\x80\x83\n", "\xc2\xa0"
                                               "a"));
    cr_expect(not(metric_exact("A", "a")));
}

Test(metrics, bytes_that_are_not_utf8_are_scored_without_harm)
{
    cr_expect(metric_difflib("\xff\xfe", "\xff\xfe") == 1.0);
    cr_expect(metric_f1("\xff", "\xff") == 0.0); /* U+FFFD is no word character */
    cr_expect(metric_rouge_l("\xc3", "\xc3") == 1.0);
}

Test(metrics, only_long_tasks_have_a_text_metric)
{
    tpl_err err;
    double score = -1;
    bool exact;
    cr_expect(metric_score_fixture("arc", "a", "a", &score, &exact, &err) == TPL_E_USAGE);
    cr_expect_str_eq(err.where, "arc");
    cr_expect(score == -1);
}

/* ---- multiple choice ---- */

static void check_choice(const json_t *v)
{
    const json_t *loglik = json_object_get(v, "prediction"), *want = json_object_get(v, "expected");
    const json_t *texts = json_array_get(json_object_get(v, "references"), 0);
    double l[8];
    char *t[8];
    int n = (int)json_array_size(loglik);
    cr_assert(n > 0 && n <= 8);
    for (int i = 0; i < n; i++) {
        l[i] = json_number_value(json_array_get(loglik, (size_t)i));
        t[i] = (char *)json_string_value(json_array_get(texts, (size_t)i));
    }
    mc_score s = metric_choose(l, t, n, (int)vectors_number(json_object_get(v, "extra"), "gold"));
    cr_expect(eq(int, s.pred, (int)vectors_number(want, "pred")));
    cr_expect(eq(int, s.pred_norm, (int)vectors_number(want, "pred_norm")));
    cr_expect(eq(int, s.pred_bytes, (int)vectors_number(want, "pred_bytes")));
    cr_expect(s.acc == vectors_number(want, "acc"));
    cr_expect(s.acc_norm == vectors_number(want, "acc_norm"));
    cr_expect(s.acc_bytes == vectors_number(want, "acc_bytes"));
}

Test(metrics, choices_match_upstream)
{
    cr_expect(eq(int, vectors_each("metric-vectors.jsonl", "multiple_choice", check_choice), 7));
}

Test(metrics, a_nan_wins_and_an_empty_text_divides_by_zero)
{
    double l[] = {-1.0, NAN, NAN};
    char *t[] = {"a", "b", "c"}, *empty[] = {"", "bb", "c"};
    cr_expect(eq(int, metric_choose(l, t, 3, 1).pred, 1));
    double m[] = {-1.0, -8.0, -9.0};
    mc_score s = metric_choose(m, empty, 3, 0); /* -inf, -4, -9 */
    cr_expect(s.acc);
    cr_expect(eq(int, s.pred_norm, 1));
    double z[] = {0.0, -1.0, -2.0}; /* 0 / 0 is NaN */
    cr_expect(eq(int, metric_choose(z, empty, 3, 0).pred_bytes, 0));
}

/* ---- alignment ---- */

Test(metrics, the_walk_prefers_a_shorter_answer_only_when_strictly_better)
{
    /* x = 0 1, y = 1 0: both of length 1; the walk back meets table[1][2] = table[2][1], so y shrinks first and 1 is
     * found */
    static const int32_t x[] = {0, 1}, y[] = {1, 0};
    unsigned char marks[2] = {0};
    size_t steps = 0;
    arena a;
    arena_init(&a);
    cr_assert(align_mark_lcs(&a, x, 2, y, 2, marks, &steps, NULL) == TPL_OK);
    cr_expect(marks[0] == 0 && marks[1] == 1);
    cr_expect(eq(sz, steps, 2));
    arena_fini(&a);
}

Test(metrics, a_table_beyond_the_limit_is_an_error)
{
    enum { N = 40000 };
    int32_t *x = calloc(N, sizeof *x);
    unsigned char marks[1] = {0};
    size_t steps = 7;
    tpl_err err;
    arena a;
    arena_init(&a);
    cr_expect(align_mark_lcs(&a, x, N, x, N, marks, &steps, &err) == TPL_E_INPUT);
    cr_expect(eq(sz, steps, 7));
    arena_fini(&a);
    free(x);
}
