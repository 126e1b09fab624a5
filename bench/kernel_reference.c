#include "bench/kernel_reference.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { CORNER = 16, FEW_ROWS = 2, FEW_SEQUENCES = 4 };
/* A head's reference costs about this many multiply-adds at most before one head, and few sequences, must do. */
static const double cheap_macs = 2e7;
/* Both sides round inputs alike, so only sums differ; in bf16 a value that is rounded after a sum may fall to the other
 * side of a tie, 2^-8 of itself away. */
static const double tol_f32 = 5e-4, tol_bf16 = 1.5e-2;

typedef struct {
    kernel_reference *r;
    kernel_memory *m;
    const kernel_case *c;
    kernel_ctx *ctx;
} making;

/* ---- a call cut to a part of its output ---- */

static mat columns_from(mat m, int64_t col, int64_t cols)
{
    m.data = (char *)m.data + (size_t)col * dtype_bytes(m.dtype);
    m.cols = cols;
    return m;
}

static mat rows_from(mat m, int64_t row, int64_t rows)
{
    m.data = (char *)m.data + (size_t)(row * m.stride) * dtype_bytes(m.dtype);
    m.rows = rows;
    return m;
}

static head_mat heads_from(head_mat h, int32_t head, int32_t n)
{
    h.data = (const char *)h.data + (size_t)(head * h.head_stride) * dtype_bytes(h.dtype);
    h.heads = n;
    return h;
}

/* The call cut to one head (GQA: one KV head and its queries), and which columns of the output that is. */
static op_call cut_head(op_call c, int32_t head, int64_t *col0, int64_t *cols)
{
    if (c.kind == OP_ATTN_LATENT) {
        op_attn_latent *a = &c.attn_latent;
        a->q_lat = columns_from(a->q_lat, (int64_t)head * a->q_lat_head_stride, a->lat);
        a->q_pe = columns_from(a->q_pe, (int64_t)head * a->q_pe_head_stride, a->rope);
        *cols = a->lat;
        a->lse = (mat){0};
        a->out = columns_from(a->out, *col0 = head * *cols, *cols);
        a->heads = 1;
    } else if (c.kind == OP_ATTN_MHA) {
        op_attn_mha *a = &c.attn_mha;
        a->q = columns_from(a->q, (int64_t)head * (a->nope + a->rope), a->nope + a->rope);
        a->w_uk = heads_from(a->w_uk, head, 1);
        a->w_uv = heads_from(a->w_uv, head, 1);
        *cols = a->v_dim;
        a->out = columns_from(a->out, *col0 = head * *cols, *cols);
        a->heads = 1;
    } else if (c.kind == OP_ATTN_GQA) {
        op_attn_gqa *a = &c.attn_gqa;
        int32_t each = a->heads / a->kv_heads;
        *cols = (int64_t)each * a->head_dim;
        a->q = columns_from(a->q, head * *cols, *cols);
        a->out = columns_from(a->out, *col0 = head * *cols, *cols);
        a->k_off += head * a->head_dim;
        a->v_off += head * a->head_dim;
        a->heads = each;
        a->kv_heads = 1;
    } else {
        op_head_matmul *h = &c.head_matmul;
        int64_t k = h->transposed ? h->w.cols : h->w.rows;
        *cols = h->transposed ? h->w.rows : h->w.cols;
        h->x = columns_from(h->x, (int64_t)head * h->x_head_stride, k);
        h->out = columns_from(h->out, *col0 = (int64_t)head * h->out_head_stride, *cols);
        h->w = heads_from(h->w, head, 1);
    }
    return c;
}

/* A product cut to some rows of x and some rows of the weight. */
static op_call cut_product(op_call c, int64_t row0, int64_t rows, int64_t col0, int64_t cols)
{
    op_matmul *m = &c.matmul;
    m->x = rows_from(m->x, row0, rows);
    m->w = rows_from(m->w, col0, cols);
    m->out = columns_from(rows_from(m->out, row0, rows), col0, cols);
    return c;
}

