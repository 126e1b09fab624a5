/* The machine's own rates differ from run to run; what is tested is that they exist and how they are kept and compared.
 */
#include "bench/ceilings.h"
#include "bench/product_rate.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/json.h"

static char dir[] = "/tmp/tplabench-ceilings-XXXXXX";
static tpl_err err;

static void setup(void)
{
    cr_assert(mkdtemp(dir));
    err = (tpl_err){0};
}

static void teardown(void)
{
    char command[64];
    snprintf(command, sizeof command, "rm -r %s", dir);
    cr_assert(system(command) == 0);
}

TestSuite(ceilings, .init = setup, .fini = teardown);

static ceilings made_up(void)
{
    return (ceilings){.cpu = "Made-up 9000",
                      .cores = 4,
                      .n = 3,
                      .threads = {1, 2, 4},
                      .measured_at = 1735790645,
                      .rate = {{20, 30, 40}, {10, 16, 20}, {100, 200, 400}, {0, 0, 0}, {40, 60, 80}},
                      .source = {"memchr", "memcpy", "own", "", "own"}};
}

/* ---- asking ---- */

Test(ceilings, rates_between_measured_counts_are_interpolated)
{
    ceilings c = made_up();
    static const struct {
        int threads;
        double read;
    } cases[] = {{1, 20}, {2, 30}, {3, 35}, {4, 40}, {9, 40}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        cr_expect_float_eq(ceilings_rate(&c, CEIL_READ, cases[i].threads), cases[i].read, 1e-12, "%d threads",
                           cases[i].threads);
    cr_expect_float_eq(ceilings_gain(&c, CEIL_F32, 4), 4, 1e-12);
    cr_expect_float_eq(ceilings_gain(&c, CEIL_READ, 2), 1.5, 1e-12);
}

Test(ceilings, moves_of_more_than_10_percent_are_said)
{
    ceilings before = made_up(), now = made_up();
    char text[256];
    now.rate[CEIL_READ][0] = 21.9; /* +9.5% */
    cr_expect(ceilings_compare(&before, &now, text, sizeof text) == 0 && !*text, "%s", text);
    now.rate[CEIL_READ][0] = 24;
    now.rate[CEIL_F32][2] = 320;
    cr_expect(ceilings_compare(&before, &now, text, sizeof text) == 2);
    cr_expect_str_eq(
        text, "read with 1 thread: 24.0 GB/s, was 20.0 (+20%); f32 with 4 threads: 320.0 GFLOP/s, was 400.0 (-20%)");
    cr_expect(ceilings_compare(&before, &now, text, 16) == 2 && strlen(text) == 15, "a short buffer is not overrun");
}

/* ---- as JSON ---- */

Test(ceilings, json_gives_back_what_it_was_made_from)
{
    ceilings c = made_up(), back;
    json_t *j = ceilings_to_json(&c);
    cr_assert(ceilings_from_json(j, "test", &back, &err) == TPL_OK, "%s", err.what);
    json_decref(j);
    cr_expect(memcmp(&c, &back, sizeof c) == 0);
}

Test(ceilings, hostile_json_is_refused)
{
    static const char *const cases[] = {
        "{}",
        "[]",
        "{\"cpu\":1}",
        "{\"cpu\":\"x\",\"cores\":0,\"measured_at\":1,\"threads\":[1],\"rates_1e9_s\":{},\"sources\":{}}",
        "{\"cpu\":\"x\",\"cores\":1,\"measured_at\":1,\"threads\":[],\"rates_1e9_s\":{},\"sources\":{}}",
        "{\"cpu\":\"x\",\"cores\":1,\"measured_at\":1,\"threads\":[2,1],\"rates_1e9_s\":{},\"sources\":{}}",
        "{\"cpu\":\"x\",\"cores\":1,\"measured_at\":1,\"threads\":[1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17],"
        "\"rates_1e9_s\":{},\"sources\":{}}",
        "{\"cpu\":\"x\",\"cores\":1,\"measured_at\":1,\"threads\":[1],\"rates_1e9_s\":{\"read\":[-1]},\"sources\":{"
        "\"read\":\"a\"}}",
        "{\"cpu\":\"x\",\"cores\":1,\"measured_at\":1,\"threads\":[1],\"rates_1e9_s\":{\"read\":3},\"sources\":{"
        "\"read\":\"a\"}}",
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        json_t *j;
        ceilings c;
        cr_assert(json_load_bytes(cases[i], strlen(cases[i]), "test", &j, &err) == TPL_OK);
        cr_expect(ceilings_from_json(j, "test", &c, &err) == TPL_E_INPUT, "case %zu", i);
        json_decref(j);
    }
}

/* ---- measuring and keeping ---- */

static ceilings open_quick(bool fresh)
{
    ceilings c;
    ceilings_options o = {.budget_s = 0.05, .fresh = fresh, .cache_dir = dir};
    cr_assert(ceilings_open(&o, &c, &err) == TPL_OK, "%s: %s", err.where, err.what);
    return c;
}

static char *only_file(void)
{
    static char path[128];
    char command[64];
    snprintf(command, sizeof command, "ls %s/*", dir);
    FILE *f = popen(command, "r");
    cr_assert(f && fgets(path, sizeof path, f));
    path[strcspn(path, "\n")] = 0;
    pclose(f);
    return path;
}

Test(ceilings, every_kind_is_measured_for_one_and_for_all_cores)
{
    ceilings c = open_quick(true);
    cr_expect(c.threads[0] == 1 && c.threads[c.n - 1] == c.cores && !c.from_cache && !*c.moved);
    for (int k = 0; k < CEIL_N; k++)
        for (int i = 0; i < c.n; i++)
            cr_expect(c.rate[k][i] > 0 || k == CEIL_BF16, "%s with %d threads", ceil_name((ceil_kind)k), c.threads[i]);
    cr_expect(*c.source[CEIL_READ] && *c.source[CEIL_F32]);
}

Test(ceilings, what_was_cached_comes_back_or_is_said_to_have_moved)
{
    ceilings first = open_quick(false);
    for (int i = 0; i < 3; i++) {
        ceilings second = open_quick(false);
        cr_expect(second.from_cache == !*second.moved, "either confirmed or moved: %s", second.moved);
        if (!second.from_cache)
            continue; /* a busy machine: the ceilings did move */
        cr_expect(second.measured_at >= first.measured_at);
        return;
    }
}

Test(ceilings, a_planted_ceiling_is_found_out)
{
    ceilings c = open_quick(false);
    char *path = only_file(), *text;
    for (int i = 0; i < c.n; i++)
        c.rate[CEIL_READ][i] *= 100;
    json_t *j = ceilings_to_json(&c);
    text = json_dumps(j, 0);
    cr_assert(text_write_file(path, text, strlen(text), &err) == TPL_OK);
    free(text);
    json_decref(j);
    ceilings again = open_quick(false);
    cr_expect(!again.from_cache && strstr(again.moved, "read with 1 thread") != NULL, "%s", again.moved);
    cr_expect(again.rate[CEIL_READ][0] < c.rate[CEIL_READ][0] / 2, "measured anew");
}

Test(ceilings, a_broken_cache_is_measured_anew)
{
    open_quick(false);
    cr_assert(text_write_file(only_file(), "{\"cpu\": tru", 11, &err) == TPL_OK);
    ceilings c = open_quick(false);
    cr_expect(!c.from_cache && !*c.moved && c.rate[CEIL_READ][0] > 0);
}

Test(ceilings, lifting_never_lowers)
{
    ceilings c = open_quick(true), before = c;
    c.rate[CEIL_COPY][0] = before.rate[CEIL_COPY][0] = 1e6;
    c.rate[CEIL_READ][0] = 1e-3;
    cr_assert(ceilings_lift(0.05, &c, &err) == TPL_OK);
    cr_expect(c.rate[CEIL_COPY][0] == 1e6 && c.rate[CEIL_READ][0] > 1e-3);
}

Test(ceilings, the_table_has_a_row_a_kind)
{
    ceilings c = made_up();
    table *t = ceilings_table(&c);
    char *text = NULL;
    size_t len = 0;
    FILE *f = open_memstream(&text, &len);
    cr_assert(table_print(t, TABLE_CSV, f, &err) == TPL_OK);
    fclose(f);
    cr_expect(strstr(text, "read,GB/s,memchr,20,30,40,2") != NULL, "%s", text);
    cr_expect(strstr(text, "f32,GFLOP/s,own,100,200,400,4") != NULL, "%s", text);
    free(text);
    table_destroy(t);
}

/* Work that no one can do faster than a generous bound, in FLOPs that add up by `times`. */
Test(ceilings, rate_of_given_products)
{
    const product_shape s[] = {{40, 64, 96, 3}, {33, 100, 48, 1}};
    double one, none;
    tpl_err e;
    cr_assert_eq(product_rate(s, 2, DT_F32, 1, &one, &e), TPL_OK);
    cr_assert(one > 0.01 && one < 1e5, "%g GFLOP/s", one);
    cr_assert_eq(product_rate(s, 0, DT_F32, 1, &none, &e), TPL_OK);
    cr_assert(none == 0);
}
