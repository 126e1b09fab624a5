/* spec_replay.h - accepted counts of a speculation run as a file, so that time can be measured again with acceptance
 * fixed. For:    bench/speculate.c, `tplabench speculate --record FILE`, `--replay FILE`. Enter:  bench/, cli/, tests/.
 * Owns:   spec_replay_read() keeps everything in the caller's arena.
 * Fails:  TPL_E_IO; TPL_E_INPUT with file, line and field.
 *
 * JSON lines {"cell": "easyspec rule:4 w4 n5 t0", "prompt": 3, "accepted": [5, 2, 0]}: one run of one prompt. */
#ifndef TPL_BENCH_SPEC_REPLAY_H
#define TPL_BENCH_SPEC_REPLAY_H

#include <stdio.h>

#include "engine/speculate.h"

typedef struct spec_replay spec_replay;

tpl_code spec_replay_read(arena *a, const char *path, spec_replay **out, tpl_err *e);
/* From bytes; `name` is the file's name in messages. */
tpl_code spec_replay_parse(arena *a, const char *data, size_t n_bytes, const char *name, spec_replay **out, tpl_err *e);
/* NULL where the file has no such run. */
const spec_record *spec_replay_find(const spec_replay *r, const char *cell, int prompt);

tpl_code spec_replay_write(FILE *f, const char *cell, int prompt, const spec_record *record, tpl_err *e);

#endif
