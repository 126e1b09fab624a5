/* gqa.c - grouped-query attention under head tensor parallelism: heads and KV heads are split over ranks. */
#include "engine/plans/build.h"

void plan_streams_gqa(plan *p)
{
    p->streams[KV_MAIN] = (plan_stream){true, 2 * p->cfg.n_kv_heads / p->tp * p->cfg.head_dim, 1, 0};
}

void plan_attn_gqa(builder *b)
{
    const plan *p = b->p;
    const model_config *c = &p->cfg;
    int heads = c->n_heads / p->tp, kv_heads = c->n_kv_heads / p->tp, hd = c->head_dim, kd = kv_heads * hd;
    int q = need_buf(b, "q", heads * hd), kv = need_buf(b, "kv", 2 * kd), o = need_buf(b, "o", heads * hd);
    plan_ref xn = whole(b, need_buf(b, "xn", c->dim));
    plan_step *mq =
        add_matmul(b, "attn.q", xn, need_weight(b, W_Q, p->rank * heads * hd, heads * hd, 0, c->dim), whole(b, q));
    set_bias(b, mq, c->qkv_bias, W_Q_BIAS, p->rank * heads * hd, heads * hd);
    plan_step *mk = add_matmul(b, "attn.k", xn, need_weight(b, W_K, p->rank * kd, kd, 0, c->dim), columns(kv, 0, kd));
    set_bias(b, mk, c->qkv_bias, W_K_BIAS, p->rank * kd, kd);
    plan_step *mv = add_matmul(b, "attn.v", xn, need_weight(b, W_V, p->rank * kd, kd, 0, c->dim), columns(kv, kd, kd));
    set_bias(b, mv, c->qkv_bias, W_V_BIAS, p->rank * kd, kd);
    if (c->qk_norm) {
        add_rmsnorm(b, "attn.q_norm", whole(b, q), need_weight(b, W_Q_NORM, 0, 1, 0, hd), whole(b, q), heads);
        add_rmsnorm(b, "attn.k_norm", columns(kv, 0, kd), need_weight(b, W_K_NORM, 0, 1, 0, hd), columns(kv, 0, kd),
                    kv_heads);
    }
    add_rope(b, "attn.q_rope", whole(b, q), heads, hd);
    add_rope(b, "attn.k_rope", columns(kv, 0, kd), kv_heads, hd);
    add_kv_append(b, "attn.kv_append", whole(b, kv), no_ref, KV_MAIN, 0, 0);
    add_attn_gqa(b, "attn.gqa", whole(b, q), heads, kv_heads, whole(b, o));
    plan_attn_out(b, whole(b, o), p->rank * heads, heads, hd);
}
