/* The bench of collectives and that of hand-offs with ranks that are threads: which rows come out and what they say. */
#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "bench/handoff.h"
#include "bench/links_bench.h"
#include "results/csv_table.h"

static char dir[] = "/tmp/tplabench-links-XXXXXX";
static tpl_err err;
static arena mem;
static run_dir *rd;

static void setup(void)
{
    arena_init(&mem);
    err = (tpl_err){0};
    cr_assert(mkdtemp(dir));
    rd_options o = {.root = text_path_join(&mem, dir, "runs"), .label = "links", .now = 1735790645};
    cr_assert(rd_create(&o, &rd, &err) == TPL_OK, "%s", err.what);
}

static void teardown(void)
{
    rd_close(rd);
    cr_assert(system(arena_printf(&mem, "rm -r %s", dir)) == 0);
    arena_fini(&mem);
}

TestSuite(links_bench, .init = setup, .fini = teardown);

static const int64_t sizes[] = {64, 4096, 65536, 262144};
static const int64_t ranks[] = {2, 3};
static const measure_options quick = {.max_samples = 6, .timeout_s = 0.2};

static links_request request(void)
{
    links_request q = {
        .tps = ranks, .n_tps = 1, .bytes = sizes, .n_bytes = 4, .measure = quick, .command = "the command"};
    q.ops[COMM_ALL_REDUCE] = q.ops[COMM_ALL_GATHER] = q.ops[COMM_REDUCE_SCATTER] = true;
    return q;
}

static void check_row(void *user, const rs_row *r)
{
    int *n = user;
    (*n)++;
    cr_expect_str_eq(row_get(r, KER_backend), "local");
    cr_expect_str_eq(row_get(r, KER_dtype), "f32");
    cr_expect_str_eq(row_get(r, KER_n_wrong), "0");
    cr_expect(strncmp(row_get(r, KER_shape), "link/tp2/", 9) == 0, "%s", row_get(r, KER_shape));
    cr_expect(atof(row_get(r, KER_time_us)) > 0);
    cr_expect(strstr(row_get(r, KER_note), "teams go this way") != NULL, "%s", row_get(r, KER_note));
}

Test(links_bench, each_size_is_a_row_and_the_model_has_all_points, .timeout = 60)
{
    int n = 0;
    link_model m, back;
    links_request q = request();
    q.on_row = check_row;
    q.user = &n;
    q.fit_path = text_path_join(&mem, dir, "threads.json");
    cr_assert(links_bench_run(&q, rd, &m, &err) == TPL_OK, "%s: %s", err.where, err.what);
    cr_expect_eq(n, 12);
    cr_expect_eq(rd_n_rows(rd, RS_KERNELS), 12);
    cr_assert(links_read(q.fit_path, &back, &err) == TPL_OK, "%s: %s", err.where, err.what);
    cr_expect_str_eq(back.name, "threads");
    cr_expect_str_eq(back.command, "the command");
    cr_expect_eq(m.n_points, 12);
    cr_expect_eq(back.n_pieces, 3); /* four sizes are too few for two pieces */
    for (int i = 0; i < back.n_pieces; i++)
        cr_expect(back.pieces[i].ranks == 2 && back.pieces[i].n_points == 4);
}

Test(links_bench, what_is_there_is_not_measured_again, .timeout = 60)
{
    link_model m;
    links_request q = request();
    q.n_bytes = 2;
    cr_assert(links_bench_run(&q, rd, &m, &err) == TPL_OK, "%s", err.what);
    cr_assert(links_bench_run(&q, rd, &m, &err) == TPL_OK, "%s", err.what);
    cr_expect_eq(rd_n_rows(rd, RS_KERNELS), 6);
}

Test(links_bench, sizes_that_do_not_divide_are_refused)
{
    links_request q = request();
    q.n_tps = 2; /* 64 bytes over three ranks */
    cr_expect(links_bench_check(&q, &err) == TPL_E_USAGE);
    cr_expect(strstr(err.what, "multiple of 12") != NULL, "%s", err.what);
    q = request();
    q.dtype = DT_BF16;
    cr_expect(links_bench_check(&q, &err) == TPL_E_USAGE && strstr(err.what, "f32") != NULL, "%s", err.what);
}

Test(links_bench, names_of_operations)
{
    cr_expect_eq(links_op_from_name("reduce_scatter"), COMM_REDUCE_SCATTER);
    cr_expect_eq(links_op_from_name("matmul"), COMM_N_OPS);
}

/* ---- hand-off ---- */

static const char *cell_of(const csv_table *t, int row, const char *column)
{
    return csv_table_text(t, row, column);
}

Test(links_bench, a_hand_off_says_what_is_stored_and_moved, .timeout = 60)
{
    lab *l;
    variant v[2];
    const handoff_pair pairs[] = {{1, 1}, {2, 4}};
    const int64_t context[] = {128};
    cr_assert(lab_open(SOURCE_ROOT "/models/worldlet-mla", &(lab_calibration){0}, &l, &err) == TPL_OK, "%s", err.what);
    cr_assert(variant_parse("mla", &v[0], &err) == TPL_OK && variant_parse("mla-dcp", &v[1], &err) == TPL_OK);
    const model_config *c = model_cfg(lab_model(l));
    handoff_request q = {.lab = l,
                         .variants = v,
                         .n_variants = 2,
                         .pairs = pairs,
                         .n_pairs = 2,
                         .contexts = context,
                         .n_contexts = 1,
                         .measure = quick,
                         .command = "the command"};
    cr_assert(handoff_bench_run(&q, rd, &err) == TPL_OK, "%s: %s", err.where, err.what);
    cr_assert(handoff_bench_run(&q, rd, &err) == TPL_OK, "%s: %s", err.where, err.what); /* nothing is left to do */
    cr_expect_eq(rd_n_rows(rd, RS_HANDOFF), 4);
    csv_table *t;
    cr_assert(csv_table_load(text_path_join(&mem, rd_path(rd), "handoff.csv"), &t, &err) == TPL_OK, "%s", err.what);
    double whole = (double)c->n_layers * (c->kv_lora_rank + c->rope_dim) * 4;
    const double stored[] = {whole, whole, whole, whole / 4}, moved[] = {whole, 4 * whole, whole, whole};
    for (int i = 0; i < 4; i++) {
        cr_expect(atof(cell_of(t, i, "kv_bytes_per_tok_rank")) == stored[i], "row %d: %s", i,
                  cell_of(t, i, "kv_bytes_per_tok_rank"));
        cr_expect(atof(cell_of(t, i, "moved_bytes_per_tok")) == moved[i], "row %d: %s", i,
                  cell_of(t, i, "moved_bytes_per_tok"));
        cr_expect_str_eq(cell_of(t, i, "n_wrong"), "0");
        cr_expect_str_eq(cell_of(t, i, "way"), "memory");
    }
    csv_table_destroy(t);
    lab_close(l);
}
