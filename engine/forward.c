#include <assert.h>
#include <string.h>

#include "engine/remote.h"
#include "engine/session_impl.h"

/* ---- the batch ---- */

static tpl_code check_row(const session *s, plan_phase phase, const batch_row *rows, int i, int first, int index, tpl_err *e)
{
    const model_config *c = &team_plan(s->t, 0)->cfg;
    const batch_row *r = &rows[i];
    if (r->seq < 0 || r->seq >= s->o.max_seqs || !s->seqs[r->seq].alive)
        return tpl_fail(e, TPL_E_USAGE, "batch", "row %d names sequence %d, which does not exist", i, r->seq);
    const session_seq *q = &s->seqs[r->seq];
    if (r->token < 0 || r->token >= c->vocab)
        return tpl_fail(e, TPL_E_INPUT, "batch", "row %d has token %d, expected 0 to %d", i, r->token, c->vocab - 1);
    if (q->branched)
        return tpl_fail(e, TPL_E_USAGE, "batch", "sequence %d ends in a tree and must be truncated first", r->seq);
    if (phase == PHASE_PREFILL && q->decoding && s->pools[KV_PREFILL].n_pages)
        return tpl_fail(e, TPL_E_UNSUPPORTED, "batch", "sequence %d has begun to decode and cannot prefill exactly again", r->seq);
    if (q->len + index + 1 > s->o.max_tok)
        return tpl_fail(e, TPL_E_INPUT, "batch", "sequence %d would hold %d tokens, the limit is %d", r->seq, q->len + index + 1, s->o.max_tok);
    if (r->parent != ROW_CHAIN && r->parent != ROW_PREFIX && (r->parent < first || r->parent >= i))
        return tpl_fail(e, TPL_E_USAGE, "batch", "row %d has parent %d, expected an earlier row of its sequence", i, r->parent);
    return TPL_OK;
}

static bool is_chain(const batch_row *rows, int i, int first)
{
    return rows[i].parent == ROW_CHAIN || rows[i].parent == i - 1 || (i == first && rows[i].parent == ROW_PREFIX);
}

/* The row that row i follows, or -1 for the cached prefix. */
static int parent_of(const batch_row *rows, int i, int first)
{
    if (rows[i].parent == ROW_PREFIX)
        return -1;
    if (rows[i].parent != ROW_CHAIN)
        return rows[i].parent;
    return i > first ? i - 1 : -1;
}

/* Positions and ancestor masks of one sequence's rows; adds the tokens its rows see to *visible_pairs. */
static void lay_rows(session *s, const batch_row *rows, int first, int end, int place, bool masks)
{
    int prefix = s->seq_prefix[place], words = s->view.mask_words;
    for (int i = first; i < end; i++) {
        int parent = parent_of(rows, i, first), seen = prefix;
        s->row_token[i] = rows[i].token;
        s->row_seq[i] = place;
        s->row_pos[i] = parent < 0 ? prefix : s->row_pos[parent] + 1;
        if (masks) {
            uint64_t *mask = s->row_mask + (size_t)i * (size_t)words;
            if (parent >= 0)
                memcpy(mask, s->row_mask + (size_t)parent * (size_t)words, (size_t)words * sizeof *mask);
            else
                memset(mask, 0, (size_t)words * sizeof *mask);
            mask[(i - first) / 64] |= (uint64_t)1 << ((i - first) % 64);
        }
        seen += s->row_pos[i] - prefix + 1;
        s->view.visible_pairs += seen;
        if (rows[i].want_logits)
            s->logit_index[s->n_logits++] = i;
    }
    s->view.ctx_tok += prefix + end - first;
}

/* Finds the sequences of a batch and checks every row; *chain tells whether no row needs an ancestor mask. */
static tpl_code scan_rows(session *s, plan_phase phase, const batch_row *rows, int n, int *n_seqs, int *longest, bool *chain, tpl_err *e)
{
    int seqs = 0, logits = 0, first = 0;
    *chain = true;
    *longest = 0;
    if (n < 1 || n > s->o.max_rows)
        return tpl_fail(e, TPL_E_USAGE, "batch", "has %d rows, expected 1 to %d", n, s->o.max_rows);
    for (int i = 0; i < n; i++) {
        if (i == 0 || rows[i].seq != rows[i - 1].seq) {
            for (int k = 0; k < seqs; k++)
                if (s->batch_seqs[k] == rows[i].seq)
                    return tpl_fail(e, TPL_E_USAGE, "batch", "rows of sequence %d are not adjacent", rows[i].seq);
            if (seqs == s->o.max_seqs)
                return tpl_fail(e, TPL_E_USAGE, "batch", "has more than %d sequences", s->o.max_seqs);
            first = i;
            s->batch_seqs[seqs] = rows[i].seq;
            s->seq_row0[seqs++] = i;
        }
        TPL_TRY(check_row(s, phase, rows, i, first, i - first, e));
        *chain = *chain && is_chain(rows, i, first);
        *longest = i - first + 1 > *longest ? i - first + 1 : *longest;
        logits += rows[i].want_logits;
    }
    if (logits > s->o.max_logits)
        return tpl_fail(e, TPL_E_USAGE, "batch", "wants logits of %d rows, expected at most %d", logits, s->o.max_logits);
    s->seq_row0[seqs] = n;
    *n_seqs = seqs;
    return TPL_OK;
}

