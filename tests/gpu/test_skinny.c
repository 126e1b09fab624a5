/* Products of few rows and experts of few rows on a card, in the shapes that their own kernels take. */
#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>

#include "tests/gpu/slab.h"

enum { SLAB_BYTES = 96 << 20, MAX_EXPERTS = 64 };

/* As in test_rows.c: f32 sums of n values, and one bf16 step of the result. */
static slab_tolerance tol(tpl_dtype out, double n_summed)
{
    return (slab_tolerance){n_summed * 0x1p-22, out == DT_BF16 ? 0x1p-7 : 2e-6};
}

/* Rows around what few is; n and k that end inside a tile, a chunk, a warp's share, a cluster's. */
static const int row_counts[] = {1, 2, 3, 4, 5, 9, 17};
static const int products[][2] = {{8, 8},     {37, 72},   {100, 520},   {24, 64},   {576, 2048},
                                  {64, 7168}, {17, 4104}, {1000, 1408}, {2200, 264}};

static void check_product(slab *s, int rows, int n, int k, int kind, uint64_t seed)
{
    char what[96];
    rng r = rng_make(seed, (uint64_t)(4 * rows + kind));
    tpl_dtype out = kind == 3 ? DT_F32 : DT_BF16;
    slab_reset(s);
    slab_case c = {.call = {.kind = OP_MATMUL}, .compute = DT_BF16};
    op_matmul *o = &c.call.matmul;
    *o = (op_matmul){.x = slab_mat(s, &r, rows, k, 8, DT_BF16, 1),
                     .w = slab_mat(s, &r, n, k, 16, DT_BF16, 1),
                     .accumulate = kind == 1};
    o->out = slab_mat(s, &r, rows, n, (rows + kind) % 2 ? 3 : 4, out, kind == 1 ? 1 : 0);
    if (kind == 2)
        o->bias = slab_mat(s, &r, 1, n, 0, DT_BF16, 1);
    c.out[0] = o->out;
    c.tol[0] = tol(out, k);
    if (kind == 2) /* of many rows the product is stored before the bias is added */
        c.tol[0].abs += 0x1p-8 * sqrt((double)k);
    snprintf(what, sizeof what, "skinny %d rows [%d, %d] kind %d", rows, n, k, kind);
    slab_check(s, &c, what);
}

Test(skinny, products)
{
    slab *s = slab_create(SLAB_BYTES);
    for (size_t i = 0; i < sizeof products / sizeof *products; i++)
        for (int j = 0; j < 7 * 4; j++)
            check_product(s, row_counts[j / 4], products[i][0], products[i][1], j % 4, i);
    slab_destroy(s);
}

/* Rows of which warpgroups take tiles, to the last and past it. */
Test(skinny, panels)
{
    slab *s = slab_create(SLAB_BYTES);
    static const int rows[] = {16, 29, 46, 59, 64, 96, 114, 128, 129};
    static const int shapes[][2] = {{8, 8}, {37, 72}, {130, 520}, {576, 2048}, {264, 7168}, {2200, 264}};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        for (size_t j = 0; j < sizeof rows / sizeof *rows; j++)
            check_product(s, rows[j], shapes[i][0], shapes[i][1], (int)(i + j) % 4, i);
    slab_destroy(s);
}

/* So many weight rows that tiles of 192 fill an H100 once, by single blocks and by pairs. */
Test(skinny, wide_panels)
{
    slab *s = slab_create(SLAB_BYTES);
    static const int rows[] = {7, 29, 46, 59, 97}, shapes[][2] = {{24500, 264}, {12200, 520}};
    for (int i = 0; i < 10; i++)
        check_product(s, rows[i / 2], shapes[i % 2][0], shapes[i % 2][1], i % 4, (uint64_t)i);
    slab_destroy(s);
}

/* rows, heads, rows and columns of a head's weights */
static const int heads_of[][4] = {{1, 16, 128, 512}, {1, 3, 40, 72},   {2, 5, 128, 256},  {3, 4, 128, 512},
                                  {8, 2, 200, 64},   {9, 2, 64, 128},  {16, 3, 128, 512}, {29, 5, 128, 512},
                                  {59, 3, 128, 256}, {97, 2, 72, 136}, {130, 2, 64, 64}};

