/* cmd_logits.c - `tplabench logits`: what people need to check one engine against another. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/one_run.h"
#include "engine/generate.h"

typedef struct {
    one_run one;
    const char *prompt, *out;
    cli_axis tokens;
    int top, decode;
    bool bos;
} logits_state;

static const cli_option options[] = {
    ONE_RUN_OPTIONS,
    {"tokens", "LIST", "comma list of token ids", false},
    {"prompt", "TEXT", "text to encode instead", false},
    {"bos", NULL, "put the begin-of-text token before the prompt", false},
    {"decode", "N", "feed the last N tokens one by one through the decode steps (default 0: all are prefilled)", false},
    {"top", "K", "likeliest tokens to print after the last position (default 10)", false},
    {"out", "FILE", "write every position,token_id,logit in full precision as CSV instead", true},
    {0},
};

static tpl_code set(void *state, cli_context *c, const char *key, const char *value, tpl_err *e)
{
    logits_state *s = state;
    bool taken;
    TPL_TRY(one_run_set(&s->one, c, key, value, &taken, e));
    if (taken)
        return TPL_OK;
    if (strcmp(key, "tokens") == 0)
        return cli_set_axis(c, key, value, 0, 1 << 24, &s->tokens, e);
    if (strcmp(key, "decode") == 0)
        return cli_set_int(key, value, 0, 1 << 24, &s->decode, e);
    if (strcmp(key, "top") == 0)
        return cli_set_int(key, value, 1, 1 << 24, &s->top, e);
    if (strcmp(key, "prompt") == 0)
        s->prompt = cli_keep(c, value);
    else if (strcmp(key, "out") == 0)
        s->out = cli_keep(c, value);
    else
        s->bos = true;
    return TPL_OK;
}

static tpl_code get_tokens(const logits_state *s, int32_t **ids, int *n, tpl_err *e)
{
    if (s->prompt && s->tokens.n)
        return tpl_fail(e, TPL_E_USAGE, "--tokens", "and --prompt are both given, expected one of them");
    if (s->prompt)
        return one_run_encode(&s->one, s->prompt, s->bos, ids, n, e);
    if (!s->tokens.n)
        return tpl_fail(e, TPL_E_USAGE, "--tokens", "is missing, expected ids such as 1,2,3, or --prompt TEXT");
    *n = s->tokens.n;
    *ids = tpl_malloc(sizeof **ids * (size_t)*n);
    for (int i = 0; i < *n; i++)
        (*ids)[i] = (int32_t)s->tokens.v[i];
    return TPL_OK;
}

static void print_top(const logits_state *s, const float *logits)
{
    const tokenizer *t = lab_tokenizer(s->one.lab);
    int vocab = model_cfg(lab_model(s->one.lab))->vocab, top = s->top ? s->top : 10;
    char *used = tpl_calloc((size_t)vocab, 1);
    printf("token_id,logit,token\n");
    for (int k = 0; k < top && k < vocab; k++) {
        int best = -1;
        for (int i = 0; i < vocab; i++)
            if (!used[i] && (best < 0 || logits[i] > logits[best]))
                best = i;
        used[best] = 1;
        const char *piece = tokenizer_token_text(t, best);
        printf("%d,%.9g,%s\n", best, logits[best], piece ? piece : "");
    }
    free(used);
}

static tpl_code write_row(FILE *f, int pos, const float *logits, int vocab, const char *path, tpl_err *e)
{
    for (int i = 0; i < vocab; i++)
        if (fprintf(f, "%d,%d,%.9g\n", pos, i, logits[i]) < 0)
            return tpl_fail(e, TPL_E_IO, path, "cannot be written (disk full?)");
    return TPL_OK;
}

/* Feeds the tokens in chunks, writing every position's logits if there is a file. */
static tpl_code run_tokens(logits_state *s, session *ses, const int32_t *ids, int n, FILE *f, tpl_err *e)
{
    int vocab = model_cfg(lab_model(s->one.lab))->vocab, chunk = session_opts(ses)->max_rows, seq = session_add_seq(ses);
    batch_row *rows = tpl_malloc(sizeof *rows * (size_t)chunk);
    tpl_code rc = TPL_OK;
    if (f)
        fputs("position,token_id,logit\n", f);
    for (int at = 0, len; at < n && rc == TPL_OK; at += len) {
        bool decode = at >= n - s->decode;
        int left = decode ? 1 : n - s->decode - at;
        len = left < chunk ? left : chunk;
        for (int i = 0; i < len; i++)
            rows[i] = (batch_row){seq, ids[at + i], ROW_CHAIN, f || at + i == n - 1};
        rc = session_forward(ses, decode ? PHASE_DECODE : PHASE_PREFILL, rows, len, e);
        for (int i = 0; f && i < len && rc == TPL_OK; i++)
            rc = write_row(f, at + i, session_logits(ses, i), vocab, s->out, e);
    }
    free(rows);
    return rc;
}

static tpl_code compute(logits_state *s, const int32_t *ids, int n, tpl_err *e)
{
    session *ses = NULL;
    FILE *f = NULL;
    int chunk = n < 128 ? n : 128;
    session_options o = {.max_seqs = 1, .max_tok = n, .max_rows = chunk, .max_logits = chunk};
    TPL_TRY(session_create(s->one.run.team, &o, &ses, e));
    tpl_code rc = TPL_OK;
    if (s->out && !(f = fopen(s->out, "w")))
        rc = tpl_fail(e, TPL_E_IO, s->out, "cannot be created");
    if (rc == TPL_OK)
        rc = run_tokens(s, ses, ids, n, f, e);
    if (f && fclose(f) != 0 && rc == TPL_OK)
        rc = tpl_fail(e, TPL_E_IO, s->out, "cannot be written (disk full?)");
    if (rc == TPL_OK && !s->out)
        print_top(s, session_logits(ses, 0));
    session_destroy(ses);
    return rc;
}

static tpl_code run(void *state, cli_context *c, tpl_err *e)
{
    logits_state *s = state;
    int32_t *ids = NULL;
    int n = 0;
    TPL_TRY(one_run_open(&s->one, c, e));
    tpl_code rc = get_tokens(s, &ids, &n, e);
    if (rc == TPL_OK)
        rc = compute(s, ids, n, e);
    free(ids);
    one_run_close(&s->one);
    return rc;
}

const cli_command cmd_logits = {
    .name = "logits",
    .about = "Print the likeliest next tokens, or write every logit of every position.",
    .examples = "  tplabench logits --model models/worldlet-mla --tokens 297,26,877 --top 5\n"
                "  tplabench logits --model models/worldlet-mla --prompt 'The owl' --variant tpla:g=2 --tp 2 --out logits.csv",
    .options = options,
    .state_bytes = sizeof(logits_state),
    .set = set,
    .run = run,
};
