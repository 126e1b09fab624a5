/* cmd_speculate.c - `tplabench speculate`: plain, speculative, tree and layer-parallel (EasySpec) decoding of a model
 * pair. */
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "bench/spec_auto.h"
#include "bench/spec_cells.h"
#include "bench/spec_cosine.h"
#include "cli/card.h"
#include "cli/options.h"
#include "datasets/prompts.h"
#include "datasets/tasks.h"
#include "device/gpu.h"
#include "results/host.h"

typedef struct {
    const char *base, *draft, *prompts, *data, *calibrate, *record, *replay, *out, *resume;
    variant base_variant, draft_variant;
    bool has_base_variant, has_draft_variant;
    cli_words methods, groups, tasks, temperatures;
    cli_axis tps, widths;
    int draft_tp, depth, n_prompts, max_new, prompt_tok, seed;
    double top_p, draft_temperature, stop_confidence, assume;
    bool topk;
    bool calibration_off, calibration_both, layers, layers_both, visit, blocks;
    bool list, trace, cosine, automatic, ignore_eos, published;
    tpl_dtype compute, kv;
    const char *backend;
    ranks_kind ranks;
    bool graph_off;
    joins_kind joins;
    double exchange_us;
    table_format format;
} speculate_state;

static const cli_option options[] = {
    {"base", "NAME", "base model: checkpoint folder or shape:NAME,layers=N (required)", false},
    {"draft", "NAME", "draft model of the same vocabulary (required but for vanilla)", false},
    {"method", "LIST", "vanilla, sd (chain), tree, easyspec (default all)", false},
    {"tp", "LIST", "ranks of the base: vanilla at each, the rest at the last (default 1)", false},
    {"draft-tp", "N", "ranks of the draft: easyspec spreads layers over N; sd, tree run at 1 to N (default: last --tp)",
     false},
    {"temperature", "LIST", "0: greedy (default 0)", false},
    {"groups", "LIST", "layer groups: rule:N, pack:N or 0/1-3/4-7/8 (default rule:4)", false},
    {"width", "LIST", "nodes a level of the draft tree; 1: a chain (default 4)", false},
    {"depth", "N", "levels drafted an iteration (default 5)", false},
    {"children", "RULE", "of trees above temperature 0: sampled or top-k (default sampled)", false},
    {"calibration", "WHICH", "of easyspec: on, off, both (default on)", false},
    {"parallel", "WHICH", "of a group: attention, layers, both (default attention)", false},
    {"exact-pass", "WHERE", "of a grouped draft: rank0, or visit the layers' owners (default rank0)", false},
    {"owner", "RULE", "of layer i in a group: modulo ranks, or blocks of neighbours (default modulo)", false},
    {"top-p", "P", "sample from the likeliest tokens of this mass (default 1)", false},
    {"draft-temperature", "T", "of the draft, above temperature 0 (default: the base's)", false},
    {"stop-confidence", "P", "stop drafting where no path is as likely (default 0: never)", false},
    {"base-variant", "NAME", "attention variant of the base (default mla or gqa)", false},
    {"draft-variant", "NAME", "attention variant of the draft (default mla or gqa)", false},
    {"prompts", "FILE", "JSONL of prompts, or Spec-Bench's question.jsonl (first turns)", true},
    {"task", "LIST", "bundled long sets to take prompts from (default code,summarisation)", false},
    {"data", "DIR", "folder of those sets (default: the bundled ones)", true},
    {"n-prompts", "N", "prompts a set (default 8; 0: all)", false},
    {"prompt-tok", "N", "keep the last N tokens of longer prompts (default 512)", false},
    {"max-new-tokens", "N", "tokens generated a prompt (default 128)", false},
    {"ignore-eos", NULL, "go on after the end of text", false},
    {"auto", NULL, "choose groups, width and depth of easyspec by a trial and its cost model", false},
    {"cosine", NULL, "measure cosines of exact and fuzzy states by layer too (accuracy.csv)", false},
    {"record", "FILE", "write accepted counts of every run as JSON lines", true},
    {"replay", "FILE", "take accepted counts from such a file instead of judging", true},
    {"assume-accept", "P", "keep each level with this chance instead of judging", false},
    {"trace", NULL, "write traces/<cell_id>.json (Chrome/Perfetto) of the draft's ranks: by CUPTI on cards, by timers on hosts", false},
    {"published", NULL, "print the paper's tables after one's own", false},
    {"calibrate", "FILE", "calibration text for u=pca, u=mix, mu=fit (default: the bundled text)", true},
    {"backend", "NAME", "cpu, or cuda: on cards (default cuda where there is a card)", false},
    {"ranks", "KIND", "local: threads, or one card that all share; nccl: a card each (default local)", false},
    {"graph", "WHICH", "on a card: on, replay recorded passes; off, enqueue every step (default on)", false},
    {"joins", "WHICH", "on a card, steps that share a launch: all, feed-forward only, off (default all)", false},
    {"exchange-us", "N",
     "where ranks share a card: model easyspec's drafting as on a card each, a group's exchange taking N us", false},
    {"compute", "TYPE", "f32 or bf16 inputs to matrix products (default f32; on a card bf16)", false},
    {"kv", "TYPE", "f32 or bf16 cache (default as compute)", false},
    {"seed", "N", "of sampling (default 1)", false},
    {"out", "DIR", "folder that holds run directories (default runs)", true},
    {"resume", "DIR", "go on with an earlier run", true},
    {"list", NULL, "print the cells that would be measured, measure nothing", false},
    {"format", "NAME", "of what is printed: table, csv, json, jsonl, md (default table)", false},
    {0},
};

