#include "engine/safetensors.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/arena.h"
#include "base/json.h"
#include "base/text.h"

struct st_file {
    arena strings;
    st_tensor *tensors; /* in name order */
    int32_t n;
    void *map; /* NULL when the bytes belong to the caller */
    size_t map_len;
    const char *path;
    const char *where; /* the path, or its end, as messages show it */
};

/* Element types of the format, with their size. */
static const struct {
    const char *name;
    int64_t bytes;
} types[] = {
    {"BOOL", 1}, {"U8", 1},  {"I8", 1},  {"F8_E5M2", 1}, {"F8_E4M3", 1}, {"U16", 2}, {"I16", 2}, {"F16", 2},
    {"BF16", 2}, {"U32", 4}, {"I32", 4}, {"F32", 4},     {"U64", 8},     {"I64", 8}, {"F64", 8},
};

const char *st_shape_text(int32_t n_dims, const int64_t *shape, char *buf)
{
    int n = snprintf(buf, ST_SHAPE_TEXT, "[");
    for (int32_t i = 0; i < n_dims; i++)
        n += snprintf(buf + n, (size_t)(ST_SHAPE_TEXT - n), "%s%lld", i ? ", " : "", (long long)shape[i]);
    snprintf(buf + n, (size_t)(ST_SHAPE_TEXT - n), "]");
    return buf;
}

/* The end of a path that is too long for tpl_err.where: the file's name matters most. */
static const char *path_tail(const char *path)
{
    size_t n = strlen(path), room = sizeof((tpl_err *)0)->where - 1;
    return n <= room ? path : path + n - room;
}

/* ---- one file: header ---- */

static tpl_code bad_tensor(tpl_err *e, const char *where, const char *name, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));

static tpl_code bad_tensor(tpl_err *e, const char *where, const char *name, const char *fmt, ...)
{
    char why[256];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(why, sizeof why, fmt, ap);
    va_end(ap);
    return tpl_fail(e, TPL_E_INPUT, where, "tensor %.100s: %s", name, why);
}

static tpl_code read_type(const json_t *entry, const char *where, st_tensor *t, int64_t *elem_bytes, tpl_err *e)
{
    const char *type = json_string_value(json_object_get(entry, "dtype"));
    if (!type)
        return bad_tensor(e, where, t->name, "dtype is %s, expected a string",
                          json_type_word(json_object_get(entry, "dtype")));
    for (size_t i = 0; i < sizeof types / sizeof *types; i++)
        if (strcmp(type, types[i].name) == 0) {
            t->type = types[i].name;
            t->dtype = dtype_from_safetensors(type);
            *elem_bytes = types[i].bytes;
            return TPL_OK;
        }
    return bad_tensor(e, where, t->name, "dtype is '%.32s', expected a type of the format such as BF16, F16 or F32",
                      type);
}

/* Fills t's shape and sets *bytes to what it takes, starting from the size of one element. */
static tpl_code read_shape(const json_t *entry, const char *where, st_tensor *t, int64_t *bytes, tpl_err *e)
{
    const json_t *shape = json_object_get(entry, "shape");
    if (!json_is_array(shape))
        return bad_tensor(e, where, t->name, "shape is %s, expected an array", json_type_word(shape));
    size_t n = json_array_size(shape);
    if (n > ST_MAX_DIMS)
        return bad_tensor(e, where, t->name, "shape has %zu dimensions, expected at most %d", n, ST_MAX_DIMS);
    t->n_dims = (int32_t)n;
    for (size_t i = 0; i < n; i++) {
        const json_t *v = json_array_get(shape, i);
        if (!json_is_integer(v) || json_integer_value(v) < 0)
            return bad_tensor(e, where, t->name, "dimension %zu of the shape is %s, expected an integer from 0", i,
                              json_is_integer(v) ? "negative" : json_type_word(v));
        t->shape[i] = json_integer_value(v);
        if (__builtin_mul_overflow(*bytes, t->shape[i], bytes))
            return bad_tensor(e, where, t->name, "shape needs more than 2^63 bytes at dimension %zu", i);
    }
    return TPL_OK;
}

