#include "engine/team.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "device/procs.h"
#include "engine/exec.h"
#include "engine/rank_threads.h"
#include "engine/rope.h"

struct team {
    const model *m;
    const folded *f;
    team_options o;
    int n_local;
    team_rank *ranks;
    float *rope_cos, *rope_sin;
    float **alpha; /* [n_layers][g] scales of the sliced norm, a copy; NULL where nothing is sliced */
    const exec_ops *exec;
    void *exec_state;
    rank_threads *threads; /* NULL: a card's ranks need none */
};

static const char *const kind_names[] = {[RANKS_LOCAL] = "local", [RANKS_SOLO] = "solo", [RANKS_MPI] = "mpi", [RANKS_NCCL] = "nccl", [RANKS_PROCS] = "procs"};

const char *ranks_name(ranks_kind k)
{
    return kind_names[k];
}

bool ranks_from_name(const char *name, ranks_kind *out)
{
    for (int k = RANKS_LOCAL; k <= RANKS_PROCS; k++) {
        if (strcmp(kind_names[k], name) == 0) {
            *out = (ranks_kind)k;
            return true;
        }
    }
    return false;
}

bool ranks_are_processes(ranks_kind k)
{
    return k == RANKS_MPI || k == RANKS_PROCS;
}

tpl_code ranks_check(ranks_kind k, int tp, tpl_err *e)
{
    if (!ranks_are_processes(k))
        return TPL_OK;
    if (procs_opened() && procs_are_own() != (k == RANKS_PROCS))
        return tpl_fail(e, TPL_E_USAGE, "--ranks", "is %s, but these processes were started as %s", ranks_name(k), procs_are_own() ? "procs" : "mpi");
    if (tp != procs_count() && k == RANKS_MPI)
        return tpl_fail(e, TPL_E_USAGE, "--tp", "is %d, but %d processes were launched (mpirun -n %d ...)", tp, procs_count(), tp);
    if (tp != procs_count())
        return tpl_fail(e, TPL_E_USAGE, "--tp", "is %d, but %d processes were started: give --ranks procs and one --tp on the command line", tp, procs_count());
    return TPL_OK;
}

/* ---- weights ---- */

/* A tied head is rows of the embedding, which every rank holds whole. */
static bool is_tied_head(const plan *p, int w)
{
    return p->cfg.tied_embeddings && p->weights[w].source == W_LM_HEAD;
}

static bound_weight tied_head(const team_rank *r, int w)
{
    const plan_weight *head = &r->p->weights[w];
    int embed = 0; /* the first step's weight: bound before */
    while (embed < w && r->p->weights[embed].source != W_EMBED)
        embed++;
    assert(embed < w);
    bound_weight b = r->weights[embed];
    b.m.data = (char *)b.m.data + (size_t)head->row0 * (size_t)b.m.stride * dtype_bytes(b.m.dtype);
    b.m.rows = head->rows;
    return b;
}

static tpl_code bind_weights(const team *t, team_rank *r, tpl_err *e)
{
    int n = r->p->n_weights;
    r->weights = tpl_calloc((size_t)n, sizeof *r->weights);
    r->memory = tpl_calloc((size_t)n, sizeof *r->memory);
    for (int i = 0; i < n; i++) {
        if (is_tied_head(r->p, i))
            r->weights[i] = tied_head(r, i);
        else
            TPL_TRY(shard_bind(t->m, t->f, &r->p->weights[i], t->o.isolate && t->exec->host, &r->weights[i], &r->memory[i], e));
    }
    return TPL_OK;
}

/* ---- threads ---- */

tpl_code team_run(team *t, rank_fn fn, void *arg, tpl_err *e)
{
    if (t->threads)
        return rank_threads_run(t->threads, t->n_local, fn, arg, e);
    for (int i = 0; i < t->n_local; i++)
        TPL_TRY(fn(arg, i, e));
    return TPL_OK;
}

/* ---- life ---- */

