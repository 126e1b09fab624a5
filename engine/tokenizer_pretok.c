/* The pre-tokenizers: each cuts every undecided piece further. Empty pieces vanish. */
#include <string.h>

#include <utf8proc.h>

#include "engine/tokenizer_impl.h"

static void add_piece(tok_work *w, const char *s, size_t n, bool first)
{
    if (n)
        tok_next_add(w, s, n, first);
}

/* Calls `each` for every undecided piece; decided ones pass unchanged. */
typedef tpl_code piece_fn(const tok_step *s, tok_work *w, const char *p, size_t n, bool first, tpl_err *e);

static tpl_code each_piece(const tok_step *s, tok_work *w, piece_fn *each, tpl_err *e)
{
    for (size_t i = 0; i < w->now.n; i++) {
        const tok_span *v = &w->now.v[i];
        if (v->id >= 0)
            tok_next_add_token(w, v->id);
        else
            TPL_TRY(each(s, w, tok_span_text(w, v), v->end - v->begin, v->first, e));
    }
    return TPL_OK;
}

/* ---- what becomes of a delimiter ---- */

/* Joins neighbouring cuts as the behaviour says. From left to right for all but MERGED_NEXT, which mirrors
 * MERGED_PREVIOUS. A delimiter right after a delimiter stays alone in the two merging behaviours. */
static void join_forward(tok_work *w, tok_behavior behavior)
{
    bool previous = false;
    size_t n = 0;
    for (size_t i = 0; i < w->n_cuts; i++) {
        tok_cut c = w->cuts[i];
        bool join = behavior == TOK_CONTIGUOUS ? c.match == previous : c.match && !previous;
        previous = c.match;
        if (join && n)
            w->cuts[n - 1].end = c.end;
        else
            w->cuts[n++] = c;
    }
    w->n_cuts = n;
}

static void join_backward(tok_work *w)
{
    bool previous = false;
    size_t at = w->n_cuts;
    for (size_t i = w->n_cuts; i-- > 0;) {
        tok_cut c = w->cuts[i];
        bool join = c.match && !previous && at < w->n_cuts;
        previous = c.match;
        if (join)
            w->cuts[at].begin = c.begin;
        else
            w->cuts[--at] = c;
    }
    memmove(w->cuts, w->cuts + at, (w->n_cuts - at) * sizeof *w->cuts);
    w->n_cuts -= at;
}

static void emit_cuts(tok_work *w, const char *p, bool first, tok_behavior behavior)
{
    if (behavior == TOK_MERGED_NEXT)
        join_backward(w);
    else if (behavior == TOK_MERGED_PREVIOUS || behavior == TOK_CONTIGUOUS)
        join_forward(w, behavior);
    for (size_t i = 0; i < w->n_cuts; i++) {
        tok_cut c = w->cuts[i];
        if (behavior != TOK_REMOVED || !c.match)
            add_piece(w, p + c.begin, c.end - c.begin, first && c.begin == 0);
    }
}

/* ---- Split ---- */

static tpl_code split_piece(const tok_step *s, tok_work *w, const char *p, size_t n, bool first, tpl_err *e)
{
    TPL_TRY(tok_pattern_cuts(s->pattern, w, p, n, e));
    for (size_t i = 0; s->invert && i < w->n_cuts; i++)
        w->cuts[i].match = !w->cuts[i].match;
    emit_cuts(w, p, first, s->behavior);
    return TPL_OK;
}

static tpl_code run_split(const tok_step *s, tok_work *w, tpl_err *e)
{
    return each_piece(s, w, split_piece, e);
}

static tpl_code parse_split(tokenizer *t, const json_t *node, tok_step *out, tpl_err *e)
{
    static const char *const words[] = {"Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous"};
    const char *behavior;
    out->run = run_split;
    TPL_TRY(tok_parse_pattern(t, node, true, &out->pattern, e));
    TPL_TRY(json_maybe_bool(node, "invert", &out->invert, t->where, e));
    TPL_TRY(json_want_str(node, "behavior", &behavior, t->where, e));
    for (int i = 0; i < 5; i++)
        if (!strcmp(behavior, words[i])) {
            out->behavior = (tok_behavior)i;
            return TPL_OK;
        }
    return tpl_fail(e, TPL_E_UNSUPPORTED, t->where, "Split behavior '%.40s' is not supported", behavior);
}

