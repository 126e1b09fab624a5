/* Totals of a trace by step: times, shares, calls, costs of the plan. */
#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "bench/trace_table.h"
#include "results/csv_table.h"

enum { PASSES = 2, STEP_NS = 1000, GAP_NS = 500, BETWEEN_NS = 7000 };

static plan *decode_plan(void)
{
    model_config m;
    variant v;
    plan *p;
    tpl_err e = {0};
    cr_assert(model_config_read(SOURCE_ROOT "/models/worldlet-mla/config.json", &m, &e) == TPL_OK, "%s: %s", e.where, e.what);
    cr_assert(variant_parse("mla", &v, &e) == TPL_OK);
    cr_assert(plan_create(&m, &v, 2, 0, (plan_options){0}, &p, &e) == TPL_OK, "%s", e.what);
    return p;
}

/* Every step is one kernel of 1 us and a copy of 1 us beside it, with half a microsecond of nothing behind. */
static spans *every_step(const plan *p)
{
    const plan_list *l = &p->list[PHASE_DECODE];
    spans *s = spans_create(1, 2 * PASSES * l->n);
    int64_t at = 0;
    for (int pass = 0; pass < PASSES; pass++) {
        for (int i = 0; i < l->n; i++, at += STEP_NS + GAP_NS) {
            span x = {.step = &l->steps[i], .begin_ns = at, .end_ns = at + STEP_NS, .pass = pass, .name = "k", .kind = "kernel", .queue = 1};
            spans_add(s, 0, x);
            x.kind = "copy";
            x.queue = 2;
            spans_add(s, 0, x);
        }
        at += BETWEEN_NS - GAP_NS;
    }
    return s;
}

static void config(void *user, rs_row *r)
{
    row_set_text(r, TRACE_bench, "latency");
    row_set_text(r, TRACE_model, "worldlet-mla");
}

static double number(const csv_table *t, const char *step, const char *column)
{
    for (long i = 0; i < csv_table_n_rows(t); i++)
        if (strcmp(csv_table_text(t, i, "step"), step) == 0)
            return atof(csv_table_text(t, i, column));
    return NAN;
}

static csv_table *written(const trace_table *t, char folder[], run_dir **rd)
{
    tpl_err e = {0};
    char path[512];
    csv_table *csv;
    cr_assert_not_null(mkdtemp(folder));
    rd_options o = {.root = folder, .label = "trace", .now = 1};
    cr_assert(rd_create(&o, rd, &e) == TPL_OK, "%s", e.what);
    cr_assert(trace_table_write(t, config, NULL, *rd, &e) == TPL_OK, "%s: %s", e.where, e.what);
    cr_assert(trace_table_write(t, config, NULL, *rd, &e) == TPL_OK, "a resumed run traces a cell again");
    snprintf(path, sizeof path, "%s/traces.csv", rd_path(*rd));
    cr_assert(csv_table_load(path, &csv, &e) == TPL_OK, "%s", e.what);
    snprintf(path, sizeof path, "%s/traces/cell.json", rd_path(*rd));
    cr_expect(access(path, R_OK) == 0);
    return csv;
}

static void remove_folder(const char *folder)
{
    char command[600];
    snprintf(command, sizeof command, "rm -rf '%s'", folder);
    cr_expect_eq(system(command), 0);
}

static trace_table table_of(const spans *s, const plan *const *p)
{
    return (trace_table){.s = s, .name = "cell", .title = "t", .n_ranks = 1, .plans = p, .phase = PHASE_DECODE, .shape = batch_shape_uniform(1, 100, 1), .types = {.act = DT_BF16, .kv = DT_BF16, .weight = DT_BF16}, .compute = DT_BF16, .source = "CUPTI", .overhead = 1.25, .unlike = ""};
}

Test(trace_table, totals_are_sums_over_layers_and_means_over_passes)
{
    char folder[] = "/tmp/tracesXXXXXX";
    plan *p = decode_plan();
    spans *s = every_step(p);
    run_dir *rd;
    trace_table t = table_of(s, (const plan *const[]){p});
    csv_table *csv = written(&t, folder, &rd);
    int n = p->list[PHASE_DECODE].n, layers = p->cfg.n_layers;
    double pass_us = (n * (STEP_NS + GAP_NS) - GAP_NS) / 1e3;
    step_cost one = plan_step_cost(p, &p->list[PHASE_DECODE].steps[1], &t.shape, t.types);
    cr_assert_str_eq(p->list[PHASE_DECODE].steps[1].name, "attn.norm");
    cr_expect_float_eq(number(csv, "(pass)", "time_us"), pass_us, 1e-6);
    cr_expect_float_eq(number(csv, "(pass)", "calls"), n, 1e-9, "kernels only");
    cr_expect_float_eq(number(csv, "(pass)", "traced_over_untraced"), 1.25, 1e-9);
    cr_expect_float_eq(number(csv, "(no kernel)", "time_us"), (n - 1) * GAP_NS / 1e3, 1e-6);
    cr_expect_float_eq(number(csv, "(no kernel)", "share"), (n - 1) * GAP_NS / 1e3 / pass_us, 1e-9);
    cr_expect_float_eq(number(csv, "(between passes)", "time_us"), BETWEEN_NS / 1e3, 1e-6);
    cr_expect_float_eq(number(csv, "attn.norm", "calls"), 2 * layers, 1e-9, "a kernel and a copy a layer");
    cr_expect_float_eq(number(csv, "attn.norm", "time_us"), 2 * layers * STEP_NS / 1e3, 1e-6);
    cr_expect_float_eq(number(csv, "attn.norm", "bytes"), layers * (one.bytes_read + one.bytes_written), 1e-6);
    cr_expect_float_eq(number(csv, "attn.norm", "flops"), layers * one.flops, 1e-6);
    cr_expect_float_eq(number(csv, "attn.all_reduce", "time_us"), 2 * layers * STEP_NS / 1e3, 1e-6, "collectives go by their step");
    cr_expect_gt(number(csv, "attn.all_reduce", "bytes_sent"), 0);
    cr_expect_str_eq(csv_table_text(csv, 0, "status"), "ok");
    csv_table_destroy(csv);
    rd_close(rd);
    spans_destroy(s);
    plan_destroy(p);
    remove_folder(folder);
}

