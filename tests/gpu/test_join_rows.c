/* Work on single rows, ropes, norms and kv_append, and what stands beside it in the same launch, against the reference
 * doing the calls one after another. */
#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>

#include "tests/gpu/slab.h"

enum { SLAB_BYTES = 64 << 20 };

static const slab_tolerance one_step = {1e-6, 0x1p-7};

enum { ROWS = 3, PAGES = 4, PAGE_TOK = 8, MAX_POS = 40 };

typedef struct {
    batch_view batch;
    kv_view kv;
    mat pages;
} cache;

/* The batch's arrays on the host, and how its sequences lie: a table of max_pages a sequence, of n_pages in all. */
typedef struct {
    int n_rows, n_seqs, n_pages, max_pages, max_slots;
    const int32_t *token, *pos, *seq, *row0, *prefix, *table;
} layout;

static void lay_cache(slab *s, cache *k, const layout *of, tpl_dtype t, int width, int mod, int rem)
{
    size_t rows = (size_t)of->n_rows * sizeof(int32_t), seqs = (size_t)of->n_seqs * sizeof(int32_t);
    k->batch = (batch_view){.n_rows = of->n_rows,
                            .n_seqs = of->n_seqs,
                            .row_token = slab_copy(s, of->token, rows),
                            .row_seq = slab_copy(s, of->seq, rows),
                            .row_pos = slab_copy(s, of->pos, rows),
                            .seq_row0 = slab_copy(s, of->row0, seqs + sizeof(int32_t)),
                            .seq_prefix = slab_copy(s, of->prefix, seqs),
                            .max_seq_rows = 2,
                            .max_slots = of->max_slots};
    k->pages = (mat){.data = slab_cut(s, (size_t)(of->n_pages * PAGE_TOK * width) * dtype_bytes(t)),
                     .dtype = t,
                     .rows = of->n_pages * PAGE_TOK,
                     .cols = width,
                     .stride = width};
    k->kv = (kv_view){.pages = k->pages.data,
                      .dtype = t,
                      .width = width,
                      .page_tok = PAGE_TOK,
                      .page_table = slab_copy(s, of->table, seqs * (size_t)of->max_pages),
                      .max_pages = of->max_pages,
                      .mod = mod,
                      .rem = rem};
}

/* Two rows of one sequence, one of another. */
static void make_cache(slab *s, cache *k, tpl_dtype t, int width, int mod)
{
    static const int32_t token[] = {1, 2, 3}, pos[] = {9, 10, 2}, seq[] = {0, 0, 1}, row0[] = {0, 2, 3},
                         prefix[] = {9, 2}, table[] = {2, 0, 1, 3};
    lay_cache(s, k, &(layout){ROWS, 2, PAGES, 2, 16, token, pos, seq, row0, prefix, table}, t, width, mod, 0);
}

static slab_case rope_case(slab *s, rng *r, mat x, int heads, int stride, int dim, bool interleaved, const cache *k)
{
    slab_case c = {.call = {.kind = OP_ROPE}, .compute = DT_BF16};
    c.call.rope = (op_rope){.x = x,
                            .heads = heads,
                            .head_stride = stride,
                            .dim = dim,
                            .cos = slab_mat(s, r, MAX_POS, dim / 2, 0, DT_F32, 1).data,
                            .sin = slab_mat(s, r, MAX_POS, dim / 2, 0, DT_F32, 1).data,
                            .interleaved = interleaved,
                            .batch = &k->batch};
    c.out[0] = x;
    c.tol[0] = one_step;
    return c;
}

static slab_case append_case(mat a, mat b, int b_off, const cache *k)
{
    slab_case c = {.call = {.kind = OP_KV_APPEND}, .compute = DT_BF16};
    c.call.kv_append = (op_kv_append){.a = a, .b = b, .b_off = b_off, .kv = k->kv, .batch = &k->batch};
    c.out[0] = k->pages;
    c.tol[0] = one_step;
    return c;
}

static mat columns(mat m, int64_t col, int64_t n)
{
    m.data = (char *)m.data + (size_t)col * dtype_bytes(m.dtype);
    m.cols = n;
    return m;
}

