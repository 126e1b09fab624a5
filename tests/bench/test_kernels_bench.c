/* Tiny models, made-up ceilings, real kernels: what is checked is which rows come out and what they say, not how fast.
 */
#include "bench/kernels_bench.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "bench/comm_target.h"
#include "bench/kernel_reference.h"
#include "bench/kernel_world.h"
#include "results/csv_table.h"
#include "tests/bench/kernels_rows.h"

static char dir[] = "/tmp/tplabench-kernels-XXXXXX";
static tpl_err err;
static arena mem;

static const char mla_shape[] =
    "{\"architectures\":[\"DeepseekV3ForCausalLM\"],\"model_type\":\"deepseek_v3\",\"hidden_size\":64,"
    "\"intermediate_size\":96,\"num_hidden_layers\":7,\"num_attention_heads\":8,\"num_key_value_heads\":8,"
    "\"q_lora_rank\":32,\"kv_lora_rank\":32,\"qk_nope_head_dim\":16,\"qk_rope_head_dim\":8,\"v_head_dim\":16,"
    "\"vocab_size\":128,\"max_position_embeddings\":256,\"rms_norm_eps\":1e-6,\"rope_theta\":10000,"
    "\"tie_word_embeddings\":false,\"torch_dtype\":\"bfloat16\",\"bos_token_id\":0,\"eos_token_id\":1}";
static const char gqa_shape[] =
    "{\"architectures\":[\"LlamaForCausalLM\"],\"model_type\":\"llama\",\"hidden_size\":64,\"intermediate_size\":96,"
    "\"num_hidden_layers\":2,\"num_attention_heads\":8,\"num_key_value_heads\":2,\"vocab_size\":128,"
    "\"max_position_embeddings\":256,\"rms_norm_eps\":1e-5,\"rope_theta\":10000,\"tie_word_embeddings\":false,"
    "\"torch_dtype\":\"bfloat16\",\"bos_token_id\":0,\"eos_token_id\":1}";

static void write_shape(const char *name, const char *text)
{
    char *path = text_path_join(&mem, dir, name);
    cr_assert(text_write_file(path, text, strlen(text), &err) == TPL_OK, "%s", err.what);
}

static void setup(void)
{
    arena_init(&mem);
    err = (tpl_err){0};
    cr_assert(mkdtemp(dir));
    write_shape("tiny-mla.json", mla_shape);
    write_shape("tiny-gqa.json", gqa_shape);
}

static void teardown(void)
{
    cr_assert(system(arena_printf(&mem, "rm -r %s", dir)) == 0);
    arena_fini(&mem);
}

TestSuite(kernels_bench, .init = setup, .fini = teardown);

/* So slow a machine that every kernel beats it would give bad_ceiling; so fast a one that none comes near gives ok. */
static const ceilings fast = {.cpu = "made up",
                              .cores = 8,
                              .n = 1,
                              .threads = {1},
                              .rate = {{1e6}, {1e6}, {1e9}, {1e9}, {1e6}},
                              .source = {"a", "b", "c", "d", "e"}};
static const ceilings slow = {.cpu = "made up",
                              .cores = 8,
                              .n = 1,
                              .threads = {1},
                              .rate = {{1e-9}, {1e-9}, {1e-9}, {1e-9}, {1e-9}},
                              .source = {"a", "b", "c", "d", "e"}};

static kernels_request request(const char *op, const char *shape)
{
    return (kernels_request){
        .axes = {.op = op, .shape = shape, .shapes_dir = dir, .tp = "2", .context = "100", .prompt = "9", .rows = "3"},
        .measure = {.min_samples = 6, .max_samples = 6, .hot_samples = 2, .noisy_ci_frac = 1e9},
        .ceilings = &fast};
}

/* Runs and gives the rows. */
static csv_table *run_code(const kernels_request *q, const char *label, tpl_code expected)
{
    return kernels_rows(q, &mem, dir, label, expected, &err);
}

