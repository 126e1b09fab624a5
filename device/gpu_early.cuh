/* gpu_early.cuh - how a launch waits for the one before and lets the next one begin (programmatic dependent launch,
 * from compute capability 9.0 on; elsewhere there is nothing to do).
 * For:    kernels/cuda/launch.cuh, which says by which rules, and gpu_peer.cu.
 * Enter:  device/, kernels/cuda.
 * Owns:   nothing.
 * Fails:  never. */
#ifndef TPL_DEVICE_GPU_EARLY_CUH
#define TPL_DEVICE_GPU_EARLY_CUH

#include <cuda_runtime.h>

static __device__ __forceinline__ void cu_wait_before(void)
{
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

static __device__ __forceinline__ void cu_let_next(void)
{
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

/* Both, for kernels that have nothing to bring in early. */
static __device__ __forceinline__ void cu_begin(void)
{
    cu_let_next();
    cu_wait_before();
}

#endif
