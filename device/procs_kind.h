/* procs_kind.h - one way of joining processes, behind procs.h.
 * For:    procs.c chooses; procs_mpi.c and procs_own.c are the ways.  Enter: those files.
 * Owns:   see procs.h.  Fails: see procs.h. */
#ifndef TPL_DEVICE_PROCS_KIND_H
#define TPL_DEVICE_PROCS_KIND_H

#include "device/procs.h"

typedef struct {
    tpl_code (*broadcast)(void *data, size_t bytes, tpl_err *e);
    void (*abort)(int status);
    tpl_code (*create_comm)(comm **handle, tpl_err *e);
    void (*close)(void);
} procs_kind;

extern const procs_kind procs_mpi, procs_own;

/* Who am I among how many, in the launch and on this host. */
typedef struct {
    int rank, count, local_rank, local_count;
} procs_place;

tpl_code procs_mpi_open(procs_place *out, tpl_err *e);

/* In a process that procs_own_start() made: its rank, else PROCS_IS_RANK means that the caller is the launcher. */
tpl_code procs_own_start(int n, int *rank, int *status, tpl_err *e);

#endif
