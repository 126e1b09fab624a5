/* text.h - plain text in documents, for perplexity and calibration.
 * For:    heldout.txt, calibration.txt: documents with "<|endoftext|>" between them.
 * Enter:  eval/, bench/, cli/.
 * Owns:   nothing; documents live in the caller's arena.
 * Fails:  TPL_E_IO; TPL_E_INPUT with where = "heldout.txt:12" for an empty file or a byte that is not UTF-8. */
#ifndef TPL_DATASETS_TEXT_H
#define TPL_DATASETS_TEXT_H

#include <stddef.h>

#include "base/arena.h"
#include "base/error.h"
#include "base/text.h"

typedef struct {
    const char *data; /* 0-terminated; may hold further NUL bytes */
    size_t n_bytes;   /* 0 between two separators, or after the last */
} ds_doc;

typedef struct {
    ds_doc *docs;      /* [n] in file order */
    int n;             /* separators + 1 */
    sha256_hex sha256; /* of the bytes as they stand in the file */
} ds_text;

/* CR LF and CR are read as LF, as the reference does. */
tpl_code ds_read_text(arena *a, const char *path, ds_text *out, tpl_err *e);
tpl_code ds_parse_text(arena *a, const char *data, size_t n_bytes, const char *name, ds_text *out, tpl_err *e);

#endif
