/* Link models: fits of times that are known to follow a line or two, files and damaged files, sums over a plan. */
#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "bench/links.h"
#include "bench/links_bench.h"

static const double sizes[] = {512, 4096, 16384, 65536, 262144, 1048576, 4194304, 16777216};
enum { N_SIZES = sizeof sizes / sizeof *sizes };

static link_model *model_of(comm_op op, int ranks, double (*us)(double sent))
{
    link_model *m = calloc(1, sizeof *m);
    snprintf(m->name, sizeof m->name, "made-up");
    for (int i = 0; i < N_SIZES; i++)
        m->points[m->n_points++] = (link_point){op, ranks, sizes[i], us(comm_bytes_sent(op, ranks, sizes[i])), "local"};
    return m;
}

static double one_line(double sent)
{
    return 5 + sent / 200e3; /* 200 GB/s */
}

static double two_lines(double sent)
{
    return sent < 500e3 ? 4 + sent / 100e3 : 20 + sent / 300e3;
}

Test(links, a_line_is_found_exactly)
{
    tpl_err e = {0};
    link_model *m = model_of(COMM_ALL_REDUCE, 4, one_line);
    cr_assert(links_fit(m, &e) == TPL_OK, "%s", e.what);
    cr_assert_eq(m->n_pieces, 1);
    cr_expect(fabs(m->pieces[0].alpha_us - 5) < 1e-6, "alpha %g", m->pieces[0].alpha_us);
    cr_expect(fabs(m->pieces[0].beta_gb_s - 200) < 1e-6, "beta %g", m->pieces[0].beta_gb_s);
    cr_expect(m->pieces[0].worst_frac < 1e-9);
    /* 1 MiB over four ranks sends 1.5 MiB */
    cr_expect(fabs(links_us(m, COMM_ALL_REDUCE, 4, 1.5 * 1048576, NULL) - 12.86432) < 1e-4);
    free(m);
}

Test(links, a_change_of_ways_becomes_two_pieces)
{
    tpl_err e = {0};
    link_model *m = model_of(COMM_ALL_GATHER, 2, two_lines);
    cr_assert(links_fit(m, &e) == TPL_OK, "%s", e.what);
    cr_assert_eq(m->n_pieces, 2);
    for (int i = 0; i < N_SIZES; i++) {
        double us = links_us(m, COMM_ALL_GATHER, 2, sizes[i], NULL);
        cr_expect(fabs(us / two_lines(sizes[i]) - 1) < 1e-6, "%g bytes: %g us, expected %g", sizes[i], us,
                  two_lines(sizes[i]));
    }
    free(m);
}

static double falling(double sent)
{
    return 10 - sent / 1e7;
}

Test(links, no_constant_and_no_slope_is_negative)
{
    tpl_err e = {0};
    link_model *m = model_of(COMM_ALL_GATHER, 2, falling);
    cr_assert(links_fit(m, &e) == TPL_OK, "%s", e.what);
    for (int i = 0; i < m->n_pieces; i++)
        cr_expect(m->pieces[i].alpha_us >= 0 && m->pieces[i].beta_gb_s > 0);
    free(m);
}

Test(links, too_few_sizes_are_no_fit)
{
    tpl_err e = {0};
    link_model *m = model_of(COMM_ALL_REDUCE, 2, one_line);
    m->n_points = 2;
    cr_expect(links_fit(m, &e) == TPL_E_USAGE);
    cr_expect(strstr(e.what, "2 sizes of all_reduce") != NULL, "%s", e.what);
    m->n_points = 0;
    cr_expect(links_fit(m, &e) == TPL_E_USAGE);
    free(m);
}

static char *new_path(char path[64])
{
    snprintf(path, 64, "/tmp/tpl-links-XXXXXX");
    int fd = mkstemp(path);
    cr_assert(fd >= 0);
    close(fd);
    return path;
}

Test(links, what_was_written_is_read)
{
    char path[64];
    tpl_err e = {0};
    link_model *m = model_of(COMM_ALL_GATHER, 2, two_lines), back;
    cr_assert(links_fit(m, &e) == TPL_OK);
    cr_assert(links_write(m, new_path(path), &e) == TPL_OK, "%s", e.what);
    cr_assert(links_read(path, &back, &e) == TPL_OK, "%s: %s", e.where, e.what);
    cr_expect_str_eq(back.name, "made-up");
    cr_expect_eq(back.n_pieces, 2);
    for (int i = 0; i < N_SIZES; i++)
        cr_expect(fabs(links_us(&back, COMM_ALL_GATHER, 2, sizes[i], NULL) / two_lines(sizes[i]) - 1) < 1e-4);
    unlink(path);
    free(m);
}

