/* The engine on a card against the engine on the host: bundled checkpoints, every variant, several ranks on one card.
 */
#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "device/gpu.h"
#include "engine/lab.h"
#include "engine/sampler.h"
#include "tests/gpu/small.h"

enum { PROMPT = 150, STEPS = 6, VOCAB = 2048, TREE = 5, MAX_ROWS = 160 };

static void need_card(void)
{
    if (gpu_count() == 0)
        cr_skip_test("no CUDA card is here");
}

static const char *path_of(const char *name, char path[512])
{
    const char *home = getenv("TPLABENCH_HOME");
    snprintf(path, 512, "%s/%s", home && *home ? home : SOURCE_ROOT, name);
    return path;
}

static lab *open_lab(const char *name)
{
    char path[512];
    lab *l;
    tpl_err e = {0};
    cr_assert(lab_open(path_of(name, path), &(lab_calibration){0}, &l, &e) == TPL_OK, "%s: %s", e.where, e.what);
    return l;
}

/* Logits of a chunked prefill's last row, of decode steps of two sequences at once, and of a tree's rows. */
typedef struct {
    float rows[1 + 2 * STEPS + TREE][VOCAB];
    int n;
} answers;

static void forward(session *s, answers *a, plan_phase phase, const batch_row *rows, int n, const char *what)
{
    tpl_err e = {0};
    cr_assert(session_forward(s, phase, rows, n, &e) == TPL_OK, "%s: %s: %s", what, e.where, e.what);
    for (int i = 0; i < session_n_logits(s); i++)
        memcpy(a->rows[a->n++], session_logits(s, i), sizeof a->rows[0]);
}

static int32_t token_at(int i)
{
    return 1 + i * 37 % 1000;
}

static void prefill(session *s, answers *a, int seq, int n, bool want, const char *what)
{
    batch_row rows[MAX_ROWS];
    for (int done = 0; done < n;) {
        int chunk = n - done < 70 ? n - done : 70;
        for (int i = 0; i < chunk; i++)
            rows[i] = (batch_row){
                .seq = seq, .token = token_at(done + i), .parent = ROW_CHAIN, .want_logits = want && done + i == n - 1};
        forward(s, a, PHASE_PREFILL, rows, chunk, what);
        done += chunk;
    }
}

static void ask(lab *l, const char *text, const team_options *o, answers *a)
{
    variant v;
    lab_run run;
    session *s;
    tpl_err e = {0};
    a->n = 0;
    cr_assert(variant_parse(text, &v, &e) == TPL_OK, "%s", e.what);
    cr_assert(lab_run_open(l, &v, o, &run, &e) == TPL_OK, "%s tp %d: %s: %s", text, o->tp, e.where, e.what);
    session_options so = {.max_seqs = 2, .max_tok = 400, .max_rows = MAX_ROWS, .max_logits = 8};
    cr_assert(session_create(run.team, &so, &s, &e) == TPL_OK, "%s tp %d: %s: %s", text, o->tp, e.where, e.what);
    int one = session_add_seq(s), two = session_add_seq(s);
    prefill(s, a, one, PROMPT, true, text);
    prefill(s, a, two, 9, false, text);
    for (int i = 0; i < STEPS; i++) {
        batch_row rows[] = {{one, token_at(500 + i), ROW_CHAIN, true}, {two, token_at(700 + i), ROW_CHAIN, true}};
        forward(s, a, PHASE_DECODE, rows, 2, text);
    }
    batch_row tree[TREE];
    for (int i = 0; i < TREE; i++)
        tree[i] = (batch_row){one, token_at(800 + i), i < 2 ? ROW_PREFIX : i - 2, true};
    forward(s, a, PHASE_DECODE, tree, TREE, text);
    session_destroy(s);
    lab_run_close(&run);
}

typedef struct {
    double worst, rms; /* largest difference; root mean square over that of the expected logits */
    int other_top;     /* rows whose best token differs */
    double other_gap;  /* the largest lead, in the expected logits, of a best token that was not found */
} distance;

