/* config.c - the configuration half of model.h: config.json into a model_config, and arithmetic on it. */
#include "engine/model.h"

#include <assert.h>
#include <math.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"

/* What a family's forward pass has, and what transformers assumes where its config.json is silent. */
enum {
    ROPE_PAIRS = 1 << 0,        /* rotary pairs are neighbours (2i, 2i + 1) */
    BIAS_QKV = 1 << 1,          /* q, k and v have biases, always */
    BIAS_BY_FIELD = 1 << 2,     /* attention_bias is heeded */
    MLP_BIAS_BY_FIELD = 1 << 3, /* mlp_bias is heeded */
    QK_NORM = 1 << 4,           /* an RMSNorm of each query and key head */
    WINDOW_ALWAYS = 1 << 5,     /* sliding_window counts without use_sliding_window, in every layer */
    WINDOW_BY_FIELD = 1 << 6,   /* use_sliding_window, max_window_layers and layer_types are heeded */
    NO_NORM_TOPK = 1 << 7,      /* norm_topk_prob is ignored, as transformers does */
    TRANSMLA = 1 << 8           /* a GQA model converted to latent attention */
};

typedef struct {
    const char *architecture, *model_type;
    unsigned has;
    attn_kind attn;
    int32_t head_dim, n_kv_heads, window; /* 0: hidden_size / heads, as many as heads, none */
    double routed_scaling;
    moe_scoring scoring;
    moe_topk topk;
    int32_t n_group, topk_group;
    bool norm_topk;
} family;

static const family families[] = {
    {.architecture = "DeepseekV3ForCausalLM",
     .model_type = "deepseek_v3",
     .has = ROPE_PAIRS | BIAS_BY_FIELD,
     .attn = ATTN_MLA,
     .routed_scaling = 2.5,
     .scoring = MOE_SIGMOID,
     .topk = MOE_NOAUX_TC,
     .n_group = 8,
     .topk_group = 4,
     .norm_topk = true},
    {.architecture = "DeepseekV2ForCausalLM",
     .model_type = "deepseek_v2",
     .has = ROPE_PAIRS | BIAS_BY_FIELD | MLP_BIAS_BY_FIELD | NO_NORM_TOPK,
     .attn = ATTN_MLA,
     .routed_scaling = 1,
     .scoring = MOE_SOFTMAX,
     .topk = MOE_GREEDY,
     .n_group = 1,
     .topk_group = 1},
    {.architecture = "LlamaForCausalLM",
     .model_type = "llama",
     .has = BIAS_BY_FIELD | MLP_BIAS_BY_FIELD,
     .attn = ATTN_GQA},
    {.architecture = "MistralForCausalLM",
     .model_type = "mistral",
     .has = WINDOW_ALWAYS,
     .attn = ATTN_GQA,
     .n_kv_heads = 8,
     .window = 4096},
    {.architecture = "Qwen2ForCausalLM",
     .model_type = "qwen2",
     .has = BIAS_QKV | WINDOW_BY_FIELD,
     .attn = ATTN_GQA,
     .window = 4096},
    {.architecture = "Qwen3ForCausalLM",
     .model_type = "qwen3",
     .has = BIAS_BY_FIELD | QK_NORM | WINDOW_BY_FIELD,
     .attn = ATTN_GQA,
     .head_dim = 128,
     .window = 4096},
    {.architecture = "LlamaMLAForCausalLM",
     .model_type = "llamamla",
     .has = ROPE_PAIRS | BIAS_BY_FIELD | TRANSMLA,
     .attn = ATTN_MLA},
};

enum {
    MAX_DIM = 1 << 20,
    MAX_LAYERS = MODEL_MAX_LAYERS,
    MAX_VOCAB = 1 << 24,
    MAX_HEADS = 1 << 14,
    MAX_HEAD_DIM = 1 << 16,
    MAX_WIDTH = 1 << 24, /* heads x head width, so that every row length fits an int32 with room */
    MAX_EXPERTS = 1 << 16,
    MAX_POS = 1 << 28
};
static const double MAX_PARAMS = 1e15; /* a thousand times Kimi-K2; counts below it are exact in a double */

/* What the readers of one config.json share. */
typedef struct {
    const json_t *root;
    const char *where;
    const family *fam;
    model_config *c;
    tpl_err *e;
} reader;

/* ---- fields by table ---- */

typedef enum { REQUIRED, NULL_IS_ZERO, KEEP } presence; /* KEEP: absent or null keeps what stands */

typedef struct {
    const char *key;
    size_t offset; /* of the int32_t in model_config */
    int32_t lo, hi;
    presence presence;
} int_field;

#define FIELD(member) offsetof(model_config, member)

