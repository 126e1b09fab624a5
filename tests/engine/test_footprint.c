/* Memory by plan against sessions that were made, and against sums by hand. */
#include "engine/footprint.h"

#include <stdio.h>
#include <stdlib.h>

#include <criterion/criterion.h>

#include "engine/lab.h"

static plan *make_plan(const char *shape, const char *variant_text, bool decode_only)
{
    model_config c;
    variant v;
    plan *p = NULL;
    char path[512];
    snprintf(path, sizeof path, "%s/models/shapes/%s.json", SOURCE_ROOT, shape);
    cr_assert(model_config_read(path, &c, NULL) == TPL_OK && variant_parse(variant_text, &v, NULL) == TPL_OK);
    plan_options o = {.attention_only = true, .decode_only = decode_only};
    cr_assert(plan_create(&c, &v, 2, 0, o, &p, NULL) == TPL_OK);
    return p;
}

static footprint of(const plan *p, int seqs, int tok)
{
    plan_types t = {.act = DT_F32, .kv = DT_BF16, .weight = DT_BF16, .folded = DT_BF16};
    session_options o = {.max_seqs = seqs, .max_tok = tok, .max_rows = seqs, .max_logits = seqs};
    footprint f;
    tpl_err e = {0};
    cr_assert(footprint_of(p, &o, "cpu", t, &f, &e) == TPL_OK, "%s: %s", e.where, e.what);
    return f;
}

/* DeepSeek-V3, one rank of two: 100 tokens are two pages of 64; 61 layers of (512 + 64) x 2 B, or (256 + 64) x 2 B. */
Test(footprint, caches_are_whole_pages)
{
    plan *mla = make_plan("deepseek-v3", "mla", true), *tpla = make_plan("deepseek-v3", "tpla:g=2:pd=on", true);
    cr_expect_eq(of(mla, 3, 100).cache, 3L * 128 * 61 * 1152);
    cr_expect_eq(of(tpla, 3, 100).cache, 3L * 128 * 61 * 640);
    cr_expect_eq(of(mla, 3, 100).weights, of(mla, 7, 1000).weights);
    plan_destroy(mla);
    plan_destroy(tpla);
}

/* A team that prefills exactly over slices holds the whole latent and the prefill's share of the weights too. */
Test(footprint, a_decode_team_holds_nothing_for_prefill)
{
    plan *both = make_plan("deepseek-v3", "tpla:g=2:pd=on", false),
         *decode = make_plan("deepseek-v3", "tpla:g=2:pd=on", true);
    footprint a = of(both, 2, 64), b = of(decode, 2, 64);
    cr_expect_eq(a.cache - b.cache, 2L * 64 * 61 * 1152);
    cr_expect_gt(a.weights, b.weights);
    plan_types t = {.act = DT_F32, .kv = DT_BF16, .weight = DT_BF16, .folded = DT_BF16};
    cr_expect_eq(b.weights, plan_weight_bytes(decode, PHASE_DECODE, t));
    cr_expect_eq(decode->list[PHASE_PREFILL].n, 0);
    plan_destroy(both);
    plan_destroy(decode);
}

/* What the plan says against what a session on a real model takes. */
Test(footprint, agrees_with_a_session)
{
    static const char *const names[] = {"mla", "mla-dcp", "tpla:g=2:u=id", "gla:g=2"};
    for (int i = 0; i < 4; i++) {
        lab *l = NULL;
        lab_run r;
        session *s = NULL;
        variant v;
        tpl_err e = {0};
        footprint f;
        session_options o = {.max_seqs = 3, .max_tok = 200, .max_rows = 32, .max_logits = 3};
        cr_assert(lab_open(SOURCE_ROOT "/models/worldlet-mla", &(lab_calibration){0}, &l, &e) == TPL_OK, "%s", e.what);
        cr_assert(variant_parse(names[i], &v, &e) == TPL_OK);
        cr_assert(lab_run_open(l, &v, &(team_options){.tp = 2}, &r, &e) == TPL_OK, "%s: %s", e.where, e.what);
        cr_assert(session_create(r.team, &o, &s, &e) == TPL_OK, "%s: %s", e.where, e.what);
        plan_types t = {.act = DT_F32, .kv = DT_F32};
        cr_assert(footprint_of(team_plan(r.team, 0), &o, "cpu", t, &f, &e) == TPL_OK);
        cr_expect_eq(f.cache, session_kv_bytes(s, 0, KV_MAIN) + session_kv_bytes(s, 0, KV_PREFILL), "%s", names[i]);
        session_destroy(s);
        lab_run_close(&r);
        lab_close(l);
    }
}

/* Stand-ins: the same values again for the same seed, lengths as asked for, and no more than the session's tokens. */
Test(footprint, sessions_assume_what_they_never_computed)
{
    lab *l = NULL;
    lab_run r;
    session *s = NULL;
    variant v;
    tpl_err e = {0};
    float first[2];
    session_options o = {.max_seqs = 2, .max_tok = 100, .max_rows = 4, .max_logits = 2};
    cr_assert(lab_open(SOURCE_ROOT "/models/worldlet-mla", &(lab_calibration){0}, &l, &e) == TPL_OK, "%s", e.what);
    cr_assert(variant_parse("mla", &v, &e) == TPL_OK);
    cr_assert(lab_run_open(l, &v, &(team_options){.tp = 2}, &r, &e) == TPL_OK, "%s: %s", e.where, e.what);
    cr_assert(session_create(r.team, &o, &s, &e) == TPL_OK);
    int seq = session_add_seq(s);
    for (int i = 0; i < 3; i++) {
        cr_assert(session_fill_random(s, i < 2 ? 1 : 2, &e) == TPL_OK);
        session_truncate(s, seq, 0);
        cr_assert(session_assume(s, seq, 90, &e) == TPL_OK && session_len(s, seq) == 90);
        cr_assert(session_forward(s, PHASE_DECODE, &(batch_row){seq, 5, ROW_CHAIN, true}, 1, &e) == TPL_OK);
        float now = session_logits(s, 0)[7];
        cr_expect(i == 0 || (now == first[0]) == (i == 1), "seed decides");
        first[i > 0] = now;
    }
    cr_expect(session_assume(s, seq, 101, &e) == TPL_E_INPUT && session_len(s, seq) == 91);
    float with = session_logits(s, 0)[7];
    for (int i = 0; i < 3; i++) { /* without collectives, without the other rank, with all again */
        session_truncate(s, seq, 90);
        cr_assert((i == 1 ? session_set_alone(s, &e) : session_set_silent(s, i == 0, &e)) == TPL_OK);
        cr_assert(session_forward(s, PHASE_DECODE, &(batch_row){seq, 5, ROW_CHAIN, true}, 1, &e) == TPL_OK);
        cr_expect((session_logits(s, 0)[7] == with) == (i == 2), "turn %d", i);
    }
    session_destroy(s);
    lab_run_close(&r);
    lab_close(l);
}