/* Llama's: queries of 32 heads, keys of 8, then keys and values into the cache. */
Test(join_rows, ropes_and_append)
{
    slab *s = slab_create(SLAB_BYTES);
    static const int heads[][3] = {{32, 8, 128}, {3, 1, 16}, {128, 1, 64}};
    char what[96];
    for (int i = 0; i < 6; i++) {
        rng r = rng_make((uint64_t)i, 60);
        int n = heads[i % 3][0], n_kv = heads[i % 3][1], dim = heads[i % 3][2];
        cache k;
        slab_reset(s);
        make_cache(s, &k, i < 3 ? DT_BF16 : DT_F32, 2 * n_kv * dim, 1);
        mat q = slab_mat(s, &r, ROWS, n * dim, 3, DT_BF16, 1),
            kv = slab_mat(s, &r, ROWS, 2 * n_kv * dim, 5, DT_BF16, 1);
        slab_case c[3] = {rope_case(s, &r, q, n, dim, dim, i % 2, &k),
                          rope_case(s, &r, columns(kv, 0, n_kv * dim), n_kv, dim, dim, i % 2, &k),
                          append_case(kv, (mat){0}, 0, &k)};
        snprintf(what, sizeof what, "ropes of %d and %d heads and append, %s", n, n_kv, dtype_name(k.kv.dtype));
        slab_check_join(s, c, 3, what);
    }
    slab_destroy(s);
}

/* The latent's: queries' rope parts, the norm or the sliced norm, the key's rope, then both parts into the cache, of
 * which a rank may keep every second slot. */
Test(join_rows, latent_rows)
{
    slab *s = slab_create(SLAB_BYTES);
    char what[96];
    for (int i = 0; i < 6; i++) {
        rng r = rng_make((uint64_t)i, 70);
        int heads = i % 2 ? 16 : 64, lat = i % 2 ? 512 : 96, dim = 64, wide = 192;
        cache k;
        slab_reset(s);
        make_cache(s, &k, DT_BF16, lat + dim, 1 + i % 2);
        mat q = slab_mat(s, &r, ROWS, heads * wide, 3, DT_BF16, 1),
            kv = slab_mat(s, &r, ROWS, lat + dim, 5, DT_BF16, 1);
        mat latent = columns(kv, 0, lat), pe = columns(kv, lat, dim);
        slab_case c[4] = {rope_case(s, &r, columns(q, 128, heads * wide - 128), heads, wide, dim, true, &k),
                          {.compute = DT_BF16},
                          rope_case(s, &r, pe, 1, dim, dim, true, &k),
                          append_case(latent, pe, lat, &k)};
        if (i < 4) {
            c[1].call.kind = OP_RMSNORM;
            c[1].call.rmsnorm = (op_rmsnorm){.x = latent,
                                             .out = latent,
                                             .weight = slab_mat(s, &r, 1, lat, 0, i % 2 ? DT_F32 : DT_BF16, 1),
                                             .groups = 1,
                                             .eps = 1e-6f};
        } else {
            mat alpha = slab_mat(s, &r, 1, 2, 0, DT_F32, 0);
            ((float *)alpha.data)[0] = 1.5f;
            ((float *)alpha.data)[1] = 2.5f;
            c[1].call.kind = OP_SLICED_NORM;
            c[1].call.sliced_norm = (op_sliced_norm){
                .x = latent, .out = latent, .alpha = alpha.data, .n_slices = 2, .kv_lora_rank = lat, .eps = 1e-6f};
        }
        c[1].out[0] = latent;
        c[1].tol[0] = one_step;
        snprintf(what, sizeof what, "latent rows %d", i);
        slab_check_join(s, i % 3 ? c : c + 1, i % 3 ? 4 : 3, what);
    }
    slab_destroy(s);
}

