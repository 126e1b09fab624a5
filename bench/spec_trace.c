#include "bench/spec_trace.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "engine/card_trace.h"
#include "engine/exec.h"
#include "engine/generate.h"

/* ---- overlap ---- */

typedef struct {
    int64_t begin, end;
} window;

typedef struct {
    window *at; /* [n_passes, groups, 2 ranks] */
    int n_passes, n_groups;
} windows;

static int group_of(const layer_groups *g, int layer)
{
    int i = 0;
    for (int first = 0; i < g->n && layer >= first + g->size[i]; i++)
        first += g->size[i];
    return i;
}

static bool is_fuzzy_attention(const plan *p, const span *x)
{
    const plan_list *l = &p->list[PHASE_FUZZY];
    return x->step >= l->steps && x->step < l->steps + l->n && x->step->layer >= 0 &&
           strncmp(x->step->name, "attn.", 5) == 0 && strcmp(x->step->name, "attn.add") != 0;
}

static void widen(window *w, const span *x)
{
    w->begin = w->end == 0 || x->begin_ns < w->begin ? x->begin_ns : w->begin;
    w->end = x->end_ns > w->end ? x->end_ns : w->end;
}

static double common(const window *a, const window *b)
{
    int64_t from = a->begin > b->begin ? a->begin : b->begin, to = a->end < b->end ? a->end : b->end;
    int64_t one = a->end - a->begin, other = b->end - b->begin, shorter = one < other ? one : other;
    return to > from && shorter > 0 ? (double)(to - from) / (double)shorter : 0;
}

/* The fuzzy passes that a rank has seen, span by span. A host's timers number what they see of all lists, which is not
 * the same on every rank: some take no part in exact passes. A rank's steps come in the list's order there. */
typedef struct {
    bool by_number;
    const plan_step *last;
    int n;
} pass_count;

static int pass_of(pass_count *c, const span *x)
{
    if (c->by_number) {
        c->n = x->pass >= c->n ? x->pass + 1 : c->n;
        return x->pass;
    }
    c->n += !c->last || x->step <= c->last;
    c->last = x->step;
    return c->n - 1;
}

/* Gives each fuzzy attention of both ranks to its group's window; with w->at NULL it only counts passes. */
static void lay_windows(const spans *s, team *t, windows *w)
{
    for (int rank = 0; rank < 2; rank++) {
        pass_count c = {.by_number = !team_exec(t)->host};
        for (int64_t i = 0; i < spans_count(s, rank); i++) {
            const span *x = spans_at(s, rank, i);
            if (x->pass < 0 || !is_fuzzy_attention(team_plan(t, rank), x))
                continue;
            int pass = pass_of(&c, x), group = group_of(&team_opts(t)->plan.fuzzy.groups, x->step->layer);
            if (w->at)
                widen(&w->at[(pass * w->n_groups + group) * 2 + rank], x);
        }
        w->n_passes = c.n > w->n_passes ? c.n : w->n_passes;
    }
}

double spec_attention_overlap(const spans *s, team *t)
{
    double sum = 0;
    int n = 0;
    windows w = {.n_groups = team_opts(t)->plan.fuzzy.groups.n};
    if (team_n_local(t) < 2 || w.n_groups == 0)
        return NAN;
    lay_windows(s, t, &w);
    w.at = tpl_calloc((size_t)w.n_passes * (size_t)w.n_groups * 2 + 1, sizeof *w.at);
    lay_windows(s, t, &w);
    for (int i = 0; i < w.n_passes * w.n_groups; i++)
        if (w.at[2 * i].end && w.at[2 * i + 1].end) {
            sum += common(&w.at[2 * i], &w.at[2 * i + 1]);
            n++;
        }
    free(w.at);
    return n ? sum / n : NAN;
}

/* ---- on a card ---- */

/* Marks are one thread's. */
static tpl_code check_threads(session *s, tpl_err *e)
{
    if (team_has_threads(session_team(s)))
        return tpl_fail(e, TPL_E_UNSUPPORTED, "--trace", "needs --graph on where ranks have a card each");
    return TPL_OK;
}

/* The prompt twice under the tracer: walks are recorded in the first run, the second is shown, as one pass. */
tpl_code spec_trace_card(speculator *s, session *base, session *draft, spec_run run, const char *path, tpl_err *e)
{
    gpu_trace *t = NULL;
    session *shown = draft ? draft : base;
    TPL_TRY(check_threads(shown, e));
    session_set_trace_tag(shown, 1);
    TPL_TRY(gpu_trace_begin(&t, e));
    tpl_code rc = TPL_OK;
    for (int i = 0; i < 2 && rc == TPL_OK; i++) {
        spec_stats x = {0};
        gpu_trace_pass(i - 1);
        rc = spec_generate(s, &run, &x, e);
    }
    if (rc == TPL_OK)
        rc = gpu_trace_end(t, e);
    if (rc == TPL_OK) {
        card_trace_check check;
        spans *sp = card_trace_spans(shown, t, 1, false, &check);
        spans_pass_time time = spans_passes(sp, 0);
        log_note("trace %s: %.1f us, no kernel of %s runs in %.1f%% of it; %lld records lost", path,
                 (double)time.pass_ns / 1e3, draft ? "the draft" : "the base",
                 time.pass_ns ? 100 * (double)time.idle_ns / (double)time.pass_ns : 0, (long long)check.n_dropped);
        rc = spans_write_chrome(sp, draft ? "draft" : "base", path, e);
        spans_destroy(sp);
    }
    gpu_trace_destroy(t);
    session_set_trace_tag(shown, 0);
    return rc;
}

enum { WARM = 2, TRACED = 4 };

static tpl_code fuzzy_pass(session *s, int seq, tpl_err *e)
{
    batch_row row = {seq, 1, ROW_CHAIN, true};
    TPL_TRY(session_forward(s, PHASE_FUZZY, &row, 1, e));
    session_truncate(s, seq, session_len(s, seq) - 1);
    return TPL_OK;
}

/* Passes are recorded under the trace before they are numbered. */
static tpl_code run_traced(session *s, int seq, tpl_err *e)
{
    tpl_code rc = TPL_OK;
    for (int i = -WARM; i < TRACED && rc == TPL_OK; i++) {
        gpu_trace_pass(i < 0 ? -1 : i);
        rc = fuzzy_pass(s, seq, e);
    }
    gpu_trace_pass(-1);
    return rc;
}

static tpl_code overlap_of_seq(session *s, int seq, double *overlap, tpl_err *e)
{
    gpu_trace *t = NULL;
    TPL_TRY(gpu_trace_begin(&t, e));
    tpl_code rc = run_traced(s, seq, e);
    if (rc == TPL_OK)
        rc = gpu_trace_end(t, e);
    if (rc == TPL_OK) {
        card_trace_check check;
        spans *sp = card_trace_spans(s, t, TRACED, !team_opts(session_team(s))->no_graph, &check);
        *overlap = spec_attention_overlap(sp, session_team(s));
        spans_destroy(sp);
    }
    gpu_trace_destroy(t);
    return rc;
}

tpl_code spec_overlap_card(session *draft, const int32_t *prompt, int n_prompt, double *overlap, tpl_err *e)
{
    TPL_TRY(check_threads(draft, e));
    int seq = session_add_seq(draft);
    tpl_code rc = generate_prefill(draft, seq, prompt, n_prompt, e);
    if (rc == TPL_OK)
        rc = overlap_of_seq(draft, seq, overlap, e);
    session_drop_seq(draft, seq);
    return rc;
}
