#include "eval/long_task.h"

#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "engine/generate.h"
#include "eval/longbench.h"
#include "eval/metrics.h"

enum { FIXTURE_NEW_TOK = 32, MAX_SEQS = 16, MAX_ROWS = 1024 };

typedef struct {
    int index;
    int32_t *ids;
    int n;
} prompt;

typedef struct {
    const long_options *o;
    const ds_long_item *items;
    long_result *out;
    prompt *prompts; /* sorted by length */
    int max_new;
    session *s;
} long_job;

static int new_tokens(const long_options *o, const ds_long_item *item)
{
    const lb_dataset *d = o->protocol == DS_LONGBENCH ? lb_find_dataset(item->dataset) : NULL;
    return d ? d->max_new_tok : FIXTURE_NEW_TOK;
}

/* BOS and the prompt's tokens; a prompt longer than `room` keeps its first and last halves. */
static tpl_code encode_prompt(long_job *j, int i, int room, tpl_err *e)
{
    prompt *p = &j->prompts[i];
    const ds_long_item *item = &j->items[i];
    int32_t *ids;
    int n;
    TPL_TRY(tokenizer_encode(j->o->tok, item->prompt, strlen(item->prompt), &ids, &n, e));
    int bos = j->o->bos >= 0, total = n + bos;
    *p = (prompt){i, tpl_malloc(sizeof(int32_t) * (size_t)(total + 1)), total};
    if (bos)
        p->ids[0] = j->o->bos;
    memcpy(p->ids + bos, ids, sizeof *ids * (size_t)n);
    free(ids);
    if (total > room) {
        int half = room / 2;
        memmove(p->ids + half, p->ids + total - half, sizeof *ids * (size_t)half);
        p->n = 2 * half;
        j->out->n_truncated++;
    }
    j->out->n_prompt[i] = p->n;
    return p->n > 0 ? TPL_OK : tpl_fail(e, TPL_E_INPUT, item->id, "has an empty prompt");
}

static int by_length(const void *a, const void *b)
{
    const prompt *x = a, *y = b;
    return x->n != y->n ? (x->n > y->n) - (x->n < y->n) : (x->index > y->index) - (x->index < y->index);
}

static tpl_code score_item(const long_job *j, int i, const char *text, tpl_err *e)
{
    const ds_long_item *item = &j->items[i];
    if (j->o->protocol == DS_FIXTURE) {
        bool exact;
        TPL_TRY(metric_score_fixture(j->o->task, text, item->answers[0], &j->out->score[i], &exact, e));
        j->out->exact[i] = exact;
        return TPL_OK;
    }
    const lb_dataset *d = lb_find_dataset(item->dataset);
    if (!d)
        return tpl_fail(e, TPL_E_UNSUPPORTED, item->id, "no LongBench metric for dataset '%s'", item->dataset);
    lb_item it = {.prediction = text, .answers = item->answers, .n_answers = item->n_answers, .all_classes = item->all_classes, .n_classes = item->n_classes};
    return lb_score_item(d, &(lb_options){0}, &it, &j->out->score[i], e);
}

/* Generates for prompts [at, end), at most MAX_SEQS of them, and scores what came. */
static tpl_code run_batch(long_job *j, int at, int end, sampler *greedy, tpl_err *e)
{
    int n = end - at;
    generation g[MAX_SEQS] = {0};
    int32_t *out = tpl_malloc(sizeof *out * (size_t)(n * j->max_new));
    for (int k = 0; k < n; k++)
        g[k] = (generation){.prompt = j->prompts[at + k].ids, .n_prompt = j->prompts[at + k].n, .out = out + k * j->max_new};
    tpl_code rc = generate(j->s, g, n, j->max_new, j->o->eos, greedy, NULL, NULL, e);
    for (int k = 0; k < n && rc == TPL_OK; k++) {
        text_buf text = {0};
        int i = j->prompts[at + k].index;
        text_add(&text, "", 0);
        tokenizer_decode(j->o->tok, g[k].out, g[k].n_out, true, &text);
        j->out->n_generated += g[k].n_out;
        j->out->prediction[i] = tpl_strdup(text.data);
        rc = score_item(j, i, text.data, e);
        text_fini(&text);
    }
    free(out);
    return rc;
}

static tpl_code run_all(long_job *j, const lab_run *run, tpl_err *e)
{
    const model_config *c = &team_plan(run->team, 0)->cfg;
    int n = j->out->n;
    for (int i = 0; i < n; i++)
        j->max_new = new_tokens(j->o, &j->items[i]) > j->max_new ? new_tokens(j->o, &j->items[i]) : j->max_new;
    if (j->max_new >= c->max_pos)
        return tpl_fail(e, TPL_E_INPUT, j->o->task, "generates %d tokens, the model's context is %d", j->max_new, c->max_pos);
    for (int i = 0; i < n; i++)
        TPL_TRY(encode_prompt(j, i, c->max_pos - j->max_new, e));
    qsort(j->prompts, (size_t)n, sizeof *j->prompts, by_length);
    int longest = j->prompts[n - 1].n + j->max_new, seqs = n < MAX_SEQS ? n : MAX_SEQS;
    session_options so = {.max_seqs = seqs, .max_tok = longest, .max_rows = MAX_ROWS, .max_logits = seqs};
    TPL_TRY(session_create(run->team, &so, &j->s, e));
    sampler greedy;
    sampler_init(&greedy, c->vocab, 0, 1, 0);
    tpl_code rc = TPL_OK;
    for (int at = 0; at < n && rc == TPL_OK; at += seqs) {
        progress_show(at, n, "%s", j->o->task);
        rc = interrupt_seen() ? tpl_fail(e, TPL_E_INTERRUPTED, j->o->task, "stopped by a signal") : run_batch(j, at, at + seqs < n ? at + seqs : n, &greedy, e);
    }
    sampler_fini(&greedy);
    return rc;
}

tpl_code long_task_run(const lab_run *run, const long_options *o, const ds_long_item *items, int n, long_result *out, tpl_err *e)
{
    size_t count = (size_t)n;
    long_result r = {.n = n, .score = tpl_calloc(count, sizeof(double)), .exact = tpl_calloc(count, sizeof(double)), .prediction = tpl_calloc(count, sizeof(char *)),
                     .n_prompt = tpl_calloc(count, sizeof(int32_t))};
    long_job j = {.o = o, .items = items, .out = &r, .prompts = tpl_calloc(count, sizeof *j.prompts)};
    tpl_code rc = run_all(&j, run, e);
    progress_clear();
    session_destroy(j.s);
    for (int i = 0; i < n; i++)
        free(j.prompts[i].ids);
    free(j.prompts);
    if (o->protocol != DS_FIXTURE) {
        free(r.exact);
        r.exact = NULL;
    }
    if (rc == TPL_OK)
        *out = r;
    else
        long_result_free(&r);
    return rc;
}

void long_result_free(long_result *r)
{
    for (int i = 0; i < r->n; i++)
        free(r->prediction[i]);
    free(r->prediction);
    free(r->score);
    free(r->exact);
    free(r->n_prompt);
    *r = (long_result){0};
}
