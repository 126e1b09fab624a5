#include "eval/mc_task.h"

#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "eval/stats.h"

/* A pass's rows: enough for full products, few enough that activations stay in a cache near the core. */
enum { MAX_SEQS = 64, ROWS = 384 };

/* One choice to score: the context is shared with the previous request if `same_ctx`. */
typedef struct {
    int item, choice;
    int32_t *ctx, *cont;
    int n_ctx, n_cont;
    bool same_ctx;
} request;

/* A token to score: the request it belongs to, the logit row that predicts it. */
typedef struct {
    int req, logit;
    int32_t target;
} scored_tok;

typedef struct {
    const mc_options *o;
    const ds_mc_item *items;
    mc_result *out;
    session *s;
    int vocab;
    request *req;
    int n_req;
    int max_rows;    /* of a pass */
    batch_row *rows; /* [max_rows] */
    int n_rows, n_logits, n_scored; /* of the pass that is being laid out */
    scored_tok *scored;             /* [max_rows + n_req] */
    stat_normaliser *norm; /* [max_rows] of the last pass's logit rows */
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
    j->out->n_ctx_pairs += r->same_ctx ? 0 : (int64_t)r->n_ctx * (r->n_ctx + 1) / 2;
    j->out->n_branch_pairs += (int64_t)(r->n_cont - 1) * r->n_ctx + (int64_t)r->n_cont * (r->n_cont - 1) / 2;
    return TPL_OK;
}

/* ---- running ---- */

/* A rank's share of the logit rows. */
static tpl_code normalise_share(void *arg, int rank, tpl_err *e)
{
    mc_job *j = arg;
    int n = session_n_logits(j->s), ranks = team_n_local(session_team(j->s));
    for (int i = n * rank / ranks; i < n * (rank + 1) / ranks; i++)
        j->norm[i] = stat_normalise(session_logits(j->s, i), (size_t)j->vocab);
    return TPL_OK;
}

/* Runs the pass that was laid out (unless none is) and scores what it was laid out for, on the ranks' threads. */
static tpl_code run_pass(mc_job *j, plan_phase phase, tpl_err *e)
{
    if (j->n_rows == 0)
        return TPL_OK;
    j->out->n_pass++;
    TPL_TRY(session_forward(j->s, phase, j->rows, j->n_rows, e));
    TPL_TRY(team_run(session_team(j->s), normalise_share, j, e));
    for (int i = 0; i < j->n_scored; i++) {
        const scored_tok *t = &j->scored[i];
        const request *r = &j->req[t->req];
        j->out->loglik[r->item][r->choice] += stat_log_prob_of(session_logits(j->s, t->logit)[t->target], j->norm[t->logit]);
    }
    j->n_rows = j->n_logits = j->n_scored = 0;
    return TPL_OK;
}

static int lay_row(mc_job *j, int seq, int32_t token, int parent, bool want_logits)
{
    j->rows[j->n_rows] = (batch_row){seq, token, parent, want_logits};
    j->n_logits += want_logits;
    return j->n_rows++;
}

/* The last logit row laid out predicts a request's k-th token. */
static void lay_score(mc_job *j, int req, int k)
{
    j->scored[j->n_scored++] = (scored_tok){req, j->n_logits - 1, j->req[req].cont[k]};
}

/* A context's rows; the last one predicts. Gives its number. */
static int lay_context(mc_job *j, const request *r, int seq)
{
    int last = 0;
    for (int k = 0; k < r->n_ctx; k++)
        last = lay_row(j, seq, r->ctx[k], ROW_CHAIN, k == r->n_ctx - 1);
    return last;
}

/* All tokens of a choice but its last, as a branch that begins at `parent`. */
static void lay_branch(mc_job *j, int req, int seq, int parent)
{
    const request *r = &j->req[req];
    for (int k = 0; k < r->n_cont - 1; k++) {
        parent = lay_row(j, seq, r->cont[k], parent, true);
        lay_score(j, req, k + 1);
    }
}

/* Contexts and branches of requests [req, end) in one prefill. */
static tpl_code run_trees(mc_job *j, int req, int end, const int *seq_of, tpl_err *e)
{
    int ctx_end = 0, ctx_logit = 0;
    for (int i = req; i < end; i++) {
        if (!j->req[i].same_ctx) {
            ctx_end = lay_context(j, &j->req[i], seq_of[i - req]);
            ctx_logit = j->n_logits - 1;
        }
        j->scored[j->n_scored++] = (scored_tok){i, ctx_logit, j->req[i].cont[0]};
        lay_branch(j, i, seq_of[i - req], ctx_end);
    }
    return run_pass(j, PHASE_PREFILL, e);
}

