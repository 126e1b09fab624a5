/* mla.c - multi-head latent attention under head tensor parallelism: every rank caches the whole latent and computes its own
 * heads. Prefill runs in MHA form, decode absorbed. Also the ablations of TPLA that keep exact scores (slice=none, norm). */
#include "engine/plans/latent.h"

void plan_streams_mla(plan *p)
{
    p->streams[KV_MAIN] = (plan_stream){true, p->cfg.kv_lora_rank + p->cfg.rope_dim, 1, 0};
}

void plan_mla_prefill(builder *b, latent_norm norm, int stream, plan_ref *kv)
{
    const plan *p = b->p;
    const model_config *c = &p->cfg;
    int heads = c->n_heads / p->tp, head0 = p->rank * heads, r = c->kv_lora_rank;
    int o = need_buf(b, "o_prefill", heads * c->v_dim);
    plan_ref q = plan_mla_query(b, head0, heads);
    *kv = plan_latent(b, norm);
    add_kv_append(b, "attn.kv_append", columns(kv->buf, 0, r), columns(kv->buf, r, c->rope_dim), stream, 0, r);
    int uk = need_heads(b, W_UK_WHOLE, head0, heads, c->nope_dim, 0, r), uv = need_heads(b, W_UV, head0, heads, c->v_dim, 0, r);
    add_attn_mha(b, "attn.mha", q, uk, uv, heads, r, 0, r, stream, whole(b, o), false);
    plan_attn_out(b, whole(b, o), head0, heads, c->v_dim);
}

static void mla_decode(builder *b, latent_norm norm)
{
    const plan *p = b->p;
    const model_config *c = &p->cfg;
    int heads = c->n_heads / p->tp, head0 = p->rank * heads, r = c->kv_lora_rank, width = c->nope_dim + c->rope_dim;
    int qlat = need_buf(b, "q_lat", heads * r), olat = need_buf(b, "o_lat", heads * r), o = need_buf(b, "o_decode", heads * c->v_dim);
    plan_ref q = plan_mla_query(b, head0, heads), kv = plan_latent(b, norm);
    add_kv_append(b, "attn.kv_append", columns(kv.buf, 0, r), columns(kv.buf, r, c->rope_dim), KV_MAIN, 0, r);
    add_head_matmul(b, "attn.absorb", q, width, need_heads(b, W_UK_WHOLE, head0, heads, c->nope_dim, 0, r), whole(b, qlat), r, false, false);
    add_attn_latent(b, "attn.latent", whole(b, qlat), columns(q.buf, c->nope_dim, q.cols - c->nope_dim), width, heads, r, 0, r, whole(b, olat), no_ref);
    add_head_matmul(b, "attn.unabsorb", whole(b, olat), r, need_heads(b, W_UV, head0, heads, c->v_dim, 0, r), whole(b, o), c->v_dim, true, false);
    plan_attn_out(b, whole(b, o), head0, heads, c->v_dim);
}

void plan_mla_exact_scores(builder *b, latent_norm norm)
{
    plan_ref kv;
    if (b->phase == PHASE_PREFILL)
        plan_mla_prefill(b, norm, KV_MAIN, &kv);
    else
        mla_decode(b, norm);
}

void plan_attn_mla(builder *b)
{
    plan_mla_exact_scores(b, NORM_GAMMA);
}
