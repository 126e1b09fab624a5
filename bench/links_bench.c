#include "bench/links_bench.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/log.h"
#include "bench/card_comm.h"
#include "bench/comm_target.h"
#include "bench/pair.h"
#include "bench/target_trace.h"
#include "device/gpu_trace.h"
#include "results/host.h"

enum { MAX_WAYS = 2 };

static const int64_t ladder[] = {512,    4096,    14336,   32768,   65536,   114688,   262144,
                                 458752, 1048576, 1835008, 4194304, 8388608, 16777216, 67108864};
enum { LADDER_N = sizeof ladder / sizeof *ladder, HOST_LADDER_N = 11 };

typedef struct {
    const links_request *q;
    run_dir *rd;
    link_model *model;
    card_links *cards;
    char device[96];
    int tp, n_wrong_rows;
    tpl_dtype dtype;
    bool after_trace; /* a card's tracer had run in this process before the size was timed */
} bench;

/* One way of one operation at one size. */
typedef struct {
    const char *way;
    comm_target *host; /* or */
    card_comm *card;
    bool taken; /* by teams at this size */
} side;

comm_op links_op_from_name(const char *name)
{
    int op = 0;
    while (op < COMM_N_OPS && strcmp(comm_op_name((comm_op)op), name) != 0)
        op++;
    return (comm_op)op;
}

/* ---- rows ---- */

static void config_row(const bench *b, comm_op op, int64_t bytes, const char *way, rs_row *r)
{
    char shape[64];
    row_init(r, RS_KERNELS);
    snprintf(shape, sizeof shape, "link/tp%d/%lld bytes", b->tp, (long long)bytes);
    row_set_text(r, KER_op, comm_op_name(op));
    row_set_text(r, KER_backend, way);
    row_set_text(r, KER_device, b->device);
    row_set_text(r, KER_dtype, dtype_name(b->dtype));
    row_set_int(r, KER_threads, b->cards ? 1 : b->tp);
    row_set_int(r, KER_context_tok, 1);
    row_set_text(r, KER_shape, shape);
    row_set_text(r, KER_command, b->q->command);
}

static bool is_there(const bench *b, comm_op op, int64_t bytes, const side *s)
{
    rs_row r;
    config_row(b, op, bytes, s->way, &r);
    bool there = rd_has_cell(b->rd, RS_KERNELS, row_cell_id(&r).hex);
    row_fini(&r);
    return there;
}

static void set_real(rs_row *r, int column, double v)
{
    if (isfinite(v))
        row_set_real(r, column, v);
}

static void fill_times(rs_row *row, const measure_result *r, double sent)
{
    set_real(row, KER_time_us, r->cold.median);
    set_real(row, KER_time_us_p99, r->cold.p99);
    set_real(row, KER_time_us_min, r->cold.min);
    set_real(row, KER_time_us_q1, r->cold.q1);
    set_real(row, KER_time_us_q3, r->cold.q3);
    set_real(row, KER_gb_s, sent / r->cold.median * 1e-3);
    row_set_int(row, KER_n_wrong, r->n_wrong);
    row_set_int(row, KER_n_samples, r->n_cold);
    row_set_int(row, KER_n_discarded, r->n_discarded);
    row_set_text(row, KER_stop_reason, r->stop_reason);
}

static void fill_ratio(rs_row *row, const char *base_id, const measure_result *base, const measure_result *r)
{
    pair_ratio p = pair_compare((pair_side){base, NAN, 0}, (pair_side){r, NAN, 0}, PAIR_SAMPLE, 0, 1);
    if (isnan(p.ratio.ratio))
        return;
    row_set_text(row, KER_baseline_cell, base_id);
    set_real(row, KER_ratio, p.ratio.ratio);
    set_real(row, KER_ratio_lo, p.ratio.lo);
    set_real(row, KER_ratio_hi, p.ratio.hi);
}

static void set_note(const bench *b, rs_row *row, const side *s, double sent, int units)
{
    char note[256];
    snprintf(note, sizeof note, "%s; a rank sends %.0f bytes, gb_s counts them; %d calls a sample%s%s%s",
             b->cards ? card_links_joined_by(b->cards) : "thread ranks", sent, units, b->cards ? " inside a graph" : "",
             s->taken ? "; teams go this way" : "", b->after_trace ? "; timed in a process that had traced before" : "");
    row_set_text(row, KER_note, note);
}

static void keep_point(bench *b, comm_op op, int64_t bytes, const side *s, const measure_result *r)
{
    link_model *m = b->model;
    if (!s->taken || r->n_cold == 0 || r->status == RS_WRONG_ANSWER || m->n_points == LINKS_MAX_POINTS)
        return;
    link_point *p = &m->points[m->n_points++];
    *p = (link_point){.op = op, .ranks = b->tp, .bytes = (double)bytes, .us = r->cold.median};
    snprintf(p->way, sizeof p->way, "%s", s->way);
}

