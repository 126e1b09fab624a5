#include "bench/spec_cosine.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"

enum { HIDDEN, QUERY, KEY, VALUE, OUTPUT, N_PARTS };

static const char *const metrics[N_PARTS] = {"cosine_hidden", "cosine_query", "cosine_key", "cosine_value",
                                             "cosine_attention_output"};

/* Which part a step leaves in its output; -1: none. The last one of a layer counts. */
static int part_of(const plan_step *s, attn_kind attn)
{
    static const struct {
        const char *name;
        int gqa, mla;
    } steps[] = {{"attn.add", HIDDEN, HIDDEN}, {"mlp.add", HIDDEN, HIDDEN}, {"attn.q_rope", QUERY, -1},
                 {"attn.q_b", -1, QUERY},      {"attn.k_rope", KEY, -1},    {"attn.v", VALUE, -1},
                 {"attn.kv_norm", -1, KEY},    {"attn.o", OUTPUT, OUTPUT}};
    for (size_t i = 0; i < sizeof steps / sizeof *steps; i++)
        if (strcmp(s->name, steps[i].name) == 0)
            return attn == ATTN_GQA ? steps[i].gqa : steps[i].mla;
    return -1;
}

/* What one pass left, by layer and part. */
typedef struct {
    attn_kind attn;
    float **at; /* [n_layers * N_PARTS] each [rows, cols] */
    int *cols;  /* [n_layers * N_PARTS] */
    int rows;
} capture;

static void on_step(void *user, int rank, const plan_step *step, const op_call *call, mat out)
{
    capture *c = user;
    int part = rank == 0 && step->layer >= 0 ? part_of(step, c->attn) : -1;
    if (part < 0)
        return;
    int i = step->layer * N_PARTS + part;
    c->at[i] = tpl_realloc(c->at[i], (size_t)(out.rows * out.cols) * sizeof(float));
    c->cols[i] = (int)out.cols;
    c->rows = (int)out.rows;
    for (int64_t r = 0; r < out.rows; r++)
        memcpy(c->at[i] + r * out.cols, (const float *)out.data + r * out.stride, (size_t)out.cols * sizeof(float));
}

static void capture_init(capture *c, const model_config *cfg)
{
    size_t n = (size_t)cfg->n_layers * N_PARTS;
    *c = (capture){.attn = cfg->attn, .at = tpl_calloc(n, sizeof *c->at), .cols = tpl_calloc(n, sizeof *c->cols)};
}

static void capture_fini(capture *c, const model_config *cfg)
{
    for (int i = 0; i < cfg->n_layers * N_PARTS; i++)
        free(c->at[i]);
    free(c->at);
    free(c->cols);
}

static double cosine_sum(const float *a, const float *b, int rows, int cols)
{
    double sum = 0;
    for (int r = 0; r < rows; r++, a += cols, b += cols) {
        double ab = 0, aa = 0, bb = 0;
        for (int i = 0; i < cols; i++) {
            ab += (double)a[i] * b[i];
            aa += (double)a[i] * a[i];
            bb += (double)b[i] * b[i];
        }
        sum += aa > 0 && bb > 0 ? ab / sqrt(aa * bb) : 0;
    }
    return sum;
}

static tpl_code run_rows(session *s, plan_phase phase, const spec_prompt *p, int n, capture *c, tpl_err *e)
{
    int seq = session_add_seq(s);
    batch_row *rows = tpl_calloc((size_t)n, sizeof *rows);
    for (int i = 0; i < n; i++)
        rows[i] = (batch_row){seq, p->tokens[i], ROW_CHAIN, i == n - 1};
    session_observe(s, (step_observer){.end = on_step, .user = c});
    tpl_code rc = session_forward(s, phase, rows, n, e);
    session_observe(s, (step_observer){0});
    session_drop_seq(s, seq);
    free(rows);
    return rc;
}

typedef struct {
    double *sum; /* [n_layers * N_PARTS] */
    int64_t n_rows;
    int n_prompts;
} cosines;

enum { MAX_ROWS = 512 };

