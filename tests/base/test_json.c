#include "base/json.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <criterion/criterion.h>

#include "base/arena.h"

Test(json, malformed_documents_name_the_place)
{
    static const struct {
        const char *text, *where, *what;
    } cases[] = {
        {"", "x.json", "malformed JSON"},
        {"{", "x.json", "malformed JSON"},
        {"{\"a\": 1,}", "x.json", "malformed JSON"},
        {"{\"a\": 1, \"a\": 2}", "x.json", "duplicate"},
        {"{\n\"a\":\nfoo}", "x.json:3", "malformed JSON"},
        {"[1] [2]", "x.json", "end of file expected"},
        {"{\"a\": 99999999999999999999}", "x.json", "too big integer"},
        {"[\"\xff\xfe\"]", "x.json", "unable to decode byte 0xff"},
        {"[\"\\ud800\"]", "x.json", "malformed JSON"},
        {"[NaN]", "x.json", "malformed JSON"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        json_t *v = NULL;
        tpl_err e = {0};
        cr_expect(json_load_bytes(cases[i].text, strlen(cases[i].text), "x.json", &v, &e) == TPL_E_INPUT, "%s", cases[i].text);
        cr_expect(strcmp(e.where, cases[i].where) == 0, "%s: '%s'", cases[i].text, e.where);
        cr_expect(strstr(e.what, cases[i].what) != NULL, "%s: '%s'", cases[i].text, e.what);
        cr_expect(v == NULL);
    }
}

/* As deep as a hostile file likes: an error, not an overflowing stack. */
Test(json, deep_nesting_is_an_error)
{
    size_t n = 1 << 20;
    char *text = tpl_malloc(n);
    json_t *v = NULL;
    memset(text, '[', n);
    cr_expect(json_load_bytes(text, n, "x", &v, NULL) == TPL_E_INPUT && !v);
    free(text);
}

static json_t *load(const char *text)
{
    json_t *v = NULL;
    tpl_err e = {0};
    cr_assert(json_load_bytes(text, strlen(text), "t", &v, &e) == TPL_OK, "%s", e.what);
    return v;
}

static const char document[] = "{\"i\": 7, \"neg\": -3, \"whole\": 2.0, \"half\": 2.5, \"big\": 1e300, \"s\": \"text\", \"n\": null, "
                               "\"t\": true, \"f\": false, \"a\": [1], \"o\": {\"k\": 1}}";

Test(json, integers_have_bounds_and_whole_reals_count)
{
    static const struct {
        const char *key;
        int64_t lo, hi;
        tpl_code code;
        int64_t want;
        const char *what;
    } cases[] = {
        {"i", 0, 10, TPL_OK, 7, NULL},
        {"i", 7, 7, TPL_OK, 7, NULL},
        {"i", 8, 10, TPL_E_INPUT, 0, "field 'i' is 7, expected 8 to 10"},
        {"i", 0, 6, TPL_E_INPUT, 0, "field 'i' is 7, expected 0 to 6"},
        {"neg", 0, 6, TPL_E_INPUT, 0, "field 'neg' is -3, expected 0 to 6"},
        {"whole", 0, 10, TPL_OK, 2, NULL},
        {"half", 0, 10, TPL_E_INPUT, 0, "field 'half' is a number, expected an integer"},
        {"big", INT64_MIN, INT64_MAX, TPL_E_INPUT, 0, "field 'big' is a number, expected an integer"},
        {"s", 0, 10, TPL_E_INPUT, 0, "field 's' is a string, expected an integer"},
        {"t", 0, 10, TPL_E_INPUT, 0, "field 't' is a boolean, expected an integer"},
    };
    json_t *v = load(document);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        int64_t want = cases[i].code == TPL_OK ? cases[i].want : 55, a = 55, b = 55;
        tpl_err e = {0};
        cr_expect(json_want_int(v, cases[i].key, cases[i].lo, cases[i].hi, &a, "f.json", &e) == cases[i].code && a == want, "%s",
                  cases[i].key);
        cr_expect(json_maybe_int(v, cases[i].key, cases[i].lo, cases[i].hi, &b, "f.json", &e) == cases[i].code && b == want, "%s",
                  cases[i].key);
        cr_expect(!cases[i].what || (strcmp(e.what, cases[i].what) == 0 && strcmp(e.where, "f.json") == 0), "'%s'", e.what);
    }
    json_decref(v);
}

