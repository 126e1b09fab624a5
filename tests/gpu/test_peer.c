/* Collectives through peer memory: ranks that share a card, and, where there are two cards or more, a card each. Every
 * operation, type and layout, eager and recorded, against sums made here; a rank that never comes. */
#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/arena.h"
#include "device/gpu_peer.h"

enum { MAX_RANKS = GPU_PEER_MAX_RANKS, GUARD = 64 };

typedef struct {
    int n, size, n_cards;
    gpu *cards[MAX_RANKS], *of[MAX_RANKS];
    gpu_peer *peer;
    gpu_comm_part parts[MAX_RANKS];
    dev_buf data[MAX_RANKS], out[MAX_RANKS];
} side;

static void must(tpl_code rc, const tpl_err *e, const char *what)
{
    cr_assert(rc == TPL_OK, "%s: %s: %s", what, e->where, e->what);
}

#define MUST(call)                                                                                                     \
    do {                                                                                                               \
        tpl_err e_ = {0}, *e = &e_;                                                                                    \
        must((call), e, #call);                                                                                        \
    } while (0)

static void open_side(side *s, int n, int size, int n_cards, size_t bytes)
{
    *s = (side){.n = n, .size = size, .n_cards = n_cards};
    for (int i = 0; i < n_cards; i++)
        MUST(gpu_open(i, &s->cards[i], e));
    for (int i = 0; i < n; i++)
        s->of[i] = s->cards[i % n_cards];
    MUST(gpu_peer_create(s->of, 0, n, n, size, NULL, &s->peer, e));
    for (int i = 0; i < n; i++) {
        MUST(gpu_use(s->of[i], e));
        MUST(gpu_queue_create(s->of[i], &s->parts[i].queue, e));
        MUST(gpu_alloc(s->of[i], &s->data[i], bytes * (size_t)size + GUARD, "data", e));
        MUST(gpu_alloc(s->of[i], &s->out[i], bytes * (size_t)size + GUARD, "out", e));
        s->parts[i].data = s->data[i].data;
        s->parts[i].out = s->out[i].data;
    }
}

static void close_side(side *s)
{
    for (int i = 0; i < s->n; i++) {
        gpu_queue_destroy(s->parts[i].queue);
        gpu_free(s->of[i], &s->data[i]);
        gpu_free(s->of[i], &s->out[i]);
    }
    gpu_peer_destroy(s->peer);
    for (int i = 0; i < s->n_cards; i++)
        gpu_close(s->cards[i]);
}

static void wait_all(side *s)
{
    for (int i = 0; i < s->n; i++)
        MUST(gpu_queue_wait(s->parts[i].queue, e));
}

/* ---- values: hostile ones among them, whose sums depend on the order of adding ---- */

static float value_at(int rank, int64_t i, int round)
{
    uint32_t h = (uint32_t)(rank * 7919 + i * 104729 + round * 15485863);
    h ^= h >> 13;
    h *= 0x5bd1e995u;
    h ^= h >> 15;
    if (h % 97 == 0)
        return NAN;
    if (h % 89 == 0)
        return -0.0f;
    if (h % 83 == 0)
        return INFINITY;
    return ldexpf((float)(h % 4001) - 2000, (int)(h >> 12) % 12 - 6);
}

static float as_type(tpl_dtype t, float v)
{
    return t == DT_F32 ? v : bf16_to_f32(bf16_from_f32(v));
}

static void put(tpl_dtype t, void *to, int64_t i, float v)
{
    if (t == DT_F32)
        ((float *)to)[i] = v;
    else
        ((bf16 *)to)[i] = isnan(v) ? (bf16)0xffff : bf16_from_f32(v); /* two such fill a word with ones */
}

static float get(tpl_dtype t, const void *from, int64_t i)
{
    return t == DT_F32 ? ((const float *)from)[i] : bf16_to_f32(((const bf16 *)from)[i]);
}

static bool same(float a, float b)
{
    return (isnan(a) && isnan(b)) || a == b;
}

typedef struct {
    comm_op op;
    tpl_dtype t;
    int64_t rows, width;
} shape;

static int64_t out_width(const shape *c, int size)
{
    return c->op == COMM_ALL_GATHER ? c->width * size : c->op == COMM_REDUCE_SCATTER ? c->width / size : c->width;
}

static float expected_at(const shape *c, int rank, int size, int64_t row, int64_t col, int round)
{
    int first = rank / size * size;
    if (c->op == COMM_ALL_GATHER)
        return as_type(c->t, value_at(first + (int)(col / c->width), row * c->width + col % c->width, round));
    int64_t from = row * c->width + (c->op == COMM_REDUCE_SCATTER ? (rank - first) * (c->width / size) + col : col);
    float sum = as_type(c->t, value_at(first, from, round));
    for (int r = 1; r < size && c->op != COMM_BROADCAST; r++)
        sum += as_type(c->t, value_at(first + r, from, round));
    return as_type(c->t, sum);
}

static void fill(side *s, const shape *c, int round)
{
    size_t n = (size_t)(c->rows * c->width), bytes = n * dtype_bytes(c->t);
    void *host = tpl_malloc(bytes);
    for (int r = 0; r < s->n; r++) {
        for (int64_t i = 0; i < (int64_t)n; i++)
            put(c->t, host, i, value_at(r, i, round));
        MUST(gpu_copy_now(s->parts[r].queue, s->data[r].data, host, bytes, e));
        MUST(gpu_fill(s->parts[r].queue, s->out[r].data, 0xcd, s->out[r].bytes, e));
        MUST(gpu_queue_wait(s->parts[r].queue, e));
    }
    free(host);
}

static void look(side *s, const shape *c, int round, const char *how)
{
    int64_t width = out_width(c, s->size), n = c->rows * width;
    size_t bytes = (size_t)n * dtype_bytes(c->t);
    char *host = tpl_malloc(bytes + GUARD);
    bool in_place = c->op == COMM_ALL_REDUCE || c->op == COMM_BROADCAST;
    MUST(gpu_peer_check(s->peer, e));
    for (int r = 0; r < s->n; r++) {
        MUST(gpu_copy_now(s->parts[r].queue, host, in_place ? s->data[r].data : s->out[r].data,
                          bytes + (in_place ? 0 : GUARD), e));
        for (int64_t i = 0; i < n; i++) {
            float got = get(c->t, host, i), want = expected_at(c, r, s->size, i / width, i % width, round);
            cr_assert(same(got, want),
                      "%s of %d, %s, %s, %lld x %lld, rank %d, round %d: element %lld is %g, expected %g",
                      comm_op_name(c->op), s->size, dtype_name(c->t), how, (long long)c->rows, (long long)c->width, r,
                      round, (long long)i, (double)got, (double)want);
        }
        for (int i = 0; i < GUARD && !in_place; i++)
            cr_assert((unsigned char)host[bytes + (size_t)i] == 0xcd, "%s wrote past its end", comm_op_name(c->op));
    }
    free(host);
}

static void run_eager(side *s, const shape *c, int rounds)
{
    for (int k = 0; k < rounds; k++) {
        fill(s, c, k);
        MUST(gpu_peer_run(s->peer, c->op, c->t, c->rows, c->width, s->parts, e));
        wait_all(s);
        look(s, c, k, "eager");
    }
}

/* A graph a rank, of an odd number of exchanges, so that replays begin in either slot; the last one's result stays. */
static void run_recorded(side *s, const shape *c, int rounds)
{
    gpu_graph *graphs[MAX_RANKS];
    gpu_event *ready, *done[MAX_RANKS];
    MUST(gpu_use(s->of[0], e));
    MUST(gpu_event_create(s->of[0], false, &ready, e));
    for (int r = 1; r < s->n; r++)
        MUST(gpu_event_create(s->of[r], false, &done[r], e));
    MUST(gpu_use(s->of[0], e));
    MUST(gpu_record_begin(s->parts[0].queue, e));
    MUST(gpu_event_record(ready, s->parts[0].queue, e));
    for (int r = 1; r < s->n; r++)
        MUST(gpu_event_join(ready, s->parts[r].queue, e));
    for (int k = 0; k < (c->op == COMM_ALL_REDUCE ? 1 : 3); k++)
        MUST(gpu_peer_run(s->peer, c->op, c->t, c->rows, c->width, s->parts, e));
    for (int r = 1; r < s->n; r++) {
        MUST(gpu_event_record(done[r], s->parts[r].queue, e));
        MUST(gpu_event_join(done[r], s->parts[0].queue, e));
    }
    MUST(gpu_record_end(s->parts[0].queue, &graphs[0], e));
    for (int k = 0; k < rounds; k++) {
        fill(s, c, 100 + k);
        MUST(gpu_graph_launch(graphs[0], s->parts[0].queue, e));
        wait_all(s);
        look(s, c, 100 + k, "recorded");
    }
    gpu_graph_destroy(graphs[0]);
    gpu_event_destroy(ready);
    for (int r = 1; r < s->n; r++)
        gpu_event_destroy(done[r]);
}

static void run_shapes(int n, int size, int n_cards)
{
    static const shape shapes[] = {
        {COMM_ALL_REDUCE, DT_BF16, 1, 8},
        {COMM_ALL_REDUCE, DT_BF16, 1, 7168},
        {COMM_ALL_REDUCE, DT_BF16, 3, 7168},
        {COMM_ALL_REDUCE, DT_F32, 5, 1000},
        {COMM_ALL_REDUCE, DT_BF16, 32, 7168},
        {COMM_ALL_GATHER, DT_BF16, 1, 192},
        {COMM_ALL_GATHER, DT_BF16, 5, 1536},
        {COMM_ALL_GATHER, DT_F32, 3, 4},
        {COMM_BROADCAST, DT_BF16, 1, 4096},
        {COMM_BROADCAST, DT_F32, 6, 2048},
        {COMM_REDUCE_SCATTER, DT_BF16, 1, 16384},
        {COMM_REDUCE_SCATTER, DT_BF16, 7, 1024},
        {COMM_REDUCE_SCATTER, DT_F32, 4, 64},
        {COMM_ALL_REDUCE, DT_BF16, 300, 7168}, /* in several exchanges on one card, as the following */
        {COMM_ALL_GATHER, DT_F32, 5, 64640},
        {COMM_REDUCE_SCATTER, DT_BF16, 150, 16384},
    };
    side s;
    open_side(&s, n, size, n_cards, 5 << 20);
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        cr_assert(gpu_peer_takes(s.peer, shapes[i].op, shapes[i].t, shapes[i].rows, shapes[i].width), "shape %zu", i);
        bool large = shapes[i].rows * shapes[i].width > 1 << 20; /* slow to compare */
        for (int pieces = large ? 4 : 1; pieces <= 4; pieces *= 2) {
            gpu_peer_set_launch(s.peer, pieces, pieces == 2 ? 512 : 128);
            run_eager(&s, &shapes[i], large ? 1 : 3);
        }
        gpu_peer_set_launch(s.peer, 0, 0);
        run_recorded(&s, &shapes[i], large ? 1 : 5);
    }
    close_side(&s);
}

