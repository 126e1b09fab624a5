/* cmd_kernels.c - `tplabench kernels`: single operations at published sizes, each checked and set against its bound. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "bench/kernels_bench.h"
#include "bench/links_bench.h"
#include "cli/card.h"
#include "cli/options.h"

typedef struct {
    kernel_axes axes;
    const char *out, *resume, *samples;
    const char *fit_links;
    cli_axis bytes;
    ranks_kind ranks;
    bool ranks_given;
    int max_samples;
    double timeout_s;
    bool list, aa, trace;
    table_format format;
} kernels_state;

static const cli_option options[] = {
    {"op", "LIST", "attn_decode, attn_prefill, matmul, head_matmul, rmsnorm, rope, hadamard, comm (default all); or collectives by size: "
                   "all_reduce, all_gather, reduce_scatter, broadcast", false},
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
    {"backend", "LIST", "cpu, ref, cuda, or the name of one row of the kernels table such as cpu_avx2 or cuda_mma; those of cuda run on card 0 (default cpu)", false},
    {"bytes", "LIST", "of collectives: sizes of a rank's data, such as 512:64M*2 (default a ladder of 11, between cards 14)", false},
    {"ranks", "KIND", "of collectives: local, threads or ranks that share card 0; nccl, a card each (default local, with cuda nccl)", false},
    {"fit-links", "FILE", "of collectives: write the alpha-beta model of the times, for latency --comm-model", true},
    {"filter", "TEXT", "only cases whose name matches: a pattern with * ? [], else a part of the name", false},
    {"max-samples", "N", "cold samples of a case at most (default 400)", false},
    {"timeout", "S", "sampling time of a case at most, seconds (default 2)", false},
    {"aa", NULL, "first compare each group's first case with itself: the noise floor", false},
    {"trace", NULL, "on cards: write traces/<cell_id>.json (Chrome/Perfetto) and traces.csv by CUPTI", false},
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
                 {"filter", &a->filter}, {"out", &s->out},     {"resume", &s->resume},   {"samples", &s->samples}, {"fit-links", &s->fit_links}};
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        if (strcmp(texts[i].key, key) == 0) {
            *texts[i].to = cli_keep(c, value);
            return TPL_OK;
        }
    }
    if (strcmp(key, "format") == 0)
        return cli_set_format(value, &s->format, e);
    if (strcmp(key, "bytes") == 0)
        return cli_set_axis(c, key, value, 4, (int64_t)1 << 32, &s->bytes, e);
    if (strcmp(key, "ranks") == 0) {
        s->ranks_given = true;
        return cli_set_ranks(value, &s->ranks, e);
    }
    if (strcmp(key, "list") == 0 || strcmp(key, "aa") == 0 || strcmp(key, "trace") == 0) {
        *(*key == 'a' ? &s->aa : *key == 'l' ? &s->list : &s->trace) = true;
        return TPL_OK;
    }
    return set_number(s, key, value, e);
}

static const char shown[] = "op,shape,variant,backend=kernel,dtype,threads,batch,context_tok=context,query_tok=query,time_us=time,time_hot_us=hot,gb_s,tflop_s,"
                            "bound_frac=of bound,bound_by=bound by,n_wrong,ratio,ratio_lo=from,ratio_hi=to,status";

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

/* ---- collectives by size ---- */

/* Whether --op names collectives only; *q then has them. One among other operations is an error. */
static tpl_code take_collectives(kernels_state *s, cli_context *c, links_request *q, bool *all, tpl_err *e)
{
    cli_words w = {0};
    int n = 0;
    if (s->axes.op)
        TPL_TRY(cli_set_words(c, "op", s->axes.op, &w, e));
    for (int i = 0; i < w.n; i++) {
        comm_op op = links_op_from_name(w.v[i]);
        n += op < COMM_N_OPS;
        if (op < COMM_N_OPS)
            q->ops[op] = true;
    }
    *all = n > 0;
    if (n > 0 && n < w.n)
        return tpl_fail(e, TPL_E_USAGE, "--op", "is '%s', expected collectives alone or none of them", s->axes.op);
    if (n == 0 && (s->bytes.n || s->fit_links || s->ranks_given))
        return tpl_fail(e, TPL_E_USAGE, "--op", "has no collective, which --bytes, --ranks and --fit-links are for");
    return TPL_OK;
}

