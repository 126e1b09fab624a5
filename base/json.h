/* json.h - checked reading of JSON (Jansson) into C values.
 * For:    config.json, tokenizer.json, JSONL data, manifests.  Enter: all rooms.
 * Owns:   json_load_*() gives a reference (json_decref). Strings are borrowed from the document.
 * Fails:  TPL_E_INPUT; `where` is the caller's place ("config.json", "arc.jsonl:12"), `what` names the field with
 *         expected and actual. Optional getters leave *out alone when the field is absent or null. */
#ifndef TPL_BASE_JSON_H
#define TPL_BASE_JSON_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <jansson.h>

#include "base/error.h"

/* Parses bytes; `where` names them in messages, to which the line is added. */
tpl_code json_load_bytes(const char *data, size_t len, const char *where, json_t **out, tpl_err *e);
tpl_code json_load_path(const char *path, json_t **out, tpl_err *e);

const char *json_type_word(const json_t *v); /* "string", "number", ... ; "nothing" for NULL */

/* Required fields. Integers must lie in [lo, hi]; reals that hold a whole number are taken as integers. */
tpl_code json_want_int(const json_t *obj, const char *key, int64_t lo, int64_t hi, int64_t *out, const char *where, tpl_err *e);
tpl_code json_want_str(const json_t *obj, const char *key, const char **out, const char *where, tpl_err *e);
tpl_code json_want_array(const json_t *obj, const char *key, json_t **out, const char *where, tpl_err *e);
tpl_code json_want_object(const json_t *obj, const char *key, json_t **out, const char *where, tpl_err *e);

/* Optional fields: absent or null keeps *out; a wrong type is still an error. */
tpl_code json_maybe_int(const json_t *obj, const char *key, int64_t lo, int64_t hi, int64_t *out, const char *where, tpl_err *e);
tpl_code json_maybe_real(const json_t *obj, const char *key, double *out, const char *where, tpl_err *e);
tpl_code json_maybe_bool(const json_t *obj, const char *key, bool *out, const char *where, tpl_err *e);
tpl_code json_maybe_str(const json_t *obj, const char *key, const char **out, const char *where, tpl_err *e);

#endif
