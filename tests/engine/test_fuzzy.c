/* Lists of a draft whose layers are spread over ranks, against the definition: plain passes, and a second forward pass
 * that this file puts together from single kernels' results by hand. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <criterion/criterion.h>

#include "base/rng.h"
#include "tests/support/checkpoint.h"
#include "tests/support/side.h"

enum { VOCAB = 48, PROMPT = 9, MAX_ROWS = 16 };

static const session_options sizes = {
    .max_seqs = 2, .max_tok = 48, .max_rows = MAX_ROWS, .max_logits = MAX_ROWS, .max_tree = 12};

static const char *write_model(arena *a, bool mla, int n_layers, uint64_t seed)
{
    model_config c = mla ? ckpt_small_mla() : ckpt_small_gqa();
    tpl_err e = {0};
    const char *dir = ckpt_temp_dir(a);
    c.n_layers = n_layers;
    c.weight_dtype = DT_F32;
    cr_assert(ckpt_write(dir, &c, DT_F32, seed, 1, &e) == TPL_OK, "%s", e.what);
    return dir;
}

static void make_tokens(int32_t *tokens, int n, uint64_t seed)
{
    rng r = rng_make(seed, 3);
    for (int i = 0; i < n; i++)
        tokens[i] = (int32_t)rng_below(&r, VOCAB);
}

static double worst(const float *a, const float *b, int n)
{
    double most = 0;
    for (int i = 0; i < n; i++)
        most = fmax(most, fabs((double)a[i] - b[i]));
    return most;
}

/* ---- the definition, from the weights ---- */

typedef struct {
    const model *m;
    double k[8][32][64], v[8][32][64]; /* [layer][slot][kv_heads * head_dim] */
} plain;

static double weight(const model *m, weight_role role, int layer, int row, int col)
{
    mat w = model_weight(m, role, layer);
    return ((const float *)w.data)[row * w.stride + col];
}

static void product(const model *m, weight_role role, int layer, const double *x, double *y)
{
    mat w = model_weight(m, role, layer);
    for (int i = 0; i < w.rows; i++) {
        y[i] = 0;
        for (int j = 0; j < w.cols; j++)
            y[i] += weight(m, role, layer, i, j) * x[j];
    }
}

static void norm(const model *m, weight_role role, int layer, const double *x, double *y)
{
    int n = model_cfg(m)->dim;
    double sum = 0;
    for (int i = 0; i < n; i++)
        sum += x[i] * x[i];
    for (int i = 0; i < n; i++)
        y[i] = x[i] / sqrt(sum / n + model_cfg(m)->rms_eps) * weight(m, role, layer, 0, i);
}

static void rotate(double *x, int heads, int dim, int pos, double theta)
{
    for (int h = 0; h < heads; h++)
        for (int i = 0; i < dim / 2; i++) {
            double a = pos / pow(theta, 2.0 * i / dim), c = cos(a), s = sin(a), *p = x + h * dim;
            double u = p[i], w = p[i + dim / 2];
            p[i] = u * c - w * s;
            p[i + dim / 2] = w * c + u * s;
        }
}

/* y = attention sub-layer `layer` of input x at position pos; stores the position's key and value. */
static void attend(plain *f, int layer, const double *x, int pos, double *y)
{
    const model_config *c = model_cfg(f->m);
    int hd = c->head_dim, share = c->n_heads / c->n_kv_heads;
    double xn[64], q[64], o[64] = {0};
    norm(f->m, W_ATTN_NORM, layer, x, xn);
    product(f->m, W_Q, layer, xn, q);
    product(f->m, W_K, layer, xn, f->k[layer][pos]);
    product(f->m, W_V, layer, xn, f->v[layer][pos]);
    rotate(q, c->n_heads, hd, pos, c->rope_theta);
    rotate(f->k[layer][pos], c->n_kv_heads, hd, pos, c->rope_theta);
    for (int h = 0; h < c->n_heads; h++) {
        double s[32], sum = 0;
        for (int t = 0; t <= pos; t++) {
            s[t] = 0;
            for (int i = 0; i < hd; i++)
                s[t] += q[h * hd + i] * f->k[layer][t][h / share * hd + i];
            sum += s[t] = exp(s[t] / sqrt(hd));
        }
        for (int t = 0; t <= pos; t++)
            for (int i = 0; i < hd; i++)
                o[h * hd + i] += s[t] / sum * f->v[layer][t][h / share * hd + i];
    }
    product(f->m, W_O, layer, o, y);
}

