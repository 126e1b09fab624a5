#include "engine/plan.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include <criterion/criterion.h>

/* Published sizes, and counts made from them by the formulas of tpla.md alone: nothing here looks at a step to know what
 * it should cost. All counts are in numbers or FLOPs; bytes are 2 a number (bf16). */

typedef struct {
    const char *shape;
    double layers, dense_layers, dim, ffn, expert_ffn, experts, shared, top_k, router_bias;
    double heads, kv_heads, head_dim; /* head_dim: GQA only */
    double q_lora, rank, nope, rope, v, vocab;
} sizes;

static const sizes models[] = {
    {"deepseek-v3", 61, 3, 7168, 18432, 2048, 256, 1, 8, 1, 128, 128, 0, 1536, 512, 128, 64, 128, 129280},
    {"kimi-k2", 61, 1, 7168, 18432, 2048, 384, 1, 8, 1, 64, 64, 0, 1536, 512, 128, 64, 128, 163840},
    {"deepseek-v2-lite", 27, 1, 2048, 10944, 1408, 64, 2, 6, 0, 16, 16, 0, 0, 512, 128, 64, 128, 102400},
    {"llama-3-70b", 80, 80, 8192, 28672, 0, 0, 0, 0, 0, 64, 8, 128, 0, 0, 0, 0, 0, 128256},
};

enum { N_MODELS = sizeof models / sizeof *models };

static const char *const latent_variants[] = {
    "mla",
    "mla-dcp",
    "gla:g=2",
    "gla:g=4:mu=g",
    "tpla:g=2:u=pca:slice=none",
    "tpla:g=2:u=pca:slice=norm:pd=off",
    "tpla:g=2:u=pca:slice=softmax:pd=off",
    "tpla:g=2:u=pca:slice=softmax:pd=on:proj=rs",
    "tpla:g=2:u=pca:slice=both:pd=on",
    "tpla:g=2:u=pca:slice=both:pd=off",
    "tpla:g=2:u=pca:slice=both:pd=on:proj=rs",
    "tpla:g=2:u=pca:slice=both:pd=on:proj=rs+agq",
    "tpla:g=4:u=pca:slice=both:pd=off",
    "tpla:g=4:u=pca:slice=softmax:pd=off:proj=rs",
    "tpla:g=4:u=pca:slice=both:pd=on:proj=rs+agq",
};

enum { N_LATENT = sizeof latent_variants / sizeof *latent_variants };

static const plan_types bf16_types = {.act = DT_BF16, .kv = DT_BF16, .weight = DT_BF16, .folded = DT_BF16};

/* ---- what a rank holds, by hand ---- */

/* Heads whose queries, slices and outputs a rank computes in decode, the rows of W_DKV it needs, the latent columns it
 * caches and how many slices they are; k ranks. */
typedef struct {
    double q_heads, lat_heads, o_heads, kv_rows, gamma, lat, slices, per_head; /* per_head: latent columns a head reads */
    double cache, gather_q, scatter_o, gather_lse;                             /* the last three: numbers sent a row */
} share;

static share exact_share(const sizes *m, double k, bool gamma)
{
    double h = m->heads / k;
    return (share){.q_heads = h, .lat_heads = h, .o_heads = h, .kv_rows = m->rank + m->rope, .gamma = gamma ? m->rank : 0,
                   .lat = m->rank, .slices = 1, .per_head = m->rank, .cache = m->rank + m->rope};
}

static share dcp_share(const sizes *m, double k)
{
    share s = exact_share(m, k, true);
    s.cache /= k;
    s.gather_q = (k - 1) * m->heads / k * (m->rank + m->rope);
    s.scatter_o = (k - 1) / k * m->heads * m->rank;
    s.gather_lse = (k - 1) * m->heads;
    return s;
}

/* A head reads one slice; a rank caches the slices of its heads. */
static share gla_share(const sizes *m, double k, double g)
{
    share s = exact_share(m, k, false);
    s.slices = fmax(1, g / k);
    s.lat = s.slices * m->rank / g;
    s.per_head = m->rank / g;
    s.kv_rows = s.cache = s.lat + m->rope;
    return s;
}

