#include "engine/session.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "engine/footprint.h"
#include "engine/remote.h"
#include "engine/session_impl.h"

/* ---- life ---- */

static int64_t ceil_div(int64_t a, int64_t b)
{
    return (a + b - 1) / b;
}

static void init_pages(session *s, int stream)
{
    const plan *p = team_plan(s->t, 0);
    page_pool *pool = &s->pools[stream];
    *pool = (page_pool){0};
    if (!p->streams[stream].used)
        return;
    footprint_pages pages = footprint_pages_of(p, &s->o, stream);
    pool->mod = p->streams[stream].mod;
    pool->max_pages = pages.max_pages;
    pool->n_pages = pages.n_pages;
    pool->table = tpl_calloc((size_t)s->o.max_seqs * (size_t)pool->max_pages, sizeof(int32_t));
    pool->view = tpl_calloc((size_t)s->o.max_seqs * (size_t)pool->max_pages, sizeof(int32_t));
    pool->free_pages = tpl_calloc((size_t)pool->n_pages, sizeof(int32_t));
    for (int i = 0; i < pool->n_pages; i++)
        pool->free_pages[i] = pool->n_pages - 1 - i;
    pool->n_free = pool->n_pages;
}

static tpl_code check_options(const session_options *o, const model_config *c, tpl_err *e)
{
    if (o->max_tok > c->max_pos)
        return tpl_fail(e, TPL_E_INPUT, c->name, "context of %d tokens exceeds the model's max_position_embeddings %d", o->max_tok, c->max_pos);
    if (o->max_tree < 0)
        return tpl_fail(e, TPL_E_USAGE, "session", "a tree of %d rows: must be at least 0", o->max_tree);
    if (o->max_seqs < 1 || o->max_tok < 1 || o->max_rows < 1 || o->max_logits < 1)
        return tpl_fail(e, TPL_E_USAGE, "session", "sequences %d, tokens %d, rows %d, logits %d: all must be at least 1", o->max_seqs, o->max_tok, o->max_rows, o->max_logits);
    if (o->total_tok < 0)
        return tpl_fail(e, TPL_E_USAGE, "session", "%lld cached tokens in all, expected 0 or more", (long long)o->total_tok);
    return TPL_OK;
}

tpl_code session_create(team *t, const session_options *o, session **out, tpl_err *e)
{
    TPL_TRY(check_options(o, &team_plan(t, 0)->cfg, e));
    session *s = tpl_calloc(1, sizeof *s);
    s->t = t;
    s->o = *o;
    if (s->o.total_tok == 0)
        s->o.total_tok = (int64_t)o->max_seqs * o->max_tok;
    size_t rows = (size_t)o->max_rows;
    s->seqs = tpl_calloc((size_t)o->max_seqs, sizeof *s->seqs);
    s->row_token = tpl_calloc(rows, sizeof(int32_t));
    s->row_seq = tpl_calloc(rows, sizeof(int32_t));
    s->row_pos = tpl_calloc(rows, sizeof(int32_t));
    s->row_mask = tpl_calloc(rows * (size_t)ceil_div((int64_t)o->max_rows + o->max_tree, 64), sizeof(uint64_t));
    s->seq_row0 = tpl_calloc((size_t)o->max_seqs + 1, sizeof(int32_t));
    s->seq_prefix = tpl_calloc((size_t)o->max_seqs, sizeof(int32_t));
    s->seq_open = tpl_calloc((size_t)o->max_seqs, sizeof(int32_t));
    s->tree_words = ceil_div(o->max_tree, 64);
    s->tree_pos = tpl_calloc((size_t)o->max_seqs * (size_t)o->max_tree + 1, sizeof(int32_t));
    s->tree_mask = tpl_calloc((size_t)o->max_seqs * (size_t)o->max_tree * (size_t)s->tree_words + 1, sizeof(uint64_t));
    s->batch_seqs = tpl_calloc((size_t)o->max_seqs, sizeof(int32_t));
    s->logit_index = tpl_calloc((size_t)o->max_logits, sizeof(int32_t));
    for (int k = 0; k < KV_N_STREAMS; k++)
        init_pages(s, k);
    s->n_ranks = team_n_local(t);
    s->ranks = tpl_calloc((size_t)s->n_ranks, sizeof *s->ranks);
    s->exec = team_exec(t);
    tpl_code rc = s->exec->open(s, e);
    if (rc == TPL_OK && ranks_are_processes(team_opts(t)->ranks) && remote_leads()) {
        s->remote_args = tpl_malloc(sizeof *s->remote_args * (2 + 4 * rows));
        int64_t id = remote_new_id(), args[] = {id, team_opts(t)->remote_id, o->max_seqs, o->max_tok, s->o.total_tok, o->max_rows, o->max_logits};
        rc = remote_announce(REMOTE_SESSION_OPEN, args, 7, NULL, e);
        s->remote_id = rc == TPL_OK ? id : 0;
    }
    if (rc != TPL_OK) {
        session_destroy(s);
        return rc;
    }
    *out = s;
    return TPL_OK;
}

