#include "results/csv_table.h"

#include <criterion/criterion.h>
#include <criterion/parameterized.h>

#include "results/csv_line.h"
#include "tests/results/scratch.h"

TestSuite(csv_table, .init = scratch_create, .fini = scratch_destroy);

static csv_table *parse_ok(const char *text)
{
    csv_table *t = NULL;
    tpl_err e = {0};
    cr_assert(csv_table_parse(text, strlen(text), "t.csv", &t, &e) == TPL_OK, "%s: %s", e.where, e.what);
    return t;
}

Test(csv_table, reads_cells_by_name)
{
    csv_table *t = parse_ok("a,b,c\n1,,x y\n2.5,\"q\"\"u,o\nte\",last\n");
    int64_t i = 0;
    double d = 0;
    tpl_err e = {0};
    cr_assert(csv_table_n_rows(t) == 2 && csv_table_n_columns(t) == 3);
    cr_expect(!strcmp(csv_table_text(t, 0, "c"), "x y") && !strcmp(csv_table_text(t, 0, "b"), ""));
    cr_expect(!strcmp(csv_table_text(t, 1, "b"), "q\"u,o\nte"));
    cr_expect(!strcmp(csv_table_text(t, 1, "d"), ""), "no such column");
    cr_expect(csv_table_want_int(t, 0, "a", &i, &e) == TPL_OK && i == 1);
    cr_expect(csv_table_want_real(t, 1, "a", &d, &e) == TPL_OK && d == 2.5);
    cr_expect(csv_table_want_int(t, 1, "a", &i, &e) == TPL_E_INPUT && !strcmp(e.where, "t.csv:3"), "%s", e.where);
    cr_expect(csv_table_want_real(t, 0, "b", &d, &e) == TPL_E_INPUT && !strcmp(e.where, "t.csv:2"), "%s", e.where);
    cr_expect(csv_table_want_real(t, 0, "z", &d, &e) == TPL_E_INPUT && strstr(e.what, "'z'"), "%s", e.what);
    csv_table_destroy(t);
}

Test(csv_table, takes_foreign_line_ends_and_byte_order_mark)
{
    csv_table *t = parse_ok("\xef\xbb\xbf"
                            "a,b\r\n1, 2 \r\n\r\n\" 3 \",4");
    cr_assert(csv_table_n_rows(t) == 2);
    cr_expect(!strcmp(csv_table_name(t, 0), "a"));
    cr_expect(!strcmp(csv_table_text(t, 0, "b"), "2"));
    cr_expect(!strcmp(csv_table_text(t, 1, "a"), " 3 ") && !strcmp(csv_table_text(t, 1, "b"), "4"));
    cr_expect(!strcmp(csv_table_place(t, 1).s, "t.csv:4"), "%s", csv_table_place(t, 1).s);
    csv_table_destroy(t);
}

typedef struct {
    char text[40];
    int n; /* bytes; 0: up to the 0 */
    char where[16], what[48];
} bad_case;

ParameterizedTestParameters(csv_table, refuses_malformed_files)
{
    static bad_case cases[] = {
        {"", 0, "t.csv", "is empty"},
        {"\n\n", 0, "t.csv", "is empty"},
        {"a,b\n1,2\n3\n", 0, "t.csv:3", "row has 1 cells, expected 2"},
        {"a,b\n1,2,3\n", 0, "t.csv:2", "more than 2 cells"},
        {"a,b\n\"x\ny\",2\n\"1\n\n", 0, "t.csv:4", "inside a quoted cell"},
        {"a,b\n1,x\"y\n", 0, "t.csv:2", "quote"},
        {"a,b\n1,\"x\"y\n", 0, "t.csv:2", "quote"},
        {"a,b\n1,\"x", 0, "t.csv:2", "inside a quoted cell"},
        {"a,a\n1,2\n", 0, "t.csv:1", "column 2 has a name that came before"},
        {"a,\n1,2\n", 0, "t.csv:1", "column 2 has no name"},
        {"a\nx\xff\n", 0, "t.csv:2", "column 1 is not UTF-8"},
        {"a\n\xed\xa0\x80\n", 0, "t.csv:2", "not UTF-8"},
        {"a\nx\0y\n", 6, "t.csv:2", "column 1 holds a NUL"},
        {"a,b\n\"1\n2\",3\n\"4\n5\",6,7\n", 0, "t.csv:4", "more than 2 cells"},
    };
    return cr_make_param_array(bad_case, cases, sizeof cases / sizeof *cases);
}

ParameterizedTest(bad_case *c, csv_table, refuses_malformed_files)
{
    csv_table *t = NULL;
    tpl_err e = {0};
    size_t n = c->n ? (size_t)c->n : strlen(c->text);
    cr_expect(csv_table_parse(c->text, n, "t.csv", &t, &e) == TPL_E_INPUT && !t, "%s", c->text);
    cr_expect(!strcmp(e.where, c->where) && strstr(e.what, c->what), "%s: %s; expected %s: %s", e.where, e.what,
              c->where, c->what);
}

