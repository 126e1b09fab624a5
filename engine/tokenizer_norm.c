/* The normalisers: each rewrites every undecided piece before it is split. */
#include <stdlib.h>
#include <string.h>

#include <utf8proc.h>

#include "engine/tokenizer_impl.h"

/* ---- Unicode normalisation forms ---- */

/* utf8proc decomposes and composes; the canonical ordering between is done here, because utf8proc's own is quadratic in
 * a run of combining marks and a text may consist of marks only. The reference's tables are of Unicode 9: the hundred
 * rare combining marks that came later keep their place there and are ordered here. */

typedef struct {
    utf8proc_int32_t *v;
    size_t n, cap;
} code_points;

static void decompose(const tok_step *s, const char *p, size_t n, code_points *out)
{
    enum { LONGEST = 32 }; /* U+FDFA decomposes into 18 */
    utf8proc_option_t options = UTF8PROC_STABLE | UTF8PROC_DECOMPOSE | (s->compat ? UTF8PROC_COMPAT : 0);
    size_t len;
    int boundary = 0;
    for (size_t i = 0; i < n; i += len) {
        utf8proc_int32_t cp = (utf8proc_int32_t)tok_utf8_get(p + i, &len);
        tok_reserve((void **)&out->v, &out->cap, out->n + LONGEST, sizeof *out->v);
        utf8proc_ssize_t got = utf8proc_decompose_char(cp, out->v + out->n, LONGEST, options, &boundary);
        if (got > 0 && got <= LONGEST)
            out->n += (size_t)got;
        else
            out->v[out->n++] = cp;
    }
}

static int combining_class(utf8proc_int32_t cp)
{
    return cp < 0x300 ? 0 : utf8proc_get_property(cp)->combining_class;
}

/* Stable sort of v[n], n >= 2, by combining class: by counting, hence linear. */
static void order_run(utf8proc_int32_t *v, size_t n)
{
    size_t begin[257] = {0};
    utf8proc_int32_t *copy = tpl_malloc(n * sizeof *v);
    memcpy(copy, v, n * sizeof *v);
    for (size_t i = 0; i < n; i++)
        begin[combining_class(copy[i]) + 1]++;
    for (int c = 1; c < 257; c++)
        begin[c] += begin[c - 1];
    for (size_t i = 0; i < n; i++)
        v[begin[combining_class(copy[i])]++] = copy[i];
    free(copy);
}

static void order_marks(code_points *c)
{
    size_t i = 0;
    while (i < c->n) {
        size_t begin = i;
        while (i < c->n && combining_class(c->v[i]) > 0)
            i++;
        if (i - begin > 1)
            order_run(c->v + begin, i - begin);
        i += i == begin;
    }
}

static bool is_ascii(const char *p, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if ((unsigned char)p[i] >= 0x80)
            return false;
    return true;
}

static void normalize_piece(const tok_step *s, tok_work *w, const char *p, size_t n, bool first)
{
    code_points c = {0};
    text_buf b = {0};
    char ch[4];
    decompose(s, p, n, &c);
    order_marks(&c);
    utf8proc_ssize_t got = (utf8proc_ssize_t)c.n;
    if (s->compose)
        got = utf8proc_normalize_utf32(c.v, got, UTF8PROC_STABLE | UTF8PROC_COMPOSE);
    for (utf8proc_ssize_t i = 0; i < got; i++)
        text_add(&b, ch, tok_utf8_put((uint32_t)c.v[i], ch));
    tok_next_add(w, b.data ? b.data : "", b.len, first);
    text_fini(&b);
    free(c.v);
}

static tpl_code run_form(const tok_step *s, tok_work *w, tpl_err *e)
{
    for (size_t i = 0; i < w->now.n; i++) {
        const tok_span *v = &w->now.v[i];
        const char *p = tok_span_text(w, v);
        size_t n = v->end - v->begin;
        if (v->id >= 0)
            tok_next_add_token(w, v->id);
        else if (is_ascii(p, n))
            tok_next_add(w, p, n, v->first);
        else
            normalize_piece(s, w, p, n, v->first);
    }
    return TPL_OK;
}

static tpl_code parse_form(tokenizer *t, const json_t *node, tok_step *out, tpl_err *e)
{
    const char *type;
    TPL_TRY(json_want_str(node, "type", &type, t->where, e));
    out->run = run_form;
    out->compat = strchr(type, 'K') != NULL;
    out->compose = strchr(type, 'C') != NULL;
    return TPL_OK;
}

/* ---- Prepend ---- */

static tpl_code run_prepend(const tok_step *s, tok_work *w, tpl_err *e)
{
    for (size_t i = 0; i < w->now.n; i++) {
        const tok_span *v = &w->now.v[i];
        if (v->id >= 0) {
            tok_next_add_token(w, v->id);
            continue;
        }
        text_buf b = {0};
        if (v->end > v->begin)
            text_add(&b, s->content, s->content_len);
        text_add(&b, tok_span_text(w, v), v->end - v->begin);
        tok_next_add(w, b.data, b.len, v->first);
        text_fini(&b);
    }
    return TPL_OK;
}

static tpl_code parse_prepend(tokenizer *t, const json_t *node, tok_step *out, tpl_err *e)
{
    out->run = run_prepend;
    return tok_parse_text(t, node, "prepend", &out->content, &out->content_len, e);
}

/* ---- Replace ---- */

static tpl_code run_replace(const tok_step *s, tok_work *w, tpl_err *e)
{
    for (size_t i = 0; i < w->now.n; i++) {
        const tok_span *v = &w->now.v[i];
        const char *p = tok_span_text(w, v);
        if (v->id >= 0) {
            tok_next_add_token(w, v->id);
            continue;
        }
        text_buf b = {0};
        TPL_TRY(tok_pattern_cuts(s->pattern, w, p, v->end - v->begin, e));
        for (size_t k = 0; k < w->n_cuts; k++) {
            tok_cut c = w->cuts[k];
            text_add(&b, c.match ? s->content : p + c.begin, c.match ? s->content_len : c.end - c.begin);
            if (b.len > TOK_MAX_PIECES)
                break;
        }
        tok_next_add(w, b.data ? b.data : "", b.len, v->first);
        text_fini(&b);
        if (w->too_long)
            break;
    }
    return TPL_OK;
}

static tpl_code parse_replace(tokenizer *t, const json_t *node, tok_step *out, tpl_err *e)
{
    out->run = run_replace;
    TPL_TRY(tok_parse_pattern(t, node, true, &out->pattern, e));
    TPL_TRY(tok_parse_text(t, node, "content", &out->content, &out->content_len, e));
    if (out->pattern->code && memchr(out->content, '$', out->content_len))
        return tpl_fail(e, TPL_E_UNSUPPORTED, t->where, "Replace with a group reference is not supported: %.80s",
                        out->content);
    return TPL_OK;
}

/* ---- the stage ---- */

static const tok_step_kind kinds[] = {
    {"NFC", parse_form},        {"NFD", parse_form},        {"NFKC", parse_form}, {"NFKD", parse_form},
    {"Prepend", parse_prepend}, {"Replace", parse_replace}, {NULL, NULL},
};

const tok_stage tok_normalizer_stage = {.field = "normalizer", .list = "normalizers", .kinds = kinds};