/* ---- options ---- */

/* One of two or three words, as 0, 1, 2. */
static tpl_code set_choice(const char *key, const char *value, const char *const words[3], int *out, tpl_err *e)
{
    for (int i = 0; i < 3 && words[i]; i++) {
        if (strcmp(words[i], value) == 0) {
            *out = i;
            return TPL_OK;
        }
    }
    return tpl_fail(e, TPL_E_USAGE, key, "is '%s', expected %s, %s%s%s", value, words[0], words[1],
                    words[2] ? ", " : "", words[2] ? words[2] : "");
}

static tpl_code set_real(const char *key, const char *value, double lo, double hi, double *out, tpl_err *e)
{
    if (!text_parse_f64(value, out) || !(*out >= lo && *out <= hi))
        return tpl_fail(e, TPL_E_USAGE, key, "is '%s', expected a number from %g to %g", value, lo, hi);
    return TPL_OK;
}

static tpl_code set_words_of_choice(speculate_state *s, const char *key, const char *value, bool *taken, tpl_err *e)
{
    static const char *const children[3] = {"top-k", "sampled"}, *const on_off[3] = {"on", "off", "both"};
    static const char *const parallel[3] = {"attention", "layers", "both"}, *const exact[3] = {"rank0", "visit"};
    static const char *const owner[3] = {"modulo", "blocks"}, *const graph[3] = {"on", "off"};
    static const char *const joins[3] = {"all", "feed-forward", "off"};
    int i = 0;
    *taken = true;
    if (strcmp(key, "children") == 0) {
        TPL_TRY(set_choice(key, value, children, &i, e));
        s->topk = i == 0;
    } else if (strcmp(key, "calibration") == 0) {
        TPL_TRY(set_choice(key, value, on_off, &i, e));
        s->calibration_off = i == 1;
        s->calibration_both = i == 2;
    } else if (strcmp(key, "parallel") == 0) {
        TPL_TRY(set_choice(key, value, parallel, &i, e));
        s->layers = i == 1;
        s->layers_both = i == 2;
    } else if (strcmp(key, "exact-pass") == 0) {
        TPL_TRY(set_choice(key, value, exact, &i, e));
        s->visit = i == 1;
    } else if (strcmp(key, "owner") == 0) {
        TPL_TRY(set_choice(key, value, owner, &i, e));
        s->blocks = i == 1;
    } else if (strcmp(key, "graph") == 0) {
        TPL_TRY(set_choice(key, value, graph, &i, e));
        s->graph_off = i == 1;
    } else if (strcmp(key, "joins") == 0) {
        TPL_TRY(set_choice(key, value, joins, &i, e));
        s->joins = (joins_kind)i;
    } else {
        *taken = false;
    }
    return TPL_OK;
}

