#include "results/row.h"

#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <criterion/criterion.h>
#include <criterion/parameterized.h>

#include "base/rng.h"
#include "results/real_text.h"

/* Texts are what Python's repr() gives, in %g's spelling of exponents. */
typedef struct {
    double v;
    char text[32];
} real_case;

ParameterizedTestParameters(row, writes_the_shortest_decimal)
{
    static real_case cases[] = {
        {0, "0"},
        {1.5, "1.5"},
        {0.1, "0.1"},
        {1.0 / 3, "0.3333333333333333"},
        {6.31, "6.31"},
        {0.1 + 0.2, "0.30000000000000004"},
        {123456789, "123456789"},
        {-2.5e-9, "-2.5e-09"},
        {DBL_MAX, "1.7976931348623157e+308"},
        {INFINITY, "inf"},
        {-INFINITY, "-inf"},
        {NAN, "nan"},
    };
    return cr_make_param_array(real_case, cases, sizeof cases / sizeof *cases);
}

ParameterizedTest(real_case *c, row, writes_the_shortest_decimal)
{
    cr_expect(!strcmp(real_to_text(c->v).s, c->text), "%s, expected %s", real_to_text(c->v).s, c->text);
}

Test(row, reads_every_real_back_exactly)
{
    rng r = rng_make(7, 0);
    for (int i = 0; i < 20000; i++) {
        uint64_t bits = rng_u64(&r);
        double v, back;
        memcpy(&v, &bits, sizeof v);
        real_text t = real_to_text(v);
        cr_assert(real_from_text(t.s, &back), "%s", t.s);
        cr_assert(isnan(v) ? isnan(back) : memcmp(&v, &back, sizeof v) == 0, "%s", t.s);
    }
    double unused;
    cr_expect(!real_from_text("", &unused) && !real_from_text("1x", &unused) && !real_from_text("NaN", &unused));
}

static void fill_example(rs_row *r)
{
    row_init(r, RS_ACCURACY);
    row_set_text(r, ACC_model, "worldlet-mla");
    row_set_text(r, ACC_variant, "tpla:g=2");
    row_set_int(r, ACC_tp, 2);
    row_set_text(r, ACC_task, "arc");
    row_set_text(r, ACC_metric, "acc");
}

/* printf 'metric=acc\nmodel=worldlet-mla\ntable=accuracy\ntask=arc\ntp=2\nvariant=tpla:g=2\n' | sha256sum */
Test(row, has_the_cell_id_that_sha256sum_gives)
{
    rs_row r;
    fill_example(&r);
    cr_expect(!strcmp(row_cell_id(&r).hex, "c434966bfa0b"), "%s", row_cell_id(&r).hex);
    row_fini(&r);
}

Test(row, has_a_cell_id_independent_of_order_and_values)
{
    rs_row a, b;
    fill_example(&a);
    row_init(&b, RS_ACCURACY);
    row_set_text(&b, ACC_metric, "acc");
    row_set_real(&b, ACC_value, 0.25);
    row_set_text(&b, ACC_task, "piqa");
    row_set_text(&b, ACC_task, "arc");
    row_set_status(&b, RS_TOO_NOISY, "noise");
    row_set_int(&b, ACC_tp, 2);
    row_set_text(&b, ACC_protocol, "fixture");
    row_set_text(&b, ACC_protocol, NULL);
    row_set_text(&b, ACC_variant, "tpla:g=2");
    row_set_text(&b, ACC_model, "worldlet-mla");
    cr_expect(!strcmp(row_cell_id(&a).hex, row_cell_id(&b).hex));
    row_set_int(&b, ACC_tp, 1);
    cr_expect(strcmp(row_cell_id(&a).hex, row_cell_id(&b).hex) != 0, "another tp is another cell");
    row_fini(&a);
    row_fini(&b);
}

Test(row, has_different_cell_ids_where_values_hold_separators)
{
    rs_row a, b;
    row_init(&a, RS_ACCURACY);
    row_init(&b, RS_ACCURACY);
    row_set_text(&a, ACC_model, "m\nprotocol=x");
    row_set_text(&b, ACC_model, "m");
    row_set_text(&b, ACC_protocol, "x");
    cr_expect(strcmp(row_cell_id(&a).hex, row_cell_id(&b).hex) != 0);
    row_set_text(&b, ACC_protocol, NULL);
    row_set_text(&b, ACC_model, "m\\nprotocol=x");
    cr_expect(strcmp(row_cell_id(&a).hex, row_cell_id(&b).hex) != 0);
    row_fini(&a);
    row_fini(&b);
}

Test(row, has_different_cell_ids_in_different_files)
{
    rs_row a, b;
    row_init(&a, RS_LATENCY);
    row_init(&b, RS_PLAN);
    cr_expect(strcmp(row_cell_id(&a).hex, row_cell_id(&b).hex) != 0);
}

typedef struct {
    char column[24], text[24], stored[24]; /* stored "!" where the text is refused */
} named_case;

ParameterizedTestParameters(row, sets_by_name_and_checks_types)
{
    static named_case cases[] = {
        {"model", "a,b", "a,b"},
        {"tp", "4", "4"},
        {"tp", "4.5", "!"},
        {"tp", "", ""},
        {"value", "0.50", "0.5"},
        {"value", "inf", "inf"},
        {"value", "high", "!"},
        {"valu", "1", "!"},
        {"model", "a\xff", "a\xef\xbf\xbd"},
        {"n_items", "1K", "1024"},
    };
    return cr_make_param_array(named_case, cases, sizeof cases / sizeof *cases);
}

ParameterizedTest(named_case *c, row, sets_by_name_and_checks_types)
{
    rs_row r;
    tpl_err e = {0};
    row_init(&r, RS_ACCURACY);
    tpl_code rc = row_set_named(&r, c->column, c->text, "rows.csv:2", &e);
    if (!strcmp(c->stored, "!")) {
        cr_expect(rc == TPL_E_INPUT && !strcmp(e.where, "rows.csv:2") && strstr(e.what, c->column), "%s: %s", c->text,
                  e.what);
    } else {
        cr_expect(rc == TPL_OK, "%s", e.what);
        cr_expect(!strcmp(row_get(&r, rs_column_find(RS_ACCURACY, c->column)), c->stored), "%s %s", c->column, c->text);
    }
    row_fini(&r);
}

Test(row, may_be_set_from_its_own_cell)
{
    rs_row r;
    row_init(&r, RS_ACCURACY);
    row_set_text(&r, ACC_model, "same");
    row_set_text(&r, ACC_model, row_get(&r, ACC_model));
    cr_expect(!strcmp(row_get(&r, ACC_model), "same"));
    row_fini(&r);
}

Test(row, knows_a_cell_id_by_its_form)
{
    cr_expect(cell_id_is_valid("0123456789ab"));
    cr_expect(!cell_id_is_valid("0123456789aB") && !cell_id_is_valid("0123456789a") &&
              !cell_id_is_valid("0123456789abc"));
    cr_expect(!cell_id_is_valid("") && !cell_id_is_valid("../../../etc"));
}
