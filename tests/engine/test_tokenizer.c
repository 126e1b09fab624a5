#include <criterion/criterion.h>
#include <criterion/parameterized.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/json.h"
#include "engine/tokenizer.h"

/* Vectors and small tokenizers are made by tools/vectors/make_tokenizer_vectors.py from the reference libraries. */
#define DATA SOURCE_ROOT "/tests/data/"

/* ---- helpers ---- */

static tokenizer *open_dir(const char *dir)
{
    tokenizer *t = NULL;
    tpl_err e = {0};
    cr_assert_eq(tokenizer_open(dir, &t, &e), TPL_OK, "%s: %s: %s", dir, e.where, e.what);
    return t;
}

static tokenizer *parse(const char *json, tpl_err *e)
{
    tokenizer *t = NULL;
    tokenizer_parse(json, strlen(json), "t.json", &t, e);
    return t;
}

static json_t *load(const char *data, size_t len, const char *where)
{
    json_t *v = NULL;
    tpl_err e = {0};
    cr_assert_eq(json_load_bytes(data, len, where, &v, &e), TPL_OK, "%s: %s", e.where, e.what);
    return v;
}

/* Calls `each` for every line of a JSONL file; gives the number of lines. */
typedef void line_fn(void *ctx, const json_t *row, int line);
static int each_line(const char *path, line_fn *each, void *ctx)
{
    char *data = NULL;
    size_t len = 0;
    tpl_err e = {0};
    int line = 0;
    cr_assert_eq(text_read_file(path, &data, &len, &e), TPL_OK, "%s: %s", e.where, e.what);
    for (char *p = data, *eol; p < data + len; p = eol + 1) {
        eol = memchr(p, '\n', (size_t)(data + len - p));
        cr_assert(eol, "%s does not end with a newline", path);
        json_t *row = load(p, (size_t)(eol - p), path);
        each(ctx, row, ++line);
        json_decref(row);
    }
    free(data);
    return line;
}

static void expect_ids(const tokenizer *t, const char *name, const json_t *text, const json_t *want)
{
    int32_t *ids = NULL;
    int n = 0;
    tpl_err e = {0};
    const char *s = json_string_value(text);
    cr_assert_eq(tokenizer_encode(t, s, json_string_length(text), &ids, &n, &e), TPL_OK, "%s: %s", e.where, e.what);
    cr_expect_eq((size_t)n, json_array_size(want), "%s: '%s' has %d ids, expected %zu", name, s, n,
                 json_array_size(want));
    for (size_t i = 0; i < (size_t)n && i < json_array_size(want); i++) {
        int32_t id = (int32_t)json_integer_value(json_array_get(want, i));
        cr_expect_eq(ids[i], id, "%s: '%s' id %zu is %d (%s), expected %d (%s)", name, s, i, ids[i],
                     tokenizer_token_text(t, ids[i]), id, tokenizer_token_text(t, id));
        if (ids[i] != id)
            break;
    }
    free(ids);
}

static void expect_text(const tokenizer *t, const char *name, const json_t *ids, bool skip, const json_t *want)
{
    int32_t list[4096];
    text_buf out = {0};
    size_t n = json_array_size(ids);
    cr_assert_leq(n, sizeof list / sizeof *list);
    for (size_t i = 0; i < n; i++)
        list[i] = (int32_t)json_integer_value(json_array_get(ids, i));
    tokenizer_decode(t, list, (int)n, skip, &out);
    bool same = out.len == json_string_length(want) && !memcmp(out.data, json_string_value(want), out.len);
    cr_expect(same, "%s: skip %d decodes to '%s', expected '%s'", name, skip, out.data, json_string_value(want));
    text_fini(&out);
}

/* ---- against the reference libraries ---- */

typedef struct {
    char name[16];
    char dir[64];
    int n_lines;
} vector_set;

