/* cmd_handoff.c - `tplabench handoff`: moving a prompt's cache from a prefill team to a decode team. */
#include <stdio.h>
#include <string.h>

#include "bench/handoff.h"
#include "cli/card.h"
#include "cli/options.h"
#include "device/gpu.h"
#include "results/host.h"

typedef struct {
    const char *model, *calibrate, *out, *resume, *backend;
    cli_variants variants;
    handoff_pair *pairs;
    int n_pairs;
    cli_axis contexts;
    ranks_kind ranks;
    tpl_dtype compute, kv;
    bool fill_random, trace;
    int max_samples;
    double timeout_s;
    table_format format;
} handoff_state;

static const cli_option options[] = {
    {"model", "NAME", "checkpoint folder, or shape:NAME,layers=N,moe=off|full with random weights (required)", false},
    {"variant", "LIST", "attention variants (default: mla or gqa)", false},
    {"teams", "LIST", "ranks of the prefill team and of the decode team, such as 1:1,2:4 (default 1:1)", false},
    {"context", "LIST", "prompt tokens, such as 512,2K or 1K:8K*2 (default 1K)", false},
    {"ranks", "KIND",
     "local: threads, or ranks on one card; nccl: a card each, as far as there are enough (default local)", false},
    {"backend", "NAME", "cpu, or cuda: on cards (default cuda where there is a card)", false},
    {"fill", "HOW", "the cache comes from a real prefill, or is random: seeded values (default prefill)", false},
    {"compute", "TYPE", "f32 or bf16 inputs to matrix products (default f32, on a card bf16)", false},
    {"kv", "TYPE", "f32 or bf16 cache (default as compute)", false},
    {"calibrate", "FILE", "calibration text for u=pca, u=mix, mu=fit (default: the bundled text)", true},
    {"max-samples", "N", "samples of a cell at most (default 100)", false},
    {"timeout", "S", "sampling time of a cell at most, seconds (default 2)", false},
    {"trace", NULL, "on cards: write traces/<cell_id>.json (Chrome/Perfetto) and traces.csv by CUPTI", false},
    {"out", "DIR", "folder that holds run directories (default runs)", true},
    {"resume", "DIR", "go on with an earlier run", true},
    {"format", "NAME", "of what is printed: table, csv, json, jsonl, md (default table)", false},
    {0},
};

static tpl_code set_teams(handoff_state *s, cli_context *c, const char *value, tpl_err *e)
{
    cli_words w;
    TPL_TRY(cli_set_words(c, "teams", value, &w, e));
    s->pairs = arena_array(&c->mem, handoff_pair, w.n);
    for (s->n_pairs = 0; s->n_pairs < w.n; s->n_pairs++) {
        int a, b, end = 0;
        const char *word = w.v[s->n_pairs];
        if (sscanf(word, "%4d:%4d%n", &a, &b, &end) != 2 || word[end] || a < 1 || b < 1 || a > 64 || b > 64)
            return tpl_fail(e, TPL_E_USAGE, "--teams", "has '%s', expected ranks as A:B, each 1 to 64", word);
        s->pairs[s->n_pairs] = (handoff_pair){a, b};
    }
    return TPL_OK;
}

static tpl_code set_fill(handoff_state *s, const char *value, tpl_err *e)
{
    s->fill_random = strcmp(value, "random") == 0;
    if (!s->fill_random && strcmp(value, "prefill") != 0)
        return tpl_fail(e, TPL_E_USAGE, "--fill", "is '%s', expected prefill or random", value);
    return TPL_OK;
}

static tpl_code set(void *state, cli_context *c, const char *key, const char *value, tpl_err *e)
{
    handoff_state *s = state;
    const struct {
        const char *key;
        const char **to;
    } paths[] = {{"model", &s->model}, {"calibrate", &s->calibrate}, {"out", &s->out}, {"resume", &s->resume}};
    for (size_t i = 0; i < sizeof paths / sizeof *paths; i++) {
        if (strcmp(paths[i].key, key) == 0) {
            *paths[i].to = cli_keep(c, value);
            return TPL_OK;
        }
    }
    if (strcmp(key, "variant") == 0)
        return cli_set_variants(c, value, &s->variants, e);
    if (strcmp(key, "teams") == 0)
        return set_teams(s, c, value, e);
    if (strcmp(key, "context") == 0)
        return cli_set_axis(c, key, value, 1, 1 << 24, &s->contexts, e);
    if (strcmp(key, "ranks") == 0)
        return cli_set_ranks(value, &s->ranks, e);
    if (strcmp(key, "backend") == 0)
        return cli_set_backend(c, value, &s->backend, e);
    if (strcmp(key, "fill") == 0)
        return set_fill(s, value, e);
    if (strcmp(key, "compute") == 0)
        return cli_set_compute(key, value, &s->compute, e);
    if (strcmp(key, "kv") == 0)
        return cli_set_compute(key, value, &s->kv, e);
    if (strcmp(key, "max-samples") == 0)
        return cli_set_int(key, value, 6, 1 << 20, &s->max_samples, e);
    if (strcmp(key, "format") == 0)
        return cli_set_format(value, &s->format, e);
    if (strcmp(key, "trace") == 0) {
        s->trace = true;
        return TPL_OK;
    }
    if (!text_parse_f64(value, &s->timeout_s) || s->timeout_s <= 0 || s->timeout_s > 3600)
        return tpl_fail(e, TPL_E_USAGE, "--timeout", "is '%s', expected seconds up to 3600", value);
    return TPL_OK;
}