static const int_field common_fields[] = {
    {"num_hidden_layers", FIELD(n_layers), 1, MAX_LAYERS, REQUIRED},
    {"vocab_size", FIELD(vocab), 1, MAX_VOCAB, REQUIRED},
    {"hidden_size", FIELD(dim), 1, MAX_DIM, REQUIRED},
    {"intermediate_size", FIELD(ffn_dim), 1, MAX_DIM, REQUIRED},
    {"num_attention_heads", FIELD(n_heads), 1, MAX_HEADS, REQUIRED},
    {"max_position_embeddings", FIELD(max_pos), 1, MAX_POS, REQUIRED},
};

static const int_field mla_fields[] = {
    {"q_lora_rank", FIELD(q_lora_rank), 1, MAX_DIM, NULL_IS_ZERO},
    {"kv_lora_rank", FIELD(kv_lora_rank), 1, MAX_DIM, REQUIRED},
    {"qk_nope_head_dim", FIELD(nope_dim), 1, MAX_HEAD_DIM, REQUIRED},
    {"qk_rope_head_dim", FIELD(rope_dim), 2, MAX_HEAD_DIM, REQUIRED},
    {"v_head_dim", FIELD(v_dim), 1, MAX_HEAD_DIM, REQUIRED},
};

static const int_field moe_fields[] = {
    {"num_experts_per_tok", FIELD(n_experts_per_tok), 1, MAX_EXPERTS, REQUIRED},
    {"n_shared_experts", FIELD(n_shared_experts), 0, MAX_EXPERTS, NULL_IS_ZERO},
    {"moe_intermediate_size", FIELD(expert_ffn_dim), 1, MAX_DIM, REQUIRED},
    {"first_k_dense_replace", FIELD(first_dense_layers), 0, INT32_MAX, REQUIRED},
    {"moe_layer_freq", FIELD(moe_layer_freq), 1, INT32_MAX, KEEP},
    {"n_group", FIELD(n_group), 1, MAX_EXPERTS, KEEP},
    {"topk_group", FIELD(topk_group), 1, MAX_EXPERTS, KEEP},
};

/* A missing field that may be null is still an error: null says "none", silence would leave it to a guess. */
static tpl_code read_int(const reader *r, const json_t *obj, const int_field *f)
{
    int32_t *to = (int32_t *)((char *)r->c + f->offset);
    int64_t v = f->presence == KEEP ? *to : 0;
    const json_t *found = json_object_get(obj, f->key);
    if (f->presence == REQUIRED || (f->presence == NULL_IS_ZERO && !found))
        TPL_TRY(json_want_int(obj, f->key, f->lo, f->hi, &v, r->where, r->e));
    else
        TPL_TRY(json_maybe_int(obj, f->key, f->lo, f->hi, &v, r->where, r->e));
    *to = (int32_t)v;
    return TPL_OK;
}

#define READ_INTS(r, table) read_ints((r), (table), sizeof(table) / sizeof *(table))

static tpl_code read_ints(const reader *r, const int_field *table, size_t n)
{
    for (size_t i = 0; i < n; i++)
        TPL_TRY(read_int(r, r->root, &table[i]));
    return TPL_OK;
}

/* Absent or null keeps *out. */
static tpl_code read_real(const reader *r, const json_t *obj, const char *key, double lo, double hi, double *out)
{
    double v = *out;
    bool given = json_is_number(json_object_get(obj, key));
    TPL_TRY(json_maybe_real(obj, key, &v, r->where, r->e));
    if (given && !(v >= lo && v <= hi))
        return tpl_fail(r->e, TPL_E_INPUT, r->where, "field '%s' is %g, expected %g to %g", key, v, lo, hi);
    *out = v;
    return TPL_OK;
}

static tpl_code read_bool(const reader *r, const char *key, bool *out)
{
    return json_maybe_bool(r->root, key, out, r->where, r->e);
}

/* Sets *out to the index of the field's text in `words`; absent keeps it. */
static tpl_code read_word(const reader *r, const char *key, const char *const *words, int n, int *out)
{
    const char *s = NULL;
    TPL_TRY(json_maybe_str(r->root, key, &s, r->where, r->e));
    for (int i = 0; s && i < n; i++)
        if (strcmp(s, words[i]) == 0) {
            *out = i;
            return TPL_OK;
        }
    return s ? tpl_fail(r->e, TPL_E_UNSUPPORTED, r->where, "field '%s' is '%.60s', expected '%s' or '%s'", key, s,
                        words[0], words[n - 1])
             : TPL_OK;
}

