/* Tests of engine/config.c: the configuration half of engine/model.h. */
#include "engine/model.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <criterion/criterion.h>
#include <jansson.h>

#include "tests/support/checkpoint.h"

#define MODELS SOURCE_ROOT "/models/"

/* ---- bundled checkpoints and shapes ---- */

Test(config, reads_the_bundled_configuration)
{
    model_config c;
    tpl_err e;
    cr_assert_eq(model_config_read(MODELS "worldlet-mla", &c, &e), TPL_OK, "%s", e.what);
    cr_expect_str_eq(c.architecture, "DeepseekV3ForCausalLM");
    cr_expect(c.n_layers == 6 && c.vocab == 2048 && c.dim == 192 && c.ffn_dim == 512 && c.n_heads == 8 &&
              c.n_kv_heads == 8);
    cr_expect(c.q_lora_rank == 96 && c.kv_lora_rank == 64 && c.nope_dim == 32 && c.rope_dim == 16 && c.v_dim == 32);
    cr_expect(c.head_dim == 0 && c.max_pos == 4096 && c.rms_eps == 1e-6f && c.rope_theta == 10000);
    cr_expect(c.rope_interleaved && !c.tied_embeddings && c.bos_id == 0 && c.eos_id == 0);
    cr_expect(c.n_experts == 4 && c.first_dense_layers == 6 && !model_layer_is_moe(&c, 5) && model_layer_is_moe(&c, 6));
    cr_assert_eq(model_config_read(MODELS "worldlet-gqa", &c, &e), TPL_OK, "%s", e.what);
    cr_expect(c.n_kv_heads == 2 && c.head_dim == 32 && c.rope_dim == 32 && c.kv_lora_rank == 0 && !c.rope_interleaved);
}

/* Published totals: Llama 3 8B 8,030,261,248 and 70B 70,553,706,496, Llama 3.2 1B 1,235,814,400, Qwen2 7B 7,615,616,512
 * and 72B 72,706,203,648, DeepSeek-V2-Lite 15,706,484,224 and V2 235,741,434,880; DeepSeek-V3 671,026,419,200 with the
 * 58 * 256 correction biases that its files hold, without the MTP layer. Kimi-K2 by hand: embedding and head 2 * 163840
 * * 7168, final norm 7168; 61 layers of norms 14,336, q 1536 * (7168 + 1 + 12288), kv_a 576 * 7168, norm 512, kv_b 512
 * * 16384, o 8192 * 7168; one dense 3 * 7168 * 18432; 60 times 385 * 3 * 7168 * 2048 + 384 * 7169. */
Test(config, shapes_have_the_published_parameter_counts)
{
    static const struct {
        const char *name;
        int64_t params;
        tpl_dtype weight;
    } cases[] = {
        {"deepseek-v3", 671026419200, DT_F8E4M3},
        {"kimi-k2",
         2LL * 163840 * 7168 + 7168 +
             61 * (14336 + 1536 * (7168LL + 1 + 12288) + 576 * 7168 + 512 + 512 * 16384 + 8192 * 7168) +
             3LL * 7168 * 18432 + 60 * (385LL * 3 * 7168 * 2048 + 384 * 7169),
         DT_F8E4M3},
        {"deepseek-v2", 235741434880, DT_BF16},
        {"deepseek-v2-lite", 15706484224, DT_BF16},
        {"llama-3-70b", 70553706496, DT_BF16},
        {"llama-3-8b", 8030261248, DT_BF16},
        {"llama-3.2-1b", 1235814400, DT_BF16},
        {"qwen2-72b", 72706203648, DT_BF16},
        {"qwen2-7b", 7615616512, DT_BF16},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char path[256];
        model_config c;
        tpl_err e;
        snprintf(path, sizeof path, MODELS "shapes/%s.json", cases[i].name);
        cr_assert_eq(model_config_read(path, &c, &e), TPL_OK, "%s: %s", e.where, e.what);
        cr_expect_str_eq(c.name, cases[i].name);
        cr_expect_eq(c.weight_dtype, cases[i].weight, "%s", cases[i].name);
        cr_expect_eq(model_param_count(&c), cases[i].params, "%s: %lld", cases[i].name,
                     (long long)model_param_count(&c));
    }
}

