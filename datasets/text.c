#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* memmem */
#endif
#include "datasets/text.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "datasets/unicode.h"

static const char SEPARATOR[] = "<|endoftext|>";
enum { SEPARATOR_BYTES = sizeof SEPARATOR - 1 };

static tpl_code check_utf8(const char *data, size_t n_bytes, const char *name, tpl_err *e)
{
    size_t bad = uni_find_bad(data, n_bytes), line = 1;
    if (bad == n_bytes)
        return TPL_OK;
    for (size_t i = 0; i < bad; i++)
        line += data[i] == '\n';
    char where[160];
    snprintf(where, sizeof where, "%.130s:%zu", name, line);
    return tpl_fail(e, TPL_E_INPUT, where, "byte 0x%02x at offset %zu is not UTF-8", (unsigned char)data[bad], bad);
}

/* A copy with LF for every line end. */
static char *copy_lines(arena *a, const char *data, size_t n_bytes, size_t *n_out)
{
    char *out = arena_alloc(a, n_bytes + 1);
    size_t n = 0;
    for (size_t i = 0; i < n_bytes; i++) {
        if (data[i] != '\r')
            out[n++] = data[i];
        else if (i + 1 == n_bytes || data[i + 1] != '\n')
            out[n++] = '\n';
    }
    *n_out = n;
    return out;
}

tpl_code ds_parse_text(arena *a, const char *data, size_t n_bytes, const char *name, ds_text *out, tpl_err *e)
{
    if (n_bytes == 0)
        return tpl_fail(e, TPL_E_INPUT, name, "is empty, expected text with %s between documents", SEPARATOR);
    TPL_TRY(check_utf8(data, n_bytes, name, e));
    size_t len, n = 1;
    char *s = copy_lines(a, data, n_bytes, &len), *end = s + len;
    for (char *p = s; (p = memmem(p, (size_t)(end - p), SEPARATOR, SEPARATOR_BYTES)); p += SEPARATOR_BYTES)
        n++;
    if (n > INT_MAX)
        return tpl_fail(e, TPL_E_INPUT, name, "has %zu documents, expected %d at most", n, INT_MAX);
    ds_doc *docs = arena_array(a, ds_doc, n);
    for (size_t i = 0; i < n; i++) {
        char *stop = memmem(s, (size_t)(end - s), SEPARATOR, SEPARATOR_BYTES);
        if (!stop)
            stop = end;
        docs[i] = (ds_doc){s, (size_t)(stop - s)};
        s = stop == end ? end : stop + SEPARATOR_BYTES;
        *stop = 0;
    }
    *out = (ds_text){docs, (int)n, sha256_bytes(data, n_bytes)};
    return TPL_OK;
}

tpl_code ds_read_text(arena *a, const char *path, ds_text *out, tpl_err *e)
{
    char *data;
    size_t n_bytes;
    TPL_TRY(text_read_file(path, &data, &n_bytes, e));
    tpl_code rc = ds_parse_text(a, data, n_bytes, text_base_name(path), out, e);
    free(data);
    return rc;
}
