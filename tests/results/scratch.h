/* scratch.h - a folder of its own for each test, removed with all it holds when the test ends.
 * For:    tests of results/.
 * Enter:  tests/results/.
 * Owns:   scratch_create() makes the folder; scratch_destroy() removes it.
 * Fails:  a failure ends the test. */
#ifndef TPL_TESTS_RESULTS_SCRATCH_H
#define TPL_TESTS_RESULTS_SCRATCH_H

#include <fts.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <criterion/criterion.h>

#include "base/text.h"

static char scratch_dir[64];

static void scratch_create(void)
{
    strcpy(scratch_dir, "/tmp/tpl-results-XXXXXX");
    cr_assert(mkdtemp(scratch_dir) != NULL);
}

static void scratch_destroy(void)
{
    FTS *walk = fts_open((char *[]){scratch_dir, NULL}, FTS_PHYSICAL | FTS_NOCHDIR, NULL);
    for (FTSENT *entry; walk && (entry = fts_read(walk));)
        if (entry->fts_info != FTS_D)
            remove(entry->fts_accpath);
    if (walk)
        fts_close(walk);
}

/* Lives until the end of the test process. */
static inline char *scratch_path(const char *name)
{
    static arena a;
    return text_path_join(&a, scratch_dir, name);
}

static inline void scratch_write(const char *path, const char *bytes, size_t n)
{
    FILE *f = fopen(path, "wb");
    cr_assert(f && fwrite(bytes, 1, n, f) == n && fclose(f) == 0, "%s", path);
}

/* Gives the content (free it). */
static __attribute__((noinline, unused)) char *scratch_read(const char *path, size_t *n)
{
    char *bytes = NULL;
    tpl_err e = {0};
    cr_assert(text_read_file(path, &bytes, n, &e) == TPL_OK, "%s: %s", e.where, e.what);
    return bytes;
}

#endif
