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

/* The last slot that a row sees: its own, unless its mask says more. */
static int64_t last_slot(const batch_view *b, int32_t row)
{
    int64_t own = batch_row_slot(b, row), word = b->row_mask ? b->mask_words : 0;
    const uint64_t *mask = b->row_mask + (int64_t)row * b->mask_words;
    while (word > 0 && mask[word - 1] == 0)
        word--;
    int64_t last = word > 0 ? b->seq_prefix[b->row_seq[row]] + 64 * word - 1 - __builtin_clzll(mask[word - 1]) : own;
    return last > own ? last : own;
}

/* How many of a block's first tokens any of the rows from `row` to `last_row` may see; 0 also where a window hides all.
 */
static int64_t tokens_in_sight(const flash *f, const flash_block *b, int32_t row, int32_t last_row)
{
    int64_t seen = last_slot(f->batch, last_row), last = paging_slot(f->kv, b->first + b->n - 1);
    for (int32_t r = row; f->batch->row_mask && r < last_row && seen < last; r++)
        seen = last_slot(f->batch, r) > seen ? last_slot(f->batch, r) : seen;
    int64_t n = clamp(paging_n_kept(f->kv, seen + 1) - b->first, 0, b->n);
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

enum {
    KEEP_WORDS = FLASH_TOK / 64,
    EDGE_ROWS =
        16 /* query rows held at a time where some see only a part of a block: fewer, to compute less that is hidden */
};

/* The 64 bits of a row's mask from bit `at` on, which may be negative; 0 outside. */
static uint64_t mask_bits(const batch_view *b, int32_t row, int64_t at)
{
    const uint64_t *mask = b->row_mask + (int64_t)row * b->mask_words;
    int64_t word = at >= 0 ? at / 64 : -((63 - at) / 64), shift = at - word * 64;
    uint64_t low = word >= 0 && word < b->mask_words ? mask[word] : 0;
    uint64_t high = word + 1 >= 0 && word + 1 < b->mask_words ? mask[word + 1] : 0;
    return shift ? low >> shift | high << (64 - shift) : low;
}

/* Bits [from, to) of a word whose first bit is number `at`. */
static uint64_t range_bits(int64_t from, int64_t to, int64_t at)
{
    from = clamp(from - at, 0, 64);
    to = clamp(to - at, from, 64);
    uint64_t below = to == 64 ? ~(uint64_t)0 : ((uint64_t)1 << to) - 1;
    return from == 64 ? 0 : below >> from << from;
}

/* Bit t of keep: whether a batch row sees token b->first + t; 0 from b->n on. Slots grow with tokens, so that a causal
 * row sees one range; under a mask that is so up to the prefix, and what it says of the batch's own tokens follows: its
 * words shifted where every slot is kept here, else token by token. */
static void fill_keep(const flash *f, const flash_block *b, int32_t row, uint64_t keep[KEEP_WORDS])
{
    int64_t own = batch_row_slot(f->batch, row);
    int64_t plain = f->batch->row_mask ? f->batch->seq_prefix[f->batch->row_seq[row]] : own + 1;
    int64_t hidden = f->window > 0 && own >= f->window ? own - f->window + 1 : 0;
    int64_t from = clamp(paging_n_kept(f->kv, hidden) - b->first, 0, b->n);
    int64_t to = clamp(paging_n_kept(f->kv, plain) - b->first, from, b->n);
    bool shifted = f->batch->row_mask && f->kv->mod == 1 && f->window == 0;
    for (int64_t w = 0; w < KEEP_WORDS; w++) {
        keep[w] = range_bits(from, to, 64 * w);
        if (shifted)
            keep[w] |= mask_bits(f->batch, row, b->first + 64 * w - plain) & range_bits(to, b->n, 64 * w);
    }
    if (shifted && own >= b->first && own < b->first + b->n) /* a row sees itself, whatever its mask says */
        keep[(own - b->first) / 64] |= (uint64_t)1 << ((own - b->first) % 64);
    for (int64_t t = to; t < b->n && f->batch->row_mask && !shifted; t++)
        if (batch_row_sees(f->batch, row, paging_slot(f->kv, b->first + t), f->window))
            keep[t / 64] |= (uint64_t)1 << (t % 64);
}

static void softmax_rows(flash *f, const flash_block *b, int64_t i0, int64_t rows, int64_t n_padded, bool masked)
{
    uint64_t keep[KEEP_WORDS];
    int32_t keep_row = -1;
    for (int64_t i = i0; i < i0 + rows; i++) {
        int32_t row = batch_row(f, i);
        if (masked && row != keep_row)
            fill_keep(f, b, row, keep);
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

/* Adds weighted values; where they lie in the cache, a page at a time, which continues the same sums. */
static void mix_values(const flash *f, const flash_block *b, simd_gemm mix)
{
    if (b->values) {
        product(f, &mix);
        return;
    }
    const float *weights = mix.a;
    int32_t seq = f->batch->row_seq[f->row0];
    for (int64_t t = 0; t < b->n; t += mix.k) {
        mix.k = clamp(f->kv->page_tok - (b->first + t) % f->kv->page_tok, 0, b->n - t);
        mix.a = weights + t;
        mix.b = paging_row(f->kv, seq, b->first + t, b->column);
        mix.ldb = f->kv->width;
        product(f, &mix);
    }
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
    mix_values(f, b, mix);
}

void flash_add(flash *f, const flash_block *b)
{
    int64_t rows;
    for (int64_t i = 0; i < f->m; i += rows) {
        rows = f->m - i < FLASH_ROWS ? f->m - i : FLASH_ROWS;
        int32_t row = batch_row(f, i), last_row = batch_row(f, i + rows - 1);
        if (f->per_row < EDGE_ROWS && !all_in_sight(f, b, row, last_row)) {
            rows = rows < EDGE_ROWS ? rows : EDGE_ROWS;
            last_row = batch_row(f, i + rows - 1);
        }
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
