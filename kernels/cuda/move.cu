#include "kernels/cuda/cuda.cuh"

extern "C" {
#include "kernels/card.h"
}

enum { THREADS = 256, UNITS = 4 }; /* units a thread has in flight */

static __device__ __forceinline__ int64_t row_at(const int32_t *pages, int page_tok, int token)
{
    return (int64_t)pages[token / page_tok] * page_tok + token % page_tok;
}

/* grid (units of all rows / (THREADS x UNITS), layers): a unit is the widest type that all addresses allow. */
template <typename V> static __global__ void __launch_bounds__(THREADS) move_kernel(card_move m, int units)
{
    const char *from = (const char *)m.from + blockIdx.y * m.from_layer_bytes;
    char *to = (char *)m.to + blockIdx.y * m.to_layer_bytes;
    int64_t n = (int64_t)m.n * units, first = (int64_t)blockIdx.x * THREADS * UNITS + threadIdx.x;
    V v[UNITS];
    V *at[UNITS];
#pragma unroll
    for (int u = 0; u < UNITS; u++) {
        int64_t i = first + u * THREADS;
        if (i >= n)
            continue;
        int row = (int)(i / units), unit = (int)(i % units);
        int64_t a = row_at(m.from_pages, m.page_tok, m.from_first + row * m.from_step);
        int64_t b = row_at(m.to_pages, m.page_tok, m.to_first + row * m.to_step);
        v[u] = ((const V *)(from + a * m.from_row_bytes))[unit];
        at[u] = (V *)(to + b * m.to_row_bytes) + unit;
    }
#pragma unroll
    for (int u = 0; u < UNITS; u++)
        if (first + u * THREADS < n)
            *at[u] = v[u];
}

template <typename V> static void launch(const card_move *m, cudaStream_t s)
{
    int units = m->bytes / (int)sizeof(V);
    int64_t blocks = ((int64_t)m->n * units + THREADS * UNITS - 1) / (THREADS * UNITS);
    move_kernel<V><<<dim3((unsigned)blocks, (unsigned)m->n_layers), THREADS, 0, s>>>(*m, units);
}

tpl_code card_move_rows(gpu_queue *q, const card_move *m, tpl_err *e)
{
    uint64_t all = (uint64_t)(uintptr_t)m->from | (uint64_t)(uintptr_t)m->to | (uint64_t)m->from_layer_bytes |
                   (uint64_t)m->to_layer_bytes | (uint64_t)m->from_row_bytes | (uint64_t)m->to_row_bytes |
                   (uint64_t)m->bytes;
    cudaStream_t s = (cudaStream_t)gpu_queue_stream(q);
    if (m->n == 0 || m->bytes == 0 || m->n_layers == 0)
        return TPL_OK;
    if (all % 16 == 0)
        launch<uint4>(m, s);
    else if (all % 4 == 0)
        launch<uint32_t>(m, s);
    else
        launch<uint16_t>(m, s);
    return cu_launched("hand-off", e);
}
