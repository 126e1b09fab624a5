/* Latency at scale, held to a memory of our choosing: what fits, what becomes a row without a time, what long decodes
 * sample, what ratios at batches of their own mean. Nothing here looks at how fast anything is. */
#include "bench/latency_impl.h"

#include <math.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <criterion/criterion.h>

#include "base/clock.h"
#include "base/log.h"
#include "results/csv_table.h"

static ceilings fast_machine(void)
{
    ceilings c = {.cores = 2, .n = 1, .threads = {1}};
    for (int k = 0; k < CEIL_N; k++)
        c.rate[k][0] = 1e9; /* so that no time is below its bound */
    return c;
}

typedef struct {
    lab *lab;
    variant variants[3];
    int64_t tp, context, batch, decode;
    ceilings ceil;
    latency_request q;
} world;

static world *open_world(const char *dir, const char *a, const char *b)
{
    world *w = tpl_calloc(1, sizeof *w);
    tpl_err e = {0};
    lab_calibration cal = {0};
    cr_assert(lab_open(dir, &cal, &w->lab, &e) == TPL_OK, "%s: %s", e.where, e.what);
    cr_assert(variant_parse(a, &w->variants[0], &e) == TPL_OK && variant_parse(b, &w->variants[1], &e) == TPL_OK);
    w->tp = 2;
    w->context = 128;
    w->batch = 1;
    w->decode = 4;
    w->ceil = fast_machine();
    w->q = (latency_request){.lab = w->lab,
                             .variants = w->variants,
                             .n_variants = 2,
                             .tps = &w->tp,
                             .n_tps = 1,
                             .contexts = &w->context,
                             .n_contexts = 1,
                             .batches = &w->batch,
                             .n_batches = 1,
                             .decode_toks = &w->decode,
                             .n_decode_toks = 1,
                             .fill_random = true,
                             .pretend = true,
                             .ceil = &w->ceil,
                             .free_bytes = 1e12,
                             .device = "nothing",
                             .command = "test",
                             .measure = {.min_samples = 6, .max_samples = 6, .timeout_s = 20}};
    return w;
}

static void close_world(world *w)
{
    lab_close(w->lab);
    free(w);
}

static double needs(world *w, int i)
{
    lat_cell c;
    lat_cell_init(&c, &w->q, &w->variants[i], (lat_place){(int)w->tp, (int)w->batch, (int)w->context, (int)w->decode},
                  NULL);
    double bytes = lat_bytes_needed(&c);
    lat_cell_fini(&c);
    return bytes;
}

/* Runs the request into a fresh run directory; its rows, or NULL where there are none. */
static csv_table *run(world *w, tpl_code *rc, tpl_err *e)
{
    char root[] = "/tmp/test_latency_XXXXXX", path[600];
    run_dir *rd = NULL;
    csv_table *rows = NULL;
    cr_assert(mkdtemp(root) != NULL);
    rd_options o = {.root = root, .label = "t"};
    cr_assert(rd_create(&o, &rd, e) == TPL_OK);
    *rc = latency_run(&w->q, rd, e);
    snprintf(path, sizeof path, "%s/latency.csv", rd_path(rd));
    if (rd_n_rows(rd, RS_LATENCY) > 0)
        cr_assert(csv_table_load(path, &rows, NULL) == TPL_OK);
    snprintf(path, sizeof path, "rm -rf %s", root);
    rd_close(rd);
    cr_assert(system(path) == 0);
    return rows;
}

static double real(const csv_table *t, long row, const char *name)
{
    double v = NAN;
    csv_table_want_real(t, row, name, &v, NULL);
    return v;
}

#define MLA SOURCE_ROOT "/models/worldlet-mla"
#define V3 "shape:" SOURCE_ROOT "/models/shapes/deepseek-v3.json,moe=off"

