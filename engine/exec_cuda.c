/* exec_cuda.c - the ranks of a process on cards: the caller's thread walks all lists step by step and enqueues, each
 * rank on a queue of its own. Collectives of ranks that share a card are one launch that their queues meet at; those of
 * ranks with a card each are NCCL's. A decode batch whose shape comes again is recorded and replayed: shapes fix the
 * launches, contents lie in one block of each card's memory that is copied before each pass. */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "device/gpu_trace.h"
#include "engine/card_marks.h"
#include "engine/exec_cuda.h"
#include "engine/session_impl.h"
#include "kernels/card.h"

enum { MAX_GRAPHS = 32, CONTEXT_STEP = 1024 };

/* Where the arrays of a batch begin in the contents block, in bytes; masks are last, as only trees copy them. */
typedef struct {
    size_t token, seq, pos, row0, prefix, open, logit, temperature, pages[KV_N_STREAMS], mask, end;
} contents;

/* Where what a pass found about its wanted rows begins, in bytes: each row's best token, its likeliest, their shares. */
typedef struct {
    size_t best, top, shares, end;
} findings;

/* All that fixes a walk's launches. */
typedef struct {
    int32_t phase, n_rows, n_seqs, n_logits, mask_words, has_open, max_seq_rows, max_slots, work, top_k, timed;
    int32_t trace; /* a trace must see its graphs recorded */
} walk_shape;

typedef struct {
    walk_shape shape;
    gpu_graph *graph; /* NULL: met once, not recorded yet */
    uint64_t used;    /* pass that used it last */
} walk_record;

typedef struct {
    contents at;
    dev_buf *card_blocks; /* [n_places] */
    dev_buf *turned; /* [n_ranks] where the library's layout of a collective differs from ours; empty where ranks share
                        a card */
    dev_buf host_block, host_logits, found, host_found, find_space;
    findings in_found;
    gpu_queue **queues; /* [n_ranks] */
    gpu_event **done;   /* [n_ranks] */
    gpu_event *ready;
    cuda_clock *clock; /* NULL: blocks are not timed */
    batch_view *batches; /* [n_ranks] the batch as each rank's card sees it */
    int32_t *next; /* [n_ranks] the step that a rank's walk comes to: one launch may do several */
    walk_record records[MAX_GRAPHS];
    int n_records;
    uint64_t n_passes;
    bool logits_here;
} cuda_session;

static cuda_team *team_of(const session *s)
{
    return *team_exec_state(s->t);
}

static cuda_place *place_of(const session *s, int rank)
{
    return cuda_place_of(team_of(s), rank);
}

static cuda_session *state_of(const session *s)
{
    return s->exec_state;
}

/* ---- opening ---- */

static size_t cut(size_t *used, size_t bytes)
{
    size_t at = *used;
    *used += (bytes + 255) / 256 * 256;
    return at;
}

static contents lay_contents(const session *s)
{
    contents c;
    size_t used = 0, rows = (size_t)s->o.max_rows, seqs = (size_t)s->o.max_seqs, i32 = sizeof(int32_t);
    c.token = cut(&used, rows * i32);
    c.seq = cut(&used, rows * i32);
    c.pos = cut(&used, rows * i32);
    c.row0 = cut(&used, (seqs + 1) * i32);
    c.prefix = cut(&used, seqs * i32);
    c.open = cut(&used, seqs * i32);
    c.logit = cut(&used, (size_t)s->o.max_logits * i32);
    c.temperature = cut(&used, sizeof(float));
    for (int k = 0; k < KV_N_STREAMS; k++)
        c.pages[k] = cut(&used, seqs * (size_t)s->pools[k].max_pages * i32);
    c.mask = cut(&used, rows * ((rows + (size_t)s->o.max_tree + 63) / 64) * sizeof(uint64_t));
    c.end = used;
    return c;
}

/* Where a rank's card has the arrays of the batch. */
static const char *block_of(const session *s, int rank)
{
    return state_of(s)->card_blocks[team_of(s)->n_places > 1 ? rank : 0].data;
}

static tpl_code open_buffers(session *s, int rank, tpl_err *e)
{
    cuda_place *c = place_of(s, rank);
    session_rank *r = &s->ranks[rank];
    const plan *p = team_plan(s->t, rank);
    tpl_dtype act = team_opts(s->t)->compute;
    r->bufs = tpl_calloc((size_t)p->n_bufs, sizeof *r->bufs);
    r->buf_mem = tpl_calloc((size_t)p->n_bufs, sizeof *r->buf_mem);
    for (int b = 0; b < p->n_bufs; b++) {
        int64_t rows = p->bufs[b].logit_rows ? s->o.max_logits : s->o.max_rows;
        size_t bytes = (size_t)(rows * p->bufs[b].cols) * dtype_bytes(p->bufs[b].f32 ? DT_F32 : act);
        TPL_TRY(gpu_alloc(c->card, &r->buf_mem[b], bytes, "activations", e));
        TPL_TRY(gpu_fill(c->queue, r->buf_mem[b].data, 0xff, bytes, e));
        r->bufs[b] = r->buf_mem[b].data;
    }
    return TPL_OK;
}

