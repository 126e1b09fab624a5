/* The bundled pair: texts of all methods against vanilla decoding, the fixture's agreement figures, and that a group's
 * layers really run side by side. TPLABENCH_FULL=1 (tests/engine/speculate_full.sh) runs the full counts. */
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <criterion/criterion.h>

#include "base/json.h"
#include "base/threads.h"
#include "engine/sampler.h"
#include "engine/spans.h"
#include "engine/speculate.h"
#include "tests/support/side.h"

enum { PROMPTS = 192, PROMPT_TOK = 128, NEW_TOK = 64, VOCAB = 2048, DIM = 96, TEXT = PROMPT_TOK + NEW_TOK };

static const char gqa_dir[] = SOURCE_ROOT "/models/worldlet-gqa", mla_dir[] = SOURCE_ROOT "/models/worldlet-mla",
                  draft_dir[] = SOURCE_ROOT "/models/worldlet-draft";

static bool full(void)
{
    const char *v = getenv("TPLABENCH_FULL");
    return v && strcmp(v, "1") == 0;
}

/* The fixture's prompts: 192 documents of its generator, begin-of-text and 127 tokens each. */
static void read_prompts(int32_t (*prompts)[PROMPT_TOK])
{
    char *data;
    size_t len;
    tpl_err e = {0};
    cr_assert(text_read_file(SOURCE_ROOT "/tests/data/spec-prompts.jsonl", &data, &len, &e) == TPL_OK, "%s", e.what);
    char *at = data;
    for (int i = 0; i < PROMPTS; i++) {
        json_t *line, *tokens;
        char *end = strchr(at, '\n');
        cr_assert(end != NULL);
        cr_assert(json_load_bytes(at, (size_t)(end - at), "spec-prompts.jsonl", &line, &e) == TPL_OK, "%s", e.what);
        cr_assert(json_want_array(line, "tokens", &tokens, "spec-prompts.jsonl", &e) == TPL_OK &&
                  json_array_size(tokens) == PROMPT_TOK);
        for (int k = 0; k < PROMPT_TOK; k++)
            prompts[i][k] = (int32_t)json_integer_value(json_array_get(tokens, (size_t)k));
        json_decref(line);
        at = end + 1;
    }
    free(data);
}

/* TPLABENCH_PART=i/n: only each n-th case of the texts, from the i-th on, so that the full counts can be run in pieces.
 */
static bool in_part(int i)
{
    const char *v = getenv("TPLABENCH_PART");
    int first, step;
    return !v || sscanf(v, "%d/%d", &first, &step) != 2 || i % step == first % step;
}

/* TPLABENCH_RESULTS=FILE: a line a finished case of the texts goes to its end; cases that it has are not run again. */
static bool is_done(int i)
{
    const char *path = getenv("TPLABENCH_RESULTS");
    FILE *f = path ? fopen(path, "r") : NULL;
    char line[256];
    bool done = false;
    while (f && fgets(line, sizeof line, f))
        done = done || atoi(line) == i + 1;
    if (f)
        fclose(f);
    return done;
}

static void note_result(const char *line)
{
    const char *path = getenv("TPLABENCH_RESULTS");
    if (!path)
        return;
    FILE *f = fopen(path, "a");
    cr_assert(f && fputs(line, f) >= 0 && fclose(f) == 0, "%s: %s", path, strerror(errno));
}

static const plan_fuzzy usual; /* placement and exact lists as by default */

/* ---- texts ---- */

typedef struct {
    const char *base, *variant;
    int base_tp, draft_tp;
    const char *groups;
    spec_options o;
} text_case;

static void generate_texts(const text_case *c, int n_prompts, int n_new, const int32_t (*prompts)[PROMPT_TOK],
                           int32_t *out, spec_stats *stats)
{
    tpl_err e = {0};
    side base = side_open(c->base, c->variant, c->base_tp, NULL, usual), draft = {0};
    speculator *s;
    side_add_session(&base, spec_base_session(&c->o, 256));
    if (c->o.method != SPEC_VANILLA) {
        draft = side_open(draft_dir, NULL, c->draft_tp, c->groups, usual);
        side_add_session(&draft, spec_draft_session(&c->o, 256));
    }
    cr_assert(spec_create(base.s, draft.s, &c->o, &s, &e) == TPL_OK, "%s: %s", e.where, e.what);
    for (int p = 0; p < n_prompts; p++) {
        spec_run r = {.prompt = prompts[p],
                      .n_prompt = PROMPT_TOK,
                      .max_new = n_new,
                      .stop_id = -1,
                      .out = out + p * n_new,
                      .stream = (uint64_t)p};
        cr_assert(spec_generate(s, &r, stats, &e) == TPL_OK, "%s: %s", e.where, e.what);
    }
    spec_destroy(s);
    side_close(&base);
    if (draft.m)
        side_close(&draft);
}

