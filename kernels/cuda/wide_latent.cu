/* attn_latent on warpgroups (wgmma, compute capability 9.0). Two kernels.
 *
 * Latents of 512: a warpgroup can hold sums of 64 vectors and 256 columns, so the two share 64 vectors. They take turns
 * in scores and softmax, tile by tile; probabilities go through shared memory to the other one, then both multiply.
 * Latents of 256 and 128: a warpgroup holds all columns of 64 vectors and works alone, on vectors of its own where
 * there are more than 64, else on every second tile of the same vectors, which are joined as parts.
 *
 * bytes  2 * (rows * heads * (2 lat + rope) + tokens * (lat + rope)); flops 2 * heads * pairs * (2 lat + rope)
 * bound  memory up to about 128 vectors a token on a card of 250 FLOPs a byte
 * check  ref, tolerance "bf16_attn". */
#include "kernels/cuda/wide_alone.cuh"

/* ---- latents of 512 ---- */

typedef struct {
    float top[2][64], keep[2][64], sum[2][2][64];
} shared_notes;

enum { PROBABILITIES = 64 * 64 * 2 };

template <wide_way WAY>
using split_512 = wide_shape<512, 64, 512, false, 64, 2, PROBABILITIES + (int)sizeof(shared_notes), WAY>;

typedef struct {
    char *probabilities;
    shared_notes *notes;
} split_space;

/* A tile of one's own: scores, softmax, and the probabilities for the other. */
template <typename S>
static __device__ __forceinline__ void split_own(const flash_args &a, const wide_piece &p, int tile, uint64_t q,
                                                 uint64_t k, split_space s, wide_rows *w, unsigned (&prob)[4][4])
{
    float v[8][4];
    int wg = threadIdx.x / 128, lane = threadIdx.x % 32, row = threadIdx.x / 32 % 4 * 16;
    wide_scores<S>(q, k, v);
    wide_wait<0>();
    wide_pin(v);
    wide_mask(a, p, tile * S::TN, *w, v);
    wide_soften(a.scale_log2, w, v);
    wide_pack(v, prob);
#pragma unroll
    for (int i = 0; i < 4; i++) {
        int r = row + lane % 16, c = 2 * i + lane / 16;
        store_x4(s.probabilities + r * 128 + ((c ^ (r & 7)) << 4), prob[i]);
    }
    if (lane % 4 == 0)
#pragma unroll
        for (int i = 0; i < 2; i++) {
            s.notes->top[wg][row + lane / 4 + 8 * i] = w->top[i];
            s.notes->keep[wg][row + lane / 4 + 8 * i] = w->keep[i];
        }
    wide_show();
    pass(1 + wg, 256);
}

/* What the other warpgroup has found. */
static __device__ __forceinline__ void split_hear(split_space s, wide_rows *w)
{
    int other = 1 - threadIdx.x / 128, at = threadIdx.x / 32 % 4 * 16 + threadIdx.x % 32 / 4;
    meet(1 + other, 256);
#pragma unroll
    for (int i = 0; i < 2; i++) {
        w->top[i] = s.notes->top[other][at + 8 * i];
        w->keep[i] = s.notes->keep[other][at + 8 * i];
        w->sum[i] *= w->keep[i];
    }
}

/* Both halves of the sums of exponentials. Notes alternate by piece: who writes one again has met all who read it, a
 * piece later. (racecheck reports what numbered barriers of a part of the block order: tools/gpu-test leaves this out.)
 */
static __device__ __forceinline__ void split_sum(split_space s, unsigned turn, wide_rows *w)
{
    int wg = threadIdx.x / 128, lane = threadIdx.x % 32, at = threadIdx.x / 32 % 4 * 16 + lane / 4;
    wide_sum_lanes(w);
    if (lane % 4 == 0)
#pragma unroll
        for (int i = 0; i < 2; i++)
            s.notes->sum[turn][wg][at + 8 * i] = w->sum[i];
    meet(3, 256);
#pragma unroll
    for (int i = 0; i < 2; i++)
        w->sum[i] = s.notes->sum[turn][0][at + 8 * i] + s.notes->sum[turn][1][at + 8 * i];
}

