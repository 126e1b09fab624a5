/* Speculation on tiny random models: the text of every method is the base's own; sampling is the base's in
 * distribution, and two wrong rules are not; limits and ends inside a run. */
#include "engine/speculate.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <criterion/criterion.h>
#include <criterion/parameterized.h>

#include "base/clock.h"
#include "engine/sampler.h"
#include "tests/support/checkpoint.h"
#include "tests/support/side.h"

/* TPLABENCH_FULL=1 runs the full counts (tests/engine/speculate_full.sh); else what suits every build. */
static bool full(void)
{
    const char *v = getenv("TPLABENCH_FULL");
    return v && strcmp(v, "1") == 0;
}

/* TPLABENCH_PART=i/n: only each n-th sampling rule, from the i-th on. */
static bool in_part(int i)
{
    const char *v = getenv("TPLABENCH_PART");
    int first, step;
    return !v || sscanf(v, "%d/%d", &first, &step) != 2 || i % step == first % step;
}

static int n_draws(void)
{
#ifdef __SANITIZE_ADDRESS__
    int few = 2000;
#else
    int few = 20000;
#endif
    return full() ? 200000 : few;
}

enum { MAX_NEW = 40, PROMPT = 6 };

typedef struct {
    arena a;
    const char *base_dir, *draft_dir;
    side base, draft;
    spec_options o;
    speculator *s;
    spec_stats stats;
} duo;

/* Weights of variance 1 / cols give flat logits; a draft of the same seed but more layers agrees now and then. */
static const char *write_tiny(arena *a, bool mla, int vocab, int n_layers, uint64_t seed)
{
    model_config c = mla ? ckpt_small_mla() : ckpt_small_gqa();
    tpl_err e = {0};
    const char *dir = ckpt_temp_dir(a);
    c.vocab = vocab;
    c.dim = 16;
    c.ffn_dim = 16;
    c.n_layers = n_layers;
    c.max_pos = 128;
    c.weight_dtype = DT_F32;
    c.bos_id = c.eos_id = 0;
    cr_assert(ckpt_write(dir, &c, DT_F32, seed, 1, &e) == TPL_OK, "%s", e.what);
    return dir;
}

typedef struct {
    bool mla_base, mla_draft;
    int vocab, base_tp, draft_tp, max_tok, draft_tok; /* max_tok 0: 100 */
    const char *base_variant, *groups;
    plan_fuzzy how;
} duo_setup;

static void open_duo(duo *d, duo_setup u, spec_options o)
{
    tpl_err e = {0};
    *d = (duo){.o = o};
    arena_init(&d->a);
    d->base_dir = write_tiny(&d->a, u.mla_base, u.vocab, 2, 41);
    d->draft_dir = write_tiny(&d->a, u.mla_draft, u.vocab, 6, 41);
    d->base = side_open(d->base_dir, u.base_variant, u.base_tp ? u.base_tp : 1, NULL, (plan_fuzzy){0});
    d->draft = side_open(d->draft_dir, NULL, u.draft_tp ? u.draft_tp : 1, u.groups, u.how);
    side_add_session(&d->base, spec_base_session(&o, u.max_tok ? u.max_tok : 100));
    side_add_session(&d->draft, spec_draft_session(&o, u.draft_tok ? u.draft_tok : 100));
    cr_assert(spec_create(d->base.s, d->draft.s, &o, &d->s, &e) == TPL_OK, "%s: %s", e.where, e.what);
}

static void close_duo(duo *d)
{
    spec_destroy(d->s);
    side_close(&d->base);
    side_close(&d->draft);
    ckpt_remove_dir(d->base_dir);
    ckpt_remove_dir(d->draft_dir);
    arena_fini(&d->a);
}

static const int32_t prompts[3][PROMPT] = {{1, 5, 2, 0, 3, 4}, {6, 6, 1, 0, 2, 5}, {7, 3, 3, 1, 4, 2}};

static int generate_one(duo *d, int which, int max_new, int32_t stop, int32_t *out)
{
    tpl_err e = {0};
    spec_run r = {.prompt = prompts[which],
                  .n_prompt = PROMPT,
                  .max_new = max_new,
                  .stop_id = stop,
                  .out = out,
                  .stream = (uint64_t)which};
    cr_assert(spec_generate(d->s, &r, &d->stats, &e) == TPL_OK, "%s: %s", e.where, e.what);
    return r.n_out;
}

static void vanilla_texts(duo_setup u, int32_t out[3][MAX_NEW])
{
    duo d;
    u.groups = NULL;
    u.max_tok = u.draft_tok = 0;
    open_duo(&d, u, (spec_options){.method = SPEC_VANILLA});
    for (int p = 0; p < 3; p++)
        cr_assert_eq(generate_one(&d, p, MAX_NEW, -1, out[p]), MAX_NEW);
    close_duo(&d);
}

/* ---- greedy ---- */

