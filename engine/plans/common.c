#include "engine/plans/build.h"

void plan_embed(builder *b)
{
    const model_config *c = &b->p->cfg;
    plan_step *s = add_binary(b, OP_EMBED, "embed", no_ref, no_ref, columns(need_buf(b, "x", c->dim), 0, c->dim));
    s->w[0] = need_weight(b, W_EMBED, 0, c->vocab, 0, c->dim);
}

/* y is summed over ranks and added to the residual stream, or to `to` where it has columns. */
static void add_to_residual(builder *b, const char *reduce, const char *add, int y, plan_ref to)
{
    add_comm(b, reduce, COMM_ALL_REDUCE, all_ranks(b->p), whole(b, y), no_ref);
    add_binary(b, OP_ADD, add, whole(b, y), no_ref, to.cols ? to : whole(b, need_buf(b, "x", b->p->cfg.dim)));
}

/* A SwiGLU whose inner columns are split over ranks: step names, weight roles and, where they exist, bias roles. */
typedef struct {
    const char *names[4]; /* gate, up, silu_mul, down */
    int weights[3], biases[3];
} swiglu_parts;

/* This rank's `f` inner columns start at row f0 of the weights; y = or += the result. Rank 0 alone adds the last bias,
 * as ranks are summed afterwards. */
static void swiglu(builder *b, const swiglu_parts *s, int f0, int f, int xn, int y, bool accumulate)
{
    const model_config *c = &b->p->cfg;
    int dim = c->dim, inner[2];
    for (int i = 0; i < 2; i++) {
        inner[i] = need_buf(b, s->names[i], f);
        plan_step *m =
            add_matmul(b, s->names[i], whole(b, xn), need_weight(b, s->weights[i], f0, f, 0, dim), whole(b, inner[i]));
        set_bias(b, m, c->mlp_bias, s->biases[i], f0, f);
    }
    add_binary(b, OP_SILU_MUL, s->names[2], whole(b, inner[0]), whole(b, inner[1]), whole(b, inner[0]));
    plan_step *down =
        add_matmul(b, s->names[3], whole(b, inner[0]), need_weight(b, s->weights[2], 0, dim, f0, f), whole(b, y));
    down->call.matmul.accumulate = accumulate;
    set_bias(b, down, c->mlp_bias && b->p->rank == 0, s->biases[2], 0, dim);
}

static void dense_mlp(builder *b, int xn, int y)
{
    static const swiglu_parts parts = {{"mlp.gate", "mlp.up", "mlp.silu_mul", "mlp.down"},
                                       {W_GATE, W_UP, W_DOWN},
                                       {W_GATE_BIAS, W_UP_BIAS, W_DOWN_BIAS}};
    int f = b->p->cfg.ffn_dim / b->p->tp;
    swiglu(b, &parts, b->p->rank * f, f, xn, y, false);
}

static void moe_route(builder *b, int xn, int ids, int weights)
{
    const model_config *c = &b->p->cfg;
    int n = c->n_experts;
    plan_step *route = add_binary(b, OP_MOE_ROUTE, "moe.route", whole(b, xn), whole(b, ids), whole(b, weights));
    route->w[0] = need_weight(b, W_ROUTER, 0, n, 0, c->dim);
    route->w[1] = c->topk == MOE_NOAUX_TC ? need_weight(b, W_ROUTER_BIAS, 0, 1, 0, n) : -1;
    route->call.moe_route = (op_moe_route){.top_k = c->n_experts_per_tok,
                                           .n_group = c->n_group,
                                           .topk_group = c->topk_group,
                                           .scoring = c->scoring,
                                           .normalise = c->norm_topk,
                                           .scale = (float)c->routed_scaling};
}

/* Every rank routes all rows. It holds its share of each expert's inner columns (expert TP), or all of its share of the
 * experts (EP); where tp does not divide their number, some ranks hold one more. */
