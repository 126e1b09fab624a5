#include "bench/trace_table.h"

#include <math.h>
#include <stddef.h>
#include <string.h>

#include "base/arena.h"

/* All layers' spans of one step, or of one kind of work of no step. */
typedef struct {
    const char *name, *op; /* op NULL: no step */
    int64_t n, ns, own_ns;
    step_cost cost;
    double bound_us;
} total;

enum { MAX_TOTALS = 256 };

typedef struct {
    total items[MAX_TOTALS];
    int n;
    arena mem; /* names of runs of steps */
} totals;

static total *total_of(totals *t, const char *name)
{
    for (int i = 0; i < t->n; i++)
        if (strcmp(t->items[i].name, name) == 0)
            return &t->items[i];
    if (t->n == MAX_TOTALS)
        return &t->items[MAX_TOTALS - 1];
    t->items[t->n] = (total){.name = name};
    return &t->items[t->n++];
}

static void add_cost(const trace_table *t, const plan *p, const plan_step *s, total *x)
{
    step_cost c = plan_step_cost(p, s, &t->shape, t->types);
    x->op = x->op ? x->op : spans_kind_name(spans_kind_of(s));
    if (!s->active)
        return;
    x->cost.bytes_read += c.bytes_read;
    x->cost.bytes_written += c.bytes_written;
    x->cost.flops += c.flops;
    x->cost.bytes_sent += c.bytes_sent;
    if (t->ceil && !s->is_comm)
        x->bound_us += bound_us(t->ceil, (op_cost_sum){c.bytes_read, c.bytes_written, c.flops}, bound_step_in_place(s),
                                bound_rate_type(s->call.kind, t->compute), t->sharers);
}

/* names [n]: what the steps of a list are counted under: their name, or of those that were done at once all names. */
static void name_steps(const trace_table *t, int rank, const plan_list *l, arena *mem, const char **names)
{
    for (int i = 0; i < l->n; i++)
        names[i] = l->steps[i].name;
    for (int64_t k = 0; k < spans_count(t->s, rank); k++) {
        const span *x = spans_at(t->s, rank, k);
        ptrdiff_t i = x->outside ? -1 : x->step - l->steps;
        if (i < 0 || i + x->n_steps > l->n || x->n_steps < 2 || names[i] == names[i + 1])
            continue;
        const char *all = names[i];
        for (int m = 1; m < x->n_steps; m++)
            all = arena_printf(mem, "%s + %s", all, l->steps[i + m].name);
        for (int m = 0; m < x->n_steps; m++)
            names[i + m] = all;
    }
}

/* Steps in the order of the list, then what belongs to none. */
static void sum_rank(const trace_table *t, int rank, totals *out)
{
    const plan *p = t->plans[rank];
    const plan_list *l = &p->list[t->phase];
    const char **names = arena_alloc(&out->mem, sizeof *names * (size_t)(l->n + 1));
    int64_t *own_ns = arena_alloc(&out->mem, sizeof *own_ns * (size_t)(spans_count(t->s, rank) + 1));
    name_steps(t, rank, l, &out->mem, names);
    spans_own_ns(t->s, rank, own_ns);
    for (int i = 0; i < l->n; i++)
        add_cost(t, p, &l->steps[i], total_of(out, names[i]));
    for (int64_t i = 0; i < spans_count(t->s, rank); i++) {
        const span *x = spans_at(t->s, rank, i);
        total *to = total_of(out, x->outside ? x->step->name : names[x->step - l->steps]);
        to->n++;
        to->ns += x->end_ns - x->begin_ns;
        to->own_ns += own_ns[i];
    }
}

typedef struct {
    const trace_table *t;
    void (*config)(void *user, rs_row *r);
    void *user;
    run_dir *rd;
    int rank;
    spans_pass_time time;
} writer;

static void set_real(rs_row *r, int column, double v)
{
    if (isfinite(v))
        row_set_real(r, column, v);
}

static void begin_row(const writer *w, const char *step, rs_row *r)
{
    row_init(r, RS_TRACES);
    w->config(w->user, r);
    row_set_int(r, TRACE_rank, w->rank);
    row_set_text(r, TRACE_step, step);
    row_set_text(r, TRACE_trace, w->t->name);
    row_set_text(r, TRACE_phase, w->t->what ? w->t->what : phase_name(w->t->phase));
    row_set_text(r, TRACE_source, w->t->source);
    row_set_int(r, TRACE_n_passes, w->time.n_passes);
    row_set_status(r, RS_OK, NULL);
}

static void set_time(rs_row *r, int64_t n, int64_t ns, int passes)
{
    if (passes < 1)
        return;
    row_set_real(r, TRACE_calls, (double)n / passes);
    row_set_real(r, TRACE_time_us, (double)ns / 1e3 / passes);
}

