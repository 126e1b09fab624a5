/* unicode.h - text as code points, with the classes and case rules that the reference scorers (Python's str) use.
 * For:    HellaSwag's preprocessing here and the text metrics in eval/; tables of utf8proc, checked against
 * CPython 3.11. Enter:  datasets/ and eval/. Owns:   nothing; results live in the caller's arena, and slices borrow
 * from the text they were cut from. Fails:  never; a byte that belongs to no valid UTF-8 sequence is read as U+FFFD.
 * Reject it before with uni_find_bad(). */
#ifndef TPL_DATASETS_UNICODE_H
#define TPL_DATASETS_UNICODE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/arena.h"

typedef struct {
    const int32_t *cp; /* [n] code points */
    size_t n;
} uni_text;

uni_text uni_decode(arena *a, const char *s, size_t n_bytes);
char *uni_encode(arena *a, uni_text t);
size_t uni_count(const char *s); /* code points of a 0-terminated string: Python's len() */
/* Offset of the first byte that is not UTF-8 (surrogates and overlong forms included), or n_bytes if all is well. */
size_t uni_find_bad(const char *s, size_t n_bytes);

bool uni_is_space(int32_t c); /* str.isspace(): split(), strip() and \s */
bool uni_is_word(int32_t c);  /* \w: letters, numbers and '_', but no combining marks */
bool uni_is_digit(int32_t c); /* decimal digits of any script, category Nd: \d */

uni_text uni_slice(uni_text t, size_t begin, size_t end);
uni_text uni_strip(uni_text t);
bool uni_equal(uni_text x, uni_text y);
/* Cuts at whitespace; no empty pieces. Gives the number of words. */
size_t uni_split(arena *a, uni_text t, uni_text **words);

uni_text uni_lower(arena *a, uni_text t); /* str.lower(), the final sigma included */
uni_text uni_capitalise(arena *a,
                        uni_text t); /* str.capitalize(): the first one to title case, the others to lower case */

#endif