/* `parts` ranks share a range of heads; each has g / parts slices of the latent and reads all of the range's heads. */
static share tpla_share(const sizes *m, double k, const variant *v)
{
    double g = v->g, parts = fmin(k, g), range = m->heads / (k / parts), own = range / parts;
    share s = {.q_heads = range, .lat_heads = range, .o_heads = range, .slices = g / parts};
    s.lat = s.per_head = s.slices * m->rank / g;
    s.cache = s.lat + m->rope;
    s.kv_rows = v->slice == SLICE_BOTH ? s.cache : m->rank + m->rope;
    if (v->proj != PROJ_DUP) {
        s.o_heads = own;
        s.scatter_o = (parts - 1) / parts * range * m->v;
    }
    if (v->proj == PROJ_RS_AGQ) {
        s.q_heads = own;
        s.gather_q = (parts - 1) * own * (m->nope + m->rope);
    }
    return s;
}

static share share_of(const sizes *m, const variant *v, double k)
{
    if (v->kind == VAR_GLA)
        return gla_share(m, k, v->g);
    if (v->kind == VAR_MLA_DCP)
        return dcp_share(m, k);
    if (v->kind == VAR_TPLA && (v->slice == SLICE_SOFTMAX || v->slice == SLICE_BOTH))
        return tpla_share(m, k, v);
    return exact_share(m, k, v->kind == VAR_MLA);
}

/* ---- sums by hand ---- */

static double query_weights(const sizes *m, double heads)
{
    double width = m->nope + m->rope;
    return m->q_lora ? m->q_lora * m->dim + heads * width * m->q_lora : heads * width * m->dim;
}

/* Numbers of the matrices of one layer's attention in decode. */
static double attention_matrices(const sizes *m, const share *s, double k)
{
    if (m->head_dim)
        return 2 * m->dim * m->heads / k * m->head_dim + 2 * m->dim * m->kv_heads / k * m->head_dim;
    return query_weights(m, s->q_heads) + s->kv_rows * m->dim + s->lat_heads * s->per_head * (m->nope + m->v) +
           m->dim * s->o_heads * m->v;
}

static double held_numbers(const sizes *m, const share *s, double k)
{
    double moe_layers = m->layers - m->dense_layers;
    double attention = attention_matrices(m, s, k) + s->gamma + m->q_lora + m->dim;
    double moe = m->dim + m->experts * (m->dim + m->router_bias) + 3 * (m->experts + m->shared) * m->expert_ffn / k * m->dim;
    double dense = m->dim + 3 * m->ffn / k * m->dim;
    return m->vocab * m->dim * (1 + 1 / k) + m->dim + m->layers * attention + m->dense_layers * dense + moe_layers * moe;
}

/* Products of one decode pass over `b` sequences that see n tokens each. */
static double decode_flops(const sizes *m, const variant *v, const share *s, double k, double b, double n)
{
    double pairs = b * n, moe_layers = m->layers - m->dense_layers;
    double attend = m->head_dim                ? 4 * m->heads / k * m->head_dim * pairs
                    : v->kind == VAR_MLA_DCP   ? 2 * m->heads * (2 * m->rank + m->rope) * pairs / k
                    : v->kind == VAR_GLA       ? 2 * s->lat_heads * (2 * s->per_head + m->rope) * pairs
                                               : 2 * s->lat_heads * (2 * s->lat + s->slices * m->rope) * pairs;
    double dense = 6 * b * m->dim * m->ffn / k;
    double moe = b * m->dim * (2 * m->experts + 6 * (m->top_k + m->shared) * m->expert_ffn / k);
    return m->layers * (2 * b * attention_matrices(m, s, k) + attend) + m->dense_layers * dense + moe_layers * moe +
           2 * b * m->dim * m->vocab / k;
}

