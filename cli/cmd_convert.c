/* cmd_convert.c - `tplabench convert`: a checkpoint with a variant's basis folded in, for any engine to load. */
#include <stdio.h>
#include <string.h>

#include "base/log.h"
#include "cli/options.h"
#include "engine/convert.h"

/* What a round trip may cost: f32, of the logits' deviation; bf16, in nats. */
static const double MAX_F32_DIFF = 1e-4, MAX_BF16_KL = 1e-5;

enum { CHECK_ROWS = 4, CHECK_ROW_TOK = 2048 };

typedef struct {
    const char *model, *variant, *calibrate, *check, *out;
    tpl_dtype dtype;
    int check_rows;
    bool no_check;
} convert_state;

static const cli_option options[] = {
    {"model", "DIR", "checkpoint folder with latent attention (required)", true},
    {"variant", "NAME", "whose basis is folded in, such as tpla:g=2:u=pca (required)", false},
    {"out", "DIR", "new folder for the result (required)", true},
    {"dtype", "TYPE", "f32 or bf16 weights in the result (default bf16)", false},
    {"calibrate", "FILE", "calibration text for u=pca, u=mix, mu=fit (default: the bundled text)", true},
    {"check", "FILE",
     "text on which the result is compared with the original as plain MLA (default: the bundled held-out text)", true},
    {"check-rows", "N", "rows of up to 2048 tokens of it (default 4)", false},
    {"no-check", NULL, "do not compare", false},
    {0},
};

static tpl_code set(void *state, cli_context *c, const char *key, const char *value, tpl_err *e)
{
    convert_state *s = state;
    const struct {
        const char *key, **to;
    } texts[] = {{"model", &s->model},
                 {"variant", &s->variant},
                 {"calibrate", &s->calibrate},
                 {"check", &s->check},
                 {"out", &s->out}};
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++)
        if (strcmp(key, texts[i].key) == 0) {
            *texts[i].to = cli_keep(c, value);
            return TPL_OK;
        }
    if (strcmp(key, "dtype") == 0)
        return cli_set_compute(key, value, &s->dtype, e);
    if (strcmp(key, "check-rows") == 0)
        return cli_set_int(key, value, 1, 1 << 20, &s->check_rows, e);
    s->no_check = true;
    return TPL_OK;
}

static tpl_code need_options(convert_state *s, cli_context *c, variant *v, tpl_err *e)
{
    if (!s->model || !s->variant || !s->out)
        return tpl_fail(e, TPL_E_USAGE, !s->model ? "--model" : !s->variant ? "--variant" : "--out", "is missing");
    TPL_TRY(variant_parse(s->variant, v, e));
    if (!variant_needs_transform(v))
        return tpl_fail(e, TPL_E_USAGE, "--variant",
                        "is '%s', which has no basis to fold in, expected tpla:... or gla:...", s->variant);
    s->dtype = s->dtype ? s->dtype : DT_BF16;
    s->calibrate =
        s->calibrate ? s->calibrate : text_path_join(&c->mem, cli_home(), "datasets/worldlet/calibration.txt");
    s->check = s->check ? s->check : text_path_join(&c->mem, cli_home(), "datasets/worldlet/heldout.txt");
    return TPL_OK;
}

/* Prints the comparison and fails where it shows more than rounding. */
static tpl_code judge(const convert_state *s, const convert_difference *d, tpl_err *e)
{
    double part = d->max_diff / d->deviation;
    printf("check_tok,max_logit_diff,max_diff_of_deviation,kl_nats,same_top1_frac\n%lld,%.6g,%.6g,%.6g,%.6g\n",
           (long long)d->n_tok, d->max_diff, part, d->kl_nats, d->same_top1);
    if (s->dtype == DT_F32 && !(part <= MAX_F32_DIFF))
        return tpl_fail(e, TPL_E_MISMATCH, s->out, "logits differ by %.3g of their deviation, expected at most %g",
                        part, MAX_F32_DIFF);
    if (s->dtype == DT_BF16 && !(d->kl_nats <= MAX_BF16_KL))
        return tpl_fail(e, TPL_E_MISMATCH, s->out, "KL divergence is %.3g nats, expected at most %g", d->kl_nats,
                        MAX_BF16_KL);
    return TPL_OK;
}

static tpl_code check(const convert_state *s, lab *l, tpl_err *e)
{
    model *converted = NULL;
    text_rows rows = {0};
    convert_difference d;
    tpl_code rc;
    int max_pos = model_cfg(lab_model(l))->max_pos, row_tok = max_pos < CHECK_ROW_TOK ? max_pos : CHECK_ROW_TOK;
    TPL_GOTO(rc,
             text_rows_read(s->check, lab_tokenizer(l), lab_bos(l), s->check_rows ? s->check_rows : CHECK_ROWS, row_tok,
                            &rows, e),
             done);
    TPL_GOTO(rc, model_open(s->out, &converted, e), done);
    TPL_GOTO(rc, convert_compare(lab_model(l), converted, &rows, &d, e), done);
    rc = judge(s, &d, e);
done:
    model_close(converted);
    text_rows_free(&rows);
    return rc;
}

static tpl_code run(void *state, cli_context *c, tpl_err *e)
{
    convert_state *s = state;
    variant v;
    lab *l = NULL;
    lab_run r = {0};
    convert_report report;
    tpl_code rc;
    TPL_TRY(need_options(s, c, &v, e));
    TPL_TRY(lab_open(s->model, &(lab_calibration){.text = s->calibrate, .cache = true}, &l, e));
    TPL_GOTO(rc, lab_run_open(l, &v, &(team_options){.tp = 1, .compute = DT_F32}, &r, e), done);
    convert_options o = {.out = s->out, .dtype = s->dtype, .calib = lab_calibrated(l)};
    TPL_GOTO(rc, convert_write(lab_model(l), r.transform, r.folded, &o, &report, e), done);
    log_note("%s: %d tensors, %.3f GB in %d file%s", s->out, report.n_tensors, (double)report.bytes / 1e9,
             report.n_files, report.n_files == 1 ? "" : "s");
    if (!s->no_check)
        rc = check(s, l, e);
done:
    if (r.team)
        lab_run_close(&r);
    lab_close(l);
    return rc;
}

const cli_command cmd_convert = {
    .name = "convert",
    .about = "Write a checkpoint with gamma and a variant's basis folded in, and tpla.json beside it.",
    .examples =
        "  tplabench convert --model models/worldlet-mla --variant tpla:g=2:u=pca --out /tmp/worldlet-tpla\n"
        "  tplabench convert --model models/worldlet-mla --variant tpla:g=4:u=hadamard --dtype f32 --out /tmp/w",
    .options = options,
    .state_bytes = sizeof(convert_state),
    .set = set,
    .run = run,
};