typedef struct {
    const char *name;
    spec_method method;
    int width, depth, draft_tp;
    const char *groups;
    bool no_calibration, visit, whole_layers;
} way;

static const way ways[] = {
    {"sd", SPEC_SD, 1, 5, 1, NULL, false, false, false},
    {"sd_1", SPEC_SD, 1, 1, 2, NULL, false, false, false},
    {"tree_4", SPEC_TREE, 4, 3, 1, NULL, false, false, false},
    {"tree_2", SPEC_TREE, 2, 5, 2, NULL, false, false, false},
    {"tree_1_deep", SPEC_TREE, 3, 1, 1, NULL, false, false, false},
    {"easy_chain", SPEC_EASYSPEC, 1, 5, 2, "rule:4", false, false, false},
    {"easy_pack", SPEC_EASYSPEC, 3, 4, 3, "pack:4", false, false, false},
    {"easy_visit", SPEC_EASYSPEC, 3, 4, 2, "0/1-4/5", false, true, false},
    {"easy_raw", SPEC_EASYSPEC, 4, 5, 2, "pack:3", true, false, false},
    {"easy_raw_chain", SPEC_EASYSPEC, 1, 4, 2, "0-5", true, false, false},
    {"easy_layers", SPEC_EASYSPEC, 2, 3, 2, "pack:2", false, false, true},
};

static spec_options options_of(const way *w)
{
    return (spec_options){
        .method = w->method, .width = w->width, .depth = w->depth, .no_calibration = w->no_calibration, .seed = 17};
}

static duo_setup setup_of(const way *w, duo_setup u)
{
    u.draft_tp = w->draft_tp;
    u.groups = w->groups;
    u.how = (plan_fuzzy){.visit = w->visit, .whole_layers = w->whole_layers};
    return u;
}

/* The first of each kind of way, where all would take too long. */
static bool is_typical(size_t i)
{
    return full() || i == 0 || i == 2 || i == 6 || i == 8;
}

static void compare_ways(duo_setup u, bool all, const char *what)
{
    int32_t want[3][MAX_NEW], got[MAX_NEW];
    vanilla_texts(u, want);
    for (size_t i = 0; i < sizeof ways / sizeof *ways; i++) {
        duo d;
        if (!all && !is_typical(i))
            continue;
        open_duo(&d, setup_of(&ways[i], u), options_of(&ways[i]));
        for (int p = 0; p < 3; p++) {
            cr_assert_eq(generate_one(&d, p, MAX_NEW, -1, got), MAX_NEW);
            cr_expect(memcmp(got, want[p], sizeof got) == 0, "%s: %s, prompt %d", what, ways[i].name, p);
        }
        cr_expect_eq(d.stats.n_tok, 3 * MAX_NEW);
        cr_expect(d.stats.n_accepted > 0 && d.stats.n_accepted < d.stats.n_drafted, "%s: %s kept %d of %d", what,
                  ways[i].name, (int)d.stats.n_accepted, (int)d.stats.n_drafted);
        close_duo(&d);
    }
}

Test(speculate, greedy_text_is_the_bases_own)
{
    compare_ways((duo_setup){.vocab = 8}, true, "gqa for gqa");
    compare_ways((duo_setup){.vocab = 8, .base_tp = 2}, false, "gqa for gqa tp 2");
    compare_ways((duo_setup){.vocab = 8, .mla_base = true, .mla_draft = true, .base_tp = 2}, false, "mla for mla tp 2");
    compare_ways(
        (duo_setup){.vocab = 8, .mla_base = true, .base_tp = 2, .base_variant = "tpla:g=2:u=hadamard:slice=both"},
        false, "gqa for tpla");
    compare_ways((duo_setup){.vocab = 8, .mla_base = true, .base_tp = 2, .base_variant = "tpla:g=2:u=id:pd=on"}, false,
                 "gqa for tpla pd");
    compare_ways((duo_setup){.vocab = 8, .mla_base = true, .base_tp = 2, .base_variant = "mla-dcp"}, false,
                 "gqa for dcp");
}

/* ---- ends inside a run ---- */

Test(speculate, ends_where_vanilla_ends)
{
    int32_t want[3][MAX_NEW], got[MAX_NEW];
    duo_setup u = {.vocab = 8};
    vanilla_texts(u, want);
    for (size_t i = 0; i < sizeof ways / sizeof *ways; i++) {
        duo d;
        if (!is_typical(i))
            continue;
        open_duo(&d, setup_of(&ways[i], u), options_of(&ways[i]));
        for (int max_new = 1; max_new <= 8; max_new++) {
            cr_expect_eq(generate_one(&d, 0, max_new, -1, got), max_new);
            cr_expect(memcmp(got, want[0], (size_t)max_new * sizeof *got) == 0, "%s: %d tokens", ways[i].name, max_new);
        }
        for (int32_t stop = 0; stop < 8; stop++) {
            int end = 0, n = generate_one(&d, 1, MAX_NEW, stop, got);
            while (end < MAX_NEW && want[1][end] != stop)
                end++;
            cr_expect(n == end && memcmp(got, want[1], (size_t)n * sizeof *got) == 0,
                      "%s: stop at %d gives %d tokens, not %d", ways[i].name, stop, n, end);
        }
        close_duo(&d);
    }
}

