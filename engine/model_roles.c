#include "engine/model_roles.h"

#include <stdio.h>

/* Names as all families store them; the first %d is the layer, the second the expert. Without a query latent, W_Q_B is
 * stored under W_Q's. */
static const struct {
    const char *word, *tensor;
} roles[] = {
#define MODEL_ROLE_WORD(role, name) [role].word = name,
    MODEL_ROLE_LIST(MODEL_ROLE_WORD)
#undef MODEL_ROLE_WORD
        [W_EMBED]
            .tensor = "model.embed_tokens.weight",
    [W_FINAL_NORM].tensor = "model.norm.weight",
    [W_LM_HEAD].tensor = "lm_head.weight",
    [W_ATTN_NORM].tensor = "model.layers.%d.input_layernorm.weight",
    [W_MLP_NORM].tensor = "model.layers.%d.post_attention_layernorm.weight",
    [W_Q_A].tensor = "model.layers.%d.self_attn.q_a_proj.weight",
    [W_Q_A_NORM].tensor = "model.layers.%d.self_attn.q_a_layernorm.weight",
    [W_Q_B].tensor = "model.layers.%d.self_attn.q_b_proj.weight",
    [W_KV_A].tensor = "model.layers.%d.self_attn.kv_a_proj_with_mqa.weight",
    [W_KV_A_NORM].tensor = "model.layers.%d.self_attn.kv_a_layernorm.weight",
    [W_KV_B].tensor = "model.layers.%d.self_attn.kv_b_proj.weight",
    [W_Q].tensor = "model.layers.%d.self_attn.q_proj.weight",
    [W_K].tensor = "model.layers.%d.self_attn.k_proj.weight",
    [W_V].tensor = "model.layers.%d.self_attn.v_proj.weight",
    [W_O].tensor = "model.layers.%d.self_attn.o_proj.weight",
    [W_GATE].tensor = "model.layers.%d.mlp.gate_proj.weight",
    [W_UP].tensor = "model.layers.%d.mlp.up_proj.weight",
    [W_DOWN].tensor = "model.layers.%d.mlp.down_proj.weight",
    [W_Q_NORM].tensor = "model.layers.%d.self_attn.q_norm.weight",
    [W_K_NORM].tensor = "model.layers.%d.self_attn.k_norm.weight",
    [W_Q_BIAS].tensor = "model.layers.%d.self_attn.q_proj.bias",
    [W_K_BIAS].tensor = "model.layers.%d.self_attn.k_proj.bias",
    [W_V_BIAS].tensor = "model.layers.%d.self_attn.v_proj.bias",
    [W_Q_A_BIAS].tensor = "model.layers.%d.self_attn.q_a_proj.bias",
    [W_KV_A_BIAS].tensor = "model.layers.%d.self_attn.kv_a_proj_with_mqa.bias",
    [W_O_BIAS].tensor = "model.layers.%d.self_attn.o_proj.bias",
    [W_GATE_BIAS].tensor = "model.layers.%d.mlp.gate_proj.bias",
    [W_UP_BIAS].tensor = "model.layers.%d.mlp.up_proj.bias",
    [W_DOWN_BIAS].tensor = "model.layers.%d.mlp.down_proj.bias",
    [W_ROUTER].tensor = "model.layers.%d.mlp.gate.weight",
    [W_ROUTER_BIAS].tensor = "model.layers.%d.mlp.gate.e_score_correction_bias",
    [W_SHARED_GATE].tensor = "model.layers.%d.mlp.shared_experts.gate_proj.weight",
    [W_SHARED_UP].tensor = "model.layers.%d.mlp.shared_experts.up_proj.weight",
    [W_SHARED_DOWN].tensor = "model.layers.%d.mlp.shared_experts.down_proj.weight",
    [W_SHARED_GATE_BIAS].tensor = "model.layers.%d.mlp.shared_experts.gate_proj.bias",
    [W_SHARED_UP_BIAS].tensor = "model.layers.%d.mlp.shared_experts.up_proj.bias",
    [W_SHARED_DOWN_BIAS].tensor = "model.layers.%d.mlp.shared_experts.down_proj.bias",
    [W_EXPERT_GATE].tensor = "model.layers.%d.mlp.experts.%d.gate_proj.weight",
    [W_EXPERT_UP].tensor = "model.layers.%d.mlp.experts.%d.up_proj.weight",
    [W_EXPERT_DOWN].tensor = "model.layers.%d.mlp.experts.%d.down_proj.weight",
};

const char *weight_role_name(weight_role r)
{
    return roles[r].word;
}

bool weight_role_per_layer(weight_role r)
{
    return r != W_EMBED && r != W_FINAL_NORM && r != W_LM_HEAD;
}

bool role_is_expert(weight_role r)
{
    return r == W_EXPERT_GATE || r == W_EXPERT_UP || r == W_EXPERT_DOWN;
}

void role_tensor_name(const model_config *c, weight_role r, int layer, int expert, char name[ROLE_TENSOR_NAME])
{
    const int numbers[] = {layer, expert};
    if (r == W_LM_HEAD && c->tied_embeddings)
        r = W_EMBED;
    if (r == W_Q_B && c->q_lora_rank == 0)
        r = W_Q;
    const char *at = roles[r].tensor;
    size_t n = 0;
    for (int i = 0; *at && n < ROLE_TENSOR_NAME - 1; at++) {
        bool number = at[0] == '%' && i < 2;
        n += (size_t)snprintf(name + n, ROLE_TENSOR_NAME - n, number ? "%d" : "%c", number ? numbers[i++] : *at);
        at += number;
    }
}

