/* card_top.cu - the likeliest tokens of a row of logits and their shares of its softmax. A row is cut into parts; a block
 * holds its part in shared memory and takes the best value out k times, as does a block for the parts' finds. */
#include "kernels/cuda/cuda.cuh"

extern "C" {
#include "kernels/card.h"
}

enum { PARTS = 64, PART_THREADS = 256, MERGE_THREADS = 128, MOST = CARD_TOP_MOST, MOST_PART = 11 << 10 };

typedef struct {
    float v;
    int at; /* -1: nothing */
} find;

static __device__ __forceinline__ find better(find a, find b)
{
    bool second = b.at >= 0 && (a.at < 0 || b.v > a.v || (b.v == a.v && b.at < a.at));
    return second ? b : a;
}

/* The best over a block, in every thread. space: one a warp. */
static __device__ find best_of_block(find mine, find *space)
{
    for (int d = 16; d > 0; d /= 2) {
        find other = {__shfl_xor_sync(0xffffffffu, mine.v, d), __shfl_xor_sync(0xffffffffu, mine.at, d)};
        mine = better(mine, other);
    }
    __syncthreads();
    if (threadIdx.x % 32 == 0)
        space[threadIdx.x / 32] = mine;
    __syncthreads();
    for (unsigned w = 0; w < blockDim.x / 32; w++)
        mine = better(mine, space[w]);
    return mine;
}

/* A part's finds in `space`: MOST values, MOST places (as bits), its greatest value, its sum of exponentials. */
static __device__ __forceinline__ float *place_of(const card_likeliest &c, int64_t row, int part)
{
    return c.space + (row * PARTS + part) * (2 * MOST + 2);
}

/* grid (rows, PARTS) */
static __global__ void __launch_bounds__(PART_THREADS) part_kernel(card_likeliest c)
{
    extern __shared__ float part[];
    __shared__ find finds[PART_THREADS / 32];
    __shared__ float sums[PART_THREADS / 32];
    int64_t share = (c.n + PARTS - 1) / PARTS, first = blockIdx.y * share;
    int n = (int)(first < c.n ? (c.n - first < share ? c.n - first : share) : 0);
    const float *row = c.logits + blockIdx.x * c.n + first;
    float *out = place_of(c, blockIdx.x, blockIdx.y), sum = 0, most = 0;
    for (int i = threadIdx.x; i < n; i += PART_THREADS)
        part[i] = row[i];
    __syncthreads();
    for (int k = 0; k < c.k; k++) {
        find mine = {0, -1};
        for (int i = threadIdx.x; i < n; i += PART_THREADS)
            if (!isnan(part[i]))
                mine = better(mine, find{part[i], i});
        mine = best_of_block(mine, finds);
        if (k == 0) {
            most = mine.v;
            for (int i = threadIdx.x; i < n; i += PART_THREADS)
                sum += isnan(part[i]) ? 0 : expf((part[i] - most) / *c.temperature);
            sum = cu_block_sum(sum, sums);
        }
        if (threadIdx.x == 0) {
            out[k] = mine.v;
            out[MOST + k] = __int_as_float(mine.at < 0 ? -1 : (int)(first + mine.at));
        }
        if (mine.at >= 0 && threadIdx.x == mine.at % PART_THREADS)
            part[mine.at] = __int_as_float(0x7fffffff); /* NaN: taken */
        __syncthreads();
    }
    if (threadIdx.x == 0) {
        out[2 * MOST] = n > 0 && __float_as_int(out[MOST]) >= 0 ? most : -INFINITY;
        out[2 * MOST + 1] = sum;
    }
}

/* grid (rows) */
static __global__ void __launch_bounds__(MERGE_THREADS) merge_kernel(card_likeliest c)
{
    __shared__ find all[PARTS * MOST], finds[MERGE_THREADS / 32];
    __shared__ float sums[MERGE_THREADS / 32];
    float most = 0, sum = 0;
    int n = PARTS * c.k;
    for (int i = threadIdx.x; i < n; i += MERGE_THREADS) {
        const float *p = place_of(c, blockIdx.x, i / c.k);
        all[i] = find{p[i % c.k], __float_as_int(p[MOST + i % c.k])};
    }
    __syncthreads();
    for (int k = 0; k < c.k; k++) {
        find mine = {0, -1};
        for (int i = threadIdx.x; i < n; i += MERGE_THREADS)
            mine = better(mine, all[i]);
        mine = best_of_block(mine, finds);
        if (k == 0) {
            most = mine.v;
            for (int i = threadIdx.x; i < PARTS; i += MERGE_THREADS) {
                const float *p = place_of(c, blockIdx.x, i);
                if (p[2 * MOST] > -INFINITY)
                    sum += p[2 * MOST + 1] * expf((p[2 * MOST] - most) / *c.temperature);
            }
            sum = cu_block_sum(sum, sums);
        }
        if (threadIdx.x == 0) {
            c.tokens[blockIdx.x * c.k + k] = mine.at;
            c.shares[blockIdx.x * c.k + k] = mine.at < 0 ? 0 : expf((mine.v - most) / *c.temperature) / sum;
        }
        for (int i = threadIdx.x; i < n; i += MERGE_THREADS)
            if (all[i].at == mine.at)
                all[i].at = -1;
        __syncthreads();
    }
}

tpl_code card_top(gpu_queue *q, const card_likeliest *c, tpl_err *e)
{
    cudaStream_t stream = (cudaStream_t)gpu_queue_stream(q);
    int64_t share = (c->n + PARTS - 1) / PARTS;
    if (c->rows == 0)
        return TPL_OK;
    if (c->k < 1 || c->k > MOST || share > MOST_PART)
        return tpl_fail(e, TPL_E_UNSUPPORTED, "likeliest tokens", "%d of %lld, expected at most %d of %d", c->k,
                        (long long)c->n, MOST, MOST_PART * PARTS);
    static_assert((int)CARD_TOP_SPACE == PARTS * (2 * MOST + 2), "what parts leave");
    part_kernel<<<dim3((unsigned)c->rows, PARTS), PART_THREADS, (size_t)share * sizeof(float), stream>>>(*c);
    merge_kernel<<<(unsigned)c->rows, MERGE_THREADS, 0, stream>>>(*c);
    return cu_launched("likeliest tokens", e);
}