static void check_line(void *ctx, const json_t *row, int line)
{
    const tokenizer *t = ctx;
    char name[32];
    snprintf(name, sizeof name, "line %d", line);
    const json_t *text = json_object_get(row, "text"), *ids = json_object_get(row, "ids");
    const json_t *decoded = json_object_get(row, "decoded"), *plain = json_object_get(row, "plain");
    decoded = decoded ? decoded : text;
    if (text)
        expect_ids(t, name, text, ids);
    expect_text(t, name, ids, false, decoded);
    expect_text(t, name, ids, true, plain ? plain : decoded);
}

ParameterizedTestParameters(tokenizer, agrees_with_the_reference)
{
    static vector_set sets[] = {
        {"worldlet", SOURCE_ROOT "/models/worldlet-mla", 394},
        {"llama3", DATA "tokenizer-llama3", 394},
        {"qwen2", DATA "tokenizer-qwen2", 394},
        {"deepseek3", DATA "tokenizer-deepseek3", 394},
        {"llama2", DATA "tokenizer-llama2", 394},
        {"mistral", DATA "tokenizer-mistral", 394},
        {"kimi", DATA "tokenizer-kimi", 394},
    };
    return cr_make_param_array(vector_set, sets, sizeof sets / sizeof *sets);
}

ParameterizedTest(vector_set *set, tokenizer, agrees_with_the_reference)
{
    char path[256];
    snprintf(path, sizeof path, DATA "tokenizer-%s.jsonl", set->name);
    tokenizer *t = open_dir(set->dir);
    cr_expect_eq(each_line(path, check_line, t), set->n_lines);
    tokenizer_close(t);
}

static json_t *load_file(const char *path)
{
    json_t *v = NULL;
    tpl_err e = {0};
    cr_assert_eq(json_load_path(path, &v, &e), TPL_OK, "%s: %s", e.where, e.what);
    return v;
}

/* One line of the variants: the shared model with some fields changed, and this line's other parts. */
static void check_variant(void *ctx, const json_t *row, int line)
{
    const char *name = json_string_value(json_object_get(row, "name"));
    json_t *whole = json_object(), *model = json_deep_copy(ctx), *cases = json_object_get(row, "cases"), *v;
    static const char *const parts[] = {"normalizer", "pre_tokenizer", "decoder", "added_tokens"};
    size_t i;
    tpl_err e = {0};
    tokenizer *t = NULL;
    if (json_object_get(row, "model"))
        json_object_update(model, json_object_get(row, "model"));
    json_object_set_new(whole, "model", model);
    for (i = 0; i < 4; i++)
        if (json_object_get(row, parts[i]))
            json_object_set(whole, parts[i], json_object_get(row, parts[i]));
    char *text = json_dumps(whole, 0);
    cr_assert_eq(tokenizer_parse(text, strlen(text), name, &t, &e), TPL_OK, "%s: %s", e.where, e.what);
    json_array_foreach(cases, i, v)
    {
        expect_ids(t, name, json_array_get(v, 0), json_array_get(v, 1));
        expect_text(t, name, json_array_get(v, 1), false, json_array_get(v, 2));
    }
    tokenizer_close(t);
    free(text);
    json_decref(whole);
}

Test(tokenizer, every_component_agrees_with_the_reference)
{
    json_t *model = load_file(DATA "tokenizer-variants-model.json");
    cr_expect_eq(each_line(DATA "tokenizer-variants.jsonl", check_variant, model), 62);
    json_decref(model);
}

/* ---- looking up ---- */

Test(tokenizer, looks_up_tokens_and_ids)
{
    tokenizer *t = open_dir(SOURCE_ROOT "/models/worldlet-mla");
    cr_expect_eq(tokenizer_vocab(t), 2048);
    cr_expect_eq(tokenizer_token_id(t, "<|endoftext|>"), 0);
    cr_expect_eq(tokenizer_token_id(t, "!"), 1);
    cr_expect_eq(tokenizer_token_id(t, "no such token"), -1);
    cr_expect_str_eq(tokenizer_token_text(t, 0), "<|endoftext|>");
    cr_expect_null(tokenizer_token_text(t, -1));
    cr_expect_null(tokenizer_token_text(t, 2048));
    tokenizer_close(t);
    tokenizer_close(NULL);
}

