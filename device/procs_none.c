/* procs_none.c - procs.h in a build without MPI: one process, alone. */
#include <stdio.h>
#include <stdlib.h>

#include "device/procs.h"

bool procs_built_in(void)
{
    return false;
}

static tpl_code unsupported(tpl_err *e)
{
    return tpl_fail(e, TPL_E_UNSUPPORTED, "--ranks", "mpi needs a build with MPI (Debian: libopenmpi-dev)");
}

tpl_code procs_open(tpl_err *e)
{
    return unsupported(e);
}

void procs_close(void)
{
}

bool procs_opened(void)
{
    return false;
}

int procs_rank(void)
{
    return 0;
}

int procs_count(void)
{
    return 1;
}

tpl_code procs_broadcast(void *data, size_t bytes, tpl_err *e)
{
    return unsupported(e);
}

void procs_abort(const char *why, int status)
{
    fprintf(stderr, "tplabench: %s\n", why);
    exit(status);
}

tpl_code comm_procs_create(comm **handle, tpl_err *e)
{
    return unsupported(e);
}
