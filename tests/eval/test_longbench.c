/* Expected values: upstream LongBench's scorers, executed (tests/data/metric-vectors.jsonl). */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <math.h>

#include "eval/longbench.h"
#include "tests/vectors.h"

#define VECTORS "metric-vectors.jsonl"

enum { MAX_TEXTS = 16 };

static int read_texts(const json_t *list, char **out)
{
    int n = (int)json_array_size(list);
    cr_assert(n <= MAX_TEXTS);
    for (int i = 0; i < n; i++)
        out[i] = (char *)json_string_value(json_array_get(list, (size_t)i));
    return n;
}

/* ---- one prediction, best over the references ---- */

static void check_metric(const json_t *v, lb_metric metric, lb_options o)
{
    char *answers[MAX_TEXTS], *classes[MAX_TEXTS];
    lb_item item = {.prediction = vectors_text(v, "prediction"), .answers = answers, .all_classes = classes};
    item.n_answers = read_texts(json_object_get(v, "references"), answers);
    item.n_classes = read_texts(json_object_get(json_object_get(v, "extra"), "all_classes"), classes);
    double best = 0, want = vectors_number(v, "expected");
    for (int i = 0; i < item.n_answers; i++) {
        double one = -1;
        tpl_err err;
        tpl_code rc = lb_score_answer(metric, &o, &item, answers[i], &one, &err);
        cr_assert(rc == TPL_OK, "%s", err.what);
        best = one > best ? one : best;
    }
    cr_expect(fabs(best - want) <= 1e-12, "vector %d: %.17g, expected %.17g", (int)vectors_number(v, "id"), best, want);
}

static void check_qa_f1(const json_t *v)
{
    check_metric(v, LB_QA_F1, (lb_options){0});
}

static void check_rouge(const json_t *v)
{
    check_metric(v, LB_ROUGE, (lb_options){.recursion_limit = true});
}

static void check_classification(const json_t *v)
{
    check_metric(v, LB_CLASSIFICATION, (lb_options){0});
}

static void check_retrieval(const json_t *v)
{
    check_metric(v, LB_RETRIEVAL, (lb_options){0});
}

static void check_retrieval_zh(const json_t *v)
{
    check_metric(v, LB_RETRIEVAL_ZH, (lb_options){0});
}

static void check_count(const json_t *v)
{
    check_metric(v, LB_COUNT, (lb_options){0});
}

static void check_code_difflib(const json_t *v)
{
    check_metric(v, LB_CODE_SIM, (lb_options){0});
}

static void check_code_levenshtein(const json_t *v)
{
    check_metric(v, LB_CODE_SIM, (lb_options){.levenshtein = true});
}

Test(longbench, metrics_match_upstream)
{
    static const struct {
        const char *metric;
        int n;
        void (*check)(const json_t *v);
    } cases[] = {
        {"qa_f1", 14, check_qa_f1},
        {"rouge_l", 17, check_rouge},
        {"classification", 9, check_classification},
        {"retrieval_en", 6, check_retrieval},
        {"retrieval_zh", 3, check_retrieval_zh},
        {"count", 4, check_count},
        {"code_sim_difflib", 14, check_code_difflib},
        {"code_sim_levenshtein", 14, check_code_levenshtein},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        int n = vectors_each(VECTORS, cases[i].metric, cases[i].check);
        cr_expect(eq(int, n, cases[i].n), "%s", cases[i].metric);
    }
}

/* ---- whole datasets ---- */

static double score_vector_item(const json_t *v, const lb_dataset *d, size_t i)
{
    char *answers[MAX_TEXTS], *classes[MAX_TEXTS];
    lb_item item = {.answers = answers, .all_classes = classes};
    item.prediction = json_string_value(json_array_get(json_object_get(v, "prediction"), i));
    item.n_answers = read_texts(json_array_get(json_object_get(v, "references"), i), answers);
    item.n_classes = read_texts(json_object_get(json_object_get(v, "extra"), "all_classes"), classes);
    double score = -1;
    cr_assert(lb_score_item(d, &(lb_options){0}, &item, &score, NULL) == TPL_OK);
    return score;
}

static const lb_dataset *dataset_of(const json_t *v)
{
    const lb_dataset *d = lb_find_dataset(vectors_text(json_object_get(v, "extra"), "dataset"));
    cr_assert(d != NULL);
    return d;
}

static void check_scorer(const json_t *v)
{
    double scores[MAX_TEXTS];
    size_t n = json_array_size(json_object_get(v, "prediction"));
    cr_assert(n <= MAX_TEXTS);
    for (size_t i = 0; i < n; i++)
        scores[i] = score_vector_item(v, dataset_of(v), i);
    cr_expect(lb_score_dataset(scores, n) == vectors_number(v, "expected"), "vector %d", (int)vectors_number(v, "id"));
}