void session_destroy(session *s)
{
    if (!s)
        return;
    if (s->remote_id)
        remote_announce(REMOTE_SESSION_CLOSE, &s->remote_id, 1, NULL, NULL);
    free(s->remote_args);
    s->exec->close(s);
    for (int k = 0; k < KV_N_STREAMS; k++) {
        free(s->pools[k].table);
        free(s->pools[k].view);
        free(s->pools[k].free_pages);
    }
    free(s->ranks);
    free(s->seqs);
    free(s->row_token);
    free(s->row_seq);
    free(s->row_pos);
    free(s->row_mask);
    free(s->seq_row0);
    free(s->seq_prefix);
    free(s->seq_open);
    free(s->tree_pos);
    free(s->tree_mask);
    free(s->batch_seqs);
    free(s->logit_index);
    free(s);
}

/* ---- pages ---- */

static int pages_for(const page_pool *pool, int len)
{
    return (int)ceil_div(ceil_div(len, pool->mod), PAGE_TOK);
}

/* Pages that sequence `seq` lacks to hold len tokens in a stream. */
static int pages_lacking(const session *s, int stream, int seq, int len)
{
    int need = pages_for(&s->pools[stream], len), have = s->seqs[seq].n_pages[stream];
    return need > have ? need - have : 0;
}

static void take_pages(session *s, int stream, int seq, int len)
{
    page_pool *pool = &s->pools[stream];
    for (int n = pages_lacking(s, stream, seq, len); n > 0; n--)
        pool->table[seq * pool->max_pages + s->seqs[seq].n_pages[stream]++] = pool->free_pages[--pool->n_free];
}

static void give_pages(session *s, int stream, int seq, int len)
{
    page_pool *pool = &s->pools[stream];
    if (!pool->n_pages)
        return;
    for (int keep = pages_for(pool, len); s->seqs[seq].n_pages[stream] > keep;)
        pool->free_pages[pool->n_free++] = pool->table[seq * pool->max_pages + --s->seqs[seq].n_pages[stream]];
}

int session_add_seq(session *s)
{
    for (int i = 0; i < s->o.max_seqs; i++) {
        if (s->seqs[i].alive)
            continue;
        s->seqs[i] = (session_seq){.alive = true};
        if (s->remote_id)
            remote_announce(REMOTE_ADD_SEQ, &s->remote_id, 1, NULL, NULL);
        return i;
    }
    return -1;
}

static void forget_from(session *s, int seq, int len)
{
    session_seq *q = &s->seqs[seq];
    assert(q->alive && len >= 0 && len <= q->len);
    for (int k = 0; k < KV_N_STREAMS; k++)
        give_pages(s, k, seq, len);
    q->len = len;
    q->decoding = q->decoding && len > 0;
    if (len <= q->chain_len)
        q->branched = q->open = false;
}