/* A token id, or the first of a list of them; absent or null: -1. */
static tpl_code read_token(const reader *r, const char *key, int32_t *out)
{
    const json_t *v = json_object_get(r->root, key);
    *out = -1;
    if (json_is_array(v) && json_array_size(v) > 0)
        v = json_array_get(v, 0);
    if (!v || json_is_null(v))
        return TPL_OK;
    if (!json_is_integer(v) || json_integer_value(v) < 0 || json_integer_value(v) >= r->c->vocab)
        return tpl_fail(r->e, TPL_E_INPUT, r->where, "field '%s' is not a token id, expected 0 to %d (vocab_size - 1)",
                        key, r->c->vocab - 1);
    *out = (int32_t)json_integer_value(v);
    return TPL_OK;
}

/* ---- parts of config.json ---- */

/* By architecture, or else by model_type, of which Kimi-K2 has its own for DeepSeek-V3's. */
static const family *find_family(const char *architecture, const char *model_type)
{
    if (!architecture && strcmp(model_type, "kimi_k2") == 0)
        return &families[0];
    for (size_t i = 0; i < sizeof families / sizeof *families; i++)
        if (architecture ? strcmp(architecture, families[i].architecture) == 0
                         : strcmp(model_type, families[i].model_type) == 0)
            return &families[i];
    return NULL;
}

static tpl_code unknown_family(const reader *r, const char *name)
{
    text_buf known = {0};
    for (size_t i = 0; i < sizeof families / sizeof *families; i++)
        text_addf(&known, "%s%s", i ? ", " : "", families[i].architecture);
    tpl_code rc =
        tpl_fail(r->e, TPL_E_UNSUPPORTED, r->where, "architecture is '%.60s', expected one of %s", name, known.data);
    text_fini(&known);
    return rc;
}

static tpl_code read_architecture(reader *r)
{
    const json_t *list = json_object_get(r->root, "architectures");
    const char *name = json_string_value(json_array_get(list, 0)), *type = NULL;
    if (list && !json_is_null(list) && !name)
        return tpl_fail(r->e, TPL_E_INPUT, r->where,
                        "field 'architectures' is not a list of names, expected such as [\"%s\"]",
                        families[0].architecture);
    TPL_TRY(json_maybe_str(r->root, "model_type", &type, r->where, r->e));
    if (!name && !type)
        return tpl_fail(r->e, TPL_E_INPUT, r->where, "neither 'architectures' nor 'model_type' is given, expected one");
    r->fam = find_family(name, type);
    if (!r->fam)
        return unknown_family(r, name ? name : type);
    snprintf(r->c->architecture, sizeof r->c->architecture, "%s", r->fam->architecture);
    r->c->attn = r->fam->attn;
    return TPL_OK;
}

static tpl_code check_widths(const reader *r, int64_t head_dim, const char *what)
{
    int64_t width = r->c->n_heads * head_dim;
    if (width <= MAX_WIDTH)
        return TPL_OK;
    return tpl_fail(r->e, TPL_E_INPUT, r->where, "num_attention_heads x %s is %lld, expected at most %d", what,
                    (long long)width, MAX_WIDTH);
}

static tpl_code read_mla(const reader *r)
{
    model_config *c = r->c;
    bool normed = true;
    TPL_TRY(READ_INTS(r, mla_fields));
    TPL_TRY(read_bool(r, "qk_latent_layernorm", &normed));
    c->no_latent_norm = !normed;
    c->latent_eps = 1e-6f;
    if (c->n_kv_heads != c->n_heads)
        return tpl_fail(r->e, TPL_E_INPUT, r->where,
                        "field 'num_key_value_heads' is %d, expected %d as num_attention_heads", c->n_kv_heads,
                        c->n_heads);
    if (c->rope_dim % 2)
        return tpl_fail(r->e, TPL_E_INPUT, r->where, "field 'qk_rope_head_dim' is %d, expected an even number",
                        c->rope_dim);
    TPL_TRY(check_widths(r, (int64_t)c->nope_dim + c->rope_dim, "(qk_nope_head_dim + qk_rope_head_dim)"));
    return check_widths(r, (int64_t)c->nope_dim + c->v_dim, "(qk_nope_head_dim + v_head_dim)");
}

static tpl_code read_gqa(const reader *r)
{
    model_config *c = r->c;
    static const int_field head_dim = {"head_dim", FIELD(head_dim), 2, MAX_HEAD_DIM, KEEP};
    c->head_dim = r->fam->head_dim;
    c->qk_norm = r->fam->has & QK_NORM;
    TPL_TRY(read_int(r, r->root, &head_dim));
    if (c->head_dim == 0 && c->dim % c->n_heads)
        return tpl_fail(r->e, TPL_E_INPUT, r->where,
                        "field 'hidden_size' is %d, expected a multiple of %d heads or a 'head_dim'", c->dim,
                        c->n_heads);
    if (c->head_dim == 0)
        c->head_dim = c->dim / c->n_heads;
    if (c->head_dim % 2)
        return tpl_fail(r->e, TPL_E_INPUT, r->where, "head_dim is %d, expected an even number", c->head_dim);
    c->rope_dim = c->head_dim;
    return check_widths(r, c->head_dim, "head_dim");
}