Test(latency, largest_batch_is_the_last_that_fits)
{
    world *w = open_world(V3, "mla", "tpla:g=2:u=id");
    w->q.ranks = RANKS_SOLO;
    w->q.compute = w->q.kv = DT_BF16;
    w->context = 32768;
    w->q.free_bytes = 80e9;
    int most[2];
    for (int v = 0; v < 2; v++) {
        lat_cell c;
        lat_cell_init(&c, &w->q, &w->variants[v], (lat_place){2, LATENCY_BATCH_MAX, 32768, 4}, NULL);
        most[v] = c.batch;
        cr_expect(lat_check_fits(&c, NULL) == TPL_OK && lat_bytes_needed(&c) <= 80e9);
        lat_cell_set_batch(&c, most[v] + 1);
        cr_expect(lat_check_fits(&c, NULL) == TPL_E_MEMORY, "variant %d: one more fits too", v);
        lat_cell_fini(&c);
    }
    /* By hand for bytes alone: 61 layers x 1,152 B (640 B) a token, 101 (179) M attention weights a layer and 2.8 GB
     * of embedding and head, 80 GB: 28 and 43; a page a sequence and scratch may cost one. */
    cr_expect(most[0] >= 27 && most[0] <= 28, "%d", most[0]);
    cr_expect(most[1] >= 42 && most[1] <= 44, "%d", most[1]);
    close_world(w);
}

Test(latency, a_cell_that_does_not_fit_is_a_row_and_says_what_would)
{
    world *w = open_world(MLA, "mla", "tpla:g=2:u=id");
    tpl_code rc;
    tpl_err e = {0};
    w->context = 1024;
    w->batch = 8;
    w->q.free_bytes = (needs(w, 0) + needs(w, 1)) / 2;
    csv_table *t = run(w, &rc, &e);
    cr_assert(rc == TPL_OK && t && csv_table_n_rows(t) == 2, "%s: %s", e.where, e.what);
    cr_expect_str_eq(csv_table_text(t, 0, "status"), "out_of_memory");
    cr_expect(strstr(csv_table_text(t, 0, "reason"), "would fit") && !*csv_table_text(t, 0, "tpot_ms"), "%s",
              csv_table_text(t, 0, "reason"));
    cr_expect(strcmp(csv_table_text(t, 1, "status"), "out_of_memory") && real(t, 1, "tpot_ms") > 0);
    cr_expect_str_empty(csv_table_text(t, 1, "ratio"));
    csv_table_destroy(t);
    close_world(w);
}

Test(latency, says_so_where_no_cell_fits)
{
    world *w = open_world(MLA, "mla", "mla-dcp");
    tpl_code rc;
    tpl_err e = {0};
    w->q.free_bytes = 1e5;
    csv_table *t = run(w, &rc, &e);
    cr_expect(rc == TPL_E_MEMORY && strstr(e.what, "not even one token"), "%d %s: %s", rc, e.where, e.what);
    cr_expect(t && csv_table_n_rows(t) == 2);
    csv_table_destroy(t);
    close_world(w);
}

Test(latency, ratio_at_own_batches_is_of_tokens_a_second)
{
    world *w = open_world(MLA, "mla", "mla-dcp");
    tpl_code rc;
    tpl_err e = {0};
    w->context = 512;
    w->batch = 4;
    w->q.free_bytes = 1.01 * needs(w, 0);
    w->batch = LATENCY_BATCH_MAX;
    w->q.measure.noisy_ci_frac = 1e9;
    csv_table *t = run(w, &rc, &e);
    cr_assert(rc == TPL_OK && t && csv_table_n_rows(t) == 2, "%s: %s", e.where, e.what);
    cr_expect_eq(real(t, 0, "batch"), 4);
    cr_expect(real(t, 1, "batch") >= 7, "%g", real(t, 1, "batch"));
    cr_expect_str_eq(csv_table_text(t, 1, "batch_rule"), "max");
    cr_expect_str_eq(csv_table_text(t, 1, "pairing"), "block");
    cr_expect_str_eq(csv_table_text(t, 1, "cache_fill"), "random");
    cr_expect_float_eq(real(t, 1, "ratio"), real(t, 1, "tok_per_s") / real(t, 0, "tok_per_s"), 1e-9);
    cr_expect_str_eq(csv_table_text(t, 1, "status"), "kernel_below_bound", "the bound here is a dream");
    cr_expect(csv_table_find(t, "attn_bound_frac") >= 0);
    cr_expect_str_empty(csv_table_text(t, 1, "attn_bound_frac"), "on a host the step decides alone");
    cr_expect(strstr(csv_table_text(t, 1, "reason"), "provisional") != NULL);
    csv_table_destroy(t);
    close_world(w);
}

