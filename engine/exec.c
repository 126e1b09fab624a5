#include "engine/exec.h"

#include <string.h>

#include "engine/session_impl.h"

const exec_ops *exec_find(const char *backend)
{
    return strcmp(backend, "cuda") == 0 ? &exec_cuda : &exec_cpu;
}

int64_t exec_layer_bytes(const session *s, int local_rank, int stream)
{
    const plan *p = team_plan(s->t, local_rank);
    return (int64_t)s->pools[stream].n_pages * PAGE_TOK * p->streams[stream].width *
           (int64_t)dtype_bytes(team_opts(s->t)->kv);
}

/* The batch that needs the most scratch of every step. */
static batch_view largest_batch(const session *s)
{
    int64_t tok = s->o.total_tok;
    return (batch_view){.n_rows = s->o.max_rows,
                        .n_seqs = s->o.max_seqs,
                        .ctx_tok = tok,
                        .visible_pairs = tok * s->o.max_rows,
                        .max_seq_rows = s->o.max_rows,
                        .max_slots = s->o.max_tok};
}

tpl_code exec_scratch_bytes(session *s, int local_rank, size_t *out, tpl_err *e)
{
    const session_rank *r = &s->ranks[local_rank];
    const team_rank *tr = team_get_rank(s->t, local_rank);
    batch_view largest = largest_batch(s);
    bind_env env = r->env;
    size_t most = 0;
    env.batch = &largest;
    env.rows = s->o.max_rows;
    env.logit_rows = s->o.max_logits;
    for (int phase = 0; phase < N_PHASES; phase++) {
        for (int i = 0; i < tr->p->list[phase].n; i++) {
            const plan_step *step = &tr->p->list[phase].steps[i];
            if (step->is_comm || !step->active)
                continue;
            op_call call = step_bind(step, &env);
            if (!kernel_find(team_opts(s->t)->backend, &call))
                return tpl_fail(e, TPL_E_UNSUPPORTED, step->name, "no kernel of backend '%s' does %s at this shape",
                                team_opts(s->t)->backend, op_name(call.kind));
            size_t bytes = kernel_scratch_bytes(team_opts(s->t)->backend, &call);
            most = bytes > most ? bytes : most;
        }
    }
    *out = most;
    return TPL_OK;
}

mat exec_written(const plan_step *step, const bind_env *env)
{
    return ref_bind(step->out.buf >= 0 ? step->out : step->in[0], env);
}