/* ---- Digits ---- */

static bool is_numeric(uint32_t cp)
{
    if (cp < 0x80)
        return cp >= '0' && cp <= '9';
    utf8proc_category_t c = utf8proc_category((utf8proc_int32_t)cp);
    return c == UTF8PROC_CATEGORY_ND || c == UTF8PROC_CATEGORY_NL || c == UTF8PROC_CATEGORY_NO;
}

static tpl_code digits_piece(const tok_step *s, tok_work *w, const char *p, size_t n, bool first, tpl_err *e)
{
    size_t prev = 0, len;
    tok_cuts_clear(w);
    for (size_t i = 0; i < n; i += len) {
        if (!is_numeric(tok_utf8_get(p + i, &len)))
            continue;
        if (prev != i)
            tok_cut_add(w, prev, i, false);
        tok_cut_add(w, i, i + len, true);
        prev = i + len;
    }
    if (prev != n)
        tok_cut_add(w, prev, n, false);
    emit_cuts(w, p, first, s->behavior);
    return TPL_OK;
}

static tpl_code run_digits(const tok_step *s, tok_work *w, tpl_err *e)
{
    return each_piece(s, w, digits_piece, e);
}

static tpl_code parse_digits(tokenizer *t, const json_t *node, tok_step *out, tpl_err *e)
{
    bool individual = false;
    out->run = run_digits;
    TPL_TRY(json_maybe_bool(node, "individual_digits", &individual, t->where, e));
    out->behavior = individual ? TOK_ISOLATED : TOK_CONTIGUOUS;
    return TPL_OK;
}

/* ---- ByteLevel ---- */

/* GPT-2's own expression, which use_regex asks for. */
static const char gpt2_regex[] = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";

/* Copies bytes p[n] as their printable characters, as one piece. */
static void add_byte_chars(tok_work *w, const char *p, size_t n, bool first)
{
    char chunk[512];
    size_t used = 0;
    if (n == 0)
        return;
    tok_next_add(w, "", 0, first);
    if (w->too_long || 2 * n > TOK_MAX_PIECES - w->next.text.len) {
        w->too_long = true;
        return;
    }
    for (size_t i = 0; i < n; i++) {
        used += tok_utf8_put(tok_byte_char((uint8_t)p[i]), chunk + used);
        if (used > sizeof chunk - 4 || i + 1 == n) {
            text_add(&w->next.text, chunk, used);
            used = 0;
        }
    }
    w->next.v[w->next.n - 1].end = (uint32_t)w->next.text.len;
}

static tpl_code byte_level_piece(const tok_step *s, tok_work *w, const char *p, size_t n, bool first, tpl_err *e)
{
    if (!s->pattern) {
        add_byte_chars(w, p, n, first);
        return TPL_OK;
    }
    TPL_TRY(tok_pattern_cuts(s->pattern, w, p, n, e));
    for (size_t i = 0; i < w->n_cuts; i++)
        add_byte_chars(w, p + w->cuts[i].begin, w->cuts[i].end - w->cuts[i].begin, first && i == 0);
    return TPL_OK;
}

/* A blank goes before every piece that has none; done as a pass of its own, since splitting comes after. */
static tpl_code prefix_piece(const tok_step *s, tok_work *w, const char *p, size_t n, bool first, tpl_err *e)
{
    if (p[0] == ' ') {
        tok_next_add(w, p, n, first);
        return TPL_OK;
    }
    text_buf b = {0};
    text_add(&b, " ", 1);
    text_add(&b, p, n);
    tok_next_add(w, b.data, b.len, first);
    text_fini(&b);
    return TPL_OK;
}

static tpl_code run_byte_level(const tok_step *s, tok_work *w, tpl_err *e)
{
    if (s->prefix_space) {
        TPL_TRY(each_piece(s, w, prefix_piece, e));
        tok_next_done(w);
        tok_next_begin(w);
    }
    return each_piece(s, w, byte_level_piece, e);
}

