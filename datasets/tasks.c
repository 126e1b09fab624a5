#include "datasets/tasks.h"

#include <ctype.h>
#include <limits.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "base/text.h"
#include "datasets/jsonl.h"
#include "datasets/templates.h"
#include "datasets/unicode.h"

/* ---- what a builder of one item sees ---- */

typedef struct {
    arena *a;
    ds_protocol protocol;
    const json_t *doc;
    const char *where; /* "arc.jsonl:12" */
    tpl_err *e;
} record;

static tpl_code want_text(const record *r, const char *key, char **out)
{
    return jsonl_want_text(r->a, r->doc, key, out, r->where, r->e);
}

static char *trim(arena *a, const char *s)
{
    return uni_encode(a, uni_strip(uni_decode(a, s, strlen(s))));
}

/* The usual shape: one context, and " " + text as the continuation of each choice. */
static void set_choices(const record *r, char *context, char **texts, int n, ds_mc_item *item)
{
    item->n_choices = n;
    item->contexts = arena_array(r->a, char *, n);
    item->continuations = arena_array(r->a, char *, n);
    item->choice_texts = arena_array(r->a, char *, n);
    for (int i = 0; i < n; i++) {
        item->contexts[i] = context;
        item->continuations[i] = arena_printf(r->a, " %s", texts[i]);
        item->choice_texts[i] = r->protocol == DS_FIXTURE ? trim(r->a, texts[i]) : texts[i];
    }
}

/* ---- arc and openbookqa: labelled choices ---- */

/* "choices" as the authors' JSONL has it ([{text, label}]) or by columns ({text: [], label: []}). */
static tpl_code read_labelled(const record *r, const json_t *holder, char ***texts, char ***labels, int *n)
{
    const json_t *choices = json_object_get(holder, "choices");
    if (json_is_object(choices)) {
        int n_labels;
        TPL_TRY(jsonl_want_texts(r->a, choices, "text", 2, texts, n, r->where, r->e));
        TPL_TRY(jsonl_want_texts(r->a, choices, "label", 2, labels, &n_labels, r->where, r->e));
        if (n_labels != *n)
            return tpl_fail(r->e, TPL_E_INPUT, r->where, "field 'label' has %d items, expected %d as in 'text'",
                            n_labels, *n);
        return TPL_OK;
    }
    json_t *list;
    TPL_TRY(json_want_array(holder, "choices", &list, r->where, r->e));
    size_t count = json_array_size(list);
    if (count < 2 || count > INT_MAX)
        return tpl_fail(r->e, TPL_E_INPUT, r->where, "field 'choices' has %zu items, expected 2 or more", count);
    *texts = arena_array(r->a, char *, count);
    *labels = arena_array(r->a, char *, count);
    for (size_t i = 0; i < count; i++) {
        const json_t *c = json_array_get(list, i);
        TPL_TRY(jsonl_want_text(r->a, c, "text", &(*texts)[i], r->where, r->e));
        TPL_TRY(jsonl_want_text(r->a, c, "label", &(*labels)[i], r->where, r->e));
    }
    *n = (int)count;
    return TPL_OK;
}

/* Position of the answer's label; lm-evaluation-harness drops blanks before the key of openbookqa. */
static tpl_code find_gold(const record *r, char **labels, int n, bool trim_key, int *gold)
{
    char *key;
    TPL_TRY(want_text(r, "answerKey", &key));
    if (trim_key)
        key += strspn(key, " \t\n\r\f\v");
    for (int i = 0; i < n; i++)
        if (strcmp(labels[i], key) == 0) {
            *gold = i;
            return TPL_OK;
        }
    return tpl_fail(r->e, TPL_E_INPUT, r->where,
                    "field 'answerKey' is '%.40s', expected a label of the %d choices, '%.20s' to '%.20s'", key, n,
                    labels[0], labels[n - 1]);
}