/* A long decode is sampled at the middles of equal parts, and the row says of how many. */
Test(latency, long_decodes_are_sampled_evenly)
{
    world *w = open_world(MLA, "mla", "tpla:g=2:u=id");
    tpl_code rc;
    tpl_err e = {0};
    w->decode = 1024;
    w->q.decode_steps = 4;
    w->q.n_variants = 1;
    w->q.measure.noisy_ci_frac = 1e9;
    lat_cell c;
    lat_cell_init(&c, &w->q, &w->variants[0], (lat_place){2, 1, 128, 1024}, NULL);
    bench_target target = lat_target(&c);
    cr_assert(target.prepare(&c, &e) == TPL_OK, "%s: %s", e.where, e.what);
    cr_expect_eq(target.units, 4);
    for (int i = 0; i < 2; i++) {
        cr_assert(target.reset(&c, &e) == TPL_OK && target.run(&c, &e) == TPL_OK, "%s: %s", e.where, e.what);
        cr_expect_eq(session_len(c.s, c.seqs[0]), 128 + 7 * 128 + 1, "the last step begins at 7/8");
    }
    cr_expect_eq(c.n_itl, 0, "what came before the end of warm-up is no sample");
    target.warmed(&c);
    cr_assert(target.reset(&c, &e) == TPL_OK && target.run(&c, &e) == TPL_OK);
    cr_expect_eq(c.n_itl, 4);
    target.release(&c);
    lat_cell_fini(&c);
    csv_table *t = run(w, &rc, &e);
    cr_assert(rc == TPL_OK && t, "%s: %s", e.where, e.what);
    cr_expect_eq(real(t, 0, "decode_tok"), 1024);
    cr_expect_eq(real(t, 0, "decode_steps"), 4);
    cr_expect_str_eq(csv_table_text(t, 0, "status"), "ok", "%s", csv_table_text(t, 0, "reason"));
    csv_table_destroy(t);
    close_world(w);
}

/* A rank alone exchanges nothing: a variant that would send other amounts has times but no ratio. */
Test(latency, ranks_alone_compare_only_what_sends_the_same)
{
    static const struct {
        const char *text;
        bool has_ratio;
    } cases[] = {{"tpla:g=2:u=id", true}, {"tpla:g=2:u=id:proj=rs", false}, {"mla-dcp", false}};
    for (int i = 0; i < 3; i++) {
        world *w = open_world(MLA, "mla", cases[i].text);
        tpl_code rc;
        tpl_err e = {0};
        w->q.ranks = RANKS_SOLO;
        w->q.measure.noisy_ci_frac = 1e9;
        csv_table *t = run(w, &rc, &e);
        cr_assert(rc == TPL_OK && t && csv_table_n_rows(t) == 2, "%s: %s", e.where, e.what);
        cr_expect(real(t, 1, "tpot_ms") > 0 && !*csv_table_text(t, 1, "ratio") == !cases[i].has_ratio, "%s: %s",
                  cases[i].text, csv_table_text(t, 1, "note"));
        csv_table_destroy(t);
        close_world(w);
    }
}

/* ---- time to first token beside its bound ---- */

