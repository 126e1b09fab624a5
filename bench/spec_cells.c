#include "bench/spec_cells.h"

#include <string.h>

static bool has_method(const speculate_request *q, spec_method m)
{
    for (int i = 0; i < q->n_methods; i++)
        if (q->methods[i] == m)
            return true;
    return false;
}

static variant exact_or(const variant *v, lab *l)
{
    return v ? *v : variant_exact(model_cfg(lab_model(l)));
}

static bool draft_fits(const speculate_request *q, int tp)
{
    variant v = exact_or(q->draft_variant, q->draft);
    return variant_fit(&v, model_cfg(lab_model(q->draft)), tp, NULL) == TPL_OK;
}

typedef struct {
    spec_cell *at;
    int n;
} cell_list;

static void put(cell_list *l, spec_cell c)
{
    if (l->n < SPEC_MAX_CELLS)
        l->at[l->n++] = c;
}

/* Ordinary drafts of one width at every tp that fits. */
static void list_ordinary(const speculate_request *q, spec_cell c, cell_list *l)
{
    bool one_card = spec_is_card(q) && q->ranks == RANKS_LOCAL; /* ranks that share it only slow each other */
    for (c.draft_tp = 1; c.draft_tp <= (one_card ? 1 : q->draft_tp); c.draft_tp++)
        if (draft_fits(q, c.draft_tp))
            put(l, c);
}

static void list_easyspec(const speculate_request *q, spec_cell c, cell_list *l)
{
    for (int g = 0; g < q->n_groups; g++)
        for (int w = 0; w < q->n_widths; w++)
            for (int raw = 0; raw < 2; raw++)
                for (int whole = 0; whole < 2; whole++) {
                    if (!(raw ? q->uncalibrated : q->calibrated) || !(whole ? q->whole_layers : q->attention_only))
                        continue;
                    c.groups = q->groups[g];
                    c.width = (int)q->widths[w];
                    c.no_calibration = raw;
                    c.whole_layers = whole;
                    put(l, c);
                }
}

int spec_list_cells(const speculate_request *q, double temperature, spec_cell cells[SPEC_MAX_CELLS])
{
    cell_list l = {cells, 0};
    int last_tp = (int)q->tps[q->n_tps - 1];
    for (int i = 0; i < q->n_tps && has_method(q, SPEC_VANILLA); i++)
        put(&l, (spec_cell){.method = SPEC_VANILLA, .base_tp = (int)q->tps[i], .temperature = temperature});
    if (!q->draft)
        return l.n;
    if (has_method(q, SPEC_SD))
        list_ordinary(q, (spec_cell){.method = SPEC_SD, .base_tp = last_tp, .width = 1, .temperature = temperature},
                      &l);
    for (int w = 0; w < q->n_widths && has_method(q, SPEC_TREE); w++)
        if (q->widths[w] > 1)
            list_ordinary(
                q,
                (spec_cell){
                    .method = SPEC_TREE, .base_tp = last_tp, .width = (int)q->widths[w], .temperature = temperature},
                &l);
    if (has_method(q, SPEC_EASYSPEC))
        list_easyspec(
            q,
            (spec_cell){
                .method = SPEC_EASYSPEC, .base_tp = last_tp, .draft_tp = q->draft_tp, .temperature = temperature},
            &l);
    return l.n;
}

void spec_cell_name(const speculate_request *q, const spec_cell *c, char name[SPEC_CELL_NAME])
{
    bool drafts = c->method != SPEC_VANILLA;
    size_t used = (size_t)snprintf(name, SPEC_CELL_NAME, "%s", spec_method_name(c->method));
    if (c->groups)
        used += (size_t)snprintf(name + used, SPEC_CELL_NAME - used, " %.160s", c->groups);
    if (drafts)
        used += (size_t)snprintf(name + used, SPEC_CELL_NAME - used, " w%d n%d", c->width, q->depth);
    snprintf(name + used, SPEC_CELL_NAME - used, " t%g%s%s", c->temperature, c->no_calibration ? " raw" : "",
             c->whole_layers ? " layers" : "");
}

