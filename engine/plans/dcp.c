/* dcp.c - MLA with decode context parallelism: in decode every rank attends with all heads over its own 1/tp of the tokens
 * (token s lives on rank s mod tp); the parts are merged by their log-sum-exp. Exact. Prefill is MLA with heads split; while a
 * prompt is prefilled every rank also holds the whole latent. */
#include "engine/plans/latent.h"

void plan_streams_dcp(plan *p)
{
    int width = p->cfg.kv_lora_rank + p->cfg.rope_dim;
    p->streams[KV_MAIN] = (plan_stream){true, width, p->tp, p->rank};
    p->streams[KV_PREFILL] = (plan_stream){p->tp > 1, width, 1, 0};
}

static void dcp_decode(builder *b)
{
    const plan *p = b->p;
    const model_config *c = &p->cfg;
    int tp = p->tp, heads = c->n_heads / tp, head0 = p->rank * heads, r = c->kv_lora_rank, rope = c->rope_dim, wide = r + rope;
    int width = c->nope_dim + rope;
    int q_own = need_buf(b, "dcp_q", heads * wide), q_all = tp > 1 ? need_buf(b, "dcp_q_all", c->n_heads * wide) : q_own;
    int o_all = need_buf(b, "dcp_o_all", c->n_heads * r), o_own = tp > 1 ? need_buf(b, "o_lat", heads * r) : o_all;
    int lse = need_buf(b, "dcp_lse", c->n_heads), lse_all = tp > 1 ? need_buf(b, "dcp_lse_all", tp * c->n_heads) : lse;
    b->p->bufs[lse].f32 = b->p->bufs[lse_all].f32 = true;
    int o = need_buf(b, "o_decode", heads * c->v_dim);
    plan_ref q = plan_mla_query(b, head0, heads), kv = plan_latent(b, NORM_GAMMA);
    add_kv_append(b, "attn.kv_append", columns(kv.buf, 0, r), columns(kv.buf, r, rope), KV_MAIN, 0, r);
    add_head_matmul(b, "attn.absorb", q, width, need_heads(b, W_UK_WHOLE, head0, heads, c->nope_dim, 0, r), whole(b, q_own), wide, false, false);
    plan_step *copy = add_binary(b, OP_COPY_HEADS, "attn.copy_q_pe", columns(q.buf, c->nope_dim, q.cols - c->nope_dim), no_ref, columns(q_own, r, heads * wide - r));
    copy->call.copy_heads = (op_copy_heads){.heads = heads, .cols = rope, .x_head_stride = width, .out_head_stride = wide};
    add_comm(b, "attn.all_gather_q", COMM_ALL_GATHER, all_ranks(p), whole(b, q_own), whole(b, q_all));
    add_attn_latent(b, "attn.latent", whole(b, q_all), columns(q_all, r, c->n_heads * wide - r), wide, c->n_heads, r, 0, r, whole(b, o_all), whole(b, lse));
    if (tp > 1) {
        add_comm(b, "attn.all_gather_lse", COMM_ALL_GATHER, all_ranks(p), whole(b, lse), whole(b, lse_all));
        plan_step *merge = add_binary(b, OP_LSE_MERGE, "attn.lse_merge", whole(b, o_all), whole(b, lse_all), no_ref);
        merge->call.lse_merge.heads = c->n_heads;
        merge->call.lse_merge.lat = r;
        merge->call.lse_merge.parts = tp;
        merge->call.lse_merge.part = p->rank;
        add_comm(b, "attn.reduce_scatter_o", COMM_REDUCE_SCATTER, all_ranks(p), whole(b, o_all), whole(b, o_own));
    }
    add_head_matmul(b, "attn.unabsorb", whole(b, o_own), r, need_heads(b, W_UV, head0, heads, c->v_dim, 0, r), whole(b, o), c->v_dim, true, false);
    plan_attn_out(b, whole(b, o), head0, heads, c->v_dim);
}

void plan_attn_dcp(builder *b)
{
    plan_ref kv;
    int r = b->p->cfg.kv_lora_rank;
    if (b->phase == PHASE_DECODE) {
        dcp_decode(b);
        return;
    }
    bool two = b->p->streams[KV_PREFILL].used;
    plan_mla_prefill(b, NORM_GAMMA, two ? KV_PREFILL : KV_MAIN, &kv);
    if (two) /* the share of the prompt that this rank will decode from is kept beside the whole */
        add_kv_append(b, "attn.kv_share", columns(kv.buf, 0, r), columns(kv.buf, r, b->p->cfg.rope_dim), KV_MAIN, 0, r);
}
