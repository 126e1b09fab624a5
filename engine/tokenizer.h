/* tokenizer.h - text to token ids and back, exactly as the checkpoint's own tokenizer does it.
 * For:    byte-level BPE (Llama-3, Qwen, DeepSeek, the bundled worldlets) and SentencePiece-style BPE (Llama-2,
 * Mistral) from a Hugging Face tokenizer.json, and Kimi's tiktoken.model. Enter:  engine/, eval/, bench/, cli/, tests/.
 * Owns:   tokenizer_open() and tokenizer_parse() give an immutable tokenizer (tokenizer_close). Encode and decode keep
 *         their scratch on the caller's side, so any number of threads may use one tokenizer.
 * Fails:  TPL_E_INPUT for malformed files, TPL_E_UNSUPPORTED naming a component this build does not have: no pattern,
 *         normaliser or decoder is ever replaced by a similar one. Out-parameters stay untouched on failure. */
#ifndef TPL_ENGINE_TOKENIZER_H
#define TPL_ENGINE_TOKENIZER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"
#include "base/text.h"

typedef struct tokenizer tokenizer;

/* Reads dir/tokenizer.json; without that file, dir/tiktoken.model with dir/tokenizer_config.json (Kimi's layout). */
tpl_code tokenizer_open(const char *dir, tokenizer **out, tpl_err *e);
/* The bytes of a tokenizer.json; `where` names them in messages. */
tpl_code tokenizer_parse(const char *data, size_t len, const char *where, tokenizer **out, tpl_err *e);
void tokenizer_close(tokenizer *t); /* t may be NULL */

/* Largest id + 1. Ids between may be unused: tokenizer_token_text() gives NULL for them. */
int tokenizer_vocab(const tokenizer *t);

/* Gives *ids (free it; never NULL) and their count. Nothing is added (no BOS, no template, no truncation); added tokens
 * in the text become their ids. Invalid UTF-8 is first replaced by U+FFFD, one for each maximal invalid subpart, as
 * Python's bytes.decode(errors="replace") does.
 * Cost: O(bytes) for splitting and O(n log n) for the n symbols of a piece that merge; a text of one single piece
 * (Llama-2 has no pre-tokenizer) is such a piece. A pattern that backtracks beyond its limit ends in TPL_E_INPUT. */
tpl_code tokenizer_encode(const tokenizer *t, const char *text, size_t len, int32_t **ids, int *n, tpl_err *e);

/* Appends the text of ids[n] to *out. Ids outside the vocabulary add nothing; invalid UTF-8 becomes U+FFFD by the rule
 * of the file's own decoder. At most 1 GiB. skip_special leaves out the tokens that the file marks as special. */
void tokenizer_decode(const tokenizer *t, const int32_t *ids, int n, bool skip_special, text_buf *out);

/* The id whose stored content is exactly `content` ("<|endoftext|>", "\u0120the"), or -1. */
int32_t tokenizer_token_id(const tokenizer *t, const char *content);
/* The stored content, borrowed until close; NULL for an unused id. */
const char *tokenizer_token_text(const tokenizer *t, int32_t id);

#endif