static tpl_code set_number(speculate_state *s, cli_context *c, const char *key, const char *value, bool *taken,
                           tpl_err *e)
{
    const struct {
        const char *key;
        double lo, hi, *to;
    } reals[] = {{"top-p", 1e-6, 1, &s->top_p},
                 {"draft-temperature", 0, 100, &s->draft_temperature},
                 {"stop-confidence", 0, 1, &s->stop_confidence},
                 {"assume-accept", 1e-6, 1, &s->assume},
                 {"exchange-us", 0, 1e6, &s->exchange_us}};
    const struct {
        const char *key;
        int lo, hi, *to;
    } ints[] = {{"draft-tp", 1, 64, &s->draft_tp},           {"depth", 1, SPEC_MAX_DEPTH, &s->depth},
                {"n-prompts", 0, 1 << 20, &s->n_prompts},    {"prompt-tok", 1, 1 << 24, &s->prompt_tok},
                {"max-new-tokens", 1, 1 << 20, &s->max_new}, {"seed", 0, 1 << 30, &s->seed}};
    *taken = true;
    for (size_t i = 0; i < sizeof reals / sizeof *reals; i++)
        if (strcmp(reals[i].key, key) == 0)
            return set_real(key, value, reals[i].lo, reals[i].hi, reals[i].to, e);
    for (size_t i = 0; i < sizeof ints / sizeof *ints; i++) {
        if (strcmp(ints[i].key, key) != 0)
            continue;
        TPL_TRY(cli_set_int(key, value, ints[i].lo, ints[i].hi, ints[i].to, e));
        if (strcmp(key, "n-prompts") == 0 && s->n_prompts == 0)
            s->n_prompts = -1; /* all; 0 is the default */
        return TPL_OK;
    }
    if (strcmp(key, "tp") == 0)
        return cli_set_axis(c, key, value, 1, 64, &s->tps, e);
    if (strcmp(key, "width") == 0)
        return cli_set_axis(c, key, value, 1, SPEC_MAX_WIDTH, &s->widths, e);
    *taken = false;
    return TPL_OK;
}

static bool set_text(speculate_state *s, cli_context *c, const char *key, const char *value)
{
    const struct {
        const char *key;
        const char **to;
    } texts[] = {{"base", &s->base},           {"draft", &s->draft},   {"prompts", &s->prompts}, {"data", &s->data},
                 {"calibrate", &s->calibrate}, {"record", &s->record}, {"replay", &s->replay},   {"out", &s->out},
                 {"resume", &s->resume}};
    const struct {
        const char *key;
        bool *to;
    } flags[] = {{"list", &s->list},      {"trace", &s->trace},           {"cosine", &s->cosine},
                 {"auto", &s->automatic}, {"ignore-eos", &s->ignore_eos}, {"published", &s->published}};
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        if (strcmp(texts[i].key, key) == 0) {
            *texts[i].to = cli_keep(c, value);
            return true;
        }
    }
    for (size_t i = 0; i < sizeof flags / sizeof *flags; i++) {
        if (strcmp(flags[i].key, key) == 0) {
            *flags[i].to = true;
            return true;
        }
    }
    return false;
}

static tpl_code set_list(speculate_state *s, cli_context *c, const char *key, const char *value, bool *taken,
                         tpl_err *e)
{
    const struct {
        const char *key;
        cli_words *to;
    } words[] = {
        {"method", &s->methods}, {"groups", &s->groups}, {"task", &s->tasks}, {"temperature", &s->temperatures}};
    *taken = true;
    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        if (strcmp(words[i].key, key) == 0)
            return cli_set_words(c, key, value, words[i].to, e);
    if (strcmp(key, "base-variant") == 0) {
        s->has_base_variant = true;
        return variant_parse(value, &s->base_variant, e);
    }
    if (strcmp(key, "draft-variant") == 0) {
        s->has_draft_variant = true;
        return variant_parse(value, &s->draft_variant, e);
    }
    *taken = false;
    return TPL_OK;
}

