/* utf8.h - is it UTF-8, and making it so.
 * For:    cells, labels and arguments that come from outside and go into CSV and JSON files.
 * Enter:  results/.  Owns: nothing.  Fails: never. */
#ifndef TPL_RESULTS_UTF8_H
#define TPL_RESULTS_UTF8_H

#include <stdbool.h>
#include <stddef.h>

#include <jansson.h>

#include "base/text.h"

/* Bytes of the well-formed sequence at s (1 to 4), or 0 where s[0..n) does not begin with one. n > 0. */
int utf8_sequence(const char *s, size_t n);
bool utf8_is_valid(const char *s, size_t n);
/* Adds s with every byte that belongs to no sequence replaced by U+FFFD. */
void utf8_add_clean(text_buf *b, const char *s);
/* The same as a JSON string (json_decref); null for NULL. */
json_t *utf8_to_json(const char *s);

#endif
