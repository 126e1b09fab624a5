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
    spans_add(s, rank, (span){.step = step, .begin_ns = t->begun_ns, .end_ns = clock_ns(), .pass = t->pass - 1});
}

void spans_add(spans *s, int rank, span x)
{
    track *t = &s->tracks[rank];
    if (t->n < s->cap)
        t->items[t->n++] = x;
    else
        t->dropped++;
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

int spans_kind_of(const plan_step *step)
{
    return step->is_comm ? OP_COUNT + (int)step->comm : (int)step->call.kind;
}

void spans_totals(const spans *s, int rank, int64_t total_ns[SPANS_N_KINDS])
{
    memset(total_ns, 0, sizeof *total_ns * SPANS_N_KINDS);
    for (int64_t i = 0; i < s->tracks[rank].n; i++) {
        const span *p = &s->tracks[rank].items[i];
        if (!p->outside)
            total_ns[spans_kind_of(p->step)] += p->end_ns - p->begin_ns;
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

/* Kernels on a card, steps on a host. */
static bool is_work(const span *p)
{
    return p->kind ? strcmp(p->kind, "kernel") == 0 : !p->outside;
}

void spans_own_ns(const spans *s, int rank, int64_t *own_ns)
{
    int32_t pass = -1;
    int64_t last = 0;
    for (int64_t i = 0; i < spans_count(s, rank); i++) {
        const span *p = spans_at(s, rank, i);
        own_ns[i] = 0;
        if (!is_work(p))
            continue;
        if (p->pass != pass || p->begin_ns > last)
            last = p->begin_ns;
        pass = p->pass;
        if (p->end_ns > last) {
            own_ns[i] = p->end_ns - last;
            last = p->end_ns;
        }
    }
}

spans_pass_time spans_passes(const spans *s, int rank)
{
    spans_pass_time t = {0};
    int32_t pass = -1;
    int64_t first = 0, last = 0;
    for (int64_t i = 0; i < spans_count(s, rank); i++) {
        const span *p = spans_at(s, rank, i);
        if (!is_work(p))
            continue;
        t.n_kernels++;
        if (p->pass != pass) {
            t.pass_ns += last - first;
            if (pass >= 0)
                t.between_ns += p->begin_ns - last;
            pass = p->pass;
            t.n_passes++;
            first = last = p->begin_ns;
        } else if (p->begin_ns > last) {
            t.idle_ns += p->begin_ns - last;
            t.n_idle++;
        }
        last = p->end_ns > last ? p->end_ns : last;
    }
    t.pass_ns += last - first;
    return t;
}

static int64_t first_begin(const spans *s)
{
    int64_t first = INT64_MAX;
    for (int i = 0; i < s->n_ranks; i++)
        if (s->tracks[i].n && s->tracks[i].items[0].begin_ns < first)
            first = s->tracks[i].items[0].begin_ns;
    return first;
}

/* Tracks of a process: spans of a queue that run at the same time (a kernel may begin before the one before it ends)
 * go on tracks of their own, as a track's spans must lie inside or behind one another. */
enum { MAX_TRACKS = 64 };

typedef struct {
    uint32_t queue[MAX_TRACKS];
    int64_t end_ns[MAX_TRACKS];
    int n;
} track_set;

static int track_of(track_set *t, const span *p)
{
    for (int i = 0; i < t->n; i++)
        if (t->queue[i] == p->queue && (t->end_ns[i] <= p->begin_ns || t->n == MAX_TRACKS)) {
            t->end_ns[i] = p->end_ns;
            return i;
        }
    int i = t->n < MAX_TRACKS ? t->n++ : MAX_TRACKS - 1;
    t->queue[i] = p->queue;
    t->end_ns[i] = p->end_ns;
    return i;
}

static void add_span(text_buf *b, int rank, int tid, const span *p, int64_t zero)
{
    text_addf(b, ",\n{\"ph\":\"X\",\"pid\":%d,\"tid\":%d,\"name\":\"%s\",\"cat\":\"%s\",\"ts\":%.3f,\"dur\":%.3f", rank, tid,
              p->step->name, p->outside ? p->kind : spans_kind_name(spans_kind_of(p->step)),
              (double)(p->begin_ns - zero) / 1e3, (double)(p->end_ns - p->begin_ns) / 1e3);
    text_addf(b, ",\"args\":{\"layer\":%d,\"pass\":%d", p->step->layer, p->pass);
    if (p->name)
        text_addf(b, ",\"%s\":\"%s\",\"queue\":%u,\"correlation\":%u,\"external_id\":%llu,\"graph_node\":%llu", p->kind,
                  p->name, p->queue, p->correlation, (unsigned long long)p->id, (unsigned long long)p->node);
    text_addf(b, "}}");
}

static void add_rank(text_buf *b, const spans *s, int rank, const char *quoted_title, int64_t zero)
{
    track_set set = {0};
    text_addf(b, "%s{\"ph\":\"M\",\"pid\":%d,\"name\":\"process_name\",\"args\":{\"name\":\"rank %d: %s}}", rank ? ",\n" : "",
              rank, rank, quoted_title + 1);
    for (int64_t i = 0; i < s->tracks[rank].n; i++) {
        const span *p = &s->tracks[rank].items[i];
        int before = set.n, tid = track_of(&set, p);
        if (set.n > before && p->name)
            text_addf(b, ",\n{\"ph\":\"M\",\"pid\":%d,\"tid\":%d,\"name\":\"thread_name\",\"args\":{\"name\":\"%s %u\"}}", rank,
                      tid, strcmp(p->kind, "replay") == 0 ? "host thread" : "queue", p->queue);
        add_span(b, rank, tid, p, zero);
    }
}

tpl_code spans_write_chrome(const spans *s, const char *title, const char *path, tpl_err *e)
{
    text_buf b = {0};
    int64_t zero = first_begin(s);
    json_t *name = json_string(title);
    char *quoted = json_dumps(name, JSON_ENCODE_ANY);
    text_addf(&b, "{\"displayTimeUnit\":\"ns\",\"otherData\":{\"dropped_spans\":%lld},\"traceEvents\":[\n", (long long)spans_dropped(s));
    for (int r = 0; r < s->n_ranks; r++)
        add_rank(&b, s, r, quoted, zero);
    free(quoted);
    json_decref(name);
    text_addf(&b, "\n]}\n");
    tpl_code rc = text_write_file(path, b.data, b.len, e);
    text_fini(&b);
    return rc;
}
