#include "eval/mc_task.h"

#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "eval/stats.h"

enum { MAX_SEQS = 64, MAX_ROWS = 1024 };

/* One choice to score: the context is shared with the previous request if `same_ctx`. */
typedef struct {
    int item, choice;
    int32_t *ctx, *cont;
    int n_ctx, n_cont;
    bool same_ctx;
} request;

typedef struct {
    const mc_options *o;
    const ds_mc_item *items;
    mc_result *out;
    session *s;
    int vocab;
    request *req;
    int n_req;
    batch_row *rows;
    struct scored_row { int req; int32_t target; } *scored; /* [MAX_ROWS] by logit row */
} mc_job;

/* ---- requests ---- */

static tpl_code encode(const mc_options *o, bool with_bos, const char *text, size_t len, int32_t **ids, int *n, tpl_err *e)
{
    int32_t *plain;
    TPL_TRY(tokenizer_encode(o->tok, text, len, &plain, n, e));
    int extra = with_bos && o->bos >= 0;
    *ids = tpl_malloc(sizeof **ids * (size_t)(*n + extra + 1));
    if (extra)
        (*ids)[0] = o->bos;
    memcpy(*ids + extra, plain, sizeof **ids * (size_t)*n);
    *n += extra;
    free(plain);
    return TPL_OK;
}

/* The bundled protocol: context and continuation are encoded apart. */
static tpl_code split_apart(const mc_options *o, const char *ctx, const char *cont, request *r, tpl_err *e)
{
    TPL_TRY(encode(o, true, ctx, strlen(ctx), &r->ctx, &r->n_ctx, e));
    return encode(o, false, cont, strlen(cont), &r->cont, &r->n_cont, e);
}

/* lm-evaluation-harness: trailing blanks of the context move to the continuation; both are encoded as one text and the
 * continuation is what lies behind as many tokens as the context alone has. Source: eval-tasks, 1.1 and 1.3. */
static tpl_code split_together(const mc_options *o, const char *ctx, const char *cont, request *r, tpl_err *e)
{
    size_t n = strlen(ctx), keep = n;
    while (keep && strchr(" \t\n\r\v\f", ctx[keep - 1]))
        keep--;
    text_buf all = {0};
    text_add(&all, ctx, n);
    text_add(&all, cont, strlen(cont));
    tpl_code rc;
    int32_t *both = NULL;
    int n_both = 0;
    if (n == 0) {
        rc = encode(o, false, cont, strlen(cont), &r->cont, &r->n_cont, e);
        r->ctx = tpl_malloc(sizeof *r->ctx);
        r->ctx[0] = o->bos >= 0 ? o->bos : 0;
        r->n_ctx = 1;
        if (rc == TPL_OK && r->n_cont && r->cont[0] == r->ctx[0])
            memmove(r->cont, r->cont + 1, sizeof *r->cont * (size_t)--r->n_cont);
    } else {
        TPL_GOTO(rc, encode(o, true, ctx, keep, &r->ctx, &r->n_ctx, e), done);
        TPL_GOTO(rc, encode(o, true, all.data, all.len, &both, &n_both, e), done);
        r->n_cont = n_both > r->n_ctx ? n_both - r->n_ctx : 0;
        r->cont = tpl_malloc(sizeof *r->cont * (size_t)(r->n_cont + 1));
        memcpy(r->cont, both + (n_both - r->n_cont), sizeof *r->cont * (size_t)r->n_cont);
    }
done:
    free(both);
    text_fini(&all);
    return rc;
}

/* Keeps the last `room` tokens of context and continuation together; the continuation is never cut. */
static void truncate_left(mc_job *j, request *r, int room)
{
    int over = r->n_ctx + r->n_cont - room;
    if (over <= 0)
        return;
    if (over > r->n_ctx - 1)
        over = r->n_ctx - 1;
    memmove(r->ctx, r->ctx + over, sizeof *r->ctx * (size_t)(r->n_ctx - over));
    r->n_ctx -= over;
    j->out->n_truncated++;
}

