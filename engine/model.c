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
#include "engine/model_roles.h"
#include "engine/safetensors.h"
#include "engine/shape.h"

typedef struct {
    mat view;
    const st_tensor *tensor; /* NULL: the model has no such weight */
    const st_tensor *scales; /* of an f8 weight */
} weight;

typedef struct {
    weight *w;
    weight_role role;
    int32_t layer, expert;
} placed_weight;

/* Addresses of a random model's weights: reserved at first, filled when a host backend wants them. */
typedef struct {
    char *base; /* NULL: a checkpoint */
    size_t bytes;
    placed_weight *placed; /* [n_placed] by address */
    int64_t n_placed;
    uint64_t seed;
    bool made, attention_only;
} random_set;

struct model {
    arena mem;
    model_config cfg;
    const char *dir;
    st_set *files;
    weight *weights; /* [W_N_ROLES, n_layers]; one-a-model roles use column 0 */
    weight *experts; /* [n_layers, N_EXPERT_ROLES, n_experts]; NULL: none */
    void **widened;  /* [n_layers, N_WIDENED] owned copies of weights that are not used as stored */
    random_set random;
    sha256_hex sha; /* empty until asked for */
};

enum { N_EXPERT_ROLES = 3, WIDE_KV_B = 0, WIDE_ROUTER_BIAS, N_WIDENED };

/* ---- binding ---- */

static weight *slot(const model *m, weight_role r, int layer)
{
    assert(r < W_N_ROLES && (!weight_role_per_layer(r) || (layer >= 0 && layer < m->cfg.n_layers)));
    return &m->weights[(size_t)r * (size_t)m->cfg.n_layers + (size_t)(weight_role_per_layer(r) ? layer : 0)];
}

static weight *expert_slot(const model *m, weight_role r, int layer, int expert)
{
    assert(role_is_expert(r) && layer >= 0 && layer < m->cfg.n_layers && expert >= 0 && expert < m->cfg.n_experts);
    size_t kind = (size_t)(r - W_EXPERT_GATE);
    return &m->experts[((size_t)layer * N_EXPERT_ROLES + kind) * (size_t)m->cfg.n_experts + (size_t)expert];
}

static tpl_code check_shape(const st_tensor *t, const role_dims *want, tpl_err *e)
{
    char got[ST_SHAPE_TEXT], expected[ST_SHAPE_TEXT];
    bool same = t->n_dims == want->n_dims;
    for (int32_t i = 0; same && i < t->n_dims; i++)
        same = t->shape[i] == want->dims[i];
    if (same)
        return TPL_OK;
    return tpl_fail(e, TPL_E_INPUT, t->file, "tensor %s: shape %s, expected %s", t->name,
                    st_shape_text(t->n_dims, t->shape, got), st_shape_text(want->n_dims, want->dims, expected));
}

static tpl_code check_aligned(const st_tensor *t, tpl_err *e)
{
    if ((uintptr_t)t->data % dtype_bytes(t->dtype) == 0)
        return TPL_OK;
    return tpl_fail(
        e, TPL_E_UNSUPPORTED, t->file,
        "tensor %s: data is not aligned to its %zu-byte elements; save the file again with a current library", t->name,
        dtype_bytes(t->dtype));
}

static tpl_code check_tensor(const st_tensor *t, const role_dims *want, bool f8, tpl_err *e)
{
    TPL_TRY(check_shape(t, want, e));
    bool known = t->dtype == DT_BF16 || t->dtype == DT_F16 || t->dtype == DT_F32 || (f8 && t->dtype == DT_F8E4M3);
    if (!known)
        return tpl_fail(e, TPL_E_INPUT, t->file, "tensor %s: type %s, expected BF16, F16%s", t->name, t->type,
                        f8 ? ", F32 or F8_E4M3" : " or F32");
    return check_aligned(t, e);
}

static int64_t blocks_of(int64_t n)
{
    return (n + MODEL_F8_BLOCK - 1) / MODEL_F8_BLOCK;
}

