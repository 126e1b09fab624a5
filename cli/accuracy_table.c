#include "cli/accuracy_table.h"

#include <stdlib.h>
#include <string.h>

#include "datasets/tasks.h"
#include "engine/variant.h"

/* A column of the pivoted table: one task's metric, scaled for reading. */
typedef struct {
    const char *task, *metric, *heading, *unit;
    double scale;
} pivot;

static const pivot text_columns[] = {
    {"text", "ppl", "ppl", "", 1},       {"text", "ppl_prefill", "ppl prefill", "", 1}, {"text", "ppl_decode", "ppl decode", "", 1},
    {"text", "kl", "KL", "nats", 1},     {"text", "top1", "top-1", "%", 100},
};

enum { MAX_COLUMNS = 24, N_TEXT = sizeof text_columns / sizeof *text_columns };

/* The last row of (checkpoint, variant, tp, task, metric); -1 if there is none. A resumed run may hold an older one. */
static long find_row(const csv_table *t, const char *checkpoint, long like, const pivot *p)
{
    long found = -1;
    for (long i = 0; i < csv_table_n_rows(t); i++) {
        bool same = strcmp(csv_table_text(t, i, "model"), checkpoint) == 0 && strcmp(csv_table_text(t, i, "variant"), csv_table_text(t, like, "variant")) == 0 &&
                    strcmp(csv_table_text(t, i, "tp"), csv_table_text(t, like, "tp")) == 0 && strcmp(csv_table_text(t, i, "task"), p->task) == 0 &&
                    strcmp(csv_table_text(t, i, "metric"), p->metric) == 0;
        if (same)
            found = i;
    }
    return found;
}

static bool is_first_of_line(const csv_table *t, const char *checkpoint, long i)
{
    if (strcmp(csv_table_text(t, i, "model"), checkpoint) != 0)
        return false;
    for (long k = 0; k < i; k++)
        if (strcmp(csv_table_text(t, k, "model"), checkpoint) == 0 && strcmp(csv_table_text(t, k, "variant"), csv_table_text(t, i, "variant")) == 0 &&
            strcmp(csv_table_text(t, k, "tp"), csv_table_text(t, i, "tp")) == 0)
            return false;
    return true;
}

/* Columns that any row of the model fills: text metrics, then acc of each choice set, then score of each long set. */
static int pick_columns(const csv_table *t, const char *checkpoint, pivot *out)
{
    pivot all[MAX_COLUMNS];
    int n = 0, kept = 0;
    for (int i = 0; i < N_TEXT; i++)
        all[n++] = text_columns[i];
    for (int i = 0; i < ds_n_tasks() && n < MAX_COLUMNS; i++) {
        const ds_task *task = ds_task_at(i);
        if (task->kind != DS_TEXT)
            all[n++] = (pivot){task->name, task->kind == DS_MC ? "acc" : "score", task->column, "%", 100};
    }
    for (int c = 0; c < n; c++)
        for (long i = 0; i < csv_table_n_rows(t); i++)
            if (strcmp(csv_table_text(t, i, "model"), checkpoint) == 0 && strcmp(csv_table_text(t, i, "task"), all[c].task) == 0 &&
                strcmp(csv_table_text(t, i, "metric"), all[c].metric) == 0) {
                out[kept++] = all[c];
                break;
            }
    return kept;
}

static tpl_code short_name(const csv_table *t, long row, arena *a, const char **out, tpl_err *e)
{
    variant v;
    char *name = arena_alloc(a, VARIANT_TEXT);
    TPL_TRY(variant_parse(csv_table_text(t, row, "variant"), &v, e));
    variant_format_short(&v, name);
    *out = name;
    return TPL_OK;
}

/* One line: the variant, tp, each column's value, and the items that changed their answer against the exact variant. */
static tpl_code add_line(table *out, const csv_table *t, const char *checkpoint, long like, const pivot *columns, int n, arena *a, tpl_err *e)
{
    const char *cells[MAX_COLUMNS + 4] = {NULL, csv_table_text(t, like, "tp")};
    TPL_TRY(short_name(t, like, a, &cells[0], e));
    int64_t won = 0, lost = 0;
    bool compared = false;
    for (int c = 0; c < n; c++) {
        long row = find_row(t, checkpoint, like, &columns[c]);
        if (row < 0)
            continue;
        double value;
        TPL_TRY(csv_table_want_real(t, row, "value", &value, e));
        cells[2 + c] = arena_printf(a, "%.17g", value * columns[c].scale);
        if (strcmp(columns[c].metric, "acc") == 0 && *csv_table_text(t, row, "won")) {
            won += strtoll(csv_table_text(t, row, "won"), NULL, 10);
            lost += strtoll(csv_table_text(t, row, "lost"), NULL, 10);
            compared = true;
        }
    }
    cells[2 + n] = compared ? arena_printf(a, "%lld / %lld", (long long)won, (long long)lost) : "";
    table_add_row(out, cells);
    return TPL_OK;
}

