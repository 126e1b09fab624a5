/* The decoders: each rewrites the list of token texts. Unlike the pre-tokenizers they keep empty pieces, since a
 * position in the list has a meaning (Metaspace treats the first token apart). */
#include <string.h>

#include "engine/tokenizer_impl.h"

/* ---- ByteLevel ---- */

/* The bytes behind one token's characters; a token with any other character is taken as it is. */
static void add_token_bytes(const char *p, size_t n, bool raw, text_buf *out)
{
    size_t mark = out->len, len;
    for (size_t i = 0; i < n && !raw; i += len) {
        int b = tok_char_byte(tok_utf8_get(p + i, &len));
        char c = (char)b;
        if (b < 0)
            raw = true;
        else
            text_add(out, &c, 1);
    }
    if (raw) {
        out->len = mark;
        text_add(out, p, n);
    }
}

static tpl_code run_byte_level(const tok_step *s, tok_work *w, tpl_err *e)
{
    text_buf bytes = {0}, text = {0};
    for (size_t i = 0; i < w->now.n; i++) {
        const tok_span *v = &w->now.v[i];
        add_token_bytes(tok_span_text(w, v), v->end - v->begin, v->first, &bytes);
    }
    tok_utf8_repair(bytes.data ? bytes.data : "", bytes.len, &text);
    tok_next_add(w, text.data, text.len, false);
    text_fini(&bytes);
    text_fini(&text);
    return TPL_OK;
}

static tpl_code parse_byte_level(tokenizer *t, const json_t *node, tok_step *out, tpl_err *e)
{
    out->run = run_byte_level;
    return TPL_OK;
}

/* ---- ByteFallback ---- */

