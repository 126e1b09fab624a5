#define _GNU_SOURCE
#include "engine/text_rows.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    int32_t *ids;
    size_t n, cap;
} id_list;

static void add_ids(id_list *l, const int32_t *ids, size_t n)
{
    if (l->n + n > l->cap) {
        l->cap = 2 * (l->n + n);
        l->ids = tpl_realloc(l->ids, l->cap * sizeof *l->ids);
    }
    memcpy(l->ids + l->n, ids, n * sizeof *ids);
    l->n += n;
}

static tpl_code add_document(id_list *l, const tokenizer *t, int32_t bos, const char *text, size_t len, tpl_err *e)
{
    int32_t *ids = NULL;
    int n = 0;
    TPL_TRY(tokenizer_encode(t, text, len, &ids, &n, e));
    if (bos >= 0)
        add_ids(l, &bos, 1);
    add_ids(l, ids, (size_t)n);
    free(ids);
    return TPL_OK;
}

tpl_code text_rows_read(const char *path, const tokenizer *t, int32_t bos, int max_rows, int row_tok, text_rows *out, tpl_err *e)
{
    char *data;
    size_t len;
    TPL_TRY(text_read_file(path, &data, &len, e));
    const char *mark = bos >= 0 ? tokenizer_token_text(t, bos) : NULL;
    size_t mark_len = mark ? strlen(mark) : 0, wanted = max_rows ? (size_t)max_rows * (size_t)row_tok : SIZE_MAX;
    id_list ids = {0};
    tpl_code rc = TPL_OK;
    for (char *at = data, *end = data + len; rc == TPL_OK && at && ids.n < wanted;) {
        char *stop = mark_len ? memmem(at, (size_t)(end - at), mark, mark_len) : NULL;
        rc = add_document(&ids, t, bos, at, (size_t)((stop ? stop : end) - at), e);
        at = stop ? stop + mark_len : NULL;
    }
    size_t rows = ids.n / (size_t)row_tok;
    if (max_rows && rows > (size_t)max_rows)
        rows = (size_t)max_rows;
    if (rc == TPL_OK && rows == 0)
        rc = tpl_fail(e, TPL_E_INPUT, path, "has %zu tokens, expected at least one row of %d", ids.n, row_tok);
    if (rc == TPL_OK) {
        *out = (text_rows){.tokens = ids.ids, .n_rows = (int32_t)rows, .row_tok = row_tok, .sha = sha256_bytes(data, len)};
        snprintf(out->path, sizeof out->path, "%s", path);
    } else {
        free(ids.ids);
    }
    free(data);
    return rc;
}

void text_rows_free(text_rows *r)
{
    free(r->tokens);
    *r = (text_rows){0};
}