static tpl_code open_caches(session *s, int rank, tpl_err *e)
{
    cuda_place *c = place_of(s, rank);
    session_rank *r = &s->ranks[rank];
    const plan *p = team_plan(s->t, rank);
    const char *block = block_of(s, rank);
    for (int k = 0; k < KV_N_STREAMS; k++) {
        int64_t layer = exec_layer_bytes(s, rank, k);
        TPL_TRY(gpu_alloc(c->card, &r->kv[k], (size_t)(layer * p->cfg.n_layers), "KV cache", e));
        TPL_TRY(gpu_fill(c->queue, r->kv[k].data, team_opts(s->t)->isolate ? 0xff : 0, r->kv[k].bytes, e));
        r->layer_bytes[k] = layer;
        r->views[k] = (kv_view){.pages = r->kv[k].data,
                                .dtype = team_opts(s->t)->kv,
                                .width = p->streams[k].width,
                                .page_tok = PAGE_TOK,
                                .page_table = (const int32_t *)(const void *)(block + state_of(s)->at.pages[k]),
                                .max_pages = s->pools[k].max_pages,
                                .mod = p->streams[k].used ? p->streams[k].mod : 1,
                                .rem = p->streams[k].rem};
    }
    return TPL_OK;
}

/* What any gather or reduce-scatter of several rows turns. */
static size_t turned_bytes(const session *s, int rank)
{
    const plan *p = team_plan(s->t, rank);
    int64_t most = 0;
    for (int phase = 0; phase < N_PHASES; phase++)
        for (int i = 0; i < p->list[phase].n; i++) {
            const plan_step *step = &p->list[phase].steps[i];
            if (!step->is_comm || (step->comm != COMM_ALL_GATHER && step->comm != COMM_REDUCE_SCATTER))
                continue;
            int64_t rows = p->bufs[step->in[0].buf].logit_rows ? s->o.max_logits : s->o.max_rows;
            int64_t cols = step->comm == COMM_ALL_GATHER ? step->out.cols : step->in[0].cols;
            most = rows * cols > most ? rows * cols : most;
        }
    return (size_t)most * sizeof(float);
}

static tpl_code open_rank(session *s, int rank, tpl_err *e)
{
    cuda_place *c = place_of(s, rank);
    cuda_session *x = state_of(s);
    session_rank *r = &s->ranks[rank];
    size_t scratch;
    TPL_TRY(gpu_use(c->card, e));
    TPL_TRY(open_buffers(s, rank, e));
    TPL_TRY(open_caches(s, rank, e));
    r->env = (bind_env){.p = team_plan(s->t, rank),
                        .act = team_opts(s->t)->compute,
                        .weights = team_get_rank(s->t, rank)->weights,
                        .bufs = r->bufs,
                        .batch = &x->batches[rank],
                        .streams = r->views,
                        .layer_bytes = r->layer_bytes,
                        .rope_cos = c->rope_cos.data,
                        .rope_sin = c->rope_sin.data,
                        .alpha = c->alpha_rows,
                        .logit_index = (const int32_t *)(const void *)(block_of(s, rank) + x->at.logit)};
    TPL_TRY(exec_scratch_bytes(s, rank, &scratch, e));
    TPL_TRY(gpu_alloc(c->card, &r->scratch, scratch, "kernel scratch", e));
    if (team_of(s)->comm)
        TPL_TRY(gpu_alloc(c->card, &x->turned[rank], turned_bytes(s, rank), "collectives", e));
    TPL_TRY(gpu_queue_create(c->card, &x->queues[rank], e));
    TPL_TRY(gpu_event_create(c->card, false, &x->done[rank], e));
    r->ctx = (kernel_ctx){.compute = team_opts(s->t)->compute,
                          .scratch = r->scratch.data,
                          .scratch_bytes = scratch,
                          .queue = x->queues[rank]};
    return TPL_OK;
}

static tpl_code open_findings(session *s, tpl_err *e)
{
    cuda_session *x = state_of(s);
    gpu *card = team_of(s)->places[0].card;
    size_t rows = (size_t)s->o.max_logits, most = (size_t)s->o.max_top, used = 0;
    x->in_found.best = cut(&used, rows * sizeof(int32_t));
    x->in_found.top = cut(&used, rows * most * sizeof(int32_t));
    x->in_found.shares = cut(&used, rows * most * sizeof(float));
    x->in_found.end = used;
    TPL_TRY(gpu_alloc(card, &x->found, used, "best tokens", e));
    TPL_TRY(gpu_alloc_pinned(card, &x->host_found, used, "best tokens", e));
    return gpu_alloc(card, &x->find_space, rows * (most ? CARD_TOP_SPACE : CARD_BEST_SPACE) * sizeof(float),
                     "space to find best tokens", e);
}

