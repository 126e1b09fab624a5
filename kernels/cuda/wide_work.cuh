/* wide_work.cuh - decode attention's shares of a batch: every group of blocks takes as many tiles of tokens as any
 * other. For:    wide_latent.cu, flash_few.cu and the kernel that joins their parts. Enter:  kernels/cuda only. Owns:
 * nothing. Fails:  never.
 *
 * The tiles of all sequences and key heads, one after the other, are cut into gridDim.y equal runs. A run is a few
 * pieces, one a sequence and key head. A piece that is all of its sequence goes to the output; else it is one of the
 * sequence's parts: of a run, only the first piece can begin, and only the last can end, in the middle of a sequence,
 * hence two places a run. Lengths are read on the card, so that a recorded launch serves all of them. */
#ifndef TPL_KERNELS_CUDA_WIDE_WORK_CUH
#define TPL_KERNELS_CUDA_WIDE_WORK_CUH

#include "kernels/cuda/flash.cuh"
#include "kernels/cuda/launch.cuh"

/* Tiles of a sequence and key head: at least one where it has rows, so that these are written. */
static __device__ __forceinline__ int tiles_of(const flash_args &a, int n_seqs, int seq, int tile_tok)
{
    if (seq >= n_seqs)
        return 0;
    int rows = a.batch.seq_row0[seq + 1] - a.batch.seq_row0[seq];
    int kept = cu_kept(a.kv.mod, a.kv.rem, cu_slot0(a.batch, seq) + rows);
    return rows == 0 ? 0 : max(1, (kept + tile_tok - 1) / tile_tok);
}

/* Tiles of all sequences; every lane of a warp calls and has it. */
static __device__ __forceinline__ int tiles_of_all(const flash_args &a, int n_seqs, int tile_tok)
{
    int n = 0;
    for (int seq = threadIdx.x % 32; seq < n_seqs; seq += 32)
        n += tiles_of(a, n_seqs, seq, tile_tok);
    return __reduce_add_sync(0xffffffffu, n) * a.kv_heads;
}

enum { MAX_RUNS = 512 };

/* Runs that have tiles. */
static __device__ __forceinline__ int runs_used(int n_runs, int n_tiles)
{
    return min(n_runs, n_tiles);
}

static __device__ __forceinline__ int run_begin(int run, int n_runs, int n_tiles)
{
    return (int)((int64_t)run * n_tiles / n_runs);
}

/* The run that holds a tile. */
static __device__ __forceinline__ int run_of(int tile, int n_runs, int n_tiles)
{
    return (int)((((int64_t)tile + 1) * n_runs - 1) / n_tiles);
}

typedef struct {
    int at, end;     /* of the run's tiles, what is left */
    int seq, before; /* a sequence at or before the next piece's, and the tiles before its first key head */
    int n_seqs, tile_tok, pieces;
} wide_run;

typedef struct {
    int seq, kv_head, row0, n_vectors, n_tok, clear_slots;
    int tile0, tile1, tiles; /* of the sequence's `tiles` */
    int place;               /* 0 the run's first piece, else 1 */
} wide_piece;

static __device__ __forceinline__ wide_run run_open(const flash_args &a, int n_seqs, int tile_tok)
{
    wide_run r;
    int n = tiles_of_all(a, n_seqs, tile_tok), n_runs = runs_used(gridDim.y, n), own = min((int)blockIdx.y, n_runs);
    r.at = n > 0 ? run_begin(own, n_runs, n) : 0;
    r.end = n > 0 ? run_begin(min(own + 1, n_runs), n_runs, n) : 0;
    r.seq = r.before = r.pieces = 0;
    r.n_seqs = n_seqs;
    r.tile_tok = tile_tok;
    return r;
}

