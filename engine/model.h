/* model.h - an immutable model: configuration and weights by role, mapped from a Hugging Face checkpoint.
 * For:    plan.h reads the configuration, team.h binds the weights; commands print both.
 * Enter:  engine/, eval/, bench/, cli/, tests/.
 * Owns:   model_open() owns the file mappings; weights are borrowed from them and never copied whole.
 * Fails:  TPL_E_INPUT or TPL_E_IO with the file and the field or tensor, expected and actual. */
#ifndef TPL_ENGINE_MODEL_H
#define TPL_ENGINE_MODEL_H

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "base/text.h"
#include "kernels/ops.h"
#include "kernels/random.h"

typedef enum { ATTN_MLA, ATTN_GQA } attn_kind;

typedef enum { ROPE_PLAIN, ROPE_YARN, ROPE_LLAMA3, ROPE_OTHER } rope_scaling_kind;

/* How positions are stretched, from rope_scaling or rope_parameters. Zero where the kind has no such number. */
typedef struct {
    rope_scaling_kind kind;
    char type[24]; /* as config.json writes it: "yarn"; empty for ROPE_PLAIN */
    double factor;
    int32_t original_max_pos;
    double beta_fast, beta_slow;
    double mscale, mscale_all_dim, attention_factor; /* YaRN; 0: not given */
    bool keep_fraction;                              /* YaRN: the ramp's ends are not rounded to whole dimensions */
    double low_freq_factor, high_freq_factor;        /* Llama 3 */
} rope_scaling;

/* Greedy; the best experts of the best groups; the same with a stored correction bias an expert (DeepSeek-V3). */
typedef enum { MOE_GREEDY, MOE_GROUP_LIMITED_GREEDY, MOE_NOAUX_TC } moe_topk;

enum { MODEL_MAX_LAYERS = 1000, MODEL_F8_BLOCK = 128 };

/* Sizes and constants of a model, as config.json gives them; zero where a family has no such thing. */
typedef struct {
    char name[64];         /* folder or shape name, for rows and messages */
    char architecture[48]; /* "DeepseekV3ForCausalLM" */
    attn_kind attn;
    int32_t n_layers, vocab, dim, ffn_dim; /* hidden_size, intermediate_size */
    int32_t n_heads, n_kv_heads, head_dim; /* head_dim: GQA only */
    int32_t q_lora_rank;                   /* MLA; 0: queries are projected directly */
    int32_t kv_lora_rank, nope_dim, rope_dim, v_dim; /* MLA; rope_dim is head_dim for GQA */
    int32_t max_pos;                       /* max_position_embeddings */
    float rms_eps;
    float latent_eps; /* MLA: of the norms of both latents, which rms_norm_eps does not set */
    double rope_theta;
    bool rope_interleaved, tied_embeddings;
    int32_t bos_id, eos_id; /* -1: none */
    tpl_dtype weight_dtype; /* of the projections, for byte counts */
    /* Mixture of experts; n_experts 0: every layer is dense. */
    int32_t n_experts, n_experts_per_tok, n_shared_experts, expert_ffn_dim, first_dense_layers, moe_layer_freq;
    int32_t n_group, topk_group; /* expert groups, and how many of them a token may use */
    moe_scoring scoring;
    moe_topk topk;
    bool norm_topk;
    double routed_scaling;
    /* Features a configuration may ask for; model_config_runnable() says which of them the forward pass lacks. */
    rope_scaling rope;
    bool qkv_bias, o_bias, mlp_bias; /* qkv_bias: q, k and v (GQA) or q_a and kv_a (MLA) */
    bool qk_norm;                    /* GQA: an RMSNorm of every query and key head before RoPE */
    bool q_b_bias, no_latent_norm;   /* TransMLA: a bias on q_b; latents that are not normalised */
    int32_t sliding_window;          /* tokens; 0: not in use */
    uint32_t window_layers[(MODEL_MAX_LAYERS + 31) / 32]; /* a bit a layer: it sees only the window */
    char quant_method[24];           /* quantization_config; empty: none */
    int32_t quant_block[2];          /* "fp8": rows and columns that share a scale; 0: one a tensor */
} model_config;

