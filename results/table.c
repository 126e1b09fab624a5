#include "results/table.h"

#include <assert.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/text.h"
#include "results/csv_line.h"
#include "results/utf8.h"

enum { WIDEST = 48 }; /* code points of a cell in an aligned table; longer ones end in "..." */

typedef struct {
    const char *name, *heading, *unit;
    rs_type type;
} column;

struct table {
    arena text; /* names and cells */
    char *title;
    column *columns;
    const char **cells; /* [n_rows, n_columns] */
    int n_columns;
    long n_rows;
    size_t cells_cap;
};

void table_skip_rows(table *t, long n)
{
    n = n < t->n_rows ? n : t->n_rows;
    memmove(t->cells, t->cells + n * t->n_columns, sizeof *t->cells * (size_t)((t->n_rows - n) * t->n_columns));
    t->n_rows -= n;
}

void table_map_text(table *t, const char *name, const char *(*map)(const char *cell))
{
    for (int c = 0; c < t->n_columns; c++) {
        if (strcmp(t->columns[c].name, name) != 0)
            continue;
        for (long i = 0; i < t->n_rows; i++) {
            const char **cell = &t->cells[i * t->n_columns + c];
            const char *mapped = *cell ? map(*cell) : NULL;
            if (mapped)
                *cell = arena_strdup(&t->text, mapped);
        }
    }
}

bool table_format_find(const char *name, table_format *out)
{
    static const char *const names[] = {
#define FORMAT_NAME(id, name) #name,
        TABLE_FORMAT_LIST(FORMAT_NAME)};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        if (!strcmp(names[i], name)) {
            *out = (table_format)i;
            return true;
        }
    }
    return false;
}

/* ---- making ---- */

/* In the table's arena; "" for NULL. */
static const char *keep_text(table *t, const char *s)
{
    if (!s || !*s)
        return "";
    text_buf clean = {0};
    utf8_add_clean(&clean, s);
    const char *kept = arena_strdup(&t->text, clean.data);
    text_fini(&clean);
    return kept;
}

table *table_create(const char *title)
{
    table *t = tpl_calloc(1, sizeof *t);
    arena_init(&t->text);
    t->title = title ? tpl_strdup(title) : NULL;
    return t;
}

void table_destroy(table *t)
{
    if (!t)
        return;
    arena_fini(&t->text);
    free(t->title);
    free(t->columns);
    free(t->cells);
    free(t);
}

void table_add_column(table *t, const char *name, const char *heading, const char *unit, rs_type type)
{
    assert(t->n_rows == 0);
    t->columns = tpl_realloc(t->columns, (size_t)(t->n_columns + 1) * sizeof *t->columns);
    t->columns[t->n_columns++] = (column){keep_text(t, name), keep_text(t, heading), keep_text(t, unit), type};
}

void table_add_row(table *t, const char *const *cells)
{
    size_t at = (size_t)t->n_rows * (size_t)t->n_columns, need = at + (size_t)t->n_columns;
    if (need > t->cells_cap) {
        t->cells_cap = 2 * need;
        t->cells = tpl_realloc(t->cells, t->cells_cap * sizeof *t->cells);
    }
    for (int i = 0; i < t->n_columns; i++)
        t->cells[at + (size_t)i] = keep_text(t, cells[i]);
    t->n_rows++;
}

static const char *cell_at(const table *t, long row, int col)
{
    return t->cells[(size_t)row * (size_t)t->n_columns + (size_t)col];
}

/* ---- from rows and files ---- */

typedef struct {
    int source; /* column number there */
    const char *heading;
} pick;

/* Where columns come from: the schema's kind, or a file of no kind. */
typedef struct {
    int kind; /* -1: none */
    const csv_table *csv;
} origin;

static int origin_n_columns(const origin *o)
{
    return o->csv ? csv_table_n_columns(o->csv) : rs_n_columns(o->kind);
}

static const char *origin_name(const origin *o, int i)
{
    return o->csv ? csv_table_name(o->csv, i) : rs_columns(o->kind)[i].name;
}

static int origin_find(const origin *o, const char *name)
{
    return o->csv ? csv_table_find(o->csv, name) : rs_column_find(o->kind, name);
}

