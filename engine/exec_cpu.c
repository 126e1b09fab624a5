/* exec_cpu.c - ranks as threads (or processes) of a host: weights in place, collectives through device/comm.h. */
#include <stdlib.h>
#include <string.h>

#include "engine/exec.h"
#include "engine/sampler.h"
#include "engine/session_impl.h"
#include "kernels/random.h"

static tpl_code team_open(team *t, tpl_err *e)
{
    return TPL_OK;
}

static void team_close(team *t)
{
}

static tpl_code create_rank(session *s, int i, tpl_err *e)
{
    session_rank *r = &s->ranks[i];
    const team_rank *tr = team_get_rank(s->t, i);
    const plan *p = tr->p;
    r->bufs = tpl_calloc((size_t)p->n_bufs, sizeof *r->bufs);
    r->buf_mem = tpl_calloc((size_t)p->n_bufs, sizeof *r->buf_mem);
    for (int b = 0; b < p->n_bufs; b++) {
        int64_t rows = p->bufs[b].logit_rows ? s->o.max_logits : s->o.max_rows;
        TPL_TRY(dev_alloc(&r->buf_mem[b], (size_t)(rows * p->bufs[b].cols) * sizeof(float), "activations", e));
        r->bufs[b] = r->buf_mem[b].data;
    }
    for (int k = 0; k < KV_N_STREAMS; k++) {
        int64_t layer = exec_layer_bytes(s, i, k);
        TPL_TRY(dev_alloc(&r->kv[k], (size_t)(layer * p->cfg.n_layers), "KV cache", e));
        if (team_opts(s->t)->isolate)
            dev_poison(r->kv[k].data, r->kv[k].bytes);
        r->layer_bytes[k] = layer;
        r->views[k] = (kv_view){.pages = r->kv[k].data,
                                .dtype = team_opts(s->t)->kv,
                                .width = p->streams[k].width,
                                .page_tok = PAGE_TOK,
                                .page_table = s->pools[k].view,
                                .max_pages = s->pools[k].max_pages,
                                .mod = p->streams[k].used ? p->streams[k].mod : 1,
                                .rem = p->streams[k].rem};
    }
    r->env = (bind_env){.p = p,
                        .act = DT_F32,
                        .weights = tr->weights,
                        .bufs = r->bufs,
                        .batch = &s->view,
                        .streams = r->views,
                        .layer_bytes = r->layer_bytes,
                        .rope_cos = team_rope_cos(s->t),
                        .rope_sin = team_rope_sin(s->t),
                        .alpha = team_alpha(s->t),
                        .logit_index = s->logit_index};
    size_t scratch;
    TPL_TRY(exec_scratch_bytes(s, i, &scratch, e));
    TPL_TRY(dev_alloc(&r->scratch, scratch, "kernel scratch", e));
    r->ctx = (kernel_ctx){.compute = team_opts(s->t)->compute, .scratch = r->scratch.data, .scratch_bytes = scratch};
    return TPL_OK;
}

static tpl_code open_ranks(session *s, tpl_err *e)
{
    for (int i = 0; i < s->n_ranks; i++)
        TPL_TRY(create_rank(s, i, e));
    return TPL_OK;
}

static void close_ranks(session *s)
{
    for (int i = 0; i < s->n_ranks; i++) {
        session_rank *r = &s->ranks[i];
        for (int b = 0; r->buf_mem && b < team_plan(s->t, i)->n_bufs; b++)
            dev_free(&r->buf_mem[b]);
        for (int k = 0; k < KV_N_STREAMS; k++)
            dev_free(&r->kv[k]);
        dev_free(&r->scratch);
        free(r->bufs);
        free(r->buf_mem);
    }
}

/* ---- the walk ---- */

static tpl_code run_comm(session *s, session_rank *r, const team_rank *tr, const plan_step *step, tpl_err *e)
{
    mat data = ref_bind(step->in[0], &r->env), out = ref_bind(step->out, &r->env);
    if (s->silent) {
        comm_alone(step->comm, tr->p->rank, step->group, data.data, data.stride, out.data, out.stride, data.rows, data.cols);
        return TPL_OK;
    }
    return tr->comm->run(tr->comm, step->comm, step->group, data.data, data.stride, out.data, out.stride, data.rows,
                         data.cols, e);
}

/* A rank whose kernel failed computes no more but still meets the others in their collectives: they would wait for
 * ever. */
static tpl_code walk(void *arg, int local_rank, tpl_err *e)
{
    session *s = arg;
    session_rank *r = &s->ranks[local_rank];
    const team_rank *tr = team_get_rank(s->t, local_rank);
    const plan_list *list = &tr->p->list[s->phase];
    const char *backend = team_opts(s->t)->backend;
    r->env.rows = s->view.n_rows;
    r->env.logit_rows = s->n_logits;
    tpl_code rc = TPL_OK;
    for (int i = 0; i < list->n && (local_rank == 0 || !s->alone); i++) {
        const plan_step *step = &list->steps[i];
        if (!step->active || (rc != TPL_OK && !step->is_comm))
            continue;
        if (s->observer.begin)
            s->observer.begin(s->observer.user, local_rank, step);
        op_call call;
        if (step->is_comm) {
            tpl_code met = run_comm(s, r, tr, step, rc == TPL_OK ? e : NULL);
            if (met != TPL_OK)
                return rc == TPL_OK ? met : rc;
        } else {
            call = step_bind(step, &r->env);
            rc = kernel_run(backend, &r->ctx, &call, e);
        }
        if (s->observer.end && rc == TPL_OK)
            s->observer.end(s->observer.user, local_rank, step, step->is_comm ? NULL : &call,
                            exec_written(step, &r->env));
    }
    return rc;
}

static tpl_code forward(session *s, tpl_err *e)
{
    return team_run(s->t, walk, s, e);
}

static const float *logits(const session *s, int i)
{
    const plan *p = team_plan(s->t, 0);
    return (const float *)s->ranks[0].bufs[p->logits_buf] + (size_t)i * (size_t)p->cfg.vocab;
}

static int32_t best(const session *s, int i)
{
    return sampler_argmax(logits(s, i), team_plan(s->t, 0)->cfg.vocab);
}

static tpl_code move(session *s, void *to, size_t to_step, const void *from, size_t from_step, size_t bytes, int n,
                     tpl_err *e)
{
    for (int i = 0; i < n; i++)
        memcpy((char *)to + to_step * (size_t)i, (const char *)from + from_step * (size_t)i, bytes);
    return TPL_OK;
}

static tpl_code fill(session *s, int local_rank, int stream, uint64_t seed, tpl_err *e)
{
    const dev_buf *b = &s->ranks[local_rank].kv[stream];
    tpl_dtype type = team_opts(s->t)->kv;
    size_t size = dtype_bytes(type), done = b->bytes < EXEC_FILL_BYTES ? b->bytes : EXEC_FILL_BYTES;
    random_recipe recipe = {.key = seed, .size = 1};
    for (size_t i = 0; i < done / size; i++) {
        float v = random_value(recipe, i);
        dtype_from_f32((char *)b->data + i * size, type, &v, 1);
    }
    for (size_t n; done < b->bytes; done += n) {
        n = b->bytes - done < done ? b->bytes - done : done;
        memcpy((char *)b->data + done, b->data, n);
    }
    return TPL_OK;
}

const exec_ops exec_cpu = {.host = true,
                           .compute = DT_F32,
                           .team_open = team_open,
                           .team_close = team_close,
                           .open = open_ranks,
                           .close = close_ranks,
                           .forward = forward,
                           .logits = logits,
                           .best = best,
                           .fill = fill,
                           .move = move};
