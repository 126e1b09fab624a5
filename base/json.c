#include "base/json.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/text.h"

tpl_code json_load_bytes(const char *data, size_t len, const char *where, json_t **out, tpl_err *e)
{
    json_error_t why;
    json_t *v = json_loadb(data, len, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, &why);
    if (!v) {
        char place[160];
        snprintf(place, sizeof place, why.line > 1 ? "%s:%d" : "%s", where, why.line);
        return tpl_fail(e, TPL_E_INPUT, place, "malformed JSON at column %d: %s", why.column, why.text);
    }
    *out = v;
    return TPL_OK;
}

tpl_code json_load_path(const char *path, json_t **out, tpl_err *e)
{
    char *data;
    size_t len;
    TPL_TRY(text_read_file(path, &data, &len, e));
    tpl_code rc = json_load_bytes(data, len, path, out, e);
    free(data);
    return rc;
}

const char *json_type_word(const json_t *v)
{
    if (!v)
        return "nothing";
    static const char *const words[] = {"an object", "an array", "a string", "a number", "a number", "a boolean", "a boolean", "null"};
    return words[json_typeof(v)];
}

static tpl_code bad_type(const char *key, const char *wanted, const json_t *got, const char *where, tpl_err *e)
{
    return tpl_fail(e, TPL_E_INPUT, where, "field '%s' is %s, expected %s", key, json_type_word(got), wanted);
}

static bool absent(const json_t *v)
{
    return !v || json_is_null(v);
}

tpl_code json_maybe_int(const json_t *obj, const char *key, int64_t lo, int64_t hi, int64_t *out, const char *where, tpl_err *e)
{
    const json_t *v = json_object_get(obj, key);
    if (absent(v))
        return TPL_OK;
    int64_t got;
    if (json_is_integer(v))
        got = json_integer_value(v);
    else if (json_is_real(v) && floor(json_real_value(v)) == json_real_value(v) && fabs(json_real_value(v)) < 9e15)
        got = (int64_t)json_real_value(v);
    else
        return bad_type(key, "an integer", v, where, e);
    if (got < lo || got > hi)
        return tpl_fail(e, TPL_E_INPUT, where, "field '%s' is %lld, expected %lld to %lld", key, (long long)got, (long long)lo, (long long)hi);
    *out = got;
    return TPL_OK;
}

tpl_code json_want_int(const json_t *obj, const char *key, int64_t lo, int64_t hi, int64_t *out, const char *where, tpl_err *e)
{
    if (absent(json_object_get(obj, key)))
        return tpl_fail(e, TPL_E_INPUT, where, "field '%s' is missing, expected an integer", key);
    return json_maybe_int(obj, key, lo, hi, out, where, e);
}

tpl_code json_maybe_str(const json_t *obj, const char *key, const char **out, const char *where, tpl_err *e)
{
    const json_t *v = json_object_get(obj, key);
    if (absent(v))
        return TPL_OK;
    if (!json_is_string(v))
        return bad_type(key, "a string", v, where, e);
    *out = json_string_value(v);
    return TPL_OK;
}

tpl_code json_want_str(const json_t *obj, const char *key, const char **out, const char *where, tpl_err *e)
{
    if (absent(json_object_get(obj, key)))
        return tpl_fail(e, TPL_E_INPUT, where, "field '%s' is missing, expected a string", key);
    return json_maybe_str(obj, key, out, where, e);
}

tpl_code json_want_array(const json_t *obj, const char *key, json_t **out, const char *where, tpl_err *e)
{
    json_t *v = json_object_get(obj, key);
    if (!json_is_array(v))
        return bad_type(key, "an array", v, where, e);
    *out = v;
    return TPL_OK;
}

tpl_code json_want_object(const json_t *obj, const char *key, json_t **out, const char *where, tpl_err *e)
{
    json_t *v = json_object_get(obj, key);
    if (!json_is_object(v))
        return bad_type(key, "an object", v, where, e);
    *out = v;
    return TPL_OK;
}

tpl_code json_maybe_real(const json_t *obj, const char *key, double *out, const char *where, tpl_err *e)
{
    const json_t *v = json_object_get(obj, key);
    if (absent(v))
        return TPL_OK;
    if (!json_is_number(v))
        return bad_type(key, "a number", v, where, e);
    *out = json_number_value(v);
    return TPL_OK;
}

tpl_code json_maybe_bool(const json_t *obj, const char *key, bool *out, const char *where, tpl_err *e)
{
    const json_t *v = json_object_get(obj, key);
    if (absent(v))
        return TPL_OK;
    if (!json_is_boolean(v))
        return bad_type(key, "true or false", v, where, e);
    *out = json_is_true(v);
    return TPL_OK;
}