/* These two cannot fail; if followers are gone, the launcher is ending this process too. */
void session_truncate(session *s, int seq, int len)
{
    if (s->remote_id)
        remote_announce(REMOTE_TRUNCATE, (int64_t[]){s->remote_id, seq, len}, 3, NULL, NULL);
    forget_from(s, seq, len);
}

/* ---- stand-ins ---- */

tpl_code session_fill_random(session *s, uint64_t seed, tpl_err *e)
{
    if (ranks_are_processes(team_opts(s->t)->ranks))
        return tpl_fail(e, TPL_E_UNSUPPORTED, "KV cache", "ranks in several processes cannot fill it with random values");
    for (int i = 0; i < s->n_ranks; i++)
        for (int k = 0; k < KV_N_STREAMS; k++)
            if (s->ranks[i].kv[k].bytes)
                TPL_TRY(s->exec->fill(s, i, k, seed, e));
    return TPL_OK;
}

tpl_code session_assume(session *s, int seq, int len, tpl_err *e)
{
    session_seq *q = &s->seqs[seq];
    assert(q->alive && !q->branched && !q->open && len >= q->len);
    if (len > s->o.max_tok)
        return tpl_fail(e, TPL_E_INPUT, "KV cache", "sequence %d would hold %d tokens, the limit is %d", seq, len, s->o.max_tok);
    for (int k = 0; k < KV_N_STREAMS; k++)
        if (s->pools[k].n_pages && pages_lacking(s, k, seq, len) > s->pools[k].n_free)
            return tpl_fail(e, TPL_E_MEMORY, "KV cache", "is full: %d of %d pages free", s->pools[k].n_free, s->pools[k].n_pages);
    take_pages(s, KV_MAIN, seq, len);
    q->len = q->chain_len = len;
    return TPL_OK;
}

tpl_code session_set_silent(session *s, bool silent, tpl_err *e)
{
    bool threads = team_opts(s->t)->ranks == RANKS_LOCAL && team_exec(s->t)->host;
    if (team_opts(s->t)->ranks != RANKS_NCCL && !threads)
        return tpl_fail(e, TPL_E_UNSUPPORTED, "collectives", "can be left out only between threads of a host or cards (--ranks nccl)");
    s->silent = silent;
    s->alone = false;
    return TPL_OK;
}

tpl_code session_set_attention_alone(session *s, bool on, tpl_err *e)
{
    if (team_exec(s->t)->host || ranks_are_processes(team_opts(s->t)->ranks))
        return tpl_fail(e, TPL_E_UNSUPPORTED, "attention", "can run alone only on cards of this process");
    s->attention_alone = on;
    return TPL_OK;
}

tpl_code session_set_alone(session *s, tpl_err *e)
{
    if (team_opts(s->t)->ranks != RANKS_LOCAL || !team_exec(s->t)->host)
        return tpl_fail(e, TPL_E_UNSUPPORTED, "ranks", "one can work alone only where they are threads of a host");
    s->silent = s->alone = true;
    return TPL_OK;
}

/* ---- trees ---- */

void session_open_tree(session *s, int seq)
{
    session_seq *q = &s->seqs[seq];
    assert(q->alive && !q->branched && s->o.max_tree > 0);
    q->open = true;
    q->chain_len = q->len;
}

