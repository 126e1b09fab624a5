/* Expected digests come from running the fixture's own Python over the bundled files; vectors from upstream harnesses.
 */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "base/text.h"
#include "datasets/prompts.h"
#include "datasets/tasks.h"
#include "datasets/text.h"
#include "datasets/unicode.h"
#include "tests/vectors.h"

#define WORLDLET SOURCE_ROOT "/datasets/worldlet"

static arena keep;
static tpl_err err;

static void setup(void)
{
    arena_init(&keep);
    err = (tpl_err){0};
}

static void teardown(void)
{
    arena_fini(&keep);
}

TestSuite(tasks, .init = setup, .fini = teardown);

static void add_text(sha256_state *s, const char *text)
{
    sha256_add(s, text, strlen(text) + 1);
}

/* ---- bundled sets ---- */

Test(tasks, bundled_choices_equal_the_reference)
{
    static const char *const cases[][2] = {
        {"arc", "549bc13cceab8217bf19d76c14d99396773f5bc7f7d1584b3fb18a70d2faa38b"},
        {"piqa", "a8c1253961c2d4a0a4e621b238e507daca6020af625fdfe7523d0f67030730f9"},
        {"hellaswag", "e56c71153bf89ce85afe3f8b60c1a699de1c06eea655a10e2b3d22927db694da"},
        {"winogrande", "76cbe548263fca4662175c6a12ab3827b140b0f1db6502f5ad56dfc1b940dc73"},
        {"openbookqa", "df99ac2734c1314d8ae5e0c5d0055e756a37795b31f5a5bb94f30815dfa3d0ea"},
    };
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        ds_mc_item *items;
        int n = 0;
        tpl_code rc = ds_read_mc(&keep, WORLDLET, cases[c][0], DS_FIXTURE, 0, &items, &n, &err);
        cr_assert(rc == TPL_OK, "%s: %s: %s", cases[c][0], err.where, err.what);
        cr_expect(eq(int, n, 200), "%s", cases[c][0]);
        sha256_state *s = sha256_create();
        for (int i = 0; i < n; i++) {
            for (int j = 0; j < items[i].n_choices; j++) {
                add_text(s, items[i].contexts[j]);
                add_text(s, items[i].continuations[j]);
                add_text(s, items[i].choice_texts[j]);
            }
            const char *gold = arena_printf(&keep, "%d\n", items[i].gold);
            sha256_add(s, gold, strlen(gold));
        }
        sha256_hex got = sha256_finish(s);
        cr_expect_str_eq(got.hex, cases[c][1], "%s", cases[c][0]);
    }
}

Test(tasks, bundled_long_sets_equal_the_reference)
{
    static const char *const cases[][2] = {
        {"single_doc_qa", "2d482cf7c25dbe75ebf117d79e19ca0cd71db4a373170951b7e3e4d915b9e509"},
        {"multi_hop_qa", "944e4f0928c2fe03be84bb89ffe2d3303b84cfcb4b45f95894430f979ad582cf"},
        {"summarisation", "0b48f135f426fa80227404de7682a5057e53960ccff6a49a599bd9ac14b82cb3"},
        {"few_shot", "058137bf4b6ffb8f2d829355efd92e8533d25e6facb768f90451a71f208b3897"},
        {"synthetic", "b94935d280d472e0183a7190e871c3723c6e3d3b54e62dffc2483c550e1da0d9"},
        {"code", "3f0251a5595c91b56da226339d6bf810f091448edbbcfa47287eafdaa8a2dfc5"},
    };
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        ds_long_item *items;
        int n = 0;
        tpl_code rc = ds_read_long(&keep, WORLDLET, cases[c][0], DS_FIXTURE, 0, &items, &n, &err);
        cr_assert(rc == TPL_OK, "%s: %s: %s", cases[c][0], err.where, err.what);
        cr_expect(eq(int, n, 50), "%s", cases[c][0]);
        sha256_state *s = sha256_create();
        for (int i = 0; i < n; i++) {
            add_text(s, items[i].id);
            add_text(s, items[i].prompt);
            add_text(s, items[i].dataset);
            for (int j = 0; j < items[i].n_answers; j++)
                add_text(s, items[i].answers[j]);
            for (int j = 0; j < items[i].n_classes; j++)
                add_text(s, items[i].all_classes[j]);
            const char *words = arena_printf(&keep, "%lld\n", (long long)items[i].n_words);
            sha256_add(s, words, strlen(words));
        }
        sha256_hex got = sha256_finish(s);
        cr_expect_str_eq(got.hex, cases[c][1], "%s", cases[c][0]);
    }
}

