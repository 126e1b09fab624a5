/* Expressions of tokenizer.json are Oniguruma's (Ruby syntax). They run on PCRE2 after a rewrite of what the two read
 * differently; what cannot be rewritten exactly is refused by name:
 *   \s \S   Unicode White_Space (PCRE2 adds U+180E)          \w \W   Oniguruma's word class
 *   \p{Han} a script by its own property (PCRE2: extensions)  [A&&B]  a look-ahead before the class
 *   ^ $     at every line                                     \v \u   the characters */
#define _GNU_SOURCE /* memmem */
#include <ctype.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

#include "engine/tokenizer_impl.h"

/* Limits for one search: hostile text ends in an error, not in a long wait. The stack starts at 32 KiB. */
enum { MATCH_LIMIT = 10000000, HEAP_LIMIT_KIB = 65536, JIT_STACK_MAX = 1 << 22, MAX_EXPRESSION = 1 << 15 };

#define SPACE_CLASS "\\p{Z}\\t-\\r\\x{85}"
#define WORD_CLASS "\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}"
/* Oniguruma's \w by itself, but not within a class, takes the Latin-1 superscripts and fractions too. */
#define WORD_EXTRAS "\\x{B2}\\x{B3}\\x{B9}\\x{BC}-\\x{BE}"

/* ---- rewriting ---- */

typedef struct {
    const char *p, *end;
    text_buf *out;
    const char *why;
} rewrite;

static bool refuse(rewrite *r, const char *why)
{
    r->why = why;
    return false;
}

static void put(rewrite *r, const char *s)
{
    text_add(r->out, s, strlen(s));
}

static bool next_is(const rewrite *r, const char *s)
{
    size_t n = strlen(s);
    return (size_t)(r->end - r->p) >= n && !memcmp(r->p, s, n);
}

static bool compiles(const char *s)
{
    int code;
    PCRE2_SIZE at;
    pcre2_code *c = pcre2_compile((PCRE2_SPTR)s, PCRE2_ZERO_TERMINATED, PCRE2_UTF | PCRE2_UCP, &code, &at, NULL);
    pcre2_code_free(c);
    return c != NULL;
}

static bool is_general_category(const char *name)
{
    static const char *const two =
        "Cc Cf Cn Co Cs Ll Lm Lo Lt Lu Mc Me Mn Nd Nl No Pc Pd Pe Pf Pi Po Ps Sc Sk Sm So Zl Zp Zs";
    if (strlen(name) == 1)
        return strchr("CLMNPSZ", name[0]) != NULL;
    return strlen(name) == 2 && name[0] != ' ' && name[1] != ' ' && strstr(two, name) != NULL;
}

