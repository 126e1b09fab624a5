/* cmd_latency.c - `tplabench latency`: TTFT, TPOT, ITL and E2EL by variant, tp, context and batch. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "bench/card_ceilings.h"
#include "bench/card_clock.h"
#include "bench/latency.h"
#include "bench/pair.h"
#include "cli/card.h"
#include "cli/options.h"
#include "device/gpu.h"

typedef struct {
    const char *comm_model, *model, *calibrate, *out, *resume, *samples, *backend;
    cli_variants variants;
    cli_axis tps, contexts, batches, decode_toks;
    int decode_steps, max_samples;
    double timeout_s, device_bytes;
    bool fill_random;
    ranks_kind ranks;
    tpl_dtype compute, kv;
    int ttft_runs;
    bool list, trace, aa;
    table_format format;
} latency_state;

static const cli_option options[] = {
    {"model", "NAME", "checkpoint folder, or shape:NAME,layers=N,moe=off|full with random weights (required)", false},
    {"variant", "LIST", "attention variants; ratios are against the first (default: mla or gqa)", false},
    {"tp", "LIST", "tensor-parallel ranks (default 1)", false},
    {"ranks", "KIND", "local: threads; solo: rank 0 alone; nccl: a card each; procs, mpi: processes (default local)", false},
    {"comm-model", "FILE", "with --ranks solo: models/links/NAME.json, whose modelled communication stands beside the times", true},
    {"backend", "NAME", "cpu, or cuda: on a card (default cuda where there is a card)", false},
    {"context", "LIST", "prompt tokens, such as 512,2K or 1K:8K*2 (default 1K)", false},
    {"batch", "LIST", "sequences; max: the largest of each variant that fits, by plan, then allocated (default 1)", false},
    {"decode-tok", "LIST", "tokens decoded after the first, by which the context grows (default 16)", false},
    {"decode-steps", "N", "of them run in one sample, spread evenly (default: all up to 128, else 32)", false},
    {"fill", "HOW", "the cache comes from a real prefill, or is random: seeded values, no TTFT (default prefill)", false},
    {"device-memory", "BYTES", "pretend that so much is free, such as 80G (2^30) or 80GB (1e9)", false},
    {"compute", "TYPE", "f32 or bf16 inputs to matrix products (default f32, on a card bf16)", false},
    {"kv", "TYPE", "f32 or bf16 cache (default as compute)", false},
    {"calibrate", "FILE", "calibration text for u=pca, u=mix, mu=fit (default: the bundled text)", true},
    {"max-samples", "N", "samples of a cell at most (default 200)", false},
    {"timeout", "S", "sampling time of a variant and cell at most, seconds (default 2)", false},
    {"ttft-runs", "N", "prefills timed a cell, the median is TTFT; 0: none (default 3, with --fill random 0)", false},
    {"aa", NULL, "first compare the first variant with itself: the machine's noise floor", false},
    {"trace", NULL, "write traces/<cell_id>.json (Chrome/Perfetto) and traces.csv: by CUPTI on cards, by timers on hosts", false},
    {"samples", "FILE", "write every sample as CSV", true},
    {"out", "DIR", "folder that holds run directories (default runs)", true},
    {"resume", "DIR", "go on with an earlier run", true},
    {"list", NULL, "print the cells that would be measured, measure nothing", false},
    {"format", "NAME", "of what is printed: table, csv, json, jsonl, md (default table)", false},
    {0},
};

static tpl_code set_flag(latency_state *s, const char *key)
{
    const struct {
        const char *key;
        bool *to;
    } flags[] = {{"list", &s->list}, {"trace", &s->trace}, {"aa", &s->aa}};
    for (size_t i = 0; i < sizeof flags / sizeof *flags; i++)
        if (strcmp(flags[i].key, key) == 0)
            *flags[i].to = true;
    return TPL_OK;
}

/* Numbers as on any axis, and the word max among them. */
static tpl_code set_batches(cli_context *c, const char *value, cli_axis *out, tpl_err *e)
{
    char **parts;
    int n = text_split(&c->mem, value, ',', &parts), kept = 0;
    bool max = false;
    text_buf numbers = {0};
    for (int i = 0; i < n; i++) {
        if (strcmp(parts[i], "max") == 0)
            max = true;
        else
            text_addf(&numbers, "%s%s", kept++ ? "," : "", parts[i]);
    }
    cli_axis a = {0};
    tpl_code rc = kept || !max ? cli_set_axis(c, "batch", kept ? numbers.data : value, 1, 1 << 16, &a, e) : TPL_OK;
    text_fini(&numbers);
    TPL_TRY(rc);
    *out = (cli_axis){arena_array(&c->mem, int64_t, a.n + 1), a.n + max};
    for (int i = 0; i < a.n; i++)
        out->v[i] = a.v[i];
    if (max)
        out->v[a.n] = LATENCY_BATCH_MAX;
    return TPL_OK;
}

