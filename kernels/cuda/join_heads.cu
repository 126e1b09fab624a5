/* The rows' work in front of attention (rows_work.cuh) and the product a head of the queries that it leaves alone
 * (absorb), in one launch of blocks of either kind; the queries' turned parts may be copied too.
 * bytes  as the calls'; bound: memory. check  the calls one by one. */
#include "kernels/cuda/panel.cuh"
#include "kernels/cuda/skinny_heads.cuh"

#include "kernels/cuda/joins.h"

/* grid (blocks a head, heads, then as many rows as units of rows' work fill) */
template <int M>
static __global__ void __launch_bounds__(SH_THREADS)
    heads_rows_kernel(const __grid_constant__ heads_args a, const __grid_constant__ rows_args rows, int heads)
{
    extern __shared__ float space_heads[];
    int unit = ((int)blockIdx.y - heads) * (int)gridDim.x + (int)blockIdx.x;
    if (unit < 0) {
        heads_block<M>(a, space_heads);
        return;
    }
    cu_begin();
    if (unit < rows_units(rows))
        rows_unit(rows, unit, space_heads);
}

template <typename S>
static __global__ void __launch_bounds__(S::THREADS, 2)
    panel_rows_kernel(const __grid_constant__ panel_args a, const __grid_constant__ panel_maps maps,
                      const __grid_constant__ rows_args rows, int heads)
{
    extern __shared__ __align__(1024) char space_panel[];
    int unit = ((int)blockIdx.y - heads) * (int)gridDim.x + (int)blockIdx.x;
    if (unit < 0) {
        panel_work<S>(a, maps, 1, space_panel);
        return;
    }
    cu_begin();
    if (unit < rows_units(rows))
        rows_unit(rows, unit, (float *)space_panel);
}

/* ---- which calls ---- */

/* Parts of the same heads' vectors: those at `a` of a_cols columns a head and those at b of b_cols share nothing. */
static bool beside(const mat *a, int a_cols, const mat *b, int b_cols, int head_stride)
{
    int64_t d = (const cu_bf16 *)b->data - (const cu_bf16 *)a->data;
    return a->stride == b->stride && d >= a_cols && d + b_cols <= head_stride;
}

static bool is_absorb(const op_call *calls, int n, const op_call *c)
{
    const op_head_matmul *o = &c->head_matmul;
    const op_rope *q = &calls[0].rope;
    if (c->kind != OP_HEAD_MATMUL || o->x.dtype != DT_BF16 || o->w.dtype != DT_BF16 || o->out.dtype != DT_BF16 ||
        o->x.rows != q->x.rows || o->w.heads != q->heads || o->x_head_stride != q->head_stride)
        return false;
    cuda_product p = cuda_head_product(o);
    bool few = cuda_skinny_takes(&p, o->x.data, o->w.data), some = cuda_panel_takes(&p, o->x.data, o->w.data);
    bool apart = beside(&o->x, (int)p.k, &q->x, q->dim, q->head_stride) && cuda_mats_apart(&o->out, &o->x);
    for (int i = 1; i < n; i++) {
        const mat *own = cuda_rows_touched(&calls[i]);
        const mat *b = calls[i].kind == OP_KV_APPEND && calls[i].kv_append.b.data ? &calls[i].kv_append.b : own;
        apart = apart && cuda_mats_apart(own, &o->x) && cuda_mats_apart(own, &o->out) && cuda_mats_apart(b, &o->x) &&
                cuda_mats_apart(b, &o->out);
    }
    return p.w_transposed && (few || some) && apart;
}

/* Of the turned queries, beside what the product writes. */
static bool is_copy(const op_rope *q, const op_head_matmul *o, const op_call *c)
{
    const op_copy_heads *y = &c->copy_heads;
    return c->kind == OP_COPY_HEADS && y->x.data == q->x.data && y->x.stride == q->x.stride && y->heads == q->heads &&
           y->x_head_stride == q->head_stride && y->cols == q->dim && q->dim % 2 == 0 && y->x.rows == q->x.rows &&
           y->out.dtype == DT_BF16 && cuda_mats_apart(&y->out, &o->x) && y->out_head_stride == o->out_head_stride &&
           beside(&o->out, o->w.cols, &y->out, y->cols, o->out_head_stride);
}

