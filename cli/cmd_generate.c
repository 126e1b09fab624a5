/* cmd_generate.c - `tplabench generate`: prompt in, text out. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "cli/one_run.h"
#include "engine/generate.h"

typedef struct {
    one_run one;
    const char *prompt, *file;
    int max_new;
    double temperature, top_p;
    int seed;
    bool no_bos, ignore_eos;
} generate_state;

static const cli_option options[] = {
    ONE_RUN_OPTIONS,
    {"prompt", "TEXT", "the prompt (default: standard input)", false},
    {"prompt-file", "FILE", "read the prompt from a file", true},
    {"max-new-tokens", "N", "tokens to generate at most (default 64)", false},
    {"temperature", "X", "0 takes the likeliest token (default 0)", false},
    {"top-p", "X", "sample from the smallest set of tokens with this mass (default 1)", false},
    {"seed", "N", "of sampling (default 0)", false},
    {"no-bos", NULL, "do not put the begin-of-text token before the prompt", false},
    {"ignore-eos", NULL, "go on after the end-of-text token", false},
    {0},
};

static tpl_code set_real(const char *key, const char *value, double lo, double hi, double *out, tpl_err *e)
{
    char option[32];
    snprintf(option, sizeof option, "--%s", key);
    double v;
    if (!text_parse_f64(value, &v) || v < lo || v > hi)
        return tpl_fail(e, TPL_E_USAGE, option, "is '%s', expected a number from %g to %g", value, lo, hi);
    *out = v;
    return TPL_OK;
}

static tpl_code set(void *state, cli_context *c, const char *key, const char *value, tpl_err *e)
{
    generate_state *s = state;
    bool taken;
    TPL_TRY(one_run_set(&s->one, c, key, value, &taken, e));
    if (taken)
        return TPL_OK;
    if (strcmp(key, "max-new-tokens") == 0)
        return cli_set_int(key, value, 1, 1 << 24, &s->max_new, e);
    if (strcmp(key, "seed") == 0)
        return cli_set_int(key, value, 0, INT32_MAX, &s->seed, e);
    if (strcmp(key, "temperature") == 0)
        return set_real(key, value, 0, 100, &s->temperature, e);
    if (strcmp(key, "top-p") == 0)
        return set_real(key, value, 1e-6, 1, &s->top_p, e);
    if (strcmp(key, "prompt") == 0)
        s->prompt = cli_keep(c, value);
    else if (strcmp(key, "prompt-file") == 0)
        s->file = cli_keep(c, value);
    else if (strcmp(key, "no-bos") == 0)
        s->no_bos = true;
    else
        s->ignore_eos = true;
    return TPL_OK;
}

static tpl_code read_prompt(const generate_state *s, char **text, tpl_err *e)
{
    size_t n;
    if (s->prompt) {
        *text = tpl_strdup(s->prompt);
        return TPL_OK;
    }
    return text_read_file(s->file ? s->file : "/dev/stdin", text, &n, e);
}

/* Prints what each new token adds to the text; a character may need several tokens. */
typedef struct {
    const tokenizer *tok;
    int32_t *ids;
    int n;
    size_t printed;
} printer;

static bool print_token(void *user, int i, int32_t token)
{
    printer *p = user;
    text_buf b = {0};
    p->ids[p->n++] = token;
    tokenizer_decode(p->tok, p->ids, p->n, true, &b);
    bool whole = b.len < 3 || memcmp(b.data + b.len - 3, "\xef\xbf\xbd", 3) != 0;
    if (whole && b.len > p->printed) {
        fwrite(b.data + p->printed, 1, b.len - p->printed, stdout);
        fflush(stdout);
        p->printed = b.len;
    }
    text_fini(&b);
    return !interrupt_seen();
}

static tpl_code run_prompt(generate_state *s, const int32_t *ids, int n, tpl_err *e)
{
    const model_config *c = model_cfg(lab_model(s->one.lab));
    if (n + s->max_new > c->max_pos)
        return tpl_fail(e, TPL_E_INPUT, "prompt", "of %d tokens and %d new ones exceed the model's max_position_embeddings %d", n, s->max_new, c->max_pos);
    session *ses = NULL;
    session_options o = {.max_seqs = 1, .max_tok = n + s->max_new, .max_rows = n < 512 ? n : 512, .max_logits = 1};
    TPL_TRY(session_create(s->one.run.team, &o, &ses, e));
    sampler pick;
    sampler_init(&pick, c->vocab, (float)s->temperature, s->top_p > 0 ? (float)s->top_p : 1, (uint64_t)s->seed);
    printer p = {.tok = lab_tokenizer(s->one.lab), .ids = tpl_malloc(sizeof(int32_t) * (size_t)s->max_new)};
    generation g = {.prompt = ids, .n_prompt = n, .out = tpl_malloc(sizeof(int32_t) * (size_t)s->max_new)};
    tpl_code rc = generate(ses, &g, 1, s->max_new, s->ignore_eos ? -1 : c->eos_id, &pick, print_token, &p, e);
    putchar('\n');
    if (rc == TPL_OK && interrupt_seen())
        rc = tpl_fail(e, TPL_E_INTERRUPTED, "generate", "stopped after %d tokens", g.n_out);
    free(p.ids);
    free(g.out);
    sampler_fini(&pick);
    session_destroy(ses);
    return rc;
}

static tpl_code run(void *state, cli_context *c, tpl_err *e)
{
    generate_state *s = state;
    char *text = NULL;
    int32_t *ids = NULL;
    int n = 0;
    s->max_new = s->max_new ? s->max_new : 64;
    TPL_TRY(one_run_open(&s->one, c, e));
    tpl_code rc = read_prompt(s, &text, e);
    if (rc == TPL_OK)
        rc = one_run_encode(&s->one, text, !s->no_bos, &ids, &n, e);
    if (rc == TPL_OK)
        rc = run_prompt(s, ids, n, e);
    free(ids);
    free(text);
    one_run_close(&s->one);
    return rc;
}

const cli_command cmd_generate = {
    .name = "generate",
    .about = "Continue a prompt.",
    .examples = "  tplabench generate --model models/worldlet-mla --prompt 'Question: Where does Anna live?' --max-new-tokens 16\n"
                "  tplabench generate --model models/worldlet-mla --variant tpla:g=2 --tp 2 --temperature 0.8 --seed 7 --prompt 'The owl'",
    .options = options,
    .state_bytes = sizeof(generate_state),
    .set = set,
    .run = run,
};