/* Numbers a rank sends a row: two all-reduces of y and the attention's own exchanges a layer, and the logits' parts. */
static double sent_numbers(const sizes *m, const share *s, double k)
{
    double reduce = 2 * (k - 1) / k * m->dim;
    return m->layers * (2 * reduce + s->gather_q + s->scatter_o + s->gather_lse) + (k - 1) * m->vocab / k;
}

/* ---- against the plans ---- */

static void read_shape(const sizes *m, model_config *c)
{
    char path[512];
    tpl_err e = {0};
    snprintf(path, sizeof path, "%s/models/shapes/%s.json", SOURCE_ROOT, m->shape);
    cr_assert(model_config_read(path, c, &e) == TPL_OK, "%s: %s", e.where, e.what);
}

static plan *make_plan(const model_config *c, const char *text, int tp, int rank)
{
    variant v;
    plan *p = NULL;
    tpl_err e = {0};
    cr_assert(variant_parse(text, &v, &e) == TPL_OK, "%s", e.what);
    cr_assert(plan_create(c, &v, tp, rank, (plan_options){0}, &p, &e) == TPL_OK, "%s: %s", e.where, e.what);
    return p;
}

static bool is_product(const plan_step *s)
{
    static const op_kind kinds[] = {OP_MATMUL,   OP_HEAD_MATMUL, OP_ATTN_LATENT, OP_ATTN_MHA,
                                    OP_ATTN_GQA, OP_MOE_ROUTE,   OP_MOE_EXPERTS};
    for (size_t i = 0; !s->is_comm && i < sizeof kinds / sizeof *kinds; i++)
        if (s->call.kind == kinds[i])
            return true;
    return false;
}

static double product_flops(const plan *p, plan_phase phase, const batch_shape *b)
{
    double sum = 0;
    for (int i = 0; i < p->list[phase].n; i++)
        if (is_product(&p->list[phase].steps[i]))
            sum += plan_step_cost(p, &p->list[phase].steps[i], b, bf16_types).flops;
    return sum;
}

static void expect_number(double got, double want, const char *what, const char *shape, const char *text, int tp)
{
    cr_expect(fabs(got - want) <= 1e-12 * fabs(want), "%s %s tp %d: %s is %.17g, by hand %.17g", shape, text, tp, what, got, want);
}

static void expect_counts(const sizes *m, const char *text, int tp)
{
    enum { BATCH = 4, CONTEXT = 32768 };
    model_config c;
    read_shape(m, &c);
    batch_shape b = batch_shape_uniform(BATCH, CONTEXT - 1, 1);
    for (int rank = 0; rank < tp; rank++) {
        plan *p = make_plan(&c, text, tp, rank);
        share s = share_of(m, &p->v, tp);
        double width = m->head_dim ? 2 * m->kv_heads / tp * m->head_dim : s.cache;
        double held = held_numbers(m, &s, tp), small;
        step_cost all = plan_cost(p, PHASE_DECODE, &b, bf16_types);
        double flops = product_flops(p, PHASE_DECODE, &b), want = decode_flops(m, &p->v, &s, tp, BATCH, CONTEXT);
        expect_number(plan_kv_bytes_per_tok(p, KV_MAIN, bf16_types), 2 * m->layers * width, "cache bytes", m->shape, text, tp);
        expect_number((double)plan_weight_bytes(p, PHASE_DECODE, bf16_types), 2 * held, "weight bytes", m->shape, text, tp);
        expect_number(flops, want, "FLOPs of products", m->shape, text, tp);
        expect_number(all.bytes_sent, 2 * BATCH * sent_numbers(m, &s, tp), "bytes sent", m->shape, text, tp);
        small = all.flops - flops; /* norms, rotations, activations, sums */
        cr_expect(small > 0 && small < 1e-3 * flops, "%s %s: the rest is %g of %g", m->shape, text, small, flops);
        plan_destroy(p);
    }
}

Test(plan, decode_counts_equal_hand_counts_for_every_variant)
{
    for (int tp = 1; tp <= 4; tp *= 2) {
        for (int m = 0; m < 3; m++)
            for (int i = 0; i < N_LATENT; i++)
                expect_counts(&models[m], latent_variants[i], tp);
        expect_counts(&models[3], "gqa", tp);
    }
}

