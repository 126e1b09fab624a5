/* cmd_kernels.c - `tplabench kernels`: single operations at published sizes, each checked and set against its bound. */
#include <stdio.h>
#include <string.h>

#include "bench/kernels_bench.h"
#include "cli/options.h"

typedef struct {
    kernel_axes axes;
    const char *out, *resume, *samples;
    int max_samples;
    double timeout_s;
    bool list, aa;
    table_format format;
} kernels_state;

static const cli_option options[] = {
    {"op", "LIST", "attn_decode, attn_prefill, matmul, head_matmul, rmsnorm, rope, hadamard, comm (default all)", false},
    {"shape", "LIST", "models of models/shapes (default deepseek-v3,kimi-k2,llama-3-70b)", false},
    {"variant", "LIST", "attention variants; ratios are against the first that fits (default mla,mla-dcp,tpla:g=2,tpla:g=4,gqa)", false},
    {"tp", "LIST", "ranks whose share is measured (default 1,2,4)", false},
    {"context", "LIST", "cached tokens of decode attention, such as 1K:128K*2 (default 1K,8K)", false},
    {"prompt", "LIST", "tokens of prefill attention (default 512)", false},
    {"batch", "LIST", "sequences of attention (default 1)", false},
    {"query", "LIST", "new tokens a sequence in decode attention (default 1)", false},
    {"rows", "LIST", "rows of all other operations (default 1,512)", false},
    {"threads", "LIST", "independent copies that run at once (default 1)", false},
    {"dtype", "LIST", "bf16, f32 weights, caches and inputs of products (default bf16)", false},
    {"backend", "LIST", "cpu, ref, or the name of one row of the kernels table such as cpu_avx2 (default cpu)", false},
    {"filter", "TEXT", "only cases whose name matches: a pattern with * ? [], else a part of the name", false},
    {"max-samples", "N", "cold samples of a case at most (default 400)", false},
    {"timeout", "S", "sampling time of a case at most, seconds (default 2)", false},
    {"aa", NULL, "first compare each group's first case with itself: the noise floor", false},
    {"samples", "FILE", "write every sample as CSV", true},
    {"out", "DIR", "folder that holds run directories (default runs)", true},
    {"resume", "DIR", "go on with an earlier run", true},
    {"list", NULL, "print the cases that would be measured, measure nothing", false},
    {"format", "NAME", "of what is printed: table, csv, json, jsonl, md (default table)", false},
    {0},
};

static tpl_code set_number(kernels_state *s, const char *key, const char *value, tpl_err *e)
{
    if (strcmp(key, "max-samples") == 0)
        return cli_set_int(key, value, 6, 1 << 20, &s->max_samples, e);
    if (!text_parse_f64(value, &s->timeout_s) || s->timeout_s <= 0 || s->timeout_s > 3600)
        return tpl_fail(e, TPL_E_USAGE, "--timeout", "is '%s', expected seconds up to 3600", value);
    return TPL_OK;
}

static tpl_code set(void *state, cli_context *c, const char *key, const char *value, tpl_err *e)
{
    kernels_state *s = state;
    kernel_axes *a = &s->axes;
    const struct {
        const char *key;
        const char **to;
    } texts[] = {{"op", &a->op},         {"shape", &a->shape}, {"variant", &a->variant}, {"tp", &a->tp},           {"context", &a->context}, {"prompt", &a->prompt},
                 {"batch", &a->batch},   {"query", &a->query}, {"rows", &a->rows},       {"threads", &a->threads}, {"dtype", &a->dtype},     {"backend", &a->backend},
                 {"filter", &a->filter}, {"out", &s->out},     {"resume", &s->resume},   {"samples", &s->samples}};
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        if (strcmp(texts[i].key, key) == 0) {
            *texts[i].to = cli_keep(c, value);
            return TPL_OK;
        }
    }
    if (strcmp(key, "format") == 0)
        return cli_set_format(value, &s->format, e);
    if (strcmp(key, "list") == 0 || strcmp(key, "aa") == 0) {
        *(strcmp(key, "aa") == 0 ? &s->aa : &s->list) = true;
        return TPL_OK;
    }
    return set_number(s, key, value, e);
}

static const char shown[] = "op,shape,variant,backend=kernel,dtype,threads,batch,context_tok=context,query_tok=query,time_us=time,time_hot_us=hot,gb_s,tflop_s,"
                            "bound_frac=of bound,n_wrong,ratio,ratio_lo=from,ratio_hi=to,status";

static tpl_code print_list(const kernels_request *q, table_format format, tpl_err *e)
{
    table *t;
    TPL_TRY(kernels_bench_list(q, &t, e));
    tpl_code rc = table_print(t, format, stdout, e);
    table_destroy(t);
    return rc;
}

static tpl_code print_results(const kernels_state *s, const ceilings *used, const run_dir *rd, long before, tpl_err *e)
{
    bool reading = s->format == TABLE_ALIGNED || s->format == TABLE_MD;
    if (reading) {
        table *t = ceilings_table(used);
        tpl_code rc = table_print(t, s->format, stdout, e);
        table_destroy(t);
        TPL_TRY(rc);
    }
    return cli_print_rows(rd, RS_KERNELS, before, "Kernels", reading ? shown : NULL, s->format, e);
}

static tpl_code run(void *state, cli_context *c, tpl_err *e)
{
    kernels_state *s = state;
    cli_run r = {0};
    ceilings used = {0};
    tpl_err print_err;
    s->axes.shapes_dir = text_path_join(&c->mem, cli_home(), "models/shapes");
    kernels_request q = {.axes = s->axes, .aa = s->aa, .samples_path = s->samples, .seed = 1, .measure = {.max_samples = s->max_samples, .timeout_s = s->timeout_s}};
    if (s->list)
        return print_list(&q, s->format, e);
    TPL_TRY(cli_open_run(c, s->out, s->resume, "kernels", &r, e));
    long before = c->rd ? rd_n_rows(r.rd, RS_KERNELS) : 0; /* a suite's earlier sections have been printed */
    tpl_code rc = kernels_bench_run(&q, r.rd, &used, e);
    if (rc == TPL_OK || rc == TPL_E_MISMATCH) {
        tpl_code printed = print_results(s, &used, r.rd, before, &print_err);
        if (rc == TPL_OK && printed != TPL_OK) {
            *e = print_err;
            rc = printed;
        }
    }
    return cli_close_run(&r, rc, e);
}

const cli_command cmd_kernels = {
    .name = "kernels",
    .about = "Time single operations at published sizes, each checked and set against its bound.",
    .examples = "  tplabench kernels --op attn_decode --shape deepseek-v3 --tp 1,2 --context 8K\n"
                "  tplabench kernels --op matmul,rmsnorm --rows 1,512 --filter '*attn.*' --list",
    .options = options,
    .state_bytes = sizeof(kernels_state),
    .in_suite = true,
    .set = set,
    .run = run,
};