/* Moves to the sequence that holds tile `at`, which is below the number of all tiles; returns its tiles a key head. */
static __device__ __forceinline__ int seek(const flash_args &a, int n_seqs, int tile_tok, int at, int *seq, int *before)
{
    int lane = threadIdx.x % 32;
    for (;; *seq += 32) {
        int own = tiles_of(a, n_seqs, *seq + lane, tile_tok) * a.kv_heads, sum = own;
#pragma unroll
        for (int d = 1; d < 32; d *= 2) {
            int more = __shfl_up_sync(0xffffffffu, sum, d);
            sum += lane >= d ? more : 0;
        }
        unsigned past = __ballot_sync(0xffffffffu, *before + sum > at);
        if (past) {
            int hit = __ffs(past) - 1;
            *seq += hit;
            *before += __shfl_sync(0xffffffffu, sum - own, hit);
            return __shfl_sync(0xffffffffu, own, hit) / a.kv_heads;
        }
        *before += __shfl_sync(0xffffffffu, sum, 31);
    }
}

/* The next piece; false where the run is done. Whole warps call. */
static __device__ __forceinline__ bool run_next(const flash_args &a, wide_run *r, wide_piece *p)
{
    if (r->at >= r->end)
        return false;
    p->tiles = seek(a, r->n_seqs, r->tile_tok, r->at, &r->seq, &r->before);
    p->seq = r->seq;
    p->kv_head = (r->at - r->before) / p->tiles;
    int before = r->before + p->kv_head * p->tiles;
    p->row0 = a.batch.seq_row0[p->seq];
    int rows = a.batch.seq_row0[p->seq + 1] - p->row0;
    p->n_vectors = rows * a.group;
    p->n_tok = cu_kept(a.kv.mod, a.kv.rem, cu_slot0(a.batch, p->seq) + rows);
    p->clear_slots = a.batch.seq_prefix[p->seq];
    p->tile0 = r->at - before;
    p->tile1 = min(p->tiles, r->end - before);
    p->place = r->pieces++ > 0;
    r->at = before + p->tile1;
    return true;
}

/* A thread's two vectors of a piece's first 16, as mma.sync has them: lane / 4 and lane / 4 + 8. */
typedef struct {
    float top[2], sum[2]; /* log2 domain; sums of this thread's tokens */
    cu_sight sight[2];
    int64_t row[2];
    int head[2];
    bool there[2];
} pair_rows;

static __device__ __forceinline__ pair_rows pair_rows_of(const flash_args &a, const wide_piece &p)
{
    pair_rows w;
#pragma unroll
    for (int i = 0; i < 2; i++) {
        int m = threadIdx.x % 32 / 4 + 8 * i;
        w.there[i] = m < p.n_vectors;
        w.top[i] = -INFINITY;
        w.sum[i] = 0;
        w.row[i] = p.row0 + (w.there[i] ? m / a.group : 0);
        w.head[i] = p.kv_head * a.group + (w.there[i] ? m % a.group : 0);
        w.sight[i] = cu_sight_of(a.batch, p.seq, (int)w.row[i], a.window);
    }
    return w;
}

/* Whether tokens up to `last` were all cached by earlier passes, so that nothing in front of this launch writes them. */
static __device__ __forceinline__ bool is_old(const flash_args &a, const wide_piece &p, int last)
{
    return last * a.kv.mod + a.kv.rem < p.clear_slots;
}

/* ---- joining parts ---- */

/* Where parts lie: [run][place][tile of MT vectors][half] of [MT, DV] and of [MT]. */
static __device__ __forceinline__ int64_t part_at(int run, int place, int n_m, int m, int halves, int half)
{
    return (((int64_t)run * 2 + place) * n_m + m) * halves + half;
}

/* Behind them those of sequences in one piece, of which a run may have many, where halves are joined:
 * [sequence][key head][tile][half]. */
static __device__ __forceinline__ int64_t whole_at(int n_runs, int seq_head, int n_m, int m, int halves, int half)
{
    return part_at(n_runs, 0, n_m, 0, halves, 0) + ((int64_t)seq_head * n_m + m) * halves + half;
}

enum { JOIN_WAYS = 4, JOIN_MOST = 512 / 4 * JOIN_WAYS, JOIN_BLOCKS = 4 /* an SM, beyond which a head gets a warp */ };

