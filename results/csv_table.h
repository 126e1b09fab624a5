/* csv_table.h - a CSV file with a header line, read whole, cells looked up by column name.
 * For:    resuming runs, published tables, comparing runs, any CSV a user hands in.
 * Enter:  all rooms above results/.
 * Owns:   csv_table_load() and csv_table_parse() give a table (csv_table_destroy). Cells are borrowed from it.
 * Fails:  TPL_E_INPUT with "file:line" for ragged rows, stray or open quotes, NUL bytes, bytes that are not UTF-8,
 *         missing, empty or doubled column names, and files beyond the limits below. */
#ifndef TPL_RESULTS_CSV_TABLE_H
#define TPL_RESULTS_CSV_TABLE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

#define CSV_MAX_BYTES ((size_t)128 << 20)
enum { CSV_MAX_COLUMNS = 1024 };

typedef struct csv_table csv_table;

tpl_code csv_table_load(const char *path, csv_table **out, tpl_err *e);
tpl_code csv_table_parse(const char *bytes, size_t n, const char *where, csv_table **out, tpl_err *e);

/* For files whose writer may have died: what follows the last whole row (a line feed outside quotes ends one) is left
 * out, and *good_bytes is the length of what was read. A file without even a whole header gives *out = NULL. */
tpl_code csv_table_load_torn(const char *path, csv_table **out, size_t *good_bytes, tpl_err *e);

void csv_table_destroy(csv_table *t);

int csv_table_n_columns(const csv_table *t);
long csv_table_n_rows(const csv_table *t);
const char *csv_table_name(const csv_table *t, int column);
int csv_table_find(const csv_table *t, const char *name); /* -1 where there is no such column */
/* column may be -1 (csv_table_find's answer): gives "". */
const char *csv_table_cell(const csv_table *t, long row, int column);
const char *csv_table_text(const csv_table *t, long row, const char *name); /* "" where there is no such column */

/* A number by name. TPL_E_INPUT with file:line where the column is absent or the cell holds no number. */
tpl_code csv_table_want_real(const csv_table *t, long row, const char *name, double *out, tpl_err *e);
tpl_code csv_table_want_int(const csv_table *t, long row, const char *name, int64_t *out, tpl_err *e);

/* "file:line" of a row, for messages. */
typedef struct {
    char s[160];
} csv_place;
csv_place csv_table_place(const csv_table *t, long row);

#endif