static tpl_code set_link_types(const kernels_state *s, cli_context *c, links_request *q, tpl_err *e)
{
    const char *backend = "cpu";
    if (s->axes.backend)
        TPL_TRY(cli_set_backend(c, s->axes.backend, &backend, e));
    q->cuda = strcmp(backend, "cuda") == 0 || (!s->axes.backend && s->ranks == RANKS_NCCL);
    q->share_card = q->cuda && s->ranks == RANKS_LOCAL && s->ranks_given;
    if (s->ranks != RANKS_LOCAL && s->ranks != RANKS_NCCL)
        return tpl_fail(e, TPL_E_USAGE, "--ranks", "is %s, expected local or nccl", ranks_name(s->ranks));
    if (s->ranks == RANKS_NCCL && !q->cuda)
        return tpl_fail(e, TPL_E_USAGE, "--ranks", "is nccl, expected with --backend cuda only");
    return s->axes.dtype ? cli_set_compute("dtype", s->axes.dtype, &q->dtype, e) : TPL_OK;
}

static tpl_code print_model(const link_model *m, const char *path, table_format format, tpl_err *e)
{
    static const struct {
        const char *name;
        rs_type type;
    } columns[] = {{"op", RS_TEXT}, {"ranks", RS_INT}, {"up to bytes sent", RS_REAL}, {"alpha us", RS_REAL}, {"beta GB/s", RS_REAL}, {"worst error %", RS_REAL}, {"sizes", RS_INT}};
    char title[160], cells[7][32];
    snprintf(title, sizeof title, "Link model %.60s (%.80s)", m->name, m->joined_by);
    table *t = table_create(title);
    for (size_t i = 0; i < sizeof columns / sizeof *columns; i++)
        table_add_column(t, columns[i].name, columns[i].name, "", columns[i].type);
    for (int i = 0; i < m->n_pieces; i++) {
        const link_piece *p = &m->pieces[i];
        snprintf(cells[0], sizeof cells[0], "%s", comm_op_name(p->op));
        snprintf(cells[1], sizeof cells[1], "%d", p->ranks);
        snprintf(cells[2], sizeof cells[2], "%.0f", p->up_to_sent);
        snprintf(cells[3], sizeof cells[3], "%.3f", p->alpha_us);
        snprintf(cells[4], sizeof cells[4], "%.2f", p->beta_gb_s);
        snprintf(cells[5], sizeof cells[5], "%.1f", 100 * p->worst_frac);
        snprintf(cells[6], sizeof cells[6], "%d", p->n_points);
        const char *row[] = {cells[0], cells[1], isfinite(p->up_to_sent) ? cells[2] : "", cells[3], isfinite(p->beta_gb_s) ? cells[4] : "", cells[5], cells[6]};
        table_add_row(t, row);
    }
    tpl_code rc = table_print(t, format, stdout, e);
    table_destroy(t);
    if (rc == TPL_OK && fprintf(stderr, "link model: %s\n", path) < 0)
        rc = tpl_fail(e, TPL_E_IO, "standard error", "cannot be written");
    return rc;
}