/* The base's gap between its best two tokens after a text, and its largest logit. */
static double gap_after(side *base, const int32_t *text, int n, double *largest)
{
    int seq = session_add_seq(base->s);
    side_run(base, seq, PHASE_PREFILL, text, n);
    const float *x = session_logits(base->s, 0);
    int best = sampler_argmax(x, VOCAB);
    double second = -INFINITY;
    *largest = 0;
    for (int v = 0; v < VOCAB; v++) {
        second = v != best && x[v] > second ? x[v] : second;
        *largest = fmax(*largest, fabs((double)x[v]));
    }
    double gap = x[best] - second;
    session_drop_seq(base->s, seq);
    return gap;
}

/* Prompts whose text differs; each difference must begin at a near-tie of the base. */
static int count_differing(const text_case *c, int n_prompts, int n_new, const int32_t (*prompts)[PROMPT_TOK],
                           const int32_t *want, const int32_t *got)
{
    int differing = 0;
    side base = side_open(c->base, c->variant, c->base_tp, NULL, usual);
    side_add_session(&base, (session_options){.max_seqs = 1, .max_tok = 256, .max_rows = 256, .max_logits = 1});
    for (int p = 0; p < n_prompts; p++) {
        int32_t text[TEXT];
        int at = 0;
        double largest;
        while (at < n_new && want[p * n_new + at] == got[p * n_new + at])
            at++;
        if (at == n_new)
            continue;
        differing++;
        memcpy(text, prompts[p], sizeof prompts[p]);
        memcpy(text + PROMPT_TOK, want + p * n_new, (size_t)at * sizeof *text);
        double gap = gap_after(&base, text, PROMPT_TOK + at, &largest);
        cr_assert_lt(gap, spec_near_tie(model_cfg(base.m), DT_F32, largest),
                     "prompt %d, token %d: the base's best two tokens are %g apart", p, at, gap);
    }
    side_close(&base);
    return differing;
}

static const text_case text_cases[] = {
    {gqa_dir, NULL, 1, 1, NULL, {.method = SPEC_SD, .depth = 5}},
    {gqa_dir, NULL, 2, 2, NULL, {.method = SPEC_TREE, .depth = 5, .width = 4}},
    {gqa_dir, NULL, 2, 2, "rule:4", {.method = SPEC_EASYSPEC, .depth = 5, .width = 4}},
    {gqa_dir, NULL, 1, 2, "pack:3", {.method = SPEC_EASYSPEC, .depth = 5, .width = 1, .no_calibration = true}},
    {mla_dir, "tpla:g=2:u=hadamard", 2, 2, "rule:4", {.method = SPEC_EASYSPEC, .depth = 4, .width = 4}},
    /* From here on only in the full set. */
    {gqa_dir, NULL, 2, 1, NULL, {.method = SPEC_SD, .depth = 8}},
    {gqa_dir, NULL, 1, 1, NULL, {.method = SPEC_TREE, .depth = 5, .width = 8}},
    {gqa_dir, NULL, 1, 1, NULL, {.method = SPEC_TREE, .depth = 3, .width = 12}},
    {gqa_dir, NULL, 1, 2, "rule:1", {.method = SPEC_EASYSPEC, .depth = 5, .width = 1}},
    {gqa_dir, NULL, 1, 2, "rule:2", {.method = SPEC_EASYSPEC, .depth = 5, .width = 1}},
    {gqa_dir, NULL, 1, 3, "rule:3", {.method = SPEC_EASYSPEC, .depth = 5, .width = 4}},
    {gqa_dir, NULL, 2, 4, "pack:4", {.method = SPEC_EASYSPEC, .depth = 5, .width = 8}},
    {gqa_dir, NULL, 1, 4, "rule:5", {.method = SPEC_EASYSPEC, .depth = 5, .width = 12}},
    {gqa_dir, NULL, 2, 2, "0-1/2-5/6-10/11", {.method = SPEC_EASYSPEC, .depth = 6, .width = 2}},
    {mla_dir, "mla", 1, 1, NULL, {.method = SPEC_SD, .depth = 5}},
    {mla_dir, "mla", 4, 2, NULL, {.method = SPEC_TREE, .depth = 5, .width = 4}},
    {mla_dir, "mla", 2, 4, "rule:4", {.method = SPEC_EASYSPEC, .depth = 5, .width = 4}},
    {mla_dir, "mla-dcp", 2, 2, "pack:4", {.method = SPEC_EASYSPEC, .depth = 5, .width = 4}},
    {mla_dir, "tpla:g=2:u=hadamard:pd=on", 4, 2, "pack:2", {.method = SPEC_EASYSPEC, .depth = 5, .width = 1}},
};