static csv_table *run(const kernels_request *q, const char *label)
{
    return run_code(q, label, TPL_OK);
}

static const char *cell(const csv_table *t, long row, int column)
{
    return csv_table_cell(t, row, column);
}

static double number(const csv_table *t, long row, int column)
{
    double v = NAN;
    real_from_text(cell(t, row, column), &v);
    return v;
}

/* ---- rows ---- */

Test(kernels_bench, decode_attention_has_a_row_a_variant)
{
    kernels_request q = request("attn_decode", "tiny-mla,tiny-gqa");
    static const struct {
        const char *op, *variant;
        int heads, kv_rank;
    } expected[] = {
        {"attn_latent", "mla", 4, 32},      {"attn_latent", "mla-dcp", 8, 32}, {"attn_latent", "tpla:g=2", 8, 16},
        {"attn_latent", "tpla:g=4", 8, 16}, {"attn_gqa", "gqa", 4, 8},
    };
    csv_table *t = run(&q, "decode");
    cr_assert(csv_table_n_rows(t) == 5);
    for (long i = 0; i < 5; i++) {
        cr_expect_str_eq(cell(t, i, KER_op), expected[i].op, "row %ld", i);
        cr_expect(strncmp(cell(t, i, KER_variant), expected[i].variant, strlen(expected[i].variant)) == 0, "row %ld",
                  i);
        cr_expect(number(t, i, KER_heads) == expected[i].heads, "row %ld", i);
        cr_expect(number(t, i, KER_kv_rank) == expected[i].kv_rank || i == 3, "row %ld: %g", i,
                  number(t, i, KER_kv_rank));
        cr_expect(number(t, i, KER_context_tok) == 100 && number(t, i, KER_batch) == 1, "row %ld", i);
        cr_expect(number(t, i, KER_time_us) > 0 && number(t, i, KER_time_hot_us) > 0, "row %ld", i);
        cr_expect(number(t, i, KER_n_wrong) == 0 && number(t, i, KER_n_samples) == 6, "row %ld", i);
        cr_expect(strcmp(cell(t, i, KER_time_us_p99), "") == 0, "row %ld: six samples have no p99", i);
        cr_expect(strstr(cell(t, i, KER_command), "tplabench kernels --op attn_decode --shape tiny-") != NULL,
                  "row %ld", i);
    }
    cr_expect(number(t, 3, KER_kv_rank) == 16, "two of four slices of 8 on a rank of two");
    csv_table_destroy(t);
}

Test(kernels_bench, ratios_are_against_the_groups_first_and_no_claim_far_from_the_bound)
{
    kernels_request q = request("attn_decode", "tiny-mla");
    q.axes.variant = "mla,tpla:g=2";
    csv_table *t = run(&q, "ratio");
    cr_expect_str_eq(cell(t, 0, RS_status), "ok");
    cr_expect_str_eq(cell(t, 0, KER_ratio), "");
    cr_expect_str_eq(cell(t, 1, KER_baseline_cell), cell(t, 0, RS_cell_id));
    cr_expect(fabs(number(t, 1, KER_ratio) - number(t, 0, KER_time_us) / number(t, 1, KER_time_us)) < 1e-9);
    cr_expect(number(t, 1, KER_ratio_lo) <= number(t, 1, KER_ratio) &&
              number(t, 1, KER_ratio) <= number(t, 1, KER_ratio_hi));
    cr_expect_str_eq(cell(t, 1, RS_status), "kernel_below_bound");
    cr_expect(strstr(cell(t, 1, KER_note), "pairing sample") != NULL, "%s", cell(t, 1, KER_note));
    csv_table_destroy(t);
}

