/* procs_mpi_none.c - ranks under mpirun in a build without MPI: there are none. */
#include "device/procs_kind.h"

tpl_code procs_mpi_open(procs_place *out, tpl_err *e)
{
    return tpl_fail(e, TPL_E_UNSUPPORTED, "--ranks", "mpi needs a build with MPI (Debian: libopenmpi-dev)");
}

const procs_kind procs_mpi = {0};
