/* gpu_comm_none.c - gpu_comm.h in a build without NCCL. */
#include "device/gpu_comm.h"

#include <assert.h>

static tpl_code none(tpl_err *e)
{
    return tpl_fail(e, TPL_E_UNSUPPORTED, "NCCL", "this build has none, so that ranks cannot have a card each");
}

bool gpu_comm_is_built(void)
{
    return false;
}

const char *gpu_comm_version(void)
{
    return "";
}

tpl_code gpu_comm_new_id(gpu_comm_id *out, tpl_err *e)
{
    return none(e);
}

tpl_code gpu_comm_create(gpu *const *cards, int first, int n_local, int n, const gpu_comm_id *id, gpu_comm **out,
                         tpl_err *e)
{
    return none(e);
}

void gpu_comm_destroy(gpu_comm *c)
{
    assert(!c);
}

tpl_code gpu_comm_split(gpu_comm *c, int size, tpl_err *e)
{
    return none(e);
}

void gpu_comm_choose(gpu_comm *c, gpu_comm_way way)
{
}

bool gpu_comm_goes_peer(const gpu_comm *c, comm_op op, int size, tpl_dtype t, int64_t rows, int64_t width)
{
    return false;
}

const char *gpu_comm_why_not_peer(const gpu_comm *c, int size)
{
    return "this build has no NCCL";
}

tpl_code gpu_comm_check(const gpu_comm *c, tpl_err *e)
{
    return TPL_OK;
}

tpl_code gpu_comm_run(gpu_comm *c, comm_op op, int size, tpl_dtype t, int64_t rows, int64_t width,
                      const gpu_comm_part *parts, tpl_err *e)
{
    return none(e);
}
