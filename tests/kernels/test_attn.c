#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/arena.h"
#include "tests/kernels/world.h"

/* Contexts that straddle pages and the kernels' blocks of 64 and 128 tokens; rows before anything; ranks without
 * tokens. */
static const world_spec worlds[] = {
    {.name = "one_token", .n_seqs = 1, .prefix = {0}, .rows = {1}, .page_tok = 16, .mod = 1, .dtype = DT_F32},
    {.name = "decode",
     .n_seqs = 3,
     .prefix = {130, 0, 257},
     .rows = {1, 1, 1},
     .page_tok = 7,
     .mod = 1,
     .dtype = DT_F32},
    {.name = "decode_bf16",
     .n_seqs = 2,
     .prefix = {300, 64},
     .rows = {1, 1},
     .page_tok = 16,
     .mod = 1,
     .dtype = DT_BF16},
    {.name = "prefill", .n_seqs = 2, .prefix = {0, 5}, .rows = {150, 33}, .page_tok = 16, .mod = 1, .dtype = DT_F32},
    {.name = "chunk_bf16", .n_seqs = 1, .prefix = {129}, .rows = {140}, .page_tok = 64, .mod = 1, .dtype = DT_BF16},
    {.name = "tree",
     .n_seqs = 2,
     .prefix = {40, 0},
     .rows = {70, 9},
     .page_tok = 8,
     .mod = 1,
     .tree = true,
     .dtype = DT_F32},
    {.name = "large_tree",
     .n_seqs = 1,
     .prefix = {3},
     .rows = {200},
     .page_tok = 8,
     .mod = 1,
     .tree = true,
     .dtype = DT_BF16},
    {.name = "no_rows", .n_seqs = 3, .prefix = {9, 20, 4}, .rows = {2, 0, 3}, .page_tok = 4, .mod = 1, .dtype = DT_F32},
    {.name = "dcp_0",
     .n_seqs = 2,
     .prefix = {0, 131},
     .rows = {3, 1},
     .page_tok = 4,
     .mod = 4,
     .rem = 0,
     .dtype = DT_F32},
    {.name = "dcp_3",
     .n_seqs = 2,
     .prefix = {0, 131},
     .rows = {3, 1},
     .page_tok = 4,
     .mod = 4,
     .rem = 3,
     .dtype = DT_F32},
    {.name = "dcp_tree",
     .n_seqs = 1,
     .prefix = {257},
     .rows = {66},
     .page_tok = 8,
     .mod = 2,
     .rem = 1,
     .tree = true,
     .dtype = DT_F32},
    {.name = "dcp_prefill",
     .n_seqs = 1,
     .prefix = {0},
     .rows = {300},
     .page_tok = 8,
     .mod = 2,
     .rem = 1,
     .dtype = DT_BF16},
};

static const world_spec whole_worlds[] = {
    {.name = "large",
     .n_seqs = 2,
     .prefix = {200, 0},
     .rows = {1, 40},
     .page_tok = 16,
     .mod = 1,
     .dtype = DT_F32,
     .whole = true},
    {.name = "large_bf16",
     .n_seqs = 1,
     .prefix = {140},
     .rows = {3},
     .page_tok = 16,
     .mod = 1,
     .dtype = DT_BF16,
     .whole = true},
};

static const world_spec window_worlds[] = {
    {.name = "window_1",
     .n_seqs = 1,
     .prefix = {0},
     .rows = {20},
     .page_tok = 4,
     .mod = 1,
     .dtype = DT_F32,
     .window = 1},
    {.name = "window_decode",
     .n_seqs = 2,
     .prefix = {400, 3},
     .rows = {1, 1},
     .page_tok = 16,
     .mod = 1,
     .dtype = DT_BF16,
     .window = 130},
    {.name = "window_prefill",
     .n_seqs = 1,
     .prefix = {10},
     .rows = {300},
     .page_tok = 16,
     .mod = 1,
     .dtype = DT_F32,
     .window = 64},
    {.name = "window_tree",
     .n_seqs = 1,
     .prefix = {30},
     .rows = {70},
     .page_tok = 16,
     .mod = 1,
     .tree = true,
     .dtype = DT_F32,
     .window = 25},
    {.name = "window_dcp",
     .n_seqs = 1,
     .prefix = {30},
     .rows = {7},
     .page_tok = 16,
     .mod = 4,
     .rem = 2,
     .dtype = DT_F32,
     .window = 3},
};

