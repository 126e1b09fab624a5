/* templates.h - the prompt templates of the long tasks, by LongBench's dataset names.
 * For:    tasks.c.
 * Enter:  datasets/ only.
 * Owns:   nothing; prompts live in the caller's arena.
 * Fails:  TPL_E_UNSUPPORTED for a dataset without a template, naming those that there are; TPL_E_INPUT for a prompt
 *         that would exceed 256 MiB. */
#ifndef TPL_DATASETS_TEMPLATES_H
#define TPL_DATASETS_TEMPLATES_H

#include "base/arena.h"
#include "base/error.h"

/* How "{context}" and "{input}" are put in: one after the other over the whole text, so that braces inside the context
 * are read again (the fixture), or in a single pass (LongBench). */
typedef enum { FILL_IN_TURN, FILL_ONCE } fill_rule;

tpl_code template_fill(arena *a, const char *dataset, fill_rule rule, const char *context, const char *input,
                       char **prompt, const char *where, tpl_err *e);

#endif
