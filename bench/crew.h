/* crew.h - threads that start a piece of work together.
 * For:    ceilings by thread count, kernels in several threads at once, collectives between thread ranks.
 * Enter:  bench/, tests/.
 * Owns:   crew_create() owns n - 1 threads; the caller's is the other one. Each has one OpenMP thread while it works.
 * Fails:  TPL_E_DEVICE where a thread cannot be started. */
#ifndef TPL_BENCH_CREW_H
#define TPL_BENCH_CREW_H

#include "base/error.h"

typedef struct crew crew;
typedef tpl_code (*crew_fn)(void *arg, int member, tpl_err *e);

tpl_code crew_create(int n, crew **out, tpl_err *e);
void crew_destroy(crew *c);
int crew_size(const crew *c);

/* Calls fn(arg, i) on every member's thread and waits; gives the first failing member's error. */
tpl_code crew_run(crew *c, crew_fn fn, void *arg, tpl_err *e);
/* For use inside fn: waits until all members are here. */
void crew_meet(crew *c);

#endif