static tpl_code read_heads(const reader *r)
{
    static const int_field kv_heads = {"num_key_value_heads", FIELD(n_kv_heads), 1, MAX_HEADS, KEEP};
    bool silent = !json_object_get(r->root, kv_heads.key);
    r->c->n_kv_heads = silent && r->fam->n_kv_heads ? r->fam->n_kv_heads : r->c->n_heads;
    TPL_TRY(read_int(r, r->root, &kv_heads));
    if (r->c->n_heads % r->c->n_kv_heads)
        return tpl_fail(r->e, TPL_E_INPUT, r->where,
                        "field 'num_key_value_heads' is %d, expected a divisor of %d heads", r->c->n_kv_heads,
                        r->c->n_heads);
    return r->c->attn == ATTN_MLA ? read_mla(r) : read_gqa(r);
}

static tpl_code check_moe(const reader *r)
{
    const model_config *c = r->c;
    if (c->n_experts_per_tok > c->n_experts)
        return tpl_fail(r->e, TPL_E_INPUT, r->where,
                        "field 'num_experts_per_tok' is %d, expected at most %d (n_routed_experts)",
                        c->n_experts_per_tok, c->n_experts);
    if (c->n_experts % c->n_group)
        return tpl_fail(r->e, TPL_E_INPUT, r->where,
                        "field 'n_group' is %d, expected a divisor of %d (n_routed_experts)", c->n_group, c->n_experts);
    if (c->topk_group > c->n_group)
        return tpl_fail(r->e, TPL_E_INPUT, r->where, "field 'topk_group' is %d, expected at most %d (n_group)",
                        c->topk_group, c->n_group);
    int32_t eligible = c->n_experts / c->n_group * c->topk_group;
    if (c->n_experts_per_tok > eligible)
        return tpl_fail(r->e, TPL_E_INPUT, r->where,
                        "field 'num_experts_per_tok' is %d, expected at most %d (%d of %d groups)",
                        c->n_experts_per_tok, eligible, c->topk_group, c->n_group);
    return TPL_OK;
}

static tpl_code read_moe(const reader *r)
{
    model_config *c = r->c;
    static const int_field n_experts = {"n_routed_experts", FIELD(n_experts), 1, MAX_EXPERTS, KEEP};
    static const char *const scorings[] = {"softmax", "sigmoid"}; /* in the order of moe_scoring and moe_topk */
    static const char *const topks[] = {"greedy", "group_limited_greedy", "noaux_tc"};
    if (c->attn != ATTN_MLA || (r->fam->has & TRANSMLA))
        return TPL_OK;
    TPL_TRY(read_int(r, r->root, &n_experts));
    if (c->n_experts == 0)
        return TPL_OK;
    c->moe_layer_freq = 1;
    c->n_group = r->fam->n_group;
    c->topk_group = r->fam->topk_group;
    c->norm_topk = r->fam->norm_topk;
    c->routed_scaling = r->fam->routed_scaling;
    int scoring = (int)r->fam->scoring, topk = (int)r->fam->topk;
    TPL_TRY(READ_INTS(r, moe_fields));
    TPL_TRY(read_bool(r, "norm_topk_prob", &c->norm_topk));
    TPL_TRY(read_real(r, r->root, "routed_scaling_factor", 1e-6, 1e6, &c->routed_scaling));
    TPL_TRY(read_word(r, "scoring_func", scorings, 2, &scoring));
    TPL_TRY(read_word(r, "topk_method", topks, 3, &topk));
    c->scoring = (moe_scoring)scoring;
    c->topk = (moe_topk)topk;
    if (c->topk == MOE_GREEDY)
        c->n_group = c->topk_group = 1;
    if (r->fam->has & NO_NORM_TOPK)
        c->norm_topk = false;
    return check_moe(r);
}

/* ---- RoPE ---- */

static tpl_code need_positive(const reader *r, const char *key, double v)
{
    if (v > 0)
        return TPL_OK;
    return tpl_fail(r->e, TPL_E_INPUT, r->where,
                    "field '%s' of the '%s' RoPE scaling is missing, expected a positive number", key, r->c->rope.type);
}

