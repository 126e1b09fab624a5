#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <criterion/criterion.h>

#include "base/rng.h"
#include "tests/support/rig.h"

enum { N_TOK = 23, N_PREFILL = 11 };

/* Exact paths differ by the order of f32 sums only; logits here are of size 1 to 4. */
static const double EXACT = 1e-4;

static model_config eight_heads(void)
{
    model_config c = ckpt_small_mla();
    c.n_heads = c.n_kv_heads = 8;
    c.max_pos = 128;
    return c;
}

static void expect_close(const float *got, const float *want, int n, int vocab, double within, const char *name, int tp)
{
    double d = rig_distance(got, want, (size_t)n * (size_t)vocab);
    cr_expect(d <= within, "%s tp %d is off by %g, expected at most %g", name, tp, d, within);
}

/* Runs `variant` as `parts` says and compares all logits with exact mla (or gqa) at tp 1 in one prefill. */
typedef struct {
    const char *variant;
    int32_t tp, n_prefill, chunk;
} path_case;

static void expect_exact(const fixture *f, const char *exact, const path_case *cases, size_t n)
{
    int32_t tokens[N_TOK];
    rig_tokens(tokens, N_TOK, f->cfg.vocab, 3);
    float *want = rig_run(f, exact, &(team_options){.tp = 1}, tokens, N_TOK, N_TOK, N_TOK);
    for (size_t i = 0; i < n; i++) {
        team_options o = {.tp = cases[i].tp};
        float *got = rig_run(f, cases[i].variant, &o, tokens, N_TOK, cases[i].n_prefill, cases[i].chunk);
        expect_close(got, want, N_TOK, f->cfg.vocab, EXACT, cases[i].variant, cases[i].tp);
        free(got);
    }
    free(want);
}

Test(exact, heads_over_ranks_leave_mla_and_dcp_unchanged)
{
    static const path_case cases[] = {
        {"mla", 1, 11, 4},     {"mla", 2, 11, 11},    {"mla", 4, 11, 3},     {"mla", 8, 11, 11},
        {"mla", 8, 0, 1},      {"mla-dcp", 1, 11, 4}, {"mla-dcp", 2, 11, 5}, {"mla-dcp", 4, 11, 11},
        {"mla-dcp", 8, 3, 2},  {"mla-dcp", 4, 0, 1},  {"mla-dcp", 2, N_TOK, 7},
    };
    model_config c = eight_heads();
    fixture f;
    fixture_open(&f, &c, DT_F32, 1);
    expect_exact(&f, "mla", cases, sizeof cases / sizeof *cases);
    fixture_close(&f);
}

Test(exact, folding_gamma_and_any_basis_leaves_mla_unchanged)
{
    static const path_case cases[] = {
        {"tpla:g=2:u=id:slice=none", 1, 11, 11},         {"tpla:g=2:u=hadamard:slice=none", 1, 11, 11},
        {"tpla:g=2:u=pca:slice=none", 1, 11, 11},        {"tpla:g=2:u=mix:slice=none", 1, 11, 11},
        {"tpla:g=4:u=hadamard:slice=none:pd=off", 2, 11, 4}, {"tpla:g=4:u=mix:slice=none", 4, 11, 11},
        {"tpla:g=2:u=pca:slice=none:alpha=share", 2, 0, 1},
    };
    model_config c = eight_heads();
    fixture f;
    fixture_open(&f, &c, DT_F32, 2);
    expect_exact(&f, "mla", cases, sizeof cases / sizeof *cases);
    fixture_close(&f);
}

Test(exact, one_group_is_mla)
{
    static const path_case cases[] = {
        {"tpla:g=1:u=id", 1, 11, 11},
        {"tpla:g=1:u=hadamard:slice=both:pd=off", 2, 11, 4},
        {"tpla:g=1:u=pca:slice=softmax:mu=one", 4, 11, 11},
        {"gla:g=1", 2, 11, 5},
    };
    model_config c = eight_heads();
    fixture f;
    fixture_open(&f, &c, DT_F32, 3);
    expect_exact(&f, "mla", cases, sizeof cases / sizeof *cases);
    fixture_close(&f);
}

