/* cmd_info.c - `tplabench info`: what a checkpoint is, and what this build and machine can do. */
#include <stdio.h>
#include <string.h>

#include <oneapi/dnnl/dnnl.h>

#include "base/threads.h"
#include "cli/card.h"
#include "cli/options.h"

typedef struct {
    const char *model;
    bool check;
} info_state;

static const cli_option options[] = {
    {"model", "DIR", "checkpoint folder or shape file to describe", true},
    {"check", NULL, "also read every weight and fail at the first NaN or infinity", false},
    {0},
};

static tpl_code set(void *state, cli_context *c, const char *key, const char *value, tpl_err *e)
{
    info_state *s = state;
    if (!key || strcmp(key, "model") == 0)
        s->model = cli_keep(c, value);
    else
        s->check = true;
    return TPL_OK;
}

static void print_machine(void)
{
    const dnnl_version_t *v = dnnl_version();
    printf("tplabench   %s\n", TPL_VERSION);
    printf("cores       %d usable\n", threads_usable_cores());
    printf("oneDNN      %d.%d.%d\n", v->major, v->minor, v->patch);
    printf("kernels    ");
    const kernel_row *const *rows;
    int n = kernel_rows(OP_ATTN_LATENT, &rows);
    for (int i = 0; i < n; i++)
        printf(" %s%s", rows[i]->name, !rows[i]->available || rows[i]->available() ? "" : " (not on this machine)");
    printf("\n");
    cli_print_cards();
}

static void print_config(const model_config *c)
{
    printf("model       %s (%s)\n", c->name, c->architecture);
    printf("parameters  %.4g M\n", (double)model_param_count(c) / 1e6);
    printf("layers      %d, hidden %d, feed-forward %d, vocabulary %d\n", c->n_layers, c->dim, c->ffn_dim, c->vocab);
    if (c->attn == ATTN_MLA)
        printf("attention   latent: %d heads, q_lora_rank %d, kv_lora_rank %d, nope %d, rope %d, v %d\n", c->n_heads, c->q_lora_rank, c->kv_lora_rank, c->nope_dim, c->rope_dim,
               c->v_dim);
    else
        printf("attention   grouped-query: %d heads, %d key-value heads, head_dim %d\n", c->n_heads, c->n_kv_heads, c->head_dim);
    if (c->n_experts && c->first_dense_layers < c->n_layers)
        printf("experts     %d routed, %d a token, %d shared, width %d, first %d layers dense\n", c->n_experts, c->n_experts_per_tok, c->n_shared_experts, c->expert_ffn_dim,
               c->first_dense_layers);
    printf("context     %d tokens\n", c->max_pos);
    printf("weights     %s\n", dtype_name(c->weight_dtype));
}

static tpl_code describe_checkpoint(const info_state *s, tpl_err *e)
{
    model *m = NULL;
    tokenizer *t = NULL;
    sha256_hex sha;
    TPL_TRY(model_open(s->model, &m, e));
    tpl_code rc = tokenizer_open(s->model, &t, e);
    print_config(model_cfg(m));
    if (rc == TPL_OK)
        rc = model_sha256(m, &sha, e);
    if (rc == TPL_OK) {
        printf("files       %d tensors, %.4g MB\n", model_tensor_count(m), (double)model_file_bytes(m) / 1e6);
        printf("sha256      %s\n", sha.hex);
        printf("tokenizer   %d tokens\n", tokenizer_vocab(t));
    }
    if (rc == TPL_OK && s->check)
        rc = model_check_finite(m, e);
    if (rc == TPL_OK && s->check)
        printf("weights are finite\n");
    tokenizer_close(t);
    model_close(m);
    return rc;
}

static tpl_code run(void *state, cli_context *c, tpl_err *e)
{
    info_state *s = state;
    TPL_TRY(kernel_check_library(e));
    print_machine();
    if (!s->model)
        return TPL_OK;
    printf("\n");
    if (text_is_dir(s->model))
        return describe_checkpoint(s, e);
    model_config m;
    TPL_TRY(model_config_read(s->model, &m, e));
    print_config(&m);
    printf("files       none: a shape\n");
    return TPL_OK;
}

const cli_command cmd_info = {
    .name = "info",
    .about = "Describe this build and machine, and a checkpoint.",
    .examples = "  tplabench info\n  tplabench info --model models/worldlet-mla --check",
    .args = "[MODEL]",
    .options = options,
    .state_bytes = sizeof(info_state),
    .set = set,
    .run = run,
};
