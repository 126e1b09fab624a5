#include "base/text.h"

#include <assert.h>
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <openssl/evp.h>

/* ---- growing text ---- */

static void reserve(text_buf *b, size_t more)
{
    size_t need = b->len + more + 1;
    if (need <= b->cap)
        return;
    b->cap = need > 2 * b->cap ? need : 2 * b->cap;
    b->data = tpl_realloc(b->data, b->cap);
}

void text_add(text_buf *b, const char *s, size_t n)
{
    reserve(b, n);
    memcpy(b->data + b->len, s, n);
    b->len += n;
    b->data[b->len] = 0;
}

void text_addf(text_buf *b, const char *fmt, ...)
{
    va_list ap, again;
    va_start(ap, fmt);
    va_copy(again, ap);
    int n = vsnprintf(NULL, 0, fmt, ap);
    va_end(ap);
    reserve(b, (size_t)n);
    vsnprintf(b->data + b->len, (size_t)n + 1, fmt, again);
    va_end(again);
    b->len += (size_t)n;
}

void text_fini(text_buf *b)
{
    free(b->data);
    *b = (text_buf){0};
}

/* ---- files ---- */

tpl_code text_read_file(const char *path, char **data, size_t *len, tpl_err *e)
{
    FILE *f = fopen(path, "rb");
    struct stat st;
    if (!f || fstat(fileno(f), &st) != 0) {
        int why = errno;
        if (f)
            fclose(f);
        return tpl_fail(e, TPL_E_IO, path, "cannot open: %s", strerror(why));
    }
    if (S_ISDIR(st.st_mode)) {
        fclose(f);
        return tpl_fail(e, TPL_E_IO, path, "is a folder, expected a file");
    }
    text_buf b = {0};
    char chunk[1 << 16];
    size_t n;
    reserve(&b, S_ISREG(st.st_mode) ? (size_t)st.st_size : 0);
    while ((n = fread(chunk, 1, sizeof chunk, f)) > 0)
        text_add(&b, chunk, n);
    int bad = ferror(f) ? errno : 0;
    fclose(f);
    if (bad) {
        text_fini(&b);
        return tpl_fail(e, TPL_E_IO, path, "cannot read: %s", strerror(bad));
    }
    b.data[b.len] = 0;
    *data = b.data;
    *len = b.len;
    return TPL_OK;
}

tpl_code text_write_file(const char *path, const char *data, size_t len, tpl_err *e)
{
    text_buf tmp = {0};
    text_addf(&tmp, "%s.tmp%ld", path, (long)getpid());
    FILE *f = fopen(tmp.data, "wb");
    bool ok = f && fwrite(data, 1, len, f) == len && fflush(f) == 0 && fsync(fileno(f)) == 0;
    int why = errno;
    if (f && fclose(f) != 0 && ok) {
        ok = false;
        why = errno;
    }
    if (ok && rename(tmp.data, path) != 0) {
        ok = false;
        why = errno;
    }
    if (!ok)
        unlink(tmp.data);
    text_fini(&tmp);
    return ok ? TPL_OK : tpl_fail(e, TPL_E_IO, path, "cannot write: %s", strerror(why));
}

bool text_is_dir(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0 && S_ISDIR(st.st_mode);
}

bool text_is_file(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0 && S_ISREG(st.st_mode);
}

tpl_code text_make_dirs(const char *path, tpl_err *e)
{
    char *p = tpl_strdup(path);
    for (char *s = p + 1;; s++) {
        if (*s && *s != '/')
            continue;
        char was = *s;
        *s = 0;
        if (mkdir(p, 0777) != 0 && errno != EEXIST) {
            tpl_code rc = tpl_fail(e, TPL_E_IO, p, "cannot create folder: %s", strerror(errno));
            free(p);
            return rc;
        }
        *s = was;
        if (!was)
            break;
    }
    free(p);
    return text_is_dir(path) ? TPL_OK : tpl_fail(e, TPL_E_IO, path, "is a file, expected a folder");
}

/* ---- numbers and lists ---- */

bool text_parse_i64(const char *s, int64_t *out)
{
    char *end;
    errno = 0;
    long long v = strtoll(s, &end, 10);
    if (end == s || errno || isspace((unsigned char)*s))
        return false;
    int64_t unit = *end == 'K' ? 1 << 10 : *end == 'M' ? 1 << 20 : 1;
    end += unit != 1;
    if (*end || v > INT64_MAX / unit || v < -(INT64_MAX / unit))
        return false;
    *out = v * unit;
    return true;
}

bool text_parse_f64(const char *s, double *out)
{
    char *end;
    double v = strtod(s, &end);
    if (end == s || *end || isspace((unsigned char)*s) || !isfinite(v))
        return false;
    *out = v;
    return true;
}

