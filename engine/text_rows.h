/* text_rows.h - running text as rows of token ids, as perplexity and calibration take it.
 * For:    eval/ (held-out text) and engine/calibrate.c's callers.
 * Enter:  engine/, eval/, bench/, cli/, tests/.
 * Owns:   text_rows_read() gives tokens to the caller (text_rows_free).
 * Fails:  TPL_E_IO, TPL_E_INPUT if the text is shorter than one row. */
#ifndef TPL_ENGINE_TEXT_ROWS_H
#define TPL_ENGINE_TEXT_ROWS_H

#include "base/text.h"
#include "engine/tokenizer.h"

typedef struct {
    int32_t *tokens; /* [n_rows, row_tok] */
    int32_t n_rows, row_tok;
    sha256_hex sha; /* of the file */
    char path[256];
} text_rows;

/* Splits the file at the literal text of token `bos`, puts `bos` before each document, joins all and cuts rows of row_tok
 * tokens; at most max_rows (0: all whole rows). bos -1: the file is one document and nothing is put before it. */
tpl_code text_rows_read(const char *path, const tokenizer *t, int32_t bos, int max_rows, int row_tok, text_rows *out, tpl_err *e);
void text_rows_free(text_rows *r);

#endif