Test(skinny, heads)
{
    slab *s = slab_create(SLAB_BYTES);
    char what[96];
    for (size_t i = 0; i < sizeof heads_of / sizeof *heads_of; i++)
        for (int k = 0; k < 4; k++) {
            rng r = rng_make(i, 40 + (uint64_t)k);
            slab_heads h = {.rows = heads_of[i][0],
                            .heads = heads_of[i][1],
                            .w_rows = heads_of[i][2],
                            .w_cols = heads_of[i][3],
                            .turned = k % 2,
                            .accumulate = k >= 2,
                            .w_gap = 8,
                            .x_gap = 64,
                            .row_gap = 8,
                            .out_gap = (int)i % 2 ? 1 : 4};
            slab_reset(s);
            slab_case c = slab_head_matmul(s, &r, DT_BF16, &h);
            c.tol[0] = tol(DT_BF16, h.turned ? h.w_cols : h.w_rows);
            snprintf(what, sizeof what, "skinny heads %d of %d x [%d, %d] kind %d", h.rows, h.heads, h.w_rows, h.w_cols,
                     k);
            slab_check(s, &c, what);
        }
    slab_destroy(s);
}

static const struct {
    int rows, dim, ffn, n, top_k, expert0, n_local;
    bool accumulate;
} experts[] = {{1, 512, 192, 16, 6, 0, 16, false},  {1, 64, 1408, 64, 8, 0, 64, true}, {2, 192, 64, 8, 3, 2, 4, false},
               {8, 320, 128, 32, 6, 16, 16, false}, {2, 2048, 64, 4, 1, 0, 4, false},  {1, 64, 704, 8, 8, 7, 1, true}};

static void make_experts(slab *s, rng *r, int n, int rows, int cols, mat *to)
{
    mat all = slab_mat(s, r, (int64_t)n * rows, cols, 8, DT_BF16, 1 / sqrt((double)cols));
    for (int i = 0; i < n; i++) {
        to[i] = all;
        to[i].rows = rows;
        to[i].data = (char *)all.data + (size_t)i * (size_t)rows * (size_t)all.stride * dtype_bytes(DT_BF16);
    }
}

/* top_k different experts a row: those from a random one on. */
static void random_ids(rng *r, const mat *ids, int n)
{
    for (int64_t i = 0; i < ids->rows; i++) {
        int32_t first = (int32_t)rng_below(r, (uint64_t)n);
        for (int64_t k = 0; k < ids->cols; k++)
            ((int32_t *)ids->data)[i * ids->stride + k] = (int32_t)((first + 3 * k) % n);
    }
}

Test(skinny, experts)
{
    slab *s = slab_create(SLAB_BYTES);
    char what[96];
    static mat gate[MAX_EXPERTS], up[MAX_EXPERTS], down[MAX_EXPERTS];
    for (size_t i = 0; i < sizeof experts / sizeof *experts; i++) {
        rng r = rng_make(i, 50);
        int rows = experts[i].rows, dim = experts[i].dim, ffn = experts[i].ffn, n = experts[i].n_local;
        slab_reset(s);
        slab_case c = {.call = {.kind = OP_MOE_EXPERTS}, .compute = DT_BF16};
        op_moe_experts *o = &c.call.moe_experts;
        make_experts(s, &r, n, ffn, dim, gate);
        make_experts(s, &r, n, ffn, dim, up);
        make_experts(s, &r, n, dim, ffn, down);
        *o = (op_moe_experts){.x = slab_mat(s, &r, rows, dim, 8, DT_BF16, 1),
                              .ids = slab_mat(s, &r, rows, experts[i].top_k, 1, DT_I32, 0),
                              .weights = slab_mat(s, &r, rows, experts[i].top_k, 2, DT_F32, 1),
                              .gate = gate,
                              .up = up,
                              .down = down,
                              .expert0 = experts[i].expert0,
                              .n_local = n,
                              .n_experts = experts[i].n,
                              .ffn = ffn,
                              .weight_dtype = DT_BF16,
                              .accumulate = experts[i].accumulate};
        random_ids(&r, &o->ids, experts[i].n);
        o->out = slab_mat(s, &r, rows, dim, 3, DT_BF16, o->accumulate ? 1 : 0);
        c.out[0] = o->out;
        c.tol[0] = tol(DT_BF16, dim);
        c.tol[0].abs += 0x1p-8; /* inner values may round the other way */
        snprintf(what, sizeof what, "skinny experts %d rows, %d of %d", rows, experts[i].top_k, experts[i].n);
        int n_run = slab_check(s, &c, what);
        cr_expect(n_run == 2, "%s: %d rows of the table ran", what, n_run);
    }
    slab_destroy(s);
}
