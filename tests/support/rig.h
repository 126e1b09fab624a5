/* rig.h - a small model in one variant on one team, with one session: what engine tests run.
 * For:    tests that compare logits of two ways to run the same tokens.
 * Enter:  tests/ only.
 * Owns:   fixture_open() owns the checkpoint folder and its model; rig_open() owns transform, folded weights, team,
 *         session. Logits are malloc'ed for the caller.
 * Fails:  through Criterion's assertions, with the engine's own message. */
#ifndef TPL_TESTS_SUPPORT_RIG_H
#define TPL_TESTS_SUPPORT_RIG_H

#include "engine/session.h"
#include "tests/support/checkpoint.h"

typedef struct {
    arena mem;
    char *dir;
    model_config cfg;
    ckpt_list list; /* the weights as written */
    model *m;
    calibration cal; /* random moments of the right sizes: any basis keeps exactness */
} fixture;

void fixture_open(fixture *f, const model_config *c, tpl_dtype dtype, uint64_t seed);
void fixture_close(fixture *f);

typedef struct {
    variant v;
    transform *t;
    folded *f;
    team *team;
    session *s;
} rig;

/* A zero session option means enough for any test: 4 sequences of max_pos tokens, max_pos rows and logits. */
void rig_open(rig *r, const fixture *f, const char *variant_text, const team_options *o, const session_options *so);
void rig_close(rig *r);

/* Logits [n, vocab] of every token: the first `n_prefill` in chunks of `chunk` rows, the rest decoded one by one, in a
 * new sequence that is dropped at the end. */
float *rig_logits(rig *r, const int32_t *tokens, int n, int n_prefill, int chunk);
/* rig_open() + rig_logits() + rig_close(). */
float *rig_run(const fixture *f, const char *variant_text, const team_options *o, const int32_t *tokens, int n,
               int n_prefill, int chunk);

/* Runs rows, which want all logits, and asserts success. */
void rig_forward(rig *r, plan_phase phase, const batch_row *rows, int n);

/* Seeded token ids below the vocabulary. */
void rig_tokens(int32_t *tokens, int n, int vocab, uint64_t seed);

/* Largest |a - b|; infinity where either is no number. */
double rig_distance(const float *a, const float *b, size_t n);

#endif
