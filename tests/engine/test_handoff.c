/* A cache that moves from a prefill team to a decode team of another size: every value where the decode team's own plan
 * keeps it, and the same logits as if it had prefilled itself. */
#include "engine/handoff.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "engine/session_impl.h"
#include "tests/support/rig.h"

enum { N_TOK = 203, N_DECODE = 5, CONTEXT = 512 }; /* four pages, the last one partly filled */

typedef struct {
    char variant[64];
    int32_t from, to;
} hand_case;

static const hand_case latent_cases[] = {
    {"mla", 1, 1},
    {"mla", 1, 4},
    {"mla", 2, 1},
    {"mla-dcp", 2, 2},
    {"mla-dcp", 4, 2},
    {"mla-dcp", 2, 4},
    {"mla-dcp", 1, 4},
    {"gla:g=2", 2, 2},
    {"gla:g=4", 2, 4},
    {"gla:g=4", 4, 1},
    {"gla:g=2", 8, 2},
    {"tpla:g=2:u=hadamard:slice=both:pd=on", 2, 2},
    {"tpla:g=2:u=hadamard:slice=both:pd=on", 1, 2},
    {"tpla:g=4:u=pca:slice=softmax:pd=on", 2, 4},
    {"tpla:g=2:u=id:slice=both:pd=off", 4, 2},
    {"tpla:g=2:u=hadamard:slice=none", 2, 4},
};
static const hand_case gqa_cases[] = {{"gqa", 1, 1}, {"gqa", 2, 2}, {"gqa", 1, 4}, {"gqa", 4, 2}, {"gqa", 2, 4}};

static void fill_in(rig *r, const int32_t *tokens, int n)
{
    batch_row rows[N_TOK];
    int seq = session_add_seq(r->s);
    cr_assert_eq(seq, 0);
    for (int i = 0; i < n; i++)
        rows[i] = (batch_row){seq, tokens[i], ROW_CHAIN, i == n - 1};
    rig_forward(r, PHASE_PREFILL, rows, n);
}

/* Element of a rank's cache as a number. */
static double cached(const session *s, int rank, int seq, int layer, int64_t local_tok, int64_t col)
{
    const kv_view *v = &s->ranks[rank].views[KV_MAIN];
    const page_pool *pool = &s->pools[KV_MAIN];
    int64_t page = pool->table[seq * pool->max_pages + local_tok / PAGE_TOK];
    int64_t at = (page * PAGE_TOK + local_tok % PAGE_TOK) * v->width + col;
    const char *base = (const char *)v->pages + s->ranks[rank].layer_bytes[KV_MAIN] * layer;
    return v->dtype == DT_F32 ? (double)((const float *)(const void *)base)[at]
                              : (double)bf16_to_f32(((const bf16 *)(const void *)base)[at]);
}

/* Largest difference of two sequences' caches on all ranks, over the largest value. */
static double cache_distance(const session *a, int a_seq, const session *b, int b_seq)
{
    double most = 0, scale = 0;
    for (int r = 0; r < a->n_ranks; r++) {
        const kv_view *v = &a->ranks[r].views[KV_MAIN];
        int64_t kept = (N_TOK - v->rem + v->mod - 1) / v->mod;
        for (int layer = 0; layer < team_plan(a->t, r)->cfg.n_layers; layer++)
            for (int64_t t = 0; t < kept; t++)
                for (int64_t c = 0; c < v->width; c++) {
                    double x = cached(a, r, a_seq, layer, t, c), y = cached(b, r, b_seq, layer, t, c);
                    most = fmax(most, isnan(x - y) ? INFINITY : fabs(x - y));
                    scale = fmax(scale, fabs(y));
                }
    }
    return most / scale;
}

static void decode(rig *r, int seq, const int32_t *tokens, float *logits)
{
    int vocab = team_plan(r->team, 0)->cfg.vocab;
    for (int i = 0; i < N_DECODE; i++) {
        batch_row row = {seq, tokens[i], ROW_CHAIN, true};
        rig_forward(r, PHASE_DECODE, &row, 1);
        memcpy(logits + i * vocab, session_logits(r->s, 0), sizeof(float) * (size_t)vocab);
    }
}

static void check_case(const fixture *f, const hand_case *c, tpl_dtype kv)
{
    int32_t tokens[N_TOK + N_DECODE];
    size_t n = (size_t)N_DECODE * (size_t)f->cfg.vocab;
    float *got = malloc(sizeof *got * n), *want = malloc(sizeof *want * n);
    rig from, to;
    handoff *h;
    tpl_err e = {0};
    rig_tokens(tokens, N_TOK + N_DECODE, f->cfg.vocab, 5);
    rig_open(&from, f, c->variant, &(team_options){.tp = c->from, .kv = kv}, NULL);
    rig_open(&to, f, c->variant, &(team_options){.tp = c->to, .kv = kv, .isolate = true}, NULL);
    fill_in(&from, tokens, N_TOK);
    fill_in(&to, tokens, N_TOK); /* the decode team's own, sequence 0 */
    int seq = session_add_seq(to.s);
    cr_assert(handoff_open(from.s, to.s, &h, &e) == TPL_OK, "%s %d:%d: %s", c->variant, c->from, c->to, e.what);
    for (int twice = 0; twice < 2; twice++)
        cr_assert(handoff_run(h, 0, seq, &e) == TPL_OK, "%s %d:%d: %s", c->variant, c->from, c->to, e.what);
    cr_expect_eq(session_len(to.s, seq), N_TOK);
    /* What is stored is what is moved: every decode rank's values once. */
    double stored = 0;
    for (int r = 0; r < c->to; r++) {
        const plan_stream *s = &team_plan(to.team, r)->streams[KV_MAIN];
        stored +=
            (double)((N_TOK - s->rem + s->mod - 1) / s->mod) * s->width * (double)dtype_bytes(kv) * f->cfg.n_layers;
    }
    cr_expect(handoff_bytes(h, N_TOK) == stored, "%s %d:%d: %g bytes, expected %g", c->variant, c->from, c->to,
              handoff_bytes(h, N_TOK), stored);
    double off = cache_distance(to.s, seq, to.s, 0), most = c->from == c->to ? 0 : kv == DT_F32 ? 2e-5 : 0.02;
    cr_expect(off <= most, "%s %d:%d: caches differ by %g of their largest value, expected %g", c->variant, c->from,
              c->to, off, most);
    decode(&to, seq, tokens + N_TOK, got);
    decode(&to, 0, tokens + N_TOK, want);
    double scale = 0, distance = rig_distance(got, want, n);
    for (size_t i = 0; i < n; i++)
        scale = fmax(scale, fabs((double)want[i]));
    cr_expect(distance <= most * scale * 5, "%s %d:%d: logits differ by %g of %g", c->variant, c->from, c->to, distance,
              scale);
    handoff_close(h);
    rig_close(&from);
    rig_close(&to);
    free(got);
    free(want);
}

