#include "tests/kernels/world.h"

#include <limits.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/arena.h"

int32_t world_seq_slots(const world *w, int32_t seq)
{
    return w->spec.prefix[seq] + w->spec.rows[seq];
}

double *world_slot(const world *w, int32_t seq, int64_t slot)
{
    return w->slots + ((int64_t)seq * w->max_slots + slot) * w->width;
}

static int32_t kept_tokens(const world *w, int32_t seq)
{
    int32_t n = 0;
    for (int32_t s = 0; s < world_seq_slots(w, seq); s++)
        n += s % w->spec.mod == w->spec.rem;
    return n;
}

/* Every other page of the pool is owned by nobody. */
static void make_pages(world *w, rng *r)
{
    int32_t page_tok = w->spec.page_tok, used = 0;
    w->kv = (kv_view){.dtype = w->spec.dtype,
                      .width = w->width,
                      .page_tok = page_tok,
                      .mod = w->spec.mod,
                      .rem = w->spec.rem,
                      .max_pages = (w->max_slots + page_tok - 1) / page_tok + 2};
    int32_t n_entries = w->spec.n_seqs * w->kv.max_pages;
    w->n_pages = 2 * n_entries + 1;
    int32_t *free_pages = tpl_malloc((size_t)w->n_pages * sizeof *free_pages);
    for (int32_t i = 0; i < w->n_pages; i++)
        free_pages[i] = i;
    for (int32_t i = w->n_pages - 1; i > 0; i--) {
        int32_t j = (int32_t)rng_below(r, (uint64_t)i + 1), t = free_pages[i];
        free_pages[i] = free_pages[j];
        free_pages[j] = t;
    }
    int32_t *entries = tpl_malloc((size_t)n_entries * sizeof *entries);
    for (int32_t i = 0; i < n_entries; i++) {
        int32_t seq = i / w->kv.max_pages, owned = (kept_tokens(w, seq) + page_tok - 1) / page_tok;
        entries[i] = i % w->kv.max_pages < owned ? free_pages[used++] : INT32_MAX;
    }
    free(free_pages);
    w->kv.page_table = entries;
    size_t bytes = (size_t)w->n_pages * (size_t)page_tok * (size_t)w->width * dtype_bytes(w->kv.dtype);
    w->kv.pages = tpl_malloc(bytes);
    memset(w->kv.pages, 0xff, bytes);
}

static float draw(const world *w, rng *r)
{
    if (w->spec.whole)
        return (float)((int)rng_below(r, 9) - 4);
    return (float)(2 * rng_uniform(r) - 1);
}

/* Writes slot s of a sequence; the cache's rounding is what the test expects to read back. */
static void put_slot(world *w, int32_t seq, int32_t s, rng *r)
{
    size_t size = dtype_bytes(w->kv.dtype);
    int32_t token = s / w->spec.mod, page = -1;
    bool kept = s % w->spec.mod == w->spec.rem && !w->spec.empty;
    if (kept)
        page = w->kv.page_table[seq * w->kv.max_pages + token / w->spec.page_tok];
    for (int32_t c = 0; c < w->width; c++) {
        float v = draw(w, r), back;
        char cell[4];
        dtype_from_f32(cell, w->kv.dtype, &v, 1);
        dtype_to_f32(&back, cell, w->kv.dtype, 1);
        world_slot(w, seq, s)[c] = back;
        size_t at = ((size_t)page * (size_t)w->spec.page_tok + (size_t)(token % w->spec.page_tok)) * (size_t)w->width;
        if (kept)
            memcpy((char *)w->kv.pages + (at + (size_t)c) * size, cell, size);
    }
}

static void make_rows(world *w, rng *r, int32_t *token, int32_t *seq_of, int32_t *pos, int32_t *row0)
{
    int32_t n = 0;
    for (int32_t s = 0; s < w->spec.n_seqs; s++) {
        row0[s] = n;
        for (int32_t i = 0; i < w->spec.rows[s]; i++, n++) {
            seq_of[n] = s;
            token[n] = (int32_t)rng_below(r, 50);
            w->parent[n] = w->spec.tree ? (int32_t)rng_below(r, (uint64_t)i + 1) - 1 : i - 1;
            pos[n] = w->spec.prefix[s] + i;
        }
    }
    row0[w->spec.n_seqs] = n;
}

