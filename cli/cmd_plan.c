/* cmd_plan.c - `tplabench plan`: the steps of a variant and their sums, from a configuration alone. */
#include <stdio.h>
#include <string.h>

#include "cli/options.h"

typedef struct {
    cli_words models;
    const char *out;
    cli_variants variants;
    cli_axis tps, contexts, batches;
    cli_words phases;
    tpl_dtype kv, act;
    bool steps, attention_only, expert_parallel;
    table_format format;
} plan_state;

static const cli_option options[] = {
    {"model", "LIST", "checkpoint folders or shape files such as models/shapes/deepseek-v3.json; a bare name is looked up there (required)", false},
    {"variant", "LIST", "attention variants (default: all that the model's attention runs as)", false},
    {"tp", "LIST", "tensor-parallel ranks (default 1,2)", false},
    {"phase", "LIST", "prefill, decode (default decode)", false},
    {"context", "LIST", "tokens in the cache when a step begins (default 8K)", false},
    {"batch", "LIST", "sequences (default 1)", false},
    {"kv", "TYPE", "bf16 or f32 cache (default bf16)", false},
    {"act", "TYPE", "bf16 or f32 activations, which are what collectives send (default bf16)", false},
    {"experts", "HOW", "tp: every rank holds a part of each expert; ep: whole experts (default tp)", false},
    {"moe-off", NULL, "leave the feed-forward of all layers out, as the TPLA paper's timing did", false},
    {"steps", NULL, "print every step of layer 0 and what stands outside the layers, not only sums", false},
    {"out", "DIR", "also store the rows in a run directory below DIR", true},
    {"format", "NAME", "table, csv, json, jsonl, md (default table)", false},
    {0},
};

static tpl_code set(void *state, cli_context *c, const char *key, const char *value, tpl_err *e)
{
    plan_state *s = state;
    if (strcmp(key, "model") == 0)
        return cli_set_words(c, "--model", value, &s->models, e);
    if (strcmp(key, "variant") == 0)
        return cli_set_variants(c, value, &s->variants, e);
    if (strcmp(key, "tp") == 0)
        return cli_set_axis(c, key, value, 1, 64, &s->tps, e);
    if (strcmp(key, "phase") == 0)
        return cli_set_words(c, "--phase", value, &s->phases, e);
    if (strcmp(key, "context") == 0)
        return cli_set_axis(c, key, value, 0, 1 << 24, &s->contexts, e);
    if (strcmp(key, "batch") == 0)
        return cli_set_axis(c, key, value, 1, 1 << 20, &s->batches, e);
    if (strcmp(key, "kv") == 0)
        return cli_set_compute(key, value, &s->kv, e);
    if (strcmp(key, "act") == 0)
        return cli_set_compute(key, value, &s->act, e);
    if (strcmp(key, "experts") == 0)
        return cli_set_experts(value, &s->expert_parallel, e);
    if (strcmp(key, "format") == 0)
        return cli_set_format(value, &s->format, e);
    if (strcmp(key, "out") == 0)
        s->out = cli_keep(c, value);
    else if (strcmp(key, "steps") == 0)
        s->steps = true;
    else
        s->attention_only = true;
    return TPL_OK;
}

static tpl_code find_config(cli_context *c, const char *name, model_config *out, tpl_err *e)
{
    char *home = arena_printf(&c->mem, "%s/%s", cli_home(), name);
    char *shape = arena_printf(&c->mem, "%s/models/shapes/%s.json", cli_home(), name);
    if (text_is_file(name) || text_is_dir(name))
        return model_config_read(name, out, e);
    if (text_is_file(home) || text_is_dir(home))
        return model_config_read(home, out, e);
    if (text_is_file(shape))
        return model_config_read(shape, out, e);
    return tpl_fail(e, TPL_E_INPUT, name, "neither a checkpoint folder, nor a shape file, nor a name in models/shapes");
}

/* ---- one plan ---- */

typedef struct {
    plan_state *s;
    cli_context *c;
    run_dir *rd; /* NULL: rows are printed only */
    table *t;
} plan_job;

static const char *const sum_headings[][3] = {
    {"model", "model", ""},       {"variant", "variant", ""},    {"tp", "tp", ""},           {"phase", "phase", ""},
    {"ctx_tok", "context", "tok"}, {"batch", "batch", ""},        {"kv", "cache", "B/tok/rank"}, {"weights", "weights", "GB/rank"},
    {"flops", "FLOPs", "G/tok/rank"}, {"read", "read", "MB/step"}, {"sent", "sent", "B/tok/rank"},
};

