#include "bench/ceilings.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <oneapi/dnnl/dnnl.h>

#include "base/clock.h"
#include "base/json.h"
#include "base/threads.h"
#include "bench/crew.h"
#include "results/host.h"

/* Raised whenever the probes change, so that old caches no longer fit. */
enum { CEILINGS_CODE = 2 };
enum { MANY_CORES = 4, MIN_RUNS = 4 };
static const double moved_frac = 0.10, default_budget_s = 1.2, check_share = 0.25;

/* ---- measuring ---- */

typedef struct {
    crew *c;
    const ceil_probe *p;
    ceil_state *states; /* a thread */
    int64_t *begin_ns, *end_ns;
    double *amount;
} probe_job;

static tpl_code open_member(void *arg, int i, tpl_err *e)
{
    probe_job *j = arg;
    return j->p->open(&j->states[i], e);
}

static tpl_code close_member(void *arg, int i, tpl_err *e)
{
    probe_job *j = arg;
    j->p->close(&j->states[i]);
    return TPL_OK;
}

static tpl_code run_member(void *arg, int i, tpl_err *e)
{
    probe_job *j = arg;
    if (j->p->cool)
        j->p->cool(&j->states[i]);
    crew_meet(j->c);
    j->begin_ns[i] = clock_ns();
    j->amount[i] = j->p->run(&j->states[i]);
    j->end_ns[i] = clock_ns();
    return TPL_OK;
}

/* 1e9 a second over all threads, from the first that began to the last that ended. */
static double rate_of_run(const probe_job *j)
{
    double sum = 0;
    int64_t begin = j->begin_ns[0], end = j->end_ns[0];
    for (int i = 0; i < crew_size(j->c); i++) {
        if (j->amount[i] <= 0)
            return 0;
        sum += j->amount[i];
        begin = j->begin_ns[i] < begin ? j->begin_ns[i] : begin;
        end = j->end_ns[i] > end ? j->end_ns[i] : end;
    }
    return end > begin ? sum / (double)(end - begin) : 0;
}

static double best_rate(probe_job *j, double budget_s)
{
    double until = clock_seconds() + budget_s, best = 0;
    for (int i = 0; i < MIN_RUNS || clock_seconds() < until; i++) {
        crew_run(j->c, run_member, j, NULL);
        best = fmax(best, rate_of_run(j));
    }
    return best;
}

static void keep_best(ceilings *out, int at, const ceil_probe *p, double rate)
{
    if (rate <= out->rate[p->kind][at])
        return;
    out->rate[p->kind][at] = rate;
    if (out->threads[at] == 1)
        snprintf(out->source[p->kind], sizeof out->source[p->kind], "%s", p->source);
}

/* All probes with one crew. Probes that open alike share their buffers. */
static tpl_code measure_probes(probe_job *j, double budget_s, ceilings *out, int at, tpl_err *e)
{
    const ceil_probe *probes;
    int n = ceil_probes(&probes);
    bool open = false;
    for (int i = 0; i < n; i++) {
        tpl_code rc = TPL_OK;
        j->p = &probes[i];
        if (!open)
            rc = crew_run(j->c, open_member, j, e);
        if (rc == TPL_OK)
            keep_best(out, at, &probes[i], best_rate(j, budget_s / n));
        open = rc == TPL_OK && i + 1 < n && probes[i + 1].open == probes[i].open;
        if (!open)
            crew_run(j->c, close_member, j, NULL);
        if (rc != TPL_OK && rc != TPL_E_UNSUPPORTED)
            return rc;
    }
    return TPL_OK;
}

static tpl_code measure_count(double budget_s, evict *ev, ceilings *out, int at, tpl_err *e)
{
    int n = out->threads[at];
    probe_job j = {0};
    TPL_TRY(crew_create(n, &j.c, e));
    j.states = tpl_calloc((size_t)n, sizeof *j.states);
    j.begin_ns = tpl_calloc((size_t)n, sizeof *j.begin_ns);
    j.end_ns = tpl_calloc((size_t)n, sizeof *j.end_ns);
    j.amount = tpl_calloc((size_t)n, sizeof *j.amount);
    for (int i = 0; i < n; i++)
        j.states[i].ev = ev;
    tpl_code rc = measure_probes(&j, budget_s, out, at, e);
    free(j.states);
    free(j.begin_ns);
    free(j.end_ns);
    free(j.amount);
    crew_destroy(j.c);
    return rc;
}