Test(config, shapes_carry_gating_and_rope_scaling)
{
    model_config c;
    tpl_err e;
    cr_assert_eq(model_config_read(MODELS "shapes/deepseek-v3.json", &c, &e), TPL_OK);
    cr_expect(c.n_experts == 256 && c.n_experts_per_tok == 8 && c.n_shared_experts == 1 && c.expert_ffn_dim == 2048);
    cr_expect(c.first_dense_layers == 3 && c.moe_layer_freq == 1 && !model_layer_is_moe(&c, 2) &&
              model_layer_is_moe(&c, 3));
    cr_expect(c.n_group == 8 && c.topk_group == 4 && c.scoring == MOE_SIGMOID && c.topk == MOE_NOAUX_TC && c.norm_topk);
    cr_expect_eq(c.routed_scaling, 2.5);
    cr_expect(c.rope.kind == ROPE_YARN && c.rope.factor == 40 && c.rope.original_max_pos == 4096 &&
              c.rope.beta_fast == 32);
    cr_expect(c.rope.beta_slow == 1 && c.rope.mscale == 1 && c.rope.mscale_all_dim == 1 &&
              c.rope.attention_factor == 0);
    cr_expect_str_eq(c.quant_method, "fp8");
    cr_assert_eq(model_config_read(MODELS "shapes/deepseek-v2.json", &c, &e), TPL_OK);
    cr_expect(c.scoring == MOE_SOFTMAX && c.topk == MOE_GROUP_LIMITED_GREEDY && !c.norm_topk && c.topk_group == 3);
    cr_assert_eq(model_config_read(MODELS "shapes/deepseek-v2-lite.json", &c, &e), TPL_OK);
    cr_expect(c.q_lora_rank == 0 && c.topk == MOE_GREEDY && c.rope.mscale == 0.707 && c.rope_interleaved);
    cr_assert_eq(model_config_read(MODELS "shapes/llama-3.2-1b.json", &c, &e), TPL_OK);
    cr_expect(c.rope.kind == ROPE_LLAMA3 && c.rope.factor == 32 && c.rope.low_freq_factor == 1 &&
              c.rope.high_freq_factor == 4);
    cr_expect(c.rope.original_max_pos == 8192 && c.rope_theta == 500000 && c.tied_embeddings);
    cr_assert_eq(model_config_read(MODELS "shapes/qwen2-7b.json", &c, &e), TPL_OK);
    cr_expect(c.qkv_bias && !c.o_bias && c.sliding_window == 0 && c.head_dim == 128);
}

Test(config, names_come_from_the_path)
{
    static const struct {
        const char *path, *name;
    } cases[] = {
        {MODELS "worldlet-mla", "worldlet-mla"},
        {MODELS "worldlet-mla//", "worldlet-mla"},
        {MODELS "worldlet-mla/config.json", "worldlet-mla"},
        {MODELS "worldlet-mla/../worldlet-gqa", "worldlet-gqa"},
        {MODELS "worldlet-mla/.", "worldlet-mla"},
        {MODELS "shapes/llama-3.2-1b.json", "llama-3.2-1b"},
    };
    model_config c;
    tpl_err e;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        cr_assert_eq(model_config_read(cases[i].path, &c, &e), TPL_OK, "%s: %s", cases[i].path, e.what);
        cr_expect_str_eq(c.name, cases[i].name, "%s gives %s", cases[i].path, c.name);
    }
    cr_expect_eq(model_config_read(MODELS "shapes", &c, &e), TPL_E_IO);
    cr_expect_eq(model_config_read(MODELS "absent", &c, &e), TPL_E_IO);
}

/* ---- configuration ---- */

static tpl_code parse(const char *text, model_config *c, tpl_err *e)
{
    return model_config_parse(text, strlen(text), "config.json", c, e);
}

/* The small MLA or GQA configuration with members added or replaced. */
static tpl_code parse_with(attn_kind attn, const char *extra, model_config *c, tpl_err *e)
{
    arena a;
    arena_init(&a);
    model_config base = attn == ATTN_MLA ? ckpt_small_mla() : ckpt_small_gqa();
    tpl_code rc = parse(ckpt_config_text(&a, &base, extra), c, e);
    arena_fini(&a);
    return rc;
}

