/* 16-byte vectors: what every 64-bit processor has, or what the compiler makes of them. */
#include <stddef.h>

#define SIMD_BYTES 16
#define SIMD_TILE_ROWS 4
#define SIMD_THIN_COLS 2
#define SIMD_SET simd_portable
#define SIMD_NAME "portable"
#define simd_set_available NULL

#include "kernels/cpu/simd_body.h"