/* ---- text that is not UTF-8 ---- */

typedef struct {
    const char *name, *bad;
    const char *good; /* what Python's bytes.decode("utf-8", "replace") gives */
} utf8_case;

static const utf8_case utf8_cases[] = {
    {"lone_continuation", "a\x80z", "a\uFFFDz"},
    {"overlong_slash", "\xC0\xAF", "\uFFFD\uFFFD"},
    {"overlong_three", "\xE0\x80\x80", "\uFFFD\uFFFD\uFFFD"},
    {"surrogate", "\xED\xA0\x80", "\uFFFD\uFFFD\uFFFD"},
    {"cut_in_two", "\xC3", "\uFFFD"},
    {"cut_in_three", "\xE4\xBD", "\uFFFD"},
    {"cut_in_four", "\xF0\x9F\x98", "\uFFFD"},
    {"cut_then_letter", "\xF0\x9F\x98x", "\uFFFDx"},
    {"cut_then_character", "\xE4\xBD\xE4\xBD\xA0", "\uFFFD\u4F60"},
    {"beyond_unicode", "\xF4\x90\x80\x80", "\uFFFD\uFFFD\uFFFD\uFFFD"},
    {"never_a_byte", "\xFF\xFE\xF8", "\uFFFD\uFFFD\uFFFD"},
};

static void check_utf8(const utf8_case *c)
{
    tokenizer *t = open_dir(SOURCE_ROOT "/models/worldlet-mla");
    int32_t *a = NULL, *b = NULL;
    int n_a = 0, n_b = 0;
    text_buf out = {0};
    cr_assert_eq(tokenizer_encode(t, c->bad, strlen(c->bad), &a, &n_a, NULL), TPL_OK);
    cr_assert_eq(tokenizer_encode(t, c->good, strlen(c->good), &b, &n_b, NULL), TPL_OK);
    cr_expect(n_a == n_b && !memcmp(a, b, sizeof *a * (size_t)n_a), "%s", c->name);
    tokenizer_decode(t, a, n_a, false, &out);
    cr_expect_str_eq(out.data, c->good, "%s", c->name);
    text_fini(&out);
    free(a);
    free(b);
    tokenizer_close(t);
}

Test(tokenizer, replaces_invalid_utf8)
{
    for (size_t i = 0; i < sizeof utf8_cases / sizeof *utf8_cases; i++)
        check_utf8(&utf8_cases[i]);
}

Test(tokenizer, decoding_passes_over_ids_that_are_not_there)
{
    tokenizer *t = open_dir(SOURCE_ROOT "/models/worldlet-mla");
    int32_t ids[] = {-1, 1, 2048, INT32_MAX, INT32_MIN, 0, 1};
    text_buf out = {0};
    tokenizer_decode(t, ids, 7, false, &out);
    cr_expect_str_eq(out.data, "!<|endoftext|>!");
    out.len = 0;
    tokenizer_decode(t, ids, 7, true, &out);
    cr_expect_str_eq(out.data, "!!");
    tokenizer_decode(t, NULL, 0, true, &out);
    cr_expect_str_eq(out.data, "!!", "decoding appends");
    text_fini(&out);
    tokenizer_close(t);
}

/* ---- files that cannot be used ---- */

typedef struct {
    const char *name, *json;
    tpl_code code;
    const char *says; /* a part of the message */
} file_case;

#define MODEL(rest) "\"model\":{\"type\":\"BPE\"," rest "}"
#define AB MODEL("\"vocab\":{\"a\":0,\"b\":1,\"ab\":2},\"merges\":[\"a b\"]")
#define WITH(part) "{" AB "," part "}"
#define SPLIT(regex)                                                                                                   \
    WITH("\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"Regex\":\"" regex "\"},\"behavior\":\"Isolated\"}")