Test(tasks, bundled_text_splits_as_the_reference)
{
    static const struct {
        const char *file;
        int n;
        const char *file_sha256, *docs_sha256;
    } cases[] = {
        {"heldout.txt", 246, "fc48559c1003c084b31c5638255178ce65927cfe2138a27b1576360adaddeab7",
         "e1e4011fdaa7969c467713733cf9a4e562777c20a9c8bfcf8c45fef1717f4fe5"},
        {"calibration.txt", 362, "d4831f4e063f0191f90073c921dc35eea6c201c06ed48fec50872c8d9ca2aca0",
         "0c464575c52582e9a3d2115faab140c2c9dc74150a28d830ce0fbdb7533ed3ca"},
    };
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        ds_text t;
        tpl_code rc = ds_read_text(&keep, text_path_join(&keep, WORLDLET, cases[c].file), &t, &err);
        cr_assert(rc == TPL_OK, "%s: %s", err.where, err.what);
        cr_expect(eq(int, t.n, cases[c].n));
        cr_expect_str_eq(t.sha256.hex, cases[c].file_sha256);
        sha256_state *s = sha256_create();
        for (int i = 0; i < t.n; i++)
            sha256_add(s, t.docs[i].data, t.docs[i].n_bytes + (i + 1 < t.n)); /* NUL between documents */
        sha256_hex got = sha256_finish(s);
        cr_expect_str_eq(got.hex, cases[c].docs_sha256, "%s", cases[c].file);
    }
}

Test(tasks, a_limit_takes_the_first_items)
{
    ds_mc_item *items;
    int n = 0;
    cr_assert(ds_read_mc(&keep, WORLDLET, "arc", DS_LM_EVAL, 3, &items, &n, &err) == TPL_OK);
    cr_expect(eq(int, n, 3));
    cr_expect_str_eq(items[2].id, "wl_arc_2");
    cr_assert(ds_read_mc(&keep, WORLDLET, "arc", DS_LM_EVAL, 1000, &items, &n, &err) == TPL_OK);
    cr_expect(eq(int, n, 200));
}

Test(tasks, the_table_knows_every_task_once)
{
    cr_expect(eq(int, ds_n_tasks(), 12));
    for (int i = 0; i < ds_n_tasks(); i++)
        cr_expect(ds_find_task(ds_task_at(i)->name) == ds_task_at(i));
    cr_expect_str_eq(ds_find_task("openbookqa")->column, "OBQA");
    cr_expect(ds_find_task("Arc") == NULL);
}

/* ---- hand-worked layouts ---- */

static const char WINO[] = "{\"sentence\": \"Ann beat Bea as _ ran.\", \"option1\": \"Ann\", \"option2\": \"Bea\", "
                           "\"answer\": \"2\"}";

Test(tasks, winogrande_scores_the_rest_after_two_contexts)
{
    ds_mc_item *x;
    int n = 0;
    cr_assert(ds_parse_mc(&keep, WINO, strlen(WINO), "w", "winogrande", DS_FIXTURE, 0, &x, &n, &err) == TPL_OK);
    cr_expect_str_eq(x->contexts[0], "Ann beat Bea as Ann");
    cr_expect_str_eq(x->contexts[1], "Ann beat Bea as Bea");
    cr_expect_str_eq(x->continuations[1], " ran.");
    cr_expect_str_eq(x->choice_texts[1], "ran.");
    cr_expect_str_eq(x->id, "winogrande:1");
    cr_expect(eq(int, x->gold, 1));
}