/* The stem, from `question` {stem} with its choices inside, or from a string field with the choices beside it. */
static tpl_code read_question(const record *r, const char *flat_key, char **stem, const json_t **holder)
{
    const json_t *question = json_object_get(r->doc, "question");
    if (json_is_object(question)) {
        *holder = question;
        return jsonl_want_text(r->a, question, "stem", stem, r->where, r->e);
    }
    *holder = r->doc;
    bool flat = json_is_string(json_object_get(r->doc, flat_key));
    json_t *ignored;
    return flat ? want_text(r, flat_key, stem) : json_want_object(r->doc, "question", &ignored, r->where, r->e);
}

static tpl_code build_arc(const record *r, ds_mc_item *item)
{
    char *stem, **texts, **labels;
    const json_t *holder;
    int n;
    TPL_TRY(read_question(r, "question", &stem, &holder));
    TPL_TRY(read_labelled(r, holder, &texts, &labels, &n));
    TPL_TRY(find_gold(r, labels, n, false, &item->gold));
    TPL_TRY(jsonl_maybe_id(r->a, r->doc, "id", &item->id, r->where, r->e));
    set_choices(r, arena_printf(r->a, "Question: %s\nAnswer:", stem), texts, n, item);
    return TPL_OK;
}

static tpl_code build_openbookqa(const record *r, ds_mc_item *item)
{
    char *stem, **texts, **labels;
    const json_t *holder;
    int n;
    TPL_TRY(read_question(r, "question_stem", &stem, &holder));
    TPL_TRY(read_labelled(r, holder, &texts, &labels, &n));
    TPL_TRY(find_gold(r, labels, n, r->protocol == DS_LM_EVAL, &item->gold));
    TPL_TRY(jsonl_maybe_id(r->a, r->doc, "id", &item->id, r->where, r->e));
    set_choices(r, stem, texts, n, item);
    return TPL_OK;
}

/* ---- piqa ---- */

static tpl_code build_piqa(const record *r, ds_mc_item *item)
{
    char *goal, **texts = arena_array(r->a, char *, 2);
    int64_t label;
    TPL_TRY(want_text(r, "goal", &goal));
    TPL_TRY(want_text(r, "sol1", &texts[0]));
    TPL_TRY(want_text(r, "sol2", &texts[1]));
    TPL_TRY(json_want_int(r->doc, "label", 0, 1, &label, r->where, r->e));
    TPL_TRY(jsonl_maybe_id(r->a, r->doc, "id", &item->id, r->where, r->e));
    item->gold = (int)label;
    set_choices(r, arena_printf(r->a, "Question: %s\nAnswer:", goal), texts, 2, item);
    return TPL_OK;
}

/* ---- hellaswag ---- */

/* Drops each "[...]" without a line feed inside, shortest match first; an unclosed bracket stays. In place. */
static void drop_brackets(char *s)
{
    char *out = s;
    while (*s) {
        size_t n = strcspn(s, "[");
        memmove(out, s, n);
        out += n;
        s += n;
        if (!*s)
            break;
        n = strcspn(s, "]\n");
        if (s[n] != ']') {
            memmove(out, s, n);
            out += n;
        }
        s += n + (s[n] == ']');
    }
    *out = 0;
}

/* Replaces `from`, left to right, by `to`, which is no longer. In place. */
static void replace_shorter(char *s, const char *from, const char *to)
{
    char *out = s, *hit;
    size_t n_from = strlen(from), n_to = strlen(to);
    while ((hit = strstr(s, from))) {
        size_t n = (size_t)(hit - s);
        memmove(out, s, n);
        memcpy(out + n, to, n_to);
        out += n + n_to;
        s = hit + n_from;
    }
    memmove(out, s, strlen(s) + 1);
}

char *ds_clean_hellaswag(arena *a, const char *s)
{
    char *t = trim(a, s);
    replace_shorter(t, " [title]", ". ");
    drop_brackets(t);
    replace_shorter(t, "  ", " ");
    return t;
}

/* `label` is an integer in the authors' files and a string in later copies. */
static tpl_code read_label(const record *r, int n, int *gold)
{
    const json_t *v = json_object_get(r->doc, "label");
    if (json_is_string(v)) {
        const char *s = json_string_value(v);
        char *end;
        long label = strtol(s, &end, 10);
        if (!isdigit((unsigned char)*s) || *end || label >= n)
            return tpl_fail(r->e, TPL_E_INPUT, r->where, "field 'label' is '%.40s', expected 0 to %d", s, n - 1);
        *gold = (int)label;
        return TPL_OK;
    }
    int64_t label;
    TPL_TRY(json_want_int(r->doc, "label", 0, n - 1, &label, r->where, r->e));
    *gold = (int)label;
    return TPL_OK;
}

