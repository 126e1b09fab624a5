/* Reads a Hugging Face tokenizer.json. truncation, padding and post_processor are left alone: encoding adds and cuts
 * nothing. */
#include <string.h>

#include "engine/tokenizer_impl.h"

/* ---- vocabulary ---- */

static tpl_code token_range(tokenizer *t, const char *text, const json_t *id, json_int_t limit, tpl_err *e)
{
    if (!json_is_integer(id))
        return tpl_fail(e, TPL_E_INPUT, t->where, "id of token '%.60s' is %s, expected an integer", text,
                        json_type_word(id));
    json_int_t v = json_integer_value(id);
    if (v < 0 || v >= limit)
        return tpl_fail(e, TPL_E_INPUT, t->where, "id of token '%.60s' is %lld, expected 0 to %lld", text, (long long)v,
                        (long long)limit - 1);
    if (v >= t->n_tokens)
        t->n_tokens = (int32_t)v + 1;
    return TPL_OK;
}

/* Sets n_tokens to the largest id + 1 over vocabulary and added tokens. Gaps are fine, but a few tokens may not claim
 * a table of millions. */
static tpl_code size_tokens(tokenizer *t, json_t *vocab, json_t *added, tpl_err *e)
{
    const char *text;
    json_t *v;
    size_t i;
    json_int_t limit = 65536 + 4 * (json_int_t)(json_object_size(vocab) + json_array_size(added));
    limit = limit < TOK_MAX_ID ? limit : TOK_MAX_ID;
    json_object_foreach(vocab, text, v) TPL_TRY(token_range(t, text, v, limit, e));
    json_array_foreach(added, i, v)
    {
        if (!json_is_object(v))
            return tpl_fail(e, TPL_E_INPUT, t->where, "added_tokens[%zu] is %s, expected an object", i,
                            json_type_word(v));
        TPL_TRY(json_want_str(v, "content", &text, t->where, e));
        TPL_TRY(token_range(t, text, json_object_get(v, "id"), limit, e));
    }
    return TPL_OK;
}

static void set_text(tokenizer *t, tok_token *k, const char *text)
{
    k->text = k->decoded = arena_strdup(&t->mem, text);
    k->decoded_len = (uint32_t)strlen(text);
}

static tpl_code read_vocab(tokenizer *t, json_t *vocab, tpl_err *e)
{
    const char *text;
    json_t *v;
    tok_map_init(&t->vocab, &t->mem, json_object_size(vocab));
    json_object_foreach(vocab, text, v)
    {
        tok_token *k = &t->tokens[json_integer_value(v)];
        if (k->text)
            return tpl_fail(e, TPL_E_INPUT, t->where, "tokens '%.60s' and '%.60s' share id %lld", k->text, text,
                            (long long)json_integer_value(v));
        set_text(t, k, text);
        tok_map_put(&t->vocab, k->text, k->decoded_len, (int32_t)json_integer_value(v));
    }
    return TPL_OK;
}

/* ---- merges ---- */

typedef struct {
    const char *a, *b;
    size_t a_len, b_len;
} pair_text;

/* "a b" or ["a", "b"]. */
static tpl_code read_pair(tokenizer *t, const json_t *m, size_t index, pair_text *p, tpl_err *e)
{
    if (json_is_string(m)) {
        const char *s = json_string_value(m), *end = s + json_string_length(m);
        const char *gap = memchr(s, ' ', (size_t)(end - s));
        if (gap && !memchr(gap + 1, ' ', (size_t)(end - gap - 1))) {
            *p = (pair_text){s, gap + 1, (size_t)(gap - s), (size_t)(end - gap - 1)};
            return TPL_OK;
        }
        return tpl_fail(e, TPL_E_INPUT, t->where, "merges[%zu] is \"%.60s\", expected two tokens and one blank", index,
                        s);
    }
    const json_t *a = json_array_get(m, 0), *b = json_array_get(m, 1);
    if (json_array_size(m) != 2 || !json_is_string(a) || !json_is_string(b))
        return tpl_fail(e, TPL_E_INPUT, t->where, "merges[%zu] is %s, expected a string or a pair of strings", index,
                        json_type_word(m));
    *p = (pair_text){json_string_value(a), json_string_value(b), json_string_length(a), json_string_length(b)};
    return TPL_OK;
}

