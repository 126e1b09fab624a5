#include "kernels/ops.h"

#include <assert.h>
#include <math.h>

static const char *const names[OP_COUNT] = {
#define OP_NAME(kind, name) [kind] = #name,
    OP_LIST(OP_NAME)
#undef OP_NAME
};

const char *op_name(op_kind op)
{
    assert((unsigned)op < OP_COUNT);
    return names[op];
}

bool op_is_attention(op_kind op)
{
    return op == OP_ATTN_LATENT || op == OP_ATTN_MHA || op == OP_ATTN_GQA;
}

/* Counting rules. Tensors only: token ids, positions, page tables and masks are not counted. An exponential, a
 * logarithm, a root and a division are one FLOP each; adding a bias or the old content of an output is none (it rides
 * on the product). Operands that a call leaves out have no columns. */

static double mat_bytes(const mat *m)
{
    double bytes = (double)m->rows * (double)m->cols * (double)dtype_bytes(m->dtype);
    if (m->dtype == DT_F8E4M3)
        bytes += 4. * ceil((double)m->rows / 128) * ceil((double)m->cols / 128);
    return bytes;
}

static double head_bytes(const head_mat *w)
{
    return (double)w->heads * w->rows * w->cols * (double)dtype_bytes(w->dtype);
}

static double row_bytes(const mat *like, double rows, double cols)
{
    return rows * cols * (double)dtype_bytes(like->dtype);
}

static op_cost_sum cost_embed(const op_embed *o)
{
    double bytes = row_bytes(&o->table, (double)o->out.rows, (double)o->out.cols);
    return (op_cost_sum){bytes, mat_bytes(&o->out), 0};
}

static op_cost_sum cost_rmsnorm(const op_rmsnorm *o)
{
    double n = (double)o->x.rows * (double)o->x.cols;
    double per = o->weight.cols > 0 ? 4 : 3; /* square, add, scale, weight */
    return (op_cost_sum){mat_bytes(&o->x) + mat_bytes(&o->weight), mat_bytes(&o->out), per * n};
}

static op_cost_sum cost_sliced_norm(const op_sliced_norm *o)
{
    double n = (double)o->x.rows * (double)o->x.cols;
    return (op_cost_sum){mat_bytes(&o->x) + 4. * o->n_slices, mat_bytes(&o->out), 3 * n};
}

static op_cost_sum cost_matmul(const op_matmul *o)
{
    double read = mat_bytes(&o->x) + mat_bytes(&o->w) + mat_bytes(&o->bias);
    if (o->accumulate)
        read += mat_bytes(&o->out);
    return (op_cost_sum){read, mat_bytes(&o->out), 2. * (double)o->x.rows * (double)o->w.rows * (double)o->w.cols};
}

static op_cost_sum cost_head_matmul(const op_head_matmul *o)
{
    double rows = (double)o->x.rows, heads = o->w.heads;
    double k = o->transposed ? o->w.cols : o->w.rows, n = o->transposed ? o->w.rows : o->w.cols;
    double out = row_bytes(&o->out, rows, heads * n);
    double read = row_bytes(&o->x, rows, heads * k) + head_bytes(&o->w) + (o->accumulate ? out : 0);
    return (op_cost_sum){read, out, 2 * rows * heads * n * k};
}

static op_cost_sum cost_rope(const op_rope *o)
{
    double rows = (double)o->x.rows, turned = rows * o->heads * o->dim;
    double bytes = row_bytes(&o->x, rows, (double)o->heads * o->dim);
    return (op_cost_sum){bytes + rows * o->dim * 4, bytes, 3 * turned};
}

static op_cost_sum cost_kv_append(const op_kv_append *o)
{
    double kept = (double)o->a.rows / o->kv.mod, cols = (double)(o->a.cols + o->b.cols);
    double read = row_bytes(&o->a, kept, (double)o->a.cols) + row_bytes(&o->b, kept, (double)o->b.cols);
    return (op_cost_sum){read, kept * cols * (double)dtype_bytes(o->kv.dtype), 0};
}

/* Bytes of `cols` columns of every cached token that a rank keeps. */
static double cache_bytes(const kv_view *kv, double ctx_tok, double cols)
{
    return ctx_tok / kv->mod * cols * (double)dtype_bytes(kv->dtype);
}

static op_cost_sum cost_attn_latent(const op_attn_latent *o)
{
    double rows = (double)o->q_lat.rows, heads = o->heads, pairs = (double)o->batch->visible_pairs / o->kv.mod;
    double read = row_bytes(&o->q_lat, rows, heads * o->lat) + row_bytes(&o->q_pe, rows, heads * o->rope) +
                  cache_bytes(&o->kv, (double)o->batch->ctx_tok, (double)o->lat + o->rope);
    double lse = o->lse.cols > 0 ? row_bytes(&o->lse, rows, heads) : 0;
    return (op_cost_sum){read, row_bytes(&o->out, rows, heads * o->lat) + lse,
                         2 * heads * (2. * o->lat + o->rope) * pairs};
}

