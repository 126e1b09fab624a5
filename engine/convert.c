#include "engine/convert.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "base/log.h"
#include "engine/model_roles.h"
#include "engine/safetensors.h"

static const int64_t SHARD_BYTES = (int64_t)4 << 30;
enum { CHUNK = 1 << 14 }; /* elements converted at a time */

/* What becomes of a stored tensor. */
typedef enum { KEEP_BYTES, CHANGE_TYPE, WIDEN_F8, FOLD_KV_A, FOLD_GAMMA, FOLD_KV_B } fate;

typedef struct {
    const st_tensor *t;
    fate fate;
    int32_t layer; /* of FOLD_... */
    int32_t shard;
    int64_t bytes; /* as written */
} item;

typedef struct {
    const model *m;
    const folded *f;
    const convert_options *o;
    st_set *files;
    item *items;
    int32_t n_items, n_shards;
    arena mem;
} job;

/* ---- what to write ---- */

static bool ends_with(const char *s, const char *end)
{
    size_t n = strlen(s), k = strlen(end);
    return n >= k && strcmp(s + n - k, end) == 0;
}

static bool is_float(tpl_dtype t)
{
    return t == DT_F32 || t == DT_BF16 || t == DT_F16 || t == DT_F8E4M3;
}

/* The scales of an f8 weight, which go away with its type. */
static bool is_scale(const job *j, const char *name)
{
    size_t n = strlen(name), k = sizeof ROLE_SCALE_SUFFIX - 1;
    if (!ends_with(name, ROLE_SCALE_SUFFIX) || n - k >= 512)
        return false;
    char base[512];
    memcpy(base, name, n - k);
    base[n - k] = 0;
    const st_tensor *t = st_set_find(j->files, base);
    return t && t->dtype == DT_F8E4M3;
}

static void choose_fates(job *j)
{
    const model_config *c = model_cfg(j->m);
    static const weight_role roles[] = {W_KV_A, W_KV_A_NORM, W_KV_B};
    char name[ROLE_TENSOR_NAME];
    for (int32_t i = 0; i < st_set_count(j->files); i++) {
        const st_tensor *t = st_set_at(j->files, i);
        if (is_scale(j, t->name))
            continue;
        bool keep = !is_float(t->dtype) || ends_with(t->name, "e_score_correction_bias");
        fate f = keep ? KEEP_BYTES : t->dtype == DT_F8E4M3 ? WIDEN_F8 : CHANGE_TYPE;
        j->items[j->n_items++] = (item){.t = t, .fate = f};
    }
    for (int32_t layer = 0; layer < c->n_layers; layer++)
        for (int k = 0; k < 3; k++) {
            role_tensor_name(c, roles[k], layer, 0, name);
            for (int32_t i = 0; i < j->n_items; i++)
                if (strcmp(j->items[i].t->name, name) == 0) {
                    j->items[i].fate = (fate)(FOLD_KV_A + k);
                    j->items[i].layer = layer;
                }
        }
}

static int64_t element_count(const st_tensor *t)
{
    int64_t n = 1;
    for (int32_t i = 0; i < t->n_dims; i++)
        n *= t->shape[i];
    return n;
}

static size_t element_bytes(const job *j, const item *it)
{
    if (it->fate != KEEP_BYTES)
        return dtype_bytes(j->o->dtype);
    int64_t n = element_count(it->t);
    return n > 0 ? (size_t)(it->t->bytes / n) : 1;
}

static void choose_shards(job *j)
{
    int64_t limit = j->o->shard_bytes > 0 ? j->o->shard_bytes : SHARD_BYTES, used = 0;
    for (int32_t i = 0; i < j->n_items; i++) {
        item *it = &j->items[i];
        it->bytes = element_count(it->t) * (int64_t)element_bytes(j, it);
        if (used > 0 && used + it->bytes > limit) {
            j->n_shards++;
            used = 0;
        }
        it->shard = j->n_shards;
        used += it->bytes;
    }
    j->n_shards++;
}

/* ---- one weight file ---- */

static tpl_code put(FILE *f, const void *data, size_t n, const char *path, tpl_err *e)
{
    if (fwrite(data, 1, n, f) == n)
        return TPL_OK;
    return tpl_fail(e, TPL_E_IO, path, "cannot be written: %s", strerror(errno));
}

static tpl_code put_floats(const job *j, FILE *f, const float *x, size_t n, const char *path, tpl_err *e)
{
    char narrow[CHUNK * sizeof(float)];
    size_t size = dtype_bytes(j->o->dtype);
    for (size_t at = 0; at < n; at += CHUNK) {
        size_t k = n - at < CHUNK ? n - at : CHUNK;
        dtype_from_f32(narrow, j->o->dtype, x + at, k);
        TPL_TRY(put(f, narrow, k * size, path, e));
    }
    return TPL_OK;
}

