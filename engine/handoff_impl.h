/* handoff_impl.h - the inside of a hand-off, shared by handoff.c and handoff_cuda.c.
 * For:    those two files.  Enter: nobody else.  Owns: see handoff.h.  Fails: see handoff.h. */
#ifndef TPL_ENGINE_HANDOFF_IMPL_H
#define TPL_ENGINE_HANDOFF_IMPL_H

#include "engine/handoff.h"
#include "engine/session_impl.h"

struct handoff {
    session *from, *to;
    handoff_part *parts;
    int n;
    void *cards; /* handoff_cuda.c's own */
};

/* On cards: each source rank has a queue and both sequences' page tables on its card. close() takes half-made ones too.
 */
tpl_code handoff_cuda_open(handoff *h, tpl_err *e);
void handoff_cuda_close(handoff *h);
bool handoff_cuda_crosses(const handoff *h, const handoff_part *p);
tpl_code handoff_cuda_run(handoff *h, int from_seq, int to_seq, int64_t n_tok, tpl_err *e);

#endif
