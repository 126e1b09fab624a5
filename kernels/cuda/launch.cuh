/* launch.cuh - launches that may begin before the one before has ended (programmatic dependent launch, from compute
 * capability 9.0 on; elsewhere they are ordinary ones).
 * For:    kernels that a decode step launches by the hundred.
 * Enter:  kernels/cuda only.
 * Owns:   nothing.
 * Fails:  cu_launched() reports.
 *
 * A kernel launched by cu_launch() must call cu_wait_before() in every thread, before it reads what an earlier launch
 * may write and before it writes anything; weights may be read earlier. As every kernel waits for the one before,
 * completion is passed on along a chain. cu_let_next() lets the next launch's blocks come in where there is room. */
#ifndef TPL_KERNELS_CUDA_LAUNCH_CUH
#define TPL_KERNELS_CUDA_LAUNCH_CUH

#include "device/gpu_early.cuh"
#include "kernels/cuda/cuda.cuh"

/* Place and size in blocks of the cluster along x; 0 of 1 before compute capability 9.0. */
static __device__ __forceinline__ unsigned cu_cluster_rank(void)
{
    unsigned r = 0;
#if __CUDA_ARCH__ >= 900
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(r));
#endif
    return r;
}

static __device__ __forceinline__ void cu_cluster_sync(void)
{
#if __CUDA_ARCH__ >= 900
    asm volatile("barrier.cluster.arrive.aligned;\n barrier.cluster.wait.aligned;" ::: "memory");
#endif
}

/* The same without what has been written: a block's memory stays until the others have read it. */
static __device__ __forceinline__ void cu_cluster_leave(void)
{
#if __CUDA_ARCH__ >= 900
    asm volatile("barrier.cluster.arrive.relaxed.aligned;\n barrier.cluster.wait.aligned;" ::: "memory");
#endif
}

/* A float of another block of the cluster, at the place where this block has `own`. */
static __device__ __forceinline__ float cu_cluster_get(const float *own, unsigned rank)
{
#if __CUDA_ARCH__ >= 900
    unsigned at = (unsigned)__cvta_generic_to_shared(own), there;
    float v;
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(at), "r"(rank));
    asm volatile("ld.shared::cluster.f32 %0, [%1];" : "=f"(v) : "r"(there) : "memory");
    return v;
#else
    return *own;
#endif
}

/* Four of them. */
static __device__ __forceinline__ float4 cu_cluster_get_4(const float *own, unsigned rank)
{
#if __CUDA_ARCH__ >= 900
    unsigned at = (unsigned)__cvta_generic_to_shared(own), there;
    float4 v;
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(at), "r"(rank));
    asm volatile("ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [%4];"
                 : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
                 : "r"(there)
                 : "memory");
    return v;
#else
    return *(const float4 *)own;
#endif
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

/* cluster: blocks along x, 1 where there are no clusters. */
template <typename... Params, typename... Args>
static inline void cu_launch_cluster(cudaStream_t stream, unsigned cluster, void (*kernel)(Params...), dim3 grid,
                                     dim3 block, size_t shared, Args... args)
{
    cudaLaunchConfig_t config = {};
    cudaLaunchAttribute attr[2] = {};
    config.gridDim = grid;
    config.blockDim = block;
    config.dynamicSmemBytes = shared;
    config.stream = stream;
    config.attrs = attr;
    if (cuda_code_level() >= CODE_EARLY && !cu_is_join(stream)) {
        attr[config.numAttrs].id = cudaLaunchAttributeProgrammaticStreamSerialization;
        attr[config.numAttrs++].val.programmaticStreamSerializationAllowed = 1;
    }
    if (cluster > 1) {
        attr[config.numAttrs].id = cudaLaunchAttributeClusterDimension;
        attr[config.numAttrs].val.clusterDim.x = cluster;
        attr[config.numAttrs].val.clusterDim.y = attr[config.numAttrs].val.clusterDim.z = 1;
        config.numAttrs++;
    }
    cudaLaunchKernelEx(&config, kernel, Params(args)...); /* cu_launched() sees a failure */
}

template <typename... Params, typename... Args>
static inline void cu_launch(cudaStream_t stream, void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared,
                             Args... args)
{
    cu_launch_cluster(stream, 1, kernel, grid, block, shared, args...);
}

#endif