Test(exact, an_exact_prefill_gives_the_logits_of_mla)
{
    static const path_case cases[] = {
        {"tpla:g=2:u=id:slice=both:pd=on", 1, N_TOK, N_TOK},   {"tpla:g=2:u=pca:slice=both:pd=on", 2, N_TOK, 9},
        {"tpla:g=4:u=mix:slice=softmax:pd=on", 2, N_TOK, 4},   {"tpla:g=4:u=hadamard:slice=both:pd=on", 8, N_TOK, N_TOK},
        {"tpla:g=2:u=id:slice=both:pd=on:proj=rs", 4, N_TOK, N_TOK},
    };
    model_config c = eight_heads();
    fixture f;
    fixture_open(&f, &c, DT_F32, 4);
    expect_exact(&f, "mla", cases, sizeof cases / sizeof *cases);
    fixture_close(&f);
}

/* The three ways to hold W_UQ and W_O, and every tp, are one computation; the exact model must differ from it. */
static void expect_agreement(const fixture *f, const char *base, const char *const *proj, const int *tps, size_t n_tps)
{
    int32_t tokens[N_TOK];
    rig_tokens(tokens, N_TOK, f->cfg.vocab, 5);
    float *want = rig_run(f, base, &(team_options){.tp = 1}, tokens, N_TOK, N_PREFILL, N_PREFILL);
    float *mla = rig_run(f, "mla", &(team_options){.tp = 1}, tokens, N_TOK, N_PREFILL, N_PREFILL);
    double apart = rig_distance(want, mla, (size_t)(N_TOK * f->cfg.vocab));
    cr_expect(apart > 100 * EXACT, "%s equals mla to %g: nothing is sliced", base, apart);
    for (size_t p = 0; proj[p]; p++) {
        for (size_t i = 0; i < n_tps; i++) {
            char text[VARIANT_TEXT];
            snprintf(text, sizeof text, "%s:proj=%s", base, proj[p]);
            float *got = rig_run(f, text, &(team_options){.tp = tps[i]}, tokens, N_TOK, N_PREFILL, N_PREFILL);
            expect_close(got, want, N_TOK, f->cfg.vocab, EXACT, text, tps[i]);
            free(got);
        }
    }
    free(want);
    free(mla);
}

Test(exact, tpla_agrees_over_ranks_and_projections)
{
    static const char *const bases[] = {"tpla:g=2:u=hadamard:slice=both:pd=off", "tpla:g=4:u=pca:slice=softmax:pd=off",
                                        "tpla:g=4:u=hadamard:slice=both:pd=on"};
    static const char *const all[] = {"dup", "rs", "rs+agq", NULL};
    static const int tps[] = {1, 2, 4, 8};
    model_config c = eight_heads();
    fixture f;
    fixture_open(&f, &c, DT_F32, 6);
    for (size_t i = 0; i < sizeof bases / sizeof *bases; i++)
        expect_agreement(&f, bases[i], all, tps, 4);
    fixture_close(&f);
}

Test(exact, gla_agrees_over_ranks)
{
    model_config c = eight_heads();
    fixture f;
    int32_t tokens[N_TOK];
    static const char *const texts[] = {"gla:g=2", "gla:g=4:mu=g"};
    fixture_open(&f, &c, DT_F32, 7);
    rig_tokens(tokens, N_TOK, c.vocab, 7);
    for (int v = 0; v < 2; v++) {
        float *want = rig_run(&f, texts[v], &(team_options){.tp = 1}, tokens, N_TOK, N_PREFILL, N_PREFILL);
        for (int tp = 2; tp <= 8; tp *= 2) {
            float *got = rig_run(&f, texts[v], &(team_options){.tp = tp}, tokens, N_TOK, N_PREFILL, 4);
            expect_close(got, want, N_TOK, c.vocab, EXACT, texts[v], tp);
            free(got);
        }
        free(want);
    }
    fixture_close(&f);
}

