/* tasks.h - the evaluation tasks: one table of them, and readers of their published file shapes.
 * For:    eval/; a folder holds <task>.jsonl for each task and heldout.txt, calibration.txt for `text`
 * (datasets/text.h). Enter:  eval/, bench/, cli/. Owns:   nothing; items and their strings live in the caller's arena.
 * Fails:  TPL_E_USAGE (no such task, a protocol that does not apply), TPL_E_IO, TPL_E_INPUT with where =
 *         "arc.jsonl:12" and the field. Out-parameters stay untouched on failure. */
#ifndef TPL_DATASETS_TASKS_H
#define TPL_DATASETS_TASKS_H

#include <stddef.h>
#include <stdint.h>

#include "base/arena.h"
#include "base/error.h"

typedef enum { DS_MC, DS_LONG, DS_TEXT } ds_kind;

typedef struct {
    const char *name; /* as in files, options and CSV cells */
    ds_kind kind;
    const char *column; /* heading in the paper's tables */
} ds_task;

int ds_n_tasks(void);
const ds_task *ds_task_at(int i);
const ds_task *ds_find_task(const char *name); /* NULL if there is none */

/* How prompts are laid out. */
typedef enum {
    DS_FIXTURE,   /* the bundled sets' own protocol: choice texts trimmed, long prompts without trailing blanks */
    DS_LM_EVAL,   /* lm-evaluation-harness 0.4.x, zero-shot; multiple choice only */
    DS_LONGBENCH, /* LongBench v1; long tasks only */
} ds_protocol;

/* One question. Choice i is scored as continuations[i] after contexts[i]; contexts are equal except in winogrande. */
typedef struct {
    char *id;
    int n_choices;
    char **contexts;      /* [n_choices] */
    char **continuations; /* [n_choices], with the leading blank that the protocol gives it */
    char **choice_texts;  /* [n_choices] what length-normalised accuracy measures: bytes under DS_FIXTURE, else code
                             points */
    int gold;             /* in [0, n_choices) */
} ds_mc_item;

/* One LongBench record. */
typedef struct {
    char *id;
    char *prompt;  /* template filled in, ready to encode */
    char *dataset; /* LongBench's name of it; decides template and metric */
    char **answers;
    int n_answers; /* 1 or more */
    char **all_classes;
    int n_classes;   /* 0 where the record has none */
    int64_t n_words; /* the record's own `length`, which LongBench-E sorts by */
} ds_long_item;

/* Reads dir/<task>.jsonl; limit 0 takes all items, else the first `limit`. Gives at least one item. */
tpl_code ds_read_mc(arena *a, const char *dir, const char *task, ds_protocol protocol, int limit, ds_mc_item **items,
                    int *n, tpl_err *e);
tpl_code ds_read_long(arena *a, const char *dir, const char *task, ds_protocol protocol, int limit,
                      ds_long_item **items, int *n, tpl_err *e);

/* The same from bytes; `name` is the file's name in messages. */
tpl_code ds_parse_mc(arena *a, const char *data, size_t n_bytes, const char *name, const char *task,
                     ds_protocol protocol, int limit, ds_mc_item **items, int *n, tpl_err *e);
tpl_code ds_parse_long(arena *a, const char *data, size_t n_bytes, const char *name, const char *task,
                       ds_protocol protocol, int limit, ds_long_item **items, int *n, tpl_err *e);

/* HellaSwag's clean-up of WikiHow text in lm-evaluation-harness: trims, turns " [title]" into ". ", drops "[...]" and
 * halves pairs of blanks, in that order. The result lives in the arena. */
char *ds_clean_hellaswag(arena *a, const char *s);

#endif
