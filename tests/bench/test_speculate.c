/* What the speculation bench computes: bounds, expectations, intervals, replay files; and rows of a short run. */
#include "bench/spec_auto.h"
#include "bench/spec_card.h"
#include "bench/spec_cosine.h"
#include "bench/spec_profile.h"
#include "bench/spec_trace.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <criterion/criterion.h>

#include "results/csv_table.h"

/* The bounds that follow from EasySpec's figures: 32 layers in 10 attention stages, n 5, attention shares of 0.19 to
 * 0.7 (gains of the drafting stage worked out apart, to two digits). */
Test(speculate_bench, bounds_the_gain_of_drafting)
{
    static const double share[] = {0.19, 0.3, 0.5, 0.7}, gain[] = {1.12, 1.20, 1.38, 1.63};
    layer_groups g;
    cr_assert(groups_parse("rule:4", 32, &g, NULL) == TPL_OK);
    for (int i = 0; i < 4; i++)
        cr_expect_float_eq(spec_gain_bound(&g, 8, share[i], 5), gain[i], 0.006, "A %g", share[i]);
    cr_expect_float_eq(spec_gain_bound(&g, 1, 0.7, 5), 1, 1e-12, "one rank gains nothing");
    cr_expect_float_eq(spec_gain_bound(&g, 8, 0.7, 1), 1, 1e-12, "one level is exact");
}

/* By hand: keep 0.8, 0.5, 0.5; width 2. n 2: 1 + 0.8 + 0.4 tokens in 1 + 0.5 + 2 + 4 * 0.1 + 0.1 s. */
/* Groups of 1, 3 and 1 layers whose attention takes 1 .. 5 s. Two devices, layer i of a group on device i mod 2: of 2, 3
 * and 4 the first takes 2 + 4, so that 3 are saved; in blocks 2 + 3 and 4: 4 are. Three devices save all but the 4. */
Test(speculate_bench, models_devices_from_times_of_one)
{
    layer_groups g = {3, {1, 3, 1}};
    double attention[GROUPS_MAX] = {1, 2, 3, 4, 5};
    int n;
    cr_expect_float_eq(spec_saved_by_devices(&g, 2, false, attention, &n), 3, 1e-12);
    cr_expect_eq(n, 1);
    cr_expect_float_eq(spec_saved_by_devices(&g, 2, true, attention, &n), 4, 1e-12);
    cr_expect_float_eq(spec_saved_by_devices(&g, 3, false, attention, &n), 5, 1e-12);
    cr_expect_float_eq(spec_saved_by_devices(&g, 1, false, attention, &n), 0, 1e-12);
    cr_expect_eq(n, 0);
    /* 10 for the first pass, then four of 20 - 3 + 2 exchanges of 0.5. */
    cr_expect_float_eq(spec_draft_on_devices(&(spec_draft_times){10, 20, 4, 0.5}, 3, 2), 82, 1e-12);
}

Test(speculate_bench, expects_tokens_by_the_cost_model)
{
    spec_trial t = {
        .first_s = 1, .level_s = 0.5, .verify_one_s = 2, .verify_row_s = 0.1, .rest_s = 0.1, .keep = {0.8, 0.5, 0.5}};
    cr_expect_float_eq(spec_expected_tok_per_s(&t, 2, 1), 1.8 / 3.3, 1e-12);
    cr_expect_float_eq(spec_expected_tok_per_s(&t, 2, 2), 2.2 / 4.0, 1e-12);
    cr_expect_float_eq(spec_expected_tok_per_s(&t, 2, 3), 2.4 / 4.7, 1e-12);
    cr_expect_eq(spec_best_depth(&t, 2, 3), 2);
    cr_expect_eq(spec_best_depth(&t, 2, 1), 1);
    t.level_s = 10;
    cr_expect_eq(spec_best_depth(&t, 2, 3), 1);
}