Test(exact, gqa_agrees_over_ranks_and_phases)
{
    static const path_case cases[] = {{"gqa", 1, 11, 4}, {"gqa", 2, 11, 11}, {"gqa", 2, 0, 1}};
    model_config c = ckpt_small_gqa();
    fixture f;
    fixture_open(&f, &c, DT_F32, 8);
    expect_exact(&f, "gqa", cases, sizeof cases / sizeof *cases);
    fixture_close(&f);
}

/* ---- batches ---- */

static const char *const batch_variants[] = {"mla", "mla-dcp", "gla:g=2", "tpla:g=2:u=hadamard:pd=off",
                                             "tpla:g=4:u=pca:slice=softmax:pd=on"};

/* Four sequences of different lengths prefilled together, then decoded together, against each alone. */
static void expect_batch_equals_singles(const fixture *f, const char *text, int tp)
{
    enum { SEQS = 4, MORE = 5 };
    static const int lens[SEQS] = {1, 9, 4, 17};
    int32_t tokens[SEQS][32];
    int vocab = f->cfg.vocab, n = 0;
    size_t row_bytes = sizeof(float) * (size_t)vocab;
    batch_row rows[64];
    rig r;
    team_options o = {.tp = tp};
    rig_open(&r, f, text, &o, NULL);
    for (int s = 0; s < SEQS; s++) {
        rig_tokens(tokens[s], 32, vocab, 40 + (uint64_t)s);
        cr_assert(session_add_seq(r.s) == s);
        for (int i = 0; i < lens[s]; i++)
            rows[n++] = (batch_row){s, tokens[s][i], ROW_CHAIN, i == lens[s] - 1};
    }
    float *got = tpl_malloc(row_bytes * SEQS * (MORE + 1));
    rig_forward(&r, PHASE_PREFILL, rows, n);
    for (int step = 0; step <= MORE; step++) {
        cr_assert(session_n_logits(r.s) == SEQS);
        for (int s = 0; s < SEQS; s++) {
            memcpy(got + (size_t)((s * (MORE + 1) + step) * vocab), session_logits(r.s, s), row_bytes);
            rows[s] = (batch_row){s, tokens[s][lens[s] + step], ROW_CHAIN, true};
        }
        if (step < MORE)
            rig_forward(&r, PHASE_DECODE, rows, SEQS);
    }
    for (int s = 0; s < SEQS; s++)
        session_drop_seq(r.s, s);
    for (int s = 0; s < SEQS; s++) {
        float *alone = rig_logits(&r, tokens[s], lens[s] + MORE, lens[s], lens[s]);
        expect_close(got + (size_t)(s * (MORE + 1) * vocab), alone + (size_t)((lens[s] - 1) * vocab), MORE + 1, vocab,
                     EXACT, text, tp);
        free(alone);
    }
    free(got);
    rig_close(&r);
}

Test(exact, a_batch_of_sequences_equals_each_alone)
{
    model_config c = eight_heads();
    fixture f;
    fixture_open(&f, &c, DT_F32, 9);
    for (size_t i = 0; i < sizeof batch_variants / sizeof *batch_variants; i++)
        for (int tp = 1; tp <= 4; tp *= 2)
            expect_batch_equals_singles(&f, batch_variants[i], tp);
    fixture_close(&f);
}

/* ---- trees ---- */

enum { TREE = 70, TREE_PREFIX = 5 };

/* A random tree of TREE rows over a prefix, more than one mask word wide; each row's logits must be those of a chain
 * of its ancestors alone. */