static tpl_code open_session(session *s, tpl_err *e)
{
    cuda_team *c = team_of(s);
    cuda_session *x = tpl_calloc(1, sizeof *x);
    const plan *p = team_plan(s->t, 0);
    size_t n = (size_t)s->n_ranks;
    s->o.max_top = s->o.max_top < CARD_TOP_MOST ? s->o.max_top : CARD_TOP_MOST;
    s->exec_state = x;
    x->at = lay_contents(s);
    x->card_blocks = tpl_calloc((size_t)c->n_places, sizeof *x->card_blocks);
    x->turned = tpl_calloc(n, sizeof *x->turned);
    x->queues = tpl_calloc(n, sizeof(gpu_queue *));
    x->done = tpl_calloc(n, sizeof(gpu_event *));
    x->batches = tpl_calloc(n, sizeof *x->batches);
    x->next = tpl_calloc(n, sizeof *x->next);
    for (int i = 0; i < c->n_places; i++)
        TPL_TRY(gpu_alloc(c->places[i].card, &x->card_blocks[i], x->at.end, "batch contents", e));
    TPL_TRY(gpu_alloc_pinned(c->places[0].card, &x->host_block, x->at.end, "batch contents", e));
    TPL_TRY(gpu_alloc_pinned(c->places[0].card, &x->host_logits,
                             (size_t)s->o.max_logits * (size_t)p->cfg.vocab * sizeof(float), "logits", e));
    TPL_TRY(open_findings(s, e));
    for (int i = 0; i < s->n_ranks; i++)
        TPL_TRY(open_rank(s, i, e));
    for (int i = 0; i < s->n_ranks; i++) /* cards fill their memory at once */
        TPL_TRY(gpu_queue_wait(place_of(s, i)->queue, e));
    TPL_TRY(gpu_use(c->places[0].card, e));
    return gpu_event_create(c->places[0].card, false, &x->ready, e);
}

static void close_rank(session *s, int rank)
{
    gpu *card = place_of(s, rank)->card;
    cuda_session *x = state_of(s);
    session_rank *r = &s->ranks[rank];
    for (int b = 0; r->buf_mem && b < team_plan(s->t, rank)->n_bufs; b++)
        gpu_free(card, &r->buf_mem[b]);
    for (int k = 0; k < KV_N_STREAMS; k++)
        gpu_free(card, &r->kv[k]);
    gpu_free(card, &r->scratch);
    gpu_free(card, &x->turned[rank]);
    free(r->bufs);
    free(r->buf_mem);
    gpu_event_destroy(x->done[rank]);
    gpu_queue_destroy(x->queues[rank]);
}

static void close_session(session *s)
{
    cuda_team *c = team_of(s);
    cuda_session *x = state_of(s);
    if (!x)
        return;
    for (int i = 0; i < x->n_records; i++)
        gpu_graph_destroy(x->records[i].graph);
    for (int i = 0; i < s->n_ranks; i++)
        close_rank(s, i);
    gpu_event_destroy(x->ready);
    for (int i = 0; i < c->n_places; i++)
        gpu_free(c->places[i].card, &x->card_blocks[i]);
    gpu_free_pinned(c->places[0].card, &x->host_block);
    gpu_free_pinned(c->places[0].card, &x->host_logits);
    gpu_free(c->places[0].card, &x->found);
    gpu_free_pinned(c->places[0].card, &x->host_found);
    gpu_free(c->places[0].card, &x->find_space);
    cuda_clock_destroy(x->clock);
    free(x->card_blocks);
    free(x->turned);
    free(x->batches);
    free(x->next);
    free(x->queues);
    free(x->done);
    free(x);
}

/* ---- contents ---- */

static void put(cuda_session *x, size_t at, const void *from, size_t bytes)
{
    if (bytes)
        memcpy((char *)x->host_block.data + at, from, bytes);
}

