#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <criterion/criterion.h>

#include "tests/support/double_model.h"
#include "tests/support/rig.h"

enum { N_TOK = 19, N_PREFILL = 8, R = 16, LAYERS = 2, HEADS = 8 };

/* f32 sums of at most 48 terms over two layers against double; logits are of size 1 to 4. */
static const double WITHIN = 5e-5;

static model_config eight_heads(void)
{
    model_config c = ckpt_small_mla();
    c.n_heads = c.n_kv_heads = HEADS;
    return c;
}

/* Low bits of the first 16 draws of MT19937 seeded with 1234 and 1235, from numpy's legacy seeding. */
static const char *const mt_bits[LAYERS] = {"1101000111110010", "1001111010000010"};

/* Sylvester's construction by doubling: [[H, H], [H, -H]]. */
static void hadamard(int layer, double *u)
{
    u[0] = 1;
    for (int n = 1; n < R; n *= 2)
        for (int i = 0; i < n; i++)
            for (int j = 0; j < n; j++) {
                double x = u[i * R + j];
                u[i * R + j + n] = u[(i + n) * R + j] = x;
                u[(i + n) * R + j + n] = -x;
            }
    for (int i = 0; i < R; i++)
        for (int j = 0; j < R; j++)
            u[i * R + j] *= (mt_bits[layer][i] == '1' ? 1 : -1) / sqrt(R);
}

typedef struct {
    double u[LAYERS][R * R], alpha[LAYERS][8], mu[LAYERS][8];
    const double *up[LAYERS], *ap[LAYERS], *mp[LAYERS];
    dm_form form;
} recipe;

/* Energy of the columns [j s, (j + 1) s) of u under a moment matrix, as a share of the whole. */
static double share(const double *moment, const double *u, int j, int s)
{
    double part = 0, all = 0;
    for (int k = 0; k < R; k++)
        for (int a = 0; a < R; a++)
            for (int b = 0; b < R; b++)
                part += k / s == j ? u[a * R + k] * moment[a * R + b] * u[b * R + k] : 0;
    for (int a = 0; a < R; a++)
        all += moment[a * R + a]; /* the trace does not depend on an orthogonal u */
    return part / all;
}

/* The form that a variant stands for, by the definitions of its keys. The bases pca and mix are taken from the engine's
 * transform (test_transform proves them), identity and Hadamard are made here. */
static void make_recipe(recipe *k, const fixture *f, const rig *r, int n_exact)
{
    const variant *v = &r->v;
    int s = R / v->g;
    bool learned = v->kind == VAR_TPLA && (v->u == U_PCA || v->u == U_MIX);
    memset(k, 0, sizeof *k);
    for (int l = 0; l < LAYERS; l++) {
        if (learned)
            memcpy(k->u[l], r->t->layers[l].value, sizeof k->u[l]);
        else if (v->kind == VAR_TPLA && v->u == U_HADAMARD)
            hadamard(l, k->u[l]);
        else
            for (int i = 0; i < R; i++)
                k->u[l][i * R + i] = 1;
        for (int j = 0; j < v->g; j++) {
            double part = learned ? share(f->cal.layers[l].raw, k->u[l], j, s) : 1. / v->g;
            k->alpha[l][j] = v->alpha == ALPHA_RECIP ? 1 / part : v->alpha == ALPHA_SHARE ? part : 1;
            k->mu[l][j] = v->mu == MU_ALPHA ? k->alpha[l][j] : v->mu == MU_G ? v->g : 1;
        }
        k->up[l] = k->u[l];
        k->ap[l] = k->alpha[l];
        k->mp[l] = k->mu[l];
    }
    bool softmax = v->slice == SLICE_SOFTMAX || v->slice == SLICE_BOTH;
    bool norm = v->slice == SLICE_NORM || v->slice == SLICE_BOTH;
    k->form = (dm_form){v->g, v->kind == VAR_GLA, norm, softmax, v->pd ? n_exact : 0, k->up, k->ap, k->mp};
}

