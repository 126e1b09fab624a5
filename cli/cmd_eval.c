/* cmd_eval.c - `tplabench eval`: what variants cost in accuracy on a checkpoint. */
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/threads.h"
#include "bench/ceilings.h"
#include "bench/product_rate.h"
#include "cli/accuracy_table.h"
#include "cli/options.h"
#include "eval/harness.h"

typedef struct {
    const char *model, *data, *heldout, *calibrate, *out, *resume;
    cli_variants variants;
    cli_axis tps;
    cli_words tasks;
    ds_protocol protocol;
    int limit, long_limit, text_rows, row_tok, calib_rows;
    tpl_dtype compute, kv;
    ranks_kind ranks;
    bool list, no_cache, scoring_report;
    ceilings ceil; /* measured where scoring_report */
    table_format format;
} eval_state;

enum { FIXTURE_TEXT_ROWS = 24 };

static const cli_option options[] = {
    {"model", "DIR", "checkpoint folder (required)", true},
    {"protocol", "NAME", "fixture, or lm-eval (long tasks then follow LongBench) (default fixture)", false},
    {"data", "DIR", "folder with <task>.jsonl files (default: the bundled worldlet sets)", true},
    {"heldout", "FILE", "held-out text for task text (default: DATA/heldout.txt)", true},
    {"calibrate", "FILE", "calibration text for u=pca, u=mix, mu=fit (default: the bundled text)", true},
    {"variant", "LIST", "attention variants, e.g. mla,tpla:g=2:u=pca (default mla or gqa, as the model is)", false},
    {"tp", "LIST", "tensor-parallel ranks (default 1)", false},
    {"ranks", "KIND", "local: threads; procs: processes; mpi: processes under mpirun (default local)", false},
    {"task", "LIST", "arc, piqa, hellaswag, winogrande, openbookqa, single_doc_qa, multi_hop_qa, summarisation, few_shot, synthetic, code, text (default all)", false},
    {"limit", "N", "items a multiple-choice set, 0: all (default 0)", false},
    {"long-limit", "N", "items a long set, 0: all (default: as limit)", false},
    {"text-rows", "N", "rows of held-out text, 0: all (default 24 under protocol fixture, else all)", false},
    {"row-tok", "N", "tokens a row of text (default 2048)", false},
    {"calib-rows", "N", "rows of calibration text (default 48)", false},
    {"compute", "TYPE", "f32 or bf16 inputs to matrix products (default f32)", false},
    {"kv", "TYPE", "f32 or bf16 cache (default as compute)", false},
    {"no-cache", NULL, "neither read nor write the transform cache", false},
    {"scoring-report", NULL, "say for each choice set what sharing and batching gained, against the matrix products' ceiling", false},
    {"out", "DIR", "folder that holds run directories (default runs)", true},
    {"resume", "DIR", "go on with an earlier run", true},
    {"list", NULL, "print the cells that would be measured, measure nothing", false},
    {"format", "NAME", "of what is printed: table, csv, json, jsonl, md (default table)", false},
    {0},
};

static tpl_code set_protocol(const char *value, ds_protocol *out, tpl_err *e)
{
    if (strcmp(value, "fixture") == 0)
        *out = DS_FIXTURE;
    else if (strcmp(value, "lm-eval") == 0)
        *out = DS_LM_EVAL;
    else
        return tpl_fail(e, TPL_E_USAGE, "--protocol", "is '%s', expected fixture or lm-eval", value);
    return TPL_OK;
}

static tpl_code set_number(eval_state *s, const char *key, const char *value, tpl_err *e)
{
    if (strcmp(key, "limit") == 0)
        return cli_set_int(key, value, 0, 1 << 30, &s->limit, e);
    if (strcmp(key, "long-limit") == 0) {
        TPL_TRY(cli_set_int(key, value, 0, 1 << 30, &s->long_limit, e));
        s->long_limit = s->long_limit ? s->long_limit : -1;
        return TPL_OK;
    }
    if (strcmp(key, "text-rows") == 0) {
        TPL_TRY(cli_set_int(key, value, 0, 1 << 30, &s->text_rows, e));
        s->text_rows = s->text_rows ? s->text_rows : -1;
        return TPL_OK;
    }
    if (strcmp(key, "row-tok") == 0)
        return cli_set_int(key, value, 16, 1 << 20, &s->row_tok, e);
    return cli_set_int(key, value, 1, 1 << 20, &s->calib_rows, e);
}