spec_options spec_cell_options(const speculate_request *q, const spec_cell *c)
{
    spec_options o = q->sampling;
    o.method = c->method;
    o.depth = q->depth;
    o.width = c->width;
    o.no_calibration = c->no_calibration;
    o.temperature = (float)c->temperature;
    return o;
}

/* ---- rows ---- */

static void set_draft_columns(const speculate_request *q, const spec_cell *c, rs_row *r)
{
    char text[VARIANT_TEXT];
    variant v = exact_or(q->draft_variant, q->draft);
    variant_format(&v, text);
    row_set_text(r, SPEC_draft, model_cfg(lab_model(q->draft))->name);
    row_set_text(r, SPEC_draft_variant, text);
    row_set_int(r, SPEC_draft_tp, c->draft_tp);
    row_set_text(r, SPEC_groups, c->groups);
    row_set_int(r, SPEC_width, c->width);
    row_set_int(r, SPEC_depth, q->depth);
    bool sampled = c->temperature > 0 && q->sampling.children == CHILDREN_SAMPLED;
    row_set_text(r, SPEC_children, sampled ? "sampled" : "top-k");
    if (q->sampling.stop_confidence > 0)
        row_set_real(r, SPEC_stop_confidence, q->sampling.stop_confidence);
    if (c->method != SPEC_EASYSPEC)
        return;
    row_set_text(r, SPEC_calibration, c->no_calibration ? "off" : "on");
    row_set_text(r, SPEC_parallel, c->whole_layers ? "layers" : "attention");
    row_set_text(r, SPEC_exact_pass, q->visit ? "visit" : "rank0");
}

bool spec_is_card(const speculate_request *q)
{
    return q->backend && strcmp(q->backend, "cuda") == 0;
}

tpl_dtype spec_compute(const speculate_request *q)
{
    return q->compute != DT_NONE ? q->compute : spec_is_card(q) ? DT_BF16 : DT_F32;
}

/* What runs where; layers, as shapes may be cut to fit. */
static void set_place(const speculate_request *q, const spec_cell *c, rs_row *r)
{
    static const char *const joins[] = {"all", "feed-forward", "off"};
    row_set_text(r, SPEC_backend, q->backend ? q->backend : "cpu");
    row_set_text(r, SPEC_ranks, ranks_name(q->ranks));
    row_set_text(r, SPEC_graph, spec_is_card(q) && !q->no_graph ? "on" : "off");
    if (spec_is_card(q))
        row_set_text(r, SPEC_joins, joins[q->joins]);
    row_set_text(r, SPEC_weights, model_is_random(lab_model(q->base)) ? "random" : "checkpoint");
    row_set_int(r, SPEC_base_layers, model_cfg(lab_model(q->base))->n_layers);
    if (c->method != SPEC_VANILLA)
        row_set_int(r, SPEC_draft_layers, model_cfg(lab_model(q->draft))->n_layers);
}

static double mean_prompt(const speculate_request *q)
{
    double sum = 0;
    for (int i = 0; i < q->n_prompts; i++)
        sum += q->prompts[i].n;
    return sum / q->n_prompts;
}

