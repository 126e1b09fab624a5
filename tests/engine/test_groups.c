#include "engine/groups.h"

#include <string.h>

#include <criterion/criterion.h>
#include <criterion/parameterized.h>

/* EasySpec, Table 1: drafts of 32, 28 and 16 layers with the groups and the attention stages that it prints; the
 * smallest ones worked by hand. */
typedef struct {
    char text[40], groups[160];
    int n_layers, stages; /* with ranks enough */
} good_case;

ParameterizedTestParameters(groups, are_the_papers)
{
    static good_case cases[] = {
        {"rule:4", "0/1-3/4-7/8-11/12-15/16-19/20-23/24-27/28-30/31", 32, 10},
        {"rule:4", "0/1-3/4-7/8-11/12-15/16-19/20-23/24-26/27", 28, 9},
        {"pack:2", "0/1-2/3-4/5-6/7-8/9-10/11-12/13-14/15", 16, 9},
        {"rule:2", "0/1/2-3/4-5/6-7/8-9/10-11/12-13/14/15", 16, 10},
        {"rule:1", "0/1/2/3", 4, 4},
        {"pack:1", "0/1/2/3", 4, 4},
        {"pack:4", "0/1-4/5-8/9-10/11", 12, 5},
        {"rule:5", "0/1-4/5-9/10/11", 12, 5},
        {"rule:4", "0", 1, 1},
        {"pack:3", "0/1", 2, 2},
        {"rule:100", "0/1-2/3", 4, 3},
        {"0-3/4/5-6", "0-3/4/5-6", 7, 3},
    };
    return cr_make_param_array(good_case, cases, sizeof cases / sizeof *cases);
}

ParameterizedTest(good_case *c, groups, are_the_papers)
{
    layer_groups g;
    tpl_err e = {0};
    char text[GROUPS_TEXT];
    cr_assert(groups_parse(c->text, c->n_layers, &g, &e) == TPL_OK, "%s: %s", c->text, e.what);
    groups_format(&g, text);
    cr_expect_str_eq(text, c->groups);
    cr_expect_eq(groups_n_layers(&g), c->n_layers);
    cr_expect_eq(groups_stages(&g, 128), c->stages);
    layer_groups again;
    cr_assert(groups_parse(text, c->n_layers, &again, &e) == TPL_OK);
    cr_expect(memcmp(&g, &again, sizeof g) == 0, "%s does not read back", text);
}

Test(groups, need_more_stages_on_fewer_ranks)
{
    layer_groups g;
    cr_assert(groups_parse("0/1-3/4-7/8-10/11", 12, &g, NULL) == TPL_OK);
    cr_expect_eq(groups_widest(&g), 4);
    cr_expect_eq(groups_stages(&g, 1), 12);
    cr_expect_eq(groups_stages(&g, 2), 1 + 2 + 2 + 2 + 1);
    cr_expect_eq(groups_stages(&g, 3), 1 + 1 + 2 + 1 + 1);
    cr_expect_eq(groups_stages(&g, 4), 5);
}

typedef struct {
    char text[40], words[80];
    int n_layers;
} bad_case;

ParameterizedTestParameters(groups, refuse_what_is_no_cover)
{
    static bad_case cases[] = {
        {"", "is not rule:N", 4},
        {"rule:0", "no group size", 4},
        {"rule:", "no group size", 4},
        {"pack:129", "no group size", 4},
        {"rule:99999999999999999999", "no group size", 4},
        {"rule:4x", "no group size", 4},
        {"0/1-2", "ends at layer 2, the draft's last is 3", 4},
        {"0/2-3", "layer 1", 4},
        {"0-1/1-3", "layer 2", 4},
        {"0/1-4", "at most 3", 4},
        {"0/3-1", "layer 1", 4},
        {"0//1", "is not rule:N", 4},
        {"0/1-3/", "is not rule:N", 4},
        {"-1", "is not rule:N", 4},
        {"0/1-99999999999999999999", "at most 3", 4},
        {"rule:2", "groups take 1 to 128", 129},
    };
    return cr_make_param_array(bad_case, cases, sizeof cases / sizeof *cases);
}

ParameterizedTest(bad_case *c, groups, refuse_what_is_no_cover)
{
    layer_groups g = {.n = 77};
    tpl_err e = {0};
    cr_assert_eq(groups_parse(c->text, c->n_layers, &g, &e), TPL_E_USAGE, "'%s' is taken", c->text);
    cr_expect(strstr(e.what, c->words), "'%s': %s", c->text, e.what);
    cr_expect_eq(g.n, 77);
}