#define MOE(more)                                                                                                      \
    "\"n_routed_experts\": 4, \"num_experts_per_tok\": 2, \"n_shared_experts\": 1, \"n_group\": 2, "                   \
    "\"moe_intermediate_size\": 8, \"first_k_dense_replace\": 1, \"topk_group\": 1, " more

Test(config, errors_name_field_and_value)
{
    static const struct {
        attn_kind attn;
        const char *extra;
        tpl_code code;
        const char *what;
    } cases[] = {
        {ATTN_MLA, "\"num_hidden_layers\": 0,", TPL_E_INPUT, "field 'num_hidden_layers' is 0, expected 1 to 1000"},
        {ATTN_MLA, "\"num_hidden_layers\": 1001,", TPL_E_INPUT, "field 'num_hidden_layers' is 1001"},
        {ATTN_MLA, "\"num_hidden_layers\": null,", TPL_E_INPUT, "field 'num_hidden_layers' is missing"},
        {ATTN_MLA, "\"num_hidden_layers\": \"2\",", TPL_E_INPUT, "field 'num_hidden_layers' is a string"},
        {ATTN_MLA, "\"vocab_size\": -5,", TPL_E_INPUT, "field 'vocab_size' is -5"},
        {ATTN_MLA, "\"vocab_size\": 16777217,", TPL_E_INPUT, "field 'vocab_size' is 16777217, expected 1 to 16777216"},
        {ATTN_MLA, "\"hidden_size\": 1048577,", TPL_E_INPUT, "field 'hidden_size' is 1048577"},
        {ATTN_MLA, "\"hidden_size\": 1e300,", TPL_E_INPUT, "field 'hidden_size'"},
        {ATTN_MLA, "\"qk_rope_head_dim\": 5,", TPL_E_INPUT, "field 'qk_rope_head_dim' is 5, expected an even number"},
        {ATTN_MLA, "\"num_key_value_heads\": 2,", TPL_E_INPUT, "field 'num_key_value_heads' is 2, expected 4"},
        {ATTN_MLA, "\"num_attention_heads\": 16384, \"num_key_value_heads\": 16384, \"qk_nope_head_dim\": 2000,",
         TPL_E_INPUT,
         "num_attention_heads x (qk_nope_head_dim + qk_rope_head_dim) is 32833536, expected at most 16777216"},
        {ATTN_MLA, "\"hidden_act\": \"gelu\",", TPL_E_UNSUPPORTED, "field 'hidden_act' is 'gelu', expected 'silu'"},
        {ATTN_MLA, "\"rms_norm_eps\": 0,", TPL_E_INPUT, "field 'rms_norm_eps' is 0"},
        {ATTN_MLA, "\"rms_norm_eps\": \"x\",", TPL_E_INPUT, "field 'rms_norm_eps' is a string"},
        {ATTN_MLA, "\"rope_theta\": -1,", TPL_E_INPUT, "field 'rope_theta' is -1"},
        {ATTN_MLA, "\"torch_dtype\": \"int8\",", TPL_E_UNSUPPORTED, "field 'torch_dtype' is 'int8'"},
        {ATTN_MLA, "\"eos_token_id\": 48,", TPL_E_INPUT, "field 'eos_token_id' is not a token id, expected 0 to 47"},
        {ATTN_MLA, "\"eos_token_id\": \"</s>\",", TPL_E_INPUT, "field 'eos_token_id' is not a token id"},
        {ATTN_MLA, "\"architectures\": [\"GPT2LMHeadModel\"],", TPL_E_UNSUPPORTED,
         "architecture is 'GPT2LMHeadModel', expected one of DeepseekV3ForCausalLM, "},
        {ATTN_MLA, "\"architectures\": [7],", TPL_E_INPUT, "field 'architectures' is not a list of names"},
        {ATTN_MLA, "\"architectures\": null,", TPL_E_INPUT, "neither 'architectures' nor 'model_type' is given"},
        {ATTN_MLA, "\"tie_word_embeddings\": 1,", TPL_E_INPUT,
         "field 'tie_word_embeddings' is a number, expected true or false"},
        {ATTN_MLA, "\"rope_scaling\": 3,", TPL_E_INPUT, "field 'rope_scaling' is a number"},
        {ATTN_MLA, "\"rope_scaling\": {\"factor\": 4},", TPL_E_INPUT, "RoPE scaling has no 'rope_type' or 'type'"},
        {ATTN_MLA, "\"rope_scaling\": {\"type\": \"yarn\"},", TPL_E_INPUT,
         "field 'factor' of the 'yarn' RoPE scaling is missing"},
        {ATTN_MLA, "\"rope_scaling\": {\"type\": \"yarn\", \"factor\": 0.5},", TPL_E_INPUT, "field 'factor' is 0.5"},
        {ATTN_GQA, "\"rope_scaling\": {\"type\": \"llama3\", \"factor\": 8},", TPL_E_INPUT,
         "field 'low_freq_factor' of the 'llama3'"},
        {ATTN_GQA, "\"num_key_value_heads\": 3,", TPL_E_INPUT,
         "field 'num_key_value_heads' is 3, expected a divisor of 4 heads"},
        {ATTN_GQA, "\"head_dim\": 7,", TPL_E_INPUT, "head_dim is 7, expected an even number"},
        {ATTN_GQA, "\"head_dim\": null, \"hidden_size\": 33,", TPL_E_INPUT,
         "field 'hidden_size' is 33, expected a multiple of 4 heads"},
        {ATTN_MLA, "\"n_routed_experts\": 4,", TPL_E_INPUT, "field 'num_experts_per_tok' is missing"},
        {ATTN_MLA, MOE("\"num_experts_per_tok\": 5,"), TPL_E_INPUT,
         "field 'num_experts_per_tok' is 5, expected at most 4"},
        {ATTN_MLA, MOE("\"n_group\": 3,"), TPL_E_INPUT, "field 'n_group' is 3, expected a divisor of 4"},
        {ATTN_MLA, MOE("\"topk_group\": 3,"), TPL_E_INPUT, "field 'topk_group' is 3, expected at most 2"},
        {ATTN_MLA, MOE("\"moe_layer_freq\": 0,"), TPL_E_INPUT, "field 'moe_layer_freq' is 0"},
        {ATTN_MLA, MOE("\"scoring_func\": \"tanh\","), TPL_E_UNSUPPORTED, "field 'scoring_func' is 'tanh'"},
        {ATTN_MLA, MOE("\"topk_method\": \"best\","), TPL_E_UNSUPPORTED, "field 'topk_method' is 'best'"},
        {ATTN_MLA, "\"num_hidden_layers\": 1000, \"hidden_size\": 1048576, \"intermediate_size\": 1048576,",
         TPL_E_INPUT, "sizes give 3.29"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        model_config c;
        tpl_err e = {0};
        cr_expect_eq(parse_with(cases[i].attn, cases[i].extra, &c, &e), cases[i].code, "case %zu: %s", i,
                     cases[i].extra);
        cr_expect_not_null(strstr(e.what, cases[i].what), "case %zu: '%s' lacks '%s'", i, e.what, cases[i].what);
        cr_expect_str_eq(e.where, "config.json", "case %zu", i);
    }
}

Test(config, requires_every_size)
{
    static const char *const keys[] = {"num_hidden_layers", "vocab_size",          "hidden_size",
                                       "intermediate_size", "num_attention_heads", "max_position_embeddings",
                                       "q_lora_rank",       "kv_lora_rank",        "qk_nope_head_dim",
                                       "qk_rope_head_dim",  "v_head_dim"};
    arena a;
    arena_init(&a);
    model_config small = ckpt_small_mla(), c;
    const char *text = ckpt_config_text(&a, &small, NULL);
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        tpl_err e = {0};
        json_t *root = json_loads(text, 0, NULL);
        json_object_del(root, keys[i]);
        char *without = json_dumps(root, 0);
        cr_expect_eq(parse(without, &c, &e), TPL_E_INPUT, "%s", keys[i]);
        cr_expect(strstr(e.what, keys[i]) && strstr(e.what, "is missing"), "%s: %s", keys[i], e.what);
        free(without);
        json_decref(root);
    }
    arena_fini(&a);
}

