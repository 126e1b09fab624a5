/* attn_gqa of single rows at short contexts, in one launch: eight blocks a sequence and key head, a cluster, share its
 * tokens and join what they have through each other's shared memory, from compute capability 9.0 on. The ropes and the
 * kv_append in front may be part of it: queries are turned as they are read, the new token goes from the products'
 * output to the block that it belongs to, and from there to the cache; the queries are written back turned when all
 * blocks have read them. bytes  2 * (2 rows * heads * dim + 2 tokens * kv_heads * dim); bound: launches, then memory.
 * check  ref, tolerance "bf16_attn"; joined, the calls one by one. */
#include "kernels/cuda/few.cuh"
#include "kernels/cuda/joins.h"
#include "kernels/cuda/rows_work.cuh"

enum { BLOCKS = 8, MOST_SLOTS = 8192 };

template <int DIM_> struct row_shape {
    enum {
        DIM = DIM_,
        HALF = DIM_ / 2,
        WARPS = 8,
        THREADS = 256,
        TOK = 16,
        CHUNKS = DIM_ / 8,
        STAGES = 2,
        STAGE = 2 * TOK * CHUNKS,
        PITCH = DIM_ + 4,
        N_O = DIM_ / 8,
        STEPS = DIM_ / 16,
        EACH = DIM_ / 64, /* a lane's pairs of the new token's key */
        SUMS = WARPS * 16 * (PITCH + 1),
        RING_BYTES = WARPS * STAGES * STAGE * 16,
        JOIN_BYTES = (SUMS + 16 * DIM_ + 16) * 4, /* of the warps, then of the block */
        SHARED_BYTES = RING_BYTES > JOIN_BYTES ? RING_BYTES : JOIN_BYTES
    };
};

/* What ropes and kv_append find: queries, and rows of keys with values behind them, which are not turned yet. */
typedef struct {
    cu_bf16 *q, *x;
    int64_t ldx;
    const float *cosine, *sine; /* of the queries */
    const float *k_cosine, *k_sine;
} raw_rows;

/* ---- queries ---- */

/* Angles of this thread's columns, before the queries are there: [step][column 0, 1, 8, 9]. */
template <typename S> struct row_angles {
    float c[S::STEPS / 2][4], s[S::STEPS / 2][4];
};

template <typename S>
static __device__ __forceinline__ void row_angles_of(const raw_rows &raw, int pos, row_angles<S> *t)
{
    int64_t from = (int64_t)pos * S::HALF + threadIdx.x % 4 * 2;
#pragma unroll
    for (int s = 0; s < S::STEPS / 2; s++)
#pragma unroll
        for (int j = 0; j < 4; j++) {
            int at = s * 16 + j / 2 * 8 + j % 2;
            t->c[s][j] = raw.cosine[from + at];
            t->s[s][j] = raw.sine[from + at];
        }
}

static __device__ __forceinline__ float2 unpack(unsigned v)
{
    return __bfloat1622float2(*(__nv_bfloat162 *)&v);
}

/* Columns p and p + half lie in the same thread. */
template <typename S>
static __device__ __forceinline__ void row_turn_queries(const row_angles<S> &t, unsigned (&q)[S::STEPS][4])
{
#pragma unroll
    for (int s = 0; s < S::STEPS / 2; s++)
#pragma unroll
        for (int k = 0; k < 4; k++) {
            const float *c = &t.c[s][k / 2 * 2], *n = &t.s[s][k / 2 * 2];
            float2 a = unpack(q[s][k]), b = unpack(q[s + S::STEPS / 2][k]);
            q[s][k] = pack(a.x * c[0] - b.x * n[0], a.y * c[1] - b.y * n[1]);
            q[s + S::STEPS / 2][k] = pack(b.x * c[0] + a.x * n[0], b.y * c[1] + a.y * n[1]);
        }
}

template <typename S>
static __device__ __forceinline__ void row_put_queries(const flash_args &a, const raw_rows &raw, const pair_rows &w,
                                                       const unsigned (&q)[S::STEPS][4])
{
    int c = threadIdx.x % 4 * 2;
#pragma unroll
    for (int i = 0; i < 2; i++) {
        unsigned *to = (unsigned *)(raw.q + w.row[i] * a.q_stride + w.head[i] * a.q_step + c);
#pragma unroll
        for (int s = 0; s < S::STEPS && w.there[i]; s++) {
            to[s * 8] = q[s][i];
            to[s * 8 + 4] = q[s][i + 2];
        }
    }
}

