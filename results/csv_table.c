#include "results/csv_table.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include <csv.h>

#include "base/text.h"
#include "results/real_text.h"
#include "results/utf8.h"

struct csv_table {
    char *where;   /* file, for messages */
    text_buf pool; /* cells, each 0-terminated */
    uint32_t *at;  /* [n_cells] offsets into pool; the header's cells first */
    size_t n_cells, cells_cap;
    long *line; /* [n_rows + 1] first line of each row, the header's first */
    size_t lines_cap;
    int n_columns;
    long n_rows;
};

/* ---- look-ups ---- */

int csv_table_n_columns(const csv_table *t)
{
    return t->n_columns;
}

long csv_table_n_rows(const csv_table *t)
{
    return t->n_rows;
}

const char *csv_table_name(const csv_table *t, int column)
{
    assert(column >= 0 && column < t->n_columns);
    return t->pool.data + t->at[column];
}

int csv_table_find(const csv_table *t, const char *name)
{
    for (int i = 0; i < t->n_columns; i++)
        if (!strcmp(csv_table_name(t, i), name))
            return i;
    return -1;
}

const char *csv_table_cell(const csv_table *t, long row, int column)
{
    assert(row >= 0 && row < t->n_rows && column < t->n_columns);
    if (column < 0)
        return "";
    return t->pool.data + t->at[(size_t)(row + 1) * (size_t)t->n_columns + (size_t)column];
}

const char *csv_table_text(const csv_table *t, long row, const char *name)
{
    return csv_table_cell(t, row, csv_table_find(t, name));
}

static csv_place make_place(const char *file, long line)
{
    csv_place p;
    size_t n = strlen(file), most = sizeof p.s - 24;
    snprintf(p.s, sizeof p.s, "%s%s:%ld", n > most ? "..." : "", n > most ? file + n - most : file, line);
    return p;
}

csv_place csv_table_place(const csv_table *t, long row)
{
    return make_place(t->where, t->line[row + 1]);
}

static tpl_code want_cell(const csv_table *t, long row, const char *name, const char **out, tpl_err *e)
{
    int column = csv_table_find(t, name);
    if (column < 0)
        return tpl_fail(e, TPL_E_INPUT, t->where, "has no column '%s'", name);
    *out = csv_table_cell(t, row, column);
    return TPL_OK;
}

tpl_code csv_table_want_real(const csv_table *t, long row, const char *name, double *out, tpl_err *e)
{
    const char *s = "";
    TPL_TRY(want_cell(t, row, name, &s, e));
    if (!real_from_text(s, out))
        return tpl_fail(e, TPL_E_INPUT, csv_table_place(t, row).s, "column '%s' is '%s', expected a number", name, s);
    return TPL_OK;
}

tpl_code csv_table_want_int(const csv_table *t, long row, const char *name, int64_t *out, tpl_err *e)
{
    const char *s = "";
    TPL_TRY(want_cell(t, row, name, &s, e));
    if (!text_parse_i64(s, out))
        return tpl_fail(e, TPL_E_INPUT, csv_table_place(t, row).s, "column '%s' is '%s', expected a whole number", name,
                        s);
    return TPL_OK;
}

/* ---- parsing ---- */

typedef struct {
    csv_table *t;
    long line;      /* of the bytes being fed, from 1 */
    long row_line;  /* where the current row began */
    int n_in_row;   /* cells of the current row so far */
    bool row_ended; /* by the bytes just fed */
    bool between;   /* the next byte begins a row */
    tpl_code rc;    /* first failure; later callbacks do nothing */
    tpl_err *e;
} parse_state;

static void fail_row(parse_state *p, const char *what, int column)
{
    p->rc = tpl_fail(p->e, TPL_E_INPUT, make_place(p->t->where, p->row_line).s, "column %d %s", column, what);
}

static void add_cell(csv_table *t, const char *s, size_t n)
{
    if (t->n_cells == t->cells_cap) {
        t->cells_cap = t->cells_cap ? 2 * t->cells_cap : 256;
        t->at = tpl_realloc(t->at, t->cells_cap * sizeof *t->at);
    }
    t->at[t->n_cells++] = (uint32_t)t->pool.len;
    text_add(&t->pool, s, n);
    text_add(&t->pool, "", 1);
}

static void on_cell(void *data, size_t n, void *user)
{
    parse_state *p = user;
    if (p->rc)
        return;
    p->n_in_row++;
    int most = p->t->n_columns ? p->t->n_columns : CSV_MAX_COLUMNS;
    if (p->n_in_row > most)
        p->rc = tpl_fail(p->e, TPL_E_INPUT, make_place(p->t->where, p->row_line).s, "row has more than %d cells%s",
                         most, p->t->n_columns ? ", the number of columns" : "");
    else if (n && memchr(data, 0, n))
        fail_row(p, "holds a NUL byte", p->n_in_row);
    else if (n && !utf8_is_valid(data, n))
        fail_row(p, "is not UTF-8", p->n_in_row);
    else
        add_cell(p->t, data, n);
}

static void end_header(parse_state *p)
{
    csv_table *t = p->t;
    t->n_columns = p->n_in_row;
    for (int i = 0; i < t->n_columns && !p->rc; i++) {
        if (!*csv_table_name(t, i))
            fail_row(p, "has no name", i + 1);
        else if (csv_table_find(t, csv_table_name(t, i)) != i)
            fail_row(p, "has a name that came before", i + 1);
    }
}

