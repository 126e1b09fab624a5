#include "tests/support/double_model.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <criterion/criterion.h>

struct dm {
    arena mem;
    model_config c;
    int32_t n;
    const char **names;
    double **data;
    double **uk, **uv; /* [n_layers] each [n_heads, nope or v, r], gamma folded */
};

/* ---- weights ---- */

const double *dm_tensor(const dm *m, const char *name)
{
    for (int32_t i = 0; i < m->n; i++)
        if (strcmp(m->names[i], name) == 0)
            return m->data[i];
    return NULL;
}

const double *dm_layer_tensor(const dm *m, int layer, const char *part)
{
    char name[128];
    snprintf(name, sizeof name, "model.layers.%d.%s.weight", layer, part);
    return dm_tensor(m, name);
}

static double *widen(arena *a, const ckpt_tensor *t)
{
    size_t n = 1;
    for (int32_t d = 0; d < t->n_dims; d++)
        n *= (size_t)t->shape[d];
    float *f = arena_array(a, float, n);
    double *x = arena_array(a, double, n);
    dtype_to_f32(f, t->data, t->dtype, n);
    for (size_t i = 0; i < n; i++)
        x[i] = f[i];
    return x;
}

static void split_kv_b(dm *m, int layer)
{
    const model_config *c = &m->c;
    int r = c->kv_lora_rank, nope = c->nope_dim, v = c->v_dim;
    const double *w = dm_layer_tensor(m, layer, "self_attn.kv_b_proj");
    const double *gamma = dm_layer_tensor(m, layer, "self_attn.kv_a_layernorm");
    cr_assert(w && gamma);
    m->uk[layer] = arena_array(&m->mem, double, c->n_heads * nope * r);
    m->uv[layer] = arena_array(&m->mem, double, c->n_heads * v * r);
    for (int h = 0; h < c->n_heads; h++) {
        for (int i = 0; i < nope + v; i++) {
            const double *from = w + (size_t)(h * (nope + v) + i) * (size_t)r;
            double *to = i < nope ? m->uk[layer] + (h * nope + i) * r : m->uv[layer] + (h * v + i - nope) * r;
            for (int j = 0; j < r; j++)
                to[j] = from[j] * gamma[j];
        }
    }
}

dm *dm_create(const model_config *c, const ckpt_list *list)
{
    dm *m = tpl_calloc(1, sizeof *m);
    arena_init(&m->mem);
    m->c = *c;
    m->n = list->n;
    m->names = arena_array(&m->mem, const char *, list->n);
    m->data = arena_array(&m->mem, double *, list->n);
    m->uk = arena_array(&m->mem, double *, c->n_layers);
    m->uv = arena_array(&m->mem, double *, c->n_layers);
    for (int32_t i = 0; i < list->n; i++) {
        m->names[i] = arena_strdup(&m->mem, list->tensors[i].name);
        m->data[i] = widen(&m->mem, &list->tensors[i]);
    }
    for (int l = 0; l < c->n_layers; l++)
        split_kv_b(m, l);
    return m;
}

void dm_destroy(dm *m)
{
    if (!m)
        return;
    arena_fini(&m->mem);
    free(m);
}

const double *dm_uk(const dm *m, int layer, int head)
{
    return m->uk[layer] + head * m->c.nope_dim * m->c.kv_lora_rank;
}

const double *dm_uv(const dm *m, int layer, int head)
{
    return m->uv[layer] + head * m->c.v_dim * m->c.kv_lora_rank;
}

/* ---- small algebra ---- */

/* y [n] = W [n, k] x. */
static void apply(double *y, const double *w, const double *x, int n, int k)
{
    for (int i = 0; i < n; i++) {
        y[i] = 0;
        for (int j = 0; j < k; j++)
            y[i] += w[(size_t)i * (size_t)k + (size_t)j] * x[j];
    }
}

/* y [k] = x W, W [n, k]. */
static void apply_transposed(double *y, const double *x, const double *w, int n, int k)
{
    memset(y, 0, sizeof *y * (size_t)k);
    for (int i = 0; i < n; i++)
        for (int j = 0; j < k; j++)
            y[j] += x[i] * w[(size_t)i * (size_t)k + (size_t)j];
}

static double dot(const double *a, const double *b, int n)
{
    double s = 0;
    for (int i = 0; i < n; i++)
        s += a[i] * b[i];
    return s;
}

static void rms_norm(double *y, const double *x, const double *weight, int n, double eps)
{
    double scale = 1 / sqrt(dot(x, x, n) / n + eps);
    for (int i = 0; i < n; i++)
        y[i] = x[i] * scale * weight[i];
}