enum { N_WORLDS = sizeof worlds / sizeof *worlds };

static void say(char what[160], const char *op, const world *w, tpl_dtype compute, const kernel_row *row)
{
    snprintf(what, 160, "%s %s compute %s %s", op, w->spec.name, dtype_name(compute), row->name);
}

/* Columns [off, off + n) of all slots of a sequence as products take them, to dst rows ldd apart. */
static void slot_columns(const world *w, int32_t seq, tpl_dtype compute, int64_t off, int64_t n, double *dst,
                         int64_t ldd)
{
    for (int64_t s = 0; s < world_seq_slots(w, seq); s++)
        for (int64_t c = 0; c < n; c++)
            dst[s * ldd + c] = as_input(compute, world_slot(w, seq, s)[off + c]);
}

static mat queries(const world *w, rng *r, int64_t cols, double size)
{
    mat m = mats_random(r, w->batch.n_rows, cols, size);
    if (w->spec.whole)
        for (int64_t i = 0; i < m.rows; i++)
            for (int64_t c = 0; c < cols; c++)
                ((float *)m.data)[i * m.stride + c] = (float)((int)rng_below(r, 129) - 64);
    return m;
}

/* ---- latent ---- */

typedef struct {
    int32_t heads, lat, rope;
} latent_shape;

static void latent_expected(const world *w, const op_attn_latent *o, tpl_dtype compute, double *out, double *lse)
{
    int64_t dk = o->lat + o->rope, n = w->max_slots;
    double *keys = tpl_malloc((size_t)(n * dk) * 8), *values = tpl_malloc((size_t)(n * o->lat) * 8);
    double *q = tpl_malloc((size_t)dk * 8);
    for (int32_t row = 0; row < w->batch.n_rows; row++) {
        int32_t seq = w->batch.row_seq[row];
        slot_columns(w, seq, compute, o->lat_off, o->lat, keys, dk);
        slot_columns(w, seq, compute, o->rope_off, o->rope, keys + o->lat, dk);
        slot_columns(w, seq, compute, o->lat_off, o->lat, values, o->lat);
        for (int64_t h = 0; h < o->heads; h++) {
            for (int64_t c = 0; c < o->lat; c++)
                q[c] = as_input(compute, mats_get(&o->q_lat, row, h * o->q_lat_head_stride + c));
            for (int64_t c = 0; c < o->rope; c++)
                q[o->lat + c] = as_input(compute, mats_get(&o->q_pe, row, h * o->q_pe_head_stride + c));
            world_attend(w, row, q, keys, dk, values, o->lat, o->scale, out + (row * o->heads + h) * o->lat,
                         lse + row * o->heads + h);
        }
    }
    free(keys);
    free(values);
    free(q);
}

static void check_latent(const world_spec *spec, latent_shape s, tpl_dtype compute, const char *tol)
{
    rng r = rng_make(11, 0);
    int32_t width = s.lat + s.rope + 5, lat_stride = s.lat + 2, pe_stride = s.rope + 1;
    world *w = world_create(spec, width, 3);
    op_call call = {.kind = OP_ATTN_LATENT};
    op_attn_latent *o = &call.attn_latent;
    *o = (op_attn_latent){.q_lat = queries(w, &r, s.heads * lat_stride, 1),
                          .q_pe = queries(w, &r, s.heads * pe_stride, 1),
                          .q_lat_head_stride = lat_stride,
                          .q_pe_head_stride = pe_stride,
                          .heads = s.heads,
                          .lat = s.lat,
                          .rope = s.rope,
                          .lat_off = 3,
                          .rope_off = s.lat + 4,
                          .kv = w->kv,
                          .scale = spec->whole ? 1 : 0.7f,
                          .batch = &w->batch};
    size_t n = (size_t)w->batch.n_rows * (size_t)s.heads;
    double *out = tpl_calloc(n * (size_t)s.lat, 8), *lse = tpl_calloc(n, 8);
    latent_expected(w, o, compute, out, lse);
    EACH_ROW(row, OP_ATTN_LATENT)
    {
        char what[160];
        say(what, "latent", w, compute, row);
        o->out = guard_make(w->batch.n_rows, s.heads * s.lat);
        o->lse = guard_make(w->batch.n_rows, s.heads);
        run_row(row, compute, &call, what);
        compare_mat(&o->out, out, tol, what);
        compare_mat(&o->lse, lse, tol, what);
        mats_free(&o->out);
        mats_free(&o->lse);
        o->out = guard_make(w->batch.n_rows, s.heads * s.lat);
        run_row(row, compute, &call, what); /* lse not wanted */
        compare_mat(&o->out, out, tol, what);
        mats_free(&o->out);
    }
    mats_free(&o->q_lat);
    mats_free(&o->q_pe);
    free(out);
    free(lse);
    world_destroy(w);
}

