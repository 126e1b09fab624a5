/* gpu_early.cuh - what launches that may begin before the one before has ended need (programmatic dependent launch, from
 * compute capability 9.0 on; elsewhere they are ordinary ones).
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

/* Whether the launch would wait for more than the one before it: in a recorded walk after queues have met. */
static inline bool cu_is_join(cudaStream_t stream)
{
    cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
    size_t n = 0;
#if CUDART_VERSION >= 13000
    cudaError_t rc = cudaStreamGetCaptureInfo(stream, &status, NULL, NULL, NULL, NULL, &n);
#else
    cudaError_t rc = cudaStreamGetCaptureInfo_v3(stream, &status, NULL, NULL, NULL, NULL, &n);
#endif
    return rc != cudaSuccess || (status == cudaStreamCaptureStatusActive && n > 1);
}

/* Of a launch that has room for one more attribute. */
static inline void cu_may_begin_early(cudaLaunchConfig_t *config)
{
    cudaLaunchAttribute *a = &config->attrs[config->numAttrs++];
    a->id = cudaLaunchAttributeProgrammaticStreamSerialization;
    a->val.programmaticStreamSerializationAllowed = 1;
}

#endif