/* Pairs (2i, 2i + 1), as DeepSeek stores them; the order of the result does not matter to a dot product. */
static void rotate(double *x, int dim, int pos, double theta)
{
    for (int i = 0; i < dim / 2; i++) {
        double angle = pos * pow(theta, -2. * i / dim), a = x[2 * i], b = x[2 * i + 1];
        x[2 * i] = a * cos(angle) - b * sin(angle);
        x[2 * i + 1] = a * sin(angle) + b * cos(angle);
    }
}

/* ---- attention ---- */

/* What every token of the sequence left behind, layer by layer. */
typedef struct {
    double *lat; /* [n_layers, n, r] normalised, rotated by U */
    double *pe;  /* [n_layers, n, rope] */
} memory;

static void normalise_latent(const dm *m, const dm_form *f, int layer, int pos, const double *z, double *out)
{
    int r = m->c.kv_lora_rank, s = r / f->g;
    bool sliced = f->sliced_norm && pos >= f->n_exact;
    for (int j = 0; j < f->g; j++) {
        double square = sliced ? f->alpha[layer][j] * dot(z + j * s, z + j * s, s) : dot(z, z, r);
        double scale = 1 / sqrt(square / r + m->c.rms_eps);
        for (int i = j * s; i < (j + 1) * s; i++)
            out[i] = z[i] * scale;
    }
}

/* Adds softmax(score over columns [col0, col1)) applied to the same columns, to o_lat. */
static void attend(const dm *m, const double *lat, const double *pe, int pos, const double *q_lat, const double *q_pe,
                   int col0, int col1, double mu, double *o_lat)
{
    int r = m->c.kv_lora_rank, rope = m->c.rope_dim;
    double scale = 1 / sqrt(m->c.nope_dim + rope), most = -INFINITY, sum = 0;
    double *p = tpl_malloc(sizeof *p * (size_t)(pos + 1));
    for (int t = 0; t <= pos; t++) {
        p[t] = scale * (mu * dot(q_lat + col0, lat + (size_t)t * (size_t)r + col0, col1 - col0) +
                        dot(q_pe, pe + (size_t)t * (size_t)rope, rope));
        most = fmax(most, p[t]);
    }
    for (int t = 0; t <= pos; t++)
        sum += p[t] = exp(p[t] - most);
    for (int t = 0; t <= pos; t++)
        for (int i = col0; i < col1; i++)
            o_lat[i] += p[t] / sum * lat[(size_t)t * (size_t)r + (size_t)i];
    free(p);
}

/* One head: o [v]. */
static void head_output(const dm *m, const dm_form *f, int layer, int head, int pos, const double *q, const memory *mem,
                        int n, double *o)
{
    const model_config *c = &m->c;
    int r = c->kv_lora_rank, s = r / f->g;
    double *q_plain = tpl_calloc((size_t)r * 4, sizeof(double)), *q_lat = q_plain + r, *o_lat = q_lat + r;
    double *back = o_lat + r;
    const double *lat = mem->lat + (size_t)layer * (size_t)n * (size_t)r;
    const double *pe = mem->pe + (size_t)layer * (size_t)n * (size_t)c->rope_dim;
    const double *u = f->u ? f->u[layer] : NULL;
    apply_transposed(q_plain, q, dm_uk(m, layer, head), c->nope_dim, r);
    if (u)
        apply_transposed(q_lat, q_plain, u, r, r);
    else
        memcpy(q_lat, q_plain, sizeof *q_lat * (size_t)r);
    if (f->gla) {
        int j = head * f->g / c->n_heads;
        attend(m, lat, pe, pos, q_lat, q + c->nope_dim, j * s, (j + 1) * s, f->mu[layer][j], o_lat);
    } else if (f->sliced_softmax && pos >= f->n_exact) {
        for (int j = 0; j < f->g; j++)
            attend(m, lat, pe, pos, q_lat, q + c->nope_dim, j * s, (j + 1) * s, f->mu[layer][j], o_lat);
    } else {
        attend(m, lat, pe, pos, q_lat, q + c->nope_dim, 0, r, 1, o_lat);
    }
    if (u)
        apply(back, u, o_lat, r, r);
    apply(o, dm_uv(m, layer, head), u ? back : o_lat, c->v_dim, r);
    free(q_plain);
}