static tpl_code measure(const speculate_request *q, session *s, const model_config *cfg, cosines *out, tpl_err *e)
{
    tpl_code rc = TPL_OK;
    for (int p = 0; p < q->n_prompts && rc == TPL_OK; p++) {
        capture exact, fuzzy;
        int limit = session_opts(s)->max_rows, n = q->prompts[p].n < limit ? q->prompts[p].n : limit;
        capture_init(&exact, cfg);
        capture_init(&fuzzy, cfg);
        progress_show(p, q->n_prompts, "cosines");
        rc = run_rows(s, PHASE_PREFILL, &q->prompts[p], n, &exact, e);
        if (rc == TPL_OK)
            rc = run_rows(s, PHASE_FUZZY, &q->prompts[p], n, &fuzzy, e);
        for (int i = 0; i < cfg->n_layers * N_PARTS && rc == TPL_OK; i++)
            if (exact.at[i] && fuzzy.at[i] && exact.cols[i] == fuzzy.cols[i])
                out->sum[i] += cosine_sum(exact.at[i], fuzzy.at[i], n, exact.cols[i]);
        out->n_rows += n;
        capture_fini(&exact, cfg);
        capture_fini(&fuzzy, cfg);
    }
    out->n_prompts = q->n_prompts;
    progress_clear();
    return rc;
}

static tpl_code write_row(const speculate_request *q, run_dir *rd, const char *groups, const char *subset, int part,
                          double value, const cosines *c, tpl_err *e)
{
    rs_row r;
    char text[GROUPS_TEXT + 16];
    tpl_dtype compute = q->compute == DT_NONE ? DT_F32 : q->compute;
    snprintf(text, sizeof text, "fuzzy:%s", groups);
    row_init(&r, RS_ACCURACY);
    row_set_text(&r, ACC_model, model_cfg(lab_model(q->draft))->name);
    row_set_text(&r, ACC_variant, text);
    row_set_text(&r, ACC_compute, dtype_name(compute));
    row_set_text(&r, ACC_task, q->task);
    row_set_text(&r, ACC_metric, metrics[part]);
    row_set_text(&r, ACC_subset, subset);
    row_set_real(&r, ACC_value, value);
    row_set_int(&r, ACC_n_items, c->n_prompts);
    row_set_text(&r, ACC_command, q->command);
    row_set_status(&r, RS_OK, NULL);
    rs_cell_id id = row_cell_id(&r);
    tpl_code rc = rd_has_cell(rd, RS_ACCURACY, id.hex) ? TPL_OK : rd_append(rd, &r, e);
    row_fini(&r);
    return rc;
}

static tpl_code write_rows(const speculate_request *q, run_dir *rd, const char *groups, const model_config *cfg,
                           const cosines *c, tpl_err *e)
{
    for (int part = 0; part < N_PARTS; part++) {
        double all = 0;
        for (int l = 0; l < cfg->n_layers; l++)
            all += c->sum[l * N_PARTS + part];
        if (part == VALUE && cfg->attn == ATTN_MLA)
            continue;
        TPL_TRY(write_row(q, rd, groups, "all", part, all / (double)(c->n_rows * cfg->n_layers), c, e));
        for (int l = 0; l < cfg->n_layers; l++) {
            char subset[24];
            snprintf(subset, sizeof subset, "layer %d", l);
            TPL_TRY(write_row(q, rd, groups, subset, part, c->sum[l * N_PARTS + part] / (double)c->n_rows, c, e));
        }
    }
    return TPL_OK;
}

static tpl_code run_groups(const speculate_request *q, run_dir *rd, const char *groups, tpl_err *e)
{
    const model_config *cfg = model_cfg(lab_model(q->draft));
    variant v = q->draft_variant ? *q->draft_variant : variant_exact(cfg);
    team_options o = {.tp = 1, .compute = q->compute, .kv = q->kv};
    lab_run run = {0};
    session *s = NULL;
    cosines c = {.sum = tpl_calloc((size_t)cfg->n_layers * N_PARTS, sizeof(double))};
    session_options so = {.max_seqs = 1, .max_tok = MAX_ROWS, .max_rows = MAX_ROWS, .max_logits = 1};
    so.max_tok = so.max_rows = MAX_ROWS < cfg->max_pos ? MAX_ROWS : cfg->max_pos;
    tpl_code rc;
    TPL_GOTO(rc, groups_parse(groups, cfg->n_layers, &o.plan.fuzzy.groups, e), done);
    TPL_GOTO(rc, lab_run_open(q->draft, &v, &o, &run, e), done);
    TPL_GOTO(rc, session_create(run.team, &so, &s, e), done);
    TPL_GOTO(rc, measure(q, s, cfg, &c, e), done);
    rc = write_rows(q, rd, groups, cfg, &c, e);
done:
    session_destroy(s);
    lab_run_close(&run);
    free(c.sum);
    return rc;
}

tpl_code spec_cosine_run(const speculate_request *q, run_dir *rd, tpl_err *e)
{
    for (int g = 0; g < q->n_groups; g++)
        TPL_TRY(run_groups(q, rd, q->groups[g], e));
    return TPL_OK;
}
