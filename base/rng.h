/* rng.h - seeded random numbers: a small counter-based generator for data, and MT19937 where others' draws must be met.
 * For:    random weights, sampling, property tests (rng); Hadamard signs and lm-eval draws (mt19937).
 * Enter:  all rooms.  Owns: nothing (plain values).  Fails: never. */
#ifndef TPL_BASE_RNG_H
#define TPL_BASE_RNG_H

#include <stdint.h>

typedef struct {
    uint64_t state;
} rng; /* splitmix64; seed by assignment */

uint64_t rng_u64(rng *r);
double rng_uniform(rng *r);           /* [0, 1) with 53 bits */
double rng_normal(rng *r);            /* mean 0, variance 1 */
uint64_t rng_below(rng *r, uint64_t n); /* uniform in [0, n), n > 0 */
/* Same stream for the same (seed, stream) wherever it is drawn. */
rng rng_make(uint64_t seed, uint64_t stream);

typedef struct {
    uint32_t state[624];
    int index;
} mt19937; /* init_genrand seeding, as torch.Generator().manual_seed and numpy's legacy seeding use it */

void mt19937_seed(mt19937 *m, uint32_t seed);
uint32_t mt19937_u32(mt19937 *m);

#endif