int cuda_join_heads_takes(const op_call *calls, int n)
{
    bool free;
    int k = cuda_rows_work_takes(calls, n, &free);
    if (k == 0 || !free || k >= n || !is_absorb(calls, k, &calls[k]))
        return 0;
    return k + 1 + (k + 1 < n && is_copy(&calls[0].rope, &calls[k].head_matmul, &calls[k + 1]));
}

/* ---- launching ---- */

static unsigned more_rows(const rows_args &rows, unsigned across)
{
    return ((unsigned)rows_units(rows) + across - 1) / across;
}

template <int M> static void launch_few(cudaStream_t stream, const heads_args &a, const rows_args &rows, int heads)
{
    static unsigned ready;
    unsigned across = heads_blocks(a);
    if (!cu_done_here(&ready))
        cudaFuncSetAttribute(heads_rows_kernel<M>, cudaFuncAttributeMaxDynamicSharedMemorySize, 64 << 10);
    cu_launch(stream, heads_rows_kernel<M>, dim3(across, (unsigned)heads + more_rows(rows, across)), dim3(SH_THREADS),
              heads_bytes<M>(a), a, rows, heads);
}

template <int N>
static void launch_some(cudaStream_t stream, panel_args a, const panel_maps &maps, const rows_args &rows, int heads)
{
    typedef panel_shape<N, true> S;
    static unsigned ready;
    int blocks = 1;
    size_t bytes = panel_lay<S>(PN_ROOM, &a, &blocks);
    unsigned across = (unsigned)((a.part[0].n + PN_TILE - 1) / PN_TILE);
    if (!cu_done_here(&ready))
        cudaFuncSetAttribute(panel_rows_kernel<S>, cudaFuncAttributeMaxDynamicSharedMemorySize, PN_MOST_BYTES);
    cu_launch(stream, panel_rows_kernel<S>, dim3(across, (unsigned)heads + more_rows(rows, across)), dim3(S::THREADS),
              bytes, a, maps, rows, heads);
}

static bool run_some(cudaStream_t stream, const cuda_product *p, const op_head_matmul *o, const rows_args &rows)
{
    panel_args a = {};
    panel_maps maps = {};
    if (!panel_prepare(p, o->x.data, o->w.data, o->out.data, PN_TILE, &a, &maps))
        return false;
    if (a.rows <= 16)
        launch_some<16>(stream, a, maps, rows, p->batch);
    else if (a.rows <= 32)
        launch_some<32>(stream, a, maps, rows, p->batch);
    else if (a.rows <= 48)
        launch_some<48>(stream, a, maps, rows, p->batch);
    else if (a.rows <= 64)
        launch_some<64>(stream, a, maps, rows, p->batch);
    else if (a.rows <= 96)
        launch_some<96>(stream, a, maps, rows, p->batch);
    else
        launch_some<128>(stream, a, maps, rows, p->batch);
    return true;
}

tpl_code cuda_join_heads(kernel_ctx *ctx, const op_call *calls, int n, tpl_err *e)
{
    int k = n - 1 - (calls[n - 1].kind == OP_COPY_HEADS);
    const op_head_matmul *o = &calls[k].head_matmul;
    cuda_product p = cuda_head_product(o);
    rows_args rows = cuda_rows_work_of(calls, k);
    bool done = true;
    if (k < n - 1) {
        const op_copy_heads *y = &calls[n - 1].copy_heads;
        rows.op[0].copy = (cu_bf16 *)y->out.data;
        rows.op[0].ld_copy = y->out.stride;
        rows.op[0].copy_stride = y->out_head_stride;
    }
    if (!cuda_skinny_takes(&p, o->x.data, o->w.data))
        done = run_some(cu_stream(ctx), &p, o, rows);
    else if (p.rows == 1)
        launch_few<1>(cu_stream(ctx), heads_args_of(&p, o->x.data, o->w.data, o->out.data), rows, p.batch);
    else
        launch_few<2>(cu_stream(ctx), heads_args_of(&p, o->x.data, o->w.data, o->out.data), rows, p.batch);
    if (done)
        return cu_launched("rows and head_matmul", e);
    for (int i = 0; i < n; i++)
        TPL_TRY(kernel_run("cuda", ctx, &calls[i], e));
    return TPL_OK;
}
