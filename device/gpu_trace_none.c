/* gpu_trace_none.c - gpu_trace.h in a build without CUPTI. */
#include "device/gpu_trace.h"

#include <stddef.h>

tpl_code gpu_trace_check(tpl_err *e)
{
    return tpl_fail(e, TPL_E_UNSUPPORTED, "--trace", "this build has no CUPTI, without which nothing says what a card does");
}

bool gpu_trace_has_run(void)
{
    return false;
}

tpl_code gpu_trace_begin(gpu_trace **out, tpl_err *e)
{
    return gpu_trace_check(e);
}

tpl_code gpu_trace_end(gpu_trace *t, tpl_err *e)
{
    return TPL_OK;
}

void gpu_trace_destroy(gpu_trace *t) {}

const gpu_slice *gpu_trace_slices(const gpu_trace *t, int64_t *n)
{
    *n = 0;
    return NULL;
}

int64_t gpu_trace_dropped(const gpu_trace *t)
{
    return 0;
}

int64_t gpu_trace_recorded(const gpu_trace *t, uint64_t mark, gpu_did did)
{
    return 0;
}

void gpu_trace_mark(uint64_t mark) {}

void gpu_trace_pass(int32_t pass) {}

void gpu_trace_hold(void *node, gpu_did did) {}

int32_t gpu_trace_number(void)
{
    return 0;
}
