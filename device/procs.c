#include "device/procs.h"

#include <stdio.h>
#include <stdlib.h>

#include "device/procs_kind.h"

static const procs_kind *kind; /* NULL: one process, alone */
static procs_place place = {.count = 1, .local_count = 1};

tpl_code procs_open(tpl_err *e)
{
    TPL_TRY(procs_mpi_open(&place, e));
    kind = &procs_mpi;
    return TPL_OK;
}

tpl_code procs_start(int n, int *status, tpl_err *e)
{
    if (n < 1 || n > PROCS_MAX)
        return tpl_fail(e, TPL_E_USAGE, "--tp", "is %d, expected 1 to %d processes", n, PROCS_MAX);
    int rank = 0;
    TPL_TRY(procs_own_start(n, &rank, status, e));
    if (*status == PROCS_IS_RANK) {
        kind = &procs_own;
        place = (procs_place){rank, n, rank, n};
    }
    return TPL_OK;
}

void procs_close(void)
{
    if (kind)
        kind->close();
    kind = NULL;
}

bool procs_opened(void)
{
    return kind != NULL;
}

bool procs_are_own(void)
{
    return kind == &procs_own;
}

int procs_rank(void)
{
    return place.rank;
}

int procs_count(void)
{
    return place.count;
}

int procs_local_rank(void)
{
    return place.local_rank;
}

int procs_local_count(void)
{
    return place.local_count;
}

tpl_code procs_broadcast(void *data, size_t bytes, tpl_err *e)
{
    return kind ? kind->broadcast(data, bytes, e) : TPL_OK;
}

void procs_abort(const char *why, int status)
{
    fprintf(stderr, "tplabench: rank %d: %s\n", place.rank, why);
    fflush(stderr);
    if (kind)
        kind->abort(status);
    exit(status);
}

tpl_code comm_procs_create(comm **handle, tpl_err *e)
{
    if (!kind)
        return tpl_fail(e, TPL_E_USAGE, "--ranks", "is procs or mpi, but one process is here");
    return kind->create_comm(handle, e);
}