static tpl_code set(void *state, cli_context *c, const char *key, const char *value, tpl_err *e)
{
    eval_state *s = state;
    const struct {
        const char *key;
        const char **to;
    } paths[] = {{"model", &s->model}, {"data", &s->data}, {"heldout", &s->heldout}, {"calibrate", &s->calibrate}, {"out", &s->out}, {"resume", &s->resume}};
    for (size_t i = 0; i < sizeof paths / sizeof *paths; i++) {
        if (strcmp(paths[i].key, key) == 0) {
            *paths[i].to = cli_keep(c, value);
            return TPL_OK;
        }
    }
    if (strcmp(key, "protocol") == 0)
        return set_protocol(value, &s->protocol, e);
    if (strcmp(key, "variant") == 0)
        return cli_set_variants(c, value, &s->variants, e);
    if (strcmp(key, "tp") == 0)
        return cli_set_axis(c, key, value, 1, 64, &s->tps, e);
    if (strcmp(key, "task") == 0)
        return cli_set_words(c, key, value, &s->tasks, e);
    if (strcmp(key, "ranks") == 0)
        return cli_set_ranks(value, &s->ranks, e);
    if (strcmp(key, "compute") == 0)
        return cli_set_compute(key, value, &s->compute, e);
    if (strcmp(key, "kv") == 0)
        return cli_set_compute(key, value, &s->kv, e);
    if (strcmp(key, "format") == 0)
        return cli_set_format(value, &s->format, e);
    if (strcmp(key, "list") == 0 || strcmp(key, "no-cache") == 0) {
        *(strcmp(key, "list") == 0 ? &s->list : &s->no_cache) = true;
        return TPL_OK;
    }
    if (strcmp(key, "scoring-report") == 0) {
        s->scoring_report = true;
        return TPL_OK;
    }
    return set_number(s, key, value, e);
}

static void all_tasks(cli_context *c, cli_words *out)
{
    out->n = ds_n_tasks();
    out->v = arena_array(&c->mem, char *, out->n);
    for (int i = 0; i < out->n; i++)
        out->v[i] = arena_strdup(&c->mem, ds_task_at(i)->name);
}

static void fill_defaults(eval_state *s, cli_context *c)
{
    static int64_t one[] = {1};
    if (!s->data)
        s->data = text_path_join(&c->mem, cli_home(), "datasets/worldlet");
    if (!s->heldout)
        s->heldout = text_path_join(&c->mem, s->data, "heldout.txt");
    if (!s->calibrate)
        s->calibrate = text_path_join(&c->mem, cli_home(), "datasets/worldlet/calibration.txt");
    if (!s->tps.n)
        s->tps = (cli_axis){one, 1};
    if (!s->tasks.n)
        all_tasks(c, &s->tasks);
    if (s->text_rows == 0)
        s->text_rows = s->protocol == DS_FIXTURE ? FIXTURE_TEXT_ROWS : 0;
    s->text_rows = s->text_rows < 0 ? 0 : s->text_rows;
    s->long_limit = s->long_limit == 0 ? s->limit : s->long_limit < 0 ? 0 : s->long_limit;
}

static eval_request request_of(const eval_state *s, lab *l, const cli_context *c)
{
    return (eval_request){.lab = l, .variants = s->variants.v, .n_variants = s->variants.n, .tps = s->tps.v, .n_tps = s->tps.n, .tasks = s->tasks.v,
                          .n_tasks = s->tasks.n, .protocol = s->protocol, .data_dir = s->data, .heldout = s->heldout, .limit = s->limit,
                          .long_limit = s->long_limit, .text_rows = s->text_rows, .row_tok = s->row_tok, .compute = s->compute, .kv = s->kv, .ranks = s->ranks, .command = c->command};
}

/* Ranks for the calibration passes: as many as cores, as far as the heads divide. */
static int calibration_ranks(const char *dir)
{
    model_config c;
    if (model_config_read(dir, &c, NULL) != TPL_OK)
        return 1;
    int n = threads_usable_cores();
    while (n > 1 && (c.n_heads % n || c.ffn_dim % n || c.attn != ATTN_MLA))
        n--;
    return n;
}