Test(tasks, hellaswag_takes_a_label_as_number_or_string)
{
    static const char data[] =
        "\n{\"ind\": 7, \"activity_label\": \"A\", \"ctx\": \"b\", \"endings\": [\"c\", \" d \"], "
        "\"label\": 1}\r\n  \n"
        "{\"ind\": 8, \"activity_label\": \"A\", \"ctx\": \"b\", \"endings\": [\"c\", \"d\"], "
        "\"label\": \"0\"}";
    ds_mc_item *x;
    int n = 0;
    tpl_code rc = ds_parse_mc(&keep, data, strlen(data), "h", "hellaswag", DS_FIXTURE, 0, &x, &n, &err);
    cr_assert(rc == TPL_OK, "%s: %s", err.where, err.what);
    cr_assert(eq(int, n, 2));
    cr_expect(eq(int, x[0].gold, 1));
    cr_expect(eq(int, x[1].gold, 0));
    cr_expect_str_eq(x[0].id, "7");
    cr_expect_str_eq(x[0].contexts[0], "A: b");
    cr_expect_str_eq(x[0].continuations[1], "  d ");
    cr_expect_str_eq(x[0].choice_texts[1], "d");
}

Test(tasks, prompts_are_filled_in_turn_or_once)
{
    static const char data[] =
        "{\"context\": \"see {input} {context}\", \"input\": \"Q{context}\", \"answers\": [\"a\", "
        "\"b\"], \"length\": 3, \"dataset\": \"trec\", \"all_classes\": [\"x\"], \"_id\": \"i\"}";
    static const char head[] =
        "Please determine the type of the question below. Here are some examples of questions.\n\n";
    ds_long_item *x;
    int n = 0;
    cr_assert(ds_parse_long(&keep, data, strlen(data), "l", "few_shot", DS_FIXTURE, 0, &x, &n, &err) == TPL_OK);
    cr_expect_str_eq(x->prompt, arena_printf(&keep, "%ssee Q{context} {context}\nQ{context}", head));
    cr_expect(eq(int, x->n_answers, 2));
    cr_expect(eq(int, x->n_classes, 1));
    cr_assert(ds_parse_long(&keep, data, strlen(data), "l", "few_shot", DS_LONGBENCH, 0, &x, &n, &err) == TPL_OK);
    cr_expect_str_eq(x->prompt, arena_printf(&keep, "%ssee {input} {context}\nQ{context}", head));
}

Test(tasks, only_the_fixture_cuts_trailing_blanks)
{
    static const char data[] = "{\"context\": \"c\", \"input\": \"\", \"answers\": [\"3\"], \"dataset\": "
                               "\"passage_count\", \"all_classes\": null}";
    ds_long_item *x;
    int n = 0;
    cr_assert(ds_parse_long(&keep, data, strlen(data), "l", "synthetic", DS_FIXTURE, 0, &x, &n, &err) == TPL_OK);
    cr_expect(strcmp(x->prompt + strlen(x->prompt) - 10, "answer is:") == 0);
    cr_assert(ds_parse_long(&keep, data, strlen(data), "l", "synthetic", DS_LONGBENCH, 0, &x, &n, &err) == TPL_OK);
    cr_expect(strcmp(x->prompt + strlen(x->prompt) - 11, "answer is: ") == 0);
}

/* ---- vectors of lm-evaluation-harness ---- */

static void check_clean(const json_t *v)
{
    const char *s = json_string_value(json_object_get(v, "prediction"));
    cr_expect_str_eq(ds_clean_hellaswag(&keep, s), json_string_value(json_object_get(v, "expected")), "'%s'", s);
}

Test(tasks, hellaswag_clean_up_matches_upstream)
{
    cr_expect(eq(int, vectors_each("metric-vectors.jsonl", "hellaswag_preprocess", check_clean), 6));
}

