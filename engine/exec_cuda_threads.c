/* exec_cuda_threads.c - a thread a rank enqueues its list, for passes that are not replayed on ranks with a card each: what
 * a host needs for one rank's steps then keeps no other rank waiting. They meet where ranks exchange, as the first of
 * a collective's ranks enqueues it for all. */
#include <sched.h>
#include <stdatomic.h>

#include "engine/exec_cuda.h"
#include "engine/session_impl.h"
#include "kernels/card.h"

typedef struct {
    session *s;
    cuda_step_fn step;
    /* Steps of the list, counted from one, that a rank has come to, or enqueued for its collective's ranks. */
    atomic_int arrived[CARD_MAX_RANKS], enqueued[CARD_MAX_RANKS];
    atomic_bool failed;
} meeting;

static bool wait_for(meeting *m, atomic_int *at, int index)
{
    while (atomic_load(at) <= index && !atomic_load(&m->failed))
        sched_yield();
    return !atomic_load(&m->failed);
}

/* The library's collectives are enqueued for all ranks at once. */
static comm_group who_meets(const session *s, const plan_step *step)
{
    const cuda_team *c = *team_exec_state(s->t);
    return c->comm ? (comm_group){0, s->n_ranks} : step->group;
}

static tpl_code meet(meeting *m, int rank, int index, comm_group who, tpl_err *e)
{
    if (rank != who.first) {
        atomic_store(&m->arrived[rank], index + 1);
        wait_for(m, &m->enqueued[who.first], index);
        return TPL_OK;
    }
    for (int i = 1; i < who.size; i++)
        if (!wait_for(m, &m->arrived[who.first + i], index))
            return TPL_OK;
    TPL_TRY(m->step(m->s, rank, index, e));
    atomic_store(&m->enqueued[rank], index + 1);
    return TPL_OK;
}

static tpl_code walk_rank(void *arg, int rank, tpl_err *e)
{
    meeting *m = arg;
    const plan_list *l = &team_plan(m->s->t, rank)->list[m->s->phase];
    tpl_code rc = gpu_use(cuda_place_of(*team_exec_state(m->s->t), rank)->card, e);
    for (int i = 0; i < l->n && rc == TPL_OK && !atomic_load(&m->failed); i++) {
        const plan_step *step = &l->steps[i];
        if (!step->active)
            continue;
        rc = step->is_comm && !m->s->silent ? meet(m, rank, i, who_meets(m->s, step), e) : m->step(m->s, rank, i, e);
    }
    if (rc != TPL_OK)
        atomic_store(&m->failed, true);
    return rc;
}

tpl_code cuda_walk_by_threads(session *s, cuda_step_fn step, tpl_err *e)
{
    meeting m = {.s = s, .step = step};
    return team_run(s->t, walk_rank, &m, e);
}
