#include "bench/spec_profile.h"

#include <math.h>
#include <string.h>

#include "bench/spec_card.h"
#include "bench/spec_trace.h"
#include "engine/spans.h"

enum { MAX_SPANS = 1 << 18 };

/* Seconds of kernel steps on a rank; of those in layers, attention's and the rest's. */
typedef struct {
    double busy, attention, feed_forward;
} rank_time;

static rank_time time_of_rank(const spans *s, int rank)
{
    rank_time t = {0};
    for (int64_t i = 0; s && i < spans_count(s, rank); i++) {
        const span *x = spans_at(s, rank, i);
        double seconds = (double)(x->end_ns - x->begin_ns) * 1e-9;
        if (x->step->is_comm)
            continue;
        t.busy += seconds;
        if (x->step->layer >= 0)
            *(strncmp(x->step->name, "attn.", 5) == 0 ? &t.attention : &t.feed_forward) += seconds;
    }
    return t;
}

static void sum_up(const spans *base, int base_ranks, const spans *draft, int draft_ranks, const spec_stats *x,
                   spec_profile *out)
{
    double wall = x->draft_s + x->verify_s + x->other_s, attention = 0, feed_forward = 0;
    *out = (spec_profile){.n_ranks = base_ranks > draft_ranks ? base_ranks : draft_ranks};
    if (out->n_ranks > SPEC_PROFILE_RANKS)
        out->n_ranks = SPEC_PROFILE_RANKS;
    for (int r = 0; r < out->n_ranks; r++) {
        double busy = r < base_ranks ? time_of_rank(base, r).busy : 0;
        busy += r < draft_ranks ? time_of_rank(draft, r).busy : 0;
        out->idle_s_per_100_tok[r] = (wall > busy ? wall - busy : 0) * 100 / (double)x->n_tok;
    }
    for (int r = 0; r < draft_ranks; r++) {
        rank_time t = time_of_rank(draft, r);
        attention += t.attention;
        feed_forward += t.feed_forward;
    }
    out->attn_share = draft_ranks ? attention / (attention + feed_forward) : NAN;
    out->attn_of_pass = draft_ranks ? attention / x->draft_s : NAN;
    out->layers_of_pass = draft_ranks ? (attention + feed_forward) / x->draft_s : NAN;
}

/* Passes spans on, except those of prefill, which is not part of what is profiled. */
typedef struct {
    session *on;
    spans *s;
    step_observer inner;
} tap;

static bool is_prefill_step(const tap *t, int rank, const plan_step *step)
{
    const plan_list *l = &team_plan(session_team(t->on), rank)->list[PHASE_PREFILL];
    return step >= l->steps && step < l->steps + l->n;
}

static void tap_begin(void *user, int rank, const plan_step *step)
{
    const tap *t = user;
    if (!is_prefill_step(t, rank, step))
        t->inner.begin(t->inner.user, rank, step);
}

static void tap_end(void *user, int rank, const plan_step *step, const op_call *call, mat out)
{
    const tap *t = user;
    if (!is_prefill_step(t, rank, step))
        t->inner.end(t->inner.user, rank, step, call, out);
}

static void open_tap(tap *t, session *on)
{
    *t = (tap){.on = on};
    if (!on)
        return;
    t->s = spans_create(team_n_local(session_team(on)), MAX_SPANS);
    t->inner = spans_observer(t->s);
    session_observe(on, (step_observer){tap_begin, tap_end, t});
}

static void close_tap(tap *t)
{
    if (!t->on)
        return;
    session_observe(t->on, (step_observer){0});
    spans_destroy(t->s);
}

tpl_code spec_profile_run(speculator *s, session *base, session *draft, spec_run run, const char *trace_path,
                          spec_profile *out, tpl_err *e)
{
    tap b, d;
    spec_stats x = {0};
    if (spec_on_card(base))
        return spec_profile_card(s, base, draft, run, out, e);
    open_tap(&b, base);
    open_tap(&d, draft);
    tpl_code rc = spec_generate(s, &run, &x, e);
    if (rc == TPL_OK) {
        sum_up(b.s, team_n_local(session_team(base)), d.s, draft ? team_n_local(session_team(draft)) : 0, &x, out);
        out->overlap = draft ? spec_attention_overlap(d.s, session_team(draft)) : NAN;
    }
    if (rc == TPL_OK && trace_path)
        rc = spans_write_chrome(draft ? d.s : b.s, draft ? "draft" : "base", trace_path, e);
    close_tap(&b);
    close_tap(&d);
    return rc;
}

double spec_gain_bound(const layer_groups *groups, int ranks, double part, int depth)
{
    double left = (double)groups_stages(groups, ranks) / groups_n_layers(groups), step = 1 / (1 - part * (1 - left));
    return depth / (1 + (depth - 1) / step);
}
