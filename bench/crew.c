#include "bench/crew.h"

#include <pthread.h>
#include <stdlib.h>

#include <omp.h>

#include "base/arena.h"
#include "base/threads.h"

typedef struct {
    crew *owner;
    int index;
    pthread_t thread;
    tpl_code rc;
    tpl_err err;
} member;

struct crew {
    int n, n_started;
    member *members; /* [n]; 0 is the caller */
    barrier begin, end, meet;
    crew_fn fn; /* NULL: end */
    void *arg;
};

static void *member_main(void *self)
{
    member *m = self;
    crew *c = m->owner;
    omp_set_num_threads(1);
    for (;;) {
        barrier_wait(&c->begin);
        if (!c->fn)
            return NULL;
        m->rc = c->fn(c->arg, m->index, &m->err);
        barrier_wait(&c->end);
    }
}

tpl_code crew_create(int n, crew **out, tpl_err *e)
{
    crew *c = tpl_calloc(1, sizeof *c);
    c->n = n;
    c->members = tpl_calloc((size_t)n, sizeof *c->members);
    barrier_init(&c->meet, n);
    barrier_init(&c->end, n);
    int rc = 0;
    barrier_init(&c->begin, n);
    for (int i = 1; i < n && rc == 0; i++) {
        c->members[i] = (member){.owner = c, .index = i};
        rc = pthread_create(&c->members[i].thread, NULL, member_main, &c->members[i]);
        c->n_started += rc == 0;
    }
    if (rc == 0) {
        *out = c;
        return TPL_OK;
    }
    int started = c->n_started;
    crew_destroy(c);
    return tpl_fail(e, TPL_E_DEVICE, "threads", "only %d of %d could be started", started + 1, n);
}

void crew_destroy(crew *c)
{
    if (!c)
        return;
    c->fn = NULL;
    /* Stand in for members that could not be started, so that the others wake up. */
    pthread_mutex_lock(&c->begin.lock);
    c->begin.waiting += c->n - 1 - c->n_started;
    pthread_mutex_unlock(&c->begin.lock);
    barrier_wait(&c->begin);
    for (int i = 1; i <= c->n_started; i++)
        pthread_join(c->members[i].thread, NULL);
    barrier_fini(&c->begin);
    barrier_fini(&c->end);
    barrier_fini(&c->meet);
    free(c->members);
    free(c);
}

int crew_size(const crew *c)
{
    return c->n;
}

void crew_meet(crew *c)
{
    barrier_wait(&c->meet);
}

tpl_code crew_run(crew *c, crew_fn fn, void *arg, tpl_err *e)
{
    int omp = omp_get_max_threads();
    c->fn = fn;
    c->arg = arg;
    omp_set_num_threads(1);
    barrier_wait(&c->begin);
    c->members[0].rc = fn(arg, 0, &c->members[0].err);
    barrier_wait(&c->end);
    omp_set_num_threads(omp);
    for (int i = 0; i < c->n; i++)
        if (c->members[i].rc != TPL_OK) {
            if (e)
                *e = c->members[i].err;
            return c->members[i].rc;
        }
    return TPL_OK;
}