static tpl_code note_files(const eval_state *s, lab *l, run_dir *rd, tpl_err *e)
{
    sha256_hex sha;
    TPL_TRY(model_sha256(lab_model(l), &sha, e));
    TPL_TRY(rd_note_file(rd, "checkpoint", s->model, sha.hex, e));
    const calibration *cal = lab_calibrated(l);
    if (cal)
        TPL_TRY(rd_note_file(rd, "calibration", s->calibrate, cal->text_sha.hex, e));
    if (cal && *cal->path)
        TPL_TRY(rd_note_file(rd, "transform-cache", cal->path, cal->key.hex, e));
    return TPL_OK;
}

static tpl_code note_data(const eval_state *s, cli_context *c, run_dir *rd, tpl_err *e)
{
    sha256_hex sha;
    for (int t = 0; t < s->tasks.n; t++) {
        bool text = strcmp(s->tasks.v[t], "text") == 0;
        const char *path = text ? s->heldout : text_path_join(&c->mem, s->data, arena_printf(&c->mem, "%s.jsonl", s->tasks.v[t]));
        TPL_TRY(sha256_file(path, &sha, e));
        TPL_TRY(rd_note_file(rd, "dataset", path, sha.hex, e));
    }
    return TPL_OK;
}

static tpl_code say_scoring(void *user, const scoring_work *w, tpl_err *e)
{
    const eval_state *s = user;
    ceil_kind kind = s->compute == DT_BF16 ? CEIL_BF16 : CEIL_F32;
    int cores = threads_usable_cores(), threads = w->threads < cores ? w->threads : cores;
    product_shape shapes[SCORING_SHAPES];
    char line[SCORING_LINE], split[SCORING_LINE];
    scoring_ceiling c = {.matrix = ceilings_rate(&s->ceil, kind, threads), .name = ceil_name(kind)};
    for (int i = 0; i < w->n_products; i++)
        shapes[i] = (product_shape){w->products[i].rows, w->products[i].n, w->products[i].k, w->products[i].times};
    TPL_TRY(product_rate(shapes, w->n_products, s->compute, threads, &c.shapes, e));
    scoring_format(w, &c, line, split);
    log_note("%s", line);
    log_note("%s", split);
    return TPL_OK;
}

static tpl_code measure(eval_state *s, lab *l, cli_context *c, tpl_err *e)
{
    cli_run r = {0};
    eval_request q = request_of(s, l, c);
    if (s->scoring_report) {
        TPL_TRY(ceilings_open(&(ceilings_options){0}, &s->ceil, e));
        q.report = say_scoring;
        q.report_user = s;
    }
    TPL_TRY(eval_check(&q, e)); /* so that no empty run is left behind */
    TPL_TRY(cli_open_run(c, s->out, s->resume, "eval", &r, e));
    tpl_code rc = note_data(s, c, r.rd, e);
    if (rc == TPL_OK)
        rc = eval_run(&q, r.rd, e);
    if (rc == TPL_OK)
        rc = note_files(s, l, r.rd, e);
    if (rc == TPL_OK)
        rc = accuracy_table_print(r.rd, model_cfg(lab_model(l))->name, s->format, stdout, e);
    return cli_close_run(&r, rc, e);
}

static tpl_code run(void *state, cli_context *c, tpl_err *e)
{
    eval_state *s = state;
    lab *l = NULL;
    if (!s->model)
        return tpl_fail(e, TPL_E_USAGE, "--model", "is missing, expected a checkpoint folder");
    fill_defaults(s, c);
    lab_calibration cal = {.text = s->calibrate, .rows = s->calib_rows, .cache = !s->no_cache, .tp = calibration_ranks(s->model)};
    TPL_TRY(lab_open(s->model, &cal, &l, e));
    variant own = variant_exact(model_cfg(lab_model(l)));
    if (!s->variants.n)
        s->variants = (cli_variants){&own, 1};
    tpl_code rc;
    if (s->list) {
        eval_request q = request_of(s, l, c);
        rc = eval_list(&q, c->rd, stdout, e);
    } else {
        rc = measure(s, l, c, e);
    }
    lab_close(l);
    return rc;
}

const cli_command cmd_eval = {
    .name = "eval",
    .about = "Measure what attention variants cost in accuracy: perplexity, KL, multiple choice, long tasks.",
    .examples = "  tplabench eval --model models/worldlet-mla --variant mla,tpla:g=2 --tp 2 --task text,arc --limit 50\n"
                "  tplabench eval --model models/worldlet-gqa --protocol lm-eval --task piqa --format csv",
    .options = options,
    .state_bytes = sizeof(eval_state),
    .in_suite = true,
    .set = set,
    .run = run,
};
