#include "kernels/shapes.h"

#include <assert.h>

/* A matrix that takes part: [rows, at least cols]. */
static void check_mat(const mat *m, int64_t rows, int64_t cols)
{
    assert(m->rows == rows && m->cols >= cols && m->stride >= m->cols && cols >= 0);
    assert(m->data || rows == 0 || cols == 0);
}

static void check_embed(const op_embed *o)
{
    check_mat(&o->table, o->table.rows, o->out.cols);
    check_mat(&o->out, o->batch->n_rows, o->table.cols);
}

static void check_rmsnorm(const op_rmsnorm *o)
{
    assert(o->groups >= 1 && o->x.cols % o->groups == 0);
    check_mat(&o->x, o->x.rows, o->out.cols);
    check_mat(&o->out, o->x.rows, o->x.cols);
    assert(!o->weight.data || o->weight.cols == o->x.cols / o->groups);
}

static void check_sliced_norm(const op_sliced_norm *o)
{
    assert(o->n_slices >= 1 && o->x.cols % o->n_slices == 0 && o->kv_lora_rank >= 1);
    check_mat(&o->x, o->x.rows, o->out.cols);
    check_mat(&o->out, o->x.rows, o->x.cols);
}

static void check_matmul(const op_matmul *o)
{
    check_mat(&o->x, o->out.rows, o->w.cols);
    check_mat(&o->w, o->w.rows, o->x.cols);
    check_mat(&o->out, o->x.rows, o->w.rows);
    assert(o->out.cols == o->w.rows);
    assert(!o->bias.data || o->bias.cols == o->w.rows);
}

static void check_head_matmul(const op_head_matmul *o)
{
    int64_t k = o->transposed ? o->w.cols : o->w.rows, n = o->transposed ? o->w.rows : o->w.cols;
    assert(o->w.heads >= 1 && o->w.row_stride >= o->w.cols && k >= 1 && n >= 1);
    check_mat(&o->x, o->out.rows, (int64_t)(o->w.heads - 1) * o->x_head_stride + k);
    check_mat(&o->out, o->x.rows, (int64_t)(o->w.heads - 1) * o->out_head_stride + n);
    assert(o->w.heads == 1 || o->out_head_stride >= n);
}

static void check_rope(const op_rope *o)
{
    assert(o->heads >= 1 && o->dim >= 0 && o->dim % 2 == 0 && (o->heads == 1 || o->head_stride >= o->dim));
    check_mat(&o->x, o->batch->n_rows, (int64_t)(o->heads - 1) * o->head_stride + o->dim);
}

static void check_cache(const kv_view *kv, int64_t off, int64_t cols)
{
    assert(kv->mod >= 1 && kv->rem >= 0 && kv->rem < kv->mod && kv->page_tok >= 1);
    assert(off >= 0 && cols >= 0 && off + cols <= kv->width);
}

static void check_kv_append(const op_kv_append *o)
{
    check_mat(&o->a, o->batch->n_rows, 0);
    check_cache(&o->kv, o->a_off, o->a.cols);
    if (o->b.data) {
        check_mat(&o->b, o->batch->n_rows, 0);
        check_cache(&o->kv, o->b_off, o->b.cols);
    }
}

static void check_attn_latent(const op_attn_latent *o)
{
    int32_t rows = o->batch->n_rows;
    assert(o->heads >= 1 && o->lat >= 1 && o->rope >= 0 && o->scale > 0);
    check_mat(&o->q_lat, rows, (int64_t)(o->heads - 1) * o->q_lat_head_stride + o->lat);
    if (o->rope > 0)
        check_mat(&o->q_pe, rows, (int64_t)(o->heads - 1) * o->q_pe_head_stride + o->rope);
    check_cache(&o->kv, o->lat_off, o->lat);
    check_cache(&o->kv, o->rope_off, o->rope);
    check_mat(&o->out, rows, (int64_t)o->heads * o->lat);
    if (o->lse.data)
        check_mat(&o->lse, rows, o->heads);
}

static void check_head_mat(const head_mat *w, int32_t heads, int32_t rows, int32_t cols)
{
    assert(w->heads == heads && w->rows == rows && w->cols == cols && w->row_stride >= cols);
}