static tpl_code run_links(kernels_state *s, cli_context *c, links_request *q, tpl_err *e)
{
    static const char link_columns[] = "op,shape,backend=way,dtype,time_us=time,time_us_min=min,gb_s,n_wrong,ratio,ratio_lo=from,ratio_hi=to,status";
    cli_run r = {0};
    link_model fitted;
    cli_axis tps = {0};
    card_watches watches = {0};
    bench_clock clock;
    tpl_err print_err;
    TPL_TRY(set_link_types(s, c, q, e));
    if (s->axes.tp)
        TPL_TRY(cli_set_axis(c, "tp", s->axes.tp, 2, 64, &tps, e));
    q->tps = tps.v, q->n_tps = tps.n;
    q->bytes = s->bytes.v, q->n_bytes = s->bytes.n;
    q->fit_path = s->fit_links;
    q->trace = s->trace;
    q->command = c->command;
    q->measure = (measure_options){.max_samples = s->max_samples ? s->max_samples : 100, .timeout_s = s->timeout_s};
    if (s->list || s->aa || s->samples)
        return tpl_fail(e, TPL_E_USAGE, "kernels", "--list, --aa and --samples are not for collectives by size");
    TPL_TRY(links_bench_check(q, e));
    TPL_TRY(cli_open_run(c, s->out, s->resume, "kernels", &r, e));
    long before = c->rd ? rd_n_rows(r.rd, RS_KERNELS) : 0;
    const char *backend = q->cuda ? "cuda" : NULL;
    tpl_code rc = cli_watch_cards(backend, q->share_card ? RANKS_LOCAL : RANKS_NCCL, &watches, r.rd, e);
    q->measure.clock = cli_clock(backend, &watches, &clock);
    if (rc == TPL_OK)
        rc = links_bench_run(q, r.rd, &fitted, e);
    card_watches_close(&watches);
    bool reading = s->format == TABLE_ALIGNED || s->format == TABLE_MD;
    if (rc == TPL_OK || rc == TPL_E_MISMATCH) {
        tpl_code printed = cli_print_rows(r.rd, RS_KERNELS, before, "Collectives", reading ? link_columns : NULL, s->format, &print_err);
        if (printed == TPL_OK && reading && s->fit_links)
            printed = print_model(&fitted, s->fit_links, s->format, &print_err);
        if (rc == TPL_OK && printed != TPL_OK) {
            *e = print_err;
            rc = printed;
        }
    }
    return cli_close_run(&r, rc, e);
}

static tpl_code run(void *state, cli_context *c, tpl_err *e)
{
    kernels_state *s = state;
    links_request links = {0};
    bool collectives;
    TPL_TRY(take_collectives(s, c, &links, &collectives, e));
    if (collectives)
        return run_links(s, c, &links, e);
    cli_run r = {0};
    ceilings used = {0};
    card_watches watches = {0};
    bench_clock clock;
    tpl_err print_err;
    s->axes.shapes_dir = text_path_join(&c->mem, cli_home(), "models/shapes");
    kernels_request q = {.axes = s->axes, .aa = s->aa, .trace = s->trace, .samples_path = s->samples, .seed = 1, .measure = {.max_samples = s->max_samples, .timeout_s = s->timeout_s}};
    if (s->list)
        return print_list(&q, s->format, e);
    TPL_TRY(cli_open_run(c, s->out, s->resume, "kernels", &r, e));
    long before = c->rd ? rd_n_rows(r.rd, RS_KERNELS) : 0; /* a suite's earlier sections have been printed */
    const char *backend = s->axes.backend && kernel_backend_is_card(s->axes.backend) ? "cuda" : NULL;
    tpl_code rc = cli_watch_cards(backend, RANKS_LOCAL, &watches, r.rd, e);
    q.measure.clock = cli_clock(backend, &watches, &clock);
    if (rc == TPL_OK)
        rc = kernels_bench_run(&q, r.rd, &used, e);
    card_watches_close(&watches);
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
                "  tplabench kernels --op attn_decode --shape deepseek-v3 --tp 2 --context 32K --batch 32 --backend cuda\n"
                "  tplabench kernels --op all_reduce,all_gather,reduce_scatter --backend cuda --tp 2 --ranks nccl --fit-links link.json",
    .options = options,
    .state_bytes = sizeof(kernels_state),
    .in_suite = true,
    .set = set,
    .run = run,
};
