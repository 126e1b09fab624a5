#include "tests/support/checkpoint.h"

#include <assert.h>
#include <dirent.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <jansson.h>

#include "base/rng.h"

model_config ckpt_small_mla(void)
{
    return (model_config){.architecture = "DeepseekV3ForCausalLM",
                          .attn = ATTN_MLA,
                          .n_layers = 2,
                          .vocab = 48,
                          .dim = 32,
                          .ffn_dim = 24,
                          .n_heads = 4,
                          .n_kv_heads = 4,
                          .q_lora_rank = 12,
                          .kv_lora_rank = 16,
                          .nope_dim = 8,
                          .rope_dim = 4,
                          .v_dim = 6,
                          .max_pos = 64,
                          .rms_eps = 1e-6f,
                          .rope_theta = 10000,
                          .rope_interleaved = true,
                          .bos_id = 0,
                          .eos_id = 1,
                          .weight_dtype = DT_BF16};
}

model_config ckpt_small_gqa(void)
{
    return (model_config){.architecture = "LlamaForCausalLM",
                          .attn = ATTN_GQA,
                          .n_layers = 2,
                          .vocab = 48,
                          .dim = 32,
                          .ffn_dim = 24,
                          .n_heads = 4,
                          .n_kv_heads = 2,
                          .head_dim = 8,
                          .rope_dim = 8,
                          .max_pos = 64,
                          .rms_eps = 1e-6f,
                          .rope_theta = 10000,
                          .bos_id = 0,
                          .eos_id = 1,
                          .weight_dtype = DT_BF16};
}

/* ---- safetensors bytes ---- */

static const char *format_type(tpl_dtype t)
{
    switch (t) {
    case DT_F32:
        return "F32";
    case DT_F16:
        return "F16";
    case DT_BF16:
        return "BF16";
    case DT_F8E4M3:
        return "F8_E4M3";
    case DT_I32:
        return "I32";
    default:
        return "F64";
    }
}

static size_t tensor_bytes(const ckpt_tensor *t)
{
    size_t n = dtype_bytes(t->dtype);
    for (int32_t i = 0; i < t->n_dims; i++)
        n *= (size_t)t->shape[i];
    return n;
}

void ckpt_safetensors(text_buf *out, const ckpt_tensor *tensors, int32_t n)
{
    text_buf head = {0};
    size_t at = 0;
    text_addf(&head, "{\"__metadata__\":{\"format\":\"pt\"}");
    for (int32_t i = 0; i < n; i++) {
        text_addf(&head, ",\"%s\":{\"dtype\":\"%s\",\"shape\":[", tensors[i].name, format_type(tensors[i].dtype));
        for (int32_t d = 0; d < tensors[i].n_dims; d++)
            text_addf(&head, "%s%lld", d ? "," : "", (long long)tensors[i].shape[d]);
        text_addf(&head, "],\"data_offsets\":[%zu,%zu]}", at, at + tensor_bytes(&tensors[i]));
        at += tensor_bytes(&tensors[i]);
    }
    text_add(&head, "}", 1);
    while (head.len % 8)
        text_add(&head, " ", 1);
    for (int i = 0; i < 8; i++) {
        char byte = (char)(head.len >> (8 * i) & 255);
        text_add(out, &byte, 1);
    }
    text_add(out, head.data, head.len);
    for (int32_t i = 0; i < n; i++)
        text_add(out, tensors[i].data, tensor_bytes(&tensors[i]));
    text_fini(&head);
}

/* ---- weights ---- */

typedef struct {
    arena *a;
    tpl_dtype dtype;
    uint64_t seed;
    ckpt_list list;
} builder;

/* FNV-1a: a stream number a tensor name. */
static uint64_t hash_name(const char *s)
{
    uint64_t h = 14695981039346656037u;
    for (; *s; s++)
        h = (h ^ (unsigned char)*s) * 1099511628211u;
    return h;
}