static op_cost_sum cost_attn_mha(const op_attn_mha *o)
{
    double rows = (double)o->q.rows, heads = o->heads, ctx = (double)o->batch->ctx_tok;
    double pairs = (double)o->batch->visible_pairs / o->kv.mod, dk = (double)o->nope + o->rope;
    double out = row_bytes(&o->out, rows, heads * o->v_dim);
    double read = row_bytes(&o->q, rows, heads * dk) + head_bytes(&o->w_uk) + head_bytes(&o->w_uv) +
                  cache_bytes(&o->kv, ctx, (double)o->lat + o->rope) + (o->accumulate ? out : 0);
    double expand = 2 * ctx / o->kv.mod * heads * o->lat * ((double)o->nope + o->v_dim);
    return (op_cost_sum){read, out, expand + 2 * heads * (dk + o->v_dim) * pairs};
}

/* A window caps what is read and seen: at most window + rows - 1 tokens a sequence and `window` a row. These caps are
 * exact once every context is at least that long, and an upper bound before. */
static op_cost_sum cost_attn_gqa(const op_attn_gqa *o)
{
    double rows = (double)o->q.rows, dim = o->head_dim;
    double ctx = (double)o->batch->ctx_tok, pairs = (double)o->batch->visible_pairs;
    if (o->window > 0) {
        ctx = fmin(ctx, (double)o->batch->n_seqs * (o->window - 1.) + rows);
        pairs = fmin(pairs, rows * o->window);
    }
    double read = row_bytes(&o->q, rows, o->heads * dim) + cache_bytes(&o->kv, ctx, 2. * o->kv_heads * dim);
    return (op_cost_sum){read, row_bytes(&o->out, rows, o->heads * dim), 4. * o->heads * dim * pairs / o->kv.mod};
}

static op_cost_sum cost_lse_merge(const op_lse_merge *o)
{
    double rows = (double)o->o.rows, heads = o->heads, bytes = row_bytes(&o->o, rows, heads * o->lat);
    double weights = rows * heads * (2. * o->parts + 3); /* exp and add a part; log, subtract, exp */
    return (op_cost_sum){bytes + row_bytes(&o->lse, rows, heads * o->parts), bytes, rows * heads * o->lat + weights};
}

static op_cost_sum cost_silu_mul(const op_silu_mul *o)
{
    double n = (double)o->out.rows * (double)o->out.cols; /* exp, add, divide, multiply */
    return (op_cost_sum){mat_bytes(&o->gate) + mat_bytes(&o->up), mat_bytes(&o->out), 4 * n};
}

static op_cost_sum cost_add(const op_add *o)
{
    double n = (double)o->out.rows * (double)o->out.cols;
    return (op_cost_sum){mat_bytes(&o->x) + mat_bytes(&o->out), mat_bytes(&o->out), n};
}

static op_cost_sum cost_copy_heads(const op_copy_heads *o)
{
    double rows = (double)o->x.rows, cols = (double)o->heads * o->cols;
    return (op_cost_sum){row_bytes(&o->x, rows, cols), row_bytes(&o->out, rows, cols), 0};
}

static op_cost_sum cost_moe_route(const op_moe_route *o)
{
    double read = mat_bytes(&o->x) + mat_bytes(&o->w) + mat_bytes(&o->bias);
    double flops = 2. * (double)o->x.rows * (double)o->w.rows * (double)o->w.cols;
    return (op_cost_sum){read, mat_bytes(&o->ids) + mat_bytes(&o->weights), flops};
}

/* Which experts are hit depends on the data; this counts what rows choosing their experts at random hit on average. */
static op_cost_sum cost_moe_experts(const op_moe_experts *o)
{
    double rows = (double)o->x.rows, share = (double)o->ids.cols / o->n_experts;
    double hit = o->n_local * (1 - pow(1 - share, rows));
    mat inner = {.dtype = o->weight_dtype, .rows = o->ffn, .cols = o->x.cols}, outer = inner;
    outer.rows = o->x.cols;
    outer.cols = o->ffn;
    double read = mat_bytes(&o->x) + mat_bytes(&o->ids) + mat_bytes(&o->weights) +
                  hit * (2 * mat_bytes(&inner) + mat_bytes(&outer)) + (o->accumulate ? mat_bytes(&o->out) : 0);
    double flops = rows * share * o->n_local * 6. * (double)o->x.cols * o->ffn;
    return (op_cost_sum){read, mat_bytes(&o->out), flops};
}

static op_cost_sum cost_gather_rows(const op_gather_rows *o)
{
    double read = row_bytes(&o->x, (double)o->out.rows, (double)o->out.cols);
    return (op_cost_sum){read, mat_bytes(&o->out), 0};
}

op_cost_sum op_cost(const op_call *call)
{
    switch (call->kind) {
#define OP_COST(kind, name)                                                                                            \
    case kind:                                                                                                         \
        return cost_##name(&call->name);
        OP_LIST(OP_COST)
#undef OP_COST
    case OP_COUNT:
        break;
    }
    assert(!"no such operation");
    return (op_cost_sum){0};
}