static tpl_code read_rope_numbers(const reader *r, const json_t *p)
{
    rope_scaling *s = &r->c->rope;
    static const int_field original = {"original_max_position_embeddings", FIELD(rope.original_max_pos), 1, MAX_POS,
                                       KEEP};
    s->original_max_pos = r->c->max_pos;
    TPL_TRY(read_int(r, p, &original));
    TPL_TRY(read_int(r, r->root, &original)); /* beside the scaling it comes first */
    if (s->kind == ROPE_YARN && json_object_get(p, "factor") && json_is_null(json_object_get(p, "factor")))
        s->factor = fmax(1, (double)r->c->max_pos / s->original_max_pos);
    TPL_TRY(read_real(r, p, "factor", 1, 1e6, &s->factor));
    TPL_TRY(need_positive(r, "factor", s->factor));
    if (s->kind == ROPE_YARN) {
        s->beta_fast = 32;
        s->beta_slow = 1;
        TPL_TRY(read_real(r, p, "beta_fast", 1e-6, 1e6, &s->beta_fast));
        TPL_TRY(read_real(r, p, "beta_slow", 1e-6, 1e6, &s->beta_slow));
        TPL_TRY(read_real(r, p, "mscale", 0, 1e6, &s->mscale));
        TPL_TRY(read_real(r, p, "mscale_all_dim", 0, 1e6, &s->mscale_all_dim));
        TPL_TRY(read_real(r, p, "attention_factor", 0, 1e6, &s->attention_factor));
        bool truncate = true;
        TPL_TRY(json_maybe_bool(p, "truncate", &truncate, r->where, r->e));
        s->keep_fraction = !truncate;
        return TPL_OK;
    }
    TPL_TRY(read_real(r, p, "low_freq_factor", 1e-6, 1e6, &s->low_freq_factor));
    TPL_TRY(read_real(r, p, "high_freq_factor", 1e-6, 1e6, &s->high_freq_factor));
    TPL_TRY(need_positive(r, "low_freq_factor", s->low_freq_factor));
    TPL_TRY(need_positive(r, "high_freq_factor", s->high_freq_factor));
    if (s->high_freq_factor <= s->low_freq_factor)
        return tpl_fail(r->e, TPL_E_INPUT, r->where,
                        "field 'high_freq_factor' is %g, expected more than low_freq_factor %g", s->high_freq_factor,
                        s->low_freq_factor);
    return TPL_OK;
}

static tpl_code read_rope_scaling(const reader *r, const json_t *p)
{
    rope_scaling *s = &r->c->rope;
    const char *type = NULL;
    TPL_TRY(json_maybe_str(p, "type", &type, r->where, r->e));
    TPL_TRY(json_maybe_str(p, "rope_type", &type, r->where, r->e));
    if (!type)
        return tpl_fail(r->e, TPL_E_INPUT, r->where,
                        "RoPE scaling has no 'rope_type' or 'type', expected such as 'yarn'");
    if (strcmp(type, "default") == 0)
        return TPL_OK;
    snprintf(s->type, sizeof s->type, "%s", type);
    s->kind = strcmp(type, "yarn") == 0 ? ROPE_YARN : strcmp(type, "llama3") == 0 ? ROPE_LLAMA3 : ROPE_OTHER;
    return s->kind == ROPE_OTHER ? TPL_OK : read_rope_numbers(r, p);
}

/* transformers 5 gathers everything in rope_parameters; earlier versions have rope_theta beside rope_scaling. */
static tpl_code read_rope(const reader *r)
{
    model_config *c = r->c;
    json_t *p = json_object_get(r->root, "rope_parameters");
    const char *key = p && !json_is_null(p) ? "rope_parameters" : "rope_scaling";
    double partial = 1;
    bool nested = strcmp(key, "rope_parameters") == 0;
    c->rope_theta = 10000;
    c->rope_interleaved = r->fam->has & ROPE_PAIRS;
    TPL_TRY(read_bool(r, "rope_interleave", &c->rope_interleaved));
    TPL_TRY(read_real(r, r->root, "rope_theta", 1, 1e12, &c->rope_theta));
    TPL_TRY(read_real(r, r->root, "partial_rotary_factor", 0, 1, &partial));
    p = json_object_get(r->root, key);
    if (p && !json_is_null(p)) {
        TPL_TRY(json_want_object(r->root, key, &p, r->where, r->e));
        if (nested)
            TPL_TRY(read_real(r, p, "rope_theta", 1, 1e12, &c->rope_theta));
        TPL_TRY(read_real(r, p, "partial_rotary_factor", 0, 1, &partial));
        TPL_TRY(read_rope_scaling(r, p));
    }
    if (partial != 1) {
        c->rope.kind = ROPE_OTHER;
        snprintf(c->rope.type, sizeof c->rope.type, "partial_rotary_factor");
    }
    return TPL_OK;
}

/* ---- the rest ---- */

