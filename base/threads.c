#define _GNU_SOURCE
#include "base/threads.h"

#include <sched.h>
#include <unistd.h>

/* About a millisecond: a core that has gone to sleep, a virtual machine's above all, takes 50 to 100 us to wake. */
enum { SPIN_TURNS = 60000, TURNS_A_YIELD = 512 };

int threads_spin_turns(int n)
{
    return n <= threads_usable_cores() ? SPIN_TURNS : 0;
}

void threads_pause(int turn)
{
    __builtin_ia32_pause();
    if (turn % TURNS_A_YIELD == TURNS_A_YIELD - 1)
        sched_yield();
}

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
    b->spin = threads_spin_turns(n);
    atomic_init(&b->waiting, 0);
    atomic_init(&b->sleeping, 0);
    atomic_init(&b->phase, 0);
}

void barrier_fini(barrier *b)
{
    pthread_cond_destroy(&b->turned);
    pthread_mutex_destroy(&b->lock);
}

/* Opens the barrier. Who is about to sleep counts itself before it looks at the phase again, and the phase turns before
 * that count is read: one of both sees the other. */
static void turn(barrier *b, unsigned phase)
{
    atomic_store(&b->waiting, 0);
    atomic_store(&b->phase, phase + 1);
    if (atomic_load(&b->sleeping) == 0)
        return;
    pthread_mutex_lock(&b->lock);
    pthread_cond_broadcast(&b->turned);
    pthread_mutex_unlock(&b->lock);
}

void barrier_wait(barrier *b)
{
    if (b->n == 1)
        return;
    unsigned phase = atomic_load(&b->phase);
    if (atomic_fetch_add(&b->waiting, 1) + 1 == b->n) {
        turn(b, phase);
        return;
    }
    for (int i = 0; i < b->spin; i++) {
        if (atomic_load_explicit(&b->phase, memory_order_acquire) != phase)
            return;
        threads_pause(i);
    }
    pthread_mutex_lock(&b->lock);
    atomic_fetch_add(&b->sleeping, 1);
    while (atomic_load(&b->phase) == phase)
        pthread_cond_wait(&b->turned, &b->lock);
    atomic_fetch_sub(&b->sleeping, 1);
    pthread_mutex_unlock(&b->lock);
}