#define ADDED(list) WITH("\"added_tokens\":[" list "]")

static const file_case file_cases[] = {
    {"not_json", "{", TPL_E_INPUT, "malformed JSON"},
    {"not_an_object", "[]", TPL_E_INPUT, "expected an object"},
    {"no_model", "{}", TPL_E_INPUT, "'model'"},
    {"version", WITH("\"version\":\"2.0\""), TPL_E_UNSUPPORTED, "version is '2.0'"},
    {"no_vocab", "{" MODEL("\"merges\":[]") "}", TPL_E_INPUT, "'vocab'"},
    {"no_merges", "{" MODEL("\"vocab\":{\"a\":0}") "}", TPL_E_INPUT, "'merges'"},
    {"empty_vocab", "{" MODEL("\"vocab\":{},\"merges\":[]") "}", TPL_E_INPUT, "'vocab' is empty"},
    {"unigram", "{\"model\":{\"type\":\"Unigram\"}}", TPL_E_UNSUPPORTED, "'Unigram'"},
    {"id_negative", "{" MODEL("\"vocab\":{\"a\":-1},\"merges\":[]") "}", TPL_E_INPUT, "is -1, expected 0 to"},
    {"id_huge", "{" MODEL("\"vocab\":{\"a\":99999999},\"merges\":[]") "}", TPL_E_INPUT, "is 99999999, expected"},
    {"id_real", "{" MODEL("\"vocab\":{\"a\":0.5},\"merges\":[]") "}", TPL_E_INPUT, "expected an integer"},
    {"id_text", "{" MODEL("\"vocab\":{\"a\":\"0\"},\"merges\":[]") "}", TPL_E_INPUT, "is a string, expected an"},
    {"id_twice", "{" MODEL("\"vocab\":{\"a\":0,\"b\":0},\"merges\":[]") "}", TPL_E_INPUT, "share id 0"},
    {"token_twice", "{" MODEL("\"vocab\":{\"a\":0,\"a\":1},\"merges\":[]") "}", TPL_E_INPUT, "malformed JSON"},
    {"merge_left", "{" MODEL("\"vocab\":{\"b\":0},\"merges\":[\"xyz b\"]") "}", TPL_E_INPUT,
     "merges[0] needs token 'xyz'"},
    {"merge_right", "{" MODEL("\"vocab\":{\"a\":0},\"merges\":[[\"a\",\"b\"]]") "}", TPL_E_INPUT, "needs token 'b'"},
    {"merge_result", "{" MODEL("\"vocab\":{\"a\":0,\"b\":1},\"merges\":[\"a b\"]") "}", TPL_E_INPUT,
     "needs token 'ab'"},
    {"merge_words", "{" MODEL("\"vocab\":{\"a\":0},\"merges\":[\"a\"]") "}", TPL_E_INPUT, "expected two tokens"},
    {"merge_three", "{" MODEL("\"vocab\":{\"a\":0},\"merges\":[\"a b c\"]") "}", TPL_E_INPUT, "expected two tokens"},
    {"merge_pair", "{" MODEL("\"vocab\":{\"a\":0},\"merges\":[[\"a\"]]") "}", TPL_E_INPUT, "a pair of strings"},
    {"merge_number", "{" MODEL("\"vocab\":{\"a\":0},\"merges\":[7]") "}", TPL_E_INPUT, "is a number"},
    {"merge_twice", "{" MODEL("\"vocab\":{\"a\":0,\"aa\":1},\"merges\":[\"a a\",\"a a\"]") "}", TPL_E_INPUT,
     "merges[1] repeats"},
    {"dropout", "{" MODEL("\"dropout\":0.1,\"vocab\":{\"a\":0},\"merges\":[]") "}", TPL_E_UNSUPPORTED, "'dropout'"},
    {"suffix", "{" MODEL("\"end_of_word_suffix\":\"</w>\",\"vocab\":{\"a\":0},\"merges\":[]") "}", TPL_E_UNSUPPORTED,
     "'end_of_word_suffix'"},
    {"unk_unknown", "{" MODEL("\"unk_token\":\"?\",\"vocab\":{\"a\":0},\"merges\":[]") "}", TPL_E_INPUT,
     "unk_token '?'"},
    {"normalizer", WITH("\"normalizer\":{\"type\":\"Lowercase\"}"), TPL_E_UNSUPPORTED, "normalizer 'Lowercase'"},
    {"pre_tokenizer", WITH("\"pre_tokenizer\":{\"type\":\"BertPreTokenizer\"}"), TPL_E_UNSUPPORTED,
     "pre_tokenizer 'BertPreTokenizer'"},
    {"decoder", WITH("\"decoder\":{\"type\":\"Sequence\",\"decoders\":[{\"type\":\"WordPiece\"}]}"), TPL_E_UNSUPPORTED,
     "decoder 'WordPiece'"},
    {"step_text", WITH("\"decoder\":\"Fuse\""), TPL_E_INPUT, "decoder is a string"},
    {"step_untyped", WITH("\"decoder\":{}"), TPL_E_INPUT, "'type'"},
    {"behavior", WITH("\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"String\":\"a\"},\"behavior\":\"Odd\"}"),
     TPL_E_UNSUPPORTED, "'Odd'"},
    {"no_pattern", WITH("\"pre_tokenizer\":{\"type\":\"Split\",\"behavior\":\"Isolated\"}"), TPL_E_INPUT, "'pattern'"},
    {"regex_verb", SPLIT("(*UCP)a"), TPL_E_UNSUPPORTED, "(*...)"},
    {"regex_recursion", SPLIT("(?R)"), TPL_E_UNSUPPORTED, "a group of this kind"},
    {"regex_inline_flag", SPLIT("a(?i)b"), TPL_E_UNSUPPORTED, "a group of this kind"},
    {"regex_caseless", SPLIT("(?i:ss)"), TPL_E_UNSUPPORTED, "more than plain words"},
    {"regex_back_reference", SPLIT("(a)\\\\1"), TPL_E_UNSUPPORTED, "an escape"},
    {"regex_nested_class", SPLIT("[a[bc]]"), TPL_E_UNSUPPORTED, "a class inside a class"},
    {"regex_posix_class", SPLIT("[[:alpha:]]"), TPL_E_UNSUPPORTED, "a class inside a class"},
    {"regex_open_class", SPLIT("[abc"), TPL_E_UNSUPPORTED, "a class without end"},
    {"regex_open_group", SPLIT("(abc"), TPL_E_UNSUPPORTED, "does not compile"},
    {"regex_property", SPLIT("\\\\p{Klingon}"), TPL_E_UNSUPPORTED, "unknown \\p{...}"},
    {"regex_count_sign", SPLIT("a{1,3}+"), TPL_E_UNSUPPORTED, "a sign after {n,m}"},
    {"regex_backslash", SPLIT("a\\\\"), TPL_E_UNSUPPORTED, "a lone backslash"},
    {"regex_empty", SPLIT(""), TPL_E_UNSUPPORTED, "an empty pattern"},
    {"decoder_regex", WITH("\"decoder\":{\"type\":\"Replace\",\"pattern\":{\"Regex\":\"a\"},\"content\":\"\"}"),
     TPL_E_UNSUPPORTED, "Replace by Regex"},
    {"strip_long", WITH("\"decoder\":{\"type\":\"Strip\",\"content\":\"ab\",\"start\":1,\"stop\":0}"), TPL_E_INPUT,
     "expected one character"},
    {"metaspace_scheme", WITH("\"decoder\":{\"type\":\"Metaspace\",\"replacement\":\"_\",\"prepend_scheme\":\"x\"}"),
     TPL_E_UNSUPPORTED, "prepend_scheme 'x'"},
    {"added_not_a_list", WITH("\"added_tokens\":{}"), TPL_E_INPUT, "'added_tokens' is an object"},
    {"added_no_id", ADDED("{\"content\":\"x\"}"), TPL_E_INPUT, "is nothing, expected an integer"},
    {"added_other_id", ADDED("{\"id\":1,\"content\":\"a\"}"), TPL_E_INPUT, "has id 1, but vocab has it as 0"},
    {"added_taken_id", ADDED("{\"id\":1,\"content\":\"x\"}"), TPL_E_INPUT, "which 'b' has too"},
    {"added_twice", ADDED("{\"id\":3,\"content\":\"x\"},{\"id\":4,\"content\":\"x\"}"), TPL_E_INPUT, "listed twice"},
    {"added_nul", ADDED("{\"id\":3,\"content\":\"x\\u0000\"}"), TPL_E_UNSUPPORTED, "NUL"},
};

