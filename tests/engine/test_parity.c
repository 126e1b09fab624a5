/* The engine against transformers: stored checkpoints and their float32 logits (tools/parity makes both). */
#include <criterion/criterion.h>
#include <criterion/parameterized.h>

#include <dirent.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/safetensors.h"
#include "engine/session.h"

#define PARITY SOURCE_ROOT "/tests/data/parity/"

/* Largest difference allowed, as a part of the standard deviation of the reference's logits. */
static const double TOLERANCE = 1e-3;

enum { N_PROMPTS = 3, MAX_CASES = 64 };

typedef struct {
    char name[40];
} parity_case;

/* One prompt with its continuation. */
typedef struct {
    const int32_t *tokens;
    int n, n_prompt;
    const float *logits; /* [n, vocab] */
} reference;

static parity_case cases[MAX_CASES];

static int by_name(const void *a, const void *b)
{
    return strcmp(((const parity_case *)a)->name, ((const parity_case *)b)->name);
}

static size_t list_cases(void)
{
    size_t n = 0;
    DIR *d = opendir(PARITY);
    for (struct dirent *f; d && (f = readdir(d));)
        if (f->d_name[0] != '.' && n < MAX_CASES && strlen(f->d_name) < sizeof cases[0].name)
            memcpy(cases[n++].name, f->d_name, strlen(f->d_name) + 1);
    if (d)
        closedir(d);
    qsort(cases, n, sizeof *cases, by_name);
    return n;
}

static const st_tensor *get(const st_file *f, const char *what, int i)
{
    char name[32];
    snprintf(name, sizeof name, "%s.%d", what, i);
    const st_tensor *t = st_find(f, name);
    cr_assert_not_null(t, "%s", name);
    return t;
}

static reference get_reference(const st_file *f, int i)
{
    const st_tensor *tokens = get(f, "tokens", i);
    return (reference){.tokens = tokens->data,
                       .n = (int)tokens->shape[0],
                       .n_prompt = *(const int32_t *)get(f, "n_prompt", i)->data,
                       .logits = get(f, "logits", i)->data};
}

static double deviation(const float *x, size_t n)
{
    double sum = 0, square = 0;
    for (size_t i = 0; i < n; i++) {
        sum += x[i];
        square += (double)x[i] * x[i];
    }
    return sqrt(square / (double)n - sum / (double)n * (sum / (double)n));
}

static int best(const float *x, int n)
{
    int b = 0;
    for (int i = 1; i < n; i++)
        if (x[i] > x[b])
            b = i;
    return b;
}

/* One token's logits; adds to *n_other_top1 and raises *worst. */
static void compare_row(const float *got, const float *want, int vocab, double *worst, int *n_other_top1)
{
    for (int i = 0; i < vocab; i++) {
        double d = fabs((double)got[i] - want[i]);
        *worst = d > *worst || isnan(d) ? d : *worst;
    }
    *n_other_top1 += best(got, vocab) != best(want, vocab);
}

/* The prompt in chunks of at most 16 rows, then token by token. */
static void compare_prompt(session *s, const reference *r, int vocab, double *worst, int *n_other_top1)
{
    enum { CHUNK = 16 };
    batch_row rows[CHUNK];
    tpl_err e = {0};
    int seq = session_add_seq(s);
    for (int at = 0; at < r->n;) {
        bool prefill = at < r->n_prompt;
        int left = prefill ? r->n_prompt - at : 1, n = left < CHUNK ? left : CHUNK;
        for (int i = 0; i < n; i++)
            rows[i] = (batch_row){seq, r->tokens[at + i], ROW_CHAIN, true};
        cr_assert_eq(session_forward(s, prefill ? PHASE_PREFILL : PHASE_DECODE, rows, n, &e), TPL_OK, "%s: %s", e.where,
                     e.what);
        for (int i = 0; i < n; i++)
            compare_row(session_logits(s, i), r->logits + (size_t)(at + i) * (size_t)vocab, vocab, worst, n_other_top1);
        at += n;
    }
    session_drop_seq(s, seq);
}

