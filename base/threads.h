/* threads.h - a barrier that suits machines with fewer cores than ranks.
 * For:    thread ranks and their collectives.  Enter: device/, engine/, bench/, tests/.
 * Owns:   a barrier lives in the caller's storage (init/fini).
 * Fails:  never; every waiter must belong to the same group of n threads. */
#ifndef TPL_BASE_THREADS_H
#define TPL_BASE_THREADS_H

#include <pthread.h>
#include <stdatomic.h>

typedef struct {
    pthread_mutex_t lock; /* for waiters that sleep */
    pthread_cond_t turned;
    int n, spin;
    atomic_int sleeping;
    _Alignas(64) atomic_int waiting; /* apart from `phase`, which waiters read all the time */
    _Alignas(64) atomic_uint phase;
} barrier;

/* Waiters spin briefly only if n threads fit the cores this process may use; else they block at once. */
void barrier_init(barrier *b, int n);
void barrier_fini(barrier *b);
void barrier_wait(barrier *b);

int threads_usable_cores(void); /* cores in this process's affinity mask */

/* For waiters that look before they sleep: how often, if n threads fit the cores, else 0; and what to do after look number
 * `turn`, which now and then lets others run. */
int threads_spin_turns(int n);
void threads_pause(int turn);

#endif