/* ---- the new token ---- */

/* Pairs lane + 32 j of its key, turned, and columns 2 (lane + 32 j) and the next of its value. */
template <typename S> struct new_token {
    cu_bf16 lo[S::EACH], hi[S::EACH];
    unsigned value[S::EACH];
};

/* Reads it and writes the turned key back; one warp. */
template <typename S>
static __device__ __forceinline__ void new_token_read(const flash_args &a, const raw_rows &raw, const wide_piece &p,
                                                      int pos, new_token<S> *t)
{
    int lane = threadIdx.x % 32;
    cu_bf16 *key = raw.x + p.row0 * raw.ldx + p.kv_head * S::DIM;
    const cu_bf16 *value = key + a.kv_heads * S::DIM;
#pragma unroll
    for (int j = 0; j < S::EACH; j++) {
        int at = lane + 32 * j;
        float c = raw.k_cosine[(int64_t)pos * S::HALF + at], s = raw.k_sine[(int64_t)pos * S::HALF + at];
        float x = cu_get(key[at]), y = cu_get(key[at + S::HALF]);
        t->lo[j] = __float2bfloat16_rn(x * c - y * s);
        t->hi[j] = __float2bfloat16_rn(y * c + x * s);
        t->value[j] = *(const unsigned *)(value + 2 * at);
        key[at] = t->lo[j];
        key[at + S::HALF] = t->hi[j];
    }
}

static __device__ __forceinline__ cu_bf16 *staged(uint4 *rows, int r, int col, int chunks)
{
    return (cu_bf16 *)(rows + chunk_at(r, col / 8, chunks)) + col % 8;
}

/* To row r of the stage, and to the cache. */
template <typename S>
static __device__ __forceinline__ void new_token_put(const flash_args &a, const wide_piece &p, const new_token<S> &t,
                                                     int r, uint4 *stage)
{
    int lane = threadIdx.x % 32;
    cu_bf16 *cached = (cu_bf16 *)a.kv.pages + cu_cached_row(a.kv, p.seq, p.n_tok - 1);
    cu_bf16 *key = cached + a.k_off + p.kv_head * a.k_step, *value = cached + a.v_off + p.kv_head * a.v_step;
#pragma unroll
    for (int j = 0; j < S::EACH; j++) {
        int at = lane + 32 * j;
        key[at] = *staged(stage, r, at, S::CHUNKS) = t.lo[j];
        key[at + S::HALF] = *staged(stage, r, at + S::HALF, S::CHUNKS) = t.hi[j];
        *(unsigned *)(value + 2 * at) = t.value[j];
        *(unsigned *)staged(stage + S::TOK * S::CHUNKS, r, 2 * at, S::CHUNKS) = t.value[j];
    }
}

/* ---- the cluster ---- */

/* Sums of the block's warps, then of all blocks, each block for its share of the columns. `turned` is called when all
 * blocks have read their queries. */
template <typename S, typename F>
static __device__ __forceinline__ void row_join(const flash_args &a, const wide_piece &p, pair_rows *w, float *space,
                                                const float (&o)[S::N_O][4], F turned)
{
    float *own = space + S::SUMS, *own_lse = own + 16 * S::DIM;
    few_put_sums<S>(w, space, o);
    __syncthreads();
    for (int i = threadIdx.x; i < p.n_vectors * (S::DIM / 4); i += S::THREADS) {
        int m = i / (S::DIM / 4), c = i % (S::DIM / 4) * 4;
        float lse;
        *(float4 *)(own + m * S::DIM + c) = few_sum<S>(space, m, c, &lse);
        if (c == 0)
            own_lse[m] = lse;
    }
    __syncthreads();
    cu_cluster_sync();
    turned();
    int each = p.n_vectors * S::DIM / BLOCKS, first = (int)cu_cluster_rank() * each;
    for (int i = first + threadIdx.x; i < first + each; i += S::THREADS) {
        int m = i / S::DIM;
        float lse[BLOCKS], v[BLOCKS], top = -INFINITY, sum = 0, x = 0;
#pragma unroll
        for (int k = 0; k < BLOCKS; k++) {
            lse[k] = cu_cluster_get(own_lse + m, k);
            v[k] = cu_cluster_get(own + i, k);
        }
#pragma unroll
        for (int k = 0; k < BLOCKS; k++)
            top = fmaxf(top, lse[k]);
#pragma unroll
        for (int k = 0; k < BLOCKS; k++) {
            float by = top > -INFINITY ? exp2f(lse[k] - top) : 0.f;
            sum += by;
            x += by * v[k];
        }
        int64_t head = p.kv_head * a.group + m;
        a.out[p.row0 * a.out_stride + head * S::DIM + i % S::DIM] = __float2bfloat16_rn(sum > 0 ? x / sum : 0.f);
    }
    __syncthreads();
    cu_cluster_sync(); /* what others read must stay */
}

