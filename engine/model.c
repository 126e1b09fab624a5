#include "engine/model.h"

#include <assert.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sysinfo.h>

#include "base/log.h"
#include "engine/safetensors.h"
#include "engine/shape.h"

typedef struct {
    mat view;
    const st_tensor *tensor; /* NULL: the model has no such weight */
} weight;

/* Addresses of a random model's weights: reserved at first, filled when a host backend wants them. */
typedef struct {
    char *base;   /* NULL: a checkpoint */
    size_t bytes;
    uint64_t seed;
    bool made, attention_only;
} random_set;

struct model {
    arena mem;
    model_config cfg;
    const char *dir;
    st_set *files;
    weight *weights; /* [W_N_ROLES, n_layers]; one-a-model roles use column 0 */
    sha256_hex sha;  /* empty until asked for */
    random_set random;
};

/* Names as both families store them; %d is the layer. W_Q_B has a second name without a query latent. */
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
};

enum { TENSOR_NAME = 96 };

const char *weight_role_name(weight_role r)
{
    return roles[r].word;
}

bool weight_role_per_layer(weight_role r)
{
    return r != W_EMBED && r != W_FINAL_NORM && r != W_LM_HEAD;
}

static void tensor_name(const model_config *c, weight_role r, int layer, char name[TENSOR_NAME])
{
    if (r == W_LM_HEAD && c->tied_embeddings)
        r = W_EMBED;
    if (r == W_Q_B && c->q_lora_rank == 0)
        r = W_Q;
    const char *per_layer = strstr(roles[r].tensor, "%d");
    if (per_layer)
        snprintf(name, TENSOR_NAME, "%.*s%d%s", (int)(per_layer - roles[r].tensor), roles[r].tensor, layer,
                 per_layer + 2);
    else
        snprintf(name, TENSOR_NAME, "%s", roles[r].tensor);
}

/* ---- shapes ---- */

/* A weight's stored shape; n_dims 0: the model has none in this role. */
typedef struct {
    int32_t n_dims;
    int64_t dims[2];
} shape;

static shape matrix(int64_t rows, int64_t cols)
{
    return (shape){2, {rows, cols}};
}

static shape vector(int64_t cols)
{
    return (shape){1, {cols, 0}};
}

static shape mla_shape(const model_config *c, weight_role r)
{
    int64_t heads = c->n_heads, q_in = c->q_lora_rank ? c->q_lora_rank : c->dim;
    switch (r) {
    case W_Q_A:
        return c->q_lora_rank ? matrix(c->q_lora_rank, c->dim) : (shape){0};
    case W_Q_A_NORM:
        return c->q_lora_rank ? vector(c->q_lora_rank) : (shape){0};
    case W_Q_B:
        return matrix(heads * (c->nope_dim + c->rope_dim), q_in);
    case W_KV_A:
        return matrix((int64_t)c->kv_lora_rank + c->rope_dim, c->dim);
    case W_KV_A_NORM:
        return vector(c->kv_lora_rank);
    case W_KV_B:
        return matrix(heads * (c->nope_dim + c->v_dim), c->kv_lora_rank);
    case W_O:
        return matrix(c->dim, heads * c->v_dim);
    default:
        return (shape){0};
    }
}

static shape gqa_shape(const model_config *c, weight_role r)
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
    default:
        return (shape){0};
    }
}

static shape role_shape(const model_config *c, weight_role r)
{
    switch (r) {
    case W_EMBED:
    case W_LM_HEAD:
        return matrix(c->vocab, c->dim);
    case W_FINAL_NORM:
    case W_ATTN_NORM:
    case W_MLP_NORM:
        return vector(c->dim);
    case W_GATE:
    case W_UP:
        return matrix(c->ffn_dim, c->dim);
    case W_DOWN:
        return matrix(c->dim, c->ffn_dim);
    default:
        return c->attn == ATTN_MLA ? mla_shape(c, r) : gqa_shape(c, r);
    }
}

/* ---- binding ---- */

static weight *slot(const model *m, weight_role r, int layer)
{
    assert(r < W_N_ROLES && (!weight_role_per_layer(r) || (layer >= 0 && layer < m->cfg.n_layers)));
    return &m->weights[(size_t)r * (size_t)m->cfg.n_layers + (size_t)(weight_role_per_layer(r) ? layer : 0)];
}