/* Lays the batch out in pinned memory; returns the bytes that matter. */
static size_t fill_block(session *s)
{
    cuda_session *x = state_of(s);
    const batch_view *v = &s->view;
    size_t rows = (size_t)v->n_rows, seqs = (size_t)v->n_seqs, i32 = sizeof(int32_t);
    put(x, x->at.token, v->row_token, rows * i32);
    put(x, x->at.seq, v->row_seq, rows * i32);
    put(x, x->at.pos, v->row_pos, rows * i32);
    put(x, x->at.row0, v->seq_row0, (seqs + 1) * i32);
    put(x, x->at.prefix, v->seq_prefix, seqs * i32);
    put(x, x->at.open, v->seq_open, v->seq_open ? seqs * i32 : 0);
    put(x, x->at.logit, s->logit_index, (size_t)s->n_logits * i32);
    put(x, x->at.temperature, &s->top_temperature, sizeof s->top_temperature);
    for (int k = 0; k < KV_N_STREAMS; k++)
        put(x, x->at.pages[k], s->pools[k].view, s->pools[k].n_pages ? seqs * (size_t)s->pools[k].max_pages * i32 : 0);
    size_t mask_bytes = v->row_mask ? rows * (size_t)v->mask_words * sizeof(uint64_t) : 0;
    put(x, x->at.mask, v->row_mask, mask_bytes);
    return x->at.mask + mask_bytes;
}

static batch_view batch_on_card(const session *s, int rank)
{
    const char *block = block_of(s, rank);
    const contents *at = &state_of(s)->at;
    batch_view v = s->view;
    v.row_token = (const int32_t *)(const void *)(block + at->token);
    v.row_seq = (const int32_t *)(const void *)(block + at->seq);
    v.row_pos = (const int32_t *)(const void *)(block + at->pos);
    v.seq_row0 = (const int32_t *)(const void *)(block + at->row0);
    v.seq_prefix = (const int32_t *)(const void *)(block + at->prefix);
    v.seq_open = v.seq_open ? (const int32_t *)(const void *)(block + at->open) : NULL;
    v.row_mask = v.row_mask ? (const uint64_t *)(const void *)(block + at->mask) : NULL;
    return v;
}

/* ---- the walk ---- */

/* Queue `to` goes on once queue `from` has come here. */
static tpl_code follow(cuda_session *x, int to, int from, tpl_err *e)
{
    if (to == from)
        return TPL_OK;
    TPL_TRY(gpu_event_record(x->done[from], x->queues[from], e));
    return gpu_event_join(x->done[from], x->queues[to], e);
}

/* Enqueues the batch's contents to every card; what queue 0 does from now on finds them there. */
static tpl_code send_contents(session *s, tpl_err *e)
{
    cuda_session *x = state_of(s);
    size_t bytes = fill_block(s);
    gpu_trace_mark(card_mark(s->trace_tag, 0, s->phase, CARD_MARK_CONTENTS));
    for (int i = 0; i < team_of(s)->n_places; i++) {
        TPL_TRY(gpu_copy(x->queues[i], x->card_blocks[i].data, x->host_block.data, bytes, e));
        TPL_TRY(follow(x, 0, i, e));
    }
    return TPL_OK;
}

/* One rank of a larger team, which exchanges nothing: a gather repeats its own part, a reduce-scatter keeps it. */
static tpl_code collect_alone(session *s, int rank, const plan_step *step, tpl_err *e)
{
    bind_env *env = &s->ranks[rank].env;
    mat data = ref_bind(step->in[0], env), out = ref_bind(step->out, env);
    if (step->comm != COMM_ALL_GATHER && step->comm != COMM_REDUCE_SCATTER)
        return TPL_OK;
    bool gather = step->comm == COMM_ALL_GATHER;
    int32_t size = step->group.size, share = (int32_t)data.cols / size;
    op_call call = {.kind = OP_COPY_HEADS,
                    .copy_heads = {.x = data,
                                   .out = out,
                                   .heads = gather ? size : 1,
                                   .cols = gather ? (int32_t)data.cols : share,
                                   .out_head_stride = (int32_t)data.cols}};
    return kernel_run("cuda", &s->ranks[rank].ctx, &call, e);
}

static bool has_gaps(const mat *m)
{
    return m->data && m->rows > 1 && m->stride != m->cols;
}

/* All ranks through each other's memory, if that can be: a launch a rank, which waits for the others' data itself. */
static tpl_code collect_spread(session *s, const plan_step *step, int index, bool *done, tpl_err *e)
{
    gpu_peer *peer = team_of(s)->spread;
    gpu_comm_part parts[CARD_MAX_RANKS];
    mat data = {0};
    *done = peer && step->group.size == s->n_ranks;
    for (int i = 0; i < s->n_ranks && *done; i++) {
        const plan_step *own = &team_plan(s->t, i)->list[s->phase].steps[index];
        data = ref_bind(own->in[0], &s->ranks[i].env);
        mat out = ref_bind(own->out, &s->ranks[i].env);
        parts[i] = (gpu_comm_part){state_of(s)->queues[i], data.data, out.data};
        *done = !has_gaps(&data) && !has_gaps(&out) && gpu_peer_takes(peer, step->comm, data.dtype, data.rows, data.cols);
    }
    return *done ? gpu_peer_run(peer, step->comm, data.dtype, data.rows, data.cols, parts, e) : TPL_OK;
}