static void compare_team(const char *name, const model *m, const st_file *refs, const char *variant_text,
                         const team_options *o)
{
    variant v;
    team *t = NULL;
    session *s = NULL;
    tpl_err e = {0};
    const model_config *c = model_cfg(m);
    cr_assert_eq(variant_parse(variant_text, &v, &e), TPL_OK, "%s", e.what);
    cr_assert_eq(team_create(m, NULL, &v, o, &t, &e), TPL_OK, "%s tp %d: %s: %s", name, o->tp, e.where, e.what);
    session_options so = {.max_seqs = 1, .max_tok = c->max_pos, .max_rows = 16, .max_logits = 16};
    cr_assert_eq(session_create(t, &so, &s, &e), TPL_OK, "%s: %s: %s", name, e.where, e.what);
    for (int i = 0; i < N_PROMPTS; i++) {
        reference r = get_reference(refs, i);
        double worst = 0, scale = deviation(r.logits, (size_t)r.n * (size_t)c->vocab);
        int n_other_top1 = 0;
        compare_prompt(s, &r, c->vocab, &worst, &n_other_top1);
        if (getenv("TPL_PARITY_TABLE"))
            fprintf(stderr, "%s,%s,%s,%d,%s,%d,%.3g,%d,%d\n", name, variant_text, o->backend ? o->backend : "cpu",
                    o->tp, o->plan.expert_parallel ? "ep" : "tp", i, worst / scale, r.n - n_other_top1, r.n);
        cr_expect(worst <= TOLERANCE * scale, "%s %s tp %d%s prompt %d: differs by %.3g of the logits' deviation %.3g",
                  name, variant_text, o->tp, o->plan.expert_parallel ? " ep" : "", i, worst / scale, scale);
        cr_expect_eq(n_other_top1, 0, "%s %s tp %d prompt %d: %d of %d rows prefer another token", name, variant_text,
                     o->tp, i, n_other_top1, r.n);
    }
    session_destroy(s);
    team_destroy(t);
}

static void compare_case(const char *name)
{
    char dir[256], path[320];
    model *m = NULL;
    st_file *refs = NULL;
    tpl_err e = {0};
    snprintf(dir, sizeof dir, "%s%s", PARITY, name);
    snprintf(path, sizeof path, "%s/reference.safetensors", dir);
    cr_assert_eq(model_open(dir, &m, &e), TPL_OK, "%s: %s", e.where, e.what);
    cr_assert_eq(model_check_finite(m, &e), TPL_OK, "%s: %s", e.where, e.what);
    cr_assert_eq(st_open(path, &refs, &e), TPL_OK, "%s: %s", e.where, e.what);
    bool mla = model_cfg(m)->attn == ATTN_MLA;
    compare_team(name, m, refs, mla ? "mla" : "gqa", &(team_options){.tp = 1, .backend = "ref"});
    for (int tp = 1; tp <= 4; tp *= 2) {
        team_options o = {.tp = tp, .isolate = tp == 2};
        compare_team(name, m, refs, mla ? "mla" : "gqa", &o);
        if (mla && tp > 1)
            compare_team(name, m, refs, "mla-dcp", &o);
        o.plan.expert_parallel = true;
        if (model_cfg(m)->n_experts > 0 && tp > 1)
            compare_team(name, m, refs, "mla", &o);
    }
    st_close(refs);
    model_close(m);
}

ParameterizedTestParameters(parity, agrees_with_transformers)
{
    size_t n = list_cases();
    return cr_make_param_array(parity_case, cases, n);
}

ParameterizedTest(parity_case *c, parity, agrees_with_transformers)
{
    compare_case(c->name);
}

Test(parity, has_all_stored_cases)
{
    cr_expect_geq(list_cases(), 24);
}
