/* Kimi's tokenizer: tiktoken.model (a line "<base64 bytes> <rank>" a token), specials from tokenizer_config.json, and
 * the pattern of the Python class that the configuration names, which stands in no data file. Token texts are kept as
 * printable characters like those of a byte-level tokenizer.json, so that everything else is shared. */
#include <stdio.h>
#include <string.h>

#include <openssl/evp.h>

#include "engine/tokenizer_impl.h"

/* tokenization_kimi.py (Kimi-K2, Kimi-Linear) and tokenization_moonshot.py (Moonlight), class TikTokenTokenizer. */
#define KIMI_UPPER "[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}&&[^\\p{Han}]]"
#define KIMI_LOWER "[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}&&[^\\p{Han}]]"
#define KIMI_START "[^\\r\\n\\p{L}\\p{N}]?"
#define KIMI_END "(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
static const char kimi_regex[] =
    "[\\p{Han}]+"
    "|" KIMI_START KIMI_UPPER "*" KIMI_LOWER "+" KIMI_END "|" KIMI_START KIMI_UPPER "+" KIMI_LOWER "*" KIMI_END
    "|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";

enum { KIMI_SPECIALS = 258, KIMI_CHUNK_CHARS = 400000, KIMI_RUN_CHARS = 25000, MAX_TOKEN = 1 << 10 };

/* ---- lines ---- */

typedef struct {
    const char *p, *end;
    int line;
} lines;

static tpl_code bad_line(const tokenizer *t, const lines *l, const char *what, tpl_err *e)
{
    char place[160];
    snprintf(place, sizeof place, "%.140s:%d", t->where, l->line);
    return tpl_fail(e, TPL_E_INPUT, place, "%s, expected \"<base64> <rank>\"", what);
}