Test(kernels_bench, derived_numbers_follow_from_time_and_cost)
{
    kernels_request q = request("attn_decode", "tiny-gqa");
    csv_table *t = run(&q, "derived");
    double us = number(t, 0, KER_time_us);
    /* q and out [1, 4 * 8] f32; K and V of 100 tokens, one KV head of 8 each, bf16. */
    double bytes = 2 * 32 * 4 + 100 * 16 * 2, flops = 4. * 4 * 8 * 100;
    cr_expect_float_eq(number(t, 0, KER_gb_s), bytes / us * 1e-3, 1e-9 * bytes);
    cr_expect_float_eq(number(t, 0, KER_tflop_s), flops / us * 1e-6, 1e-9 * flops);
    double bound = 1e6 * (2 * 128 + (128 + 3200 - 128)) / 1e15; /* 1e6 GB/s */
    cr_expect_float_eq(number(t, 0, KER_bound_us), bound, 1e-9);
    cr_expect_float_eq(number(t, 0, KER_bound_frac), bound / us, 1e-9);
    csv_table_destroy(t);
}

Test(kernels_bench, every_family_is_right_against_the_reference)
{
    static const struct {
        const char *op, *dtype;
        int rows;
    } cases[] = {{"attn_prefill", "bf16", 2}, {"attn_prefill", "f32", 2}, {"matmul", "bf16,f32", -1},
                 {"head_matmul", "bf16", 2},  {"rmsnorm", "f32", -1},     {"rope", "f32", -1},
                 {"hadamard", "bf16,f32", 2}, {"comm", "f32", 8},         {"attn_decode", "f32", 5}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        kernels_request q = request(cases[i].op, "tiny-mla,tiny-gqa");
        q.axes.dtype = cases[i].dtype;
        csv_table *t = run(&q, cases[i].op);
        long n = csv_table_n_rows(t);
        cr_expect(cases[i].rows < 0 ? n >= 4 : n == cases[i].rows, "%s: %ld rows", cases[i].op, n);
        for (long k = 0; k < n; k++)
            cr_expect(strcmp(cell(t, k, RS_status), "ok") == 0 ||
                          strcmp(cell(t, k, RS_status), "kernel_below_bound") == 0,
                      "%s row %ld: %s %s", cases[i].op, k, cell(t, k, RS_status), cell(t, k, RS_reason));
        csv_table_destroy(t);
    }
}

Test(kernels_bench, threads_run_copies_at_once)
{
    kernels_request q = request("attn_decode", "tiny-gqa");
    q.axes.threads = "1,3";
    csv_table *t = run(&q, "threads");
    cr_assert(csv_table_n_rows(t) == 2);
    cr_expect(number(t, 1, KER_threads) == 3 && number(t, 1, KER_n_wrong) == 0);
    cr_expect(strstr(cell(t, 1, KER_note), "3 independent copies at once") != NULL);
    double work_1 = number(t, 0, KER_gb_s) * number(t, 0, KER_time_us),
           work_3 = number(t, 1, KER_gb_s) * number(t, 1, KER_time_us);
    cr_expect(fabs(work_3 - 3 * work_1) < 1e-6 * work_3);
    csv_table_destroy(t);
}

Test(kernels_bench, collectives_say_what_was_timed)
{
    kernels_request q = request("comm", "tiny-gqa");
    csv_table *t = run(&q, "comm");
    cr_assert(csv_table_n_rows(t) == 4);
    cr_expect_str_eq(cell(t, 0, KER_op), "all_reduce");
    cr_expect(number(t, 0, KER_threads) == 2 && strcmp(cell(t, 0, KER_backend), "local") == 0);
    cr_expect_str_eq(cell(t, 0, KER_bound_us), "");
    cr_expect(strstr(cell(t, 0, KER_note), "data in the caches") != NULL);
    csv_table_destroy(t);
}

/* ---- what goes wrong ---- */

static tpl_code wrong_gqa(kernel_ctx *ctx, const op_call *call, tpl_err *e)
{
    TPL_TRY(kernel_run("ref", ctx, call, e));
    float *out = call->attn_gqa.out.data;
    out[3] += 1; /* one element */
    return TPL_OK;
}

