/* Products of 5 to 128 rows by panel.cuh, where a library's kernels leave a part of the memory's rate unused.
 * bytes  weights; flops 2 * rows * n * k; bound: memory. check  ref, as every product. */
#include "kernels/cuda/panel.cuh"

#include "kernels/cuda/joins.h"

static bool in_pieces(const void *data, int64_t a, int64_t b)
{
    return (uintptr_t)data % 16 == 0 && a % 8 == 0 && b % 8 == 0;
}

/* grid (tiles x blocks of a cluster, heads) */
template <typename S>
static __global__ void __launch_bounds__(S::THREADS, S::GROUPS == 2 ? 2 : 1)
    panel_kernel(const __grid_constant__ panel_args a, const __grid_constant__ panel_maps maps, int blocks)
{
    extern __shared__ __align__(1024) char space_panel[];
    panel_work<S>(a, maps, blocks, space_panel);
}

/* How a product is shared out: warpgroups of a block, blocks of a cluster, and what a ring may take. */
typedef struct {
    int groups, blocks, room;
} panel_cut;

/* Blocks of a cluster: such that most SMs have one, and one and a half where blocks stay long, each with at least two
 * chunks; to end together takes a cluster over a microsecond. */
static int cluster_of(int64_t tiles, int chunks)
{
    enum { LONG = 32 };
    int n = 1, sms = cuda_sm_count();
    while (n < 8 && chunks >= 4 * n &&
           (4 * tiles * n < 3 * sms || (2 * tiles * n < 3 * sms && chunks >= 2 * n * LONG)))
        n *= 2;
    return n;
}

/* One block an SM where tiles of 192 rows nearly fill the card once: all end together then, and none begins late. */
static panel_cut cut_of(const cuda_product *p)
{
    int chunks = (int)((p->k + PN_COLS - 1) / PN_COLS), sms = cuda_sm_count();
    int64_t tiles = (p->n + PN_TILE - 1) / PN_TILE * p->batch, wide = (p->n + 191) / 192, each = sms / wide;
    bool fills = each >= 1 && each <= 2 && wide * each * 10 >= sms * 9 && chunks >= 4 * each;
    if (fills && p->batch == 1 && !p->w_transposed)
        return (panel_cut){3, (int)each, PN_ROOM_ALONE};
    return (panel_cut){2, cluster_of(tiles, chunks), PN_ROOM};
}

/* Whether so many clusters, of blocks that have an SM each, are on the card at once. */
template <typename S> static bool fits_at_once(int clusters, int blocks)
{
    static int most[9]; /* the same whoever asks; 0: nobody has */
    int known = __atomic_load_n(&most[blocks], __ATOMIC_RELAXED);
    cudaLaunchConfig_t config = {};
    cudaLaunchAttribute attr[1] = {};
    config.gridDim = dim3((unsigned)(clusters * blocks));
    config.blockDim = dim3(S::THREADS);
    config.dynamicSmemBytes = PN_MOST_BYTES;
    config.attrs = attr;
    config.numAttrs = 1;
    attr[0].id = cudaLaunchAttributeClusterDimension;
    attr[0].val.clusterDim.x = (unsigned)blocks;
    attr[0].val.clusterDim.y = attr[0].val.clusterDim.z = 1;
    if (known == 0) {
        if (cudaOccupancyMaxActiveClusters(&known, panel_kernel<S>, &config) != cudaSuccess || known == 0) {
            cudaGetLastError();
            known = -1;
        }
        __atomic_store_n(&most[blocks], known, __ATOMIC_RELAXED);
    }
    return clusters <= known;
}

/* The parts' tiles and maps stand. */
template <typename S>
static void launch(cudaStream_t stream, panel_args a, const panel_maps &maps, int tiles, int heads, panel_cut c)
{
    static unsigned ready;
    if (!cu_done_here(&ready))
        cudaFuncSetAttribute(panel_kernel<S>, cudaFuncAttributeMaxDynamicSharedMemorySize, PN_MOST_BYTES);
    if (c.room == PN_ROOM_ALONE && c.blocks > 1 && !fits_at_once<S>(tiles * heads, c.blocks))
        c.room = PN_ROOM;
    size_t bytes = panel_lay<S>(c.room, &a, &c.blocks);
    cu_launch_cluster(stream, (unsigned)c.blocks, panel_kernel<S>, dim3((unsigned)(tiles * c.blocks), (unsigned)heads),
                      dim3(S::THREADS), bytes, a, maps, c.blocks);
}