static tpl_code put_changed(const job *j, FILE *f, const st_tensor *t, const char *path, tpl_err *e)
{
    float wide[CHUNK];
    int64_t n = element_count(t);
    for (int64_t at = 0; at < n; at += CHUNK) {
        size_t k = n - at < CHUNK ? (size_t)(n - at) : CHUNK;
        dtype_to_f32(wide, (const char *)t->data + (size_t)at * dtype_bytes(t->dtype), t->dtype, k);
        TPL_TRY(put_floats(j, f, wide, k, path, e));
    }
    return TPL_OK;
}

static tpl_code put_widened(const job *j, FILE *f, const st_tensor *t, const char *path, tpl_err *e)
{
    text_buf scales = {0};
    text_addf(&scales, "%s%s", t->name, ROLE_SCALE_SUFFIX);
    const st_tensor *s = st_set_find(j->files, scales.data);
    text_fini(&scales);
    int64_t rows = t->shape[0], cols = t->n_dims == 2 ? t->shape[1] : 0, block = MODEL_F8_BLOCK;
    if (t->n_dims != 2 || !s || s->dtype != DT_F32 || s->n_dims != 2 || s->shape[0] != (rows + block - 1) / block ||
        s->shape[1] != (cols + block - 1) / block)
        return tpl_fail(e, TPL_E_UNSUPPORTED, t->file, "tensor %s: F8_E4M3 without fitting block scales", t->name);
    mat w = {.data = (void *)(uintptr_t)t->data,
             .dtype = t->dtype,
             .rows = rows,
             .cols = cols,
             .stride = cols,
             .scale = s->data};
    float *row = tpl_malloc(sizeof *row * (size_t)(cols > 0 ? cols : 1));
    tpl_code rc = TPL_OK;
    for (int64_t i = 0; i < rows && rc == TPL_OK; i++) {
        model_read_row(&w, i, 0, cols, row);
        rc = put_floats(j, f, row, (size_t)cols, path, e);
    }
    free(row);
    return rc;
}

/* A head's keys, then its values, head after head. */
static tpl_code put_kv_b(const job *j, FILE *f, int layer, const char *path, tpl_err *e)
{
    head_mat uk = folded_uk_whole(j->f, layer), uv = folded_uv(j->f, layer);
    for (int h = 0; h < uk.heads; h++) {
        TPL_TRY(
            put_floats(j, f, (const float *)uk.data + h * uk.head_stride, (size_t)uk.rows * (size_t)uk.cols, path, e));
        TPL_TRY(
            put_floats(j, f, (const float *)uv.data + h * uv.head_stride, (size_t)uv.rows * (size_t)uv.cols, path, e));
    }
    return TPL_OK;
}

static tpl_code put_ones(const job *j, FILE *f, int64_t n, const char *path, tpl_err *e)
{
    float *ones = tpl_malloc(sizeof *ones * (size_t)n);
    for (int64_t i = 0; i < n; i++)
        ones[i] = 1;
    tpl_code rc = put_floats(j, f, ones, (size_t)n, path, e);
    free(ones);
    return rc;
}

static tpl_code put_item(const job *j, FILE *f, const item *it, const char *path, tpl_err *e)
{
    mat kv_a;
    switch (it->fate) {
    case KEEP_BYTES:
        return put(f, it->t->data, (size_t)it->t->bytes, path, e);
    case CHANGE_TYPE:
        return put_changed(j, f, it->t, path, e);
    case WIDEN_F8:
        return put_widened(j, f, it->t, path, e);
    case FOLD_KV_A:
        kv_a = folded_kv_a(j->f, it->layer);
        return put_floats(j, f, kv_a.data, (size_t)(kv_a.rows * kv_a.cols), path, e);
    case FOLD_GAMMA:
        return put_ones(j, f, element_count(it->t), path, e);
    default:
        return put_kv_b(j, f, it->layer, path, e);
    }
}

static int by_width(const void *a, const void *b)
{
    const item *x = *(const item *const *)a, *y = *(const item *const *)b;
    int64_t n = element_count(x->t), k = element_count(y->t);
    int64_t wide = n ? x->bytes / n : 0, other = k ? y->bytes / k : 0;
    return wide != other ? (wide < other) - (wide > other) : strcmp(x->t->name, y->t->name);
}

/* A shard's items in file order: wide elements first, so that all are aligned. */
static int32_t order_items(job *j, int32_t shard, item **order)
{
    int32_t n = 0;
    for (int32_t i = 0; i < j->n_items; i++)
        if (j->items[i].shard == shard)
            order[n++] = &j->items[i];
    qsort(order, (size_t)n, sizeof *order, by_width);
    return n;
}

static const char *type_word(const job *j, const item *it)
{
    return it->fate == KEEP_BYTES ? it->t->type : j->o->dtype == DT_F32 ? "F32" : "BF16";
}