static void expect_tree_equals_paths(const fixture *f, const char *text, int tp, plan_phase phase)
{
    int vocab = f->cfg.vocab, seq;
    int32_t tokens[TREE_PREFIX + TREE], path[TREE_PREFIX + TREE];
    batch_row rows[TREE];
    float *got = tpl_malloc(sizeof(float) * (size_t)(TREE * vocab));
    rng random = rng_make(4, 4);
    rig r;
    team_options o = {.tp = tp};
    rig_open(&r, f, text, &o, NULL);
    rig_tokens(tokens, TREE_PREFIX + TREE, vocab, 8);
    seq = session_add_seq(r.s);
    for (int i = 0; i < TREE_PREFIX; i++)
        rows[i] = (batch_row){seq, tokens[i], ROW_CHAIN, false};
    rig_forward(&r, PHASE_PREFILL, rows, TREE_PREFIX);
    for (int i = 0; i < TREE; i++) {
        int pick = (int)rng_below(&random, (uint64_t)i + 1);
        int parent = i == 0 || i % 11 == 5 ? ROW_PREFIX : i % 3 == 0 ? ROW_CHAIN : pick < i ? pick : ROW_CHAIN;
        rows[i] = (batch_row){seq, tokens[TREE_PREFIX + i], parent, true};
    }
    rig_forward(&r, phase, rows, TREE);
    for (int i = 0; i < TREE; i++)
        memcpy(got + (size_t)(i * vocab), session_logits(r.s, i), sizeof(float) * (size_t)vocab);
    session_drop_seq(r.s, seq);
    for (int i = 0; i < TREE; i += 3) {
        int chain[TREE], n = 0, len = TREE_PREFIX;
        for (int k = i; k >= 0; k = rows[k].parent == ROW_PREFIX ? -1 : rows[k].parent == ROW_CHAIN ? k - 1 : rows[k].parent)
            chain[n++] = k;
        memcpy(path, tokens, sizeof(int32_t) * TREE_PREFIX);
        while (n > 0)
            path[len++] = tokens[TREE_PREFIX + chain[--n]];
        float *alone = rig_logits(&r, path, len, phase == PHASE_PREFILL ? len : TREE_PREFIX, len);
        expect_close(got + (size_t)(i * vocab), alone + (size_t)((len - 1) * vocab), 1, vocab, EXACT, text, tp);
        free(alone);
    }
    free(got);
    rig_close(&r);
}

Test(exact, rows_with_parents_equal_a_sequence_for_each_path)
{
    model_config c = eight_heads();
    fixture f;
    fixture_open(&f, &c, DT_F32, 10);
    for (size_t i = 0; i < sizeof batch_variants / sizeof *batch_variants; i++)
        for (int tp = 1; tp <= 2; tp++)
            expect_tree_equals_paths(&f, batch_variants[i], tp, PHASE_DECODE);
    expect_tree_equals_paths(&f, "mla", 2, PHASE_PREFILL);
    expect_tree_equals_paths(&f, "tpla:g=2:u=hadamard:pd=off", 1, PHASE_PREFILL);
    fixture_close(&f);
    c = ckpt_small_gqa();
    c.max_pos = 128;
    fixture_open(&f, &c, DT_F32, 10);
    expect_tree_equals_paths(&f, "gqa", 2, PHASE_DECODE);
    fixture_close(&f);
}

/* ---- truncation, repetition ---- */

static void feed(rig *r, int seq, const int32_t *tokens, int from, int to, plan_phase phase)
{
    batch_row rows[64];
    for (int i = from; i < to; i++)
        rows[i - from] = (batch_row){seq, tokens[i], ROW_CHAIN, true};
    rig_forward(r, phase, rows, to - from);
}

Test(exact, truncating_and_going_on_equals_a_fresh_sequence)
{
    model_config c = eight_heads();
    fixture f;
    fixture_open(&f, &c, DT_F32, 12);
    for (size_t i = 0; i < sizeof batch_variants / sizeof *batch_variants; i++) {
        int32_t tokens[N_TOK], wrong[N_TOK];
        rig r;
        team_options o = {.tp = 2};
        rig_open(&r, &f, batch_variants[i], &o, NULL);
        rig_tokens(tokens, N_TOK, c.vocab, 20);
        rig_tokens(wrong, N_TOK, c.vocab, 21);
        int seq = session_add_seq(r.s);
        feed(&r, seq, tokens, 0, 12, PHASE_PREFILL);
        for (int k = 12; k < 18; k++)
            feed(&r, seq, k < 14 ? tokens : wrong, k, k + 1, PHASE_DECODE);
        session_truncate(r.s, seq, 14);
        feed(&r, seq, tokens, 14, N_TOK, PHASE_DECODE);
        float *got = tpl_malloc(sizeof(float) * (size_t)((N_TOK - 14) * c.vocab));
        for (int k = 14; k < N_TOK; k++)
            memcpy(got + (k - 14) * c.vocab, session_logits(r.s, k - 14), sizeof(float) * (size_t)c.vocab);
        session_drop_seq(r.s, seq);
        float *fresh = rig_logits(&r, tokens, N_TOK, 12, 12);
        expect_close(got, fresh + 14 * c.vocab, N_TOK - 14, c.vocab, EXACT, batch_variants[i], 2);
        free(got);
        free(fresh);
        rig_close(&r);
    }
    fixture_close(&f);
}

