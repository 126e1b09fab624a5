#include "device/gpu_judge.h"

enum { LEAST_MAJOR = 8 };

tpl_code gpu_judge_driver(int32_t driver, int32_t runtime, tpl_err *e)
{
    if (driver == 0)
        return tpl_fail(e, TPL_E_DEVICE, "card", "no NVIDIA driver is here");
    if (driver / 1000 < runtime / 1000)
        return tpl_fail(e, TPL_E_DEVICE, "card", "the driver is for CUDA %d.%d, this build needs one for %d.0 or newer",
                        driver / 1000, driver % 1000 / 10, runtime / 1000);
    return TPL_OK;
}

tpl_code gpu_judge(const gpu_facts *f, tpl_err *e)
{
    TPL_TRY(gpu_judge_driver(f->driver, f->runtime, e));
    if (f->major < LEAST_MAJOR)
        return tpl_fail(e, TPL_E_DEVICE, f->name, "compute capability is %d.%d, expected %d.0 or newer", f->major,
                        f->minor, LEAST_MAJOR);
    return TPL_OK;
}
