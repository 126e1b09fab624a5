/* gla.c - grouped latent attention: head i reads latent slice floor(i g / heads) only. A rank caches the slices of its own
 * heads. Converting an MLA checkpoint discards the rest of each head's cache: the TPLA paper's strawman. */
#include "engine/plans/latent.h"

void plan_streams_gla(plan *p)
{
    slice_layout l = slices_of(p);
    p->streams[KV_MAIN] = (plan_stream){true, l.n_slices * l.width + p->cfg.rope_dim, 1, 0};
}

void plan_attn_gla(builder *b)
{
    const model_config *c = &b->p->cfg;
    slice_layout l = slices_of(b->p);
    int own = l.n_slices * l.width, s = l.width, hs = l.n_heads / l.n_slices, width = c->nope_dim + c->rope_dim;
    bool prefill = b->phase == PHASE_PREFILL;
    int o = need_buf(b, "o", l.n_heads * c->v_dim);
    plan_ref q = plan_mla_query(b, l.head0, l.n_heads), kv = plan_latent_slices(b, &l);
    add_kv_append(b, "attn.kv_append", columns(kv.buf, 0, own), columns(kv.buf, own, c->rope_dim), KV_MAIN, 0, own);
    for (int i = 0; i < l.n_slices; i++) {
        int head0 = l.head0 + i * hs, col0 = (l.slice0 + i) * s;
        plan_ref qi = columns(q.buf, i * hs * width, hs * width), oi = columns(o, i * hs * c->v_dim, hs * c->v_dim);
        int uk = need_heads(b, W_UK, head0, hs, c->nope_dim, col0, s), uv = need_heads(b, W_UV, head0, hs, c->v_dim, col0, s);
        if (prefill) {
            add_attn_mha(b, "attn.mha", qi, uk, uv, hs, s, i * s, own, KV_MAIN, oi, false);
            continue;
        }
        int qlat = need_buf(b, "q_lat", hs * s), olat = need_buf(b, "o_lat", hs * s);
        add_head_matmul(b, "attn.absorb", qi, width, uk, whole(b, qlat), s, false, false);
        add_attn_latent(b, "attn.latent", whole(b, qlat), columns(q.buf, qi.col + c->nope_dim, qi.cols - c->nope_dim), width, hs, s, i * s, own, whole(b, olat), no_ref);
        add_head_matmul(b, "attn.unabsorb", whole(b, olat), s, uv, oi, c->v_dim, true, false);
    }
    plan_attn_out(b, whole(b, o), l.head0, l.n_heads, c->v_dim);
}