static void make_mask(world *w)
{
    int32_t words = 0;
    for (int32_t s = 0; s < w->spec.n_seqs; s++)
        if ((w->spec.rows[s] + 63) / 64 > words)
            words = (w->spec.rows[s] + 63) / 64;
    uint64_t *mask = tpl_calloc((size_t)w->batch.n_rows * (size_t)words, sizeof *mask);
    for (int32_t row = 0; row < w->batch.n_rows; row++)
        for (int32_t j = row - w->batch.seq_row0[w->batch.row_seq[row]]; j >= 0;
             j = w->parent[w->batch.seq_row0[w->batch.row_seq[row]] + j])
            mask[row * words + j / 64] |= (uint64_t)1 << (j % 64);
    w->batch.row_mask = mask;
    w->batch.mask_words = words;
}

world *world_create(const world_spec *spec, int32_t width, uint64_t seed)
{
    rng r = rng_make(seed, 7);
    world *w = tpl_calloc(1, sizeof *w);
    w->spec = *spec;
    w->width = width;
    int32_t n = 0;
    for (int32_t s = 0; s < spec->n_seqs; s++) {
        n += spec->rows[s];
        if (world_seq_slots(w, s) > w->max_slots)
            w->max_slots = world_seq_slots(w, s);
    }
    w->slots = tpl_calloc((size_t)(spec->n_seqs * w->max_slots * width), sizeof *w->slots);
    size_t rows = (size_t)n * sizeof(int32_t);
    int32_t *token = tpl_malloc(rows + 4), *seq_of = tpl_malloc(rows + 4), *pos = tpl_malloc(rows + 4);
    int32_t *row0 = tpl_malloc((size_t)(spec->n_seqs + 1) * sizeof *row0);
    w->parent = tpl_malloc(rows + 4);
    make_rows(w, &r, token, seq_of, pos, row0);
    w->batch = (batch_view){.n_rows = n,
                            .n_seqs = spec->n_seqs,
                            .row_token = token,
                            .row_seq = seq_of,
                            .row_pos = pos,
                            .seq_row0 = row0,
                            .seq_prefix = w->spec.prefix};
    make_pages(w, &r);
    for (int32_t s = 0; s < spec->n_seqs; s++)
        for (int32_t i = 0; i < world_seq_slots(w, s); i++)
            put_slot(w, s, i, &r);
    if (spec->tree)
        make_mask(w);
    return w;
}

void world_destroy(world *w)
{
    const void *lent[] = {w->batch.row_token, w->batch.row_seq,  w->batch.row_pos,
                          w->batch.seq_row0,  w->batch.row_mask, w->kv.page_table};
    for (size_t i = 0; i < sizeof lent / sizeof *lent; i++)
        free((void *)(uintptr_t)lent[i]);
    free(w->kv.pages);
    free(w->slots);
    free(w->parent);
    free(w);
}

bool world_sees(const world *w, int32_t row, int64_t slot)
{
    int32_t seq = w->batch.row_seq[row], i = row - w->batch.seq_row0[seq];
    int64_t j = slot - w->spec.prefix[seq];
    if (slot % w->spec.mod != w->spec.rem || (w->spec.window > 0 && w->spec.prefix[seq] + i - slot >= w->spec.window))
        return false;
    if (j < 0)
        return true;
    for (; i >= 0; i = w->parent[w->batch.seq_row0[seq] + i])
        if (i == j)
            return true;
    return false;
}

int64_t world_count_nan(const world *w)
{
    int64_t n = 0;
    for (int64_t i = 0; i < (int64_t)w->n_pages * w->spec.page_tok * w->width; i++) {
        float v;
        dtype_to_f32(&v, (char *)w->kv.pages + (size_t)i * dtype_bytes(w->kv.dtype), w->kv.dtype, 1);
        n += isnan(v) != 0;
    }
    return n;
}

void world_attend(const world *w, int32_t row, const double *q, const double *keys, int64_t dk, const double *values,
                  int64_t dv, double scale, double *out, double *lse)
{
    int32_t n = world_seq_slots(w, w->batch.row_seq[row]);
    double *s = tpl_malloc((size_t)(n + 1) * sizeof *s), max = -INFINITY, sum = 0;
    for (int32_t t = 0; t < n; t++) {
        s[t] = 0;
        for (int64_t c = 0; c < dk; c++)
            s[t] += scale * q[c] * keys[t * dk + c];
        if (world_sees(w, row, t))
            max = fmax(max, s[t]);
    }
    memset(out, 0, (size_t)dv * sizeof *out);
    for (int32_t t = 0; t < n; t++) {
        double p = world_sees(w, row, t) ? exp(s[t] - max) : 0;
        sum += p;
        for (int64_t c = 0; c < dv; c++)
            out[c] += p * values[t * dv + c];
    }
    for (int64_t c = 0; c < dv && sum > 0; c++)
        out[c] /= sum;
    *lse = sum > 0 ? max + log(sum) : -INFINITY;
    free(s);
}