static model_config small(bool gqa)
{
    model_config c = gqa ? ckpt_small_gqa() : ckpt_small_mla();
    c.n_heads = 8;
    c.n_kv_heads = gqa ? 4 : 8;
    c.max_pos = CONTEXT;
    return c;
}

Test(handoff, latent_caches_arrive_where_the_decode_team_keeps_them, .timeout = 120)
{
    model_config c = small(false);
    fixture f;
    fixture_open(&f, &c, DT_F32, 3);
    for (size_t i = 0; i < sizeof latent_cases / sizeof *latent_cases; i++)
        check_case(&f, &latent_cases[i], i % 3 == 2 ? DT_BF16 : DT_F32);
    fixture_close(&f);
}

Test(handoff, heads_are_split_anew, .timeout = 120)
{
    model_config c = small(true);
    fixture f;
    fixture_open(&f, &c, DT_F32, 4);
    for (size_t i = 0; i < sizeof gqa_cases / sizeof *gqa_cases; i++)
        check_case(&f, &gqa_cases[i], i % 3 == 2 ? DT_BF16 : DT_F32);
    fixture_close(&f);
}

/* Worked by hand: of slots 0 .. 9, from ranks that keep s mod 2 to ranks that keep s mod 3. */
Test(handoff, slots_of_a_part)
{
    int64_t first, step;
    handoff_part p = {.from_mod = 2, .from_rem = 1, .to_mod = 3, .to_rem = 2};
    cr_expect_eq(handoff_part_slots(&p, 10, &first, &step), 1);
    cr_expect(first == 5 && step == 6);
    cr_expect_eq(handoff_part_slots(&p, 12, &first, &step), 2);
    cr_expect_eq(handoff_part_slots(&p, 5, &first, &step), 0);
    cr_expect_eq(first, -1);
    p = (handoff_part){.from_mod = 4, .from_rem = 1, .to_mod = 2, .to_rem = 0};
    cr_expect_eq(handoff_part_slots(&p, 100, &first, &step), 0); /* odd slots are never even */
    p = (handoff_part){.from_mod = 1, .from_rem = 0, .to_mod = 1, .to_rem = 0};
    cr_expect_eq(handoff_part_slots(&p, 7, &first, &step), 7);
    cr_expect(first == 0 && step == 1);
}

Test(handoff, teams_that_differ_are_refused, .timeout = 60)
{
    model_config c = small(false);
    fixture f;
    rig a, b;
    handoff *h;
    tpl_err e = {0};
    fixture_open(&f, &c, DT_F32, 3);
    rig_open(&a, &f, "mla", &(team_options){.tp = 2}, NULL);
    rig_open(&b, &f, "mla-dcp", &(team_options){.tp = 2}, NULL);
    cr_expect(handoff_open(a.s, b.s, &h, &e) == TPL_E_USAGE && strstr(e.what, "variants"), "%s", e.what);
    rig_close(&b);
    rig_open(&b, &f, "mla", &(team_options){.tp = 2, .kv = DT_BF16}, NULL);
    cr_expect(handoff_open(a.s, b.s, &h, &e) == TPL_E_USAGE && strstr(e.what, "cache types"), "%s", e.what);
    rig_close(&b);
    rig_close(&a);
    fixture_close(&f);
}

Test(handoff, a_cache_that_is_too_small_says_so, .timeout = 60)
{
    model_config c = small(false);
    fixture f;
    rig a, b;
    handoff *h;
    tpl_err e = {0};
    int32_t tokens[N_TOK];
    fixture_open(&f, &c, DT_F32, 3);
    rig_tokens(tokens, N_TOK, c.vocab, 5);
    rig_open(&a, &f, "mla", &(team_options){.tp = 1}, NULL);
    rig_open(&b, &f, "mla", &(team_options){.tp = 2},
             &(session_options){.max_seqs = 2, .max_tok = 128, .max_rows = 8, .max_logits = 1});
    fill_in(&a, tokens, N_TOK);
    int seq = session_add_seq(b.s);
    cr_assert(handoff_open(a.s, b.s, &h, &e) == TPL_OK);
    cr_expect(handoff_run(h, 0, seq, &e) == TPL_E_INPUT && strstr(e.what, "203 tokens"), "%s", e.what);
    handoff_close(h);
    rig_close(&b);
    rig_close(&a);
    fixture_close(&f);
}
