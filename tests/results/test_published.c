#include <stdio.h>
#include <string.h>

#include <criterion/criterion.h>
#include <criterion/parameterized.h>

#include "results/csv_table.h"
#include "results/row.h"

typedef struct {
    char file[32];
    int kind;
    long n_rows;
    char where[3][2][40]; /* column, cell: the row that has all of these ... */
    char column[24];
    double value; /* ... has this there, as the paper prints it */
} published_case;

static published_case cases[] = {
    {"tpla_table1", RS_ACCURACY, 14 * 8, {{"label", "TPLA (align)"}, {"task", "arc"}}, "value", 62.58},
    {"tpla_table1",
     RS_ACCURACY,
     14 * 8,
     {{"model", "LLaMA-2-7B-TransMLA"}, {"variant", "tpla:pd=off"}, {"metric", "ppl"}},
     "value",
     6.74},
    {"tpla_table1", RS_ACCURACY, 14 * 8, {{"variant", "gla"}, {"task", "wikitext2"}}, "value", 2212},
    {"tpla_table2",
     RS_ACCURACY,
     10 * 7,
     {{"model", "Kimi-K2-Base"}, {"variant", "tpla:pd=on"}, {"task", "synthetic"}},
     "value",
     66},
    {"tpla_table2",
     RS_ACCURACY,
     10 * 7,
     {{"model", "DeepSeek-V3"}, {"variant", "mla"}, {"task", "code"}},
     "value",
     80.09},
    {"tpla_speed", RS_LATENCY, 5, {{"model", "Kimi-K2-Base"}, {"context_tok", "32768"}}, "ratio", 1.93},
    {"tpla_speed", RS_LATENCY, 5, {{"model", "DeepSeek-V3-0324"}, {"context_tok", "1024"}}, "ratio", 1.4},
    {"easyspec_table2_9",
     RS_SPECULATE,
     20 * 5,
     {{"base", "Qwen2-72B-Instruct"}, {"temperature", "0.8"}, {"method", "easyspec"}},
     "speedup",
     3.94},
    {"easyspec_table2_9",
     RS_SPECULATE,
     20 * 5,
     {{"task", "ifeval"}, {"temperature", "0"}, {"method", "sd"}},
     "draft_s_per_100_tok",
     3.68},
    {"easyspec_table3",
     RS_SPECULATE,
     24,
     {{"base", "Llama-3.3-70B-Instruct"}, {"method", "easyspec"}, {"task", "spec_bench_math_reasoning"}},
     "tok_per_s",
     44.59},
    {"easyspec_table4",
     RS_ACCURACY,
     15,
     {{"variant", "fuzzy:n=4"}, {"metric", "cosine_attention_output"}},
     "value",
     0.83},
    {"easyspec_table5", RS_SPECULATE, 5, {{"groups", "n=3:parallel=layers"}}, "tok_per_s", 24.1},
    {"easyspec_table6",
     RS_LATENCY,
     32,
     {{"model", "Qwen2-72B-Instruct"}, {"tp", "8"}, {"backend", "vllm"}},
     "tok_per_s",
     29.39},
    {"easyspec_table7", RS_SPECULATE, 6, {{"task", "math"}, {"method", "easyspec"}}, "total_s_per_100_tok", 2.91},
    {"easyspec_table8",
     RS_SPECULATE,
     50,
     {{"base", "Llama-3-8B-Instruct"}, {"task", "mgsm"}, {"method", "easyspec"}},
     "tok_per_s",
     63.68},
};

ParameterizedTestParameters(published, holds_the_papers_numbers)
{
    return cr_make_param_array(published_case, cases, sizeof cases / sizeof *cases);
}

static csv_table *load(const char *file)
{
    char path[512];
    csv_table *t = NULL;
    tpl_err e = {0};
    snprintf(path, sizeof path, "%s/results/published/%s.csv", SOURCE_ROOT, file);
    cr_assert(csv_table_load(path, &t, &e) == TPL_OK, "%s: %s", e.where, e.what);
    return t;
}

static bool matches(const csv_table *t, long row, const published_case *c)
{
    for (int i = 0; i < 3 && *c->where[i][0]; i++)
        if (strcmp(csv_table_text(t, row, c->where[i][0]), c->where[i][1]) != 0)
            return false;
    return true;
}

ParameterizedTest(published_case *c, published, holds_the_papers_numbers)
{
    csv_table *t = load(c->file);
    double v = 0;
    long found = -1;
    tpl_err e = {0};
    cr_expect(csv_table_n_rows(t) == c->n_rows, "%s has %ld rows", c->file, csv_table_n_rows(t));
    for (long i = 0; i < csv_table_n_rows(t) && found < 0; i++)
        if (matches(t, i, c))
            found = i;
    cr_assert(found >= 0, "%s has no such row", c->file);
    cr_expect(csv_table_want_real(t, found, c->column, &v, &e) == TPL_OK && v == c->value, "%s: %s is %g %s",
              csv_table_place(t, found).s, c->column, v, e.what);
    csv_table_destroy(t);
}

/* The ids in the files were computed by another program (SHA-256 over the same canonical text); rows must meet them,
 * and a column is either the schema's, of its type, or one of the few that only published tables have. */
static void expect_row(const csv_table *t, long i, rs_kind kind)
{
    static const char own[] = " source label metric tok_per_s_variance ";
    rs_row r;
    tpl_err e = {0};
    row_init(&r, kind);
    for (int col = 0; col < csv_table_n_columns(t); col++) {
        char word[64];
        snprintf(word, sizeof word, " %s ", csv_table_name(t, col));
        if (rs_column_find(kind, csv_table_name(t, col)) < 0)
            cr_expect(strstr(own, word) != NULL, "column %s", word);
        else
            cr_expect(row_set_named(&r, csv_table_name(t, col), csv_table_cell(t, i, col), csv_table_place(t, i).s,
                                    &e) == TPL_OK,
                      "%s: %s", e.where, e.what);
    }
    int status = rs_status_find(row_get(&r, RS_status));
    cr_expect(status >= 0 && (status == RS_OK) == !*row_get(&r, RS_reason), "%s", csv_table_place(t, i).s);
    cr_expect(!strcmp(row_cell_id(&r).hex, row_get(&r, RS_cell_id)), "%s", csv_table_place(t, i).s);
    cr_expect(*csv_table_text(t, i, "source"), "%s", csv_table_place(t, i).s);
    row_fini(&r);
}

Test(published, has_rows_of_the_schema_with_ids_of_an_outside_program)
{
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        csv_table *t = load(cases[c].file);
        for (long i = 0; i < csv_table_n_rows(t); i++)
            expect_row(t, i, cases[c].kind);
        csv_table_destroy(t);
    }
}

Test(published, keeps_cells_that_the_papers_leave_open)
{
    csv_table *t = load("easyspec_table6");
    int oom = 0, open = 0;
    for (long i = 0; i < csv_table_n_rows(t); i++) {
        oom += !strcmp(csv_table_text(t, i, "status"), "out_of_memory");
        open += !strcmp(csv_table_text(t, i, "status"), "unsupported");
        cr_expect(!strcmp(csv_table_text(t, i, "status"), "ok") == (*csv_table_text(t, i, "tok_per_s") != 0));
    }
    cr_expect(oom == 2 && open == 2, "%d %d", oom, open);
    csv_table_destroy(t);
}