static void feed_forward(const model *m, int layer, const double *x, double *y)
{
    int n = model_cfg(m)->ffn_dim;
    double xn[64], gate[64], up[64];
    norm(m, W_MLP_NORM, layer, x, xn);
    product(m, W_GATE, layer, xn, gate);
    product(m, W_UP, layer, xn, up);
    for (int i = 0; i < n; i++)
        gate[i] *= up[i] / (1 + exp(-gate[i]));
    product(m, W_DOWN, layer, gate, y);
}

/* One group of layers over the residual stream h, after EasySpec's Algorithm 2; or whole layers side by side. */
static void run_group(plain *f, int first, int size, bool whole_layers, double *h, int pos)
{
    int dim = model_cfg(f->m)->dim;
    double h1[64], a[8][64], y[64];
    memcpy(h1, h, sizeof h1);
    for (int i = 0; i < size; i++)
        attend(f, first + i, h1, pos, a[i]);
    for (int i = 0; i < size; i++) {
        double mid[64];
        for (int d = 0; d < dim; d++) {
            mid[d] = (whole_layers ? h1[d] : h[d]) + a[i][d];
            h[d] += a[i][d];
        }
        feed_forward(f->m, first + i, mid, y);
        for (int d = 0; d < dim; d++)
            h[d] += y[d];
    }
}

static void run_plain(plain *f, const char *groups, bool whole_layers, int32_t token, int pos, double *logits)
{
    layer_groups g;
    double h[64] = {0}, xn[64];
    cr_assert(groups_parse(groups, model_cfg(f->m)->n_layers, &g, NULL) == TPL_OK);
    for (int d = 0; d < model_cfg(f->m)->dim; d++)
        h[d] = weight(f->m, W_EMBED, -1, token, d);
    for (int i = 0, first = 0; i < g.n; first += g.size[i++])
        run_group(f, first, g.size[i], whole_layers && g.size[i] > 1, h, pos);
    norm(f->m, W_FINAL_NORM, -1, h, xn);
    product(f->m, W_LM_HEAD, -1, xn, logits);
}

typedef struct {
    const char *groups;
    int tp;
    plan_fuzzy how;
} spread_case;

static const spread_case spreads[] = {
    {"0/1-4/5", 1, {{0}, false, false, false}}, {"0/1-4/5", 2, {{0}, false, false, false}},
    {"0/1-4/5", 4, {{0}, false, false, true}},  {"0-2/3/4-5", 2, {{0}, false, true, false}},
    {"0/1-3/4-5", 3, {{0}, false, true, true}}, {"0-5", 4, {{0}, false, false, false}},
    {"0/1-4/5", 2, {{0}, true, false, false}},  {"0/1-3/4-5", 4, {{0}, true, false, true}},
    {"0-4/5", 3, {{0}, false, true, false}},
};

