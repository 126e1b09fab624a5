/* Speculation on a card against the host: the same greedy texts, by recorded passes and step by step, ranks on one card
 * and on two; and the likeliest tokens that a card finds. */
#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench/spec_trace.h"
#include "device/gpu.h"
#include "device/gpu_trace.h"
#include "engine/sampler.h"
#include "engine/speculate.h"
#include "kernels/card.h"
#include "tests/gpu/small.h"

enum { N_PROMPTS = 3, PROMPT = 60, NEW_TOK = 72, VOCAB = 2048 };

static void need_cards(int n)
{
    if (gpu_count() < n)
        cr_skip_test("%d CUDA cards are needed, %d are here", n, gpu_count());
}

static lab *open_lab(const char *name)
{
    char path[512];
    const char *home = getenv("TPLABENCH_HOME");
    lab *l;
    tpl_err e = {0};
    snprintf(path, sizeof path, "%s/models/%s", home && *home ? home : SOURCE_ROOT, name);
    cr_assert(lab_open(path, &(lab_calibration){0}, &l, &e) == TPL_OK, "%s: %s", e.where, e.what);
    return l;
}

/* ---- texts ---- */

typedef struct {
    spec_method method;
    int width, depth, base_tp, draft_tp;
    const char *groups;
    bool no_calibration, visit, blocks, whole_layers;
} way;

static const way ways[] = {
    {SPEC_VANILLA, 0, 0, 1, 0, NULL, false, false, false, false},
    {SPEC_VANILLA, 0, 0, 2, 0, NULL, false, false, false, false},
    {SPEC_SD, 1, 5, 1, 1, NULL, false, false, false, false},
    {SPEC_SD, 1, 5, 2, 2, NULL, false, false, false, false},
    {SPEC_TREE, 4, 5, 1, 1, NULL, false, false, false, false},
    {SPEC_TREE, 8, 4, 2, 2, NULL, false, false, false, false},
    {SPEC_TREE, 20, 3, 1, 1, NULL, false, false, false, false}, /* wider than what a card finds itself */
    {SPEC_EASYSPEC, 1, 5, 1, 1, "rule:4", false, false, false, false},
    {SPEC_EASYSPEC, 1, 5, 1, 2, "rule:4", false, false, false, false},
    {SPEC_EASYSPEC, 4, 5, 2, 2, "rule:4", false, false, false, false},
    {SPEC_EASYSPEC, 4, 5, 1, 2, "pack:3", true, false, true, false},
    {SPEC_EASYSPEC, 3, 4, 1, 2, "pack:4", false, true, false, false},
    {SPEC_EASYSPEC, 4, 4, 1, 2, "rule:2", false, false, false, true},
};

typedef struct {
    const char *backend;
    ranks_kind ranks;
    bool no_graph;
    joins_kind joins;
} place;

typedef struct {
    int32_t tokens[N_PROMPTS][NEW_TOK];
    spec_stats stats;
} texts;

static session *open_side(lab *l, const way *w, const place *where, int tp, bool draft, lab_run *run)
{
    variant v = variant_exact(model_cfg(lab_model(l)));
    team_options o = {.tp = tp,
                      .backend = where->backend,
                      .ranks = tp > 1 ? where->ranks : RANKS_LOCAL,
                      .no_graph = where->no_graph,
                      .joins = where->joins,
                      .compute = DT_F32};
    spec_options so = {.method = w->method, .width = w->width, .depth = w->depth};
    session_options need = draft ? spec_draft_session(&so, 300) : spec_base_session(&so, 300);
    session *s;
    tpl_err e = {0};
    if (draft && w->groups) {
        o.plan.fuzzy = (plan_fuzzy){.visit = w->visit, .blocks = w->blocks, .whole_layers = w->whole_layers};
        cr_assert(groups_parse(w->groups, model_cfg(lab_model(l))->n_layers, &o.plan.fuzzy.groups, &e) == TPL_OK);
    }
    cr_assert(lab_run_open(l, &v, &o, run, &e) == TPL_OK, "%s: %s", e.where, e.what);
    cr_assert(session_create(run->team, &need, &s, &e) == TPL_OK, "%s: %s", e.where, e.what);
    return s;
}

static int32_t token_at(int prompt, int i)
{
    return i == 0 ? 0 : 1 + (i * 37 + prompt * 211) % 1000;
}

