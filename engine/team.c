#include "engine/team.h"

#include <assert.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include <omp.h>

#include "device/procs.h"
#include "engine/rope.h"

typedef tpl_code (*rank_fn)(void *arg, int local_rank, tpl_err *e);

typedef struct {
    team *owner;
    int index;
    pthread_t thread;
    bool started;
    tpl_code rc;
    tpl_err err;
} worker;

struct team {
    const model *m;
    const folded *f;
    team_options o;
    int n_local;
    team_rank *ranks;
    float *rope_cos, *rope_sin;
    float **plain_alpha; /* [n_layers][g] of a random model, which has no transform */
    /* Jobs: a new generation number starts one; `left` counts the workers that still run. */
    worker *workers; /* [n_local]; worker 0 is the caller */
    pthread_mutex_t lock;
    pthread_cond_t begin, end;
    unsigned generation;
    int left;
    bool stop;
    rank_fn fn;
    void *arg;
};

static const char *const kind_names[] = {[RANKS_LOCAL] = "local", [RANKS_SOLO] = "solo", [RANKS_MPI] = "mpi"};

const char *ranks_name(ranks_kind k)
{
    return kind_names[k];
}

bool ranks_from_name(const char *name, ranks_kind *out)
{
    for (int k = RANKS_LOCAL; k <= RANKS_MPI; k++) {
        if (strcmp(kind_names[k], name) == 0) {
            *out = (ranks_kind)k;
            return true;
        }
    }
    return false;
}

/* ---- weights ---- */

static const void *at(const void *data, tpl_dtype t, int64_t elements)
{
    return (const char *)data + elements * (int64_t)dtype_bytes(t);
}

/* The logical per-head matrices of W_UK, W_UK_WHOLE and W_UV: folded, or halves of kv_b as stored. */
static head_mat logical_heads(const team *t, int source, int layer)
{
    if (t->f)
        return source == W_UK ? folded_uk(t->f, layer) : source == W_UK_WHOLE ? folded_uk_whole(t->f, layer) : folded_uv(t->f, layer);
    const model_config *c = model_cfg(t->m);
    mat w = model_weight(t->m, W_KV_B, layer);
    int64_t head_rows = c->nope_dim + c->v_dim, row0 = source == W_UV ? c->nope_dim : 0;
    return (head_mat){.data = at(w.data, w.dtype, row0 * w.stride), .dtype = w.dtype, .heads = c->n_heads, .rows = source == W_UV ? c->v_dim : c->nope_dim,
                      .cols = c->kv_lora_rank, .row_stride = w.stride, .head_stride = head_rows * w.stride};
}

static mat logical_matrix(const team *t, int source, int layer)
{
    if (t->f && source == W_KV_A)
        return folded_kv_a(t->f, layer);
    return model_weight(t->m, (weight_role)source, layer);
}

static bound_weight view_weight(const team *t, const plan_weight *w)
{
    bound_weight b = {0};
    if (w->n_heads) {
        head_mat h = logical_heads(t, w->source, w->layer);
        assert(w->head0 + w->n_heads <= h.heads && w->col0 + w->cols <= h.cols && w->rows == h.rows);
        h.data = at(h.data, h.dtype, w->head0 * h.head_stride + w->col0);
        h.heads = w->n_heads;
        h.cols = w->cols;
        b.h = h;
        return b;
    }
    mat m = logical_matrix(t, w->source, w->layer);
    assert(m.data && w->row0 + w->rows <= m.rows && w->col0 + w->cols <= m.cols);
    m.data = (void *)at(m.data, m.dtype, w->row0 * m.stride + w->col0);
    m.rows = w->rows;
    m.cols = w->cols;
    b.m = m;
    return b;
}

/* Replaces a view by a compact copy of exactly its elements. */
static tpl_code copy_weight(bound_weight *b, dev_buf *copy, tpl_err *e)
{
    bool heads = b->h.data != NULL;
    tpl_dtype t = heads ? b->h.dtype : b->m.dtype;
    int64_t n_heads = heads ? b->h.heads : 1, rows = heads ? b->h.rows : b->m.rows, cols = heads ? b->h.cols : b->m.cols;
    const void *from = heads ? b->h.data : b->m.data;
    int64_t row_stride = heads ? b->h.row_stride : b->m.stride, head_stride = heads ? b->h.head_stride : 0;
    size_t row_bytes = (size_t)cols * dtype_bytes(t);
    TPL_TRY(dev_alloc(copy, (size_t)(n_heads * rows) * row_bytes, "weight shards", e));
    for (int64_t h = 0; h < n_heads; h++)
        for (int64_t i = 0; i < rows; i++)
            memcpy((char *)copy->data + (size_t)(h * rows + i) * row_bytes, at(from, t, h * head_stride + i * row_stride), row_bytes);
    if (heads) {
        b->h.data = copy->data;
        b->h.row_stride = cols;
        b->h.head_stride = rows * cols;
    } else {
        b->m.data = copy->data;
        b->m.stride = cols;
    }
    return TPL_OK;
}