/* The group whose first rank is `first`: its queues meet at one launch on the first one's. */
static tpl_code collect(session *s, int first, int index, tpl_err *e)
{
    cuda_session *x = state_of(s);
    const plan_step *step = &team_plan(s->t, first)->list[s->phase].steps[index];
    card_collective c = {.op = step->comm, .n = step->group.size};
    bool done;
    TPL_TRY(collect_spread(s, step, index, &done, e));
    if (done)
        return TPL_OK;
    for (int i = 0; i < c.n; i++) {
        const plan_step *own = &team_plan(s->t, first + i)->list[s->phase].steps[index];
        mat data = ref_bind(own->in[0], &s->ranks[first + i].env), out = ref_bind(own->out, &s->ranks[first + i].env);
        c.data[i] = data.data;
        c.out[i] = out.data;
        c.dtype = data.dtype;
        c.rows = data.rows;
        c.width = data.cols;
        c.data_stride = data.stride;
        c.out_stride = out.stride;
        TPL_TRY(follow(x, first, first + i, e));
    }
    TPL_TRY(card_collect(x->queues[first], &c, e));
    for (int i = 1; i < c.n; i++)
        TPL_TRY(follow(x, first + i, first, e));
    return TPL_OK;
}

/* All local ranks' parts of one collective through the library, turned where several rows lie otherwise there. */
static tpl_code collect_cards(session *s, int index, tpl_err *e)
{
    cuda_session *x = state_of(s);
    gpu_comm_part parts[CARD_MAX_RANKS];
    mat data[CARD_MAX_RANKS], out[CARD_MAX_RANKS];
    const plan_step *step = &team_plan(s->t, 0)->list[s->phase].steps[index];
    int64_t size = step->group.size;
    bool turned = false;
    for (int i = 0; i < s->n_ranks; i++) {
        const plan_step *own = &team_plan(s->t, i)->list[s->phase].steps[index];
        data[i] = ref_bind(own->in[0], &s->ranks[i].env);
        out[i] = ref_bind(own->out, &s->ranks[i].env);
        assert(data[i].stride == data[i].cols && out[i].stride == out[i].cols);
        parts[i] = (gpu_comm_part){x->queues[i], data[i].data, out[i].data};
        turned = data[i].rows > 1 && (step->comm == COMM_ALL_GATHER || step->comm == COMM_REDUCE_SCATTER) &&
                 !gpu_comm_goes_peer(team_of(s)->comm, step->comm, (int)size, data[i].dtype, data[i].rows, data[i].cols);
        if (!turned)
            continue;
        *(step->comm == COMM_ALL_GATHER ? &parts[i].out : &parts[i].data) = x->turned[i].data;
        TPL_TRY(gpu_use(place_of(s, i)->card, e));
        if (step->comm == COMM_REDUCE_SCATTER)
            TPL_TRY(card_turn(x->queues[i], data[i].dtype, data[i].data, x->turned[i].data, size, data[i].rows,
                              data[i].cols / size, true, e));
    }
    TPL_TRY(gpu_comm_run(team_of(s)->comm, step->comm, (int)size, data[0].dtype, data[0].rows, data[0].cols, parts, e));
    for (int i = 0; i < s->n_ranks && step->comm == COMM_ALL_GATHER && turned; i++) {
        TPL_TRY(gpu_use(place_of(s, i)->card, e));
        TPL_TRY(card_turn(x->queues[i], data[i].dtype, x->turned[i].data, out[i].data, size, data[i].rows, data[i].cols,
                          false, e));
    }
    return TPL_OK;
}

static tpl_code run_comm(session *s, int rank, const plan_step *step, int index, tpl_err *e)
{
    if (s->silent || team_opts(s->t)->ranks == RANKS_SOLO)
        return collect_alone(s, rank, step, e);
    if (team_of(s)->comm)
        return rank == 0 ? collect_cards(s, index, e) : TPL_OK;
    return rank == step->group.first ? collect(s, rank, index, e) : TPL_OK;
}

/* Before a step; where ranks meet for all of them, as a collective is enqueued for all. */
static tpl_code stamp(session *s, int rank, int index, tpl_err *e)
{
    cuda_session *x = state_of(s);
    const plan_step *step = &team_plan(s->t, rank)->list[s->phase].steps[index];
    int first = rank, n = 1;
    if (!x->clock)
        return TPL_OK;
    if (step->is_comm && !s->silent && team_opts(s->t)->ranks != RANKS_SOLO) {
        first = team_of(s)->comm ? 0 : step->group.first;
        n = team_of(s)->comm ? s->n_ranks : step->group.size;
    }
    for (int i = first; i < first + n; i++)
        TPL_TRY(cuda_clock_step(x->clock, i, &team_plan(s->t, i)->list[s->phase].steps[index], x->queues[i], e));
    return TPL_OK;
}