/* The batch of an attention call; NULL: the operation is none. */
static const batch_view *op_batch(const op_call *c)
{
    switch (c->kind) {
    case OP_ATTN_LATENT:
        return c->attn_latent.batch;
    case OP_ATTN_MHA:
        return c->attn_mha.batch;
    case OP_ATTN_GQA:
        return c->attn_gqa.batch;
    default:
        return NULL;
    }
}

/* Heads that cut_head() tells apart; 0: the operation has none. */
static int32_t n_heads(const op_call *c)
{
    switch (c->kind) {
    case OP_ATTN_LATENT:
        return c->attn_latent.heads;
    case OP_ATTN_MHA:
        return c->attn_mha.heads;
    case OP_ATTN_GQA:
        return c->attn_gqa.kv_heads;
    case OP_HEAD_MATMUL:
        return c->head_matmul.w.heads;
    default:
        return 0;
    }
}

/* ---- what is kept ---- */

/* Runs the cut call on fresh activations and keeps what it wrote. */
static tpl_code keep_part(making *w, int call, const op_call *cut, int64_t row0, int64_t col0, int64_t cols, tpl_err *e)
{
    const mat *out = call_output(cut);
    memory_fill_activations(w->m);
    TPL_TRY(kernel_run("ref", w->ctx, cut, e));
    reference_part x = {.call = call, .row0 = row0, .col0 = col0, .rows = out->rows, .cols = cols};
    x.values = tpl_malloc((size_t)(x.rows * cols) * sizeof(float));
    for (int64_t r = 0; r < x.rows; r++)
        memcpy(x.values + r * cols, (float *)out->data + r * out->stride, (size_t)cols * sizeof(float));
    w->r->parts[w->r->n_parts++] = x;
    w->r->n_checked += x.rows * cols;
    return TPL_OK;
}

/* An attention call cut to one of its sequences, which are alike in length: the batch then has that one alone. */
static op_call cut_sequence(op_call c, int32_t seq, arena *a, int64_t *row0)
{
    op_attn_latent *latent = &c.attn_latent;
    op_attn_mha *mha = &c.attn_mha;
    op_attn_gqa *gqa = &c.attn_gqa;
    bool is_latent = c.kind == OP_ATTN_LATENT, is_mha = c.kind == OP_ATTN_MHA;
    mat *const cut[] = {is_latent ? &latent->q_lat
                        : is_mha  ? &mha->q
                                  : &gqa->q,
                        is_latent ? &latent->out
                        : is_mha  ? &mha->out
                                  : &gqa->out,
                        is_latent ? &latent->q_pe : NULL};
    kv_view *kv = is_latent ? &latent->kv : is_mha ? &mha->kv : &gqa->kv;
    const batch_view **batch = is_latent ? &latent->batch : is_mha ? &mha->batch : &gqa->batch;
    batch_view *one = arena_array(a, batch_view, 1);
    *one = **batch;
    one->n_rows /= one->n_seqs;
    one->ctx_tok /= one->n_seqs;
    one->visible_pairs /= one->n_seqs;
    one->n_seqs = 1;
    *row0 = (int64_t)seq * one->n_rows;
    for (int i = 0; i < 3; i++)
        if (cut[i])
            *cut[i] = rows_from(*cut[i], *row0, one->n_rows);
    kv->page_table += (int64_t)seq * kv->max_pages;
    *batch = one;
    return c;
}

/* One head, whose number depends on the case, so that not always head 0 is looked at; of many sequences the first, the
 * last and two between. */
static tpl_code reference_of_a_head(making *w, int i, tpl_err *e)
{
    const op_call *call = &w->m->calls[i];
    int64_t col0 = 0, cols = 0, row0 = 0;
    op_call head = cut_head(*call, (int32_t)(w->c->context_tok % 7919 % n_heads(call)), &col0, &cols);
    const batch_view *batch = op_batch(call);
    if (!batch || batch->n_seqs <= FEW_SEQUENCES)
        return keep_part(w, i, &head, 0, col0, cols, e);
    for (int32_t k = 0; k < FEW_SEQUENCES; k++) {
        int32_t seq = (batch->n_seqs - 1) * k / (FEW_SEQUENCES - 1);
        op_call cut = cut_sequence(head, seq, &w->m->a, &row0);
        TPL_TRY(keep_part(w, i, &cut, row0, col0, cols, e));
    }
    return TPL_OK;
}