static tpl_code set(void *state, cli_context *c, const char *key, const char *value, tpl_err *e)
{
    speculate_state *s = state;
    bool taken = set_text(s, c, key, value);
    if (!taken)
        TPL_TRY(set_list(s, c, key, value, &taken, e));
    if (!taken)
        TPL_TRY(set_words_of_choice(s, key, value, &taken, e));
    if (!taken)
        TPL_TRY(set_number(s, c, key, value, &taken, e));
    if (taken)
        return TPL_OK;
    if (strcmp(key, "compute") == 0)
        return cli_set_compute(key, value, &s->compute, e);
    if (strcmp(key, "kv") == 0)
        return cli_set_compute(key, value, &s->kv, e);
    if (strcmp(key, "backend") == 0)
        return cli_set_backend(c, value, &s->backend, e);
    if (strcmp(key, "ranks") == 0)
        return cli_set_ranks(value, &s->ranks, e);
    return cli_set_format(value, &s->format, e);
}

/* ---- prompts ---- */

/* Begin-of-text and the last of the text's tokens that fit. */
static tpl_code encode(const speculate_state *s, cli_context *c, lab *l, const char *text, spec_prompt *out, tpl_err *e)
{
    int32_t *ids, bos = lab_bos(l);
    int n;
    const model_config *m = model_cfg(lab_model(l));
    if (!lab_tokenizer(l))
        return tpl_fail(e, TPL_E_USAGE, "--base",
                        "is a shape without a tokenizer: its prompts are random, --prompts and --task do not apply");
    TPL_TRY(tokenizer_encode(lab_tokenizer(l), text, strlen(text), &ids, &n, e));
    int room = m->max_pos - s->max_new - SPEC_MAX_DEPTH, limit = s->prompt_tok < room ? s->prompt_tok : room,
        has_bos = bos >= 0;
    if (limit < 2) {
        free(ids);
        return tpl_fail(e, TPL_E_INPUT, m->name, "context of %d tokens leaves no room for a prompt", m->max_pos);
    }
    int keep = n < limit - has_bos ? n : limit - has_bos;
    out->tokens = arena_array(&c->mem, int32_t, keep + 1);
    out->n = keep + has_bos;
    if (has_bos)
        out->tokens[0] = bos;
    memcpy(out->tokens + has_bos, ids + n - keep, sizeof *ids * (size_t)keep);
    free(ids);
    return out->n ? TPL_OK : tpl_fail(e, TPL_E_INPUT, "prompt", "has no tokens");
}

static tpl_code read_file_prompts(const speculate_state *s, cli_context *c, lab *l, spec_prompt **out, int *n,
                                  tpl_err *e)
{
    ds_prompt *prompts;
    TPL_TRY(ds_read_prompts(&c->mem, s->prompts, s->n_prompts, &prompts, n, e));
    *out = arena_array(&c->mem, spec_prompt, *n);
    for (int i = 0; i < *n; i++)
        TPL_TRY(encode(s, c, l, prompts[i].turns[0], &(*out)[i], e));
    return TPL_OK;
}

static tpl_code read_task_prompts(const speculate_state *s, cli_context *c, lab *l, const char *task, spec_prompt **out,
                                  int *n, tpl_err *e)
{
    ds_long_item *items;
    TPL_TRY(ds_read_long(&c->mem, s->data, task, DS_FIXTURE, s->n_prompts, &items, n, e));
    *out = arena_array(&c->mem, spec_prompt, *n);
    for (int i = 0; i < *n; i++)
        TPL_TRY(encode(s, c, l, items[i].prompt, &(*out)[i], e));
    return TPL_OK;
}

/* A shape's prompts: random tokens. */
static void random_prompts(const speculate_state *s, cli_context *c, lab *l, spec_prompt **out, int *n)
{
    const model_config *m = model_cfg(lab_model(l));
    int room = m->max_pos - s->max_new - SPEC_MAX_DEPTH, len = s->prompt_tok < room ? s->prompt_tok : room;
    *n = s->n_prompts ? s->n_prompts : 1;
    *out = arena_array(&c->mem, spec_prompt, *n);
    for (int i = 0; i < *n; i++) {
        rng r = rng_make((uint64_t)s->seed, 5000 + (uint64_t)i);
        (*out)[i] = (spec_prompt){arena_array(&c->mem, int32_t, len > 1 ? len : 1), len > 1 ? len : 1};
        for (int k = 0; k < (*out)[i].n; k++)
            (*out)[i].tokens[k] = (int32_t)rng_below(&r, (uint64_t)m->vocab);
    }
}

/* ---- running ---- */

