#include "bench/kernels_bench.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "bench/card_ceilings.h"
#include "bench/card_clock.h"
#include "bench/comm_target.h"
#include "bench/kernel_card.h"
#include "bench/kernel_world.h"
#include "bench/pair.h"
#include "bench/target_trace.h"
#include "device/gpu_trace.h"
#include "results/host.h"

static const double lift_budget_s = 0.6;

/* One case while its group is measured. */
typedef struct {
    const kernel_case *c;
    kernel_world *world;  /* or */
    kernel_card *on_card; /* or */
    comm_target *comm;
    rs_row row;
    rs_cell_id id;
    double bound_us, bound_frac;
} entry;

typedef struct {
    const kernels_request *q;
    run_dir *rd;
    measure_options measure;
    gpu *card; /* NULL: cases run on the processor */
    gpu_queue *queue;
    ceilings ceil;
    double taken_bytes; /* of the card, by others, when the bench began */
    bool lifted;        /* ceilings were measured again for this group */
    evict *ev;          /* NULL: cases run on a card */
    FILE *samples;
    char device[96];
    bool after_trace;   /* the tracer had run in this process before the group was timed */
    double noise_floor; /* of the group at hand; 0: not measured */
    int n_wrong_rows;
} bench;

/* ---- life ---- */

static void name_device(bench *b)
{
    json_t *host = host_facts();
    const char *cpu = json_string_value(json_object_get(host, "cpu"));
    snprintf(b->device, sizeof b->device, "%s", cpu ? cpu : "unknown processor");
    json_decref(host);
}

static tpl_code note_ceilings(bench *b, tpl_err *e)
{
    json_t *j = ceilings_to_json(&b->ceil);
    char *text = json_dumps(j, JSON_COMPACT);
    tpl_code rc = rd_note_fact(b->rd, "ceilings", text, e);
    free(text);
    json_decref(j);
    if (*b->ceil.moved)
        log_note("ceilings moved since they were cached: %s", b->ceil.moved);
    return rc;
}

static tpl_code note_overhead(bench *b, tpl_err *e)
{
    double us;
    char text[32];
    TPL_TRY(measure_overhead(&us, e));
    snprintf(text, sizeof text, "%.3f", us);
    log_note("clock and loop take %s us of a sample", text);
    return rd_note_fact(b->rd, "overhead_us", text, e);
}

static tpl_code open_processor(bench *b, tpl_err *e)
{
    name_device(b);
    TPL_TRY(kernel_check_library(e));
    if (!b->q->ceilings)
        TPL_TRY(ceilings_open(&b->q->ceilings_options, &b->ceil, e));
    return evict_create(&b->ev, e);
}

/* Samples are replays, and hot ones would be the same. */
static tpl_code open_card(bench *b, tpl_err *e)
{
    if (!b->q->ceilings)
        TPL_TRY(card_ceilings_open(0, &b->ceil, e));
    TPL_TRY(gpu_open(0, &b->card, e));
    TPL_TRY(gpu_use(b->card, e));
    snprintf(b->device, sizeof b->device, "%.90s", gpu_get_facts(b->card)->name);
    int64_t left = 0;
    TPL_TRY(gpu_free_bytes(b->card, &left, e));
    b->taken_bytes = (double)(gpu_get_facts(b->card)->memory_bytes - left);
    b->measure.hot_samples = -1;
    return gpu_queue_create(b->card, &b->queue, e);
}

static tpl_code bench_open(bench *b, const kernels_request *q, bool on_card, run_dir *rd, tpl_err *e)
{
    if (q->trace && !on_card)
        return tpl_fail(e, TPL_E_USAGE, "--trace", "is of what cards do, expected with --backend cuda");
    if (q->trace)
        TPL_TRY(gpu_trace_check(e));
    *b = (bench){.q = q, .rd = rd, .measure = q->measure};
    if (q->ceilings)
        b->ceil = *q->ceilings;
    TPL_TRY(on_card ? open_card(b, e) : open_processor(b, e));
    TPL_TRY(note_ceilings(b, e));
    TPL_TRY(note_overhead(b, e));
    if (q->samples_path) {
        b->samples = fopen(q->samples_path, "a");
        if (!b->samples)
            return tpl_fail(e, TPL_E_IO, q->samples_path, "cannot open: %s", strerror(errno));
    }
    return TPL_OK;
}

