/* fuzzy.c - the lists of a draft whose layers' attention is spread over ranks (EasySpec, arXiv 2502.02493, Algorithm
 * 2). Fuzzy: the attention of a group's layers all reads the group's input h_1, each layer with its own norm; then, in
 * order, h' = h_i + attn_i(h_1), h_i+1 = h' + mlp_i(h'). Placement is this project's choice: rank 0 holds the residual
 * stream and runs everything but the other ranks' attention; a group costs a broadcast of h_1 and a gather of the
 * outputs. The same pieces as in any plan, seeing one rank that computes a layer whole, make up the lists; who takes
 * part is said by `idle`. */
#include <assert.h>

#include "engine/plans/build.h"

typedef struct {
    builder *b;
    int tp, rank;
} spread;

/* A layer's place: its group, the ranks that the group takes, its owner among them and its number on the owner. */
typedef struct {
    int first, size, ranks, per_rank, owner, slot;
} place;

static place place_in(const spread *s, int first, int size, int layer)
{
    int ranks = size < s->tp ? size : s->tp, per_rank = (size + ranks - 1) / ranks, i = layer - first;
    bool blocks = s->b->o.fuzzy.blocks;
    return (place){first, size, ranks, per_rank, blocks ? i / per_rank : i % ranks, blocks ? i % per_rank : i / ranks};
}

static place place_of(const spread *s, int layer)
{
    const layer_groups *g = &s->b->o.fuzzy.groups;
    int first = 0, i = 0;
    while (layer >= first + g->size[i])
        first += g->size[i++];
    return place_in(s, first, g->size[i], layer);
}

static void only(const spread *s, int rank)
{
    s->b->idle = s->rank != rank;
}

static void ranks_below(const spread *s, int n)
{
    s->b->idle = s->rank >= n;
}

static void feed_forward(const spread *s)
{
    if (!s->b->o.attention_only)
        plan_mlp(s->b);
}

static int residual(const spread *s)
{
    return need_buf(s->b, "x", s->b->p->cfg.dim);
}

/* ---- the fuzzy list ---- */

/* Attention of the builder's layer, or the whole layer, without its input: into `to`. */
static void layer_into(const spread *s, plan_ref to)
{
    builder *b = s->b;
    b->attn_to = to;
    plan_attention(b);
    b->attn_to = no_ref;
    if (!s->b->o.fuzzy.whole_layers || s->b->o.attention_only)
        return;
    plan_ref mid = whole(b, need_buf(b, "fuzzy_mid", b->p->cfg.dim));
    add_copy(b, "fuzzy.input", whole(b, residual(s)), mid);
    add_binary(b, OP_ADD, "attn.add", to, no_ref, mid);
    b->mlp_from = mid;
    b->mlp_to = to;
    plan_mlp(b);
    b->mlp_from = b->mlp_to = no_ref;
}

static void fuzzy_group(const spread *s, int first, int size)
{
    builder *b = s->b;
    int dim = b->p->cfg.dim, most = (groups_widest(&s->b->o.fuzzy.groups) + s->tp - 1) / s->tp;
    place p = place_in(s, first, size, first);
    int own = need_buf(b, "fuzzy_own", most * dim), all = need_buf(b, "fuzzy_all", most * s->tp * dim);
    int into = p.ranks > 1 ? own : all;
    comm_group ranks = {0, p.ranks};
    b->layer = first;
    ranks_below(s, p.ranks);
    add_comm(b, "fuzzy.broadcast", COMM_BROADCAST, ranks, whole(b, residual(s)), no_ref);
    for (b->layer = first; b->layer < first + size; b->layer++) {
        p = place_in(s, first, size, b->layer);
        only(s, p.owner);
        layer_into(s, columns(into, p.slot * dim, dim));
    }
    b->layer = first;
    ranks_below(s, p.ranks);
    add_comm(b, "fuzzy.all_gather", COMM_ALL_GATHER, ranks, columns(own, 0, p.per_rank * dim),
             columns(all, 0, p.ranks * p.per_rank * dim));
    only(s, 0);
    for (b->layer = first; b->layer < first + size; b->layer++) {
        p = place_in(s, first, size, b->layer);
        add_binary(b, OP_ADD, "attn.add", columns(all, (p.owner * p.per_rank + p.slot) * dim, dim), no_ref,
                   whole(b, residual(s)));
        if (!s->b->o.fuzzy.whole_layers)
            feed_forward(s);
    }
}

static void fuzzy_layers(const spread *s)
{
    const layer_groups *g = &s->b->o.fuzzy.groups;
    for (int i = 0, first = 0; i < g->n; first += g->size[i++]) {
        if (g->size[i] > 1) {
            fuzzy_group(s, first, g->size[i]);
            continue;
        }
        s->b->layer = first;
        only(s, 0);
        plan_attention(s->b);
        feed_forward(s);
    }
}