static tpl_code lazy_gqa(kernel_ctx *ctx, const op_call *call, tpl_err *e)
{
    return TPL_OK; /* writes nothing */
}

Test(kernels_bench, a_planted_wrong_kernel_gives_wrong_answer_and_exit_1)
{
    tpl_code (*const bad[])(kernel_ctx *, const op_call *, tpl_err *) = {wrong_gqa, lazy_gqa};
    const int n_wrong[] = {1, 32};
    for (int i = 0; i < 2; i++) {
        kernel_row row = {.op = OP_ATTN_GQA, .backend = "cpu", .name = "planted", .run = bad[i]};
        kernels_request q = request("attn_decode", "tiny-gqa");
        q.inject = &row;
        csv_table *t = run_code(&q, "wrong", TPL_E_MISMATCH);
        cr_expect(tpl_exit_status(err.code) == 1);
        cr_expect_str_eq(cell(t, 0, RS_status), "wrong_answer");
        cr_expect(number(t, 0, KER_n_wrong) == n_wrong[i], "%g", number(t, 0, KER_n_wrong));
        csv_table_destroy(t);
    }
}

Test(kernels_bench, a_run_is_on_the_processor_or_on_a_card)
{
    kernels_request q = request("attn_decode", "tiny-gqa");
    kernel_case *cases;
    int n;
    q.axes.backend = "cpu,cuda_mma";
    cr_expect(kernel_cases_make(&q.axes, &mem, &cases, &n, &err) == TPL_E_USAGE);
    cr_expect(strstr(err.what, "'cpu' and 'cuda_mma'"), "%s", err.what);
    q.axes.backend = "cuda";
    q.axes.threads = "2";
    cr_assert(kernel_cases_make(&q.axes, &mem, &cases, &n, &err) == TPL_OK, "%s", err.what);
    cr_expect(n == 1 && strstr(cases[0].why_not, "processor's cores"), "%s", cases[0].why_not);
}

Test(kernels_bench, faster_than_the_bound_is_a_bad_ceiling)
{
    kernels_request q = request("attn_decode", "tiny-gqa");
    q.ceilings = &slow;
    csv_table *t = run(&q, "ceiling");
    cr_expect_str_eq(cell(t, 0, RS_status), "bad_ceiling");
    cr_expect(number(t, 0, KER_bound_frac) > 1.02);
    csv_table_destroy(t);
}

Test(kernels_bench, what_cannot_run_is_a_row_that_says_why)
{
    kernels_request q = request("attn_decode", "tiny-mla,tiny-gqa");
    q.axes.tp = "3";
    csv_table *t = run(&q, "unfit");
    cr_expect(csv_table_n_rows(t) == 5);
    for (long i = 0; i < csv_table_n_rows(t); i++) {
        cr_expect_str_eq(cell(t, i, RS_status), "unsupported");
        cr_expect(*cell(t, i, RS_reason) && !*cell(t, i, KER_time_us), "row %ld", i);
    }
    csv_table_destroy(t);
    q.axes.tp = "1";
    q.axes.backend = "abacus";
    t = run(&q, "backend");
    cr_expect_str_eq(cell(t, 0, RS_status), "unsupported");
    cr_expect(strstr(cell(t, 0, RS_reason), "'abacus' has no kernel") != NULL, "%s", cell(t, 0, RS_reason));
    csv_table_destroy(t);
}

Test(kernels_bench, what_does_not_fit_is_out_of_memory)
{
    kernels_request q = request("attn_decode", "tiny-gqa");
    q.axes.context = "16M";
    q.axes.batch = "4K";
    csv_table *t = run(&q, "memory");
    cr_expect_str_eq(cell(t, 0, RS_status), "out_of_memory");
    csv_table_destroy(t);
}