/* 1, 2, ... where cores are few, else powers of two; all cores last. */
static void set_counts(ceilings *c)
{
    c->n = 0;
    for (int t = 1; t < c->cores && c->n < CEIL_MAX_COUNTS - 1; t = c->cores <= MANY_CORES ? t + 1 : 2 * t)
        c->threads[c->n++] = t;
    c->threads[c->n++] = c->cores;
}

static void describe_host(ceilings *c)
{
    json_t *host = host_facts();
    const char *cpu = json_string_value(json_object_get(host, "cpu"));
    snprintf(c->cpu, sizeof c->cpu, "%s", cpu ? cpu : "unknown processor");
    json_decref(host);
    c->cores = threads_usable_cores();
}

/* The counts that are already in out->threads. */
static tpl_code measure_counts(double budget_s, ceilings *out, tpl_err *e)
{
    evict *ev;
    TPL_TRY(evict_create(&ev, e));
    tpl_code rc = TPL_OK;
    for (int i = 0; i < out->n && rc == TPL_OK; i++)
        rc = measure_count(budget_s / out->n, ev, out, i, e);
    evict_destroy(ev);
    return rc;
}

tpl_code ceilings_measure(double budget_s, ceilings *out, tpl_err *e)
{
    ceilings c = {.measured_at = (int64_t)time(NULL)};
    describe_host(&c);
    set_counts(&c);
    TPL_TRY(measure_counts(budget_s, &c, e));
    *out = c;
    return TPL_OK;
}

tpl_code ceilings_lift(double budget_s, ceilings *c, tpl_err *e)
{
    ceilings again;
    TPL_TRY(ceilings_measure(budget_s, &again, e));
    for (int k = 0; k < CEIL_N; k++)
        for (int i = 0; i < c->n && c->n == again.n; i++)
            c->rate[k][i] = fmax(c->rate[k][i], again.rate[k][i]);
    return TPL_OK;
}

/* ---- asking ---- */

double ceilings_rate(const ceilings *c, ceil_kind k, int threads)
{
    int i = 0;
    while (i + 1 < c->n && c->threads[i + 1] <= threads)
        i++;
    if (i + 1 >= c->n || threads <= c->threads[i])
        return c->rate[k][i];
    double part = (double)(threads - c->threads[i]) / (c->threads[i + 1] - c->threads[i]);
    return c->rate[k][i] + part * (c->rate[k][i + 1] - c->rate[k][i]);
}

double ceilings_gain(const ceilings *c, ceil_kind k, int threads)
{
    return ceilings_rate(c, k, threads) / ceilings_rate(c, k, 1);
}

int ceilings_compare(const ceilings *before, const ceilings *now, char *buf, size_t bytes)
{
    int n = 0;
    size_t used = 0;
    buf[0] = 0;
    for (int k = 0; k < CEIL_N; k++)
        for (int i = 0; i < now->n; i++) {
            double was = ceilings_rate(before, (ceil_kind)k, now->threads[i]), is = now->rate[k][i];
            if (fabs(is - was) <= moved_frac * was)
                continue;
            int added =
                snprintf(buf + used, bytes - used, "%s%s with %d thread%s: %.1f %s, was %.1f (%+.0f%%)",
                         n > 0 ? "; " : "", ceil_name((ceil_kind)k), now->threads[i], now->threads[i] > 1 ? "s" : "",
                         is, ceil_unit((ceil_kind)k), was, 100 * (is / was - 1));
            used += added < 0 ? 0 : (size_t)added < bytes - used ? (size_t)added : bytes - used - 1;
            n++;
        }
    return n;
}

/* ---- as JSON ---- */