enum { N_LISTED = sizeof text_cases / sizeof *text_cases };

/* The full set goes on with every way of drafting for every width and base; number i of them. False: there is none. */
static bool grid_case(int i, text_case *out)
{
    static const text_case bases[] = {
        {.base = gqa_dir, .variant = NULL, .base_tp = 1},
        {.base = gqa_dir, .variant = NULL, .base_tp = 2},
        {.base = mla_dir, .variant = "mla", .base_tp = 1},
        {.base = mla_dir, .variant = "mla", .base_tp = 2},
        {.base = mla_dir, .variant = "mla", .base_tp = 4},
        {.base = mla_dir, .variant = "tpla:g=2:u=hadamard", .base_tp = 2},
    };
    static const char *const groups[] = {NULL,     "rule:1", "rule:2", "rule:3", "rule:4",
                                         "rule:5", "pack:2", "pack:3", "pack:4", "0-1/2-5/6-10/11"};
    static const int widths[] = {1, 4, 8, 12};
    enum { GROUPS = sizeof groups / sizeof *groups, WIDTHS = sizeof widths / sizeof *widths };
    int base = i / (GROUPS * WIDTHS), group = i / WIDTHS % GROUPS, width = widths[i % WIDTHS];
    if (base >= (int)(sizeof bases / sizeof *bases))
        return false;
    *out = bases[base];
    out->groups = groups[group];
    out->draft_tp = i % 5 == 0 ? 2 : 1;
    out->o = (spec_options){.method = groups[group] ? SPEC_EASYSPEC
                                      : width > 1   ? SPEC_TREE
                                                    : SPEC_SD,
                            .depth = 5,
                            .width = width,
                            .no_calibration = groups[group] && i % 3 == 0};
    return true;
}

static bool next_case(int i, text_case *out)
{
    if (i < (full() ? N_LISTED : 5)) {
        *out = text_cases[i];
        return true;
    }
    return full() && grid_case(i - N_LISTED, out);
}

/* A quarter of the grid that has every group list and every width with every base comes first. */
static bool comes_first(int i)
{
    int n = i - N_LISTED, base = n / 40, group = n / 4 % 10, width = n % 4;
    return n < 0 || (base + group + width) % 4 == 0;
}

static bool same_base(const text_case *a, const text_case *b)
{
    return a->base == b->base && a->base_tp == b->base_tp &&
           (a->variant == b->variant || (a->variant && b->variant && strcmp(a->variant, b->variant) == 0));
}

Test(speculate_pair, texts_are_the_bases_own, .timeout = 7200)
{
    int32_t(*prompts)[PROMPT_TOK] = tpl_malloc(sizeof *prompts * PROMPTS);
    read_prompts(prompts);
    int n_prompts = full() ? 50 : 2, n_new = full() ? NEW_TOK : 24;
    int32_t *want = tpl_malloc(sizeof *want * (size_t)(n_prompts * n_new)),
            *got = tpl_malloc(sizeof *got * (size_t)(n_prompts * n_new));
    text_case last = {0}, c;
    int n_cases = 0;
    while (next_case(n_cases, &c))
        n_cases++;
    for (int k = 0; k < 2 * n_cases; k++) {
        int i = k % n_cases;
        spec_stats none = {0}, stats = {0};
        if (comes_first(i) != (k < n_cases) || !in_part(i / 2) || is_done(i))
            continue;
        next_case(i, &c);
        text_case plain = c;
        plain.o = (spec_options){.method = SPEC_VANILLA};
        if (!same_base(&c, &last))
            generate_texts(&plain, n_prompts, n_new, prompts, want, &none);
        last = c;
        generate_texts(&c, n_prompts, n_new, prompts, got, &stats);
        int differing = count_differing(&c, n_prompts, n_new, prompts, want, got);
        printf("# %d: %s %s tp %d, draft tp %d, %s%s w %d n %d: %d of %d texts differ at near-ties, %.2f tokens an "
               "iteration\n",
               i, spec_method_name(c.o.method), c.variant ? c.variant : "gqa", c.base_tp, c.draft_tp,
               c.groups ? c.groups : "-", c.o.no_calibration ? " raw" : "", c.o.width, c.o.depth, differing, n_prompts,
               (double)stats.n_tok / (double)stats.n_iterations);
        fflush(stdout);
        cr_assert(differing * 100 <= n_prompts, "case %d: %d of %d texts differ", i, differing, n_prompts);
        char line[256];
        snprintf(line, sizeof line, "%d,%s,%s,%d,%d,%s,%s,%d,%d,%d,%d,%.3f\n", i + 1, spec_method_name(c.o.method),
                 c.variant ? c.variant : "gqa", c.base_tp, c.draft_tp, c.groups ? c.groups : "-",
                 c.o.no_calibration ? "off" : "on", c.o.width > 1 ? c.o.width : 1, c.o.depth, n_prompts, differing,
                 (double)stats.n_tok / (double)stats.n_iterations);
        note_result(line);
    }
    free(want);
    free(got);
    free(prompts);
}

