/* flash.h - the part all attentions share: queries of one sequence against one block of its cached tokens after
 * another. For:    attn.c, which gathers or expands keys and values and calls flash_add() a block at a time. Enter:
 * kernels/cpu. Owns:   nothing; the arrays are the caller's scratch. Fails:  never.
 *
 * Query row i belongs to batch row row0 + i / per_row: heads that share keys and values stand side by side. Tokens that
 * a row does not see are masked by selection; a block that a row block cannot see at all is skipped. A token that is
 * hidden must still hold finite numbers, as every appended token does: its weight 0 multiplies its value. */
#ifndef TPL_KERNELS_CPU_FLASH_H
#define TPL_KERNELS_CPU_FLASH_H

#include "kernels/cpu/simd.h"
#include "kernels/ops.h"

enum {
    FLASH_TOK = 128, /* most tokens of a block; a multiple of SIMD_MAX_LANES */
    FLASH_ROWS = 64  /* query rows whose scores are held at a time */
};

typedef struct {
    const simd_ops *simd;
    const simd_pairs *pairs; /* not NULL: q, keys and values hold bf16 pairs in 4-byte words, and dk counts words */
    const batch_view *batch;
    const kv_view *kv;
    int32_t row0, per_row;
    int64_t m;      /* query rows */
    int64_t dk, dv; /* widths of keys and values, dv rounded up to SIMD_MAX_LANES */
    int32_t window; /* 0: none */
    float scale;
    const float *q; /* [m, dk], rows ldq apart */
    int64_t ldq;
    float *o;         /* [m, dv] sum of weight times value so far */
    float *max, *sum; /* [m] of the running softmax */
    float *scores;    /* [FLASH_ROWS, FLASH_TOK] */
    float *weights;   /* with pairs: [FLASH_ROWS, FLASH_TOK / 2] words, the scores' exponentials in bf16 */
} flash;

/* Tokens [first, first + n) of the sequence, n <= FLASH_TOK. */
typedef struct {
    int64_t first, n;
    const float *keys; /* [dk, n], rows ldk apart, readable up to the next multiple of SIMD_MAX_LANES */
    int64_t ldk;
    const float *values; /* [n, dv], rows ldv apart; with pairs of tokens: [ceil(n / 2), dv] */
    int64_t ldv;
    int64_t
        column; /* where values is NULL: they are f32 columns [column, column + dv) of the cache's rows as they lie */
} flash_block;

void flash_begin(flash *f);
void flash_add(flash *f, const flash_block *b);
/* Turns sums into averages; rows that saw nothing become 0. */
void flash_end(flash *f);
/* Natural log of the sum of exponentials of a row's scores; -inf if it saw nothing. */
float flash_lse(const flash *f, int64_t i);

#endif