static void check_file(const file_case *c)
{
    tpl_err e = {0};
    tokenizer *t = parse(c->json, &e);
    cr_expect_null(t, "%s", c->name);
    cr_expect_eq(e.code, c->code, "%s: %s: %s", c->name, tpl_code_word(e.code), e.what);
    cr_expect(strstr(e.what, c->says), "%s: '%s' does not say '%s'", c->name, e.what, c->says);
    cr_expect_eq(strncmp(e.where, "t.json", 6), 0, "%s: where is '%s'", c->name, e.where);
    tokenizer_close(t);
}

Test(tokenizer, names_what_is_wrong_with_a_file)
{
    for (size_t i = 0; i < sizeof file_cases / sizeof *file_cases; i++)
        check_file(&file_cases[i]);
}

Test(tokenizer, refuses_sequences_without_bottom)
{
    text_buf b = {0};
    tpl_err e = {0};
    text_addf(&b, "{" AB ",\"decoder\":");
    for (int i = 0; i < 40; i++)
        text_addf(&b, "{\"type\":\"Sequence\",\"decoders\":[");
    for (int i = 0; i < 40; i++)
        text_addf(&b, "]}");
    text_addf(&b, "}");
    cr_expect_null(parse(b.data, &e));
    cr_expect_str_eq(e.what, "decoder nests Sequence deeper than 8");
    text_fini(&b);
}

