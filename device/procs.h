/* procs.h - the processes of one launch: who am I, tell all, gather from all. MPI behind it, where it was built in.
 * For:    engine/remote.c (rank 0 leads, the others follow) and teams whose ranks are processes.
 * Enter:  engine/, cli/main.c, tests/.
 * Owns:   procs_open() .. procs_close() own MPI's state of this process.
 * Fails:  TPL_E_UNSUPPORTED in a build without MPI; TPL_E_DEVICE where MPI fails. A process that ends on its own takes the
 *         others with it: the launcher ends them and names its rank. */
#ifndef TPL_DEVICE_PROCS_H
#define TPL_DEVICE_PROCS_H

#include <stdbool.h>
#include <stddef.h>

#include "device/comm.h"

bool procs_built_in(void);
tpl_code procs_open(tpl_err *e);
void procs_close(void); /* all processes must come here */

bool procs_opened(void);
int procs_rank(void);
int procs_count(void); /* 1 before procs_open() */

/* data[bytes] of process 0 to all. */
tpl_code procs_broadcast(void *data, size_t bytes, tpl_err *e);

/* Prints "rank N: why" and ends every process of the launch with `status`. */
void procs_abort(const char *why, int status) __attribute__((noreturn));

/* This process's handle in a team of all processes. Reductions add in rank order: bit for bit what thread ranks give. */
tpl_code comm_procs_create(comm **handle, tpl_err *e);

#endif