static rs_type guess_type(const csv_table *csv, int col)
{
    bool any = false;
    double v;
    for (long i = 0; i < csv_table_n_rows(csv); i++) {
        const char *s = csv_table_cell(csv, i, col);
        if (*s && !real_from_text(s, &v))
            return RS_TEXT;
        any |= *s != 0;
    }
    return any ? RS_REAL : RS_TEXT;
}

/* NULL where the schema does not know the column; the common columns it knows in any file. */
static const rs_column *schema_column(const origin *o, const char *name)
{
    rs_kind kind = o->kind >= 0 ? (rs_kind)o->kind : RS_ACCURACY;
    int i = rs_column_find(kind, name);
    return i >= 0 && (o->kind >= 0 || i < RS_N_COMMON) ? &rs_columns(kind)[i] : NULL;
}

static void add_picked_column(table *t, const origin *o, const pick *p)
{
    const char *name = origin_name(o, p->source);
    const rs_column *c = schema_column(o, name);
    table_add_column(t, name, p->heading, c ? c->unit : "", c ? c->type : guess_type(o->csv, p->source));
}

static tpl_code read_picks(arena *a, const char *picks, const origin *o, pick **out, int *n, tpl_err *e)
{
    char **parts;
    *n = picks ? text_split(a, picks, ',', &parts) : origin_n_columns(o);
    if (*n == 0)
        return tpl_fail(e, TPL_E_USAGE, "columns", "no column is named");
    *out = arena_array(a, pick, *n);
    for (int i = 0; i < *n; i++) {
        if (!picks) {
            (*out)[i] = (pick){i, origin_name(o, i)};
            continue;
        }
        char *heading = strchr(parts[i], '=');
        if (heading)
            *heading++ = 0;
        int source = origin_find(o, parts[i]);
        if (source < 0)
            return tpl_fail(e, TPL_E_USAGE, "columns", "there is no column '%s'", parts[i]);
        (*out)[i] = (pick){source, heading ? heading : parts[i]};
    }
    return TPL_OK;
}

static const char *source_cell(const origin *o, const rs_row *const *rows, long i, int source)
{
    return o->csv ? csv_table_cell(o->csv, i, source) : row_get(rows[i], source);
}

static tpl_code make_table(const char *title, const char *picks, const origin *o, const rs_row *const *rows, long n,
                           table **out, tpl_err *e)
{
    arena a;
    pick *picked = NULL;
    int n_picked = 0;
    arena_init(&a);
    tpl_code rc = read_picks(&a, picks, o, &picked, &n_picked, e);
    if (rc == TPL_OK) {
        table *t = table_create(title);
        const char **cells = arena_array(&a, const char *, n_picked);
        for (int c = 0; c < n_picked; c++)
            add_picked_column(t, o, &picked[c]);
        for (long i = 0; i < n; i++) {
            for (int c = 0; c < n_picked; c++)
                cells[c] = source_cell(o, rows, i, picked[c].source);
            table_add_row(t, cells);
        }
        *out = t;
    }
    arena_fini(&a);
    return rc;
}

tpl_code table_from_rows(const char *title, const char *picks, rs_kind kind, const rs_row *const *rows, int n,
                         table **out, tpl_err *e)
{
    origin o = {.kind = (int)kind};
    for (int i = 0; i < n; i++)
        assert(rows[i]->kind == kind);
    return make_table(title, picks, &o, rows, n, out, e);
}

tpl_code table_from_csv(const char *title, const char *picks, int kind, const csv_table *csv, table **out, tpl_err *e)
{
    origin o = {.kind = kind, .csv = csv};
    return make_table(title, picks, &o, NULL, csv_table_n_rows(csv), out, e);
}

/* ---- aligned and Markdown ---- */

real_text table_round(double v)
{
    real_text t = {""};
    double size = fabs(v);
    if (!isfinite(v) || v == 0)
        return v == 0 ? (real_text){"0"} : real_to_text(v);
    if (size < 1e7 && v == floor(v)) {
        snprintf(t.s, sizeof t.s, "%.0f", v);
        return t;
    }
    int whole = (int)floor(log10(size)) + 1;
    if (whole > 7 || whole < -3)
        snprintf(t.s, sizeof t.s, "%.3e", v);
    else
        snprintf(t.s, sizeof t.s, "%.*f", whole >= 4 ? 0 : 4 - whole, v);
    return t;
}

