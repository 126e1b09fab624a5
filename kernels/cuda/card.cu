#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/wgmma.cuh"

extern "C" {
#include "kernels/card.h"
}

enum { THREADS = 256 };

/* ---- what code runs here: its shared memory tells ---- */

enum { CODE_STEP = 4096 };

static __global__ void code_kernel(int *out)
{
#if WIDE_CODE
    __shared__ int space[CODE_STEP * (1 + CODE_WARPGROUPS) / 4];
#elif __CUDA_ARCH__ >= 900
    __shared__ int space[CODE_STEP * (1 + CODE_EARLY) / 4];
#else
    __shared__ int space[CODE_STEP / 4];
#endif
    space[threadIdx.x] = out[threadIdx.x];
    __syncthreads();
    out[threadIdx.x] = space[out[threadIdx.x]];
}

cuda_code cuda_code_level(void)
{
    static signed char found[32]; /* 1 + level */
    cudaFuncAttributes f;
    int card = 0;
    if (gpu_count() == 0 || cudaGetDevice(&card) != cudaSuccess)
        return CODE_ANY;
    if (card < 32 && found[card])
        return (cuda_code)(found[card] - 1);
    if (cudaFuncGetAttributes(&f, code_kernel) != cudaSuccess) {
        cudaGetLastError();
        return CODE_ANY;
    }
    cuda_code level = (cuda_code)(f.sharedSizeBytes / CODE_STEP - 1);
    if (card < 32)
        found[card] = (signed char)(1 + level);
    return level;
}

static __global__ void random_kernel(card_random r, int64_t n)
{
    int64_t step = (int64_t)gridDim.x * blockDim.x;
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += step) {
        int64_t c = i % r.cols, row = i / r.cols % r.rows, head = i / r.cols / r.rows;
        cu_bf16 v =
            __float2bfloat16_rn(random_value(r.recipe, r.first + head * r.head_stride + row * r.row_stride + c));
        if (r.dtype == DT_BF16)
            ((cu_bf16 *)r.dst)[i] = v;
        else
            ((float *)r.dst)[i] = __bfloat162float(v);
    }
}

tpl_code card_fill_random(gpu_queue *q, const card_random *r, tpl_err *e)
{
    int64_t n = r->heads * r->rows * r->cols, blocks = (n + THREADS - 1) / THREADS;
    if (n == 0)
        return TPL_OK;
    random_kernel<<<(unsigned)(blocks < 65536 ? blocks : 65536), THREADS, 0, (cudaStream_t)gpu_queue_stream(q)>>>(*r,
                                                                                                                  n);
    return cu_launched("random weights", e);
}

/* grid (rows, columns / THREADS): a thread an element of data. */
template <typename T> static __global__ void collect_kernel(card_collective c)
{
    int64_t col = (int64_t)blockIdx.y * THREADS + threadIdx.x, from = blockIdx.x * c.data_stride + col,
            share = c.width / c.n;
    if (col >= c.width)
        return;
    float sum = 0;
    switch (c.op) {
    case COMM_ALL_REDUCE:
        for (int i = 0; i < c.n; i++)
            sum += cu_get(((const T *)c.data[i])[from]);
        for (int i = 0; i < c.n; i++)
            cu_put((T *)c.data[i] + from, sum);
        return;
    case COMM_REDUCE_SCATTER:
        for (int i = 0; i < c.n; i++)
            sum += cu_get(((const T *)c.data[i])[from]);
        cu_put((T *)c.out[col / share] + blockIdx.x * c.out_stride + col % share, sum);
        return;
    case COMM_ALL_GATHER:
        for (int i = 0; i < c.n; i++)
            for (int j = 0; j < c.n; j++)
                ((T *)c.out[j])[blockIdx.x * c.out_stride + i * c.width + col] = ((const T *)c.data[i])[from];
        return;
    default:
        for (int i = 1; i < c.n; i++)
            ((T *)c.data[i])[from] = ((const T *)c.data[0])[from];
    }
}

tpl_code card_collect(gpu_queue *q, const card_collective *c, tpl_err *e)
{
    dim3 grid((unsigned)c->rows, (unsigned)((c->width + THREADS - 1) / THREADS));
    if (c->rows == 0 || c->width == 0)
        return TPL_OK;
    CU_BY_TYPE(c->dtype, T, collect_kernel<T><<<grid, THREADS, 0, (cudaStream_t)gpu_queue_stream(q)>>>(*c));
    return cu_launched(comm_op_name(c->op), e);
}

/* grid (rows x parts) */
template <typename T>
static __global__ void turn_kernel(const T *from, T *to, int64_t parts, int64_t rows, int64_t share, bool apart)
{
    int64_t row = blockIdx.x / parts, part = blockIdx.x % parts;
    int64_t near = (part * rows + row) * share, wide = (row * parts + part) * share;
    for (int64_t c = threadIdx.x; c < share; c += blockDim.x)
        to[(apart ? near : wide) + c] = from[(apart ? wide : near) + c];
}

tpl_code card_turn(gpu_queue *q, tpl_dtype t, const void *from, void *to, int64_t parts, int64_t rows, int64_t share,
                   bool apart, tpl_err *e)
{
    if (rows * parts * share == 0)
        return TPL_OK;
    CU_BY_TYPE(t, T,
               turn_kernel<T><<<(unsigned)(rows * parts), THREADS, 0, (cudaStream_t)gpu_queue_stream(q)>>>(
                   (const T *)from, (T *)to, parts, rows, share, apart));
    return cu_launched("turn", e);
}