Test(links, damaged_files_are_refused_with_the_field)
{
    static const struct {
        const char *text, *says;
    } cases[] = {
        {"{", "1"},
        {"{\"pieces\": []}", "'name'"},
        {"{\"name\": \"x\", \"pieces\": []}", "expected 1 to"},
        {"{\"name\": \"x\", \"pieces\": [{\"op\": \"all_red\", \"ranks\": 2, \"alpha_us\": 1}]}", "all_red"},
        {"{\"name\": \"x\", \"pieces\": [{\"op\": \"all_reduce\", \"ranks\": 1, \"alpha_us\": 1}]}", "'ranks'"},
        {"{\"name\": \"x\", \"pieces\": [{\"op\": \"all_reduce\", \"ranks\": 2}]}", "'alpha_us'"},
        {"{\"name\": \"x\", \"pieces\": [{\"op\": \"all_reduce\", \"ranks\": 2, \"alpha_us\": -1}]}", "'alpha_us'"},
        {"{\"name\": \"x\", \"pieces\": [{\"op\": \"all_reduce\", \"ranks\": 2, \"alpha_us\": 1, \"beta_gb_s\": 0}]}",
         "'beta_gb_s'"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char path[64];
        link_model m;
        tpl_err e = {0};
        FILE *f = fopen(new_path(path), "w");
        fputs(cases[i].text, f);
        fclose(f);
        cr_expect(links_read(path, &m, &e) == TPL_E_INPUT, "case %zu", i);
        cr_expect(strstr(e.what, cases[i].says) || strstr(e.where, cases[i].says), "case %zu: %s: %s", i, e.where,
                  e.what);
        unlink(path);
    }
}

static plan *plan_of(const char *text, int tp)
{
    model_config c;
    variant v;
    plan *p;
    tpl_err e = {0};
    cr_assert(model_config_read(SOURCE_ROOT "/models/shapes/deepseek-v3.json", &c, &e) == TPL_OK, "%s", e.what);
    cr_assert(variant_parse(text, &v, &e) == TPL_OK);
    cr_assert(plan_create(&c, &v, tp, 0, (plan_options){.attention_only = true}, &p, &e) == TPL_OK, "%s", e.what);
    return p;
}

/* DeepSeek-V3, attention alone, two ranks, bf16, one token: MLA sends 14,336 bytes a layer, DCP 153,600 (the sums that
 * the design gives); and the head's gather. */
Test(links, a_plan_costs_the_sum_of_its_collectives)
{
    static const plan_types bf16_all = {.act = DT_BF16, .kv = DT_BF16, .weight = DT_BF16, .folded = DT_BF16};
    batch_shape b = batch_shape_uniform(1, 1024, 1);
    link_model m = {.name = "made-up", .n_pieces = 3};
    for (int i = 0; i < 3; i++)
        m.pieces[i] =
            (link_piece){.op = (comm_op)i, .ranks = 2, .alpha_us = 3, .beta_gb_s = 100, .up_to_sent = INFINITY};
    const char *variants[] = {"mla", "mla-dcp"};
    double layer_bytes[] = {14336, 153600};
    int layer_calls[] = {1, 4}; /* DCP: gathers of q and of the scores' sums, a reduce-scatter, the all-reduce */
    for (int i = 0; i < 2; i++) {
        plan *p = plan_of(variants[i], 2);
        link_cost c;
        tpl_err e = {0};
        double sent = plan_cost(p, PHASE_DECODE, &b, bf16_all).bytes_sent;
        cr_assert(links_plan(&m, p, PHASE_DECODE, &b, bf16_all, &c, &e) == TPL_OK, "%s", e.what);
        cr_expect(c.n >= 61 * layer_calls[i] && c.n <= 61 * layer_calls[i] + 2, "%s: %d collectives", variants[i], c.n);
        cr_expect(sent >= 61 * layer_bytes[i], "%s: %g bytes", variants[i], sent);
        cr_expect(fabs(c.us - (3.0 * c.n + sent / 100e3)) < 1e-6 * c.us, "%s: %g us", variants[i], c.us);
        cr_expect(strstr(c.numbers, "bytes (3 us + bytes / 100 GB/s, 2 ranks)") != NULL, "%s", c.numbers);
        m.pieces[COMM_ALL_REDUCE].worst_frac = 0.8;
        cr_assert(links_plan(&m, p, PHASE_DECODE, &b, bf16_all, &c, &e) == TPL_OK, "%s", e.what);
        cr_expect(strstr(c.numbers, "2 ranks, a fit off by up to 80%)") != NULL, "%s", c.numbers);
        m.pieces[COMM_ALL_REDUCE].worst_frac = 0;
        plan_destroy(p);
    }
}

Test(links, an_operation_that_the_model_lacks_is_named)
{
    link_model m = {.name = "made-up", .n_pieces = 1};
    m.pieces[0] =
        (link_piece){.op = COMM_ALL_GATHER, .ranks = 2, .alpha_us = 3, .beta_gb_s = 100, .up_to_sent = INFINITY};
    batch_shape b = batch_shape_uniform(1, 1024, 1);
    link_cost c;
    tpl_err e = {0};
    plan *p = plan_of("mla", 2);
    cr_expect(links_plan(&m, p, PHASE_DECODE, &b, (plan_types){.act = DT_BF16, .kv = DT_BF16}, &c, &e) == TPL_E_USAGE);
    cr_expect(strstr(e.what, "no all_reduce") != NULL, "%s", e.what);
    plan_destroy(p);
}

Test(links, a_group_size_that_was_not_measured_takes_the_nearest)
{
    link_model m = {.name = "made-up", .n_pieces = 2};
    m.pieces[0] =
        (link_piece){.op = COMM_ALL_REDUCE, .ranks = 2, .alpha_us = 3, .beta_gb_s = 100, .up_to_sent = INFINITY};
    m.pieces[1] =
        (link_piece){.op = COMM_ALL_REDUCE, .ranks = 8, .alpha_us = 9, .beta_gb_s = 50, .up_to_sent = INFINITY};
    int ranks;
    cr_expect(links_us(&m, COMM_ALL_REDUCE, 4, 0, &ranks) == 3 && ranks == 2);
    cr_expect(links_us(&m, COMM_ALL_REDUCE, 16, 0, &ranks) == 9 && ranks == 8);
    cr_expect(isnan(links_us(&m, COMM_BROADCAST, 2, 0, NULL)));
}
