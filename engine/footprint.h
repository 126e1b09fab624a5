/* footprint.h - the memory that one rank's weights and one session on it take, from its plan alone.
 * For:    sessions size their pages and scratch here; benches ask what fits a card before anything is allocated.
 * Enter:  engine/, bench/, cli/, tests/.
 * Owns:   nothing; plain values.
 * Fails:  TPL_E_UNSUPPORTED where the backend has no kernel for a step. */
#ifndef TPL_ENGINE_FOOTPRINT_H
#define TPL_ENGINE_FOOTPRINT_H

#include "engine/bind.h"
#include "engine/session.h"

/* Pages of one stream: of all sequences together, and of one at most. 0: the stream is not kept. */
typedef struct {
    int32_t n_pages, max_pages;
} footprint_pages;

footprint_pages footprint_pages_of(const plan *p, const session_options *o, int stream);

/* Scratch that any step of any batch of such a session may want. env: the rank's own, or one with sizes alone. */
tpl_code footprint_scratch(const char *backend, const bind_env *env, const session_options *o, size_t *out, tpl_err *e);

typedef struct {
    int64_t weights, cache, activations, scratch;
    int64_t tables; /* cards: positions, work space of products, batch contents */
} footprint;

int64_t footprint_sum(const footprint *f);

/* t names all types: what weights are held as, activations, cache. */
tpl_code footprint_of(const plan *p, const session_options *o, const char *backend, plan_types t, footprint *out,
                      tpl_err *e);

#endif
