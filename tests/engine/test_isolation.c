#include <math.h>
#include <stdlib.h>
#include <string.h>

#include <criterion/criterion.h>

#include "tests/support/rig.h"

enum { N_TOK = 15, N_PREFILL = 7, CONTEXT = 512 }; /* a whole page for each of 8 ranks of mla-dcp */

static model_config eight_heads(void)
{
    model_config c = ckpt_small_mla();
    c.n_heads = c.n_kv_heads = 8;
    c.max_pos = CONTEXT;
    return c;
}

static const struct {
    const char *variant;
    int32_t tp;
} cases[] = {
    {"mla", 1},
    {"mla", 2},
    {"mla", 8},
    {"mla-dcp", 2},
    {"mla-dcp", 8},
    {"gla:g=2", 4},
    {"gla:g=4", 2},
    {"tpla:g=2:u=hadamard:slice=none", 2},
    {"tpla:g=2:u=pca:slice=norm:pd=off", 4},
    {"tpla:g=2:u=hadamard:slice=softmax:pd=off", 2},
    {"tpla:g=2:u=hadamard:slice=both:pd=off", 4},
    {"tpla:g=4:u=pca:slice=both:pd=on", 2},
    {"tpla:g=2:u=hadamard:slice=both:pd=on:proj=rs", 2},
    {"tpla:g=2:u=hadamard:slice=both:pd=on:proj=rs+agq", 8},
};

enum { N_CASES = sizeof cases / sizeof *cases };

/* What was read while the cache was all NaN but for one row: how many numbers the first append left behind. */
typedef struct {
    bool seen[8];
    int64_t numbers[8], row[8];
} cache_eye;

static void after_append(void *user, int rank, const plan_step *step, const op_call *call, mat out)
{
    cache_eye *eye = user;
    if (!call || call->kind != OP_KV_APPEND || step->layer != 0 || eye->seen[rank])
        return;
    const kv_view *kv = &call->kv_append.kv;
    const float *values = kv->pages;
    int64_t n = (int64_t)kv->page_tok * kv->width;
    eye->seen[rank] = true;
    eye->row[rank] = kv->rem == 0 ? kv->width : 0; /* the first token lives on one rank where tokens are dealt out */
    for (int64_t i = 0; i < n; i++)
        eye->numbers[rank] += !isnan(values[i]);
}

static void expect_poisoned_cache(rig *r, int32_t token)
{
    cache_eye eye = {0};
    batch_row row = {session_add_seq(r->s), token, ROW_CHAIN, true};
    session_observe(r->s, (step_observer){.end = after_append, .user = &eye});
    rig_forward(r, PHASE_DECODE, &row, 1);
    session_observe(r->s, (step_observer){0});
    for (int i = 0; i < team_n_local(r->team); i++)
        cr_expect(eye.seen[i] && eye.numbers[i] == eye.row[i], "rank %d: %lld numbers in the first page, expected %lld", i,
                  (long long)eye.numbers[i], (long long)eye.row[i]);
    session_drop_seq(r->s, row.seq);
}

/* With the mapped weights unreadable and the folded ones freed, whatever a rank reads is its own. */
static void expect_isolated(const fixture *f, const char *text, int tp)
{
    int32_t tokens[N_TOK];
    team_options plain = {.tp = tp}, isolated = {.tp = tp, .isolate = true};
    session_options so = {.max_rows = 16};
    tpl_err e = {0};
    fixture own = *f;
    rig r;
    rig_tokens(tokens, N_TOK, f->cfg.vocab, 61);
    float *want = rig_run(f, text, &plain, tokens, N_TOK, N_PREFILL, 4);
    cr_assert(model_open(f->dir, &own.m, &e) == TPL_OK, "%s", e.what);
    rig_open(&r, &own, text, &isolated, &so);
    model_forbid_reads(own.m);
    folded_destroy(r.f);
    transform_destroy(r.t);
    r.f = NULL;
    r.t = NULL;
    expect_poisoned_cache(&r, tokens[0]);
    float *got = rig_logits(&r, tokens, N_TOK, N_PREFILL, 4);
    double d = rig_distance(got, want, (size_t)(N_TOK * f->cfg.vocab));
    cr_expect(d <= 1e-5, "%s tp %d: isolated ranks are off by %g", text, tp, d);
    free(got);
    free(want);
    rig_close(&r);
    model_close(own.m);
}

Test(isolation, ranks_read_only_their_own_shards_and_slots)
{
    for (int tied = 0; tied < 2; tied++) {
        model_config c = eight_heads();
        fixture f;
        c.tied_embeddings = tied;
        fixture_open(&f, &c, DT_BF16, 60);
        for (int i = 0; i < N_CASES; i++)
            expect_isolated(&f, cases[i].variant, cases[i].tp);
        fixture_close(&f);
    }
}

Test(isolation, grouped_query_ranks_read_only_their_own)
{
    model_config c = ckpt_small_gqa();
    fixture f;
    fixture_open(&f, &c, DT_BF16, 62);
    expect_isolated(&f, "gqa", 2);
    fixture_close(&f);
}

static void expect_bytes(const fixture *f, const char *text, int tp)
{
    rig r;
    team_options o = {.tp = tp, .isolate = true, .kv = DT_BF16};
    session_options so = {.max_seqs = 1, .max_tok = CONTEXT, .max_rows = 8, .max_logits = 1};
    rig_open(&r, f, text, &o, &so);
    for (int i = 0; i < tp; i++) {
        const plan *p = team_plan(r.team, i);
        plan_types t = {.act = DT_F32, .kv = DT_BF16, .weight = f->cfg.weight_dtype, .folded = DT_F32};
        int64_t weights = plan_weight_bytes(p, N_PHASES, t), held = team_weight_bytes(r.team, i);
        cr_expect(held == weights, "%s tp %d rank %d holds %lld bytes of weights, the plan says %lld", text, tp, i,
                  (long long)held, (long long)weights);
        for (int k = 0; k < KV_N_STREAMS; k++) {
            double want = plan_kv_bytes_per_tok(p, k, t) * CONTEXT;
            int64_t got = session_kv_bytes(r.s, i, k);
            cr_expect((double)got == want, "%s tp %d rank %d stream %d holds %lld bytes, the plan says %g", text, tp, i, k,
                      (long long)got, want);
        }
    }
    rig_close(&r);
}

Test(isolation, bytes_of_a_rank_are_those_of_its_plan)
{
    for (int tied = 0; tied < 2; tied++) {
        model_config c = eight_heads();
        fixture f;
        c.tied_embeddings = tied;
        fixture_open(&f, &c, DT_BF16, 63);
        for (int i = 0; i < N_CASES; i++)
            expect_bytes(&f, cases[i].variant, cases[i].tp);
        fixture_close(&f);
    }
    model_config c = ckpt_small_gqa();
    fixture f;
    c.max_pos = CONTEXT;
    fixture_open(&f, &c, DT_BF16, 64);
    expect_bytes(&f, "gqa", 1);
    expect_bytes(&f, "gqa", 2);
    fixture_close(&f);
}