static ds_mc_item *parse_document(const json_t *doc, const char *task)
{
    ds_mc_item *x = NULL;
    int n = 0;
    char *s = json_dumps(doc, 0);
    tpl_code rc = ds_parse_mc(&keep, s, strlen(s), "v", task, DS_LM_EVAL, 0, &x, &n, &err);
    cr_assert(rc == TPL_OK, "%s: %s: %s", task, err.where, err.what);
    free(s);
    return x;
}

static void check_query(const json_t *v)
{
    json_t *doc = json_deep_copy(json_object_get(v, "prediction"));
    json_object_set_new(doc, "endings", json_pack("[ss]", "a", "b"));
    json_object_set_new(doc, "label", json_integer(0));
    cr_expect_str_eq(parse_document(doc, "hellaswag")->contexts[0], json_string_value(json_object_get(v, "expected")));
    json_decref(doc);
}

Test(tasks, hellaswag_queries_match_upstream)
{
    cr_expect(eq(int, vectors_each("metric-vectors.jsonl", "hellaswag_query", check_query), 4));
}

static void check_requests(const json_t *v)
{
    const json_t *task = json_object_get(json_object_get(v, "extra"), "task");
    const json_t *want = json_object_get(v, "expected"), *requests = json_object_get(want, "requests");
    const char *name = task ? json_string_value(task) : "winogrande";
    const ds_mc_item *x = parse_document(json_object_get(v, "prediction"), strcmp(name, "arc_easy") ? name : "arc");
    cr_assert(eq(int, x->n_choices, (int)json_array_size(requests)), "%s", name);
    cr_expect(eq(int, x->gold, (int)json_integer_value(json_object_get(want, "gold"))), "%s", name);
    for (int i = 0; i < x->n_choices; i++) {
        const json_t *pair = json_array_get(requests, (size_t)i);
        cr_expect_str_eq(x->contexts[i], json_string_value(json_array_get(pair, 0)), "%s", name);
        cr_expect_str_eq(x->continuations[i], json_string_value(json_array_get(pair, 1)), "%s", name);
    }
}

Test(tasks, zero_shot_requests_match_upstream)
{
    cr_expect(eq(int, vectors_each("metric-vectors.jsonl", "prompt_requests", check_requests), 5));
    cr_expect(eq(int, vectors_each("metric-vectors.jsonl", "winogrande_requests", check_requests), 2));
}

Test(tasks, lm_eval_measures_the_untrimmed_choice)
{
    static const char data[] = "{\"goal\": \"g\", \"sol1\": \"a \", \"sol2\": \"b\", \"label\": 0}";
    ds_mc_item *x;
    int n = 0;
    cr_assert(ds_parse_mc(&keep, data, strlen(data), "p", "piqa", DS_LM_EVAL, 0, &x, &n, &err) == TPL_OK);
    cr_expect_str_eq(x->choice_texts[0], "a ");
    cr_assert(ds_parse_mc(&keep, data, strlen(data), "p", "piqa", DS_FIXTURE, 0, &x, &n, &err) == TPL_OK);
    cr_expect_str_eq(x->choice_texts[0], "a");
}

/* ---- malformed input ---- */

typedef struct {
    const char *task, *data, *where, *what;
} bad_case;

#define ARC(choices, key) "{\"question\": {\"stem\": \"s\", \"choices\": " choices "}, \"answerKey\": " key "}"
#define TWO "[{\"text\": \"a\", \"label\": \"A\"}, {\"text\": \"b\", \"label\": \"B\"}]"
#define PIQA(label) "{\"goal\": \"g\", \"sol1\": \"a\", \"sol2\": \"b\", \"label\": " label "}"
#define SWAG(label) "{\"activity_label\": \"A\", \"ctx\": \"b\", \"endings\": [\"c\", \"d\"], \"label\": " label "}"
#define LONGREC(dataset, answers)                                                                                      \
    "{\"context\": \"c\", \"input\": \"i\", \"dataset\": " dataset ", \"answers\": " answers "}"

