#include "engine/plans/build.h"

void plan_embed(builder *b)
{
    const model_config *c = &b->p->cfg;
    plan_step *s = add_binary(b, OP_EMBED, "embed", no_ref, no_ref, columns(need_buf(b, "x", c->dim), 0, c->dim));
    s->w[0] = need_weight(b, W_EMBED, 0, c->vocab, 0, c->dim);
}

/* y is summed over ranks and added to the residual. */
static void add_to_residual(builder *b, const char *reduce, const char *add, int y)
{
    add_comm(b, reduce, COMM_ALL_REDUCE, all_ranks(b->p), whole(b, y), no_ref);
    add_binary(b, OP_ADD, add, whole(b, y), no_ref, whole(b, need_buf(b, "x", b->p->cfg.dim)));
}

/* gate, up, down of a SwiGLU whose `f` inner columns on this rank start at row f0 of the weights; y = or += the result. */
static void swiglu(builder *b, const char *const names[4], const int roles[3], int f0, int f, int xn, int y, bool accumulate)
{
    int dim = b->p->cfg.dim, gate = need_buf(b, names[0], f), up = need_buf(b, names[1], f);
    add_matmul(b, names[0], whole(b, xn), need_weight(b, roles[0], f0, f, 0, dim), whole(b, gate));
    add_matmul(b, names[1], whole(b, xn), need_weight(b, roles[1], f0, f, 0, dim), whole(b, up));
    add_binary(b, OP_SILU_MUL, names[2], whole(b, gate), whole(b, up), whole(b, gate));
    add_matmul(b, names[3], whole(b, gate), need_weight(b, roles[2], 0, dim, f0, f), whole(b, y))->call.matmul.accumulate = accumulate;
}

static void dense_mlp(builder *b, int xn, int y)
{
    static const char *const names[] = {"mlp.gate", "mlp.up", "mlp.silu_mul", "mlp.down"};
    static const int roles[] = {W_GATE, W_UP, W_DOWN};
    int f = b->p->cfg.ffn_dim / b->p->tp;
    swiglu(b, names, roles, b->p->rank * f, f, xn, y, false);
}

/* Every rank routes all rows and holds its share of each expert's inner columns (expert TP). */
static void moe_mlp(builder *b, int xn, int y)
{
    static const char *const names[] = {"moe.shared_gate", "moe.shared_up", "moe.shared_silu_mul", "moe.shared_down"};
    static const int roles[] = {W_SHARED_GATE, W_SHARED_UP, W_SHARED_DOWN};
    const plan *p = b->p;
    const model_config *c = &p->cfg;
    int k = c->n_experts_per_tok, f = c->expert_ffn_dim / p->tp, n = c->n_experts;
    int ids = need_buf(b, "moe_ids", k), weights = need_buf(b, "moe_weights", k);
    plan_step *route = add_binary(b, OP_MOE_ROUTE, "moe.route", whole(b, xn), whole(b, ids), whole(b, weights));
    route->w[0] = need_weight(b, W_ROUTER, 0, n, 0, c->dim);
    route->w[1] = c->topk == MOE_NOAUX_TC ? need_weight(b, W_ROUTER_BIAS, 0, 1, 0, n) : -1;
    route->call.moe_route = (op_moe_route){.top_k = k, .n_group = c->n_group, .topk_group = c->topk_group, .scoring = c->scoring,
                                           .normalise = c->norm_topk, .scale = (float)c->routed_scaling};
    plan_step *experts = add_binary(b, OP_MOE_EXPERTS, "moe.experts", whole(b, xn), whole(b, ids), whole(b, y));
    experts->in[2] = whole(b, weights);
    experts->w[0] = need_heads(b, W_EXPERT_GATE, 0, n, f, 0, c->dim);
    experts->w[1] = need_heads(b, W_EXPERT_UP, 0, n, f, 0, c->dim);
    experts->w[2] = need_heads(b, W_EXPERT_DOWN, 0, n, c->dim, p->rank * f, f);
    experts->call.moe_experts = (op_moe_experts){.n_local = n, .n_experts = n, .ffn = f};
    if (c->n_shared_experts > 0)
        swiglu(b, names, roles, p->rank * f * c->n_shared_experts, f * c->n_shared_experts, xn, y, true);
}

