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
    int open = q->open ? q->len - q->chain_len : 0;
    if (q->open && open + index + 1 > s->o.max_tree)
        return tpl_fail(e, TPL_E_USAGE, "batch", "the tree of sequence %d would have %d rows, the limit is %d", r->seq, open + index + 1, s->o.max_tree);
    bool in_tree = r->parent <= ROW_OPEN_0 && ROW_OPEN_0 - r->parent < open;
    if (r->parent != ROW_CHAIN && r->parent != ROW_PREFIX && !in_tree && (r->parent < first || r->parent >= i))
        return tpl_fail(e, TPL_E_USAGE, "batch", "row %d has parent %d, expected an earlier row of its sequence", i, r->parent);
    return TPL_OK;
}

static bool is_chain(const batch_row *rows, int i, int first)
{
    return rows[i].parent == ROW_CHAIN || rows[i].parent == i - 1 || (i == first && rows[i].parent == ROW_PREFIX);
}

/* The row that row i follows: one of the batch, ROW_OPEN(j), or ROW_PREFIX. `open` rows of a tree come before it. */
static int parent_of(const batch_row *rows, int i, int first, int open)
{
    if (rows[i].parent != ROW_CHAIN)
        return rows[i].parent;
    if (i > first)
        return i - 1;
    return open ? ROW_OPEN(open - 1) : ROW_PREFIX;
}

/* mask [words] = the ancestors of row i, itself included; its position too where its parent is in an open tree. */
static void lay_ancestors(session *s, int i, int first, int place, int parent, uint64_t *mask)
{
    int open = s->seq_open[place];
    size_t words = (size_t)s->view.mask_words, tree = (size_t)s->batch_seqs[place] * (size_t)s->o.max_tree;
    memset(mask, 0, words * sizeof *mask);
    if (parent >= 0) {
        memcpy(mask, s->row_mask + (size_t)parent * words, words * sizeof *mask);
    } else if (parent <= ROW_OPEN_0) {
        size_t j = tree + (size_t)(ROW_OPEN_0 - parent), kept = (size_t)(open + 63) / 64;
        memcpy(mask, s->tree_mask + j * (size_t)s->tree_words, kept * sizeof *mask);
        s->row_pos[i] = s->tree_pos[j] + 1;
    }
    int bit = open + i - first;
    mask[bit / 64] |= (uint64_t)1 << (bit % 64);
}

/* Positions and ancestor masks of one sequence's rows; adds the tokens its rows see to *visible_pairs. */
static void lay_rows(session *s, const batch_row *rows, int first, int end, int place, bool masks)
{
    int prefix = s->seq_prefix[place], words = s->view.mask_words;
    for (int i = first; i < end; i++) {
        int parent = parent_of(rows, i, first, s->seq_open[place]);
        s->row_token[i] = rows[i].token;
        s->row_seq[i] = place;
        s->row_pos[i] = parent >= 0 ? s->row_pos[parent] + 1 : prefix;
        if (masks)
            lay_ancestors(s, i, first, place, parent, s->row_mask + (size_t)i * (size_t)words);
        s->view.visible_pairs += s->row_pos[i] + 1;
        if (rows[i].want_logits)
            s->logit_index[s->n_logits++] = i;
    }
    s->view.ctx_tok += prefix + s->seq_open[place] + end - first;
}

/* Tree rows that a sequence has before this batch. */
static int open_rows(const session_seq *q)
{
    return q->open ? q->len - q->chain_len : 0;
}

/* What a sequence becomes once its rows [first, end) of the batch, at `place`, are appended. */
static void grow_seq(session *s, const batch_row *rows, int first, int end, int place)
{
    session_seq *q = &s->seqs[s->batch_seqs[place]];
    if (!q->open) {
        q->chain_len = q->len;
        for (int k = first + 1; k < end; k++)
            q->branched = q->branched || !is_chain(rows, k, first);
    }
    for (int i = first; i < end && q->open; i++) {
        size_t j = (size_t)s->batch_seqs[place] * (size_t)s->o.max_tree + (size_t)(s->seq_open[place] + i - first), words = (size_t)s->view.mask_words;
        size_t kept = words < (size_t)s->tree_words ? words : (size_t)s->tree_words;
        s->tree_pos[j] = s->row_pos[i];
        memset(s->tree_mask + j * (size_t)s->tree_words, 0, (size_t)s->tree_words * sizeof *s->tree_mask);
        memcpy(s->tree_mask + j * (size_t)s->tree_words, s->row_mask + (size_t)i * words, kept * sizeof *s->tree_mask);
    }
    q->len += end - first;
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
        *chain = *chain && is_chain(rows, i, first) && !s->seqs[rows[i].seq].open;
        int span = open_rows(&s->seqs[rows[i].seq]) + i - first + 1;
        *longest = span > *longest ? span : *longest;
        logits += rows[i].want_logits;
    }
    if (logits > s->o.max_logits)
        return tpl_fail(e, TPL_E_USAGE, "batch", "wants logits of %d rows, expected at most %d", logits, s->o.max_logits);
    s->seq_row0[seqs] = n;
    *n_seqs = seqs;
    return TPL_OK;
}

/* ---- the pass ---- */

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
    if (team_plan(s->t, 0)->list[phase].n == 0)
        return tpl_fail(e, TPL_E_USAGE, "batch", "the plan has no %s list: the team was made %s", phase_name(phase), phase == PHASE_FUZZY ? "without layer groups" : "to decode only");
    TPL_TRY(scan_rows(s, phase, rows, n, &n_seqs, &longest, &chain, e));
    bool any_open = false;
    for (int i = 0; i < n_seqs; i++) {
        const session_seq *q = &s->seqs[s->batch_seqs[i]];
        s->seq_open[i] = open_rows(q);
        s->seq_prefix[i] = q->len - s->seq_open[i];
        any_open = any_open || s->seq_open[i] > 0;
    }
    TPL_TRY(session_reserve(s, phase, n_seqs, e));
    s->n_logits = 0;
    s->view = (batch_view){.n_rows = n, .n_seqs = n_seqs, .row_token = s->row_token, .row_seq = s->row_seq, .row_pos = s->row_pos, .seq_row0 = s->seq_row0,
                           .seq_prefix = s->seq_prefix, .seq_open = any_open ? s->seq_open : NULL, .row_mask = chain ? NULL : s->row_mask, .mask_words = chain ? 0 : (longest + 63) / 64, .max_seq_rows = longest};
    for (int i = 0; i < n_seqs; i++) {
        int slots = s->seqs[s->batch_seqs[i]].len + s->seq_row0[i + 1] - s->seq_row0[i];
        s->view.max_slots = slots > s->view.max_slots ? slots : s->view.max_slots;
    }
    for (int i = 0; i < n_seqs; i++)
        lay_rows(s, rows, s->seq_row0[i], s->seq_row0[i + 1], i, !chain);
    s->phase = phase;
    if (s->remote_id)
        TPL_TRY(announce(s, phase, rows, n, e));
    TPL_TRY(s->exec->forward(s, e));
    for (int i = 0; i < n_seqs; i++)
        grow_seq(s, rows, s->seq_row0[i], s->seq_row0[i + 1], i);
    return TPL_OK;
}
