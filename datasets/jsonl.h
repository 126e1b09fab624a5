/* jsonl.h - one JSON object a line, with the line's number in every message.
 * For:    the readers of this room.
 * Enter:  datasets/ only.
 * Owns:   nothing; each jsonl_next() gives one document to the caller (json_decref). Strings are copied into an arena.
 * Fails:  TPL_E_INPUT with where = "arc.jsonl:12": malformed JSON, invalid UTF-8, no object, a field that is missing,
 *         has another type or holds a NUL character. Blank lines are passed over. */
#ifndef TPL_DATASETS_JSONL_H
#define TPL_DATASETS_JSONL_H

#include <stdbool.h>
#include <stddef.h>

#include "base/arena.h"
#include "base/error.h"
#include "base/json.h"

typedef struct {
    const char *rest, *end; /* borrows the file's bytes */
    const char *name;       /* file name for messages; borrows */
    int line;               /* of the last document, from 1 */
    char where[160];        /* "name:line" */
} jsonl;

void jsonl_init(jsonl *j, const char *data, size_t n_bytes, const char *name);
/* Gives the next object, or NULL at the end. */
tpl_code jsonl_next(jsonl *j, json_t **doc, tpl_err *e);

/* Copies a string field; it must be there. */
tpl_code jsonl_want_text(arena *a, const json_t *obj, const char *key, char **out, const char *where, tpl_err *e);
/* A string, or an integer in decimal; *out stays if the field is absent or null. */
tpl_code jsonl_maybe_id(arena *a, const json_t *obj, const char *key, char **out, const char *where, tpl_err *e);
/* An array of at least `at_least` strings. */
tpl_code jsonl_want_texts(arena *a, const json_t *obj, const char *key, int at_least, char ***out, int *n,
                          const char *where, tpl_err *e);

/* Grows an array on the heap so that item n fits (doubling); a reader of unknown length ends with jsonl_keep(). */
void *jsonl_grow(void *items, size_t item_bytes, int n);
/* Moves n items into the arena and frees the heap's array. */
void *jsonl_keep(arena *a, void *items, size_t item_bytes, int n);

#endif