static int hex_value(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    c |= 0x20;
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* The byte that a token "<0x1F>" stands for, or -1. The reference parser also takes a sign: "<0x+F>". */
static int fallback_byte(const char *p, size_t n)
{
    if (n != 6 || memcmp(p, "<0x", 3) != 0 || p[5] != '>')
        return -1;
    int hi = p[3] == '+' ? 0 : hex_value(p[3]), lo = hex_value(p[4]);
    return hi < 0 || lo < 0 ? -1 : hi << 4 | lo;
}

/* A run of byte tokens is one piece if it is valid UTF-8, else one U+FFFD a byte. */
static void flush_bytes(tok_work *w, text_buf *run)
{
    size_t i = 0, len = 1;
    while (i < run->len && (len = tok_utf8_valid(run->data + i, run->len - i)))
        i += len;
    if (len)
        tok_next_add(w, run->data, run->len, false);
    for (size_t k = 0; !len && k < run->len; k++)
        tok_next_add(w, "\xEF\xBF\xBD", 3, false);
    run->len = 0;
}

static tpl_code run_byte_fallback(const tok_step *s, tok_work *w, tpl_err *e)
{
    text_buf run = {0};
    for (size_t i = 0; i < w->now.n; i++) {
        const tok_span *v = &w->now.v[i];
        const char *p = tok_span_text(w, v);
        int b = fallback_byte(p, v->end - v->begin);
        char c = (char)b;
        if (b >= 0) {
            text_add(&run, &c, 1);
            continue;
        }
        if (run.len)
            flush_bytes(w, &run);
        tok_next_add(w, p, v->end - v->begin, v->first);
    }
    if (run.len)
        flush_bytes(w, &run);
    text_fini(&run);
    return TPL_OK;
}

static tpl_code parse_byte_fallback(tokenizer *t, const json_t *node, tok_step *out, tpl_err *e)
{
    out->run = run_byte_fallback;
    return TPL_OK;
}

/* ---- Fuse ---- */

static tpl_code run_fuse(const tok_step *s, tok_work *w, tpl_err *e)
{
    tok_next_add(w, w->now.text.data, w->now.text.len, false); /* spans lie end to end */
    return TPL_OK;
}

static tpl_code parse_fuse(tokenizer *t, const json_t *node, tok_step *out, tpl_err *e)
{
    out->run = run_fuse;
    return TPL_OK;
}

/* ---- Replace ---- */

static tpl_code run_replace(const tok_step *s, tok_work *w, tpl_err *e)
{
    for (size_t i = 0; i < w->now.n; i++) {
        const tok_span *v = &w->now.v[i];
        const char *p = tok_span_text(w, v);
        text_buf b = {0};
        TPL_TRY(tok_pattern_cuts(s->pattern, w, p, v->end - v->begin, e));
        for (size_t k = 0; k < w->n_cuts; k++) {
            tok_cut c = w->cuts[k];
            text_add(&b, c.match ? s->content : p + c.begin, c.match ? s->content_len : c.end - c.begin);
        }
        tok_next_add(w, b.data ? b.data : "", b.len, v->first);
        text_fini(&b);
    }
    return TPL_OK;
}

static tpl_code parse_replace(tokenizer *t, const json_t *node, tok_step *out, tpl_err *e)
{
    out->run = run_replace;
    TPL_TRY(tok_parse_pattern(t, node, false, &out->pattern, e));
    return tok_parse_text(t, node, "content", &out->content, &out->content_len, e);
}

/* ---- Strip ---- */

static tpl_code run_strip(const tok_step *s, tok_work *w, tpl_err *e)
{
    size_t len = s->content_len;
    for (size_t i = 0; i < w->now.n; i++) {
        const tok_span *v = &w->now.v[i];
        const char *p = tok_span_text(w, v);
        size_t begin = 0, end = v->end - v->begin;
        for (int64_t k = 0; k < s->start && end - begin >= len && !memcmp(p + begin, s->content, len); k++)
            begin += len;
        for (int64_t k = 0; k < s->stop && end - begin >= len && !memcmp(p + end - len, s->content, len); k++)
            end -= len;
        tok_next_add(w, p + begin, end - begin, v->first);
    }
    return TPL_OK;
}

static tpl_code parse_strip(tokenizer *t, const json_t *node, tok_step *out, tpl_err *e)
{
    out->run = run_strip;
    TPL_TRY(tok_parse_char(t, node, "content", &out->content, &out->content_len, e));
    TPL_TRY(json_want_int(node, "start", 0, INT32_MAX, &out->start, t->where, e));
    return json_want_int(node, "stop", 0, INT32_MAX, &out->stop, t->where, e);
}

/* ---- Metaspace ---- */

/* The replacement character becomes a blank, and in the first token nothing (unless nothing was ever prepended). */
static tpl_code run_metaspace(const tok_step *s, tok_work *w, tpl_err *e)
{
    for (size_t i = 0; i < w->now.n; i++) {
        const tok_span *v = &w->now.v[i];
        const char *p = tok_span_text(w, v);
        text_buf b = {0};
        TPL_TRY(tok_pattern_cuts(s->pattern, w, p, v->end - v->begin, e));
        for (size_t k = 0; k < w->n_cuts; k++) {
            tok_cut c = w->cuts[k];
            if (!c.match)
                text_add(&b, p + c.begin, c.end - c.begin);
            else if (i > 0 || s->prepend == TOK_PREPEND_NEVER)
                text_add(&b, " ", 1);
        }
        tok_next_add(w, b.data ? b.data : "", b.len, v->first);
        text_fini(&b);
    }
    return TPL_OK;
}

static tpl_code parse_metaspace(tokenizer *t, const json_t *node, tok_step *out, tpl_err *e)
{
    TPL_TRY(tok_metaspace_fields(t, node, out, e));
    out->run = run_metaspace;
    return TPL_OK;
}

/* ---- the stage ---- */

static const tok_step_kind kinds[] = {
    {"ByteLevel", parse_byte_level},
    {"ByteFallback", parse_byte_fallback},
    {"Fuse", parse_fuse},
    {"Replace", parse_replace},
    {"Strip", parse_strip},
    {"Metaspace", parse_metaspace},
    {NULL, NULL},
};

const tok_stage tok_decoder_stage = {.field = "decoder", .list = "decoders", .kinds = kinds};

void tok_steps_add_byte_decoder(tokenizer *t)
{
    *tok_steps_push(t, &t->decoders) = (tok_step){.run = run_byte_level};
}