Test(attn, latent_matches_definition)
{
    for (int i = 0; i < N_WORLDS; i++) {
        check_latent(&worlds[i], (latent_shape){3, 20, 6}, DT_F32, "attn");
        check_latent(&worlds[i], (latent_shape){3, 20, 6}, DT_BF16, "attn");
        check_latent(&worlds[i], (latent_shape){8, 64, 16}, DT_F32, "attn");
    }
    check_latent(&worlds[3], (latent_shape){1, 32, 0}, DT_F32, "attn");
}

Test(attn, latent_takes_wide_rows)
{
    check_latent(&worlds[1], (latent_shape){128, 512, 64}, DT_F32, "attn");
    check_latent(&worlds[2], (latent_shape){33, 256, 64}, DT_BF16, "attn");
}

Test(attn, latent_with_large_scores)
{
    for (size_t i = 0; i < sizeof whole_worlds / sizeof *whole_worlds; i++)
        check_latent(&whole_worlds[i], (latent_shape){3, 20, 6}, DT_F32, "attn_exact");
}

/* ---- multi-head form ---- */

typedef struct {
    int32_t heads, nope, rope, v_dim, lat;
} mha_shape;

/* dst [slots, n] = latents w_h^T, rounded as attention takes it. */
static void expand(const world *w, const op_attn_mha *o, int32_t seq, tpl_dtype compute, const mat *weight,
                   int64_t row0, int64_t n, double *dst, int64_t ldd)
{
    for (int64_t s = 0; s < world_seq_slots(w, seq); s++)
        for (int64_t i = 0; i < n; i++) {
            double sum = 0;
            for (int64_t c = 0; c < o->lat; c++)
                sum += as_input(compute, mats_get(weight, row0 + i, c)) *
                       as_input(compute, world_slot(w, seq, s)[o->lat_off + c]);
            dst[s * ldd + i] = as_input(compute, sum);
        }
}

static void mha_expected(const world *w, const op_attn_mha *o, const mat *uk, const mat *uv, tpl_dtype compute,
                         double *out)
{
    int64_t dk = o->nope + o->rope, n = w->max_slots;
    double *keys = tpl_malloc((size_t)(n * dk) * 8), *values = tpl_malloc((size_t)(n * o->v_dim) * 8);
    double *q = tpl_malloc((size_t)dk * 8), lse;
    for (int32_t seq = 0; seq < w->spec.n_seqs; seq++)
        for (int64_t h = 0; h < o->heads; h++) {
            expand(w, o, seq, compute, uk, h * (o->nope + 1), o->nope, keys, dk);
            slot_columns(w, seq, compute, o->rope_off, o->rope, keys + o->nope, dk);
            expand(w, o, seq, compute, uv, h * (o->v_dim + 2), o->v_dim, values, o->v_dim);
            for (int32_t row = w->batch.seq_row0[seq]; row < w->batch.seq_row0[seq + 1]; row++) {
                for (int64_t c = 0; c < dk; c++)
                    q[c] = as_input(compute, mats_get(&o->q, row, h * dk + c));
                world_attend(w, row, q, keys, dk, values, o->v_dim, o->scale, out + (row * o->heads + h) * o->v_dim,
                             &lse);
            }
        }
    free(keys);
    free(values);
    free(q);
}

/* One head's weight among `gap` rows that are not its own. */
static head_mat heads_of(const mat *m, int32_t heads, int32_t rows, int32_t gap)
{
    return (head_mat){.data = m->data,
                      .dtype = m->dtype,
                      .heads = heads,
                      .rows = rows,
                      .cols = (int32_t)m->cols,
                      .row_stride = m->stride,
                      .head_stride = (rows + gap) * m->stride};
}

