/* small.h - whether tests are to take small shapes: every kernel, few sizes.
 * For:    runs under a sanitizer, where a kernel takes a hundred times longer (TPL_SMALL_SHAPES=1, set by tools/gpu-test).
 * Enter:  tests/gpu.  Owns: nothing.  Fails: never. */
#ifndef TPL_TESTS_GPU_SMALL_H
#define TPL_TESTS_GPU_SMALL_H

#include <stdbool.h>
#include <stdlib.h>

static inline bool shapes_are_small(void)
{
    const char *text = getenv("TPL_SMALL_SHAPES");
    return text && *text == '1';
}

#endif
