#include "results/row.h"

#include <assert.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "results/real_text.h"
#include "results/utf8.h"

void row_init(rs_row *r, rs_kind kind)
{
    *r = (rs_row){.kind = kind};
}

void row_fini(rs_row *r)
{
    for (int i = 0; i < RS_MAX_COLUMNS; i++)
        free(r->cell[i]);
    *r = (rs_row){.kind = r->kind};
}

static rs_type column_type(const rs_row *r, int column)
{
    assert(column >= 0 && column < rs_n_columns(r->kind));
    return rs_columns(r->kind)[column].type;
}

/* Takes text. */
static void replace_cell(rs_row *r, int column, char *text)
{
    free(r->cell[column]);
    r->cell[column] = text;
}

void row_set_text(rs_row *r, int column, const char *text)
{
    assert(column_type(r, column) == RS_TEXT);
    text_buf clean = {0};
    if (text && *text)
        utf8_add_clean(&clean, text);
    replace_cell(r, column, clean.data);
}

void row_set_int(rs_row *r, int column, int64_t v)
{
    assert(column_type(r, column) != RS_TEXT);
    char s[32];
    snprintf(s, sizeof s, "%" PRId64, v);
    replace_cell(r, column, tpl_strdup(s));
}

void row_set_real(rs_row *r, int column, double v)
{
    assert(column_type(r, column) == RS_REAL);
    replace_cell(r, column, tpl_strdup(real_to_text(v).s));
}

void row_set_status(rs_row *r, rs_status status, const char *reason)
{
    row_set_text(r, RS_status, rs_status_word(status));
    row_set_text(r, RS_reason, reason);
}

tpl_code row_set_named(rs_row *r, const char *name, const char *text, const char *where, tpl_err *e)
{
    int column = rs_column_find(r->kind, name);
    int64_t i;
    double d;
    if (column < 0)
        return tpl_fail(e, TPL_E_INPUT, where, "%s has no column '%s'", rs_kind_file(r->kind), name);
    rs_type type = column_type(r, column);
    if (type == RS_TEXT) {
        row_set_text(r, column, text);
    } else if (!*text) {
        replace_cell(r, column, NULL);
    } else if (type == RS_INT && text_parse_i64(text, &i)) {
        row_set_int(r, column, i);
    } else if (type == RS_REAL && real_from_text(text, &d)) {
        row_set_real(r, column, d);
    } else {
        return tpl_fail(e, TPL_E_INPUT, where, "column '%s' is '%s', expected %s", name, text,
                        type == RS_INT ? "a whole number" : "a number");
    }
    return TPL_OK;
}

const char *row_get(const rs_row *r, int column)
{
    assert(column >= 0 && column < rs_n_columns(r->kind));
    return r->cell[column] ? r->cell[column] : "";
}

/* ---- identity ---- */

static void add_pair(text_buf *b, const char *key, const char *value)
{
    text_addf(b, "%s=", key);
    for (const char *s = value; *s; s++) {
        if (*s == '\\' || *s == '\n')
            text_add(b, "\\", 1);
        text_add(b, *s == '\n' ? "n" : s, 1);
    }
    text_add(b, "\n", 1);
}

typedef struct {
    const char *key, *value;
} config_pair;

static int compare_pairs(const void *a, const void *b)
{
    return strcmp(((const config_pair *)a)->key, ((const config_pair *)b)->key);
}

rs_cell_id row_cell_id(const rs_row *r)
{
    config_pair pairs[RS_MAX_COLUMNS + 1] = {{"table", rs_kind_name(r->kind)}};
    size_t n = 1;
    for (int i = 0; i < rs_n_columns(r->kind); i++)
        if (rs_columns(r->kind)[i].config && r->cell[i])
            pairs[n++] = (config_pair){rs_columns(r->kind)[i].name, r->cell[i]};
    qsort(pairs, n, sizeof *pairs, compare_pairs);
    text_buf canonical = {0};
    for (size_t i = 0; i < n; i++)
        add_pair(&canonical, pairs[i].key, pairs[i].value);
    sha256_hex whole = sha256_bytes(canonical.data, canonical.len);
    text_fini(&canonical);
    rs_cell_id id = {{0}};
    memcpy(id.hex, whole.hex, sizeof id.hex - 1);
    return id;
}

bool cell_id_is_valid(const char *s)
{
    return strlen(s) == 12 && strspn(s, "0123456789abcdef") == 12;
}
