/* random.h - weights that anyone can compute: a value of a seeded matrix by its index, the same on a host and on a
 * card. For:    models without a checkpoint (shapes), whose weights are made where they are used. Enter:  kernels/,
 * engine/, tests/. Owns:   nothing; plain values. Fails:  never. */
#ifndef TPL_KERNELS_RANDOM_H
#define TPL_KERNELS_RANDOM_H

#include <stdint.h>

#ifdef __CUDACC__
#define RANDOM_INLINE static inline __host__ __device__
#else
#define RANDOM_INLINE static inline
#endif

/* How a matrix is drawn: uniform in [offset - 1, offset + 1) * size, before rounding to its type. */
typedef struct {
    uint64_t key;
    float size;
    int32_t offset; /* -63 to 63 */
} random_recipe;

/* The finaliser of splitmix64. */
RANDOM_INLINE uint64_t random_mix(uint64_t z)
{
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}

/* One conversion and one product, each rounded as IEEE 754 says: no compiler may make anything else of them. */
RANDOM_INLINE float random_value(random_recipe r, uint64_t index)
{
    int32_t u = (int32_t)(random_mix(r.key + (index + 1) * 0x9e3779b97f4a7c15ull) >> 40) - (1 << 23);
    return (float)(u + r.offset * (1 << 23)) * (r.size * 0x1p-23f);
}

#endif
