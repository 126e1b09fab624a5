#include "engine/model.h"

#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <criterion/criterion.h>

#include "base/log.h"
#include "tests/support/checkpoint.h"

#define MODELS SOURCE_ROOT "/models/"

/* Members of a configuration whose layer 1 and on have 4 experts. */
#define MOE(more)                                                                                                      \
    "\"n_routed_experts\": 4, \"num_experts_per_tok\": 2, \"n_shared_experts\": 1, \"n_group\": 2, "                   \
    "\"moe_intermediate_size\": 8, \"first_k_dense_replace\": 1, \"topk_group\": 1, " more

/* Counts by hand, for worldlet-mla: embedding and head 2 * 2048 * 192 = 786,432; final norm 192; a layer: norms 2 *
 * 192, q_a 96 * 192, q_a norm 96, q_b 8 * 48 * 96, kv_a 80 * 192, kv_a norm 64, kv_b 8 * 64 * 64, o 192 * 256, gate,
 * up, down 3 * 512 * 192: in all 448,032; times 6, plus 786,624: 3,474,816. */
Test(model, opens_the_bundled_checkpoints)
{
    static const struct {
        const char *name;
        attn_kind attn;
        int32_t n_tensors;
        int64_t params;
    } cases[] = {
        {"worldlet-mla", ATTN_MLA, 3 + 6 * 12, 3474816},
        {"worldlet-gqa", ATTN_GQA, 3 + 6 * 9, 3461568},
        {"worldlet-draft", ATTN_GQA, 3 + 12 * 9, 1722720},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char dir[256];
        model *m;
        tpl_err e;
        snprintf(dir, sizeof dir, MODELS "%s", cases[i].name);
        cr_assert_eq(model_open(dir, &m, &e), TPL_OK, "%s: %s", e.where, e.what);
        cr_expect_str_eq(model_cfg(m)->name, cases[i].name);
        cr_expect_str_eq(model_dir(m), dir);
        cr_expect_eq(model_cfg(m)->attn, cases[i].attn);
        cr_expect_eq(model_param_count(model_cfg(m)), cases[i].params, "%s", cases[i].name);
        cr_expect_eq(model_file_bytes(m), 2 * cases[i].params, "%s", cases[i].name);
        cr_expect_eq(model_tensor_count(m), cases[i].n_tensors, "%s", cases[i].name);
        cr_expect_eq(model_cfg(m)->weight_dtype, DT_BF16);
        cr_expect_eq(model_check_finite(m, &e), TPL_OK, "%s", e.what);
        model_close(m);
    }
}

/* ---- opening small checkpoints ---- */

/* A temporary checkpoint that a test may spoil before it opens it. */
typedef struct {
    arena a;
    model_config cfg;
    ckpt_list list;
    char *dir;
    tpl_err e;
} rig;

static void rig_init(rig *r, model_config c, tpl_dtype dtype)
{
    *r = (rig){.cfg = c};
    arena_init(&r->a);
    r->list = ckpt_tensors(&r->a, &r->cfg, dtype, 1);
    r->dir = ckpt_temp_dir(&r->a);
    cr_assert_not_null(r->dir);
}

static tpl_code rig_open(rig *r, const char *extra, int32_t n_shards, model **m)
{
    cr_assert_eq(ckpt_save(r->dir, ckpt_config_text(&r->a, &r->cfg, extra), &r->list, n_shards, &r->e), TPL_OK, "%s",
                 r->e.what);
    return model_open(r->dir, m, &r->e);
}

static void rig_fini(rig *r)
{
    ckpt_remove_dir(r->dir);
    arena_fini(&r->a);
}

static ckpt_tensor *rig_tensor(rig *r, const char *name)
{
    for (int32_t i = 0; i < r->list.n; i++)
        if (strcmp(r->list.tensors[i].name, name) == 0)
            return &r->list.tensors[i];
    cr_assert(false, "no tensor %s", name);
    return NULL;
}