/* ---- agreement ---- */

/* greedy agreement with the base's text, sum min(p, q), cosine of the final hidden state with the plain draft's. */
typedef struct {
    double greedy, overlap, cosine;
} agreement;

typedef struct {
    int n; /* of layers in a group */
    bool exact;
    agreement want;
} figure;

/* The fixture's table, measured on another implementation. */
static const figure figures[] = {
    {1, true, {0.8401, 0.9709, 1.0000}},  {2, true, {0.8421, 0.9639, 0.9877}},  {2, false, {0.8066, 0.9079, 0.9229}},
    {3, true, {0.8294, 0.9636, 0.9854}},  {3, false, {0.7941, 0.9004, 0.9082}}, {4, true, {0.8336, 0.9590, 0.9787}},
    {4, false, {0.7524, 0.8328, 0.8620}}, {5, true, {0.8202, 0.9406, 0.9648}},  {5, false, {0.7044, 0.7869, 0.8223}},
};

typedef struct {
    float *hidden; /* [rows, DIM] of the last pass, normalised as the head takes them */
} hidden_tap;

static void tap_hidden(void *user, int rank, const plan_step *step, const op_call *call, mat out)
{
    hidden_tap *tap = user;
    if (rank != 0 || strcmp(step->name, "logits.norm") != 0)
        return;
    for (int64_t i = 0; i < out.rows; i++)
        memcpy(tap->hidden + i * DIM, (const float *)out.data + i * out.stride, DIM * sizeof(float));
}

static void add_agreement(agreement *sum, const float *base, int32_t target, const float *logits, const float *hidden,
                          const float *plain)
{
    static float p[VOCAB], q[VOCAB];
    double dot = 0, a = 0, b = 0;
    sampler_probabilities(base, VOCAB, 1, 1, p, NULL);
    sampler_probabilities(logits, VOCAB, 1, 1, q, NULL);
    for (int v = 0; v < VOCAB; v++)
        sum->overlap += fmin((double)p[v], (double)q[v]);
    for (int d = 0; d < DIM; d++) {
        dot += (double)hidden[d] * plain[d];
        a += (double)hidden[d] * hidden[d];
        b += (double)plain[d] * plain[d];
    }
    sum->cosine += dot / sqrt(a * b);
    sum->greedy += sampler_argmax(logits, VOCAB) == target;
}

typedef struct {
    side base, plain;
    int32_t text[TEXT];
    float *p, *hidden; /* [NEW_TOK, VOCAB] base logits, [NEW_TOK, DIM] plain draft's states, before each new token */
} judged_text;

/* The base's greedy text, and its and the plain draft's view of every new token. */
static void prepare_text(judged_text *j, const int32_t *prompt)
{
    int seq = session_add_seq(j->base.s);
    memcpy(j->text, prompt, PROMPT_TOK * sizeof *prompt);
    side_run(&j->base, seq, PHASE_PREFILL, prompt, PROMPT_TOK);
    for (int i = 0; i < NEW_TOK; i++) {
        memcpy(j->p + (size_t)i * VOCAB, session_logits(j->base.s, 0), VOCAB * sizeof *j->p);
        j->text[PROMPT_TOK + i] = sampler_argmax(session_logits(j->base.s, 0), VOCAB);
        side_run(&j->base, seq, PHASE_DECODE, j->text + PROMPT_TOK + i, 1);
    }
    session_drop_seq(j->base.s, seq);
}

