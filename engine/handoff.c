#include "engine/handoff.h"

#include <stdlib.h>
#include <string.h>

#include "engine/handoff_impl.h"

/* ---- the list ---- */

typedef struct {
    const plan *const *from;
    int n_from;
    handoff_part *parts;
    int n, cap;
} list;

static void add_part(list *l, handoff_part p)
{
    if (l->n == l->cap) {
        l->cap = l->cap ? 2 * l->cap : 16;
        l->parts = tpl_realloc(l->parts, sizeof *l->parts * (size_t)l->cap);
    }
    l->parts[l->n++] = p;
}

/* The source of whole column `at` among ranks that keep slots of residue `rem`: the first from rank `hint` on. */
static int find_source(const list *l, int32_t rem, int32_t at, int hint, plan_row_span *span)
{
    for (int i = 0; i < l->n_from; i++) {
        int rank = (hint + i) % l->n_from;
        plan_row_span s[2];
        plan_row_spans(l->from[rank], s);
        for (int k = 0; k < 2 && l->from[rank]->streams[KV_MAIN].rem == rem; k++)
            if (at >= s[k].whole && at < s[k].whole + s[k].cols) {
                *span = s[k];
                return rank;
            }
    }
    return -1;
}

static tpl_code add_span(list *l, const plan *to, int32_t rem, const plan_row_span *want, tpl_err *e)
{
    const plan_stream *stream = &to->streams[KV_MAIN];
    for (int32_t done = 0, n; done < want->cols; done += n) {
        plan_row_span have;
        int from = find_source(l, rem, want->whole + done, to->rank, &have);
        if (from < 0)
            return tpl_fail(e, TPL_E_USAGE, "hand-off", "no rank of the prefill team has column %d of rank %d's cache",
                            want->whole + done, to->rank);
        int32_t skip = want->whole + done - have.whole;
        n = have.cols - skip < want->cols - done ? have.cols - skip : want->cols - done;
        add_part(l, (handoff_part){.from = from,
                                   .to = to->rank,
                                   .from_mod = l->from[from]->streams[KV_MAIN].mod,
                                   .from_rem = rem,
                                   .to_mod = stream->mod,
                                   .to_rem = stream->rem,
                                   .from_col = have.col + skip,
                                   .to_col = want->col + done,
                                   .cols = n});
    }
    return TPL_OK;
}

tpl_code handoff_list(const plan *const *from, int n_from, const plan *const *to, int n_to, handoff_part **parts,
                      int *n, tpl_err *e)
{
    list l = {.from = from, .n_from = n_from};
    tpl_code rc = TPL_OK;
    for (int i = 0; i < n_to && rc == TPL_OK; i++)
        for (int32_t rem = 0; rem < from[0]->streams[KV_MAIN].mod && rc == TPL_OK; rem++) {
            plan_row_span want[2];
            plan_row_spans(to[i], want);
            for (int k = 0; k < 2 && rc == TPL_OK; k++)
                rc = add_span(&l, to[i], rem, &want[k], e);
        }
    if (rc != TPL_OK) {
        free(l.parts);
        return rc;
    }
    *parts = l.parts;
    *n = l.n;
    return TPL_OK;
}

/* Moduli are rank counts, so that counting up to their product is no work. */
int64_t handoff_part_slots(const handoff_part *p, int64_t n_tok, int64_t *first, int64_t *step)
{
    int64_t a = p->from_mod, b = p->to_mod, s = p->from_rem, lcm = a;
    while (lcm % b)
        lcm += a;
    for (; s < lcm && s % b != p->to_rem; s += a)
        ;
    *step = lcm;
    *first = s < lcm && s < n_tok ? s : -1;
    return *first < 0 ? 0 : (n_tok - s + lcm - 1) / lcm;
}

/* ---- life ---- */

static bool same_variant(const variant *a, const variant *b)
{
    char x[VARIANT_TEXT], y[VARIANT_TEXT];
    variant_format(a, x);
    variant_format(b, y);
    return strcmp(x, y) == 0;
}

static tpl_code check_pair(const session *from, const session *to, tpl_err *e)
{
    const plan *a = team_plan(from->t, 0), *b = team_plan(to->t, 0);
    const team_options *ao = team_opts(from->t), *bo = team_opts(to->t);
    if (ranks_are_processes(ao->ranks) || ranks_are_processes(bo->ranks) || ao->ranks == RANKS_SOLO ||
        bo->ranks == RANKS_SOLO)
        return tpl_fail(e, TPL_E_UNSUPPORTED, "hand-off", "teams run as %s and %s, expected all ranks in one process",
                        ranks_name(ao->ranks), ranks_name(bo->ranks));
    if (team_model(from->t) != team_model(to->t) || !same_variant(&a->v, &b->v))
        return tpl_fail(e, TPL_E_USAGE, "hand-off", "the teams run different models or variants");
    if (from->exec != to->exec || ao->kv != bo->kv)
        return tpl_fail(e, TPL_E_USAGE, "hand-off", "the teams have different backends or cache types");
    return TPL_OK;
}

