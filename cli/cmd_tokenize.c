/* cmd_tokenize.c - `tplabench tokenize`: text or a file in, token ids out (and back). */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/options.h"

typedef struct {
    const char *model, *text, *file, *decode;
    bool pieces;
} tokenize_state;

static const cli_option options[] = {
    {"model", "DIR", "checkpoint folder whose tokenizer to use (required)", true},
    {"text", "TEXT", "what to encode (default: standard input)", false},
    {"file", "FILE", "encode a file", true},
    {"decode", "IDS", "comma list of ids to turn back into text", false},
    {"pieces", NULL, "one token a line: id, a tab, its stored form", false},
    {0},
};

static tpl_code set(void *state, cli_context *c, const char *key, const char *value, tpl_err *e)
{
    tokenize_state *s = state;
    if (!key || strcmp(key, "text") == 0)
        s->text = cli_keep(c, value);
    else if (strcmp(key, "model") == 0)
        s->model = cli_keep(c, value);
    else if (strcmp(key, "file") == 0)
        s->file = cli_keep(c, value);
    else if (strcmp(key, "decode") == 0)
        s->decode = cli_keep(c, value);
    else
        s->pieces = true;
    return TPL_OK;
}

static tpl_code decode(const tokenizer *t, cli_context *c, const char *list, tpl_err *e)
{
    cli_axis ids;
    text_buf b = {0};
    TPL_TRY(cli_set_axis(c, "decode", list, 0, tokenizer_vocab(t) - 1, &ids, e));
    int32_t *narrow = arena_array(&c->mem, int32_t, ids.n);
    for (int i = 0; i < ids.n; i++)
        narrow[i] = (int32_t)ids.v[i];
    tokenizer_decode(t, narrow, ids.n, false, &b);
    fwrite(b.data ? b.data : "", 1, b.len, stdout);
    putchar('\n');
    text_fini(&b);
    return TPL_OK;
}

static tpl_code encode(const tokenizer *t, const tokenize_state *s, tpl_err *e)
{
    char *data = NULL;
    size_t len = 0;
    int32_t *ids = NULL;
    int n = 0;
    if (!s->text)
        TPL_TRY(text_read_file(s->file ? s->file : "/dev/stdin", &data, &len, e));
    tpl_code rc = tokenizer_encode(t, data ? data : s->text, data ? len : strlen(s->text), &ids, &n, e);
    for (int i = 0; i < n && rc == TPL_OK; i++) {
        if (s->pieces)
            printf("%d\t%s\n", ids[i], tokenizer_token_text(t, ids[i]));
        else
            printf("%s%d", i ? "," : "", ids[i]);
    }
    if (rc == TPL_OK && !s->pieces)
        putchar('\n');
    free(ids);
    free(data);
    return rc;
}

static tpl_code run(void *state, cli_context *c, tpl_err *e)
{
    tokenize_state *s = state;
    tokenizer *t;
    if (!s->model)
        return tpl_fail(e, TPL_E_USAGE, "--model", "is missing, expected a checkpoint folder");
    TPL_TRY(tokenizer_open(s->model, &t, e));
    tpl_code rc = s->decode ? decode(t, c, s->decode, e) : encode(t, s, e);
    tokenizer_close(t);
    return rc;
}

const cli_command cmd_tokenize = {
    .name = "tokenize",
    .about = "Turn text into token ids, or ids into text.",
    .examples = "  tplabench tokenize --model models/worldlet-mla --text 'Question: Where does Anna live?'\n"
                "  tplabench tokenize --model models/worldlet-mla --decode 297,26,877",
    .args = "[TEXT]",
    .options = options,
    .state_bytes = sizeof(tokenize_state),
    .set = set,
    .run = run,
};