/* Contexts so short that the tree, then even one level, no longer fits; or that the draft cannot follow to the end. */
Test(speculate, drafts_less_where_a_context_ends)
{
    int32_t want[3][MAX_NEW], got[MAX_NEW];
    vanilla_texts((duo_setup){.vocab = 8}, want);
    for (size_t i = 0; i < sizeof ways / sizeof *ways; i++) {
        static const int limits[][2] = {{PROMPT + MAX_NEW - 1, 100},
                                        {PROMPT + MAX_NEW, 100},
                                        {100, PROMPT + 12},
                                        {100, PROMPT - 2},
                                        {PROMPT + MAX_NEW - 1, PROMPT + 20}};
        for (size_t k = 0; is_typical(i) && k < sizeof limits / sizeof *limits; k++) {
            duo d;
            duo_setup u =
                setup_of(&ways[i], (duo_setup){.vocab = 8, .max_tok = limits[k][0], .draft_tok = limits[k][1]});
            open_duo(&d, u, options_of(&ways[i]));
            cr_assert_eq(generate_one(&d, 2, MAX_NEW, -1, got), MAX_NEW);
            cr_expect(memcmp(got, want[2], sizeof got) == 0, "%s, limits %d and %d", ways[i].name, limits[k][0],
                      limits[k][1]);
            close_duo(&d);
        }
    }
}

Test(speculate, says_when_the_context_is_full)
{
    duo d;
    int32_t out[MAX_NEW];
    tpl_err e = {0};
    open_duo(&d, (duo_setup){.vocab = 8, .max_tok = 20}, (spec_options){.method = SPEC_TREE, .width = 2, .depth = 3});
    spec_run r = {.prompt = prompts[0], .n_prompt = PROMPT, .max_new = MAX_NEW, .stop_id = -1, .out = out};
    cr_expect_eq(spec_generate(d.s, &r, &d.stats, &e), TPL_E_INPUT);
    cr_expect_str_eq(e.what, "of 20 tokens is full");
    cr_expect_eq(r.n_out, 20 - PROMPT + 1);
    cr_expect_eq(session_add_seq(d.base.s), 0, "the failed run left its sequence");
    close_duo(&d);
}

/* ---- refusals ---- */

Test(speculate, refuses_pairs_and_options_that_do_not_fit)
{
    duo d;
    speculator *s;
    tpl_err e = {0};
    open_duo(&d, (duo_setup){.vocab = 8}, (spec_options){.method = SPEC_TREE, .width = 2, .depth = 3});
    const char *other_dir = write_tiny(&d.a, false, 9, 2, 1);
    side other = side_open(other_dir, NULL, 1, NULL, (plan_fuzzy){0});
    side_add_session(&other, spec_draft_session(&d.o, 50));
    cr_expect_eq(spec_create(d.base.s, other.s, &d.o, &s, &e), TPL_E_INPUT);
    cr_expect(strstr(e.what, "vocabulary of 9 tokens, the base") && strstr(e.what, " 8"), "%s", e.what);
    cr_expect_eq(spec_create(d.base.s, NULL, &d.o, &s, &e), TPL_E_USAGE);
    spec_options o = d.o;
    o.method = SPEC_EASYSPEC;
    cr_expect_eq(spec_create(d.base.s, d.draft.s, &o, &s, &e), TPL_E_USAGE);
    cr_expect(strstr(e.what, "without layer groups"), "%s", e.what);
    o = d.o;
    o.depth = 0;
    cr_expect_eq(spec_create(d.base.s, d.draft.s, &o, &s, &e), TPL_E_USAGE);
    o.depth = SPEC_MAX_DEPTH + 1;
    cr_expect_eq(spec_create(d.base.s, d.draft.s, &o, &s, &e), TPL_E_USAGE);
    o = d.o;
    o.width = 9;
    cr_expect_eq(spec_create(d.base.s, d.draft.s, &o, &s, &e), TPL_E_USAGE);
    o.width = 4;
    cr_expect_eq(spec_create(d.base.s, d.draft.s, &o, &s, &e), TPL_E_USAGE, "the sessions are too small");
    side_close(&other);
    ckpt_remove_dir(other_dir);
    close_duo(&d);
}