/* Weight roles. Per layer unless marked (m): one a model. Shapes as stored, row-major [out, in]. */
#define MODEL_ROLE_LIST(X)                                                                    \
    X(W_EMBED, "embed")           /* (m) [vocab, dim] */                                      \
    X(W_FINAL_NORM, "final_norm") /* (m) [dim] */                                             \
    X(W_LM_HEAD, "lm_head")       /* (m) [vocab, dim]; the embedding itself when tied */      \
    X(W_ATTN_NORM, "attn_norm")   /* [dim] */                                                 \
    X(W_MLP_NORM, "mlp_norm")     /* [dim] */                                                 \
    X(W_Q_A, "q_a")               /* MLA [q_lora_rank, dim]; absent when q_lora_rank is 0 */  \
    X(W_Q_A_NORM, "q_a_norm")     /* MLA [q_lora_rank] */                                     \
    X(W_Q_B, "q_b")               /* MLA [n_heads * (nope + rope), q_lora_rank or dim] */     \
    X(W_KV_A, "kv_a")             /* MLA [kv_lora_rank + rope_dim, dim] */                    \
    X(W_KV_A_NORM, "kv_a_norm")   /* MLA [kv_lora_rank] (gamma) */                            \
    X(W_KV_B, "kv_b")             /* MLA [n_heads * (nope + v), kv_lora_rank] */              \
    X(W_Q, "q")                   /* GQA [n_heads * head_dim, dim] */                         \
    X(W_K, "k")                   /* GQA [n_kv_heads * head_dim, dim] */                      \
    X(W_V, "v")                   /* GQA [n_kv_heads * head_dim, dim] */                      \
    X(W_O, "o")                   /* [dim, n_heads * (v_dim or head_dim)] */                  \
    X(W_GATE, "gate")             /* dense layers [ffn_dim, dim] */                           \
    X(W_UP, "up")                 /* dense layers [ffn_dim, dim] */                           \
    X(W_DOWN, "down")             /* dense layers [dim, ffn_dim] */                           \
    X(W_Q_NORM, "q_norm")         /* GQA with qk_norm [head_dim] */                           \
    X(W_K_NORM, "k_norm")         /* GQA with qk_norm [head_dim] */                           \
    X(W_Q_BIAS, "q_bias")         /* GQA [n_heads * head_dim] */                              \
    X(W_K_BIAS, "k_bias")         /* GQA [n_kv_heads * head_dim] */                           \
    X(W_V_BIAS, "v_bias")         /* GQA [n_kv_heads * head_dim] */                           \
    X(W_Q_A_BIAS, "q_a_bias")     /* MLA [q_lora_rank] */                                     \
    X(W_KV_A_BIAS, "kv_a_bias")   /* MLA [kv_lora_rank + rope_dim] */                         \
    X(W_O_BIAS, "o_bias")         /* [dim] */                                                 \
    X(W_GATE_BIAS, "gate_bias")   /* dense layers [ffn_dim] */                                \
    X(W_UP_BIAS, "up_bias")       /* dense layers [ffn_dim] */                                \
    X(W_DOWN_BIAS, "down_bias")   /* dense layers [dim] */                                    \
    X(W_ROUTER, "router")         /* MoE layers [n_experts, dim] */                           \
    X(W_ROUTER_BIAS, "router_bias") /* MoE layers [n_experts] f32; noaux_tc */                \
    X(W_SHARED_GATE, "shared_gate") /* MoE layers [n_shared * expert_ffn, dim] */             \
    X(W_SHARED_UP, "shared_up")     /* MoE layers [n_shared * expert_ffn, dim] */             \
    X(W_SHARED_DOWN, "shared_down") /* MoE layers [dim, n_shared * expert_ffn] */             \
    X(W_SHARED_GATE_BIAS, "shared_gate_bias") /* MoE layers [n_shared * expert_ffn] */        \
    X(W_SHARED_UP_BIAS, "shared_up_bias")     /* MoE layers [n_shared * expert_ffn] */        \
    X(W_SHARED_DOWN_BIAS, "shared_down_bias") /* MoE layers [dim] */                          \
    X(W_EXPERT_GATE, "expert_gate") /* an expert of a MoE layer [expert_ffn, dim] */          \
    X(W_EXPERT_UP, "expert_up")     /* an expert of a MoE layer [expert_ffn, dim] */          \
    X(W_EXPERT_DOWN, "expert_down") /* an expert of a MoE layer [dim, expert_ffn] */