/* Every prefix of a real file is an error or (never) a tokenizer, and nothing else. */
Test(tokenizer, refuses_every_truncated_file)
{
    char *data = NULL;
    size_t len = 0;
    cr_assert_eq(text_read_file(DATA "tokenizer-qwen2/tokenizer.json", &data, &len, NULL), TPL_OK);
    for (size_t n = 0; n + 2 < len; n += 61) {
        tokenizer *t = NULL;
        tpl_err e = {0};
        cr_expect_eq(tokenizer_parse(data, n, "cut", &t, &e), TPL_E_INPUT, "prefix of %zu bytes", n);
        cr_expect_null(t);
    }
    free(data);
}

Test(tokenizer, says_which_file_is_missing)
{
    tokenizer *t = NULL;
    tpl_err e = {0};
    cr_expect_eq(tokenizer_open("/nonexistent", &t, &e), TPL_E_IO);
    cr_expect_str_eq(e.where, "/nonexistent/tokenizer.json");
}

/* ---- tiktoken files ---- */

typedef struct {
    const char *name, *model, *config;
    tpl_code code;
    const char *says; /* a part of the message */
} tiktoken_case;

#define KIMI "{\"auto_map\":{\"AutoTokenizer\":[\"tokenization_kimi.TikTokenTokenizer\",null]}}"

