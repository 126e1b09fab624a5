/* generate.h - prompts in, continuations out: prefill, then decode token by token in a batch.
 * For:    `tplabench generate`, long evaluation tasks.  Enter: eval/, bench/, cli/, tests/.
 * Owns:   nothing; outputs are the caller's.
 * Fails:  what session_forward() fails with; TPL_E_INPUT for an empty prompt or one that leaves no room. */
#ifndef TPL_ENGINE_GENERATE_H
#define TPL_ENGINE_GENERATE_H

#include "engine/sampler.h"
#include "engine/session.h"

typedef struct {
    const int32_t *prompt;
    int32_t n_prompt;
    int32_t *out; /* [max_new] */
    int32_t n_out;
    bool stopped; /* by the stop token, which is not in out */
} generation;

/* Runs n generations, at most the session's max_seqs, side by side. stop_id -1: none. `on_token` (may be NULL) sees each
 * token as it comes; returning false ends that generation. */
tpl_code generate(session *s, generation *g, int n, int max_new, int32_t stop_id, sampler *pick, bool (*on_token)(void *user, int i, int32_t token), void *user,
                  tpl_err *e);

/* Feeds tokens to a sequence in chunks of the session's max_rows; the last token's logits are session_logits(s, 0). */
tpl_code generate_prefill(session *s, int seq, const int32_t *tokens, int n, tpl_err *e);

#endif
