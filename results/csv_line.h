/* csv_line.h - CSV as RFC 4180 writes it, one cell at a time, into growing text; lines end in a line feed.
 * For:    row files, item files, table output.  Enter: results/.
 * Owns:   nothing; adds to the caller's text_buf.  Fails: never. */
#ifndef TPL_RESULTS_CSV_LINE_H
#define TPL_RESULTS_CSV_LINE_H

#include "base/text.h"

/* Adds the n cells (NULL is an empty one) and the line's end. Cells are quoted only where a reader needs it. */
void csv_add_line(text_buf *b, const char *const *cells, int n);

#endif
