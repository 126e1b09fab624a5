#include "results/table.h"

#include <stdlib.h>
#include <string.h>

#include <criterion/criterion.h>
#include <criterion/parameterized.h>

#include "base/json.h"

typedef struct {
    double v;
    char text[16];
} round_case;

ParameterizedTestParameters(table, rounds_to_four_digits_but_keeps_whole_parts)
{
    static round_case cases[] = {
        {0, "0"},
        {2, "2"},
        {6.3149, "6.315"},
        {61.754, "61.75"},
        {123.456, "123.5"},
        {2212.4, "2212"},
        {1234567.8, "1234568"},
        {0.25, "0.2500"},
        {0.00084123, "0.0008412"},
        {0.0000123456, "1.235e-05"},
        {-6.3149, "-6.315"},
        {98765432.1, "9.877e+07"},
        {1e300, "1.000e+300"},
    };
    return cr_make_param_array(round_case, cases, sizeof cases / sizeof *cases);
}

ParameterizedTest(round_case *c, table, rounds_to_four_digits_but_keeps_whole_parts)
{
    cr_expect(!strcmp(table_round(c->v).s, c->text), "%.17g gives %s, expected %s", c->v, table_round(c->v).s, c->text);
}

/* Gives the printed text (free it). */
static char *print(const table *t, table_format format)
{
    char *text = NULL;
    size_t n = 0;
    tpl_err e = {0};
    FILE *f = open_memstream(&text, &n);
    cr_assert(table_print(t, format, f, &e) == TPL_OK, "%s", e.what);
    fclose(f);
    return text;
}

static table *example(void)
{
    static rs_row a, b;
    tpl_err e = {0};
    table *t = NULL;
    row_init(&a, RS_LATENCY);
    row_init(&b, RS_LATENCY);
    row_set_text(&a, LAT_variant, "mla");
    row_set_int(&a, LAT_context_tok, 4000);
    row_set_real(&a, LAT_tpot_ms, 1.23456);
    row_set_status(&a, RS_OK, NULL);
    row_set_text(&b, LAT_variant, "tpla|g=2, \"ü\"");
    row_set_int(&b, LAT_context_tok, 512);
    row_set_status(&b, RS_TOO_NOISY, "iqr\n7%");
    tpl_code rc = table_from_rows("Latency", "variant,context_tok=context,tpot_ms=TPOT,status,reason", RS_LATENCY,
                                  (const rs_row *const[]){&a, &b}, 2, &t, &e);
    cr_assert(rc == TPL_OK, "%s", e.what);
    row_fini(&a);
    row_fini(&b);
    return t;
}

typedef struct {
    int format;
    char text[420];
} golden_case;

ParameterizedTestParameters(table, prints_each_format)
{
    static golden_case cases[] = {
        {TABLE_ALIGNED, "Latency\n"
                        "variant        context   TPOT  status     reason\n"
                        "                tokens     ms\n"
                        "-------------  -------  -----  ---------  ------\n"
                        "mla               4000  1.235  ok         -\n"
                        "tpla|g=2, \"ü\"      512      -  too_noisy  iqr 7%\n"},
        {TABLE_MD, "Latency\n\n"
                   "| variant | context (tokens) | TPOT (ms) | status | reason |\n"
                   "|---|---:|---:|---|---|\n"
                   "| mla | 4000 | 1.235 | ok |  |\n"
                   "| tpla\\|g=2, \"ü\" | 512 |  | too_noisy | iqr 7% |\n"},
        {TABLE_CSV, "variant,context_tok,tpot_ms,status,reason\n"
                    "mla,4000,1.23456,ok,\n"
                    "\"tpla|g=2, \"\"ü\"\"\",512,,too_noisy,\"iqr\n7%\"\n"},
        {TABLE_JSON,
         "[{\"variant\": \"mla\", \"context_tok\": 4000, \"tpot_ms\": 1.23456, \"status\": \"ok\", \"reason\": null},\n"
         " {\"variant\": \"tpla|g=2, \\\"ü\\\"\", \"context_tok\": 512, \"tpot_ms\": null, \"status\": \"too_noisy\", "
         "\"reason\": \"iqr\\n7%\"}]\n"},
        {TABLE_JSONL,
         "{\"variant\": \"mla\", \"context_tok\": 4000, \"tpot_ms\": 1.23456, \"status\": \"ok\", \"reason\": null}\n"
         "{\"variant\": \"tpla|g=2, \\\"ü\\\"\", \"context_tok\": 512, \"tpot_ms\": null, \"status\": \"too_noisy\", "
         "\"reason\": \"iqr\\n7%\"}\n"},
    };
    return cr_make_param_array(golden_case, cases, sizeof cases / sizeof *cases);
}

ParameterizedTest(golden_case *c, table, prints_each_format)
{
    table *t = example();
    char *text = print(t, c->format);
    cr_expect(!strcmp(text, c->text), "got\n%s\nexpected\n%s", text, c->text);
    free(text);
    table_destroy(t);
}