static bool may_join(const session *s, const plan_step *step)
{
    joins_kind joins = team_opts(s->t)->joins;
    return joins == JOINS_ALL || (joins == JOINS_FEED_FORWARD && cuda_block_of(step) == BLOCK_FEED_FORWARD);
}

/* Enqueues step `index`, and those after it that the same launch does; how many comes back in *done. */
static tpl_code run_kernels(session *s, int rank, int index, int *done, tpl_err *e)
{
    session_rank *r = &s->ranks[rank];
    const plan_list *l = &team_plan(s->t, rank)->list[s->phase];
    op_call calls[KERNEL_MAX_JOIN];
    int n = 0;
    for (; n < KERNEL_MAX_JOIN && index + n < l->n; n++) {
        const plan_step *step = &l->steps[index + n];
        if (!step->active || step->is_comm)
            break;
        if (n > 0 && (s->attention_alone || !may_join(s, step) || !may_join(s, step - 1)))
            break;
        calls[n] = step_bind(step, &r->env);
    }
    const kernel_join *join = kernel_find_join("cuda", calls, n, done);
    for (int i = 0; i < *done; i++)
        TPL_TRY(stamp(s, rank, index + i, e));
    gpu_trace_mark(card_mark_run(card_mark(s->trace_tag, rank, s->phase, index), *done));
    return join ? kernel_run_join(join, &r->ctx, calls, *done, e) : kernel_run("cuda", &r->ctx, &calls[0], e);
}

/* A collective, or a step that is observed. */
static tpl_code run_alone(session *s, int rank, const plan_step *step, int index, tpl_err *e)
{
    session_rank *r = &s->ranks[rank];
    op_call call = {0};
    TPL_TRY(stamp(s, rank, index, e));
    if (s->observer.begin)
        s->observer.begin(s->observer.user, rank, step);
    if (step->is_comm) {
        TPL_TRY(run_comm(s, rank, step, index, e));
    } else {
        call = step_bind(step, &r->env);
        TPL_TRY(kernel_run("cuda", &r->ctx, &call, e));
    }
    if (s->observer.end)
        s->observer.end(s->observer.user, rank, step, step->is_comm ? NULL : &call, exec_written(step, &r->env));
    return TPL_OK;
}

/* Step `index` on one rank, unless a launch did it already. A collective is enqueued by its group's first rank: what the
 * others do before it was enqueued in the rounds before. */
static tpl_code run_step(session *s, int rank, int index, tpl_err *e)
{
    int32_t *next = &state_of(s)->next[rank];
    const plan_step *step = &team_plan(s->t, rank)->list[s->phase].steps[index];
    int done = 1;
    bool other = step->is_comm || !op_is_attention(step->call.kind);
    if (index < *next || !step->active || (s->attention_alone && other))
        return TPL_OK;
    if (team_of(s)->n_places > 1)
        TPL_TRY(gpu_use(place_of(s, rank)->card, e));
    gpu_trace_mark(card_mark(s->trace_tag, rank, s->phase, index));
    if (step->is_comm || s->observer.begin || s->observer.end)
        TPL_TRY(run_alone(s, rank, step, index, e));
    else
        TPL_TRY(run_kernels(s, rank, index, &done, e));
    *next = index + done;
    return TPL_OK;
}

/* The wanted rows' best tokens, and the likeliest ones where they are wanted; the host has them when the pass has run. */
static tpl_code find_best(session *s, tpl_err *e)
{
    cuda_session *x = state_of(s);
    const plan *p = team_plan(s->t, 0);
    char *found = x->found.data;
    const float *logits = s->ranks[0].bufs[p->logits_buf];
    card_likeliest top = {.logits = logits,
                          .temperature = (const float *)(const void *)(block_of(s, 0) + x->at.temperature),
                          .rows = s->n_logits,
                          .n = p->cfg.vocab,
                          .k = s->top_k,
                          .tokens = (int32_t *)(void *)(found + x->in_found.top),
                          .shares = (float *)(void *)(found + x->in_found.shares),
                          .space = x->find_space.data};
    TPL_TRY(gpu_use(place_of(s, 0)->card, e));
    gpu_trace_mark(card_mark(s->trace_tag, 0, s->phase, CARD_MARK_BEST));
    if (s->top_k)
        TPL_TRY(card_top(x->queues[0], &top, e));
    else
        TPL_TRY(card_best(x->queues[0], logits, s->n_logits, p->cfg.vocab, (int32_t *)(void *)(found + x->in_found.best),
                          x->find_space.data, e));
    return gpu_copy(x->queues[0], x->host_found.data, found, s->top_k ? x->in_found.end : x->in_found.top, e);
}