/* The block scales of an f8 weight. */
static tpl_code find_scales(const model *m, const char *name, weight *w, tpl_err *e)
{
    char scales[ROLE_TENSOR_NAME + sizeof ROLE_SCALE_SUFFIX];
    role_dims want = {2, {blocks_of(w->view.rows), blocks_of(w->view.cols)}};
    snprintf(scales, sizeof scales, "%s%s", name, ROLE_SCALE_SUFFIX);
    const st_tensor *t = st_set_find(m->files, scales);
    if (!t)
        return tpl_fail(e, TPL_E_INPUT, m->dir, "tensor %s is missing, expected the scales of an F8_E4M3 weight",
                        scales);
    TPL_TRY(check_shape(t, &want, e));
    if (t->dtype != DT_F32)
        return tpl_fail(e, TPL_E_UNSUPPORTED, t->file, "tensor %s: type %s, expected F32", t->name, t->type);
    TPL_TRY(check_aligned(t, e));
    w->view.scale = t->data;
    w->scales = t;
    return TPL_OK;
}

static tpl_code bind_weight(model *m, weight_role r, int layer, int expert, weight *to, tpl_err *e)
{
    char name[ROLE_TENSOR_NAME];
    role_dims want = role_shape(&m->cfg, r, layer);
    if (want.n_dims == 0)
        return TPL_OK;
    role_tensor_name(&m->cfg, r, layer, expert, name);
    const st_tensor *t = st_set_find(m->files, name);
    if (!t)
        return tpl_fail(e, TPL_E_INPUT, m->dir, "tensor %s is missing, expected as config.json describes the model",
                        name);
    TPL_TRY(check_tensor(t, &want, m->cfg.quant_method[0] && role_may_be_f8(r), e));
    int64_t rows = want.n_dims == 2 ? want.dims[0] : 1, cols = want.dims[want.n_dims - 1];
    *to = (weight){
        .view = {.data = (void *)t->data, .dtype = t->dtype, .rows = rows, .cols = cols, .stride = cols},
        .tensor = t,
    };
    return t->dtype == DT_F8E4M3 ? find_scales(m, name, to, e) : TPL_OK;
}

static bool own_tensor(const model *m, weight_role r)
{
    return !(r == W_LM_HEAD && m->cfg.tied_embeddings);
}

/* The layer in "model.layers.N.", or -1. */
static long layer_of(const char *name)
{
    static const char prefix[] = "model.layers.";
    if (strncmp(name, prefix, sizeof prefix - 1) != 0)
        return -1;
    return strtol(name + sizeof prefix - 1, NULL, 10);
}

/* Tensors that no role took: a multi-token-prediction layer, buffers old versions saved, or something unknown. */
static void note_extra(const model *m, int32_t n_bound)
{
    int32_t n_buffers = 0, n_beyond = 0, n = st_set_count(m->files);
    for (int32_t i = 0; i < n; i++) {
        const char *name = st_set_at(m->files, i)->name;
        n_buffers += strstr(name, "rotary_emb.inv_freq") != NULL;
        n_beyond += layer_of(name) >= m->cfg.n_layers;
    }
    if (n_beyond)
        log_note("%s: %d tensors of layers from %d on (multi-token prediction) are skipped", m->dir, n_beyond,
                 m->cfg.n_layers);
    if (n > n_bound + n_beyond)
        log_debug("%s: %d tensors are not used, %d of them rotary frequencies, which are computed instead", m->dir,
                  n - n_bound - n_beyond, n_buffers);
}

static int32_t count_moe_layers(const model_config *c)
{
    int32_t n = 0;
    for (int i = 0; i < c->n_layers; i++)
        n += model_layer_is_moe(c, i);
    return n;
}

/* Slots for experts, unless the files hold too few tensors to fill them. */
static tpl_code make_expert_slots(model *m, tpl_err *e)
{
    const model_config *c = &m->cfg;
    int64_t per_layer = (int64_t)N_EXPERT_ROLES * c->n_experts, n_moe = count_moe_layers(c);
    if (n_moe == 0)
        return TPL_OK;
    if (st_set_count(m->files) < n_moe * per_layer)
        return tpl_fail(e, TPL_E_INPUT, m->dir,
                        "files hold %d tensors, expected at least %lld for %d experts in %lld layers",
                        st_set_count(m->files), (long long)(n_moe * per_layer), c->n_experts, (long long)n_moe);
    m->experts = tpl_calloc((size_t)(c->n_layers * per_layer), sizeof *m->experts);
    return TPL_OK;
}