/* Figures that others publish or that follow in one line. Numbers of all weights: Meta's 70,553,706,496 for Llama-3-70B;
 * DeepSeek's "671B" and "15.7B", Moonshot's "1T", to the last number by summing the shapes of their files. */
Test(plan, well_known_figures)
{
    static const struct {
        int model, tp;
        const char *text;
        double cache_bytes, weights; /* weights 0: not looked at */
    } cases[] = {
        {0, 1, "mla", 61 * 576 * 2, 671026419200.},
        {0, 2, "mla", 61 * 576 * 2, 0},
        {0, 2, "mla-dcp", 61 * 288 * 2, 0},
        {0, 2, "tpla:g=2:u=pca", 61 * 320 * 2, 0},
        {0, 4, "tpla:g=4:u=pca", 61 * 192 * 2, 0},
        {0, 2, "tpla:g=4:u=pca", 61 * 320 * 2, 0},
        {0, 4, "tpla:g=2:u=pca", 61 * 320 * 2, 0},
        {1, 1, "mla", 61 * 576 * 2, 1026408232448.},
        {2, 1, "mla", 27 * 576 * 2, 15706484224.},
        {2, 2, "gla:g=2", 27 * 320 * 2, 0},
        {3, 1, "gqa", 80 * 2048 * 2, 70553706496.},
        {3, 4, "gqa", 80 * 512 * 2, 0},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        model_config c;
        read_shape(&models[cases[i].model], &c);
        plan *p = make_plan(&c, cases[i].text, cases[i].tp, 0);
        cr_expect(plan_kv_bytes_per_tok(p, KV_MAIN, bf16_types) == cases[i].cache_bytes, "case %zu", i);
        double weights = (double)plan_weight_bytes(p, PHASE_DECODE, bf16_types) / 2;
        cr_expect(cases[i].weights == 0 || weights == cases[i].weights, "%s: %.0f weights, expected %.0f",
                  models[cases[i].model].shape, weights, cases[i].weights);
        plan_destroy(p);
    }
}

/* models/shapes/README.md: counterparts of V3 cache as many bytes a token, the GQA one with about as many weights. */
Test(plan, counterparts_of_v3_cache_the_same_bytes)
{
    static const struct {
        const char *shape, *text;
        double bytes, bytes_of_two; /* a token and layer: on one rank, on each of two */
    } cases[] = {{"deepseek-v3", "mla", 1152, 1152},
                 {"deepseek-v3-gla", "gla:g=2", 1152, 640},
                 {"deepseek-v3-gqa", "gqa", 1152, 576}};
    double weights[3];
    for (int i = 0; i < 3; i++) {
        char path[512];
        model_config c;
        snprintf(path, sizeof path, "%s/models/shapes/%s.json", SOURCE_ROOT, cases[i].shape);
        cr_assert(model_config_read(path, &c, NULL) == TPL_OK);
        plan *one = make_plan(&c, cases[i].text, 1, 0), *two = make_plan(&c, cases[i].text, 2, 1), *attention;
        cr_expect_eq(plan_kv_bytes_per_tok(one, KV_MAIN, bf16_types), 61 * cases[i].bytes, "%s", cases[i].shape);
        cr_expect_eq(plan_kv_bytes_per_tok(two, KV_MAIN, bf16_types), 61 * cases[i].bytes_of_two, "%s", cases[i].shape);
        cr_assert(plan_create(&c, &one->v, 1, 0, (plan_options){.attention_only = true}, &attention, NULL) == TPL_OK);
        weights[i] = (double)plan_weight_bytes(attention, PHASE_DECODE, bf16_types);
        plan_destroy(attention);
        plan_destroy(one);
        plan_destroy(two);
    }
    cr_expect(fabs(weights[2] / weights[0] - 1) < 0.01, "%g against %g bytes of weights", weights[2], weights[0]);
    cr_expect(weights[1] < weights[0] && weights[1] > 0.95 * weights[0]);
}