static tpl_code read_quant_block(const reader *r, const json_t *quant)
{
    const json_t *block = json_object_get(quant, "weight_block_size");
    if (!block || json_is_null(block))
        return TPL_OK;
    for (size_t i = 0; i < 2; i++) {
        const json_t *v = json_array_get(block, i);
        if (json_array_size(block) != 2 || !json_is_integer(v) || json_integer_value(v) < 1 ||
            json_integer_value(v) > MAX_DIM)
            return tpl_fail(r->e, TPL_E_INPUT, r->where,
                            "field 'weight_block_size' is not a pair of sizes, expected such as [%d, %d]",
                            MODEL_F8_BLOCK, MODEL_F8_BLOCK);
        r->c->quant_block[i] = (int32_t)json_integer_value(v);
    }
    return TPL_OK;
}

static tpl_code read_weight_type(const reader *r)
{
    const char *type = "float32", *method = "";
    const json_t *quant = json_object_get(r->root, "quantization_config");
    TPL_TRY(json_maybe_str(r->root, "torch_dtype", &type, r->where, r->e));
    TPL_TRY(json_maybe_str(r->root, "dtype", &type, r->where, r->e));
    if (strcmp(type, "bfloat16") == 0)
        r->c->weight_dtype = DT_BF16;
    else if (strcmp(type, "float16") == 0)
        r->c->weight_dtype = DT_F16;
    else if (strcmp(type, "float32") == 0)
        r->c->weight_dtype = DT_F32;
    else
        return tpl_fail(r->e, TPL_E_UNSUPPORTED, r->where,
                        "field 'torch_dtype' is '%.60s', expected bfloat16, float16 or float32", type);
    if (!quant || json_is_null(quant))
        return TPL_OK;
    TPL_TRY(json_want_str(quant, "quant_method", &method, r->where, r->e));
    snprintf(r->c->quant_method, sizeof r->c->quant_method, "%s", method);
    if (strcmp(method, "fp8") != 0)
        return TPL_OK;
    r->c->weight_dtype = DT_F8E4M3;
    return read_quant_block(r, quant);
}

static tpl_code read_biases(const reader *r)
{
    bool attention = false, mlp = false;
    unsigned has = r->fam->has;
    model_config *c = r->c;
    TPL_TRY(read_bool(r, "attention_bias", &attention));
    TPL_TRY(read_bool(r, "mlp_bias", &mlp));
    attention = attention && (has & BIAS_BY_FIELD);
    c->mlp_bias = mlp && (has & MLP_BIAS_BY_FIELD);
    c->qkv_bias = attention || (has & BIAS_QKV);
    c->o_bias = attention && !(has & TRANSMLA);
    c->q_b_bias = attention && (has & TRANSMLA);
    return TPL_OK;
}

static void set_window_layers(model_config *c, int32_t first)
{
    for (int32_t i = first; i < c->n_layers; i++)
        c->window_layers[i / 32] |= 1u << i % 32;
}

/* layer_types names each layer's attention. */
static tpl_code read_layer_types(const reader *r, const json_t *types)
{
    model_config *c = r->c;
    memset(c->window_layers, 0, sizeof c->window_layers);
    if (json_array_size(types) < (size_t)c->n_layers)
        return tpl_fail(r->e, TPL_E_INPUT, r->where, "field 'layer_types' has %zu items, expected %d",
                        json_array_size(types), c->n_layers);
    for (int32_t i = 0; i < c->n_layers; i++) {
        const char *type = json_string_value(json_array_get(types, (size_t)i));
        if (!type || (strcmp(type, "full_attention") != 0 && strcmp(type, "sliding_attention") != 0))
            return tpl_fail(r->e, TPL_E_UNSUPPORTED, r->where,
                            "field 'layer_types' has '%.40s', expected 'full_attention' or 'sliding_attention'",
                            type ? type : "no text");
        if (strcmp(type, "sliding_attention") == 0)
            c->window_layers[i / 32] |= 1u << i % 32;
    }
    return TPL_OK;
}

static tpl_code read_window(const reader *r)
{
    static const char key[] = "sliding_window";
    bool used = r->fam->has & WINDOW_ALWAYS;
    int64_t window = json_object_get(r->root, key) ? 0 : r->fam->window, first = 28;
    json_t *types = json_object_get(r->root, "layer_types");
    if (r->fam->has & WINDOW_BY_FIELD)
        TPL_TRY(read_bool(r, "use_sliding_window", &used));
    TPL_TRY(json_maybe_int(r->root, key, 1, INT32_MAX, &window, r->where, r->e));
    if (!used || window == 0)
        return TPL_OK;
    r->c->sliding_window = (int32_t)window;
    if (r->fam->has & WINDOW_ALWAYS)
        first = 0;
    else
        TPL_TRY(json_maybe_int(r->root, "max_window_layers", 0, INT32_MAX, &first, r->where, r->e));
    if (first < r->c->n_layers)
        set_window_layers(r->c, (int32_t)first);
    if ((r->fam->has & WINDOW_BY_FIELD) && types && !json_is_null(types)) {
        TPL_TRY(json_want_array(r->root, "layer_types", &types, r->where, r->e));
        return read_layer_types(r, types);
    }
    return TPL_OK;
}