Test(speculate_bench, gives_a_rate_ratio_with_its_interval)
{
    static const double tokens[] = {10, 10, 10, 10}, slow[] = {4, 4, 4, 4}, fast[] = {1, 1, 3, 3};
    spec_ratio r = spec_ratio_of_rates((spec_times){tokens, fast}, (spec_times){tokens, slow}, 4, 1);
    cr_expect_float_eq(r.ratio, 2, 1e-12);
    /* Four draws of fast ones alone, and of slow ones alone, have a chance of 1/16 each, so that the interval reaches
     * both ends. */
    cr_expect_float_eq(r.lo, 4.0 / 3, 1e-9);
    cr_expect_float_eq(r.hi, 4, 1e-9);
    r = spec_ratio_of_rates((spec_times){tokens, fast}, (spec_times){tokens, slow}, 1, 1);
    cr_expect(r.ratio == 4 && isnan(r.lo) && isnan(r.hi));
}

/* ---- replay files ---- */

Test(speculate_bench, reads_back_what_it_records)
{
    arena a;
    tpl_err e = {0};
    spec_replay *r;
    char *text = NULL;
    size_t len = 0;
    arena_init(&a);
    FILE *f = open_memstream(&text, &len);
    uint8_t first[] = {5, 0, 2};
    cr_assert(spec_replay_write(f, "sd w1 n5 t0", 0, &(spec_record){first, 3, 0}, &e) == TPL_OK);
    cr_assert(spec_replay_write(f, "sd w1 n5 t0", 1, &(spec_record){first, 0, 0}, &e) == TPL_OK);
    fclose(f);
    cr_assert_str_eq(text, "{\"cell\": \"sd w1 n5 t0\", \"prompt\": 0, \"accepted\": [5, 0, 2]}\n"
                           "{\"cell\": \"sd w1 n5 t0\", \"prompt\": 1, \"accepted\": []}\n");
    cr_assert(spec_replay_parse(&a, text, len, "r.jsonl", &r, &e) == TPL_OK, "%s", e.what);
    const spec_record *got = spec_replay_find(r, "sd w1 n5 t0", 0);
    cr_assert(got && got->n == 3 && memcmp(got->accepted, first, 3) == 0);
    cr_expect_eq(spec_replay_find(r, "sd w1 n5 t0", 1)->n, 0);
    cr_expect_null(spec_replay_find(r, "sd w1 n5 t0", 2));
    cr_expect_null(spec_replay_find(r, "sd w1 n5 t0.8", 0));
    free(text);
    arena_fini(&a);
}

