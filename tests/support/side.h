/* side.h - one model of a speculating pair, ready to run: checkpoint, team, session.
 * For:    tests of fuzzy plans and speculation.
 * Enter:  tests/ only.
 * Owns:   side_open() .. side_close(); side_add_session() replaces the session.
 * Fails:  ends the test with the error's words. */
#ifndef TPL_TESTS_SUPPORT_SIDE_H
#define TPL_TESTS_SUPPORT_SIDE_H

#include "engine/lab.h"

typedef struct {
    model *m;
    transform *tr;
    folded *f;
    team *t;
    session *s;
} side;

/* variant_text NULL: the checkpoint's exact one (else one that needs no calibration). groups NULL: an ordinary plan;
 * else `fuzzy` gives the other choices. */
side side_open(const char *dir, const char *variant_text, int tp, const char *groups, plan_fuzzy fuzzy);
void side_add_session(side *x, session_options o);
void side_close(side *x);

/* Runs tokens [0, n) as a chain; logits of the last are session_logits(x->s, 0). */
void side_run(side *x, int seq, plan_phase phase, const int32_t *tokens, int n);
/* Runs rows as they are. */
void side_forward(side *x, plan_phase phase, const batch_row *rows, int n);

/* Copies the cached row of a slot in a layer of a rank into out [width]; gives the width. f32 caches only. */
int side_cached(const side *x, int rank, int seq, int layer, int slot, float *out);

/* Whole-file digest of a rank's cached rows [0, len) over all layers: equal caches, equal digests. */
sha256_hex side_cache_digest(const side *x, int rank, int seq, int len);

#endif