static tpl_code set_fill(const char *value, bool *is_random, tpl_err *e)
{
    *is_random = strcmp(value, "random") == 0;
    if (*is_random || strcmp(value, "prefill") == 0)
        return TPL_OK;
    return tpl_fail(e, TPL_E_USAGE, "--fill", "is '%s', expected prefill or random", value);
}

static tpl_code set(void *state, cli_context *c, const char *key, const char *value, tpl_err *e)
{
    latency_state *s = state;
    const struct {
        const char *key;
        const char **to;
    } paths[] = {{"comm-model", &s->comm_model}, {"model", &s->model}, {"calibrate", &s->calibrate}, {"samples", &s->samples}, {"out", &s->out}, {"resume", &s->resume}};
    for (size_t i = 0; i < sizeof paths / sizeof *paths; i++) {
        if (strcmp(paths[i].key, key) == 0) {
            *paths[i].to = cli_keep(c, value);
            return TPL_OK;
        }
    }
    if (strcmp(key, "variant") == 0)
        return cli_set_variants(c, value, &s->variants, e);
    if (strcmp(key, "tp") == 0)
        return cli_set_axis(c, key, value, 1, 64, &s->tps, e);
    if (strcmp(key, "context") == 0)
        return cli_set_axis(c, key, value, 1, 1 << 24, &s->contexts, e);
    if (strcmp(key, "batch") == 0)
        return set_batches(c, value, &s->batches, e);
    if (strcmp(key, "decode-tok") == 0)
        return cli_set_axis(c, key, value, 1, 1 << 16, &s->decode_toks, e);
    if (strcmp(key, "decode-steps") == 0)
        return cli_set_int(key, value, 1, 1 << 16, &s->decode_steps, e);
    if (strcmp(key, "fill") == 0)
        return set_fill(value, &s->fill_random, e);
    if (strcmp(key, "device-memory") == 0)
        return cli_set_bytes(key, value, &s->device_bytes, e);
    if (strcmp(key, "ttft-runs") == 0) {
        TPL_TRY(cli_set_int(key, value, 0, 64, &s->ttft_runs, e));
        s->ttft_runs = s->ttft_runs ? s->ttft_runs : -1;
        return TPL_OK;
    }
    if (strcmp(key, "max-samples") == 0)
        return cli_set_int(key, value, 6, 1 << 20, &s->max_samples, e);
    if (strcmp(key, "timeout") == 0) {
        if (!text_parse_f64(value, &s->timeout_s) || s->timeout_s <= 0 || s->timeout_s > 3600)
            return tpl_fail(e, TPL_E_USAGE, "--timeout", "is '%s', expected seconds up to 3600", value);
        return TPL_OK;
    }
    if (strcmp(key, "ranks") == 0)
        return cli_set_ranks(value, &s->ranks, e);
    if (strcmp(key, "backend") == 0)
        return cli_set_backend(c, value, &s->backend, e);
    if (strcmp(key, "compute") == 0)
        return cli_set_compute(key, value, &s->compute, e);
    if (strcmp(key, "kv") == 0)
        return cli_set_compute(key, value, &s->kv, e);
    if (strcmp(key, "format") == 0)
        return cli_set_format(value, &s->format, e);
    return set_flag(s, key);
}

static const char shown[] = "model,variant,tp,batch,batch_rule=rule,context_tok=context,decode_tok=decode,"
                            "ttft_ms=TTFT,ttft_matrix_frac=of matrix,tpot_ms=TPOT,itl_ms_p90=ITL p90,tok_per_s,"
                            "kv_bytes_per_tok_rank=cache,bound_frac=of bound,attn_bound_frac=attention,"
                            "bound_by=bound by,ratio,ratio_lo=from,ratio_hi=to,status";

