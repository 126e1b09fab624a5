#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "device/procs.h"
#include "engine/exec_cuda.h"
#include "kernels/card.h"

enum { ALIGN = 256, STAGING_BYTES = 32 << 20 };

/* ---- one weight as rows, whatever its kind ---- */

/* A router's score correction stays f32; all else takes the activations' type. */
static tpl_dtype type_on_card(const plan_weight *w, tpl_dtype act)
{
    return w->source == W_ROUTER_BIAS ? DT_F32 : act;
}

static int64_t n_parts(const bound_weight *b)
{
    return b->h.heads > 0 ? b->h.heads : 1;
}

/* One head's, one expert's, or the only matrix. */
static mat part_of(const bound_weight *b, int64_t i)
{
    if (b->h.heads == 0)
        return b->m;
    if (b->experts)
        return b->experts[i];
    const char *at = (const char *)b->h.data + (size_t)(i * b->h.head_stride) * dtype_bytes(b->h.dtype);
    return (mat){.data = (void *)(uintptr_t)at,
                 .dtype = b->h.dtype,
                 .rows = b->h.rows,
                 .cols = b->h.cols,
                 .stride = b->h.row_stride};
}

static size_t bytes_on_card(const bound_weight *b, tpl_dtype type)
{
    mat one = part_of(b, 0);
    size_t bytes = (size_t)(n_parts(b) * one.rows * one.cols) * dtype_bytes(type);
    return (bytes + ALIGN - 1) / ALIGN * ALIGN;
}

/* The weight bound before, of which this one is whole rows in the same memory (a tied head); -1: none. */
static int shared_with(const team_rank *r, const bound_weight *host, int w)
{
    const mat *m = &host[w].m;
    for (int i = 0; i < w && r->p->weights[w].source == W_LM_HEAD; i++) {
        const mat *o = &host[i].m;
        size_t row = (size_t)o->stride * dtype_bytes(o->dtype);
        if (r->p->weights[i].source == W_EMBED && m->cols == o->cols && (char *)m->data >= (char *)o->data &&
            (char *)m->data < (char *)o->data + (size_t)o->rows * row)
            return i;
    }
    return -1;
}

/* Points the rank's weight at packed memory on the card, sizes as they were. */
static void rebind(bound_weight *b, char *at, tpl_dtype type)
{
    mat one = part_of(b, 0);
    size_t step = (size_t)(one.rows * one.cols) * dtype_bytes(type);
    if (b->h.heads == 0) {
        b->m = (mat){.data = at, .dtype = type, .rows = one.rows, .cols = one.cols, .stride = one.cols};
        return;
    }
    for (int i = 0; b->experts && i < b->h.heads; i++)
        ((mat *)(uintptr_t)b->experts)[i] =
            (mat){.data = at + (size_t)i * step, .dtype = type, .rows = one.rows, .cols = one.cols, .stride = one.cols};
    b->h.data = b->experts ? NULL : at;
    b->h.dtype = type;
    b->h.row_stride = one.cols;
    b->h.head_stride = one.rows * one.cols;
}

/* ---- bringing it there ---- */

typedef struct {
    cuda_place *c;
    const model *m;
    dev_buf staging;
    float *wide; /* [widest row] */
    int64_t wide_cols;
} uploader;

static float *wide_row(uploader *u, int64_t cols)
{
    if (u->wide_cols < cols) {
        free(u->wide);
        u->wide = tpl_malloc((size_t)cols * sizeof *u->wide);
        u->wide_cols = cols;
    }
    return u->wide;
}

static void stage_row(uploader *u, const mat *from, int64_t row, tpl_dtype type, char *to)
{
    size_t size = dtype_bytes(type);
    if (from->dtype == type) {
        memcpy(to, (const char *)from->data + (size_t)(row * from->stride) * size, (size_t)from->cols * size);
        return;
    }
    float *wide = wide_row(u, from->cols);
    model_read_row(from, row, 0, from->cols, wide);
    dtype_from_f32(to, type, wide, (size_t)from->cols);
}