static tpl_code reference_by_head(making *w, int i, tpl_err *e)
{
    const op_call *call = &w->m->calls[i];
    int32_t heads = n_heads(call), picks[] = {0, heads - 1, heads / 2};
    if (op_cost(call).flops / 2 / heads > cheap_macs)
        return reference_of_a_head(w, i, e);
    for (int k = 0; k < (heads < 3 ? heads : 3); k++) {
        int64_t col0 = 0, cols = 0;
        op_call cut = cut_head(*call, picks[k], &col0, &cols);
        TPL_TRY(keep_part(w, i, &cut, 0, col0, cols, e));
    }
    return TPL_OK;
}

/* The first, middle and last columns of the last rows. */
static tpl_code reference_by_corner(making *w, int i, tpl_err *e)
{
    const op_call *call = &w->m->calls[i];
    const mat *out = &call->matmul.out;
    int64_t cols = out->cols < CORNER ? out->cols : CORNER, rows = out->rows < FEW_ROWS ? out->rows : FEW_ROWS;
    int64_t starts[] = {0, (out->cols - cols) / 2, out->cols - cols};
    for (int k = 0; k < 3; k++) {
        int64_t row0 = k == 0 ? 0 : out->rows - rows;
        op_call cut = cut_product(*call, row0, rows, starts[k], cols);
        TPL_TRY(keep_part(w, i, &cut, row0, starts[k], cols, e));
    }
    return TPL_OK;
}

tpl_code reference_make(kernel_reference *r, kernel_memory *m, const kernel_case *c, kernel_ctx *ctx, tpl_err *e)
{
    making w = {r, m, c, ctx};
    for (int i = 0; i < m->n_calls; i++) {
        const op_call *call = &m->calls[i];
        if (n_heads(call) > 0)
            TPL_TRY(reference_by_head(&w, i, e));
        else if (call->kind == OP_MATMUL)
            TPL_TRY(reference_by_corner(&w, i, e));
        else
            TPL_TRY(keep_part(&w, i, call, 0, 0, call_output(call)->cols, e));
    }
    return TPL_OK;
}

void reference_fini(kernel_reference *r)
{
    for (int i = 0; i < r->n_parts; i++)
        free(r->parts[i].values);
    *r = (kernel_reference){0};
}

/* ---- verify ---- */

int64_t kernel_count_wrong(const float *got, int64_t got_stride, const float *want, int64_t rows, int64_t cols,
                           double tol)
{
    double squares = 0;
    int64_t wrong = 0, n = 0;
    for (int64_t i = 0; i < rows * cols; i++)
        if (isfinite(want[i])) {
            squares += (double)want[i] * want[i];
            n++;
        }
    double rms = n > 0 ? sqrt(squares / (double)n) : 0;
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < cols; c++) {
            double g = got[r * got_stride + c], x = want[r * cols + c];
            bool same = isfinite(x) ? fabs(g - x) <= tol * (rms + fabs(x)) : isnan(x) ? isnan(g) : g == x;
            wrong += !same;
        }
    return wrong;
}

int64_t reference_wrong(const kernel_reference *r, const kernel_memory *m, int call, tpl_dtype compute)
{
    int64_t wrong = 0;
    const mat *out = call_output(&m->calls[call]);
    for (int i = 0; i < r->n_parts; i++) {
        const reference_part *x = &r->parts[i];
        if (x->call == call)
            wrong += kernel_count_wrong((float *)out->data + x->row0 * out->stride + x->col0, out->stride, x->values,
                                        x->rows, x->cols, compute == DT_BF16 ? tol_bf16 : tol_f32);
    }
    return wrong;
}
