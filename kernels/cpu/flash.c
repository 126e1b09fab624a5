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

typedef enum { HIDDEN, PARTLY, VISIBLE } sight;

/* What query rows [i0, i1) see of a block; PARTLY if in doubt. */
static sight block_sight(const flash *f, const flash_block *b, int64_t i0, int64_t i1)
{
    int64_t first = paging_slot(f->kv, b->first), last = paging_slot(f->kv, b->first + b->n - 1);
    int32_t row = f->row0 + (int32_t)(i0 / f->per_row), last_row = f->row0 + (int32_t)((i1 - 1) / f->per_row);
    int64_t own = batch_row_slot(f->batch, row), last_own = batch_row_slot(f->batch, last_row);
    bool causal = !f->batch->row_mask;
    if ((causal && first > last_own) || (f->window > 0 && own - last >= f->window))
        return HIDDEN;
    bool below = last < f->batch->seq_prefix[f->batch->row_seq[row]] || (causal && last <= own);
    bool inside = f->window == 0 || last_own - first < f->window;
    return below && inside && b->n % f->simd->lanes == 0 ? VISIBLE : PARTLY;
}

/* keep[t] = ~0 where a batch row sees token b->first + t, 0 elsewhere and up to n_padded. */
static void fill_keep(const flash *f, const flash_block *b, int32_t row, int64_t n_padded, uint32_t *keep)
{
    memset(keep, 0, (size_t)n_padded * sizeof *keep);
    for (int64_t t = 0; t < b->n; t++)
        if (batch_row_sees(f->batch, row, paging_slot(f->kv, b->first + t), f->window))
            keep[t] = ~(uint32_t)0;
}

static void softmax_rows(flash *f, const flash_block *b, int64_t i0, int64_t rows, int64_t n_padded, bool masked)
{
    uint32_t keep[FLASH_TOK];
    int32_t keep_row = -1;
    for (int64_t i = i0; i < i0 + rows; i++) {
        int32_t row = f->row0 + (int32_t)(i / f->per_row);
        if (masked && row != keep_row)
            fill_keep(f, b, row, n_padded, keep);
        keep_row = row;
        float *s = f->scores + (i - i0) * FLASH_TOK;
        float factor = f->simd->softmax_row(s, masked ? keep : NULL, n_padded, f->scale, &f->max[i], &f->sum[i]);
        if (factor != 1.f)
            f->simd->scale(f->o + i * f->dv, factor, f->dv);
    }
}

void flash_add(flash *f, const flash_block *b)
{
    int64_t lanes = f->simd->lanes, n_padded = (b->n + lanes - 1) / lanes * lanes;
    for (int64_t i = 0; i < f->m; i += FLASH_ROWS) {
        int64_t rows = f->m - i < FLASH_ROWS ? f->m - i : FLASH_ROWS;
        sight seen = block_sight(f, b, i, i + rows);
        if (seen == HIDDEN)
            continue;
        simd_gemm score = {.m = rows,
                           .n = n_padded,
                           .k = f->dk,
                           .a = f->q + i * f->ldq,
                           .lda = f->ldq,
                           .b = b->keys,
                           .ldb = b->ldk,
                           .c = f->scores,
                           .ldc = FLASH_TOK};
        f->simd->gemm_nn(&score);
        softmax_rows(f, b, i, rows, n_padded, seen == PARTLY);
        simd_gemm mix = {.m = rows,
                         .n = f->dv,
                         .k = b->n,
                         .a = f->scores,
                         .lda = FLASH_TOK,
                         .b = b->values,
                         .ldb = b->ldv,
                         .c = f->o + i * f->dv,
                         .ldc = f->dv,
                         .accumulate = true};
        f->simd->gemm_nn(&mix);
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
