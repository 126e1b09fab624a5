#include "kernels/cuda/cuda.cuh"

extern "C" {
#include "kernels/card.h"
}

enum { THREADS = 256 };

static __global__ void random_kernel(card_random r, int64_t n)
{
    int64_t step = (int64_t)gridDim.x * blockDim.x;
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += step) {
        int64_t c = i % r.cols, row = i / r.cols % r.rows, head = i / r.cols / r.rows;
        cu_bf16 v = __float2bfloat16_rn(random_value(r.recipe, r.first + head * r.head_stride + row * r.row_stride + c));
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
    random_kernel<<<(unsigned)(blocks < 65536 ? blocks : 65536), THREADS, 0, (cudaStream_t)gpu_queue_stream(q)>>>(*r, n);
    return cu_launched("random weights", e);
}

/* grid (rows, columns / THREADS): a thread an element of data. */
template <typename T> static __global__ void collect_kernel(card_collective c)
{
    int64_t col = (int64_t)blockIdx.y * THREADS + threadIdx.x, from = blockIdx.x * c.data_stride + col, share = c.width / c.n;
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

tpl_code card_turn(gpu_queue *q, tpl_dtype t, const void *from, void *to, int64_t parts, int64_t rows, int64_t share, bool apart, tpl_err *e)
{
    if (rows * parts * share == 0)
        return TPL_OK;
    CU_BY_TYPE(t, T, turn_kernel<T><<<(unsigned)(rows * parts), THREADS, 0, (cudaStream_t)gpu_queue_stream(q)>>>((const T *)from, (T *)to, parts, rows, share, apart));
    return cu_launched("turn", e);
}