static tpl_code check_path(const session *s, int seq, const int32_t *rows, int n, tpl_err *e)
{
    const session_seq *q = &s->seqs[seq];
    const int32_t *pos = s->tree_pos + (size_t)seq * (size_t)s->o.max_tree;
    const uint64_t *mask = s->tree_mask + (size_t)seq * (size_t)s->o.max_tree * (size_t)s->tree_words;
    if (!q->alive || !q->open)
        return tpl_fail(e, TPL_E_USAGE, "tree", "sequence %d has no open tree", seq);
    for (int i = 0; i < n; i++) {
        int r = rows[i], up = i ? rows[i - 1] : r;
        bool known = r >= 0 && r < q->len - q->chain_len && up >= 0;
        if (!known || pos[r] != q->chain_len + i || !(mask[(size_t)r * (size_t)s->tree_words + (size_t)up / 64] >> (up % 64) & 1))
            return tpl_fail(e, TPL_E_USAGE, "tree", "row %d, number %d of the path, does not follow on the one before it", r, i);
    }
    return TPL_OK;
}

static char *cached_row(const session *s, const session_rank *r, int stream, int seq, int slot)
{
    const page_pool *pool = &s->pools[stream];
    const kv_view *v = &r->views[stream];
    int token = slot / pool->mod;
    int64_t row = (int64_t)pool->table[seq * pool->max_pages + token / PAGE_TOK] * PAGE_TOK + token % PAGE_TOK;
    return (char *)v->pages + (size_t)(row * v->width) * dtype_bytes(v->dtype);
}

/* A local rank that keeps a slot: `to` itself where it does; NULL: none does. */
static const session_rank *keeper(const session *s, const session_rank *to, int stream, int slot)
{
    int rem = slot % s->pools[stream].mod;
    if (to->views[stream].rem == rem)
        return to;
    for (int i = 0; i < s->n_ranks; i++)
        if (s->ranks[i].views[stream].rem == rem)
            return &s->ranks[i];
    return NULL;
}

static tpl_code move_slot(session *s, int stream, int seq, int from, int to, tpl_err *e)
{
    for (int i = 0; i < s->n_ranks; i++) {
        session_rank *r = &s->ranks[i];
        const kv_view *v = &r->views[stream];
        if (to % v->mod != v->rem)
            continue;
        const session_rank *source = keeper(s, r, stream, from);
        char *dst = cached_row(s, r, stream, seq, to);
        const char *src = cached_row(s, source, stream, seq, from);
        TPL_TRY(s->exec->move(s, dst, (size_t)r->layer_bytes[stream], src, (size_t)source->layer_bytes[stream],
                              (size_t)v->width * dtype_bytes(v->dtype), team_plan(s->t, i)->cfg.n_layers, e));
    }
    return TPL_OK;
}

tpl_code session_keep_path(session *s, int seq, const int32_t *rows, int n, tpl_err *e)
{
    session_seq *q = &s->seqs[seq];
    TPL_TRY(check_path(s, seq, rows, n, e));
    for (int k = 0; k < KV_N_STREAMS; k++)
        for (int i = 0; i < n && s->seqs[seq].n_pages[k] > 0; i++)
            if (rows[i] != i && !keeper(s, &s->ranks[0], k, q->chain_len + rows[i]))
                return tpl_fail(e, TPL_E_UNSUPPORTED, "tree", "slot %d is kept by a rank of another process", q->chain_len + rows[i]);
    for (int k = 0; k < KV_N_STREAMS; k++)
        for (int i = 0; i < n && q->n_pages[k] > 0; i++)
            if (rows[i] != i)
                TPL_TRY(move_slot(s, k, seq, q->chain_len + rows[i], q->chain_len + i, e));
    q->open = false;
    q->len = q->chain_len + n;
    q->chain_len = q->len;
    for (int k = 0; k < KV_N_STREAMS; k++)
        give_pages(s, k, seq, q->len);
    return TPL_OK;
}

void session_drop_seq(session *s, int seq)
{
    if (s->remote_id)
        remote_announce(REMOTE_DROP_SEQ, (int64_t[]){s->remote_id, seq}, 2, NULL, NULL);
    forget_from(s, seq, 0);
    s->seqs[seq].alive = false;
}

int session_len(const session *s, int seq)
{
    return s->seqs[seq].len;
}