static int32_t n_used(const weight *w)
{
    return (w->tensor != NULL) + (w->scales != NULL);
}

static tpl_code bind_experts(model *m, int layer, int32_t *n_bound, tpl_err *e)
{
    for (weight_role r = W_EXPERT_GATE; r <= W_EXPERT_DOWN; r++)
        for (int i = 0; i < m->cfg.n_experts; i++) {
            weight *w = expert_slot(m, r, layer, i);
            TPL_TRY(bind_weight(m, r, layer, i, w, e));
            *n_bound += n_used(w);
        }
    return TPL_OK;
}

/* Replaces a weight by an f32 copy that the model owns. */
static void widen(model *m, weight *w, int layer, int place)
{
    mat v = w->view;
    float *wide = tpl_malloc((size_t)v.rows * (size_t)v.cols * sizeof *wide);
    for (int64_t i = 0; i < v.rows; i++)
        model_read_row(&v, i, 0, v.cols, wide + i * v.cols);
    m->widened[layer * N_WIDENED + place] = wide;
    w->view = (mat){.data = wide, .dtype = DT_F32, .rows = v.rows, .cols = v.cols, .stride = v.cols};
}

static void widen_layer(model *m, int layer)
{
    weight *kv_b = slot(m, W_KV_B, layer), *bias = slot(m, W_ROUTER_BIAS, layer);
    if (kv_b->tensor && kv_b->view.dtype == DT_F8E4M3)
        widen(m, kv_b, layer, WIDE_KV_B);
    if (bias->tensor && bias->view.dtype != DT_F32)
        widen(m, bias, layer, WIDE_ROUTER_BIAS);
}

static tpl_code bind_weights(model *m, tpl_err *e)
{
    int32_t n_bound = 0;
    m->weights = arena_array(&m->mem, weight, (size_t)W_N_ROLES * (size_t)m->cfg.n_layers);
    m->widened = arena_array(&m->mem, void *, (size_t)N_WIDENED *(size_t)m->cfg.n_layers);
    TPL_TRY(make_expert_slots(m, e));
    for (int layer = 0; layer < m->cfg.n_layers; layer++) {
        for (weight_role r = 0; r < W_N_ROLES; r++) {
            if (role_is_expert(r) || (layer > 0 && !weight_role_per_layer(r)))
                continue;
            TPL_TRY(bind_weight(m, r, layer, 0, slot(m, r, layer), e));
            n_bound += own_tensor(m, r) ? n_used(slot(m, r, layer)) : 0;
        }
        if (model_layer_is_moe(&m->cfg, layer))
            TPL_TRY(bind_experts(m, layer, &n_bound, e));
    }
    m->cfg.weight_dtype = slot(m, W_O, 0)->view.dtype;
    for (int layer = 0; layer < m->cfg.n_layers; layer++)
        widen_layer(m, layer);
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
    for (int i = 0; m->widened && i < m->cfg.n_layers * N_WIDENED; i++)
        free(m->widened[i]);
    free(m->experts);
    st_set_close(m->files);
    if (m->random.base)
        munmap(m->random.base, m->random.bytes);
    arena_fini(&m->mem);
    free(m);
}

/* ---- shapes: random weights ---- */

enum { RANDOM_ALIGN = 256 };

/* Appends a weight, unless it is a tied head; returns where the next one begins. */
static size_t place_weight(model *m, size_t at, weight_role r, int layer, int expert, weight *w)
{
    role_dims s = role_shape(&m->cfg, r, layer);
    tpl_dtype type = r == W_ROUTER_BIAS ? DT_F32 : DT_BF16;
    w->view = (mat){.data = (void *)((uintptr_t)m->random.base + at),
                    .dtype = type,
                    .rows = s.n_dims == 2 ? s.dims[0] : 1,
                    .cols = s.dims[s.n_dims - 1]};
    w->view.stride = w->view.cols;
    if (!own_tensor(m, r)) {
        w->view = slot(m, W_EMBED, 0)->view;
        return at;
    }
    m->random.placed[m->random.n_placed++] = (placed_weight){w, r, layer, expert};
    size_t bytes = (size_t)(w->view.rows * w->view.cols) * dtype_bytes(type);
    return at + (bytes + RANDOM_ALIGN - 1) / RANDOM_ALIGN * RANDOM_ALIGN;
}