Test(speculate_bench, refuses_damaged_replay_files)
{
    static const struct {
        const char *text, *where, *what;
    } bad[] = {
        {"", "r.jsonl", "holds no runs"},
        {"\n\n", "r.jsonl", "holds no runs"},
        {"{\"cell\": \"a\", \"prompt\": 0, \"accepted\": [1]}\n{", "r.jsonl:2", ""},
        {"{\"prompt\": 0, \"accepted\": []}", "r.jsonl:1", "cell"},
        {"{\"cell\": \"a\", \"prompt\": -1, \"accepted\": []}", "r.jsonl:1", "prompt"},
        {"{\"cell\": \"a\", \"prompt\": 0, \"accepted\": 3}", "r.jsonl:1", "accepted"},
        {"{\"cell\": \"a\", \"prompt\": 0, \"accepted\": [1, 65]}", "r.jsonl:1",
         "number 2 is not a count from 0 to 64"},
        {"{\"cell\": \"a\", \"prompt\": 0, \"accepted\": [-1]}", "r.jsonl:1", "number 1"},
        {"{\"cell\": \"a\", \"prompt\": 0, \"accepted\": [\"x\"]}", "r.jsonl:1", "number 1"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        arena a;
        tpl_err e = {0};
        spec_replay *r;
        arena_init(&a);
        cr_expect_eq(spec_replay_parse(&a, bad[i].text, strlen(bad[i].text), "r.jsonl", &r, &e), TPL_E_INPUT,
                     "case %zu", i);
        cr_expect(strstr(e.where, bad[i].where) && strstr(e.what, bad[i].what), "case %zu: %s: %s", i, e.where, e.what);
        arena_fini(&a);
    }
}

/* ---- a short run ---- */

static const char *cell(const csv_table *t, int row, const char *column)
{
    return csv_table_text(t, row, column);
}

typedef struct {
    lab *base, *draft;
    arena a;
    char *dir;
    run_dir *rd;
    speculate_request q;
    spec_prompt prompts[2];
} short_run;

static void open_run(short_run *r, const char *label)
{
    static const spec_method methods[] = {SPEC_VANILLA, SPEC_SD, SPEC_TREE, SPEC_EASYSPEC};
    static const int64_t tps[] = {1}, widths[] = {3};
    static const double temperatures[] = {0};
    static char *groups[] = {"rule:4"};
    static int32_t text[2][12] = {{0, 1429, 271, 261, 1978, 279, 1986, 14, 199, 199, 274, 388},
                                  {0, 259, 591, 1002, 316, 1225, 300, 271, 221, 20, 22, 21}};
    tpl_err e = {0};
    *r = (short_run){0};
    arena_init(&r->a);
    r->dir = mkdtemp(arena_strdup(&r->a, "/tmp/tplabench-spec.XXXXXX"));
    cr_assert(lab_open(SOURCE_ROOT "/models/worldlet-gqa", &(lab_calibration){0}, &r->base, &e) == TPL_OK, "%s",
              e.what);
    cr_assert(lab_open(SOURCE_ROOT "/models/worldlet-draft", &(lab_calibration){0}, &r->draft, &e) == TPL_OK, "%s",
              e.what);
    rd_options o = {.root = r->dir, .label = label};
    cr_assert(rd_create(&o, &r->rd, &e) == TPL_OK, "%s", e.what);
    for (int i = 0; i < 2; i++)
        r->prompts[i] = (spec_prompt){text[i], 12};
    r->q = (speculate_request){.base = r->base,
                               .draft = r->draft,
                               .methods = methods,
                               .n_methods = 4,
                               .tps = tps,
                               .n_tps = 1,
                               .draft_tp = 2,
                               .temperatures = temperatures,
                               .n_temperatures = 1,
                               .groups = groups,
                               .n_groups = 1,
                               .widths = widths,
                               .n_widths = 1,
                               .depth = 3,
                               .calibrated = true,
                               .attention_only = true,
                               .prompts = r->prompts,
                               .n_prompts = 2,
                               .task = "test",
                               .max_new = 12,
                               .stop_id = -1,
                               .device = "here",
                               .command = "none"};
}

static csv_table *load_rows(const short_run *r)
{
    csv_table *t;
    tpl_err e = {0};
    arena a;
    arena_init(&a);
    cr_assert(csv_table_load(text_path_join(&a, rd_path(r->rd), "speculate.csv"), &t, &e) == TPL_OK, "%s", e.what);
    arena_fini(&a);
    return t;
}

static void close_run(short_run *r)
{
    char command[512];
    rd_close(r->rd);
    lab_close(r->base);
    lab_close(r->draft);
    snprintf(command, sizeof command, "rm -rf %.400s", r->dir);
    cr_expect_eq(system(command), 0);
    arena_fini(&r->a);
}

/* vanilla; sd and tree at draft tp 1 and 2; easyspec. Every text is vanilla's; replayed rows say so and keep the
 * counts. */
Test(speculate_bench, writes_a_row_a_cell_and_replays, .timeout = 280)
{
    static const char *const methods[] = {"vanilla", "sd", "sd", "tree", "tree", "easyspec"};
    short_run r;
    tpl_err e = {0};
    char *recorded = NULL;
    size_t len = 0;
    open_run(&r, "plain");
    r.q.record = open_memstream(&recorded, &len);
    cr_assert(speculate_bench_run(&r.q, r.rd, &e) == TPL_OK, "%s: %s", e.where, e.what);
    fclose(r.q.record);
    csv_table *t = load_rows(&r);
    cr_assert_eq(csv_table_n_rows(t), 6);
    for (int i = 0; i < 6; i++) {
        cr_expect_str_eq(cell(t, i, "method"), methods[i]);
        cr_expect_str_eq(cell(t, i, "status"), "ok");
        cr_expect_str_eq(cell(t, i, "n_tok"), "24");
        cr_expect_gt(atof(cell(t, i, "tok_per_s")), 0);
        cr_expect_str_eq(cell(t, i, "n_differ"), i ? "0" : "");
        cr_expect_str_eq(cell(t, i, "acceptance_source"), i ? "measured" : "");
    }
    cr_expect_str_eq(cell(t, 1, "accept_frac_of_n"), cell(t, 2, "accept_frac_of_n"));
    cr_expect_gt(atof(cell(t, 5, "draft_gain_bound")), 1);
    cr_expect_gt(atof(cell(t, 5, "draft_gain")), 0);

    short_run again;
    spec_replay *replay;
    open_run(&again, "replayed");
    cr_assert(spec_replay_parse(&again.a, recorded, len, "recorded", &replay, &e) == TPL_OK, "%s", e.what);
    again.q.replay = replay;
    cr_assert(speculate_bench_run(&again.q, again.rd, &e) == TPL_OK, "%s: %s", e.where, e.what);
    csv_table *u = load_rows(&again);
    for (int i = 1; i < 6; i++) {
        cr_expect_str_eq(cell(u, i, "acceptance_source"), "replayed");
        cr_expect_str_eq(cell(u, i, "accept_frac_of_n"), cell(t, i, "accept_frac_of_n"));
        cr_expect_str_eq(cell(u, i, "n_differ"), "");
        cr_expect_str_neq(cell(u, i, "cell_id"), cell(t, i, "cell_id"));
    }
    int rows = rd_n_rows(again.rd, RS_SPECULATE);
    cr_assert(speculate_bench_run(&again.q, again.rd, &e) == TPL_OK, "%s", e.what);
    cr_expect_eq(rd_n_rows(again.rd, RS_SPECULATE), rows, "finished cells were measured again");
    again.q.n_methods = 1;
    again.prompts[1].n = 10;
    cr_assert(speculate_bench_run(&again.q, again.rd, &e) == TPL_OK, "%s", e.what);
    cr_expect_eq(rd_n_rows(again.rd, RS_SPECULATE), rows + 1, "shorter prompts of the same file are other cells");
    csv_table_destroy(t);
    csv_table_destroy(u);
    free(recorded);
    close_run(&r);
    close_run(&again);
}

/* A pass of rank 1 begins where a step comes again or before the last one; between its fuzzy passes lies an exact one. */
static void add_fuzzy(spans *s, const plan *p, int rank, int64_t begin)
{
    const plan_list *l = &p->list[PHASE_FUZZY];
    for (int i = 0; i < l->n; i++)
        if (l->steps[i].active && strcmp(l->steps[i].name, "attn.gqa") == 0)
            spans_add(s, rank, (span){.step = &l->steps[i], .begin_ns = begin + 100 * l->steps[i].layer,
                                      .end_ns = begin + 100 * l->steps[i].layer + 80, .pass = rank});
}

/* rule:4 of 12 layers over two ranks: in each group rank 0 has layers 1, 3 | 4, 6 | 8, 10 and rank 1 layers 2 | 5, 7 | 9, at
 * 100 a layer, 80 long; rank 1 is 60 late the first time. */
Test(speculate_bench, pairs_the_passes_of_ranks_that_see_other_ones)
{
    short_run r;
    tpl_err e = {0};
    lab_run run;
    open_run(&r, "overlap");
    variant v = variant_exact(model_cfg(lab_model(r.draft)));
    team_options o = {.tp = 2};
    cr_assert(groups_parse("rule:4", 12, &o.plan.fuzzy.groups, &e) == TPL_OK);
    cr_assert(lab_run_open(r.draft, &v, &o, &run, &e) == TPL_OK, "%s", e.what);
    spans *s = spans_create(2, 100);
    add_fuzzy(s, team_plan(run.team, 0), 0, 1000);
    add_fuzzy(s, team_plan(run.team, 0), 0, 9000);
    add_fuzzy(s, team_plan(run.team, 1), 1, 1060);
    spans_add(s, 1, (span){.step = team_plan(run.team, 1)->list[PHASE_DECODE].steps, .begin_ns = 5000, .end_ns = 5100, .pass = 1});
    add_fuzzy(s, team_plan(run.team, 1), 1, 9000);
    /* First: layer 2 at 1260 to 1340 within 1100 to 1380: 80 of 80; 5 to 7 at 1560 to 1840 and 4 to 6 at 1400 to 1680: 120 of
     * 280; layer 9 at 1960 to 2040 within 1800 to 2080. Second: 80 of 80, 180 of 280, 80 of 80. */
    double want = (1 + 120.0 / 280 + 1 + 1 + 180.0 / 280 + 1) / 6;
    cr_expect_float_eq(spec_attention_overlap(s, run.team), want, 1e-9, "%g, not %g", spec_attention_overlap(s, run.team), want);
    spans_destroy(s);
    lab_run_close(&run);
    close_run(&r);
}

/* A cell that cannot run is a row with its reason, and the others run. */
Test(speculate_bench, says_what_cannot_run)
{
    static char *groups[] = {"0/1-4", "rule:2"};
    static const spec_method easy[] = {SPEC_VANILLA, SPEC_EASYSPEC};
    short_run r;
    tpl_err e = {0};
    open_run(&r, "bad");
    r.q.groups = groups;
    r.q.n_groups = 2;
    r.q.methods = easy;
    r.q.n_methods = 2;
    cr_assert(speculate_bench_run(&r.q, r.rd, &e) == TPL_OK, "%s: %s", e.where, e.what);
    csv_table *t = load_rows(&r);
    cr_assert_eq(csv_table_n_rows(t), 3);
    cr_expect_str_eq(cell(t, 1, "status"), "unsupported");
    cr_expect(strstr(cell(t, 1, "reason"), "ends at layer 4, the draft's last is 11"), "%s", cell(t, 1, "reason"));
    cr_expect_str_eq(cell(t, 2, "status"), "ok");
    csv_table_destroy(t);
    close_run(&r);
}

/* Groups of one are exact passes: every cosine is 1. Groups of four stray, but not in layer 0, nor in what layer 1
 * reads. */
Test(speculate_bench, measures_how_far_fuzzy_states_stray)
{
    static char *groups[] = {"rule:1", "pack:4"};
    short_run r;
    tpl_err e = {0};
    csv_table *t;
    open_run(&r, "cosine");
    r.q.groups = groups;
    r.q.n_groups = 2;
    cr_assert(spec_cosine_run(&r.q, r.rd, &e) == TPL_OK, "%s: %s", e.where, e.what);
    cr_assert(csv_table_load(text_path_join(&r.a, rd_path(r.rd), "accuracy.csv"), &t, &e) == TPL_OK, "%s", e.what);
    cr_assert_eq(csv_table_n_rows(t), 2 * 5 * 13, "five parts of twelve layers and of all");
    for (long i = 0; i < csv_table_n_rows(t); i++) {
        const char *subset = csv_table_text(t, i, "subset"), *metric = csv_table_text(t, i, "metric");
        double value = atof(csv_table_text(t, i, "value"));
        bool exact = !strcmp(csv_table_text(t, i, "variant"), "fuzzy:rule:1") || !strcmp(subset, "layer 0") ||
                     !strcmp(subset, "layer 1");
        if (exact)
            cr_expect_float_eq(value, 1, 1e-6, "row %ld: %s of %s is %g", i, metric, subset, value);
        else
            cr_expect(value > 0.2 && value < 1 - 1e-6, "row %ld: %s of %s is %g", i, metric, subset, value);
    }
    csv_table_destroy(t);
    close_run(&r);
}

Test(speculate_bench, chooses_by_trial, .timeout = 280)
{
    static char *groups[] = {"rule:1", "rule:4"};
    static const int64_t widths[] = {1, 3};
    spec_choice choices[SPEC_AUTO_MAX];
    short_run r;
    tpl_err e = {0};
    int n;
    double vanilla;
    open_run(&r, "auto");
    r.q.groups = groups;
    r.q.n_groups = 2;
    r.q.widths = widths;
    r.q.n_widths = 2;
    cr_assert(spec_auto_run(&r.q, 4, choices, &n, &vanilla, &e) == TPL_OK, "%s: %s", e.where, e.what);
    cr_expect(n == 4 && vanilla > 0);
    for (int i = 0; i < n; i++) {
        cr_expect(choices[i].depth >= 1 && choices[i].depth <= 4 && choices[i].tok_per_s > 0);
        cr_expect(i == 0 || choices[i - 1].tok_per_s >= choices[i].tok_per_s, "not best first");
        for (int k = 0; k < i; k++)
            cr_expect(choices[i].groups != choices[k].groups || choices[i].width != choices[k].width,
                      "a candidate twice");
    }
    close_run(&r);
}