template <typename S>
static __device__ __forceinline__ void split_multiply(const flash_args &a, int n_seqs, char *space, wide_barriers bar)
{
    enum { N = S::DV / 16 }; /* 8-column tiles of half the latent */
    split_space s = {space + S::QUERIES + S::STAGES * S::STAGE,
                     (shared_notes *)(space + S::QUERIES + S::STAGES * S::STAGE + PROBABILITIES)};
    wide_run run = run_open(a, n_seqs, S::TN);
    wide_piece p;
    unsigned n_pieces = 0, n_tiles = 0;
    int m0 = blockIdx.x * S::MT, wg = threadIdx.x / 128, lane = threadIdx.x % 32;
    uint64_t q = wide_operand(space, 0), pr = wide_operand(s.probabilities, 0);
    float o[N][4];
    while (run_next(a, &run, &p)) {
        if (m0 >= p.n_vectors)
            continue;
        wide_rows w = wide_rows_of(a, p, m0, 0);
#pragma unroll
        for (int n = 0; n < N; n++)
            o[n][0] = o[n][1] = o[n][2] = o[n][3] = 0;
        barrier_wait(bar.queries, n_pieces & 1);
        wide_show();
        for (int tile = p.tile0; tile < p.tile1; tile++, n_tiles++) {
            unsigned stage = n_tiles % S::STAGES, turn = n_tiles / S::STAGES;
            char *at = space + S::QUERIES + stage * S::STAGE;
            uint64_t k = wide_operand(at, 0);
            uint64_t v = wide_operand(at + wg * (S::V_BLOCKS / 2) * S::TILE_BLOCK, S::TILE_BLOCK);
            if ((tile - p.tile0) % 2 == wg) {
                unsigned prob[4][4];
                await_tile<S>(bar.tile + stage, turn & 1);
                split_own<S>(a, p, tile, q, k, s, &w, prob);
                wide_shrink(w.keep, o);
                clear_end<S>(p, tile, wg * (S::V_BLOCKS / 2), S::V_BLOCKS / 2, at);
                wide_begin();
#pragma unroll
                for (int i = 0; i < 4; i++)
                    wide_values<N>(o, prob[i], wide_ahead(v, i * 2048));
            } else {
                split_hear(s, &w);
                await_tile<S>(bar.tile + stage, turn & 1);
                wide_shrink(w.keep, o);
                clear_end<S>(p, tile, wg * (S::V_BLOCKS / 2), S::V_BLOCKS / 2, at);
                wide_begin();
#pragma unroll
                for (int i = 0; i < 4; i++)
                    wide_values<N>(o, wide_ahead(pr, i * 32), wide_ahead(v, i * 2048));
            }
            wide_commit();
            wide_wait<0>();
            wide_pin(o);
            release_tile(bar.free_tile + stage);
        }
        if (lane == 0)
            barrier_arrive(bar.free_queries);
        split_sum(s, n_pieces & 1, &w);
        int64_t part = p.tile1 - p.tile0 == p.tiles ? -1 : part_at(blockIdx.y, p.place, gridDim.x, blockIdx.x, 1, 0);
        wide_store<N>(a, w, S::DV, wg * S::DV / 2, part, S::MT, 0, o);
        n_pieces++;
    }
}

struct split {
    template <typename S> static __device__ constexpr int readers()
    {
        return 8;
    }
    template <typename S>
    static __device__ __forceinline__ void multiply(const flash_args &a, int n_seqs, char *space, wide_barriers bar)
    {
        split_multiply<S>(a, n_seqs, space, bar);
    }
};

/* ---- latents of 256 and 128: wide_alone.cuh ---- */