static double distance(const float *a, const double *b, size_t n)
{
    double worst = 0;
    for (size_t i = 0; i < n; i++)
        worst = isnan(a[i]) ? INFINITY : fmax(worst, fabs(a[i] - b[i]));
    return worst;
}

static void expect_equations(const fixture *f, const dm *m, const char *text, int tp)
{
    int32_t tokens[N_TOK];
    size_t n = (size_t)(N_TOK * f->cfg.vocab);
    double *want = tpl_malloc(sizeof *want * n);
    recipe k;
    rig r;
    team_options o = {.tp = tp};
    rig_open(&r, f, text, &o, NULL);
    rig_tokens(tokens, N_TOK, f->cfg.vocab, 31);
    make_recipe(&k, f, &r, N_PREFILL);
    dm_forward(m, &k.form, tokens, N_TOK, want, NULL, NULL);
    float *got = rig_logits(&r, tokens, N_TOK, N_PREFILL, 5);
    double d = distance(got, want, n);
    cr_expect(d <= WITHIN, "%s tp %d is off by %g, expected at most %g", text, tp, d, WITHIN);
    free(got);
    free(want);
    rig_close(&r);
}

static void expect_all(const char *const *texts, int n, const int *tps, int n_tps, uint64_t seed)
{
    model_config c = eight_heads();
    fixture f;
    fixture_open(&f, &c, DT_F32, seed);
    dm *m = dm_create(&f.cfg, &f.list);
    for (int i = 0; i < n; i++)
        for (int t = 0; t < n_tps; t++)
            expect_equations(&f, m, texts[i], tps[t]);
    dm_destroy(m);
    fixture_close(&f);
}

Test(tpla_double, exact_and_grouped_attention_follow_their_equations)
{
    static const char *const texts[] = {"mla", "mla-dcp", "gla:g=2", "gla:g=4:mu=g"};
    static const int tps[] = {1, 2, 4};
    expect_all(texts, 4, tps, 3, 51);
}

/* tp 4 with g 2 and tp 8 with g 4 split heads inside a slice; tp 2 with g 4 holds two slices a rank. */
Test(tpla_double, each_slice_mode_follows_the_equations)
{
    static const char *const modes[] = {"none", "norm", "softmax", "both"}, *const pd[] = {"on", "off"};
    char made[16][VARIANT_TEXT];
    const char *texts[16];
    static const int tps[] = {1, 2, 4, 8};
    int n = 0;
    for (int g = 2; g <= 4; g += 2)
        for (int s = 0; s < 4; s++)
            for (int k = 0; k < 2; k++, n++) {
                snprintf(made[n], sizeof *made, "tpla:g=%d:u=hadamard:slice=%s:pd=%s", g, modes[s], pd[k]);
                texts[n] = made[n];
            }
    expect_all(texts, n, tps, 4, 52);
}

Test(tpla_double, each_basis_and_scale_follows_the_equations)
{
    static const char *const texts[] = {
        "tpla:g=2:u=id:pd=off",
        "tpla:g=2:u=pca:pd=off",
        "tpla:g=4:u=pca:slice=softmax:pd=on",
        "tpla:g=2:u=pca:slice=norm:pd=off:alpha=share",
        "tpla:g=4:u=pca:pd=off:alpha=share:mu=one",
        "tpla:g=2:u=mix:slice=softmax:mu=one:pd=off",
        "tpla:g=4:u=mix:pd=on:alpha=one",
        "tpla:g=2:u=hadamard:pd=off:alpha=recip:mu=one",
        "tpla:g=8:u=hadamard:slice=softmax:pd=off",
    };
    static const int tps[] = {1, 2, 4};
    expect_all(texts, 9, tps, 3, 53);
}

/* ---- the second route: TPLA is GLA with g times the heads ---- */