static distance compare(const answers *got, const answers *want)
{
    distance d = {0};
    double sum = 0, size = 0;
    for (int r = 0; r < want->n; r++) {
        int best = 0, found = 0;
        for (int i = 0; i < VOCAB; i++) {
            double diff = (double)got->rows[r][i] - want->rows[r][i];
            d.worst = fmax(d.worst, isnan(diff) ? INFINITY : fabs(diff));
            sum += diff * diff;
            size += (double)want->rows[r][i] * want->rows[r][i];
            best = want->rows[r][i] > want->rows[r][best] ? i : best;
            found = got->rows[r][i] > got->rows[r][found] ? i : found;
        }
        if (best != found) {
            d.other_top++;
            d.other_gap = fmax(d.other_gap, (double)want->rows[r][best] - want->rows[r][found]);
        }
    }
    d.rms = sqrt(sum / size);
    return d;
}

static const struct {
    const char *model, *variant;
    int most_tp;
} cases[] = {
    {"models/worldlet-mla", "mla", 4},
    {"models/worldlet-mla", "mla-dcp", 4},
    {"models/worldlet-mla", "gla:g=2", 4},
    {"models/worldlet-mla", "tpla:g=2:u=hadamard", 4},
    {"models/worldlet-mla", "tpla:g=4:u=hadamard:slice=softmax", 4},
    {"models/worldlet-mla", "tpla:g=2:u=id:slice=norm", 4},
    {"models/worldlet-mla", "tpla:g=2:u=hadamard:slice=both:pd=on:proj=rs", 4},
    {"models/worldlet-mla", "tpla:g=2:u=hadamard:slice=both:proj=rs+agq", 2},
    {"models/worldlet-gqa", "gqa", 2},
    {"models/worldlet-draft", "gqa", 2},
};

enum { N_CASES = sizeof cases / sizeof *cases };

/* Of small shapes: one variant of each list, on two ranks. */
static bool is_taken(int i)
{
    return !shapes_are_small() || i == 0 || i == 1 || i == 7 || i == 8;
}

static int first_tp(int i)
{
    return shapes_are_small() ? cases[i].most_tp : 1;
}

/* f32: sums in another order, over 6 or 12 layers: a few hundred roundings of 2^-24 of the logits' size. */
Test(engine, f32_logits_are_the_hosts)
{
    static answers host, card;
    need_card();
    for (int i = 0; i < N_CASES; i++) {
        if (!is_taken(i))
            continue;
        lab *l = open_lab(cases[i].model);
        ask(l, cases[i].variant, &(team_options){.tp = 1}, &host);
        for (int tp = first_tp(i); tp <= cases[i].most_tp; tp *= 2) {
            ask(l, cases[i].variant, &(team_options){.tp = tp, .backend = "cuda", .compute = DT_F32}, &card);
            distance d = compare(&card, &host);
            printf("# f32 %s %s tp %d: worst %.3g, rms %.3g\n", cases[i].model, cases[i].variant, tp, d.worst, d.rms);
            cr_expect(d.worst < 2e-3 && d.other_top == 0, "%s tp %d: worst %g, %d other tops", cases[i].variant, tp,
                      d.worst, d.other_top);
        }
        lab_close(l);
    }
}

/* bf16: about 10 stored values on each layer's path round to 2^-9, evenly spread in +-1/2 step: 6 layers give
 * (60 / 3)^(1/2) 2^-9 = 0.9 % of the residual's size, 12 layers 1.2 %; norms and softmax pass it on at a factor of
 * some. */