/* 1,000 tokens on a host are two chunks of at most 512 rows, of which the second alone reads the head. */
Test(latency, prefill_rows_have_a_bound_and_a_rate)
{
    world *w = open_world(MLA, "mla", "mla");
    tpl_code rc;
    tpl_err e = {0};
    plan *p;
    double flops = 0;
    w->tp = 1;
    w->context = 1000;
    w->batch = 2;
    w->q.fill_random = false;
    w->q.ttft_runs = 3;
    w->q.n_variants = 1;
    w->q.measure.noisy_ci_frac = 1e9;
    for (int k = 0; k < CEIL_N; k++)
        w->ceil.rate[k][0] = k == CEIL_F32 ? 1 : 1e9; /* 1 GFLOP/s, and memory that costs nothing */
    csv_table *t = run(w, &rc, &e);
    cr_assert(t && csv_table_n_rows(t) == 1, "%s: %s", e.where, e.what);
    cr_assert(plan_create(model_cfg(lab_model(w->lab)), &w->variants[0], 1, 0, (plan_options){0}, &p, &e) == TPL_OK);
    plan_types types = {.act = DT_F32, .kv = DT_F32, .weight = DT_NONE, .folded = DT_F32};
    batch_shape first = batch_shape_uniform(1, 0, 512), last = batch_shape_uniform(1, 512, 488);
    first.logit_rows = 0;
    flops = 2 * (plan_cost(p, PHASE_PREFILL, &first, types).flops + plan_cost(p, PHASE_PREFILL, &last, types).flops);
    cr_expect_float_eq(real(t, 0, "ttft_tflop_s"), flops / real(t, 0, "ttft_ms") / 1e9,
                       1e-6 * real(t, 0, "ttft_tflop_s"));
    cr_expect_float_eq(real(t, 0, "ttft_matrix_frac"), 1e3 * real(t, 0, "ttft_tflop_s"),
                       1e-6 * real(t, 0, "ttft_matrix_frac"));
    cr_expect_float_eq(real(t, 0, "ttft_bound_ms"), flops / 1e6, 1e-3 * flops / 1e6, "FLOPs at 1 GFLOP/s");
    cr_expect_float_eq(real(t, 0, "ttft_bound_frac"), real(t, 0, "ttft_bound_ms") / real(t, 0, "ttft_ms"), 1e-6);
    plan_destroy(p);
    csv_table_destroy(t);
    close_world(w);
}

/* ---- interrupts ---- */

static int64_t now(void *self)
{
    return clock_ns();
}

/* Asked once a sample. */
static int limits_then_signal(void *left)
{
    if (--*(int *)left == 0)
        kill(getpid(), SIGTERM);
    return 0;
}

Test(latency, says_so_where_another_program_was_on_the_card)
{
    static const double taken[] = {1e9, 18e9};
    for (int i = 0; i < 2; i++) {
        world *w = open_world(MLA, "mla", "mla-dcp");
        tpl_err e = {0};
        tpl_code rc;
        w->q.taken_bytes = taken[i];
        csv_table *t = run(w, &rc, &e);
        cr_assert(rc == TPL_OK, "%s: %s", e.where, e.what);
        bool said = strstr(csv_table_text(t, 0, "note"), "16.8 GiB of a card were taken before") != NULL;
        cr_expect(said == (i == 1), "%s", csv_table_text(t, 0, "note"));
        csv_table_destroy(t);
        close_world(w);
    }
}

/* A signal in the middle of sampling: what was sampled stands in rows that say so and that a resumed run repeats. */
Test(latency, a_signal_leaves_what_was_sampled)
{
    world *w = open_world(MLA, "mla", "mla-dcp");
    tpl_code rc;
    tpl_err e = {0};
    int left = 20;
    bench_clock clock = {.now_ns = now, .limits = limits_then_signal, .self = &left};
    interrupt_install();
    w->tp = 1;
    w->q.measure.clock = &clock;
    w->q.measure.max_samples = w->q.measure.min_samples = 4000;
    csv_table *t = run(w, &rc, &e);
    cr_expect_eq(rc, TPL_E_INTERRUPTED);
    cr_assert(t && csv_table_n_rows(t) == 2, "%s: %s", e.where, e.what);
    for (int i = 0; i < 2; i++) {
        cr_expect_str_eq(csv_table_text(t, i, "status"), "incomplete");
        cr_expect(real(t, i, "tpot_ms") > 0 && real(t, i, "n_samples") > 0 &&
                  strstr(csv_table_text(t, i, "reason"), "a signal"));
        cr_expect_str_empty(csv_table_text(t, i, "ratio"));
    }
    csv_table_destroy(t);
    close_world(w);
}
