#include "engine/shape.h"

#include <stdio.h>
#include <string.h>

#include "base/text.h"

static const char prefix[] = "shape:";

bool shape_is_spec(const char *model)
{
    return strncmp(model, prefix, sizeof prefix - 1) == 0;
}

static tpl_code set_int(const char *key, const char *value, int64_t lo, int64_t hi, int64_t *out, tpl_err *e)
{
    int64_t v;
    if (!text_parse_i64(value, &v) || v < lo || v > hi)
        return tpl_fail(e, TPL_E_USAGE, "shape", "%s is '%.40s', expected a number from %lld to %lld", key, value,
                        (long long)lo, (long long)hi);
    *out = v;
    return TPL_OK;
}

static tpl_code set_moe(const char *value, bool *attention_only, tpl_err *e)
{
    *attention_only = strcmp(value, "off") == 0;
    if (*attention_only || strcmp(value, "full") == 0)
        return TPL_OK;
    return tpl_fail(e, TPL_E_USAGE, "shape", "moe is '%.40s', expected off or full", value);
}

static tpl_code set_key(shape_spec *s, char *part, tpl_err *e)
{
    char *value = strchr(part, '=');
    int64_t n = 0;
    if (!value)
        return tpl_fail(e, TPL_E_USAGE, "shape", "'%.40s' has no value, expected layers=N, moe=off|full or seed=N",
                        part);
    *value++ = 0;
    if (strcmp(part, "moe") == 0)
        return set_moe(value, &s->attention_only, e);
    if (strcmp(part, "layers") == 0) {
        TPL_TRY(set_int(part, value, 1, 1000, &n, e));
        s->layers = (int32_t)n;
        return TPL_OK;
    }
    if (strcmp(part, "seed") == 0) {
        TPL_TRY(set_int(part, value, 0, INT64_MAX, &n, e));
        s->seed = (uint64_t)n;
        return TPL_OK;
    }
    return tpl_fail(e, TPL_E_USAGE, "shape", "'%.40s' is no key, expected layers, moe or seed", part);
}

static tpl_code parse_parts(char **parts, int n, shape_spec *s, tpl_err *e)
{
    if (n < 1 || !parts[0][0] || strlen(parts[0]) >= sizeof s->name)
        return tpl_fail(e, TPL_E_USAGE, "shape", "has no usable name, expected such as shape:deepseek-v3,layers=4");
    snprintf(s->name, sizeof s->name, "%s", parts[0]);
    for (int i = 1; i < n; i++)
        TPL_TRY(set_key(s, parts[i], e));
    return TPL_OK;
}

tpl_code shape_parse(const char *text, shape_spec *out, tpl_err *e)
{
    shape_spec s = {.seed = 1};
    char **parts;
    arena a;
    arena_init(&a);
    int n = text_split(&a, shape_is_spec(text) ? text + sizeof prefix - 1 : text, ',', &parts);
    tpl_code rc = parse_parts(parts, n, &s, e);
    arena_fini(&a);
    if (rc == TPL_OK)
        *out = s;
    return rc;
}
