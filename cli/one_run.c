#include "cli/one_run.h"

#include <stdlib.h>
#include <string.h>

tpl_code one_run_set(one_run *o, cli_context *c, const char *key, const char *value, bool *taken, tpl_err *e)
{
    *taken = true;
    if (strcmp(key, "tp") == 0)
        return cli_set_int(key, value, 1, 64, &o->tp, e);
    if (strcmp(key, "ranks") == 0)
        return cli_set_ranks(value, &o->ranks, e);
    if (strcmp(key, "experts") == 0)
        return cli_set_experts(value, &o->expert_parallel, e);
    if (strcmp(key, "compute") == 0)
        return cli_set_compute(key, value, &o->compute, e);
    if (strcmp(key, "backend") == 0)
        return cli_set_backend(c, value, &o->backend, e);
    if (strcmp(key, "kv") == 0)
        return cli_set_compute(key, value, &o->kv, e);
    if (strcmp(key, "model") == 0)
        o->model = cli_keep(c, value);
    else if (strcmp(key, "variant") == 0)
        o->variant = cli_keep(c, value);
    else if (strcmp(key, "calibrate") == 0)
        o->calibrate = cli_keep(c, value);
    else
        *taken = false;
    return TPL_OK;
}

tpl_code one_run_open(one_run *o, cli_context *c, tpl_err *e)
{
    if (!o->model)
        return tpl_fail(e, TPL_E_USAGE, "--model", "is missing, expected a checkpoint folder");
    if (!o->calibrate)
        o->calibrate = text_path_join(&c->mem, cli_home(), "datasets/worldlet/calibration.txt");
    if (!o->backend && !ranks_are_processes(o->ranks))
        o->backend = cli_default_backend();
    if (o->variant)
        TPL_TRY(variant_parse(o->variant, &o->v, e));
    lab_calibration cal = {.text = o->calibrate, .cache = true};
    TPL_TRY(lab_open(o->model, &cal, &o->lab, e));
    if (!o->variant)
        o->v = variant_exact(model_cfg(lab_model(o->lab)));
    tpl_code rc = lab_run_open(o->lab, &o->v, &(team_options){.tp = o->tp ? o->tp : 1, .ranks = o->ranks, .backend = o->backend, .compute = o->compute, .kv = o->kv, .plan = {.expert_parallel = o->expert_parallel}}, &o->run, e);
    if (rc != TPL_OK)
        one_run_close(o);
    return rc;
}

void one_run_close(one_run *o)
{
    if (o->run.team)
        lab_run_close(&o->run);
    lab_close(o->lab);
    o->lab = NULL;
}

tpl_code one_run_encode(const one_run *o, const char *text, bool bos, int32_t **ids, int *n, tpl_err *e)
{
    int32_t *plain, first = bos ? lab_bos(o->lab) : -1;
    TPL_TRY(tokenizer_encode(lab_tokenizer(o->lab), text, strlen(text), &plain, n, e));
    if (*n == 0) {
        free(plain);
        return tpl_fail(e, TPL_E_INPUT, "prompt", "is empty, expected at least one token");
    }
    int extra = first >= 0;
    *ids = tpl_malloc(sizeof **ids * (size_t)(*n + 1));
    (*ids)[0] = first;
    memcpy(*ids + extra, plain, sizeof **ids * (size_t)*n);
    *n += extra;
    free(plain);
    return TPL_OK;
}
