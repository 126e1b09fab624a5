#define _GNU_SOURCE
#include "eval/logit_store.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static size_t row_bytes(const logit_store *s)
{
    return (size_t)s->vocab * sizeof(float);
}

tpl_code logit_store_open(logit_store *s, int vocab, tpl_err *e)
{
    const char *dir = getenv("TMPDIR");
    char path[256];
    snprintf(path, sizeof path, "%s/tplabench-logits-XXXXXX", dir && *dir ? dir : "/tmp");
    int fd = mkostemp(path, 0);
    if (fd < 0)
        return tpl_fail(e, TPL_E_IO, path, "cannot create a temporary file: %s", strerror(errno));
    unlink(path);
    *s = (logit_store){.fd = fd, .vocab = vocab};
    return TPL_OK;
}

void logit_store_close(logit_store *s)
{
    if (s->vocab)
        close(s->fd);
    *s = (logit_store){0};
}

tpl_code logit_store_add(logit_store *s, const float *logits, tpl_err *e)
{
    const char *at = (const char *)logits;
    size_t done = 0, n = row_bytes(s);
    off_t base = (off_t)(s->n_rows * (int64_t)n);
    while (done < n) {
        ssize_t w = pwrite(s->fd, at + done, n - done, base + (off_t)done);
        if (w < 0 && errno == EINTR)
            continue;
        if (w <= 0)
            return tpl_fail(e, TPL_E_IO, "temporary file", "cannot hold the exact model's logits: %s", strerror(errno));
        done += (size_t)w;
    }
    s->n_rows++;
    return TPL_OK;
}

tpl_code logit_store_get(const logit_store *s, int64_t row, float *logits, tpl_err *e)
{
    size_t done = 0, n = row_bytes(s);
    while (done < n) {
        ssize_t r = pread(s->fd, (char *)logits + done, n - done, (off_t)(row * (int64_t)n) + (off_t)done);
        if (r < 0 && errno == EINTR)
            continue;
        if (r <= 0)
            return tpl_fail(e, TPL_E_IO, "temporary file", "cannot read logits back");
        done += (size_t)r;
    }
    return TPL_OK;
}