Test(config, defaults_are_those_of_transformers)
{
    static const char llama[] =
        "{\"model_type\": \"llama\", \"num_hidden_layers\": 1, \"vocab_size\": 8, \"hidden_size\": 24, "
        "\"intermediate_size\": 8, \"num_attention_heads\": 3, \"max_position_embeddings\": 16}";
    model_config c;
    tpl_err e;
    cr_assert_eq(parse(llama, &c, &e), TPL_OK, "%s", e.what);
    cr_expect_str_eq(c.architecture, "LlamaForCausalLM");
    cr_expect(c.n_kv_heads == 3 && c.head_dim == 8 && c.rope_theta == 10000 && c.rms_eps == 1e-6f &&
              !c.tied_embeddings);
    cr_expect(c.bos_id == -1 && c.eos_id == -1 && !c.rope_interleaved && c.n_experts == 0 && c.weight_dtype == DT_F32);
    cr_expect(c.rope.kind == ROPE_PLAIN && !c.qkv_bias && !c.mlp_bias);
    cr_assert_eq(parse_with(ATTN_MLA, MOE(""), &c, &e), TPL_OK, "%s", e.what);
    cr_expect(c.scoring == MOE_SIGMOID && c.topk == MOE_NOAUX_TC && c.norm_topk && c.routed_scaling == 2.5 &&
              c.moe_layer_freq == 1);
    cr_assert_eq(
        parse_with(ATTN_MLA,
                   MOE("\"architectures\": [\"DeepseekV2ForCausalLM\"], \"n_group\": null, \"topk_group\": null,"), &c,
                   &e),
        TPL_OK, "%s", e.what);
    cr_expect(c.scoring == MOE_SOFTMAX && c.topk == MOE_GREEDY && !c.norm_topk && c.routed_scaling == 1 &&
              c.n_group == 1);
}