typedef struct {
    const float *part_o, *part_lse;
    int n_runs, n_seqs, tile_tok, mt, n_m, halves, dv;
    int wholes; /* sequences in one piece are written already */
} wide_join;

/* Where the parts of a row's head are: those of one sequence and key head. */
typedef struct {
    int n, first, before; /* n: parts, all halves; first: run; before: tiles */
    int n_runs, n_all, m, r, unit;
    bool whole;
} join_row;

/* Whole warps call. */
static __device__ __forceinline__ join_row join_row_of(const flash_args &a, const wide_join &j, int row, int head)
{
    join_row w;
    int seq = a.batch.row_seq[row], before = 0, n = tiles_of(a, j.n_seqs, seq, j.tile_tok);
    w.n_all = tiles_of_all(a, j.n_seqs, j.tile_tok);
    w.n_runs = runs_used(j.n_runs, w.n_all);
    for (int s = threadIdx.x % 32; s < seq; s += 32)
        before += tiles_of(a, j.n_seqs, s, j.tile_tok);
    w.before = __reduce_add_sync(0xffffffffu, before) * a.kv_heads + head / a.group * n;
    w.first = run_of(w.before, w.n_runs, w.n_all);
    int parts = run_of(w.before + n - 1, w.n_runs, w.n_all) - w.first + 1;
    int vector = (row - a.batch.seq_row0[seq]) * a.group + head % a.group;
    w.whole = parts == 1;
    w.n = parts * j.halves;
    w.m = vector / j.mt;
    w.r = vector % j.mt;
    w.unit = seq * a.kv_heads + head / a.group;
    return w;
}

/* Of part i. */
static __device__ __forceinline__ int join_place(const wide_join &j, const join_row &w, int i)
{
    int run = w.first + i / j.halves, half = i % j.halves;
    return (int)(w.whole ? whole_at(j.n_runs, w.unit, j.n_m, w.m, j.halves, half)
                         : part_at(run, run_begin(run, w.n_runs, w.n_all) < w.before, j.n_m, w.m, j.halves, half));
}

static __device__ __forceinline__ void join_add(float4 *v, float by, float4 o)
{
    v->x += by * o.x;
    v->y += by * o.y;
    v->z += by * o.z;
    v->w += by * o.w;
}

static __device__ __forceinline__ void join_put(const flash_args &a, int row, int64_t column, float4 v)
{
    *(uint2 *)(a.out + row * a.out_stride + column) = make_uint2(pack(v.x, v.y), pack(v.z, v.w));
}

/* By one warp: the parts' shares of the sum, in place of their log-sum-exps; returns the whole's. */
static __device__ __forceinline__ float join_weights(int n_parts, float *weights)
{
    float top = -INFINITY, sum = 0;
    for (int i = threadIdx.x; i < n_parts; i += 32)
        top = fmaxf(top, weights[i]);
    for (int d = 16; d > 0; d /= 2)
        top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, d));
    for (int i = threadIdx.x; i < n_parts; i += 32) {
        weights[i] = top > -INFINITY ? __expf(weights[i] - top) : 0.f;
        sum += weights[i];
    }
    sum = cu_warp_sum(sum);
    for (int i = threadIdx.x; i < n_parts; i += 32)
        weights[i] *= sum > 0 ? 1 / sum : 0.f;
    return sum > 0 ? top + logf(sum) : -INFINITY;
}