/* n rows, of sequences of two rows and of one in turn, none with the others' slots. */
static void make_wide_cache(slab *s, cache *k, int n, int width, int mod)
{
    enum { MOST = 96 };
    static int32_t token[MOST], pos[MOST], seq[MOST], row0[MOST + 1], prefix[MOST], table[MOST];
    int n_seqs = 0;
    for (int row = 0; row < n; n_seqs++) {
        int own = n_seqs % 3 == 0 && row + 1 < n ? 2 : 1;
        row0[n_seqs] = row;
        prefix[n_seqs] = n_seqs * 5 % (PAGE_TOK * mod - 1);
        table[n_seqs] = (n_seqs * 7 + 3) % MOST;
        for (int i = 0; i < own; i++, row++) {
            seq[row] = n_seqs;
            pos[row] = prefix[n_seqs] + i;
        }
    }
    row0[n_seqs] = n;
    lay_cache(s, k, &(layout){n, n_seqs, MOST, 1, PAGE_TOK * mod, token, pos, seq, row0, prefix, table}, DT_BF16, width,
              mod, mod - 1);
}

/* The latent's rows, then the queries' other parts times the key projection a head, and, where context is shared, the
 * turned parts beside the results. */
Test(join_rows, latent_rows_and_absorb)
{
    slab *s = slab_create(SLAB_BYTES);
    static const int sizes[][4] = {{1, 16, 128, 512}, {2, 5, 128, 256}, {29, 64, 128, 512}, {59, 16, 64, 512},
                                   {3, 3, 40, 72},    {96, 4, 128, 256}, {17, 100, 64, 256}};
    char what[96];
    for (int i = 0; i < 14; i++) {
        rng r = rng_make((uint64_t)i, 75);
        const int *of = sizes[i / 2];
        int rows = of[0], heads = of[1], nope = of[2], lat = of[3], dim = 64, wide = nope + dim;
        bool copies = i % 2;
        cache k;
        if (rows > 2 && !slab_has_warpgroups())
            continue;
        slab_reset(s);
        make_wide_cache(s, &k, rows, lat + dim, 1 + copies);
        mat q = slab_mat(s, &r, rows, heads * wide, 8, DT_BF16, 1);
        mat kv = slab_mat(s, &r, rows, lat + dim, 8, DT_BF16, 1), latent = columns(kv, 0, lat),
            pe = columns(kv, lat, dim);
        slab_heads h = {
            .rows = rows, .heads = heads, .w_rows = nope, .w_cols = lat, .w_gap = 8, .out_gap = copies ? dim : 0};
        slab_case c[6] = {rope_case(s, &r, columns(q, nope, heads * wide - nope), heads, wide, dim, true, &k),
                          {.call = {.kind = OP_RMSNORM}, .compute = DT_BF16},
                          rope_case(s, &r, pe, 1, dim, dim, i % 3 > 0, &k),
                          append_case(latent, pe, lat, &k),
                          slab_head_matmul(s, &r, DT_BF16, &h),
                          {.call = {.kind = OP_COPY_HEADS}, .compute = DT_BF16}};
        c[1].call.rmsnorm = (op_rmsnorm){
            .x = latent, .out = latent, .weight = slab_mat(s, &r, 1, lat, 0, DT_BF16, 1), .groups = 1, .eps = 1e-6f};
        c[1].out[0] = latent;
        c[1].tol[0] = one_step;
        c[4].call.head_matmul.x = q;
        c[4].call.head_matmul.x_head_stride = wide;
        c[4].tol[0] = (slab_tolerance){nope * 0x1p-22, 0x1p-7}; /* as in test_rows.c */
        mat out = c[4].call.head_matmul.out;
        c[5].call.copy_heads = (op_copy_heads){.x = c[0].call.rope.x,
                                               .out = columns(out, lat, out.cols - lat),
                                               .heads = heads,
                                               .cols = dim,
                                               .x_head_stride = wide,
                                               .out_head_stride = lat + dim};
        snprintf(what, sizeof what, "latent rows and absorb, %d rows, %d heads of [%d, %d]%s", rows, heads, nope, lat,
                 copies ? ", copied" : "");
        slab_check_join(s, c, copies ? 6 : 5, what);
    }
    slab_destroy(s);
}

/* The same for attention over many pages: n_seqs sequences of `tokens` and fewer, one row each; the last has no row if
 * `gap`. Values of other slots than those cached are left as they are, NaN. */
