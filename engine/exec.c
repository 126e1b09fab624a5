#include "engine/exec.h"

#include <string.h>

#include "engine/footprint.h"
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

tpl_code exec_scratch_bytes(session *s, int local_rank, size_t *out, tpl_err *e)
{
    return footprint_scratch(team_opts(s->t)->backend, &s->ranks[local_rank].env, &s->o, out, e);
}

mat exec_written(const plan_step *step, const bind_env *env)
{
    return ref_bind(step->out.buf >= 0 ? step->out : step->in[0], env);
}