static tpl_code create_ranks(team *t, const variant *v, tpl_err *e)
{
    comm **handles = tpl_calloc((size_t)t->o.tp, sizeof *handles);
    tpl_code rc = t->o.ranks == RANKS_SOLO  ? comm_solo_create(t->o.tp, &handles[0], e)
                  : ranks_are_processes(t->o.ranks) ? comm_procs_create(&handles[0], e)
                                            : comm_local_create(t->o.tp, handles, e);
    for (int i = 0; i < t->n_local && rc == TPL_OK; i++)
        t->ranks[i].comm = handles[i];
    free(handles);
    for (int i = 0; i < t->n_local && rc == TPL_OK; i++) {
        rc = plan_create(model_cfg(t->m), v, t->o.tp, ranks_are_processes(t->o.ranks) ? procs_rank() : i, t->o.plan, &t->ranks[i].p, e);
        if (rc == TPL_OK)
            rc = bind_weights(t, &t->ranks[i], e);
    }
    return rc;
}

/* A transform's scales, so that a rank reads nothing of the folded set once its weights are bound; for a random model,
 * which has no transform, those of slices of equal energy. */
static float **make_alpha(const folded *f, int n_layers, int g)
{
    float **alpha = tpl_calloc(1, (size_t)n_layers * (sizeof *alpha + (size_t)g * sizeof **alpha));
    float *next = (float *)(void *)(alpha + n_layers);
    for (int i = 0; i < n_layers; i++, next += g) {
        alpha[i] = next;
        for (int j = 0; j < g; j++)
            next[j] = f ? folded_alpha(f)[i][j] : (float)g;
    }
    return alpha;
}

tpl_code team_create(const model *m, const folded *f, const variant *v, const team_options *o, team **out, tpl_err *e)
{
    const model_config *c = model_cfg(m);
    TPL_TRY(kernel_check_library(e));
    TPL_TRY(plan_fit(c, v, o->tp, &o->plan, e));
    TPL_TRY(ranks_check(o->ranks, o->tp, e));
    if (o->ranks == RANKS_NCCL && (!o->backend || exec_find(o->backend)->host))
        return tpl_fail(e, TPL_E_USAGE, "--ranks", "is nccl, expected with --backend cuda only");
    assert((variant_needs_transform(v) && !model_is_random(m)) == (f != NULL));
    team *t = tpl_calloc(1, sizeof *t);
    *t = (team){.m = m, .f = f, .o = *o, .n_local = o->ranks == RANKS_LOCAL || o->ranks == RANKS_NCCL ? o->tp : 1};
    if (!t->o.backend)
        t->o.backend = "cpu";
    t->exec = exec_find(t->o.backend);
    if (t->o.compute == DT_NONE)
        t->o.compute = t->exec->compute;
    if (t->o.kv == DT_NONE)
        t->o.kv = t->o.compute;
    t->ranks = tpl_calloc((size_t)t->n_local, sizeof *t->ranks);
    size_t table = (size_t)c->max_pos * (size_t)(c->rope_dim / 2);
    t->rope_cos = tpl_malloc(table * sizeof(float));
    t->rope_sin = tpl_malloc(table * sizeof(float));
    rope_fill(c, c->max_pos, t->rope_cos, t->rope_sin);
    t->o.plan.attention_only = t->o.plan.attention_only || model_attention_only(m);
    if (f || model_is_random(m))
        t->alpha = make_alpha(f, c->n_layers, v->g);
    tpl_code rc = create_ranks(t, v, e);
    if (rc == TPL_OK)
        rc = t->exec->team_open(t, e);
    /* A card's ranks need none, but where every step of every pass is enqueued for cards of their own. */
    if (rc == TPL_OK && (t->exec->host || (o->ranks == RANKS_NCCL && o->no_graph)))
        rc = rank_threads_open(t->n_local, t->exec->host, &t->threads, e);
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
    rank_threads_close(t->threads);
    t->exec->team_close(t);
    for (int i = 0; i < t->n_local; i++) {
        team_rank *r = &t->ranks[i];
        for (int w = 0; r->memory && w < r->p->n_weights; w++)
            shard_free(&r->memory[w]);
        free(r->memory);
        free(r->weights);
        plan_destroy(r->p);
        comm_destroy(r->comm);
    }
    free(t->ranks);
    free(t->rope_cos);
    free(t->rope_sin);
    free(t->alpha);
    free(t);
}

bool team_has_threads(const team *t)
{
    return t->threads != NULL;
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
    for (int i = 0; i < r->p->n_weights; i++)
        bytes += is_tied_head(r->p, i) ? 0 : shard_bytes(&r->weights[i]);
    return bytes;
}

const struct exec_ops *team_exec(const team *t)
{
    return t->exec;
}

void **team_exec_state(team *t)
{
    return &t->exec_state;
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
    return (const float *const *)t->alpha;
}
