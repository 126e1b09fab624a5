/* copies.cuh - copies of 16 bytes from memory to shared memory that threads do not wait for (cp.async).
 * For:    kernels that stream weights.
 * Enter:  kernels/cuda only.
 * Owns:   nothing.
 * Fails:  never. */
#ifndef TPL_KERNELS_CUDA_COPIES_CUH
#define TPL_KERNELS_CUDA_COPIES_CUH

#include "kernels/cuda/cuda.cuh"

/* Zeros where !there; the line's other half comes as far as the second-level cache. */
static __device__ __forceinline__ void cu_copy(uint4 *to, const void *from, bool there)
{
    unsigned at = (unsigned)__cvta_generic_to_shared(to), n = there ? 16 : 0;
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(at), "l"(from), "r"(n) : "memory");
}

/* Ends a group of copies. */
static __device__ __forceinline__ void cu_copies_commit(void)
{
    asm volatile("cp.async.commit_group;" ::: "memory");
}

/* Until all but the last N groups of this thread are there. */
template <int N> static __device__ __forceinline__ void cu_copies_wait(void)
{
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

#endif