static tpl_code merge_ids(tokenizer *t, const pair_text *p, size_t index, text_buf *joined, int32_t ids[3], tpl_err *e)
{
    joined->len = 0;
    text_add(joined, p->a, p->a_len);
    text_add(joined, p->b, p->b_len);
    ids[0] = tok_map_get(&t->vocab, p->a, p->a_len);
    ids[1] = tok_map_get(&t->vocab, p->b, p->b_len);
    ids[2] = tok_map_get(&t->vocab, joined->data, joined->len);
    const char *missing = ids[0] < 0 ? p->a : ids[1] < 0 ? p->b : joined->data;
    if (ids[0] < 0 || ids[1] < 0 || ids[2] < 0)
        return tpl_fail(e, TPL_E_INPUT, t->where, "merges[%zu] needs token '%.*s', which vocab does not have", index,
                        missing == p->a ? (int)(p->a_len < 60 ? p->a_len : 60) : 60, missing);
    return TPL_OK;
}

static bool is_version_line(const json_t *m)
{
    return json_is_string(m) && !strncmp(json_string_value(m), "#version", 8);
}

static tpl_code read_merges(tokenizer *t, const json_t *list, tpl_err *e)
{
    text_buf joined = {0};
    pair_text p = {0};
    int32_t ids[3] = {0};
    uint32_t rank = 0;
    tpl_code rc = TPL_OK;
    if (json_array_size(list) > TOK_MAX_ID)
        return tpl_fail(e, TPL_E_INPUT, t->where, "field 'merges' has %zu items, expected at most %d",
                        json_array_size(list), TOK_MAX_ID);
    tok_merges_init(&t->merges, &t->mem, json_array_size(list), (uint32_t)json_array_size(list));
    for (size_t i = 0; rc == TPL_OK && i < json_array_size(list); i++) {
        const json_t *m = json_array_get(list, i);
        if (is_version_line(m))
            continue;
        TPL_GOTO(rc, read_pair(t, m, i, &p, e), done);
        TPL_GOTO(rc, merge_ids(t, &p, i, &joined, ids, e), done);
        if (!tok_merges_put(&t->merges, ids[0], ids[1], rank++, ids[2]))
            rc = tpl_fail(e, TPL_E_INPUT, t->where, "merges[%zu] repeats the pair '%.60s' '%.60s'", i,
                          t->tokens[ids[0]].text, t->tokens[ids[1]].text);
    }
done:
    text_fini(&joined);
    return rc;
}

/* ---- the model ---- */

/* A setting that changes ids and that this build does not have; empty and 0 mean it is off. */
static tpl_code refuse_setting(tokenizer *t, const json_t *model, const char *key, tpl_err *e)
{
    const json_t *v = json_object_get(model, key);
    bool off = !v || json_is_null(v) || (json_is_string(v) && json_string_length(v) == 0) ||
               (json_is_number(v) && json_number_value(v) == 0);
    if (off)
        return TPL_OK;
    return tpl_fail(e, TPL_E_UNSUPPORTED, t->where, "model field '%s' is set, which is not supported", key);
}

static tpl_code read_settings(tokenizer *t, const json_t *model, tpl_err *e)
{
    const char *unk = NULL;
    TPL_TRY(refuse_setting(t, model, "dropout", e));
    TPL_TRY(refuse_setting(t, model, "continuing_subword_prefix", e));
    TPL_TRY(refuse_setting(t, model, "end_of_word_suffix", e));
    TPL_TRY(json_maybe_bool(model, "fuse_unk", &t->fuse_unk, t->where, e));
    TPL_TRY(json_maybe_bool(model, "byte_fallback", &t->byte_fallback, t->where, e));
    TPL_TRY(json_maybe_bool(model, "ignore_merges", &t->ignore_merges, t->where, e));
    TPL_TRY(json_maybe_str(model, "unk_token", &unk, t->where, e));
    if (!unk)
        return TPL_OK;
    t->unk_id = tok_map_get(&t->vocab, unk, strlen(unk));
    if (t->unk_id < 0)
        return tpl_fail(e, TPL_E_INPUT, t->where, "unk_token '%.60s' is not in vocab", unk);
    return TPL_OK;
}

static tpl_code read_model(tokenizer *t, json_t *model, json_t *added, tpl_err *e)
{
    const char *type = "BPE";
    json_t *vocab, *merges;
    TPL_TRY(json_maybe_str(model, "type", &type, t->where, e));
    if (strcmp(type, "BPE") != 0)
        return tpl_fail(e, TPL_E_UNSUPPORTED, t->where, "model '%.60s' is not supported (BPE is)", type);
    TPL_TRY(json_want_object(model, "vocab", &vocab, t->where, e));
    TPL_TRY(json_want_array(model, "merges", &merges, t->where, e));
    TPL_TRY(size_tokens(t, vocab, added, e));
    if (t->n_tokens == 0)
        return tpl_fail(e, TPL_E_INPUT, t->where, "field 'vocab' is empty, expected at least one token");
    t->tokens = arena_array(&t->mem, tok_token, t->n_tokens);
    TPL_TRY(read_vocab(t, vocab, e));
    TPL_TRY(read_merges(t, merges, e));
    tok_index_chars(t);
    return read_settings(t, model, e);
}