static tpl_code check_tensor(const st_tensor *t, const shape *want, tpl_err *e)
{
    char got[ST_SHAPE_TEXT], expected[ST_SHAPE_TEXT];
    bool same = t->n_dims == want->n_dims;
    for (int32_t i = 0; same && i < t->n_dims; i++)
        same = t->shape[i] == want->dims[i];
    if (!same)
        return tpl_fail(e, TPL_E_INPUT, t->file, "tensor %s: shape %s, expected %s", t->name,
                        st_shape_text(t->n_dims, t->shape, got), st_shape_text(want->n_dims, want->dims, expected));
    if (t->dtype != DT_BF16 && t->dtype != DT_F16 && t->dtype != DT_F32)
        return tpl_fail(e, TPL_E_INPUT, t->file, "tensor %s: type %s, expected BF16, F16 or F32", t->name, t->type);
    if ((uintptr_t)t->data % dtype_bytes(t->dtype))
        return tpl_fail(
            e, TPL_E_UNSUPPORTED, t->file,
            "tensor %s: data is not aligned to its %zu-byte elements; save the file again with a current library",
            t->name, dtype_bytes(t->dtype));
    return TPL_OK;
}

static tpl_code bind_weight(model *m, weight_role r, int layer, tpl_err *e)
{
    char name[TENSOR_NAME];
    shape want = role_shape(&m->cfg, r);
    if (want.n_dims == 0)
        return TPL_OK;
    tensor_name(&m->cfg, r, layer, name);
    const st_tensor *t = st_set_find(m->files, name);
    if (!t)
        return tpl_fail(e, TPL_E_INPUT, m->dir, "tensor %s is missing, expected as config.json describes the model",
                        name);
    TPL_TRY(check_tensor(t, &want, e));
    int64_t rows = want.n_dims == 2 ? want.dims[0] : 1, cols = want.dims[want.n_dims - 1];
    *slot(m, r, layer) = (weight){
        .view = {.data = (void *)t->data, .dtype = t->dtype, .rows = rows, .cols = cols, .stride = cols},
        .tensor = t,
    };
    return TPL_OK;
}

static bool own_tensor(const model *m, weight_role r)
{
    return !(r == W_LM_HEAD && m->cfg.tied_embeddings);
}

/* Tensors that no role took: buffers old versions saved, a multi-token-prediction layer, or something unknown. */
static void note_extra(const model *m, int32_t n_bound)
{
    int32_t n_buffers = 0, n = st_set_count(m->files);
    for (int32_t i = 0; i < n; i++)
        n_buffers += strstr(st_set_at(m->files, i)->name, "rotary_emb.inv_freq") != NULL;
    if (n > n_bound)
        log_debug("%s: %d tensors are not used, %d of them rotary frequencies, which are computed instead", m->dir,
                  n - n_bound, n_buffers);
}

static tpl_code bind_weights(model *m, tpl_err *e)
{
    int32_t n_bound = 0;
    m->weights = arena_array(&m->mem, weight, (size_t)W_N_ROLES * (size_t)m->cfg.n_layers);
    for (int layer = 0; layer < m->cfg.n_layers; layer++)
        for (weight_role r = 0; r < W_N_ROLES; r++) {
            if (layer > 0 && !weight_role_per_layer(r))
                continue;
            TPL_TRY(bind_weight(m, r, layer, e));
            n_bound += slot(m, r, layer)->tensor && own_tensor(m, r);
        }
    m->cfg.weight_dtype = slot(m, W_O, 0)->view.dtype;
    note_extra(m, n_bound);
    return TPL_OK;
}

