#include "bench/spec_auto.h"

#include <stdlib.h>

#include "base/log.h"
#include "bench/spec_cells.h"

enum { TRIAL_PROMPTS = 4, TRIAL_TOK = 48 };

double spec_expected_tok_per_s(const spec_trial *t, int width, int depth)
{
    double tokens = 1, chain = 1;
    for (int i = 0; i < depth; i++) {
        chain *= t->keep[i];
        tokens += chain;
    }
    return tokens /
           (t->first_s + (depth - 1) * t->level_s + t->verify_one_s + depth * width * t->verify_row_s + t->rest_s);
}

int spec_best_depth(const spec_trial *t, int width, int max_depth)
{
    int best = 1;
    for (int n = 2; n <= max_depth; n++)
        if (spec_expected_tok_per_s(t, width, n) > spec_expected_tok_per_s(t, width, best))
            best = n;
    return best;
}

/* Runs a cell on the first prompts; one run beforehand warms up. */
static tpl_code try_cell(const speculate_request *q, spec_pool *pool, const spec_cell *c, spec_stats *sum, tpl_err *e)
{
    session *base, *draft;
    speculator *s;
    int32_t out[TRIAL_TOK];
    spec_options o = spec_cell_options(q, c);
    TPL_TRY(spec_pool_open_cell(pool, q, c, &base, &draft, e));
    TPL_TRY(spec_create(base, draft, &o, &s, e));
    tpl_code rc = TPL_OK;
    for (int p = -1; p < TRIAL_PROMPTS && p < q->n_prompts && rc == TPL_OK; p++) {
        const spec_prompt *prompt = &q->prompts[p < 0 ? 0 : p];
        spec_stats warm = {0};
        spec_run run = {
            .prompt = prompt->tokens, .n_prompt = prompt->n, .max_new = TRIAL_TOK, .stop_id = -1, .out = out};
        rc = spec_generate(s, &run, p < 0 ? &warm : sum, e);
    }
    spec_destroy(s);
    return rc;
}

/* The last judged level's chance stands for levels that no run reached. */
static spec_trial trial_of(const spec_stats *x, const spec_stats *vanilla, int width, int depth)
{
    double n = (double)x->n_iterations, rows = (double)x->n_drafted / n;
    spec_trial t = {.verify_one_s = vanilla->verify_s / (double)vanilla->n_iterations, .rest_s = x->other_s / n};
    double verify = x->verify_s / n, last = 0;
    t.verify_row_s = rows > 0 && verify > t.verify_one_s ? (verify - t.verify_one_s) / rows : 0;
    double passes = (double)x->n_draft_passes, others = passes - n;
    t.first_s = x->first_s / n;
    t.level_s = others > 0 ? (x->draft_s - t.first_s * n) / others : 0;
    for (int i = 0; i < depth; i++) {
        last = x->judged[i] ? (double)x->accepted[i] / (double)x->judged[i] : last;
        t.keep[i] = last;
    }
    return t;
}

static int by_rate(const void *a, const void *b)
{
    double x = ((const spec_choice *)a)->tok_per_s, y = ((const spec_choice *)b)->tok_per_s;
    return (x < y) - (x > y);
}

tpl_code spec_auto_run(const speculate_request *request, int max_depth, spec_choice choices[SPEC_AUTO_MAX], int *n,
                       double *vanilla_tok_per_s, tpl_err *e)
{
    speculate_request q = *request;
    spec_pool *pool = tpl_calloc(1, sizeof *pool);
    spec_stats vanilla = {0};
    double temperature = q.temperatures[0];
    int base_tp = (int)q.tps[q.n_tps - 1];
    spec_cell plain = {.method = SPEC_VANILLA, .base_tp = base_tp, .temperature = temperature};
    q.depth = max_depth;
    for (int i = 0; i < q.n_prompts; i++)
        pool->max_tok = q.prompts[i].n > pool->max_tok ? q.prompts[i].n : pool->max_tok;
    pool->max_tok += TRIAL_TOK + SPEC_MAX_WIDTH * max_depth;
    *n = 0;
    tpl_code rc = try_cell(&q, pool, &plain, &vanilla, e);
    *vanilla_tok_per_s = (double)vanilla.n_tok / (vanilla.verify_s + vanilla.other_s);
    for (int g = 0; g < q.n_groups && rc == TPL_OK; g++) {
        for (int w = 0; w < q.n_widths && rc == TPL_OK && *n < SPEC_AUTO_MAX; w++) {
            int width = (int)q.widths[w];
            spec_cell c = {.method = SPEC_EASYSPEC,
                           .base_tp = base_tp,
                           .draft_tp = q.draft_tp,
                           .groups = q.groups[g],
                           .width = width,
                           .temperature = temperature};
            spec_stats x = {0};
            progress_show(g * q.n_widths + w, q.n_groups * q.n_widths, "trying %s, width %d", q.groups[g], width);
            rc = try_cell(&q, pool, &c, &x, e);
            if (rc != TPL_OK)
                break;
            spec_trial t = trial_of(&x, &vanilla, width, max_depth);
            spec_choice *out = &choices[(*n)++];
            *out = (spec_choice){.groups = q.groups[g], .width = width, .depth = spec_best_depth(&t, width, max_depth)};
            out->tok_per_s = spec_expected_tok_per_s(&t, width, out->depth);
        }
    }
    progress_clear();
    qsort(choices, (size_t)*n, sizeof *choices, by_rate);
    spec_pool_close(pool);
    free(pool);
    return rc;
}