/* grid (BLOCKS, sequences * key heads). A warp's tiles lie BLOCKS * WARPS apart. */
template <typename S, bool RAW>
static __global__ void __launch_bounds__(S::THREADS)
    row_kernel(const __grid_constant__ flash_args a, const __grid_constant__ raw_rows raw)
{
    enum { APART = BLOCKS * S::WARPS * S::TOK };
    extern __shared__ uint4 space_row[];
    int warp = threadIdx.x / 32, seq = blockIdx.y / a.kv_heads, first = a.batch.seq_row0[seq];
    uint4 *ring = space_row + warp * S::STAGES * S::STAGE;
    cu_let_next();
    if (a.batch.seq_row0[seq + 1] == first) {
        cu_wait_before();
        return;
    }
    int prefix = a.batch.seq_prefix[seq], pos = RAW ? a.batch.row_pos[first] : 0;
    int t0 = ((int)cu_cluster_rank() * S::WARPS + warp) * S::TOK;
    wide_piece p = {seq, (int)blockIdx.y % a.kv_heads, first, a.group, prefix + 1, prefix, 0, 1, 1, 0};
    int n_tiles = t0 < p.n_tok ? (p.n_tok - 1 - t0) / APART + 1 : 0, last = t0 + (n_tiles - 1) * APART;
    bool has_new = RAW && n_tiles > 0 && prefix - last < S::TOK;
    row_angles<S> angles;
    new_token<S> fresh;
    pair_rows w = pair_rows_of(a, p);
    unsigned q[S::STEPS][4];
    float o[S::N_O][4] = {}, v[2][4];
    if (RAW) {
        row_angles_of<S>(raw, pos, &angles);
        p.n_tok = prefix; /* of those in the cache */
    } else if (!is_old(a, p, t0 + S::TOK - 1)) {
        cu_wait_before();
    }
    few_bring<S>(a, p, few_find(a, p, t0), ring);
    copies_commit();
    int row = few_find(a, p, t0 + APART);
    cu_wait_before();
    few_queries<S>(a, w, q);
    if (has_new)
        new_token_read<S>(a, raw, p, pos, &fresh);
    if (RAW)
        row_turn_queries<S>(angles, q);
    for (int n = 0; n < n_tiles; n++) {
        uint4 *stage = ring + n % S::STAGES * S::STAGE;
        __syncwarp();
        if (n + 1 < n_tiles)
            few_bring<S>(a, p, row, ring + (n + 1) % S::STAGES * S::STAGE);
        copies_commit();
        row = few_find(a, p, t0 + (n + 2) * APART);
        copies_wait<S::STAGES - 1>();
        __syncwarp();
        p.n_tok = prefix + 1;
        if (has_new && n == n_tiles - 1) {
            new_token_put<S>(a, p, fresh, prefix - last, stage);
            __syncwarp();
        }
        few_scores<S>(q, stage, v);
        few_soften<S>(a, p, t0 + n * APART, &w, v, o);
        few_values<S>(v, stage + S::TOK * S::CHUNKS, o);
        p.n_tok = RAW ? prefix : prefix + 1;
    }
    copies_wait<0>();
    row_join<S>(a, p, &w, (float *)space_row, o, [&] {
        if (RAW && cu_cluster_rank() == 0 && warp == 0)
            row_put_queries<S>(a, raw, w, q);
    });
}

/* ---- launching ---- */

bool cuda_row_has_gqa(const op_attn_gqa *o)
{
    const batch_view *b = o->batch;
    return b && cuda_code_level() >= CODE_EARLY && (o->head_dim == 128 || o->head_dim == 64) && o->window == 0 &&
           b->max_seq_rows == 1 && !b->seq_open && !b->row_mask && o->kv.mod == 1 && b->max_slots <= MOST_SLOTS &&
           o->heads / o->kv_heads <= 16 && (int64_t)b->n_seqs * o->kv_heads * BLOCKS <= cuda_sm_count() &&
           (int)row_shape<128>::SHARED_BYTES <= cuda_block_shared_bytes();
}