static const char shown[] = "method,tp,draft_tp=dtp,groups,width=w,depth=n,calibration=cal,parallel,temperature=T,tok_"
                            "per_s,speedup,speedup_lo=from,"
                            "speedup_hi=to,accept_frac_of_n=acc/n,accept_per_draft_tok=acc/tok,tok_per_iteration=tok/"
                            "it,draft_s_per_100_tok=draft,"
                            "calibrate_s_per_100_tok=calib,verify_s_per_100_tok=verify,idle_s_per_100_tok=idle by rank,"
                            "accept_by_position=accepted by level,draft_gain=gain over fastest,"
                            "draft_gain_one=over one,draft_gain_bound=bound,draft_bound_frac=of bound,attn_share=A,"
                            "calibrate_over_tok=cal/tok,verify_over_tok=ver/tok,n_differ=differ,task,status";

static tpl_code print_choices(const speculate_request *q, const spec_choice *choices, int n, double vanilla,
                              table_format format, tpl_err *e)
{
    table *t = table_create("Choices by trial and cost model");
    char cells[4][32];
    const char *row[5] = {NULL, cells[0], cells[1], cells[2], cells[3]};
    table_add_column(t, "groups", "groups", "", RS_TEXT);
    table_add_column(t, "width", "width", "nodes", RS_INT);
    table_add_column(t, "depth", "depth", "tokens", RS_INT);
    table_add_column(t, "expected_tok_per_s", "expected", "tokens/s", RS_REAL);
    table_add_column(t, "over_vanilla", "over vanilla", "", RS_REAL);
    for (int i = 0; i < n; i++) {
        row[0] = choices[i].groups;
        snprintf(cells[0], sizeof cells[0], "%d", choices[i].width);
        snprintf(cells[1], sizeof cells[1], "%d", choices[i].depth);
        snprintf(cells[2], sizeof cells[2], "%.6g", choices[i].tok_per_s);
        snprintf(cells[3], sizeof cells[3], "%.6g", choices[i].tok_per_s / vanilla);
        table_add_row(t, row);
    }
    tpl_code rc = table_print(t, format, stdout, e);
    table_destroy(t);
    return rc;
}

/* Replaces groups, width and depth of the request by the best ones. */
static tpl_code choose(const speculate_state *s, cli_context *c, speculate_request *q, tpl_err *e)
{
    spec_choice choices[SPEC_AUTO_MAX];
    int n;
    double vanilla;
    TPL_TRY(spec_auto_run(q, q->depth, choices, &n, &vanilla, e));
    if (n == 0)
        return tpl_fail(e, TPL_E_USAGE, "--auto", "has no candidates");
    TPL_TRY(print_choices(q, choices, n, vanilla, s->format, e));
    char **groups = arena_array(&c->mem, char *, 1);
    int64_t *width = arena_array(&c->mem, int64_t, 1);
    groups[0] = arena_strdup(&c->mem, choices[0].groups);
    width[0] = choices[0].width;
    q->groups = groups;
    q->widths = width;
    q->n_groups = q->n_widths = 1;
    q->depth = choices[0].depth;
    return TPL_OK;
}

static tpl_code run_set(const speculate_state *s, cli_context *c, speculate_request q, const char *task, run_dir *rd,
                        tpl_err *e)
{
    spec_prompt *prompts = NULL;
    q.task = task;
    if (!lab_tokenizer(q.base) && !s->prompts)
        random_prompts(s, c, q.base, &prompts, &q.n_prompts);
    else if (s->prompts)
        TPL_TRY(read_file_prompts(s, c, q.base, &prompts, &q.n_prompts, e));
    else
        TPL_TRY(read_task_prompts(s, c, q.base, task, &prompts, &q.n_prompts, e));
    q.prompts = prompts;
    if (s->automatic)
        TPL_TRY(choose(s, c, &q, e));
    if (s->list)
        return speculate_bench_list(&q, stdout, e);
    if (s->cosine)
        TPL_TRY(spec_cosine_run(&q, rd, e));
    return speculate_bench_run(&q, rd, e);
}