/* Prefills the contexts of requests [req, end), each into seq_of[its number]. */
static tpl_code run_contexts(mc_job *j, int req, int end, const int *seq_of, tpl_err *e)
{
    for (int i = req; i < end; i++) {
        const request *r = &j->req[i];
        int before = r->n_ctx > j->max_rows ? r->n_ctx - j->max_rows : 0; /* alone, in chunks: see next_group() */
        if (!r->same_ctx && before) {
            j->out->n_pass += (before + j->max_rows - 1) / j->max_rows;
            TPL_TRY(generate_prefill(j->s, seq_of[i - req], r->ctx, before, e));
        }
        if (!r->same_ctx)
            lay_context(j, &(request){.ctx = r->ctx + before, .n_ctx = r->n_ctx - before}, seq_of[i - req]);
        lay_score(j, i, 0);
    }
    return run_pass(j, PHASE_PREFILL, e);
}

static tpl_code flush_branches(mc_job *j, int req, int end, const int *seq_of, tpl_err *e)
{
    TPL_TRY(run_pass(j, j->o->decode_choices ? PHASE_DECODE : PHASE_PREFILL, e));
    for (int i = req; i < end; i++)
        session_truncate(j->s, seq_of[i - req], j->req[i].n_ctx);
    return TPL_OK;
}

/* Runs all tokens of the choices but each one's last, as branches off their contexts. */
static tpl_code run_branches(mc_job *j, int req, int end, const int *seq_of, tpl_err *e)
{
    int beside = 0; /* rows of this sequence, which its cache must hold side by side */
    for (int i = req; i < end; i++) {
        const request *r = &j->req[i];
        beside = r->same_ctx ? beside : 0;
        if (j->n_rows + r->n_cont - 1 > j->max_rows || r->n_ctx + beside + r->n_cont - 1 > session_opts(j->s)->max_tok) {
            TPL_TRY(flush_branches(j, req, end, seq_of, e));
            beside = 0;
        }
        beside += r->n_cont - 1;
        lay_branch(j, i, seq_of[i - req], ROW_PREFIX);
    }
    return flush_branches(j, req, end, seq_of, e);
}

/* Rows of the tree of requests [req, *end) that share a context. */
static int tree_rows(const mc_job *j, int req, int *end)
{
    int rows = j->req[req].n_ctx;
    *end = req;
    do
        rows += j->req[*end].n_cont - 1;
    while (++*end < j->n_req && j->req[*end].same_ctx);
    return rows;
}

/* The end of the longest run of requests from `req` that fits one pass, requests that share a context never parted; *trees
 * tells whether their choices fit too (where they may be prefilled), else only contexts count. */
static int next_group(const mc_job *j, int req, bool *trees)
{
    int end, next, own = tree_rows(j, req, &end), rows = 0, seqs = 0;
    *trees = !j->o->decode_choices && own <= j->max_rows && own <= session_opts(j->s)->max_tok;
    for (end = req; end < j->n_req && seqs < MAX_SEQS; end = next, seqs++) {
        own = tree_rows(j, end, &next);
        rows += *trees ? own : j->req[end].n_ctx;
        bool fits = rows <= j->max_rows && (!*trees || own <= session_opts(j->s)->max_tok);
        if (seqs > 0 && !fits)
            break;
    }
    return end;
}

static tpl_code run_group(mc_job *j, int req, int end, bool trees, tpl_err *e)
{
    int *seq_of = tpl_malloc(sizeof *seq_of * (size_t)(end - req));
    for (int i = req; i < end; i++)
        seq_of[i - req] = j->req[i].same_ctx ? seq_of[i - req - 1] : session_add_seq(j->s);
    tpl_code rc = trees ? run_trees(j, req, end, seq_of, e) : run_contexts(j, req, end, seq_of, e);
    if (rc == TPL_OK && !trees)
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
    j->max_rows = ROWS;
    for (int i = 0; i < j->n_req; i++) {
        int n = j->req[i].n_ctx + 8 * j->req[i].n_cont; /* branches of one context stand side by side in the cache */
        longest = n > longest ? n : longest;
        j->max_rows = j->req[i].n_cont > j->max_rows ? j->req[i].n_cont : j->max_rows; /* a branch is one pass's */
    }
    j->rows = tpl_malloc(sizeof *j->rows * (size_t)j->max_rows);
    j->norm = tpl_malloc(sizeof *j->norm * (size_t)j->max_rows);
    j->scored = tpl_malloc(sizeof *j->scored * (size_t)(j->max_rows + j->n_req));
    session_options o = {.max_seqs = MAX_SEQS, .max_tok = longest + j->max_rows < max_pos ? longest + j->max_rows : max_pos, .max_rows = j->max_rows, .max_logits = j->max_rows};
    o.total_tok = (int64_t)o.max_tok + 4 * j->max_rows;
    TPL_TRY(session_create(run->team, &o, &j->s, e));
    session_observe(j->s, j->o->observe);
    double begun = clock_seconds();
    for (int req = 0; req < j->n_req;) {
        if (interrupt_seen())
            return tpl_fail(e, TPL_E_INTERRUPTED, "items", "stopped by a signal");
        progress_show(j->req[req].item, j->out->n, "items");
        bool trees;
        int end = next_group(j, req, &trees);
        TPL_TRY(run_group(j, req, end, trees, e));
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
    free(j.norm);
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
