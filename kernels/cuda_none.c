/* cuda_none.c - the CUDA backend of a build without it: no rows, and a card's functions that nobody can call. */
#include "kernels/card.h"
#include "kernels/table.h"

const kernel_row table_cuda_rows[] = {{0}};
const int table_n_cuda = 0;

tpl_code card_fill_random(gpu_queue *q, const card_random *r, tpl_err *e)
{
    return tpl_fail(e, TPL_E_UNSUPPORTED, "card", "this build has no CUDA");
}

tpl_code card_turn(gpu_queue *q, tpl_dtype t, const void *from, void *to, int64_t parts, int64_t rows, int64_t share,
                   bool apart, tpl_err *e)
{
    return tpl_fail(e, TPL_E_UNSUPPORTED, "card", "this build has no CUDA");
}

tpl_code card_best(gpu_queue *q, const float *logits, int64_t rows, int64_t n, int32_t *out, int32_t *space, tpl_err *e)
{
    return tpl_fail(e, TPL_E_UNSUPPORTED, "card", "this build has no CUDA");
}

tpl_code card_top(gpu_queue *q, const card_likeliest *c, tpl_err *e)
{
    return tpl_fail(e, TPL_E_UNSUPPORTED, "card", "this build has no CUDA");
}

tpl_code card_sweep(gpu_queue *q, void *data, size_t bytes, bool update, tpl_err *e)
{
    return tpl_fail(e, TPL_E_UNSUPPORTED, "card", "this build has no CUDA");
}

tpl_code card_collect(gpu_queue *q, const card_collective *c, tpl_err *e)
{
    return tpl_fail(e, TPL_E_UNSUPPORTED, "card", "this build has no CUDA");
}

tpl_code card_move_rows(gpu_queue *q, const card_move *m, tpl_err *e)
{
    return tpl_fail(e, TPL_E_UNSUPPORTED, "card", "this build has no CUDA");
}