/* A matrix [rows, cols] of variance 1 / cols, or with rows 0 a norm weight [cols] around 1. */
static void add(builder *b, const char *name, int64_t rows, int64_t cols)
{
    size_t n = (size_t)((rows ? rows : 1) * cols);
    float *values = tpl_malloc(n * sizeof *values);
    rng r = rng_make(b->seed, hash_name(name));
    for (size_t i = 0; i < n; i++)
        values[i] = (float)(rows ? rng_normal(&r) / sqrt((double)cols) : 1 + 0.2 * rng_normal(&r));
    void *data = arena_alloc(b->a, n * dtype_bytes(b->dtype));
    dtype_from_f32(data, b->dtype, values, n);
    free(values);
    b->list.tensors[b->list.n++] = (ckpt_tensor){
        .name = arena_strdup(b->a, name),
        .dtype = b->dtype,
        .n_dims = rows ? 2 : 1,
        .shape = {rows ? rows : cols, cols},
        .data = data,
    };
}

static void add_layer(builder *b, int32_t layer, const char *part, int64_t rows, int64_t cols)
{
    char name[128];
    snprintf(name, sizeof name, "model.layers.%d.%s.weight", layer, part);
    add(b, name, rows, cols);
}

static void add_mla(builder *b, const model_config *c, int32_t i)
{
    int64_t q = (int64_t)c->n_heads * (c->nope_dim + c->rope_dim);
    if (c->q_lora_rank) {
        add_layer(b, i, "self_attn.q_a_proj", c->q_lora_rank, c->dim);
        add_layer(b, i, "self_attn.q_a_layernorm", 0, c->q_lora_rank);
        add_layer(b, i, "self_attn.q_b_proj", q, c->q_lora_rank);
    } else {
        add_layer(b, i, "self_attn.q_proj", q, c->dim);
    }
    add_layer(b, i, "self_attn.kv_a_proj_with_mqa", c->kv_lora_rank + c->rope_dim, c->dim);
    add_layer(b, i, "self_attn.kv_a_layernorm", 0, c->kv_lora_rank);
    add_layer(b, i, "self_attn.kv_b_proj", (int64_t)c->n_heads * (c->nope_dim + c->v_dim), c->kv_lora_rank);
    add_layer(b, i, "self_attn.o_proj", c->dim, (int64_t)c->n_heads * c->v_dim);
}

static void add_gqa(builder *b, const model_config *c, int32_t i)
{
    int64_t q = (int64_t)c->n_heads * c->head_dim, kv = (int64_t)c->n_kv_heads * c->head_dim;
    add_layer(b, i, "self_attn.q_proj", q, c->dim);
    add_layer(b, i, "self_attn.k_proj", kv, c->dim);
    add_layer(b, i, "self_attn.v_proj", kv, c->dim);
    add_layer(b, i, "self_attn.o_proj", c->dim, q);
}

ckpt_list ckpt_tensors(arena *a, const model_config *c, tpl_dtype dtype, uint64_t seed)
{
    builder b = {.a = a, .dtype = dtype, .seed = seed};
    b.list.tensors = arena_array(a, ckpt_tensor, 3 + 12 * c->n_layers);
    add(&b, "model.embed_tokens.weight", c->vocab, c->dim);
    add(&b, "model.norm.weight", 0, c->dim);
    if (!c->tied_embeddings)
        add(&b, "lm_head.weight", c->vocab, c->dim);
    for (int32_t i = 0; i < c->n_layers; i++) {
        add_layer(&b, i, "input_layernorm", 0, c->dim);
        add_layer(&b, i, "post_attention_layernorm", 0, c->dim);
        if (c->attn == ATTN_MLA)
            add_mla(&b, c, i);
        else
            add_gqa(&b, c, i);
        add_layer(&b, i, "mlp.gate_proj", c->ffn_dim, c->dim);
        add_layer(&b, i, "mlp.up_proj", c->ffn_dim, c->dim);
        add_layer(&b, i, "mlp.down_proj", c->dim, c->ffn_dim);
    }
    return b.list;
}

/* ---- files ---- */

static json_t *attention_members(const model_config *c)
{
    if (c->attn == ATTN_GQA)
        return json_pack("{si, si}", "num_key_value_heads", c->n_kv_heads, "head_dim", c->head_dim);
    json_t *q_lora = c->q_lora_rank ? json_integer(c->q_lora_rank) : json_null();
    return json_pack("{si, so, si, si, si, si, sb}", "num_key_value_heads", c->n_heads, "q_lora_rank", q_lora,
                     "kv_lora_rank", c->kv_lora_rank, "qk_nope_head_dim", c->nope_dim, "qk_rope_head_dim", c->rope_dim,
                     "v_head_dim", c->v_dim, "rope_interleave", c->rope_interleaved);
}