/* Adds the attention's output to x. */
static void attention(const dm *m, const dm_form *f, int layer, int pos, int n, double *x, memory *mem,
                      void (*see)(void *user, const dm_view *v), void *user)
{
    const model_config *c = &m->c;
    int r = c->kv_lora_rank, rope = c->rope_dim, width = c->nope_dim + rope, heads = c->n_heads;
    arena a;
    arena_init(&a);
    double *xn = arena_array(&a, double, c->dim), *q = arena_array(&a, double, heads * width);
    double *kv = arena_array(&a, double, r + rope), *z = arena_array(&a, double, r), *y = arena_array(&a, double, c->dim);
    double *o = arena_array(&a, double, heads * c->v_dim), *q_nope = arena_array(&a, double, heads * c->nope_dim);
    rms_norm(xn, x, dm_layer_tensor(m, layer, "input_layernorm"), c->dim, c->rms_eps);
    if (c->q_lora_rank) {
        double *qa = arena_array(&a, double, c->q_lora_rank);
        apply(qa, dm_layer_tensor(m, layer, "self_attn.q_a_proj"), xn, c->q_lora_rank, c->dim);
        rms_norm(qa, qa, dm_layer_tensor(m, layer, "self_attn.q_a_layernorm"), c->q_lora_rank, c->rms_eps);
        apply(q, dm_layer_tensor(m, layer, "self_attn.q_b_proj"), qa, heads * width, c->q_lora_rank);
    } else {
        apply(q, dm_layer_tensor(m, layer, "self_attn.q_proj"), xn, heads * width, c->dim);
    }
    apply(kv, dm_layer_tensor(m, layer, "self_attn.kv_a_proj_with_mqa"), xn, r + rope, c->dim);
    rotate(kv + r, rope, pos, c->rope_theta);
    memcpy(mem->pe + ((size_t)layer * (size_t)n + (size_t)pos) * (size_t)rope, kv + r, sizeof *kv * (size_t)rope);
    if (f->u)
        apply_transposed(z, kv, f->u[layer], r, r);
    else
        memcpy(z, kv, sizeof *z * (size_t)r);
    normalise_latent(m, f, layer, pos, z, mem->lat + ((size_t)layer * (size_t)n + (size_t)pos) * (size_t)r);
    for (int h = 0; h < heads; h++) {
        memcpy(q_nope + h * c->nope_dim, q + h * width, sizeof *q * (size_t)c->nope_dim);
        rotate(q + h * width + c->nope_dim, rope, pos, c->rope_theta);
        head_output(m, f, layer, h, pos, q + h * width, mem, n, o + h * c->v_dim);
    }
    if (see)
        see(user, &(dm_view){layer, pos, kv, q_nope});
    apply(y, dm_layer_tensor(m, layer, "self_attn.o_proj"), o, c->dim, heads * c->v_dim);
    for (int i = 0; i < c->dim; i++)
        x[i] += y[i];
    arena_fini(&a);
}

static void feed_forward(const dm *m, int layer, double *x)
{
    const model_config *c = &m->c;
    double *xn = tpl_calloc((size_t)(2 * c->dim + 2 * c->ffn_dim), sizeof *xn), *y = xn + c->dim, *gate = y + c->dim;
    double *up = gate + c->ffn_dim;
    rms_norm(xn, x, dm_layer_tensor(m, layer, "post_attention_layernorm"), c->dim, c->rms_eps);
    apply(gate, dm_layer_tensor(m, layer, "mlp.gate_proj"), xn, c->ffn_dim, c->dim);
    apply(up, dm_layer_tensor(m, layer, "mlp.up_proj"), xn, c->ffn_dim, c->dim);
    for (int i = 0; i < c->ffn_dim; i++)
        gate[i] = gate[i] / (1 + exp(-gate[i])) * up[i];
    apply(y, dm_layer_tensor(m, layer, "mlp.down_proj"), gate, c->dim, c->ffn_dim);
    for (int i = 0; i < c->dim; i++)
        x[i] += y[i];
    free(xn);
}

void dm_forward(const dm *m, const dm_form *form, const int32_t *tokens, int n, double *logits,
                void (*see)(void *user, const dm_view *v), void *user)
{
    const model_config *c = &m->c;
    size_t per_layer = (size_t)c->n_layers * (size_t)n;
    memory mem = {tpl_calloc(per_layer * (size_t)c->kv_lora_rank, sizeof(double)),
                  tpl_calloc(per_layer * (size_t)c->rope_dim, sizeof(double))};
    double *x = tpl_malloc(sizeof *x * (size_t)c->dim);
    const double *embed = dm_tensor(m, "model.embed_tokens.weight"), *head = dm_tensor(m, "lm_head.weight");
    for (int t = 0; t < n; t++) {
        memcpy(x, embed + (size_t)tokens[t] * (size_t)c->dim, sizeof *x * (size_t)c->dim);
        for (int l = 0; l < c->n_layers; l++) {
            attention(m, form, l, t, n, x, &mem, see, user);
            feed_forward(m, l, x);
        }
        rms_norm(x, x, dm_tensor(m, "model.norm.weight"), c->dim, c->rms_eps);
        if (logits)
            apply(logits + (size_t)t * (size_t)c->vocab, head ? head : embed, x, c->vocab, c->dim);
    }
    free(mem.lat);
    free(mem.pe);
    free(x);
}
