#include "engine/plan.h"

#include "engine/bind.h"
#include "engine/model_roles.h"

batch_shape batch_shape_uniform(int64_t n_seqs, int64_t prefix, int64_t rows)
{
    int64_t pairs = rows * prefix + rows * (rows + 1) / 2;
    return (batch_shape){.rows = n_seqs * rows, .logit_rows = n_seqs, .seqs = n_seqs, .ctx_tok = n_seqs * (prefix + rows), .visible_pairs = n_seqs * pairs};
}

/* An f8 model keeps its norms, router and embedding wider, and its kv_b is widened (model_weight()). */
static tpl_dtype stored_type(const plan *p, int source)
{
    if (p->cfg.weight_dtype != DT_F8E4M3 || (source < W_N_ROLES && role_may_be_f8((weight_role)source)))
        return p->cfg.weight_dtype;
    return source == W_UK || source == W_UK_WHOLE || source == W_UV || source == W_ROUTER_BIAS ? DT_F32 : DT_BF16;
}

tpl_dtype plan_weight_type(const plan *p, int w, plan_types t)
{
    int source = p->weights[w].source;
    bool folded = variant_needs_transform(&p->v) && (source == W_KV_A || source == W_UK || source == W_UK_WHOLE || source == W_UV);
    if (folded && t.folded != DT_NONE)
        return t.folded;
    return t.weight == DT_NONE ? stored_type(p, source) : t.weight;
}

static step_cost comm_cost(const plan *p, const plan_step *s, const batch_shape *b, plan_types t)
{
    int64_t rows = p->bufs[s->in[0].buf].logit_rows ? b->logit_rows : b->rows;
    double bytes = (double)rows * s->in[0].cols * (double)dtype_bytes(t.act);
    return (step_cost){.bytes_sent = comm_bytes_sent(s->comm, s->group.size, bytes)};
}

step_cost plan_step_cost(const plan *p, const plan_step *s, const batch_shape *b, plan_types t)
{
    if (!s->active)
        return (step_cost){0};
    if (b->logit_rows == 0 && s->out.buf >= 0 && p->bufs[s->out.buf].logit_rows)
        return (step_cost){0}; /* no row wants logits: not even the head is read */
    if (s->is_comm)
        return comm_cost(p, s, b, t);
    batch_view view = {.n_rows = (int32_t)b->rows, .n_seqs = (int32_t)b->seqs, .ctx_tok = b->ctx_tok, .visible_pairs = b->visible_pairs};
    kv_view streams[KV_N_STREAMS];
    for (int i = 0; i < KV_N_STREAMS; i++)
        streams[i] = (kv_view){.dtype = t.kv, .width = p->streams[i].width, .mod = p->streams[i].mod, .rem = p->streams[i].rem};
    bound_weight w[STEP_MAX_W];
    plan_step own = *s; /* the step's weights, renumbered into w */
    for (int i = 0; i < STEP_MAX_W; i++) {
        if (s->w[i] < 0)
            continue;
        w[i] = weight_sizes(p, s->w[i], plan_weight_type(p, s->w[i], t));
        own.w[i] = i;
    }
    bind_env env = {.p = p, .rows = b->rows, .logit_rows = b->logit_rows, .act = t.act, .weights = w, .batch = &view, .streams = streams};
    op_call call = step_bind(&own, &env);
    op_cost_sum c = op_cost(&call);
    return (step_cost){c.bytes_read, c.bytes_written, c.flops, 0};
}

step_cost plan_cost(const plan *p, plan_phase phase, const batch_shape *b, plan_types t)
{
    step_cost sum = {0};
    for (int i = 0; i < p->list[phase].n; i++) {
        step_cost c = plan_step_cost(p, &p->list[phase].steps[i], b, t);
        sum.bytes_read += c.bytes_read;
        sum.bytes_written += c.bytes_written;
        sum.flops += c.flops;
        sum.bytes_sent += c.bytes_sent;
    }
    return sum;
}

int64_t plan_weight_bytes(const plan *p, plan_phase phase, plan_types t)
{
    int64_t bytes = 0;
    for (int i = 0; i < p->n_weights; i++) {
        const plan_weight *w = &p->weights[i];
        bool counts = phase == N_PHASES ? true : w->used[phase];
        bool tied = p->cfg.tied_embeddings && w->source == W_LM_HEAD;
        if (counts && !tied)
            bytes += (int64_t)(w->n_heads ? w->n_heads : 1) * w->rows * w->cols * (int64_t)dtype_bytes(plan_weight_type(p, i, t));
    }
    return bytes;
}

double plan_kv_bytes_per_tok(const plan *p, int stream, plan_types t)
{
    const plan_stream *s = &p->streams[stream];
    return s->used ? (double)p->cfg.n_layers * s->width * (double)dtype_bytes(t.kv) / s->mod : 0;
}

int64_t plan_act_bytes(const plan *p, int64_t rows, int64_t logit_rows, plan_types t)
{
    int64_t bytes = 0;
    for (int i = 0; i < p->n_bufs; i++)
        bytes += p->bufs[i].cols * (p->bufs[i].logit_rows ? logit_rows : rows) * (int64_t)dtype_bytes(p->bufs[i].f32 ? DT_F32 : t.act);
    return bytes;
}
