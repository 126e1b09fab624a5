/* cmd_run.c - `tplabench run SUITE`: every section of a suite file into one run directory. */
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "cli/options.h"
#include "cli/suite.h"

typedef struct {
    const char *suite, *out, *resume;
    bool list;
} run_state;

static const cli_option options[] = {
    {"out", "DIR", "folder that holds run directories (default runs)", true},
    {"resume", "DIR", "go on with an earlier run of the same suite; finished rows are not measured again", true},
    {"list", NULL, "print the sections and their settings, measure nothing", false},
    {0},
};

static tpl_code set(void *state, cli_context *c, const char *key, const char *value, tpl_err *e)
{
    run_state *s = state;
    if (!key) {
        if (s->suite)
            return tpl_fail(e, TPL_E_USAGE, "SUITE", "is given twice: '%s' and '%s'", s->suite, value);
        s->suite = cli_keep(c, value);
    } else if (strcmp(key, "out") == 0)
        s->out = cli_keep(c, value);
    else if (strcmp(key, "resume") == 0)
        s->resume = cli_keep(c, value);
    else
        s->list = true;
    return TPL_OK;
}

/* A path as given, or NAME.suite in ./suites, or in the suites that came with the program. */
static tpl_code find_suite(cli_context *c, const char *name, char **path, tpl_err *e)
{
    char *candidates[] = {arena_strdup(&c->mem, name), arena_printf(&c->mem, "suites/%s.suite", name), arena_printf(&c->mem, "%s/suites/%s.suite", cli_home(), name)};
    for (int i = 0; i < 3; i++) {
        if (text_is_file(candidates[i])) {
            *path = candidates[i];
            return TPL_OK;
        }
    }
    return tpl_fail(e, TPL_E_INPUT, name, "no such suite: neither a file nor %s", candidates[2]);
}

/* Sets a section's options as the command line would; errors name file and line. */
static tpl_code configure(const suite *s, const suite_section *sec, void *state, cli_context *c, tpl_err *e)
{
    for (int i = 0; i < sec->n_settings; i++) {
        const suite_setting *set_ = &sec->settings[i];
        const char *value = set_->value;
        if (!set_->option->value) {
            if (strcmp(value, "off") == 0)
                continue;
            if (strcmp(value, "on") != 0)
                return tpl_fail(e, TPL_E_INPUT, arena_printf(&c->mem, "%s:%d", s->name, set_->line), "flag '%s' is '%s', expected on or off", set_->option->key, value);
        }
        if (set_->option->is_path && *value != '/')
            value = text_path_join(&c->mem, s->base, value);
        tpl_err inner;
        if (sec->cmd->set(state, c, set_->option->key, value, &inner) != TPL_OK)
            return tpl_fail(e, TPL_E_INPUT, arena_printf(&c->mem, "%s:%d", s->name, set_->line), "%s: %s", inner.where, inner.what);
    }
    return TPL_OK;
}

/* The command line that a section stands for. */
static char *section_command(const suite_section *sec, arena *a)
{
    text_buf b = {0};
    text_addf(&b, "tplabench %s", sec->cmd->name);
    for (int i = 0; i < sec->n_settings; i++) {
        const suite_setting *s = &sec->settings[i];
        if (s->option->value)
            text_addf(&b, strpbrk(s->value, " *") ? " --%s '%s'" : " --%s %s", s->option->key, s->value);
        else if (strcmp(s->value, "on") == 0)
            text_addf(&b, " --%s", s->option->key);
    }
    char *text = arena_strdup(a, b.data);
    text_fini(&b);
    return text;
}

/* A section whose answers were wrong keeps the others from nothing; the exit status says it at the end. */
static tpl_code run_sections(const suite *s, void **states, cli_context *c, tpl_err *e)
{
    tpl_code found = TPL_OK;
    for (int i = 0; i < s->n_sections; i++) {
        const suite_section *sec = &s->sections[i];
        log_note("%s: [%s] %s", s->name, sec->cmd->name, sec->title);
        printf("== %s ==\n", sec->title);
        c->command = section_command(sec, &c->mem);
        tpl_code rc = sec->cmd->run(states[i], c, e);
        if (rc != TPL_OK && rc != TPL_E_MISMATCH)
            return rc;
        found = rc == TPL_OK ? found : rc;
        putchar('\n');
    }
    return found;
}

static tpl_code run(void *state, cli_context *c, tpl_err *e)
{
    run_state *o = state;
    suite s;
    char *path = NULL;
    cli_run r = {0};
    if (!o->suite)
        return tpl_fail(e, TPL_E_USAGE, "SUITE", "is missing, expected a name such as quick");
    TPL_TRY(find_suite(c, o->suite, &path, e));
    TPL_TRY(suite_read(&c->mem, path, &s, e));
    void **states = arena_array(&c->mem, void *, s.n_sections);
    for (int i = 0; i < s.n_sections; i++) { /* all sections are checked before the first one runs */
        states[i] = arena_alloc(&c->mem, s.sections[i].cmd->state_bytes);
        TPL_TRY(configure(&s, &s.sections[i], states[i], c, e));
    }
    if (o->list) {
        for (int i = 0; i < s.n_sections; i++)
            printf("%s\n", section_command(&s.sections[i], &c->mem));
        return TPL_OK;
    }
    char *label = arena_strdup(&c->mem, s.name);
    if (strrchr(label, '.'))
        *strrchr(label, '.') = 0;
    TPL_TRY(cli_open_run(c, o->out, o->resume, label, &r, e));
    c->rd = r.rd;
    tpl_code rc = run_sections(&s, states, c, e);
    if (rc == TPL_OK || rc == TPL_E_MISMATCH)
        printf("run directory: %s\n", rd_path(r.rd));
    c->rd = NULL;
    return cli_close_run(&r, rc, e);
}

const cli_command cmd_run = {
    .name = "run",
    .about = "Run a suite file: accuracy, plans, benches into one run directory.",
    .examples = "  tplabench run quick\n  tplabench run accuracy --resume runs/20260101T120000Z-accuracy",
    .args = "SUITE",
    .options = options,
    .state_bytes = sizeof(run_state),
    .set = set,
    .run = run,
};