/* All weights of the shape in a fixed order, one behind the other from the base on; returns their end. */
static size_t place_weights(model *m)
{
    size_t at = 0;
    m->random.n_placed = 0;
    for (int layer = 0; layer < m->cfg.n_layers; layer++)
        for (weight_role r = 0; r < W_N_ROLES; r++) {
            if ((layer > 0 && !weight_role_per_layer(r)) || role_shape(&m->cfg, r, layer).n_dims == 0)
                continue;
            if (!role_is_expert(r))
                at = place_weight(m, at, r, layer, 0, slot(m, r, layer));
            for (int x = 0; role_is_expert(r) && m->experts && x < m->cfg.n_experts; x++)
                at = place_weight(m, at, r, layer, x, expert_slot(m, r, layer, x));
        }
    return at;
}

/* Norm weights lie in [0.75, 1.25), biases in [-0.05, 0.05); a matrix of k columns has variance 1 / k, an embedding 1.
 */
static random_recipe recipe_of(const model *m, const placed_weight *p)
{
    const char *name = weight_role_name(p->role), *end = strstr(name, "norm");
    uint64_t place = ((uint64_t)p->role * 4096 + (uint64_t)p->layer) * 65536 + (uint64_t)p->expert + 1;
    random_recipe r = {.key = random_mix(m->random.seed + random_mix(place))};
    if (p->w->view.rows == 1) {
        r.size = end ? 0.25f : 0.05f;
        r.offset = end ? 4 : 0;
    } else {
        r.size = p->role == W_EMBED ? 1.f : sqrtf(3.f / (float)p->w->view.cols);
    }
    return r;
}

static void make_weight(const model *m, const placed_weight *p)
{
    const mat *v = &p->w->view;
    random_recipe recipe = recipe_of(m, p);
    int64_t n = v->rows * v->cols;
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < n; i++) {
        bf16 short_value = bf16_from_f32(random_value(recipe, (uint64_t)i));
        if (v->dtype == DT_BF16)
            ((bf16 *)v->data)[i] = short_value;
        else
            ((float *)v->data)[i] = bf16_to_f32(short_value);
    }
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
    return model_config_runnable(&m->cfg, e);
}

static tpl_code reserve_weights(model *m, tpl_err *e)
{
    const model_config *c = &m->cfg;
    size_t layers = (size_t)c->n_layers, experts = m->random.attention_only || !count_moe_layers(c)
                                                       ? 0
                                                       : layers * N_EXPERT_ROLES * (size_t)c->n_experts;
    m->weights = arena_array(&m->mem, weight, (size_t)W_N_ROLES * layers);
    if (experts)
        m->experts = tpl_calloc(experts, sizeof *m->experts);
    m->random.placed = arena_array(&m->mem, placed_weight, (size_t)W_N_ROLES * layers + experts);
    m->random.bytes = place_weights(m); /* only to count */
    void *p = mmap(NULL, m->random.bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED)
        return tpl_fail(e, TPL_E_MEMORY, m->dir, "needs addresses for %.3f GiB of weights",
                        (double)m->random.bytes / 0x1p30);
    m->random.base = p;
    place_weights(m);
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
    for (int64_t i = 0; i < r->n_placed; i++)
        make_weight(m, &r->placed[i]);
    r->made = true;
    return TPL_OK;
}