static tpl_code write_rows(bench *b, comm_op op, int64_t bytes, const side *s, const measure_result *r, int n,
                           const bench_target *t, tpl_err *e)
{
    double sent = comm_bytes_sent(op, b->tp, (double)bytes);
    rs_cell_id base = {{0}};
    tpl_code rc = TPL_OK;
    for (int i = 0; i < n && rc == TPL_OK; i++) {
        rs_row row;
        config_row(b, op, bytes, s[i].way, &row);
        if (i == 0)
            base = row_cell_id(&row);
        if (r[i].n_cold > 0)
            fill_times(&row, &r[i], sent);
        if (i > 0 && r[i].n_cold > 0)
            fill_ratio(&row, base.hex, &r[0], &r[i]);
        set_note(b, &row, &s[i], sent, t[i].units);
        row_set_status(&row, r[i].status, r[i].status == RS_OK ? NULL : r[i].reason);
        rc = rd_append(b->rd, &row, e);
        if (rc == TPL_OK && b->q->on_row)
            b->q->on_row(b->q->user, &row);
        b->n_wrong_rows += r[i].status == RS_WRONG_ANSWER;
        keep_point(b, op, bytes, &s[i], &r[i]);
        row_fini(&row);
    }
    return rc;
}

/* ---- measuring ---- */

static int open_sides(const bench *b, comm_op op, int64_t bytes, side s[MAX_WAYS], bench_target t[MAX_WAYS])
{
    int64_t width = bytes / (int64_t)dtype_bytes(b->dtype);
    static const gpu_comm_way ways[MAX_WAYS] = {GPU_COMM_LIBRARY, GPU_COMM_PEER};
    static const char *const names[MAX_WAYS] = {"nccl", "peer"};
    int n = 0;
    if (!b->cards) {
        s[0] = (side){.way = "local", .host = comm_target_create(op, b->tp, 1, width), .taken = true};
        t[0] = comm_target_bench(s[0].host);
        return 1;
    }
    for (int i = 0; i < MAX_WAYS; i++) {
        if (*card_links_why_not(b->cards, ways[i]) || (ways[i] == GPU_COMM_PEER && op == COMM_BROADCAST))
            continue;
        s[n] = (side){.way = names[i],
                      .card = card_comm_create(b->cards, ways[i], op, b->dtype, width),
                      .taken = card_links_prefer(b->cards, ways[i], op, b->dtype, width)};
        t[n] = card_comm_bench(s[n].card);
        n++;
    }
    return n;
}

/* One way of a collective, as its trace's rows are called. */
typedef struct {
    const bench *b;
    const char *way, *name;
} traced;

static void config_trace(void *user, rs_row *r)
{
    const traced *t = user;
    row_set_text(r, TRACE_bench, "kernels");
    row_set_text(r, TRACE_model, t->name);
    row_set_int(r, TRACE_tp, t->b->tp);
    row_set_text(r, TRACE_ranks, t->b->q->share_card ? "local" : "nccl");
    row_set_text(r, TRACE_backend, t->way);
    row_set_text(r, TRACE_device, t->b->device);
    row_set_text(r, TRACE_compute, dtype_name(t->b->dtype));
    row_set_text(r, TRACE_command, t->b->q->command);
}

static tpl_code trace_side(const bench *b, comm_op op, int64_t bytes, const side *s, const bench_target *t, tpl_err *e)
{
    rs_row own;
    char name[64], title[128];
    config_row(b, op, bytes, s->way, &own);
    rs_cell_id id = row_cell_id(&own);
    row_fini(&own);
    snprintf(name, sizeof name, "%s of %lld bytes", comm_op_name(op), (long long)bytes);
    snprintf(title, sizeof title, "%s by %s, tp %d, %d calls a replay", name, s->way, b->tp, t->units);
    traced what = {b, s->way, name};
    return target_trace_write(&(target_trace){t, id.hex, title, "collective", config_trace, &what}, b->rd, e);
}

static tpl_code measure_size(bench *b, comm_op op, int64_t bytes, tpl_err *e)
{
    side s[MAX_WAYS];
    bench_target t[MAX_WAYS];
    measure_result r[MAX_WAYS] = {0};
    measure_options o = b->q->measure;
    o.hot_samples = -1; /* what ranks exchange lies where the step before left it */
    int n = open_sides(b, op, bytes, s, t);
    bool done = n > 0 && !b->q->fit_path; /* a fit needs every size's time in this run */
    for (int i = 0; i < n && done; i++)
        done = is_there(b, op, bytes, &s[i]);
    tpl_code rc = TPL_OK;
    b->after_trace = gpu_trace_has_run();
    if (!done && n > 0) {
        rc = pair_measure(t, n, PAIR_SAMPLE, &o, r, e);
        if (rc == TPL_OK)
            rc = write_rows(b, op, bytes, s, r, n, t, e);
        for (int i = 0; i < n && rc == TPL_OK && b->q->trace; i++)
            rc = r[i].n_cold > 0 ? trace_side(b, op, bytes, &s[i], &t[i], e) : TPL_OK;
    }
    for (int i = 0; i < n; i++) {
        comm_target_destroy(s[i].host);
        card_comm_destroy(s[i].card);
        measure_result_fini(&r[i]);
    }
    return rc;
}