static tpl_code upload_part(uploader *u, const mat *from, tpl_dtype type, char *to, tpl_err *e)
{
    size_t row_bytes = (size_t)from->cols * dtype_bytes(type);
    int64_t at_once = (int64_t)(u->staging.bytes / row_bytes);
    if (at_once < 1)
        return tpl_fail(e, TPL_E_UNSUPPORTED, "weights", "have rows of %zu bytes, expected at most %zu", row_bytes,
                        u->staging.bytes);
    for (int64_t row = 0; row < from->rows; row += at_once) {
        int64_t n = from->rows - row < at_once ? from->rows - row : at_once;
        for (int64_t i = 0; i < n; i++)
            stage_row(u, from, row + i, type, (char *)u->staging.data + (size_t)i * row_bytes);
        TPL_TRY(gpu_copy_now(u->c->queue, to + (size_t)row * row_bytes, u->staging.data, (size_t)n * row_bytes, e));
    }
    return TPL_OK;
}

/* Of a random model: made where it is used. */
static tpl_code draw_part(uploader *u, const mat *from, tpl_dtype type, char *to, tpl_err *e)
{
    card_random r = {
        .dst = to, .dtype = type, .heads = 1, .rows = from->rows, .cols = from->cols, .row_stride = from->stride};
    bool found = model_weight_recipe(u->m, from->data, &r.recipe, &r.first);
    assert(found);
    return found ? card_fill_random(u->c->queue, &r, e) : TPL_OK;
}

static tpl_code bring(uploader *u, const bound_weight *b, tpl_dtype type, char *to, tpl_err *e)
{
    mat one = part_of(b, 0);
    size_t step = (size_t)(one.rows * one.cols) * dtype_bytes(type);
    for (int64_t i = 0; i < n_parts(b); i++) {
        mat from = part_of(b, i);
        TPL_TRY(model_is_random(u->m) ? draw_part(u, &from, type, to + (size_t)i * step, e)
                                      : upload_part(u, &from, type, to + (size_t)i * step, e));
    }
    return TPL_OK;
}

static tpl_code bring_rank(uploader *u, const team_rank *r, tpl_dtype act, dev_buf *mem, tpl_err *e)
{
    int n = r->p->n_weights;
    size_t bytes = 0;
    bound_weight *host = tpl_calloc((size_t)n + 1, sizeof *host);
    memcpy(host, r->weights, (size_t)n * sizeof *host);
    for (int i = 0; i < n; i++)
        bytes += shared_with(r, host, i) < 0 ? bytes_on_card(&host[i], type_on_card(&r->p->weights[i], act)) : 0;
    tpl_code rc = gpu_alloc(u->c->card, mem, bytes, "weights of a rank", e);
    char *at = mem->data;
    for (int i = 0; i < n && rc == TPL_OK; i++) {
        tpl_dtype type = type_on_card(&r->p->weights[i], act);
        int other = shared_with(r, host, i);
        if (other >= 0) {
            int64_t row = ((char *)host[i].m.data - (char *)host[other].m.data) /
                          (host[other].m.stride * (int64_t)dtype_bytes(host[other].m.dtype));
            rebind(&r->weights[i],
                   (char *)r->weights[other].m.data + (size_t)(row * host[i].m.cols) * dtype_bytes(type), type);
            continue;
        }
        rc = bring(u, &host[i], type, at, e);
        rebind(&r->weights[i], at, type);
        at += bytes_on_card(&host[i], type);
    }
    free(host);
    return rc;
}

static tpl_code bring_table(cuda_place *c, dev_buf *to, const void *from, size_t bytes, const char *what, tpl_err *e)
{
    TPL_TRY(gpu_alloc(c->card, to, bytes, what, e));
    return gpu_copy_now(c->queue, to->data, from, bytes, e);
}

static tpl_code bring_alpha(cuda_place *c, team *t, tpl_err *e)
{
    const plan *p = team_plan(t, 0);
    const float *const *alpha = team_alpha(t);
    size_t layers = (size_t)p->cfg.n_layers, g = (size_t)p->v.g;
    float *all = tpl_malloc(layers * g * sizeof *all);
    for (size_t i = 0; i < layers; i++)
        memcpy(all + i * g, alpha[i], g * sizeof *all);
    tpl_code rc = bring_table(c, &c->alpha, all, layers * g * sizeof *all, "norm scales", e);
    free(all);
    c->alpha_rows = tpl_calloc(layers, sizeof *c->alpha_rows);
    for (size_t i = 0; i < layers; i++)
        c->alpha_rows[i] = (const float *)c->alpha.data + i * g;
    return rc;
}