json_t *ceilings_to_json(const ceilings *c)
{
    json_t *j = json_object(), *threads = json_array(), *rates = json_object(), *sources = json_object();
    for (int i = 0; i < c->n; i++)
        json_array_append_new(threads, json_integer(c->threads[i]));
    for (int k = 0; k < CEIL_N; k++) {
        json_t *row = json_array();
        for (int i = 0; i < c->n; i++)
            json_array_append_new(row, json_real(c->rate[k][i]));
        json_object_set_new(rates, ceil_name((ceil_kind)k), row);
        json_object_set_new(sources, ceil_name((ceil_kind)k), json_string(c->source[k]));
    }
    json_object_set_new(j, "cpu", json_string(c->cpu));
    json_object_set_new(j, "cores", json_integer(c->cores));
    json_object_set_new(j, "measured_at", json_integer(c->measured_at));
    json_object_set_new(j, "threads", threads);
    json_object_set_new(j, "rates_1e9_s", rates);
    json_object_set_new(j, "sources", sources);
    return j;
}

static tpl_code read_counts(const json_t *threads, const char *where, ceilings *c, tpl_err *e)
{
    size_t n = json_array_size(threads);
    if (n < 1 || n > CEIL_MAX_COUNTS)
        return tpl_fail(e, TPL_E_INPUT, where, "field 'threads' has %zu items, expected 1 to %d", n, CEIL_MAX_COUNTS);
    for (size_t i = 0; i < n; i++) {
        json_int_t t = json_integer_value(json_array_get(threads, i)), before = i > 0 ? c->threads[i - 1] : 0;
        if (t <= before || t > 1 << 20)
            return tpl_fail(e, TPL_E_INPUT, where, "item %zu of 'threads' is %lld, expected more than %lld", i,
                            (long long)t, (long long)before);
        c->threads[i] = (int32_t)t;
    }
    c->n = (int32_t)n;
    return TPL_OK;
}

static tpl_code read_rates(const json_t *rates, const json_t *sources, const char *where, ceilings *c, tpl_err *e)
{
    for (int k = 0; k < CEIL_N; k++) {
        json_t *row;
        const char *source;
        TPL_TRY(json_want_array(rates, ceil_name((ceil_kind)k), &row, where, e));
        TPL_TRY(json_want_str(sources, ceil_name((ceil_kind)k), &source, where, e));
        snprintf(c->source[k], sizeof c->source[k], "%s", source);
        for (int i = 0; i < c->n; i++) {
            c->rate[k][i] = json_number_value(json_array_get(row, (size_t)i));
            if (!(c->rate[k][i] >= 0 && c->rate[k][i] < 1e12))
                return tpl_fail(e, TPL_E_INPUT, where, "rate %d of '%s' is %g, expected 0 or more", i,
                                ceil_name((ceil_kind)k), c->rate[k][i]);
        }
    }
    return TPL_OK;
}

tpl_code ceilings_from_json(const json_t *j, const char *where, ceilings *out, tpl_err *e)
{
    ceilings c = {0};
    const char *cpu;
    int64_t cores = 0;
    json_t *threads, *rates, *sources;
    TPL_TRY(json_want_str(j, "cpu", &cpu, where, e));
    TPL_TRY(json_want_int(j, "cores", 1, 1 << 20, &cores, where, e));
    TPL_TRY(json_want_int(j, "measured_at", 0, INT64_MAX, &c.measured_at, where, e));
    TPL_TRY(json_want_array(j, "threads", &threads, where, e));
    TPL_TRY(json_want_object(j, "rates_1e9_s", &rates, where, e));
    TPL_TRY(json_want_object(j, "sources", &sources, where, e));
    snprintf(c.cpu, sizeof c.cpu, "%s", cpu);
    c.cores = (int32_t)cores;
    TPL_TRY(read_counts(threads, where, &c, e));
    TPL_TRY(read_rates(rates, sources, where, &c, e));
    *out = c;
    return TPL_OK;
}

/* ---- the cache ---- */