static void expect_weight(rig *r, const model *m, weight_role role, int layer, const char *name)
{
    mat w = model_weight(m, role, layer);
    const ckpt_tensor *t = rig_tensor(r, name);
    int64_t rows = t->n_dims == 2 ? t->shape[0] : 1, cols = t->shape[t->n_dims - 1];
    cr_assert_not_null(w.data, "%s", name);
    cr_expect(w.rows == rows && w.cols == cols && w.stride == cols && w.dtype == t->dtype && !w.scale, "%s", name);
    cr_expect_eq(memcmp(w.data, t->data, (size_t)(rows * cols) * dtype_bytes(t->dtype)), 0, "%s", name);
}

Test(model, binds_every_role_of_both_families_in_every_type)
{
    static const tpl_dtype types[] = {DT_F32, DT_F16, DT_BF16};
    for (int t = 0; t < 3; t++) {
        rig r;
        model *m;
        rig_init(&r, ckpt_small_mla(), types[t]);
        cr_assert_eq(rig_open(&r, NULL, 1, &m), TPL_OK, "%s: %s", r.e.where, r.e.what);
        expect_weight(&r, m, W_EMBED, 0, "model.embed_tokens.weight");
        expect_weight(&r, m, W_FINAL_NORM, 0, "model.norm.weight");
        expect_weight(&r, m, W_LM_HEAD, -1, "lm_head.weight");
        expect_weight(&r, m, W_ATTN_NORM, 1, "model.layers.1.input_layernorm.weight");
        expect_weight(&r, m, W_MLP_NORM, 0, "model.layers.0.post_attention_layernorm.weight");
        expect_weight(&r, m, W_Q_A, 1, "model.layers.1.self_attn.q_a_proj.weight");
        expect_weight(&r, m, W_Q_A_NORM, 0, "model.layers.0.self_attn.q_a_layernorm.weight");
        expect_weight(&r, m, W_Q_B, 1, "model.layers.1.self_attn.q_b_proj.weight");
        expect_weight(&r, m, W_KV_A, 0, "model.layers.0.self_attn.kv_a_proj_with_mqa.weight");
        expect_weight(&r, m, W_KV_A_NORM, 1, "model.layers.1.self_attn.kv_a_layernorm.weight");
        expect_weight(&r, m, W_KV_B, 0, "model.layers.0.self_attn.kv_b_proj.weight");
        expect_weight(&r, m, W_O, 1, "model.layers.1.self_attn.o_proj.weight");
        expect_weight(&r, m, W_GATE, 0, "model.layers.0.mlp.gate_proj.weight");
        expect_weight(&r, m, W_UP, 1, "model.layers.1.mlp.up_proj.weight");
        expect_weight(&r, m, W_DOWN, 1, "model.layers.1.mlp.down_proj.weight");
        cr_expect_null(model_weight(m, W_Q, 0).data);
        cr_expect_eq(model_cfg(m)->weight_dtype, types[t]);
        cr_expect_eq(model_param_count(model_cfg(m)) * (int64_t)dtype_bytes(types[t]), model_file_bytes(m));
        model_close(m);
        rig_fini(&r);
        rig_init(&r, ckpt_small_gqa(), types[t]);
        cr_assert_eq(rig_open(&r, NULL, 1, &m), TPL_OK, "%s: %s", r.e.where, r.e.what);
        expect_weight(&r, m, W_Q, 0, "model.layers.0.self_attn.q_proj.weight");
        expect_weight(&r, m, W_K, 1, "model.layers.1.self_attn.k_proj.weight");
        expect_weight(&r, m, W_V, 1, "model.layers.1.self_attn.v_proj.weight");
        expect_weight(&r, m, W_O, 0, "model.layers.0.self_attn.o_proj.weight");
        cr_expect_null(model_weight(m, W_KV_B, 1).data);
        model_close(m);
        rig_fini(&r);
    }
}

Test(model, queries_without_a_latent_use_q_proj)
{
    rig r;
    model *m;
    model_config c = ckpt_small_mla();
    c.q_lora_rank = 0;
    rig_init(&r, c, DT_BF16);
    cr_assert_eq(rig_open(&r, NULL, 1, &m), TPL_OK, "%s", r.e.what);
    expect_weight(&r, m, W_Q_B, 1, "model.layers.1.self_attn.q_proj.weight");
    cr_expect(!model_weight(m, W_Q_A, 0).data && !model_weight(m, W_Q_A_NORM, 0).data);
    model_close(m);
    rig_fini(&r);
}