static tpl_code parse_byte_level(tokenizer *t, const json_t *node, tok_step *out, tpl_err *e)
{
    bool use_regex = true;
    tok_pattern *p;
    out->run = run_byte_level;
    out->prefix_space = true;
    TPL_TRY(json_maybe_bool(node, "add_prefix_space", &out->prefix_space, t->where, e));
    TPL_TRY(json_maybe_bool(node, "use_regex", &use_regex, t->where, e));
    if (use_regex) {
        TPL_TRY(tok_pattern_regex(t, gpt2_regex, sizeof gpt2_regex - 1, &p, e));
        out->pattern = p;
    }
    return TPL_OK;
}

/* ---- Metaspace ---- */

/* Copies p[n] with every blank as the replacement character, preceded by it if asked. */
static void replace_blanks(const tok_step *s, const char *p, size_t n, bool first, text_buf *b)
{
    const char *end = p + n, *blank;
    bool starts = n > 0 && (*p == ' ' || (n >= s->content_len && !memcmp(p, s->content, s->content_len)));
    if (!starts && (s->prepend == TOK_PREPEND_ALWAYS || (s->prepend == TOK_PREPEND_FIRST && first)))
        text_add(b, s->content, s->content_len);
    while ((blank = memchr(p, ' ', (size_t)(end - p)))) {
        text_add(b, p, (size_t)(blank - p));
        text_add(b, s->content, s->content_len);
        p = blank + 1;
    }
    text_add(b, p, (size_t)(end - p));
}

static tpl_code metaspace_piece(const tok_step *s, tok_work *w, const char *p, size_t n, bool first, tpl_err *e)
{
    text_buf b = {0};
    tpl_code rc = TPL_OK;
    replace_blanks(s, p, n, first, &b);
    if (!s->split)
        add_piece(w, b.data, b.len, first);
    else if ((rc = tok_pattern_cuts(s->pattern, w, b.data, b.len, e)) == TPL_OK)
        emit_cuts(w, b.data, first, TOK_MERGED_NEXT);
    text_fini(&b);
    return rc;
}

static tpl_code run_metaspace(const tok_step *s, tok_work *w, tpl_err *e)
{
    return each_piece(s, w, metaspace_piece, e);
}

/* Older files say add_prefix_space instead of prepend_scheme. */
tpl_code tok_metaspace_fields(tokenizer *t, const json_t *node, tok_step *out, tpl_err *e)
{
    static const char *const words[] = {"always", "first", "never"};
    const char *scheme = "always";
    bool prefix = true, known = false;
    out->split = true;
    TPL_TRY(tok_parse_char(t, node, "replacement", &out->content, &out->content_len, e));
    TPL_TRY(json_maybe_bool(node, "split", &out->split, t->where, e));
    TPL_TRY(json_maybe_bool(node, "add_prefix_space", &prefix, t->where, e));
    TPL_TRY(json_maybe_str(node, "prepend_scheme", &scheme, t->where, e));
    for (int i = 0; i < 3; i++)
        if (!strcmp(scheme, words[i])) {
            out->prepend = (tok_prepend)i;
            known = true;
        }
    if (!known)
        return tpl_fail(e, TPL_E_UNSUPPORTED, t->where, "Metaspace prepend_scheme '%.40s' is not supported", scheme);
    if (!prefix && json_object_get(node, "prepend_scheme") && out->prepend != TOK_PREPEND_NEVER)
        return tpl_fail(e, TPL_E_INPUT, t->where, "Metaspace has add_prefix_space false but prepend_scheme '%s'",
                        scheme);
    if (!prefix)
        out->prepend = TOK_PREPEND_NEVER;
    out->pattern = tok_pattern_literal(t, out->content, out->content_len);
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
    {"Split", parse_split}, {"Digits", parse_digits}, {"ByteLevel", parse_byte_level}, {"Metaspace", parse_metaspace},
    {NULL, NULL},
};

const tok_stage tok_pretokenizer_stage = {.field = "pre_tokenizer", .list = "pretokenizers", .kinds = kinds};

tpl_code tok_steps_add_split(tokenizer *t, const char *regex, tpl_err *e)
{
    tok_pattern *p;
    TPL_TRY(tok_pattern_regex(t, regex, strlen(regex), &p, e));
    *tok_steps_push(t, &t->pretokenizers) = (tok_step){.run = run_split, .pattern = p, .behavior = TOK_ISOLATED};
    return TPL_OK;
}

void tok_steps_add_bytes(tokenizer *t)
{
    *tok_steps_push(t, &t->pretokenizers) = (tok_step){.run = run_byte_level};
}
