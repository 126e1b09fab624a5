#include <stdlib.h>
#include <string.h>

#include "engine/tokenizer_impl.h"

/* ---- scratch of one call ---- */

void tok_work_init(tok_work *w, const tokenizer *t)
{
    *w = (tok_work){.t = t};
}

static void pieces_fini(tok_pieces *p)
{
    text_fini(&p->text);
    free(p->v);
}

void tok_work_fini(tok_work *w)
{
    pieces_fini(&w->now);
    pieces_fini(&w->next);
    free(w->cuts);
    free(w->symbols);
    free(w->heap);
    free(w->ids);
    pcre2_match_data_free(w->match);
    pcre2_match_context_free(w->match_context);
    pcre2_jit_stack_free(w->jit_stack);
}

void tok_reserve(void **v, size_t *cap, size_t n, size_t size)
{
    if (n < *cap)
        return;
    *cap = n < 32 ? 64 : 2 * n;
    *v = tpl_realloc(*v, *cap * size);
}

/* ---- pieces ---- */

const char *tok_span_text(const tok_work *w, const tok_span *s)
{
    return w->now.text.data + s->begin;
}

static void next_push(tok_work *w, tok_span s)
{
    tok_pieces *p = &w->next;
    tok_reserve((void **)&p->v, &p->cap, p->n, sizeof *p->v);
    p->v[p->n++] = s;
}

void tok_next_add(tok_work *w, const char *s, size_t n, bool first)
{
    text_buf *b = &w->next.text;
    if (n > TOK_MAX_PIECES - b->len) {
        w->too_long = true;
        return;
    }
    uint32_t begin = (uint32_t)b->len;
    text_add(b, s, n);
    next_push(w, (tok_span){.begin = begin, .end = (uint32_t)b->len, .id = -1, .first = first});
}

void tok_next_add_token(tok_work *w, int32_t id)
{
    uint32_t at = (uint32_t)w->next.text.len;
    next_push(w, (tok_span){.begin = at, .end = at, .id = id});
}

void tok_next_begin(tok_work *w)
{
    w->next.n = 0;
    w->next.text.len = 0;
    text_add(&w->next.text, "", 0);
}

void tok_next_done(tok_work *w)
{
    tok_pieces p = w->now;
    w->now = w->next;
    w->next = p;
}

/* ---- reading and running steps ---- */

tok_step *tok_steps_push(tokenizer *t, tok_steps *steps)
{
    if (steps->n == steps->cap) {
        int cap = steps->cap ? 2 * steps->cap : 4;
        tok_step *v = arena_array(&t->mem, tok_step, cap);
        if (steps->n)
            memcpy(v, steps->v, sizeof *v * (size_t)steps->n);
        steps->v = v;
        steps->cap = cap;
    }
    tok_step *s = &steps->v[steps->n++];
    *s = (tok_step){0};
    return s;
}

static tpl_code parse_node(tokenizer *t, const tok_stage *stage, const json_t *node, tok_steps *steps, int depth,
                           tpl_err *e);

static tpl_code parse_sequence(tokenizer *t, const tok_stage *stage, const json_t *node, tok_steps *steps, int depth,
                               tpl_err *e)
{
    json_t *list;
    if (depth == TOK_MAX_NESTING)
        return tpl_fail(e, TPL_E_INPUT, t->where, "%s nests Sequence deeper than %d", stage->field, TOK_MAX_NESTING);
    TPL_TRY(json_want_array(node, stage->list, &list, t->where, e));
    for (size_t i = 0; i < json_array_size(list); i++)
        TPL_TRY(parse_node(t, stage, json_array_get(list, i), steps, depth + 1, e));
    return TPL_OK;
}

static tpl_code parse_node(tokenizer *t, const tok_stage *stage, const json_t *node, tok_steps *steps, int depth,
                           tpl_err *e)
{
    const char *type;
    if (!json_is_object(node))
        return tpl_fail(e, TPL_E_INPUT, t->where, "%s is %s, expected an object or null", stage->field,
                        json_type_word(node));
    TPL_TRY(json_want_str(node, "type", &type, t->where, e));
    if (!strcmp(type, "Sequence"))
        return parse_sequence(t, stage, node, steps, depth, e);
    for (const tok_step_kind *k = stage->kinds; k->type; k++)
        if (!strcmp(type, k->type))
            return k->parse(t, node, tok_steps_push(t, steps), e);
    return tpl_fail(e, TPL_E_UNSUPPORTED, t->where, "%s '%.60s' is not supported", stage->field, type);
}

tpl_code tok_steps_parse(tokenizer *t, const tok_stage *stage, const json_t *node, tok_steps *steps, tpl_err *e)
{
    if (!node || json_is_null(node))
        return TPL_OK;
    return parse_node(t, stage, node, steps, 0, e);
}

tpl_code tok_steps_run(const tok_steps *steps, tok_work *w, tpl_err *e)
{
    for (int i = 0; i < steps->n; i++) {
        tok_next_begin(w);
        TPL_TRY(steps->v[i].run(&steps->v[i], w, e));
        tok_next_done(w);
        if (w->too_long)
            return tpl_fail(e, TPL_E_INPUT, w->t->where, "the text grows beyond %d bytes while it is split",
                            TOK_MAX_PIECES);
    }
    return TPL_OK;
}

/* ---- fields that several steps share ---- */

tpl_code tok_parse_text(tokenizer *t, const json_t *node, const char *key, const char **s, size_t *len, tpl_err *e)
{
    const char *v;
    TPL_TRY(json_want_str(node, key, &v, t->where, e));
    *len = json_string_length(json_object_get(node, key));
    char *copy = arena_alloc(&t->mem, *len + 1);
    memcpy(copy, v, *len);
    *s = copy;
    return TPL_OK;
}

tpl_code tok_parse_char(tokenizer *t, const json_t *node, const char *key, const char **s, size_t *len, tpl_err *e)
{
    TPL_TRY(tok_parse_text(t, node, key, s, len, e));
    if (*len == 0 || tok_utf8_valid(*s, *len) != *len)
        return tpl_fail(e, TPL_E_INPUT, t->where, "field '%s' is \"%.40s\", expected one character", key, *s);
    return TPL_OK;
}

tpl_code tok_parse_pattern(tokenizer *t, const json_t *node, bool allow_regex, const tok_pattern **out, tpl_err *e)
{
    json_t *p;
    const char *s;
    size_t len;
    tok_pattern *made;
    TPL_TRY(json_want_object(node, "pattern", &p, t->where, e));
    bool regex = json_object_get(p, "Regex") != NULL;
    TPL_TRY(tok_parse_text(t, p, regex ? "Regex" : "String", &s, &len, e));
    if (regex && !allow_regex)
        return tpl_fail(e, TPL_E_UNSUPPORTED, t->where, "a decoder's Replace by Regex is not supported: %.80s", s);
    if (len == 0)
        return tpl_fail(e, TPL_E_UNSUPPORTED, t->where, "an empty pattern is not supported");
    if (regex)
        TPL_TRY(tok_pattern_regex(t, s, len, &made, e));
    else
        made = tok_pattern_literal(t, s, len);
    *out = made;
    return TPL_OK;
}