void plan_mlp(builder *b)
{
    const model_config *c = &b->p->cfg;
    int x = need_buf(b, "x", c->dim), xn = need_buf(b, "xn", c->dim), y = need_buf(b, "y", c->dim);
    add_rmsnorm(b, "mlp.norm", whole(b, x), need_weight(b, W_MLP_NORM, 0, 1, 0, c->dim), whole(b, xn), 1);
    if (model_layer_is_moe(c, b->layer))
        moe_mlp(b, xn, y);
    else
        dense_mlp(b, xn, y);
    add_to_residual(b, "mlp.all_reduce", "mlp.add", y);
}

/* Only rows whose logits are wanted go through the head. The head is split over the vocabulary where tp divides it. */
void plan_logits(builder *b)
{
    plan *p = b->p;
    const model_config *c = &p->cfg;
    int parts = c->vocab % p->tp ? 1 : p->tp, v = c->vocab / parts;
    int hx = need_buf(b, "logit_x", c->dim), logits = need_buf(b, "logits", c->vocab);
    int part = parts > 1 ? need_buf(b, "logits_part", v) : logits;
    p->bufs[hx].logit_rows = p->bufs[logits].logit_rows = p->bufs[part].logit_rows = true;
    p->logits_buf = logits;
    add_binary(b, OP_GATHER_ROWS, "logits.gather_rows", whole(b, need_buf(b, "x", c->dim)), no_ref, whole(b, hx));
    add_rmsnorm(b, "logits.norm", whole(b, hx), need_weight(b, W_FINAL_NORM, 0, 1, 0, c->dim), whole(b, hx), 1);
    add_matmul(b, "logits.lm_head", whole(b, hx), need_weight(b, W_LM_HEAD, parts > 1 ? p->rank * v : 0, v, 0, c->dim), whole(b, part));
    if (parts > 1)
        add_comm(b, "logits.all_gather", COMM_ALL_GATHER, all_ranks(p), whole(b, part), whole(b, logits));
}

plan_ref plan_mla_query(builder *b, int head0, int n_heads)
{
    const model_config *c = &b->p->cfg;
    int width = c->nope_dim + c->rope_dim;
    int q = need_buf(b, b->phase == PHASE_PREFILL ? "q_prefill" : "q_decode", n_heads * width);
    plan_ref in = whole(b, need_buf(b, "xn", c->dim));
    if (c->q_lora_rank > 0) {
        plan_ref qa = whole(b, need_buf(b, "q_a", c->q_lora_rank));
        add_matmul(b, "attn.q_a", in, need_weight(b, W_Q_A, 0, c->q_lora_rank, 0, c->dim), qa);
        add_rmsnorm(b, "attn.q_a_norm", qa, need_weight(b, W_Q_A_NORM, 0, 1, 0, c->q_lora_rank), qa, 1);
        in = qa;
    }
    add_matmul(b, "attn.q_b", in, need_weight(b, W_Q_B, head0 * width, n_heads * width, 0, in.cols), whole(b, q));
    add_rope(b, "attn.q_rope", columns(q, c->nope_dim, n_heads * width - c->nope_dim), n_heads, width);
    return whole(b, q);
}

void plan_attn_out(builder *b, plan_ref o, int head0, int n_heads, int o_dim)
{
    const model_config *c = &b->p->cfg;
    int y = need_buf(b, "y", c->dim);
    add_matmul(b, "attn.o", o, need_weight(b, W_O, 0, c->dim, head0 * o_dim, n_heads * o_dim), whole(b, y));
    add_to_residual(b, "attn.all_reduce", "attn.add", y);
}
