/* paging.h - where a sequence's tokens lie in a paged cache, and which of them a row may see.
 * For:    kernels of all backends of the host; one statement of the rules of kv_view and batch_view.
 * Enter:  kernels/ref, kernels/cpu.
 * Owns:   nothing.
 * Fails:  never; a caller asks only for tokens below paging_n_kept() of the sequence's length. */
#ifndef TPL_KERNELS_PAGING_H
#define TPL_KERNELS_PAGING_H

#include "kernels/ops.h"

/* How many of slots 0..n_slots-1 are kept here; they are local tokens 0, 1, ... */
static inline int64_t paging_n_kept(const kv_view *kv, int64_t n_slots)
{
    return n_slots > kv->rem ? (n_slots - kv->rem + kv->mod - 1) / kv->mod : 0;
}

static inline int64_t paging_slot(const kv_view *kv, int64_t token)
{
    return token * kv->mod + kv->rem;
}

/* First element of the cached row of a local token. */
static inline int64_t paging_offset(const kv_view *kv, int32_t seq, int64_t token)
{
    int64_t page = kv->page_table[(int64_t)seq * kv->max_pages + token / kv->page_tok];
    return (page * kv->page_tok + token % kv->page_tok) * kv->width;
}

static inline void *paging_row(const kv_view *kv, int32_t seq, int64_t token, int64_t column)
{
    return (char *)kv->pages + (size_t)(paging_offset(kv, seq, token) + column) * dtype_bytes(kv->dtype);
}

static inline int32_t batch_seq_rows(const batch_view *b, int32_t seq)
{
    return b->seq_row0[seq + 1] - b->seq_row0[seq];
}

/* First slot of this batch's rows. */
static inline int64_t batch_seq_slot0(const batch_view *b, int32_t seq)
{
    return (int64_t)b->seq_prefix[seq] + (b->seq_open ? b->seq_open[seq] : 0);
}

static inline int64_t batch_row_slot(const batch_view *b, int32_t row)
{
    int32_t seq = b->row_seq[row];
    return batch_seq_slot0(b, seq) + row - b->seq_row0[seq];
}

/* Slots of a sequence once this batch has been appended. */
static inline int64_t batch_seq_slots(const batch_view *b, int32_t seq)
{
    return batch_seq_slot0(b, seq) + batch_seq_rows(b, seq);
}

/* Whether a row sees a slot of its own sequence; `window` 0: no limit. */
static inline bool batch_row_sees(const batch_view *b, int32_t row, int64_t slot, int32_t window)
{
    int32_t seq = b->row_seq[row];
    int64_t own = batch_row_slot(b, row), j = slot - b->seq_prefix[seq];
    if (slot >= batch_seq_slots(b, seq) || (window > 0 && own - slot >= window))
        return false;
    if (j < 0 || slot == own)
        return true;
    if (!b->row_mask)
        return slot < own;
    return j / 64 < b->mask_words && (b->row_mask[(int64_t)row * b->mask_words + j / 64] >> (j % 64) & 1);
}

#endif