static tpl_code bench_close(bench *b, tpl_code rc, tpl_err *e)
{
    evict_destroy(b->ev);
    gpu_queue_destroy(b->queue);
    if (b->card)
        gpu_close(b->card);
    if (b->samples && fclose(b->samples) != 0 && rc == TPL_OK)
        return tpl_fail(e, TPL_E_IO, b->q->samples_path, "cannot write: %s", strerror(errno));
    return rc;
}

/* ---- entries ---- */

static void entry_init(const bench *b, entry *x, const kernel_case *c)
{
    char command[1024];
    *x = (entry){.c = c, .bound_us = NAN, .bound_frac = NAN};
    row_init(&x->row, RS_KERNELS);
    kernel_case_fill(c, &x->row);
    kernel_case_command(c, command, sizeof command);
    row_set_text(&x->row, KER_command, command);
    row_set_text(&x->row, KER_device, b->device);
    x->id = row_cell_id(&x->row);
}

/* Sum over the case's steps; collectives have none. */
static double entry_bound(const bench *b, const kernel_case *c)
{
    double sum = 0;
    for (int i = 0; i < c->n_steps; i++) {
        const kernel_case_step *s = &c->steps[i];
        sum += bound_us(&b->ceil, s->cost, s->in_place, bound_rate_type(s->kind, c->dtype), c->threads);
    }
    return c->n_steps > 0 ? sum : NAN;
}

static bench_target entry_open(const bench *b, entry *x)
{
    if (b->card) {
        x->on_card = kernel_card_create(x->c, b->card, b->queue, entry_bound(b, x->c), b->q->inject);
        return kernel_card_target(x->on_card);
    }
    if (x->c->family == FAM_COMM) {
        x->comm = comm_target_create(x->c->comm, x->c->tp, x->c->context_tok, x->c->cfg->dim);
        return comm_target_bench(x->comm);
    }
    x->world = kernel_world_create(x->c, b->ev, b->q->inject);
    return kernel_world_target(x->world);
}

static void entry_fini(entry *x)
{
    kernel_world_destroy(x->world);
    kernel_card_destroy(x->on_card);
    comm_target_destroy(x->comm);
    row_fini(&x->row);
}

static const char *entry_row(const entry *x)
{
    return x->world ? kernel_world_row(x->world) : x->on_card ? kernel_card_row(x->on_card) : "";
}

static int64_t entry_checked(const entry *x)
{
    return x->world ? kernel_world_n_checked(x->world) : x->on_card ? kernel_card_n_checked(x->on_card) : 0;
}

static void fill_bound_by(const bench *b, entry *x)
{
    bound_parts parts = {0};
    char text[BOUND_TEXT];
    for (int i = 0; i < x->c->n_steps; i++) {
        const kernel_case_step *s = &x->c->steps[i];
        bound_add_parts(&b->ceil, s->cost, s->in_place, bound_rate_type(s->kind, x->c->dtype), x->c->threads, &parts);
    }
    bound_describe(&parts, text);
    row_set_text(&x->row, KER_bound_by, text);
}

/* ---- rows ---- */

static void set_real(rs_row *r, int column, double v)
{
    if (!isnan(v))
        row_set_real(r, column, v);
}

static void fill_times(entry *x, const measure_result *r)
{
    rs_row *row = &x->row;
    set_real(row, KER_time_us, r->cold.median);
    set_real(row, KER_time_us_p99, r->cold.p99);
    set_real(row, KER_time_us_min, r->cold.min);
    set_real(row, KER_time_us_q1, r->cold.q1);
    set_real(row, KER_time_us_q3, r->cold.q3);
    set_real(row, KER_time_hot_us, r->hot.median);
    set_real(row, KER_clock_mhz, r->clock_mhz);
    row_set_int(row, KER_n_wrong, r->n_wrong);
    row_set_int(row, KER_n_samples, r->n_cold);
    row_set_int(row, KER_n_discarded, r->n_discarded);
    row_set_text(row, KER_stop_reason, r->stop_reason);
}

static void fill_rates(entry *x, double time_us)
{
    const op_cost_sum *cost = &x->c->cost;
    if (x->c->n_steps == 0 || isnan(time_us))
        return;
    row_set_real(&x->row, KER_gb_s, x->c->threads * (cost->bytes_read + cost->bytes_written) / time_us * 1e-3);
    row_set_real(&x->row, KER_tflop_s, x->c->threads * cost->flops / time_us * 1e-6);
    set_real(&x->row, KER_bound_us, x->bound_us);
    set_real(&x->row, KER_bound_frac, x->bound_frac);
}

/* Faster than the bound: the ceilings may have been measured in a bad minute, so they get a second chance, once a
 * group. */
