/* handoff_cuda.c - moving cached rows between cards, or on one: every source rank writes its parts into the other
 * team's pages. */
#include <stdlib.h>
#include <string.h>

#include "device/gpu_peer.h"
#include "engine/exec_cuda.h"
#include "engine/handoff_impl.h"
#include "kernels/card.h"

/* One source rank. */
typedef struct {
    gpu *card;
    gpu_queue *queue;
    dev_buf pages, host; /* page numbers: of from_seq, then of to_seq */
} source;

static gpu *card_of(const session *s, int rank)
{
    return cuda_place_of(*team_exec_state(s->t), rank)->card;
}

static source *sources_of(const handoff *h)
{
    return h->cards;
}

static size_t table_bytes(const session *s)
{
    return (size_t)s->pools[KV_MAIN].max_pages * sizeof(int32_t);
}

tpl_code handoff_cuda_open(handoff *h, tpl_err *e)
{
    h->cards = tpl_calloc((size_t)h->from->n_ranks, sizeof(source));
    size_t bytes = table_bytes(h->from) + table_bytes(h->to);
    for (int i = 0; i < h->from->n_ranks; i++) {
        source *s = &sources_of(h)[i];
        s->card = card_of(h->from, i);
        TPL_TRY(gpu_use(s->card, e));
        TPL_TRY(gpu_queue_create(s->card, &s->queue, e));
        TPL_TRY(gpu_alloc(s->card, &s->pages, bytes, "hand-off", e));
        TPL_TRY(gpu_alloc_pinned(s->card, &s->host, bytes, "hand-off", e));
    }
    for (int i = 0; i < h->n; i++)
        TPL_TRY(gpu_peer_map(card_of(h->from, h->parts[i].from), card_of(h->to, h->parts[i].to), e));
    return TPL_OK;
}

void handoff_cuda_close(handoff *h)
{
    for (int i = 0; h->cards && i < h->from->n_ranks; i++) {
        source *s = &sources_of(h)[i];
        gpu_queue_destroy(s->queue);
        gpu_free(s->card, &s->pages);
        gpu_free_pinned(s->card, &s->host);
    }
    free(h->cards);
    h->cards = NULL;
}

bool handoff_cuda_crosses(const handoff *h, const handoff_part *p)
{
    return gpu_get_facts(card_of(h->from, p->from))->ordinal != gpu_get_facts(card_of(h->to, p->to))->ordinal;
}

static tpl_code send_tables(const handoff *h, source *s, int from_seq, int to_seq, tpl_err *e)
{
    size_t a = table_bytes(h->from), b = table_bytes(h->to);
    const page_pool *from = &h->from->pools[KV_MAIN], *to = &h->to->pools[KV_MAIN];
    memcpy(s->host.data, from->table + (size_t)from_seq * (size_t)from->max_pages, a);
    memcpy((char *)s->host.data + a, to->table + (size_t)to_seq * (size_t)to->max_pages, b);
    return gpu_copy(s->queue, s->pages.data, s->host.data, a + b, e);
}

static tpl_code enqueue_part(const handoff *h, const handoff_part *p, int64_t n_tok, tpl_err *e)
{
    source *s = &sources_of(h)[p->from];
    const session_rank *from = &h->from->ranks[p->from], *to = &h->to->ranks[p->to];
    const int32_t *pages = s->pages.data;
    int32_t each = (int32_t)dtype_bytes(team_opts(h->from->t)->kv);
    int64_t first, step, n = handoff_part_slots(p, n_tok, &first, &step);
    if (n == 0)
        return TPL_OK;
    card_move m = {.from = (const char *)from->views[KV_MAIN].pages + p->from_col * each,
                   .to = (char *)to->views[KV_MAIN].pages + p->to_col * each,
                   .from_layer_bytes = from->layer_bytes[KV_MAIN],
                   .to_layer_bytes = to->layer_bytes[KV_MAIN],
                   .from_pages = pages,
                   .to_pages = pages + h->from->pools[KV_MAIN].max_pages,
                   .from_row_bytes = from->views[KV_MAIN].width * each,
                   .to_row_bytes = to->views[KV_MAIN].width * each,
                   .bytes = p->cols * each,
                   .from_first = (int32_t)(first / p->from_mod),
                   .from_step = (int32_t)(step / p->from_mod),
                   .to_first = (int32_t)(first / p->to_mod),
                   .to_step = (int32_t)(step / p->to_mod),
                   .n = (int32_t)n,
                   .n_layers = team_plan(h->from->t, 0)->cfg.n_layers,
                   .page_tok = PAGE_TOK};
    TPL_TRY(gpu_use(s->card, e));
    return card_move_rows(s->queue, &m, e);
}

tpl_code handoff_cuda_run(handoff *h, int from_seq, int to_seq, int64_t n_tok, tpl_err *e)
{
    for (int i = 0; i < h->from->n_ranks; i++)
        TPL_TRY(send_tables(h, &sources_of(h)[i], from_seq, to_seq, e));
    for (int i = 0; i < h->n; i++)
        TPL_TRY(enqueue_part(h, &h->parts[i], n_tok, e));
    for (int i = 0; i < h->from->n_ranks; i++)
        TPL_TRY(gpu_queue_wait(sources_of(h)[i].queue, e));
    return TPL_OK;
}