static void write_texts(lab *base_lab, lab *draft_lab, const way *w, const place *where, texts *out)
{
    lab_run base_run, draft_run;
    bool drafts = w->method != SPEC_VANILLA;
    spec_options o = {.method = w->method, .width = w->width, .depth = w->depth, .no_calibration = w->no_calibration};
    speculator *s;
    tpl_err e = {0};
    session *base = open_side(base_lab, w, where, w->base_tp, false, &base_run),
            *draft = drafts ? open_side(draft_lab, w, where, w->draft_tp, true, &draft_run) : NULL;
    memset(&out->stats, 0, sizeof out->stats);
    cr_assert(spec_create(base, draft, &o, &s, &e) == TPL_OK, "%s: %s", e.where, e.what);
    for (int p = 0; p < (shapes_are_small() ? 1 : N_PROMPTS); p++) {
        int32_t prompt[PROMPT];
        for (int i = 0; i < PROMPT; i++)
            prompt[i] = token_at(p, i);
        spec_run r = {
            .prompt = prompt, .n_prompt = PROMPT, .max_new = shapes_are_small() ? 8 : NEW_TOK, .stop_id = -1, .out = out->tokens[p]};
        cr_assert(spec_generate(s, &r, &out->stats, &e) == TPL_OK, "%s: %s", e.where, e.what);
    }
    spec_destroy(s);
    session_destroy(base);
    lab_run_close(&base_run);
    session_destroy(draft);
    if (drafts)
        lab_run_close(&draft_run);
}

/* A prompt whose text leaves the host's must do so where the host's best two tokens are nearly equal: sums in another
 * order. Otherwise the draft's accepted counts show that its trees are the host's too. */
static void expect_same(const way *w, const texts *host, const texts *card, const char *what)
{
    int other = 0;
    for (int p = 0; p < N_PROMPTS; p++)
        other += memcmp(host->tokens[p], card->tokens[p], sizeof host->tokens[p]) != 0;
    cr_expect_eq(other, 0, "%s: %d of %d texts differ", what, other, N_PROMPTS);
    if (w->method == SPEC_VANILLA)
        return;
    double h = (double)host->stats.n_accepted / (double)host->stats.n_iterations,
           c = (double)card->stats.n_accepted / (double)card->stats.n_iterations;
    cr_expect_float_eq(h, c, 0.02 * h + 0.02, "%s: %g accepted an iteration, on the host %g", what, c, h);
}

static void compare_ways(ranks_kind ranks, bool no_graph, joins_kind joins)
{
    static texts plain, host, card;
    lab *base = open_lab("worldlet-gqa"), *draft = open_lab("worldlet-draft");
    for (size_t i = 0; i < sizeof ways / sizeof *ways; i++) {
        const way *w = &ways[i];
        char what[120];
        bool small = i == 0 || (w->base_tp == 2 && w->width >= 4); /* one of each method */
        if ((ranks == RANKS_NCCL && w->base_tp < 2 && w->draft_tp < 2) || (shapes_are_small() && !small))
            continue;
        snprintf(what, sizeof what, "%s w %d n %d tp %d, draft tp %d, %s", spec_method_name(w->method), w->width,
                 w->depth, w->base_tp, w->draft_tp, w->groups ? w->groups : "-");
        write_texts(base, draft, w, &(place){"cpu", RANKS_LOCAL, false, JOINS_ALL}, &host);
        if (i == 0)
            plain = host;
        if (i > 0 && ranks != RANKS_NCCL)
            cr_expect_eq(memcmp(plain.tokens, host.tokens, sizeof plain.tokens), 0, "on the host: %s", what);
        write_texts(base, draft, w, &(place){"cuda", ranks, no_graph, joins}, &card);
        printf("# %s: %.3f accepted an iteration, on the host %.3f\n", what,
               (double)card.stats.n_accepted / (double)card.stats.n_iterations,
               (double)host.stats.n_accepted / (double)host.stats.n_iterations);
        expect_same(w, &host, &card, what);
    }
    lab_close(draft);
    lab_close(base);
}

Test(gpu_speculate, greedy_texts_are_the_hosts, .timeout = 300)
{
    need_cards(1);
    compare_ways(RANKS_LOCAL, false, JOINS_ALL);
}

Test(gpu_speculate, greedy_texts_step_by_step, .timeout = 300)
{
    need_cards(1);
    compare_ways(RANKS_LOCAL, true, JOINS_FEED_FORWARD);
}