Test(model, tied_head_is_the_embedding)
{
    rig r;
    model *m;
    model_config c = ckpt_small_gqa();
    c.tied_embeddings = true;
    rig_init(&r, c, DT_BF16);
    cr_assert_eq(rig_open(&r, NULL, 1, &m), TPL_OK, "%s", r.e.what);
    cr_expect_eq(model_weight(m, W_LM_HEAD, 0).data, model_weight(m, W_EMBED, 0).data);
    cr_expect_eq(model_check_finite(m, &r.e), TPL_OK);
    model_close(m);
    rig_fini(&r);
}

Test(model, shards_give_the_same_weights)
{
    rig r;
    model *m;
    sha256_hex sha;
    rig_init(&r, ckpt_small_mla(), DT_BF16);
    cr_assert_eq(rig_open(&r, NULL, 3, &m), TPL_OK, "%s: %s", r.e.where, r.e.what);
    cr_expect_eq(model_tensor_count(m), r.list.n);
    expect_weight(&r, m, W_EMBED, 0, "model.embed_tokens.weight");
    expect_weight(&r, m, W_DOWN, 1, "model.layers.1.mlp.down_proj.weight");
    expect_weight(&r, m, W_KV_B, 0, "model.layers.0.self_attn.kv_b_proj.weight");
    cr_expect_eq(model_sha256(m, &sha, &r.e), TPL_OK, "%s", r.e.what);
    model_close(m);
    /* The hash is that of the files one after another. */
    text_buf all = {0};
    static const char *const names[] = {"model-00001-of-00003.safetensors", "model-00002-of-00003.safetensors",
                                        "model-00003-of-00003.safetensors", "config.json"};
    for (int i = 0; i < 4; i++) {
        char *data;
        size_t len;
        cr_assert_eq(text_read_file(text_path_join(&r.a, r.dir, names[i]), &data, &len, &r.e), TPL_OK);
        text_add(&all, data, len);
        free(data);
    }
    cr_expect_str_eq(sha.hex, sha256_bytes(all.data, all.len).hex);
    text_fini(&all);
    rig_fini(&r);
}

Test(model, hash_is_remembered_and_changes_with_a_byte)
{
    rig r;
    model *m;
    sha256_hex first, again, other;
    rig_init(&r, ckpt_small_gqa(), DT_F32);
    cr_assert_eq(rig_open(&r, NULL, 1, &m), TPL_OK);
    cr_expect_eq(model_sha256(m, &first, &r.e), TPL_OK);
    cr_expect_eq(model_sha256(m, &again, &r.e), TPL_OK);
    cr_expect_str_eq(first.hex, again.hex);
    model_close(m);
    cr_assert_eq(rig_open(&r, "\"use_cache_note\": 1,", 1, &m), TPL_OK);
    cr_expect_eq(model_sha256(m, &other, &r.e), TPL_OK);
    cr_expect_str_neq(first.hex, other.hex);
    model_close(m);
    rig_fini(&r);
}

Test(model, every_missing_tensor_is_named)
{
    rig r;
    model *m;
    rig_init(&r, ckpt_small_mla(), DT_BF16);
    for (int32_t i = 0; i < r.list.n; i++) {
        const char *name = r.list.tensors[i].name;
        r.list.tensors[i].name = "model.unknown.weight";
        cr_expect_eq(rig_open(&r, NULL, 1, &m), TPL_E_INPUT, "%s", name);
        cr_expect(strstr(r.e.what, name) && strstr(r.e.what, "is missing"), "%s: %s", name, r.e.what);
        r.list.tensors[i].name = name;
    }
    rig_fini(&r);
}