static tpl_code set_bound(bench *b, entry *x, double time_us, tpl_err *e)
{
    x->bound_us = entry_bound(b, x->c);
    if (x->bound_us > bound_bad_frac * time_us && !b->lifted && !b->q->ceilings && !b->card) {
        b->lifted = true;
        TPL_TRY(ceilings_lift(lift_budget_s, &b->ceil, e));
        x->bound_us = entry_bound(b, x->c);
    }
    x->bound_frac = x->bound_us / time_us;
    return TPL_OK;
}

static void set_status(entry *x, measure_result *r)
{
    if (r->status == RS_OK && x->bound_frac > bound_bad_frac) {
        r->status = RS_BAD_CEILING;
        snprintf(r->reason, sizeof r->reason, "takes %.3g us, the ceilings allow no less than %.3g us", r->cold.median,
                 x->bound_us);
    }
    row_set_status(&x->row, r->status, r->status == RS_OK ? NULL : r->reason);
}

static void add_note(const bench *b, entry *x, const char *more)
{
    text_buf note = {0};
    if (*entry_row(x))
        text_addf(&note, "%s; ", entry_row(x));
    if (x->on_card && entry_checked(x) > 0)
        text_addf(&note, "replays of %d runs over %d copies of the operands; ", kernel_card_runs(x->on_card),
                  kernel_card_copies(x->on_card));
    if (x->c->family == FAM_HADAMARD)
        text_addf(&note, "as a product with the matrix; ");
    if (x->c->family == FAM_COMM)
        text_addf(&note, "data in the caches, %d calls a sample; ", COMM_RUNS);
    else if (x->c->threads > 1)
        text_addf(&note, "%d independent copies at once; ", x->c->threads);
    if (entry_checked(x) > 0)
        text_addf(&note, "%lld output elements checked; ", (long long)entry_checked(x));
    if (b->noise_floor > 0)
        text_addf(&note, "noise floor %.2f%%; ", 100 * b->noise_floor);
    if (b->taken_bytes > card_taken_limit)
        text_addf(&note, "%.1f GiB of the card were taken before: another program was on it; ",
                  b->taken_bytes / 0x1p30);
    if (b->after_trace)
        text_addf(&note, "timed in a process that had traced before; ");
    if (*more)
        text_addf(&note, "%s; ", more);
    if (note.len >= 2)
        note.data[note.len - 2] = 0;
    row_set_text(&x->row, KER_note, note.data);
    text_fini(&note);
}

/* The ratio against the group's first. A row that is ok but whose ratio is no claim says kernel_below_bound. */
static void fill_ratio(const bench *b, const entry *base, const measure_result *base_r, entry *x, measure_result *r,
                       pair_mode mode, char *text, size_t bytes)
{
    pair_ratio p = pair_compare((pair_side){base_r, base->bound_frac, 0}, (pair_side){r, x->bound_frac, 0}, mode,
                                b->noise_floor, b->q->seed);
    if (isnan(p.ratio.ratio))
        return;
    row_set_text(&x->row, KER_baseline_cell, base->id.hex);
    row_set_real(&x->row, KER_ratio, p.ratio.ratio);
    set_real(&x->row, KER_ratio_lo, p.ratio.lo);
    set_real(&x->row, KER_ratio_hi, p.ratio.hi);
    if (p.status == RS_KERNEL_BELOW_BOUND)
        row_set_status(&x->row, RS_KERNEL_BELOW_BOUND, p.reason);
    char verdict[160];
    pair_describe(&p, verdict, sizeof verdict);
    snprintf(text, bytes, "pairing %s, %s", pair_mode_name(mode), verdict);
}

static tpl_code write_row(bench *b, entry *x, const measure_result *r, tpl_err *e)
{
    TPL_TRY(rd_append(b->rd, &x->row, e));
    if (b->samples)
        TPL_TRY(measure_write_samples(b->samples, x->id.hex, r, e));
    if (b->q->on_row)
        b->q->on_row(b->q->user, &x->row);
    b->n_wrong_rows += r->status == RS_WRONG_ANSWER;
    return TPL_OK;
}