template <wide_way WAY> using alone_256 = wide_shape<256, 64, 256, false, 128, 3, 0, WAY>;
template <wide_way WAY> using alone_128 = wide_shape<128, 64, 128, false, 128, 4, 0, WAY>;
template <wide_way WAY> using turns_256 = wide_shape<256, 64, 256, false, 64, 4, 0, WAY>;
template <wide_way WAY> using turns_128 = wide_shape<128, 64, 128, false, 64, 6, 0, WAY>;

/* ---- launching ---- */

bool cuda_wide_is_here(void)
{
    return cuda_code_level() == CODE_WARPGROUPS;
}

bool cuda_wide_has_latent(const op_attn_latent *o)
{
    return (o->lat == 512 || o->lat == 256 || o->lat == 128) && o->rope == 64 && o->scale >= 0 &&
           flash_aligned(o->q_lat.data, o->q_lat.stride, o->q_lat_head_stride, o->lat_off) &&
           flash_aligned(o->q_pe.data, o->q_pe.stride, o->q_pe_head_stride, o->rope_off) &&
           flash_aligned(o->kv.pages, o->kv.width, o->out.stride, 0) && (uintptr_t)o->out.data % 8 == 0;
}

size_t cuda_scratch_wide_latent(const op_call *call)
{
    const op_attn_latent *o = &call->attn_latent;
    size_t wholes = o->batch && o->lat < 512 ? (size_t)o->batch->n_seqs : 0;
    return wide_scratch_bytes(o->lat < 512 ? 128 : 64, (size_t)o->lat, wholes);
}

template <typename S>
static tpl_code run(kernel_ctx *ctx, flash_args a, const op_attn_latent *o, const CUtensorMap &map, tpl_err *e)
{
    /* a tile of 64 tokens: about 32 cycles for each 64 x 64 x 16 products, and a softmax */
    double work_ns = S::DV == 512 ? 2000 : S::MT == 64 ? 1100 : 2200;
    int64_t vectors = (int64_t)o->batch->max_seq_rows * o->heads;
    wide_cut c = wide_cut_of<S>(&o->kv, o->batch, vectors, 1, work_ns);
    wide_lay_parts<S>(ctx, c, (int)o->batch->n_seqs, &a);
    if constexpr (S::DV == 512)
        TPL_TRY(wide_launch<S>(ctx, wide_kernel<S, split>, c, "attn_latent", e, a, map, (int)o->batch->n_seqs));
    else if constexpr (S::DV == 256 && S::MT == 128)
        TPL_TRY(wide_launch<S>(ctx, wide_kernel<S, ahead>, c, "attn_latent", e, a, map, (int)o->batch->n_seqs));
    else
        TPL_TRY(wide_launch<S>(ctx, wide_kernel<S, alone>, c, "attn_latent", e, a, map, (int)o->batch->n_seqs));
    return wide_finish<S>(ctx, a, c, o->batch->n_seqs, "attn_latent", e);
}

template <template <wide_way> class S>
static tpl_code run_by(kernel_ctx *ctx, const flash_args &a, const op_attn_latent *o, tpl_err *e)
{
    CUtensorMap map = {};
    if (!map_cache(&o->kv, &map))
        return run<S<BY_CHUNKS>>(ctx, a, o, map, e);
    return run<S<BY_BOXES>>(ctx, a, o, map, e);
}

tpl_code cuda_wide_latent(kernel_ctx *ctx, const op_call *call, tpl_err *e)
{
    const op_attn_latent *o = &call->attn_latent;
    if (o->batch->n_rows == 0)
        return TPL_OK;
    if (cuda_few_has_latent(o))
        return cuda_few_latent(ctx, o, e);
    flash_args a = cuda_latent_args(o);
    bool few = (int64_t)o->batch->max_seq_rows * o->heads <= 64;
    if (o->lat == 512)
        return run_by<split_512>(ctx, a, o, e);
    if (o->lat == 256)
        return few ? run_by<turns_256>(ctx, a, o, e) : run_by<alone_256>(ctx, a, o, e);
    return few ? run_by<turns_128>(ctx, a, o, e) : run_by<alone_128>(ctx, a, o, e);
}