/* grid (rows, heads), JOIN_WAYS threads for every four columns, in whole warps */
static __global__ void __launch_bounds__(JOIN_MOST)
    wide_join_kernel(const __grid_constant__ flash_args a, const __grid_constant__ wide_join j)
{
    __shared__ float weights[2 * MAX_RUNS];
    __shared__ int places[2 * MAX_RUNS];
    __shared__ float4 sums[JOIN_MOST];
    cu_let_next();
    int row = blockIdx.x, head = blockIdx.y;
    join_row w = join_row_of(a, j, row, head);
    cu_wait_before();
    if (w.whole && j.wholes)
        return;
    for (int i = threadIdx.x; i < w.n; i += blockDim.x) {
        places[i] = join_place(j, w, i);
        weights[i] = j.part_lse[(int64_t)places[i] * j.mt + w.r];
    }
    __syncthreads();
    if (threadIdx.x < 32) {
        float lse = join_weights(w.n, weights);
        if (a.lse && threadIdx.x == 0)
            a.lse[row * a.lse_stride + head] = lse;
    }
    __syncthreads();
    int n_c = j.dv / 4, way = threadIdx.x / n_c, c = threadIdx.x % n_c;
    float4 v = make_float4(0, 0, 0, 0);
#pragma unroll 8
    for (int i = way; i < w.n; i += JOIN_WAYS)
        join_add(&v, weights[i], *(const float4 *)(j.part_o + ((int64_t)places[i] * j.mt + w.r) * j.dv + c * 4));
    sums[threadIdx.x] = v;
    __syncthreads();
    if (way > 0)
        return;
    for (int i = 1; i < JOIN_WAYS; i++)
        join_add(&v, 1, sums[i * n_c + c]);
    join_put(a, row, (int64_t)head * j.dv + c * 4, v);
}

/* Of many rows and heads, which have few parts each: a warp for one, grid (rows, heads / JOIN_WARPS). The first EARLY
 * parts come in beside the log-sum-exps. */
enum { JOIN_WARPS = 8 };

template <int N, int EARLY> /* columns are at most 128 N */
static __global__ void __launch_bounds__(32 * JOIN_WARPS)
    wide_join_many_kernel(const __grid_constant__ flash_args a, const __grid_constant__ wide_join j, int heads)
{
    int row = blockIdx.x, head = blockIdx.y * JOIN_WARPS + threadIdx.x / 32, lane = threadIdx.x % 32, n_c = j.dv / 4;
    cu_let_next();
    join_row w = join_row_of(a, j, row, min(head, heads - 1));
    int place = lane < w.n ? join_place(j, w, lane) : 0;
    cu_wait_before();
    if (head >= heads || (w.whole && j.wholes))
        return;
    float lse = lane < w.n ? j.part_lse[(int64_t)place * j.mt + w.r] : -INFINITY, top = lse, sum = 0;
    float4 first[EARLY][N], v[N] = {};
#pragma unroll
    for (int i = 0; i < EARLY; i++) {
        int64_t at = (int64_t)__shfl_sync(0xffffffffu, place, i) * j.mt + w.r;
        const float4 *o = (const float4 *)(j.part_o + at * j.dv);
#pragma unroll
        for (int k = 0; k < N; k++)
            first[i][k] = i < w.n && lane + 32 * k < n_c ? o[lane + 32 * k] : make_float4(0, 0, 0, 0);
    }
    for (int i = lane + 32; i < w.n; i += 32)
        top = fmaxf(top, j.part_lse[(int64_t)join_place(j, w, i) * j.mt + w.r]);
    for (int d = 16; d > 0; d /= 2)
        top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, d));
    for (int i0 = 0; i0 < w.n; i0 += 32) {
        if (i0 > 0) {
            place = i0 + lane < w.n ? join_place(j, w, i0 + lane) : 0;
            lse = i0 + lane < w.n ? j.part_lse[(int64_t)place * j.mt + w.r] : -INFINITY;
        }
        float by = top > -INFINITY ? __expf(lse - top) : 0.f;
        int n = min(32, w.n - i0);
        sum += by;
#pragma unroll
        for (int i = 0; i < EARLY && i0 == 0; i++) {
            float own = __shfl_sync(0xffffffffu, by, i);
#pragma unroll
            for (int k = 0; k < N; k++)
                join_add(&v[k], own, first[i][k]);
        }
#pragma unroll 2
        for (int i = i0 == 0 ? EARLY : 0; i < n; i++) {
            float own = __shfl_sync(0xffffffffu, by, i);
            int64_t at = (int64_t)__shfl_sync(0xffffffffu, place, i) * j.mt + w.r;
            const float4 *o = (const float4 *)(j.part_o + at * j.dv);
#pragma unroll
            for (int k = 0; k < N; k++)
                if (lane + 32 * k < n_c)
                    join_add(&v[k], own, o[lane + 32 * k]);
        }
    }
    sum = cu_warp_sum(sum);
    float by = sum > 0 ? 1 / sum : 0.f;
    if (a.lse && lane == 0)
        a.lse[row * a.lse_stride + head] = sum > 0 ? top + logf(sum) : -INFINITY;
