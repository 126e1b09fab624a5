#include "bench/card_comm.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/arena.h"

enum { MAX_RUNS = 256, MIN_RUNS = 16 };
static const double run_bytes = 64e6; /* about as many bytes as a replay moves; small ones are limited by MAX_RUNS */

struct card_links {
    int ranks;
    bool shared;
    gpu *cards[GPU_PEER_MAX_RANKS], *of[GPU_PEER_MAX_RANKS];
    gpu_queue *queues[GPU_PEER_MAX_RANKS];
    gpu_event *done[GPU_PEER_MAX_RANKS], *ready;
    gpu_comm *comm; /* NULL where ranks share a card */
    gpu_peer *peer; /* then this */
    char joined_by[224];
};

struct card_comm {
    card_links *l;
    gpu_comm_way way;
    comm_op op;
    tpl_dtype t;
    int64_t width, out_width;
    int runs;
    dev_buf data[GPU_PEER_MAX_RANKS], out[GPU_PEER_MAX_RANKS];
    gpu_comm_part parts[GPU_PEER_MAX_RANKS];
    gpu_graph *graph;
};

/* ---- cards ---- */

static tpl_code open_queues(card_links *l, tpl_err *e)
{
    for (int i = 0; i < l->ranks; i++) {
        if (i == 0 || !l->shared)
            TPL_TRY(gpu_open(i, &l->cards[i], e));
        l->of[i] = l->cards[l->shared ? 0 : i];
        TPL_TRY(gpu_use(l->of[i], e));
        TPL_TRY(gpu_queue_create(l->of[i], &l->queues[i], e));
        TPL_TRY(gpu_event_create(l->of[i], false, &l->done[i], e));
    }
    TPL_TRY(gpu_use(l->of[0], e));
    return gpu_event_create(l->of[0], false, &l->ready, e);
}

static tpl_code join(card_links *l, tpl_err *e)
{
    gpu_comm_id id;
    if (l->shared) {
        snprintf(l->joined_by, sizeof l->joined_by, "peer memory on one card");
        TPL_TRY(gpu_peer_create(l->of, 0, l->ranks, l->ranks, l->ranks, NULL, &l->peer, e));
        return gpu_peer_prove(l->peer, NULL, l->ranks, e);
    }
    TPL_TRY(gpu_comm_new_id(&id, e));
    TPL_TRY(gpu_comm_create(l->of, 0, l->ranks, l->ranks, &id, &l->comm, e));
    const char *why_not = gpu_comm_why_not_peer(l->comm, l->ranks);
    if (*why_not)
        snprintf(l->joined_by, sizeof l->joined_by, "NCCL %s alone (%.180s)", gpu_comm_version(), why_not);
    else
        snprintf(l->joined_by, sizeof l->joined_by, "NCCL %s and peer memory", gpu_comm_version());
    return TPL_OK;
}

tpl_code card_links_open(int ranks, bool shared, card_links **out, tpl_err *e)
{
    int cards = gpu_count(), wanted = shared ? 1 : ranks;
    if (ranks < 2 || ranks > GPU_PEER_MAX_RANKS)
        return tpl_fail(e, TPL_E_USAGE, "--tp", "is %d, expected 2 to %d cards", ranks, GPU_PEER_MAX_RANKS);
    if (cards < wanted)
        return tpl_fail(e, TPL_E_DEVICE, "--ranks nccl", "needs a card a rank: %d, %d are here", wanted, cards);
    card_links *l = tpl_calloc(1, sizeof *l);
    *l = (card_links){.ranks = ranks, .shared = shared};
    tpl_code rc = open_queues(l, e);
    if (rc == TPL_OK)
        rc = join(l, e);
    if (rc == TPL_OK)
        *out = l;
    else
        card_links_close(l);
    return rc;
}

void card_links_close(card_links *l)
{
    if (!l)
        return;
    gpu_comm_destroy(l->comm);
    gpu_peer_destroy(l->peer);
    gpu_event_destroy(l->ready);
    for (int i = 0; i < l->ranks; i++) {
        gpu_event_destroy(l->done[i]);
        gpu_queue_destroy(l->queues[i]);
    }
    for (int i = 0; i < l->ranks; i++)
        if (l->cards[i])
            gpu_close(l->cards[i]);
    free(l);
}

const char *card_links_device(const card_links *l)
{
    return gpu_get_facts(l->cards[0])->name;
}

const char *card_links_joined_by(const card_links *l)
{
    return l->joined_by;
}