static tpl_code read_offsets(const json_t *entry, const char *where, const char *name, int64_t data_len, int64_t *begin,
                             int64_t *end, tpl_err *e)
{
    const json_t *pair = json_object_get(entry, "data_offsets");
    const json_t *b = json_array_get(pair, 0), *x = json_array_get(pair, 1);
    if (json_array_size(pair) != 2 || !json_is_integer(b) || !json_is_integer(x))
        return bad_tensor(e, where, name, "data_offsets is not an array of two integers");
    *begin = json_integer_value(b);
    *end = json_integer_value(x);
    if (*begin < 0 || *end < *begin)
        return bad_tensor(e, where, name, "data_offsets is [%lld, %lld], expected 0 <= begin <= end", (long long)*begin,
                          (long long)*end);
    if (*end > data_len)
        return bad_tensor(e, where, name,
                          "data ends at byte %lld of the data part, which has %lld; the file is cut short",
                          (long long)*end, (long long)data_len);
    return TPL_OK;
}

static tpl_code read_tensor(const json_t *entry, const char *where, const char *data, int64_t data_len, st_tensor *t,
                            tpl_err *e)
{
    int64_t bytes = 0, begin = 0, end = 0;
    if (!json_is_object(entry))
        return bad_tensor(e, where, t->name, "is %s, expected an object", json_type_word(entry));
    TPL_TRY(read_type(entry, where, t, &bytes, e));
    TPL_TRY(read_shape(entry, where, t, &bytes, e));
    TPL_TRY(read_offsets(entry, where, t->name, data_len, &begin, &end, e));
    if (end - begin != bytes) {
        char shape[ST_SHAPE_TEXT];
        return bad_tensor(e, where, t->name, "data_offsets span %lld bytes, expected %lld for %s %s",
                          (long long)(end - begin), (long long)bytes, t->type,
                          st_shape_text(t->n_dims, t->shape, shape));
    }
    t->bytes = bytes;
    t->data = data + begin;
    return TPL_OK;
}

static int by_place(const void *a, const void *b)
{
    const st_tensor *x = a, *y = b;
    const char *px = x->data, *py = y->data;
    if (px != py)
        return px < py ? -1 : 1;
    return (x->bytes > y->bytes) - (x->bytes < y->bytes);
}

static int by_name(const void *a, const void *b)
{
    return strcmp(((const st_tensor *)a)->name, ((const st_tensor *)b)->name);
}

static tpl_code check_tiling(st_file *f, const char *data, int64_t data_len, tpl_err *e)
{
    const char *where = f->where;
    int64_t covered = 0;
    qsort(f->tensors, (size_t)f->n, sizeof *f->tensors, by_place);
    for (int32_t i = 0; i < f->n; i++) {
        const st_tensor *t = &f->tensors[i];
        int64_t begin = (const char *)t->data - data;
        if (begin < covered)
            return bad_tensor(e, where, t->name, "begins at byte %lld, overlapping tensor %.60s, which ends at %lld",
                              (long long)begin, f->tensors[i - 1].name, (long long)covered);
        if (begin > covered)
            return bad_tensor(e, where, t->name,
                              "begins at byte %lld, expected %lld: the bytes between belong to no tensor",
                              (long long)begin, (long long)covered);
        covered += t->bytes;
    }
    if (covered != data_len)
        return tpl_fail(e, TPL_E_INPUT, where, "data part has %lld bytes, expected %lld as the tensors say",
                        (long long)data_len, (long long)covered);
    return TPL_OK;
}

/* Sets *header to the parsed JSON object and *data_at to where the data begins. */
static tpl_code read_header(const char *bytes, size_t len, const char *where, json_t **header, size_t *data_at,
                            tpl_err *e)
{
    uint64_t n = 0;
    if (len < 8)
        return tpl_fail(e, TPL_E_INPUT, where, "file has %zu bytes, expected at least 8", len);
    for (int i = 7; i >= 0; i--)
        n = n << 8 | (unsigned char)bytes[i];
    if (n > ST_MAX_HEADER_BYTES)
        return tpl_fail(e, TPL_E_INPUT, where,
                        "header length is %llu bytes, expected at most %d; not a safetensors file?",
                        (unsigned long long)n, ST_MAX_HEADER_BYTES);
    if (n > len - 8)
        return tpl_fail(e, TPL_E_INPUT, where, "header length is %llu bytes, the file has only %zu after it; cut short",
                        (unsigned long long)n, len - 8);
    TPL_TRY(json_load_bytes(bytes + 8, (size_t)n, where, header, e));
    *data_at = 8 + (size_t)n;
    if (json_is_object(*header))
        return TPL_OK;
    const char *word = json_type_word(*header);
    json_decref(*header);
    return tpl_fail(e, TPL_E_INPUT, where, "header is %s, expected an object", word);
}