/* An exact prompt, then fuzzy tokens one by one: logits as the definition has them, in every placement. */
Test(fuzzy, is_algorithm_2_in_every_placement)
{
    arena a;
    arena_init(&a);
    const char *dir = write_model(&a, false, 6, 11);
    int32_t tokens[PROMPT + 5];
    make_tokens(tokens, PROMPT + 5, 5);
    for (size_t i = 0; i < sizeof spreads / sizeof *spreads; i++) {
        const spread_case *c = &spreads[i];
        side x = side_open(dir, NULL, c->tp, c->groups, c->how);
        plain f = {.m = x.m};
        double want[VOCAB];
        side_add_session(&x, sizes);
        int seq = session_add_seq(x.s);
        side_run(&x, seq, PHASE_PREFILL, tokens, PROMPT);
        for (int t = 0; t < PROMPT + 5; t++) {
            run_plain(&f, t < PROMPT ? "rule:1" : c->groups, t >= PROMPT && c->how.whole_layers, tokens[t], t, want);
            if (t >= PROMPT)
                side_run(&x, seq, PHASE_FUZZY, tokens + t, 1);
            if (t < PROMPT - 1)
                continue;
            for (int v = 0; v < VOCAB; v++)
                cr_assert(fabs(session_logits(x.s, 0)[v] - want[v]) < 2e-4,
                          "case %zu, position %d, token %d: %g, not %g", i, t, v, session_logits(x.s, 0)[v], want[v]);
        }
        side_close(&x);
    }
    ckpt_remove_dir(dir);
    arena_fini(&a);
}

/* ---- against plain passes ---- */

static void compare_single_groups(bool mla, int tp, plan_fuzzy how)
{
    arena a;
    arena_init(&a);
    const char *dir = write_model(&a, mla, 5, 12);
    int32_t tokens[PROMPT + 6];
    make_tokens(tokens, PROMPT + 6, 6);
    side x = side_open(dir, NULL, tp, "rule:1", how), y = side_open(dir, NULL, 1, NULL, (plan_fuzzy){0});
    side_add_session(&x, sizes);
    side_add_session(&y, sizes);
    int sx = session_add_seq(x.s), sy = session_add_seq(y.s);
    side_run(&x, sx, PHASE_PREFILL, tokens, PROMPT);
    side_run(&y, sy, PHASE_PREFILL, tokens, PROMPT);
    for (int t = PROMPT; t < PROMPT + 6; t++) {
        side_run(&x, sx, PHASE_FUZZY, tokens + t, 1);
        side_run(&y, sy, PHASE_DECODE, tokens + t, 1);
        cr_assert(memcmp(session_logits(x.s, 0), session_logits(y.s, 0), VOCAB * sizeof(float)) == 0,
                  "mla %d tp %d position %d", mla, tp, t);
    }
    sha256_hex hx = side_cache_digest(&x, 0, sx, PROMPT + 6), hy = side_cache_digest(&y, 0, sy, PROMPT + 6);
    cr_expect_str_eq(hx.hex, hy.hex);
    side_close(&x);
    side_close(&y);
    ckpt_remove_dir(dir);
    arena_fini(&a);
}

Test(fuzzy, groups_of_one_are_the_ordinary_draft_bit_for_bit)
{
    for (int mla = 0; mla < 2; mla++) {
        compare_single_groups(mla, 1, (plan_fuzzy){0});
        compare_single_groups(mla, 3, (plan_fuzzy){0});
        compare_single_groups(mla, 2, (plan_fuzzy){.visit = true});
    }
}

/* The rank whose cache a fuzzy pass reads for a layer: layer i of a group on rank i mod tp. */
static int owner(const char *groups, int n_layers, int tp, int layer)
{
    layer_groups g;
    cr_assert(groups_parse(groups, n_layers, &g, NULL) == TPL_OK);
    for (int i = 0, first = 0; i < g.n; first += g.size[i++])
        if (layer < first + g.size[i])
            return (layer - first) % (g.size[i] < tp ? g.size[i] : tp);
    return 0;
}