static void put_tensor(ckpt_list *list, arena *a, const char *name, const double *x, int64_t rows, int64_t cols)
{
    size_t n = (size_t)((rows ? rows : 1) * cols);
    float *data = arena_array(a, float, n);
    for (size_t i = 0; i < n; i++)
        data[i] = (float)x[i];
    list->tensors[list->n++] = (ckpt_tensor){.name = arena_strdup(a, name), .dtype = DT_F32, .n_dims = rows ? 2 : 1,
                                             .shape = {rows ? rows : cols, cols}, .data = data};
}

static void put_layer(ckpt_list *list, arena *a, int layer, const char *part, const double *x, int64_t rows, int64_t cols)
{
    put_tensor(list, a, arena_printf(a, "model.layers.%d.%s.weight", layer, part), x, rows, cols);
}

/* Rows of W_DKV in the basis u, over the unchanged key part. */
static double *rotate_kv_a(arena *a, const dm *m, const model_config *c, int layer, const double *u)
{
    const double *w = dm_layer_tensor(m, layer, "self_attn.kv_a_proj_with_mqa");
    double *out = arena_array(a, double, (R + c->rope_dim) * c->dim);
    memcpy(out + R * c->dim, w + R * c->dim, sizeof *out * (size_t)(c->rope_dim * c->dim));
    for (int i = 0; i < R; i++)
        for (int k = 0; k < R; k++)
            for (int d = 0; d < c->dim; d++)
                out[i * c->dim + d] += u[k * R + i] * w[k * c->dim + d];
    return out;
}

/* GLA's head j h + i is TPLA's head i on slice j: its up-projections in the basis u, the key's scaled by mu_j. */
static double *spread_kv_b(arena *a, const dm *m, const model_config *c, int layer, const recipe *k, int g)
{
    int rows = c->nope_dim + c->v_dim;
    double *out = arena_array(a, double, g * HEADS * rows * R);
    for (int head = 0; head < g * HEADS; head++) {
        for (int i = 0; i < rows; i++) {
            bool key = i < c->nope_dim;
            const double *from = key ? dm_uk(m, layer, head % HEADS) + i * R
                                     : dm_uv(m, layer, head % HEADS) + (i - c->nope_dim) * R;
            double *to = out + (head * rows + i) * R, scale = key ? k->mu[layer][head / HEADS] : 1;
            for (int col = 0; col < R; col++)
                for (int d = 0; d < R; d++)
                    to[col] += scale * from[d] * k->u[layer][d * R + col];
        }
    }
    return out;
}

/* g copies of the rows or, for W_O, of the columns. */
static double *repeat(arena *a, const double *w, int rows, int cols, int g, bool by_columns)
{
    double *out = arena_array(a, double, g * rows * cols);
    for (int j = 0; j < g; j++)
        for (int i = 0; i < rows; i++)
            memcpy(by_columns ? out + (i * g + j) * cols : out + (j * rows + i) * cols, w + i * cols,
                   sizeof *w * (size_t)cols);
    return out;
}

static void grouped_layer(ckpt_list *list, arena *a, const dm *m, const model_config *c, int layer, const recipe *k, int g)
{
    static const char *const kept[] = {"input_layernorm",         "post_attention_layernorm", "self_attn.q_a_proj",
                                       "self_attn.q_a_layernorm", "mlp.gate_proj",            "mlp.up_proj",
                                       "mlp.down_proj"};
    const int64_t shapes[][2] = {{0, c->dim},         {0, c->dim},       {c->q_lora_rank, c->dim}, {0, c->q_lora_rank},
                                 {c->ffn_dim, c->dim}, {c->ffn_dim, c->dim}, {c->dim, c->ffn_dim}};
    int width = c->nope_dim + c->rope_dim;
    double *ones = arena_array(a, double, R);
    for (int i = 0; i < R; i++)
        ones[i] = 1;
    for (size_t i = 0; i < sizeof kept / sizeof *kept; i++)
        put_layer(list, a, layer, kept[i], dm_layer_tensor(m, layer, kept[i]), shapes[i][0], shapes[i][1]);
    const double *q_b = dm_layer_tensor(m, layer, "self_attn.q_b_proj"), *o = dm_layer_tensor(m, layer, "self_attn.o_proj");
    put_layer(list, a, layer, "self_attn.q_b_proj", repeat(a, q_b, HEADS * width, c->q_lora_rank, g, false),
              g * HEADS * width, c->q_lora_rank);
    put_layer(list, a, layer, "self_attn.kv_a_proj_with_mqa", rotate_kv_a(a, m, c, layer, k->u[layer]), R + c->rope_dim,
              c->dim);
    put_layer(list, a, layer, "self_attn.kv_a_layernorm", ones, 0, R);
    put_layer(list, a, layer, "self_attn.kv_b_proj", spread_kv_b(a, m, c, layer, k, g),
              g * HEADS * (c->nope_dim + c->v_dim), R);
    put_layer(list, a, layer, "self_attn.o_proj", repeat(a, o, c->dim, HEADS * c->v_dim, g, true), c->dim,
              g * HEADS * c->v_dim);
}