const char *card_links_why_not(const card_links *l, gpu_comm_way way)
{
    if (way == GPU_COMM_PEER)
        return l->shared ? "" : gpu_comm_why_not_peer(l->comm, l->ranks);
    return l->shared ? "NCCL joins no two ranks of a process on one card" : "";
}

bool card_links_prefer(const card_links *l, gpu_comm_way way, comm_op op, tpl_dtype t, int64_t width)
{
    if (l->shared)
        return way == GPU_COMM_PEER;
    gpu_comm_choose(l->comm, GPU_COMM_BEST);
    return gpu_comm_goes_peer(l->comm, op, l->ranks, t, 1, width) == (way == GPU_COMM_PEER);
}

/* ---- a target ---- */

card_comm *card_comm_create(card_links *l, gpu_comm_way way, comm_op op, tpl_dtype t, int64_t width)
{
    card_comm *c = tpl_calloc(1, sizeof *c);
    double bytes = (double)width * (double)dtype_bytes(t), runs = run_bytes / bytes;
    *c = (card_comm){.l = l, .way = way, .op = op, .t = t, .width = width};
    c->out_width = op == COMM_ALL_GATHER ? width * l->ranks : op == COMM_REDUCE_SCATTER ? width / l->ranks : 0;
    c->runs = runs > MAX_RUNS ? MAX_RUNS : runs < MIN_RUNS ? MIN_RUNS : (int)runs;
    return c;
}

void card_comm_destroy(card_comm *c)
{
    free(c);
}

static tpl_code enqueue(card_comm *c, tpl_err *e)
{
    card_links *l = c->l;
    if (l->shared)
        return gpu_peer_run(l->peer, c->op, c->t, 1, c->width, c->parts, e);
    gpu_comm_choose(l->comm, c->way);
    return gpu_comm_run(l->comm, c->op, l->ranks, c->t, 1, c->width, c->parts, e);
}

/* From queue 0 over all queues back to queue 0. */
static tpl_code enqueue_all(card_comm *c, int runs, tpl_err *e)
{
    card_links *l = c->l;
    TPL_TRY(gpu_event_record(l->ready, l->queues[0], e));
    for (int i = 1; i < l->ranks; i++)
        TPL_TRY(gpu_event_join(l->ready, l->queues[i], e));
    for (int k = 0; k < runs; k++)
        TPL_TRY(enqueue(c, e));
    for (int i = 1; i < l->ranks; i++) {
        TPL_TRY(gpu_event_record(l->done[i], l->queues[i], e));
        TPL_TRY(gpu_event_join(l->done[i], l->queues[0], e));
    }
    return TPL_OK;
}

static tpl_code wait_all(const card_comm *c, tpl_err *e)
{
    TPL_TRY(gpu_queue_wait(c->l->queues[0], e));
    return c->l->comm ? gpu_comm_check(c->l->comm, e) : gpu_peer_check(c->l->peer, e);
}

static tpl_code record(card_comm *c, tpl_err *e)
{
    gpu_queue *q = c->l->queues[0];
    TPL_TRY(gpu_use(c->l->of[0], e));
    TPL_TRY(gpu_record_begin(q, e));
    tpl_code rc = enqueue_all(c, c->runs, e);
    if (rc == TPL_OK)
        return gpu_record_end(q, &c->graph, e);
    gpu_record_drop(q);
    return rc;
}

static tpl_code check_way(const card_comm *c, tpl_err *e)
{
    const card_links *l = c->l;
    const char *why_not = card_links_why_not(l, c->way);
    if (*why_not)
        return tpl_fail(e, TPL_E_UNSUPPORTED, comm_op_name(c->op), "%s", why_not);
    if (c->op == COMM_REDUCE_SCATTER && c->width % l->ranks)
        return tpl_fail(e, TPL_E_UNSUPPORTED, comm_op_name(c->op), "width %lld over %d ranks", (long long)c->width,
                        l->ranks);
    if (l->comm)
        gpu_comm_choose(l->comm, c->way);
    bool takes = l->shared ? gpu_peer_takes(l->peer, c->op, c->t, 1, c->width)
                           : c->way != GPU_COMM_PEER || gpu_comm_goes_peer(l->comm, c->op, l->ranks, c->t, 1, c->width);
    return takes ? TPL_OK : tpl_fail(e, TPL_E_UNSUPPORTED, comm_op_name(c->op), "the staging memory is too small");
}

