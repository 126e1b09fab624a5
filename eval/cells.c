#include "eval/cells.h"

#include <stdio.h>
#include <string.h>

const char *const *cell_metrics(ds_kind kind, ds_protocol protocol)
{
    static const char *const text[] = {"ppl", "ppl_prefill", "ppl_decode", "kl", "top1", NULL};
    static const char *const mc[] = {"acc", "acc_norm", NULL};
    static const char *const longer[] = {"score", "exact", NULL};
    static const char *const longbench[] = {"score", NULL};
    return kind == DS_TEXT ? text : kind == DS_MC ? mc : protocol == DS_LM_EVAL ? longbench : longer;
}

/* "all", or how much of the set was taken. */
static void describe_subset(const cell_key *k, char out[48])
{
    int limit = k->kind == DS_MC ? k->q->limit : k->q->long_limit;
    if (k->kind == DS_TEXT && k->q->text_rows)
        snprintf(out, 48, "first %d rows of %d tokens", k->text->n_rows, k->text->row_tok);
    else if (k->kind == DS_TEXT)
        snprintf(out, 48, "all rows of %d tokens", k->text->row_tok);
    else if (limit)
        snprintf(out, 48, "first %d", limit);
    else
        snprintf(out, 48, "all");
}

void cell_row(const cell_key *k, const char *metric, rs_row *out)
{
    const eval_request *q = k->q;
    char text[VARIANT_TEXT], subset[48];
    tpl_dtype compute = q->compute == DT_NONE ? DT_F32 : q->compute;
    variant_format(k->v, text);
    describe_subset(k, subset);
    row_init(out, RS_ACCURACY);
    row_set_text(out, ACC_model, model_cfg(lab_model(q->lab))->name);
    row_set_text(out, ACC_variant, text);
    row_set_int(out, ACC_tp, k->tp);
    row_set_text(out, ACC_compute, dtype_name(compute));
    row_set_text(out, ACC_kv_dtype, dtype_name(q->kv == DT_NONE ? compute : q->kv));
    row_set_text(out, ACC_protocol, q->protocol == DS_LM_EVAL ? "lm-eval" : "fixture");
    row_set_text(out, ACC_task, k->task);
    row_set_text(out, ACC_metric, metric);
    row_set_int(out, ACC_n_shot, 0);
    row_set_text(out, ACC_subset, subset);
    row_set_text(out, ACC_calib_sha256, k->calib_sha);
    row_set_text(out, ACC_command, q->command);
}

void cell_name(const cell_key *k, const char *metric, char id[16])
{
    rs_row row;
    cell_row(k, metric, &row);
    rs_cell_id cell = row_cell_id(&row);
    row_fini(&row);
    snprintf(id, 16, "%s", cell.hex);
}