static void check_attn_mha(const op_attn_mha *o)
{
    int32_t rows = o->batch->n_rows;
    assert(o->heads >= 1 && o->lat >= 1 && o->nope >= 1 && o->rope >= 0 && o->v_dim >= 1 && o->scale > 0);
    check_mat(&o->q, rows, (int64_t)o->heads * (o->nope + o->rope));
    check_head_mat(&o->w_uk, o->heads, o->nope, o->lat);
    check_head_mat(&o->w_uv, o->heads, o->v_dim, o->lat);
    check_cache(&o->kv, o->lat_off, o->lat);
    check_cache(&o->kv, o->rope_off, o->rope);
    check_mat(&o->out, rows, (int64_t)o->heads * o->v_dim);
}

static void check_attn_gqa(const op_attn_gqa *o)
{
    int32_t rows = o->batch->n_rows;
    assert(o->kv_heads >= 1 && o->heads >= 1 && o->heads % o->kv_heads == 0 && o->head_dim >= 1);
    assert(o->window >= 0 && o->scale > 0);
    check_mat(&o->q, rows, (int64_t)o->heads * o->head_dim);
    check_cache(&o->kv, o->k_off, (int64_t)o->kv_heads * o->head_dim);
    check_cache(&o->kv, o->v_off, (int64_t)o->kv_heads * o->head_dim);
    check_mat(&o->out, rows, (int64_t)o->heads * o->head_dim);
}

static void check_lse_merge(const op_lse_merge *o)
{
    assert(o->parts >= 1 && o->part >= 0 && o->part < o->parts && o->heads >= 1 && o->lat >= 1);
    check_mat(&o->o, o->o.rows, (int64_t)o->heads * o->lat);
    check_mat(&o->lse, o->o.rows, (int64_t)o->parts * o->heads);
}

static void check_silu_mul(const op_silu_mul *o)
{
    check_mat(&o->gate, o->out.rows, o->out.cols);
    check_mat(&o->up, o->out.rows, o->out.cols);
    check_mat(&o->out, o->out.rows, o->out.cols);
}

static void check_add(const op_add *o)
{
    check_mat(&o->x, o->out.rows, o->out.cols);
    check_mat(&o->out, o->out.rows, o->out.cols);
}

static void check_gather_rows(const op_gather_rows *o)
{
    check_mat(&o->x, o->x.rows, o->out.cols);
    check_mat(&o->out, o->out.rows, o->out.cols);
}

static void check_copy_heads(const op_copy_heads *o)
{
    assert(o->heads >= 1 && o->cols >= 0 && (o->heads == 1 || o->out_head_stride >= o->cols));
    check_mat(&o->x, o->out.rows, (int64_t)(o->heads - 1) * o->x_head_stride + o->cols);
    check_mat(&o->out, o->x.rows, (int64_t)(o->heads - 1) * o->out_head_stride + o->cols);
}

static void check_moe_route(const op_moe_route *o)
{
    int64_t n = o->w.rows;
    check_mat(&o->w, n, o->x.cols);
    check_mat(&o->x, o->ids.rows, o->w.cols);
    check_mat(&o->ids, o->x.rows, o->top_k);
    check_mat(&o->weights, o->x.rows, o->top_k);
    assert(o->ids.dtype == DT_I32 && (!o->bias.data || (o->bias.dtype == DT_F32 && o->bias.cols == n)));
    assert(o->n_group >= 1 && n % o->n_group == 0 && o->topk_group >= 1 && o->topk_group <= o->n_group);
    assert(o->top_k >= 1 && o->top_k <= n / o->n_group * o->topk_group);
}

static void check_moe_experts(const op_moe_experts *o)
{
    assert(o->n_local >= 0 && o->expert0 >= 0 && o->expert0 + o->n_local <= o->n_experts && o->ffn >= 1);
    assert(o->ids.dtype == DT_I32 && o->ids.cols == o->weights.cols);
    check_mat(&o->x, o->out.rows, o->out.cols);
    check_mat(&o->out, o->x.rows, o->x.cols);
    check_mat(&o->ids, o->x.rows, 1);
    check_mat(&o->weights, o->x.rows, 1);
    for (int32_t i = 0; i < o->n_local; i++) {
        check_mat(&o->gate[i], o->ffn, o->x.cols);
        check_mat(&o->up[i], o->ffn, o->x.cols);
        check_mat(&o->down[i], o->x.cols, o->ffn);
    }
}

void shapes_check(const op_call *call)
{
    switch (call->kind) {
#define OP_CHECK(kind, name)                                                                                           \
    case kind:                                                                                                         \
        check_##name(&call->name);                                                                                     \
        return;
        OP_LIST(OP_CHECK)
#undef OP_CHECK
    case OP_COUNT:
        break;
    }
    assert(!"no such operation");
}