team *session_team(session *s)
{
    return s->t;
}

const session_options *session_opts(const session *s)
{
    return &s->o;
}

int64_t session_kv_bytes(const session *s, int local_rank, int stream)
{
    return (int64_t)s->ranks[local_rank].kv[stream].bytes;
}

int64_t session_kv_used_bytes(const session *s, int local_rank, int stream)
{
    const page_pool *pool = &s->pools[stream];
    return pool->n_pages ? session_kv_bytes(s, local_rank, stream) / pool->n_pages * (pool->n_pages - pool->n_free) : 0;
}

void session_observe(session *s, step_observer o)
{
    s->observer = o;
}

void session_set_trace_tag(session *s, uint8_t tag)
{
    s->trace_tag = tag;
}

const float *session_logits(const session *s, int i)
{
    assert(i >= 0 && i < s->n_logits);
    return s->exec->logits(s, i);
}

int32_t session_best(const session *s, int i)
{
    assert(i >= 0 && i < s->n_logits);
    return s->exec->best(s, i);
}

int session_most_top(const session *s)
{
    return s->exec->top ? s->o.max_top : 0;
}

void session_want_top(session *s, int k, float temperature)
{
    assert(k >= 0 && k <= session_most_top(s));
    s->top_k = k;
    s->top_temperature = temperature;
}

session_likeliest session_top(const session *s, int i)
{
    assert(s->top_k > 0 && i >= 0 && i < s->n_logits);
    return s->exec->top(s, i);
}

tpl_code session_time_blocks(session *s, bool on, tpl_err *e)
{
    if (!s->exec->time_blocks)
        return tpl_fail(e, TPL_E_UNSUPPORTED, "session", "backend '%s' has no clock of its own",
                        team_opts(s->t)->backend);
    return s->exec->time_blocks(s, on, e);
}

block_times session_block_times(const session *s, int local_rank, plan_phase phase)
{
    return s->exec->times ? s->exec->times(s, local_rank, phase) : (block_times){0};
}

int session_n_logits(const session *s)
{
    return s->n_logits;
}

/* ---- shared with forward.c ---- */

tpl_code session_reserve(session *s, plan_phase phase, int n_seqs, tpl_err *e)
{
    for (int k = 0; k < KV_N_STREAMS; k++) {
        page_pool *pool = &s->pools[k];
        if (!pool->n_pages || (k == KV_PREFILL && phase != PHASE_PREFILL))
            continue;
        int lacking = 0;
        for (int i = 0; i < n_seqs; i++)
            lacking += pages_lacking(s, k, s->batch_seqs[i], s->seqs[s->batch_seqs[i]].len + s->seq_row0[i + 1] - s->seq_row0[i]);
        if (lacking > pool->n_free)
            return tpl_fail(e, TPL_E_MEMORY, "KV cache", "is full: %d more pages of %d tokens needed, %d of %d free", lacking, PAGE_TOK, pool->n_free, pool->n_pages);
    }
    for (int i = 0; i < n_seqs; i++) {
        int seq = s->batch_seqs[i], len = s->seqs[seq].len + s->seq_row0[i + 1] - s->seq_row0[i];
        take_pages(s, KV_MAIN, seq, len);
        if (s->pools[KV_PREFILL].n_pages && phase == PHASE_PREFILL)
            take_pages(s, KV_PREFILL, seq, len);
        if (phase != PHASE_PREFILL) {
            give_pages(s, KV_PREFILL, seq, 0);
            s->seqs[seq].decoding = true;
        }
        for (int k = 0; k < KV_N_STREAMS; k++) {
            const page_pool *pool = &s->pools[k];
            if (pool->n_pages)
                memcpy(pool->view + i * pool->max_pages, pool->table + seq * pool->max_pages, (size_t)s->seqs[seq].n_pages[k] * sizeof(int32_t));
        }
    }
    return TPL_OK;
}