tpl_code model_open(const char *dir, model **out, tpl_err *e)
{
    model *m = tpl_calloc(1, sizeof *m);
    tpl_code rc;
    arena_init(&m->mem);
    m->dir = arena_strdup(&m->mem, dir);
    if (!text_is_dir(dir))
        rc = tpl_fail(e, TPL_E_IO, dir, "is no folder, expected a checkpoint folder");
    else
        rc = model_config_read(dir, &m->cfg, e);
    if (rc == TPL_OK)
        rc = model_config_runnable(&m->cfg, e);
    if (rc == TPL_OK)
        rc = st_set_open(dir, &m->files, e);
    if (rc == TPL_OK)
        rc = bind_weights(m, e);
    if (rc == TPL_OK)
        *out = m;
    else
        model_close(m);
    return rc;
}

void model_close(model *m)
{
    if (!m)
        return;
    st_set_close(m->files);
    if (m->random.base)
        munmap(m->random.base, m->random.bytes);
    arena_fini(&m->mem);
    free(m);
}

/* ---- shapes: random weights ---- */

enum { RANDOM_ALIGN = 256 };

/* Calls fn on every weight that a shape has, in a fixed order. */
static void each_slot(model *m, void (*fn)(model *m, weight_role r, int layer))
{
    for (int layer = 0; layer < m->cfg.n_layers; layer++)
        for (weight_role r = 0; r < W_N_ROLES; r++)
            if ((layer == 0 || weight_role_per_layer(r)) && role_shape(&m->cfg, r).n_dims)
                fn(m, r, layer);
}

/* Sizes only; data holds the offset until the addresses are known. */
static void place_weight(model *m, weight_role r, int layer)
{
    shape s = role_shape(&m->cfg, r);
    bool tied = r == W_LM_HEAD && m->cfg.tied_embeddings;
    mat *v = &slot(m, r, layer)->view;
    *v = (mat){.dtype = DT_BF16, .rows = s.n_dims == 2 ? s.dims[0] : 1, .cols = s.dims[s.n_dims - 1]};
    v->stride = v->cols;
    if (tied) {
        *v = slot(m, W_EMBED, 0)->view;
        return;
    }
    v->data = (void *)m->random.bytes;
    size_t bytes = (size_t)(v->rows * v->cols) * dtype_bytes(v->dtype);
    m->random.bytes += (bytes + RANDOM_ALIGN - 1) / RANDOM_ALIGN * RANDOM_ALIGN;
}

static void move_weight(model *m, weight_role r, int layer)
{
    mat *v = &slot(m, r, layer)->view;
    v->data = m->random.base + (size_t)v->data;
}

/* Norm weights lie in [0.75, 1.25); a matrix of k columns has variance 1 / k, an embedding 1. */
static random_recipe recipe_of(const model *m, const mat *v, weight_role r, int layer)
{
    uint64_t key = random_mix(m->random.seed + random_mix((uint64_t)r * 4096 + (uint64_t)layer + 1));
    if (v->rows == 1)
        return (random_recipe){.key = key, .size = 0.25f, .offset = 4};
    return (random_recipe){.key = key, .size = r == W_EMBED ? 1.f : sqrtf(3.f / (float)v->cols)};
}

static void make_weight(model *m, weight_role r, int layer)
{
    const mat *v = &slot(m, r, layer)->view;
    random_recipe recipe = recipe_of(m, v, r, layer);
    bf16 *to = v->data;
    int64_t n = v->rows * v->cols;
    if (!own_tensor(m, r))
        return;
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < n; i++)
        to[i] = bf16_from_f32(random_value(recipe, (uint64_t)i));
}

/* The file's configuration as a shape runs it. */
static tpl_code shape_config(model *m, const shape_spec *s, const char *path, tpl_err *e)
{
    TPL_TRY(model_config_read(path, &m->cfg, e));
    m->cfg.quant_method[0] = 0;
    m->cfg.weight_dtype = DT_BF16;
    m->cfg.rope = (rope_scaling){0};
    if (s->layers > 0)
        m->cfg.n_layers = s->layers;
    model_config runs = m->cfg;
    if (s->attention_only)
        runs.n_experts = 0;
    return model_config_runnable(&runs, e);
}

static tpl_code reserve_weights(model *m, tpl_err *e)
{
    m->weights = arena_array(&m->mem, weight, (size_t)W_N_ROLES * (size_t)m->cfg.n_layers);
    each_slot(m, place_weight);
    void *p = mmap(NULL, m->random.bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED)
        return tpl_fail(e, TPL_E_MEMORY, m->dir, "needs addresses for %.3f GiB of weights", (double)m->random.bytes / 0x1p30);
    m->random.base = p;
    each_slot(m, move_weight);
    return TPL_OK;
}