/* ---- the walk ---- */

static tpl_code run_comm(session *s, session_rank *r, const team_rank *tr, const plan_step *step, tpl_err *e)
{
    mat data = ref_bind(step->in[0], &r->env), out = ref_bind(step->out, &r->env);
    return tr->comm->run(tr->comm, step->comm, step->group, data.data, data.stride, out.data, out.stride, data.rows, data.cols, e);
}

static mat written(const plan_step *step, const bind_env *env)
{
    return ref_bind(step->out.buf >= 0 ? step->out : step->in[0], env);
}

/* A rank whose kernel failed computes no more but still meets the others in their collectives: they would wait for ever. */
static tpl_code walk(void *arg, int local_rank, tpl_err *e)
{
    session *s = arg;
    session_rank *r = &s->ranks[local_rank];
    const team_rank *tr = team_get_rank(s->t, local_rank);
    const plan_list *list = &tr->p->list[s->phase];
    const char *backend = team_opts(s->t)->backend;
    r->env.rows = s->view.n_rows;
    r->env.logit_rows = s->n_logits;
    tpl_code rc = TPL_OK;
    for (int i = 0; i < list->n; i++) {
        const plan_step *step = &list->steps[i];
        if (!step->active || (rc != TPL_OK && !step->is_comm))
            continue;
        if (s->observer.begin)
            s->observer.begin(s->observer.user, local_rank, step);
        op_call call;
        if (step->is_comm) {
            tpl_code met = run_comm(s, r, tr, step, rc == TPL_OK ? e : NULL);
            if (met != TPL_OK)
                return rc == TPL_OK ? met : rc;
        } else {
            call = step_bind(step, &r->env);
            rc = kernel_run(backend, &r->ctx, &call, e);
        }
        if (s->observer.end && rc == TPL_OK)
            s->observer.end(s->observer.user, local_rank, step, step->is_comm ? NULL : &call, written(step, &r->env));
    }
    return rc;
}

/* Followers run the same pass; all checks have passed here, so they pass there. */
static tpl_code announce(session *s, plan_phase phase, const batch_row *rows, int n, tpl_err *e)
{
    int64_t *a = s->remote_args;
    a[0] = s->remote_id;
    a[1] = phase;
    for (int i = 0; i < n; i++) {
        a[2 + 4 * i] = rows[i].seq;
        a[3 + 4 * i] = rows[i].token;
        a[4 + 4 * i] = rows[i].parent;
        a[5 + 4 * i] = rows[i].want_logits;
    }
    return remote_announce(REMOTE_FORWARD, a, 2 + 4 * n, NULL, e);
}

tpl_code session_forward(session *s, plan_phase phase, const batch_row *rows, int n, tpl_err *e)
{
    int n_seqs = 0, longest = 0;
    bool chain;
    TPL_TRY(scan_rows(s, phase, rows, n, &n_seqs, &longest, &chain, e));
    for (int i = 0; i < n_seqs; i++)
        s->seq_prefix[i] = s->seqs[s->batch_seqs[i]].len;
    TPL_TRY(session_reserve(s, phase, n_seqs, e));
    s->n_logits = 0;
    s->view = (batch_view){.n_rows = n, .n_seqs = n_seqs, .row_token = s->row_token, .row_seq = s->row_seq, .row_pos = s->row_pos, .seq_row0 = s->seq_row0,
                           .seq_prefix = s->seq_prefix, .row_mask = chain ? NULL : s->row_mask, .mask_words = chain ? 0 : (longest + 63) / 64};
    for (int i = 0; i < n_seqs; i++)
        lay_rows(s, rows, s->seq_row0[i], s->seq_row0[i + 1], i, !chain);
    s->phase = phase;
    if (s->remote_id)
        TPL_TRY(announce(s, phase, rows, n, e));
    TPL_TRY(team_run(s->t, walk, s, e));
    for (int i = 0; i < n_seqs; i++) {
        session_seq *q = &s->seqs[s->batch_seqs[i]];
        q->chain_len = q->len;
        for (int k = s->seq_row0[i] + 1; k < s->seq_row0[i + 1]; k++)
            q->branched = q->branched || !is_chain(rows, k, s->seq_row0[i]);
        q->len += s->seq_row0[i + 1] - s->seq_row0[i];
    }
    return TPL_OK;
}