static void check_mha(const world_spec *spec, mha_shape s, tpl_dtype weights, tpl_dtype compute, const char *tol)
{
    rng r = rng_make(12, 0);
    world *w = world_create(spec, s.lat + s.rope + 3, 5);
    mat uk = mats_typed(&r, s.heads * (s.nope + 1), s.lat, weights, 0.3);
    mat uv = mats_typed(&r, s.heads * (s.v_dim + 2), s.lat, weights, 0.3);
    op_call call = {.kind = OP_ATTN_MHA};
    op_attn_mha *o = &call.attn_mha;
    *o = (op_attn_mha){.q = queries(w, &r, s.heads * (s.nope + s.rope), 1),
                       .w_uk = heads_of(&uk, s.heads, s.nope, 1),
                       .w_uv = heads_of(&uv, s.heads, s.v_dim, 2),
                       .heads = s.heads,
                       .nope = s.nope,
                       .rope = s.rope,
                       .v_dim = s.v_dim,
                       .lat = s.lat,
                       .lat_off = s.rope + 1,
                       .rope_off = 0,
                       .kv = w->kv,
                       .scale = 0.5f,
                       .batch = &w->batch};
    int64_t rows = w->batch.n_rows, cols = s.heads * s.v_dim;
    double *out = tpl_calloc((size_t)(rows * cols), 8), *sum = tpl_calloc((size_t)(rows * cols), 8);
    mha_expected(w, o, &uk, &uv, compute, out);
    mat old = mats_random(&r, rows, cols, 1);
    for (int64_t i = 0; i < rows * cols; i++)
        sum[i] = out[i] + mats_get(&old, i / cols, i % cols);
    EACH_ROW(row, OP_ATTN_MHA)
    {
        char what[160];
        say(what, "mha", w, compute, row);
        o->out = guard_make(rows, cols);
        run_row(row, compute, &call, what);
        compare_mat(&o->out, out, tol, what);
        mats_copy(&o->out, &old);
        o->accumulate = true;
        run_row(row, compute, &call, what);
        compare_mat(&o->out, sum, tol, what);
        o->accumulate = false;
        mats_free(&o->out);
    }
    mats_free(&o->q);
    mats_free(&old);
    mats_free(&uk);
    mats_free(&uv);
    free(out);
    free(sum);
    world_destroy(w);
}

Test(attn, mha_matches_definition)
{
    static const tpl_dtype types[] = {DT_F32, DT_BF16, DT_F16};
    for (int i = 0; i < N_WORLDS; i++) {
        check_mha(&worlds[i], (mha_shape){3, 5, 4, 7, 20}, types[i % 3], DT_F32, "attn");
        check_mha(&worlds[i], (mha_shape){3, 5, 4, 7, 20}, types[i % 3], DT_BF16, "attn_bf16");
    }
    check_mha(&worlds[3], (mha_shape){8, 32, 16, 32, 64}, DT_BF16, DT_F32, "attn");
    check_mha(&worlds[7], (mha_shape){2, 8, 0, 130, 17}, DT_F32, DT_F32, "attn");
}

Test(attn, mha_takes_heads_in_groups)
{
    check_mha(&worlds[7], (mha_shape){5, 128, 64, 128, 512}, DT_BF16, DT_F32, "attn");
}

/* More rows than share one expansion. */
Test(attn, mha_takes_rows_in_chunks)
{
    static const world_spec spec = {
        .name = "long", .n_seqs = 1, .prefix = {3}, .rows = {1030}, .page_tok = 64, .mod = 1, .dtype = DT_F32};
    check_mha(&spec, (mha_shape){1, 4, 4, 4, 8}, DT_F32, DT_F32, "attn");
}

/* ---- grouped queries ---- */

static void gqa_expected(const world *w, const op_attn_gqa *o, tpl_dtype compute, double *out)
{
    int64_t dim = o->head_dim, n = w->max_slots, group = o->heads / o->kv_heads;
    double *keys = tpl_malloc((size_t)(n * dim) * 8), *values = tpl_malloc((size_t)(n * dim) * 8);
    double *q = tpl_malloc((size_t)dim * 8), lse;
    for (int32_t row = 0; row < w->batch.n_rows; row++)
        for (int64_t h = 0; h < o->heads; h++) {
            int32_t seq = w->batch.row_seq[row];
            slot_columns(w, seq, compute, o->k_off + h / group * dim, dim, keys, dim);
            slot_columns(w, seq, compute, o->v_off + h / group * dim, dim, values, dim);
            for (int64_t c = 0; c < dim; c++)
                q[c] = as_input(compute, mats_get(&o->q, row, h * dim + c));
            world_attend(w, row, q, keys, dim, values, dim, o->scale, out + (row * o->heads + h) * dim, &lse);
        }
    free(keys);
    free(values);
    free(q);
}

