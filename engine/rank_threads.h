/* rank_threads.h - threads that run ranks 1, 2, ... of a team while the caller's runs rank 0.
 * For:    team.c.
 * Enter:  engine/.
 * Owns:   rank_threads_open() .. rank_threads_close(). Threads opened as shared are one set for all teams of the
 * process: of teams that take turns, as a draft and a base do, rank i always finds its thread awake, on a core of its
 * own. Fails:  TPL_E_DEVICE where a thread cannot be started.
 *
 * Threads and caller look for news for about a millisecond before they sleep where the ranks fit the cores: waking
 * takes up to 100 us. Each has one OpenMP thread while it works. */
#ifndef TPL_ENGINE_RANK_THREADS_H
#define TPL_ENGINE_RANK_THREADS_H

#include <stdbool.h>

#include "base/error.h"

typedef struct rank_threads rank_threads;
typedef tpl_code (*rank_fn)(void *arg, int rank, tpl_err *e);

/* For teams of up to n ranks. */
tpl_code rank_threads_open(int n, bool shared, rank_threads **out, tpl_err *e);
void rank_threads_close(rank_threads *t);

/* Calls fn(arg, i) for ranks [0, n) and waits; gives the first failing rank's error. Calls of several threads take
 * turns. */
tpl_code rank_threads_run(rank_threads *t, int n, rank_fn fn, void *arg, tpl_err *e);

#endif