static tpl_code read_misc(const reader *r)
{
    const char *act = "silu";
    double eps = 1e-6;
    TPL_TRY(json_maybe_str(r->root, "hidden_act", &act, r->where, r->e));
    if (strcmp(act, "silu") != 0)
        return tpl_fail(r->e, TPL_E_UNSUPPORTED, r->where, "field 'hidden_act' is '%.60s', expected 'silu'", act);
    TPL_TRY(read_real(r, r->root, "rms_norm_eps", 1e-30, 1, &eps));
    r->c->rms_eps = (float)eps;
    TPL_TRY(read_bool(r, "tie_word_embeddings", &r->c->tied_embeddings));
    TPL_TRY(read_token(r, "bos_token_id", &r->c->bos_id));
    TPL_TRY(read_token(r, "eos_token_id", &r->c->eos_id));
    TPL_TRY(read_weight_type(r));
    TPL_TRY(read_biases(r));
    return read_window(r);
}

static double count_params(const model_config *c);

static tpl_code read_all(reader *r)
{
    if (!json_is_object(r->root))
        return tpl_fail(r->e, TPL_E_INPUT, r->where, "configuration is %s, expected an object",
                        json_type_word(r->root));
    TPL_TRY(read_architecture(r));
    assert(r->fam);
    TPL_TRY(READ_INTS(r, common_fields));
    TPL_TRY(read_heads(r));
    TPL_TRY(read_moe(r));
    TPL_TRY(read_rope(r));
    TPL_TRY(read_misc(r));
    if (count_params(r->c) > MAX_PARAMS)
        return tpl_fail(r->e, TPL_E_INPUT, r->where, "sizes give %g parameters, expected at most %g",
                        count_params(r->c), MAX_PARAMS);
    return TPL_OK;
}

tpl_code model_config_parse(const char *data, size_t len, const char *where, model_config *out, tpl_err *e)
{
    json_t *root;
    model_config c = {0};
    TPL_TRY(json_load_bytes(data, len, where, &root, e));
    reader r = {.root = root, .where = where, .c = &c, .e = e};
    tpl_code rc = read_all(&r);
    json_decref(root);
    if (rc == TPL_OK)
        *out = c;
    return rc;
}

static bool name_char(char c)
{
    return (c >= '0' && c <= '9') || ((c | 32) >= 'a' && (c | 32) <= 'z') || (c && strchr("._+-", c));
}

/* The folder part of a path, which is cut after it. */
static char *folder_of(char *path)
{
    static char here[] = ".";
    char *slash = strrchr(path, '/');
    if (!slash)
        return here;
    *slash = 0;
    return path;
}

/* The checkpoint's folder, or the shape file without its extension. Bytes that could trouble a CSV cell or a terminal
 * become '_'. */
static void name_from_path(arena *a, const char *given, bool is_file, char *name, size_t cap)
{
    char *path = arena_printf(a, "%s", given);
    for (size_t n = strlen(path); n > 1 && path[n - 1] == '/'; n--)
        path[n - 1] = 0;
    const char *base = text_base_name(path);
    if (is_file && strcmp(base, "config.json") == 0)
        path = folder_of(path);
    else if (is_file && *base && strchr(base + 1, '.'))
        *strrchr(path, '.') = 0;
    base = text_base_name(path);
    char *full = strcmp(base, ".") == 0 || strcmp(base, "..") == 0 ? realpath(path, NULL) : NULL;
    if (full)
        base = text_base_name(full);
    size_t n = 0;
    for (; base[n] && n < cap - 1; n++)
        name[n] = name_char(base[n]) ? base[n] : '_';
    name[n] = 0;
    free(full);
}

tpl_code model_config_read(const char *path, model_config *out, tpl_err *e)
{
    char *data = NULL;
    size_t len = 0;
    arena a;
    bool is_dir = text_is_dir(path);
    arena_init(&a);
    const char *file = is_dir ? text_path_join(&a, path, "config.json") : path;
    tpl_code rc;
    if (!text_is_file(file))
        rc = tpl_fail(e, TPL_E_IO, path,
                      is_dir ? "holds no config.json, expected a checkpoint folder"
                             : "no such folder or file, expected a checkpoint folder or a config.json");
    else
        rc = text_read_file(file, &data, &len, e);
    if (rc == TPL_OK) {
        rc = model_config_parse(data, len, file, out, e);
        free(data);
    }
    if (rc == TPL_OK)
        name_from_path(&a, path, !is_dir, out->name, sizeof out->name);
    arena_fini(&a);
    return rc;
}