char *ckpt_config_text(arena *a, const model_config *c, const char *extra)
{
    const char *type = c->weight_dtype == DT_F32 ? "float32" : c->weight_dtype == DT_F16 ? "float16" : "bfloat16";
    json_t *root =
        json_pack("{s[s], si, si, si, si, si, si, sf, sf, sb, si, si, ss, ss}", "architectures", c->architecture,
                  "num_hidden_layers", c->n_layers, "vocab_size", c->vocab, "hidden_size", c->dim, "intermediate_size",
                  c->ffn_dim, "num_attention_heads", c->n_heads, "max_position_embeddings", c->max_pos, "rms_norm_eps",
                  (double)c->rms_eps, "rope_theta", c->rope_theta, "tie_word_embeddings", c->tied_embeddings,
                  "bos_token_id", c->bos_id, "eos_token_id", c->eos_id, "hidden_act", "silu", "torch_dtype", type);
    json_t *attention = attention_members(c);
    json_object_update(root, attention);
    char *more = arena_printf(a, "{%s\"use_cache\": true}", extra ? extra : "");
    json_t *overrides = json_loads(more, 0, NULL);
    assert(overrides && "extra members are not JSON");
    json_object_update(root, overrides);
    char *text = json_dumps(root, JSON_INDENT(2));
    char *kept = arena_strdup(a, text);
    free(text);
    json_decref(overrides);
    json_decref(attention);
    json_decref(root);
    return kept;
}

static tpl_code save_bytes(arena *a, const char *dir, const char *name, const ckpt_tensor *t, int32_t n, tpl_err *e)
{
    text_buf bytes = {0};
    ckpt_safetensors(&bytes, t, n);
    tpl_code rc = text_write_file(text_path_join(a, dir, name), bytes.data, bytes.len, e);
    text_fini(&bytes);
    return rc;
}

static tpl_code save_shards(arena *a, const char *dir, const ckpt_list *list, int32_t n_shards, tpl_err *e)
{
    text_buf index = {0};
    tpl_code rc = TPL_OK;
    text_addf(&index, "{\"metadata\": {\"total_size\": 0}, \"weight_map\": {");
    for (int32_t s = 0, at = 0; rc == TPL_OK && s < n_shards; s++) {
        int32_t end = list->n * (s + 1) / n_shards;
        char *name = arena_printf(a, "model-%05d-of-%05d.safetensors", s + 1, n_shards);
        rc = save_bytes(a, dir, name, list->tensors + at, end - at, e);
        for (; at < end; at++)
            text_addf(&index, "%s\"%s\": \"%s\"", at ? ", " : "", list->tensors[at].name, name);
    }
    text_addf(&index, "}}");
    if (rc == TPL_OK)
        rc = text_write_file(text_path_join(a, dir, "model.safetensors.index.json"), index.data, index.len, e);
    text_fini(&index);
    return rc;
}

tpl_code ckpt_save(const char *dir, const char *config_text, const ckpt_list *list, int32_t n_shards, tpl_err *e)
{
    arena a;
    arena_init(&a);
    tpl_code rc = text_write_file(text_path_join(&a, dir, "config.json"), config_text, strlen(config_text), e);
    if (rc == TPL_OK)
        rc = n_shards > 1 ? save_shards(&a, dir, list, n_shards, e)
                          : save_bytes(&a, dir, "model.safetensors", list->tensors, list->n, e);
    arena_fini(&a);
    return rc;
}

tpl_code ckpt_write(const char *dir, const model_config *c, tpl_dtype dtype, uint64_t seed, int32_t n_shards,
                    tpl_err *e)
{
    arena a;
    arena_init(&a);
    ckpt_list list = ckpt_tensors(&a, c, dtype, seed);
    tpl_code rc = ckpt_save(dir, ckpt_config_text(&a, c, NULL), &list, n_shards, e);
    arena_fini(&a);
    return rc;
}

char *ckpt_temp_dir(arena *a)
{
    const char *base = getenv("TMPDIR");
    return mkdtemp(text_path_join(a, base && *base ? base : "/tmp", "tplabench-ckpt.XXXXXX"));
}

void ckpt_remove_dir(const char *dir)
{
    DIR *d = opendir(dir);
    if (!d)
        return;
    for (struct dirent *f = readdir(d); f; f = readdir(d))
        unlinkat(dirfd(d), f->d_name, 0); /* "." and ".." refuse */
    closedir(d);
    rmdir(dir);
}
