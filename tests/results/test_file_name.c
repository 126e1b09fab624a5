#include "results/file_name.h"

#include <string.h>

#include <criterion/criterion.h>
#include <criterion/parameterized.h>

typedef struct {
    char label[100], name[80];
} label_case;

ParameterizedTestParameters(file_name, cleans_labels)
{
    static label_case cases[] = {
        {"quick", "quick"},
        {"V3 TP=2, 32K", "V3-TP-2-32K"},
        {"../../etc/passwd", "etc-passwd"},
        {"", "run"},
        {"///", "run"},
        {"...", "run"},
        {"--help", "help"},
        {"a\nb\tc\x1b[31m", "a-b-c-31m"},
        {"Grüße", "Gr-e"},
        {"trailing. ", "trailing"},
        {"a.b_c-d", "a.b_c-d"},
        {"0123456789012345678901234567890123456789012345678901234567890123456789",
         "0123456789012345678901234567890123456789012345678901234567890123"},
    };
    return cr_make_param_array(label_case, cases, sizeof cases / sizeof *cases);
}

ParameterizedTest(label_case *c, file_name, cleans_labels)
{
    arena a;
    arena_init(&a);
    char *name = file_name_clean(&a, c->label);
    cr_expect(!strcmp(name, c->name), "'%s' gives '%s', expected '%s'", c->label, name, c->name);
    cr_expect(file_name_is_valid(name), "%s", name);
    arena_fini(&a);
}

Test(file_name, refuses_what_could_leave_the_folder)
{
    static const char *const bad[] = {"", ".", "..", ".hidden", "-x", "a/b", "a b", "a\\b", "\xc3\xa4", "a\n"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        cr_expect(!file_name_is_valid(bad[i]), "%s", bad[i]);
    cr_expect(file_name_is_valid("0123456789ab") && file_name_is_valid("a.b_c-d"));
}