/* Runs the text through a draft; after token PROMPT_TOK - 1 + i the logits are judged against new token i. "exact":
 * each judged row is fuzzy over exact rows; else all rows are fuzzy. */
static void judge_text(judged_text *j, side *draft, bool exact, float *states, agreement *sum)
{
    static batch_row rows[TEXT];
    float *hidden = tpl_calloc((size_t)TEXT * DIM, sizeof *hidden);
    hidden_tap tap = {hidden};
    int seq = session_add_seq(draft->s);
    plan_phase fuzzy = team_plan(draft->t, 0)->list[PHASE_FUZZY].n ? PHASE_FUZZY : PHASE_DECODE;
    session_observe(draft->s, (step_observer){.end = tap_hidden, .user = &tap});
    if (exact && fuzzy == PHASE_FUZZY) {
        side_run(draft, seq, PHASE_PREFILL, j->text, PROMPT_TOK - 1);
        for (int i = 0; i < NEW_TOK; i++) {
            side_run(draft, seq, PHASE_FUZZY, j->text + PROMPT_TOK - 1 + i, 1);
            add_agreement(sum, j->p + (size_t)i * VOCAB, j->text[PROMPT_TOK + i], session_logits(draft->s, 0), hidden,
                          j->hidden + (size_t)i * DIM);
            session_truncate(draft->s, seq, PROMPT_TOK - 1 + i);
            side_run(draft, seq, PHASE_DECODE, j->text + PROMPT_TOK - 1 + i, 1);
        }
    } else {
        for (int i = 0; i < TEXT - 1; i++)
            rows[i] = (batch_row){seq, j->text[i], ROW_CHAIN, i >= PROMPT_TOK - 1};
        side_forward(draft, fuzzy, rows, TEXT - 1);
        if (states)
            memcpy(states, hidden, (size_t)NEW_TOK * DIM * sizeof *states);
        for (int i = 0; i < NEW_TOK && sum; i++)
            add_agreement(sum, j->p + (size_t)i * VOCAB, j->text[PROMPT_TOK + i], session_logits(draft->s, i),
                          hidden + (size_t)i * DIM, j->hidden + (size_t)i * DIM);
    }
    session_observe(draft->s, (step_observer){0});
    session_drop_seq(draft->s, seq);
    free(hidden);
}

Test(speculate_pair, agreement_is_the_fixtures, .timeout = 3600)
{
    enum { FIGURES = sizeof figures / sizeof *figures };
    int n_prompts = full() ? PROMPTS : 4;
    int32_t(*prompts)[PROMPT_TOK] = tpl_malloc(sizeof *prompts * PROMPTS);
    const session_options o = {.max_seqs = 1, .max_tok = TEXT, .max_rows = TEXT, .max_logits = NEW_TOK};
    judged_text j = {.base = side_open(gqa_dir, NULL, 1, NULL, usual),
                     .plain = side_open(draft_dir, NULL, 1, NULL, usual),
                     .p = tpl_calloc((size_t)NEW_TOK * VOCAB, sizeof(float)),
                     .hidden = tpl_calloc((size_t)NEW_TOK * DIM, sizeof(float))};
    side drafts[FIGURES];
    agreement sums[FIGURES];
    memset(sums, 0, sizeof sums);
    read_prompts(prompts);
    side_add_session(&j.base, o);
    side_add_session(&j.plain, o);
    for (int f = 0; f < FIGURES; f++) {
        char groups[16];
        snprintf(groups, sizeof groups, "pack:%d", figures[f].n);
        drafts[f] = side_open(draft_dir, NULL, 1, groups, usual);
        side_add_session(&drafts[f], o);
    }
    for (int p = 0; p < n_prompts; p++) {
        prepare_text(&j, prompts[p]);
        judge_text(&j, &j.plain, false, j.hidden, NULL);
        for (int f = 0; f < FIGURES; f++)
            judge_text(&j, &drafts[f], figures[f].exact, NULL, &sums[f]);
    }
    /* 4 prompts are 256 tokens: a share of 0.8 then has a standard error of 0.025. */
    double slack = full() ? 0.01 : 0.09, cosine_slack = full() ? 0.005 : 0.03;
    for (int f = 0; f < FIGURES; f++) {
        double n = n_prompts * (double)NEW_TOK;
        agreement got = {sums[f].greedy / n, sums[f].overlap / n, sums[f].cosine / n};
        const agreement *want = &figures[f].want;
        printf("# N %d %s: greedy %.4f (%.4f), sum min %.4f (%.4f), cosine %.4f (%.4f)\n", figures[f].n,
               figures[f].exact ? "exact" : "fuzzy", got.greedy, want->greedy, got.overlap, want->overlap, got.cosine,
               want->cosine);
        cr_expect_float_eq(got.greedy, want->greedy, slack, "N %d: greedy %g, not %g", figures[f].n, got.greedy,
                           want->greedy);
        cr_expect_float_eq(got.overlap, want->overlap, slack, "N %d: sum min %g, not %g", figures[f].n, got.overlap,
                           want->overlap);
        cr_expect_float_eq(got.cosine, want->cosine, cosine_slack, "N %d: cosine %g, not %g", figures[f].n, got.cosine,
                           want->cosine);
        side_close(&drafts[f]);
    }
    side_close(&j.base);
    side_close(&j.plain);
    free(j.p);
    free(j.hidden);
    free(prompts);
}

