#include "kernels/parts.h"

#include <stdarg.h>
#include <stdio.h>

static call_parts split_attention(const op_call *c)
{
    switch (c->kind) {
    case OP_ATTN_LATENT: {
        const op_attn_latent *a = &c->attn_latent;
        call_parts p = {.act = {&a->q_lat, &a->q_pe, &a->lse, &a->out}, .n_act = 4, .kv = &a->kv, .batch = a->batch};
        return p;
    }
    case OP_ATTN_MHA: {
        const op_attn_mha *a = &c->attn_mha;
        call_parts p = {
            .act = {&a->q, &a->out}, .n_act = 2, .head = {&a->w_uk, &a->w_uv}, .kv = &a->kv, .batch = a->batch};
        return p;
    }
    default: {
        const op_attn_gqa *a = &c->attn_gqa;
        call_parts p = {.act = {&a->q, &a->out}, .n_act = 2, .kv = &a->kv, .batch = a->batch};
        return p;
    }
    }
}

#define PARTS(...) ((call_parts){__VA_ARGS__})

call_parts call_split(const op_call *c)
{
    switch (c->kind) {
    case OP_EMBED:
        return PARTS(.act = {&c->embed.out}, .n_act = 1, .weight = &c->embed.table, .batch = c->embed.batch);
    case OP_RMSNORM:
        return PARTS(.act = {&c->rmsnorm.x, &c->rmsnorm.out}, .n_act = 2, .weight = &c->rmsnorm.weight);
    case OP_SLICED_NORM:
        return PARTS(.act = {&c->sliced_norm.x, &c->sliced_norm.out}, .n_act = 2);
    case OP_MATMUL:
        return PARTS(.act = {&c->matmul.x, &c->matmul.out}, .n_act = 2, .weight = &c->matmul.w,
                     .bias = &c->matmul.bias);
    case OP_HEAD_MATMUL:
        return PARTS(.act = {&c->head_matmul.x, &c->head_matmul.out}, .n_act = 2, .head = {&c->head_matmul.w});
    case OP_ROPE:
        return PARTS(.act = {&c->rope.x}, .n_act = 1, .batch = c->rope.batch);
    case OP_KV_APPEND:
        return PARTS(.act = {&c->kv_append.b, &c->kv_append.a}, .n_act = 2, .kv = &c->kv_append.kv,
                     .batch = c->kv_append.batch);
    case OP_LSE_MERGE:
        return PARTS(.act = {&c->lse_merge.lse, &c->lse_merge.o}, .n_act = 2);
    case OP_SILU_MUL:
        return PARTS(.act = {&c->silu_mul.gate, &c->silu_mul.up, &c->silu_mul.out}, .n_act = 3);
    case OP_ADD:
        return PARTS(.act = {&c->add.x, &c->add.out}, .n_act = 2);
    case OP_GATHER_ROWS:
        return PARTS(.act = {&c->gather_rows.x, &c->gather_rows.out}, .n_act = 2);
    case OP_COPY_HEADS:
        return PARTS(.act = {&c->copy_heads.x, &c->copy_heads.out}, .n_act = 2);
    case OP_MOE_ROUTE: /* ids and bias have types of their own, which shapes_check() knows */
        return PARTS(.act = {&c->moe_route.x, &c->moe_route.weights}, .n_act = 2, .weight = &c->moe_route.w);
    case OP_MOE_EXPERTS:
        return PARTS(.act = {&c->moe_experts.x, &c->moe_experts.weights, &c->moe_experts.out}, .n_act = 3,
                     .weight = c->moe_experts.n_local > 0 ? c->moe_experts.gate : NULL);
    case OP_ATTN_LATENT:
    case OP_ATTN_MHA:
    case OP_ATTN_GQA:
    case OP_COUNT:
        break;
    }
    return split_attention(c);
}

static bool type_in(tpl_dtype t, unsigned set)
{
    return (set >> t & 1u) != 0;
}

/* An optional operand that is absent has no data and no columns. */
static bool mat_absent(const mat *m)
{
    return !m || (!m->data && m->cols == 0) || m->dtype == DT_NONE;
}

bool parts_have_types(const call_parts *p, unsigned act, unsigned weight, unsigned head, unsigned kv)
{
    for (int i = 0; i < p->n_act; i++)
        if (!mat_absent(p->act[i]) && !type_in(p->act[i]->dtype, act))
            return false;
    if (!mat_absent(p->weight) && !type_in(p->weight->dtype, weight))
        return false;
    if (!mat_absent(p->weight) && p->weight->dtype == DT_F8E4M3 && p->weight->data && !p->weight->scale)
        return false;
    if (!mat_absent(p->bias) && !type_in(p->bias->dtype, weight & ~(1u << DT_F8E4M3)))
        return false;
    for (int i = 0; i < 2 && p->head[i]; i++)
        if (!type_in(p->head[i]->dtype, head))
            return false;
    return !p->kv || type_in(p->kv->dtype, kv);
}

typedef struct {
    char *at;
    size_t left;
} line;

static void __attribute__((format(printf, 2, 3))) line_add(line *l, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(l->at, l->left, fmt, ap);
    va_end(ap);
    size_t used = n < 0 ? 0 : (size_t)n < l->left ? (size_t)n : l->left - 1;
    l->at += used;
    l->left -= used;
}

static void line_add_mat(line *l, const char *name, const mat *m)
{
    if (!mat_absent(m))
        line_add(l, "%s [%lld, %lld] %s, ", name, (long long)m->rows, (long long)m->cols, dtype_name(m->dtype));
}

void parts_describe(const call_parts *p, char *buf, size_t bytes)
{
    line l = {buf, bytes};
    buf[0] = 0;
    for (int i = 0; i < p->n_act; i++)
        line_add_mat(&l, i == p->n_act - 1 ? "out" : "in", p->act[i]);
    line_add_mat(&l, "weight", p->weight);
    for (int i = 0; i < 2 && p->head[i]; i++)
        line_add(&l, "weight %d x [%d, %d] %s, ", p->head[i]->heads, p->head[i]->rows, p->head[i]->cols,
                 dtype_name(p->head[i]->dtype));
    if (p->kv)
        line_add(&l, "cache width %d %s, ", p->kv->width, dtype_name(p->kv->dtype));
    if (l.at > buf + 1)
        l.at[-2] = 0;
}