static const bad_case BAD[] = {
    {"arc", "", "f.jsonl", "is empty"},
    {"arc", "\n  \n\t\r\n", "f.jsonl", "is empty"},
    {"arc", ARC(TWO, "\"A\"") "\n{\"question\": {\"stem\": \"s\", \"cho", "f.jsonl:2", "malformed JSON"},
    {"arc", "\n\n[1]", "f.jsonl:3", "the line is an array, expected an object"},
    {"arc", "nonsense", "f.jsonl:1", "malformed JSON"},
    {"arc", ARC(TWO, "\"C\""), "f.jsonl:1", "field 'answerKey' is 'C', expected a label of the 2 choices, 'A' to 'B'"},
    {"arc", ARC(TWO, "1"), "f.jsonl:1", "field 'answerKey' is a number, expected a string"},
    {"arc", ARC("[{\"text\": \"a\", \"label\": \"A\"}]", "\"A\""), "f.jsonl:1", "field 'choices' has 1 items"},
    {"arc", ARC("[1, 2]", "\"A\""), "f.jsonl:1", "field 'text' is missing"},
    {"arc", ARC("\"x\"", "\"A\""), "f.jsonl:1", "field 'choices' is a string, expected an array"},
    {"arc", ARC("{\"text\": [\"a\", \"b\"], \"label\": [\"A\", \"B\", \"C\"]}", "\"A\""), "f.jsonl:1",
     "field 'label' has 3 items, expected 2"},
    {"arc", "{\"question\": 3, \"answerKey\": \"A\"}", "f.jsonl:1", "field 'question' is a number, expected an object"},
    {"arc", "{\"answerKey\": \"A\"}", "f.jsonl:1", "field 'question' is nothing, expected an object"},
    {"arc", "{\"question\": {\"choices\": " TWO "}, \"answerKey\": \"A\"}", "f.jsonl:1", "field 'stem' is missing"},
    {"arc", "{\"question\": {\"stem\": \"a\\u0000b\", \"choices\": " TWO "}, \"answerKey\": \"A\"}", "f.jsonl:1",
     "field 'stem' holds a NUL"},
    {"arc", "{\"question\": {\"stem\": \"a\xff\", \"choices\": " TWO "}, \"answerKey\": \"A\"}", "f.jsonl:1",
     "malformed JSON"},
    {"arc", "{\"question\": {\"stem\": \"\xed\xa0\x80\", \"choices\": " TWO "}, \"answerKey\": \"A\"}", "f.jsonl:1",
     "malformed JSON"},
    {"openbookqa", ARC(TWO, "\" A\""), "f.jsonl:1", "field 'answerKey' is ' A'"},
    {"piqa", PIQA("2"), "f.jsonl:1", "field 'label' is 2, expected 0 to 1"},
    {"piqa", PIQA("-1"), "f.jsonl:1", "field 'label' is -1, expected 0 to 1"},
    {"piqa", PIQA("\"1\""), "f.jsonl:1", "field 'label' is a string, expected an integer"},
    {"piqa", PIQA("1.5"), "f.jsonl:1", "field 'label' is a number, expected an integer"},
    {"piqa", "{\"goal\": \"g\", \"sol1\": \"a\", \"label\": 0}", "f.jsonl:1", "field 'sol2' is missing"},
    {"piqa", "{\"goal\": \"g\", \"goal\": \"h\", \"sol1\": \"a\", \"sol2\": \"b\", \"label\": 0}", "f.jsonl:1",
     "duplicate"},
    {"hellaswag", SWAG("2"), "f.jsonl:1", "field 'label' is 2, expected 0 to 1"},
    {"hellaswag", SWAG("\"2\""), "f.jsonl:1", "field 'label' is '2', expected 0 to 1"},
    {"hellaswag", SWAG("\"\""), "f.jsonl:1", "field 'label' is '', expected 0 to 1"},
    {"hellaswag", SWAG("\"-1\""), "f.jsonl:1", "field 'label' is '-1'"},
    {"hellaswag", SWAG("\"99999999999999999999\""), "f.jsonl:1", "field 'label' is '9999"},
    {"hellaswag", SWAG("\"1x\""), "f.jsonl:1", "field 'label' is '1x'"},
    {"hellaswag", "{\"activity_label\": \"A\", \"ctx\": \"b\", \"endings\": [\"c\", 4], \"label\": 0}", "f.jsonl:1",
     "field 'endings' item 1 is a number, expected a string"},
    {"winogrande", "{\"sentence\": \"no gap\", \"option1\": \"a\", \"option2\": \"b\", \"answer\": \"1\"}", "f.jsonl:1",
     "field 'sentence' has no '_'"},
    {"winogrande", "{\"sentence\": \"_ and _\", \"option1\": \"a\", \"option2\": \"b\", \"answer\": \"1\"}",
     "f.jsonl:1", "field 'sentence' has more than one '_'"},
    {"winogrande", "{\"sentence\": \"_\", \"option1\": \"a\", \"option2\": \"b\", \"answer\": \"3\"}", "f.jsonl:1",
     "field 'answer' is '3', expected '1' or '2'"},
    {"code", LONGREC("\"lcc\"", "[]"), "f.jsonl:1", "field 'answers' has 0 items, expected 1 or more"},
    {"code", LONGREC("\"lcc\"", "\"a\""), "f.jsonl:1", "field 'answers' is a string, expected an array"},
    {"code", LONGREC("\"nothing\"", "[\"a\"]"), "f.jsonl:1",
     "field 'dataset' is 'nothing', expected one with a prompt"},
};

