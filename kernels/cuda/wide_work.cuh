/* wide_work.cuh - decode attention's shares of a batch: every group of blocks takes as many tiles of tokens as any other.
 * For:    wide_latent.cu, flash_few.cu and the kernel that joins their parts.
 * Enter:  kernels/cuda only.
 * Owns:   nothing.
 * Fails:  never.
 *
 * The tiles of all sequences and key heads, one after the other, are cut into gridDim.y equal runs. A run is a few pieces,
 * one a sequence and key head. A piece that is all of its sequence goes to the output; else it is one of the sequence's
 * parts: of a run, only the first piece can begin, and only the last can end, in the middle of a sequence, hence two
 * places a run.
 * Lengths are read on the card, so that a recorded launch serves all of them. */
#ifndef TPL_KERNELS_CUDA_WIDE_WORK_CUH
#define TPL_KERNELS_CUDA_WIDE_WORK_CUH

#include "kernels/cuda/flash.cuh"

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
    int n = tiles_of_all(a, n_seqs, tile_tok);
    r.at = run_begin(blockIdx.y, gridDim.y, n);
    r.end = run_begin(blockIdx.y + 1, gridDim.y, n);
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

/* ---- joining parts: grid (rows, heads), a thread four columns of DV ---- */

/* Where parts lie: [run][place][tile of MT vectors][half] of [MT, DV] and of [MT]. */
static __device__ __forceinline__ int64_t part_at(int run, int place, int n_m, int m, int halves, int half)
{
    return (((int64_t)run * 2 + place) * n_m + m) * halves + half;
}

typedef struct {
    const float *part_o, *part_lse;
    int n_runs, n_seqs, tile_tok, mt, n_m, halves, dv;
    int wholes; /* sequences in one piece are written already */
} wide_join;

static __global__ void __launch_bounds__(128)
    wide_join_kernel(const __grid_constant__ flash_args a, const __grid_constant__ wide_join j)
{
    __shared__ float weights[2 * MAX_RUNS];
    __shared__ int places[2 * MAX_RUNS];
    int row = blockIdx.x, head = blockIdx.y, seq = a.batch.row_seq[row], before = 0, first = 0;
    int n_all = tiles_of_all(a, j.n_seqs, j.tile_tok), n = tiles_of(a, j.n_seqs, seq, j.tile_tok);
    for (int s = threadIdx.x % 32; s < seq; s += 32)
        before += tiles_of(a, j.n_seqs, s, j.tile_tok);
    before = __reduce_add_sync(0xffffffffu, before) * a.kv_heads + head / a.group * n;
    first = run_of(before, j.n_runs, n_all);
    int n_parts = run_of(before + n - 1, j.n_runs, n_all) - first + 1;
    if (n_parts == 1 && j.wholes)
        return;
    int vector = (row - a.batch.seq_row0[seq]) * a.group + head % a.group, m = vector / j.mt, r = vector % j.mt;
    float top = -INFINITY, sum = 0;
    n_parts *= j.halves;
    for (int i = threadIdx.x; i < n_parts; i += blockDim.x) {
        int run = first + i / j.halves;
        places[i] = (int)part_at(run, run_begin(run, j.n_runs, n_all) < before, j.n_m, m, j.halves, i % j.halves);
        weights[i] = j.part_lse[(int64_t)places[i] * j.mt + r];
    }
    __syncthreads();
    for (int i = 0; i < n_parts; i++)
        top = fmaxf(top, weights[i]);
    for (int i = 0; i < n_parts; i++)
        sum += top > -INFINITY ? __expf(weights[i] - top) : 0.f;
    float scale = sum > 0 ? 1 / sum : 0.f;
    if (a.lse && threadIdx.x == 0)
        a.lse[row * a.lse_stride + head] = sum > 0 ? top + logf(sum) : -INFINITY;
    for (int c = threadIdx.x * 4; c < j.dv; c += blockDim.x * 4) {
        float v[4] = {0, 0, 0, 0};
#pragma unroll 4
        for (int i = 0; i < n_parts; i++) {
            float w = top > -INFINITY ? __expf(weights[i] - top) * scale : 0.f;
            if (w == 0)
                continue;
            float4 o = *(const float4 *)(j.part_o + ((int64_t)places[i] * j.mt + r) * j.dv + c);
            v[0] += w * o.x;
            v[1] += w * o.y;
            v[2] += w * o.z;
            v[3] += w * o.w;
        }
        uint2 *to = (uint2 *)(a.out + row * a.out_stride + (int64_t)head * j.dv + c);
        *to = make_uint2(pack(v[0], v[1]), pack(v[2], v[3]));
    }
}

#endif
