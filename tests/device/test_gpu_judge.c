/* What is said of cards and drivers that cannot run this build. No card is needed. */
#include "device/gpu_judge.h"

#include <string.h>

#include <criterion/criterion.h>

Test(gpu_judge, takes_every_driver_of_the_runtimes_major_version)
{
    tpl_err e = {0};
    cr_expect(gpu_judge_driver(13000, 13000, &e) == TPL_OK && gpu_judge_driver(13000, 13020, &e) == TPL_OK);
    cr_expect(gpu_judge_driver(14000, 13000, &e) == TPL_OK);
    cr_expect(gpu_judge_driver(12080, 13000, &e) == TPL_E_DEVICE);
    cr_expect_str_eq(e.what, "the driver is for CUDA 12.8, this build needs one for 13.0 or newer");
    cr_expect(gpu_judge_driver(0, 13000, &e) == TPL_E_DEVICE);
    cr_expect_str_eq(e.what, "no NVIDIA driver is here");
    cr_expect_eq(tpl_exit_status(TPL_E_DEVICE), 4);
}

Test(gpu_judge, takes_cards_from_compute_capability_8_on)
{
    gpu_facts f = {.name = "Old Card", .major = 7, .minor = 5, .driver = 13000, .runtime = 13000};
    tpl_err e = {0};
    cr_expect(gpu_judge(&f, &e) == TPL_E_DEVICE);
    cr_expect_str_eq(e.where, "Old Card");
    cr_expect_str_eq(e.what, "compute capability is 7.5, expected 8.0 or newer");
    f.major = 8;
    f.minor = 0;
    cr_expect_eq(gpu_judge(&f, &e), TPL_OK);
    f.driver = 12040;
    cr_expect(gpu_judge(&f, &e) == TPL_E_DEVICE && strstr(e.what, "12.4"));
}

/* Whatever this machine lacks, opening a card that cannot be there says what in one line. */
Test(gpu_judge, opening_says_why_not)
{
    gpu *card = NULL;
    tpl_err e = {0};
    cr_assert_neq(gpu_open(1000, &card, &e), TPL_OK);
    cr_expect(!card && *e.what && !strchr(e.what, '\n'));
}