/* The draft's folder with a changed tokenizer.json; NULL for one that should pass. */
static void check_tokenizer(const char *from, const char *to, const char *words)
{
    arena a;
    arena_init(&a);
    tpl_err e = {0};
    lab *base, *draft;
    char *data;
    size_t len;
    const char *root = SOURCE_ROOT "/models/worldlet-draft", *dir = ckpt_temp_dir(&a);
    static const char *const files[] = {"config.json", "model.safetensors", "tokenizer.json"};
    for (int i = 0; i < 3; i++) {
        cr_assert(text_read_file(text_path_join(&a, root, files[i]), &data, &len, &e) == TPL_OK);
        char *at = i == 2 ? strstr(data, from) : NULL;
        text_buf b = {0};
        cr_assert(i != 2 || at, "tokenizer.json has no %s", from);
        text_add(&b, data, at ? (size_t)(at - data) : len);
        if (at) {
            text_add(&b, to, strlen(to));
            text_add(&b, at + strlen(from), len - (size_t)(at - data) - strlen(from));
        }
        cr_assert(text_write_file(text_path_join(&a, dir, files[i]), b.data, b.len, &e) == TPL_OK);
        text_fini(&b);
        free(data);
    }
    cr_assert(lab_open(SOURCE_ROOT "/models/worldlet-gqa", &(lab_calibration){0}, &base, &e) == TPL_OK, "%s", e.what);
    cr_assert(lab_open(dir, &(lab_calibration){0}, &draft, &e) == TPL_OK, "%s", e.what);
    tpl_code rc = spec_check_pair(base, draft, &e);
    cr_expect_eq(rc, words ? TPL_E_INPUT : TPL_OK, "%s -> %s", from, to);
    cr_expect(!words || strstr(e.what, words), "%s", e.what);
    lab_close(draft);
    lab_close(base);
    ckpt_remove_dir(dir);
    arena_fini(&a);
}

Test(speculate, refuses_a_tokenizer_that_differs)
{
    check_tokenizer("\"truncation\": null", "\"truncation\": {\"max_length\": 9}", NULL);
    check_tokenizer("\"add_prefix_space\": false", "\"add_prefix_space\": true", "'pre_tokenizer' differs");
    check_tokenizer("the\": 259,\n      \"\u0120i\": 260", "the\": 260,\n      \"\u0120i\": 259",
                    "token 259 is '\u0120i', in the base '\u0120the'");
}

/* ---- equal drafts ---- */

typedef struct {
    int32_t text[3][MAX_NEW];
    spec_record record;
    spec_stats stats;
    double wall_s;
} trace;

static void run_traced(const way *w, spec_options o, trace *t)
{
    duo d;
    tpl_err e = {0};
    memset(t, 0, sizeof *t);
    open_duo(&d, setup_of(w, (duo_setup){.vocab = 8}), o);
    for (int p = 0; p < 3; p++) {
        spec_run r = {.prompt = prompts[p],
                      .n_prompt = PROMPT,
                      .max_new = MAX_NEW,
                      .stop_id = -1,
                      .out = t->text[p],
                      .stream = (uint64_t)p,
                      .record = &t->record};
        int64_t begin = clock_ns();
        cr_assert(spec_generate(d.s, &r, &d.stats, &e) == TPL_OK, "%s", e.what);
        t->wall_s += (double)(clock_ns() - begin) * 1e-9;
    }
    t->stats = d.stats;
    close_duo(&d);
}

static void expect_same(const trace *x, const trace *y, const char *what)
{
    cr_expect(memcmp(x->text, y->text, sizeof x->text) == 0, "%s: texts", what);
    cr_expect(x->record.n == y->record.n && memcmp(x->record.accepted, y->record.accepted, (size_t)x->record.n) == 0,
              "%s: accepted counts", what);
    cr_expect(x->stats.n_drafted == y->stats.n_drafted && x->stats.n_accepted == y->stats.n_accepted, "%s: sums", what);
}

/* N = 1: fuzzy lists of single layers give the ordinary draft's random tokens, draw for draw. */
Test(speculate, groups_of_one_draft_as_ever)
{
    for (int width = 1; width <= 3; width += 2) {
        for (int rule = 0; rule < 2; rule++) {
            trace plain, raw, calibrated;
            way w = {"", width == 1 ? SPEC_SD : SPEC_TREE, width, 4, 1, NULL, false, false, false};
            spec_options o = {.width = width,
                              .depth = 4,
                              .temperature = 0.8f,
                              .top_p = 0.95f,
                              .children = (tree_children)rule,
                              .seed = 4,
                              .method = w.method};
            run_traced(&w, o, &plain);
            w.groups = "rule:1";
            w.draft_tp = 2;
            o.method = SPEC_EASYSPEC;
            run_traced(&w, o, &calibrated);
            o.no_calibration = true;
            run_traced(&w, o, &raw);
            expect_same(&plain, &raw, "without calibration");
            expect_same(&plain, &calibrated, "with calibration");
            spec_record_free(&plain.record);
            spec_record_free(&raw.record);
            spec_record_free(&calibrated.record);
        }
    }
}