static tpl_code write_group(bench *b, entry *x, measure_result *r, int n, pair_mode mode, tpl_err *e)
{
    b->lifted = false;
    for (int i = 0; i < n; i++)
        TPL_TRY(set_bound(b, &x[i], r[i].cold.median, e));
    for (int i = 0; i < n; i++) {
        x[i].bound_us = entry_bound(b, x[i].c); /* lifting raised the ceilings for all of the group */
        x[i].bound_frac = x[i].bound_us / r[i].cold.median;
        fill_times(&x[i], &r[i]);
        fill_rates(&x[i], r[i].cold.median);
        fill_bound_by(b, &x[i]);
        set_status(&x[i], &r[i]);
    }
    for (int i = 0; i < n; i++) {
        char pairing[256] = "";
        if (i > 0)
            fill_ratio(b, &x[0], &r[0], &x[i], &r[i], mode, pairing, sizeof pairing);
        add_note(b, &x[i], pairing);
        TPL_TRY(write_row(b, &x[i], &r[i], e));
    }
    return TPL_OK;
}

/* ---- traces ---- */

static void config_trace(void *user, rs_row *r)
{
    const entry *x = user;
    static const int columns[][2] = {{TRACE_variant, KER_variant}, {TRACE_backend, KER_backend},
                                     {TRACE_compute, KER_dtype},   {TRACE_kv_dtype, KER_dtype},
                                     {TRACE_batch, KER_batch},     {TRACE_context_tok, KER_context_tok},
                                     {TRACE_device, KER_device},   {TRACE_command, KER_command}};
    row_set_text(r, TRACE_bench, "kernels");
    row_set_text(r, TRACE_model, x->c->shape);
    row_set_text(r, TRACE_weights, "random");
    row_set_int(r, TRACE_tp, x->c->tp);
    row_set_text(r, TRACE_ranks, "solo");
    row_set_text(r, TRACE_phase, "operation");
    for (size_t i = 0; i < sizeof columns / sizeof *columns; i++)
        if (*row_get(&x->row, columns[i][1]))
            row_set_named(r, rs_columns(RS_TRACES)[columns[i][0]].name, row_get(&x->row, columns[i][1]), "trace", NULL);
}

static tpl_code trace_entry(const bench *b, entry *x, const bench_target *t, tpl_err *e)
{
    char name[512], title[600];
    kernel_case_name(x->c, name, sizeof name);
    snprintf(title, sizeof title, "%s, %d runs a replay", name, t->units);
    return target_trace_write(&(target_trace){t, x->id.hex, title, "operation", config_trace, x}, b->rd, e);
}

/* ---- groups ---- */

static tpl_code choose_mode(const bench *b, const kernel_case *c, int n, pair_mode *mode, tpl_err *e)
{
    int64_t free_bytes = 0;
    double *bytes = tpl_calloc((size_t)n, sizeof *bytes);
    tpl_code rc = b->card ? gpu_free_bytes(b->card, &free_bytes, e) : TPL_OK;
    for (int i = 0; i < n; i++)
        bytes[i] = b->card ? kernel_card_bytes(&c[i], b->card) : kernel_world_bytes(&c[i]);
    *mode = pair_choose(bytes, n, b->card ? (double)free_bytes : pair_free_bytes());
    free(bytes);
    return rc;
}

static tpl_code measure_floor(bench *b, const kernel_case *c, tpl_err *e)
{
    entry twins[2];
    bench_target t[2];
    bstat_ratio aa = {NAN, NAN, NAN};
    const kernel_case both[] = {*c, *c};
    pair_mode mode;
    TPL_TRY(choose_mode(b, both, 2, &mode, e));
    for (int i = 0; i < 2; i++) {
        entry_init(b, &twins[i], c);
        t[i] = entry_open(b, &twins[i]);
    }
    tpl_code rc = pair_measure_aa(t, mode, &b->measure, &aa, e);
    double floor_ = bstat_noise_floor(aa);
    b->noise_floor = floor_ > 0 ? floor_ : 0;
    entry_fini(&twins[0]);
    entry_fini(&twins[1]);
    return rc;
}

static tpl_code measure_group(bench *b, const kernel_case *c, int n, tpl_err *e)
{
    pair_mode mode;
    TPL_TRY(choose_mode(b, c, n, &mode, e));
    entry *x = tpl_calloc((size_t)n, sizeof *x);
    bench_target *t = tpl_calloc((size_t)n, sizeof *t);
    measure_result *r = tpl_calloc((size_t)n, sizeof *r);
    for (int i = 0; i < n; i++) {
        entry_init(b, &x[i], &c[i]);
        t[i] = entry_open(b, &x[i]);
    }
    b->after_trace = gpu_trace_has_run();
    tpl_code rc = pair_measure(t, n, mode, &b->measure, r, e);
    if (rc == TPL_OK)
        rc = write_group(b, x, r, n, mode, e);
    for (int i = 0; i < n && rc == TPL_OK && b->q->trace; i++)
        rc = r[i].n_cold > 0 ? trace_entry(b, &x[i], &t[i], e) : TPL_OK;
    for (int i = 0; i < n; i++) {
        entry_fini(&x[i]);
        measure_result_fini(&r[i]);
    }
    free(x);
    free(t);
    free(r);
    return rc;
}