/* Base64 s[n] into bytes; -1 if malformed. */
static int decode_base64(const char *s, size_t n, unsigned char *bytes)
{
    int pad = n > 1 && s[n - 1] == '=' ? (s[n - 2] == '=' ? 2 : 1) : 0;
    if (n == 0 || n % 4 ||
        strspn(s, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/") != n - (size_t)pad)
        return -1;
    int got = EVP_DecodeBlock(bytes, (const unsigned char *)s, (int)n);
    return got < 0 ? -1 : got - pad;
}

static size_t byte_text(const unsigned char *bytes, int n, char *out)
{
    size_t len = 0;
    for (int i = 0; i < n; i++)
        len += tok_utf8_put(tok_byte_char(bytes[i]), out + len);
    return len;
}

/* The next line's token as printable text and its rank; *len 0 at the end of the file. */
static tpl_code next_token(const tokenizer *t, lines *l, char *text, size_t *len, int64_t *rank, tpl_err *e)
{
    unsigned char bytes[MAX_TOKEN];
    char field[32];
    while (l->p < l->end && *l->p == '\n') {
        l->p++;
        l->line++;
    }
    *len = 0;
    if (l->p == l->end)
        return TPL_OK;
    const char *eol = memchr(l->p, '\n', (size_t)(l->end - l->p));
    eol = eol ? eol : l->end;
    const char *gap = memchr(l->p, ' ', (size_t)(eol - l->p));
    if (!gap || gap - l->p > MAX_TOKEN || eol - gap - 1 >= (long)sizeof field)
        return bad_line(t, l, "line has no blank or is too long", e);
    int n = decode_base64(l->p, (size_t)(gap - l->p), bytes);
    if (n <= 0)
        return bad_line(t, l, "malformed base64", e);
    memcpy(field, gap + 1, (size_t)(eol - gap - 1));
    field[eol - gap - 1] = 0;
    if (!text_parse_i64(field, rank) || *rank < 0 || *rank >= TOK_MAX_ID - KIMI_SPECIALS)
        return bad_line(t, l, "malformed rank", e);
    *len = byte_text(bytes, n, text);
    l->p = eol;
    return TPL_OK;
}

/* ---- vocabulary ---- */

static void set_text(tokenizer *t, tok_token *k, const char *text, size_t len)
{
    k->text = k->decoded = arena_strndup(&t->mem, text, len);
    k->decoded_len = (uint32_t)len;
}

static size_t count_lines(const char *data, size_t len)
{
    size_t n = 1;
    for (size_t i = 0; i < len; i++)
        n += data[i] == '\n';
    return n;
}

/* Ranks must be 0 to n - 1, each once; specials follow. */
static tpl_code read_ranks(tokenizer *t, const char *data, size_t data_len, int32_t *n_base, tpl_err *e)
{
    lines l = {.p = data, .end = data + data_len, .line = 1};
    char text[2 * MAX_TOKEN];
    size_t len, most = count_lines(data, data_len), n = 0;
    int64_t rank = 0;
    if (most > TOK_MAX_ID - KIMI_SPECIALS)
        return tpl_fail(e, TPL_E_INPUT, t->where, "has %zu lines, expected at most %d", most,
                        TOK_MAX_ID - KIMI_SPECIALS);
    t->tokens = arena_array(&t->mem, tok_token, most + KIMI_SPECIALS);
    tok_map_init(&t->vocab, &t->mem, most);
    for (;; n++) {
        TPL_TRY(next_token(t, &l, text, &len, &rank, e));
        if (len == 0)
            break;
        if (rank >= (int64_t)most || t->tokens[rank].text)
            return bad_line(t, &l, "rank is repeated or beyond the number of tokens", e);
        set_text(t, &t->tokens[rank], text, len);
        if (!tok_map_put(&t->vocab, t->tokens[rank].text, len, (int32_t)rank))
            return bad_line(t, &l, "token is repeated", e);
    }
    for (size_t i = 0; i < n; i++)
        if (!t->tokens[i].text)
            return tpl_fail(e, TPL_E_INPUT, t->where, "rank %zu of %zu is missing", i, n);
    *n_base = (int32_t)n;
    return TPL_OK;
}

/* Every way to cut a token into two tokens is a merge whose rank is the token's own. Calls `each` for them. */
static size_t each_merge(tokenizer *t, int32_t n_base, bool put)
{
    size_t n = 0, len;
    for (int32_t id = 0; id < n_base; id++) {
        const tok_token *k = &t->tokens[id];
        for (size_t cut = 0; cut < k->decoded_len; cut += len) {
            tok_utf8_get(k->text + cut, &len);
            int32_t a = cut ? tok_map_get(&t->vocab, k->text, cut) : -1;
            int32_t b = a >= 0 ? tok_map_get(&t->vocab, k->text + cut, k->decoded_len - cut) : -1;
            if (b < 0)
                continue;
            n++;
            if (put)
                tok_merges_put(&t->merges, a, b, (uint32_t)id, id);
        }
    }
    return n;
}

/* ---- specials ---- */

static const char *special_name(const json_t *config, int32_t id)
{
    char key[16];
    snprintf(key, sizeof key, "%d", id);
    return json_string_value(
        json_object_get(json_object_get(json_object_get(config, "added_tokens_decoder"), key), "content"));
}

static tpl_code add_specials(tokenizer *t, const json_t *config, int32_t n_base, tpl_err *e)
{
    tok_map_init(&t->added, &t->mem, KIMI_SPECIALS);
    for (int32_t id = n_base; id < n_base + KIMI_SPECIALS; id++) {
        tok_token *k = &t->tokens[id];
        const char *name = special_name(config, id);
        if (!name || !*name)
            name = arena_printf(&t->mem, "<|reserved_token_%d|>", id);
        set_text(t, k, name, strlen(name));
        k->added = k->special = k->raw = true;
        if (!tok_map_put(&t->added, k->text, k->decoded_len, id))
            return tpl_fail(e, TPL_E_INPUT, t->where, "special token '%.60s' is listed twice", name);
        TPL_TRY(tok_added_insert(t, id, e));
    }
    t->n_tokens = n_base + KIMI_SPECIALS;
    return TPL_OK;
}

/* ---- the whole ---- */

/* The pattern is code, not data, so the configuration must name the code that has it. */
static tpl_code check_class(const json_t *config, const char *where, tpl_err *e)
{
    const json_t *map = json_object_get(json_object_get(config, "auto_map"), "AutoTokenizer");
    const char *name = json_string_value(json_is_array(map) ? json_array_get(map, 0) : map);
    if (name && (!strcmp(name, "tokenization_kimi.TikTokenTokenizer") ||
                 !strcmp(name, "tokenization_moonshot.TikTokenTokenizer")))
        return TPL_OK;
    return tpl_fail(
        e, TPL_E_UNSUPPORTED, where,
        "tokenizer_config.json names '%.60s' in auto_map; of tiktoken files only tokenization_kimi's is known",
        name ? name : "nothing");
}

static tpl_code read_all(tokenizer *t, const char *data, size_t len, const json_t *config, tpl_err *e)
{
    int32_t n_base = 0;
    TPL_TRY(read_ranks(t, data, len, &n_base, e));
    tok_merges_init(&t->merges, &t->mem, each_merge(t, n_base, false), (uint32_t)n_base);
    each_merge(t, n_base, true);
    tok_index_chars(t);
    for (int b = 0; b < 256; b++)
        if (t->char_id[tok_byte_char((uint8_t)b)] < 0)
            return tpl_fail(e, TPL_E_INPUT, t->where, "byte 0x%02X is no token, expected all 256", (unsigned)b);
    TPL_TRY(add_specials(t, config, n_base, e));
    TPL_TRY(tok_steps_add_split(t, kimi_regex, e));
    tok_steps_add_bytes(t);
    tok_steps_add_byte_decoder(t);
    t->has_decoder = t->ignore_merges = true;
    t->chunk_chars = KIMI_CHUNK_CHARS;
    t->run_chars = KIMI_RUN_CHARS;
    return TPL_OK;
}

tpl_code tok_load_tiktoken(const char *data, size_t len, const json_t *config, const char *where, tokenizer **out,
                           tpl_err *e)
{
    TPL_TRY(check_class(config, where, e));
    tokenizer *t = tok_create(where);
    tpl_code rc = read_all(t, data, len, config, e);
    if (rc == TPL_OK)
        *out = t;
    else
        tokenizer_close(t);
    return rc;
}