static tpl_code parse_any(const char *task, const char *data, size_t n_bytes)
{
    ds_mc_item *mc = (ds_mc_item *)&keep;
    ds_long_item *lg = (ds_long_item *)&keep;
    int n = -7;
    tpl_code rc = ds_find_task(task)->kind == DS_MC
                      ? ds_parse_mc(&keep, data, n_bytes, "f.jsonl", task, DS_FIXTURE, 0, &mc, &n, &err)
                      : ds_parse_long(&keep, data, n_bytes, "f.jsonl", task, DS_FIXTURE, 0, &lg, &n, &err);
    if (rc != TPL_OK)
        cr_expect(n == -7 && mc == (ds_mc_item *)&keep && lg == (ds_long_item *)&keep,
                  "%s: failure touched an out-parameter", task);
    return rc;
}

Test(tasks, malformed_lines_name_line_and_field)
{
    for (size_t i = 0; i < sizeof BAD / sizeof *BAD; i++) {
        const bad_case *c = &BAD[i];
        err = (tpl_err){0};
        tpl_code rc = parse_any(c->task, c->data, strlen(c->data));
        cr_expect(rc == TPL_E_INPUT || rc == TPL_E_UNSUPPORTED, "case %zu: %s", i, c->data);
        cr_expect(rc == err.code, "case %zu", i);
        cr_expect_str_eq(err.where, c->where, "case %zu: %s", i, err.what);
        cr_expect(strstr(err.what, c->what) != NULL, "case %zu: got \"%s\", expected \"%s\"", i, err.what, c->what);
    }
}

Test(tasks, raw_nul_bytes_are_malformed)
{
    char data[] = PIQA("1");
    data[strlen("{\"goal\": \"")] = 0;
    cr_expect(parse_any("piqa", data, sizeof data - 1) == TPL_E_INPUT);
    cr_expect_str_eq(err.where, "f.jsonl:1");
    cr_expect(parse_any("piqa", "\0", 1) == TPL_E_INPUT);
}

Test(tasks, every_truncation_fails_cleanly)
{
    static const char *const whole[][2] = {
        {"arc", ARC(TWO, "\"A\"")}, {"hellaswag", SWAG("\"1\"")}, {"code", LONGREC("\"lcc\"", "[\"a\"]")}};
    for (size_t c = 0; c < 3; c++) {
        size_t len = strlen(whole[c][1]);
        for (size_t n = 0; n < len; n++)
            cr_expect(parse_any(whole[c][0], whole[c][1], n) == TPL_E_INPUT, "%s cut to %zu bytes", whole[c][0], n);
        cr_expect(parse_any(whole[c][0], whole[c][1], len) == TPL_OK);
    }
}