static tpl_code run_sets(const speculate_state *s, cli_context *c, const speculate_request *q, run_dir *rd, tpl_err *e)
{
    bool wrong = false;
    int n = s->prompts || !lab_tokenizer(q->base) ? 1 : s->tasks.n;
    for (int i = 0; i < n; i++) {
        const char *task = s->prompts ? text_base_name(s->prompts) : !lab_tokenizer(q->base) ? "random" : s->tasks.v[i];
        tpl_code rc = run_set(s, c, *q, task, rd, e);
        if (rc != TPL_OK && rc != TPL_E_MISMATCH)
            return rc;
        wrong = wrong || rc == TPL_E_MISMATCH;
    }
    return wrong ? TPL_E_MISMATCH : TPL_OK;
}

static tpl_code note_models(const speculate_state *s, const speculate_request *q, run_dir *rd, tpl_err *e)
{
    lab *labs[] = {q->base, q->draft};
    const char *names[] = {s->base, s->draft};
    for (int i = 0; i < 2; i++) {
        sha256_hex sha;
        if (!labs[i] || !lab_tokenizer(labs[i]))
            continue;
        TPL_TRY(model_sha256(lab_model(labs[i]), &sha, e));
        TPL_TRY(rd_note_file(rd, i ? "draft" : "checkpoint", names[i], sha.hex, e));
    }
    return TPL_OK;
}

/* The paper's figures, as they stand in results/published. */
static tpl_code print_published(cli_context *c, table_format format, tpl_err *e)
{
    static const char *const tables[][2] = {
        {"easyspec_table2_9.csv", "base,draft,method,temperature=T,accept_frac_of_n=acc/n,draft_s_per_100_tok=draft,"
                                  "verify_s_per_100_tok=verify,speedup,draft_gain=gain,task"},
        {"easyspec_table5.csv", "base,draft,groups,tok_per_s,accept_frac_of_n=acc/n,note"},
        {"easyspec_table4.csv", "model,variant,metric,value"}};
    for (size_t i = 0; i < sizeof tables / sizeof *tables; i++) {
        csv_table *csv;
        table *t = NULL;
        char *path = text_path_join(&c->mem, cli_home(), arena_printf(&c->mem, "results/published/%s", tables[i][0]));
        TPL_TRY(csv_table_load(path, &csv, e));
        tpl_code rc =
            table_from_csv(arena_printf(&c->mem, "Published: %s", tables[i][0]), tables[i][1], -1, csv, &t, e);
        if (rc == TPL_OK)
            rc = table_print(t, format, stdout, e);
        table_destroy(t);
        csv_table_destroy(csv);
        TPL_TRY(rc);
    }
    return TPL_OK;
}

/* The processor, or the first card. */
static tpl_code name_device(cli_context *c, speculate_request *q, tpl_err *e)
{
    if (spec_is_card(q)) {
        gpu *card;
        TPL_TRY(gpu_open(0, &card, e));
        q->device = arena_strdup(&c->mem, gpu_get_facts(card)->name);
        gpu_close(card);
        return TPL_OK;
    }
    json_t *host = host_facts();
    const char *cpu = json_string_value(json_object_get(host, "cpu"));
    q->device = cpu ? arena_strdup(&c->mem, cpu) : NULL;
    json_decref(host);
    return TPL_OK;
}