/* Keys begin an odd number of columns into the row, or `even`. */
static void check_gqa_at(const world_spec *spec, int32_t heads, int32_t kv_heads, int32_t dim, tpl_dtype compute,
                         const char *tol, bool even)
{
    rng r = rng_make(13, 0);
    world *w = world_create(spec, 2 * kv_heads * dim + 4, 6);
    op_call call = {.kind = OP_ATTN_GQA};
    op_attn_gqa *o = &call.attn_gqa;
    *o = (op_attn_gqa){.q = queries(w, &r, heads * dim, 1),
                       .heads = heads,
                       .kv_heads = kv_heads,
                       .head_dim = dim,
                       .k_off = kv_heads * dim + (even ? 2 : 1),
                       .v_off = even ? 0 : 1,
                       .window = spec->window,
                       .kv = w->kv,
                       .scale = spec->whole ? 1 : 0.6f,
                       .batch = &w->batch};
    int64_t rows = w->batch.n_rows, cols = heads * dim;
    double *out = tpl_calloc((size_t)(rows * cols), 8);
    gqa_expected(w, o, compute, out);
    EACH_ROW(row, OP_ATTN_GQA)
    {
        char what[160];
        say(what, "gqa", w, compute, row);
        o->out = guard_make(rows, cols);
        run_row(row, compute, &call, what);
        compare_mat(&o->out, out, tol, what);
        mats_free(&o->out);
    }
    mats_free(&o->q);
    free(out);
    world_destroy(w);
}

static void check_gqa(const world_spec *spec, int32_t heads, int32_t kv_heads, int32_t dim, tpl_dtype compute,
                      const char *tol)
{
    check_gqa_at(spec, heads, kv_heads, dim, compute, tol, false);
}

/* Sizes that a bf16 cache is multiplied at in place: whole and partial sets of heads, blocks across pages. */
Test(attn, gqa_decodes_in_place)
{
    static const world_spec spec[] = {
        {.name = "in_place", .n_seqs = 3, .prefix = {300, 64, 0}, .rows = {1, 1, 1}, .page_tok = 16, .mod = 1, .dtype = DT_BF16},
        {.name = "in_place_long_pages", .n_seqs = 2, .prefix = {517, 63}, .rows = {1, 3}, .page_tok = 100, .mod = 1, .dtype = DT_BF16},
        {.name = "in_place_shared", .n_seqs = 2, .prefix = {301, 0}, .rows = {1, 1}, .page_tok = 64, .mod = 2, .dtype = DT_BF16}};
    for (int i = 0; i < 3; i++) {
        check_gqa_at(&spec[i], 16, 2, 32, DT_BF16, "attn_bf16", true);
        check_gqa_at(&spec[i], 14, 2, 64, DT_BF16, "attn_bf16", true);
        check_gqa_at(&spec[i], 5, 1, 128, DT_BF16, "attn_bf16", true);
        check_gqa_at(&spec[i], 26, 2, 96, DT_BF16, "attn_bf16", false);
    }
}

Test(attn, gqa_matches_definition)
{
    for (int i = 0; i < N_WORLDS; i++) {
        check_gqa(&worlds[i], 6, 2, 10, DT_F32, "attn");
        check_gqa(&worlds[i], 6, 2, 10, DT_BF16, "attn");
    }
    check_gqa(&worlds[3], 8, 8, 32, DT_F32, "attn");
    check_gqa(&worlds[1], 5, 1, 128, DT_F32, "attn");
}

Test(attn, gqa_sees_a_window)
{
    for (size_t i = 0; i < sizeof window_worlds / sizeof *window_worlds; i++)
        check_gqa(&window_worlds[i], 6, 2, 10, DT_F32, "attn");
}

/* Where a block of 128 tokens ends, or begins, exactly at what the first or last row of a block of 64 sees. */
static const world_spec edge_worlds[] = {
    {.name = "last_in_window",
     .n_seqs = 1,
     .prefix = {62},
     .rows = {150},
     .page_tok = 16,
     .mod = 1,
     .dtype = DT_F32,
     .window = 64},
    {.name = "first_past_window",
     .n_seqs = 1,
     .prefix = {300},
     .rows = {2},
     .page_tok = 16,
     .mod = 1,
     .dtype = DT_F32,
     .window = 150},
    {.name = "causal", .n_seqs = 1, .prefix = {62}, .rows = {150}, .page_tok = 16, .mod = 1, .dtype = DT_F32},
};

