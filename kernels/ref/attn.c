/* Attention by its definition, one token after another: a running softmax per row keeps scratch independent of the
 * context's length. Scores, weights and sums are double; in bf16, queries, keys and values are rounded, weights are
 * not. */
#include <math.h>

#include "kernels/paging.h"
#include "kernels/ref/ref.h"

/* sum = sum over tokens so far of exp(s - max); acc likewise, times the value. */
typedef struct {
    double max, sum;
    double *acc; /* [dim] */
    int64_t dim;
} softmax_sum;

static softmax_sum softmax_begin(double *acc, int64_t dim)
{
    for (int64_t i = 0; i < dim; i++)
        acc[i] = 0;
    return (softmax_sum){-INFINITY, 0, acc, dim};
}

static void softmax_add(softmax_sum *t, double s, const double *value)
{
    double max = s > t->max || isnan(s) ? s : t->max;
    double keep = t->sum > 0 ? exp(t->max - max) : 0, weight = exp(s - max);
    t->max = max;
    t->sum = t->sum * keep + weight;
    for (int64_t i = 0; i < t->dim; i++)
        t->acc[i] = t->acc[i] * keep + weight * value[i];
}

static double softmax_value(const softmax_sum *t, int64_t i)
{
    return t->sum == 0 ? 0 : t->acc[i] / t->sum;
}

/* Columns of a cached row as attention takes them in. */
static void load_cached(const kernel_ctx *ctx, const kv_view *kv, int32_t seq, int64_t token, int64_t off, int64_t n,
                        double *dst)
{
    const void *row = paging_row(kv, seq, token, off);
    for (int64_t i = 0; i < n; i++)
        dst[i] = ref_in(ctx, ref_load(row, kv->dtype, i));
}

static double dot_query(const kernel_ctx *ctx, const mat *q, int64_t row, int64_t c0, const double *key, int64_t n)
{
    double sum = 0;
    for (int64_t i = 0; i < n; i++)
        sum += ref_in(ctx, ref_get(q, row, c0 + i)) * key[i];
    return sum;
}

size_t ref_scratch_attn_latent(const op_call *call)
{
    return (size_t)(2 * call->attn_latent.lat + call->attn_latent.rope) * sizeof(double);
}

static void latent_row_head(kernel_ctx *ctx, const op_attn_latent *o, int32_t row, int64_t h)
{
    const batch_view *b = o->batch;
    int32_t seq = b->row_seq[row];
    double *lat = ctx->scratch, *pe = lat + o->lat;
    softmax_sum t = softmax_begin(pe + o->rope, o->lat);
    int64_t n_tok = paging_n_kept(&o->kv, batch_seq_slots(b, seq));
    for (int64_t token = 0; token < n_tok; token++) {
        if (!batch_row_sees(b, row, paging_slot(&o->kv, token), 0))
            continue;
        load_cached(ctx, &o->kv, seq, token, o->lat_off, o->lat, lat);
        load_cached(ctx, &o->kv, seq, token, o->rope_off, o->rope, pe);
        double s = dot_query(ctx, &o->q_lat, row, h * o->q_lat_head_stride, lat, o->lat) +
                   dot_query(ctx, &o->q_pe, row, h * o->q_pe_head_stride, pe, o->rope);
        softmax_add(&t, o->scale * s, lat);
    }
    for (int64_t i = 0; i < o->lat; i++)
        ref_put(&o->out, row, h * o->lat + i, softmax_value(&t, i));
    if (o->lse.data)
        ref_put(&o->lse, row, h, t.max == -INFINITY ? -INFINITY : t.max + log(t.sum));
}

tpl_code ref_attn_latent(kernel_ctx *ctx, const op_call *call, tpl_err *e)
{
    const op_attn_latent *o = &call->attn_latent;
    for (int32_t r = 0; r < o->batch->n_rows; r++)
        for (int64_t h = 0; h < o->heads; h++)
            latent_row_head(ctx, o, r, h);
    return TPL_OK;
}

/* One head's key and value of one token, and the running softmax of every row of its sequence. */
typedef struct {
    double *lat, *key, *value, *acc;
    softmax_sum *sums;
} mha_scratch;

/* Bytes of scratch; with d NULL it only counts. */
static size_t mha_layout(const op_attn_mha *o, double *d, mha_scratch *s)
{
    size_t rows = (size_t)o->batch->n_rows;
    size_t lat = 0, key = lat + (size_t)o->lat, value = key + (size_t)(o->nope + o->rope);
    size_t acc = value + (size_t)o->v_dim, end = acc + rows * (size_t)o->v_dim;
    if (d)
        *s = (mha_scratch){d + lat, d + key, d + value, d + acc, (softmax_sum *)(void *)(d + end)};
    return end * sizeof(double) + rows * sizeof(softmax_sum);
}

