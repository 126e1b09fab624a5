/* Tables of ratios from rows written by hand. */
#include "bench/speed_table.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <criterion/criterion.h>

#define HEAD                                                                                                           \
    "cell_id,status,model,weights,variant,tp,ranks,device,context_tok,decode_tok,batch,batch_rule,moe,tok_per_s,tpot_" \
    "ms,bound_ms,bound_frac,ratio,ratio_lo,ratio_hi,baseline_cell,ttft_ms,ttft_ratio,attn_bound_frac,clock_mhz\n"
#define TTFT_HEAD                                                                                                      \
    "cell_id,status,model,variant,tp,ranks,context_tok,batch,baseline_cell,ttft_ms,ttft_ratio,ttft_ratio_lo,"          \
    "ttft_ratio_hi,ttft_bound_frac,ttft_matrix_frac,moe,weights,device\n"
#define PAPER                                                                                                          \
    "model,variant,tp,context_tok,decode_tok,ratio,metric\n"                                                           \
    "DeepSeek-V3-0324,tpla,2,32768,,1.79,decode throughput over mla\n"                                                 \
    "DeepSeek-V3-0324 and Kimi-K2-Base,tpla,2,,4096,2,decode throughput over mla\n"                                    \
    "DeepSeek-V3-0324,tpla:pd=on,2,1024,,1.4,time to first token of tpla:pd=off over this\n"

static csv_table *parse(const char *text)
{
    csv_table *t = NULL;
    tpl_err e = {0};
    cr_assert(csv_table_parse(text, strlen(text), "test", &t, &e) == TPL_OK, "%s: %s", e.where, e.what);
    return t;
}

/* The table as CSV, in memory of its own. */
static char *print(table *t)
{
    char *text = NULL;
    size_t n = 0;
    cr_assert_not_null(t);
    FILE *f = open_memstream(&text, &n);
    cr_assert(table_print(t, TABLE_CSV, f, NULL) == TPL_OK);
    fclose(f);
    table_destroy(t);
    return text;
}

/* The paper's ratio stands beside its own variant at its own place alone; a cell measured twice counts once. */
Test(speed_table, sets_own_ratios_beside_the_papers)
{
    csv_table
        *rows = parse(
            HEAD
            "a,ok,deepseek-v3,random,mla,2,nccl,card,32768,128,28,max,off,1000,28,14,.5,,,,,,,,\n"
            "b,incomplete,deepseek-v3,random,tpla:g=2,2,nccl,card,32768,128,43,max,off,,,,,,,,a,,,,\n"
            "b,ok,deepseek-v3,random,tpla:g=2,2,nccl,card,32768,128,43,max,off,1500,28.7,21.5,.75,1.5,1.4,1.6,a,,,.9,1755\n"
            "c,kernel_below_bound,deepseek-v3,random,tpla:g=2:proj=rs,2,nccl,card,32768,128,56,max,off,1600,35,28,.8,"
            "1.6,1.5,1.7,a,,,,\n"
            "d,ok,deepseek-v3-gqa,random,gqa,2,nccl,card,32768,128,60,max,off,2000,30,20,.67,,,,,,,,\n"
            "e,out_of_memory,deepseek-v3,random,mla-dcp,2,nccl,card,32768,128,9999,max,off,,,,,,,,a,,,,\n"),
        *papers = parse(PAPER);
    char *text = print(speed_table_decode(rows, papers)), *at = text;
    static const char *const expected[] = {
        "deepseek-v3,mla,2 nccl,32768,128,28 (max),1000,,,,,.5,,,,,ok",
        "deepseek-v3,tpla:g=2:u=pca,2 nccl,32768,128,43 (max),1500,1.5,1.4,1.6,1,.75,.9,1755,,1.79,ok",
        "deepseek-v3,tpla:g=2:u=pca:proj=rs,2 nccl,32768,128,56 (max),1600,1.6,1.5,1.7,1,.8,,,,,provisional",
        "deepseek-v3-gqa,gqa,2 nccl,32768,128,60 (max),2000,2,,,1.5,.67,,,,,not paired",
        "deepseek-v3,mla-dcp,2 nccl,32768,128,9999 (max),,,,,,,,,,,out_of_memory"};
    for (size_t i = 0; i < sizeof expected / sizeof *expected; i++) {
        at = strstr(at, "\n");
        cr_assert(at && strncmp(at + 1, expected[i], strlen(expected[i])) == 0, "expected %s\ngot%s", expected[i], at);
        at++;
    }
    free(text);
    csv_table_destroy(rows);
    csv_table_destroy(papers);
}

