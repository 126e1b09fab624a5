#include "kernels/cpu/flash.h"

#include <math.h>
#include <string.h>

#include "kernels/paging.h"

void flash_begin(flash *f)
{
    memset(f->o, 0, (size_t)(f->m * f->dv) * sizeof *f->o);
    for (int64_t i = 0; i < f->m; i++) {
        f->max[i] = -INFINITY;
        f->sum[i] = 0;
    }
}

static int64_t clamp(int64_t n, int64_t from, int64_t to)
{
    return n < from ? from : n > to ? to : n;
}

/* The batch row of a query row. */
static int32_t batch_row(const flash *f, int64_t i)
{
    return f->row0 + (int32_t)(i / f->per_row);
}

/* How many of a block's first tokens any of the rows up to `last_row` may see; 0 also where a window hides all. */
static int64_t tokens_in_sight(const flash *f, const flash_block *b, int32_t row, int32_t last_row)
{
    int64_t n = b->n, last = paging_slot(f->kv, b->first + b->n - 1);
    if (!f->batch->row_mask)
        n = clamp(paging_n_kept(f->kv, batch_row_slot(f->batch, last_row) + 1) - b->first, 0, n);
    return f->window > 0 && batch_row_slot(f->batch, row) - last >= f->window ? 0 : n;
}

/* Whether rows `row` to `last_row` all see all tokens, and no padding is needed. */
static bool all_in_sight(const flash *f, const flash_block *b, int32_t row, int32_t last_row)
{
    int64_t first = paging_slot(f->kv, b->first), last = paging_slot(f->kv, b->first + b->n - 1);
    bool below = last < f->batch->seq_prefix[f->batch->row_seq[row]] ||
                 (!f->batch->row_mask && last <= batch_row_slot(f->batch, row));
    bool inside = f->window == 0 || batch_row_slot(f->batch, last_row) - first < f->window;
    return below && inside && b->n % f->simd->lanes == 0;
}

/* keep[t] = ~0 where a batch row sees token b->first + t, 0 elsewhere and up to n_padded. Slots grow with tokens, so
 * that a causal row sees one range; under a mask that is so up to the prefix, and the batch's own tokens are asked one
 * by one. */
static void fill_keep(const flash *f, const flash_block *b, int32_t row, int64_t n_padded, uint32_t *keep)
{
    int64_t own = batch_row_slot(f->batch, row);
    int64_t plain = f->batch->row_mask ? f->batch->seq_prefix[f->batch->row_seq[row]] : own + 1;
    int64_t hidden = f->window > 0 && own >= f->window ? own - f->window + 1 : 0;
    int64_t from = clamp(paging_n_kept(f->kv, hidden) - b->first, 0, b->n);
    int64_t to = clamp(paging_n_kept(f->kv, plain) - b->first, from, b->n);
    for (int64_t t = 0; t < n_padded; t++)
        keep[t] = t >= from && t < to ? ~(uint32_t)0 : 0;
    for (int64_t t = to; t < b->n && f->batch->row_mask; t++)
        if (batch_row_sees(f->batch, row, paging_slot(f->kv, b->first + t), f->window))
            keep[t] = ~(uint32_t)0;
}

static void softmax_rows(flash *f, const flash_block *b, int64_t i0, int64_t rows, int64_t n_padded, bool masked)
{
    uint32_t keep[FLASH_TOK];
    int32_t keep_row = -1;
    for (int64_t i = i0; i < i0 + rows; i++) {
        int32_t row = batch_row(f, i);
        if (masked && row != keep_row)
            fill_keep(f, b, row, n_padded, keep);
        keep_row = row;
        float *s = f->scores + (i - i0) * FLASH_TOK;
        float factor = f->simd->softmax_row(s, masked ? keep : NULL, n_padded, f->scale, &f->max[i], &f->sum[i]);
        if (factor != 1.f)
            f->simd->scale(f->o + i * f->dv, factor, f->dv);
    }
}

static void product(const flash *f, const simd_gemm *g)
{
    if (f->pairs)
        f->pairs->gemm(g);
    else
        f->simd->gemm_nn(g);
}

/* Tokens past the block's end have weight 0, so that a last pair's other half counts for nothing. */
static void round_weights(const flash *f, int64_t rows, int64_t n)
{
    for (int64_t i = 0; i < rows; i++)
        f->simd->to_bf16((bf16 *)(f->weights + i * (FLASH_TOK / 2)), f->scores + i * FLASH_TOK, n);
}

static void add_rows(flash *f, const flash_block *b, int64_t i, int64_t rows, bool masked)
{
    int64_t lanes = f->simd->lanes, n_padded = (b->n + lanes - 1) / lanes * lanes;
    simd_gemm score = {.m = rows,
                       .n = n_padded,
                       .k = f->dk,
                       .a = f->q + i * f->ldq,
                       .lda = f->ldq,
                       .b = b->keys,
                       .ldb = b->ldk,
                       .c = f->scores,
                       .ldc = FLASH_TOK};
    product(f, &score);
    softmax_rows(f, b, i, rows, n_padded, masked);
    if (f->pairs)
        round_weights(f, rows, n_padded);
    simd_gemm mix = {.m = rows,
                     .n = f->dv,
                     .k = f->pairs ? (b->n + 1) / 2 : b->n,
                     .a = f->pairs ? f->weights : f->scores,
                     .lda = f->pairs ? FLASH_TOK / 2 : FLASH_TOK,
                     .b = b->values,
                     .ldb = b->ldv,
                     .c = f->o + i * f->dv,
                     .ldc = f->dv,
                     .accumulate = true};
    product(f, &mix);
}

void flash_add(flash *f, const flash_block *b)
{
    for (int64_t i = 0; i < f->m; i += FLASH_ROWS) {
        int64_t rows = f->m - i < FLASH_ROWS ? f->m - i : FLASH_ROWS;
        int32_t row = batch_row(f, i), last_row = batch_row(f, i + rows - 1);
        flash_block seen = *b;
        seen.n = tokens_in_sight(f, b, row, last_row);
        if (seen.n > 0)
            add_rows(f, &seen, i, rows, !all_in_sight(f, &seen, row, last_row));
    }
}

void flash_end(flash *f)
{
    for (int64_t i = 0; i < f->m; i++)
        f->simd->scale(f->o + i * f->dv, f->sum[i] == 0 ? 0 : 1 / f->sum[i], f->dv);
}

float flash_lse(const flash *f, int64_t i)
{
    return f->sum[i] == 0 ? -INFINITY : f->max[i] + logf(f->sum[i]);
}