static tpl_code open_place(cuda_place *c, int ordinal, team *t, tpl_err *e)
{
    const model_config *m = &team_plan(t, 0)->cfg;
    size_t rope = (size_t)m->max_pos * (size_t)(m->rope_dim / 2) * sizeof(float);
    TPL_TRY(gpu_open(ordinal, &c->card, e));
    TPL_TRY(gpu_queue_create(c->card, &c->queue, e));
    TPL_TRY(bring_table(c, &c->rope_cos, team_rope_cos(t), rope, "position table", e));
    TPL_TRY(bring_table(c, &c->rope_sin, team_rope_sin(t), rope, "position table", e));
    return team_alpha(t) ? bring_alpha(c, t, e) : TPL_OK;
}

static void close_place(cuda_place *c)
{
    gpu_free(c->card, &c->rope_cos);
    gpu_free(c->card, &c->rope_sin);
    gpu_free(c->card, &c->alpha);
    gpu_queue_destroy(c->queue);
    gpu_close(c->card);
    free(c->alpha_rows);
}

/* ---- who lives where ---- */

cuda_place *cuda_place_of(cuda_team *c, int local_rank)
{
    return &c->places[c->n_places > 1 ? local_rank : 0];
}

/* One card for all ranks of the process, a card a rank, or, of several processes on a host, the card of this one's
 * number. */
static tpl_code open_places(cuda_team *c, team *t, tpl_err *e)
{
    const team_options *o = team_opts(t);
    int n = o->ranks == RANKS_NCCL ? o->tp : 1, cards = gpu_count();
    c->places = tpl_calloc((size_t)n, sizeof *c->places);
    c->n_places = n;
    if (o->first_card + n > cards && cards > 0)
        return tpl_fail(e, TPL_E_DEVICE, "--ranks nccl", "needs a card a rank: %d, %d are here", o->first_card + n, cards);
    for (int i = 0; i < n; i++)
        TPL_TRY(open_place(&c->places[i], ranks_are_processes(o->ranks) && cards > 0 ? procs_local_rank() % cards : o->first_card + i, t, e));
    return TPL_OK;
}

/* The groups that any rank's lists exchange in. */
static tpl_code split_groups(gpu_comm *c, const plan *p, tpl_err *e)
{
    for (int phase = 0; phase < N_PHASES; phase++)
        for (int i = 0; i < p->list[phase].n; i++)
            if (p->list[phase].steps[i].is_comm)
                TPL_TRY(gpu_comm_split(c, p->list[phase].steps[i].group.size, e));
    return TPL_OK;
}

/* A draft's groups exchange little and want no library's latency: each rank's launch waits for the others' data, or, of
 * groups of some ranks only, one launch reads and writes all ranks'. */
static tpl_code reach_all(cuda_team *c, tpl_err *e)
{
    gpu *cards[CARD_MAX_RANKS];
    for (int i = 0; i < c->n_places; i++) {
        cards[i] = c->places[i].card;
        for (int k = 0; k < c->n_places; k++)
            TPL_TRY(gpu_reach(c->places[i].card, c->places[k].card, e));
    }
    if (gpu_peer_create(cards, 0, c->n_places, c->n_places, c->n_places, NULL, &c->spread, NULL) == TPL_OK &&
        gpu_peer_prove(c->spread, NULL, c->n_places, NULL) == TPL_OK)
        return TPL_OK;
    gpu_peer_destroy(c->spread);
    c->spread = NULL;
    return TPL_OK;
}

/* NCCL joins no two ranks on one card, unless they seem to be on hosts of their own; where all are on this one, the
 * loopback interface joins them. */
static void name_own_host(void)
{
    char name[32];
    snprintf(name, sizeof name, "tplabench-rank-%d", procs_rank());
    setenv("NCCL_HOSTID", name, 0);
    if (procs_local_count() == procs_count())
        setenv("NCCL_SOCKET_IFNAME", "lo", 0);
}

/* The communicator of the last team of cards of this process, for the next one of its size: making one takes longer
 * than anything else a team does. It has cards of its own, as it outlives its team. */
static struct {
    gpu *cards[CARD_MAX_RANKS];
    gpu_comm *comm;
    int n;
} kept;

static void drop_kept(void)
{
    gpu_comm_destroy(kept.comm);
    for (int i = 0; i < kept.n; i++)
        gpu_close(kept.cards[i]);
    kept.comm = NULL;
    kept.n = 0;
}

