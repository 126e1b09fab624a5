#include "engine/tokenizer.h"

#include <stdlib.h>
#include <string.h>

#include "engine/tokenizer_impl.h"

/* ---- life ---- */

tokenizer *tok_create(const char *where)
{
    tokenizer *t = tpl_calloc(1, sizeof *t);
    arena_init(&t->mem);
    t->where = arena_strdup(&t->mem, where);
    t->unk_id = -1;
    return t;
}

void tokenizer_close(tokenizer *t)
{
    if (!t)
        return;
    tok_patterns_free(t->patterns);
    arena_fini(&t->mem);
    free(t);
}

void tok_index_chars(tokenizer *t)
{
    char s[8];
    for (uint32_t cp = 0; cp < TOK_DIRECT_CHARS; cp++)
        t->char_id[cp] = tok_map_get(&t->vocab, s, tok_utf8_put(cp, s));
    for (unsigned b = 0; b < 256; b++) {
        static const char hex[] = "0123456789ABCDEF";
        char name[6] = {'<', '0', 'x', hex[b >> 4], hex[b & 15], '>'};
        t->byte_id[b] = tok_map_get(&t->vocab, name, sizeof name);
    }
}

static tpl_code open_json(const char *path, tokenizer **out, tpl_err *e)
{
    char *data;
    size_t len;
    TPL_TRY(text_read_file(path, &data, &len, e));
    tpl_code rc = tokenizer_parse(data, len, path, out, e);
    free(data);
    return rc;
}

static tpl_code open_tiktoken(const char *path, const char *config_path, tokenizer **out, tpl_err *e)
{
    char *data;
    size_t len;
    json_t *config;
    TPL_TRY(json_load_path(config_path, &config, e));
    tpl_code rc = text_read_file(path, &data, &len, e);
    if (rc == TPL_OK) {
        rc = tok_load_tiktoken(data, len, config, path, out, e);
        free(data);
    }
    json_decref(config);
    return rc;
}

tpl_code tokenizer_open(const char *dir, tokenizer **out, tpl_err *e)
{
    arena a;
    arena_init(&a);
    const char *json = text_path_join(&a, dir, "tokenizer.json");
    const char *ranks = text_path_join(&a, dir, "tiktoken.model");
    tpl_code rc;
    if (!text_is_file(json) && text_is_file(ranks))
        rc = open_tiktoken(ranks, text_path_join(&a, dir, "tokenizer_config.json"), out, e);
    else
        rc = open_json(json, out, e);
    arena_fini(&a);
    return rc;
}

/* ---- looking up ---- */

int tokenizer_vocab(const tokenizer *t)
{
    return t->n_tokens;
}

int32_t tokenizer_token_id(const tokenizer *t, const char *content)
{
    size_t len = strlen(content);
    int32_t id = tok_map_get(&t->added, content, len);
    return id >= 0 ? id : tok_map_get(&t->vocab, content, len);
}

const char *tokenizer_token_text(const tokenizer *t, int32_t id)
{
    return id >= 0 && id < t->n_tokens ? t->tokens[id].text : NULL;
}

/* ---- encoding ---- */

/* Cuts the text into pieces of at most chunk_chars characters, none with more than run_chars blanks or non-blanks in a
 * row. Kimi's tokenizer does so to spare tiktoken long pieces, and its ids depend on it. */
static void add_chunks(tok_work *w, const char *s, size_t n)
{
    const tokenizer *t = w->t;
    size_t begin = 0, len;
    uint32_t chars = 0, run = 0;
    bool was_space = false;
    for (size_t i = 0; t->chunk_chars && i < n; i += len, chars++) {
        uint32_t cp = tok_utf8_get(s + i, &len);
        bool space = tok_is_space(cp) || (cp >= 0x1C && cp <= 0x1F); /* Python's str.isspace */
        bool full = chars == t->chunk_chars;
        run = full || space != was_space ? 1 : run + 1;
        was_space = space;
        if (full)
            chars = 0;
        if (full || run > t->run_chars) {
            tok_next_add(w, s + begin, i - begin, begin == 0);
            begin = i;
            run = 1;
        }
    }
    tok_next_add(w, s + begin, n - begin, begin == 0);
}

static void start(tok_work *w, const char *text, size_t len)
{
    text_buf clean = {0};
    tok_utf8_repair(text, len, &clean);
    tok_next_begin(w);
    add_chunks(w, clean.data, clean.len);
    tok_next_done(w);
    text_fini(&clean);
}

static tpl_code split(tok_work *w, const char *text, size_t len, tpl_err *e)
{
    const tokenizer *t = w->t;
    start(w, text, len);
    tok_added_split(&t->plain_added, w);
    TPL_TRY(tok_steps_run(&t->normalizers, w, e));
    tok_added_split(&t->normalized_added, w);
    return tok_steps_run(&t->pretokenizers, w, e);
}

tpl_code tokenizer_encode(const tokenizer *t, const char *text, size_t len, int32_t **ids, int *n, tpl_err *e)
{
    if (len > TOK_MAX_TEXT)
        return tpl_fail(e, TPL_E_INPUT, t->where, "text has %zu bytes, expected at most %d", len, TOK_MAX_TEXT);
    tok_work w;
    tok_work_init(&w, t);
    tpl_code rc = split(&w, text, len, e);
    tok_reserve((void **)&w.ids, &w.cap_ids, 0, sizeof *w.ids);
    for (size_t i = 0; rc == TPL_OK && i < w.now.n; i++) {
        const tok_span *v = &w.now.v[i];
        if (v->id >= 0)
            tok_add_id(&w, v->id);
        else
            tok_bpe_encode(&w, tok_span_text(&w, v), v->end - v->begin);
    }
    if (rc == TPL_OK) {
        *ids = w.ids;
        *n = (int)w.n_ids;
        w.ids = NULL;
    }
    tok_work_fini(&w);
    return rc;
}

/* ---- decoding ---- */

static void add_token_text(tok_work *w, int32_t id, bool skip_special)
{
    if (id < 0 || id >= w->t->n_tokens)
        return;
    const tok_token *k = &w->t->tokens[id];
    if (k->text && !(skip_special && k->special))
        tok_next_add(w, k->decoded, k->decoded_len, k->raw);
}

void tokenizer_decode(const tokenizer *t, const int32_t *ids, int n, bool skip_special, text_buf *out)
{
    tok_work w;
    tok_work_init(&w, t);
    tok_next_begin(&w);
    for (int i = 0; i < n; i++)
        add_token_text(&w, ids[i], skip_special);
    tok_next_done(&w);
    tok_steps_run(&t->decoders, &w, NULL); /* decoders search for literals only, which cannot fail */
    for (size_t i = 0; i < w.now.n; i++) {
        const tok_span *v = &w.now.v[i];
        if (i > 0 && !t->has_decoder)
            text_add(out, " ", 1);
        text_add(out, tok_span_text(&w, v), v->end - v->begin);
    }
    text_add(out, "", 0);
    tok_work_fini(&w);
}
