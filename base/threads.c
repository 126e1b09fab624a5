#define _GNU_SOURCE
#include "base/threads.h"

#include <sched.h>
#include <unistd.h>

/* About a millisecond: a core that has gone to sleep, a virtual machine's above all, takes 50 to 100 us to wake. */
enum { SPIN_TURNS = 60000 };

int threads_usable_cores(void)
{
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0)
        return CPU_COUNT(&set);
    long n = sysconf(_SC_NPROCESSORS_ONLN);
    return n > 0 ? (int)n : 1;
}

void barrier_init(barrier *b, int n)
{
    pthread_mutex_init(&b->lock, NULL);
    pthread_cond_init(&b->turned, NULL);
    b->n = n;
    b->waiting = 0;
    b->spin = n <= threads_usable_cores() ? SPIN_TURNS : 0;
    atomic_init(&b->phase, 0);
}

void barrier_fini(barrier *b)
{
    pthread_cond_destroy(&b->turned);
    pthread_mutex_destroy(&b->lock);
}

void barrier_wait(barrier *b)
{
    if (b->n == 1)
        return;
    unsigned phase = atomic_load(&b->phase);
    pthread_mutex_lock(&b->lock);
    if (++b->waiting == b->n) {
        b->waiting = 0;
        atomic_fetch_add(&b->phase, 1);
        pthread_cond_broadcast(&b->turned);
        pthread_mutex_unlock(&b->lock);
        return;
    }
    pthread_mutex_unlock(&b->lock);
    for (int i = 0; i < b->spin; i++) {
        if (atomic_load_explicit(&b->phase, memory_order_acquire) != phase)
            return;
        __builtin_ia32_pause();
    }
    pthread_mutex_lock(&b->lock);
    while (atomic_load(&b->phase) == phase)
        pthread_cond_wait(&b->turned, &b->lock);
    pthread_mutex_unlock(&b->lock);
}