/* The tables of tpla.md: FLOPs and bytes of one decode layer's attention a cached token and batch row, tp 2. */
Test(plan, attention_of_one_token_matches_the_table)
{
    static const struct {
        int model;
        const char *text;
        double bytes, flops;
    } cases[] = {
        {0, "mla", 1152, 139264}, {0, "tpla:g=2:u=pca", 640, 147456}, {0, "mla-dcp", 576, 139264},
        {1, "mla", 1152, 69632},  {1, "tpla:g=2:u=pca", 640, 73728},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        enum { N = 4096 };
        model_config c;
        read_shape(&models[cases[i].model], &c);
        plan *p = make_plan(&c, cases[i].text, 2, 0);
        batch_shape more = batch_shape_uniform(1, 2 * N - 1, 1), less = batch_shape_uniform(1, N - 1, 1);
        double flops = 0, bytes = 0;
        for (int k = 0; k < p->list[PHASE_DECODE].n; k++) {
            const plan_step *s = &p->list[PHASE_DECODE].steps[k];
            if (s->layer != 5 || s->is_comm || s->call.kind != OP_ATTN_LATENT)
                continue;
            step_cost a = plan_step_cost(p, s, &more, bf16_types), b = plan_step_cost(p, s, &less, bf16_types);
            flops += (a.flops - b.flops) / N;
            bytes += (a.bytes_read - b.bytes_read) / N;
        }
        cr_expect(flops == cases[i].flops && bytes == cases[i].bytes, "%s %s: %g FLOPs and %g bytes", models[cases[i].model].shape,
                  cases[i].text, flops, bytes);
        plan_destroy(p);
    }
}

/* tpla.md: bytes sent per row, layer and device by the attention part of DeepSeek-V3 at tp 2, and for DCP the gathered
 * log-sum-exps beside it (128 heads of 2 bytes). */
Test(plan, attention_sends_the_bytes_of_the_table)
{
    static const struct {
        const char *text;
        double bytes, lse;
    } cases[] = {
        {"mla", 14336, 0},
        {"tpla:g=2:u=pca:proj=dup", 14336, 0},
        {"tpla:g=2:u=pca:proj=rs", 30720, 0},
        {"tpla:g=2:u=pca:proj=rs+agq", 55296, 0},
        {"mla-dcp", 153600, 256},
    };
    model_config c;
    read_shape(&models[0], &c);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        batch_shape one = batch_shape_uniform(1, 100, 1);
        plan *p = make_plan(&c, cases[i].text, 2, 1);
        double bytes = 0, lse = 0;
        for (int k = 0; k < p->list[PHASE_DECODE].n; k++) {
            const plan_step *s = &p->list[PHASE_DECODE].steps[k];
            double sent = plan_step_cost(p, s, &one, bf16_types).bytes_sent;
            if (s->layer != 7 || strncmp(s->name, "attn.", 5) != 0)
                continue;
            *(strstr(s->name, "lse") ? &lse : &bytes) += sent;
        }
        cr_expect(bytes == cases[i].bytes && lse == cases[i].lse, "%s sends %g + %g", cases[i].text, bytes, lse);
        plan_destroy(p);
    }
}

/* Prefill of a whole prompt in MHA form: K and V of every head are expanded from the latent, then heads nope + rope and v
 * wide attend. pd=on runs it once with the heads split; pd=off once for each slice of a rank, for all heads of its range. */