/* What a run recorded, replayed: the same iterations, whatever the texts. */
Test(speculate, replays_a_record)
{
    trace t;
    way w = {"", SPEC_EASYSPEC, 3, 4, 2, "pack:4", false, false, false};
    spec_options o = options_of(&w);
    run_traced(&w, o, &t);
    duo d;
    tpl_err e = {0};
    int32_t out[MAX_NEW];
    spec_record again = {0};
    open_duo(&d, setup_of(&w, (duo_setup){.vocab = 8}), o);
    int at = 0;
    for (int p = 0; p < 3; p++) {
        spec_record part = {t.record.accepted + at, t.record.n - at, 0};
        spec_run r = {.prompt = prompts[2 - p],
                      .n_prompt = PROMPT,
                      .max_new = MAX_NEW,
                      .stop_id = -1,
                      .out = out,
                      .replay = &part,
                      .record = &again};
        cr_assert(spec_generate(d.s, &r, &d.stats, &e) == TPL_OK, "%s", e.what);
        at = again.n;
    }
    cr_expect_eq(again.n, t.record.n);
    cr_expect(memcmp(again.accepted, t.record.accepted, (size_t)again.n) == 0);
    cr_expect_eq(d.stats.n_accepted, t.stats.n_accepted);
    spec_record_free(&again);
    spec_record_free(&t.record);
    close_duo(&d);
}

/* Assumed acceptance r a level: (1 - r^(n+1)) / (1 - r) tokens an iteration. r 0.5, n 3: 1.875; sd of one iteration
 * about 1. */
Test(speculate, assumes_an_acceptance_for_timing)
{
    duo d;
    int32_t out[90];
    spec_stats sum = {0};
    open_duo(&d, (duo_setup){.vocab = 8},
             (spec_options){.method = SPEC_SD, .depth = 3, .assume_accept = 0.5, .seed = 2});
    for (int i = 0; i < 60; i++) {
        tpl_err e = {0};
        spec_run r = {.prompt = prompts[i % 3],
                      .n_prompt = PROMPT,
                      .max_new = 90,
                      .stop_id = -1,
                      .out = out,
                      .stream = (uint64_t)i};
        cr_assert(spec_generate(d.s, &r, &sum, &e) == TPL_OK, "%s", e.what);
    }
    double mean = 1 + (double)sum.n_accepted / (double)sum.n_iterations;
    cr_expect_float_eq(mean, 1.875, 5 * 1.06 / sqrt((double)sum.n_iterations), "%g over %d iterations", mean,
                       (int)sum.n_iterations);
    close_duo(&d);
}

/* A tree keeps as many levels as were asked for, whatever its shape: all but the first of 12 iterations accept 3 of 3.
 */
Test(speculate, replays_through_the_depth_of_a_tree)
{
    enum { N = 12 };
    uint8_t counts[N];
    int32_t out[1 + 4 * N];
    duo d;
    tpl_err e = {0};
    memset(counts, 3, sizeof counts);
    counts[0] = 0;
    open_duo(&d, (duo_setup){.vocab = 8}, (spec_options){.method = SPEC_TREE, .depth = 3, .width = 2});
    spec_record all = {counts, N, 0};
    spec_run r = {.prompt = prompts[0],
                  .n_prompt = PROMPT,
                  .max_new = 1 + 1 + 4 * (N - 1),
                  .stop_id = -1,
                  .out = out,
                  .replay = &all};
    cr_assert(spec_generate(d.s, &r, &d.stats, &e) == TPL_OK, "%s", e.what);
    cr_expect_eq(d.stats.n_iterations, N);
    cr_expect_eq(d.stats.n_accepted, 3 * (N - 1), "%d accepted", (int)d.stats.n_accepted);
    close_duo(&d);
}

/* No path as likely as 2: only the first level is drafted. */
Test(speculate, stops_drafting_when_the_draft_is_unsure)
{
    trace t;
    way w = {"", SPEC_SD, 1, 5, 1, NULL, false, false, false};
    spec_options o = options_of(&w);
    o.stop_confidence = 2;
    run_traced(&w, o, &t);
    cr_expect_eq(t.stats.n_drafted, t.stats.n_iterations);
    cr_expect_eq(t.stats.n_draft_passes, t.stats.n_iterations);
    spec_record_free(&t.record);
    o.stop_confidence = 0.3f;
    run_traced(&w, o, &t);
    cr_expect(t.stats.n_drafted > t.stats.n_iterations && t.stats.n_drafted < 5 * t.stats.n_iterations, "%d of %d",
              (int)t.stats.n_drafted, (int)t.stats.n_iterations);
    spec_record_free(&t.record);
}

