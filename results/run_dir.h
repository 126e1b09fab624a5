/* run_dir.h - the run directory, the only thing that commands leave behind.
 *           <root>/<yyyymmddThhmmssZ>-<label>/  run.json, lock, <kind>.csv, items/<cell_id>.csv, traces/<cell_id>.json
 * For:    every command that measures: rows go to disk as they are made, and an interrupted run goes on later.
 * Enter:  all rooms above results/. One thread at a time.
 * Owns:   rd_create() and rd_open_resume() give a run_dir that holds the folder's lock until rd_close().
 * Fails:  TPL_E_IO naming the file (disk full, not writable, locked by another process); TPL_E_INPUT where an old run
 *         is malformed. After a failure every file is as it was before the call: rows already written stay valid. */
#ifndef TPL_RESULTS_RUN_DIR_H
#define TPL_RESULTS_RUN_DIR_H

#include <stdbool.h>

#include "results/manifest.h"
#include "results/row.h"

typedef struct run_dir run_dir;
typedef struct rd_items rd_items;

typedef enum { RD_DONE, RD_INTERRUPTED } rd_end;

/* Makes a new folder, never an existing one ("-2", "-3", ... is added), and writes run.json with status "running". */
tpl_code rd_create(const rd_options *o, run_dir **out, tpl_err *e);

/* Opens an earlier run to go on: checks run.json and the CSV headers, cuts torn last rows off, learns which cells are
 * finished, and records in run.json that the run goes on (argv, libraries and build of `o`; its root, label and seed
 * are not used). */
tpl_code rd_open_resume(const char *path, const rd_options *o, run_dir **out, tpl_err *e);

/* Writes the end into run.json; a run that was killed stays "running". */
tpl_code rd_finish(run_dir *rd, rd_end end, tpl_err *e);
void rd_close(run_dir *rd); /* NULL is fine */

const char *rd_path(const run_dir *rd);
const json_t *rd_manifest(const run_dir *rd); /* run.json; borrowed. A resumed run reads its first "argv" here. */
int rd_n_rows(const run_dir *rd, rs_kind kind);

/* True where the file holds a row of this cell whose status is not `incomplete`. Where a cell was measured again after
 * an incomplete row, readers take its last row. */
bool rd_has_cell(const run_dir *rd, rs_kind kind, const char *cell_id);

/* Sets row_id and cell_id, then writes and flushes the row; its status must be set. The header goes with a file's first
 * row. */
tpl_code rd_append(run_dir *rd, rs_row *r, tpl_err *e);

/* Facts that become known while running. `kind`: "checkpoint", "dataset", ... */
tpl_code rd_note_file(run_dir *rd, const char *kind, const char *path, const char *sha256, tpl_err *e);
tpl_code rd_note_fact(run_dir *rd, const char *key, const char *value, tpl_err *e);

/* One line an item of an evaluated cell. The file appears whole when it is closed, or not at all. */
bool rd_has_items(const run_dir *rd, const char *name);
tpl_code rd_items_open(run_dir *rd, const char *name, const char *const *columns, int n, rd_items **out, tpl_err *e);
void rd_items_append(rd_items *items, const char *const *cells); /* [n]; NULL is an empty cell */
tpl_code rd_items_close(rd_items *items, tpl_err *e);            /* frees items, on failure too */
void rd_items_abandon(rd_items *items);

/* Where the trace of a cell goes; its folder exists. The path lives in the arena. */
tpl_code rd_trace_path(run_dir *rd, const char *name, arena *a, char **path, tpl_err *e);

#endif