Test(engine, bf16_logits_are_near)
{
    static answers host, card;
    need_card();
    for (int i = 0; i < N_CASES; i++) {
        if (!is_taken(i))
            continue;
        lab *l = open_lab(cases[i].model);
        ask(l, cases[i].variant, &(team_options){.tp = 1}, &host);
        for (int tp = first_tp(i); tp <= cases[i].most_tp; tp *= 2) {
            ask(l, cases[i].variant, &(team_options){.tp = tp, .backend = "cuda"}, &card);
            distance d = compare(&card, &host);
            printf("# bf16 %s %s tp %d: worst %.3g, rms %.3g, other tops %d, gap %.3g\n", cases[i].model,
                   cases[i].variant, tp, d.worst, d.rms, d.other_top, d.other_gap);
            cr_expect(d.rms < 0.03, "%s tp %d: rms %g", cases[i].variant, tp, d.rms);
            cr_expect(d.other_gap <= 2 * d.worst, "%s tp %d: a lead of %g was lost", cases[i].variant, tp, d.other_gap);
        }
        lab_close(l);
    }
}

/* Through NCCL, in one process: chunks of several rows and steps of two, all-reduce, gather and reduce-scatter,
 * recorded. */
Test(engine, a_card_a_rank)
{
    static answers host, card;
    static const int some[] = {0, 1, 2, 3, 6, 7, 8};
    need_card();
    if (gpu_count() < 2)
        cr_skip_test("one CUDA card is here, two are needed");
    for (size_t k = 0; k < sizeof some / sizeof *some; k++) {
        int i = some[k];
        lab *l = open_lab(cases[i].model);
        ask(l, cases[i].variant, &(team_options){.tp = 1}, &host);
        for (int bf16_too = 0; bf16_too < 2; bf16_too++) {
            ask(l, cases[i].variant,
                &(team_options){
                    .tp = 2, .backend = "cuda", .ranks = RANKS_NCCL, .compute = bf16_too ? DT_BF16 : DT_F32},
                &card);
            distance d = compare(&card, &host);
            printf("# nccl %s %s: worst %.3g, rms %.3g\n", bf16_too ? "bf16" : "f32", cases[i].variant, d.worst, d.rms);
            cr_expect(bf16_too ? d.rms < 0.03 : d.worst < 2e-3, "%s: worst %g, rms %g", cases[i].variant, d.worst,
                      d.rms);
        }
        lab_close(l);
    }
}

/* One rank's memory is its own, and what nobody wrote is NaN. */
Test(engine, isolated_ranks_agree)
{
    static answers plain, isolated;
    need_card();
    for (int i = 0; i < N_CASES; i++) {
        if (!is_taken(i))
            continue;
        lab *l = open_lab(cases[i].model);
        ask(l, cases[i].variant, &(team_options){.tp = cases[i].most_tp, .backend = "cuda"}, &plain);
        ask(l, cases[i].variant, &(team_options){.tp = cases[i].most_tp, .backend = "cuda", .isolate = true}, &isolated);
        distance d = compare(&isolated, &plain);
        cr_expect(d.worst == 0, "%s: worst %g", cases[i].variant, d.worst);
        lab_close(l);
    }
}

static void write_text(session *s, int seq, int n, int32_t *out, const char *what)
{
    tpl_err e = {0};
    batch_row rows[40];
    for (int i = 0; i < 40; i++)
        rows[i] = (batch_row){seq, token_at(i), ROW_CHAIN, i == 39};
    cr_assert(session_forward(s, PHASE_PREFILL, rows, 40, &e) == TPL_OK, "%s: %s", what, e.what);
    for (int i = 0; i < n; i++) {
        const float *l = session_logits(s, 0);
        out[i] = 0;
        for (int k = 1; k < VOCAB; k++)
            out[i] = l[k] > l[out[i]] ? k : out[i];
        batch_row next = {seq, out[i], ROW_CHAIN, true};
        cr_assert(session_forward(s, PHASE_DECODE, &next, 1, &e) == TPL_OK, "%s: %s", what, e.what);
    }
}