static void moe_mlp(builder *b, int xn, int y)
{
    static const swiglu_parts shared = {{"moe.shared_gate", "moe.shared_up", "moe.shared_silu_mul", "moe.shared_down"},
                                        {W_SHARED_GATE, W_SHARED_UP, W_SHARED_DOWN},
                                        {W_SHARED_GATE_BIAS, W_SHARED_UP_BIAS, W_SHARED_DOWN_BIAS}};
    const plan *p = b->p;
    const model_config *c = &p->cfg;
    bool ep = b->o.expert_parallel;
    int n = c->n_experts, first = ep ? (int)((int64_t)p->rank * n / p->tp) : 0;
    int n_local = ep ? (int)((int64_t)(p->rank + 1) * n / p->tp) - first : n;
    int f = ep ? c->expert_ffn_dim : c->expert_ffn_dim / p->tp, f0 = ep ? 0 : p->rank * f;
    int ids = need_buf(b, "moe_ids", c->n_experts_per_tok), weights = need_buf(b, "moe_weights", c->n_experts_per_tok);
    b->p->bufs[ids].f32 = b->p->bufs[weights].f32 = true;
    moe_route(b, xn, ids, weights);
    plan_step *experts = add_binary(b, OP_MOE_EXPERTS, "moe.experts", whole(b, xn), whole(b, ids), whole(b, y));
    experts->in[2] = whole(b, weights);
    if (n_local > 0) {
        experts->w[0] = need_expert_rows(b, W_EXPERT_GATE, first, n_local, f0, f);
        experts->w[1] = need_expert_rows(b, W_EXPERT_UP, first, n_local, f0, f);
        experts->w[2] = need_heads(b, W_EXPERT_DOWN, first, n_local, c->dim, f0, f);
    }
    experts->call.moe_experts = (op_moe_experts){.expert0 = first, .n_local = n_local, .n_experts = n, .ffn = f};
    int share = c->n_shared_experts * c->expert_ffn_dim / p->tp;
    if (c->n_shared_experts > 0)
        swiglu(b, &shared, p->rank * share, share, xn, y, true);
}

void plan_mlp(builder *b)
{
    const model_config *c = &b->p->cfg;
    int x = need_buf(b, "x", c->dim), xn = need_buf(b, "xn", c->dim), y = need_buf(b, "y", c->dim);
    plan_ref from = b->mlp_from.cols ? b->mlp_from : whole(b, x);
    add_rmsnorm(b, "mlp.norm", from, need_weight(b, W_MLP_NORM, 0, 1, 0, c->dim), whole(b, xn), 1);
    if (model_layer_is_moe(c, b->layer))
        moe_mlp(b, xn, y);
    else
        dense_mlp(b, xn, y);
    add_to_residual(b, "mlp.all_reduce", "mlp.add", y, b->mlp_to);
}

/* Only rows whose logits are wanted go through the head. The head is split over the vocabulary where tp divides it. */
void plan_logits(builder *b)
{
    plan *p = b->p;
    const model_config *c = &p->cfg;
    int parts = c->vocab % p->tp ? 1 : p->tp, v = c->vocab / parts;
    int hx = need_buf(b, "logit_x", c->dim), xn = need_buf(b, "logit_xn", c->dim),
        logits = need_buf(b, "logits", c->vocab);
    int part = parts > 1 ? need_buf(b, "logits_part", v) : logits;
    p->bufs[hx].logit_rows = p->bufs[xn].logit_rows = p->bufs[logits].logit_rows = p->bufs[part].logit_rows = true;
    p->bufs[logits].f32 = p->bufs[part].f32 = true;
    p->logits_buf = logits;
    add_binary(b, OP_GATHER_ROWS, "logits.gather_rows", whole(b, need_buf(b, "x", c->dim)), no_ref, whole(b, hx));
    add_rmsnorm(b, "logits.norm", whole(b, hx), need_weight(b, W_FINAL_NORM, 0, 1, 0, c->dim), whole(b, xn), 1);
    add_matmul(b, "logits.lm_head", whole(b, xn), need_weight(b, W_LM_HEAD, parts > 1 ? p->rank * v : 0, v, 0, c->dim),
               whole(b, part));
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
        plan_step *a = add_matmul(b, "attn.q_a", in, need_weight(b, W_Q_A, 0, c->q_lora_rank, 0, c->dim), qa);
        set_bias(b, a, c->qkv_bias, W_Q_A_BIAS, 0, c->q_lora_rank);
        in = whole(b, need_buf(b, "q_a_normed", c->q_lora_rank));
        add_rmsnorm(b, "attn.q_a_norm", qa, need_weight(b, W_Q_A_NORM, 0, 1, 0, c->q_lora_rank), in, 1)
            ->call.rmsnorm.eps = c->latent_eps;
    }
    add_matmul(b, "attn.q_b", in, need_weight(b, W_Q_B, head0 * width, n_heads * width, 0, in.cols), whole(b, q));
    add_rope(b, "attn.q_rope", columns(q, c->nope_dim, n_heads * width - c->nope_dim), n_heads, width);
    return whole(b, q);
}

void plan_attn_out(builder *b, plan_ref o, int head0, int n_heads, int o_dim)
{
    const model_config *c = &b->p->cfg;
    int y = need_buf(b, "y", c->dim);
    plan_ref to = b->attn_to.cols ? b->attn_to : whole(b, y);
    plan_step *m = add_matmul(b, "attn.o", o, need_weight(b, W_O, 0, c->dim, head0 * o_dim, n_heads * o_dim), to);
    set_bias(b, m, c->o_bias && b->p->rank == 0, W_O_BIAS, 0, c->dim);
    if (!b->attn_to.cols)
        add_to_residual(b, "attn.all_reduce", "attn.add", y, no_ref);
}