static const char shown[] = "model,variant,from_tp=from,to_tp=to,way,context_tok=context,kv_bytes_per_tok_rank=stored/"
                            "rank,moved_bytes_per_tok=moved,"
                            "time_us=time,us_per_tok,gb_s,n_wrong,status";

static tpl_code name_device(const char *backend, char name[128], tpl_err *e)
{
    if (backend && strcmp(backend, "cuda") == 0) {
        gpu *card;
        TPL_TRY(gpu_open(0, &card, e));
        snprintf(name, 128, "%.120s", gpu_get_facts(card)->name);
        gpu_close(card);
        return TPL_OK;
    }
    json_t *host = host_facts();
    const char *cpu = json_string_value(json_object_get(host, "cpu"));
    snprintf(name, 128, "%.120s", cpu ? cpu : "unknown processor");
    json_decref(host);
    return TPL_OK;
}

static tpl_code measure(const handoff_state *s, handoff_request *q, cli_context *c, tpl_err *e)
{
    cli_run r = {0};
    card_watches watches = {0};
    bench_clock clock;
    TPL_TRY(handoff_bench_check(q, e));
    TPL_TRY(cli_open_run(c, s->out, s->resume, "handoff", &r, e));
    long before = c->rd ? rd_n_rows(r.rd, RS_HANDOFF) : 0;
    tpl_code rc = cli_watch_cards(q->backend, q->ranks, &watches, r.rd, e);
    q->measure.clock = cli_clock(q->backend, &watches, &clock);
    if (rc == TPL_OK)
        rc = handoff_bench_run(q, r.rd, e);
    card_watches_close(&watches);
    if (rc == TPL_OK || rc == TPL_E_MISMATCH) {
        tpl_err print_err;
        const char *picks = s->format == TABLE_ALIGNED || s->format == TABLE_MD ? shown : NULL;
        tpl_code printed =
            cli_print_rows(r.rd, RS_HANDOFF, before, "Hand-off of the cache", picks, s->format, &print_err);
        if (rc == TPL_OK && printed != TPL_OK) {
            *e = print_err;
            rc = printed;
        }
    }
    return cli_close_run(&r, rc, e);
}

static tpl_code run(void *state, cli_context *c, tpl_err *e)
{
    handoff_state *s = state;
    static int64_t context[] = {1024};
    static handoff_pair one[] = {{1, 1}};
    char device[128];
    lab *l;
    if (!s->model)
        return tpl_fail(e, TPL_E_USAGE, "--model", "is missing, expected a checkpoint folder or shape:NAME");
    if (!s->backend)
        s->backend = cli_default_backend();
    if (!s->calibrate)
        s->calibrate = text_path_join(&c->mem, cli_home(), "datasets/worldlet/calibration.txt");
    TPL_TRY(name_device(s->backend, device, e));
    lab_calibration cal = {.text = s->calibrate, .cache = true};
    TPL_TRY(lab_open(cli_find_model(c, s->model), &cal, &l, e));
    variant own = variant_exact(model_cfg(lab_model(l)));
    handoff_request q = {.lab = l,
                         .variants = s->variants.n ? s->variants.v : &own,
                         .n_variants = s->variants.n ? s->variants.n : 1,
                         .pairs = s->n_pairs ? s->pairs : one,
                         .n_pairs = s->n_pairs ? s->n_pairs : 1,
                         .contexts = s->contexts.n ? s->contexts.v : context,
                         .n_contexts = s->contexts.n ? s->contexts.n : 1,
                         .ranks = s->ranks,
                         .backend = s->backend,
                         .compute = s->compute,
                         .kv = s->kv,
                         .fill_random = s->fill_random,
                         .trace = s->trace,
                         .measure = {.max_samples = s->max_samples ? s->max_samples : 100, .timeout_s = s->timeout_s},
                         .device = device,
                         .command = c->command};
    tpl_code rc = measure(s, &q, c, e);
    lab_close(l);
    return rc;
}

const cli_command cmd_handoff = {
    .name = "handoff",
    .about = "Move a prompt's cache from a prefill team to a decode team: bytes and time a token.",
    .examples = "  tplabench handoff --model models/worldlet-mla --variant mla,mla-dcp,tpla:g=2:u=id --teams "
                "2:2,1:2,2:4 --context 512\n"
                "  tplabench handoff --model shape:deepseek-v3,moe=off --backend cuda --ranks nccl --fill random "
                "--context 8K,32K",
    .options = options,
    .state_bytes = sizeof(handoff_state),
    .in_suite = true,
    .set = set,
    .run = run,
};
