#include "engine/card_trace.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/card_marks.h"
#include "engine/exec_cuda.h"
#include "engine/session_impl.h"

/* What a pass needs besides its steps. */
static const plan_step contents_step = {.name = "batch contents", .layer = -1},
                       best_step = {.name = "best tokens", .layer = -1},
                       replay_step = {.name = "launch of the pass", .layer = -1}, unmarked_step = {.name = "?", .layer = -1};

static const plan_step *step_of(const plan *p, uint64_t mark, bool *outside)
{
    int index = card_mark_index(mark);
    *outside = true;
    if (mark == 0)
        return &unmarked_step;
    if (index == CARD_MARK_CONTENTS)
        return &contents_step;
    if (index == CARD_MARK_BEST)
        return &best_step;
    *outside = false;
    return &p->list[card_mark_phase(mark)].steps[index];
}

/* The mark says who enqueued; where ranks have a card each, the card says for whom. */
static int rank_of(session *s, const gpu_slice *x)
{
    cuda_team *c = *team_exec_state(s->t);
    if (x->kind == GPU_DID_REPLAY)
        return 0;
    for (int r = 0; c->n_places > 1 && r < s->n_ranks; r++)
        if (gpu_get_facts(cuda_place_of(c, r)->card)->ordinal == x->card)
            return r;
    int rank = x->mark ? card_mark_rank(x->mark) : 0;
    return rank < s->n_ranks ? rank : 0;
}

static span span_of(session *s, const gpu_slice *x, int rank)
{
    span p = {.begin_ns = x->begin_ns,
              .end_ns = x->end_ns,
              .pass = x->pass,
              .n_steps = x->mark ? card_mark_steps(x->mark) : 1,
              .name = x->name,
              .kind = gpu_did_name(x->kind),
              .queue = x->queue,
              .correlation = x->correlation,
              .id = x->mark,
              .node = x->node};
    p.step = x->kind == GPU_DID_REPLAY ? &replay_step : step_of(team_plan(s->t, rank), x->mark, &p.outside);
    p.outside = p.outside || x->kind == GPU_DID_REPLAY;
    return p;
}

/* ---- records against what was recorded for replay ---- */

typedef struct {
    const gpu_trace *t;
    card_trace_check *check;
    int32_t n_passes;
    int64_t *seen; /* [n_passes] of the mark at hand */
} like;

enum { N_NODE_KINDS = GPU_DID_FILL + 1 };

static void say_unlike(like *l, const char *name, int layer, int pass, const int64_t want[N_NODE_KINDS])
{
    snprintf(l->check->first_unlike, sizeof l->check->first_unlike,
             "%.40s of layer %d in pass %d: %lld records, recorded were %lld kernels, %lld copies, %lld fills", name,
             layer, pass, (long long)l->seen[pass], (long long)want[GPU_DID_KERNEL], (long long)want[GPU_DID_COPY],
             (long long)want[GPU_DID_FILL]);
}

static void compare(like *l, uint64_t mark, const char *name, int layer)
{
    int64_t n, want_of[N_NODE_KINDS], want = 0;
    for (int k = 0; k < N_NODE_KINDS; k++)
        want += want_of[k] = gpu_trace_recorded(l->t, mark, (gpu_did)k);
    const gpu_slice *slices = gpu_trace_slices(l->t, &n);
    memset(l->seen, 0, sizeof *l->seen * (size_t)l->n_passes);
    for (int64_t i = 0; i < n; i++)
        if (slices[i].mark == mark && slices[i].node && slices[i].pass >= 0 && slices[i].pass < l->n_passes)
            l->seen[slices[i].pass]++;
    for (int32_t p = 0; p < l->n_passes; p++) {
        if (l->seen[p] == want)
            continue;
        if (l->check->n_unlike++ == 0)
            say_unlike(l, name, layer, p, want_of);
    }
}

static void compare_all(session *s, like *l)
{
    for (int r = 0; r < s->n_ranks; r++) {
        const plan_list *list = &team_plan(s->t, r)->list[s->phase];
        for (int i = 0; i < list->n; i++)
            for (int n = 1; n <= KERNEL_MAX_JOIN; n++)
                compare(l, card_mark_run(card_mark(s->trace_tag, r, s->phase, i), n), list->steps[i].name,
                        list->steps[i].layer);
    }
    compare(l, card_mark(s->trace_tag, 0, s->phase, CARD_MARK_BEST), best_step.name, -1);
}

/* What nothing claims, and launches of replays, are shown with every session. */
static bool is_of(const session *s, const gpu_slice *x)
{
    return x->mark == 0 || card_mark_tag(x->mark) == s->trace_tag;
}

spans *card_trace_spans(session *s, const gpu_trace *t, int32_t n_passes, bool replayed, card_trace_check *check)
{
    int64_t n;
    const gpu_slice *slices = gpu_trace_slices(t, &n);
    spans *out = spans_create(s->n_ranks, n > 0 ? n : 1);
    *check = (card_trace_check){.n_dropped = gpu_trace_dropped(t)};
    for (int64_t i = 0; i < n; i++) {
        if (slices[i].pass < 0 || slices[i].pass >= n_passes || !is_of(s, &slices[i]))
            continue;
        int rank = rank_of(s, &slices[i]);
        spans_add(out, rank, span_of(s, &slices[i], rank));
        check->n_unmarked += slices[i].mark == 0 && slices[i].kind != GPU_DID_REPLAY;
    }
    if (replayed && n_passes > 0) {
        like l = {t, check, n_passes, tpl_calloc((size_t)n_passes, sizeof *l.seen)};
        compare_all(s, &l);
        free(l.seen);
    }
    return out;
}