static tpl_code read_hellaswag_context(const record *r, char **context)
{
    char *label, *a, *b;
    TPL_TRY(want_text(r, "activity_label", &label));
    if (r->protocol == DS_FIXTURE) {
        TPL_TRY(want_text(r, "ctx", &a));
        *context = arena_printf(r->a, "%s: %s", label, a);
        return TPL_OK;
    }
    TPL_TRY(want_text(r, "ctx_a", &a));
    TPL_TRY(want_text(r, "ctx_b", &b));
    char *capital = uni_encode(r->a, uni_capitalise(r->a, uni_decode(r->a, b, strlen(b))));
    *context = ds_clean_hellaswag(r->a, arena_printf(r->a, "%s: %s %s", label, a, capital));
    return TPL_OK;
}

static tpl_code build_hellaswag(const record *r, ds_mc_item *item)
{
    char *context, **endings;
    int n;
    TPL_TRY(read_hellaswag_context(r, &context));
    TPL_TRY(jsonl_want_texts(r->a, r->doc, "endings", 2, &endings, &n, r->where, r->e));
    TPL_TRY(read_label(r, n, &item->gold));
    TPL_TRY(jsonl_maybe_id(r->a, r->doc, "ind", &item->id, r->where, r->e));
    for (int i = 0; i < n && r->protocol == DS_LM_EVAL; i++)
        endings[i] = ds_clean_hellaswag(r->a, endings[i]);
    set_choices(r, context, endings, n, item);
    return TPL_OK;
}

/* ---- winogrande: the same rest of the sentence after two contexts ---- */

static tpl_code build_winogrande(const record *r, ds_mc_item *item)
{
    char *sentence, *options[2], *answer;
    TPL_TRY(want_text(r, "sentence", &sentence));
    TPL_TRY(want_text(r, "option1", &options[0]));
    TPL_TRY(want_text(r, "option2", &options[1]));
    TPL_TRY(want_text(r, "answer", &answer));
    TPL_TRY(jsonl_maybe_id(r->a, r->doc, "qID", &item->id, r->where, r->e));
    if (strcmp(answer, "1") != 0 && strcmp(answer, "2") != 0)
        return tpl_fail(r->e, TPL_E_INPUT, r->where, "field 'answer' is '%.40s', expected '1' or '2'", answer);
    char *gap = strchr(sentence, '_');
    if (!gap)
        return tpl_fail(r->e, TPL_E_INPUT, r->where, "field 'sentence' has no '_', expected one");
    if (r->protocol == DS_FIXTURE && strchr(gap + 1, '_'))
        return tpl_fail(r->e, TPL_E_INPUT, r->where, "field 'sentence' has more than one '_', expected one");
    char *target = trim(r->a, gap + 1), *texts[2] = {target, target};
    set_choices(r, NULL, texts, 2, item);
    for (int i = 0; i < 2; i++) {
        item->contexts[i] = arena_printf(r->a, "%.*s%s", (int)(gap - sentence), sentence, options[i]);
        if (r->protocol == DS_FIXTURE)
            item->continuations[i] = gap + 1;
    }
    item->gold = answer[0] - '1';
    return TPL_OK;
}

/* ---- long records ---- */

static tpl_code read_answers(const record *r, ds_long_item *item)
{
    const json_t *classes = json_object_get(r->doc, "all_classes");
    TPL_TRY(jsonl_want_texts(r->a, r->doc, "answers", 1, &item->answers, &item->n_answers, r->where, r->e));
    if (!classes || json_is_null(classes))
        return TPL_OK;
    return jsonl_want_texts(r->a, r->doc, "all_classes", 0, &item->all_classes, &item->n_classes, r->where, r->e);
}