tpl_code model_open_shape(const char *spec, const char *dir, model **out, tpl_err *e)
{
    shape_spec s;
    TPL_TRY(shape_parse(spec, &s, e));
    model *m = tpl_calloc(1, sizeof *m);
    arena_init(&m->mem);
    m->dir = arena_strdup(&m->mem, spec);
    m->random.seed = s.seed;
    m->random.attention_only = s.attention_only;
    bool is_path = text_is_file(s.name);
    const char *path = is_path ? s.name : arena_printf(&m->mem, "%s/%s.json", dir ? dir : "models/shapes", s.name);
    tpl_code rc = shape_config(m, &s, path, e);
    if (rc == TPL_OK)
        rc = reserve_weights(m, e);
    if (rc == TPL_OK)
        *out = m;
    else
        model_close(m);
    return rc;
}

bool model_is_random(const model *m)
{
    return m->random.base != NULL;
}

bool model_attention_only(const model *m)
{
    return m->random.attention_only;
}

tpl_code model_make_weights(model *m, tpl_err *e)
{
    struct sysinfo machine;
    random_set *r = &m->random;
    if (!r->base || r->made)
        return TPL_OK;
    size_t total = sysinfo(&machine) == 0 ? (size_t)machine.totalram * machine.mem_unit : SIZE_MAX;
    if (r->bytes > total || mprotect(r->base, r->bytes, PROT_READ | PROT_WRITE) != 0)
        return tpl_fail(e, TPL_E_MEMORY, m->dir, "needs %.3f GiB for random weights, the machine has %.3f GiB in all",
                        (double)r->bytes / 0x1p30, (double)total / 0x1p30);
    each_slot(m, make_weight);
    r->made = true;
    return TPL_OK;
}

bool model_weight_recipe(const model *m, const void *at, random_recipe *recipe, uint64_t *index)
{
    for (int layer = 0; m->random.base && layer < m->cfg.n_layers; layer++)
        for (weight_role r = 0; r < W_N_ROLES; r++) {
            const mat *v = &slot(m, r, layer)->view;
            size_t bytes = (size_t)(v->rows * v->cols) * dtype_bytes(v->dtype);
            const char *p = v->data, *q = at;
            if (!p || !own_tensor(m, r) || q < p || q >= p + bytes)
                continue;
            *recipe = recipe_of(m, v, r, weight_role_per_layer(r) ? layer : 0);
            *index = (uint64_t)(q - p) / dtype_bytes(v->dtype);
            return true;
        }
    return false;
}

/* ---- reading ---- */

const model_config *model_cfg(const model *m)
{
    return &m->cfg;
}

const char *model_dir(const model *m)
{
    return m->dir;
}

mat model_weight(const model *m, weight_role r, int layer)
{
    return slot(m, r, layer)->view;
}

int64_t model_file_bytes(const model *m)
{
    int64_t n = 0;
    for (int32_t i = 0; m->files && i < st_set_count(m->files); i++)
        n += st_set_at(m->files, i)->bytes;
    return n;
}

int32_t model_tensor_count(const model *m)
{
    return m->files ? st_set_count(m->files) : 0;
}

void model_forbid_reads(model *m)
{
    if (m->files)
        st_set_forbid_reads(m->files);
}

/* ---- finiteness: a value is NaN or infinite if and only if all its exponent bits are set ---- */

enum { SCAN_BLOCK = 1 << 14, SCAN_SLICE = 1 << 22 }; /* elements between looks at the result, and at signals */

static bool block_is_finite_16(const uint16_t *p, int64_t n, uint16_t exponent)
{
    unsigned bad = 0;
    for (int64_t i = 0; i < n; i++)
        bad |= (p[i] & exponent) == exponent;
    return !bad;
}

static bool block_is_finite_32(const uint32_t *p, int64_t n)
{
    unsigned bad = 0;
    for (int64_t i = 0; i < n; i++)
        bad |= (p[i] & 0x7f800000u) == 0x7f800000u;
    return !bad;
}

