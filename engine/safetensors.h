/* safetensors.h - read-only view of safetensors files: one file, or a checkpoint folder with its shards.
 * For:    model.h finds weights by name; convert and tests read back what was written.
 * Enter:  engine/, bench/, cli/, tests/.
 * Owns:   st_open() and st_set_open() own the mappings; tensors and their data are borrowed until st_close() or
 *         st_set_close(). st_parse() borrows the caller's bytes. A file that shrinks while it is mapped ends the
 * program. Fails:  TPL_E_INPUT with the file and the tensor, expected and actual; TPL_E_IO for files that cannot be
 * read.
 *
 * File:   | 8 bytes: header length n, little endian | n bytes: JSON | data |
 *         JSON: {"name": {"dtype": "BF16", "shape": [out, in], "data_offsets": [begin, end)}, "__metadata__": {...}}
 *         Offsets count from the start of the data; the tensors tile it without gap or overlap. */
#ifndef TPL_ENGINE_SAFETENSORS_H
#define TPL_ENGINE_SAFETENSORS_H

#include <stddef.h>
#include <stdint.h>

#include "base/dtype.h"
#include "base/error.h"

enum { ST_MAX_DIMS = 8, ST_MAX_HEADER_BYTES = 100 << 20, ST_SHAPE_TEXT = 192 };

typedef struct {
    const char *name;
    const char *file; /* its file as messages show it: the path, or the end of a long one */
    const char *type; /* as the format writes it: "BF16" */
    tpl_dtype dtype;  /* DT_NONE for types of the format that tplabench does not compute with ("I64", "BOOL", ...) */
    int32_t n_dims;
    int64_t shape[ST_MAX_DIMS];
    const void *data; /* aligned only as well as the file is: the format does not promise any */
    int64_t bytes;
} st_tensor;

typedef struct st_file st_file;

/* Checks the whole header against `len`. Gives *out, which borrows bytes. */
tpl_code st_parse(const void *bytes, size_t len, const char *where, st_file **out, tpl_err *e);
tpl_code st_open(const char *path, st_file **out, tpl_err *e);
void st_close(st_file *f); /* NULL is fine */

int32_t st_count(const st_file *f);
const st_tensor *st_at(const st_file *f, int32_t i);          /* in name order */
const st_tensor *st_find(const st_file *f, const char *name); /* NULL: no such tensor */

/* A checkpoint folder: model.safetensors, or else model.safetensors.index.json and the shards its weight_map names. */
typedef struct st_set st_set;

tpl_code st_set_open(const char *dir, st_set **out, tpl_err *e);
void st_set_close(st_set *s);

int32_t st_set_count(const st_set *s);
const st_tensor *st_set_at(const st_set *s, int32_t i); /* in name order */
const st_tensor *st_set_find(const st_set *s, const char *name);
int32_t st_set_n_files(const st_set *s);
const char *st_set_path(const st_set *s, int32_t i); /* in name order */
/* Makes every read of tensor data end the program. */
void st_set_forbid_reads(st_set *s);

/* "[640, 64]" into buf, which has ST_SHAPE_TEXT bytes; gives buf. */
const char *st_shape_text(int32_t n_dims, const int64_t *shape, char *buf);

#endif