static tpl_code bind_weights(const team *t, team_rank *r, tpl_err *e)
{
    int n = r->p->n_weights;
    r->weights = tpl_calloc((size_t)n, sizeof *r->weights);
    r->copies = tpl_calloc((size_t)n, sizeof *r->copies);
    for (int i = 0; i < n; i++) {
        r->weights[i] = view_weight(t, &r->p->weights[i]);
        if (t->o.isolate)
            TPL_TRY(copy_weight(&r->weights[i], &r->copies[i], e));
    }
    return TPL_OK;
}

/* ---- threads ---- */

static void *worker_main(void *self)
{
    worker *w = self;
    team *t = w->owner;
    unsigned seen = 0;
    omp_set_num_threads(1);
    pthread_mutex_lock(&t->lock);
    for (;;) {
        while (t->generation == seen && !t->stop)
            pthread_cond_wait(&t->begin, &t->lock);
        if (t->stop)
            break;
        seen = t->generation;
        pthread_mutex_unlock(&t->lock);
        w->rc = t->fn(t->arg, w->index, &w->err);
        pthread_mutex_lock(&t->lock);
        if (--t->left == 0)
            pthread_cond_signal(&t->end);
    }
    pthread_mutex_unlock(&t->lock);
    return NULL;
}

tpl_code team_run(team *t, rank_fn fn, void *arg, tpl_err *e)
{
    pthread_mutex_lock(&t->lock);
    t->fn = fn;
    t->arg = arg;
    t->left = t->n_local - 1;
    t->generation++;
    pthread_cond_broadcast(&t->begin);
    pthread_mutex_unlock(&t->lock);
    int threads = omp_get_max_threads();
    omp_set_num_threads(1);
    t->workers[0].rc = fn(arg, 0, &t->workers[0].err);
    omp_set_num_threads(threads);
    pthread_mutex_lock(&t->lock);
    while (t->left > 0)
        pthread_cond_wait(&t->end, &t->lock);
    pthread_mutex_unlock(&t->lock);
    for (int i = 0; i < t->n_local; i++) {
        if (t->workers[i].rc == TPL_OK)
            continue;
        if (e)
            *e = t->workers[i].err;
        return t->workers[i].rc;
    }
    return TPL_OK;
}

static tpl_code start_workers(team *t, tpl_err *e)
{
    t->workers = tpl_calloc((size_t)t->n_local, sizeof *t->workers);
    for (int i = 0; i < t->n_local; i++)
        t->workers[i] = (worker){.owner = t, .index = i};
    for (int i = 1; i < t->n_local; i++) {
        if (pthread_create(&t->workers[i].thread, NULL, worker_main, &t->workers[i]) != 0)
            return tpl_fail(e, TPL_E_DEVICE, "ranks", "cannot start a thread for rank %d", i);
        t->workers[i].started = true;
    }
    return TPL_OK;
}

static void stop_workers(team *t)
{
    pthread_mutex_lock(&t->lock);
    t->stop = true;
    pthread_cond_broadcast(&t->begin);
    pthread_mutex_unlock(&t->lock);
    for (int i = 1; t->workers && i < t->n_local; i++)
        if (t->workers[i].started)
            pthread_join(t->workers[i].thread, NULL);
}

/* ---- life ---- */

static tpl_code create_ranks(team *t, const variant *v, tpl_err *e)
{
    comm **handles = tpl_calloc((size_t)t->o.tp, sizeof *handles);
    tpl_code rc = t->o.ranks == RANKS_SOLO  ? comm_solo_create(t->o.tp, &handles[0], e)
                  : t->o.ranks == RANKS_MPI ? comm_procs_create(&handles[0], e)
                                            : comm_local_create(t->o.tp, handles, e);
    for (int i = 0; i < t->n_local && rc == TPL_OK; i++)
        t->ranks[i].comm = handles[i];
    free(handles);
    for (int i = 0; i < t->n_local && rc == TPL_OK; i++) {
        rc = plan_create(model_cfg(t->m), v, t->o.tp, t->o.ranks == RANKS_MPI ? procs_rank() : i, t->o.plan, &t->ranks[i].p, e);
        if (rc == TPL_OK)
            rc = bind_weights(t, &t->ranks[i], e);
    }
    return rc;
}