size_t ref_scratch_attn_mha(const op_call *call)
{
    return mha_layout(&call->attn_mha, NULL, NULL);
}

static double expand_one(const kernel_ctx *ctx, const head_mat *w, int64_t head, int64_t row, const double *lat)
{
    double sum = 0;
    for (int64_t i = 0; i < w->cols; i++)
        sum += ref_in(ctx, ref_head_get(w, head, row, i)) * lat[i];
    return ref_in(ctx, sum);
}

static void mha_expand(const kernel_ctx *ctx, const op_attn_mha *o, const mha_scratch *s, int32_t seq, int64_t token,
                       int64_t head)
{
    load_cached(ctx, &o->kv, seq, token, o->lat_off, o->lat, s->lat);
    load_cached(ctx, &o->kv, seq, token, o->rope_off, o->rope, s->key + o->nope);
    for (int64_t i = 0; i < o->nope; i++)
        s->key[i] = expand_one(ctx, &o->w_uk, head, i, s->lat);
    for (int64_t i = 0; i < o->v_dim; i++)
        s->value[i] = expand_one(ctx, &o->w_uv, head, i, s->lat);
}

static void mha_put(const op_attn_mha *o, const softmax_sum *t, int64_t row, int64_t head)
{
    for (int64_t i = 0; i < o->v_dim; i++) {
        int64_t c = head * o->v_dim + i;
        double old = o->accumulate ? ref_get(&o->out, row, c) : 0;
        ref_put(&o->out, row, c, old + softmax_value(t, i));
    }
}

static void mha_seq_head(kernel_ctx *ctx, const op_attn_mha *o, const mha_scratch *s, int32_t seq, int64_t head)
{
    const batch_view *b = o->batch;
    int32_t row0 = b->seq_row0[seq], rows = batch_seq_rows(b, seq);
    int64_t n_tok = paging_n_kept(&o->kv, batch_seq_slots(b, seq)), dk = o->nope + o->rope;
    for (int32_t r = 0; r < rows; r++)
        s->sums[r] = softmax_begin(s->acc + (int64_t)r * o->v_dim, o->v_dim);
    for (int64_t token = 0; token < n_tok; token++) {
        mha_expand(ctx, o, s, seq, token, head);
        for (int32_t r = 0; r < rows; r++)
            if (batch_row_sees(b, row0 + r, paging_slot(&o->kv, token), 0))
                softmax_add(&s->sums[r], o->scale * dot_query(ctx, &o->q, row0 + r, head * dk, s->key, dk), s->value);
    }
    for (int32_t r = 0; r < rows; r++)
        mha_put(o, &s->sums[r], row0 + r, head);
}

tpl_code ref_attn_mha(kernel_ctx *ctx, const op_call *call, tpl_err *e)
{
    const op_attn_mha *o = &call->attn_mha;
    mha_scratch s = {0};
    mha_layout(o, ctx->scratch, &s);
    for (int32_t seq = 0; seq < o->batch->n_seqs; seq++)
        for (int64_t h = 0; h < o->heads && batch_seq_rows(o->batch, seq) > 0; h++)
            mha_seq_head(ctx, o, &s, seq, h);
    return TPL_OK;
}

size_t ref_scratch_attn_gqa(const op_call *call)
{
    return 3 * (size_t)call->attn_gqa.head_dim * sizeof(double);
}

static void gqa_row_head(kernel_ctx *ctx, const op_attn_gqa *o, int32_t row, int64_t h)
{
    const batch_view *b = o->batch;
    int32_t seq = b->row_seq[row];
    int64_t dim = o->head_dim, group = h / (o->heads / o->kv_heads);
    double *key = ctx->scratch, *value = key + dim;
    softmax_sum t = softmax_begin(value + dim, dim);
    int64_t n_tok = paging_n_kept(&o->kv, batch_seq_slots(b, seq));
    for (int64_t token = 0; token < n_tok; token++) {
        if (!batch_row_sees(b, row, paging_slot(&o->kv, token), o->window))
            continue;
        load_cached(ctx, &o->kv, seq, token, o->k_off + group * dim, dim, key);
        load_cached(ctx, &o->kv, seq, token, o->v_off + group * dim, dim, value);
        softmax_add(&t, o->scale * dot_query(ctx, &o->q, row, h * dim, key, dim), value);
    }
    for (int64_t i = 0; i < dim; i++)
        ref_put(&o->out, row, h * dim + i, softmax_value(&t, i));
}

tpl_code ref_attn_gqa(kernel_ctx *ctx, const op_call *call, tpl_err *e)
{
    const op_attn_gqa *o = &call->attn_gqa;
    for (int32_t r = 0; r < o->batch->n_rows; r++)
        for (int64_t h = 0; h < o->heads; h++)
            gqa_row_head(ctx, o, r, h);
    return TPL_OK;
}