/* ---- side by side ---- */

/* Overlap of two ranks' attention within one group of the pass that was recorded: the common part of [first norm, last
 * output product] over the shorter of both. */
static double group_overlap(const spans *sp, int first, int last)
{
    int64_t begin[2] = {INT64_MAX, INT64_MAX}, end[2] = {0, 0};
    for (int rank = 0; rank < 2; rank++)
        for (int64_t i = 0; i < spans_count(sp, rank); i++) {
            const span *x = spans_at(sp, rank, i);
            bool attention = strncmp(x->step->name, "attn.", 5) == 0 && strcmp(x->step->name, "attn.add") != 0;
            if (x->step->layer < first || x->step->layer > last || !attention)
                continue;
            begin[rank] = x->begin_ns < begin[rank] ? x->begin_ns : begin[rank];
            end[rank] = x->end_ns > end[rank] ? x->end_ns : end[rank];
        }
    int64_t common = (end[0] < end[1] ? end[0] : end[1]) - (begin[0] > begin[1] ? begin[0] : begin[1]);
    int64_t shorter = end[0] - begin[0] < end[1] - begin[1] ? end[0] - begin[0] : end[1] - begin[1];
    return shorter > 0 && common > 0 ? (double)common / (double)shorter : 0;
}

/* Layers 1-4 over two ranks: 256 rows at a context of 1,500 tokens, so that the attention of a rank takes tens of
 * milliseconds and other work on the machine cannot keep the ranks apart. Side by side nearly all passes overlap, one
 * after the other none would. */
Test(speculate_pair, layers_of_a_group_run_side_by_side, .timeout = 280)
{
    enum { PASSES = 6, CONTEXT = 1500, ROWS = 256 };
    if (threads_usable_cores() < 2)
        cr_skip_test("one core cannot show it");
    int32_t(*prompts)[PROMPT_TOK] = tpl_malloc(sizeof *prompts * PROMPTS), text[CONTEXT];
    read_prompts(prompts);
    for (int i = 0; i < CONTEXT; i++)
        text[i] = prompts[i / PROMPT_TOK][i % PROMPT_TOK];
    side x = side_open(draft_dir, NULL, 2, "pack:4", usual);
    side_add_session(&x,
                     (session_options){.max_seqs = 1, .max_tok = CONTEXT + ROWS, .max_rows = CONTEXT, .max_logits = 1});
    int seq = session_add_seq(x.s), good = 0;
    side_run(&x, seq, PHASE_PREFILL, text, CONTEXT);
    spans *sp = spans_create(2, 1 << 12);
    session_observe(x.s, spans_observer(sp));
    for (int pass = 0; pass < PASSES; pass++) {
        spans_clear(sp);
        side_run(&x, seq, PHASE_FUZZY, text, ROWS);
        session_truncate(x.s, seq, CONTEXT);
        good += group_overlap(sp, 1, 4) >= 0.6;
    }
    printf("# attention of two ranks overlaps by 60%% or more in %d of %d passes\n", good, PASSES);
    cr_expect_geq(good, PASSES / 2, "attention of ranks 0 and 1 overlaps in %d of %d passes", good, PASSES);
    spans_destroy(sp);
    side_close(&x);
    free(prompts);
}