static void fill_row(const plan_job *j, const plan *p, plan_phase phase, int64_t ctx, int64_t batch, const step_cost *cost, rs_row *r)
{
    plan_types t = {.act = j->s->act, .kv = j->s->kv};
    char text[VARIANT_TEXT];
    double new_tok = (double)(phase == PHASE_PREFILL ? ctx * batch : batch);
    bool has_moe = p->cfg.n_experts > 0 && p->cfg.first_dense_layers < p->cfg.n_layers;
    variant_format(&p->v, text);
    row_init(r, RS_PLAN);
    row_set_text(r, PLAN_model, p->cfg.name);
    row_set_text(r, PLAN_variant, text);
    row_set_int(r, PLAN_tp, p->tp);
    row_set_text(r, PLAN_phase, phase_name(phase));
    row_set_real(r, PLAN_kv_bytes_per_tok_rank, plan_kv_bytes_per_tok(p, KV_MAIN, t));
    row_set_int(r, PLAN_weight_bytes_rank, plan_weight_bytes(p, phase, t));
    row_set_real(r, PLAN_flops_per_tok, cost->flops / new_tok);
    row_set_real(r, PLAN_bytes_sent_per_tok, cost->bytes_sent / new_tok);
    row_set_int(r, PLAN_ctx_tok, ctx);
    row_set_int(r, PLAN_batch, batch);
    row_set_text(r, PLAN_kv_dtype, dtype_name(t.kv));
    row_set_text(r, PLAN_weight_dtype, dtype_name(p->cfg.weight_dtype));
    row_set_text(r, PLAN_moe, !has_moe ? NULL : j->s->attention_only ? "off" : j->s->expert_parallel ? "expert ep" : "expert tp");
    if (j->s->attention_only)
        row_set_text(r, PLAN_note, "feed-forward of all layers left out");
    else if (has_moe)
        row_set_text(r, PLAN_note, "expert bytes count as many experts as the batch's rows can reach at most");
    row_set_text(r, PLAN_command, j->c->command);
    row_set_status(r, RS_OK, NULL);
}

static tpl_code add_sum(plan_job *j, const plan *p, plan_phase phase, int64_t ctx, int64_t batch, tpl_err *e)
{
    bool prefill = phase == PHASE_PREFILL;
    plan_types t = {.act = j->s->act, .kv = j->s->kv};
    batch_shape shape = batch_shape_uniform(batch, prefill ? 0 : ctx, prefill ? ctx : 1);
    step_cost cost = plan_cost(p, phase, &shape, t);
    rs_row r;
    fill_row(j, p, phase, ctx, batch, &cost, &r);
    arena *a = &j->c->mem;
    char *name = arena_alloc(a, VARIANT_TEXT);
    variant_format_short(&p->v, name);
    const char *cells[] = {row_get(&r, PLAN_model),
                           name,
                           row_get(&r, PLAN_tp),
                           row_get(&r, PLAN_phase),
                           row_get(&r, PLAN_ctx_tok),
                           row_get(&r, PLAN_batch),
                           row_get(&r, PLAN_kv_bytes_per_tok_rank),
                           arena_printf(a, "%.6g", (double)plan_weight_bytes(p, phase, t) / 1e9),
                           arena_printf(a, "%.6g", cost.flops / (double)shape.rows / 1e9),
                           arena_printf(a, "%.6g", cost.bytes_read / 1e6),
                           row_get(&r, PLAN_bytes_sent_per_tok)};
    table_add_row(j->t, cells);
    tpl_code rc = TPL_OK;
    rs_cell_id id = row_cell_id(&r);
    if (j->rd && !rd_has_cell(j->rd, RS_PLAN, id.hex))
        rc = rd_append(j->rd, &r, e);
    row_fini(&r);
    return rc;
}

static tpl_code print_steps(plan_job *j, const plan *p, plan_phase phase, int64_t ctx, int64_t batch, tpl_err *e)
{
    bool prefill = phase == PHASE_PREFILL;
    plan_types types = {.act = j->s->act, .kv = j->s->kv};
    batch_shape shape = batch_shape_uniform(batch, prefill ? 0 : ctx, prefill ? ctx : 1);
    arena *a = &j->c->mem;
    char text[VARIANT_TEXT];
    variant_format(&p->v, text);
    table *t = table_create(arena_printf(a, "%s, %s, tp=%d, rank 0, %s, context %lld, batch %lld: layer 0 of %d", p->cfg.name, text, p->tp, phase_name(phase), (long long)ctx,
                                         (long long)batch, p->cfg.n_layers));
    static const char *const heads[][2] = {{"step", ""}, {"operation", ""}, {"layer", ""}, {"read", "B"}, {"written", "B"}, {"FLOPs", ""}, {"sent", "B"}};
    for (int i = 0; i < 7; i++)
        table_add_column(t, heads[i][0], heads[i][0], heads[i][1], i < 2 ? RS_TEXT : i == 2 ? RS_INT : RS_REAL);
    for (int i = 0; i < p->list[phase].n; i++) {
        const plan_step *s = &p->list[phase].steps[i];
        if (s->layer > 0)
            continue;
        step_cost k = plan_step_cost(p, s, &shape, types);
        const char *cells[] = {s->name, s->is_comm ? comm_op_name(s->comm) : op_name(s->call.kind), s->layer < 0 ? "" : "0", arena_printf(a, "%.17g", k.bytes_read),
                               arena_printf(a, "%.17g", k.bytes_written), arena_printf(a, "%.17g", k.flops), arena_printf(a, "%.17g", k.bytes_sent)};
        table_add_row(t, cells);
    }
    tpl_code rc = table_print(t, j->s->format, stdout, e);
    table_destroy(t);
    return rc;
}

