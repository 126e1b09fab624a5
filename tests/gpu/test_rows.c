/* Operations on rows, products and experts on a card, against the double-precision reference. */
#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "tests/gpu/slab.h"

enum { SLAB_BYTES = 96 << 20 };

/* u = 2^-24 of f32, 2^-9 of bf16. A result stored in bf16 may land on the other side of a rounding: one step, 2^-7 of
 * itself at most. f32 sums of n values below 1 in any order stay within n^(1/2) roundings of partial sums below
 * n^(1/2): n u. */
static slab_tolerance tol(tpl_dtype t, double n_summed)
{
    if (t == DT_BF16)
        return (slab_tolerance){n_summed * 0x1p-22, 0x1p-7};
    return (slab_tolerance){n_summed * 0x1p-22, 2e-6};
}

static const tpl_dtype types[] = {DT_F32, DT_BF16};

#define EACH_TYPE(t)                                                                                                   \
    for (int t##_i = 0; t##_i < 2; t##_i++)                                                                            \
        for (tpl_dtype t = types[t##_i], t##_once = 1; t##_once; t##_once = 0)

static const char *label(char text[96], const char *op, tpl_dtype t, int64_t a, int64_t b)
{
    snprintf(text, 96, "%s %s %ld %ld", op, dtype_name(t), (long)a, (long)b);
    return text;
}

static const struct {
    int64_t rows, width;
    int groups;
} norms[] = {{1, 7, 1}, {3, 200, 1}, {5, 96, 3}, {2, 7168, 1}, {1, 512, 4}};

Test(rows, norms)
{
    slab *s = slab_create(SLAB_BYTES);
    char what[96];
    for (size_t i = 0; i < sizeof norms / sizeof *norms; i++)
        EACH_TYPE(t)
        {
            for (int w = 0; w < 3; w++) {
                rng r = rng_make(i, 1);
                int64_t rows = norms[i].rows, width = norms[i].width;
                slab_reset(s);
                slab_case c = {.call = {.kind = OP_RMSNORM}, .compute = t};
                op_rmsnorm *o = &c.call.rmsnorm;
                *o = (op_rmsnorm){.x = slab_mat(s, &r, rows, width * norms[i].groups, 5, t, 2),
                                  .groups = norms[i].groups,
                                  .eps = 1e-5f};
                o->out = w == 2 ? o->x : slab_mat(s, &r, rows, width * norms[i].groups, 3, t, 0);
                if (w)
                    o->weight = slab_mat(s, &r, 1, width, 0, w == 1 ? DT_F32 : DT_BF16, 2);
                c.out[0] = o->out;
                c.tol[0] = tol(t, 2);
                slab_check(s, &c, label(what, "rmsnorm", t, rows, width));
            }
            rng r = rng_make(i, 2);
            slab_reset(s);
            slab_case c = {.call = {.kind = OP_SLICED_NORM}, .compute = t};
            op_sliced_norm *o = &c.call.sliced_norm;
            *o = (op_sliced_norm){.x = slab_mat(s, &r, norms[i].rows, norms[i].width * norms[i].groups, 1, t, 2),
                                  .n_slices = norms[i].groups,
                                  .kv_lora_rank = (int32_t)norms[i].width,
                                  .eps = 1e-5f};
            o->out = o->x;
            mat alpha = slab_mat(s, &r, 1, norms[i].groups, 0, DT_F32, 1);
            for (int k = 0; k < norms[i].groups; k++)
                ((float *)alpha.data)[k] = 1.5f + (float)k;
            o->alpha = alpha.data;
            c.out[0] = o->out;
            c.tol[0] = tol(t, 2);
            slab_check(s, &c, label(what, "sliced_norm", t, norms[i].rows, norms[i].width));
        }
    slab_destroy(s);
}

Test(rows, element_by_element)
{
    slab *s = slab_create(SLAB_BYTES);
    char what[96];
    static const int64_t shapes[][2] = {{1, 1}, {3, 257}, {7, 1000}, {130, 64}};
    for (int i = 0; i < 4; i++)
        EACH_TYPE(t)
        {
            int64_t rows = shapes[i][0], width = shapes[i][1];
            rng r = rng_make((uint64_t)i, 3);
            slab_reset(s);
            slab_case c = {.call = {.kind = OP_SILU_MUL}, .compute = t};
            c.call.silu_mul.gate = slab_mat(s, &r, rows, width, 2, t, 6);
            c.call.silu_mul.up = slab_mat(s, &r, rows, width, 7, t, 1);
            c.call.silu_mul.out = c.out[0] = i % 2 ? c.call.silu_mul.gate : slab_mat(s, &r, rows, width, 1, t, 0);
            c.tol[0] = tol(t, 8);
            slab_check(s, &c, label(what, "silu_mul", t, rows, width));
            c = (slab_case){.call = {.kind = OP_ADD}, .compute = t};
            c.call.add.x = slab_mat(s, &r, rows, width, 2, t, 1);
            c.call.add.out = c.out[0] = slab_mat(s, &r, rows, width, 3, t, 1);
            c.tol[0] = tol(t, 1);
            slab_check(s, &c, label(what, "add", t, rows, width));
            c = (slab_case){.call = {.kind = OP_GATHER_ROWS}, .compute = t};
            int32_t index[2] = {(int32_t)rows - 1, 0};
            c.call.gather_rows.x = slab_mat(s, &r, rows, width, 2, t, 1);
            c.call.gather_rows.index = slab_copy(s, index, sizeof index);
            c.call.gather_rows.out = c.out[0] = slab_mat(s, &r, 2, width, 3, i % 2 ? DT_F32 : t, 0);
            slab_check(s, &c, label(what, "gather_rows", t, rows, width));
        }
    slab_destroy(s);
}

static void check_copy_heads(slab *s, tpl_dtype t, int heads, int cols, int x_step, int out_step, int gap)
{
    char what[96];
    rng r = rng_make(1, 4);
    slab_reset(s);
    slab_case c = {.call = {.kind = OP_COPY_HEADS}, .compute = t};
    c.call.copy_heads = (op_copy_heads){.x = slab_mat(s, &r, 5, heads * x_step, gap, t, 1),
                                        .heads = heads,
                                        .cols = cols,
                                        .x_head_stride = x_step,
                                        .out_head_stride = out_step};
    c.call.copy_heads.out = slab_mat(s, &r, 5, (heads - 1) * out_step + cols, gap, t, 1);
    c.out[0] = c.call.copy_heads.out;
    slab_check(s, &c, label(what, "copy_heads", t, heads, cols));
}

static void check_lse_merge(slab *s, tpl_dtype t, int heads, int lat, int gap)
{
    char what[96];
    rng r = rng_make(1, 5);
    slab_reset(s);
    slab_case c = {.call = {.kind = OP_LSE_MERGE}, .compute = t};
    op_lse_merge *o = &c.call.lse_merge;
    *o = (op_lse_merge){.o = slab_mat(s, &r, 4, heads * lat, gap, t, 1),
                        .lse = slab_mat(s, &r, 4, 2 * heads, 1, DT_F32, 9),
                        .heads = heads,
                        .lat = lat,
                        .parts = 2,
                        .part = 1};
    float *lse = o->lse.data;
    lse[heads] = -INFINITY;                                              /* own part is empty */
    lse[o->lse.stride + 1] = lse[o->lse.stride + heads + 1] = -INFINITY; /* both are */
    for (int k = 0; k < lat; k++) {                                      /* what an empty part left must not matter */
        float nan = NAN;
        dtype_from_f32((char *)o->o.data + (size_t)k * dtype_bytes(t), t, &nan, 1);
    }
    c.out[0] = o->o;
    c.tol[0] = tol(t, 4);
    slab_check(s, &c, label(what, "lse_merge", t, heads, lat));
}

Test(rows, heads)
{
    slab *s = slab_create(SLAB_BYTES);
    EACH_TYPE(t)
    {
        check_copy_heads(s, t, 3, 11, 20, 13, 1);
        check_copy_heads(s, t, 16, 64, 192, 576, 8);
        check_lse_merge(s, t, 3, 70, 2);
        check_lse_merge(s, t, 13, 512, 8);
        check_lse_merge(s, t, 8, 1200, 8);
    }
    slab_destroy(s);
}

static batch_view small_batch(slab *s, int32_t n)
{
    static const int32_t token[] = {3, 0, 49, 7, 7}, pos[] = {0, 1, 30, 5, 2}, seq[] = {0, 0, 0, 0, 0};
    return (batch_view){.n_rows = n,
                        .n_seqs = 1,
                        .row_token = slab_copy(s, token, sizeof token),
                        .row_pos = slab_copy(s, pos, sizeof pos),
                        .row_seq = slab_copy(s, seq, sizeof seq)};
}

Test(rows, embed_and_rope)
{
    slab *s = slab_create(SLAB_BYTES);
    char what[96];
    EACH_TYPE(t)
    {
        rng r = rng_make(1, 5);
        slab_reset(s);
        batch_view b = small_batch(s, 5);
        slab_case c = {.call = {.kind = OP_EMBED}, .compute = t};
        c.call.embed = (op_embed){
            .table = slab_mat(s, &r, 50, 300, 4, DT_BF16, 1), .out = slab_mat(s, &r, 5, 300, 2, t, 0), .batch = &b};
        c.out[0] = c.call.embed.out;
        slab_check(s, &c, label(what, "embed", t, 5, 300));
        for (int k = 0; k < 4; k++) {
            int heads = k < 2 ? 3 : 128, dim = k < 2 ? 12 : 64;
            c = (slab_case){.call = {.kind = OP_ROPE}, .compute = t};
            c.call.rope = (op_rope){.x = slab_mat(s, &r, 5, heads * (dim + 8), 2, t, 1),
                                    .heads = heads,
                                    .head_stride = dim + 8,
                                    .dim = dim,
                                    .cos = slab_mat(s, &r, 31, dim / 2, 0, DT_F32, 1).data,
                                    .sin = slab_mat(s, &r, 31, dim / 2, 0, DT_F32, 1).data,
                                    .interleaved = k % 2,
                                    .batch = &b};
            c.out[0] = c.call.rope.x;
            c.tol[0] = tol(t, 4);
            slab_check(s, &c, label(what, "rope", t, heads, dim));
        }
    }
    slab_destroy(s);
}

/* ---- products ---- */

static const struct {
    int64_t rows, n, k;
} products[] = {{1, 1, 1}, {1, 37, 75}, {19, 37, 75}, {3, 64, 2048}, {130, 200, 64}, {64, 512, 1536}};

Test(rows, products)
{
    slab *s = slab_create(SLAB_BYTES);
    char what[96];
    for (size_t i = 0; i < sizeof products / sizeof *products; i++)
        EACH_TYPE(t)
        {
            for (int k = 0; k < 4; k++) {
                rng r = rng_make(i, 6);
                tpl_dtype out = k == 3 ? DT_F32 : t;
                slab_reset(s);
                slab_case c = {.call = {.kind = OP_MATMUL}, .compute = t};
                op_matmul *o = &c.call.matmul;
                *o = (op_matmul){.x = slab_mat(s, &r, products[i].rows, products[i].k, 3, t, 1),
                                 .w = slab_mat(s, &r, products[i].n, products[i].k, 1, t, 1),
                                 .accumulate = k == 1};
                o->out = slab_mat(s, &r, products[i].rows, products[i].n, 2, out, k == 1 ? 1 : 0);
                if (k == 2)
                    o->bias = slab_mat(s, &r, 1, products[i].n, 0, t, 1);
                c.out[0] = o->out;
                c.tol[0] = tol(out, (double)products[i].k);
                if (k == 2 && t == DT_BF16) /* the product is stored before the bias is added: one rounding more, of
                                               sums up to k^(1/2) */
                    c.tol[0].abs += 0x1p-8 * sqrt((double)products[i].k);
                slab_check(s, &c, label(what, "matmul", t, products[i].rows, products[i].k));
            }
        }
    slab_destroy(s);
}

Test(rows, head_products)
{
    slab *s = slab_create(SLAB_BYTES);
    char what[96];
    static const int shapes[][4] = {
        {3, 2, 5, 7}, {1, 8, 128, 512}, {17, 4, 32, 64}}; /* rows, heads, rows and columns of a head */
    for (int i = 0; i < 3; i++)
        EACH_TYPE(t)
        {
            for (int k = 0; k < 4; k++) {
                rng r = rng_make((uint64_t)i, 7);
                slab_heads h = {.rows = shapes[i][0],
                                .heads = shapes[i][1],
                                .w_rows = shapes[i][2],
                                .w_cols = shapes[i][3],
                                .turned = k % 2,
                                .accumulate = k >= 2,
                                .w_gap = 1,
                                .x_gap = 3,
                                .row_gap = 1};
                slab_reset(s);
                slab_case c = slab_head_matmul(s, &r, t, &h);
                c.tol[0] = tol(t, h.turned ? h.w_cols : h.w_rows);
                slab_check(s, &c, label(what, "head_matmul", t, h.rows, h.heads));
            }
        }
    slab_destroy(s);
}

/* ---- experts ---- */

static const struct {
    int64_t rows, dim;
    int n, top_k, n_group, topk_group;
    moe_scoring scoring;
    bool bias, normalise;
} routes[] = {{1, 16, 8, 2, 1, 1, MOE_SOFTMAX, false, false},
              {9, 33, 64, 6, 1, 1, MOE_SOFTMAX, false, true},
              {5, 64, 256, 8, 8, 4, MOE_SIGMOID, true, true},
              {4, 20, 20, 3, 5, 2, MOE_SOFTMAX, false, false},
              {3, 128, 384, 8, 1, 1, MOE_SIGMOID, true, true}};

/* Both sides see the same bf16 or f32 inputs; scores differ by a few u, so that only a tie within them could choose
 * otherwise, which seeded inputs do not have. */
Test(rows, routes)
{
    slab *s = slab_create(SLAB_BYTES);
    char what[96];
    for (size_t i = 0; i < sizeof routes / sizeof *routes; i++)
        EACH_TYPE(t)
        {
            rng r = rng_make(i, 8);
            slab_reset(s);
            slab_case c = {.call = {.kind = OP_MOE_ROUTE}, .compute = t};
            op_moe_route *o = &c.call.moe_route;
            *o = (op_moe_route){.x = slab_mat(s, &r, routes[i].rows, routes[i].dim, 3, t, 1),
                                .w = slab_mat(s, &r, routes[i].n, routes[i].dim, 1, t, 0.5),
                                .ids = slab_mat(s, &r, routes[i].rows, routes[i].top_k, 1, DT_I32, 0),
                                .weights = slab_mat(s, &r, routes[i].rows, routes[i].top_k, 2, DT_F32, 0),
                                .top_k = routes[i].top_k,
                                .n_group = routes[i].n_group,
                                .topk_group = routes[i].topk_group,
                                .scoring = routes[i].scoring,
                                .normalise = routes[i].normalise,
                                .scale = 2.5f};
            if (routes[i].bias)
                o->bias = slab_mat(s, &r, 1, routes[i].n, 0, DT_F32, 0.1);
            c.out[0] = o->ids;
            c.out[1] = o->weights;
            c.tol[1] = (slab_tolerance){1e-6, 2e-5};
            slab_check(s, &c, label(what, "moe_route", t, routes[i].rows, routes[i].n));
        }
    slab_destroy(s);
}

static const struct {
    int64_t rows, dim, ffn;
    int n, top_k, expert0, n_local;
    bool accumulate;
} experts[] = {{1, 7, 5, 4, 2, 0, 4, false},        {3, 33, 20, 6, 3, 2, 3, true},   {1, 128, 64, 8, 4, 0, 8, false},
               {40, 128, 192, 16, 4, 0, 16, false}, {150, 64, 64, 5, 2, 1, 3, true}, {70, 192, 128, 1, 1, 0, 1, false},
               {20, 64, 64, 64, 6, 32, 32, false}};

static int32_t *random_ids(slab *s, rng *r, const mat *ids, int n)
{
    for (int64_t i = 0; i < ids->rows; i++)
        for (int64_t k = 0; k < ids->cols; k++) {
            int32_t *row = (int32_t *)ids->data + i * ids->stride, id;
            bool again = true;
            while (again) {
                id = (int32_t)rng_below(r, (uint64_t)n);
                again = false;
                for (int64_t j = 0; j < k; j++)
                    again = again || row[j] == id;
            }
            row[k] = id;
        }
    return ids->data;
}

static void make_experts(slab *s, rng *r, tpl_dtype t, int n, int64_t rows, int64_t cols, mat *to)
{
    mat all = slab_mat(s, r, n * rows, cols, t == DT_BF16 ? 8 : 1, t, 1 / sqrt((double)cols));
    for (int i = 0; i < n; i++) {
        to[i] = all;
        to[i].rows = rows;
        to[i].data = (char *)all.data + (size_t)(i * rows * all.stride) * dtype_bytes(t);
    }
}

Test(rows, experts)
{
    slab *s = slab_create(SLAB_BYTES);
    char what[96];
    static mat gate[64], up[64], down[64];
    for (size_t i = 0; i < sizeof experts / sizeof *experts; i++)
        EACH_TYPE(t)
        {
            rng r = rng_make(i, 9);
            int64_t rows = experts[i].rows, dim = experts[i].dim, ffn = experts[i].ffn;
            slab_reset(s);
            slab_case c = {.call = {.kind = OP_MOE_EXPERTS}, .compute = t};
            op_moe_experts *o = &c.call.moe_experts;
            make_experts(s, &r, t, experts[i].n_local, ffn, dim, gate);
            make_experts(s, &r, t, experts[i].n_local, ffn, dim, up);
            make_experts(s, &r, t, experts[i].n_local, dim, ffn, down);
            *o = (op_moe_experts){.x = slab_mat(s, &r, rows, dim, 8, t, 1),
                                  .ids = slab_mat(s, &r, rows, experts[i].top_k, 1, DT_I32, 0),
                                  .weights = slab_mat(s, &r, rows, experts[i].top_k, 2, DT_F32, 1),
                                  .gate = gate,
                                  .up = up,
                                  .down = down,
                                  .expert0 = experts[i].expert0,
                                  .n_local = experts[i].n_local,
                                  .n_experts = experts[i].n,
                                  .ffn = (int32_t)ffn,
                                  .weight_dtype = t,
                                  .accumulate = experts[i].accumulate};
            random_ids(s, &r, &o->ids, experts[i].n);
            o->out = slab_mat(s, &r, rows, dim, 3, t, o->accumulate ? 1 : 0);
            c.out[0] = o->out;
            c.tol[0] = tol(t, (double)dim);
            if (t == DT_BF16) /* inner values may round the other way: ffn of them, each below 1/2, times weights of
                                 ffn^(-1/2) */
                c.tol[0].abs += 0x1p-8;
            int n_run = slab_check(s, &c, label(what, "moe_experts", t, rows, experts[i].n));
            bool units = t == DT_BF16 && dim % 64 == 0 && ffn % 64 == 0;
            cr_expect(n_run == 1 + units, "%s: %d rows of the table ran", what, n_run);
        }
    slab_destroy(s);
}

/* The host's choice, over rows with ties, NaN and nothing but NaN. */
Test(rows, best_token)
{
    enum { ROWS = 4, N = 70001 };
    slab *s = slab_create(SLAB_BYTES);
    rng r = rng_make(1, 11);
    mat logits = slab_mat(s, &r, ROWS, N, 0, DT_F32, 9);
    float *row = logits.data;
    int32_t want[ROWS] = {0, 12345, 7, 0}, got[ROWS];
    row[0] = 10;
    row[N - 1] = 10;
    row[N] = row[N + 4] = NAN;
    row[N + 12345] = row[N + 60000] = 20;
    for (int i = 0; i < N; i++) {
        row[2 * N + i] = i == 7 ? -INFINITY : NAN;
        row[3 * N + i] = NAN;
    }
    slab_best(s, &logits, got);
    for (int i = 0; i < ROWS; i++)
        cr_expect(got[i] == want[i], "row %d: %d, expected %d", i, got[i], want[i]);
    slab_destroy(s);
}
