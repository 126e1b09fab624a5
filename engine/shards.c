#include "engine/shards.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

static const void *at(const void *data, tpl_dtype t, int64_t elements)
{
    return (const char *)data + elements * (int64_t)dtype_bytes(t);
}

static int64_t blocks_of(int64_t n)
{
    return (n + MODEL_F8_BLOCK - 1) / MODEL_F8_BLOCK;
}

/* ---- a region of a matrix ---- */

typedef struct {
    int64_t row0, rows, col0, cols;
} region;

typedef enum { TAKE_VIEW, TAKE_COPY, TAKE_WIDE } how;

/* Bytes wanted of the two buffers; while they are filled, where the next piece goes. */
typedef struct {
    char *data, *scales;
    size_t data_bytes, scale_bytes;
} cutter;

static how how_to_take(const mat *m, const region *r, bool copy)
{
    bool cornered = r->row0 % MODEL_F8_BLOCK == 0 && r->col0 % MODEL_F8_BLOCK == 0;
    if (m->scale && !cornered)
        return TAKE_WIDE;
    return copy ? TAKE_COPY : TAKE_VIEW;
}

/* Scales are read as rows of blocks_of(cols), so a part of the columns needs its own. */
static bool needs_scales(const mat *m, const region *r, how h)
{
    return m->scale && h != TAKE_WIDE && (h == TAKE_COPY || blocks_of(r->cols) != blocks_of(m->cols));
}

static void region_count(const mat *m, const region *r, bool copy, cutter *c)
{
    how h = how_to_take(m, r, copy);
    if (h != TAKE_VIEW)
        c->data_bytes += (size_t)(r->rows * r->cols) * dtype_bytes(h == TAKE_WIDE ? DT_F32 : m->dtype);
    if (needs_scales(m, r, h))
        c->scale_bytes += (size_t)(blocks_of(r->rows) * blocks_of(r->cols)) * sizeof(float);
}

static const float *copy_scales(const float *from, int64_t from_cols, const region *r, cutter *c)
{
    float *to = (float *)(void *)c->scales;
    int64_t cols = blocks_of(r->cols);
    for (int64_t i = 0; i < blocks_of(r->rows); i++)
        memcpy(to + i * cols, from + i * from_cols, (size_t)cols * sizeof *to);
    c->scales += (size_t)(blocks_of(r->rows) * cols) * sizeof *to;
    return to;
}

static void copy_rows(const mat *m, const region *r, bool wide, cutter *c)
{
    size_t row_bytes = (size_t)r->cols * dtype_bytes(wide ? DT_F32 : m->dtype);
    for (int64_t i = 0; i < r->rows; i++, c->data += row_bytes) {
        if (wide)
            model_read_row(m, r->row0 + i, r->col0, r->cols, (float *)(void *)c->data);
        else
            memcpy(c->data, at(m->data, m->dtype, (r->row0 + i) * m->stride + r->col0), row_bytes);
    }
}

static mat region_take(const mat *m, const region *r, bool copy, cutter *c)
{
    how h = how_to_take(m, r, copy);
    mat out = {.dtype = h == TAKE_WIDE ? DT_F32 : m->dtype,
               .rows = r->rows,
               .cols = r->cols,
               .stride = h == TAKE_VIEW ? m->stride : r->cols};
    assert(m->data && r->row0 + r->rows <= m->rows && r->col0 + r->cols <= m->cols);
    out.data = h == TAKE_VIEW ? (void *)(uintptr_t)at(m->data, m->dtype, r->row0 * m->stride + r->col0) : c->data;
    if (m->scale && h != TAKE_WIDE)
        out.scale = m->scale + r->row0 / MODEL_F8_BLOCK * blocks_of(m->cols) + r->col0 / MODEL_F8_BLOCK;
    if (needs_scales(m, r, h))
        out.scale = copy_scales(out.scale, blocks_of(m->cols), r, c);
    if (h != TAKE_VIEW)
        copy_rows(m, r, h == TAKE_WIDE, c);
    return out;
}

static tpl_code cutter_alloc(cutter *c, shard_memory *mem, tpl_err *e)
{
    if (c->data_bytes)
        TPL_TRY(dev_alloc(&mem->data, c->data_bytes, "weight shards", e));
    if (c->scale_bytes)
        TPL_TRY(dev_alloc(&mem->scales, c->scale_bytes, "weight shards", e));
    c->data = mem->data.data;
    c->scales = mem->scales.data;
    return TPL_OK;
}

/* ---- kinds of weights ---- */

static tpl_code bind_matrix(const model *m, const folded *f, const plan_weight *w, bool copy, bound_weight *out,
                            shard_memory *mem, tpl_err *e)
{
    mat whole = f && w->source == W_KV_A ? folded_kv_a(f, w->layer) : model_weight(m, (weight_role)w->source, w->layer);
    region r = {w->row0, w->rows, w->col0, w->cols};
    cutter c = {0};
    region_count(&whole, &r, copy, &c);
    TPL_TRY(cutter_alloc(&c, mem, e));
    out->m = region_take(&whole, &r, copy, &c);
    return TPL_OK;
}