static tpl_code read_tensors(st_file *f, json_t *header, const char *data, int64_t data_len, tpl_err *e)
{
    const char *name;
    json_t *entry;
    f->tensors = arena_array(&f->strings, st_tensor, json_object_size(header) + 1);
    json_object_foreach(header, name, entry)
    {
        if (strcmp(name, "__metadata__") == 0)
            continue;
        st_tensor *t = &f->tensors[f->n++];
        t->name = arena_strdup(&f->strings, name);
        t->file = f->where;
        TPL_TRY(read_tensor(entry, f->where, data, data_len, t, e));
    }
    TPL_TRY(check_tiling(f, data, data_len, e));
    qsort(f->tensors, (size_t)f->n, sizeof *f->tensors, by_name);
    return TPL_OK;
}

tpl_code st_parse(const void *bytes, size_t len, const char *where, st_file **out, tpl_err *e)
{
    json_t *header = NULL;
    size_t data_at = 0;
    TPL_TRY(read_header(bytes, len, path_tail(where), &header, &data_at, e));
    st_file *f = tpl_calloc(1, sizeof *f);
    arena_init(&f->strings);
    f->path = arena_strdup(&f->strings, where);
    f->where = path_tail(f->path);
    tpl_code rc = read_tensors(f, header, (const char *)bytes + data_at, (int64_t)(len - data_at), e);
    json_decref(header);
    if (rc == TPL_OK)
        *out = f;
    else
        st_close(f);
    return rc;
}

/* ---- one file: mapping ---- */

static tpl_code map_file(const char *path, void **map, size_t *len, tpl_err *e)
{
    const char *where = path_tail(path);
    struct stat st;
    tpl_code rc = TPL_OK;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* O_NONBLOCK: a fifo must not hang us */
    if (fd < 0)
        return tpl_fail(e, TPL_E_IO, where, "cannot open: %s", strerror(errno));
    if (fstat(fd, &st) != 0)
        rc = tpl_fail(e, TPL_E_IO, where, "cannot open: %s", strerror(errno));
    else if (!S_ISREG(st.st_mode))
        rc = tpl_fail(e, TPL_E_IO, where, "is not a regular file, expected one");
    else if (st.st_size < 8)
        rc = tpl_fail(e, TPL_E_INPUT, where, "file has %lld bytes, expected at least 8", (long long)st.st_size);
    else {
        *len = (size_t)st.st_size;
        *map = mmap(NULL, *len, PROT_READ, MAP_PRIVATE, fd, 0);
        if (*map == MAP_FAILED)
            rc = tpl_fail(e, TPL_E_IO, where, "cannot map %zu bytes: %s", *len, strerror(errno));
    }
    close(fd);
    return rc;
}

tpl_code st_open(const char *path, st_file **out, tpl_err *e)
{
    void *map = NULL;
    size_t len = 0;
    TPL_TRY(map_file(path, &map, &len, e));
    tpl_code rc = st_parse(map, len, path, out, e);
    if (rc != TPL_OK) {
        munmap(map, len);
        return rc;
    }
    (*out)->map = map;
    (*out)->map_len = len;
    return TPL_OK;
}

void st_close(st_file *f)
{
    if (!f)
        return;
    if (f->map)
        munmap(f->map, f->map_len);
    arena_fini(&f->strings);
    free(f);
}

int32_t st_count(const st_file *f)
{
    return f->n;
}

const st_tensor *st_at(const st_file *f, int32_t i)
{
    return &f->tensors[i];
}

const st_tensor *st_find(const st_file *f, const char *name)
{
    st_tensor key = {.name = name};
    return bsearch(&key, f->tensors, (size_t)f->n, sizeof key, by_name);
}

/* ---- a folder ---- */

#define INDEX_NAME "model.safetensors.index.json"

struct st_set {
    arena strings;
    st_file **files; /* in name order */
    int32_t n_files;
    const st_tensor **tensors; /* in name order */
    int32_t n;
};