Test(config, takes_both_spellings)
{
    model_config c;
    tpl_err e;
    cr_assert_eq(
        parse_with(ATTN_GQA, "\"rope_parameters\": {\"rope_theta\": 5e5, \"rope_type\": \"default\"},", &c, &e),
        TPL_OK);
    cr_expect(c.rope_theta == 5e5 && c.rope.kind == ROPE_PLAIN);
    cr_assert_eq(
        parse_with(
            ATTN_MLA,
            "\"rope_parameters\": {\"rope_theta\": 7e4, \"rope_type\": \"yarn\", \"factor\": 4, \"mscale\": 0.5},", &c,
            &e),
        TPL_OK);
    cr_expect(c.rope_theta == 7e4 && c.rope.kind == ROPE_YARN && c.rope.factor == 4 && c.rope.mscale == 0.5);
    cr_expect(c.rope.original_max_pos == 64 && c.rope.beta_fast == 32 && c.rope.beta_slow == 1);
    cr_assert_eq(
        parse_with(ATTN_GQA, "\"torch_dtype\": null, \"dtype\": \"float16\", \"eos_token_id\": [5, 6],", &c, &e),
        TPL_OK);
    cr_expect(c.weight_dtype == DT_F16 && c.eos_id == 5);
    cr_assert_eq(parse_with(ATTN_MLA, "\"q_lora_rank\": null, \"rope_interleave\": false,", &c, &e), TPL_OK);
    cr_expect(c.q_lora_rank == 0 && !c.rope_interleaved);
    cr_assert_eq(parse_with(ATTN_GQA, "\"num_hidden_layers\": 2.0,", &c, &e), TPL_OK);
    cr_expect_eq(c.n_layers, 2);
}