/* 200 greedy tokens: decode is recorded after its first step and replayed while contexts grow. */
Test(engine, greedy_text_in_f32_is_the_hosts)
{
    enum { MOST = 200 };
    int n = shapes_are_small() ? 6 : MOST;
    need_card();
    for (int i = 0; i < N_CASES; i += 3) {
        int32_t text[2][MOST];
        if (!is_taken(i))
            continue;
        lab *l = open_lab(cases[i].model);
        for (int card = 0; card < 2; card++) {
            variant v;
            lab_run run;
            session *s;
            tpl_err e = {0};
            cr_assert(variant_parse(cases[i].variant, &v, &e) == TPL_OK);
            team_options o = {.tp = 2, .backend = card ? "cuda" : "cpu", .compute = DT_F32};
            cr_assert(lab_run_open(l, &v, &o, &run, &e) == TPL_OK, "%s: %s", e.where, e.what);
            session_options so = {.max_seqs = 1, .max_tok = 300, .max_rows = 64, .max_logits = 1};
            cr_assert(session_create(run.team, &so, &s, &e) == TPL_OK, "%s: %s", e.where, e.what);
            write_text(s, session_add_seq(s), n, text[card], cases[i].variant);
            session_destroy(s);
            lab_run_close(&run);
        }
        for (int k = 0; k < n; k++)
            cr_assert(text[0][k] == text[1][k], "%s: token %d is %d, expected %d", cases[i].variant, k, text[1][k],
                      text[0][k]);
        lab_close(l);
    }
}

/* A shape's weights are made on the card and on the host from the same recipe. */
Test(engine, random_weights_are_the_hosts)
{
    char path[512], spec[600];
    float out[2][8];
    need_card();
    snprintf(spec, sizeof spec, "shape:%s,layers=1,moe=off", path_of("models/shapes/deepseek-v2-lite.json", path));
    for (int card = 0; card < 2; card++) {
        lab *l;
        variant v;
        lab_run run;
        session *s;
        tpl_err e = {0};
        cr_assert(lab_open(spec, &(lab_calibration){0}, &l, &e) == TPL_OK, "%s: %s", e.where, e.what);
        cr_assert(variant_parse("tpla:g=2", &v, &e) == TPL_OK);
        cr_assert(lab_run_open(l, &v, &(team_options){.tp = 2, .backend = card ? "cuda" : "cpu", .compute = DT_F32},
                               &run, &e) == TPL_OK,
                  "%s: %s", e.where, e.what);
        session_options so = {.max_seqs = 1, .max_tok = 64, .max_rows = 16, .max_logits = 1};
        cr_assert(session_create(run.team, &so, &s, &e) == TPL_OK, "%s: %s", e.where, e.what);
        batch_row rows[5];
        int seq = session_add_seq(s);
        for (int i = 0; i < 5; i++)
            rows[i] = (batch_row){seq, 1000 * i, ROW_CHAIN, i == 4};
        cr_assert(session_forward(s, PHASE_DECODE, rows, 5, &e) == TPL_OK, "%s: %s", e.where, e.what);
        memcpy(out[card], session_logits(s, 0), sizeof out[card]);
        session_destroy(s);
        lab_run_close(&run);
        lab_close(l);
    }
    for (int i = 0; i < 8; i++)
        cr_expect(fabsf(out[0][i] - out[1][i]) < 1e-3f, "logit %d is %g, expected %g", i, (double)out[1][i],
                  (double)out[0][i]);
}

Test(engine, too_large_a_cache_is_refused_with_its_size)
{
    lab *l;
    variant v;
    lab_run run;
    session *s = NULL;
    tpl_err e = {0};
    need_card();
    l = open_lab("models/worldlet-mla");
    cr_assert(variant_parse("mla", &v, &e) == TPL_OK);
    cr_assert(lab_run_open(l, &v, &(team_options){.tp = 1, .backend = "cuda"}, &run, &e) == TPL_OK, "%s: %s", e.where,
              e.what);
    session_options so = {.max_seqs = 1 << 17, .max_tok = 4096, .max_rows = 16, .max_logits = 1};
    cr_assert(session_create(run.team, &so, &s, &e) == TPL_E_MEMORY, "%s: %s", e.where, e.what);
    cr_expect(strstr(e.what, "GiB on the card"), "%s", e.what);
    so.max_seqs = 2;
    cr_assert(session_create(run.team, &so, &s, &e) == TPL_OK, "%s: %s", e.where, e.what);
    session_destroy(s);
    lab_run_close(&run);
    lab_close(l);
}