static const tiktoken_case tiktoken_cases[] = {
    {"other_class", "YQ== 0\n", "{\"auto_map\":{\"AutoTokenizer\":[\"tokenization_qwen.X\"]}}", TPL_E_UNSUPPORTED,
     "'tokenization_qwen.X'"},
    {"no_class", "YQ== 0\n", "{}", TPL_E_UNSUPPORTED, "'nothing'"},
    {"no_rank", "YQ==\n", KIMI, TPL_E_INPUT, "no blank"},
    {"bad_base64", "Y=Q= 0\n", KIMI, TPL_E_INPUT, "malformed base64"},
    {"odd_base64", "YQ= 0\n", KIMI, TPL_E_INPUT, "malformed base64"},
    {"bad_rank", "YQ== x\n", KIMI, TPL_E_INPUT, "malformed rank"},
    {"negative_rank", "YQ== -1\n", KIMI, TPL_E_INPUT, "malformed rank"},
    {"rank_twice", "YQ== 0\nYg== 0\n", KIMI, TPL_E_INPUT, "rank is repeated"},
    {"rank_gap", "YQ== 0\nYg== 2\n", KIMI, TPL_E_INPUT, "rank 1 of 2 is missing"},
    {"rank_far", "YQ== 0\nYg== 9\n", KIMI, TPL_E_INPUT, "beyond the number of tokens"},
    {"token_twice", "YQ== 0\nYQ== 1\n", KIMI, TPL_E_INPUT, "token is repeated"},
    {"byte_missing", "YQ== 0\n", KIMI, TPL_E_INPUT, "byte 0x00 is no token"},
    {"empty", "", KIMI, TPL_E_INPUT, "byte 0x00 is no token"},
};

static void check_tiktoken(const tiktoken_case *c)
{
    char dir[] = "/tmp/test-tokenizer-XXXXXX", path[96];
    tokenizer *t = NULL;
    tpl_err e = {0};
    cr_assert(mkdtemp(dir));
    snprintf(path, sizeof path, "%s/tiktoken.model", dir);
    cr_assert_eq(text_write_file(path, c->model, strlen(c->model), &e), TPL_OK);
    snprintf(path, sizeof path, "%s/tokenizer_config.json", dir);
    cr_assert_eq(text_write_file(path, c->config, strlen(c->config), &e), TPL_OK);
    cr_expect_eq(tokenizer_open(dir, &t, &e), c->code, "%s: %s", c->name, e.what);
    cr_expect(strstr(e.what, c->says), "%s: '%s' does not say '%s'", c->name, e.what, c->says);
    tokenizer_close(t);
    remove(path);
    snprintf(path, sizeof path, "%s/tiktoken.model", dir);
    remove(path);
    remove(dir);
}

Test(tokenizer, names_what_is_wrong_with_a_tiktoken_file)
{
    for (size_t i = 0; i < sizeof tiktoken_cases / sizeof *tiktoken_cases; i++)
        check_tiktoken(&tiktoken_cases[i]);
}

/* Kimi's code cuts a run of more than 25,000 non-blanks, so that the two halves do not merge: "aa" is a token, and an
 * odd run is 12,500 of them and one "a". */
Test(tokenizer, cuts_long_runs_as_kimi_does)
{
    tokenizer *t = open_dir(DATA "tokenizer-kimi");
    static char text[25002];
    int32_t *ids = NULL, *rest = NULL;
    int n = 0, n_rest = 0, n_part = 0;
    memset(text, 'a', 25001);
    cr_assert_eq(tokenizer_encode(t, text, 25000, &rest, &n_part, NULL), TPL_OK);
    free(rest);
    cr_assert_eq(tokenizer_encode(t, text, 1, &rest, &n_rest, NULL), TPL_OK);
    cr_assert_eq(tokenizer_encode(t, text, 25001, &ids, &n, NULL), TPL_OK);
    cr_expect_eq(n_rest, 1);
    cr_expect_eq(n, n_part + 1, "%d ids, expected %d", n, n_part + 1);
    cr_expect_eq(ids[n - 1], rest[0]);
    free(ids);
    free(rest);
    tokenizer_close(t);
}

/* ---- hostile and long texts ---- */

typedef struct {
    char name[16];
    char dir[64];
    char unit[24];
    int count;
} long_case;