static tpl_code build_long(const record *r, ds_long_item *item)
{
    char *context, *input;
    TPL_TRY(want_text(r, "context", &context));
    TPL_TRY(want_text(r, "input", &input));
    TPL_TRY(want_text(r, "dataset", &item->dataset));
    TPL_TRY(read_answers(r, item));
    TPL_TRY(json_maybe_int(r->doc, "length", 0, INT64_MAX, &item->n_words, r->where, r->e));
    TPL_TRY(jsonl_maybe_id(r->a, r->doc, "_id", &item->id, r->where, r->e));
    fill_rule rule = r->protocol == DS_FIXTURE ? FILL_IN_TURN : FILL_ONCE;
    TPL_TRY(template_fill(r->a, item->dataset, rule, context, input, &item->prompt, r->where, r->e));
    size_t n = strlen(item->prompt);
    while (r->protocol == DS_FIXTURE && n && item->prompt[n - 1] == ' ')
        item->prompt[--n] = 0;
    return TPL_OK;
}

/* ---- the table ---- */

typedef tpl_code mc_builder(const record *r, ds_mc_item *item);

static const struct {
    ds_task task;
    mc_builder *build; /* NULL unless DS_MC */
} TASKS[] = {
    {{"arc", DS_MC, "ARC"}, build_arc},
    {{"piqa", DS_MC, "PIQA"}, build_piqa},
    {{"hellaswag", DS_MC, "HellaSwag"}, build_hellaswag},
    {{"winogrande", DS_MC, "WinoGrande"}, build_winogrande},
    {{"openbookqa", DS_MC, "OBQA"}, build_openbookqa},
    {{"single_doc_qa", DS_LONG, "Single-QA"}, NULL},
    {{"multi_hop_qa", DS_LONG, "Multi-QA"}, NULL},
    {{"summarisation", DS_LONG, "Summarize"}, NULL},
    {{"few_shot", DS_LONG, "Few-shot"}, NULL},
    {{"synthetic", DS_LONG, "Synthetic"}, NULL},
    {{"code", DS_LONG, "Code"}, NULL},
    {{"text", DS_TEXT, "PPL"}, NULL},
};

int ds_n_tasks(void)
{
    return sizeof TASKS / sizeof *TASKS;
}

const ds_task *ds_task_at(int i)
{
    return &TASKS[i].task;
}

static int find_index(const char *name)
{
    for (int i = 0; i < ds_n_tasks(); i++)
        if (strcmp(TASKS[i].task.name, name) == 0)
            return i;
    return -1;
}

const ds_task *ds_find_task(const char *name)
{
    int i = find_index(name);
    return i < 0 ? NULL : ds_task_at(i);
}

/* Index of a task of this kind that the protocol covers. */
static tpl_code find_kind(const char *name, ds_kind kind, ds_protocol protocol, int *index, tpl_err *e)
{
    int i = find_index(name);
    if (i < 0)
        return tpl_fail(e, TPL_E_USAGE, "task", "'%.40s' is unknown, expected such as arc, piqa, single_doc_qa or text",
                        name);
    if (TASKS[i].task.kind != kind)
        return tpl_fail(e, TPL_E_USAGE, name, "is no %s task", kind == DS_MC ? "multiple-choice" : "long");
    if (protocol != DS_FIXTURE && protocol != (kind == DS_MC ? DS_LM_EVAL : DS_LONGBENCH))
        return tpl_fail(e, TPL_E_USAGE, name, "protocol %s does not cover it, expected fixture or %s",
                        protocol == DS_LM_EVAL ? "lm-eval" : "longbench", kind == DS_MC ? "lm-eval" : "longbench");
    *index = i;
    return TPL_OK;
}

/* ---- files ---- */

typedef tpl_code line_builder(const record *r, int task, int line, void *item);

static tpl_code build_mc_line(const record *r, int task, int line, void *item)
{
    ds_mc_item *it = item;
    TPL_TRY(TASKS[task].build(r, it));
    if (!it->id)
        it->id = arena_printf(r->a, "%s:%d", TASKS[task].task.name, line);
    return TPL_OK;
}

static tpl_code build_long_line(const record *r, int task, int line, void *item)
{
    ds_long_item *it = item;
    TPL_TRY(build_long(r, it));
    if (!it->id)
        it->id = arena_printf(r->a, "%s:%d", TASKS[task].task.name, line);
    return TPL_OK;
}