static bool on_card(const latency_request *q)
{
    return q->backend && strcmp(q->backend, "cuda") == 0;
}

/* What is free where cells will run: on the card that has least, or in the machine. Some of a card is left to its
 * driver's own needs, which grow while it works. */
static tpl_code find_free_bytes(const latency_state *s, latency_request *q, tpl_err *e)
{
    static const double kept_back = 256e6, kept_back_for_nccl = 512e6;
    q->pretend = s->device_bytes > 0;
    q->free_bytes = q->pretend ? s->device_bytes : pair_free_bytes();
    if (q->pretend || !on_card(q))
        return TPL_OK;
    int n = q->ranks == RANKS_NCCL ? gpu_count() : 1;
    for (int i = 0; i < n; i++) {
        gpu *card;
        int64_t bytes = 0;
        TPL_TRY(gpu_open(i, &card, e));
        tpl_code rc = gpu_free_bytes(card, &bytes, e);
        double taken = (double)(gpu_get_facts(card)->memory_bytes - bytes);
        gpu_close(card);
        TPL_TRY(rc);
        q->taken_bytes = taken > q->taken_bytes ? taken : q->taken_bytes;
        double left = (double)bytes - kept_back - (n > 1 ? kept_back_for_nccl : 0);
        q->free_bytes = i == 0 || left < q->free_bytes ? left : q->free_bytes;
    }
    if (ranks_are_processes(q->ranks)) /* which may share a card and begin one after the other */
        q->taken_bytes = 0;
    if (q->taken_bytes > card_taken_limit)
        log_warn("%.1f GiB of a card are taken already: another program is on it, and times are not this one's alone",
                 q->taken_bytes / 0x1p30);
    return TPL_OK;
}

static tpl_code measure(latency_state *s, latency_request *q, cli_context *c, tpl_err *e)
{
    ceilings ceil;
    cli_run r = {0};
    table *t = NULL;
    card_watches watches = {0};
    bench_clock clock;
    TPL_TRY(on_card(q) ? card_ceilings_open(0, &ceil, e) : ceilings_open(&(ceilings_options){0}, &ceil, e));
    TPL_TRY(find_free_bytes(s, q, e));
    q->ceil = &ceil;
    q->device = ceil.cpu;
    if (*ceil.moved)
        log_note("ceilings moved: %s", ceil.moved);
    TPL_TRY(cli_open_run(c, s->out, s->resume, "latency", &r, e));
    tpl_code rc = cli_watch_cards(q->backend, q->ranks, &watches, r.rd, e);
    q->measure.clock = cli_clock(q->backend, &watches, &clock);
    long before = c->rd ? rd_n_rows(r.rd, RS_LATENCY) : 0; /* a suite's earlier sections have been printed */
    if (rc == TPL_OK && s->format == TABLE_ALIGNED && (t = ceilings_table(&ceil)))
        rc = table_print(t, TABLE_ALIGNED, stdout, e);
    table_destroy(t);
    if (s->samples && !(q->samples = fopen(s->samples, "w")))
        rc = tpl_fail(e, TPL_E_IO, s->samples, "cannot be created");
    if (rc == TPL_OK)
        rc = latency_run(q, r.rd, e);
    if (rc == TPL_OK || rc == TPL_E_MISMATCH || rc == TPL_E_MEMORY) {
        tpl_err shown_err;
        const char *picks = s->format == TABLE_ALIGNED || s->format == TABLE_MD ? shown : NULL;
        tpl_code printed = cli_print_rows(r.rd, RS_LATENCY, before, "Latency", picks, s->format, &shown_err);
        if (rc == TPL_OK && printed != TPL_OK) {
            *e = shown_err;
            rc = printed;
        }
    }
    if (q->samples && fclose(q->samples) != 0 && rc == TPL_OK)
        rc = tpl_fail(e, TPL_E_IO, s->samples, "cannot be written");
    card_watches_close(&watches);
    if (c->rd && rc == TPL_E_MEMORY) { /* the rows say so; a suite goes on */
        log_warn("%s: %s", e->where, e->what);
        rc = TPL_OK;
    }
    return cli_close_run(&r, rc, e);
}

