#include "cli/suite.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_SECTIONS = 256, MAX_SETTINGS = 64 };

typedef struct {
    arena *a;
    suite *s;
    int line;
    char where[160];
} parser;

static char *trim(char *s)
{
    while (isspace((unsigned char)*s))
        s++;
    char *end = s + strlen(s);
    while (end > s && isspace((unsigned char)end[-1]))
        *--end = 0;
    return s;
}

static tpl_code open_section(parser *p, char *line, tpl_err *e)
{
    size_t n = strlen(line);
    if (line[n - 1] != ']')
        return tpl_fail(e, TPL_E_INPUT, p->where, "'%s' has no closing bracket", line);
    line[n - 1] = 0;
    char *name = trim(line + 1), *colon = strchr(name, ':'), *title = NULL;
    if (colon) {
        *colon = 0;
        title = trim(colon + 1);
        name = trim(name);
    }
    const cli_command *cmd = cli_find(name);
    if (!cmd || !cmd->in_suite)
        return tpl_fail(e, TPL_E_INPUT, p->where, "no command '%s' for suites, expected such as eval or plan", name);
    if (p->s->n_sections == MAX_SECTIONS)
        return tpl_fail(e, TPL_E_INPUT, p->where, "more than %d sections", MAX_SECTIONS);
    p->s->sections[p->s->n_sections++] =
        (suite_section){.cmd = cmd, .title = arena_strdup(p->a, title ? title : name), .line = p->line, .settings = arena_array(p->a, suite_setting, MAX_SETTINGS)};
    return TPL_OK;
}

static tpl_code add_setting(parser *p, char *line, tpl_err *e)
{
    char *equals = strchr(line, '=');
    if (!equals)
        return tpl_fail(e, TPL_E_INPUT, p->where, "'%.60s' is neither [command] nor key = value", line);
    if (p->s->n_sections == 0)
        return tpl_fail(e, TPL_E_INPUT, p->where, "a setting before the first [command]");
    suite_section *sec = &p->s->sections[p->s->n_sections - 1];
    *equals = 0;
    char *key = trim(line), *value = trim(equals + 1);
    const cli_option *o = cli_find_option(sec->cmd, key);
    if (!o)
        return tpl_fail(e, TPL_E_INPUT, p->where, "command %s has no key '%s'", sec->cmd->name, key);
    for (int i = 0; i < sec->n_settings; i++)
        if (sec->settings[i].option == o)
            return tpl_fail(e, TPL_E_INPUT, p->where, "key '%s' is given twice (first in line %d)", key, sec->settings[i].line);
    if (sec->n_settings == MAX_SETTINGS)
        return tpl_fail(e, TPL_E_INPUT, p->where, "more than %d settings in one section", MAX_SETTINGS);
    sec->settings[sec->n_settings++] = (suite_setting){o, arena_strdup(p->a, value), p->line};
    return TPL_OK;
}

static tpl_code continue_value(parser *p, char *text, tpl_err *e)
{
    suite_section *sec = p->s->n_sections ? &p->s->sections[p->s->n_sections - 1] : NULL;
    if (!sec || sec->n_settings == 0)
        return tpl_fail(e, TPL_E_INPUT, p->where, "an indented line, but no value above it to go on with");
    suite_setting *last = &sec->settings[sec->n_settings - 1];
    last->value = arena_printf(p->a, "%s%s%s", last->value, *last->value ? " " : "", text);
    return TPL_OK;
}

static tpl_code parse_line(parser *p, char *raw, tpl_err *e)
{
    bool indented = isblank((unsigned char)*raw);
    char *hash = strchr(raw, '#');
    if (hash)
        *hash = 0;
    char *line = trim(raw);
    snprintf(p->where, sizeof p->where, "%s:%d", p->s->name, p->line);
    if (!*line)
        return TPL_OK;
    if (indented)
        return continue_value(p, line, e);
    return *line == '[' ? open_section(p, line, e) : add_setting(p, line, e);
}

tpl_code suite_parse(arena *a, const char *data, size_t len, const char *name, const char *base, suite *out, tpl_err *e)
{
    suite s = {.name = arena_strdup(a, name), .base = arena_strdup(a, base), .sections = arena_array(a, suite_section, MAX_SECTIONS)};
    parser p = {.a = a, .s = &s};
    const char *at = data, *end = data + len;
    if (memchr(data, 0, len))
        return tpl_fail(e, TPL_E_INPUT, name, "holds a NUL byte, expected text");
    while (at < end) {
        const char *stop = memchr(at, '\n', (size_t)(end - at));
        stop = stop ? stop : end;
        p.line++;
        TPL_TRY(parse_line(&p, arena_strndup(a, at, (size_t)(stop - at)), e));
        at = stop + 1;
    }
    if (s.n_sections == 0)
        return tpl_fail(e, TPL_E_INPUT, name, "has no section, expected such as [eval]");
    *out = s;
    return TPL_OK;
}

tpl_code suite_read(arena *a, const char *path, suite *out, tpl_err *e)
{
    char *data, *slash, *dir = arena_strdup(a, path);
    size_t len;
    slash = strrchr(dir, '/');
    if (slash)
        *slash = 0;
    char *base = arena_printf(a, "%s/..", slash ? dir : ".");
    TPL_TRY(text_read_file(path, &data, &len, e));
    tpl_code rc = suite_parse(a, data, len, text_base_name(path), base, out, e);
    free(data);
    return rc;
}