Test(gpu_speculate, greedy_texts_on_two_cards, .timeout = 300)
{
    need_cards(2);
    compare_ways(RANKS_NCCL, false, JOINS_ALL);
    compare_ways(RANKS_NCCL, true, JOINS_OFF);
}

/* ---- the likeliest tokens ---- */

static int better(const float *row, int a, int b)
{
    if (isnan(row[a]) || isnan(row[b]))
        return isnan(row[b]) && !isnan(row[a]);
    return row[a] > row[b] || (row[a] == row[b] && a < b);
}

static void check_row(const float *row, int n, int k, float temperature, const int32_t *tokens, const float *shares)
{
    double sum = 0, most = -INFINITY;
    for (int i = 0; i < n; i++)
        most = !isnan(row[i]) && row[i] > most ? row[i] : most;
    for (int i = 0; i < n; i++)
        sum += isnan(row[i]) ? 0 : exp((row[i] - most) / temperature);
    int last = -1;
    for (int j = 0; j < k; j++) {
        int best = -1;
        for (int i = 0; i < n; i++)
            if (!isnan(row[i]) && (last < 0 || better(row, last, i)) && (best < 0 || better(row, i, best)))
                best = i;
        cr_expect_eq(tokens[j], best, "number %d of %d values is %d, expected %d", j, n, tokens[j], best);
        if (best >= 0)
            cr_expect_float_eq(shares[j], exp((row[best] - most) / temperature) / sum, 2e-5 * shares[j] + 1e-12);
        if (best < 0)
            break;
        last = best;
    }
}

/* Vocabularies of several sizes, smaller than the parts too; equal values, NaN, all in one part. */
Test(gpu_speculate, finds_the_likeliest_tokens)
{
    enum { ROWS = 5 };
    static const struct {
        int n, k;
        float temperature;
    } cases[] = {{2048, 4, 1}, {128256, 16, 1}, {152064, 12, 0.8f}, {130, 16, 1}, {10, 16, 0.5f}, {77, 1, 1}};
    gpu *card;
    gpu_queue *q;
    tpl_err e = {0};
    need_cards(1);
    cr_assert(gpu_open(0, &card, &e) == TPL_OK && gpu_queue_create(card, &q, &e) == TPL_OK, "%s", e.what);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        int n = cases[i].n, k = cases[i].k;
        size_t bytes = (size_t)(ROWS * n) * sizeof(float);
        float *rows = tpl_calloc((size_t)(ROWS * n), sizeof *rows), shares[ROWS * CARD_TOP_MOST];
        int32_t tokens[ROWS * CARD_TOP_MOST];
        rng r = rng_make(7, i);
        for (int j = 0; j < ROWS * n; j++)
            rows[j] = (float)(rng_uniform(&r) * 20 - 10);
        for (int j = 0; j < n; j++) {
            rows[n + j] = (float)(j % 7);                             /* many equals */
            rows[2 * n + j] = j % 3 ? NAN : rows[2 * n + j];          /* holes */
            rows[3 * n + j] = j < n / 64 ? 30 + 0.001f * (float)j : -5; /* one part has all */
        }
        dev_buf b[5];
        const size_t sizes[5] = {bytes, sizeof(float), sizeof tokens, sizeof shares,
                                 ROWS * CARD_TOP_SPACE * sizeof(float)};
        for (int j = 0; j < 5; j++)
            cr_assert(gpu_alloc(card, &b[j], sizes[j], "test", &e) == TPL_OK, "%s", e.what);
        cr_assert(gpu_copy_now(q, b[0].data, rows, bytes, &e) == TPL_OK);
        cr_assert(gpu_copy_now(q, b[1].data, &cases[i].temperature, sizeof(float), &e) == TPL_OK);
        card_likeliest c = {b[0].data, b[1].data, ROWS, n, k, b[2].data, b[3].data, b[4].data};
        cr_assert(card_top(q, &c, &e) == TPL_OK, "%s: %s", e.where, e.what);
        cr_assert(gpu_copy_now(q, tokens, b[2].data, (size_t)(ROWS * k) * sizeof *tokens, &e) == TPL_OK, "%s", e.what);
        cr_assert(gpu_copy_now(q, shares, b[3].data, (size_t)(ROWS * k) * sizeof *shares, &e) == TPL_OK);
        for (int row = 0; row < ROWS; row++)
            check_row(rows + (size_t)row * (size_t)n, n, k, cases[i].temperature, tokens + row * k, shares + row * k);
        for (int j = 0; j < 5; j++)
            gpu_free(card, &b[j]);
        free(rows);
    }
    gpu_queue_destroy(q);
    gpu_close(card);
}