template <typename S, bool RAW> static tpl_code run(kernel_ctx *ctx, const op_attn_gqa *o, raw_rows raw, tpl_err *e)
{
    static unsigned ready;
    if (!cu_done_here(&ready)) {
        cudaError_t rc =
            cudaFuncSetAttribute(row_kernel<S, RAW>, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)S::SHARED_BYTES);
        if (rc != cudaSuccess)
            return tpl_fail(e, TPL_E_DEVICE, "attn_gqa", "needs %d bytes of shared memory a block: %s",
                            (int)S::SHARED_BYTES, cudaGetErrorString(rc));
    }
    dim3 grid(BLOCKS, (unsigned)(o->batch->n_seqs * o->kv_heads));
    cu_launch_cluster(cu_stream(ctx), BLOCKS, row_kernel<S, RAW>, grid, dim3(S::THREADS), S::SHARED_BYTES,
                      cuda_gqa_args(o), raw);
    return cu_launched("attn_gqa", e);
}

tpl_code cuda_row_gqa(kernel_ctx *ctx, const op_attn_gqa *o, tpl_err *e)
{
    return o->head_dim == 128 ? run<row_shape<128>, false>(ctx, o, raw_rows(), e)
                              : run<row_shape<64>, false>(ctx, o, raw_rows(), e);
}

/* ---- with the ropes and the append in front ---- */

static bool is_rope_of(const op_call *c, const void *x, int heads, int dim)
{
    const op_rope *o = &c->rope;
    return c->kind == OP_ROPE && o->x.data == x && o->x.dtype == DT_BF16 && o->heads == heads && o->dim == dim &&
           o->head_stride == dim && !o->interleaved;
}

static bool is_append_of(const op_call *c, const op_attn_gqa *o, const mat *keys)
{
    const op_kv_append *x = &c->kv_append;
    int64_t width = (int64_t)o->kv_heads * o->head_dim;
    return c->kind == OP_KV_APPEND && x->a.dtype == DT_BF16 && x->a.data == keys->data &&
           x->a.stride == keys->stride && !x->b.data && x->batch == o->batch &&
           x->kv.page_table == o->kv.page_table && cuda_mats_apart(&o->out, &x->a) &&
           x->a.cols == 2 * width && x->kv.pages == o->kv.pages && x->kv.dtype == DT_BF16 && o->k_off == x->a_off &&
           o->v_off == x->a_off + width;
}

int cuda_join_gqa_takes(const op_call *calls, int n)
{
    if (n < 4 || calls[3].kind != OP_ATTN_GQA)
        return 0;
    const op_attn_gqa *o = &calls[3].attn_gqa;
    const mat *keys = &calls[1].rope.x;
    bool takes = o->q.dtype == DT_BF16 && o->out.dtype == DT_BF16 && o->kv.dtype == DT_BF16 && cuda_row_has_gqa(o) &&
                 is_rope_of(&calls[0], o->q.data, o->heads, o->head_dim) && calls[1].kind == OP_ROPE &&
                 is_rope_of(&calls[1], keys->data, o->kv_heads, o->head_dim) && is_append_of(&calls[2], o, keys) &&
                 o->q.stride % 2 == 0 && keys->stride % 2 == 0 &&
                 (uintptr_t)keys->data % 4 == 0 && cuda_mats_apart(&o->out, &o->q) &&
                 calls[0].rope.batch == o->batch && calls[1].rope.batch == o->batch && cuda_flash_has_gqa(o);
    return takes ? 4 : 0;
}

tpl_code cuda_join_gqa(kernel_ctx *ctx, const op_call *calls, int n, tpl_err *e)
{
    const op_attn_gqa *o = &calls[3].attn_gqa;
    raw_rows raw = {(cu_bf16 *)calls[0].rope.x.data,
                    (cu_bf16 *)calls[1].rope.x.data,
                    calls[1].rope.x.stride,
                    calls[0].rope.cos,
                    calls[0].rope.sin,
                    calls[1].rope.cos,
                    calls[1].rope.sin};
    return o->head_dim == 128 ? run<row_shape<128>, true>(ctx, o, raw, e) : run<row_shape<64>, true>(ctx, o, raw, e);
}
