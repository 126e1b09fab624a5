/* copies.cuh - copies of 16 bytes from memory to shared memory that threads do not wait for (cp.async).
 * For:    kernels that stream weights or caches.
 * Enter:  kernels/cuda only.
 * Owns:   nothing.
 * Fails:  never. */
#ifndef TPL_KERNELS_CUDA_COPIES_CUH
#define TPL_KERNELS_CUDA_COPIES_CUH

#include "kernels/cuda/cuda.cuh"

static __device__ __forceinline__ unsigned smem_at(const void *p)
{
    return (unsigned)__cvta_generic_to_shared(p);
}

/* 16 bytes, or zeros where !there. */
static __device__ __forceinline__ void copy_chunk(uint4 *to, const void *from, bool there)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(smem_at(to)), "l"(from), "r"(there ? 16 : 0)
                 : "memory");
}

/* The same of a stream: the line's other half comes as far as the second-level cache. */
static __device__ __forceinline__ void copy_stream(uint4 *to, const void *from, bool there)
{
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(smem_at(to)), "l"(from),
                 "r"(there ? 16 : 0)
                 : "memory");
}

/* Ends a group of copies. */
static __device__ __forceinline__ void copies_commit(void)
{
    asm volatile("cp.async.commit_group;" ::: "memory");
}

/* Until all but the last LEFT groups of this thread are there. */
template <int LEFT> static __device__ __forceinline__ void copies_wait(void)
{
    asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory");
}

#endif