int text_split(arena *a, const char *s, char sep, char ***parts)
{
    int n = 1;
    for (const char *p = s; *p; p++)
        n += *p == sep;
    *parts = arena_array(a, char *, n);
    while (isspace((unsigned char)*s))
        s++;
    if (!*s)
        return 0;
    for (int i = 0; i < n; i++) {
        const char *end = strchr(s, sep);
        const char *next = end ? end + 1 : NULL;
        if (!end)
            end = s + strlen(s);
        while (s < end && isspace((unsigned char)*s))
            s++;
        while (end > s && isspace((unsigned char)end[-1]))
            end--;
        (*parts)[i] = arena_strndup(a, s, (size_t)(end - s));
        s = next;
    }
    return n;
}

enum { AXIS_MAX = 4096 };

/* Appends the values of one part of an axis; false if it is malformed or too long. */
static bool add_axis_part(arena *a, char *part, int64_t *values, int *n)
{
    int64_t from, to, step;
    char *colon = strchr(part, ':');
    if (!colon) {
        if (*n == AXIS_MAX || !text_parse_i64(part, &from))
            return false;
        values[(*n)++] = from;
        return true;
    }
    char *rest = arena_strdup(a, colon + 1);
    char *mark = strpbrk(rest, "*+");
    *colon = 0;
    if (!mark)
        return false;
    char kind = *mark;
    *mark = 0;
    if (!text_parse_i64(part, &from) || !text_parse_i64(rest, &to) || !text_parse_i64(mark + 1, &step))
        return false;
    if (kind == '*' ? step < 2 || from < 1 : step < 1)
        return false;
    for (int64_t v = from; v <= to; v = kind == '*' ? v * step : v + step) {
        if (*n == AXIS_MAX)
            return false;
        values[(*n)++] = v;
        if (kind == '*' ? v > INT64_MAX / step : v > INT64_MAX - step)
            break;
    }
    return from <= to;
}

tpl_code text_parse_axis(arena *a, const char *option, const char *s, int64_t **values, int *n, tpl_err *e)
{
    char **parts;
    int n_parts = text_split(a, s, ',', &parts), count = 0;
    int64_t *v = arena_array(a, int64_t, AXIS_MAX);
    if (n_parts == 0)
        return tpl_fail(e, TPL_E_USAGE, option, "is empty, expected numbers such as 1,2,4 or 1K:128K*2");
    for (int i = 0; i < n_parts; i++)
        if (!add_axis_part(a, parts[i], v, &count))
            return tpl_fail(e, TPL_E_USAGE, option, "'%s' is no number or range, expected such as 1,2,4 or 1K:128K*2 or 1:9+2", s);
    *values = v;
    *n = count;
    return TPL_OK;
}

/* ---- paths ---- */

char *text_path_join(arena *a, const char *dir, const char *name)
{
    size_t n = strlen(dir);
    return arena_printf(a, "%s%s%s", dir, n && dir[n - 1] == '/' ? "" : "/", name);
}

const char *text_base_name(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

tpl_code text_cache_dir(arena *a, char **dir, tpl_err *e)
{
    const char *xdg = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    char *path;
    if (xdg && *xdg == '/')
        path = text_path_join(a, xdg, "tplabench");
    else if (home && *home)
        path = text_path_join(a, home, ".cache/tplabench");
    else
        return tpl_fail(e, TPL_E_IO, "XDG_CACHE_HOME", "neither it nor HOME is set, expected one for the transform cache");
    TPL_TRY(text_make_dirs(path, e));
    *dir = path;
    return TPL_OK;
}

/* ---- SHA-256 ---- */

struct sha256_state {
    EVP_MD_CTX *ctx;
};

sha256_state *sha256_create(void)
{
    sha256_state *s = tpl_malloc(sizeof *s);
    s->ctx = EVP_MD_CTX_new();
    if (!s->ctx || EVP_DigestInit_ex(s->ctx, EVP_sha256(), NULL) != 1)
        assert(!"OpenSSL offers no SHA-256");
    return s;
}

void sha256_add(sha256_state *s, const void *data, size_t n)
{
    EVP_DigestUpdate(s->ctx, data, n);
}

sha256_hex sha256_finish(sha256_state *s)
{
    unsigned char digest[32];
    sha256_hex out;
    EVP_DigestFinal_ex(s->ctx, digest, NULL);
    for (int i = 0; i < 32; i++)
        snprintf(out.hex + 2 * i, 3, "%02x", digest[i]);
    EVP_MD_CTX_free(s->ctx);
    free(s);
    return out;
}

sha256_hex sha256_bytes(const void *data, size_t n)
{
    sha256_state *s = sha256_create();
    sha256_add(s, data, n);
    return sha256_finish(s);
}

tpl_code sha256_file(const char *path, sha256_hex *out, tpl_err *e)
{
    FILE *f = fopen(path, "rb");
    if (!f)
        return tpl_fail(e, TPL_E_IO, path, "cannot open: %s", strerror(errno));
    sha256_state *s = sha256_create();
    char chunk[1 << 16];
    size_t n;
    while ((n = fread(chunk, 1, sizeof chunk, f)) > 0)
        sha256_add(s, chunk, n);
    bool bad = ferror(f);
    fclose(f);
    *out = sha256_finish(s);
    return bad ? tpl_fail(e, TPL_E_IO, path, "cannot read") : TPL_OK;
}