bool model_weight_recipe(const model *m, const void *at, random_recipe *recipe, uint64_t *index)
{
    const random_set *r = &m->random;
    int64_t lo = 0, hi = r->n_placed;
    if (!r->base || (const char *)at < r->base || (const char *)at >= r->base + r->bytes)
        return false;
    while (hi - lo > 1) { /* the last weight that begins at or before */
        int64_t mid = (lo + hi) / 2;
        if ((const char *)r->placed[mid].w->view.data <= (const char *)at)
            lo = mid;
        else
            hi = mid;
    }
    const mat *v = &r->placed[lo].w->view;
    *recipe = recipe_of(m, &r->placed[lo]);
    *index = (uint64_t)((const char *)at - (const char *)v->data) / dtype_bytes(v->dtype);
    return true;
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

mat model_expert(const model *m, weight_role r, int layer, int expert)
{
    return expert_slot(m, r, layer, expert)->view;
}

void model_read_row(const mat *w, int64_t row, int64_t col, int64_t n, float *out)
{
    const char *at = (const char *)w->data + (size_t)(row * w->stride + col) * dtype_bytes(w->dtype);
    dtype_to_f32(out, at, w->dtype, (size_t)n);
    if (!w->scale)
        return;
    const float *scale = w->scale + row / MODEL_F8_BLOCK * blocks_of(w->cols);
    for (int64_t i = 0; i < n; i++)
        out[i] *= scale[(col + i) / MODEL_F8_BLOCK];
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

/* E4M3 has NaN only, all other bits set. */
static bool block_is_finite_8(const uint8_t *p, int64_t n)
{
    unsigned bad = 0;
    for (int64_t i = 0; i < n; i++)
        bad |= (p[i] & 0x7f) == 0x7f;
    return !bad;
}

static bool block_is_finite(const void *data, tpl_dtype t, int64_t at, int64_t n)
{
    if (t == DT_F8E4M3)
        return block_is_finite_8((const uint8_t *)data + at, n);
    if (t == DT_F32)
        return block_is_finite_32((const uint32_t *)data + at, n);
    return block_is_finite_16((const uint16_t *)data + at, n, t == DT_BF16 ? 0x7f80 : 0x7c00);
}

static tpl_code report_value(const st_tensor *t, int64_t at, int64_t n, tpl_err *e)
{
    while (n > 1 && block_is_finite(t->data, t->dtype, at, 1)) {
        at++;
        n--;
    }
    int64_t cols = t->shape[t->n_dims - 1];
    float value;
    dtype_to_f32(&value, (const char *)t->data + (size_t)at * dtype_bytes(t->dtype), t->dtype, 1);
    return tpl_fail(e, TPL_E_INPUT, t->file,
                    "tensor %s: value %lld (row %lld, column %lld) is %s, expected a finite number", t->name,
                    (long long)at, (long long)(at / cols), (long long)(at % cols), isnan(value) ? "NaN" : "infinite");
}

static tpl_code check_values(const st_tensor *t, tpl_err *e)
{
    int64_t n = t->bytes / (int64_t)dtype_bytes(t->dtype);
    for (int64_t at = 0; at < n; at += SCAN_BLOCK) {
        int64_t k = n - at < SCAN_BLOCK ? n - at : SCAN_BLOCK;
        if (at % SCAN_SLICE == 0 && interrupt_seen())
            return tpl_fail(e, TPL_E_INTERRUPTED, t->name, "check of the weights was interrupted");
        if (!block_is_finite(t->data, t->dtype, at, k))
            return report_value(t, at, k, e);
    }
    return TPL_OK;
}

static tpl_code check_weight(const weight *w, tpl_err *e)
{
    if (w->tensor)
        TPL_TRY(check_values(w->tensor, e));
    return w->scales ? check_values(w->scales, e) : TPL_OK;
}

tpl_code model_check_finite(const model *m, tpl_err *e)
{
    const model_config *c = &m->cfg;
    for (weight_role r = 0; r < W_N_ROLES; r++)
        for (int layer = 0; layer < (weight_role_per_layer(r) ? c->n_layers : 1); layer++)
            if (own_tensor(m, r))
                TPL_TRY(check_weight(slot(m, r, layer), e));
    for (int64_t i = 0; m->experts && i < (int64_t)c->n_layers * N_EXPERT_ROLES * c->n_experts; i++)
        TPL_TRY(check_weight(&m->experts[i], e));
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