Test(plan, prefill_attention_equals_hand_counts)
{
    enum { N = 1000 };
    static const char *const texts[] = {"mla", "mla-dcp", "tpla:g=2:u=pca:pd=on", "tpla:g=4:u=pca:pd=on:proj=rs",
                                        "tpla:g=2:u=pca:pd=off", "tpla:g=4:u=pca:pd=off:proj=rs", "gla:g=2"};
    batch_shape b = batch_shape_uniform(2, 0, N);
    double pairs = 2. * N * (N + 1) / 2, tok = 2. * N;
    for (int m = 0; m < 3; m++) {
        const sizes *z = &models[m];
        for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
            for (int tp = 1; tp <= 4; tp *= 2) {
                model_config c;
                read_shape(z, &c);
                plan *p = make_plan(&c, texts[i], tp, 0);
                bool sliced = p->v.kind == VAR_GLA || (p->v.kind == VAR_TPLA && !p->v.pd);
                share s = sliced ? share_of(z, &p->v, tp) : exact_share(z, tp, false);
                double forms = p->v.kind == VAR_GLA ? 1 : s.slices, got = 0;
                double want = 2 * tok * s.lat_heads * s.per_head * (z->nope + z->v) +
                              forms * 2 * s.lat_heads * (z->nope + z->rope + z->v) * pairs;
                for (int k = 0; k < p->list[PHASE_PREFILL].n; k++) {
                    const plan_step *step = &p->list[PHASE_PREFILL].steps[k];
                    if (step->layer == 2 && !step->is_comm && step->call.kind == OP_ATTN_MHA)
                        got += plan_step_cost(p, step, &b, bf16_types).flops;
                }
                expect_number(got, want, "prefill attention", z->shape, texts[i], tp);
                plan_destroy(p);
            }
        }
    }
}

/* ---- ranks ---- */

static void expect_same_steps(const plan *a, const plan *b, const char *text)
{
    for (int phase = 0; phase < N_PHASES; phase++) {
        cr_assert(a->list[phase].n == b->list[phase].n, "%s: rank %d has another number of steps", text, b->rank);
        for (int i = 0; i < a->list[phase].n; i++) {
            const plan_step *s = &a->list[phase].steps[i], *t = &b->list[phase].steps[i];
            bool in = b->rank >= t->group.first && b->rank < t->group.first + t->group.size;
            cr_expect(strcmp(s->name, t->name) == 0 && s->layer == t->layer && s->is_comm == t->is_comm, "%s step %d: %s and %s",
                      text, i, s->name, t->name);
            cr_expect(s->in[0].cols == t->in[0].cols && s->out.cols == t->out.cols, "%s %s: other sizes", text, s->name);
            cr_expect(!s->is_comm || (s->comm == t->comm && s->group.size == t->group.size && in), "%s %s: groups do not meet", text,
                      s->name);
        }
    }
}

/* Ranks of one group name the same group; a group holds each of its ranks. */
static void expect_groups_meet(plan *const *p, int tp, const char *text)
{
    for (int phase = 0; phase < N_PHASES; phase++)
        for (int i = 0; i < p[0]->list[phase].n; i++)
            for (int a = 0; a < tp; a++) {
                const plan_step *s = &p[a]->list[phase].steps[i];
                for (int b = s->group.first; s->is_comm && b < s->group.first + s->group.size; b++)
                    cr_expect(p[b]->list[phase].steps[i].group.first == s->group.first, "%s %s: ranks %d and %d", text, s->name, a, b);
            }
}

/* A chunk of a prompt that is not its last wants no logits: the head is neither read nor multiplied. */
Test(plan, a_pass_without_logits_does_not_pay_for_the_head)
{
    model_config c;
    read_shape(&models[0], &c);
    plan *p = make_plan(&c, "mla", 2, 0);
    batch_shape with = batch_shape_uniform(1, 0, 64), without = with;
    without.logit_rows = 0;
    step_cost a = plan_cost(p, PHASE_PREFILL, &with, bf16_types), b = plan_cost(p, PHASE_PREFILL, &without, bf16_types);
    double head = models[0].vocab / 2 * models[0].dim;
    cr_expect_float_eq(a.flops - b.flops, 2 * head, 0.001 * head, "%g", a.flops - b.flops);
    cr_expect_float_eq(a.bytes_read - b.bytes_read, 2 * head, 0.001 * head, "%g", a.bytes_read - b.bytes_read);
    plan_destroy(p);
}