/* Fuzzy rows, taken back and calibrated, leave on every owner what plain passes over the same rows leave. */
static void compare_calibrated(bool mla, int tp, bool visit)
{
    static const char groups[] = "0/1-4/5";
    arena a;
    arena_init(&a);
    const char *dir = write_model(&a, mla, 6, 13);
    int32_t tokens[PROMPT + 4];
    float got[128], want[128];
    make_tokens(tokens, PROMPT + 4, 7);
    side x = side_open(dir, NULL, tp, groups, (plan_fuzzy){.visit = visit}),
         y = side_open(dir, NULL, 1, NULL, (plan_fuzzy){0});
    side_add_session(&x, sizes);
    side_add_session(&y, sizes);
    int sx = session_add_seq(x.s), sy = session_add_seq(y.s);
    side_run(&x, sx, PHASE_PREFILL, tokens, PROMPT);
    for (int t = 0; t < 4; t++)
        side_run(&x, sx, PHASE_FUZZY, tokens + PROMPT + t, 1);
    side_cached(&x, owner(groups, 6, tp, 2), sx, 2, PROMPT + 3, want);
    session_truncate(x.s, sx, PROMPT);
    side_run(&x, sx, PHASE_DECODE, tokens + PROMPT, 4);
    side_run(&y, sy, PHASE_PREFILL, tokens, PROMPT);
    side_run(&y, sy, PHASE_DECODE, tokens + PROMPT, 4);
    side_cached(&x, owner(groups, 6, tp, 2), sx, 2, PROMPT + 3, got);
    cr_expect(worst(got, want, 4) > 1e-3, "the fuzzy pass left exact rows, so nothing is proved");
    for (int layer = 0; layer < 6; layer++)
        for (int slot = 0; slot < PROMPT + 4; slot++) {
            int n = side_cached(&x, owner(groups, 6, tp, layer), sx, layer, slot, got);
            side_cached(&y, 0, sy, layer, slot, want);
            cr_assert(memcmp(got, want, (size_t)n * sizeof *got) == 0, "mla %d tp %d visit %d: layer %d slot %d", mla,
                      tp, visit, layer, slot);
        }
    cr_expect(memcmp(session_logits(x.s, 0), session_logits(y.s, 0), VOCAB * sizeof(float)) == 0);
    side_close(&x);
    side_close(&y);
    ckpt_remove_dir(dir);
    arena_fini(&a);
}

Test(fuzzy, calibration_leaves_the_cache_of_a_plain_pass)
{
    for (int mla = 0; mla < 2; mla++)
        for (int tp = 1; tp <= 4; tp++)
            for (int visit = 0; visit < 2; visit++)
                compare_calibrated(mla, tp, visit);
}

/* ---- the plan ---- */

static plan *make_plan(const char *groups, int tp, int rank, plan_fuzzy how)
{
    model_config c = ckpt_small_gqa();
    c.n_layers = 6;
    variant v = variant_exact(&c);
    plan_options o = {.fuzzy = how};
    plan *p;
    tpl_err e = {0};
    cr_assert(groups_parse(groups, c.n_layers, &o.fuzzy.groups, &e) == TPL_OK);
    cr_assert(plan_create(&c, &v, tp, rank, o, &p, &e) == TPL_OK, "%s", e.what);
    return p;
}

static int count(const plan *p, plan_phase phase, const char *name, int layer, bool active)
{
    int n = 0;
    for (int i = 0; i < p->list[phase].n; i++) {
        const plan_step *s = &p->list[phase].steps[i];
        n += strcmp(s->name, name) == 0 && (layer < 0 || s->layer == layer) && (!active || s->active);
    }
    return n;
}

Test(fuzzy, gives_every_layer_one_owner_and_its_weights_only)
{
    int attn[6] = {0}, mlp[6] = {0};
    for (int rank = 0; rank < 3; rank++) {
        plan *p = make_plan("0/1-4/5", 3, rank, (plan_fuzzy){0});
        for (int l = 0; l < 6; l++) {
            attn[l] += count(p, PHASE_FUZZY, "attn.gqa", l, true);
            mlp[l] += count(p, PHASE_FUZZY, "mlp.down", l, true);
        }
        cr_expect_eq(count(p, PHASE_FUZZY, "attn.gqa", -1, true), rank == 0 ? 4 : 1, "rank %d", rank);
        for (int w = 0; w < p->n_weights; w++)
            cr_expect(rank == 0 || p->weights[w].layer == rank + 1, "rank %d holds a weight of layer %d", rank,
                      p->weights[w].layer);
        plan_destroy(p);
    }
    for (int l = 0; l < 6; l++)
        cr_expect(attn[l] == 1 && mlp[l] == 1, "layer %d: attention on %d ranks, feed-forward on %d", l, attn[l],
                  mlp[l]);
}