Test(model, config_contradicting_the_weights_is_named)
{
    static const struct {
        const char *extra, *what;
    } cases[] = {
        {"\"kv_lora_rank\": 17,",
         "tensor model.layers.0.self_attn.kv_a_proj_with_mqa.weight: shape [20, 32], expected [21, 32]"},
        {"\"vocab_size\": 49,", "tensor model.embed_tokens.weight: shape [48, 32], expected [49, 32]"},
        {"\"intermediate_size\": 25,", "tensor model.layers.0.mlp.gate_proj.weight: shape [24, 32], expected [25, 32]"},
        {"\"v_head_dim\": 7,", "tensor model.layers.0.self_attn.kv_b_proj.weight: shape [56, 16], expected [60, 16]"},
        {"\"qk_nope_head_dim\": 9,",
         "tensor model.layers.0.self_attn.q_b_proj.weight: shape [48, 12], expected [52, 12]"},
        {"\"q_lora_rank\": null,", "tensor model.layers.0.self_attn.q_proj.weight is missing"},
        {"\"num_hidden_layers\": 3,", "tensor model.layers.2.input_layernorm.weight is missing"},
    };
    rig r;
    model *m;
    rig_init(&r, ckpt_small_mla(), DT_BF16);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        cr_expect_eq(rig_open(&r, cases[i].extra, 1, &m), TPL_E_INPUT, "%s", cases[i].extra);
        cr_expect_not_null(strstr(r.e.what, cases[i].what), "'%s' lacks '%s'", r.e.what, cases[i].what);
        cr_expect_not_null(strstr(r.e.where, r.dir), "where is '%s'", r.e.where);
    }
    rig_fini(&r);
}

Test(model, wrong_type_and_rank_are_named)
{
    rig r;
    model *m;
    rig_init(&r, ckpt_small_gqa(), DT_F32);
    ckpt_tensor *t = rig_tensor(&r, "model.layers.1.mlp.up_proj.weight");
    t->dtype = DT_I32;
    cr_expect_eq(rig_open(&r, NULL, 1, &m), TPL_E_INPUT);
    cr_expect_str_eq(r.e.what, "tensor model.layers.1.mlp.up_proj.weight: type I32, expected BF16, F16 or F32");
    t->dtype = DT_F32;
    t->n_dims = 1;
    t->shape[0] = 24 * 32;
    cr_expect_eq(rig_open(&r, NULL, 1, &m), TPL_E_INPUT);
    cr_expect_str_eq(r.e.what, "tensor model.layers.1.mlp.up_proj.weight: shape [768], expected [24, 32]");
    cr_expect_not_null(strstr(r.e.where, "model.safetensors"));
    rig_fini(&r);
}

Test(model, extra_tensors_are_ignored)
{
    static const float freq[4] = {1, 1, 1, NAN};
    rig r;
    model *m;
    rig_init(&r, ckpt_small_gqa(), DT_F32);
    ckpt_tensor *more = arena_array(&r.a, ckpt_tensor, r.list.n + 2);
    memcpy(more, r.list.tensors, (size_t)r.list.n * sizeof *more);
    more[r.list.n] = (ckpt_tensor){"model.layers.0.self_attn.rotary_emb.inv_freq", DT_F32, 1, {4}, freq};
    more[r.list.n + 1] = (ckpt_tensor){"model.layers.2.eh_proj.weight", DT_I32, 1, {4}, freq};
    r.list = (ckpt_list){more, r.list.n + 2};
    cr_assert_eq(rig_open(&r, NULL, 1, &m), TPL_OK, "%s", r.e.what);
    cr_expect_eq(model_tensor_count(m), r.list.n);
    cr_expect_eq(model_check_finite(m, &r.e), TPL_OK, "%s", r.e.what);
    model_close(m);
    rig_fini(&r);
}