Test(kernels_bench, bad_axes_name_their_option)
{
    static const struct {
        kernel_axes axes;
        const char *where;
    } cases[] = {
        {{.op = "attn"}, "--op"},     {{.shape = "no-such"}, "--shape"},  {{.shape = "../tiny-mla"}, "--shape"},
        {{.dtype = "f8"}, "--dtype"}, {{.context = "0"}, "--context"},    {{.context = "1:"}, "--context"},
        {{.tp = "-1"}, "--tp"},       {{.batch = "99999999"}, "--batch"}, {{.filter = "nothing like it"}, "kernels"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        kernels_request q = {.axes = cases[i].axes};
        table *t;
        q.axes.shapes_dir = dir;
        if (!q.axes.shape)
            q.axes.shape = "tiny-mla";
        cr_expect(kernels_bench_list(&q, &t, &err) == TPL_E_USAGE, "case %zu", i);
        cr_expect_str_eq(err.where, cases[i].where, "case %zu: %s", i, err.what);
    }
    kernels_request q = {.axes = {.variant = "mlaa", .shape = "tiny-mla", .shapes_dir = dir}};
    table *t;
    cr_expect(kernels_bench_list(&q, &t, &err) == TPL_E_USAGE);
}

/* ---- list, filter, resume, noise floor ---- */

static char *list_text(const kernels_request *q)
{
    table *t;
    char *text = NULL;
    size_t len = 0;
    cr_assert(kernels_bench_list(q, &t, &err) == TPL_OK, "%s: %s", err.where, err.what);
    FILE *f = open_memstream(&text, &len);
    cr_assert(table_print(t, TABLE_CSV, f, &err) == TPL_OK);
    fclose(f);
    table_destroy(t);
    return text;
}

static int count_lines(const char *s)
{
    int n = 0;
    for (; *s; s++)
        n += *s == '\n';
    return n;
}

Test(kernels_bench, axes_are_cartesian_and_filters_cut_them)
{
    static const struct {
        const char *filter;
        int rows;
    } cases[] = {
        {NULL, 3 * 2 * 4}, {"context=256", 2 * 4}, {"* mla *", 3 * 2}, {"*batch=3*", 3 * 4}, {"tpla:g=2", 3 * 2}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        kernels_request q = request("attn_decode", "tiny-mla");
        q.axes.context = "64:256*2";
        q.axes.batch = "1,3";
        q.axes.filter = cases[i].filter;
        char *text = list_text(&q);
        cr_expect(count_lines(text) == 1 + cases[i].rows, "case %zu: %s", i, text);
        free(text);
    }
}

Test(kernels_bench, a_rows_command_gives_that_row_alone)
{
    kernels_request all = request(NULL, "tiny-mla,tiny-gqa");
    kernel_case *cases;
    int n;
    cr_assert(kernel_cases_make(&all.axes, &mem, &cases, &n, &err) == TPL_OK);
    cr_expect(n > 40, "%d", n);
    for (int i = 0; i < n; i++) {
        char command[1024], sizes[3][32];
        const kernel_case *c = &cases[i];
        kernel_case_command(c, command, sizeof command);
        snprintf(sizes[0], sizeof sizes[0], "%d", c->tp);
        snprintf(sizes[1], sizeof sizes[1], "%d", c->family == FAM_COMM ? 1 : c->threads);
        char *filter = arena_strdup(&mem, strstr(command, "--filter '") + 10);
        filter[strlen(filter) - 1] = 0;
        kernel_axes one = all.axes;
        one.op = kernel_family_name(c->family);
        one.tp = sizes[0];
        one.threads = sizes[1];
        one.variant = *c->variant_text ? c->variant_text : NULL;
        one.dtype = dtype_name(c->dtype);
        one.filter = filter;
        kernel_case *again;
        int n_again = 0;
        cr_assert(kernel_cases_make(&one, &mem, &again, &n_again, &err) == TPL_OK, "%s: %s", command, err.what);
        cr_expect(n_again == 1 && strcmp(again[0].shape, c->shape) == 0 && strcmp(again[0].op, c->op) == 0, "%d: %s",
                  n_again, command);
    }
}

Test(kernels_bench, a_resumed_run_measures_no_cell_twice)
{
    kernels_request q = request("attn_decode", "tiny-gqa");
    rd_options o = {.root = text_path_join(&mem, dir, "runs"), .label = "resume", .now = 1735790645};
    run_dir *rd;
    cr_assert(rd_create(&o, &rd, &err) == TPL_OK);
    cr_assert(kernels_bench_run(&q, rd, NULL, &err) == TPL_OK, "%s", err.what);
    cr_assert(kernels_bench_run(&q, rd, NULL, &err) == TPL_OK, "%s", err.what);
    cr_expect(rd_n_rows(rd, RS_KERNELS) == 1);
    q.axes.context = "100,50";
    cr_assert(kernels_bench_run(&q, rd, NULL, &err) == TPL_OK, "%s", err.what);
    cr_expect(rd_n_rows(rd, RS_KERNELS) == 2);
    rd_close(rd);
}

Test(kernels_bench, aa_notes_the_noise_floor)
{
    kernels_request q = request("attn_decode", "tiny-gqa");
    q.aa = true;
    csv_table *t = run(&q, "aa");
    cr_expect(csv_table_n_rows(t) == 1 && strstr(cell(t, 0, KER_note), "noise floor") != NULL, "%s",
              cell(t, 0, KER_note));
    csv_table_destroy(t);
}

Test(kernels_bench, samples_go_to_their_file)
{
    kernels_request q = request("attn_decode", "tiny-gqa");
    char *path = text_path_join(&mem, dir, "samples.csv"), *text;
    size_t len;
    q.samples_path = path;
    csv_table *t = run(&q, "samples");
    cr_assert(text_read_file(path, &text, &len, &err) == TPL_OK);
    cr_expect(count_lines(text) == 1 + 6 + 2, "%s", text);
    cr_expect(strstr(text, cell(t, 0, RS_cell_id)) != NULL);
    free(text);
    csv_table_destroy(t);
}

/* ---- comparing ---- */

Test(kernels_bench, wrong_elements_are_counted)
{
    static const struct {
        const char *name;
        float got[4], want[4];
        double tol;
        int wrong;
    } cases[] = {
        {"same", {1, 2, 3, 4}, {1, 2, 3, 4}, 1e-6, 0},
        {"one off", {1, 2, 3, 4.1f}, {1, 2, 3, 4}, 1e-3, 1},
        {"small beside large", {100, 0.01f, 100, 100}, {100, 0, 100, 100}, 1e-3, 0},
        {"unwritten", {NAN, 2, 3, 4}, {1, 2, 3, 4}, 1, 1},
        {"nan wanted", {NAN, 2, 3, 4}, {NAN, 2, 3, 4}, 1e-6, 0},
        {"nan missed", {1, 2, 3, 4}, {NAN, 2, 3, 4}, 1, 1},
        {"infinity", {-INFINITY, INFINITY, 0, 0}, {-INFINITY, -INFINITY, 0, 0}, 1, 1},
        {"all zero", {0, 0, 0, 1e-30f}, {0, 0, 0, 0}, 1, 1},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        int64_t n = kernel_count_wrong(cases[i].got, 2, cases[i].want, 2, 2, cases[i].tol);
        cr_expect(n == cases[i].wrong, "%s: %ld", cases[i].name, (long)n);
    }
}

Test(kernels_bench, a_width_that_ranks_cannot_share_is_unsupported)
{
    comm_target *c = comm_target_create(COMM_REDUCE_SCATTER, 3, 2, 64);
    bench_target t = comm_target_bench(c);
    cr_expect(t.prepare(t.self, &err) == TPL_E_UNSUPPORTED);
    t.release(t.self);
    comm_target_destroy(c);
}