static tpl_code read_links(const latency_state *s, link_model *out, tpl_err *e)
{
    if (s->comm_model && s->ranks != RANKS_SOLO)
        return tpl_fail(e, TPL_E_USAGE, "--comm-model", "is for --ranks solo; ranks that run together measure their communication");
    return s->comm_model ? links_read(s->comm_model, out, e) : TPL_OK;
}

/* Prefills that are timed; -1 stands for none, 0 for what the way of filling suggests. */
static int ttft_runs(const latency_state *s)
{
    if (s->ttft_runs)
        return s->ttft_runs < 0 ? 0 : s->ttft_runs;
    return s->fill_random ? 0 : 3;
}

static tpl_code needs_cards(tpl_err *e)
{
    tpl_err why = {.where = "--backend", .what = "is not cuda"};
    cli_card_usable(&why);
    return tpl_fail(e, TPL_E_DEVICE, "--ranks", "is nccl, which takes a card a rank; %s: %s", why.where, why.what);
}

static tpl_code run(void *state, cli_context *c, tpl_err *e)
{
    latency_state *s = state;
    link_model links;
    static int64_t one[] = {1}, context[] = {1024}, decode[] = {16};
    lab *l = NULL;
    if (!s->model)
        return tpl_fail(e, TPL_E_USAGE, "--model", "is missing, expected a checkpoint folder or shape:NAME");
    TPL_TRY(read_links(s, &links, e));
    if (!s->calibrate)
        s->calibrate = text_path_join(&c->mem, cli_home(), "datasets/worldlet/calibration.txt");
    s->model = cli_find_model(c, s->model);
    lab_calibration cal = {.text = s->calibrate, .cache = true};
    TPL_TRY(lab_open(s->model, &cal, &l, e));
    variant own = variant_exact(model_cfg(lab_model(l)));
    if (!s->variants.n)
        s->variants = (cli_variants){&own, 1};
    cli_axis unit = {one, 1};
    s->tps = s->tps.n ? s->tps : unit;
    s->batches = s->batches.n ? s->batches : unit;
    s->contexts = s->contexts.n ? s->contexts : (cli_axis){context, 1};
    s->decode_toks = s->decode_toks.n ? s->decode_toks : (cli_axis){decode, 1};
    if (!s->backend && !ranks_are_processes(s->ranks))
        s->backend = cli_default_backend();
    if (s->ranks == RANKS_NCCL && (!s->backend || strcmp(s->backend, "cuda") != 0) && !s->list)
        return needs_cards(e);
    latency_request q = {.lab = l,
                         .variants = s->variants.v,
                         .n_variants = s->variants.n,
                         .tps = s->tps.v,
                         .n_tps = s->tps.n,
                         .contexts = s->contexts.v,
                         .n_contexts = s->contexts.n,
                         .batches = s->batches.v,
                         .n_batches = s->batches.n,
                         .decode_toks = s->decode_toks.v,
                         .n_decode_toks = s->decode_toks.n,
                         .decode_steps = s->decode_steps,
                         .fill_random = s->fill_random,
                         .ranks = s->ranks,
                         .backend = s->backend,
                         .compute = s->compute,
                         .kv = s->kv,
                         .ttft_runs = ttft_runs(s),
                         .trace = s->trace,
                         .aa = s->aa,
                         .command = c->command,
                         .links = s->comm_model ? &links : NULL,
                         .measure = {.max_samples = s->max_samples ? s->max_samples : 200, .timeout_s = s->timeout_s}};
    tpl_code rc = latency_check(&q, e);
    if (rc == TPL_OK)
        rc = s->list ? find_free_bytes(s, &q, e) : measure(s, &q, c, e);
    if (s->list && rc == TPL_OK)
        rc = latency_list(&q, c->rd, stdout, e);
    lab_close(l);
    return rc;
}

const cli_command cmd_latency = {
    .name = "latency",
    .about = "Time prefill and decode: TTFT, TPOT, ITL, E2EL, beside the machine's bound.",
    .examples = "  tplabench latency --model models/worldlet-mla --variant mla,mla-dcp,tpla:g=2:u=id --tp 2 --context 512,2048\n"
                "  tplabench latency --model shape:deepseek-v3,layers=1,moe=off --variant mla --context 8K --compute bf16 --ranks solo --tp 2",
    .options = options,
    .state_bytes = sizeof(latency_state),
    .in_suite = true,
    .set = set,
    .run = run,
};