static bool block_is_finite(const void *data, tpl_dtype t, int64_t at, int64_t n)
{
    if (t == DT_F32)
        return block_is_finite_32((const uint32_t *)data + at, n);
    return block_is_finite_16((const uint16_t *)data + at, n, t == DT_BF16 ? 0x7f80 : 0x7c00);
}

static tpl_code report_value(const weight *w, int64_t at, int64_t n, tpl_err *e)
{
    const mat *v = &w->view;
    while (n > 1 && block_is_finite(v->data, v->dtype, at, 1)) {
        at++;
        n--;
    }
    float value;
    dtype_to_f32(&value, (const char *)v->data + (size_t)at * dtype_bytes(v->dtype), v->dtype, 1);
    return tpl_fail(e, TPL_E_INPUT, w->tensor->file,
                    "tensor %s: value %lld (row %lld, column %lld) is %s, expected a finite number", w->tensor->name,
                    (long long)at, (long long)(at / v->cols), (long long)(at % v->cols),
                    isnan(value) ? "NaN" : "infinite");
}

static tpl_code check_weight(const weight *w, tpl_err *e)
{
    int64_t n = w->view.rows * w->view.cols;
    for (int64_t at = 0; at < n; at += SCAN_BLOCK) {
        int64_t k = n - at < SCAN_BLOCK ? n - at : SCAN_BLOCK;
        if (at % SCAN_SLICE == 0 && interrupt_seen())
            return tpl_fail(e, TPL_E_INTERRUPTED, w->tensor->name, "check of the weights was interrupted");
        if (!block_is_finite(w->view.data, w->view.dtype, at, k))
            return report_value(w, at, k, e);
    }
    return TPL_OK;
}

tpl_code model_check_finite(const model *m, tpl_err *e)
{
    for (weight_role r = 0; r < W_N_ROLES; r++)
        for (int layer = 0; layer < (weight_role_per_layer(r) ? m->cfg.n_layers : 1); layer++)
            if (slot(m, r, layer)->tensor && own_tensor(m, r))
                TPL_TRY(check_weight(slot(m, r, layer), e));
    return TPL_OK;
}

/* ---- identity ---- */

static tpl_code hash_file(sha256_state *s, const char *path, char *chunk, size_t chunk_len, tpl_err *e)
{
    FILE *f = fopen(path, "rb");
    size_t n;
    tpl_code rc = TPL_OK;
    if (!f)
        return tpl_fail(e, TPL_E_IO, path, "cannot open: %s", strerror(errno));
    while (rc == TPL_OK && (n = fread(chunk, 1, chunk_len, f)) > 0) {
        sha256_add(s, chunk, n);
        if (interrupt_seen())
            rc = tpl_fail(e, TPL_E_INTERRUPTED, path, "hash of the weights was interrupted");
    }
    if (rc == TPL_OK && ferror(f))
        rc = tpl_fail(e, TPL_E_IO, path, "cannot read: %s", strerror(errno));
    fclose(f);
    return rc;
}

tpl_code model_sha256(model *m, sha256_hex *out, tpl_err *e)
{
    enum { CHUNK = 1 << 20 };
    if (m->random.base) { /* the name says all there is to say of the weights of a shape */
        *out = sha256_bytes(m->dir, strlen(m->dir));
        return TPL_OK;
    }
    if (!m->sha.hex[0]) {
        arena_mark mark = arena_get_mark(&m->mem);
        char *chunk = arena_alloc(&m->mem, CHUNK);
        sha256_state *s = sha256_create();
        tpl_code rc = TPL_OK;
        for (int32_t i = 0; rc == TPL_OK && i < st_set_n_files(m->files); i++)
            rc = hash_file(s, st_set_path(m->files, i), chunk, CHUNK, e);
        if (rc == TPL_OK)
            rc = hash_file(s, text_path_join(&m->mem, m->dir, "config.json"), chunk, CHUNK, e);
        sha256_hex sha = sha256_finish(s);
        arena_reset(&m->mem, mark);
        TPL_TRY(rc);
        m->sha = sha;
    }
    *out = m->sha;
    return TPL_OK;
}