static tpl_code do_plan(plan_job *j, const plan *p, tpl_err *e)
{
    const plan_state *s = j->s;
    for (int k = 0; k < s->phases.n; k++) {
        plan_phase phase = strcmp(s->phases.v[k], "prefill") == 0 ? PHASE_PREFILL : PHASE_DECODE;
        if (strcmp(s->phases.v[k], phase_name(phase)) != 0)
            return tpl_fail(e, TPL_E_USAGE, "--phase", "is '%s', expected prefill or decode", s->phases.v[k]);
        for (int i = 0; i < s->contexts.n; i++)
            for (int b = 0; b < s->batches.n; b++)
                TPL_TRY(s->steps ? print_steps(j, p, phase, s->contexts.v[i], s->batches.v[b], e) : add_sum(j, p, phase, s->contexts.v[i], s->batches.v[b], e));
    }
    return TPL_OK;
}

static tpl_code default_variants(cli_context *c, const model_config *m, cli_variants *out, tpl_err *e)
{
    return cli_set_variants(c, m->attn == ATTN_GQA ? "gqa" : "mla,mla-dcp,gla:g=2,tpla:g=2,tpla:g=2:proj=rs,tpla:g=2:proj=rs+agq", out, e);
}

static tpl_code plan_model(plan_job *j, const char *name, tpl_err *e)
{
    model_config m;
    TPL_TRY(find_config(j->c, name, &m, e));
    cli_variants variants = j->s->variants;
    bool all = variants.n == 0;
    if (all)
        TPL_TRY(default_variants(j->c, &m, &variants, e));
    for (int v = 0; v < variants.n; v++) {
        for (int i = 0; i < j->s->tps.n; i++) {
            plan *p = NULL;
            tpl_err why;
            int tp = (int)j->s->tps.v[i];
            if (all && variant_fit(&variants.v[v], &m, tp, &why) != TPL_OK)
                continue;
            TPL_TRY(plan_create(&m, &variants.v[v], tp, 0, (plan_options){.attention_only = j->s->attention_only, .expert_parallel = j->s->expert_parallel}, &p, e));
            tpl_code rc = do_plan(j, p, e);
            plan_destroy(p);
            TPL_TRY(rc);
        }
    }
    return TPL_OK;
}

static tpl_code run(void *state, cli_context *c, tpl_err *e)
{
    plan_state *s = state;
    static int64_t tps[] = {1, 2}, context[] = {8192}, batch[] = {1};
    static char decode[] = "decode";
    static char *phases[] = {decode};
    cli_run r = {0};
    if (!s->models.n)
        return tpl_fail(e, TPL_E_USAGE, "--model", "is missing, expected a checkpoint folder or a shape such as deepseek-v3");
    s->tps = s->tps.n ? s->tps : (cli_axis){tps, 2};
    s->contexts = s->contexts.n ? s->contexts : (cli_axis){context, 1};
    s->batches = s->batches.n ? s->batches : (cli_axis){batch, 1};
    s->phases = s->phases.n ? s->phases : (cli_words){phases, 1};
    s->kv = s->kv ? s->kv : DT_BF16;
    s->act = s->act ? s->act : DT_BF16;
    if (c->rd || s->out)
        TPL_TRY(cli_open_run(c, s->out, NULL, "plan", &r, e));
    plan_job j = {s, c, r.rd, table_create("Plans, one rank")};
    for (size_t i = 0; i < sizeof sum_headings / sizeof *sum_headings; i++)
        table_add_column(j.t, sum_headings[i][0], sum_headings[i][1], sum_headings[i][2], i < 2 || i == 3 ? RS_TEXT : RS_REAL);
    tpl_code rc = TPL_OK;
    for (int i = 0; i < s->models.n && rc == TPL_OK; i++)
        rc = plan_model(&j, s->models.v[i], e);
    if (rc == TPL_OK && !s->steps)
        rc = table_print(j.t, s->format, stdout, e);
    table_destroy(j.t);
    return cli_close_run(&r, rc, e);
}

const cli_command cmd_plan = {
    .name = "plan",
    .about = "Print what one rank holds, computes and sends for a variant, without weights.",
    .examples = "  tplabench plan --model deepseek-v3,kimi-k2 --variant mla,tpla:g=2 --tp 1,2 --context 32K\n"
                "  tplabench plan --model models/worldlet-mla --variant mla-dcp --tp 2 --steps",
    .options = options,
    .state_bytes = sizeof(plan_state),
    .in_suite = true,
    .set = set,
    .run = run,
};
