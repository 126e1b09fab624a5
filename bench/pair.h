/* pair.h - two or more variants compared on one machine in one process: who takes turns how, and what the ratio says.
 * For:    ratio columns of rows, `--aa`, headlines.
 * Enter:  bench/, cli/, tests/.
 * Owns:   nothing.
 * Fails:  as measure_run(). */
#ifndef TPL_BENCH_PAIR_H
#define TPL_BENCH_PAIR_H

#include "bench/measure.h"

typedef enum { PAIR_SAMPLE, PAIR_BLOCK } pair_mode;

const char *pair_mode_name(pair_mode m); /* "sample", "block": the column `pairing` */

enum { PAIR_BLOCK_SAMPLES = 5 };

/* Bytes that processes can still take; half of all memory where the system does not say. */
double pair_free_bytes(void);
/* Turns by sample where all sides fit side by side into four fifths of the free bytes, else by block. */
pair_mode pair_choose(const double *bytes, int n, double free_bytes);

/* measure_run() with turns by sample or by blocks of PAIR_BLOCK_SAMPLES. */
tpl_code pair_measure(const bench_target *targets, int n, pair_mode mode, const measure_options *o,
                      measure_result *results, tpl_err *e);

/* Share of its bound that a kernel must reach before a ratio with it is a claim: below, the ratio says more about the
 * kernel than about the variant. */
static const double pair_claim_frac = 0.80;

typedef struct {
    const measure_result *r;
    double bound_frac; /* NaN: no bound is known, which counts as below */
    double attn_frac;  /* of the decode attention in it, timed alone; 0: it was not, and bound_frac decides */
} pair_side;

typedef struct {
    bstat_ratio ratio; /* NaN where status is unlike */
    rs_status status;  /* ok; kernel_below_bound: printed, never claimed; unlike: a side is not ok, no ratio */
    char reason[160];
    double noise_floor; /* 0: not measured */
} pair_ratio;

pair_ratio pair_compare(pair_side base, pair_side other, pair_mode mode, double noise_floor, uint64_t seed);

/* What may be claimed of `other`: a difference that the interval excludes to be none and that the noise floor does not
 * explain, between sides that both reach pair_claim_frac, and whose attention does where it was timed. */
bstat_verdict pair_claim(const pair_ratio *p);

/* "1.430 (1.401 to 1.462): faster", "... no difference", "... below the noise floor of 1.5%". */
void pair_describe(const pair_ratio *p, char *buf, size_t bytes);

/* Two instances of one thing against each other: the ratio whose bstat_noise_floor() is the machine's. */
tpl_code pair_measure_aa(const bench_target twins[2], pair_mode mode, const measure_options *o, bstat_ratio *out,
                         tpl_err *e);

#endif