static void check_scorer_e(const json_t *v)
{
    static const char *const keys[] = {"0-4k", "4-8k", "8k+"};
    const json_t *lengths = json_object_get(json_object_get(v, "extra"), "lengths");
    double scores[MAX_TEXTS], got[3];
    int64_t n_words[MAX_TEXTS];
    size_t n = json_array_size(lengths);
    cr_assert(n <= MAX_TEXTS);
    for (size_t i = 0; i < n; i++) {
        scores[i] = score_vector_item(v, dataset_of(v), i);
        n_words[i] = json_integer_value(json_array_get(lengths, i));
    }
    lb_score_by_length(scores, n_words, n, got);
    for (int b = 0; b < 3; b++)
        cr_expect(got[b] == vectors_number(json_object_get(v, "expected"), keys[b]), "%s: %g", keys[b], got[b]);
}

Test(longbench, dataset_scores_match_upstream)
{
    cr_expect(eq(int, vectors_each(VECTORS, "longbench_scorer", check_scorer), 6));
    cr_expect(eq(int, vectors_each(VECTORS, "longbench_scorer_e", check_scorer_e), 1));
}

static void check_round(const json_t *v)
{
    double x = vectors_number(v, "prediction");
    const json_t *want = json_object_get(v, "expected");
    cr_expect(lb_round2(x) == vectors_number(want, "python"), "%g", x);
    cr_expect(lb_round2_numpy(x) == vectors_number(want, "numpy"), "%g", x);
}

Test(longbench, rounding_matches_python_and_numpy)
{
    cr_expect(eq(int, vectors_each(VECTORS, "round2", check_round), 5));
}

Test(longbench, an_empty_length_class_has_no_score)
{
    double got[3], one = 0.5;
    lb_score_by_length(&one, &(int64_t){4000}, 1, got);
    cr_expect(isnan(got[0]) && got[1] == 50.0 && isnan(got[2]));
}

/* ---- what cannot be scored ---- */

static tpl_code score_one(lb_metric metric, const char *prediction, const char *answer, lb_options o, double *score,
                          tpl_err *err)
{
    lb_item item = {.prediction = prediction};
    return lb_score_answer(metric, &o, &item, answer, score, err);
}

Test(longbench, an_answer_without_paragraph_is_an_error)
{
    static const char *const answers[] = {"", "Paragraph ", "Paragraph x", "paragraph 3", "Paragraph"};
    for (size_t i = 0; i < sizeof answers / sizeof *answers; i++) {
        double score = -1;
        tpl_err err;
        cr_expect(score_one(LB_RETRIEVAL, "3", answers[i], (lb_options){0}, &score, &err) == TPL_E_INPUT);
        cr_expect(score == -1, "'%s'", answers[i]);
    }
}

Test(longbench, the_first_paragraph_number_counts)
{
    double score = -1;
    score_one(LB_RETRIEVAL, "4 3 3", "Paragraph x, Paragraph 3 or Paragraph 4", (lb_options){0}, &score, NULL);
    cr_expect(ieee_ulp_eq(dbl, score, 2.0 / 3, 1));
}

Test(longbench, chinese_segmentation_is_refused)
{
    double score = -1;
    tpl_err err;
    cr_expect(lb_find_dataset("dureader")->metric == LB_SEGMENTED);
    cr_expect(score_one(LB_SEGMENTED, "a", "a", (lb_options){0}, &score, &err) == TPL_E_UNSUPPORTED);
    cr_expect(lb_find_dataset("nosuch") == NULL);
}

Test(longbench, the_recursion_limit_is_an_option)
{
    /* 991 equal words take 991 steps and one last call: one more than the reference can do */
    text_buf b = {0};
    for (int i = 0; i < 990; i++)
        text_addf(&b, "w ");
    double with = -1, without = -1;
    score_one(LB_ROUGE, b.data, b.data, (lb_options){.recursion_limit = true}, &with, NULL);
    cr_expect(with > 0.999);
    text_addf(&b, "w ");
    score_one(LB_ROUGE, b.data, b.data, (lb_options){.recursion_limit = true}, &with, NULL);
    score_one(LB_ROUGE, b.data, b.data, (lb_options){0}, &without, NULL);
    cr_expect(with == 0.0);
    cr_expect(without > 0.999);
    text_fini(&b);
}

Test(longbench, code_takes_the_first_line_without_marks)
{
    double score = -1;
    score_one(LB_CODE_SIM, "\n\n```python\n# x\nreturn a // b\nreturn a", "return a", (lb_options){0}, &score, NULL);
    cr_expect(score == 1.0);
    score_one(LB_CODE_SIM, "# only\n`marks`", "x", (lb_options){0}, &score, NULL);
    cr_expect(score == 0.0);
    score_one(LB_CODE_SIM, "# only", "", (lb_options){0}, &score, NULL);
    cr_expect(score == 1.0);
}