static tpl_code open_ranks(bench *b, tpl_err *e)
{
    if (!b->q->cuda) {
        json_t *host = host_facts();
        const char *cpu = json_string_value(json_object_get(host, "cpu"));
        snprintf(b->device, sizeof b->device, "%s", cpu ? cpu : "unknown processor");
        snprintf(b->model->joined_by, sizeof b->model->joined_by, "thread ranks");
        json_decref(host);
        return TPL_OK;
    }
    TPL_TRY(card_links_open(b->tp, b->q->share_card, &b->cards, e));
    snprintf(b->device, sizeof b->device, "%.90s", card_links_device(b->cards));
    snprintf(b->model->joined_by, sizeof b->model->joined_by, "%.90s", card_links_joined_by(b->cards));
    return TPL_OK;
}

static tpl_code measure_all(bench *b, tpl_err *e)
{
    const links_request *q = b->q;
    int n = q->n_bytes ? q->n_bytes : q->cuda ? LADDER_N : HOST_LADDER_N, total = 0, done = 0;
    const int64_t *bytes = q->n_bytes ? q->bytes : ladder;
    for (int op = 0; op < COMM_N_OPS; op++)
        total += q->ops[op] ? n : 0;
    for (int op = 0; op < COMM_N_OPS; op++)
        for (int i = 0; i < n && q->ops[op]; i++, done++) {
            progress_show(done, total, "%s of %lld bytes, tp %d", comm_op_name((comm_op)op), (long long)bytes[i],
                          b->tp);
            TPL_TRY(measure_size(b, (comm_op)op, bytes[i], e));
        }
    return TPL_OK;
}

tpl_code links_bench_check(const links_request *q, tpl_err *e)
{
    tpl_dtype t = !q->cuda ? DT_F32 : q->dtype;
    if (!q->cuda && q->dtype != DT_NONE && q->dtype != DT_F32)
        return tpl_fail(e, TPL_E_USAGE, "--dtype", "is %s, but collectives of thread ranks carry f32",
                        dtype_name(q->dtype));
    if (q->trace && !q->cuda)
        return tpl_fail(e, TPL_E_USAGE, "--trace", "of collectives is of cards, expected with --backend cuda");
    if (q->trace)
        TPL_TRY(gpu_trace_check(e));
    for (int i = 0; i < q->n_bytes; i++)
        for (int k = 0; k < q->n_tps; k++) {
            int64_t unit = q->tps[k] * (int64_t)dtype_bytes(t == DT_NONE ? DT_BF16 : t);
            if (q->bytes[i] % unit)
                return tpl_fail(e, TPL_E_USAGE, "--bytes", "is %lld, expected a multiple of %lld (an element a rank)",
                                (long long)q->bytes[i], (long long)unit);
        }
    for (int k = 0; k < q->n_tps; k++)
        if (q->tps[k] < 2)
            return tpl_fail(e, TPL_E_USAGE, "--tp", "is %lld, expected 2 or more ranks for a collective",
                            (long long)q->tps[k]);
    return TPL_OK;
}

static void name_model(const links_request *q, const bench *b)
{
    const char *base = strrchr(q->fit_path, '/');
    base = base ? base + 1 : q->fit_path;
    snprintf(b->model->name, sizeof b->model->name, "%.*s", (int)strcspn(base, "."), base);
    snprintf(b->model->device, sizeof b->model->device, "%s", b->device);
    snprintf(b->model->command, sizeof b->model->command, "%s", q->command ? q->command : "");
}

static void warn_of_doubtful(const link_model *m)
{
    for (int i = 0; i < m->n_pieces; i++)
        if (m->pieces[i].worst_frac > links_doubtful_frac)
            log_note("%s: the fit misses a measured time by %.0f%%; were the ranks busy otherwise? measure again",
                     comm_op_name(m->pieces[i].op), 100 * m->pieces[i].worst_frac);
}

tpl_code links_bench_run(const links_request *q, run_dir *rd, link_model *out, tpl_err *e)
{
    static const int64_t two[] = {2};
    links_request own = *q;
    if (!own.n_tps)
        own.tps = two, own.n_tps = 1;
    TPL_TRY(links_bench_check(&own, e));
    *out = (link_model){0};
    bench b = {.q = &own, .rd = rd, .model = out};
    b.dtype = !q->cuda ? DT_F32 : q->dtype == DT_NONE ? DT_BF16 : q->dtype;
    tpl_code rc = TPL_OK;
    for (int k = 0; k < own.n_tps && rc == TPL_OK; k++) {
        b.tp = (int)own.tps[k];
        rc = open_ranks(&b, e);
        if (rc == TPL_OK)
            rc = measure_all(&b, e);
        card_links_close(b.cards);
        b.cards = NULL;
    }
    progress_clear();
    if (rc == TPL_OK && q->fit_path) {
        name_model(q, &b);
        rc = links_fit(out, e);
        warn_of_doubtful(out);
        if (rc == TPL_OK)
            rc = links_write(out, q->fit_path, e);
    }
    if (rc == TPL_OK && b.n_wrong_rows > 0)
        rc = tpl_fail(e, TPL_E_MISMATCH, "kernels", "%d rows with wrong output", b.n_wrong_rows);
    return rc;
}
