/* file_name.h - file names that every system, archive and shell takes: letters, digits, '.', '_' and '-'.
 * For:    run folders, item files, traces.  Enter: all rooms above results/.
 * Owns:   file_name_clean() gives text that lives in the arena.  Fails: never. */
#ifndef TPL_RESULTS_FILE_NAME_H
#define TPL_RESULTS_FILE_NAME_H

#include <stdbool.h>

#include "base/arena.h"

enum { FILE_NAME_MAX = 64 };

/* 1 to FILE_NAME_MAX of the allowed characters, the first no '.' or '-'. */
bool file_name_is_valid(const char *s);
/* A valid name close to s: a run of other characters becomes one '-', long names are cut, "run" where nothing is left.
 */
char *file_name_clean(arena *a, const char *s);

#endif
