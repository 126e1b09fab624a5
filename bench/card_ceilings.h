/* card_ceilings.h - what a card can do at most, in the same words as the host's ceilings.
 * For:    bounds of rows measured on a card.
 * Enter:  bench/, cli/, tests/.
 * Owns:   nothing; a ceilings is a plain value.
 * Fails:  TPL_E_DEVICE, TPL_E_MEMORY (4 GiB are needed), TPL_E_UNSUPPORTED in a build without CUDA.
 *
 * Measured once a process, in about a second: sweeps over 2 GiB of our own, the driver's copy, and cuBLAS's products of
 * 8192 x 8192 x 8192 random values, the median of five after two that warm up. */
#ifndef TPL_BENCH_CARD_CEILINGS_H
#define TPL_BENCH_CARD_CEILINGS_H

#include "bench/ceilings.h"

/* out->cpu is the card's name; there is one thread count, 1: ranks that share the card share its rates. */
tpl_code card_ceilings_measure(int ordinal, ceilings *out, tpl_err *e);
/* The same, or what this process measured before. */
tpl_code card_ceilings_open(int ordinal, ceilings *out, tpl_err *e);

#endif
