#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include "device/gpu_early.cuh"

extern "C" {
#include "device/gpu_peer_kernel.h"
}

enum { SPINS_A_LOOK = 1024 };

/* ---- pieces ---- */

static __device__ __forceinline__ uint4 load_staged(const uint4 *at)
{
    uint4 v;
    asm volatile("ld.volatile.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(at)
                 : "memory");
    return v;
}

static __device__ __forceinline__ void store_staged(uint4 *at, uint4 v)
{
    asm volatile("st.volatile.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(at), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w)
                 : "memory");
}

static __device__ __forceinline__ uint32_t sendable(uint32_t word)
{
    return word == 0xffffffffu ? 0x7fffffffu : word;
}

static __device__ __forceinline__ uint4 load_sendable(const uint4 *at)
{
    uint4 v = *at;
    return make_uint4(sendable(v.x), sendable(v.y), sendable(v.z), sendable(v.w));
}

static __device__ __forceinline__ bool has_arrived(uint4 v)
{
    return v.x != 0xffffffffu && v.y != 0xffffffffu && v.z != 0xffffffffu && v.w != 0xffffffffu;
}

/* The sum of all ranks' pieces, in rank order, rounded once. */
template <typename T, int K> struct sum_pieces;

template <int K> struct sum_pieces<float, K> {
    static __device__ __forceinline__ uint32_t word(const uint32_t *w)
    {
        float s = __uint_as_float(w[0]);
#pragma unroll
        for (int r = 1; r < K; r++)
            s += __uint_as_float(w[r]);
        return __float_as_uint(s);
    }
};

template <int K> struct sum_pieces<__nv_bfloat16, K> {
    static __device__ __forceinline__ uint32_t word(const uint32_t *w)
    {
        float lo = __uint_as_float(w[0] << 16), hi = __uint_as_float(w[0] & 0xffff0000u);
#pragma unroll
        for (int r = 1; r < K; r++) {
            lo += __uint_as_float(w[r] << 16);
            hi += __uint_as_float(w[r] & 0xffff0000u);
        }
        __nv_bfloat162 both = __floats2bfloat162_rn(lo, hi);
        return *reinterpret_cast<uint32_t *>(&both);
    }
};

template <typename T, int K> static __device__ __forceinline__ uint4 sum_of(const uint4 *v)
{
    uint32_t x[K], y[K], z[K], w[K];
#pragma unroll
    for (int r = 0; r < K; r++) {
        x[r] = v[r].x;
        y[r] = v[r].y;
        z[r] = v[r].z;
        w[r] = v[r].w;
    }
    return make_uint4(sum_pieces<T, K>::word(x), sum_pieces<T, K>::word(y), sum_pieces<T, K>::word(z),
                      sum_pieces<T, K>::word(w));
}

/* ---- waiting ---- */

static __device__ __forceinline__ int64_t now_ns(void)
{
    int64_t t;
    asm volatile("mov.u64 %0, %globaltimer;" : "=l"(t));
    return t;
}

static __device__ __noinline__ void give_up(const peer_view &v, int rank, uint32_t exchange)
{
    if (atomicExch(&v.state->failed, 1u) != 0)
        return;
    v.failure->silent_rank = (uint32_t)rank;
    v.failure->exchange = exchange;
    __threadfence_system();
    v.failure->failed = 1;
}

/* Loads until the piece is whole. Looks at the clock, and whether another thread has given up, once in a while. */
static __device__ __forceinline__ uint4 wait_for(const peer_view &v, const uint4 *at, uint4 piece, int rank,
                                                 uint32_t exchange)
{
    int64_t begin = 0;
    for (int spins = 1; !has_arrived(piece); spins++) {
        piece = load_staged(at);
        if (spins % SPINS_A_LOOK != 0)
            continue;
        int64_t now = now_ns();
        begin = begin ? begin : now;
        if (*(volatile uint32_t *)&v.state->failed)
            break;
        if (now - begin > v.patience_ns) {
            give_up(v, rank, exchange);
            break;
        }
    }
    return piece;
}

/* ---- the exchange ---- */

/* Where piece i of the group's rank r lies in this rank's data (reduce-scatter) or out (gather). */
static __device__ __forceinline__ int64_t wide_at(int i, int row_n, int r, int size)
{
    return ((int64_t)(i / row_n) * size + r) * row_n + i % row_n;
}