static int by_string(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

static int by_tensor_name(const void *a, const void *b)
{
    return strcmp((*(const st_tensor *const *)a)->name, (*(const st_tensor *const *)b)->name);
}

/* A shard must lie in the checkpoint's own folder: the index may come from anyone. */
static bool plain_file_name(const json_t *v)
{
    const char *s = json_string_value(v);
    return s && *s && strlen(s) == json_string_length(v) && !strchr(s, '/') && !strstr(s, "..") && strcmp(s, ".") != 0;
}

/* Sets *names to the different shard names of the map, sorted. */
static tpl_code list_shards(st_set *s, json_t *map, const char *where, const char ***names, int32_t *n, tpl_err *e)
{
    const char *tensor;
    json_t *v;
    size_t count = 0, kept = 0;
    const char **all = arena_array(&s->strings, const char *, json_object_size(map) + 1);
    json_object_foreach(map, tensor, v)
    {
        if (!plain_file_name(v))
            return bad_tensor(e, where, tensor, "file is %s%.60s, expected a plain file name",
                              json_is_string(v) ? "" : json_type_word(v),
                              json_is_string(v) ? json_string_value(v) : "");
        all[count++] = json_string_value(v);
    }
    qsort(all, count, sizeof *all, by_string);
    for (size_t i = 0; i < count; i++)
        if (i == 0 || strcmp(all[i], all[kept - 1]) != 0)
            all[kept++] = all[i];
    *names = all;
    *n = (int32_t)kept;
    return TPL_OK;
}

static tpl_code open_shards(st_set *s, json_t *map, const char *dir, const char *where, tpl_err *e)
{
    const char **names = NULL, *tensor;
    json_t *v;
    int32_t n = 0;
    TPL_TRY(list_shards(s, map, where, &names, &n, e));
    s->files = arena_array(&s->strings, st_file *, n + 1);
    for (int32_t i = 0; i < n; i++) {
        TPL_TRY(st_open(text_path_join(&s->strings, dir, names[i]), &s->files[i], e));
        s->n_files++;
    }
    s->tensors = arena_array(&s->strings, const st_tensor *, json_object_size(map) + 1);
    json_object_foreach(map, tensor, v)
    {
        const char *shard = json_string_value(v);
        const char **at = bsearch(&shard, names, (size_t)n, sizeof *names, by_string);
        const st_file *f = s->files[at - names];
        s->tensors[s->n] = st_find(f, tensor);
        if (!s->tensors[s->n++])
            return bad_tensor(e, f->where, tensor, "is not in this file, expected by " INDEX_NAME);
    }
    qsort(s->tensors, (size_t)s->n, sizeof *s->tensors, by_tensor_name);
    return TPL_OK;
}

static tpl_code open_index(st_set *s, const char *dir, const char *path, tpl_err *e)
{
    json_t *root, *map;
    TPL_TRY(json_load_path(path, &root, e));
    tpl_code rc = json_want_object(root, "weight_map", &map, path_tail(path), e);
    if (rc == TPL_OK)
        rc = open_shards(s, map, dir, path_tail(path), e);
    json_decref(root);
    return rc;
}

static tpl_code open_single(st_set *s, const char *path, tpl_err *e)
{
    s->files = arena_array(&s->strings, st_file *, 1);
    TPL_TRY(st_open(path, &s->files[0], e));
    s->n_files = 1;
    s->n = s->files[0]->n;
    s->tensors = arena_array(&s->strings, const st_tensor *, s->n + 1);
    for (int32_t i = 0; i < s->n; i++)
        s->tensors[i] = &s->files[0]->tensors[i];
    return TPL_OK;
}

tpl_code st_set_open(const char *dir, st_set **out, tpl_err *e)
{
    st_set *s = tpl_calloc(1, sizeof *s);
    arena_init(&s->strings);
    const char *single = text_path_join(&s->strings, dir, "model.safetensors");
    const char *index = text_path_join(&s->strings, dir, INDEX_NAME);
    tpl_code rc;
    if (text_is_file(single))
        rc = open_single(s, single, e);
    else if (text_is_file(index))
        rc = open_index(s, dir, index, e);
    else
        rc = tpl_fail(e, TPL_E_IO, dir, "holds no weights, expected model.safetensors or " INDEX_NAME);
    if (rc == TPL_OK)
        *out = s;
    else
        st_set_close(s);
    return rc;
}

void st_set_close(st_set *s)
{
    if (!s)
        return;
    for (int32_t i = 0; i < s->n_files; i++)
        st_close(s->files[i]);
    arena_fini(&s->strings);
    free(s);
}

int32_t st_set_count(const st_set *s)
{
    return s->n;
}

const st_tensor *st_set_at(const st_set *s, int32_t i)
{
    return s->tensors[i];
}

const st_tensor *st_set_find(const st_set *s, const char *name)
{
    st_tensor key = {.name = name};
    const st_tensor *p = &key, **hit = bsearch(&p, s->tensors, (size_t)s->n, sizeof p, by_tensor_name);
    return hit ? *hit : NULL;
}

int32_t st_set_n_files(const st_set *s)
{
    return s->n_files;
}

const char *st_set_path(const st_set *s, int32_t i)
{
    return s->files[i]->path;
}

void st_set_forbid_reads(st_set *s)
{
    for (int32_t i = 0; i < s->n_files; i++)
        mprotect(s->files[i]->map, s->files[i]->map_len, PROT_NONE);
}