static tpl_code bind_experts(const model *m, const plan_weight *w, bool copy, bound_weight *out, shard_memory *mem,
                             tpl_err *e)
{
    region r = {w->row0, w->rows, w->col0, w->cols};
    cutter c = {0};
    mem->experts = tpl_calloc((size_t)w->n_heads, sizeof *mem->experts);
    for (int i = 0; i < w->n_heads; i++) {
        mem->experts[i] = model_expert(m, (weight_role)w->source, w->layer, w->head0 + i);
        region_count(&mem->experts[i], &r, copy, &c);
    }
    TPL_TRY(cutter_alloc(&c, mem, e));
    for (int i = 0; i < w->n_heads; i++)
        mem->experts[i] = region_take(&mem->experts[i], &r, copy, &c);
    out->experts = mem->experts;
    out->h = (head_mat){
        .dtype = mem->experts[0].dtype, .heads = w->n_heads, .rows = w->rows, .cols = w->cols, .row_stride = w->cols};
    return TPL_OK;
}

/* The logical per-head matrices of W_UK, W_UK_WHOLE and W_UV: folded, or halves of kv_b. */
static head_mat logical_heads(const model *m, const folded *f, int source, int layer)
{
    if (f)
        return source == W_UK         ? folded_uk(f, layer)
               : source == W_UK_WHOLE ? folded_uk_whole(f, layer)
                                      : folded_uv(f, layer);
    const model_config *c = model_cfg(m);
    mat w = model_weight(m, W_KV_B, layer);
    int64_t head_rows = c->nope_dim + c->v_dim, row0 = source == W_UV ? c->nope_dim : 0;
    return (head_mat){.data = at(w.data, w.dtype, row0 * w.stride),
                      .dtype = w.dtype,
                      .heads = c->n_heads,
                      .rows = source == W_UV ? c->v_dim : c->nope_dim,
                      .cols = c->kv_lora_rank,
                      .row_stride = w.stride,
                      .head_stride = head_rows * w.stride};
}

static tpl_code copy_heads(head_mat *h, shard_memory *mem, tpl_err *e)
{
    size_t row_bytes = (size_t)h->cols * dtype_bytes(h->dtype);
    TPL_TRY(dev_alloc(&mem->data, (size_t)h->heads * (size_t)h->rows * row_bytes, "weight shards", e));
    char *to = mem->data.data;
    for (int64_t i = 0; i < h->heads; i++)
        for (int64_t r = 0; r < h->rows; r++, to += row_bytes)
            memcpy(to, at(h->data, h->dtype, i * h->head_stride + r * h->row_stride), row_bytes);
    h->data = mem->data.data;
    h->row_stride = h->cols;
    h->head_stride = (int64_t)h->rows * h->cols;
    return TPL_OK;
}

static tpl_code bind_heads(const model *m, const folded *f, const plan_weight *w, bool copy, bound_weight *out,
                           shard_memory *mem, tpl_err *e)
{
    head_mat h = logical_heads(m, f, w->source, w->layer);
    assert(w->head0 + w->n_heads <= h.heads && w->col0 + w->cols <= h.cols && w->rows == h.rows);
    h.data = at(h.data, h.dtype, w->head0 * h.head_stride + w->col0);
    h.heads = w->n_heads;
    h.cols = w->cols;
    if (copy)
        TPL_TRY(copy_heads(&h, mem, e));
    out->h = h;
    return TPL_OK;
}

tpl_code shard_bind(const model *m, const folded *f, const plan_weight *w, bool copy, bound_weight *out,
                    shard_memory *mem, tpl_err *e)
{
    *out = (bound_weight){0};
    *mem = (shard_memory){0};
    if (w->source == W_UK || w->source == W_UK_WHOLE || w->source == W_UV)
        return bind_heads(m, f, w, copy, out, mem, e);
    return w->n_heads ? bind_experts(m, w, copy, out, mem, e) : bind_matrix(m, f, w, copy, out, mem, e);
}

void shard_free(shard_memory *mem)
{
    dev_free(&mem->data);
    dev_free(&mem->scales);
    free(mem->experts);
    *mem = (shard_memory){0};
}

static int64_t mat_bytes(const mat *m)
{
    int64_t scales = m->scale ? blocks_of(m->rows) * blocks_of(m->cols) : 0;
    return m->rows * m->cols * (int64_t)dtype_bytes(m->dtype) + scales * (int64_t)sizeof(float);
}

int64_t shard_bytes(const bound_weight *w)
{
    int64_t bytes = 0;
    if (!w->h.heads)
        return mat_bytes(&w->m);
    if (!w->experts)
        return (int64_t)w->h.heads * w->h.rows * w->h.cols * (int64_t)dtype_bytes(w->h.dtype);
    for (int i = 0; i < w->h.heads; i++)
        bytes += mat_bytes(&w->experts[i]);
    return bytes;
}
