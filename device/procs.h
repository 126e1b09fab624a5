/* procs.h - the processes of one launch: who am I, tell all, gather from all. Started by mpirun, or by the program
 * itself on one host. For:    engine/remote.c (rank 0 leads, the others follow) and teams whose ranks are processes.
 * Enter:  engine/, cli/main.c, tests/.
 * Owns:   procs_open() .. procs_close() own MPI's state of this process; procs_start() owns the processes it started.
 * Fails:  TPL_E_UNSUPPORTED for MPI in a build without it; TPL_E_DEVICE where MPI fails or no process can be started. A
 *         process that ends on its own takes the others with it: the launcher ends them and names its rank. */
#ifndef TPL_DEVICE_PROCS_H
#define TPL_DEVICE_PROCS_H

#include <stdbool.h>
#include <stddef.h>

#include "device/comm.h"

tpl_code procs_open(tpl_err *e); /* under mpirun */
void procs_close(void);          /* all processes must come here */

enum { PROCS_MAX = 64, PROCS_IS_RANK = -1 };

/* Starts n ranks as copies of this process, before it has made threads. Returns in each of them with *status
 * PROCS_IS_RANK, and in the caller, once all have ended, with the exit status of the launch: rank 0's, or that of the
 * first rank that died or failed. That rank and the reason are then printed, and the others are ended, within
 * seconds. */
tpl_code procs_start(int n, int *status, tpl_err *e);

bool procs_opened(void);
bool procs_are_own(void); /* procs_start() made this process: all ranks are on this host */
int procs_rank(void);
int procs_count(void); /* 1 before procs_open() or procs_start() */
/* The same among the processes of this host. */
int procs_local_rank(void);
int procs_local_count(void);

/* data[bytes] of process 0 to all. */
tpl_code procs_broadcast(void *data, size_t bytes, tpl_err *e);

/* Prints "rank N: why" and ends every process of the launch with `status`. */
void procs_abort(const char *why, int status) __attribute__((noreturn));

/* This process's handle in a team of all processes. Reductions add in rank order: bit for bit what thread ranks give.
 */
tpl_code comm_procs_create(comm **handle, tpl_err *e);

#endif
