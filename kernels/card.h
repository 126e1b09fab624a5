/* card.h - what the engine asks of a card besides operations: random weights, and collectives between ranks that share
 * it. For:    engine/exec_cuda*.c. Enter:  engine/, tests/. Owns:   nothing. Fails:  TPL_E_DEVICE where a launch fails,
 * TPL_E_UNSUPPORTED in a build without CUDA.
 *
 * Everything is enqueued. Reductions add in rank order in f32, so that results do not depend on timing. */
#ifndef TPL_KERNELS_CARD_H
#define TPL_KERNELS_CARD_H

#include "device/comm.h"
#include "device/gpu.h"
#include "kernels/ops.h"
#include "kernels/random.h"

#ifdef __cplusplus
extern "C" {
#endif

/* dst [heads, rows, cols] packed, f32 or bf16 (through bf16, as a host would have stored it): elements
 * first + head * head_stride + row * row_stride + col of the recipe's matrix. */
typedef struct {
    void *dst;
    tpl_dtype dtype;
    int64_t heads, rows, cols, row_stride, head_stride;
    uint64_t first;
    random_recipe recipe;
} card_random;

tpl_code card_fill_random(gpu_queue *q, const card_random *r, tpl_err *e);

enum { CARD_MAX_RANKS = 16 };

/* One collective of comm.h among n ranks of one card, in one launch: data[i] and out[i] are rank i's. */
typedef struct {
    comm_op op;
    int32_t n;
    tpl_dtype dtype;
    void *data[CARD_MAX_RANKS], *out[CARD_MAX_RANKS];
    int64_t data_stride, out_stride, rows, width;
} card_collective;

tpl_code card_collect(gpu_queue *q, const card_collective *c, tpl_err *e);

/* Between [parts, rows, share] and [rows, parts * share], both without gaps: how libraries and comm.h lay out the parts
 * of a gather or a reduce-scatter. apart: the result is the former. */
tpl_code card_turn(gpu_queue *q, tpl_dtype t, const void *from, void *to, int64_t parts, int64_t rows, int64_t share,
                   bool apart, tpl_err *e);

enum { CARD_BEST_SPACE = 64 };

/* out[row] = column of the first greatest of n logits, NaN left out; 0 where there is none. space [rows,
 * CARD_BEST_SPACE]. */
tpl_code card_best(gpu_queue *q, const float *logits, int64_t rows, int64_t n, int32_t *out, int32_t *space,
                   tpl_err *e);

enum { CARD_TOP_MOST = 16, CARD_TOP_SPACE = 64 * (2 * CARD_TOP_MOST + 2) };

/* Row by row the k likeliest of n logits (the first of equals first; NaN left out) and their shares of
 * softmax(logits / *temperature): tokens, shares [rows, k], -1 and 0 where there are no more. space [rows,
 * CARD_TOP_SPACE]; temperature is one number on the card. */
typedef struct {
    const float *logits, *temperature;
    int64_t rows, n;
    int32_t k, *tokens;
    float *shares, *space;
} card_likeliest;

tpl_code card_top(gpu_queue *q, const card_likeliest *c, tpl_err *e);

/* Rows of one paged cache into another of the same type, all layers: `bytes` from the start of row from_first + i *
 * from_step of a sequence to row to_first + i * to_step of another, i = 0 .. n - 1. Pointers are those of the first layer,
 * with the columns' offset in them; page numbers lie where the card reads them. The other card's memory must be mapped. */
typedef struct {
    const void *from;
    void *to;
    int64_t from_layer_bytes, to_layer_bytes;
    const int32_t *from_pages, *to_pages;
    int32_t from_row_bytes, to_row_bytes, bytes;
    int32_t from_first, from_step, to_first, to_step;
    int32_t n, n_layers, page_tok;
} card_move;

tpl_code card_move_rows(gpu_queue *q, const card_move *m, tpl_err *e);

/* Reads all of data (a multiple of 16 bytes), and writes it back incremented if `update`: what memory can do at most.
 */
tpl_code card_sweep(gpu_queue *q, void *data, size_t bytes, bool update, tpl_err *e);

#ifdef __cplusplus
}
#endif

#endif
