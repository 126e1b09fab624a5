/* wgmma.cuh - the matrix instructions of compute capability 9.0, and the barriers that go with them.
 * For:    wide*.cu: attention of whole warpgroups (four warps, 64 rows) over tiles that lie in shared memory.
 * Enter:  kernels/cuda only.
 * Owns:   nothing.
 * Fails:  never. Code for other cards compiles to nothing: the rows of the table say where it may run.
 *
 * A tile in shared memory is cut into blocks of 64 columns: [block][row][64 values], 128 bytes a row, whose eight
 * 16-byte chunks lie at chunk ^ (row % 8); blocks begin at multiples of 1,024 bytes. Read along its columns (queries,
 * keys) such a block is K-major; read along its rows (values) it is MN-major, block after block. */
#ifndef TPL_KERNELS_CUDA_WGMMA_CUH
#define TPL_KERNELS_CUDA_WGMMA_CUH

#include "kernels/cuda/flash.cuh"

#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define WIDE_CODE 1
#else
#define WIDE_CODE 0
#endif

/* What a matrix instruction is told of an operand: where it begins, bytes from a block to the next (MN-major only),
 * bytes from eight rows to the next eight, and that chunks are turned by 128-byte rows. */
static __device__ __forceinline__ uint64_t wide_operand(const void *at, unsigned block_bytes)
{
    return (uint64_t)((smem_at(at) & 0x3ffff) >> 4) | (uint64_t)(block_bytes >> 4) << 16 | (uint64_t)(1024 >> 4) << 32 |
           (uint64_t)1 << 62;
}

/* The same operand `bytes` further on. */
static __device__ __forceinline__ uint64_t wide_ahead(uint64_t operand, unsigned bytes)
{
    return operand + (bytes >> 4);
}

/* Before the first product after registers or shared memory were written. */
static __device__ __forceinline__ void wide_begin()
{
#if WIDE_CODE
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#endif
}

static __device__ __forceinline__ void wide_commit()
{
#if WIDE_CODE
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#endif
}

/* Until at most LEFT groups are under way. */
template <int LEFT> static __device__ __forceinline__ void wide_wait()
{
#if WIDE_CODE
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(LEFT) : "memory");
#endif
}

/* Keeps the compiler from moving uses of sums across this place. */
template <int N> static __device__ __forceinline__ void wide_pin(float (&d)[N][4])
{
#pragma unroll
    for (int n = 0; n < N; n++)
        asm volatile("" : "+f"(d[n][0]), "+f"(d[n][1]), "+f"(d[n][2]), "+f"(d[n][3])::"memory");
}

/* What x comes from is computed before what follows: the assembler moves a wait up as far as the last branch. x >= 0.
 * (A trap instead of the pause costs registers.) */
static __device__ __forceinline__ void wide_before(float x)
{
    if (x < 0)
        asm volatile("nanosleep.u32 1;");
}

/* d [64, 8 N] = or += A B, 16 deep, A and B in shared memory, both K-major. */
template <int N> static __device__ __forceinline__ void wide_keys(float (&d)[N][4], uint64_t a, uint64_t b, int add);
/* d [64, 8 N] += A B, 16 deep, A in shared memory (K-major), B MN-major. */
template <int N> static __device__ __forceinline__ void wide_values(float (&d)[N][4], uint64_t a, uint64_t b);
/* The same with A in registers. */
template <int N>
static __device__ __forceinline__ void wide_values(float (&d)[N][4], const unsigned (&a)[4], uint64_t b);

#if WIDE_CODE
#define WIDE_ASM(...) asm volatile(__VA_ARGS__)
#else
#define WIDE_ASM(...)
#endif
#define WIDE_4(n) "+f"(d[n][0]), "+f"(d[n][1]), "+f"(d[n][2]), "+f"(d[n][3])
#define WIDE_16(n) WIDE_4(n), WIDE_4(n + 1), WIDE_4(n + 2), WIDE_4(n + 3)
#define WIDE_32(n) WIDE_16(n), WIDE_16(n + 4)
#define WIDE_64(n) WIDE_32(n), WIDE_32(n + 8)

template <> __device__ __forceinline__ void wide_keys<8>(float (&d)[8][4], uint64_t a, uint64_t b, int add)
{
    WIDE_ASM("{.reg .pred p; setp.ne.b32 p, %34, 0; wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {"
             "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, "
             "%21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
             "}, %32, %33, p, 1, 1, 0, 0;}"
             : WIDE_32(0)
             : "l"(a), "l"(b), "r"(add));
}

template <> __device__ __forceinline__ void wide_keys<16>(float (&d)[16][4], uint64_t a, uint64_t b, int add)
{
    WIDE_ASM("{.reg .pred p; setp.ne.b32 p, %66, 0; wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {"
             "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, "
             "%21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, "
             "%40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, "
             "%59, %60, %61, %62, %63"
             "}, %64, %65, p, 1, 1, 0, 0;}"
             : WIDE_64(0)
             : "l"(a), "l"(b), "r"(add));
}

