/* tpla.c - tensor-parallel latent attention (ASPLOS '26, arXiv 2508.15881): a rank caches only its latent slices but keeps all
 * heads of its head range; each slice has its own softmax, and the slices' outputs are summed.
 * pd=on prefills as exact MLA over the whole latent and keeps the slice; pd=off prefills sliced, in MHA form.
 * proj says how W_UQ and W_O are held: dup (the paper's), rs (o is reduce-scattered, W_O stays sharded), rs+agq (queries are
 * computed for own heads and gathered, so that W_UQ stays sharded too). */
#include "engine/plans/latent.h"

static bool scores_are_exact(const variant *v)
{
    return v->slice == SLICE_NONE || v->slice == SLICE_NORM || v->g == 1;
}

void plan_streams_tpla(plan *p)
{
    int whole_width = p->cfg.kv_lora_rank + p->cfg.rope_dim;
    if (scores_are_exact(&p->v)) {
        plan_streams_mla(p);
        return;
    }
    slice_layout l = slices_of(p);
    p->streams[KV_MAIN] = (plan_stream){true, l.n_slices * l.width + p->cfg.rope_dim, 1, 0};
    p->streams[KV_PREFILL] = (plan_stream){p->v.pd, whole_width, 1, 0};
}

/* Queries of the rank's whole head range, however they are come by. */
static plan_ref tpla_query(builder *b, const slice_layout *l)
{
    const model_config *c = &b->p->cfg;
    if (b->p->v.proj != PROJ_RS_AGQ || l->parts == 1)
        return plan_mla_query(b, l->head0, l->n_heads);
    int own = l->n_heads / l->parts, width = c->nope_dim + c->rope_dim;
    plan_ref q = plan_mla_query(b, l->head0 + (b->p->rank - l->group.first) * own, own);
    int all = need_buf(b, "q_gathered", l->n_heads * width);
    add_comm(b, "attn.all_gather_q", COMM_ALL_GATHER, l->group, q, whole(b, all));
    return whole(b, all);
}

/* The latent of this batch's rows: normalised, reduced to the rank's slices, key part behind them. */
static void append_slices(builder *b, const slice_layout *l, plan_ref kv, int first_col)
{
    int own = l->n_slices * l->width, rope = b->p->cfg.rope_dim;
    add_kv_append(b, "attn.kv_append", columns(kv.buf, first_col, own), columns(kv.buf, kv.cols - rope, rope), KV_MAIN, 0, own);
}

static void tpla_latent(builder *b, const slice_layout *l)
{
    if (b->p->v.slice == SLICE_BOTH)
        append_slices(b, l, plan_latent_slices(b, l), 0);
    else /* the exact norm needs no exchange: every rank has the whole x, so it computes the whole latent */
        append_slices(b, l, plan_latent(b, NORM_PLAIN), l->slice0 * l->width);
}

static void tpla_output(builder *b, const slice_layout *l, int o)
{
    const model_config *c = &b->p->cfg;
    if (b->p->v.proj == PROJ_DUP || l->parts == 1) {
        plan_attn_out(b, whole(b, o), l->head0, l->n_heads, c->v_dim);
        return;
    }
    int own = l->n_heads / l->parts, o_own = need_buf(b, "o_own", own * c->v_dim);
    add_comm(b, "attn.reduce_scatter_o", COMM_REDUCE_SCATTER, l->group, whole(b, o), whole(b, o_own));
    plan_attn_out(b, whole(b, o_own), l->head0 + (b->p->rank - l->group.first) * own, own, c->v_dim);
}

static void tpla_sliced(builder *b)
{
    const model_config *c = &b->p->cfg;
    slice_layout l = slices_of(b->p);
    int s = l.width, own = l.n_slices * s, width = c->nope_dim + c->rope_dim, o = need_buf(b, "o", l.n_heads * c->v_dim);
    plan_ref q = tpla_query(b, &l);
    tpla_latent(b, &l);
    for (int i = 0; i < l.n_slices; i++) {
        int col0 = (l.slice0 + i) * s;
        int uk = need_heads(b, W_UK, l.head0, l.n_heads, c->nope_dim, col0, s), uv = need_heads(b, W_UV, l.head0, l.n_heads, c->v_dim, col0, s);
        if (b->phase == PHASE_PREFILL) {
            add_attn_mha(b, "attn.mha", q, uk, uv, l.n_heads, s, i * s, own, KV_MAIN, whole(b, o), i > 0);
            continue;
        }
        int qlat = need_buf(b, "q_lat", l.n_heads * s), olat = need_buf(b, "o_lat", l.n_heads * s);
        add_head_matmul(b, "attn.absorb", q, width, uk, whole(b, qlat), s, false, false);
        add_attn_latent(b, "attn.latent", whole(b, qlat), columns(q.buf, c->nope_dim, q.cols - c->nope_dim), width, l.n_heads, s, i * s, own, whole(b, olat), no_ref);
        add_head_matmul(b, "attn.unabsorb", whole(b, olat), s, uv, whole(b, o), c->v_dim, true, i > 0);
    }
    tpla_output(b, &l, o);
}

void plan_attn_tpla(builder *b)
{
    const variant *v = &b->p->v;
    bool exact_phase = v->pd && b->phase == PHASE_PREFILL;
    bool sliced_norm = (v->slice == SLICE_NORM || v->slice == SLICE_BOTH) && !exact_phase;
    if (scores_are_exact(v)) {
        plan_mla_exact_scores(b, sliced_norm && v->g > 1 ? NORM_SLICED : NORM_PLAIN);
    } else if (exact_phase) {
        plan_ref kv;
        slice_layout l = slices_of(b->p);
        plan_mla_prefill(b, NORM_PLAIN, KV_PREFILL, &kv);
        append_slices(b, &l, kv, l.slice0 * l.width);
    } else {
        tpla_sliced(b);
    }
}