static tpl_code prepare(void *self, tpl_err *e)
{
    card_comm *c = self;
    size_t each = dtype_bytes(c->t);
    TPL_TRY(check_way(c, e));
    for (int i = 0; i < c->l->ranks; i++) {
        gpu *card = c->l->of[i];
        TPL_TRY(gpu_use(card, e));
        TPL_TRY(gpu_alloc(card, &c->data[i], (size_t)c->width * each, "collective data", e));
        TPL_TRY(gpu_alloc(card, &c->out[i], (size_t)c->out_width * each, "collective data", e));
        TPL_TRY(gpu_fill(c->l->queues[i], c->data[i].data, 0, c->data[i].bytes, e));
        TPL_TRY(gpu_queue_wait(c->l->queues[i], e));
        c->parts[i] = (gpu_comm_part){c->l->queues[i], c->data[i].data, c->out[i].data};
    }
    TPL_TRY(enqueue_all(c, 1, e)); /* the library sets itself up */
    TPL_TRY(wait_all(c, e));
    return record(c, e);
}

static void release(void *self)
{
    card_comm *c = self;
    gpu_graph_destroy(c->graph);
    c->graph = NULL;
    for (int i = 0; i < c->l->ranks; i++) {
        gpu_free(c->l->of[i], &c->data[i]);
        gpu_free(c->l->of[i], &c->out[i]);
    }
}

static tpl_code run(void *self, tpl_err *e)
{
    card_comm *c = self;
    TPL_TRY(gpu_graph_launch(c->graph, c->l->queues[0], e));
    return wait_all(c, e);
}

/* ---- verify ---- */

static float value_of(int rank, int64_t i)
{
    return (float)((rank + 1) * (int)(i % 7)); /* sums over eight ranks stay below 256, which bf16 holds exactly */
}

static float exact(float v, tpl_dtype t)
{
    return t == DT_F32 ? v : bf16_to_f32(bf16_from_f32(v));
}

static float expected_at(const card_comm *c, int rank, int64_t i)
{
    float sum = 0;
    if (c->op == COMM_ALL_GATHER)
        return value_of((int)(i / c->width), i % c->width);
    int64_t from = c->op == COMM_REDUCE_SCATTER ? rank * c->out_width + i : i;
    for (int r = 0; r < c->l->ranks; r++)
        sum += value_of(r, from);
    return exact(sum, c->t);
}

static tpl_code fill_rank(card_comm *c, int rank, void *host, tpl_err *e)
{
    for (int64_t i = 0; i < c->width; i++) {
        if (c->t == DT_F32)
            ((float *)host)[i] = value_of(rank, i);
        else
            ((bf16 *)host)[i] = bf16_from_f32(value_of(rank, i));
    }
    TPL_TRY(gpu_copy_now(c->l->queues[rank], c->data[rank].data, host, c->data[rank].bytes, e));
    TPL_TRY(gpu_fill(c->l->queues[rank], c->out[rank].data, 0xff, c->out[rank].bytes, e));
    return gpu_queue_wait(c->l->queues[rank], e);
}

static tpl_code look_at_rank(card_comm *c, int rank, void *host, int64_t *n_wrong, tpl_err *e)
{
    const dev_buf *b = c->out_width ? &c->out[rank] : &c->data[rank];
    int64_t n = c->out_width ? c->out_width : c->width;
    TPL_TRY(gpu_copy_now(c->l->queues[rank], host, b->data, b->bytes, e));
    for (int64_t i = 0; i < n; i++) {
        float got = c->t == DT_F32 ? ((float *)host)[i] : bf16_to_f32(((bf16 *)host)[i]);
        *n_wrong += got != expected_at(c, rank, i);
    }
    TPL_TRY(gpu_fill(c->l->queues[rank], c->data[rank].data, 0, c->data[rank].bytes, e));
    return gpu_queue_wait(c->l->queues[rank], e);
}

static tpl_code verify(void *self, int64_t *n_wrong, tpl_err *e)
{
    card_comm *c = self;
    void *host = tpl_malloc(dtype_bytes(c->t) * (size_t)(c->out_width > c->width ? c->out_width : c->width));
    tpl_code rc = TPL_OK;
    *n_wrong = 0;
    for (int r = 0; r < c->l->ranks && rc == TPL_OK; r++)
        rc = fill_rank(c, r, host, e);
    if (rc == TPL_OK)
        rc = enqueue_all(c, 1, e);
    if (rc == TPL_OK)
        rc = wait_all(c, e);
    for (int r = 0; r < c->l->ranks && rc == TPL_OK; r++)
        rc = look_at_rank(c, r, host, n_wrong, e);
    free(host);
    return rc;
}

bench_target card_comm_bench(card_comm *c)
{
    return (bench_target){
        .self = c, .prepare = prepare, .release = release, .verify = verify, .run = run, .units = c->runs};
}
