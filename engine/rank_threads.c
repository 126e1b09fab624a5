#include "engine/rank_threads.h"

#include <omp.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "base/arena.h"
#include "base/threads.h"

/* A count that one thread raises and another waits for, by looking first and sleeping then. Who is about to sleep says
 * so before it looks again, and the count is raised before that is read: one of both sees the other. */
typedef struct {
    atomic_uint count;
    atomic_bool sleeping;
    pthread_mutex_t lock;
    pthread_cond_t changed;
} signal_count;

static void signal_init(signal_count *s)
{
    atomic_init(&s->count, 0);
    atomic_init(&s->sleeping, false);
    pthread_mutex_init(&s->lock, NULL);
    pthread_cond_init(&s->changed, NULL);
}

static void signal_fini(signal_count *s)
{
    pthread_cond_destroy(&s->changed);
    pthread_mutex_destroy(&s->lock);
}

static void signal_raise(signal_count *s)
{
    atomic_fetch_add(&s->count, 1);
    if (!atomic_load(&s->sleeping))
        return;
    pthread_mutex_lock(&s->lock);
    pthread_cond_signal(&s->changed);
    pthread_mutex_unlock(&s->lock);
}

/* Until the count has left `seen`. */
static void signal_wait(signal_count *s, unsigned seen, int turns)
{
    for (int i = 0; i < turns; i++) {
        if (atomic_load_explicit(&s->count, memory_order_acquire) != seen)
            return;
        threads_pause(i);
    }
    pthread_mutex_lock(&s->lock);
    atomic_store(&s->sleeping, true);
    while (atomic_load(&s->count) == seen)
        pthread_cond_wait(&s->changed, &s->lock);
    atomic_store(&s->sleeping, false);
    pthread_mutex_unlock(&s->lock);
}

typedef struct {
    _Alignas(64) signal_count jobs, done; /* given to it, finished by it */
    rank_threads *owner;
    int rank;
    bool stop;
    pthread_t thread;
    tpl_code rc;
    tpl_err err;
} worker;

enum { MOST_RANKS = 64 };

struct rank_threads {
    pthread_mutex_t turn; /* of callers */
    worker *workers[MOST_RANKS];
    int n, turns; /* ranks that there are threads for, the caller's included; how long a job's threads look for news */
    rank_fn fn;
    void *arg;
    bool shared;
};

/* The set that teams share. */
static struct {
    pthread_mutex_t lock;
    rank_threads *t;
    int users;
} common = {PTHREAD_MUTEX_INITIALIZER, NULL, 0};

static void *worker_main(void *self)
{
    worker *w = self;
    int turns = 0;
    omp_set_num_threads(1);
    for (unsigned seen = 0;; seen++) {
        signal_wait(&w->jobs, seen, turns);
        if (w->stop)
            return NULL;
        turns = w->owner->turns;
        w->rc = w->owner->fn(w->owner->arg, w->rank, &w->err);
        signal_raise(&w->done);
    }
}

static tpl_code grow(rank_threads *t, int n, tpl_err *e)
{
    if (n > MOST_RANKS)
        return tpl_fail(e, TPL_E_DEVICE, "ranks", "are %d, there are threads for up to %d", n, MOST_RANKS);
    for (; t->n < n; t->n++) {
        worker *w = aligned_alloc(64, sizeof *w);
        if (!w)
            abort();
        *w = (worker){.owner = t, .rank = t->n};
        signal_init(&w->jobs);
        signal_init(&w->done);
        if (pthread_create(&w->thread, NULL, worker_main, w) != 0) {
            free(w);
            return tpl_fail(e, TPL_E_DEVICE, "ranks", "cannot start a thread for rank %d", t->n);
        }
        t->workers[t->n] = w;
    }
    return TPL_OK;
}

static rank_threads *make(bool shared)
{
    rank_threads *t = tpl_calloc(1, sizeof *t);
    t->n = 1;
    t->shared = shared;
    pthread_mutex_init(&t->turn, NULL);
    return t;
}

static void end(rank_threads *t)
{
    for (int i = 1; i < t->n; i++) {
        worker *w = t->workers[i];
        w->stop = true;
        signal_raise(&w->jobs);
        pthread_join(w->thread, NULL);
        signal_fini(&w->jobs);
        signal_fini(&w->done);
        free(w);
    }
    pthread_mutex_destroy(&t->turn);
    free(t);
}

tpl_code rank_threads_open(int n, bool shared, rank_threads **out, tpl_err *e)
{
    rank_threads *t = shared ? NULL : make(false);
    if (shared) {
        pthread_mutex_lock(&common.lock);
        common.t = common.t ? common.t : make(true);
        common.users++;
        t = common.t;
        pthread_mutex_unlock(&common.lock);
    }
    pthread_mutex_lock(&t->turn);
    tpl_code rc = grow(t, n, e);
    pthread_mutex_unlock(&t->turn);
    if (rc != TPL_OK)
        rank_threads_close(t);
    else
        *out = t;
    return rc;
}

void rank_threads_close(rank_threads *t)
{
    if (!t)
        return;
    if (!t->shared) {
        end(t);
        return;
    }
    pthread_mutex_lock(&common.lock);
    if (--common.users == 0) {
        end(t);
        common.t = NULL;
    }
    pthread_mutex_unlock(&common.lock);
}

tpl_code rank_threads_run(rank_threads *t, int n, rank_fn fn, void *arg, tpl_err *e)
{
    unsigned done[MOST_RANKS];
    pthread_mutex_lock(&t->turn);
    t->fn = fn;
    t->arg = arg;
    t->turns = threads_spin_turns(n);
    for (int i = 1; i < n; i++) {
        done[i] = atomic_load(&t->workers[i]->done.count);
        signal_raise(&t->workers[i]->jobs);
    }
    int threads = omp_get_max_threads();
    omp_set_num_threads(1);
    tpl_err first;
    tpl_code rc = fn(arg, 0, &first);
    omp_set_num_threads(threads);
    for (int i = 1; i < n; i++) {
        worker *w = t->workers[i];
        signal_wait(&w->done, done[i], t->turns);
        if (rc == TPL_OK && w->rc != TPL_OK) {
            first = w->err;
            rc = w->rc;
        }
    }
    pthread_mutex_unlock(&t->turn);
    if (rc != TPL_OK && e)
        *e = first;
    return rc;
}