ParameterizedTestParameters(tokenizer, stays_quick_on_long_texts)
{
    static long_case cases[] = {
        {"one_letter", DATA "tokenizer-llama2", "a", 400000},
        {"blanks", DATA "tokenizer-llama3", " ", 400000},
        {"blanks_ds", DATA "tokenizer-deepseek3", " ", 400000},
        {"newlines", DATA "tokenizer-qwen2", "\n ", 200000},
        {"marks", DATA "tokenizer-qwen2", "\u0301\u0323\u0F73", 60000},
        {"signs", DATA "tokenizer-deepseek3", "!", 400000},
        {"specials", DATA "tokenizer-deepseek3", "<\uFF5C", 100000},
        {"digits", SOURCE_ROOT "/models/worldlet-mla", "7", 400000},
        {"words", SOURCE_ROOT "/models/worldlet-mla", "value = make_vina(x)\n", 20000},
    };
    return cr_make_param_array(long_case, cases, sizeof cases / sizeof *cases);
}

/* 400 KB take a few hundredths of a second; the bound leaves room for sanitizers and for a busy machine, while anything
 * quadratic takes minutes. */
ParameterizedTest(long_case *c, tokenizer, stays_quick_on_long_texts)
{
    tokenizer *t = open_dir(c->dir);
    text_buf b = {0}, out = {0};
    int32_t *ids = NULL;
    int n = 0;
    for (int i = 0; i < c->count; i++)
        text_addf(&b, "%s", c->unit);
    double begin = clock_seconds();
    cr_assert_eq(tokenizer_encode(t, b.data, b.len, &ids, &n, NULL), TPL_OK);
    tokenizer_decode(t, ids, n, false, &out);
    double took = clock_seconds() - begin;
    cr_expect_lt(took, 20.0, "%s took %.1f s", c->name, took);
    cr_expect_gt(n, 0);
    if (strcmp(c->name, "marks") != 0) /* those are reordered by NFC */
        cr_expect(out.len == b.len && !memcmp(out.data, b.data, b.len), "%s does not come back", c->name);
    text_fini(&b);
    text_fini(&out);
    free(ids);
    tokenizer_close(t);
}

/* A pattern that explodes ends in an error that names it, and the tokenizer stays usable. */
Test(tokenizer, stops_a_pattern_that_explodes)
{
    tpl_err e = {0};
    tokenizer *t = parse(SPLIT("(a+)+b"), &e);
    char text[] = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaacb";
    int32_t *ids = NULL;
    int n = 7;
    cr_assert(t, "%s", e.what);
    cr_expect_eq(tokenizer_encode(t, text, strlen(text), &ids, &n, &e), TPL_E_INPUT);
    cr_expect(strstr(e.what, "(a+)+b"), "%s", e.what);
    cr_expect(ids == NULL && n == 7, "out-parameters stay untouched");
    cr_assert_eq(tokenizer_encode(t, "ab", 2, &ids, &n, &e), TPL_OK);
    cr_expect(n == 1 && ids[0] == 2);
    free(ids);
    tokenizer_close(t);
}

Test(tokenizer, refuses_texts_beyond_its_bound)
{
    tokenizer *t = open_dir(SOURCE_ROOT "/models/worldlet-mla");
    tpl_err e = {0};
    int32_t *ids = NULL;
    int n = 0;
    cr_expect_eq(tokenizer_encode(t, "", SIZE_MAX, &ids, &n, &e), TPL_E_INPUT);
    cr_expect(strstr(e.what, "expected at most 268435456"), "%s", e.what);
    tokenizer_close(t);
}

/* ---- threads ---- */

static void *encode_all(void *ctx)
{
    for (int i = 0; i < 3; i++)
        each_line(DATA "tokenizer-qwen2.jsonl", check_line, ctx);
    return NULL;
}

Test(tokenizer, serves_many_threads_at_once)
{
    tokenizer *t = open_dir(DATA "tokenizer-qwen2");
    pthread_t threads[4];
    for (int i = 0; i < 4; i++)
        cr_assert_eq(pthread_create(&threads[i], NULL, encode_all, t), 0);
    for (int i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
    tokenizer_close(t);
}