static tpl_code add_request(mc_job *j, int item, int choice, int room, tpl_err *e)
{
    const ds_mc_item *it = &j->items[item];
    request *r = &j->req[j->n_req++];
    *r = (request){.item = item, .choice = choice};
    if (j->o->protocol == DS_LM_EVAL)
        TPL_TRY(split_together(j->o, it->contexts[choice], it->continuations[choice], r, e));
    else
        TPL_TRY(split_apart(j->o, it->contexts[choice], it->continuations[choice], r, e));
    if (r->n_cont == 0 || r->n_ctx == 0 || r->n_cont > room)
        return tpl_fail(e, TPL_E_INPUT, it->id, "choice %d has %d context and %d continuation tokens, expected at least 1 each and at most %d", choice, r->n_ctx, r->n_cont, room);
    truncate_left(j, r, room + 1);
    const request *before = r - 1;
    r->same_ctx = choice > 0 && before->n_ctx == r->n_ctx && memcmp(before->ctx, r->ctx, sizeof *r->ctx * (size_t)r->n_ctx) == 0;
    j->out->n_ctx_tok_unshared += r->n_ctx;
    j->out->n_ctx_tok += r->same_ctx ? 0 : r->n_ctx;
    j->out->n_ctx += !r->same_ctx;
    j->out->n_choices++;
    j->out->n_scored_tok += r->n_cont;
    j->out->n_branch_tok += r->n_cont - 1;
    return TPL_OK;
}

/* ---- running ---- */

static void add_loglik(mc_job *j, int req, int32_t target, const float *logits)
{
    j->out->loglik[j->req[req].item][j->req[req].choice] += stat_log_prob(logits, (size_t)j->vocab, (size_t)target);
}

/* Scores the first token of every request of contexts [first, end), after their prefill; `logit` is the first logit row. */
static void score_first_tokens(mc_job *j, int req, int end, int logit)
{
    for (int i = req; i < end; i++) {
        if (!j->req[i].same_ctx && i > req)
            logit++;
        add_loglik(j, i, j->req[i].cont[0], session_logits(j->s, logit));
    }
}

/* Prefills the contexts of requests [req, end), each into seq_of[its number]. */
static tpl_code run_contexts(mc_job *j, int req, int end, const int *seq_of, tpl_err *e)
{
    int n = 0;
    for (int i = req; i < end; i++) {
        const request *r = &j->req[i];
        if (r->same_ctx)
            continue;
        if (r->n_ctx > MAX_ROWS) { /* alone, in chunks: see next_group() */
            j->out->n_pass += (r->n_ctx + MAX_ROWS - 1) / MAX_ROWS;
            TPL_TRY(generate_prefill(j->s, seq_of[i - req], r->ctx, r->n_ctx, e));
            score_first_tokens(j, req, end, 0);
            return TPL_OK;
        }
        for (int k = 0; k < r->n_ctx; k++)
            j->rows[n++] = (batch_row){seq_of[i - req], r->ctx[k], ROW_CHAIN, k == r->n_ctx - 1};
    }
    j->out->n_pass++;
    TPL_TRY(session_forward(j->s, PHASE_PREFILL, j->rows, n, e));
    score_first_tokens(j, req, end, 0);
    return TPL_OK;
}

static tpl_code flush_branches(mc_job *j, int n, int req, int end, const int *seq_of, tpl_err *e)
{
    if (n == 0)
        return TPL_OK;
    j->out->n_pass++;
    TPL_TRY(session_forward(j->s, j->o->decode_choices ? PHASE_DECODE : PHASE_PREFILL, j->rows, n, e));
    for (int i = 0; i < n; i++)
        add_loglik(j, j->scored[i].req, j->scored[i].target, session_logits(j->s, i));
    for (int i = req; i < end; i++)
        session_truncate(j->s, seq_of[i - req], j->req[i].n_ctx);
    return TPL_OK;
}

/* Runs all tokens of the choices but each one's last, as branches off their contexts. */
static tpl_code run_branches(mc_job *j, int req, int end, const int *seq_of, tpl_err *e)
{
    int n = 0, beside = 0; /* rows in all; rows of this sequence, which its cache must hold side by side */
    for (int i = req; i < end; i++) {
        const request *r = &j->req[i];
        beside = r->same_ctx ? beside : 0;
        if (n + r->n_cont - 1 > MAX_ROWS || r->n_ctx + beside + r->n_cont - 1 > session_opts(j->s)->max_tok) {
            TPL_TRY(flush_branches(j, n, req, end, seq_of, e));
            n = beside = 0;
        }
        beside += r->n_cont - 1;
        for (int k = 0; k < r->n_cont - 1; k++, n++) {
            j->rows[n] = (batch_row){seq_of[i - req], r->cont[k], k ? n - 1 : ROW_PREFIX, true};
            j->scored[n] = (struct scored_row){i, r->cont[k + 1]};
        }
    }
    return flush_branches(j, n, req, end, seq_of, e);
}