/* From queue 0, on which contents arrive, over all queues, back to queue 0. */
static tpl_code walk(session *s, tpl_err *e)
{
    cuda_session *x = state_of(s);
    memset(x->next, 0, (size_t)s->n_ranks * sizeof *x->next);
    if (x->clock)
        cuda_clock_begin(x->clock);
    TPL_TRY(gpu_event_record(x->ready, x->queues[0], e));
    for (int i = 1; i < s->n_ranks; i++)
        TPL_TRY(gpu_event_join(x->ready, x->queues[i], e));
    bool by_threads = team_has_threads(s->t) && !s->observer.begin && !s->observer.end;
    if (by_threads)
        TPL_TRY(cuda_walk_by_threads(s, run_step, e));
    for (int index = 0; index < team_plan(s->t, 0)->list[s->phase].n && !by_threads; index++)
        for (int i = 0; i < s->n_ranks; i++)
            TPL_TRY(run_step(s, i, index, e));
    for (int i = 0; i < s->n_ranks && x->clock; i++)
        TPL_TRY(cuda_clock_end(x->clock, i, x->queues[i], e));
    for (int i = 1; i < s->n_ranks; i++)
        TPL_TRY(follow(x, 0, i, e));
    return s->attention_alone ? TPL_OK : find_best(s, e);
}

/* ---- recorded walks ---- */

/* Contexts are rounded up, so that a sequence can grow for a while under one record. */
static int32_t context_class(int32_t slots, int32_t most)
{
    int64_t step = CONTEXT_STEP;
    while (step * 4 < slots)
        step *= 2;
    int64_t n = (slots + step - 1) / step * step;
    return (int32_t)(n < most ? n : most);
}

static bool same_shape(const walk_shape *a, const walk_shape *b)
{
    return memcmp(a, b, sizeof *a) == 0;
}

/* The record of a shape: the one that has it, else a new one, else the one unused for longest, emptied. */
static walk_record *record_of(cuda_session *x, const walk_shape *shape)
{
    walk_record *oldest = &x->records[0];
    for (int i = 0; i < x->n_records; i++) {
        if (same_shape(&x->records[i].shape, shape))
            return &x->records[i];
        if (x->records[i].used < oldest->used)
            oldest = &x->records[i];
    }
    walk_record *r = x->n_records < MAX_GRAPHS ? &x->records[x->n_records++] : oldest;
    gpu_graph_destroy(r->graph);
    *r = (walk_record){.shape = *shape};
    return r;
}

static tpl_code record(session *s, gpu_graph **out, tpl_err *e)
{
    cuda_session *x = state_of(s);
    TPL_TRY(gpu_record_begin(x->queues[0], e));
    tpl_code rc = walk(s, e);
    gpu_trace_mark(0); /* nodes made from here on are copies of those that steps recorded */
    if (rc == TPL_OK)
        return gpu_record_end(x->queues[0], out, e);
    gpu_record_drop(x->queues[0]);
    return rc;
}

/* Which steps a pass does. */
static int32_t work_of(const session *s)
{
    return s->attention_alone ? 2 : s->silent;
}

/* Walks, or replays: the first pass of a shape walks (libraries set themselves up then), the second records. */
static tpl_code run_pass(session *s, tpl_err *e)
{
    cuda_session *x = state_of(s);
    const batch_view *v = &s->view;
    if (s->phase == PHASE_PREFILL || s->observer.begin || s->observer.end || team_opts(s->t)->no_graph)
        return walk(s, e);
    walk_shape shape = {s->phase,      v->n_rows,           v->n_seqs,       s->n_logits,
                        v->mask_words, v->seq_open != NULL, v->max_seq_rows, v->max_slots,
                        work_of(s),    s->top_k,            x->clock != NULL, gpu_trace_number()};
    walk_record *r = record_of(x, &shape);
    bool first = r->used == 0;
    r->used = ++x->n_passes;
    if (first)
        return walk(s, e);
    if (!r->graph)
        TPL_TRY(record(s, &r->graph, e));
    gpu_trace_mark(0);
    return gpu_graph_launch(r->graph, x->queues[0], e);
}

static tpl_code forward(session *s, tpl_err *e)
{
    cuda_session *x = state_of(s);
    int32_t slots = s->view.max_slots;
    x->logits_here = false;
    TPL_TRY(gpu_use(team_of(s)->places[0].card, e));
    TPL_TRY(send_contents(s, e));
    if (s->phase != PHASE_PREFILL)
        s->view.max_slots = context_class(slots, s->o.max_tok);
    for (int i = 0; i < s->n_ranks; i++) {
        x->batches[i] = batch_on_card(s, i);
        s->ranks[i].env.rows = s->view.n_rows;
        s->ranks[i].env.logit_rows = s->n_logits;
    }
    tpl_code rc = run_pass(s, e);
    gpu_trace_mark(0);
    s->view.max_slots = slots;
    if (rc == TPL_OK)
        rc = gpu_queue_wait(x->queues[0], e);
    if (rc == TPL_OK && team_of(s)->comm)
        rc = gpu_comm_check(team_of(s)->comm, e);
    if (rc == TPL_OK && team_of(s)->spread)
        rc = gpu_peer_check(team_of(s)->spread, e);
    return rc == TPL_OK && x->clock ? cuda_clock_read(x->clock, s->phase, e) : rc;
}