template <> __device__ __forceinline__ void wide_values<32>(float (&d)[32][4], uint64_t a, uint64_t b)
{
    WIDE_ASM("wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 {"
             "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, "
             "%21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, "
             "%40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, "
             "%59, %60, %61, %62, %63, %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, "
             "%78, %79, %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, %96, "
             "%97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, %112, "
             "%113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
             "}, %128, %129, 1, 1, 1, 0, 1;"
             : WIDE_64(0), WIDE_64(16)
             : "l"(a), "l"(b));
}

template <> __device__ __forceinline__ void wide_values<16>(float (&d)[16][4], const unsigned (&a)[4], uint64_t b)
{
    WIDE_ASM("wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {"
             "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, "
             "%21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, "
             "%40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, "
             "%59, %60, %61, %62, %63"
             "}, {%64, %65, %66, %67}, %68, 1, 1, 1, 1;"
             : WIDE_64(0)
             : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

template <> __device__ __forceinline__ void wide_values<18>(float (&d)[18][4], const unsigned (&a)[4], uint64_t b)
{
    WIDE_ASM("wgmma.mma_async.sync.aligned.m64n144k16.f32.bf16.bf16 {"
             "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, "
             "%21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, "
             "%40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, "
             "%59, %60, %61, %62, %63, %64, %65, %66, %67, %68, %69, %70, %71"
             "}, {%72, %73, %74, %75}, %76, 1, 1, 1, 1;"
             : WIDE_64(0), WIDE_4(16), WIDE_4(17)
             : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

template <> __device__ __forceinline__ void wide_values<32>(float (&d)[32][4], const unsigned (&a)[4], uint64_t b)
{
    WIDE_ASM("wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 {"
             "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, "
             "%21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, "
             "%40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, "
             "%59, %60, %61, %62, %63, %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, "
             "%78, %79, %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, %96, "
             "%97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, %112, "
             "%113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
             "}, {%128, %129, %130, %131}, %132, 1, 1, 1, 1;"
             : WIDE_64(0), WIDE_64(16)
             : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

#undef WIDE_4
#undef WIDE_16
#undef WIDE_32
#undef WIDE_64
#undef WIDE_ASM

/* ---- barriers in shared memory; a phase ends when as many have arrived as were announced ---- */

static __device__ __forceinline__ void barrier_init(uint64_t *at, int n)
{
    asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(smem_at(at)), "r"(n) : "memory");
}

/* By the thread that has initialised them. */
static __device__ __forceinline__ void barriers_stand()
{
#if WIDE_CODE
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
}

static __device__ __forceinline__ void barrier_arrive(uint64_t *at)
{
    asm volatile("{.reg .b64 s; mbarrier.arrive.shared.b64 s, [%0];}" ::"r"(smem_at(at)) : "memory");
}

/* Arrives once the copies that this thread has begun are there. */
static __device__ __forceinline__ void barrier_arrive_after_copies(uint64_t *at)
{
    asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(smem_at(at)) : "memory");
}

/* Arrives, and announces bytes that copies of boxes will bring. */
static __device__ __forceinline__ void barrier_expect(uint64_t *at, int bytes)
{
#if WIDE_CODE
    asm volatile("{.reg .b64 s; mbarrier.arrive.expect_tx.shared.b64 s, [%0], %1;}" ::"r"(smem_at(at)), "r"(bytes)
                 : "memory");
#endif
}

/* Until the phase of that parity has ended; parity 1 of a new barrier has. */
static __device__ __forceinline__ void barrier_wait(uint64_t *at, unsigned parity)
{
#if WIDE_CODE
    asm volatile("{.reg .pred p;\n"
                 "again: mbarrier.try_wait.parity.shared.b64 p, [%0], %1;\n"
                 "@!p bra again;}" ::"r"(smem_at(at)),
                 "r"(parity)
                 : "memory");
#endif
}

/* Written by ordinary stores or copies, read by matrix instructions from here on. */
static __device__ __forceinline__ void wide_show()
{
#if WIDE_CODE
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

/* Meets N threads at one of the block's numbered barriers; `pass` does not wait. */
static __device__ __forceinline__ void meet(int id, int n)
{
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(n) : "memory");
}

static __device__ __forceinline__ void pass(int id, int n)
{
    asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(n) : "memory");
}

/* Gives registers of a warpgroup away, or takes them. */
template <int N> static __device__ __forceinline__ void registers_down()
{
#if WIDE_CODE
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N));
#endif
}

template <int N> static __device__ __forceinline__ void registers_up()
{
#if WIDE_CODE
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N));
#endif
}

/* Four 8 x 8 tiles of a warp's first operand to shared memory; lane l says where row l % 8 of tile l / 8 begins. */
static __device__ __forceinline__ void store_x4(void *at, const unsigned (&r)[4])
{
#if WIDE_CODE
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(smem_at(at)), "r"(r[0]),
                 "r"(r[1]), "r"(r[2]), "r"(r[3])
                 : "memory");
#endif
}

/* 2^x, to 2 ulp; 0 for -inf. */
static __device__ __forceinline__ float power_of_2(float x)
{
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

#endif