/* Wall-clock stages are counted once: an iteration's parts and the prefill make up the run. */
Test(speculate, counts_time_in_stages)
{
    trace t;
    way w = {"", SPEC_EASYSPEC, 2, 4, 1, "pack:4", false, false, false};
    run_traced(&w, options_of(&w), &t);
    const spec_stats *x = &t.stats;
    cr_expect(x->calibrate_s > 0 && x->verify_s > 0 && x->prefill_s > 0 && x->other_s > 0);
    cr_expect(x->draft_s > x->first_s && x->first_s == x->calibrate_s, "drafting takes %g s, its first passes %g s",
              x->draft_s, x->first_s);
    double stages = x->prefill_s + x->draft_s + x->verify_s + x->other_s;
    cr_expect(stages <= t.wall_s && stages > 0.9 * t.wall_s, "stages take %g s of %g s", stages, t.wall_s);
    spec_record_free(&t.record);
}

/* ---- rollback ---- */

/* Judges at random, and first looks at what earlier iterations left in both caches. */
typedef struct {
    duo *d;
    const spec_run *run;
    side base, draft; /* the same models, which never speculate */
    rng r;
    const char *name;
    int n_checked;
} random_judge;

static int64_t used_pages(const side *x)
{
    return session_kv_used_bytes(x->s, 0, KV_MAIN) /
           (session_kv_bytes(x->s, 0, KV_MAIN) / ((session_opts(x->s)->max_tok + 63) / 64));
}

/* Logits after a text, of a model that only ever saw it. */
static const float *plain_logits(side *x, const int32_t *text, int n)
{
    int seq = session_add_seq(x->s);
    side_run(x, seq, PHASE_PREFILL, text, n);
    session_drop_seq(x->s, seq);
    return session_logits(x->s, 0);
}

static void expect_close(const float *got, const float *want, int n, const random_judge *j, const char *what)
{
    for (int i = 0; i < n; i++)
        cr_assert(fabsf(got[i] - want[i]) < 2e-4f, "%s, iteration %d: %s of token %d is %g, not %g", j->name,
                  j->n_checked, what, i, got[i], want[i]);
}

static void check_caches(const random_judge *j, const accept_case *c)
{
    int32_t text[PROMPT + MAX_NEW];
    int n_text = PROMPT + j->run->n_out, drafted = 0, vocab = c->tree->vocab;
    float prob[8];
    memcpy(text, j->run->prompt, PROMPT * sizeof *text);
    memcpy(text + PROMPT, j->run->out, (size_t)j->run->n_out * sizeof *text);
    for (int i = 0; i < c->tree->n; i++)
        drafted += c->tree->nodes[i].dist >= 0;
    int base_len = n_text + c->tree->n, draft_len = n_text + drafted;
    cr_assert(session_len(j->d->base.s, 0) == base_len && session_len(j->d->draft.s, 0) == draft_len,
              "%s, iteration %d: lengths %d and %d, not %d and %d", j->name, j->n_checked, session_len(j->d->base.s, 0),
              session_len(j->d->draft.s, 0), base_len, draft_len);
    cr_assert_eq((int)used_pages(&j->d->base), (base_len + 63) / 64);
    cr_assert_eq((int)used_pages(&j->d->draft), (draft_len + 63) / 64);
    expect_close(c->logits, plain_logits((side *)&j->base, text, n_text), vocab, j, "the base's logit");
    if (j->d->o.no_calibration)
        return;
    sampler_probabilities(plain_logits((side *)&j->draft, text, n_text), vocab, 1, 1, prob, NULL);
    expect_close(tree_dist(c->tree, -1), prob, vocab, j, "the draft's probability");
}

static void judge_at_random(void *user, accept_case *c, rng *r, accept_result *out)
{
    random_judge *j = user;
    check_caches(j, c);
    j->n_checked++;
    int node = -1, child;
    out->n = 0;
    while ((child = tree_next_child(c->tree, node, -1)) >= 0 && rng_below(&j->r, 4) > 0) {
        for (int other = child; (other = tree_next_child(c->tree, node, other)) >= 0;)
            child = rng_below(&j->r, 2) ? other : child;
        out->path[out->n++] = node = child;
    }
    out->exhausted = child < 0;
    out->bonus = (int32_t)rng_below(&j->r, (uint64_t)c->tree->vocab);
}

/* Whatever is accepted: lengths and pages in both caches are exact, and the next pass sees what a sequence sees that
 * never speculated. */
