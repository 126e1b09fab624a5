/* row.h - one result row under construction.
 * For:    benches and evaluations fill a row column by column; rd_append() numbers, hashes and writes it.
 * Enter:  all rooms above results/.
 * Owns:   row_init() gives a row that owns its cells until row_fini().
 * Fails:  setting by number never does (a wrong column or type is a bug, asserted); row_set_named() reports. */
#ifndef TPL_RESULTS_ROW_H
#define TPL_RESULTS_ROW_H

#include <stdint.h>

#include "base/error.h"
#include "results/schema.h"

typedef struct {
    rs_kind kind;
    char *cell[RS_MAX_COLUMNS]; /* NULL where unset: an empty CSV cell */
} rs_row;

void row_init(rs_row *r, rs_kind kind);
void row_fini(rs_row *r);

/* Text is stored as UTF-8; bytes that are none become U+FFFD. NULL or "" unsets. */
void row_set_text(rs_row *r, int column, const char *text);
/* For int and real columns. */
void row_set_int(rs_row *r, int column, int64_t v);
/* For real columns: the shortest decimal that reads back as v. NaN and infinities are "nan", "inf", "-inf". */
void row_set_real(rs_row *r, int column, double v);
/* Sets status and reason; reason may be NULL. */
void row_set_status(rs_row *r, rs_status status, const char *reason);
/* By name, from text. TPL_E_INPUT where the column does not exist or its type does not take the text. */
tpl_code row_set_named(rs_row *r, const char *name, const char *text, const char *where, tpl_err *e);

const char *row_get(const rs_row *r, int column); /* "" where unset; borrowed until the next set */

/* First 12 hex digits of SHA-256 over "key=value\n" of every set CONFIG column and "table=<kind>\n", sorted by key,
 * so that neither the order of setting nor that of the columns matters. Backslash and newline in a value are escaped.
 */
typedef struct {
    char hex[13];
} rs_cell_id;
rs_cell_id row_cell_id(const rs_row *r);
bool cell_id_is_valid(const char *s); /* 12 lower-case hex digits */

#endif
