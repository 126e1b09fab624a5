#include "results/schema.h"

#include <stdio.h>
#include <string.h>

#include <criterion/criterion.h>
#include <criterion/parameterized.h>

/* The house plan's lists, each file's columns in their order. */
typedef struct {
    int kind;
    char columns[640];
} order_case;

ParameterizedTestParameters(schema, keeps_the_agreed_columns_in_order)
{
    static order_case cases[] = {
        {RS_ACCURACY,
         "row_id,cell_id,status,reason,model,variant,tp,compute,kv_dtype,protocol,task,metric,value,stderr,"
         "n_items,n_shot,n_truncated,sliced_tok_frac,calib_sha256,seed,subset,"},
        {RS_PLAN, "row_id,cell_id,status,reason,model,variant,tp,phase,kv_bytes_per_tok_rank,weight_bytes_rank,"
                  "flops_per_tok,bytes_sent_per_tok,ctx_tok,batch,kv_dtype,weight_dtype,moe,note,"},
        {RS_LATENCY,
         "row_id,cell_id,status,reason,model,weights,variant,tp,ranks,backend,device,compute,kv_dtype,threads,"
         "batch,context_tok,decode_tok,graph,ttft_ms,tpot_ms,tpot_ms_p99,tok_per_s,kv_bytes_per_tok_rank,"
         "comm_source,bound_ms,bound_frac,pairing,baseline_cell,ratio,ratio_lo,ratio_hi,n_samples,"},
        {RS_KERNELS,
         "row_id,cell_id,status,reason,op,variant,backend,device,dtype,threads,heads,kv_rank,rope_dim,batch,"
         "context_tok,query_tok,time_us,time_hot_us,time_us_p99,gb_s,tflop_s,bound_us,bound_frac,n_wrong,"
         "n_samples,"},
        {RS_SPECULATE, "row_id,cell_id,status,reason,base,draft,method,tp,groups,width,depth,temperature,"
                       "acceptance_source,n_prompts,tok_per_s,speedup,accept_frac_of_n,accept_per_draft_tok,"
                       "tok_per_iteration,draft_s_per_100_tok,verify_s_per_100_tok,calibrate_s_per_100_tok,draft_gain,"
                       "draft_gain_bound,"},
    };
    return cr_make_param_array(order_case, cases, sizeof cases / sizeof *cases);
}

ParameterizedTest(order_case *c, schema, keeps_the_agreed_columns_in_order)
{
    text_buf all = {0};
    for (int i = 0; i < rs_n_columns(c->kind); i++)
        text_addf(&all, "%s,", rs_columns(c->kind)[i].name);
    cr_expect(strncmp(all.data, c->columns, strlen(c->columns)) == 0, "%s has %s", rs_kind_file(c->kind), all.data);
    text_fini(&all);
}

Test(schema, finds_every_column_where_its_number_says)
{
    cr_expect(rs_column_find(RS_ACCURACY, "stderr") == ACC_stderr);
    cr_expect(rs_column_find(RS_PLAN, "moe") == PLAN_moe);
    cr_expect(rs_column_find(RS_LATENCY, "itl_ms_p99") == LAT_itl_ms_p99);
    cr_expect(rs_column_find(RS_KERNELS, "time_us") == KER_time_us);
    cr_expect(rs_column_find(RS_SPECULATE, "draft_gain") == SPEC_draft_gain);
    cr_expect(rs_column_find(RS_SPECULATE, "reason") == RS_reason);
    cr_expect(rs_column_find(RS_PLAN, "tpot_ms") == -1);
    for (int k = 0; k < RS_N_KINDS; k++) {
        cr_expect(rs_kind_find(rs_kind_name(k)) == k);
        for (int i = 0; i < rs_n_columns(k); i++)
            cr_expect(rs_column_find(k, rs_columns(k)[i].name) == i, "%s is doubled in %s", rs_columns(k)[i].name,
                      rs_kind_file(k));
    }
    cr_expect(rs_kind_find("Accuracy") == -1);
}

Test(schema, has_the_agreed_status_words)
{
    static const char *const words[] = {"ok",           "too_noisy",          "throttled",   "warm_cache",
                                        "wrong_answer", "incomplete",         "unsupported", "out_of_memory",
                                        "bad_ceiling",  "kernel_below_bound", "modelled",    "unlike"};
    cr_expect(RS_N_STATUS == sizeof words / sizeof *words);
    for (int s = 0; s < RS_N_STATUS; s++) {
        cr_expect(!strcmp(rs_status_word(s), words[s]));
        cr_expect(rs_status_find(words[s]) == s);
    }
    cr_expect(rs_status_find("OK") == -1);
}

/* Every table line must have the cells of its header, or the page renders wrong. */
static void expect_even_tables(const char *text)
{
    int want = 0, line_no = 1;
    for (const char *s = text; *s; s++, line_no++) {
        size_t n = strcspn(s, "\n");
        int bars = 0;
        for (size_t i = 0; i < n; i++)
            bars += s[i] == '|';
        if (s[0] == '|' && want)
            cr_expect(bars == want, "line %d has %d bars, its table %d", line_no, bars, want);
        want = s[0] == '|' ? bars : 0;
        s += n;
    }
}

Test(schema, renders_all_columns_as_markdown)
{
    text_buf b = {0};
    results_schema_markdown(&b);
    cr_assert(b.data != NULL);
    expect_even_tables(b.data);
    cr_expect(strstr(b.data,
                     "### `latency.csv`\n\n| column | type | unit | in cell_id | meaning |\n|---|---|---|---|---|\n"
                     "| `model` | text |  | yes | name of the checkpoint or shape |\n"));
    cr_expect(strstr(b.data, "| `tpot_ms` | real | ms |  | median time per output token after the first |\n"));
    cr_expect(strstr(b.data, "| `row_id` | int | count |  | running number of the row in its file, from 1 |\n"));
    cr_expect(strstr(b.data, "| `out_of_memory` | the configuration does not fit |\n"));
    for (int k = 0; k < RS_N_KINDS; k++) {
        for (int i = 0; i < rs_n_columns(k); i++) {
            char cell[64];
            snprintf(cell, sizeof cell, "| `%s` |", rs_columns(k)[i].name);
            cr_expect(strstr(b.data, cell) != NULL, "%s", cell);
        }
    }
    text_fini(&b);
}