static tpl_code join_cards(cuda_team *c, int n, tpl_err *e)
{
    gpu_comm_id id = {{0}};
    if (kept.comm && kept.n == n) {
        memcpy(c->comm_cards, kept.cards, sizeof kept.cards);
        c->comm = kept.comm;
        kept.comm = NULL;
        kept.n = 0;
        return TPL_OK;
    }
    for (int i = 0; i < n; i++)
        TPL_TRY(gpu_open(gpu_get_facts(c->places[i].card)->ordinal, &c->comm_cards[i], e));
    TPL_TRY(gpu_comm_new_id(&id, e));
    return gpu_comm_create(c->comm_cards, 0, n, n, &id, &c->comm, e);
}

/* A communicator that lost a rank serves nobody. */
static void leave_cards(cuda_team *c)
{
    bool whole = c->comm && c->comm_cards[0] && gpu_comm_check(c->comm, NULL) == TPL_OK;
    if (whole)
        drop_kept();
    if (!whole)
        gpu_comm_destroy(c->comm);
    for (int i = 0; i < CARD_MAX_RANKS && c->comm_cards[i]; i++) {
        if (whole)
            kept.cards[kept.n++] = c->comm_cards[i];
        else
            gpu_close(c->comm_cards[i]);
    }
    if (whole)
        kept.comm = c->comm;
}

static tpl_code join_ranks(cuda_team *c, team *t, tpl_err *e)
{
    const team_options *o = team_opts(t);
    bool processes = ranks_are_processes(o->ranks);
    gpu_comm_id id = {{0}};
    if (o->tp == 1 || (o->ranks != RANKS_NCCL && !processes))
        return TPL_OK;
    if (o->plan.fuzzy.groups.n > 0 && !processes)
        return reach_all(c, e);
    if (!processes) {
        TPL_TRY(join_cards(c, o->tp, e));
        return split_groups(c->comm, team_plan(t, 0), e);
    }
    if (gpu_count() < procs_local_count())
        name_own_host();
    gpu **cards = tpl_calloc((size_t)c->n_places, sizeof(gpu *));
    for (int i = 0; i < c->n_places; i++)
        cards[i] = c->places[i].card;
    tpl_code rc = procs_rank() > 0 ? TPL_OK : gpu_comm_new_id(&id, e);
    if (rc == TPL_OK)
        rc = procs_broadcast(&id, sizeof id, e);
    if (rc == TPL_OK)
        rc = gpu_comm_create(cards, procs_rank(), team_n_local(t), o->tp, &id, &c->comm, e);
    free(cards);
    return rc == TPL_OK ? split_groups(c->comm, team_plan(t, 0), e) : rc;
}

/* ---- teams ---- */

static tpl_code bring_rank_to(cuda_team *c, team *t, int rank, tpl_err *e)
{
    uploader u = {.c = cuda_place_of(c, rank), .m = team_model(t)};
    tpl_code rc = gpu_use(u.c->card, e);
    if (rc == TPL_OK && !model_is_random(u.m))
        rc = gpu_alloc_pinned(u.c->card, &u.staging, STAGING_BYTES, "weight staging", e);
    if (rc == TPL_OK)
        rc = bring_rank(&u, team_get_rank(t, rank), team_opts(t)->compute, &c->weights[rank], e);
    if (rc == TPL_OK)
        rc = gpu_queue_wait(u.c->queue, e);
    if (u.c->card)
        gpu_free_pinned(u.c->card, &u.staging);
    free(u.wide);
    return rc;
}

tpl_code cuda_team_open(team *t, tpl_err *e)
{
    cuda_team *c = tpl_calloc(1, sizeof *c);
    *team_exec_state(t) = c;
    c->weights = tpl_calloc((size_t)team_n_local(t), sizeof *c->weights);
    if (team_n_local(t) > CARD_MAX_RANKS)
        return tpl_fail(e, TPL_E_USAGE, "--tp", "is %d, expected at most %d ranks on one card", team_n_local(t),
                        CARD_MAX_RANKS);
    TPL_TRY(open_places(c, t, e));
    TPL_TRY(join_ranks(c, t, e));
    for (int i = 0; i < team_n_local(t); i++)
        TPL_TRY(bring_rank_to(c, t, i, e));
    return TPL_OK;
}

void cuda_team_close(team *t)
{
    cuda_team *c = *team_exec_state(t);
    if (!c)
        return;
    leave_cards(c);
    gpu_peer_destroy(c->spread);
    for (int i = 0; i < team_n_local(t) && c->places; i++)
        gpu_free(cuda_place_of(c, i)->card, &c->weights[i]);
    for (int i = 0; i < c->n_places; i++)
        close_place(&c->places[i]);
    free(c->places);
    free(c->weights);
    free(c);
}