static tpl_code put_header(const job *j, FILE *f, item *const *order, int32_t n, const char *path, tpl_err *e)
{
    json_t *root = json_pack("{s:{s:s}}", "__metadata__", "format", "pt");
    int64_t at = 0;
    for (int32_t i = 0; i < n; i++) {
        json_t *shape = json_array();
        for (int32_t d = 0; d < order[i]->t->n_dims; d++)
            json_array_append_new(shape, json_integer(order[i]->t->shape[d]));
        json_object_set_new(root, order[i]->t->name,
                            json_pack("{s:s, s:o, s:[I,I]}", "dtype", type_word(j, order[i]), "shape", shape,
                                      "data_offsets", (json_int_t)at, (json_int_t)(at + order[i]->bytes)));
        at += order[i]->bytes;
    }
    char *text = json_dumps(root, JSON_COMPACT);
    text_buf b = {0};
    size_t len = (strlen(text) + 7) / 8 * 8;
    for (int i = 0; i < 8; i++)
        text_addf(&b, "%c", 0);
    for (int i = 0; i < 8; i++)
        b.data[i] = (char)(len >> 8 * i & 255);
    text_addf(&b, "%-*s", (int)len, text);
    tpl_code rc = put(f, b.data, b.len, path, e);
    text_fini(&b);
    free(text);
    json_decref(root);
    return rc;
}

static const char *shard_name(job *j, int32_t shard)
{
    return j->n_shards == 1 ? "model.safetensors"
                            : arena_printf(&j->mem, "model-%05d-of-%05d.safetensors", shard + 1, j->n_shards);
}

static tpl_code write_shard(job *j, int32_t shard, tpl_err *e)
{
    char *path = text_path_join(&j->mem, j->o->out, shard_name(j, shard));
    item **order = tpl_malloc(sizeof *order * (size_t)(j->n_items + 1));
    int32_t n = order_items(j, shard, order);
    FILE *f = fopen(path, "wb");
    tpl_code rc =
        f ? put_header(j, f, order, n, path, e) : tpl_fail(e, TPL_E_IO, path, "cannot be created: %s", strerror(errno));
    for (int32_t i = 0; i < n && rc == TPL_OK; i++) {
        if (interrupt_seen())
            rc = tpl_fail(e, TPL_E_INTERRUPTED, path, "conversion was stopped by a signal");
        else
            rc = put_item(j, f, order[i], path, e);
    }
    if (f && fclose(f) != 0 && rc == TPL_OK)
        rc = tpl_fail(e, TPL_E_IO, path, "cannot be written: %s", strerror(errno));
    if (f && rc != TPL_OK)
        remove(path);
    free(order);
    return rc;
}

/* ---- the other files ---- */

static tpl_code dump_json(job *j, const char *name, json_t *root, tpl_err *e)
{
    char *text = json_dumps(root, JSON_INDENT(2) | JSON_REAL_PRECISION(9)),
         *path = text_path_join(&j->mem, j->o->out, name);
    tpl_code rc = text_write_file(path, text, strlen(text), e);
    free(text);
    json_decref(root);
    return rc;
}

static tpl_code write_index(job *j, tpl_err *e)
{
    json_t *map = json_object();
    int64_t bytes = 0;
    for (int32_t i = 0; i < j->n_items; i++) {
        json_object_set_new(map, j->items[i].t->name, json_string(shard_name(j, j->items[i].shard)));
        bytes += j->items[i].bytes;
    }
    return dump_json(j, "model.safetensors.index.json",
                     json_pack("{s:{s:I}, s:o}", "metadata", "total_size", (json_int_t)bytes, "weight_map", map), e);
}

static tpl_code write_config(job *j, tpl_err *e)
{
    json_t *root;
    const char *type = j->o->dtype == DT_F32 ? "float32" : "bfloat16";
    TPL_TRY(json_load_path(text_path_join(&j->mem, model_dir(j->m), "config.json"), &root, e));
    if (json_object_get(root, "dtype"))
        json_object_set_new(root, "dtype", json_string(type));
    json_object_set_new(root, "torch_dtype", json_string(type));
    json_object_del(root, "quantization_config");
    return dump_json(j, "config.json", root, e);
}

/* What a tokenizer or a sampler needs, of any family. */
static bool is_companion(const char *name)
{
    static const char *const starts[] = {"tokenizer",    "tokenization_", "special_tokens_map",
                                         "added_tokens", "vocab.",        "merges.txt",
                                         "tiktoken",     "chat_template", "generation_config"};
    for (size_t i = 0; i < sizeof starts / sizeof *starts; i++)
        if (strncmp(name, starts[i], strlen(starts[i])) == 0)
            return true;
    return ends_with(name, ".tiktoken");
}