/* All cells of a group are there, or the group is measured whole: its ratios need all sides in one minute. */
static bool is_finished(const bench *b, const kernel_case *c, int n)
{
    bool all = true;
    for (int i = 0; i < n && all; i++) {
        entry x;
        entry_init(b, &x, &c[i]);
        all = rd_has_cell(b->rd, RS_KERNELS, x.id.hex);
        entry_fini(&x);
    }
    return all;
}

static tpl_code run_groups(bench *b, const kernel_case *c, int n, tpl_err *e)
{
    for (int i = 0, end; i < n; i = end) {
        end = i + 1;
        while (end < n && c[end].group == c[i].group && c[i].family == FAM_ATTN_DECODE)
            end++;
        progress_show(i, n, "%s %s", c[i].op, c[i].shape);
        if (is_finished(b, c + i, end - i))
            continue;
        b->noise_floor = 0;
        if (b->q->aa && !*c[i].why_not)
            TPL_TRY(measure_floor(b, &c[i], e));
        TPL_TRY(measure_group(b, c + i, end - i, e));
    }
    return TPL_OK;
}

tpl_code kernels_bench_run(const kernels_request *q, run_dir *rd, ceilings *used, tpl_err *e)
{
    arena a;
    kernel_case *cases;
    int n;
    bench b = {0};
    arena_init(&a);
    tpl_code rc = kernel_cases_make(&q->axes, &a, &cases, &n, e);
    if (rc == TPL_OK) {
        rc = bench_open(&b, q, kernel_case_on_card(&cases[0]), rd, e);
        if (rc == TPL_OK && used)
            *used = b.ceil;
        if (rc == TPL_OK)
            rc = run_groups(&b, cases, n, e);
        rc = bench_close(&b, rc, e);
        progress_clear();
    }
    arena_fini(&a);
    if (rc == TPL_OK && b.n_wrong_rows > 0)
        return tpl_fail(e, TPL_E_MISMATCH, "kernels", "%d rows with wrong output", b.n_wrong_rows);
    return rc;
}

/* ---- the list ---- */

static void list_case(table *t, const kernel_case *c)
{
    rs_row r;
    char command[1024];
    row_init(&r, RS_KERNELS);
    kernel_case_fill(c, &r);
    kernel_case_command(c, command, sizeof command);
    rs_cell_id id = row_cell_id(&r);
    const char *cells[] = {id.hex,
                           row_get(&r, KER_op),
                           row_get(&r, KER_shape),
                           row_get(&r, KER_variant),
                           row_get(&r, KER_dtype),
                           row_get(&r, KER_backend),
                           row_get(&r, KER_threads),
                           row_get(&r, KER_batch),
                           row_get(&r, KER_context_tok),
                           row_get(&r, KER_query_tok),
                           row_get(&r, KER_heads),
                           row_get(&r, KER_kv_rank),
                           c->why_not};
    table_add_row(t, cells);
    row_fini(&r);
}

tpl_code kernels_bench_list(const kernels_request *q, table **out, tpl_err *e)
{
    static const struct {
        const char *name;
        rs_type type;
    } columns[] = {{"cell_id", RS_TEXT},    {"op", RS_TEXT},       {"shape", RS_TEXT},  {"variant", RS_TEXT},
                   {"dtype", RS_TEXT},      {"backend", RS_TEXT},  {"threads", RS_INT}, {"batch", RS_INT},
                   {"context_tok", RS_INT}, {"query_tok", RS_INT}, {"heads", RS_INT},   {"kv_rank", RS_INT},
                   {"reason", RS_TEXT}};
    arena a;
    kernel_case *cases;
    int n;
    arena_init(&a);
    tpl_code rc = kernel_cases_make(&q->axes, &a, &cases, &n, e);
    if (rc == TPL_OK) {
        table *t = table_create(NULL);
        for (size_t i = 0; i < sizeof columns / sizeof *columns; i++)
            table_add_column(t, columns[i].name, columns[i].name, "", columns[i].type);
        for (int i = 0; i < n; i++)
            list_case(t, &cases[i]);
        *out = t;
    }
    arena_fini(&a);
    return rc;
}