/* ---- added tokens ---- */

static tpl_code read_flags(tokenizer *t, const json_t *node, tok_token *k, tpl_err *e)
{
    k->added = true;
    TPL_TRY(json_maybe_bool(node, "special", &k->special, t->where, e));
    k->normalized = !k->special;
    TPL_TRY(json_maybe_bool(node, "normalized", &k->normalized, t->where, e));
    TPL_TRY(json_maybe_bool(node, "single_word", &k->single_word, t->where, e));
    TPL_TRY(json_maybe_bool(node, "lstrip", &k->lstrip, t->where, e));
    return json_maybe_bool(node, "rstrip", &k->rstrip, t->where, e);
}

/* A token that the vocabulary has too must have the same id there; an empty one is never found and is passed over. */
static tpl_code read_added(tokenizer *t, const json_t *node, tpl_err *e)
{
    const char *text;
    TPL_TRY(json_want_str(node, "content", &text, t->where, e));
    size_t len = strlen(text);
    int32_t id = (int32_t)json_integer_value(json_object_get(node, "id")), known = tok_map_get(&t->vocab, text, len);
    tok_token *k = &t->tokens[id];
    if (len != json_string_length(json_object_get(node, "content")))
        return tpl_fail(e, TPL_E_UNSUPPORTED, t->where, "added token %d contains a NUL", id);
    if (len == 0)
        return TPL_OK;
    if (known >= 0 && known != id)
        return tpl_fail(e, TPL_E_INPUT, t->where, "added token '%.60s' has id %d, but vocab has it as %d", text, id,
                        known);
    if (k->added || (k->text && known < 0))
        return tpl_fail(e, TPL_E_INPUT, t->where, "added token '%.60s' has id %d, which '%.60s' has too", text, id,
                        k->text);
    if (!k->text)
        set_text(t, k, text);
    TPL_TRY(read_flags(t, node, k, e));
    if (!tok_map_put(&t->added, k->text, len, id))
        return tpl_fail(e, TPL_E_INPUT, t->where, "added token '%.60s' is listed twice", text);
    return tok_added_insert(t, id, e);
}

static tpl_code read_all_added(tokenizer *t, json_t *added, tpl_err *e)
{
    tok_map_init(&t->added, &t->mem, json_array_size(added));
    for (size_t i = 0; i < json_array_size(added); i++)
        TPL_TRY(read_added(t, json_array_get(added, i), e));
    return TPL_OK;
}

/* ---- the file ---- */

static tpl_code read_file(tokenizer *t, json_t *root, tpl_err *e)
{
    /* The reference asks Rust's \w here, which differs from the patterns' own. */
    static const char word[] = "[\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}\\x{200C}\\x{200D}]";
    const char *version = "1.0";
    json_t *model, *added = json_object_get(root, "added_tokens");
    if (!json_is_object(root))
        return tpl_fail(e, TPL_E_INPUT, t->where, "is %s, expected an object", json_type_word(root));
    TPL_TRY(json_maybe_str(root, "version", &version, t->where, e));
    if (strcmp(version, "1.0") != 0)
        return tpl_fail(e, TPL_E_UNSUPPORTED, t->where, "version is '%.20s', expected '1.0'", version);
    TPL_TRY(json_want_object(root, "model", &model, t->where, e));
    if (added && !json_is_null(added) && !json_is_array(added))
        return tpl_fail(e, TPL_E_INPUT, t->where, "field 'added_tokens' is %s, expected an array",
                        json_type_word(added));
    TPL_TRY(read_model(t, model, added, e));
    const json_t *decoder = json_object_get(root, "decoder");
    t->has_decoder = decoder && !json_is_null(decoder);
    TPL_TRY(tok_steps_parse(t, &tok_normalizer_stage, json_object_get(root, "normalizer"), &t->normalizers, e));
    TPL_TRY(tok_steps_parse(t, &tok_pretokenizer_stage, json_object_get(root, "pre_tokenizer"), &t->pretokenizers, e));
    TPL_TRY(tok_steps_parse(t, &tok_decoder_stage, decoder, &t->decoders, e));
    TPL_TRY(tok_pattern_regex(t, word, sizeof word - 1, &t->word, e));
    return read_all_added(t, added, e);
}

tpl_code tokenizer_parse(const char *data, size_t len, const char *where, tokenizer **out, tpl_err *e)
{
    json_t *root;
    TPL_TRY(json_load_bytes(data, len, where, &root, e));
    tokenizer *t = tok_create(where);
    tpl_code rc = read_file(t, root, e);
    json_decref(root);
    if (rc == TPL_OK)
        *out = t;
    else
        tokenizer_close(t);
    return rc;
}