/* own_ns: of all passes. */
static void set_own(const writer *w, rs_row *r, int64_t own_ns, double bound_us)
{
    double own_us = (double)own_ns / 1e3 / w->time.n_passes;
    if (own_ns <= 0)
        return;
    row_set_real(r, TRACE_own_us, own_us);
    row_set_real(r, TRACE_share, (double)own_ns / (double)w->time.pass_ns);
    if (bound_us > 0)
        set_real(r, TRACE_bound_frac, bound_us / own_us);
}

static tpl_code end_row(const writer *w, rs_row *r, tpl_err *e)
{
    bool there = rd_has_cell(w->rd, RS_TRACES, row_cell_id(r).hex); /* a resumed run traces a cell again */
    tpl_code rc = there ? TPL_OK : rd_append(w->rd, r, e);
    row_fini(r);
    return rc;
}

static tpl_code write_total(const writer *w, const total *x, tpl_err *e)
{
    rs_row r;
    double bytes = x->cost.bytes_read + x->cost.bytes_written;
    begin_row(w, x->name, &r);
    row_set_text(&r, TRACE_op, x->op);
    set_time(&r, x->n, x->ns, w->time.n_passes);
    set_own(w, &r, x->own_ns, x->bound_us);
    if (x->op) {
        row_set_real(&r, TRACE_bytes, bytes);
        row_set_real(&r, TRACE_flops, x->cost.flops);
        row_set_real(&r, TRACE_bytes_sent, x->cost.bytes_sent);
    }
    if (x->bound_us > 0)
        set_real(&r, TRACE_bound_us, x->bound_us);
    return end_row(w, &r, e);
}

static tpl_code write_pass(const writer *w, const totals *all, tpl_err *e)
{
    rs_row r;
    double bound = 0;
    char reason[256];
    for (int i = 0; i < all->n; i++)
        bound += all->items[i].bound_us;
    begin_row(w, "(pass)", &r);
    set_time(&r, w->time.n_kernels, w->time.pass_ns, w->time.n_passes);
    set_own(w, &r, w->time.pass_ns, bound);
    if (bound > 0)
        set_real(&r, TRACE_bound_us, bound);
    set_real(&r, TRACE_traced_over_untraced, w->t->overhead);
    row_set_int(&r, TRACE_n_dropped, w->t->n_dropped);
    row_set_int(&r, TRACE_n_unlike, w->t->n_unlike);
    if (w->t->n_dropped || w->t->n_unlike) {
        snprintf(reason, sizeof reason, "%lld records lost, %lld steps unlike what was recorded%s%.160s",
                 (long long)w->t->n_dropped, (long long)w->t->n_unlike, w->t->n_unlike ? ": " : "", w->t->unlike);
        row_set_status(&r, RS_INCOMPLETE, reason);
    }
    return end_row(w, &r, e);
}

static tpl_code write_totals(const writer *w, const totals *all, tpl_err *e)
{
    rs_row r;
    TPL_TRY(write_pass(w, all, e));
    begin_row(w, "(no kernel)", &r);
    set_time(&r, w->time.n_idle, w->time.idle_ns, w->time.n_passes);
    set_own(w, &r, w->time.idle_ns, 0);
    TPL_TRY(end_row(w, &r, e));
    begin_row(w, "(between passes)", &r);
    set_time(&r, w->time.n_passes - 1, w->time.between_ns, w->time.n_passes - 1);
    TPL_TRY(end_row(w, &r, e));
    for (int i = 0; i < all->n; i++)
        if (all->items[i].n > 0)
            TPL_TRY(write_total(w, &all->items[i], e));
    return TPL_OK;
}

static tpl_code write_rank(writer *w, tpl_err *e)
{
    totals all = {0};
    w->time = spans_passes(w->t->s, w->rank);
    if (w->time.n_passes == 0)
        return TPL_OK;
    arena_init(&all.mem);
    sum_rank(w->t, w->rank, &all);
    tpl_code rc = write_totals(w, &all, e);
    arena_fini(&all.mem);
    return rc;
}

tpl_code trace_table_write(const trace_table *t, void (*config)(void *user, rs_row *r), void *user, run_dir *rd,
                           tpl_err *e)
{
    char *path;
    arena a;
    arena_init(&a);
    tpl_code rc = rd_trace_path(rd, t->name, &a, &path, e);
    if (rc == TPL_OK)
        rc = spans_write_chrome(t->s, t->title, path, e);
    arena_fini(&a);
    for (int i = 0; i < t->n_ranks && rc == TPL_OK; i++)
        rc = write_rank(&(writer){.t = t, .config = config, .user = user, .rd = rd, .rank = i}, e);
    return rc;
}

char *trace_split_json(const spans *s, int n_passes)
{
    int64_t sum[SPANS_N_KINDS];
    text_buf b = {0};
    spans_totals(s, 0, sum);
    text_addf(&b, "{");
    for (int k = 0; k < SPANS_N_KINDS; k++)
        if (sum[k])
            text_addf(&b, "%s\"%s\":%.4g", b.len > 1 ? "," : "", spans_kind_name(k), (double)sum[k] / 1e6 / n_passes);
    text_addf(&b, "}");
    return b.data;
}