Test(exact, two_runs_give_the_same_bits)
{
    model_config c = eight_heads();
    int32_t tokens[N_TOK];
    fixture f;
    fixture_open(&f, &c, DT_BF16, 13);
    rig_tokens(tokens, N_TOK, c.vocab, 22);
    for (size_t i = 0; i < sizeof batch_variants / sizeof *batch_variants; i++) {
        for (int compute = 0; compute < 2; compute++) {
            team_options o = {.tp = 4, .compute = compute ? DT_BF16 : DT_F32};
            float *a = rig_run(&f, batch_variants[i], &o, tokens, N_TOK, N_PREFILL, 4);
            float *b = rig_run(&f, batch_variants[i], &o, tokens, N_TOK, N_PREFILL, 4);
            cr_expect(memcmp(a, b, sizeof(float) * (size_t)(N_TOK * c.vocab)) == 0, "%s", batch_variants[i]);
            free(a);
            free(b);
        }
    }
    fixture_close(&f);
}

/* ---- models and types ---- */

Test(exact, models_without_a_query_latent_and_with_a_tied_head_agree_over_ranks)
{
    static const path_case cases[] = {{"mla", 2, 11, 4},
                                      {"mla", 8, 11, 11},
                                      {"mla-dcp", 4, 11, 5},
                                      {"tpla:g=2:u=hadamard:slice=none", 2, 11, 11},
                                      {"tpla:g=2:u=pca:slice=both:pd=on:proj=rs+agq", 2, N_TOK, N_TOK}};
    for (int tied = 0; tied < 2; tied++) {
        model_config c = eight_heads();
        c.q_lora_rank = 0;
        c.tied_embeddings = tied;
        fixture f;
        fixture_open(&f, &c, DT_F32, 14);
        expect_exact(&f, "mla", cases, sizeof cases / sizeof *cases);
        fixture_close(&f);
    }
}

/* The same numbers stored in 16 bits and widened by hand to f32 are the same model. */
Test(exact, weights_of_16_bits_equal_their_widened_copy)
{
    static const tpl_dtype types[] = {DT_BF16, DT_F16};
    for (int k = 0; k < 2; k++) {
        model_config c = eight_heads();
        int32_t tokens[N_TOK];
        fixture narrow, wide;
        tpl_err e = {0};
        fixture_open(&narrow, &c, types[k], 15);
        fixture_open(&wide, &c, DT_F32, 16);
        for (int32_t i = 0; i < narrow.list.n; i++) {
            ckpt_tensor *from = &narrow.list.tensors[i], *to = &wide.list.tensors[i];
            size_t n = (size_t)from->shape[0] * (size_t)(from->n_dims > 1 ? from->shape[1] : 1);
            cr_assert_str_eq(from->name, to->name);
            dtype_to_f32((float *)to->data, from->data, from->dtype, n);
        }
        cr_assert(ckpt_save(wide.dir, ckpt_config_text(&wide.mem, &wide.cfg, NULL), &wide.list, 1, &e) == TPL_OK);
        model_close(wide.m);
        cr_assert(model_open(wide.dir, &wide.m, &e) == TPL_OK, "%s", e.what);
        rig_tokens(tokens, N_TOK, c.vocab, 23);
        for (int tp = 1; tp <= 2; tp++) {
            for (size_t i = 0; i < sizeof batch_variants / sizeof *batch_variants; i++) {
                team_options o = {.tp = tp};
                float *a = rig_run(&narrow, batch_variants[i], &o, tokens, N_TOK, N_PREFILL, 4);
                float *b = rig_run(&wide, batch_variants[i], &o, tokens, N_TOK, N_PREFILL, 4);
                expect_close(a, b, N_TOK, c.vocab, EXACT, batch_variants[i], tp);
                free(a);
                free(b);
            }
        }
        fixture_close(&narrow);
        fixture_close(&wide);
    }
}