static void grouped_fixture(fixture *out, const fixture *f, const dm *m, const recipe *k, int g)
{
    model_config c = f->cfg;
    tpl_err e = {0};
    *out = (fixture){0};
    arena_init(&out->mem);
    c.n_heads = c.n_kv_heads = g * HEADS;
    out->dir = ckpt_temp_dir(&out->mem);
    out->list.tensors = arena_array(&out->mem, ckpt_tensor, 3 + 12 * LAYERS);
    put_tensor(&out->list, &out->mem, "model.embed_tokens.weight", dm_tensor(m, "model.embed_tokens.weight"), c.vocab, c.dim);
    put_tensor(&out->list, &out->mem, "model.norm.weight", dm_tensor(m, "model.norm.weight"), 0, c.dim);
    put_tensor(&out->list, &out->mem, "lm_head.weight", dm_tensor(m, "lm_head.weight"), c.vocab, c.dim);
    for (int l = 0; l < LAYERS; l++)
        grouped_layer(&out->list, &out->mem, m, &f->cfg, l, k, g);
    cr_assert(ckpt_save(out->dir, ckpt_config_text(&out->mem, &c, NULL), &out->list, 1, &e) == TPL_OK, "%s", e.what);
    cr_assert(model_open(out->dir, &out->m, &e) == TPL_OK, "%s: %s", e.where, e.what);
    out->cfg = c;
}

Test(tpla_double, tpla_is_gla_with_g_times_the_heads)
{
    static const char *const bases[] = {"id", "hadamard"};
    model_config c = eight_heads();
    int32_t tokens[N_TOK];
    size_t n = (size_t)(N_TOK * c.vocab);
    fixture f;
    fixture_open(&f, &c, DT_F32, 54);
    dm *m = dm_create(&f.cfg, &f.list);
    rig_tokens(tokens, N_TOK, c.vocab, 32);
    for (int b = 0; b < 2; b++) {
        for (int g = 2; g <= 4; g += 2) {
            char sliced[VARIANT_TEXT], grouped[VARIANT_TEXT];
            snprintf(sliced, sizeof sliced, "tpla:g=%d:u=%s:slice=both:pd=off", g, bases[b]);
            snprintf(grouped, sizeof grouped, "gla:g=%d:mu=1", g);
            recipe k;
            rig r;
            fixture native;
            rig_open(&r, &f, sliced, &(team_options){.tp = g}, NULL);
            make_recipe(&k, &f, &r, 0);
            grouped_fixture(&native, &f, m, &k, g);
            float *a = rig_logits(&r, tokens, N_TOK, N_PREFILL, N_PREFILL);
            float *d = rig_run(&native, grouped, &(team_options){.tp = g}, tokens, N_TOK, N_PREFILL, N_PREFILL);
            double off = rig_distance(a, d, n);
            cr_expect(off <= 1e-5, "%s and %s differ by %g", sliced, grouped, off);
            free(a);
            free(d);
            rig_close(&r);
            fixture_close(&native);
        }
    }
    dm_destroy(m);
    fixture_close(&f);
}