/* Each family heeds the fields that its implementation in transformers reads, and no others. */
Test(config, families_differ_in_what_they_heed)
{
    static const struct {
        attn_kind attn;
        const char *extra;
        bool qkv, o, mlp, q_norm;
        int32_t window, head_dim, n_kv_heads;
    } cases[] = {
        {ATTN_GQA, "\"attention_bias\": true, \"mlp_bias\": true,", 1, 1, 1, 0, 0, 8, 2},
        {ATTN_GQA, "\"architectures\": [\"Qwen2ForCausalLM\"], \"mlp_bias\": true,", 1, 0, 0, 0, 0, 8, 2},
        {ATTN_GQA, "\"architectures\": [\"Qwen3ForCausalLM\"], \"head_dim\": null,", 0, 0, 0, 1, 0, 128, 2},
        {ATTN_GQA, "\"architectures\": [\"Qwen3ForCausalLM\"], \"attention_bias\": true,", 1, 1, 0, 1, 0, 8, 2},
        {ATTN_GQA, "\"architectures\": [\"MistralForCausalLM\"], \"attention_bias\": true,", 0, 0, 0, 0, 4096, 8, 2},
        {ATTN_GQA, "\"architectures\": [\"MistralForCausalLM\"], \"sliding_window\": null,", 0, 0, 0, 0, 0, 8, 2},
        {ATTN_GQA, "\"architectures\": [\"MistralForCausalLM\"], \"sliding_window\": 5,", 0, 0, 0, 0, 5, 8, 2},
        {ATTN_GQA, "\"sliding_window\": 5,", 0, 0, 0, 0, 0, 8, 2},
        {ATTN_MLA, "\"attention_bias\": true, \"mlp_bias\": true,", 1, 1, 0, 0, 0, 0, 4},
        {ATTN_MLA, "\"architectures\": [\"DeepseekV2ForCausalLM\"], \"mlp_bias\": true,", 0, 0, 1, 0, 0, 0, 4},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        model_config c;
        tpl_err e = {0};
        cr_assert_eq(parse_with(cases[i].attn, cases[i].extra, &c, &e), TPL_OK, "case %zu: %s", i, e.what);
        cr_expect(c.qkv_bias == cases[i].qkv && c.o_bias == cases[i].o && c.mlp_bias == cases[i].mlp,
                  "case %zu: biases", i);
        cr_expect(c.qk_norm == cases[i].q_norm && c.head_dim == cases[i].head_dim &&
                      c.n_kv_heads == cases[i].n_kv_heads,
                  "case %zu", i);
        cr_expect_eq(model_layer_window(&c, 0), cases[i].window, "case %zu: window %d", i, model_layer_window(&c, 0));
    }
}

Test(config, windows_follow_layer_types_or_max_window_layers)
{
#define WINDOW(more)                                                                                                   \
    "\"architectures\": [\"Qwen2ForCausalLM\"], \"use_sliding_window\": true, \"sliding_window\": 7, " more
    static const struct {
        const char *extra;
        tpl_code code;
        int32_t window[2];
    } cases[] = {
        {WINDOW("\"max_window_layers\": 1,"), TPL_OK, {0, 7}},
        {WINDOW(""), TPL_OK, {0, 0}},
        {WINDOW("\"max_window_layers\": 0,"), TPL_OK, {7, 7}},
        {WINDOW("\"layer_types\": [\"sliding_attention\", \"full_attention\"],"), TPL_OK, {7, 0}},
        {WINDOW("\"layer_types\": [\"sliding_attention\"],"), TPL_E_INPUT, {0}},
        {WINDOW("\"layer_types\": [\"sliding_attention\", \"chunked_attention\"],"), TPL_E_UNSUPPORTED, {0}},
        {WINDOW("\"layer_types\": [1, 2],"), TPL_E_UNSUPPORTED, {0}},
        {WINDOW("\"layer_types\": 3,"), TPL_E_INPUT, {0}},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        model_config c = {0};
        tpl_err e = {0};
        cr_expect_eq(parse_with(ATTN_GQA, cases[i].extra, &c, &e), cases[i].code, "case %zu: %s", i, e.what);
        for (int k = 0; k < 2 && cases[i].code == TPL_OK; k++)
            cr_expect_eq(model_layer_window(&c, k), cases[i].window[k], "case %zu layer %d", i, k);
    }
}

/* 1 / sqrt(8 + 4), and that times (0.1 * 0.5 * ln 40 + 1)^2. */
Test(config, softmax_scale_has_mscale_all_dim_squared)
{
    static const struct {
        attn_kind attn;
        const char *extra;
        double scale;
    } cases[] = {
        {ATTN_MLA, "", 0.288675134594},
        {ATTN_MLA, "\"rope_scaling\": {\"type\": \"yarn\", \"factor\": 40, \"mscale\": 1},", 0.288675134594},
        {ATTN_MLA, "\"rope_scaling\": {\"type\": \"yarn\", \"factor\": 40, \"mscale_all_dim\": 0.5},", 0.404984518453},
        {ATTN_MLA, "\"rope_scaling\": {\"type\": \"yarn\", \"factor\": 1, \"mscale_all_dim\": 0.5},", 0.288675134594},
        {ATTN_GQA, "\"rope_scaling\": {\"type\": \"yarn\", \"factor\": 40, \"mscale_all_dim\": 0.5},", 0.353553390593},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        model_config c;
        tpl_err e = {0};
        cr_assert_eq(parse_with(cases[i].attn, cases[i].extra, &c, &e), TPL_OK, "%s", e.what);
        double got = model_softmax_scale(&c);
        cr_expect(got / cases[i].scale > 1 - 1e-6 && got / cases[i].scale < 1 + 1e-6, "case %zu: %.9g", i, got);
    }
}