/* The end of the longest run of requests from `req` whose contexts fit one pass; items are kept whole where they fit. */
static int next_group(const mc_job *j, int req)
{
    int rows = 0, seqs = 0, i = req;
    for (; i < j->n_req && i - req < MAX_SEQS * 8; i++) {
        const request *r = &j->req[i];
        if (r->same_ctx)
            continue;
        rows += r->n_ctx;
        seqs++;
        if (seqs > 1 && (rows > MAX_ROWS || seqs > MAX_SEQS))
            break;
    }
    while (i < j->n_req && j->req[i].same_ctx) /* never part requests that share a context */
        i++;
    return i;
}

static tpl_code run_group(mc_job *j, int req, int end, tpl_err *e)
{
    int *seq_of = tpl_malloc(sizeof *seq_of * (size_t)(end - req));
    for (int i = req; i < end; i++)
        seq_of[i - req] = j->req[i].same_ctx ? seq_of[i - req - 1] : session_add_seq(j->s);
    tpl_code rc = run_contexts(j, req, end, seq_of, e);
    if (rc == TPL_OK)
        rc = run_branches(j, req, end, seq_of, e);
    for (int i = req; i < end; i++)
        if (!j->req[i].same_ctx)
            session_drop_seq(j->s, seq_of[i - req]);
    free(seq_of);
    return rc;
}

static tpl_code run_all(mc_job *j, const lab_run *run, tpl_err *e)
{
    int longest = 1, max_pos = team_plan(run->team, 0)->cfg.max_pos;
    for (int i = 0; i < j->n_req; i++) {
        int n = j->req[i].n_ctx + 8 * j->req[i].n_cont; /* branches of one context stand side by side in the cache */
        longest = n > longest ? n : longest;
    }
    session_options o = {.max_seqs = MAX_SEQS, .max_tok = longest + MAX_ROWS < max_pos ? longest + MAX_ROWS : max_pos, .max_rows = MAX_ROWS, .max_logits = MAX_ROWS};
    o.total_tok = (int64_t)o.max_tok + 4 * MAX_ROWS;
    TPL_TRY(session_create(run->team, &o, &j->s, e));
    double begun = clock_seconds();
    for (int req = 0; req < j->n_req;) {
        if (interrupt_seen())
            return tpl_fail(e, TPL_E_INTERRUPTED, "items", "stopped by a signal");
        progress_show(j->req[req].item, j->out->n, "items");
        int end = next_group(j, req);
        TPL_TRY(run_group(j, req, end, e));
        req = end;
    }
    j->out->seconds = clock_seconds() - begun;
    return TPL_OK;
}

tpl_code mc_task_run(const lab_run *run, const mc_options *o, const ds_mc_item *items, int n, mc_result *out, tpl_err *e)
{
    const model_config *c = &team_plan(run->team, 0)->cfg;
    mc_result r = {.n = n, .loglik = tpl_calloc((size_t)n, sizeof *r.loglik), .scores = tpl_calloc((size_t)n, sizeof *r.scores)};
    mc_job j = {.o = o, .items = items, .out = &r, .vocab = c->vocab};
    int total = 0;
    for (int i = 0; i < n; i++) {
        r.loglik[i] = tpl_calloc((size_t)items[i].n_choices, sizeof(double));
        total += items[i].n_choices;
    }
    j.req = tpl_calloc((size_t)total, sizeof *j.req);
    j.rows = tpl_malloc(sizeof *j.rows * MAX_ROWS);
    j.scored = tpl_malloc(sizeof *j.scored * MAX_ROWS);
    tpl_code rc = TPL_OK;
    for (int i = 0; i < n && rc == TPL_OK; i++)
        for (int k = 0; k < items[i].n_choices && rc == TPL_OK; k++)
            rc = add_request(&j, i, k, c->max_pos, e);
    if (rc == TPL_OK)
        rc = run_all(&j, run, e);
    progress_clear();
    session_destroy(j.s);
    for (int i = 0; i < j.n_req; i++) {
        free(j.req[i].ctx);
        free(j.req[i].cont);
    }
    free(j.req);
    free(j.rows);
    free(j.scored);
    for (int i = 0; i < n && rc == TPL_OK; i++)
        r.scores[i] = metric_choose(r.loglik[i], items[i].choice_texts, items[i].n_choices, items[i].gold);
    if (rc == TPL_OK)
        *out = r;
    else
        mc_result_free(&r);
    return rc;
}

void mc_result_free(mc_result *r)
{
    for (int i = 0; i < r->n; i++)
        free(r->loglik[i]);
    free(r->loglik);
    free(r->scores);
    *r = (mc_result){0};
}