/* ---- the best token: parts of a row first, then the best of them ---- */

enum { BEST_THREADS = 256, BEST_PARTS = 64, BEST_LOADS = 8 }; /* BEST_LOADS: that a thread has in flight */

static __device__ __forceinline__ bool is_better(float v, int at, float than, int than_at)
{
    return at >= 0 && (than_at < 0 || v > than || (v == than && at < than_at));
}

static __device__ __forceinline__ void take_better(float v, int at, float *best, int *best_at)
{
    if (is_better(v, at, *best, *best_at)) {
        *best = v;
        *best_at = at;
    }
}

static __device__ __forceinline__ void best_of_warp(float *best, int *at)
{
    for (int d = 16; d > 0; d /= 2) {
        float other = __shfl_xor_sync(0xffffffffu, *best, d);
        int other_at = __shfl_xor_sync(0xffffffffu, *at, d);
        take_better(other, other_at, best, at);
    }
}

/* grid (rows, BEST_PARTS): a place a part, -1 where it has no number. */
static __global__ void __launch_bounds__(BEST_THREADS) best_part_kernel(const float *logits, int64_t n, int32_t *parts)
{
    __shared__ float values[BEST_THREADS / 32];
    __shared__ int places[BEST_THREADS / 32];
    const float *row = logits + blockIdx.x * n;
    const int64_t step = BEST_PARTS * BEST_THREADS;
    float best = 0;
    int at = -1;
    cu_begin();
    for (int64_t i = (int64_t)blockIdx.y * BEST_THREADS + threadIdx.x; i < n; i += step * BEST_LOADS) {
        float v[BEST_LOADS];
#pragma unroll
        for (int j = 0; j < BEST_LOADS; j++)
            v[j] = i + j * step < n ? row[i + j * step] : NAN;
#pragma unroll
        for (int j = 0; j < BEST_LOADS; j++)
            if (!isnan(v[j]))
                take_better(v[j], (int)(i + j * step), &best, &at);
    }
    best_of_warp(&best, &at);
    if (threadIdx.x % 32 == 0) {
        values[threadIdx.x / 32] = best;
        places[threadIdx.x / 32] = at;
    }
    __syncthreads();
    for (int w = 0; w < BEST_THREADS / 32; w++)
        take_better(values[w], places[w], &best, &at);
    if (threadIdx.x == 0)
        parts[blockIdx.x * BEST_PARTS + blockIdx.y] = at;
}

/* grid (rows), a warp */
static __global__ void best_kernel(const float *logits, int64_t n, const int32_t *parts, int32_t *out)
{
    const float *row = logits + blockIdx.x * n;
    float best = 0;
    int at = -1;
    cu_begin();
    for (int p = threadIdx.x; p < BEST_PARTS; p += 32) {
        int place = parts[blockIdx.x * BEST_PARTS + p];
        take_better(place < 0 ? 0.f : row[place], place, &best, &at);
    }
    best_of_warp(&best, &at);
    if (threadIdx.x == 0)
        out[blockIdx.x] = at < 0 ? 0 : at;
}

tpl_code card_best(gpu_queue *q, const float *logits, int64_t rows, int64_t n, int32_t *out, int32_t *space, tpl_err *e)
{
    cudaStream_t stream = (cudaStream_t)gpu_queue_stream(q);
    if (rows == 0)
        return TPL_OK;
    static_assert((int)BEST_PARTS == (int)CARD_BEST_SPACE, "a place a part");
    cu_launch(stream, best_part_kernel, dim3((unsigned)rows, BEST_PARTS), dim3(BEST_THREADS), 0, logits, n, space);
    cu_launch(stream, best_kernel, dim3((unsigned)rows), dim3(32), 0, logits, n, space, out);
    return cu_launched("best token", e);
}

/* ---- sweeps over memory ---- */

enum { SWEEP_LOADS = 8 }; /* 16-byte loads a thread has in flight */

static __global__ void __launch_bounds__(THREADS) sweep_kernel(uint4 *data, int64_t n, bool update)
{
    int64_t first = (int64_t)blockIdx.x * THREADS * SWEEP_LOADS + threadIdx.x;
    uint4 v[SWEEP_LOADS];
#pragma unroll
    for (int i = 0; i < SWEEP_LOADS; i++)
        v[i] = first + i * THREADS < n ? data[first + i * THREADS] : make_uint4(0, 0, 0, 0);
    unsigned all = 0;
#pragma unroll
    for (int i = 0; i < SWEEP_LOADS; i++) {
        all |= v[i].x & v[i].y & v[i].z & v[i].w;
        v[i].x++;
        if (update && first + i * THREADS < n)
            data[first + i * THREADS] = v[i];
    }
    if (!update && all == 0xffffffffu && first == n) /* never: keeps the loads */
        data[0].x = all;
}

tpl_code card_sweep(gpu_queue *q, void *data, size_t bytes, bool update, tpl_err *e)
{
    int64_t n = (int64_t)(bytes / 16), each = (int64_t)THREADS * SWEEP_LOADS;
    sweep_kernel<<<(unsigned)((n + each - 1) / each), THREADS, 0, (cudaStream_t)gpu_queue_stream(q)>>>((uint4 *)data, n,
                                                                                                       update);
    return cu_launched("sweep", e);
}