Test(attn, gqa_sees_up_to_the_edge)
{
    for (size_t i = 0; i < sizeof edge_worlds / sizeof *edge_worlds; i++)
        check_gqa(&edge_worlds[i], 1, 1, 16, DT_F32, "attn");
}

Test(attn, gqa_with_large_scores)
{
    for (size_t i = 0; i < sizeof whole_worlds / sizeof *whole_worlds; i++)
        check_gqa(&whole_worlds[i], 4, 2, 24, DT_F32, "attn_exact");
}

/* A score of 1e4 above all others: that token's value comes out, whatever the others hold. */
Test(attn, one_hot_token_gives_its_value)
{
    world_spec spec = {
        .name = "hot", .n_seqs = 1, .prefix = {199}, .rows = {1}, .page_tok = 16, .mod = 1, .dtype = DT_F32};
    world *w = world_create(&spec, 8, 9);
    float *cached = w->kv.pages;
    int64_t at = ((int64_t)w->kv.page_table[150 / 16] * 16 + 150 % 16) * 8;
    cached[at] = 1e4f;
    float q[8] = {1};
    op_call call = {.kind = OP_ATTN_LATENT};
    op_attn_latent *o = &call.attn_latent;
    *o = (op_attn_latent){
        .q_lat = {q, DT_F32, 1, 8, 8, NULL}, .heads = 1, .lat = 8, .kv = w->kv, .scale = 1, .batch = &w->batch};
    EACH_ROW(row, OP_ATTN_LATENT)
    {
        o->out = guard_make(1, 8);
        o->lse = guard_make(1, 1);
        run_row(row, DT_F32, &call, "hot");
        for (int c = 0; c < 8; c++)
            cr_assert_eq(((float *)o->out.data)[c], cached[at + c], "%s column %d", row->name, c);
        cr_assert_eq(*(float *)o->lse.data, 1e4f, "%s", row->name);
        mats_free(&o->out);
        mats_free(&o->lse);
    }
    world_destroy(w);
}

/* A query of NaN must not look like a row that saw nothing. */
Test(attn, nan_queries_give_nan)
{
    world_spec spec = {
        .name = "nan", .n_seqs = 1, .prefix = {20}, .rows = {1}, .page_tok = 16, .mod = 1, .dtype = DT_F32};
    world *w = world_create(&spec, 16, 9);
    float q[16];
    for (int i = 0; i < 16; i++)
        q[i] = NAN;
    op_call call = {.kind = OP_ATTN_LATENT};
    op_attn_latent *o = &call.attn_latent;
    *o = (op_attn_latent){
        .q_lat = {q, DT_F32, 1, 16, 16, NULL}, .heads = 1, .lat = 16, .kv = w->kv, .scale = 1, .batch = &w->batch};
    EACH_ROW(row, OP_ATTN_LATENT)
    {
        o->out = guard_make(1, 16);
        o->lse = guard_make(1, 1);
        run_row(row, DT_F32, &call, "nan");
        cr_assert(isnan(*(float *)o->out.data) && isnan(*(float *)o->lse.data), "%s", row->name);
        mats_free(&o->out);
        mats_free(&o->lse);
    }
    world_destroy(w);
}

static size_t latent_scratch(const kernel_row *row, int32_t rows, int64_t ctx)
{
    batch_view b = {.n_rows = rows, .n_seqs = 1, .ctx_tok = ctx};
    op_call call = {.kind = OP_ATTN_LATENT};
    call.attn_latent = (op_attn_latent){.heads = 128, .lat = 512, .rope = 64, .batch = &b};
    return row->scratch_bytes(&call);
}

Test(attn, scratch_is_small_and_grows_with_rows)
{
    EACH_ROW(row, OP_ATTN_LATENT)
    {
        size_t last = 0;
        for (int32_t rows = 1; rows <= 4096; rows *= 2) {
            size_t bytes = latent_scratch(row, rows, 1 << 17);
            cr_assert(bytes >= last && bytes <= 8 << 20, "%s: %d rows take %zu bytes after %zu", row->name, rows, bytes,
                      last);
            last = bytes;
        }
    }
}
