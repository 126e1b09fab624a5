/* spec_cosine.h - how far fuzzy passes stray: cosine between exact and fuzzy hidden states, queries, keys, values and
 *                 attention outputs of a draft, layer by layer.
 * For:    `tplabench speculate --cosine`: rows of accuracy.csv, as EasySpec's Table 4.
 * Enter:  bench/, cli/, tests/.
 * Owns:   nothing.
 * Fails:  as session_forward().
 *
 * Each prompt runs once through the exact prefill list and once, all rows at a time, through the fuzzy list, so that
 * fuzzy rows read what fuzzy rows wrote. For a latent cache, key and value are the normalised latent. */
#ifndef TPL_BENCH_SPEC_COSINE_H
#define TPL_BENCH_SPEC_COSINE_H

#include "bench/speculate.h"

/* For every group list of the request, rows of each layer and of all layers together. */
tpl_code spec_cosine_run(const speculate_request *q, run_dir *rd, tpl_err *e);

#endif