static void make_long_cache(slab *s, rng *r, cache *k, int n_seqs, int tokens, int width, bool gap)
{
    enum { MOST_SEQS = 8, MOST_PAGES = 8192 / PAGE_TOK };
    static int32_t row[MOST_SEQS], seq[MOST_SEQS], pos[MOST_SEQS], row0[MOST_SEQS + 1], prefix[MOST_SEQS];
    static int32_t table[MOST_SEQS * MOST_PAGES];
    int each = tokens / PAGE_TOK + 1, n_pages = n_seqs * each, n_rows = n_seqs - gap;
    for (int i = 0; i < n_seqs; i++) {
        row[i] = row0[i] = i;
        seq[i] = i;
        prefix[i] = i % 3 == 1 ? tokens / 3 : tokens - i;
        pos[i] = prefix[i] % MAX_POS;
    }
    row0[n_seqs] = n_rows;
    for (int i = 0; i < n_pages; i++)
        table[i] = (i * 5 + 3) % n_pages; /* n_pages is no multiple of 5, see the sizes */
    lay_cache(s, k, &(layout){n_rows, n_seqs, n_pages, each, tokens + 1, row, pos, seq, row0, prefix, table}, DT_BF16,
              width, 1, 0);
    k->batch.max_seq_rows = 1;
    for (int i = 0; i < n_seqs; i++)
        for (int t = 0; t < prefix[i]; t++) {
            bf16 *to =
                (bf16 *)k->pages.data + (int64_t)(table[i * each + t / PAGE_TOK] * PAGE_TOK + t % PAGE_TOK) * width;
            for (int c = 0; c < width; c++)
                to[c] = bf16_from_f32((float)(2 * rng_uniform(r) - 1));
        }
}

/* A decode step's attention from the products' outputs on: turned queries and keys, the new token in the cache. */
Test(join_rows, ropes_append_and_attention)
{
    slab *s = slab_create(SLAB_BYTES);
    static const int sizes[][5] = {{1, 1021, 32, 8, 128}, {2, 700, 8, 4, 64},   {1, 17, 14, 2, 64}, {1, 1, 7, 1, 128},
                                   {3, 127, 16, 4, 128},  {1, 4098, 8, 2, 128}, {2, 2111, 4, 4, 64}};
    char what[96];
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes && slab_has_warpgroups(); i++) {
        rng r = rng_make(i, 80);
        int n_seqs = sizes[i][0], heads = sizes[i][2], n_kv = sizes[i][3], dim = sizes[i][4], keys = n_kv * dim;
        cache k;
        slab_reset(s);
        make_long_cache(s, &r, &k, n_seqs, sizes[i][1], 2 * keys + 8, n_seqs == 3);
        int rows = k.batch.n_rows;
        mat q = slab_mat(s, &r, rows, heads * dim, 8, DT_BF16, 1), kv = slab_mat(s, &r, rows, 2 * keys, 8, DT_BF16, 1);
        slab_case c[4] = {rope_case(s, &r, q, heads, dim, dim, false, &k),
                          rope_case(s, &r, columns(kv, 0, keys), n_kv, dim, dim, false, &k),
                          append_case(kv, (mat){0}, 0, &k),
                          {.call = {.kind = OP_ATTN_GQA}, .compute = DT_BF16}};
        c[1].call.rope.cos = c[0].call.rope.cos;
        c[1].call.rope.sin = c[0].call.rope.sin;
        c[2].call.kv_append.a_off = 8;
        c[3].call.attn_gqa = (op_attn_gqa){.q = q,
                                           .heads = heads,
                                           .kv_heads = n_kv,
                                           .head_dim = dim,
                                           .k_off = 8,
                                           .v_off = keys + 8,
                                           .kv = k.kv,
                                           .scale = 0.2f,
                                           .batch = &k.batch};
        c[3].call.attn_gqa.out = c[3].out[0] = slab_mat(s, &r, rows, heads * dim, 8, DT_BF16, 0);
        c[3].tol[0] = (slab_tolerance){8e-3, 0x1p-6}; /* as in test_attention.c, twice, as turned queries round too */
        snprintf(what, sizeof what, "attention of %d heads over %d of %d, %d tokens", heads, n_kv, dim, sizes[i][1]);
        slab_check_join(s, c, 4, what);
    }
    slab_destroy(s);
}