typedef enum {
#define MODEL_ROLE_ENUM(role, name) role,
    MODEL_ROLE_LIST(MODEL_ROLE_ENUM)
#undef MODEL_ROLE_ENUM
    W_N_ROLES
} weight_role;

const char *weight_role_name(weight_role r);
bool weight_role_per_layer(weight_role r);

typedef struct model model;

/* Opens a checkpoint folder: config.json, model.safetensors or model.safetensors.index.json with its shards. Checks that
 * every tensor the configuration implies is there with its shape and a known type, and nothing overlaps. Gives *out. */
tpl_code model_open(const char *dir, model **out, tpl_err *e);
void model_close(model *m);

/* A model of a shape file with seeded random weights: "shape:NAME,layers=N,moe=off|full,seed=N" (shape.h). Files of bare names
 * lie in `dir`. bf16, no quantization, plain positions: its logits mean nothing, its sizes are the model's. Weights take no
 * memory until model_make_weights(); norms are near 1, matrices keep the size of what they multiply. */
tpl_code model_open_shape(const char *spec, const char *dir, model **out, tpl_err *e);
bool model_is_random(const model *m);
/* Whether plans leave the feed-forward of all layers out (moe=off). */
bool model_attention_only(const model *m);
/* Makes a random model's weights in host memory, once; nothing to do for a checkpoint. TPL_E_MEMORY with the bytes. */
tpl_code model_make_weights(model *m, tpl_err *e);
/* How the matrix around a random model's weight pointer is drawn, and the pointer's index in it. False for checkpoints. */
bool model_weight_recipe(const model *m, const void *at, random_recipe *recipe, uint64_t *index);

/* Only the configuration: of a checkpoint folder, or of a models/shapes/NAME.json file (a config.json without weights). */
tpl_code model_config_read(const char *path, model_config *out, tpl_err *e);
/* Parses config.json bytes; `where` names them. */
tpl_code model_config_parse(const char *data, size_t len, const char *where, model_config *out, tpl_err *e);

/* TPL_E_UNSUPPORTED, naming the field and its value, if the forward pass lacks something the configuration asks for.
 * model_open() asks; plans and counts do not need it. */
tpl_code model_config_runnable(const model_config *c, tpl_err *e);
/* Whether a layer's feed-forward is a mixture of experts. */
bool model_layer_is_moe(const model_config *c, int layer);
/* Tokens a layer's attention sees; 0: all. */
int32_t model_layer_window(const model_config *c, int layer);
/* Factor of attention scores: 1 / sqrt(head width), times mscale^2 where YaRN's mscale_all_dim asks for it. */
float model_softmax_scale(const model_config *c);

const model_config *model_cfg(const model *m);
const char *model_dir(const model *m);

/* A weight as stored; vectors have rows 1. data is NULL if the model has no such weight. layer is ignored for (m)
 * roles. Two are not as stored, as what uses them takes no such type: an f8 kv_b and a router_bias are widened to f32. */
mat model_weight(const model *m, weight_role r, int layer);
/* One expert's matrix of a MoE layer: W_EXPERT_GATE, W_EXPERT_UP or W_EXPERT_DOWN. */
mat model_expert(const model *m, weight_role r, int layer, int expert);

/* Row `row` of a weight, columns [col, col + n), widened to f32 with its block scales applied. */
void model_read_row(const mat *w, int64_t row, int64_t col, int64_t n, float *out);

/* Reads every weight once and fails with the tensor's name and position at the first NaN or infinity.
 * TPL_E_INTERRUPTED after a signal. */
tpl_code model_check_finite(const model *m, tpl_err *e);

/* SHA-256 over the bytes of the weight files in name order, then config.json, read from the files; computed once, then
 * remembered. One file: cat model.safetensors config.json | sha256sum. */
tpl_code model_sha256(model *m, sha256_hex *out, tpl_err *e);

/* Total bytes and count of weight tensors in the files, for `info`. */
int64_t model_file_bytes(const model *m);
int32_t model_tensor_count(const model *m);
/* Stored numbers of the configuration's layers: all experts, biases and norms; no multi-token-prediction layers. */
int64_t model_param_count(const model_config *c);

/* Takes the mapped weights away (PROT_NONE), so that a read of a weight which no rank copied ends the program: the shard
 * isolation test uses it. */
void model_forbid_reads(model *m);

#endif