static void need_cards(int n)
{
    if (gpu_count() < n)
        cr_skip_test("%d CUDA cards are needed, %d are here", n, gpu_count());
}

Test(peer, ranks_that_share_a_card, .timeout = 200)
{
    need_cards(1);
    run_shapes(2, 2, 1);
    run_shapes(4, 4, 1);
    run_shapes(4, 2, 1); /* two groups of two */
}

Test(peer, a_card_a_rank, .timeout = 200)
{
    need_cards(2);
    run_shapes(2, 2, 2);
}

Test(peer, mappings_prove_themselves, .timeout = 60)
{
    need_cards(1);
    side s;
    open_side(&s, 2, 2, gpu_count() > 1 ? 2 : 1, 1024);
    MUST(gpu_peer_prove(s.peer, NULL, 2, e));
    close_side(&s);
}

/* Only one of two queues runs the exchange: it must end by itself and say who was missing. */
Test(peer, a_rank_that_never_comes_is_named, .timeout = 60)
{
    need_cards(1);
    side s;
    open_side(&s, 2, 2, 1, 1 << 20);
    gpu_event *never;
    gpu_queue *blocked = s.parts[1].queue;
    MUST(gpu_event_create(s.of[0], false, &never, e));
    gpu_peer_set_patience(s.peer, 300);
    s.parts[1].queue = s.parts[0].queue; /* rank 1's launch waits behind rank 0's, which waits for it */
    MUST(gpu_peer_run(s.peer, COMM_ALL_REDUCE, DT_BF16, 64, 7168, s.parts, e));
    MUST(gpu_queue_wait(s.parts[0].queue, e));
    tpl_err e = {0};
    cr_expect(gpu_peer_check(s.peer, &e) == TPL_E_DEVICE, "a silent rank went unnoticed");
    cr_expect(strstr(e.what, "rank 1 did not answer rank 0") != NULL, "%s", e.what);
    s.parts[1].queue = blocked;
    gpu_event_destroy(never);
    close_side(&s);
}