/* ---- exact lists over the same owners ---- */

/* Rank 0 sends the residual stream to a layer's owner, which sends the attention's output back. */
static void exact_by_visits(const spread *s)
{
    builder *b = s->b;
    int dim = b->p->cfg.dim;
    for (b->layer = 0; b->layer < b->p->cfg.n_layers; b->layer++) {
        int owner = place_of(s, b->layer).owner;
        comm_group ranks = {0, owner + 1};
        if (owner == 0) {
            only(s, 0);
            plan_attention(b);
        } else {
            int y = need_buf(b, "y", dim), all = need_buf(b, "visit_all", s->tp * dim);
            ranks_below(s, owner + 1);
            add_comm(b, "visit.broadcast", COMM_BROADCAST, ranks, whole(b, residual(s)), no_ref);
            only(s, owner);
            b->attn_to = whole(b, y);
            plan_attention(b);
            b->attn_to = no_ref;
            ranks_below(s, owner + 1);
            add_comm(b, "visit.all_gather", COMM_ALL_GATHER, ranks, whole(b, y), columns(all, 0, (owner + 1) * dim));
            only(s, 0);
            add_binary(b, OP_ADD, "attn.add", columns(all, owner * dim, dim), no_ref, whole(b, residual(s)));
        }
        feed_forward(s);
    }
}

/* New cache rows that rank 0 computed for a layer of another rank. */
typedef struct {
    int layer, owner, stream, a_off, b_off;
    plan_ref a, pe; /* columns of the buffer that is sent */
} shipment;

enum { MAX_SHIPMENTS = GROUPS_MAX * KV_N_STREAMS };

typedef struct {
    shipment at[MAX_SHIPMENTS];
    int n, width, buf;
} cargo;

static plan_ref load(const spread *s, cargo *c, plan_ref from)
{
    if (from.buf < 0)
        return no_ref;
    plan_ref to = columns(c->buf, c->width, from.cols);
    add_copy(s->b, "exact.pack", from, to);
    c->width += from.cols;
    return to;
}

/* Copies what the steps from number `start` on append to the cache. */
static void load_appended(const spread *s, cargo *c, int start)
{
    plan_list *l = &s->b->p->list[s->b->phase];
    for (int i = start, end = l->n; i < end; i++) {
        plan_step step = l->steps[i];
        if (step.is_comm || step.call.kind != OP_KV_APPEND)
            continue;
        assert(c->n < MAX_SHIPMENTS);
        shipment *to = &c->at[c->n++];
        *to = (shipment){s->b->layer,
                         place_of(s, s->b->layer).owner,
                         step.stream,
                         step.call.kv_append.a_off,
                         step.call.kv_append.b_off,
                         load(s, c, step.in[0]),
                         load(s, c, step.in[1])};
    }
}

/* Values that all layers of other ranks append for one row. */
static int cargo_width(const spread *s)
{
    const plan *p = s->b->p;
    int width = 0;
    for (int i = 0; i < p->cfg.n_layers; i++)
        for (int k = 0; k < KV_N_STREAMS; k++)
            width += place_of(s, i).owner != 0 && p->streams[k].used ? p->streams[k].width : 0;
    return width;
}

static void ship(const spread *s, const cargo *c)
{
    builder *b = s->b;
    b->layer = -1;
    ranks_below(s, s->tp);
    add_comm(b, "exact.broadcast", COMM_BROADCAST, (comm_group){0, s->tp}, columns(c->buf, 0, c->width), no_ref);
    for (int i = 0; i < c->n; i++) {
        const shipment *m = &c->at[i];
        b->layer = m->layer;
        only(s, m->owner);
        add_kv_append(b, "exact.kv_append", m->a, m->pe, m->stream, m->a_off, m->b_off);
    }
}

static void exact_on_rank_0(const spread *s)
{
    builder *b = s->b;
    cargo c = {0};
    int width = cargo_width(s);
    c.buf = width ? need_buf(b, "exact_cargo", width) : -1;
    for (b->layer = 0; b->layer < b->p->cfg.n_layers; b->layer++) {
        int start = b->p->list[b->phase].n;
        only(s, 0);
        plan_attention(b);
        if (place_of(s, b->layer).owner != 0)
            load_appended(s, &c, start);
        feed_forward(s);
    }
    if (c.n > 0)
        ship(s, &c);
}

void plan_fill_fuzzy(builder *b, int tp, int rank)
{
    spread s = {b, tp, rank};
    b->layer = -1;
    only(&s, 0);
    plan_embed(b);
    if (b->phase == PHASE_FUZZY)
        fuzzy_layers(&s);
    else if (b->o.fuzzy.visit)
        exact_by_visits(&s);
    else
        exact_on_rank_0(&s);
    b->layer = -1;
    only(&s, 0);
    plan_logits(b);
    b->idle = false;
}