/* Root of the mean square of a - b over that of b. */
static double relative_rms(const float *a, const float *b, size_t n)
{
    double off = 0, all = 0;
    for (size_t i = 0; i < n; i++) {
        off += ((double)a[i] - b[i]) * ((double)a[i] - b[i]);
        all += (double)b[i] * b[i];
    }
    return sqrt(off / all);
}

/* compute=bf16 rounds the inputs of products (bf16 weights are exact already): relative error uniform within +-2^-8, so
 * 2^-8 / sqrt(3) a rounded operand. A layer chains up to 9 rounded products (q_a, q_b, absorb, scores, values, unabsorb,
 * o, gate or up, down), two layers and the head 19; independent errors add in squares: 2^-8 / sqrt(3) * sqrt(19) = 0.0098.
 * Scores and values round both operands and folded weights are rounded once more: a factor 2 covers them.
 * kv=bf16 rounds each cached number once, in two layers, which reach the logits through scores and values: sqrt(4). */
Test(exact, bf16_stays_within_its_derived_tolerance)
{
    const double unit = 0x1p-8 / sqrt(3);
    model_config c = eight_heads();
    int32_t tokens[N_TOK];
    fixture f;
    fixture_open(&f, &c, DT_BF16, 17);
    rig_tokens(tokens, N_TOK, c.vocab, 24);
    for (size_t i = 0; i < sizeof batch_variants / sizeof *batch_variants; i++) {
        for (int tp = 1; tp <= 2; tp++) {
            size_t n = (size_t)(N_TOK * c.vocab);
            team_options f32 = {.tp = tp}, compute = {.tp = tp, .compute = DT_BF16}, kv = {.tp = tp, .kv = DT_BF16};
            float *want = rig_run(&f, batch_variants[i], &f32, tokens, N_TOK, N_PREFILL, 4);
            float *low = rig_run(&f, batch_variants[i], &compute, tokens, N_TOK, N_PREFILL, 4);
            float *cache = rig_run(&f, batch_variants[i], &kv, tokens, N_TOK, N_PREFILL, 4);
            double a = relative_rms(low, want, n), b = relative_rms(cache, want, n);
            cr_expect(a > 1e-4 && a <= 2 * unit * sqrt(19), "%s tp %d compute=bf16: %g", batch_variants[i], tp, a);
            cr_expect(b > 1e-5 && b <= 2 * unit * sqrt(4), "%s tp %d kv=bf16: %g", batch_variants[i], tp, b);
            free(want);
            free(low);
            free(cache);
        }
    }
    fixture_close(&f);
}

/* A word of the kernels table for each way to compute; ref accumulates in double. */
Test(exact, the_reference_backend_agrees)
{
    model_config c = eight_heads();
    int32_t tokens[N_TOK];
    fixture f;
    fixture_open(&f, &c, DT_BF16, 18);
    rig_tokens(tokens, N_TOK, c.vocab, 25);
    for (size_t i = 0; i < sizeof batch_variants / sizeof *batch_variants; i++) {
        team_options cpu = {.tp = 2}, ref = {.tp = 2, .backend = "ref"};
        float *a = rig_run(&f, batch_variants[i], &cpu, tokens, N_TOK, N_PREFILL, 4);
        float *b = rig_run(&f, batch_variants[i], &ref, tokens, N_TOK, N_PREFILL, 4);
        expect_close(a, b, N_TOK, c.vocab, EXACT, batch_variants[i], 2);
        free(a);
        free(b);
    }
    fixture_close(&f);
}
