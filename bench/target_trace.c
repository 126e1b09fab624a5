#include "bench/target_trace.h"

#include <math.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "bench/trace_table.h"
#include "device/gpu.h"
#include "device/gpu_trace.h"

enum { WARM = 2, RUNS = 8, MAX_NAMES = 32, MAX_CARDS = 16 };

static tpl_code run_numbered(const bench_target *t, bool number, double *us, tpl_err *e)
{
    for (int i = 0; i < WARM; i++)
        TPL_TRY(t->run(t->self, e));
    int64_t begin = clock_ns();
    for (int i = 0; i < RUNS; i++) {
        if (number)
            gpu_trace_pass(i);
        TPL_TRY(t->run(t->self, e));
        if (number)
            gpu_trace_pass(-1);
    }
    *us = (double)(clock_ns() - begin) / 1e3 / RUNS;
    return TPL_OK;
}

/* What is recorded for replay must be recorded under the tracer: prepared anew. */
static tpl_code run_prepared(const bench_target *t, bool number, double *us, tpl_err *e)
{
    tpl_code rc = t->prepare(t->self, e);
    if (rc == TPL_OK)
        rc = run_numbered(t, number, us, e);
    t->release(t->self);
    return rc;
}

/* ---- records as spans ---- */

/* One stand-in for a step a name. */
typedef struct {
    plan_step items[MAX_NAMES];
    int n;
} name_set;

static const plan_step *step_named(name_set *s, const char *name)
{
    for (int i = 0; i < s->n; i++)
        if (strcmp(s->items[i].name, name) == 0)
            return &s->items[i];
    if (s->n < MAX_NAMES)
        s->items[s->n++] = (plan_step){.name = name, .layer = -1};
    return &s->items[s->n - 1];
}

static spans *spans_of(const gpu_trace *t, int n_cards, name_set *names)
{
    int64_t n;
    const gpu_slice *slices = gpu_trace_slices(t, &n);
    spans *s = spans_create(n_cards, n + 1);
    for (int64_t i = 0; i < n; i++) {
        const gpu_slice *x = &slices[i];
        int card = x->card > 0 && x->card < n_cards ? x->card : 0;
        if (x->pass < 0)
            continue;
        spans_add(s, card,
                  (span){.step = step_named(names, x->kind == GPU_DID_REPLAY ? "launch of the replay" : x->name),
                         .begin_ns = x->begin_ns,
                         .end_ns = x->end_ns,
                         .pass = x->pass,
                         .n_steps = 1,
                         .outside = true,
                         .name = x->name,
                         .kind = gpu_did_name(x->kind),
                         .queue = x->queue,
                         .correlation = x->correlation,
                         .node = x->node});
    }
    return s;
}

static tpl_code write(const target_trace *t, const gpu_trace *trace, double overhead, run_dir *rd, tpl_err *e)
{
    static const plan nothing = {0};
    const plan *plans[MAX_CARDS];
    name_set names = {.n = 0};
    int cards = gpu_count() < MAX_CARDS ? gpu_count() : MAX_CARDS;
    for (int i = 0; i < cards; i++)
        plans[i] = &nothing;
    spans *s = spans_of(trace, cards, &names);
    trace_table files = {.s = s,
                         .name = t->name,
                         .title = t->title,
                         .what = t->phase,
                         .n_ranks = cards,
                         .plans = plans,
                         .source = "CUPTI",
                         .overhead = overhead,
                         .n_dropped = gpu_trace_dropped(trace) + spans_dropped(s),
                         .unlike = ""};
    tpl_code rc = trace_table_write(&files, t->config, t->user, rd, e);
    spans_destroy(s);
    return rc;
}

tpl_code target_trace_write(const target_trace *t, run_dir *rd, tpl_err *e)
{
    double plain_us = 0, traced_us = 0;
    gpu_trace *trace = NULL;
    TPL_TRY(run_prepared(t->target, false, &plain_us, e));
    TPL_TRY(gpu_trace_begin(&trace, e));
    tpl_code rc = run_prepared(t->target, true, &traced_us, e);
    if (rc == TPL_OK)
        rc = gpu_trace_end(trace, e);
    if (rc == TPL_OK) {
        log_note("trace %s: a run of %s takes %.1f us, traced %.1f us (%+.1f%%); %lld records lost", t->name, t->title,
                 plain_us, traced_us, 100 * (traced_us / plain_us - 1), (long long)gpu_trace_dropped(trace));
        rc = write(t, trace, traced_us / plain_us, rd, e);
    }
    gpu_trace_destroy(trace);
    return rc;
}