Test(peer, refuses_what_it_cannot_take, .timeout = 60)
{
    need_cards(1);
    side s;
    open_side(&s, 2, 2, 1, 1024);
    cr_expect(!gpu_peer_takes(s.peer, COMM_ALL_REDUCE, DT_BF16, 1, 7), "14 bytes");
    cr_expect(!gpu_peer_takes(s.peer, COMM_ALL_GATHER, DT_BF16, 8, 7), "rows of 14 bytes");
    cr_expect(!gpu_peer_takes(s.peer, COMM_REDUCE_SCATTER, DT_BF16, 1, 24), "parts of 24 bytes");
    cr_expect(!gpu_peer_takes(s.peer, COMM_BROADCAST, DT_BF16, 1, 4096 * 7168), "a row of 58 MB");
    cr_expect(gpu_peer_takes(s.peer, COMM_ALL_GATHER, DT_BF16, 4096, 7168), "58 MB in several exchanges");
    cr_expect(gpu_peer_takes(s.peer, COMM_ALL_REDUCE, DT_BF16, 4096, 7168), "58 MB in several exchanges");
    cr_expect(gpu_peer_takes(s.peer, COMM_ALL_REDUCE, DT_BF16, 8, 7), "112 bytes in 8 rows");
    close_side(&s);
}