Test(tasks, a_line_of_a_megabyte_is_read)
{
    text_buf b = {0};
    text_addf(&b, "{\"goal\": \"");
    for (int i = 0; i < 1 << 16; i++)
        text_add(&b, "0123456789abcdef", 16);
    text_addf(&b, "\", \"sol1\": \"a\", \"sol2\": \"b\", \"label\": 0}");
    ds_mc_item *x;
    int n = 0;
    tpl_code rc = ds_parse_mc(&keep, b.data, b.len, "p", "piqa", DS_FIXTURE, 0, &x, &n, &err);
    cr_assert(rc == TPL_OK, "%s: %s", err.where, err.what);
    cr_expect(eq(sz, strlen(x->contexts[0]), strlen("Question: ") + (1 << 20) + strlen("\nAnswer:")));
    text_fini(&b);
}

Test(tasks, deep_nesting_is_an_error)
{
    text_buf b = {0};
    for (int i = 0; i < 200000; i++)
        text_add(&b, "[", 1);
    cr_expect(parse_any("piqa", b.data, b.len) == TPL_E_INPUT);
    text_fini(&b);
}

Test(tasks, a_context_full_of_marks_cannot_eat_the_memory)
{
    text_buf b = {0};
    text_addf(&b, "{\"context\": \"");
    for (int i = 0; i < 40000; i++)
        text_addf(&b, "{input}");
    text_addf(&b, "\", \"input\": \"%010000d\", \"dataset\": \"trec\", \"answers\": [\"a\"]}", 7);
    cr_expect(parse_any("few_shot", b.data, b.len) == TPL_E_INPUT);
    cr_expect(strstr(err.what, "prompt exceeds") != NULL, "%s", err.what);
    text_fini(&b);
}

Test(tasks, wrong_requests_are_usage_errors)
{
    ds_mc_item *mc;
    ds_long_item *lg;
    int n;
    cr_expect(ds_read_mc(&keep, WORLDLET, "nosuch", DS_FIXTURE, 0, &mc, &n, &err) == TPL_E_USAGE);
    cr_expect(ds_read_mc(&keep, WORLDLET, "code", DS_FIXTURE, 0, &mc, &n, &err) == TPL_E_USAGE);
    cr_expect(ds_read_mc(&keep, WORLDLET, "arc", DS_LONGBENCH, 0, &mc, &n, &err) == TPL_E_USAGE);
    cr_expect(ds_read_long(&keep, WORLDLET, "code", DS_LM_EVAL, 0, &lg, &n, &err) == TPL_E_USAGE);
    cr_expect(ds_read_long(&keep, WORLDLET, "text", DS_FIXTURE, 0, &lg, &n, &err) == TPL_E_USAGE);
    cr_expect(ds_read_mc(&keep, WORLDLET "/nowhere", "arc", DS_FIXTURE, 0, &mc, &n, &err) == TPL_E_IO);
}

/* ---- text ---- */

static tpl_code parse_text(const char *s, size_t n_bytes, ds_text *t)
{
    return ds_parse_text(&keep, s, n_bytes, "t.txt", t, &err);
}

Test(tasks, text_keeps_empty_documents_and_turns_line_ends)
{
    static const char s[] = "a\r\nb\rc<|endoftext|><|endoftext|>d\r<|endoftext|>";
    static const char *const want[] = {"a\nb\nc", "", "d\n", ""};
    ds_text t;
    cr_assert(parse_text(s, strlen(s), &t) == TPL_OK);
    cr_assert(eq(int, t.n, 4));
    for (int i = 0; i < t.n; i++) {
        cr_expect_str_eq(t.docs[i].data, want[i]);
        cr_expect(eq(sz, t.docs[i].n_bytes, strlen(want[i])));
    }
    cr_expect_str_eq(t.sha256.hex, sha256_bytes(s, strlen(s)).hex);
}