static int text_width(const char *s)
{
    int n = 0;
    for (; *s; s++)
        n += (*s & 0xc0) != 0x80;
    return n;
}

/* Adds s with control characters as blanks, so that a cell stays on its line and cannot steer a terminal. */
static void add_visible(text_buf *b, const char *s, int most)
{
    int n = 0, width = text_width(s), kept = width > most ? most - 3 : width;
    for (; *s; s++) {
        n += (*s & 0xc0) != 0x80;
        if (n > kept)
            break;
        bool control =
            (unsigned char)*s < 0x20 || *s == 0x7f || ((unsigned char)s[0] == 0xc2 && (unsigned char)s[1] < 0xa0);
        text_add(b, control ? " " : s, 1);
        s += control && (unsigned char)*s == 0xc2;
    }
    if (width > most)
        text_add(b, "...", 3);
}

static void add_padded(text_buf *line, const char *s, int width, bool right)
{
    int gap = width - text_width(s);
    text_addf(line, "%*s%s%*s", right ? gap : 0, "", s, right ? 0 : gap, "");
}

/* In the arena. */
static const char *shown_text(arena *a, const char *s, int most)
{
    text_buf b = {0};
    add_visible(&b, s, most);
    const char *shown = arena_strdup(a, b.data ? b.data : "");
    text_fini(&b);
    return shown;
}

static const char *shown_cell(arena *a, const column *c, const char *s, const char *empty, int most)
{
    double v;
    if (!*s)
        return empty;
    if (c->type == RS_REAL && real_from_text(s, &v))
        return arena_strdup(a, table_round(v).s);
    return shown_text(a, s, most);
}

static bool has_units(const table *t)
{
    for (int i = 0; i < t->n_columns; i++)
        if (*t->columns[i].unit)
            return true;
    return false;
}

static void end_line(text_buf *out, text_buf *line)
{
    while (line->len > 0 && line->data[line->len - 1] == ' ')
        line->data[--line->len] = 0;
    text_addf(out, "%s\n", line->data);
    text_fini(line);
}

/* cells [n_columns], shown as they are. */
static void add_aligned_line(text_buf *out, const table *t, const char *const *cells, const int *widths)
{
    text_buf line = {0};
    for (int i = 0; i < t->n_columns; i++) {
        text_addf(&line, "%s", i ? "  " : "");
        add_padded(&line, cells[i], widths[i], t->columns[i].type != RS_TEXT);
    }
    end_line(out, &line);
}

static void add_rule(text_buf *out, const table *t, const int *widths)
{
    text_buf line = {0};
    for (int i = 0; i < t->n_columns; i++) {
        text_addf(&line, "%s", i ? "  " : "");
        for (int n = 0; n < widths[i]; n++)
            text_add(&line, "-", 1);
    }
    end_line(out, &line);
}

static void print_aligned(const table *t, text_buf *out)
{
    arena a;
    arena_init(&a);
    size_t n = (size_t)t->n_columns, lines = (size_t)t->n_rows + 2; /* headings, units, rows */
    const char **shown = arena_array(&a, const char *, n *lines + 1);
    int *widths = arena_array(&a, int, n + 1);
    for (size_t l = 0; l < lines; l++) {
        for (size_t i = 0; i < n; i++) {
            const column *c = &t->columns[i];
            const char *s = l == 0   ? shown_text(&a, c->heading, WIDEST)
                            : l == 1 ? c->unit
                                     : shown_cell(&a, c, cell_at(t, (long)l - 2, (int)i), "-", WIDEST);
            shown[l * n + i] = s;
            widths[i] = text_width(s) > widths[i] ? text_width(s) : widths[i];
        }
    }
    if (t->title)
        text_addf(out, "%s\n", t->title);
    add_aligned_line(out, t, shown, widths);
    if (has_units(t))
        add_aligned_line(out, t, shown + n, widths);
    add_rule(out, t, widths);
    for (size_t l = 2; l < lines; l++)
        add_aligned_line(out, t, shown + l * n, widths);
    arena_fini(&a);
}