/* All wanted rows come at the first question; a pass whose logits nobody reads copies none. */
static const float *logits(const session *s, int i)
{
    cuda_session *x = state_of(s);
    const plan *p = team_plan(s->t, 0);
    size_t row = (size_t)p->cfg.vocab;
    if (!x->logits_here)
        x->logits_here = gpu_copy_now(x->queues[0], x->host_logits.data, s->ranks[0].bufs[p->logits_buf],
                                      (size_t)s->n_logits * row * sizeof(float), NULL) == TPL_OK;
    return (const float *)x->host_logits.data + (size_t)i * row;
}

static session_likeliest top(const session *s, int i)
{
    const cuda_session *x = state_of(s);
    const char *found = x->host_found.data;
    size_t at = (size_t)i * (size_t)s->top_k;
    return (session_likeliest){(const int32_t *)(const void *)(found + x->in_found.top) + at,
                               (const float *)(const void *)(found + x->in_found.shares) + at};
}

static int32_t best(const session *s, int i)
{
    const cuda_session *x = state_of(s);
    if (!s->top_k)
        return ((const int32_t *)(const void *)((const char *)x->host_found.data + x->in_found.best))[i];
    int32_t token = top(s, i).tokens[0];
    return token < 0 ? 0 : token;
}

/* The next pass's contents come on the same queue, behind this. */
static tpl_code move(session *s, void *to, size_t to_step, const void *from, size_t from_step, size_t bytes, int n,
                     tpl_err *e)
{
    gpu_queue *q = state_of(s)->queues[0];
    TPL_TRY(gpu_use(team_of(s)->places[0].card, e));
    if (to_step <= INT32_MAX && from_step <= INT32_MAX)
        return gpu_copy_pieces(q, to, to_step, from, from_step, bytes, n, e);
    for (int i = 0; i < n; i++)
        TPL_TRY(gpu_copy(q, (char *)to + to_step * (size_t)i, (const char *)from + from_step * (size_t)i, bytes, e));
    return TPL_OK;
}

/* Records hold stamps of one clock or none. */
static tpl_code time_blocks(session *s, bool on, tpl_err *e)
{
    cuda_session *x = state_of(s);
    if (on && x->clock) {
        cuda_clock_zero(x->clock);
        return TPL_OK;
    }
    for (int i = 0; i < x->n_records; i++) {
        gpu_graph_destroy(x->records[i].shape.timed ? x->records[i].graph : NULL);
        if (x->records[i].shape.timed)
            x->records[i].graph = NULL;
    }
    cuda_clock_destroy(x->clock);
    x->clock = NULL;
    return on ? cuda_clock_create(s, &x->clock, e) : TPL_OK;
}

static block_times times(const session *s, int local_rank, plan_phase phase)
{
    const cuda_session *x = state_of(s);
    return x->clock ? cuda_clock_times(x->clock, local_rank, phase) : (block_times){0};
}

static tpl_code fill(session *s, int rank, int stream, uint64_t seed, tpl_err *e)
{
    gpu_queue *q = state_of(s)->queues[rank];
    const dev_buf *b = &s->ranks[rank].kv[stream];
    tpl_dtype type = team_opts(s->t)->kv;
    size_t done = b->bytes < EXEC_FILL_BYTES ? b->bytes : EXEC_FILL_BYTES;
    card_random r = {.dst = b->data,
                     .dtype = type,
                     .heads = 1,
                     .rows = 1,
                     .cols = (int64_t)(done / dtype_bytes(type)),
                     .recipe = {.key = seed, .size = 1}};
    TPL_TRY(gpu_use(place_of(s, rank)->card, e));
    TPL_TRY(card_fill_random(q, &r, e));
    for (size_t n; done < b->bytes; done += n) {
        n = b->bytes - done < done ? b->bytes - done : done;
        TPL_TRY(gpu_copy(q, (char *)b->data + done, b->data, n, e));
    }
    for (int i = 0; i < s->n_ranks && rank == s->n_ranks - 1; i++) /* ranks come in order, so that cards fill at once */
        TPL_TRY(gpu_queue_wait(state_of(s)->queues[i], e));
    return TPL_OK;
}

const exec_ops exec_cuda = {.host = false,
                            .compute = DT_BF16,
                            .team_open = cuda_team_open,
                            .team_close = cuda_team_close,
                            .open = open_session,
                            .close = close_session,
                            .forward = forward,
                            .logits = logits,
                            .best = best,
                            .fill = fill,
                            .move = move,
                            .top = top,
                            .time_blocks = time_blocks,
                            .times = times};