Test(speculate, random_acceptance_leaves_exact_caches, .timeout = 120)
{
    for (size_t i = 0; i < sizeof ways / sizeof *ways; i++) {
        duo d;
        tpl_err e = {0};
        int32_t out[MAX_NEW];
        spec_options o = options_of(&ways[i]);
        random_judge j = {.d = &d, .r = rng_make(91, i), .name = ways[i].name};
        o.temperature = 1;
        o.accept = judge_at_random;
        o.accept_user = &j;
        open_duo(&d, setup_of(&ways[i], (duo_setup){.vocab = 8}), o);
        j.base = side_open(d.base_dir, NULL, 1, NULL, (plan_fuzzy){0});
        j.draft = side_open(d.draft_dir, NULL, 1, NULL, (plan_fuzzy){0});
        side_add_session(&j.base, (session_options){.max_seqs = 1, .max_tok = 100, .max_rows = 100, .max_logits = 1});
        side_add_session(&j.draft, (session_options){.max_seqs = 1, .max_tok = 100, .max_rows = 100, .max_logits = 1});
        for (int p = 0; p < 3; p++) {
            spec_run r = {.prompt = prompts[p],
                          .n_prompt = PROMPT,
                          .max_new = MAX_NEW,
                          .stop_id = -1,
                          .out = out,
                          .stream = (uint64_t)p};
            j.run = &r;
            cr_assert(spec_generate(d.s, &r, &d.stats, &e) == TPL_OK, "%s", e.what);
            cr_expect_eq(session_kv_used_bytes(d.base.s, 0, KV_MAIN), 0);
            cr_expect_eq(session_kv_used_bytes(d.draft.s, 0, KV_MAIN), 0);
        }
        cr_expect_gt(j.n_checked, 3 * 5, "%s: %d iterations", ways[i].name, j.n_checked);
        side_close(&j.base);
        side_close(&j.draft);
        close_duo(&d);
    }
}

/* ---- sampling ---- */

enum { V = 6, CELLS = V * V * V };

/* The base's own joint distribution of three tokens after a prompt. */
static void joint_of_base(duo *d, float temperature, float top_p, double joint[CELLS])
{
    float prob[V];
    int32_t order[V], text[PROMPT + 2];
    memcpy(text, prompts[0], sizeof prompts[0]);
    double p[3][V];
    for (int i = 0; i < V * V; i++) {
        int seq = session_add_seq(d->base.s);
        text[PROMPT] = i / V;
        text[PROMPT + 1] = i % V;
        side_run(&d->base, seq, PHASE_PREFILL, text, PROMPT);
        for (int k = 0; k < 3; k++) {
            sampler_probabilities(session_logits(d->base.s, 0), V, temperature, top_p, prob, order);
            for (int v = 0; v < V; v++)
                p[k][v] = prob[v];
            if (k < 2)
                side_run(&d->base, seq, PHASE_DECODE, text + PROMPT + k, 1);
        }
        for (int v = 0; v < V; v++)
            joint[i * V + v] = p[0][i / V] * p[1][i % V] * p[2][v];
        session_drop_seq(d->base.s, seq);
    }
}

/* Upper tail of chi-square, by Wilson and Hilferty's cube root (within 1% of the tail at 100 and more degrees). */
static double chi2_tail(double chi2, int df)
{
    double c = 2.0 / (9.0 * df), z = (cbrt(chi2 / df) - (1 - c)) / sqrt(c);
    return 0.5 * erfc(z / sqrt(2));
}

/* p-value of n_draws() runs of three tokens against the base's joint distribution; cells below 5 expected draws are
 * pooled. */
typedef struct {
    double chi2, p;
    int df;
} fit;

static fit sampling_fit(duo_setup u, spec_options o)
{
    int64_t *seen = tpl_calloc(CELLS, sizeof *seen), impossible = 0;
    int draws = n_draws();
    double joint[CELLS], chi2 = 0, pooled = 0, pooled_seen = 0;
    int df = -1;
    duo d;
    u.vocab = V;
    open_duo(&d, u, o);
    int32_t out[3];
    joint_of_base(&d, o.temperature, o.top_p > 0 ? o.top_p : 1, joint);
    for (int i = 0; i < draws; i++) {
        tpl_err e = {0};
        spec_run r = {
            .prompt = prompts[0], .n_prompt = PROMPT, .max_new = 3, .stop_id = -1, .out = out, .stream = (uint64_t)i};
        cr_assert(spec_generate(d.s, &r, &d.stats, &e) == TPL_OK, "%s", e.what);
        seen[(out[0] * V + out[1]) * V + out[2]]++;
    }
    for (int i = 0; i < CELLS; i++) {
        double want = joint[i] * draws;
        impossible += joint[i] == 0 ? seen[i] : 0;
        if (want < 5) {
            pooled += want;
            pooled_seen += (double)seen[i];
            continue;
        }
        chi2 += ((double)seen[i] - want) * ((double)seen[i] - want) / want;
        df++;
    }
    if (pooled >= 5) {
        chi2 += (pooled_seen - pooled) * (pooled_seen - pooled) / pooled;
        df++;
    }
    cr_expect_eq(impossible, 0, "tokens outside the nucleus came out");
    close_duo(&d);
    free(seen);
    return (fit){chi2, chi2_tail(chi2, df), df};
}

typedef struct {
    const char *name, *groups;
    int width;
    tree_children rule;
    float top_p, stop;
    int mla_draft;
} sampling_case;

