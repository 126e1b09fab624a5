#include "bench/spec_replay.h"

#include <stdlib.h>
#include <string.h>

#include "base/json.h"

typedef struct {
    const char *cell;
    int prompt;
    spec_record record;
} replay_run;

struct spec_replay {
    replay_run *runs;
    int n, cap;
};

static void keep_run(arena *a, spec_replay *r, replay_run run)
{
    if (r->n == r->cap) {
        int cap = r->cap ? 2 * r->cap : 64;
        replay_run *grown = arena_array(a, replay_run, cap);
        if (r->n)
            memcpy(grown, r->runs, sizeof *grown * (size_t)r->n);
        r->runs = grown;
        r->cap = cap;
    }
    r->runs[r->n++] = run;
}

static tpl_code parse_run(arena *a, const json_t *doc, const char *where, replay_run *out, tpl_err *e)
{
    const char *cell;
    int64_t prompt;
    json_t *accepted;
    TPL_TRY(json_want_str(doc, "cell", &cell, where, e));
    TPL_TRY(json_want_int(doc, "prompt", 0, INT32_MAX, &prompt, where, e));
    TPL_TRY(json_want_array(doc, "accepted", &accepted, where, e));
    int n = (int)json_array_size(accepted);
    *out = (replay_run){arena_strdup(a, cell), (int)prompt, {arena_array(a, uint8_t, n + 1), n, 0}};
    for (int i = 0; i < n; i++) {
        json_t *v = json_array_get(accepted, (size_t)i);
        if (!json_is_integer(v) || json_integer_value(v) < 0 || json_integer_value(v) > SPEC_MAX_DEPTH)
            return tpl_fail(e, TPL_E_INPUT, where, "'accepted' number %d is not a count from 0 to %d", i + 1,
                            SPEC_MAX_DEPTH);
        out->record.accepted[i] = (uint8_t)json_integer_value(v);
    }
    return TPL_OK;
}

tpl_code spec_replay_parse(arena *a, const char *data, size_t n_bytes, const char *name, spec_replay **out, tpl_err *e)
{
    spec_replay *r = arena_array(a, spec_replay, 1);
    const char *at = data, *end = data + n_bytes;
    for (int line = 1; at < end; line++) {
        const char *stop = memchr(at, '\n', (size_t)(end - at));
        char where[160];
        json_t *doc;
        replay_run run = {0};
        stop = stop ? stop : end;
        snprintf(where, sizeof where, "%.120s:%d", name, line);
        if (stop > at) {
            TPL_TRY(json_load_bytes(at, (size_t)(stop - at), where, &doc, e));
            tpl_code rc = parse_run(a, doc, where, &run, e);
            json_decref(doc);
            TPL_TRY(rc);
            keep_run(a, r, run);
        }
        at = stop + 1;
    }
    if (r->n == 0)
        return tpl_fail(e, TPL_E_INPUT, name, "holds no runs");
    *out = r;
    return TPL_OK;
}

tpl_code spec_replay_read(arena *a, const char *path, spec_replay **out, tpl_err *e)
{
    char *data;
    size_t len;
    TPL_TRY(text_read_file(path, &data, &len, e));
    tpl_code rc = spec_replay_parse(a, data, len, text_base_name(path), out, e);
    free(data);
    return rc;
}

const spec_record *spec_replay_find(const spec_replay *r, const char *cell, int prompt)
{
    for (int i = 0; i < r->n; i++)
        if (r->runs[i].prompt == prompt && strcmp(r->runs[i].cell, cell) == 0)
            return &r->runs[i].record;
    return NULL;
}

tpl_code spec_replay_write(FILE *f, const char *cell, int prompt, const spec_record *record, tpl_err *e)
{
    fprintf(f, "{\"cell\": \"%s\", \"prompt\": %d, \"accepted\": [", cell, prompt);
    for (int i = 0; i < record->n; i++)
        fprintf(f, "%s%d", i ? ", " : "", record->accepted[i]);
    fprintf(f, "]}\n");
    return ferror(f) ? tpl_fail(e, TPL_E_IO, "--record", "cannot be written") : TPL_OK;
}