/* After \p or \P: {Name} or {^Name}. */
static bool rewrite_property(rewrite *r, char letter)
{
    char name[41], whole[64];
    size_t n = 0;
    if (!next_is(r, "{"))
        return refuse(r, "\\p without braces");
    r->p++;
    bool caret = next_is(r, "^");
    r->p += caret;
    while (r->p < r->end && *r->p != '}' && n < sizeof name - 1)
        name[n++] = *r->p++;
    name[n] = 0;
    if (!next_is(r, "}") || n == 0 || strspn(name, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz_") != n)
        return refuse(r, "malformed \\p{...}");
    r->p++;
    snprintf(whole, sizeof whole, "\\%c{%s%s%s}", letter, caret ? "^" : "",
             is_general_category(name) ? "" : "sc:", name);
    if (!compiles(whole))
        snprintf(whole, sizeof whole, "\\%c{%s%s}", letter, caret ? "^" : "", name);
    if (!compiles(whole))
        return refuse(r, "unknown \\p{...}");
    put(r, whole);
    return true;
}

/* After \x or \u: a code point in hexadecimal. */
static bool rewrite_hex(rewrite *r, char letter)
{
    bool braces = letter == 'x' && next_is(r, "{");
    size_t most = braces ? 8 : letter == 'u' ? 4 : 2, n = 0;
    char digits[9];
    r->p += braces;
    while (r->p < r->end && n < most && *r->p && strchr("0123456789abcdefABCDEF", *r->p))
        digits[n++] = *r->p++;
    digits[n] = 0;
    if (n == 0 || (letter == 'u' && n != 4) || (braces && !next_is(r, "}")))
        return refuse(r, "malformed \\x or \\u");
    r->p += braces;
    if (letter == 'x' && !braces && n == 2 && digits[0] >= '8')
        return refuse(r, "\\x of a raw byte");
    put(r, "\\x{");
    put(r, digits);
    put(r, "}");
    return true;
}

static bool rewrite_set(rewrite *r, char letter, bool in_class)
{
    bool space = letter == 's' || letter == 'S', negated = letter == 'S' || letter == 'W';
    if (in_class && negated)
        return refuse(r, "\\S or \\W inside a class");
    if (!in_class)
        put(r, negated ? "[^" : "[");
    put(r, space ? SPACE_CLASS : WORD_CLASS);
    if (!in_class && !space)
        put(r, WORD_EXTRAS);
    if (!in_class)
        put(r, "]");
    return true;
}

static bool rewrite_escape(rewrite *r, bool in_class)
{
    r->p++;
    if (r->p == r->end)
        return refuse(r, "a lone backslash at the end");
    char c = *r->p++;
    switch (c) {
    case 's':
    case 'S':
    case 'w':
    case 'W':
        return rewrite_set(r, c, in_class);
    case 'p':
    case 'P':
        return rewrite_property(r, c);
    case 'x':
    case 'u':
        return rewrite_hex(r, c);
    case 'v':
        put(r, "\\x{0B}");
        return true;
    case 'A':
    case 'z':
        if (in_class)
            return refuse(r, "\\A or \\z inside a class");
        break;
    case 'd':
    case 'D':
    case 'n':
    case 'r':
    case 't':
    case 'f':
    case 'a':
    case 'e':
        break;
    default:
        if ((c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'))
            return refuse(r, "an escape (back-reference, word boundary, \\h or the like)");
    }
    if ((unsigned char)c < 0x80)
        put(r, "\\");
    text_add(r->out, &c, 1);
    return true;
}

/* The inside of a class, from after '[' or '[^' up to ']' or '&&', which it leaves. */
static bool rewrite_class_items(rewrite *r)
{
    if (next_is(r, "]")) {
        put(r, "\\]");
        r->p++;
    }
    while (r->p < r->end && *r->p != ']' && !next_is(r, "&&")) {
        if (*r->p == '[')
            return refuse(r, "a class inside a class");
        if (*r->p == '\\') {
            if (!rewrite_escape(r, true))
                return false;
            continue;
        }
        text_add(r->out, r->p++, 1);
    }
    return r->p < r->end || refuse(r, "a class without end");
}

/* [A&&[^B]] becomes (?:(?![B])[A]), and [A&&[B]] becomes (?:(?=[B])[A]). */
static bool rewrite_class(rewrite *r)
{
    text_buf items = {0}, *whole = r->out;
    r->p++;
    bool negated = next_is(r, "^");
    r->p += negated;
    r->out = &items;
    bool ok = rewrite_class_items(r);
    r->out = whole;
    if (ok && next_is(r, "&&")) {
        r->p += 2;
        if (negated || !next_is(r, "["))
            ok = refuse(r, "this form of class intersection");
        else {
            r->p++;
            bool but = next_is(r, "^");
            r->p += but;
            put(r, but ? "(?:(?![" : "(?:(?=[");
            ok = rewrite_class_items(r) && (next_is(r, "]]") || refuse(r, "this form of class intersection"));
            put(r, "])[");
            r->p += ok ? 2 : 0;
        }
        text_add(r->out, items.data ? items.data : "", items.len);
        put(r, "])");
    } else if (ok) {
        put(r, negated ? "[^" : "[");
        text_add(r->out, items.data ? items.data : "", items.len);
        put(r, "]");
        r->p++;
    }
    text_fini(&items);
    return ok;
}

/* May what follows "(?i:" ignore case the same way on both sides? Oniguruma folds one character into several ("ss" is
 * U+00DF), PCRE2 does not: so plain words only, without the pairs that one character folds into. */
static bool caseless_is_plain(const rewrite *r)
{
    static const char *const pairs[] = {"ss", "ff", "fi", "fl", "st"};
    for (const char *p = r->p; p < r->end && *p != ')'; p++) {
        bool quote = r->end - p >= 3 && !memcmp(p, "\xE2\x80\x99", 3); /* the typographic apostrophe */
        if (quote)
            p += 2;
        else if (*p != '\'' && *p != '|' && *p != '[' && *p != ']' && *p != ' ' && !isalnum((unsigned char)*p))
            return false;
        for (size_t i = 0; r->end - p >= 2 && i < sizeof pairs / sizeof *pairs; i++)
            if (!strncasecmp(p, pairs[i], 2))
                return false;
    }
    return true;
}

/* "(" and what follows a "?": groups whose meaning is the same on both sides. */
static bool rewrite_group(rewrite *r)
{
    static const char *const same[] = {"(?:", "(?=", "(?!", "(?>", "(?<=", "(?<!", "(?i:", "(?-i:"};
    if (next_is(r, "(*"))
        return refuse(r, "(*...)");
    if (!next_is(r, "(?")) {
        put(r, "(");
        r->p++;
        return true;
    }
    for (size_t i = 0; i < sizeof same / sizeof *same; i++)
        if (next_is(r, same[i])) {
            put(r, same[i]);
            r->p += strlen(same[i]);
            return strcmp(same[i], "(?i:") != 0 || caseless_is_plain(r) ||
                   refuse(r, "(?i:...) of more than plain words");
        }
    return refuse(r, "a group of this kind");
}

/* "{": a count, or a plain brace. Ruby reads a second sign after a count as a repeat of its own. */
static bool rewrite_brace(rewrite *r)
{
    const char *q = r->p + 1;
    size_t low = 0, high = 0;
    bool comma = false;
    for (; q < r->end && *q >= '0' && *q <= '9'; q++)
        low++;
    if (q < r->end && *q == ',') {
        comma = true;
        for (q++; q < r->end && *q >= '0' && *q <= '9'; q++)
            high++;
    }
    bool count = q < r->end && *q == '}' && (low || (comma && high));
    if (!count) {
        put(r, "\\{");
        r->p++;
        return true;
    }
    if (!low || (q + 1 < r->end && (q[1] == '+' || q[1] == '?')))
        return refuse(r, "{,n} or a sign after {n,m}");
    text_add(r->out, r->p, (size_t)(q + 1 - r->p));
    r->p = q + 1;
    return true;
}

bool tok_regex_translate(const char *s, size_t len, text_buf *out, const char **why)
{
    rewrite r = {.p = s, .end = s + len, .out = out};
    bool ok = true;
    while (ok && r.p < r.end) {
        if (*r.p == '\\')
            ok = rewrite_escape(&r, false);
        else if (*r.p == '[')
            ok = rewrite_class(&r);
        else if (*r.p == '(')
            ok = rewrite_group(&r);
        else if (*r.p == '{')
            ok = rewrite_brace(&r);
        else
            text_add(out, r.p++, 1);
    }
    *why = r.why;
    return ok;
}

/* ---- compiling ---- */

static tok_pattern *pattern_create(tokenizer *t, const char *s, size_t len)
{
    tok_pattern *p = arena_alloc(&t->mem, sizeof *p);
    char *copy = arena_alloc(&t->mem, len + 1);
    memcpy(copy, s, len);
    *p = (tok_pattern){.text = copy, .len = len, .next = t->patterns};
    t->patterns = p;
    return p;
}

tok_pattern *tok_pattern_literal(tokenizer *t, const char *s, size_t len)
{
    return pattern_create(t, s, len);
}

static tpl_code compile(tokenizer *t, const char *source, const char *s, size_t len, pcre2_code **out, tpl_err *e)
{
    int code;
    PCRE2_SIZE at;
    pcre2_compile_context *c = pcre2_compile_context_create(NULL);
    if (!c)
        return tpl_fail(e, TPL_E_MEMORY, t->where, "no memory for a pattern");
    pcre2_set_newline(c, PCRE2_NEWLINE_LF);
    *out =
        pcre2_compile((PCRE2_SPTR)s, len, PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NO_UTF_CHECK, &code, &at, c);
    pcre2_compile_context_free(c);
    if (!*out) {
        char msg[96] = "";
        pcre2_get_error_message(code, (PCRE2_UCHAR *)msg, sizeof msg);
        return tpl_fail(e, TPL_E_UNSUPPORTED, t->where, "pattern does not compile (%s): %.80s", msg, source);
    }
    pcre2_jit_compile(*out, PCRE2_JIT_COMPLETE); /* without it pcre2_match interprets: slower, same result */
    return TPL_OK;
}

tpl_code tok_pattern_regex(tokenizer *t, const char *s, size_t len, tok_pattern **out, tpl_err *e)
{
    text_buf b = {0};
    const char *why = NULL;
    if (len > MAX_EXPRESSION)
        return tpl_fail(e, TPL_E_UNSUPPORTED, t->where, "a pattern has %zu bytes, expected at most %d", len,
                        MAX_EXPRESSION);
    tok_pattern *p = pattern_create(t, s, len);
    tpl_code rc;
    if (tok_regex_translate(s, len, &b, &why))
        rc = compile(t, p->text, b.data ? b.data : "", b.len, &p->code, e);
    else
        rc = tpl_fail(e, TPL_E_UNSUPPORTED, t->where, "pattern uses %s, which is not supported: %.80s", why, p->text);
    text_fini(&b);
    if (rc == TPL_OK)
        *out = p;
    return rc;
}

void tok_patterns_free(tok_pattern *list)
{
    for (; list; list = list->next)
        pcre2_code_free(list->code);
}

/* ---- searching ---- */

static bool work_ready(tok_work *w)
{
    if (w->match)
        return true;
    w->match_context = pcre2_match_context_create(NULL);
    w->jit_stack = pcre2_jit_stack_create(1 << 15, JIT_STACK_MAX, NULL);
    w->match = pcre2_match_data_create(1, NULL);
    if (!w->match || !w->match_context)
        return false;
    pcre2_set_match_limit(w->match_context, MATCH_LIMIT);
    pcre2_set_heap_limit(w->match_context, HEAP_LIMIT_KIB);
    if (w->jit_stack)
        pcre2_jit_stack_assign(w->match_context, NULL, w->jit_stack);
    return true;
}

/* The first match at or after `from`: its bounds and true; else false with *rc a PCRE2 error or NOMATCH. */
static bool search(const tok_pattern *p, tok_work *w, const char *s, size_t n, size_t from, tok_cut *m, int *rc)
{
    *rc = PCRE2_ERROR_NOMEMORY;
    if (!work_ready(w))
        return false;
    *rc = pcre2_match(p->code, (PCRE2_SPTR)s, n, from, PCRE2_NO_UTF_CHECK, w->match, w->match_context);
    if (*rc == PCRE2_ERROR_JIT_STACKLIMIT)
        *rc =
            pcre2_match(p->code, (PCRE2_SPTR)s, n, from, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, w->match, w->match_context);
    if (*rc < 0)
        return false;
    const PCRE2_SIZE *v = pcre2_get_ovector_pointer(w->match);
    *m = (tok_cut){.begin = (uint32_t)v[0], .end = (uint32_t)v[1], .match = true};
    return true;
}

bool tok_pattern_matches(const tok_pattern *p, tok_work *w, const char *s, size_t n)
{
    tok_cut m;
    int rc;
    return search(p, w, s, n, 0, &m, &rc);
}

void tok_cuts_clear(tok_work *w)
{
    w->n_cuts = 0;
}

void tok_cut_add(tok_work *w, size_t begin, size_t end, bool match)
{
    tok_reserve((void **)&w->cuts, &w->cap_cuts, w->n_cuts, sizeof *w->cuts);
    w->cuts[w->n_cuts++] = (tok_cut){.begin = (uint32_t)begin, .end = (uint32_t)end, .match = match};
}

static void cut_match(tok_work *w, size_t *prev, size_t begin, size_t end)
{
    if (*prev != begin)
        tok_cut_add(w, *prev, begin, false);
    tok_cut_add(w, begin, end, true);
    *prev = end;
}

static void literal_cuts(const tok_pattern *p, tok_work *w, const char *s, size_t n, size_t *prev)
{
    const char *hit;
    while ((hit = memmem(s + *prev, n - *prev, p->text, p->len)))
        cut_match(w, prev, (size_t)(hit - s), (size_t)(hit - s) + p->len);
}

/* An empty match right after the previous match does not count; the search then goes on one character later. */
static int regex_cuts(const tok_pattern *p, tok_work *w, const char *s, size_t n, size_t *prev)
{
    size_t from = 0, last_end = SIZE_MAX, skip;
    int rc = PCRE2_ERROR_NOMATCH;
    tok_cut m;
    while (from <= n && search(p, w, s, n, from, &m, &rc)) {
        if (m.begin == m.end && m.end == last_end) {
            if (m.end == n)
                return PCRE2_ERROR_NOMATCH;
            tok_utf8_get(s + m.end, &skip);
            from = m.end + skip;
            continue;
        }
        cut_match(w, prev, m.begin, m.end);
        from = last_end = m.end;
    }
    return rc;
}

tpl_code tok_pattern_cuts(const tok_pattern *p, tok_work *w, const char *s, size_t n, tpl_err *e)
{
    size_t prev = 0;
    int rc = PCRE2_ERROR_NOMATCH;
    tok_cuts_clear(w);
    if (p->code)
        rc = regex_cuts(p, w, s, n, &prev);
    else
        literal_cuts(p, w, s, n, &prev);
    if (rc < 0 && rc != PCRE2_ERROR_NOMATCH) {
        char msg[96] = "";
        pcre2_get_error_message(rc, (PCRE2_UCHAR *)msg, sizeof msg);
        return tpl_fail(e, TPL_E_INPUT, w->t->where, "text of %zu bytes is too much for pattern (%s): %.80s", n, msg,
                        p->text);
    }
    if (prev != n)
        tok_cut_add(w, prev, n, false);
    return TPL_OK;
}
