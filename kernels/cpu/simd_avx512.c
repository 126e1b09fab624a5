/* 64-byte vectors of AVX-512. On other processors the set compiles to plain code and says that it is not available. */
#include <stdbool.h>

#if defined(__x86_64__)
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")
#endif

static bool simd_set_available(void)
{
#if defined(__x86_64__)
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#else
    return false;
#endif
}

#define SIMD_BYTES 64
#define SIMD_TILE_ROWS 8
#define SIMD_THIN_COLS 4
#define SIMD_SET simd_avx512
#define SIMD_NAME "avx512"
#define SIMD_PAIRS &simd_avx512bf16
#define SIMD_PACK simd_pack_avx512
#define SIMD_THIN simd_thin_avx512

#include "kernels/cpu/simd_body.h"