/* Random weights lie in no particular basis: every slice carries 1 / g of the energy. */
static float **make_plain_alpha(int n_layers, int g)
{
    float **alpha = tpl_calloc(1, (size_t)n_layers * sizeof *alpha + (size_t)g * sizeof **alpha);
    float *one = (float *)(void *)(alpha + n_layers);
    for (int i = 0; i < g; i++)
        one[i] = (float)g;
    for (int i = 0; i < n_layers; i++)
        alpha[i] = one;
    return alpha;
}

tpl_code team_create(const model *m, const folded *f, const variant *v, const team_options *o, team **out, tpl_err *e)
{
    const model_config *c = model_cfg(m);
    TPL_TRY(kernel_check_library(e));
    TPL_TRY(variant_fit(v, c, o->tp, e));
    if (o->ranks == RANKS_MPI && o->tp != procs_count())
        return tpl_fail(e, TPL_E_USAGE, "--tp", "is %d, but %d processes were launched (mpirun -n %d ...)", o->tp, procs_count(), o->tp);
    assert((variant_needs_transform(v) && !model_is_random(m)) == (f != NULL));
    team *t = tpl_calloc(1, sizeof *t);
    *t = (team){.m = m, .f = f, .o = *o, .n_local = o->ranks == RANKS_LOCAL ? o->tp : 1};
    if (t->o.compute == DT_NONE)
        t->o.compute = DT_F32;
    if (t->o.kv == DT_NONE)
        t->o.kv = t->o.compute;
    if (!t->o.backend)
        t->o.backend = "cpu";
    pthread_mutex_init(&t->lock, NULL);
    pthread_cond_init(&t->begin, NULL);
    pthread_cond_init(&t->end, NULL);
    t->ranks = tpl_calloc((size_t)t->n_local, sizeof *t->ranks);
    size_t table = (size_t)c->max_pos * (size_t)(c->rope_dim / 2);
    t->rope_cos = tpl_malloc(table * sizeof(float));
    t->rope_sin = tpl_malloc(table * sizeof(float));
    rope_fill(c, c->max_pos, t->rope_cos, t->rope_sin);
    t->o.plan.attention_only = t->o.plan.attention_only || model_attention_only(m);
    if (model_is_random(m))
        t->plain_alpha = make_plain_alpha(c->n_layers, v->g);
    tpl_code rc = create_ranks(t, v, e);
    if (rc == TPL_OK)
        rc = start_workers(t, e);
    if (rc != TPL_OK) {
        team_destroy(t);
        return rc;
    }
    *out = t;
    return TPL_OK;
}

void team_destroy(team *t)
{
    if (!t)
        return;
    stop_workers(t);
    for (int i = 0; i < t->n_local; i++) {
        team_rank *r = &t->ranks[i];
        for (int w = 0; r->copies && w < r->p->n_weights; w++)
            dev_free(&r->copies[w]);
        free(r->copies);
        free(r->weights);
        plan_destroy(r->p);
        comm_destroy(r->comm);
    }
    free(t->ranks);
    free(t->workers);
    free(t->rope_cos);
    free(t->rope_sin);
    free(t->plain_alpha);
    pthread_cond_destroy(&t->begin);
    pthread_cond_destroy(&t->end);
    pthread_mutex_destroy(&t->lock);
    free(t);
}

int team_n_local(const team *t)
{
    return t->n_local;
}

const plan *team_plan(const team *t, int local_rank)
{
    return t->ranks[local_rank].p;
}

const team_options *team_opts(const team *t)
{
    return &t->o;
}

const model *team_model(const team *t)
{
    return t->m;
}

int64_t team_weight_bytes(const team *t, int local_rank)
{
    const team_rank *r = &t->ranks[local_rank];
    int64_t bytes = 0;
    for (int i = 0; i < r->p->n_weights; i++) {
        const bound_weight *w = &r->weights[i];
        int64_t n = w->h.data ? (int64_t)w->h.heads * w->h.rows * w->h.cols : w->m.rows * w->m.cols;
        bytes += t->o.isolate ? (int64_t)r->copies[i].bytes : n * (int64_t)dtype_bytes(w->h.data ? w->h.dtype : w->m.dtype);
    }
    return bytes;
}

team_rank *team_get_rank(team *t, int local_rank)
{
    return &t->ranks[local_rank];
}

const float *team_rope_cos(const team *t)
{
    return t->rope_cos;
}

const float *team_rope_sin(const team *t)
{
    return t->rope_sin;
}

const float *const *team_alpha(const team *t)
{
    return t->f ? folded_alpha(t->f) : (const float *const *)t->plain_alpha;
}
