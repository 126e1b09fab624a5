/* 32-byte vectors of AVX2. On other processors the set compiles to plain code and says that it is not available. */
#include <stdbool.h>

#if defined(__x86_64__)
#pragma GCC target("avx2,fma")
#endif

static bool simd_set_available(void)
{
#if defined(__x86_64__)
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#else
    return false;
#endif
}

#define SIMD_BYTES 32
#define SIMD_TILE_ROWS 4
#define SIMD_THIN_COLS 2
#define SIMD_SET simd_avx2
#define SIMD_NAME "avx2"

#include "kernels/cpu/simd_body.h"