/* One launch for the norm and the step after it: the pair has one row, with the costs of both. */
Test(trace_table, steps_done_at_once_are_one_row)
{
    char folder[] = "/tmp/tracesXXXXXX", pair[128];
    plan *p = decode_plan();
    const plan_list *l = &p->list[PHASE_DECODE];
    spans *s = spans_create(1, l->n);
    run_dir *rd;
    for (int i = 0; i < l->n; i++) {
        bool norm = strcmp(l->steps[i].name, "attn.norm") == 0;
        spans_add(s, 0, (span){.step = &l->steps[i], .begin_ns = i * STEP_NS, .end_ns = (i + 1) * STEP_NS, .n_steps = 1 + norm, .name = "k", .kind = "kernel"});
        i += norm;
    }
    trace_table t = table_of(s, (const plan *const[]){p});
    csv_table *csv = written(&t, folder, &rd);
    step_cost one = plan_step_cost(p, &l->steps[1], &t.shape, t.types), two = plan_step_cost(p, &l->steps[2], &t.shape, t.types);
    snprintf(pair, sizeof pair, "attn.norm + %s", l->steps[2].name);
    cr_expect_float_eq(number(csv, pair, "calls"), p->cfg.n_layers, 1e-9);
    cr_expect_float_eq(number(csv, pair, "flops"), p->cfg.n_layers * (one.flops + two.flops), 1e-6);
    cr_expect(isnan(number(csv, "attn.norm", "calls")));
    cr_expect(isnan(number(csv, l->steps[2].name, "calls")));
    csv_table_destroy(csv);
    rd_close(rd);
    spans_destroy(s);
    plan_destroy(p);
    remove_folder(folder);
}

/* Every launch begins while the one in front runs, and waits for it: what counts is by how much it ends later. */
Test(trace_table, launches_that_begin_early_count_from_the_end_of_those_in_front)
{
    char folder[] = "/tmp/tracesXXXXXX";
    plan *p = decode_plan();
    const plan_list *l = &p->list[PHASE_DECODE];
    spans *s = spans_create(1, l->n);
    run_dir *rd;
    double shares = 0;
    for (int i = 0; i < l->n; i++)
        spans_add(s, 0, (span){.step = &l->steps[i], .begin_ns = i * STEP_NS - (i > 0) * STEP_NS / 2, .end_ns = (i + 1) * STEP_NS, .name = "k", .kind = "kernel"});
    trace_table t = table_of(s, (const plan *const[]){p});
    csv_table *csv = written(&t, folder, &rd);
    int layers = p->cfg.n_layers;
    cr_expect_float_eq(number(csv, "attn.norm", "time_us"), layers * STEP_NS * 1.5 / 1e3, 1e-6);
    cr_expect_float_eq(number(csv, "attn.norm", "own_us"), layers * STEP_NS / 1e3, 1e-6);
    for (long i = 0; i < csv_table_n_rows(csv); i++)
        shares += strcmp(csv_table_text(csv, i, "step"), "(pass)") ? atof(csv_table_text(csv, i, "share")) : 0;
    cr_expect_float_eq(shares, 1, 1e-9);
    csv_table_destroy(csv);
    rd_close(rd);
    spans_destroy(s);
    plan_destroy(p);
    remove_folder(folder);
}

Test(trace_table, what_was_lost_makes_the_pass_incomplete)
{
    char folder[] = "/tmp/tracesXXXXXX";
    plan *p = decode_plan();
    spans *s = every_step(p);
    run_dir *rd;
    trace_table t = table_of(s, (const plan *const[]){p});
    t.n_dropped = 3;
    t.n_unlike = 2;
    t.unlike = "attn.norm of layer 0 in pass 1: 0 records, 1 were recorded";
    csv_table *csv = written(&t, folder, &rd);
    cr_expect_str_eq(csv_table_text(csv, 0, "step"), "(pass)");
    cr_expect_str_eq(csv_table_text(csv, 0, "status"), "incomplete");
    cr_expect_str_eq(csv_table_text(csv, 0, "reason"),
                     "3 records lost, 2 steps unlike what was recorded: attn.norm of layer 0 in pass 1: 0 records, 1 were recorded");
    cr_expect_str_eq(csv_table_text(csv, 1, "status"), "ok");
    csv_table_destroy(csv);
    rd_close(rd);
    spans_destroy(s);
    plan_destroy(p);
    remove_folder(folder);
}
