#include "engine/footprint.h"

#include <stdlib.h>

#include "engine/session_impl.h"

/* Two queues' work space for products, and what rounding to pages of the card takes. */
static const int64_t card_queue_bytes = 64 << 20, card_rounding_bytes = 128 << 20;

static int64_t ceil_div(int64_t a, int64_t b)
{
    return (a + b - 1) / b;
}

static int64_t total_tok(const session_options *o)
{
    return o->total_tok ? o->total_tok : (int64_t)o->max_seqs * o->max_tok;
}

/* Every sequence may leave a page partly filled. */
footprint_pages footprint_pages_of(const plan *p, const session_options *o, int stream)
{
    const plan_stream *s = &p->streams[stream];
    if (!s->used)
        return (footprint_pages){0, 0};
    int64_t one = ceil_div(ceil_div(o->max_tok, s->mod), PAGE_TOK);
    int64_t wanted = ceil_div(ceil_div(total_tok(o), s->mod), PAGE_TOK) + o->max_seqs, most = one * o->max_seqs;
    return (footprint_pages){(int32_t)(wanted < most ? wanted : most), (int32_t)one};
}

/* The batch that needs the most scratch of every step. */
static batch_view largest_batch(const session_options *o)
{
    int64_t tok = total_tok(o);
    return (batch_view){.n_rows = o->max_rows,
                        .n_seqs = o->max_seqs,
                        .ctx_tok = tok,
                        .visible_pairs = tok * o->max_rows,
                        .max_seq_rows = o->max_rows,
                        .max_slots = o->max_tok};
}

tpl_code footprint_scratch(const char *backend, const bind_env *rank_env, const session_options *o, size_t *out,
                           tpl_err *e)
{
    batch_view largest = largest_batch(o);
    bind_env env = *rank_env;
    size_t most = 0;
    env.batch = &largest;
    env.rows = o->max_rows;
    env.logit_rows = o->max_logits;
    for (int phase = 0; phase < N_PHASES; phase++) {
        for (int i = 0; i < env.p->list[phase].n; i++) {
            const plan_step *step = &env.p->list[phase].steps[i];
            if (step->is_comm || !step->active)
                continue;
            op_call call = step_bind(step, &env);
            if (!kernel_find(backend, &call))
                return tpl_fail(e, TPL_E_UNSUPPORTED, step->name, "no kernel of backend '%s' does %s at this shape",
                                backend, op_name(call.kind));
            size_t bytes = kernel_scratch_bytes(backend, &call);
            most = bytes > most ? bytes : most;
        }
    }
    *out = most;
    return TPL_OK;
}

/* ---- the whole ---- */

/* A rank without memory: what footprint_scratch() looks at. */
static tpl_code scratch_of(const plan *p, const session_options *o, const char *backend, plan_types t, size_t *out,
                           tpl_err *e)
{
    kv_view streams[KV_N_STREAMS];
    bound_weight *w = tpl_calloc((size_t)p->n_weights + 1, sizeof *w);
    for (int i = 0; i < p->n_weights; i++)
        w[i] = weight_sizes(p, i, p->weights[i].source == W_ROUTER_BIAS ? DT_F32 : plan_weight_type(p, i, t));
    for (int k = 0; k < KV_N_STREAMS; k++)
        streams[k] = (kv_view){.dtype = t.kv,
                               .width = p->streams[k].width,
                               .page_tok = PAGE_TOK,
                               .max_pages = footprint_pages_of(p, o, k).max_pages,
                               .mod = p->streams[k].used ? p->streams[k].mod : 1,
                               .rem = p->streams[k].rem};
    bind_env env = {.p = p, .act = t.act, .weights = w, .streams = streams};
    tpl_code rc = footprint_scratch(backend, &env, o, out, e);
    free(w);
    return rc;
}

static int64_t table_bytes(const plan *p, const session_options *o)
{
    int64_t rows = o->max_rows, rope = 2 * (int64_t)p->cfg.max_pos * (p->cfg.rope_dim / 2) * 4;
    return rope + rows * ceil_div(rows, 64) * 8 + card_queue_bytes + card_rounding_bytes;
}

int64_t footprint_sum(const footprint *f)
{
    return f->weights + f->cache + f->activations + f->scratch + f->tables;
}

tpl_code footprint_of(const plan *p, const session_options *o, const char *backend, plan_types t, footprint *out,
                      tpl_err *e)
{
    footprint f = {.weights = plan_weight_bytes(p, N_PHASES, t),
                   .activations = plan_act_bytes(p, o->max_rows, o->max_logits, t),
                   .tables = exec_find(backend)->host ? 0 : table_bytes(p, o)};
    size_t scratch;
    TPL_TRY(scratch_of(p, o, backend, t, &scratch, e));
    f.scratch = (int64_t)scratch;
    for (int k = 0; k < KV_N_STREAMS; k++)
        f.cache += (int64_t)footprint_pages_of(p, o, k).n_pages * PAGE_TOK * p->streams[k].width *
                   (int64_t)dtype_bytes(t.kv) * p->cfg.n_layers;
    *out = f;
    return TPL_OK;
}