static tpl_code measure(const speculate_state *s, cli_context *c, speculate_request *q, tpl_err *e)
{
    cli_run r = {0};
    spec_replay *replay = NULL;
    TPL_TRY(name_device(c, q, e));
    if (s->replay)
        TPL_TRY(spec_replay_read(&c->mem, s->replay, &replay, e));
    q->replay = replay;
    if (s->list)
        return run_sets(s, c, q, NULL, e);
    TPL_TRY(cli_open_run(c, s->out, s->resume, "speculate", &r, e));
    /* A suite's earlier sections have been printed. */
    long before[] = {c->rd ? rd_n_rows(r.rd, RS_ACCURACY) : 0, c->rd ? rd_n_rows(r.rd, RS_SPECULATE) : 0};
    card_watches watches = {0};
    tpl_code rc = cli_watch_cards(q->backend, RANKS_LOCAL, &watches, r.rd, e);
    card_watches_close(&watches);
    if (rc == TPL_OK && s->record && !(q->record = fopen(s->record, "w")))
        rc = tpl_fail(e, TPL_E_IO, s->record, "cannot be created");
    if (rc == TPL_OK)
        rc = run_sets(s, c, q, r.rd, e);
    if (q->record && fclose(q->record) != 0 && rc == TPL_OK)
        rc = tpl_fail(e, TPL_E_IO, s->record, "cannot be written");
    if (rc == TPL_OK || rc == TPL_E_MISMATCH) {
        tpl_err other;
        bool plain = s->format == TABLE_ALIGNED || s->format == TABLE_MD;
        tpl_code then = note_models(s, q, r.rd, &other);
        if (then == TPL_OK)
            then = !s->cosine
                       ? TPL_OK
                       : cli_print_rows(r.rd, RS_ACCURACY, before[0], "Exact against fuzzy states",
                                        plain ? "model,variant,task,subset,metric,value" : NULL, s->format, &other);
        if (then == TPL_OK)
            then = cli_print_rows(r.rd, RS_SPECULATE, before[1], "Speculative decoding", plain ? shown : NULL,
                                  s->format, &other);
        if (then == TPL_OK && s->published)
            then = print_published(c, s->format, &other);
        if (rc == TPL_OK && then != TPL_OK) {
            *e = other;
            rc = then;
        }
    }
    return cli_close_run(&r, rc, e);
}

/* ---- defaults ---- */

static tpl_code parse_methods(const speculate_state *s, cli_context *c, speculate_request *q, tpl_err *e)
{
    spec_method *m = arena_array(&c->mem, spec_method, SPEC_N_METHODS > s->methods.n ? SPEC_N_METHODS : s->methods.n);
    q->n_methods = s->methods.n ? s->methods.n : SPEC_N_METHODS;
    for (int i = 0; i < q->n_methods; i++) {
        m[i] = (spec_method)i;
        if (s->methods.n)
            TPL_TRY(spec_method_find(s->methods.v[i], &m[i], e));
        if (m[i] != SPEC_VANILLA && !s->draft)
            return tpl_fail(e, TPL_E_USAGE, "--draft", "is missing, expected a model folder (or --method vanilla)");
    }
    q->methods = m;
    return TPL_OK;
}

static tpl_code parse_temperatures(const speculate_state *s, cli_context *c, speculate_request *q, tpl_err *e)
{
    double *t = arena_array(&c->mem, double, s->temperatures.n + 1);
    q->n_temperatures = s->temperatures.n ? s->temperatures.n : 1;
    for (int i = 0; i < s->temperatures.n; i++)
        TPL_TRY(set_real("temperature", s->temperatures.v[i], 0, 100, &t[i], e));
    q->temperatures = t;
    return TPL_OK;
}

static void fill_defaults(speculate_state *s, cli_context *c)
{
    static int64_t one[] = {1}, four[] = {4};
    static char *rule_4[] = {"rule:4"}, *tasks[] = {"code", "summarisation"};
    if (!s->data)
        s->data = text_path_join(&c->mem, cli_home(), "datasets/worldlet");
    if (!s->calibrate)
        s->calibrate = text_path_join(&c->mem, cli_home(), "datasets/worldlet/calibration.txt");
    s->tps = s->tps.n ? s->tps : (cli_axis){one, 1};
    s->widths = s->widths.n ? s->widths : (cli_axis){four, 1};
    s->groups = s->groups.n ? s->groups : (cli_words){rule_4, 1};
    s->tasks = s->tasks.n ? s->tasks : (cli_words){tasks, 2};
    s->draft_tp = s->draft_tp ? s->draft_tp : (int)s->tps.v[s->tps.n - 1];
}

/* What a zeroed state cannot say. */
static void fill_numbers(speculate_state *s)
{
    s->depth = s->depth ? s->depth : 5;
    s->n_prompts = s->n_prompts < 0 ? 0 : s->n_prompts ? s->n_prompts : 8;
    s->max_new = s->max_new ? s->max_new : 128;
    s->prompt_tok = s->prompt_tok ? s->prompt_tok : 512;
    s->seed = s->seed ? s->seed : 1;
}

