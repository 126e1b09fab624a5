#include "results/manifest.h"

#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "base/text.h"
#include "results/build_id.h"
#include "results/host.h"
#include "results/utf8.h"

static json_t *time_text(time_t t)
{
    struct tm utc;
    char s[32];
    if (t == 0 || !gmtime_r(&t, &utc) || !strftime(s, sizeof s, "%Y-%m-%dT%H:%M:%SZ", &utc))
        return json_null();
    return json_string(s);
}

/* Who measures: the command line, the build and the machine. */
static void set_origin(json_t *m, const rd_options *o)
{
    static const char id[] = TPL_BUILD_ID, suffix[] = "-dirty";
    size_t n = strlen(id), tail = sizeof suffix - 1;
    bool known = strcmp(id, "unknown") != 0;
    bool dirty = n > tail && !strcmp(id + n - tail, suffix);
    json_t *argv = json_array(), *libraries = json_object();
    for (int i = 0; i < o->argc; i++)
        json_array_append_new(argv, utf8_to_json(o->argv[i]));
    for (int i = 0; i < o->n_libraries; i++)
        json_object_set_new(libraries, o->libraries[i].key, utf8_to_json(o->libraries[i].value));
    json_object_set_new(m, "argv", argv);
    json_object_set_new(m, "git_commit", json_stringn(id, dirty ? n - tail : n));
    json_object_set_new(m, "git_dirty", known ? json_boolean(dirty) : json_null());
    json_object_set_new(m, "build_options", utf8_to_json(o->build_options));
    json_object_set_new(m, "libraries", libraries);
    json_object_set_new(m, "host", host_facts());
}

json_t *manifest_create(const rd_options *o, time_t now)
{
    json_t *m = json_object();
    json_object_set_new(m, "schema", json_integer(MANIFEST_SCHEMA));
    json_object_set_new(m, "program", json_string("tplabench"));
    json_object_set_new(m, "status", json_string("running"));
    json_object_set_new(m, "started", time_text(now));
    json_object_set_new(m, "finished", json_null());
    json_object_set_new(m, "label", utf8_to_json(o->label));
    set_origin(m, o);
    json_object_set_new(m, "seed", json_integer(o->seed));
    json_object_set_new(m, "transform_cache", utf8_to_json(o->transform_cache));
    json_object_set_new(m, "files", json_array());
    json_object_set_new(m, "facts", json_object());
    json_object_set_new(m, "resumed", json_array());
    return m;
}

void manifest_add_resume(json_t *m, const rd_options *o, time_t now)
{
    json_t *r = json_object();
    json_object_set_new(r, "started", time_text(now));
    set_origin(r, o);
    json_array_append_new(json_object_get(m, "resumed"), r);
}

void manifest_add_file(json_t *m, const char *kind, const char *path, const char *sha256)
{
    json_t *files = json_object_get(m, "files");
    json_t *entry = json_object();
    json_object_set_new(entry, "kind", utf8_to_json(kind));
    json_object_set_new(entry, "path", utf8_to_json(path));
    json_object_set_new(entry, "sha256", utf8_to_json(sha256));
    for (size_t i = 0; i < json_array_size(files); i++) {
        if (json_equal(json_array_get(files, i), entry)) {
            json_decref(entry);
            return;
        }
    }
    json_array_append_new(files, entry);
}

void manifest_add_fact(json_t *m, const char *key, const char *value)
{
    json_object_set_new(json_object_get(m, "facts"), key, utf8_to_json(value));
}

void manifest_set_status(json_t *m, const char *status, time_t finished)
{
    json_object_set_new(m, "status", json_string(status));
    json_object_set_new(m, "finished", time_text(finished));
}

static tpl_code check(const json_t *m, const char *path, tpl_err *e)
{
    int64_t schema = 0;
    const char *program, *status;
    json_t *argv, *files, *resumed, *facts, *arg;
    size_t i;
    TPL_TRY(json_want_int(m, "schema", 1, INT32_MAX, &schema, path, e));
    if (schema != MANIFEST_SCHEMA)
        return tpl_fail(e, TPL_E_UNSUPPORTED, path, "schema is %lld, expected %d; it needs a newer tplabench",
                        (long long)schema, MANIFEST_SCHEMA);
    TPL_TRY(json_want_str(m, "program", &program, path, e));
    if (strcmp(program, "tplabench") != 0)
        return tpl_fail(e, TPL_E_INPUT, path, "program is '%s', expected 'tplabench'", program);
    TPL_TRY(json_want_str(m, "status", &status, path, e));
    TPL_TRY(json_want_array(m, "files", &files, path, e));
    TPL_TRY(json_want_array(m, "resumed", &resumed, path, e));
    TPL_TRY(json_want_object(m, "facts", &facts, path, e));
    TPL_TRY(json_want_array(m, "argv", &argv, path, e));
    json_array_foreach(argv, i, arg) if (!json_is_string(arg)) return tpl_fail(
        e, TPL_E_INPUT, path, "argv[%zu] is %s, expected string", i, json_type_word(arg));
    return TPL_OK;
}

tpl_code manifest_load(const char *path, json_t **out, tpl_err *e)
{
    json_t *m;
    TPL_TRY(json_load_path(path, &m, e));
    tpl_code rc = json_is_object(m) ? check(m, path, e)
                                    : tpl_fail(e, TPL_E_INPUT, path, "is %s, expected object", json_type_word(m));
    if (rc == TPL_OK)
        *out = m;
    else
        json_decref(m);
    return rc;
}

tpl_code manifest_write(const json_t *m, const char *path, tpl_err *e)
{
    char *s = json_dumps(m, JSON_INDENT(2) | JSON_REAL_PRECISION(15));
    if (!s)
        return tpl_fail(e, TPL_E_MEMORY, path, "cannot be put into words");
    text_buf b = {0};
    text_addf(&b, "%s\n", s);
    tpl_code rc = text_write_file(path, b.data, b.len, e);
    text_fini(&b);
    free(s);
    return rc;
}
