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
static __global__ void __launch_bounds__(PN_THREADS, 2)
    panel_kernel(const __grid_constant__ panel_args a, const __grid_constant__ panel_maps maps, int blocks)
{
    extern __shared__ __align__(1024) char space_panel[];
    panel_work<S>(a, maps, blocks, space_panel);
}

/* Blocks of a cluster: such that the card has work for one and a half blocks an SM, each with at least two chunks. */
static int cluster_of(int64_t tiles, int chunks)
{
    int n = 1;
    while (n < 8 && 2 * tiles * n < 3 * cuda_sm_count() && chunks >= 4 * n)
        n *= 2;
    return n;
}

/* The parts' tiles and maps stand. */
template <typename S>
static void launch(cudaStream_t stream, panel_args a, const panel_maps &maps, int tiles, int heads)
{
    static unsigned ready;
    int blocks = cluster_of((int64_t)tiles * heads, a.chunks);
    size_t bytes = panel_lay<S>(&a, &blocks);
    if (!cu_done_here(&ready))
        cudaFuncSetAttribute(panel_kernel<S>, cudaFuncAttributeMaxDynamicSharedMemorySize, PN_MOST_BYTES);
    cu_launch_cluster(stream, (unsigned)blocks, panel_kernel<S>, dim3((unsigned)(tiles * blocks), (unsigned)heads),
                      dim3(PN_THREADS), bytes, a, maps, blocks);
}

template <bool TURNED>
static void launch_for(cudaStream_t stream, const panel_args &a, const panel_maps &maps, int tiles, int heads)
{
    if (a.rows <= 16)
        launch<panel_shape<16, TURNED>>(stream, a, maps, tiles, heads);
    else if (a.rows <= 32)
        launch<panel_shape<32, TURNED>>(stream, a, maps, tiles, heads);
    else if (a.rows <= 48)
        launch<panel_shape<48, TURNED>>(stream, a, maps, tiles, heads);
    else if (a.rows <= 64)
        launch<panel_shape<64, TURNED>>(stream, a, maps, tiles, heads);
    else if (a.rows <= 96)
        launch<panel_shape<96, TURNED>>(stream, a, maps, tiles, heads);
    else
        launch<panel_shape<128, TURNED>>(stream, a, maps, tiles, heads);
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
    int tiles = (int)((p->n + PN_TILE - 1) / PN_TILE);
    if (!panel_prepare(p, x, w, out, &a, &maps))
        return false;
    if (p->w_transposed)
        launch_for<true>(cu_stream(ctx), a, maps, tiles, p->batch);
    else
        launch_for<false>(cu_stream(ctx), a, maps, tiles, p->batch);
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
        a.part[i] = {o->out.data, o->bias.data,       o->out.stride,          (int)o->w.rows,
                     tiles,       (int)o->bias.dtype, o->out.dtype == DT_F32, o->accumulate};
        tiles += (int)((o->w.rows + PN_TILE - 1) / PN_TILE);
        mapped = mapped && panel_map(o->w.data, o->w.cols, o->w.rows, 1, o->w.stride, 0, PN_TILE, &maps.w[i]);
    }
    if (mapped) {
        launch_for<false>(cu_stream(ctx), a, maps, tiles, 1);
        return cu_launched("matmul", e);
    }
    for (int i = 0; i < n; i++)
        TPL_TRY(kernel_run("cuda", ctx, &calls[i], e));
    return TPL_OK;
}
