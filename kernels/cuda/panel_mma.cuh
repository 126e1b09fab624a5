/* panel_mma.cuh - matrix instructions of panel.cuh: 64 weight rows by 16 to 128 rows of x.
 * For:    panel.cuh.
 * Enter:  kernels/cuda only.
 * Owns:   nothing.
 * Fails:  never. */
#ifndef TPL_KERNELS_CUDA_PANEL_MMA_CUH
#define TPL_KERNELS_CUDA_PANEL_MMA_CUH

#include "kernels/cuda/wgmma.cuh"

#if WIDE_CODE
#define PN_ASM(...) asm volatile(__VA_ARGS__)
#else
#define PN_ASM(...)
#endif
#define PN_4(n) "+f"(d[n][0]), "+f"(d[n][1]), "+f"(d[n][2]), "+f"(d[n][3])
#define PN_8(n) PN_4(n), PN_4(n + 1)
#define PN_16(n) PN_8(n), PN_8(n + 2)
#define PN_32(n) PN_16(n), PN_16(n + 4)

/* d [64, 8 J] = or += A B, 16 deep, both in shared memory; TURNED: A MN-major. By the size of d, J is 2 to 16. */
template <bool TURNED>
static __device__ __forceinline__ void panel_mma(float (&d)[2][4], uint64_t a, uint64_t b, int add)
{
    PN_ASM("{.reg .pred p; setp.ne.b32 p, %10, 0; wgmma.mma_async.sync.aligned.m64n16k16.f32.bf16.bf16 {"
           "%0, %1, %2, %3, %4, %5, %6, %7"
           "}, %8, %9, p, 1, 1, %11, 0;}"
           : PN_8(0)
           : "l"(a), "l"(b), "r"(add), "n"((int)TURNED));
}

template <bool TURNED>
static __device__ __forceinline__ void panel_mma(float (&d)[4][4], uint64_t a, uint64_t b, int add)
{
    PN_ASM("{.reg .pred p; setp.ne.b32 p, %18, 0; wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 {"
           "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
           "}, %16, %17, p, 1, 1, %19, 0;}"
           : PN_16(0)
           : "l"(a), "l"(b), "r"(add), "n"((int)TURNED));
}

template <bool TURNED>
static __device__ __forceinline__ void panel_mma(float (&d)[6][4], uint64_t a, uint64_t b, int add)
{
    PN_ASM("{.reg .pred p; setp.ne.b32 p, %26, 0; wgmma.mma_async.sync.aligned.m64n48k16.f32.bf16.bf16 {"
           "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, "
           "%21, %22, %23"
           "}, %24, %25, p, 1, 1, %27, 0;}"
           : PN_16(0), PN_8(4)
           : "l"(a), "l"(b), "r"(add), "n"((int)TURNED));
}

template <bool TURNED>
static __device__ __forceinline__ void panel_mma(float (&d)[8][4], uint64_t a, uint64_t b, int add)
{
    PN_ASM("{.reg .pred p; setp.ne.b32 p, %34, 0; wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {"
           "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, "
           "%21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
           "}, %32, %33, p, 1, 1, %35, 0;}"
           : PN_32(0)
           : "l"(a), "l"(b), "r"(add), "n"((int)TURNED));
}

template <bool TURNED>
static __device__ __forceinline__ void panel_mma(float (&d)[12][4], uint64_t a, uint64_t b, int add)
{
    PN_ASM("{.reg .pred p; setp.ne.b32 p, %50, 0; wgmma.mma_async.sync.aligned.m64n96k16.f32.bf16.bf16 {"
           "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, "
           "%21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, "
           "%40, %41, %42, %43, %44, %45, %46, %47"
           "}, %48, %49, p, 1, 1, %51, 0;}"
           : PN_32(0), PN_16(8)
           : "l"(a), "l"(b), "r"(add), "n"((int)TURNED));
}

template <bool TURNED>
static __device__ __forceinline__ void panel_mma(float (&d)[16][4], uint64_t a, uint64_t b, int add)
{
    PN_ASM("{.reg .pred p; setp.ne.b32 p, %66, 0; wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {"
           "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, "
           "%21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, "
           "%40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, "
           "%59, %60, %61, %62, %63"
           "}, %64, %65, p, 1, 1, %67, 0;}"
           : PN_32(0), PN_32(8)
           : "l"(a), "l"(b), "r"(add), "n"((int)TURNED));
}

#undef PN_4
#undef PN_8
#undef PN_16
#undef PN_32
#undef PN_ASM

#endif