/* TransMLA's own form of a configuration: plain latent attention is loaded, what is more is named. */
Test(config, transmla_is_plain_mla_or_refused)
{
#define TRANSMLA(more)                                                                                                 \
    "\"architectures\": [\"LlamaMLAForCausalLM\"], \"model_type\": \"deepseek_v3\", \"q_lora_rank\": null, " more
    static const struct {
        const char *extra;
        tpl_code code;
        const char *what;
    } cases[] = {
        {TRANSMLA("\"qk_latent_layernorm\": true,"), TPL_OK, ""},
        {TRANSMLA("\"qk_latent_layernorm\": false,"), TPL_E_UNSUPPORTED, "field 'qk_latent_layernorm' is false"},
        {TRANSMLA("\"attention_bias\": true,"), TPL_E_UNSUPPORTED,
         "field 'attention_bias' is true for LlamaMLAForCausalLM"},
        {"\"qk_latent_layernorm\": false,", TPL_E_UNSUPPORTED, "field 'qk_latent_layernorm' is false"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        model_config c;
        tpl_err e = {0};
        cr_assert_eq(parse_with(ATTN_MLA, cases[i].extra, &c, &e), TPL_OK, "case %zu: %s", i, e.what);
        cr_expect_eq(model_config_runnable(&c, &e), cases[i].code, "case %zu", i);
        cr_expect(!strncmp(e.what, cases[i].what, strlen(cases[i].what)), "case %zu: %s", i, e.what);
    }
    model_config c;
    tpl_err e = {0};
    cr_expect_eq(parse_with(ATTN_MLA, "\"architectures\": [\"MixtralMLAForCausalLM\"],", &c, &e), TPL_E_UNSUPPORTED);
}

Test(config, survives_every_truncation)
{
    arena a;
    arena_init(&a);
    model_config small = ckpt_small_mla(), c;
    const char *text = ckpt_config_text(&a, &small, MOE("\"rope_scaling\": {\"type\": \"yarn\", \"factor\": 4},"));
    size_t n = strlen(text);
    for (size_t len = 0; len <= n; len++) {
        tpl_err e;
        char *exact = memcpy(tpl_malloc(len), text, len);
        cr_expect_eq(model_config_parse(exact, len, "config.json", &c, &e), len == n ? TPL_OK : TPL_E_INPUT,
                     "length %zu", len);
        free(exact);
    }
    arena_fini(&a);
}

/* By hand, small MLA: attention 12*32 + 12 + 4*12*12 + 20*32 + 16 + 4*14*16 + 32*24 = 3,292. Layer 0 dense 3*24*32 =
 * 2,304; layer 1 of 4 + 1 experts 3*8*32*5 = 3,840, router 128, correction bias 4. Norms 4 * 32; 2 * 48 * 32 + 32
 * outside. Biases: a layer's q_a 12, kv_a 20, o 32. */
Test(config, param_count_follows_experts_and_biases)
{
    model_config c;
    tpl_err e;
    int64_t rest = 2 * 3292 + 2304 + 128 + 3104;
    cr_assert_eq(parse_with(ATTN_MLA, MOE(""), &c, &e), TPL_OK, "%s", e.what);
    cr_expect_eq(model_param_count(&c), rest + 3840 + 128 + 4);
    cr_assert_eq(parse_with(ATTN_MLA, MOE("\"topk_method\": \"greedy\", \"attention_bias\": true,"), &c, &e), TPL_OK,
                 "%s", e.what);
    cr_expect_eq(model_param_count(&c), rest + 3840 + 128 + 2 * 64);
    /* Small GQA: a layer 32*32*2 + 16*32*2 = 3,072 and the MLP; biases q 32, k and v 16, o 32; gate and up 24, down 32.
     */
    cr_assert_eq(
        parse_with(ATTN_GQA, "\"attention_bias\": true, \"mlp_bias\": true, \"tie_word_embeddings\": true,", &c, &e),
        TPL_OK);
    cr_expect_eq(model_param_count(&c), 48 * 32 + 32 + 2 * (64 + 3072 + 2304 + 96 + 80));
}
