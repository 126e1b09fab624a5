/* gpu_peer_none.c - gpu_peer.h in a build without CUDA. */
#include "device/gpu_peer.h"

static tpl_code none(tpl_err *e)
{
    return tpl_fail(e, TPL_E_UNSUPPORTED, "peer memory", "this build has no CUDA");
}

tpl_code gpu_peer_create(gpu *const *cards, int first, int n_local, int n, int size, const gpu_peer_share *share,
                         gpu_peer **out, tpl_err *e)
{
    return none(e);
}

void gpu_peer_destroy(gpu_peer *p) {}

bool gpu_peer_takes(const gpu_peer *p, comm_op op, tpl_dtype t, int64_t rows, int64_t width)
{
    return false;
}

tpl_code gpu_peer_run(gpu_peer *p, comm_op op, tpl_dtype t, int64_t rows, int64_t width, const gpu_comm_part *parts,
                      tpl_err *e)
{
    return none(e);
}

tpl_code gpu_peer_prove(gpu_peer *p, const gpu_peer_share *share, int n, tpl_err *e)
{
    return none(e);
}

tpl_code gpu_peer_check(const gpu_peer *p, tpl_err *e)
{
    return none(e);
}

void gpu_peer_set_patience(gpu_peer *p, int64_t ms) {}

void gpu_peer_set_launch(gpu_peer *p, int pieces, int threads) {}