Test(fuzzy, has_lists_that_correspond_between_ranks)
{
    static const plan_fuzzy how[] = {{{0}, false, false, false}, {{0}, false, false, true}, {{0}, true, true, false}};
    for (size_t h = 0; h < sizeof how / sizeof *how; h++) {
        plan *p = make_plan("0/1-4/5", 4, 0, how[h]);
        for (int rank = 1; rank < 4; rank++) {
            plan *q = make_plan("0/1-4/5", 4, rank, how[h]);
            for (int phase = 0; phase < N_PHASES; phase++) {
                cr_assert_eq(p->list[phase].n, q->list[phase].n);
                for (int i = 0; i < p->list[phase].n; i++) {
                    const plan_step *s = &p->list[phase].steps[i], *t = &q->list[phase].steps[i];
                    bool in_group = s->is_comm && rank >= s->group.first && rank < s->group.first + s->group.size;
                    cr_expect_str_eq(s->name, t->name);
                    cr_expect(s->layer == t->layer && s->is_comm == t->is_comm);
                    cr_expect(!s->is_comm || (s->active && t->active == in_group), "%s on rank %d", s->name, rank);
                }
            }
            plan_destroy(q);
        }
        plan_destroy(p);
    }
}

/* A group costs a broadcast and a gather; calibration on rank 0 one broadcast of the other ranks' new rows. */
Test(fuzzy, sends_what_was_designed)
{
    plan *p = make_plan("0/1-4/5", 2, 0, (plan_fuzzy){0});
    batch_shape one = batch_shape_uniform(1, 10, 1);
    plan_types t = {.act = DT_F32, .kv = DT_F32};
    /* dim 32: broadcast 32, gather of 2 slots a rank over 2 ranks 64; exact: layers 2 and 4 are rank 1's, K and V
     * of 16. */
    cr_expect_eq((int)plan_cost(p, PHASE_FUZZY, &one, t).bytes_sent, (32 + 64) * 4);
    cr_expect_eq((int)plan_cost(p, PHASE_DECODE, &one, t).bytes_sent, 2 * 32 * 4);
    plan_destroy(p);
    p = make_plan("0/1-4/5", 2, 0, (plan_fuzzy){.visit = true});
    cr_expect_eq((int)plan_cost(p, PHASE_DECODE, &one, t).bytes_sent, 2 * (32 + 32) * 4);
    plan_destroy(p);
}

Test(fuzzy, is_refused_where_it_does_not_fit)
{
    model_config c = ckpt_small_gqa();
    variant v = variant_exact(&c);
    plan_options o = {0};
    plan *p;
    tpl_err e = {0};
    cr_assert(groups_parse("0/1-3/4", 5, &o.fuzzy.groups, &e) == TPL_OK);
    cr_expect_eq(plan_create(&c, &v, 2, 0, o, &p, &e), TPL_E_USAGE);
    cr_expect_str_eq(e.what, "hold 5 layers, the model has 2");

    arena a;
    arena_init(&a);
    const char *dir = write_model(&a, false, 4, 14);
    side x = side_open(dir, NULL, 1, NULL, (plan_fuzzy){0});
    side_add_session(&x, sizes);
    batch_row row = {session_add_seq(x.s), 1, ROW_CHAIN, true};
    cr_expect_eq(session_forward(x.s, PHASE_FUZZY, &row, 1, &e), TPL_E_USAGE);
    cr_expect(strstr(e.what, "without layer groups"), "%s", e.what);
    side_close(&x);
    ckpt_remove_dir(dir);
    arena_fini(&a);
}
