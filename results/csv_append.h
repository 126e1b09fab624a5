/* csv_append.h - appending to a file so that it only ever holds whole records.
 * For:    results/run_dir.c.  Enter: results/.
 * Owns:   nothing; the file is open during a call only.
 * Fails:  TPL_E_IO naming the file. The file is then cut back to *length (removed where that is 0), also after a
 *         partial write; where even that fails the message says so. A file of another length than *length was changed
 *         by someone else and is left alone. */
#ifndef TPL_RESULTS_CSV_APPEND_H
#define TPL_RESULTS_CSV_APPEND_H

#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

/* Appends n bytes, flushes them to the disk and adds n to *length, the bytes that the file holds. */
tpl_code csv_append(const char *path, int64_t *length, const char *bytes, size_t n, tpl_err *e);

/* Cuts a file to its first n bytes; removes it where n is 0. */
tpl_code csv_cut(const char *path, int64_t n, tpl_err *e);

#endif