/* A thread takes U pieces: sends all, then waits for each. OP is a comm_op. */
template <comm_op OP, typename T, int K, int U>
static __global__ void __launch_bounds__(512)
    exchange_kernel(peer_view v, const uint4 *data, uint4 *out, int n, int row_n)
{
    const uint4 empty = make_uint4(~0u, ~0u, ~0u, ~0u);
    if (v.lets_next)
        cu_let_next();
    uint32_t exchange = *(volatile uint32_t *)&v.state->exchange;
    int64_t slot = (int64_t)(exchange & 1) * K * v.slot_bytes;
    int first = blockIdx.x * blockDim.x * U + threadIdx.x;
    uint4 own[U];
#pragma unroll
    for (int u = 0; u < U; u++) {
        int i = first + u * (int)blockDim.x;
        if (i < n)
            own[u] = load_sendable(data + (OP == COMM_REDUCE_SCATTER ? wide_at(i, row_n, v.me, K) : i));
    }
#pragma unroll
    for (int u = 0; u < U; u++) {
        int i = first + u * (int)blockDim.x;
#pragma unroll
        for (int k = 1; k < K; k++) {
            int to = (v.me + k) % K;
            if (i >= n)
                continue;
            uint4 piece = OP == COMM_REDUCE_SCATTER ? load_sendable(data + wide_at(i, row_n, to, K)) : own[u];
            store_staged((uint4 *)(v.staging[to] + slot + v.me * v.slot_bytes) + i, piece);
        }
    }
    __syncthreads(); /* all of the block have read the exchange's number */
    if (threadIdx.x == 0 && atomicAdd(&v.state->arrived, 1u) == gridDim.x - 1) {
        v.state->arrived = 0;
        v.state->exchange = exchange + 1;
    }
    char *mine = v.staging[v.me] + slot;
#pragma unroll
    for (int u = 0; u < U; u++) {
        int i = first + u * (int)blockDim.x;
        if (i >= n)
            continue;
        uint4 all[K];
#pragma unroll
        for (int r = 0; r < K; r++)
            all[r] = r == v.me ? own[u] : load_staged((const uint4 *)(mine + r * v.slot_bytes) + i);
#pragma unroll
        for (int r = 0; r < K; r++) {
            uint4 *at = (uint4 *)(mine + r * v.slot_bytes) + i;
            if (r == v.me)
                continue;
            all[r] = wait_for(v, at, all[r], r, exchange);
            *at = empty;
        }
        if (OP == COMM_ALL_GATHER) {
#pragma unroll
            for (int r = 0; r < K; r++)
                out[wide_at(i, row_n, r, K)] = all[r];
        } else if (OP == COMM_BROADCAST) {
            if (v.me != 0)
                out[i] = all[0];
        } else {
            out[i] = sum_of<T, K>(all);
        }
    }
}

/* ---- launching ---- */

template <comm_op OP, typename T, int K, int U>
static void launch(const peer_view *v, const peer_call *c, cudaStream_t s)
{
    int each = c->threads * U;
    exchange_kernel<OP, T, K, U><<<(unsigned)((c->n + each - 1) / each), (unsigned)c->threads, 0, s>>>(
        *v, (const uint4 *)c->data, (uint4 *)c->out, c->n, c->row_n);
}

/* Larger groups have other ranks' pieces to wait for in the meantime. */
template <comm_op OP, typename T, int K>
static void launch_pieces(const peer_view *v, const peer_call *c, cudaStream_t s)
{
    if (K == 2 && c->pieces >= 4)
        launch<OP, T, K, K == 2 ? 4 : 1>(v, c, s);
    else if (K <= 4 && c->pieces >= 2)
        launch<OP, T, K, K <= 4 ? 2 : 1>(v, c, s);
    else
        launch<OP, T, K, 1>(v, c, s);
}

template <comm_op OP, typename T> static bool launch_size(const peer_view *v, const peer_call *c, cudaStream_t s)
{
    switch (v->size) {
    case 2:
        launch_pieces<OP, T, 2>(v, c, s);
        return true;
    case 4:
        launch_pieces<OP, T, 4>(v, c, s);
        return true;
    case 8:
        launch_pieces<OP, T, 8>(v, c, s);
        return true;
    default:
        return false;
    }
}

static bool launch_op(const peer_view *v, const peer_call *c, cudaStream_t s)
{
    bool f32 = c->type == DT_F32;
    if (c->op == COMM_ALL_GATHER) /* moves words, whatever they are */
        return launch_size<COMM_ALL_GATHER, float>(v, c, s);
    if (c->op == COMM_BROADCAST) /* as a gather, so that nobody runs ahead of the slots that others still read */
        return launch_size<COMM_BROADCAST, float>(v, c, s);
    if (c->op == COMM_ALL_REDUCE)
        return f32 ? launch_size<COMM_ALL_REDUCE, float>(v, c, s)
                   : launch_size<COMM_ALL_REDUCE, __nv_bfloat16>(v, c, s);
    return f32 ? launch_size<COMM_REDUCE_SCATTER, float>(v, c, s)
               : launch_size<COMM_REDUCE_SCATTER, __nv_bfloat16>(v, c, s);
}

tpl_code gpu_peer_launch(const peer_view *v, const peer_call *c, gpu_queue *q, tpl_err *e)
{
    if (!launch_op(v, c, (cudaStream_t)gpu_queue_stream(q)))
        return tpl_fail(e, TPL_E_UNSUPPORTED, comm_op_name(c->op), "groups of %d, expected 2, 4 or 8", v->size);
    cudaError_t rc = cudaGetLastError();
    if (rc != cudaSuccess)
        return tpl_fail(e, TPL_E_DEVICE, comm_op_name(c->op), "launch failed: %s", cudaGetErrorName(rc));
    return TPL_OK;
}
