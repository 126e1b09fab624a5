#include "eval/baseline.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "eval/stats.h"
#include "eval/text_task.h"
#include "results/csv_table.h"

void baseline_open(baseline *b, run_dir *rd, int tp)
{
    *b = (baseline){.rd = rd, .tp = tp};
}

void baseline_close(baseline *b)
{
    for (int i = 0; i < b->n_kept; i++)
        free(b->kept[i].scores);
    if (b->logits_open)
        logit_store_close(&b->logits);
    *b = (baseline){0};
}

void baseline_keep(baseline *b, const cell_key *k, const metric_values *m)
{
    if (b->n_kept == BASELINE_MAX)
        return;
    baseline_scores *s = &b->kept[b->n_kept++];
    *s = (baseline_scores){.scores = tpl_malloc(sizeof(double) * (size_t)m->n), .n = m->n};
    memcpy(s->scores, m->scores, sizeof(double) * (size_t)m->n);
    snprintf(s->task, sizeof s->task, "%s", k->task);
    snprintf(s->metric, sizeof s->metric, "%s", m->metric);
    cell_name(k, m->metric, s->cell);
}

/* Scores of a baseline that an earlier session measured, from its items file: column named as the metric. */
static const baseline_scores *read_back(baseline *b, const cell_key *k, const char *metric)
{
    char items[16], path[600], first[8];
    const eval_request *q = k->q;
    snprintf(first, sizeof first, "%s", cell_metrics(k->kind, q->protocol)[0]);
    cell_name(k, first, items);
    if (!rd_has_items(b->rd, items))
        return NULL;
    snprintf(path, sizeof path, "%s/items/%s.csv", rd_path(b->rd), items);
    csv_table *t = NULL;
    if (csv_table_load(path, &t, NULL) != TPL_OK)
        return NULL;
    int column = csv_table_find(t, metric), n = (int)csv_table_n_rows(t);
    double *scores = column >= 0 ? tpl_malloc(sizeof *scores * (size_t)(n + 1)) : NULL;
    for (int i = 0; scores && i < n; i++)
        scores[i] = strtod(csv_table_cell(t, i, column), NULL);
    csv_table_destroy(t);
    if (!scores)
        return NULL;
    baseline_keep(b, k, &(metric_values){.metric = metric, .n = n, .scores = scores});
    free(scores);
    return b->n_kept ? &b->kept[b->n_kept - 1] : NULL;
}

static const baseline_scores *find(baseline *b, const cell_key *k, const char *metric)
{
    for (int i = 0; i < b->n_kept; i++)
        if (strcmp(b->kept[i].task, k->task) == 0 && strcmp(b->kept[i].metric, metric) == 0)
            return &b->kept[i];
    variant exact = variant_exact(model_cfg(lab_model(k->q->lab)));
    cell_key base = *k;
    base.v = &exact;
    base.calib_sha = NULL;
    base.is_baseline = true;
    return read_back(b, &base, metric);
}

void baseline_compare(baseline *b, const cell_key *k, const metric_values *m, rs_row *row)
{
    const baseline_scores *s = find(b, k, m->metric);
    if (!s || s->n != m->n)
        return;
    stat_paired p = stat_pair(s->scores, m->scores, (size_t)m->n);
    row_set_text(row, ACC_baseline_cell, s->cell);
    row_set_real(row, ACC_diff, p.mean_diff);
    if (isfinite(p.diff_lo)) {
        row_set_real(row, ACC_diff_lo, p.diff_lo);
        row_set_real(row, ACC_diff_hi, p.diff_hi);
    }
    row_set_int(row, ACC_won, p.n_won);
    row_set_int(row, ACC_lost, p.n_lost);
    row_set_real(row, ACC_mcnemar_p, p.p);
}

tpl_code baseline_logits(baseline *b, lab *l, const variant *exact, const cell_key *k, const text_rows *rows, bool fill, tpl_err *e)
{
    lab_run run;
    text_result r;
    if (!b->logits_open) {
        TPL_TRY(logit_store_open(&b->logits, model_cfg(lab_model(l))->vocab, e));
        b->logits_open = true;
    }
    if (fill || b->logits_ready)
        return TPL_OK;
    TPL_TRY(lab_run_open(l, exact, &(team_options){.tp = k->tp, .ranks = k->q->ranks, .compute = k->q->compute, .kv = k->q->kv}, &run, e));
    tpl_code rc = text_task_run(&run, rows, &b->logits, true, &r, e);
    lab_run_close(&run);
    if (rc != TPL_OK)
        return rc;
    text_result_free(&r);
    b->logits_ready = true;
    return TPL_OK;
}
