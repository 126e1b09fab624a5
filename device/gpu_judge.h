/* gpu_judge.h - whether a card and its driver can run this build, from facts alone.
 * For:    gpu_open(); tests without a card.
 * Enter:  device/, tests/.
 * Owns:   nothing.
 * Fails:  TPL_E_DEVICE for a driver that is absent or too old, and for an architecture below 8.0. */
#ifndef TPL_DEVICE_GPU_JUDGE_H
#define TPL_DEVICE_GPU_JUDGE_H

#include "device/gpu.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Versions as CUDA numbers them (13000 is 13.0); driver 0: there is none. A driver runs what was built for any runtime
 * of its major version. */
tpl_code gpu_judge_driver(int32_t driver, int32_t runtime, tpl_err *e);
tpl_code gpu_judge(const gpu_facts *f, tpl_err *e);

#ifdef __cplusplus
}
#endif

#endif
