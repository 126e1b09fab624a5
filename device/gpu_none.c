/* gpu_none.c - gpu.h in a build without CUDA: there is no card, and nothing but the questions can be called. */
#include "device/gpu.h"
#include "device/gpu_peer.h"

#include <assert.h>

static tpl_code none(tpl_err *e)
{
    return tpl_fail(e, TPL_E_UNSUPPORTED, "card", "this build has no CUDA; configure it with -Dcuda=enabled");
}

bool gpu_is_built(void)
{
    return false;
}

int gpu_count(void)
{
    return 0;
}

tpl_code gpu_open(int ordinal, gpu **out, tpl_err *e)
{
    return none(e);
}

void gpu_close(gpu *g)
{
    assert(!g);
}

const gpu_facts *gpu_get_facts(const gpu *g)
{
    static const gpu_facts no_card = {.ordinal = -1};
    return &no_card;
}

tpl_code gpu_use(gpu *g, tpl_err *e)
{
    return none(e);
}

tpl_code gpu_reach(gpu *from, gpu *to, tpl_err *e)
{
    return none(e);
}

tpl_code gpu_copy_pieces(gpu_queue *q, void *to, size_t to_step, const void *from, size_t from_step, size_t bytes, int n,
                         tpl_err *e)
{
    return none(e);
}

tpl_code gpu_event_stamp(gpu_event *v, gpu_queue *q, tpl_err *e)
{
    return none(e);
}

tpl_code gpu_free_bytes(gpu *g, int64_t *out, tpl_err *e)
{
    return none(e);
}

tpl_code gpu_alloc(gpu *g, dev_buf *b, size_t bytes, const char *what, tpl_err *e)
{
    return none(e);
}

void gpu_free(gpu *g, dev_buf *b)
{
    assert(!b->data);
}

tpl_code gpu_alloc_pinned(gpu *g, dev_buf *b, size_t bytes, const char *what, tpl_err *e)
{
    return none(e);
}

void gpu_free_pinned(gpu *g, dev_buf *b)
{
    assert(!b->data);
}

tpl_code gpu_queue_create(gpu *g, gpu_queue **out, tpl_err *e)
{
    return none(e);
}

void gpu_queue_destroy(gpu_queue *q)
{
    assert(!q);
}

gpu *gpu_queue_card(gpu_queue *q)
{
    return NULL;
}

tpl_code gpu_copy(gpu_queue *q, void *to, const void *from, size_t bytes, tpl_err *e)
{
    return none(e);
}

tpl_code gpu_copy_now(gpu_queue *q, void *to, const void *from, size_t bytes, tpl_err *e)
{
    return none(e);
}

tpl_code gpu_fill(gpu_queue *q, void *to, int byte, size_t bytes, tpl_err *e)
{
    return none(e);
}

tpl_code gpu_queue_wait(gpu_queue *q, tpl_err *e)
{
    return none(e);
}

void *gpu_queue_stream(gpu_queue *q)
{
    return NULL;
}

void *gpu_queue_blas(gpu_queue *q)
{
    return NULL;
}

unsigned *gpu_queue_counts(gpu_queue *q)
{
    return NULL;
}

tpl_code gpu_event_create(gpu *g, bool timed, gpu_event **out, tpl_err *e)
{
    return none(e);
}

void gpu_event_destroy(gpu_event *v)
{
    assert(!v);
}

tpl_code gpu_event_record(gpu_event *v, gpu_queue *q, tpl_err *e)
{
    return none(e);
}

tpl_code gpu_event_join(gpu_event *v, gpu_queue *q, tpl_err *e)
{
    return none(e);
}

tpl_code gpu_event_elapsed_us(gpu_event *from, gpu_event *to, double *us, tpl_err *e)
{
    return none(e);
}

tpl_code gpu_record_begin(gpu_queue *q, tpl_err *e)
{
    return none(e);
}

tpl_code gpu_record_end(gpu_queue *q, gpu_graph **out, tpl_err *e)
{
    return none(e);
}

void gpu_record_drop(gpu_queue *q)
{
}

tpl_code gpu_graph_launch(gpu_graph *r, gpu_queue *q, tpl_err *e)
{
    return none(e);
}

void gpu_graph_destroy(gpu_graph *r)
{
    assert(!r);
}

int gpu_graph_nodes(const gpu_graph *r)
{
    return 0;
}

tpl_code gpu_peer_map(gpu *from, gpu *to, tpl_err *e)
{
    return none(e);
}
