/* align.h - what two sequences have in common: shared words, longest common subsequence, difflib's matching blocks.
 * For:    the text metrics.
 * Enter:  eval/ only.
 * Owns:   nothing; results and scratch live in the caller's arena.
 * Fails:  only align_mark_lcs(), with TPL_E_INPUT for a table beyond ALIGN_MAX_CELLS. */
#ifndef TPL_EVAL_ALIGN_H
#define TPL_EVAL_ALIGN_H

#include <stddef.h>
#include <stdint.h>

#include "base/arena.h"
#include "base/error.h"
#include "datasets/unicode.h"

/* Numbers words so that equal ones share an id in [0, distinct); gives how many distinct there are. */
size_t align_number_words(arena *a, const uni_text *words, size_t n, int32_t *ids /* [n] */);

/* Sum over distinct ids below n_ids of the smaller of the two counts. */
size_t align_count_shared(arena *a, const int32_t *x, size_t n_x, const int32_t *y, size_t n_y, size_t n_ids);

/* Length of the longest common subsequence; time n_x * n_y, memory n_y. */
size_t align_lcs(arena *a, const int32_t *x, size_t n_x, const int32_t *y, size_t n_y);

enum { ALIGN_MAX_CELLS = 1 << 30 }; /* one bit each: 128 MiB */

/* Sets marks[id] for the words of one longest common subsequence, the one that a walk back from both ends finds which
 * prefers equal words, then a shorter x if that table entry is strictly larger, then a shorter y (rouge 1.0.1).
 * *n_steps counts the walk's steps. */
tpl_code align_mark_lcs(arena *a, const int32_t *x, size_t n_x, const int32_t *y, size_t n_y, unsigned char *marks,
                        size_t *n_steps, tpl_err *e);

/* difflib.SequenceMatcher(None, x, y): total size of the matching blocks, elements that fill more than 1% of a y of
 * 200 or more left out (autojunk). Not symmetric. */
size_t align_match_blocks(arena *a, const int32_t *x, size_t n_x, const int32_t *y, size_t n_y);

#endif
