#include "engine/spans.h"

#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/json.h"

/* Each rank writes only its own track, on its own cache lines. */
typedef struct {
    _Alignas(64) span *items;
    int64_t n, dropped, begun_ns;
    int32_t pass;
    const plan_step *last;
} track;

struct spans {
    int n_ranks;
    int64_t cap;
    track *tracks;
};

spans *spans_create(int n_ranks, int64_t per_rank)
{
    spans *s = tpl_calloc(1, sizeof *s);
    s->n_ranks = n_ranks;
    s->cap = per_rank;
    s->tracks = aligned_alloc(64, sizeof(track) * (size_t)n_ranks);
    if (!s->tracks)
        abort();
    memset(s->tracks, 0, sizeof(track) * (size_t)n_ranks);
    for (int i = 0; i < n_ranks; i++)
        s->tracks[i].items = tpl_calloc((size_t)per_rank, sizeof(span));
    return s;
}

void spans_destroy(spans *s)
{
    if (!s)
        return;
    for (int i = 0; i < s->n_ranks; i++)
        free(s->tracks[i].items);
    free(s->tracks);
    free(s);
}

static void on_begin(void *user, int rank, const plan_step *step)
{
    track *t = &((spans *)user)->tracks[rank];
    /* Ranks that take no part in the embedding (fuzzy plans) are seen to begin again in their list. */
    bool first = step->call.kind == OP_EMBED && !step->is_comm;
    if (first || !t->last || step <= t->last)
        t->pass++;
    t->last = step;
    t->begun_ns = clock_ns();
}

static void on_end(void *user, int rank, const plan_step *step, const op_call *call, mat out)
{
    spans *s = user;
    track *t = &s->tracks[rank];
    if (t->n == s->cap) {
        t->dropped++;
        return;
    }
    t->items[t->n++] = (span){step, t->begun_ns, clock_ns(), t->pass - 1};
}

step_observer spans_observer(spans *s)
{
    return (step_observer){.begin = on_begin, .end = on_end, .user = s};
}

void spans_clear(spans *s)
{
    for (int i = 0; i < s->n_ranks; i++) {
        s->tracks[i].n = s->tracks[i].dropped = s->tracks[i].pass = 0;
        s->tracks[i].last = NULL;
    }
}

int64_t spans_count(const spans *s, int rank)
{
    return s->tracks[rank].n;
}

const span *spans_at(const spans *s, int rank, int64_t i)
{
    return &s->tracks[rank].items[i];
}

int64_t spans_dropped(const spans *s)
{
    int64_t n = 0;
    for (int i = 0; i < s->n_ranks; i++)
        n += s->tracks[i].dropped;
    return n;
}

const char *spans_kind_name(int kind)
{
    return kind < OP_COUNT ? op_name((op_kind)kind) : comm_op_name((comm_op)(kind - OP_COUNT));
}

int spans_kind(const plan_step *step)
{
    return step->is_comm ? OP_COUNT + (int)step->comm : (int)step->call.kind;
}

void spans_totals(const spans *s, int rank, int64_t total_ns[SPANS_N_KINDS])
{
    memset(total_ns, 0, sizeof *total_ns * SPANS_N_KINDS);
    for (int64_t i = 0; i < s->tracks[rank].n; i++) {
        const span *p = &s->tracks[rank].items[i];
        total_ns[spans_kind(p->step)] += p->end_ns - p->begin_ns;
    }
}

double spans_overlap(const spans *s, const char *name, int a, int b)
{
    int64_t own = 0, both = 0, k = 0;
    for (int64_t i = 0; i < s->tracks[a].n; i++) {
        const span *p = &s->tracks[a].items[i];
        if (strcmp(p->step->name, name) != 0)
            continue;
        own += p->end_ns - p->begin_ns;
        while (k < s->tracks[b].n && s->tracks[b].items[k].end_ns <= p->begin_ns)
            k++;
        for (int64_t m = k; m < s->tracks[b].n && s->tracks[b].items[m].begin_ns < p->end_ns; m++) {
            const span *q = &s->tracks[b].items[m];
            int64_t from = q->begin_ns > p->begin_ns ? q->begin_ns : p->begin_ns, to = q->end_ns < p->end_ns ? q->end_ns : p->end_ns;
            if (to > from && strcmp(q->step->name, name) == 0)
                both += to - from;
        }
    }
    return own ? (double)both / (double)own : 0;
}

static int64_t first_begin(const spans *s)
{
    int64_t first = INT64_MAX;
    for (int i = 0; i < s->n_ranks; i++)
        if (s->tracks[i].n && s->tracks[i].items[0].begin_ns < first)
            first = s->tracks[i].items[0].begin_ns;
    return first;
}

tpl_code spans_write_chrome(const spans *s, const char *title, const char *path, tpl_err *e)
{
    text_buf b = {0};
    int64_t zero = first_begin(s);
    json_t *name = json_string(title);
    char *quoted = json_dumps(name, JSON_ENCODE_ANY);
    text_addf(&b, "{\"displayTimeUnit\":\"ns\",\"otherData\":{\"dropped_spans\":%lld},\"traceEvents\":[\n", (long long)spans_dropped(s));
    text_addf(&b, "{\"ph\":\"M\",\"pid\":0,\"name\":\"process_name\",\"args\":{\"name\":%s}}", quoted);
    free(quoted);
    json_decref(name);
    for (int r = 0; r < s->n_ranks; r++) {
        text_addf(&b, ",\n{\"ph\":\"M\",\"pid\":0,\"tid\":%d,\"name\":\"thread_name\",\"args\":{\"name\":\"rank %d\"}}", r, r);
        for (int64_t i = 0; i < s->tracks[r].n; i++) {
            const span *p = &s->tracks[r].items[i];
            text_addf(&b, ",\n{\"ph\":\"X\",\"pid\":0,\"tid\":%d,\"name\":\"%s\",\"cat\":\"%s\",\"ts\":%.3f,\"dur\":%.3f,\"args\":{\"layer\":%d,\"pass\":%d}}", r,
                      p->step->name, spans_kind_name(spans_kind(p->step)), (double)(p->begin_ns - zero) / 1e3, (double)(p->end_ns - p->begin_ns) / 1e3, p->step->layer, p->pass);
        }
    }
    text_addf(&b, "\n]}\n");
    tpl_code rc = text_write_file(path, b.data, b.len, e);
    text_fini(&b);
    return rc;
}