template <bool TURNED, int GROUPS>
static void launch_for(cudaStream_t stream, const panel_args &a, const panel_maps &maps, int tiles, int heads,
                       panel_cut c)
{
    if (a.rows <= 16)
        launch<panel_shape<16, TURNED, GROUPS>>(stream, a, maps, tiles, heads, c);
    else if (a.rows <= 32)
        launch<panel_shape<32, TURNED, GROUPS>>(stream, a, maps, tiles, heads, c);
    else if (a.rows <= 48)
        launch<panel_shape<48, TURNED, GROUPS>>(stream, a, maps, tiles, heads, c);
    else if (a.rows <= 64)
        launch<panel_shape<64, TURNED, GROUPS>>(stream, a, maps, tiles, heads, c);
    else if (a.rows <= 96)
        launch<panel_shape<96, TURNED, GROUPS>>(stream, a, maps, tiles, heads, c);
    else
        launch<panel_shape<128, TURNED, GROUPS>>(stream, a, maps, tiles, heads, c);
}

bool cuda_panel_takes(const cuda_product *p, const void *x, const void *w)
{
    bool some = p->rows > (p->w_transposed ? 2 : 4) && p->rows <= PN_MOST_ROWS;
    return some && p->in == DT_BF16 && p->k % 8 == 0 && p->batch < 32768 && in_pieces(x, p->ldx, p->x_step) &&
           in_pieces(w, p->ldw, p->w_step) && (!p->w_transposed || p->n % 8 == 0) && cuda_wide_is_here();
}

bool cuda_panel_multiply(kernel_ctx *ctx, const cuda_product *p, const void *x, const void *w, void *out)
{
    panel_args a = {};
    panel_maps maps = {};
    panel_cut c = cut_of(p);
    int tile = 64 * c.groups, tiles = (int)((p->n + tile - 1) / tile);
    if (!panel_prepare(p, x, w, out, tile, &a, &maps))
        return false;
    if (p->w_transposed)
        launch_for<true, 2>(cu_stream(ctx), a, maps, tiles, p->batch, c);
    else if (c.groups == 2)
        launch_for<false, 2>(cu_stream(ctx), a, maps, tiles, p->batch, c);
    else
        launch_for<false, 3>(cu_stream(ctx), a, maps, tiles, p->batch, c);
    return true;
}

/* ---- several products of the same rows ---- */

static bool is_part(const op_call *c, const mat *x)
{
    const op_matmul *o = &c->matmul;
    return c->kind == OP_MATMUL && o->x.data == x->data && o->x.cols == x->cols && o->x.rows == x->rows &&
           o->x.stride == x->stride && o->x.dtype == DT_BF16 && o->w.dtype == DT_BF16 && o->w.cols == x->cols &&
           o->x.cols % 8 == 0 && in_pieces(o->x.data, o->x.stride, 0) && in_pieces(o->w.data, o->w.stride, 0) &&
           o->out.rows > 0 && o->out.cols > 0;
}

int cuda_join_panels_takes(const op_call *calls, int n)
{
    int parts = 0;
    const mat *x = &calls[0].matmul.x;
    if (calls[0].kind != OP_MATMUL || x->rows <= 4 || x->rows > PN_MOST_ROWS || !cuda_wide_is_here())
        return 0;
    while (parts < n && parts < PN_PARTS && is_part(&calls[parts], x) && cuda_products_apart(calls, parts + 1))
        parts++;
    return parts > 1 ? parts : 0;
}

tpl_code cuda_join_panels(kernel_ctx *ctx, const op_call *calls, int n, tpl_err *e)
{
    panel_args a = {};
    panel_maps maps = {};
    const mat *x = &calls[0].matmul.x;
    int tiles = 0;
    bool mapped = panel_map_x(x->data, x->cols, x->rows, 1, x->stride, 0, &maps.x);
    a.n_parts = n;
    a.rows = (int)x->rows;
    a.chunks = (int)((x->cols + PN_COLS - 1) / PN_COLS);
    for (int i = 0; i < n; i++) {
        const op_matmul *o = &calls[i].matmul;
        a.part[i] = {o->out.data,
                     o->bias.data,
                     o->out.stride,
                     (int)o->w.rows,
                     tiles,
                     (int)o->bias.dtype,
                     o->out.dtype == DT_F32,
                     o->accumulate,
                     panel_has_pieces(o->out.data, o->out.dtype, o->out.stride, o->w.rows, 0)};
        tiles += (int)((o->w.rows + PN_TILE - 1) / PN_TILE);
        mapped = mapped && boxes_map({o->w.data, o->w.cols, o->w.rows, o->w.stride, 1, 0, PN_TILE}, &maps.w[i]);
    }
    if (mapped) {
        panel_cut c = {2, cluster_of(tiles, a.chunks), PN_ROOM};
        if (tiles * c.blocks <= cuda_sm_count()) /* more of the weights comes in while ranks meet in front */
            c.room = PN_ROOM_ALONE;
        launch_for<false, 2>(cu_stream(ctx), a, maps, tiles, 1, c);
        return cu_launched("matmul", e);
    }
    for (int i = 0; i < n; i++)
        TPL_TRY(kernel_run("cuda", ctx, &calls[i], e));
    return TPL_OK;
}