typedef struct {
    ds_kind kind;
    size_t item_bytes;
    line_builder *build;
} reader;

static const reader MC_READER = {DS_MC, sizeof(ds_mc_item), build_mc_line};
static const reader LONG_READER = {DS_LONG, sizeof(ds_long_item), build_long_line};

typedef struct {
    const char *task;
    ds_protocol protocol;
    int limit; /* 0: all */
} request;

/* Reads lines until the end or the limit into an array on the heap. */
static tpl_code parse_lines(arena *a, jsonl *lines, const reader *how, const request *q, int task, char **items, int *n,
                            tpl_err *e)
{
    while (q->limit <= 0 || *n < q->limit) {
        json_t *doc;
        TPL_TRY(jsonl_next(lines, &doc, e));
        if (!doc)
            break;
        *items = jsonl_grow(*items, how->item_bytes, *n);
        char *item = *items + how->item_bytes * (size_t)*n;
        memset(item, 0, how->item_bytes);
        record r = {a, q->protocol, doc, lines->where, e};
        tpl_code rc = how->build(&r, task, lines->line, item);
        json_decref(doc);
        TPL_TRY(rc);
        ++*n;
    }
    return *n ? TPL_OK : tpl_fail(e, TPL_E_INPUT, lines->name, "is empty, expected one JSON object a line");
}

static tpl_code parse(arena *a, const char *data, size_t n_bytes, const char *name, const reader *how, const request *q,
                      void **items, int *n, tpl_err *e)
{
    int task, count = 0;
    char *heap = NULL;
    jsonl lines;
    TPL_TRY(find_kind(q->task, how->kind, q->protocol, &task, e));
    jsonl_init(&lines, data, n_bytes, name);
    tpl_code rc = parse_lines(a, &lines, how, q, task, &heap, &count, e);
    if (rc != TPL_OK) {
        free(heap);
        return rc;
    }
    *items = jsonl_keep(a, heap, how->item_bytes, count);
    *n = count;
    return TPL_OK;
}

static tpl_code read_task(arena *a, const char *dir, const reader *how, const request *q, void **items, int *n,
                          tpl_err *e)
{
    int task;
    char *data;
    size_t n_bytes;
    TPL_TRY(find_kind(q->task, how->kind, q->protocol, &task, e));
    const char *name = arena_printf(a, "%s.jsonl", q->task);
    TPL_TRY(text_read_file(text_path_join(a, dir, name), &data, &n_bytes, e));
    tpl_code rc = parse(a, data, n_bytes, name, how, q, items, n, e);
    free(data);
    return rc;
}

tpl_code ds_parse_mc(arena *a, const char *data, size_t n_bytes, const char *name, const char *task,
                     ds_protocol protocol, int limit, ds_mc_item **items, int *n, tpl_err *e)
{
    void *got;
    TPL_TRY(parse(a, data, n_bytes, name, &MC_READER, &(request){task, protocol, limit}, &got, n, e));
    *items = got;
    return TPL_OK;
}

tpl_code ds_parse_long(arena *a, const char *data, size_t n_bytes, const char *name, const char *task,
                       ds_protocol protocol, int limit, ds_long_item **items, int *n, tpl_err *e)
{
    void *got;
    TPL_TRY(parse(a, data, n_bytes, name, &LONG_READER, &(request){task, protocol, limit}, &got, n, e));
    *items = got;
    return TPL_OK;
}

tpl_code ds_read_mc(arena *a, const char *dir, const char *task, ds_protocol protocol, int limit, ds_mc_item **items,
                    int *n, tpl_err *e)
{
    void *got;
    TPL_TRY(read_task(a, dir, &MC_READER, &(request){task, protocol, limit}, &got, n, e));
    *items = got;
    return TPL_OK;
}

tpl_code ds_read_long(arena *a, const char *dir, const char *task, ds_protocol protocol, int limit,
                      ds_long_item **items, int *n, tpl_err *e)
{
    void *got;
    TPL_TRY(read_task(a, dir, &LONG_READER, &(request){task, protocol, limit}, &got, n, e));
    *items = got;
    return TPL_OK;
}
