/* prompts.h - prompts for generation and speculation benches.
 * For:    JSONL lines {"prompt": ...} or Spec-Bench's question.jsonl {question_id, category, turns: [...]}.
 * Enter:  eval/, bench/, cli/.
 * Owns:   nothing; prompts live in the caller's arena.
 * Fails:  TPL_E_IO, TPL_E_INPUT with where = "question.jsonl:12" and the field; nothing is touched then. */
#ifndef TPL_DATASETS_PROMPTS_H
#define TPL_DATASETS_PROMPTS_H

#include <stddef.h>

#include "base/arena.h"
#include "base/error.h"

typedef struct {
    char *id;       /* `question_id` or `id`, else the line's number */
    char *category; /* "" if the line names none */
    char **turns;   /* [n_turns] what the user says, in order; a single prompt is one turn */
    int n_turns;
} ds_prompt;

/* limit 0 takes all. Gives at least one prompt. */
tpl_code ds_read_prompts(arena *a, const char *path, int limit, ds_prompt **prompts, int *n, tpl_err *e);
tpl_code ds_parse_prompts(arena *a, const char *data, size_t n_bytes, const char *name, int limit, ds_prompt **prompts,
                          int *n, tpl_err *e);

#endif