/* A file a processor, core count and build. */
static tpl_code cache_path(arena *a, const ceilings_options *o, char **path, tpl_err *e)
{
    ceilings host = {0};
    char *dir = NULL;
    describe_host(&host);
    if (o->cache_dir)
        dir = arena_strdup(a, o->cache_dir);
    else
        TPL_TRY(text_cache_dir(a, &dir, e));
    const dnnl_version_t *v = dnnl_version();
    char *key = arena_printf(a, "%s|%d|%d|%s|%d.%d.%d", host.cpu, host.cores, CEILINGS_CODE, __VERSION__, v->major,
                             v->minor, v->patch);
    *path = text_path_join(a, dir, arena_printf(a, "ceilings-%.12s.json", sha256_bytes(key, strlen(key)).hex));
    return TPL_OK;
}

static bool load(const char *path, ceilings *out)
{
    json_t *j = NULL;
    if (!text_is_file(path) || json_load_path(path, &j, NULL) != TPL_OK)
        return false;
    tpl_code rc = ceilings_from_json(j, path, out, NULL);
    json_decref(j);
    return rc == TPL_OK;
}

/* A cache that cannot be written costs the next run a second and nothing else. */
static void store(const char *path, const ceilings *c)
{
    json_t *j = ceilings_to_json(c);
    char *text = json_dumps(j, JSON_INDENT(2));
    text_write_file(path, text, strlen(text), NULL);
    free(text);
    json_decref(j);
}

/* A short measurement at both ends of the thread counts. */
static tpl_code check_cached(double budget_s, const ceilings *cached, char *moved, size_t bytes, tpl_err *e)
{
    ceilings now = {.n = cached->n > 1 ? 2 : 1, .threads = {1, cached->threads[cached->n - 1]}};
    TPL_TRY(measure_counts(budget_s, &now, e));
    ceilings_compare(cached, &now, moved, bytes);
    return TPL_OK;
}

tpl_code ceilings_open(const ceilings_options *o, ceilings *out, tpl_err *e)
{
    double budget_s = o->budget_s > 0 ? o->budget_s : default_budget_s;
    ceilings c;
    char *path = NULL, moved[sizeof c.moved] = "";
    arena a;
    arena_init(&a);
    bool cached = cache_path(&a, o, &path, NULL) == TPL_OK && !o->fresh && load(path, &c);
    tpl_code rc = cached ? check_cached(check_share * budget_s, &c, moved, sizeof moved, e) : TPL_OK;
    if (rc == TPL_OK && (!cached || *moved)) {
        cached = false;
        rc = ceilings_measure(budget_s, &c, e);
        if (rc == TPL_OK && path)
            store(path, &c);
    }
    arena_fini(&a);
    if (rc != TPL_OK)
        return rc;
    *out = c;
    out->from_cache = cached;
    memcpy(out->moved, moved, sizeof moved);
    return TPL_OK;
}

/* ---- as a table ---- */

table *ceilings_table(const ceilings *c)
{
    table *t = table_create("ceilings of this machine");
    table_add_column(t, "ceiling", "ceiling", "", RS_TEXT);
    table_add_column(t, "unit", "unit", "", RS_TEXT);
    table_add_column(t, "best_code", "best code", "", RS_TEXT);
    for (int i = 0; i < c->n; i++) {
        char name[32], heading[32];
        snprintf(name, sizeof name, "threads_%d", c->threads[i]);
        snprintf(heading, sizeof heading, "%d thread%s", c->threads[i], c->threads[i] > 1 ? "s" : "");
        table_add_column(t, name, heading, "", RS_REAL);
    }
    table_add_column(t, "gain", "gain of all cores", "", RS_REAL);
    for (int k = 0; k < CEIL_N; k++) {
        real_text numbers[CEIL_MAX_COUNTS + 1];
        const char *cells[CEIL_MAX_COUNTS + 4] = {ceil_name((ceil_kind)k), ceil_unit((ceil_kind)k), c->source[k]};
        for (int i = 0; i < c->n; i++) {
            numbers[i] = real_to_text(c->rate[k][i]);
            cells[3 + i] = numbers[i].s;
        }
        numbers[c->n] = real_to_text(ceilings_gain(c, (ceil_kind)k, c->cores));
        cells[3 + c->n] = numbers[c->n].s;
        table_add_row(t, cells);
    }
    return t;
}
