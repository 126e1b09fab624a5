/* fuzz.h - what the fuzz targets share: one function a loader, fed with arbitrary bytes.
 * For:    libFuzzer (-Dfuzz=true, clang) and replay.c, which runs a corpus in any build.
 * Enter:  tests/fuzz only.
 * Owns:   nothing.
 * Fails:  by abort() where a loader breaks its promise. */
#ifndef TPL_TESTS_FUZZ_H
#define TPL_TESTS_FUZZ_H

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include "base/error.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Inputs that the loader took: a target whose whole corpus is refused looks at nothing but the first check. */
extern long fuzz_n_parsed;

/* A failure must say what and where. */
static inline int fuzz_check_error(const tpl_err *e)
{
    if (e->code == TPL_OK || !e->what[0])
        abort();
    return 0;
}

#endif