static void add_md_cell(text_buf *out, const char *s)
{
    text_addf(out, " ");
    for (; *s; s++)
        text_addf(out, *s == '|' ? "\\%c" : "%c", *s);
    text_addf(out, " |");
}

static void print_md(const table *t, text_buf *out)
{
    arena a;
    arena_init(&a);
    if (t->title)
        text_addf(out, "%s\n\n", t->title);
    text_addf(out, "|");
    for (int i = 0; i < t->n_columns; i++) {
        const column *c = &t->columns[i];
        const char *heading = shown_text(&a, c->heading, INT32_MAX);
        add_md_cell(out, *c->unit ? arena_printf(&a, "%s (%s)", heading, c->unit) : heading);
    }
    text_addf(out, "\n|");
    for (int i = 0; i < t->n_columns; i++)
        text_addf(out, t->columns[i].type == RS_TEXT ? "---|" : "---:|");
    for (long r = 0; r < t->n_rows; r++) {
        text_addf(out, "\n|");
        for (int i = 0; i < t->n_columns; i++)
            add_md_cell(out, shown_cell(&a, &t->columns[i], cell_at(t, r, i), "", INT32_MAX));
    }
    text_addf(out, "\n");
    arena_fini(&a);
}

/* ---- CSV and JSON ---- */

static void print_csv(const table *t, text_buf *out)
{
    const char **names = tpl_calloc((size_t)t->n_columns + 1, sizeof *names);
    for (int i = 0; i < t->n_columns; i++)
        names[i] = t->columns[i].name;
    csv_add_line(out, names, t->n_columns);
    for (long r = 0; r < t->n_rows; r++)
        csv_add_line(out, t->cells + (size_t)r * (size_t)t->n_columns, t->n_columns);
    free(names);
}

static void add_json_text(text_buf *out, const char *s)
{
    json_t *v = json_string(s);
    char *quoted = json_dumps(v, JSON_ENCODE_ANY);
    text_addf(out, "%s", quoted ? quoted : "null");
    free(quoted);
    json_decref(v);
}

static void add_json_cell(text_buf *out, const column *c, const char *s)
{
    int64_t i;
    double v;
    if (!*s)
        text_addf(out, "null");
    else if (c->type == RS_INT && text_parse_i64(s, &i))
        text_addf(out, "%lld", (long long)i);
    else if (c->type == RS_REAL && real_from_text(s, &v) && isfinite(v))
        text_addf(out, "%s", real_to_text(v).s);
    else
        add_json_text(out, s);
}

static void print_json(const table *t, text_buf *out, bool lines)
{
    text_addf(out, "%s", lines ? "" : "[");
    for (long r = 0; r < t->n_rows; r++) {
        text_addf(out, "%s{", lines || r == 0 ? "" : ",\n ");
        for (int i = 0; i < t->n_columns; i++) {
            text_addf(out, "%s", i ? ", " : "");
            add_json_text(out, t->columns[i].name);
            text_addf(out, ": ");
            add_json_cell(out, &t->columns[i], cell_at(t, r, i));
        }
        text_addf(out, "}%s", lines ? "\n" : "");
    }
    text_addf(out, "%s", lines ? "" : "]\n");
}

tpl_code table_print(const table *t, table_format format, FILE *out, tpl_err *e)
{
    text_buf b = {0};
    assert(t->n_columns > 0);
    switch (format) {
    case TABLE_ALIGNED:
        print_aligned(t, &b);
        break;
    case TABLE_MD:
        print_md(t, &b);
        break;
    case TABLE_CSV:
        print_csv(t, &b);
        break;
    case TABLE_JSON:
    case TABLE_JSONL:
        print_json(t, &b, format == TABLE_JSONL);
        break;
    }
    bool ok = fwrite(b.data, 1, b.len, out) == b.len && fflush(out) == 0;
    int why = errno;
    text_fini(&b);
    return ok ? TPL_OK : tpl_fail(e, TPL_E_IO, "output", "cannot write: %s", strerror(why));
}