/* ---- arithmetic ---- */

bool model_layer_is_moe(const model_config *c, int layer)
{
    return c->n_experts > 0 && layer >= c->first_dense_layers &&
           (c->moe_layer_freq <= 1 || layer % c->moe_layer_freq == 0);
}

int32_t model_layer_window(const model_config *c, int layer)
{
    return c->window_layers[layer / 32] >> layer % 32 & 1 ? c->sliding_window : 0;
}

float model_softmax_scale(const model_config *c)
{
    double scale = 1 / sqrt(c->attn == ATTN_MLA ? c->nope_dim + c->rope_dim : c->head_dim);
    if (c->attn == ATTN_MLA && c->rope.kind == ROPE_YARN && c->rope.mscale_all_dim != 0 && c->rope.factor > 1) {
        double mscale = .1 * c->rope.mscale_all_dim * log(c->rope.factor) + 1;
        scale *= mscale * mscale;
    }
    return (float)scale;
}

static double count_attention(const model_config *c)
{
    double dim = c->dim, heads = c->n_heads, n;
    if (c->attn == ATTN_GQA) {
        double q = heads * c->head_dim, kv = (double)c->n_kv_heads * c->head_dim;
        return dim * (2 * q + 2 * kv) + (c->qk_norm ? 2.0 * c->head_dim : 0) + (c->qkv_bias ? q + 2 * kv : 0) +
               (c->o_bias ? dim : 0);
    }
    double q = heads * (c->nope_dim + c->rope_dim), lora = c->q_lora_rank, rank = c->kv_lora_rank;
    n = c->q_lora_rank ? lora * (dim + 1 + q) : dim * q;
    n += dim * (rank + c->rope_dim) + rank;
    n += rank * heads * (c->nope_dim + c->v_dim) + heads * c->v_dim * dim;
    return n + (c->qkv_bias ? lora + rank + c->rope_dim : 0) + (c->o_bias ? dim : 0);
}

static double count_mlp(const model_config *c, bool moe)
{
    double dim = c->dim, dense = 3 * dim * c->ffn_dim + (c->mlp_bias ? 2.0 * c->ffn_dim + dim : 0);
    if (!moe)
        return dense;
    double shared = (double)c->n_shared_experts * c->expert_ffn_dim;
    double experts = 3 * dim * ((double)c->n_experts * c->expert_ffn_dim + shared);
    experts += c->mlp_bias && shared > 0 ? 2 * shared + dim : 0;
    return experts + c->n_experts * dim + (c->topk == MOE_NOAUX_TC ? c->n_experts : 0);
}

static double count_params(const model_config *c)
{
    double dim = c->dim, n = dim * c->vocab * (c->tied_embeddings ? 1 : 2) + dim;
    for (int i = 0; i < c->n_layers; i++)
        n += 2 * dim + count_attention(c) + count_mlp(c, model_layer_is_moe(c, i));
    return n;
}

int64_t model_param_count(const model_config *c)
{
    return (int64_t)fmin(count_params(c), 9e15);
}

/* ---- what the forward pass lacks ---- */

tpl_code model_config_runnable(const model_config *c, tpl_err *e)
{
    const char *where = c->name[0] ? c->name : "config.json";
    bool fp8 = strcmp(c->quant_method, "fp8") == 0;
    if (c->rope.kind == ROPE_OTHER)
        return tpl_fail(e, TPL_E_UNSUPPORTED, where,
                        "RoPE scaling is '%s', expected none, 'default', 'yarn' or 'llama3'", c->rope.type);
    if (c->no_latent_norm)
        return tpl_fail(
            e, TPL_E_UNSUPPORTED, where,
            "field 'qk_latent_layernorm' is false, expected true: latents without an RMSNorm are not plain MLA");
    if (c->q_b_bias)
        return tpl_fail(e, TPL_E_UNSUPPORTED, where,
                        "field 'attention_bias' is true for %s, expected false: query biases are not plain MLA",
                        c->architecture);
    if (c->quant_method[0] && !fp8)
        return tpl_fail(e, TPL_E_UNSUPPORTED, where,
                        "field 'quant_method' of 'quantization_config' is '%s', expected none or 'fp8'",
                        c->quant_method);
    if (fp8 && (c->quant_block[0] != MODEL_F8_BLOCK || c->quant_block[1] != MODEL_F8_BLOCK))
        return tpl_fail(e, TPL_E_UNSUPPORTED, where, "field 'weight_block_size' is [%d, %d], expected [%d, %d]",
                        c->quant_block[0], c->quant_block[1], MODEL_F8_BLOCK, MODEL_F8_BLOCK);
    return TPL_OK;
}