static speculate_request request_of(const speculate_state *s, const cli_context *c, lab *base, lab *draft)
{
    const model_config *m = model_cfg(lab_model(base));
    return (speculate_request){
        .base = base,
        .draft = draft,
        .base_variant = s->has_base_variant ? &s->base_variant : NULL,
        .draft_variant = s->has_draft_variant ? &s->draft_variant : NULL,
        .tps = s->tps.v,
        .n_tps = s->tps.n,
        .draft_tp = s->draft_tp,
        .groups = s->groups.v,
        .n_groups = s->groups.n,
        .widths = s->widths.v,
        .n_widths = s->widths.n,
        .depth = s->depth,
        .calibrated = !s->calibration_off,
        .uncalibrated = s->calibration_off || s->calibration_both,
        .attention_only = !s->layers,
        .whole_layers = s->layers || s->layers_both,
        .visit = s->visit,
        .blocks = s->blocks,
        .sampling = {.children = s->topk ? CHILDREN_TOPK : CHILDREN_SAMPLED,
                     .top_p = (float)s->top_p,
                     .draft_temperature = (float)s->draft_temperature,
                     .stop_confidence = (float)s->stop_confidence,
                     .seed = (uint64_t)s->seed,
                     .assume_accept = s->assume},
        .max_new = s->max_new,
        .stop_id = s->ignore_eos || s->replay || s->assume > 0 ? -1 : m->eos_id,
        .compute = s->compute,
        .kv = s->kv,
        .backend = s->backend,
        .ranks = s->ranks,
        .no_graph = s->graph_off,
        .joins = s->joins,
        .exchange_us = s->exchange_us,
        .trace = s->trace,
        .command = c->command,
    };
}

static tpl_code choose_backend(speculate_state *s, tpl_err *e)
{
    if (!s->backend)
        s->backend = s->list ? "cpu" : cli_default_backend();
    bool card = strcmp(s->backend, "cuda") == 0;
    if (s->ranks == RANKS_NCCL && !card && !s->list)
        return tpl_fail(e, TPL_E_USAGE, "--ranks", "is nccl, expected with --backend cuda only");
    if (s->joins != JOINS_ALL && !card && !s->list)
        return tpl_fail(e, TPL_E_USAGE, "--joins", "are a card's, expected with --backend cuda only");
    if (s->exchange_us > 0 && !card && !s->list)
        return tpl_fail(e, TPL_E_USAGE, "--exchange-us", "models cards, expected with --backend cuda only");
    return TPL_OK;
}

static tpl_code run(void *state, cli_context *c, tpl_err *e)
{
    speculate_state *s = state;
    lab *base = NULL, *draft = NULL;
    speculate_request methods = {0};
    tpl_code rc;
    if (!s->base)
        return tpl_fail(e, TPL_E_USAGE, "--base", "is missing, expected a checkpoint folder or shape:NAME");
    TPL_TRY(parse_methods(s, c, &methods, e));
    TPL_TRY(parse_temperatures(s, c, &methods, e));
    TPL_TRY(choose_backend(s, e));
    fill_numbers(s);
    fill_defaults(s, c);
    lab_calibration cal = {.text = s->calibrate, .cache = true};
    TPL_GOTO(rc, lab_open(cli_find_model(c, s->base), &cal, &base, e), done);
    if (s->draft)
        TPL_GOTO(rc, lab_open(cli_find_model(c, s->draft), &cal, &draft, e), done);
    if (draft)
        TPL_GOTO(rc, spec_check_pair(base, draft, e), done);
    speculate_request q = request_of(s, c, base, draft);
    q.methods = methods.methods;
    q.n_methods = methods.n_methods;
    q.temperatures = methods.temperatures;
    q.n_temperatures = methods.n_temperatures;
    rc = measure(s, c, &q, e);
done:
    lab_close(draft);
    lab_close(base);
    return rc;
}

const cli_command cmd_speculate = {
    .name = "speculate",
    .about = "Time speculative decoding of a base and a draft model: chain, tree, and layers in parallel (EasySpec).",
    .examples =
        "  tplabench speculate --base models/worldlet-gqa --draft models/worldlet-draft --tp 1,2 --temperature 0,0.8\n"
        "  tplabench speculate --base models/worldlet-gqa --draft models/worldlet-draft --method easyspec --groups "
        "rule:1,rule:4 --width 1,4",
    .options = options,
    .state_bytes = sizeof(speculate_state),
    .in_suite = true,
    .set = set,
    .run = run,
};
