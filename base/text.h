/* text.h - strings, files and numbers as users write them.
 * For:    option values, suite files, whole-file reads, growing text.  Enter: all rooms.
 * Owns:   a text_buf owns its bytes (text_fini); text_read_file() gives malloc'ed bytes to the caller.
 * Fails:  TPL_E_IO with the path and errno's words; number parsers return false and leave *out alone. */
#ifndef TPL_BASE_TEXT_H
#define TPL_BASE_TEXT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/arena.h"
#include "base/error.h"

typedef struct {
    char *data; /* always 0-terminated once anything was added; NULL before */
    size_t len, cap;
} text_buf;

void text_add(text_buf *b, const char *s, size_t n);
void text_addf(text_buf *b, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void text_fini(text_buf *b);

/* The whole file, with a 0 byte added after its end. Gives *data (free it). */
tpl_code text_read_file(const char *path, char **data, size_t *len, tpl_err *e);
/* Writes through a temporary file and rename, so that a reader sees the old or the new content, never half. */
tpl_code text_write_file(const char *path, const char *data, size_t len, tpl_err *e);
/* Like mkdir -p. */
tpl_code text_make_dirs(const char *path, tpl_err *e);
bool text_is_dir(const char *path);
bool text_is_file(const char *path);

/* Whole-string parses. Integers take the suffixes K and M (2^10, 2^20): "8K" is 8192. */
bool text_parse_i64(const char *s, int64_t *out);
bool text_parse_f64(const char *s, double *out);

/* Splits at `sep`, trims blanks around each part; an empty string gives no parts. Parts live in the arena. */
int text_split(arena *a, const char *s, char sep, char ***parts);

/* An axis: "1,2,4", "1K:128K*2" (from:to*factor), "1:9+2" (from:to+step), and mixtures with commas.
 * Fails with TPL_E_USAGE naming `option`. Values live in the arena. */
tpl_code text_parse_axis(arena *a, const char *option, const char *s, int64_t **values, int *n, tpl_err *e);

/* Joins a folder and a name; lives in the arena. */
char *text_path_join(arena *a, const char *dir, const char *name);
const char *text_base_name(const char *path); /* borrows from path; ignores no trailing slash */

/* XDG cache folder of tplabench ($XDG_CACHE_HOME/tplabench or ~/.cache/tplabench, created); lives in the arena. */
tpl_code text_cache_dir(arena *a, char **dir, tpl_err *e);

/* SHA-256 as 64 lower-case hex digits and a 0. */
typedef struct {
    char hex[65];
} sha256_hex;

typedef struct sha256_state sha256_state;
sha256_state *sha256_create(void);
void sha256_add(sha256_state *s, const void *data, size_t n);
sha256_hex sha256_finish(sha256_state *s); /* destroys s */
sha256_hex sha256_bytes(const void *data, size_t n);
tpl_code sha256_file(const char *path, sha256_hex *out, tpl_err *e);

#endif