Test(csv_table, refuses_too_many_columns)
{
    text_buf b = {0};
    csv_table *t = NULL;
    tpl_err e = {0};
    for (int i = 0; i <= CSV_MAX_COLUMNS; i++)
        text_addf(&b, "%sc%d", i ? "," : "", i);
    cr_expect(csv_table_parse(b.data, b.len, "t.csv", &t, &e) == TPL_E_INPUT && strstr(e.what, "more than 1024"), "%s",
              e.what);
    text_fini(&b);
}

Test(csv_table, refuses_what_is_no_file)
{
    csv_table *t = NULL;
    tpl_err e = {0};
    cr_expect(csv_table_load(scratch_dir, &t, &e) == TPL_E_INPUT && strstr(e.what, "regular"), "%s", e.what);
    cr_expect(csv_table_load("/dev/zero", &t, &e) == TPL_E_INPUT);
    cr_expect(csv_table_load(scratch_path("none.csv"), &t, &e) == TPL_E_IO && strstr(e.where, "none.csv"), "%s",
              e.where);
}

/* Cells that need quotes come back as they went in. */
Test(csv_table, reads_what_the_writer_wrote)
{
    static const char *const names[] = {"plain", "hostile"};
    static const char *const hostile[] = {"",      ",",      "\"",    "\"\"",  "a\nb",  "a\r\nb",      "\r",
                                          " lead", "trail ", "\ttab", "a,\"b", "\"q\"", "Grüße, 你好", "\n\n\n",
                                          "it's",  "#x",     "-1",    "=1+1"};
    size_t n = sizeof hostile / sizeof *hostile;
    text_buf b = {0};
    csv_add_line(&b, names, 2);
    for (size_t i = 0; i < n; i++)
        csv_add_line(&b, (const char *const[]){"x", hostile[i]}, 2);
    csv_table *t = parse_ok(b.data);
    cr_assert(csv_table_n_rows(t) == (long)n);
    for (size_t i = 0; i < n; i++)
        cr_expect(!strcmp(csv_table_cell(t, (long)i, 1), hostile[i]), "case %zu: '%s'", i,
                  csv_table_cell(t, (long)i, 1));
    csv_table_destroy(t);
    text_fini(&b);
}

Test(csv_table, quotes_only_where_needed)
{
    text_buf b = {0};
    csv_add_line(&b, (const char *const[]){"a", "b,c", "", NULL, "say \"x\""}, 5);
    csv_add_line(&b, (const char *const[]){""}, 1);
    cr_expect(!strcmp(b.data, "a,\"b,c\",,,\"say \"\"x\"\"\"\n\"\"\n"), "%s", b.data);
    text_fini(&b);
}

/* Rows end at the bytes noted by hand; every cut of the file must give the rows whose end lies before it. */
Test(csv_table, gives_whole_rows_of_a_file_torn_anywhere)
{
    static const char text[] = "id,note\n1,\"a,\n\"\"b\"\"\n\"\n2,plain\n3,\"x\n\ny\"\n";
    static const size_t ends[] = {8, 22, 30, 39};
    cr_assert(sizeof text - 1 == 39);
    for (size_t cut = 0; cut <= sizeof text - 1; cut++) {
        csv_table *t = NULL;
        tpl_err e = {0};
        size_t good = 99, whole = 0;
        while (whole < 4 && ends[whole] <= cut)
            whole++;
        scratch_write(scratch_path("torn.csv"), text, cut);
        cr_assert(csv_table_load_torn(scratch_path("torn.csv"), &t, &good, &e) == TPL_OK, "cut %zu: %s", cut, e.what);
        cr_expect(good == (whole ? ends[whole - 1] : 0), "cut %zu: %zu bytes", cut, good);
        cr_expect(whole ? t && csv_table_n_rows(t) == (long)whole - 1 : !t, "cut %zu", cut);
        csv_table_destroy(t);
    }
}

Test(csv_table, survives_any_bytes)
{
    static const char alphabet[] = "\"\",,\n\r a1\xc3\xa4\xff\0";
    unsigned seed = 5;
    for (int round = 0; round < 20000; round++) {
        char text[48];
        size_t n = (seed = seed * 1103515245 + 12345) >> 16 & 31;
        for (size_t i = 0; i < n; i++)
            text[i] = alphabet[((seed = seed * 1103515245 + 12345) >> 16) % (sizeof alphabet - 1)];
        csv_table *t = NULL;
        tpl_err e = {0};
        tpl_code rc = csv_table_parse(text, n, "t.csv", &t, &e);
        cr_assert((rc == TPL_OK) == (t != NULL));
        if (t)
            for (long r = 0; r < csv_table_n_rows(t); r++)
                cr_assert(csv_table_cell(t, r, csv_table_n_columns(t) - 1) != NULL);
        csv_table_destroy(t);
    }
}
