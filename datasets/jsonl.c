#include "datasets/jsonl.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void jsonl_init(jsonl *j, const char *data, size_t n_bytes, const char *name)
{
    *j = (jsonl){.rest = data, .end = data + n_bytes, .name = name};
}

static bool is_blank(const char *s, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (s[i] != ' ' && s[i] != '\t' && s[i] != '\r')
            return false;
    return true;
}

tpl_code jsonl_next(jsonl *j, json_t **doc, tpl_err *e)
{
    const char *line;
    size_t n;
    do {
        if (j->rest == j->end) {
            *doc = NULL;
            return TPL_OK;
        }
        if (j->line == INT_MAX)
            return tpl_fail(e, TPL_E_INPUT, j->where, "more lines follow, expected %d at most", INT_MAX);
        line = j->rest;
        const char *lf = memchr(line, '\n', (size_t)(j->end - line));
        n = (size_t)((lf ? lf : j->end) - line);
        j->rest = lf ? lf + 1 : j->end;
        j->line++;
    } while (is_blank(line, n));
    snprintf(j->where, sizeof j->where, "%.140s:%d", j->name, j->line);
    json_t *v = NULL;
    TPL_TRY(json_load_bytes(line, n, j->where, &v, e));
    if (!json_is_object(v)) {
        tpl_fail(e, TPL_E_INPUT, j->where, "the line is %s, expected an object", json_type_word(v));
        json_decref(v);
        return TPL_E_INPUT;
    }
    *doc = v;
    return TPL_OK;
}

/* Copies a JSON string; text with a NUL would be cut short everywhere else. */
static tpl_code copy_text(arena *a, const json_t *v, const char *key, char **out, const char *where, tpl_err *e)
{
    const char *s = json_string_value(v);
    size_t n = json_string_length(v);
    if (memchr(s, 0, n))
        return tpl_fail(e, TPL_E_INPUT, where, "field '%s' holds a NUL character, expected text without", key);
    *out = arena_strndup(a, s, n);
    return TPL_OK;
}

tpl_code jsonl_want_text(arena *a, const json_t *obj, const char *key, char **out, const char *where, tpl_err *e)
{
    const char *s;
    TPL_TRY(json_want_str(obj, key, &s, where, e));
    return copy_text(a, json_object_get(obj, key), key, out, where, e);
}

tpl_code jsonl_maybe_id(arena *a, const json_t *obj, const char *key, char **out, const char *where, tpl_err *e)
{
    const json_t *v = json_object_get(obj, key);
    if (!v || json_is_null(v))
        return TPL_OK;
    if (json_is_string(v))
        return copy_text(a, v, key, out, where, e);
    if (!json_is_integer(v))
        return tpl_fail(e, TPL_E_INPUT, where, "field '%s' is %s, expected a string or an integer", key,
                        json_type_word(v));
    *out = arena_printf(a, "%lld", (long long)json_integer_value(v));
    return TPL_OK;
}

tpl_code jsonl_want_texts(arena *a, const json_t *obj, const char *key, int at_least, char ***out, int *n,
                          const char *where, tpl_err *e)
{
    json_t *list;
    TPL_TRY(json_want_array(obj, key, &list, where, e));
    size_t count = json_array_size(list);
    if (count < (size_t)at_least || count > INT_MAX)
        return tpl_fail(e, TPL_E_INPUT, where, "field '%s' has %zu items, expected %d or more", key, count, at_least);
    char **texts = arena_array(a, char *, count ? count : 1);
    for (size_t i = 0; i < count; i++) {
        const json_t *v = json_array_get(list, i);
        if (!json_is_string(v))
            return tpl_fail(e, TPL_E_INPUT, where, "field '%s' item %zu is %s, expected a string", key, i,
                            json_type_word(v));
        TPL_TRY(copy_text(a, v, key, &texts[i], where, e));
    }
    *out = texts;
    *n = (int)count;
    return TPL_OK;
}

void *jsonl_grow(void *items, size_t item_bytes, int n)
{
    bool full = n == 0 || (n & (n - 1)) == 0;
    return full ? tpl_realloc(items, item_bytes * (n ? 2 * (size_t)n : 1)) : items;
}

void *jsonl_keep(arena *a, void *items, size_t item_bytes, int n)
{
    void *kept = arena_alloc(a, item_bytes * (size_t)n);
    memcpy(kept, items, item_bytes * (size_t)n);
    free(items);
    return kept;
}