Test(plan, lists_of_ranks_correspond_step_by_step)
{
    for (int m = 0; m < N_MODELS; m++) {
        model_config c;
        read_shape(&models[m], &c);
        c.n_layers = 5;
        for (int i = 0; i < (m == 3 ? 1 : N_LATENT); i++) {
            for (int tp = 2; tp <= 8; tp *= 2) {
                const char *text = m == 3 ? "gqa" : latent_variants[i];
                plan *p[8];
                for (int rank = 0; rank < tp; rank++)
                    p[rank] = make_plan(&c, text, tp, rank);
                for (int rank = 1; rank < tp; rank++)
                    expect_same_steps(p[0], p[rank], text);
                expect_groups_meet(p, tp, text);
                for (int rank = 0; rank < tp; rank++)
                    plan_destroy(p[rank]);
            }
        }
    }
}

/* The feed-forward left out: no weight, step or byte of it remains, the attention is untouched. */
Test(plan, attention_only_leaves_out_the_feed_forward)
{
    model_config c;
    read_shape(&models[0], &c);
    variant v = variant_exact(&c);
    plan *whole = make_plan(&c, "mla", 2, 0), *part = NULL;
    batch_shape b = batch_shape_uniform(1, 10, 1);
    cr_assert(plan_create(&c, &v, 2, 0, (plan_options){.attention_only = true}, &part, NULL) == TPL_OK);
    double kept = 0;
    for (int i = 0; i < whole->list[PHASE_DECODE].n; i++) {
        const plan_step *s = &whole->list[PHASE_DECODE].steps[i];
        bool feed_forward = strncmp(s->name, "mlp.", 4) == 0 || strncmp(s->name, "moe.", 4) == 0;
        kept += feed_forward ? 0 : plan_step_cost(whole, s, &b, bf16_types).flops;
    }
    expect_number(plan_cost(part, PHASE_DECODE, &b, bf16_types).flops, kept, "FLOPs", "deepseek-v3", "mla", 2);
    sizes bare = models[0];
    bare.dense_layers = bare.layers;
    bare.ffn = 0;
    share s = exact_share(&bare, 2, true);
    double held = held_numbers(&bare, &s, 2) - bare.layers * bare.dim;
    expect_number((double)plan_weight_bytes(part, PHASE_DECODE, bf16_types), 2 * held, "weight bytes", "deepseek-v3", "mla", 2);
    plan_destroy(whole);
    plan_destroy(part);
}

static int place_of(const plan *p, int layer, const char *name)
{
    const plan_list *l = &p->list[PHASE_DECODE];
    for (int i = 0; i < l->n; i++)
        if (l->steps[i].layer == layer && strcmp(l->steps[i].name, name) == 0)
            return i;
    cr_assert_fail("no step %s in layer %d", name, layer);
    return -1;
}

/* Products of the same input stand together, and no further than what they write allows. */
Test(plan, products_of_one_input_stand_together)
{
    model_config v3, lite;
    read_shape(&models[0], &v3);
    read_shape(&models[2], &lite);
    plan *a = make_plan(&v3, "tpla:g=2:u=pca:slice=both:pd=on:proj=rs+agq", 2, 0), *b = make_plan(&lite, "mla", 1, 0);
    int first = place_of(a, 5, "attn.q_a");
    cr_expect_eq(place_of(a, 5, "attn.kv_a"), first + 1);
    cr_expect_eq(place_of(a, 5, "attn.k_pe"), first + 2);
    cr_expect_eq(place_of(a, 5, "attn.norm"), first - 1);
    cr_expect_lt(place_of(a, 5, "attn.kv_a"), place_of(a, 5, "attn.kv_norm"));
    cr_expect_eq(place_of(b, 3, "attn.kv_a"), place_of(b, 3, "attn.q_b") + 1);
    cr_expect_eq(place_of(b, 3, "moe.shared_up"), place_of(b, 3, "moe.shared_gate") + 1);
    cr_expect_gt(place_of(b, 3, "moe.shared_down"), place_of(b, 3, "moe.experts"), "it adds to what experts leave");
    plan_destroy(a);
    plan_destroy(b);
}