static tpl_code make_list(handoff *h, tpl_err *e)
{
    const plan **plans = tpl_calloc((size_t)(h->from->n_ranks + h->to->n_ranks), sizeof *plans);
    for (int i = 0; i < h->from->n_ranks; i++)
        plans[i] = team_plan(h->from->t, i);
    for (int i = 0; i < h->to->n_ranks; i++)
        plans[h->from->n_ranks + i] = team_plan(h->to->t, i);
    tpl_code rc = handoff_list(plans, h->from->n_ranks, plans + h->from->n_ranks, h->to->n_ranks, &h->parts, &h->n, e);
    free(plans);
    return rc;
}

tpl_code handoff_open(session *from, session *to, handoff **out, tpl_err *e)
{
    TPL_TRY(check_pair(from, to, e));
    handoff *h = tpl_calloc(1, sizeof *h);
    *h = (handoff){.from = from, .to = to};
    tpl_code rc = make_list(h, e);
    if (rc == TPL_OK && !from->exec->host)
        rc = handoff_cuda_open(h, e);
    if (rc == TPL_OK)
        *out = h;
    else
        handoff_close(h);
    return rc;
}

void handoff_close(handoff *h)
{
    if (!h)
        return;
    if (!h->from->exec->host)
        handoff_cuda_close(h);
    free(h->parts);
    free(h);
}

static double part_bytes(const handoff *h, const handoff_part *p, int64_t n_tok)
{
    int64_t first, step, n = handoff_part_slots(p, n_tok, &first, &step);
    return (double)n * p->cols * (double)dtype_bytes(team_opts(h->from->t)->kv) *
           team_plan(h->from->t, 0)->cfg.n_layers;
}

double handoff_bytes(const handoff *h, int64_t n_tok)
{
    double bytes = 0;
    for (int i = 0; i < h->n; i++)
        bytes += part_bytes(h, &h->parts[i], n_tok);
    return bytes;
}

double handoff_crossed_bytes(const handoff *h, int64_t n_tok)
{
    double bytes = 0;
    for (int i = 0; i < h->n && !h->from->exec->host; i++)
        bytes += handoff_cuda_crosses(h, &h->parts[i]) ? part_bytes(h, &h->parts[i], n_tok) : 0;
    return bytes;
}

/* ---- moving on a host ---- */

static char *row_at(const session *s, int rank, int seq, int64_t local_tok)
{
    const page_pool *pool = &s->pools[KV_MAIN];
    const kv_view *v = &s->ranks[rank].views[KV_MAIN];
    int64_t row = (int64_t)pool->table[seq * pool->max_pages + local_tok / PAGE_TOK] * PAGE_TOK + local_tok % PAGE_TOK;
    return (char *)v->pages + (size_t)(row * v->width) * dtype_bytes(v->dtype);
}

static void move_part(const handoff *h, const handoff_part *p, int from_seq, int to_seq, int64_t n_tok)
{
    size_t each = dtype_bytes(team_opts(h->from->t)->kv), bytes = (size_t)p->cols * each;
    int64_t first, step, n = handoff_part_slots(p, n_tok, &first, &step);
    for (int layer = 0; layer < team_plan(h->from->t, 0)->cfg.n_layers; layer++)
        for (int64_t i = 0; i < n; i++) {
            int64_t slot = first + i * step;
            const char *a = row_at(h->from, p->from, from_seq, slot / p->from_mod) +
                            h->from->ranks[p->from].layer_bytes[KV_MAIN] * layer;
            char *b = row_at(h->to, p->to, to_seq, slot / p->to_mod) + h->to->ranks[p->to].layer_bytes[KV_MAIN] * layer;
            memcpy(b + (size_t)p->to_col * each, a + (size_t)p->from_col * each, bytes);
        }
}

tpl_code handoff_run(handoff *h, int from_seq, int to_seq, tpl_err *e)
{
    int n_tok = session_len(h->from, from_seq);
    session_truncate(h->to, to_seq, 0);
    TPL_TRY(session_assume(h->to, to_seq, n_tok, e));
    if (!h->from->exec->host)
        return handoff_cuda_run(h, from_seq, to_seq, n_tok, e);
    for (int i = 0; i < h->n; i++)
        move_part(h, &h->parts[i], from_seq, to_seq, n_tok);
    return TPL_OK;
}
