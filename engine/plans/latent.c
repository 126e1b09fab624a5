#include "engine/plans/latent.h"

slice_layout slices_of(const plan *p)
{
    const model_config *c = &p->cfg;
    int g = p->v.g, tp = p->tp, parts = tp < g ? tp : g;
    slice_layout l = {.parts = parts, .width = c->kv_lora_rank / g};
    if (p->v.kind == VAR_GLA) { /* heads follow their slice: rank order is head order */
        l.n_heads = c->n_heads / tp;
        l.head0 = p->rank * l.n_heads;
        l.slice0 = (int)((int64_t)l.head0 * g / c->n_heads);
        l.n_slices = tp < g ? g / tp : 1;
        l.group = (comm_group){p->rank, 1};
        return l;
    }
    l.n_slices = g / parts;
    l.slice0 = p->rank % parts * l.n_slices;
    l.n_heads = c->n_heads / (tp / parts);
    l.head0 = p->rank / parts * l.n_heads;
    l.group = (comm_group){p->rank / parts * parts, parts};
    return l;
}

plan_ref plan_latent(builder *b, latent_norm norm)
{
    const model_config *c = &b->p->cfg;
    int r = c->kv_lora_rank, kv = need_buf(b, "kv", r + c->rope_dim);
    plan_ref lat = columns(kv, 0, r);
    plan_step *a = add_matmul(b, "attn.kv_a", whole(b, need_buf(b, "xn", c->dim)), need_weight(b, W_KV_A, 0, r + c->rope_dim, 0, c->dim), whole(b, kv));
    set_bias(b, a, c->qkv_bias, W_KV_A_BIAS, 0, r + c->rope_dim);
    if (norm == NORM_SLICED)
        add_sliced_norm(b, "attn.kv_norm", lat, 0, b->p->v.g);
    else
        add_rmsnorm(b, "attn.kv_norm", lat, norm == NORM_GAMMA ? need_weight(b, W_KV_A_NORM, 0, 1, 0, r) : -1, lat, 1)->call.rmsnorm.eps = c->latent_eps;
    add_rope(b, "attn.k_rope", columns(kv, r, c->rope_dim), 1, c->rope_dim);
    return whole(b, kv);
}

plan_ref plan_latent_slices(builder *b, const slice_layout *l)
{
    const model_config *c = &b->p->cfg;
    int own = l->n_slices * l->width, kv = need_buf(b, "kv_slice", own + c->rope_dim);
    plan_ref xn = whole(b, need_buf(b, "xn", c->dim)), lat = columns(kv, 0, own), pe = columns(kv, own, c->rope_dim);
    plan_step *a = add_matmul(b, "attn.kv_a", xn, need_weight(b, W_KV_A, l->slice0 * l->width, own, 0, c->dim), lat);
    set_bias(b, a, c->qkv_bias, W_KV_A_BIAS, l->slice0 * l->width, own);
    plan_step *k = add_matmul(b, "attn.k_pe", xn, need_weight(b, W_KV_A, c->kv_lora_rank, c->rope_dim, 0, c->dim), pe);
    set_bias(b, k, c->qkv_bias, W_KV_A_BIAS, c->kv_lora_rank, c->rope_dim);
    add_sliced_norm(b, "attn.kv_norm", lat, l->slice0, l->n_slices);
    add_rope(b, "attn.k_rope", pe, 1, c->rope_dim);
    return whole(b, kv);
}