/* ---- shapes ---- */

static role_dims matrix(int64_t rows, int64_t cols)
{
    return (role_dims){2, {rows, cols}};
}

static role_dims vector(int64_t cols)
{
    return (role_dims){1, {cols, 0}};
}

static role_dims vector_if(bool wanted, int64_t cols)
{
    return wanted ? vector(cols) : (role_dims){0};
}

static role_dims mla_shape(const model_config *c, weight_role r)
{
    int64_t heads = c->n_heads, q_in = c->q_lora_rank ? c->q_lora_rank : c->dim;
    switch (r) {
    case W_Q_A:
        return c->q_lora_rank ? matrix(c->q_lora_rank, c->dim) : (role_dims){0};
    case W_Q_A_NORM:
        return vector_if(c->q_lora_rank, c->q_lora_rank);
    case W_Q_A_BIAS:
        return vector_if(c->q_lora_rank && c->qkv_bias, c->q_lora_rank);
    case W_Q_B:
        return matrix(heads * (c->nope_dim + c->rope_dim), q_in);
    case W_KV_A:
        return matrix((int64_t)c->kv_lora_rank + c->rope_dim, c->dim);
    case W_KV_A_BIAS:
        return vector_if(c->qkv_bias, (int64_t)c->kv_lora_rank + c->rope_dim);
    case W_KV_A_NORM:
        return vector(c->kv_lora_rank);
    case W_KV_B:
        return matrix(heads * (c->nope_dim + c->v_dim), c->kv_lora_rank);
    case W_O:
        return matrix(c->dim, heads * c->v_dim);
    default:
        return (role_dims){0};
    }
}

static role_dims gqa_shape(const model_config *c, weight_role r)
{
    int64_t q = (int64_t)c->n_heads * c->head_dim, kv = (int64_t)c->n_kv_heads * c->head_dim;
    switch (r) {
    case W_Q:
        return matrix(q, c->dim);
    case W_K:
    case W_V:
        return matrix(kv, c->dim);
    case W_O:
        return matrix(c->dim, q);
    case W_Q_BIAS:
        return vector_if(c->qkv_bias, q);
    case W_K_BIAS:
    case W_V_BIAS:
        return vector_if(c->qkv_bias, kv);
    case W_Q_NORM:
    case W_K_NORM:
        return vector_if(c->qk_norm, c->head_dim);
    default:
        return (role_dims){0};
    }
}

static role_dims dense_shape(const model_config *c, weight_role r)
{
    switch (r) {
    case W_GATE:
    case W_UP:
        return matrix(c->ffn_dim, c->dim);
    case W_DOWN:
        return matrix(c->dim, c->ffn_dim);
    case W_GATE_BIAS:
    case W_UP_BIAS:
        return vector_if(c->mlp_bias, c->ffn_dim);
    case W_DOWN_BIAS:
        return vector_if(c->mlp_bias, c->dim);
    default:
        return (role_dims){0};
    }
}

static role_dims moe_shape(const model_config *c, weight_role r)
{
    int64_t shared = (int64_t)c->n_shared_experts * c->expert_ffn_dim;
    bool has_shared = shared > 0;
    switch (r) {
    case W_ROUTER:
        return matrix(c->n_experts, c->dim);
    case W_ROUTER_BIAS:
        return vector_if(c->topk == MOE_NOAUX_TC, c->n_experts);
    case W_SHARED_GATE:
    case W_SHARED_UP:
        return has_shared ? matrix(shared, c->dim) : (role_dims){0};
    case W_SHARED_DOWN:
        return has_shared ? matrix(c->dim, shared) : (role_dims){0};
    case W_SHARED_GATE_BIAS:
    case W_SHARED_UP_BIAS:
        return vector_if(has_shared && c->mlp_bias, shared);
    case W_SHARED_DOWN_BIAS:
        return vector_if(has_shared && c->mlp_bias, c->dim);
    case W_EXPERT_GATE:
    case W_EXPERT_UP:
        return matrix(c->expert_ffn_dim, c->dim);
    case W_EXPERT_DOWN:
        return matrix(c->dim, c->expert_ffn_dim);
    default:
        return (role_dims){0};
    }
}

static bool is_attention(weight_role r)
{
    return r >= W_Q_A && r <= W_O;
}

role_dims role_shape(const model_config *c, weight_role r, int layer)
{
    switch (r) {
    case W_EMBED:
    case W_LM_HEAD:
        return matrix(c->vocab, c->dim);
    case W_FINAL_NORM:
    case W_ATTN_NORM:
    case W_MLP_NORM:
        return vector(c->dim);
    case W_O_BIAS:
        return vector_if(c->o_bias, c->dim);
    default:
        break;
    }
    if (is_attention(r) || (r >= W_Q_NORM && r <= W_KV_A_BIAS))
        return c->attn == ATTN_MLA ? mla_shape(c, r) : gqa_shape(c, r);
    return model_layer_is_moe(c, layer) ? moe_shape(c, r) : dense_shape(c, r);
}

bool role_may_be_f8(weight_role r)
{
    return (is_attention(r) && r != W_Q_A_NORM && r != W_KV_A_NORM) || (r >= W_GATE && r <= W_DOWN) ||
           (r >= W_SHARED_GATE && r <= W_SHARED_DOWN) || role_is_expert(r);
}