Test(model, features_the_forward_pass_lacks_are_refused_at_open_only)
{
    static const struct {
        attn_kind attn;
        const char *extra, *what;
    } cases[] = {
        {ATTN_GQA, "\"rope_scaling\": {\"rope_type\": \"dynamic\", \"factor\": 2},", "RoPE scaling is 'dynamic'"},
        {ATTN_GQA, "\"partial_rotary_factor\": 0.5,", "RoPE scaling is 'partial_rotary_factor'"},
        {ATTN_MLA, "\"qk_latent_layernorm\": false,", "field 'qk_latent_layernorm' is false"},
        {ATTN_MLA, "\"quantization_config\": {\"quant_method\": \"awq\"},",
         "field 'quant_method' of 'quantization_config' is 'awq'"},
        {ATTN_MLA, "\"quantization_config\": {\"quant_method\": \"fp8\"},", "field 'weight_block_size' is [0, 0]"},
        {ATTN_MLA, "\"quantization_config\": {\"quant_method\": \"fp8\", \"weight_block_size\": [64, 128]},",
         "field 'weight_block_size' is [64, 128]"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        rig r;
        model *m;
        model_config c;
        rig_init(&r, cases[i].attn == ATTN_MLA ? ckpt_small_mla() : ckpt_small_gqa(), DT_BF16);
        cr_expect_eq(rig_open(&r, cases[i].extra, 1, &m), TPL_E_UNSUPPORTED, "%s", cases[i].extra);
        cr_expect_not_null(strstr(r.e.what, cases[i].what), "'%s' lacks '%s'", r.e.what, cases[i].what);
        cr_expect_eq(model_config_read(r.dir, &c, &r.e), TPL_OK, "%s: %s", cases[i].extra, r.e.what);
        rig_fini(&r);
    }
}

Test(model, experts_beyond_the_last_layer_and_default_rope_are_runnable)
{
    rig r;
    model *m;
    rig_init(&r, ckpt_small_mla(), DT_BF16);
    cr_assert_eq(
        rig_open(&r, MOE("\"first_k_dense_replace\": 2, \"rope_scaling\": {\"rope_type\": \"default\"},"), 1, &m),
        TPL_OK, "%s", r.e.what);
    model_close(m);
    rig_fini(&r);
}

/* The format does not promise alignment; reading such a float would be undefined. */
Test(model, unaligned_data_is_refused)
{
    rig r;
    model *m;
    char *data;
    size_t len;
    rig_init(&r, ckpt_small_gqa(), DT_F32);
    cr_assert_eq(rig_open(&r, NULL, 1, &m), TPL_OK);
    model_close(m);
    char *path = text_path_join(&r.a, r.dir, "model.safetensors");
    cr_assert_eq(text_read_file(path, &data, &len, &r.e), TPL_OK);
    uint64_t head = (unsigned char)data[0] | (uint64_t)(unsigned char)data[1] << 8, longer = head + 1;
    text_buf odd = {0};
    for (int i = 0; i < 8; i++)
        text_addf(&odd, "%c", (int)(longer >> (8 * i) & 255));
    text_add(&odd, data + 8, head);
    text_add(&odd, " ", 1);
    text_add(&odd, data + 8 + head, len - 8 - head);
    cr_assert_eq(text_write_file(path, odd.data, odd.len, &r.e), TPL_OK);
    cr_expect_eq(model_open(r.dir, &m, &r.e), TPL_E_UNSUPPORTED);
    cr_expect_not_null(strstr(r.e.what, "is not aligned to its 4-byte elements"), "%s", r.e.what);
    text_fini(&odd);
    free(data);
    rig_fini(&r);
}

Test(model, folder_errors_are_named)
{
    rig r;
    model *m;
    rig_init(&r, ckpt_small_gqa(), DT_BF16);
    cr_expect_eq(model_open(r.dir, &m, &r.e), TPL_E_IO);
    cr_expect_not_null(strstr(r.e.what, "holds no config.json"), "%s", r.e.what);
    char *config = text_path_join(&r.a, r.dir, "config.json");
    cr_assert_eq(text_write_file(config, "[]", 2, &r.e), TPL_OK);
    cr_expect_eq(model_open(config, &m, &r.e), TPL_E_IO);
    cr_expect_eq(model_open(r.dir, &m, &r.e), TPL_E_INPUT);
    cr_expect_str_eq(r.e.what, "configuration is an array, expected an object");
    const char *text = ckpt_config_text(&r.a, &r.cfg, NULL);
    cr_assert_eq(text_write_file(config, text, strlen(text), &r.e), TPL_OK);
    cr_expect_eq(model_open(r.dir, &m, &r.e), TPL_E_IO);
    cr_expect_not_null(strstr(r.e.what, "holds no weights"), "%s", r.e.what);
    rig_fini(&r);
}

/* ---- values ---- */

Test(model, first_value_that_is_not_finite_is_named)
{
    static const struct {
        tpl_dtype dtype;
        uint32_t bits, largest; /* the value, and the largest finite one's bits */
        const char *word;
    } cases[] = {
        {DT_F32, 0x7fc00000, 0x7f7fffff, "NaN"}, {DT_F32, 0xff800000, 0xff7fffff, "infinite"},
        {DT_F32, 0x7f800001, 0x7f7fffff, "NaN"}, {DT_BF16, 0x7f81, 0x7f7f, "NaN"},
        {DT_BF16, 0xff80, 0xff7f, "infinite"},   {DT_F16, 0xfe00, 0x7bff, "NaN"},
        {DT_F16, 0x7c00, 0xfbff, "infinite"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        rig r;
        model *m;
        char what[256];
        rig_init(&r, ckpt_small_mla(), cases[i].dtype);
        size_t size = dtype_bytes(cases[i].dtype), at = 23 * 32 + 5; /* row 23, column 5 of [24, 32] */
        char *data = (char *)rig_tensor(&r, "model.layers.1.mlp.up_proj.weight")->data;
        memcpy(data + at * size, &cases[i].largest, size);
        cr_assert_eq(rig_open(&r, NULL, 1, &m), TPL_OK);
        cr_expect_eq(model_check_finite(m, &r.e), TPL_OK, "case %zu: %s", i, r.e.what);
        model_close(m);
        memcpy(data + at * size, &cases[i].bits, size);
        cr_assert_eq(rig_open(&r, NULL, 1, &m), TPL_OK);
        cr_expect_eq(model_check_finite(m, &r.e), TPL_E_INPUT, "case %zu", i);
        snprintf(
            what, sizeof what,
            "tensor model.layers.1.mlp.up_proj.weight: value 741 (row 23, column 5) is %s, expected a finite number",
            cases[i].word);
        cr_expect_str_eq(r.e.what, what, "case %zu: %s", i, r.e.what);
        cr_expect_not_null(strstr(r.e.where, "model.safetensors"));
        model_close(m);
        rig_fini(&r);
    }
}

Test(model, finiteness_is_checked_past_the_first_block)
{
    rig r;
    model *m;
    model_config c = ckpt_small_gqa();
    c.vocab = 1000; /* 32,000 values: two blocks of the scan */
    rig_init(&r, c, DT_BF16);
    uint16_t *data = (uint16_t *)rig_tensor(&r, "lm_head.weight")->data;
    data[31999] = 0x7fc0;
    cr_assert_eq(rig_open(&r, NULL, 1, &m), TPL_OK);
    cr_expect_eq(model_check_finite(m, &r.e), TPL_E_INPUT);
    cr_expect_not_null(strstr(r.e.what, "lm_head.weight: value 31999 (row 999, column 31)"), "%s", r.e.what);
    model_close(m);
    rig_fini(&r);
}

Test(model, checks_stop_when_interrupted)
{
    rig r;
    model *m;
    sha256_hex sha;
    rig_init(&r, ckpt_small_gqa(), DT_BF16);
    cr_assert_eq(rig_open(&r, NULL, 1, &m), TPL_OK);
    interrupt_install();
    kill(getpid(), SIGINT);
    for (int i = 0; i < 2000 && !interrupt_seen(); i++)
        usleep(1000);
    cr_expect_eq(model_check_finite(m, &r.e), TPL_E_INTERRUPTED);
    cr_expect_eq(model_sha256(m, &sha, &r.e), TPL_E_INTERRUPTED);
    model_close(m);
    rig_fini(&r);
}

Test(model, forbidden_reads_end_the_program)
{
    rig r;
    model *m;
    sha256_hex sha;
    int status;
    rig_init(&r, ckpt_small_gqa(), DT_F32);
    cr_assert_eq(rig_open(&r, NULL, 2, &m), TPL_OK);
    model_forbid_reads(m);
    const volatile float *w = model_weight(m, W_DOWN, 1).data;
    pid_t child = fork();
    if (child == 0) {
        signal(SIGSEGV, SIG_DFL);
        _exit(*w > 0 ? 0 : 1);
    }
    cr_assert_eq(waitpid(child, &status, 0), child);
    cr_expect(WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV);
    cr_expect_eq(model_sha256(m, &sha, &r.e), TPL_OK, "%s", r.e.what); /* reads the files, not the mapping */
    model_close(m);
    rig_fini(&r);
}

Test(model, roles_have_words)
{
    cr_expect_str_eq(weight_role_name(W_KV_A_NORM), "kv_a_norm");
    cr_expect_str_eq(weight_role_name(W_LM_HEAD), "lm_head");
    cr_expect(weight_role_per_layer(W_DOWN) && !weight_role_per_layer(W_EMBED) && !weight_role_per_layer(W_LM_HEAD));
}
