/* `kernels --backend cuda`: rows of every family on a card, their answers checked, and a wrong kernel found. Ceilings
 * are made up: what is checked is which rows come out and what they say, not how fast. */
#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "bench/kernels_bench.h"
#include "device/gpu.h"
#include "tests/bench/kernels_rows.h"
#include "tests/gpu/small.h"

static char dir[] = "/tmp/tplabench-card-kernels-XXXXXX";
static char shapes[512];
static tpl_err err;
static arena mem;

static void setup(void)
{
    const char *home = getenv("TPLABENCH_HOME");
    if (gpu_count() == 0)
        cr_skip_test("no CUDA card is here");
    arena_init(&mem);
    snprintf(shapes, sizeof shapes, "%s/models/shapes", home && *home ? home : SOURCE_ROOT);
    cr_assert(mkdtemp(dir));
}

static void teardown(void)
{
    if (gpu_count() == 0)
        return;
    cr_assert(system(arena_printf(&mem, "rm -r %s", dir)) == 0);
    arena_fini(&mem);
}

TestSuite(card_kernels, .init = setup, .fini = teardown);

static const ceilings made_up = {.cpu = "made up",
                                 .cores = 1,
                                 .n = 1,
                                 .threads = {1},
                                 .rate = {{1e9}, {1e9}, {1e9}, {1e9}, {1e9}},
                                 .source = {"a", "b", "c", "d", "e"}};

static kernels_request request(const char *op, const char *shape, const char *filter)
{
    return (kernels_request){.axes = {.op = op,
                                      .shape = shape,
                                      .shapes_dir = shapes,
                                      .backend = "cuda",
                                      .tp = "2",
                                      .context = "300",
                                      .batch = "3",
                                      .prompt = "130",
                                      .rows = shapes_are_small() ? "3" : "1,29",
                                      .filter = filter},
                             .measure = {.min_samples = 6, .max_samples = 6, .noisy_ci_frac = 1e9},
                             .ceilings = &made_up};
}

static csv_table *run(const kernels_request *q, tpl_code expected)
{
    static int n_runs;
    return kernels_rows(q, &mem, dir, arena_printf(&mem, "run%d", n_runs++), expected, &err);
}

static double number(const csv_table *t, long row, const char *column)
{
    double v = NAN;
    real_from_text(csv_table_text(t, row, column), &v);
    return v;
}

static void expect_right(const csv_table *t, long rows, const char *what)
{
    cr_assert(csv_table_n_rows(t) == rows, "%s: %ld rows, expected %ld", what, csv_table_n_rows(t), rows);
    for (long i = 0; i < rows; i++) {
        const char *op = csv_table_text(t, i, "op"), *shape = csv_table_text(t, i, "shape");
        cr_expect(number(t, i, "n_wrong") == 0, "%s %s: %g wrong", op, shape, number(t, i, "n_wrong"));
        cr_expect(number(t, i, "time_us") > 0 && number(t, i, "n_samples") == 6, "%s %s", op, shape);
        cr_expect(strstr(csv_table_text(t, i, "note"), "output elements checked"), "%s %s", op, shape);
        cr_expect(strstr(csv_table_text(t, i, "note"), "copies of the operands"), "%s %s", op, shape);
        cr_expect(strcmp(csv_table_text(t, i, "device"), "made up") != 0, "the card's name");
    }
}

Test(card_kernels, every_family_of_latent_models)
{
    kernels_request attention = request("attn_decode,attn_prefill", "deepseek-v3", NULL);
    csv_table *t = run(&attention, TPL_OK);
    expect_right(t, 5, "attention");
    csv_table_destroy(t);
    kernels_request rest =
        request("head_matmul,rmsnorm,rope,hadamard", "deepseek-v3", shapes_are_small() ? "attn.k_rope" : "attn.");
    t = run(&rest, TPL_OK);
    expect_right(t, shapes_are_small() ? 1 : 16, "the rest");
    csv_table_destroy(t);
    kernels_request products = request("matmul", "deepseek-v3", shapes_are_small() ? "attn.kv_a" : "attn.q");
    t = run(&products, TPL_OK);
    expect_right(t, shapes_are_small() ? 1 : 4, "products");
    csv_table_destroy(t);
}

Test(card_kernels, shared_heads_and_f32)
{
    kernels_request q = request("attn_decode", "llama-3-8b", NULL);
    q.axes.dtype = "bf16,f32";
    csv_table *t = run(&q, TPL_OK);
    expect_right(t, 2, "gqa");
    csv_table_destroy(t);
}

static tpl_code lazy(kernel_ctx *ctx, const op_call *call, tpl_err *e)
{
    return TPL_OK; /* writes nothing */
}

Test(card_kernels, a_kernel_that_writes_nothing_is_found)
{
    kernel_row row = {.op = OP_ATTN_GQA, .backend = "cuda", .name = "planted", .run = lazy};
    kernels_request q = request("attn_decode", "llama-3-8b", NULL);
    q.inject = &row;
    csv_table *t = run(&q, TPL_E_MISMATCH);
    cr_expect_str_eq(csv_table_text(t, 0, "status"), "wrong_answer");
    csv_table_destroy(t);
}
