#include "datasets/prompts.h"

#include <stdlib.h>

#include "base/text.h"
#include "datasets/jsonl.h"

static tpl_code read_prompt(arena *a, const json_t *doc, const jsonl *lines, ds_prompt *p, tpl_err *e)
{
    const char *where = lines->where;
    *p = (ds_prompt){.category = arena_strdup(a, "")};
    TPL_TRY(jsonl_maybe_id(a, doc, "id", &p->id, where, e));
    TPL_TRY(jsonl_maybe_id(a, doc, "question_id", &p->id, where, e));
    TPL_TRY(jsonl_maybe_id(a, doc, "category", &p->category, where, e));
    if (!p->id)
        p->id = arena_printf(a, "%d", lines->line);
    if (json_object_get(doc, "turns"))
        return jsonl_want_texts(a, doc, "turns", 1, &p->turns, &p->n_turns, where, e);
    if (!json_object_get(doc, "prompt"))
        return tpl_fail(e, TPL_E_INPUT, where, "neither field 'prompt' nor 'turns' is there, expected one of them");
    p->turns = arena_array(a, char *, 1);
    p->n_turns = 1;
    return jsonl_want_text(a, doc, "prompt", p->turns, where, e);
}

static tpl_code read_lines(arena *a, jsonl *lines, int limit, ds_prompt **items, int *n, tpl_err *e)
{
    while (limit <= 0 || *n < limit) {
        json_t *doc;
        TPL_TRY(jsonl_next(lines, &doc, e));
        if (!doc)
            break;
        *items = jsonl_grow(*items, sizeof **items, *n);
        tpl_code rc = read_prompt(a, doc, lines, &(*items)[*n], e);
        json_decref(doc);
        TPL_TRY(rc);
        ++*n;
    }
    return *n ? TPL_OK : tpl_fail(e, TPL_E_INPUT, lines->name, "is empty, expected one JSON object a line");
}

tpl_code ds_parse_prompts(arena *a, const char *data, size_t n_bytes, const char *name, int limit, ds_prompt **prompts,
                          int *n, tpl_err *e)
{
    jsonl lines;
    ds_prompt *items = NULL;
    int count = 0;
    jsonl_init(&lines, data, n_bytes, name);
    tpl_code rc = read_lines(a, &lines, limit, &items, &count, e);
    if (rc != TPL_OK) {
        free(items);
        return rc;
    }
    *prompts = jsonl_keep(a, items, sizeof *items, count);
    *n = count;
    return TPL_OK;
}

tpl_code ds_read_prompts(arena *a, const char *path, int limit, ds_prompt **prompts, int *n, tpl_err *e)
{
    char *data;
    size_t n_bytes;
    TPL_TRY(text_read_file(path, &data, &n_bytes, e));
    tpl_code rc = ds_parse_prompts(a, data, n_bytes, text_base_name(path), limit, prompts, n, e);
    free(data);
    return rc;
}