static tpl_code copy_companions(job *j, tpl_err *e)
{
    DIR *d = opendir(model_dir(j->m));
    tpl_code rc = d ? TPL_OK : tpl_fail(e, TPL_E_IO, model_dir(j->m), "cannot be listed: %s", strerror(errno));
    for (struct dirent *f; rc == TPL_OK && (f = readdir(d));) {
        char *data, *from = text_path_join(&j->mem, model_dir(j->m), f->d_name);
        size_t len;
        if (!is_companion(f->d_name) || !text_is_file(from))
            continue;
        rc = text_read_file(from, &data, &len, e);
        if (rc == TPL_OK) {
            rc = text_write_file(text_path_join(&j->mem, j->o->out, f->d_name), data, len, e);
            free(data);
        }
    }
    if (d)
        closedir(d);
    return rc;
}

static json_t *reals(const float *x, int n)
{
    json_t *a = json_array();
    for (int i = 0; i < n; i++)
        json_array_append_new(a, json_real(x[i]));
    return a;
}

static tpl_code write_tpla(job *j, model *m, const transform *t, tpl_err *e)
{
    char text[VARIANT_TEXT];
    static const char *const bases[] = {[U_ID] = "id", [U_HADAMARD] = "hadamard", [U_PCA] = "pca", [U_MIX] = "mix"};
    sha256_hex sha;
    json_t *layers = json_array(), *calibration_json = json_null();
    variant_format(&t->v, text);
    tpl_code rc = model_sha256(m, &sha, e);
    if (rc != TPL_OK) {
        json_decref(layers);
        return rc;
    }
    if (j->o->calib)
        calibration_json =
            json_pack("{s:s, s:I}", "text_sha256", j->o->calib->text_sha.hex, "n_tok", (json_int_t)j->o->calib->n_tok);
    for (int l = 0; l < t->n_layers; l++)
        json_array_append_new(layers,
                              json_pack("{s:o, s:o, s:o}", "alpha", reals(t->layers[l].alpha, t->g), "mu",
                                        reals(t->layers[l].mu, t->g), "share", reals(t->layers[l].share, t->g)));
    json_t *root =
        json_pack("{s:s, s:i, s:s, s:i, s:i, s:{s:s, s:i, s:o}, s:{s:s, s:s}, s:o}", "format", "tplabench/tpla",
                  "version", 1, "variant", text, "g", t->g, "kv_lora_rank", t->r, "u", "basis",
                  bases[t->v.kind == VAR_TPLA ? t->v.u : U_ID], "seed", t->v.seed, "calibration", calibration_json,
                  "source", "name", model_cfg(m)->name, "sha256", sha.hex, "layers", layers);
    return dump_json(j, "tpla.json", root, e);
}

/* ---- all of it ---- */

static tpl_code prepare_folder(const char *out, tpl_err *e)
{
    TPL_TRY(text_make_dirs(out, e));
    DIR *d = opendir(out);
    int n = 0;
    if (!d)
        return tpl_fail(e, TPL_E_IO, out, "cannot be opened: %s", strerror(errno));
    for (struct dirent *f; (f = readdir(d));)
        n += strcmp(f->d_name, ".") != 0 && strcmp(f->d_name, "..") != 0;
    closedir(d);
    return n ? tpl_fail(e, TPL_E_USAGE, out, "is not empty (%d entries), expected a new folder", n) : TPL_OK;
}

static tpl_code write_all(job *j, model *m, const transform *t, tpl_err *e)
{
    for (int32_t i = 0; i < j->n_shards; i++) {
        progress_show(i, j->n_shards, "writing weights");
        TPL_TRY(write_shard(j, i, e));
    }
    progress_clear();
    if (j->n_shards > 1)
        TPL_TRY(write_index(j, e));
    TPL_TRY(copy_companions(j, e));
    TPL_TRY(write_tpla(j, m, t, e));
    return write_config(j, e);
}

tpl_code convert_write(model *m, const transform *t, const folded *f, const convert_options *o, convert_report *out,
                       tpl_err *e)
{
    job j = {.m = m, .f = f, .o = o};
    TPL_TRY(prepare_folder(o->out, e));
    TPL_TRY(st_set_open(model_dir(m), &j.files, e));
    arena_init(&j.mem);
    j.items = tpl_calloc((size_t)st_set_count(j.files) + 1, sizeof *j.items);
    choose_fates(&j);
    choose_shards(&j);
    tpl_code rc = write_all(&j, m, t, e);
    progress_clear();
    *out = (convert_report){.n_tensors = j.n_items, .n_files = j.n_shards};
    for (int32_t i = 0; i < j.n_items; i++)
        out->bytes += j.items[i].bytes;
    free(j.items);
    arena_fini(&j.mem);
    st_set_close(j.files);
    return rc;
}