void spec_cell_row(const speculate_request *q, const spec_cell *c, rs_row *out)
{
    char text[VARIANT_TEXT], source[32] = "measured";
    variant v = exact_or(q->base_variant, q->base);
    row_init(out, RS_SPECULATE);
    variant_format(&v, text);
    row_set_text(out, SPEC_base, model_cfg(lab_model(q->base))->name);
    row_set_text(out, SPEC_base_variant, text);
    row_set_text(out, SPEC_method, c->method == SPEC_VANILLA && c->base_tp > 1 ? "tp" : spec_method_name(c->method));
    row_set_int(out, SPEC_tp, c->base_tp);
    row_set_real(out, SPEC_temperature, c->temperature);
    if (c->temperature > 0)
        row_set_real(out, SPEC_top_p, q->sampling.top_p > 0 ? q->sampling.top_p : 1);
    if (c->method != SPEC_VANILLA) {
        set_draft_columns(q, c, out);
        if (q->replay)
            snprintf(source, sizeof source, "replayed");
        else if (q->sampling.assume_accept > 0)
            snprintf(source, sizeof source, "assumed %g", q->sampling.assume_accept);
        row_set_text(out, SPEC_acceptance_source, source);
    }
    row_set_int(out, SPEC_n_prompts, q->n_prompts);
    row_set_real(out, SPEC_prompt_tok, mean_prompt(q));
    row_set_int(out, SPEC_max_new_tok, q->max_new);
    row_set_text(out, SPEC_task, q->task);
    row_set_int(out, SPEC_seed, (int64_t)q->sampling.seed);
    row_set_text(out, SPEC_compute, dtype_name(spec_compute(q)));
    set_place(q, c, out);
    row_set_text(out, SPEC_device, q->device);
    row_set_text(out, SPEC_command, q->command);
}

/* ---- models ---- */

static tpl_code open_side(spec_pool *p, const speculate_request *q, spec_side want, spec_side **out, tpl_err *e)
{
    for (int i = 0; i < p->n; i++) {
        spec_side *s = &p->sides[i];
        bool same_groups =
            (!s->groups && !want.groups) || (s->groups && want.groups && !strcmp(s->groups, want.groups));
        if (s->is_draft == want.is_draft && s->tp == want.tp && same_groups && s->whole_layers == want.whole_layers) {
            *out = s;
            return TPL_OK;
        }
    }
    lab *l = want.is_draft ? q->draft : q->base;
    variant v = exact_or(want.is_draft ? q->draft_variant : q->base_variant, l);
    team_options o = {.tp = want.tp,
                      .ranks = want.tp > 1 ? q->ranks : RANKS_LOCAL,
                      .backend = q->backend,
                      .no_graph = q->no_graph,
                      .joins = q->joins,
                      .compute = q->compute,
                      .kv = q->kv,
                      .plan.attention_only = model_attention_only(lab_model(l))};
    o.plan.fuzzy = (plan_fuzzy){.whole_layers = want.whole_layers, .blocks = q->blocks, .visit = q->visit};
    if (want.groups)
        TPL_TRY(groups_parse(want.groups, model_cfg(lab_model(l))->n_layers, &o.plan.fuzzy.groups, e));
    spec_side *s = &p->sides[p->n];
    *s = want;
    TPL_TRY(lab_run_open(l, &v, &o, &s->run, e));
    spec_options widest = {.method = SPEC_TREE, .width = 1, .depth = q->depth};
    for (int i = 0; i < q->n_widths; i++)
        widest.width = q->widths[i] > widest.width ? (int)q->widths[i] : widest.width;
    int limit = model_cfg(lab_model(l))->max_pos, tok = p->max_tok < limit ? p->max_tok : limit;
    session_options so = want.is_draft ? spec_draft_session(&widest, tok) : spec_base_session(&widest, tok);
    tpl_code rc = session_create(s->run.team, &so, &s->s, e);
    if (rc != TPL_OK) {
        lab_run_close(&s->run);
        return rc;
    }
    p->n++;
    *out = s;
    return TPL_OK;
}

tpl_code spec_pool_open_cell(spec_pool *p, const speculate_request *q, const spec_cell *c, session **base,
                             session **draft, tpl_err *e)
{
    spec_side *b, *d = NULL;
    TPL_TRY(open_side(p, q, (spec_side){.tp = c->base_tp}, &b, e));
    if (c->method != SPEC_VANILLA)
        TPL_TRY(open_side(
            p, q,
            (spec_side){.tp = c->draft_tp, .groups = c->groups, .whole_layers = c->whole_layers, .is_draft = true}, &d,
            e));
    *base = b->s;
    *draft = d ? d->s : NULL;
    return TPL_OK;
}

void spec_pool_close(spec_pool *p)
{
    for (int i = 0; i < p->n; i++) {
        session_destroy(p->sides[i].s);
        lab_run_close(&p->sides[i].run);
    }
    p->n = 0;
}