#pragma unroll
    for (int k = 0; k < N; k++)
        if (lane + 32 * k < n_c)
            join_put(a, row, (int64_t)head * j.dv + (lane + 32 * k) * 4,
                     make_float4(v[k].x * by, v[k].y * by, v[k].z * by, v[k].w * by));
}

/* ---- how many runs ---- */

/* What one costs, in ns: a tile's work, a tile's bytes and a run's parts, at 3 bytes a ps. `units`: sequences times key
 * heads, of `tiles` at most each. Runs that end with sequences have half the parts of others. */
typedef struct {
    double work_ns, tile_ns, parts_ns;
} wide_price;

static inline double runs_cost(wide_price p, int64_t runs, int64_t units, int64_t tiles)
{
    bool even = runs % units == 0;
    int64_t each = even ? (tiles * units + runs - 1) / runs : tiles * units / runs + 1;
    double tile = p.work_ns > p.tile_ns * (double)runs ? p.work_ns : p.tile_ns * (double)runs;
    return (double)each * tile + (double)runs * p.parts_ns * (even ? 1 : 2);
}

static inline int cheapest_runs(wide_price p, int64_t most, int64_t units, int64_t tiles)
{
    int64_t all = units * tiles < most ? units * tiles : most, best = all;
    for (int64_t runs = units; runs <= all; runs += units)
        if (runs_cost(p, runs, units, tiles) < runs_cost(p, best, units, tiles))
            best = runs;
    return best < 1 ? 1 : best > (int64_t)MAX_RUNS ? (int)MAX_RUNS : (int)best;
}

template <int N, int EARLY>
static inline void join_many(cudaStream_t stream, const flash_args &a, const wide_join &j, int heads)
{
    dim3 grid((unsigned)a.batch.n_rows, (unsigned)((heads + JOIN_WARPS - 1) / JOIN_WARPS));
    cu_launch(stream, wide_join_many_kernel<N, EARLY>, grid, dim3(32 * JOIN_WARPS), 0, a, j, heads);
}

/* Joins what runs have left; dv <= 512. */
static inline tpl_code join_runs(kernel_ctx *ctx, const flash_args &a, const wide_join &j, int heads, const char *name,
                                 tpl_err *e)
{
    dim3 all((unsigned)a.batch.n_rows, (unsigned)heads);
    unsigned threads = (unsigned)(j.dv / 4 * JOIN_WAYS + 31) / 32 * 32; /* sums over sequences want all lanes of a warp */
    if ((int64_t)all.x * all.y <= JOIN_BLOCKS * (int64_t)cuda_sm_count())
        cu_launch(cu_stream(ctx), wide_join_kernel, all, dim3(threads), 0, a, j);
    else if (j.dv <= 128)
        join_many<1, 4>(cu_stream(ctx), a, j, heads);
    else if (j.dv <= 256)
        join_many<2, 4>(cu_stream(ctx), a, j, heads);
    else
        join_many<4, 2>(cu_stream(ctx), a, j, heads);
    return cu_launched(name, e);
}

/* attn_latent of few heads at short contexts (few_latent.cu), without the join: nothing is left to join where j->n_runs
 * is 1. */
tpl_code cuda_few_latent_parts(kernel_ctx *ctx, const op_attn_latent *o, flash_args *a, wide_join *j, tpl_err *e);

#endif