static void on_row(int terminator, void *user)
{
    parse_state *p = user;
    csv_table *t = p->t;
    if (p->rc)
        return;
    p->row_ended = true;
    size_t n = (size_t)t->n_rows + (t->n_columns ? 1 : 0);
    if (n == t->lines_cap) {
        t->lines_cap = t->lines_cap ? 2 * t->lines_cap : 64;
        t->line = tpl_realloc(t->line, t->lines_cap * sizeof *t->line);
    }
    t->line[n] = p->row_line;
    if (!t->n_columns)
        end_header(p);
    else if (p->n_in_row != t->n_columns)
        p->rc = tpl_fail(p->e, TPL_E_INPUT, make_place(t->where, p->row_line).s, "row has %d cells, expected %d",
                         p->n_in_row, t->n_columns);
    else
        t->n_rows++;
    p->n_in_row = 0;
}

/* libcsv gives no row for a line of nothing but blanks. */
static bool is_blank(const char *s, size_t n)
{
    size_t i = 0;
    while (i < n && strchr(" \t\r\n", s[i]) && s[i])
        i++;
    return i == n;
}

/* Feeds one physical line. */
static tpl_code feed_line(parse_state *p, struct csv_parser *csv, const char *s, size_t n)
{
    if (p->between)
        p->row_line = p->line;
    p->row_ended = false;
    size_t taken = csv_parse(csv, s, n, on_cell, on_row, p);
    if (!p->rc && taken != n)
        p->rc = tpl_fail(p->e, TPL_E_INPUT, make_place(p->t->where, p->line).s, "%s",
                         csv_error(csv) == CSV_EPARSE ? "a quote stands where none may" : csv_strerror(csv_error(csv)));
    p->between = p->row_ended || (p->between && is_blank(s, n));
    p->line++;
    return p->rc;
}

/* Feeds all lines that end in a line feed; *good is the end of the last that ended a row. Unless torn, feeds the rest.
 */
static tpl_code feed_all(parse_state *p, struct csv_parser *csv, const char *s, size_t n, bool torn, size_t *good)
{
    size_t at = 0;
    for (const char *end; at < n && (end = memchr(s + at, '\n', n - at));) {
        size_t next = (size_t)(end - s) + 1;
        TPL_TRY(feed_line(p, csv, s + at, next - at));
        at = next;
        if (p->between)
            *good = at;
    }
    if (torn)
        return TPL_OK;
    if (at < n)
        TPL_TRY(feed_line(p, csv, s + at, n - at));
    if (csv_fini(csv, on_cell, on_row, p) != 0 && !p->rc)
        p->rc = tpl_fail(p->e, TPL_E_INPUT, make_place(p->t->where, p->row_line).s, "row ends inside a quoted cell");
    return p->rc;
}

static tpl_code parse(const char *s, size_t n, const char *where, bool torn, size_t *good, csv_table **out, tpl_err *e)
{
    struct csv_parser csv;
    size_t mark = n >= 3 && !memcmp(s, "\xef\xbb\xbf", 3) ? 3 : 0; /* byte order mark */
    parse_state p = {.t = tpl_calloc(1, sizeof *p.t), .line = 1, .row_line = 1, .between = true, .e = e};
    p.t->where = tpl_strdup(where);
    csv_init(&csv, CSV_STRICT | CSV_STRICT_FINI);
    if (n > CSV_MAX_BYTES)
        p.rc = tpl_fail(e, TPL_E_INPUT, where, "has %zu bytes, expected at most %zu", n, CSV_MAX_BYTES);
    else
        p.rc = feed_all(&p, &csv, s + mark, n - mark, torn, good);
    csv_free(&csv);
    if (!p.rc && !p.t->n_columns && !torn)
        p.rc = tpl_fail(e, TPL_E_INPUT, where, "is empty, expected a line of column names");
    if (p.rc || !p.t->n_columns) {
        csv_table_destroy(p.t);
        p.t = NULL;
    }
    if (!p.rc) {
        *out = p.t;
        *good = *good ? *good + mark : 0;
    }
    return p.rc;
}

void csv_table_destroy(csv_table *t)
{
    if (!t)
        return;
    free(t->where);
    free(t->at);
    free(t->line);
    text_fini(&t->pool);
    free(t);
}

tpl_code csv_table_parse(const char *bytes, size_t n, const char *where, csv_table **out, tpl_err *e)
{
    size_t good = 0;
    return parse(bytes, n, where, false, &good, out, e);
}

static tpl_code load(const char *path, bool torn, size_t *good, csv_table **out, tpl_err *e)
{
    struct stat st;
    if (stat(path, &st) != 0)
        return tpl_fail(e, TPL_E_IO, path, "cannot open: %s", strerror(errno));
    if (!S_ISREG(st.st_mode))
        return tpl_fail(e, TPL_E_INPUT, path, "is not a regular file");
    if ((uint64_t)st.st_size > CSV_MAX_BYTES)
        return tpl_fail(e, TPL_E_INPUT, path, "has %llu bytes, expected at most %zu", (unsigned long long)st.st_size,
                        CSV_MAX_BYTES);
    char *bytes;
    size_t n;
    TPL_TRY(text_read_file(path, &bytes, &n, e));
    tpl_code rc = parse(bytes, n, path, torn, good, out, e);
    free(bytes);
    return rc;
}

tpl_code csv_table_load(const char *path, csv_table **out, tpl_err *e)
{
    size_t good = 0;
    return load(path, false, &good, out, e);
}

tpl_code csv_table_load_torn(const char *path, csv_table **out, size_t *good_bytes, tpl_err *e)
{
    size_t good = 0;
    csv_table *t = NULL;
    TPL_TRY(load(path, true, &good, &t, e));
    *out = t;
    *good_bytes = good;
    return TPL_OK;
}