Test(table, keeps_hostile_cells_on_their_line)
{
    table *t = table_create(NULL);
    table_add_column(t, "a", "a\x1b[2J", "", RS_TEXT);
    table_add_row(t, (const char *const[]){"x\x1b[31m\r\n\x7f\xc2\x9bz"});
    table_add_row(t, (const char *const[]){"0123456789012345678901234567890123456789012345678901234567890"});
    table_add_row(t, (const char *const[]){"bad \xff byte"});
    char *text = print(t, TABLE_ALIGNED);
    for (const char *s = text; *s; s++)
        cr_expect(*s == '\n' || (unsigned char)*s >= 0x20, "control %d", *s);
    cr_expect(strstr(text, "\xc2\x9b") == NULL && strstr(text, "x [31m    z\n"), "%s", text);
    cr_expect(strstr(text, "012345678901234567890123456789012345678901234...\n"), "%s", text);
    cr_expect(strstr(text, "bad \xef\xbf\xbd byte"), "%s", text);
    free(text);
    table_destroy(t);
}

/* What JSON has no number for stays text, and an outside parser takes the result. */
Test(table, prints_json_that_others_read)
{
    table *t = table_create(NULL);
    json_t *v = NULL;
    tpl_err e = {0};
    table_add_column(t, "r", "r", "", RS_REAL);
    table_add_column(t, "i", "i", "", RS_INT);
    table_add_row(t, (const char *const[]){"inf", "99999999999999999999"});
    table_add_row(t, (const char *const[]){"0x10", "+5"});
    table_add_row(t, (const char *const[]){"0.1", "no\x01\"number"});
    char *text = print(t, TABLE_JSON);
    cr_assert(json_load_bytes(text, strlen(text), "printed", &v, &e) == TPL_OK, "%s: %s", e.what, text);
    cr_expect(!strcmp(json_string_value(json_object_get(json_array_get(v, 0), "r")), "inf"));
    cr_expect(json_is_string(json_object_get(json_array_get(v, 0), "i")));
    cr_expect(json_integer_value(json_object_get(json_array_get(v, 1), "i")) == 5);
    cr_expect(json_real_value(json_object_get(json_array_get(v, 2), "r")) == 0.1);
    cr_expect(!strcmp(json_string_value(json_object_get(json_array_get(v, 2), "i")), "no\x01\"number"));
    json_decref(v);
    free(text);
    table_destroy(t);
}

Test(table, reads_any_csv)
{
    static const char text[] = "cell_id,x,name\n000000000001,1.5,a\n000000000002,,b\n";
    csv_table *csv = NULL;
    table *t = NULL;
    tpl_err e = {0};
    cr_assert(csv_table_parse(text, strlen(text), "t.csv", &csv, &e) == TPL_OK);
    cr_assert(table_from_csv(NULL, NULL, -1, csv, &t, &e) == TPL_OK, "%s", e.what);
    char *out = print(t, TABLE_JSONL);
    cr_expect(!strcmp(out, "{\"cell_id\": \"000000000001\", \"x\": 1.5, \"name\": \"a\"}\n"
                           "{\"cell_id\": \"000000000002\", \"x\": null, \"name\": \"b\"}\n"),
              "%s", out);
    free(out);
    table_destroy(t);
    csv_table_destroy(csv);
}

Test(table, refuses_unknown_columns_and_formats)
{
    tpl_err e = {0};
    table *t = NULL;
    table_format f = TABLE_CSV;
    cr_expect(table_from_rows(NULL, "variant,speed", RS_LATENCY, NULL, 0, &t, &e) == TPL_E_USAGE && !t);
    cr_expect(strstr(e.what, "'speed'"), "%s", e.what);
    cr_expect(table_from_rows(NULL, "", RS_LATENCY, NULL, 0, &t, &e) == TPL_E_USAGE && !t);
    cr_expect(table_format_find("jsonl", &f) && f == TABLE_JSONL);
    cr_expect(table_format_find("table", &f) && f == TABLE_ALIGNED);
    cr_expect(!table_format_find("xml", &f) && f == TABLE_ALIGNED);
}

Test(table, prints_no_rows)
{
    tpl_err e = {0};
    table *t = NULL;
    cr_assert(table_from_rows(NULL, "variant,tpot_ms", RS_LATENCY, NULL, 0, &t, &e) == TPL_OK);
    char *json = print(t, TABLE_JSON), *lines = print(t, TABLE_JSONL), *csv = print(t, TABLE_CSV);
    cr_expect(!strcmp(json, "[]\n") && !strcmp(lines, "") && !strcmp(csv, "variant,tpot_ms\n"));
    free(json);
    free(lines);
    free(csv);
    table_destroy(t);
}

Test(table, says_when_the_output_is_full)
{
    tpl_err e = {0};
    table *t = example();
    FILE *f = fopen("/dev/full", "w");
    cr_assert(f != NULL);
    cr_expect(table_print(t, TABLE_CSV, f, &e) == TPL_E_IO && strstr(e.what, "No space"), "%s", e.what);
    fclose(f);
    table_destroy(t);
}