Test(tasks, text_must_be_utf8_and_not_empty)
{
    ds_text t;
    cr_expect(parse_text("", 0, &t) == TPL_E_INPUT);
    cr_expect(parse_text("ab\ncd\xc3", 6, &t) == TPL_E_INPUT);
    cr_expect_str_eq(err.where, "t.txt:2");
    cr_expect_str_eq(err.what, "byte 0xc3 at offset 5 is not UTF-8");
}

/* ---- prompts ---- */

Test(tasks, prompts_come_in_two_shapes)
{
    static const char s[] = "{\"question_id\": 81, \"category\": \"writing\", \"turns\": [\"one\", \"two\"]}\n\n"
                            "{\"prompt\": \"three\"}\n{\"id\": \"x\", \"prompt\": \"four\"}\n";
    ds_prompt *p;
    int n = 0;
    tpl_code rc = ds_parse_prompts(&keep, s, strlen(s), "q", 0, &p, &n, &err);
    cr_assert(rc == TPL_OK, "%s: %s", err.where, err.what);
    cr_assert(eq(int, n, 3));
    cr_expect_str_eq(p[0].id, "81");
    cr_expect_str_eq(p[0].category, "writing");
    cr_expect(eq(int, p[0].n_turns, 2));
    cr_expect_str_eq(p[0].turns[1], "two");
    cr_expect_str_eq(p[1].id, "3");
    cr_expect_str_eq(p[1].category, "");
    cr_expect_str_eq(p[2].id, "x");
    cr_expect_str_eq(p[2].turns[0], "four");
}

Test(tasks, malformed_prompts_name_the_field)
{
    static const char *const cases[][2] = {
        {"{\"text\": \"a\"}", "neither field 'prompt' nor 'turns'"},
        {"{\"turns\": []}", "field 'turns' has 0 items"},
        {"{\"prompt\": 3}", "field 'prompt' is a number, expected a string"},
        {"{\"prompt\": \"a\", \"id\": 1.5}", "field 'id' is a number, expected a string or an integer"},
        {"", "is empty"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        ds_prompt *p;
        int n;
        cr_expect(ds_parse_prompts(&keep, cases[i][0], strlen(cases[i][0]), "q", 0, &p, &n, &err) == TPL_E_INPUT);
        cr_expect(strstr(err.what, cases[i][1]) != NULL, "got \"%s\", expected \"%s\"", err.what, cases[i][1]);
    }
}

/* ---- code points (expected values from CPython 3.11) ---- */

static const char *lower(const char *s)
{
    return uni_encode(&keep, uni_lower(&keep, uni_decode(&keep, s, strlen(s))));
}

static const char *capital(const char *s)
{
    return uni_encode(&keep, uni_capitalise(&keep, uni_decode(&keep, s, strlen(s))));
}

Test(tasks, case_rules_are_pythons)
{
    cr_expect_str_eq(lower("\xce\x9f\xce\x94\xce\x9f\xce\xa3 \xce\xa3"), "\xce\xbf\xce\xb4\xce\xbf\xcf\x82 \xcf\x83");
    cr_expect_str_eq(lower("A\xce\xa3.B"), "a\xcf\x83.b");
    cr_expect_str_eq(lower("A\xce\xa3. B"), "a\xcf\x82. b");
    cr_expect_str_eq(lower("\xc4\xb0I\xc3\x89"), "i\xcc\x87i\xc3\xa9");
    cr_expect_str_eq(capital("\xc3\x9f"
                             "AB"),
                     "Ssab");
    cr_expect_str_eq(capital("\xef\xac\x83X"), "Ffix");
    cr_expect_str_eq(capital("\xc7\x86Q"), "\xc7\x85q");
    cr_expect_str_eq(capital(""), "");
}

Test(tasks, invalid_bytes_become_replacement_marks)
{
    uni_text t = uni_decode(&keep, "a\xff\xe2\x82z", 5);
    cr_assert(eq(sz, t.n, 5));
    cr_expect_str_eq(uni_encode(&keep, t), "a\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbdz");
    cr_expect(eq(sz, uni_count("a\xff\xc3\xa9"), 3));
    cr_expect(eq(sz, uni_find_bad("\xc3\xa9\xc0\xaf", 4), 2));
}