/* "88.3 ± 4.2 (86.7)": acc and its standard error in percent, acc_norm in brackets; NULL where the row is not there. */
static tpl_code choice_cell(const csv_table *t, const char *checkpoint, long like, const char *task, arena *a, const char **out, tpl_err *e)
{
    long acc = find_row(t, checkpoint, like, &(pivot){.task = task, .metric = "acc"}), norm = find_row(t, checkpoint, like, &(pivot){.task = task, .metric = "acc_norm"});
    double value, error = 0, normed;
    if (acc < 0 || norm < 0)
        return TPL_OK;
    TPL_TRY(csv_table_want_real(t, acc, "value", &value, e));
    TPL_TRY(csv_table_want_real(t, norm, "value", &normed, e));
    bool has_error = *csv_table_text(t, acc, "stderr") != 0;
    if (has_error)
        TPL_TRY(csv_table_want_real(t, acc, "stderr", &error, e));
    *out = has_error ? arena_printf(a, "%.1f \u00b1 %.1f (%.1f)", 100 * value, 100 * error, 100 * normed) : arena_printf(a, "%.1f (%.1f)", 100 * value, 100 * normed);
    return TPL_OK;
}

/* The choice sets once more, with what the first table has no room for. Nothing where no choice set was measured. */
static tpl_code print_choices(const csv_table *t, const char *checkpoint, const pivot *columns, int n, table_format format, FILE *out, arena *a, tpl_err *e)
{
    const char *tasks[MAX_COLUMNS];
    int kept = 0;
    table *lines = table_create(arena_printf(a, "Choice sets of %s: acc \u00b1 standard error (acc_norm)", checkpoint));
    table_add_column(lines, "variant", "variant", "", RS_TEXT);
    table_add_column(lines, "tp", "tp", "", RS_INT);
    for (int c = 0; c < n; c++) {
        if (strcmp(columns[c].metric, "acc") != 0)
            continue;
        table_add_column(lines, columns[c].task, columns[c].heading, "%", RS_TEXT);
        tasks[kept++] = columns[c].task;
    }
    tpl_code rc = TPL_OK;
    for (long i = 0; i < csv_table_n_rows(t) && kept && rc == TPL_OK; i++) {
        if (!is_first_of_line(t, checkpoint, i))
            continue;
        const char *cells[MAX_COLUMNS + 4] = {NULL, csv_table_text(t, i, "tp")};
        rc = short_name(t, i, a, &cells[0], e);
        for (int c = 0; c < kept && rc == TPL_OK; c++)
            rc = choice_cell(t, checkpoint, i, tasks[c], a, &cells[2 + c], e);
        if (rc == TPL_OK)
            table_add_row(lines, cells);
    }
    if (rc == TPL_OK && kept) {
        fputc('\n', out);
        rc = table_print(lines, format, out, e);
    }
    table_destroy(lines);
    return rc;
}

/* How much of each set was taken: "text first 4 rows of 2048 tokens; arc first 60". */
static void print_subsets(const csv_table *t, const char *checkpoint, const pivot *columns, int n, FILE *out)
{
    fputs("Items:", out);
    for (int c = 0; c < n; c++) {
        if (c > 0 && strcmp(columns[c].task, columns[c - 1].task) == 0)
            continue;
        for (long i = 0; i < csv_table_n_rows(t); i++) {
            if (strcmp(csv_table_text(t, i, "model"), checkpoint) != 0 || strcmp(csv_table_text(t, i, "task"), columns[c].task) != 0)
                continue;
            fprintf(out, "%s %s %s (n_items %s)", c ? ";" : "", columns[c].task, csv_table_text(t, i, "subset"), csv_table_text(t, i, "n_items"));
            break;
        }
    }
    fputs(".\n", out);
}

static tpl_code print_pivot(const csv_table *t, const char *checkpoint, table_format format, FILE *out, tpl_err *e)
{
    arena a;
    pivot columns[MAX_COLUMNS];
    int n = pick_columns(t, checkpoint, columns);
    arena_init(&a);
    table *lines = table_create(arena_printf(&a, "Accuracy of %s", checkpoint));
    table_add_column(lines, "variant", "variant", "", RS_TEXT);
    table_add_column(lines, "tp", "tp", "", RS_INT);
    for (int c = 0; c < n; c++)
        table_add_column(lines, arena_printf(&a, "%s_%s", columns[c].task, columns[c].metric), columns[c].heading, columns[c].unit, RS_REAL);
    table_add_column(lines, "won_lost", "won / lost", "items", RS_TEXT);
    tpl_code rc = TPL_OK;
    for (long i = 0; i < csv_table_n_rows(t) && rc == TPL_OK; i++)
        if (is_first_of_line(t, checkpoint, i))
            rc = add_line(lines, t, checkpoint, i, columns, n, &a, e);
    if (rc == TPL_OK)
        rc = table_print(lines, format, out, e);
    if (rc == TPL_OK)
        rc = print_choices(t, checkpoint, columns, n, format, out, &a, e);
    if (rc == TPL_OK)
        print_subsets(t, checkpoint, columns, n, out);
    table_destroy(lines);
    arena_fini(&a);
    return rc;
}

tpl_code accuracy_table_print(const run_dir *rd, const char *checkpoint, table_format format, FILE *out, tpl_err *e)
{
    arena a;
    csv_table *csv = NULL;
    table *rows = NULL;
    arena_init(&a);
    tpl_code rc = csv_table_load(text_path_join(&a, rd_path(rd), rs_kind_file(RS_ACCURACY)), &csv, e);
    arena_fini(&a);
    if (rc != TPL_OK)
        return rc;
    if (format == TABLE_ALIGNED || format == TABLE_MD) {
        rc = print_pivot(csv, checkpoint, format, out, e);
    } else {
        rc = table_from_csv(NULL, NULL, RS_ACCURACY, csv, &rows, e);
        if (rc == TPL_OK)
            rc = table_print(rows, format, out, e);
        table_destroy(rows);
    }
    csv_table_destroy(csv);
    return rc;
}