Test(speed_table, long_decodes_have_a_published_ratio_of_their_own)
{
    csv_table *rows = parse(
                  HEAD
                  "a,ok,kimi-k2,random,mla,2,nccl,card,8192,4096,28,max,off,1000,28,14,.5,,,,,,,,\n"
                  "b,ok,kimi-k2,random,tpla:g=2,2,nccl,card,8192,4096,43,max,off,1500,28.7,21.5,.75,1.5,1.4,1.6,a,,,,\n"
                  "c,ok,kimi-k2,random,tpla:g=2,2,nccl,card,8192,4096,8,,off,1500,28.7,21.5,.75,1.5,1.4,1.6,a,,,,\n"),
              *papers = parse(PAPER);
    char *text = print(speed_table_decode(rows, papers));
    cr_expect(strstr(text, "43 (max),1500,1.5,1.4,1.6,1,.75,,,,2,ok") != NULL, "%s", text);
    cr_expect(strstr(text, ",8,1500,1.5,1.4,1.6,") && !strstr(text, ",8,1500,1.5,1.4,1.6,1,.75,,,,2"), "%s", text);
    free(text);
    csv_table_destroy(rows);
    csv_table_destroy(papers);
}

Test(speed_table, time_to_first_token_has_its_own)
{
    csv_table *rows = parse(TTFT_HEAD "a,ok,deepseek-v3,tpla:g=2:pd=off,2,nccl,1024,1,,14,,,,.5,.4,off,random,card\n"
                                      "b,ok,deepseek-v3,tpla:g=2,2,nccl,1024,1,a,10,1.4,1.3,1.5,.7,.6,off,random,card\n"
                                      "c,ok,deepseek-v3,mla,2,nccl,8192,1,,,,,,,,off,random,card\n"),
              *papers = parse(PAPER);
    char *text = print(speed_table_ttft(rows, papers));
    cr_expect(strstr(text, "2 nccl,1024,1,10,tpla:g=2:u=pca:pd=off,1.4,1.3,1.5,.7,.6,1.4") != NULL, "%s", text);
    cr_expect(strstr(text, "2 nccl,1024,1,14,,,,,.5,.4,") && !strstr(text, "8192"), "%s", text);
    free(text);
    cr_expect_null(speed_table_ttft(papers, papers));
    csv_table_destroy(rows);
    csv_table_destroy(papers);
}

/* By hand: lines that meet at 3, won for good from 4 on; a win that is lost again does not count. */
Test(speed_table, lines_cross_where_the_straight_lines_do)
{
    static const double contexts[] = {1, 2, 4, 8}, base[] = {10, 11, 13, 17}, own[] = {12, 12, 12, 12},
                        early[] = {9, 12, 12, 12}, never[] = {11, 12, 14, 17}, always[] = {1, 1, 1, 1};
    cr_expect_float_eq(speed_crossing(contexts, base, own, 4), 3, 1e-12);
    cr_expect_float_eq(speed_crossing(contexts, base, early, 4), 3, 1e-12);
    cr_expect(isnan(speed_crossing(contexts, base, never, 4)));
    cr_expect_eq(speed_crossing(contexts, base, always, 4), 1);
}

Test(speed_table, says_from_where_a_variant_wins_by_batch)
{
    csv_table *rows =
        parse(HEAD "a2,ok,kimi-k2,random,mla,2,nccl,card,4096,128,8,,off,1,13,13,.5,,,,,,,,\n"
                   "a1,ok,kimi-k2,random,mla,2,nccl,card,2048,128,8,,off,1,11,11,.5,,,,,,,,\n"
                   "b2,ok,kimi-k2,random,mla-dcp,2,nccl,card,4096,128,8,,off,1,12,10,.5,1,1,1,a2,,,,\n"
                   "b1,kernel_below_bound,kimi-k2,random,mla-dcp,2,nccl,card,2048,128,8,,off,1,12,10,.5,1,1,1,a1,,,,\n"
                   "c1,ok,kimi-k2,random,mla-dcp,2,nccl,card,2048,128,1,,off,1,12,10,.5,1,1,1,a1,,,,\n");
    char *text = print(speed_table_crossover(rows)), *line = strchr(text, '\n');
    cr_assert_not_null(line);
    cr_expect_str_eq(line + 1, "kimi-k2,mla-dcp,2 nccl,8,128,about 3072,2048 or less,0.92 at 2048; 1.08 at 4096,"
                               "provisional\n");
    free(text);
    csv_table_destroy(rows);
}
