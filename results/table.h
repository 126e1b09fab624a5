/* table.h - result rows as people and programs read them: aligned columns, Markdown, CSV, JSON, JSON lines.
 * For:    what commands print, `--format`, reports.
 * Enter:  all rooms above results/.
 * Owns:   table_create(), table_from_rows() and table_from_csv() give a table (table_destroy); it copies its cells.
 * Fails:  TPL_E_USAGE where a picked column does not exist, TPL_E_IO where the output takes no more. */
#ifndef TPL_RESULTS_TABLE_H
#define TPL_RESULTS_TABLE_H

#include <stdio.h>

#include "results/csv_table.h"
#include "results/real_text.h"
#include "results/row.h"

/* enum, name on the command line */
#define TABLE_FORMAT_LIST(X)                                                                                           \
    X(TABLE_ALIGNED, table)                                                                                            \
    X(TABLE_CSV, csv)                                                                                                  \
    X(TABLE_JSON, json)                                                                                                \
    X(TABLE_JSONL, jsonl)                                                                                              \
    X(TABLE_MD, md)

typedef enum {
#define TABLE_FORMAT_ENUM(id, name) id,
    TABLE_FORMAT_LIST(TABLE_FORMAT_ENUM)
#undef TABLE_FORMAT_ENUM
} table_format;

bool table_format_find(const char *name, table_format *out);

typedef struct table table;

/* title may be NULL. */
table *table_create(const char *title);
void table_destroy(table *t);
/* All columns come before the first row. Unit may be "". */
void table_add_column(table *t, const char *name, const char *heading, const char *unit, rs_type type);
/* cells [columns]; numbers in full precision, NULL or "" where there is none. */
void table_add_row(table *t, const char *const *cells);

/* picks: "model,variant,value=perplexity": columns in order, a heading of its own after '='; NULL takes all columns.
 * Types and units are the schema's. All rows are of this kind. */
tpl_code table_from_rows(const char *title, const char *picks, rs_kind kind, const rs_row *const *rows, int n,
                         table **out, tpl_err *e);
/* kind -1: not one of the schema's files; a column is then numeric where all its cells are. */
tpl_code table_from_csv(const char *title, const char *picks, int kind, const csv_table *csv, table **out, tpl_err *e);

/* Leaves the first n rows out. */
void table_skip_rows(table *t, long n);

/* Rewrites a text column's cells for reading; `map` gives a string that it keeps alive until the next call, or NULL to leave a
 * cell alone. Nothing happens where there is no such column. */
void table_map_text(table *t, const char *name, const char *(*map)(const char *cell));

/* Numbers are rounded to four significant digits in TABLE_ALIGNED and TABLE_MD and complete in all other formats. In
 * JSON an empty cell is null and a number that JSON cannot hold (nan, inf) is text. */
tpl_code table_print(const table *t, table_format format, FILE *out, tpl_err *e);

/* Four significant digits, but whole numbers and whole parts below ten million keep all of theirs. */
real_text table_round(double v);

#endif