static const sampling_case samplings[] = {
    {"chain", NULL, 1, CHILDREN_SAMPLED, 1, 0, 0},
    {"chain, likeliest token", NULL, 1, CHILDREN_TOPK, 1, 0, 0},
    {"tree, sampled", NULL, 3, CHILDREN_SAMPLED, 1, 0, 0},
    {"tree, top-k", NULL, 3, CHILDREN_TOPK, 1, 0, 0},
    {"fuzzy chain", "pack:4", 1, CHILDREN_SAMPLED, 1, 0, 0},
    {"fuzzy tree, sampled", "pack:4", 3, CHILDREN_SAMPLED, 1, 0, 0},
    {"fuzzy tree, top-k", "pack:4", 3, CHILDREN_TOPK, 1, 0, 0},
    {"fuzzy tree, sampled, top-p", "pack:4", 3, CHILDREN_SAMPLED, 0.8f, 0, 0},
    {"tree, sampled, early stop", NULL, 3, CHILDREN_SAMPLED, 1, 0.25f, 0},
    {"fuzzy mla tree, sampled", "pack:4", 2, CHILDREN_SAMPLED, 1, 0, 1},
};

enum { N_SAMPLINGS = sizeof samplings / sizeof *samplings };

static spec_options sampling_options(const sampling_case *c)
{
    spec_method m = c->groups ? SPEC_EASYSPEC : c->width == 1 ? SPEC_SD : SPEC_TREE;
    return (spec_options){.method = m,
                          .width = c->width,
                          .depth = 3,
                          .temperature = 0.8f,
                          .top_p = c->top_p,
                          .children = c->rule,
                          .stop_confidence = c->stop,
                          .seed = 1234};
}

/* A number of samplings[], as parameters hold no pointers. */
ParameterizedTestParameters(speculate, sampled_text_is_distributed_as_the_bases)
{
    static int which[N_SAMPLINGS];
    for (int i = 0; i < N_SAMPLINGS; i++)
        which[i] = i;
    return cr_make_param_array(int, which, N_SAMPLINGS);
}

ParameterizedTest(int *which, speculate, sampled_text_is_distributed_as_the_bases, .timeout = 3600)
{
    const sampling_case *c = &samplings[*which];
    if (!in_part(*which))
        cr_skip_test("in another part");
    duo_setup u = {.groups = c->groups, .mla_draft = c->mla_draft != 0};
    fit f = sampling_fit(u, sampling_options(c));
    printf("# %s: p = %.3f over %d draws, chi-square %.1f of %d\n", c->name, f.p, n_draws(), f.chi2, f.df);
    cr_expect(f.p > 1e-3, "%s: p = %g", c->name, f.p);
}

/* ---- the same test must fail for wrong rules ---- */

/* min(1, p / q) on children that are the draft's likeliest tokens, not draws. */
static void ratio_on_topk(void *user, accept_case *c, rng *r, accept_result *out)
{
    int node = -1, child;
    for (out->n = 0;; out->path[out->n++] = node = child) {
        accept_load(c, node);
        out->exhausted = tree_next_child(c->tree, node, -1) < 0;
        child = accept_child(c, node, CHILDREN_SAMPLED, r);
        if (child < 0)
            break;
    }
    out->bonus = accept_draw(c->p, c->tree->vocab, r);
}

/* A chain whose bonus token after a rejection comes from the residual of the last accepted position. */
static void residual_one_early(void *user, accept_case *c, rng *r, accept_result *out)
{
    accept_exact(NULL, c, r, out);
    if (out->exhausted || out->n == 0)
        return;
    int before = out->n > 1 ? out->path[out->n - 2] : -1;
    const float *q = tree_dist(c->tree, before);
    double left = 0;
    accept_load(c, before);
    for (int v = 0; v < c->tree->vocab; v++) {
        c->p[v] = c->p[v] > q[v] ? c->p[v] - q[v] : 0;
        left += c->p[v];
    }
    if (left > 0)
        out->bonus = accept_draw(c->p, c->tree->vocab, r);
}

Test(speculate, wrong_rules_fail_the_same_test, .timeout = 3600)
{
    static const struct {
        const char *name;
        int width;
        tree_children rule;
        accept_fn accept;
    } wrong[] = {{"ratio on top-k, chain", 1, CHILDREN_TOPK, ratio_on_topk},
                 {"ratio on top-k, tree", 3, CHILDREN_TOPK, ratio_on_topk},
                 {"residual one early", 1, CHILDREN_SAMPLED, residual_one_early}};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        sampling_case c = {wrong[i].name, NULL, wrong[i].width, wrong[i].rule, 1, 0, 0};
        if (!in_part((int)(N_SAMPLINGS + i)))
            continue;
        spec_options o = sampling_options(&c);
        o.accept = wrong[i].accept;
        fit f = sampling_fit((duo_setup){0}, o);
        printf("# %s: p = %.3g over %d draws, chi-square %.1f of %d\n", c.name, f.p, n_draws(), f.chi2, f.df);
        cr_expect(f.p < 1e-6, "%s passes: p = %g", c.name, f.p);
    }
}