/* ---- blocks ---- */

/* Stamps lie inside replayed passes: every pass has them, and a block's time is positive. */
Test(gpu_speculate, times_blocks_by_the_cards_clock)
{
    lab_run run;
    tpl_err e = {0};
    need_cards(1);
    lab *l = open_lab("worldlet-draft");
    way w = {SPEC_EASYSPEC, 4, 5, 1, 2, "rule:4", false, false, false, false};
    session *s = open_side(l, &w, &(place){"cuda", RANKS_LOCAL, false, JOINS_ALL}, 2, true, &run);
    cr_assert(session_time_blocks(s, true, &e) == TPL_OK, "%s: %s", e.where, e.what);
    int seq = session_add_seq(s);
    for (int i = 0; i < 8; i++) {
        batch_row row = {seq, token_at(0, i), ROW_CHAIN, true};
        cr_assert(session_forward(s, i < 4 ? PHASE_DECODE : PHASE_FUZZY, &row, 1, &e) == TPL_OK, "%s", e.what);
    }
    for (int phase = PHASE_DECODE; phase <= PHASE_FUZZY; phase++) {
        block_times zero = session_block_times(s, 0, phase), one = session_block_times(s, 1, phase);
        cr_expect_eq(zero.n_passes, 4);
        cr_expect(zero.us[BLOCK_ATTENTION] > 0 && zero.us[BLOCK_FEED_FORWARD] > 0 && zero.us[BLOCK_OTHER] > 0);
        cr_expect(zero.us[BLOCK_EXCHANGE] > 0 && zero.attention_of_layer[0] > 0);
        cr_expect(one.us[BLOCK_FEED_FORWARD] == 0 && (phase == PHASE_DECODE) == (one.us[BLOCK_ATTENTION] == 0));
    }
    cr_assert(session_time_blocks(s, false, &e) == TPL_OK);
    session_destroy(s);
    lab_run_close(&run);
    lab_close(l);
}

/* ---- side by side ---- */

/* A group's attention runs on both cards for most of the shorter one's time, in replayed passes. */
Test(gpu_speculate, attention_of_a_group_overlaps, .timeout = 300)
{
    enum { LAYERS = 6, PROMPT_TOK = 256 };
    static int32_t prompt[PROMPT_TOK];
    char name[512];
    const char *home = getenv("TPLABENCH_HOME");
    gpu_trace *probe;
    lab *l;
    lab_run run;
    double overlap = NAN;
    tpl_err e = {0};
    need_cards(2);
    if (gpu_trace_begin(&probe, &e) != TPL_OK)
        cr_skip_test("%s: %s", e.where, e.what);
    gpu_trace_destroy(probe);
    snprintf(name, sizeof name, "shape:%s/models/shapes/llama-3.2-1b.json,layers=%d", home && *home ? home : SOURCE_ROOT,
             LAYERS);
    cr_assert(lab_open(name, &(lab_calibration){0}, &l, &e) == TPL_OK, "%s: %s", e.where, e.what);
    variant v = variant_exact(model_cfg(lab_model(l)));
    team_options o = {.tp = 2, .backend = "cuda", .ranks = RANKS_NCCL};
    cr_assert(groups_parse("rule:4", LAYERS, &o.plan.fuzzy.groups, &e) == TPL_OK);
    cr_assert(lab_run_open(l, &v, &o, &run, &e) == TPL_OK, "%s: %s", e.where, e.what);
    spec_options so = {.method = SPEC_EASYSPEC, .width = 1, .depth = 5};
    session_options need = spec_draft_session(&so, PROMPT_TOK + 16);
    session *s;
    cr_assert(session_create(run.team, &need, &s, &e) == TPL_OK, "%s: %s", e.where, e.what);
    for (int i = 0; i < PROMPT_TOK; i++)
        prompt[i] = token_at(1, i);
    cr_assert(spec_overlap_card(s, prompt, PROMPT_TOK, &overlap, &e) == TPL_OK, "%s: %s", e.where, e.what);
    printf("# attention of a group overlaps by %.3f of the shorter rank's\n", overlap);
    cr_expect(overlap >= 0.6, "overlap is %g", overlap);
    session_destroy(s);
    lab_run_close(&run);
    lab_close(l);
}