/* Absent and null: an error where a field is required, the caller's default where it is not. */
Test(json, absent_and_null_are_alike)
{
    static const char *const keys[] = {"n", "none"};
    json_t *v = load(document), *out = NULL;
    for (int k = 0; k < 2; k++) {
        int64_t i = 5;
        double r = .5;
        bool b = true;
        const char *s = "kept";
        tpl_err e = {0};
        cr_expect(json_want_int(v, keys[k], 0, 9, &i, "w", &e) == TPL_E_INPUT && strstr(e.what, "is missing, expected an integer"));
        cr_expect(json_want_str(v, keys[k], &s, "w", &e) == TPL_E_INPUT && strstr(e.what, "is missing, expected a string"));
        cr_expect(json_want_array(v, keys[k], &out, "w", &e) == TPL_E_INPUT && strstr(e.what, "expected an array"));
        cr_expect(json_want_object(v, keys[k], &out, "w", &e) == TPL_E_INPUT && strstr(e.what, "expected an object"));
        cr_expect(json_maybe_int(v, keys[k], 0, 9, &i, "w", &e) == TPL_OK && json_maybe_real(v, keys[k], &r, "w", &e) == TPL_OK);
        cr_expect(json_maybe_bool(v, keys[k], &b, "w", &e) == TPL_OK && json_maybe_str(v, keys[k], &s, "w", &e) == TPL_OK);
        cr_expect(i == 5 && r == .5 && b && strcmp(s, "kept") == 0 && !out);
    }
    json_decref(v);
}

Test(json, values_and_wrong_types)
{
    json_t *v = load(document), *out = NULL;
    double r = 0;
    bool b = false;
    const char *s = NULL;
    tpl_err e = {0};
    cr_expect(json_maybe_real(v, "i", &r, "w", &e) == TPL_OK && r == 7 && json_maybe_real(v, "half", &r, "w", &e) == TPL_OK && r == 2.5);
    cr_expect(json_maybe_bool(v, "t", &b, "w", &e) == TPL_OK && b && json_maybe_bool(v, "f", &b, "w", &e) == TPL_OK && !b);
    cr_expect(json_want_str(v, "s", &s, "w", &e) == TPL_OK && strcmp(s, "text") == 0);
    cr_expect(json_want_array(v, "a", &out, "w", &e) == TPL_OK && json_array_size(out) == 1);
    cr_expect(json_want_object(v, "o", &out, "w", &e) == TPL_OK && json_object_size(out) == 1);
    cr_expect(json_maybe_real(v, "s", &r, "w", &e) == TPL_E_INPUT && strcmp(e.what, "field 's' is a string, expected a number") == 0);
    cr_expect(json_maybe_bool(v, "i", &b, "w", &e) == TPL_E_INPUT && strstr(e.what, "is a number, expected true or false"));
    cr_expect(json_maybe_str(v, "a", &s, "w", &e) == TPL_E_INPUT && strstr(e.what, "is an array, expected a string"));
    cr_expect(json_want_array(v, "o", &out, "w", &e) == TPL_E_INPUT && strstr(e.what, "is an object, expected an array"));
    cr_expect(json_want_object(v, "t", &out, "w", &e) == TPL_E_INPUT && strstr(e.what, "is a boolean, expected an object"));
    cr_expect_str_eq(json_type_word(NULL), "nothing");
    cr_expect_str_eq(json_type_word(json_object_get(v, "n")), "null");
    json_decref(v);
    /* an array where an object is expected has no fields */
    v = load("[1, 2]");
    int64_t i = 0;
    cr_expect(json_want_int(v, "i", 0, 1, &i, "w", &e) == TPL_E_INPUT);
    json_decref(v);
}

Test(json, files_name_their_path)
{
    json_t *v = NULL;
    tpl_err e = {0};
    cr_expect(json_load_path("/no/such/file.json", &v, &e) == TPL_E_IO && strcmp(e.where, "/no/such/file.json") == 0);
    cr_expect(json_load_path(SOURCE_ROOT "/meson.build", &v, &e) == TPL_E_INPUT && strstr(e.where, "meson.build") && !v);
    cr_expect(json_load_path(SOURCE_ROOT "/models/worldlet-mla/config.json", &v, &e) == TPL_OK && json_is_object(v));
    json_decref(v);
}
