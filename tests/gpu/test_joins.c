/* Runs of calls that one launch does, against the reference doing them one after another. */
#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "tests/gpu/slab.h"

enum { SLAB_BYTES = 64 << 20 };

/* Products of n values up to 1: where an input of the product was rounded the other way, 2^-8 of it, they move by up to
 * 2^-8 n^(1/2); and one rounding of the result. */
static slab_tolerance after_rounding(double n_summed)
{
    return (slab_tolerance){0x1p-7 * sqrt(n_summed), 0x1p-6};
}

static const slab_tolerance one_step = {1e-6, 0x1p-7};

static slab_case norm_case(slab *s, rng *r, int rows, int k)
{
    slab_case c = {.call = {.kind = OP_RMSNORM}, .compute = DT_BF16};
    c.call.rmsnorm = (op_rmsnorm){.x = slab_mat(s, r, rows, k, 8, DT_BF16, 2),
                                  .weight = slab_mat(s, r, 1, k, 0, DT_BF16, 1),
                                  .out = slab_mat(s, r, rows, k, 16, DT_BF16, 0),
                                  .groups = 1,
                                  .eps = 1e-5f};
    c.out[0] = c.call.rmsnorm.out;
    c.tol[0] = one_step;
    return c;
}

static slab_case product_case(slab *s, rng *r, mat x, int n, tpl_dtype out)
{
    slab_case c = {.call = {.kind = OP_MATMUL}, .compute = DT_BF16};
    c.call.matmul = (op_matmul){.x = x,
                                .w = slab_mat(s, r, n, x.cols, 8, DT_BF16, 1),
                                .out = slab_mat(s, r, x.rows, n, n % 3 ? 4 : 3, out, 0)};
    c.out[0] = c.call.matmul.out;
    c.tol[0] = after_rounding((double)x.cols);
    return c;
}

enum { MOST_NORM_ROWS = 2 }; /* that a launch of products takes a norm in front of */

static const int shapes[][3] = {
    {1, 64, 40}, {1, 4096, 200}, {2, 520, 96}, {4, 7168, 72}, {3, 8192, 24}}; /* rows, k, n */

Test(joins, norm_and_products)
{
    slab *s = slab_create(SLAB_BYTES);
    char what[96];
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        for (int parts = 1; parts <= 4; parts++) {
            rng r = rng_make(i, (uint64_t)parts);
            slab_reset(s);
            slab_case c[5];
            c[0] = norm_case(s, &r, shapes[i][0], shapes[i][1]);
            for (int k = 0; k < parts; k++) {
                c[1 + k] = product_case(s, &r, c[0].call.rmsnorm.out, shapes[i][2] + 17 * k, k == 3 ? DT_F32 : DT_BF16);
                if (k == 1)
                    c[1 + k].call.matmul.bias = slab_mat(s, &r, 1, shapes[i][2] + 17, 0, DT_BF16, 1);
            }
            snprintf(what, sizeof what, "norm and %d products, %d rows of %d", parts, shapes[i][0], shapes[i][1]);
            if (shapes[i][0] <= MOST_NORM_ROWS) {
                slab_check_join(s, c, 1 + parts, what);
            } else if (parts > 1) {
                for (int k = 0; k < parts; k++)
                    c[1 + k].call.matmul.x = c[0].call.rmsnorm.x;
                slab_check_join(s, c + 1, parts, what + strlen("norm and "));
            }
        }
    slab_destroy(s);
}

/* DeepSeek's down projections, which all ranks compute, and smaller ones. */
static const int shared_x[][4] = {{29, 7168, 576, 192}, {59, 520, 64, 320}, {5, 64, 8, 40}, {114, 264, 129, 130}};

Test(joins, products_of_more_rows)
{
    slab *s = slab_create(SLAB_BYTES);
    char what[96];
    for (size_t i = 0; i < sizeof shared_x / sizeof *shared_x; i++)
        for (int parts = 2; parts <= 4; parts++) {
            rng r = rng_make(i, 10 + (uint64_t)parts);
            const int *of = shared_x[i];
            slab_reset(s);
            slab_case c[4];
            mat x = slab_mat(s, &r, of[0], of[1], 8, DT_BF16, 1);
            for (int k = 0; k < parts; k++) {
                c[k] = product_case(s, &r, x, k % 2 ? of[3] : of[2] + 64 * k, k == 3 ? DT_F32 : DT_BF16);
                if (k == 1)
                    c[k].call.matmul.bias = slab_mat(s, &r, 1, of[3], 0, DT_BF16, 1);
            }
            snprintf(what, sizeof what, "%d products of %d rows of %d", parts, of[0], of[1]);
            if (slab_has_warpgroups())
                slab_check_join(s, c, parts, what);
        }
    slab_destroy(s);
}

/* Blocks of a launch run in any order: products that add to one place, or write what another reads, stay apart. */
Test(joins, products_of_one_place)
{
    slab *s = slab_create(SLAB_BYTES);
    for (int rows = 1; rows < 30; rows += 28) {
        rng r = rng_make((uint64_t)rows, 15);
        int taken;
        slab_reset(s);
        mat x = slab_mat(s, &r, rows, 64, 8, DT_BF16, 1);
        op_call calls[3];
        for (int i = 0; i < 3; i++)
            calls[i] = product_case(s, &r, x, 64, DT_BF16).call;
        kernel_find_join("cuda", calls, 3, &taken);
        if (rows == 1 || slab_has_warpgroups())
            cr_expect_eq(taken, 3, "%d rows: %d of 3 calls are one launch", rows, taken);
        calls[1].matmul.accumulate = true;
        calls[1].matmul.out = calls[0].matmul.out;
        kernel_find_join("cuda", calls, 3, &taken);
        cr_expect_eq(taken, 1, "%d rows, one place: %d calls are one launch", rows, taken);
        calls[1].matmul.out = x;
        kernel_find_join("cuda", calls, 3, &taken);
        cr_expect_eq(taken, 1, "%d rows, x written: %d calls are one launch", rows, taken);
    }
    slab_destroy(s);
}

/* silu_mul's result in gate's place, and elsewhere. The last has so many columns that blocks draw their tiles. */
static const int gated[][3] = {{1, 64, 40},   {1, 4096, 200}, {2, 520, 96},
                               {4, 7168, 72}, {3, 8192, 24},  {1, 2112, 5000}}; /* rows, k, n */

Test(joins, swiglu)
{
    slab *s = slab_create(SLAB_BYTES);
    char what[96];
    for (size_t i = 0; i < sizeof gated / sizeof *gated; i++)
        for (int k = 0; k < 4; k++) {
            bool norm = k % 2 && gated[i][0] <= MOST_NORM_ROWS, in_place = k < 2;
            rng r = rng_make(i, 20 + (uint64_t)k);
            slab_reset(s);
            slab_case c[4];
            c[0] = norm_case(s, &r, gated[i][0], gated[i][1]);
            mat x = norm ? c[0].call.rmsnorm.out : c[0].call.rmsnorm.x;
            c[1] = product_case(s, &r, x, gated[i][2], DT_BF16);
            c[2] = product_case(s, &r, x, gated[i][2], DT_BF16);
            c[3] = (slab_case){.call = {.kind = OP_SILU_MUL}, .compute = DT_BF16};
            op_silu_mul *o = &c[3].call.silu_mul;
            o->gate = c[1].call.matmul.out;
            o->up = c[2].call.matmul.out;
            o->out = in_place ? o->gate : slab_mat(s, &r, x.rows, gated[i][2], 1, DT_BF16, 0);
            c[3].out[0] = o->out;
            c[3].tol[0] = after_rounding((double)x.cols);
            c[3].tol[0].rel = 0x1p-4; /* both factors, of sums up to k^(1/2) */
            c[3].tol[0].abs *= sqrt((double)x.cols);
            if (in_place)
                c[1].out[0].data = NULL;
            snprintf(what, sizeof what, "swiglu %d, %d rows of %d", k, gated[i][0], gated[i][1]);
            slab_check_join(s, norm ? c : c + 1, norm ? 4 : 3, what);
        }
    slab_destroy(s);
}

Test(joins, product_and_add)
{
    slab *s = slab_create(SLAB_BYTES);
    char what[96];
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        for (int k = 0; k < 3; k++) {
            rng r = rng_make(i, 30 + (uint64_t)k);
            int rows = k == 2 ? 2 : shapes[i][0];
            slab_reset(s);
            slab_case c[2];
            c[0] = product_case(s, &r, slab_mat(s, &r, rows, shapes[i][1], 8, DT_BF16, 1), shapes[i][2], DT_BF16);
            if (k == 1) { /* the second of two that are added up */
                c[0].call.matmul.out = c[0].out[0] = slab_mat(s, &r, rows, shapes[i][2], 5, DT_BF16, 1);
                c[0].call.matmul.accumulate = true;
            }
            c[1] = (slab_case){.call = {.kind = OP_ADD}, .compute = DT_BF16};
            c[1].call.add =
                (op_add){.x = c[0].call.matmul.out, .out = slab_mat(s, &r, rows, shapes[i][2], 2, DT_BF16, 1)};
            c[1].out[0] = c[1].call.add.out;
            c[1].tol[0] = after_rounding((double)shapes[i][1]);
            snprintf(what, sizeof what, "product and add %d, %d rows of %d", k, rows, shapes[i][1]);
            slab_check_join(s, c, 2, what);
        }
    slab_destroy(s);
}

/* The residual add of more rows, and the norm behind it. */
Test(joins, add_and_norm)
{
    slab *s = slab_create(SLAB_BYTES);
    static const int sizes[][2] = {{5, 8}, {29, 7168}, {64, 1000}, {7, 16384}};
    char what[96];
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        for (int weighted = 0; weighted < 2; weighted++) {
            rng r = rng_make(i, 40 + (uint64_t)weighted);
            int rows = sizes[i][0], cols = sizes[i][1];
            slab_reset(s);
            slab_case c[2] = {{.call = {.kind = OP_ADD}, .compute = DT_BF16}, norm_case(s, &r, rows, cols)};
            c[0].call.add = (op_add){.x = slab_mat(s, &r, rows, cols, 8, DT_BF16, 1), .out = c[1].call.rmsnorm.x};
            c[0].out[0] = c[0].call.add.out;
            c[0].tol[0] = one_step;
            if (!weighted)
                c[1].call.rmsnorm.weight = (mat){0};
            snprintf(what, sizeof what, "add and norm, %d rows of %d, weighted %d", rows, cols, weighted);
            slab_check_join(s, c, 2, what);
        }
    slab_destroy(s);
}

static const struct {
    int rows, dim, n, top_k;
    moe_scoring scoring;
    bool bias, normalise;
} routes[] = {{1, 2048, 64, 6, MOE_SOFTMAX, false, false},
              {3, 520, 20, 3, MOE_SIGMOID, true, true},
              {8, 64, 128, 8, MOE_SIGMOID, true, false},
              {2, 1024, 72, 1, MOE_SOFTMAX, true, true}};

Test(joins, norm_and_route)
{
    slab *s = slab_create(SLAB_BYTES);
    char what[96];
    for (size_t i = 0; i < sizeof routes / sizeof *routes; i++) {
        rng r = rng_make(i, 80);
        slab_reset(s);
        slab_case c[2] = {norm_case(s, &r, routes[i].rows, routes[i].dim), {.compute = DT_BF16}};
        op_moe_route *o = &c[1].call.moe_route;
        c[1].call.kind = OP_MOE_ROUTE;
        *o = (op_moe_route){.x = c[0].call.rmsnorm.out,
                            .w = slab_mat(s, &r, routes[i].n, routes[i].dim, 8, DT_BF16, 0.1),
                            .ids = slab_mat(s, &r, routes[i].rows, routes[i].top_k, 1, DT_I32, 0),
                            .weights = slab_mat(s, &r, routes[i].rows, routes[i].top_k, 2, DT_F32, 0),
                            .top_k = routes[i].top_k,
                            .n_group = 1,
                            .topk_group = 1,
                            .scoring = routes[i].scoring,
                            .normalise = routes[i].normalise,
                            .scale = 2.5f};
        if (routes[i].bias)
            o->bias = slab_mat(s, &r, 1, routes[i].n, 0, DT_F32, 0.1);
        c[1].out[0] = o->ids;
        c[1].out[1] = o->weights;
        c[1].tol[1] = (slab_tolerance){1e-3, 2e-2}; /* an input may be rounded the other way */
        snprintf(what, sizeof what, "norm and route, %d rows, %d of %d", routes[i].rows, routes[i].top_k, routes[i].n);
        slab_check_join(s, c, 2, what);
        c[1].call.moe_route.x = c[0].call.rmsnorm.x; /* alone */
        c[1].tol[1] = (slab_tolerance){1e-6, 2e-5};
        slab_check(s, &c[1], what);
    }
    slab_destroy(s);
}

/* ---- experts ---- */

static const struct {
    int rows, dim, ffn, n, top_k, expert0, n_local, n_shared;
    bool add;
} experts[] = {{1, 512, 192, 16, 6, 0, 16, 2, true},
               {2, 192, 64, 8, 3, 2, 4, 1, false},
               {2, 64, 128, 16, 4, 8, 8, 3, true},
               {1, 128, 704, 8, 8, 7, 1, 1, true}};

static void make_experts(slab *s, rng *r, int n, int rows, int cols, mat *to)
{
    mat all = slab_mat(s, r, (int64_t)n * rows, cols, 8, DT_BF16, 1 / sqrt((double)cols));
    for (int i = 0; i < n; i++) {
        to[i] = all;
        to[i].rows = rows;
        to[i].data = (char *)all.data + (size_t)i * (size_t)rows * (size_t)all.stride * dtype_bytes(DT_BF16);
    }
}

static slab_case routed_case(slab *s, rng *r, mat x, size_t i, mat weights[3][16])
{
    slab_case c = {.call = {.kind = OP_MOE_EXPERTS}, .compute = DT_BF16};
    op_moe_experts *o = &c.call.moe_experts;
    int n = experts[i].n_local, ffn = experts[i].ffn, dim = experts[i].dim;
    make_experts(s, r, n, ffn, dim, weights[0]);
    make_experts(s, r, n, ffn, dim, weights[1]);
    make_experts(s, r, n, dim, ffn, weights[2]);
    *o = (op_moe_experts){.x = x,
                          .ids = slab_mat(s, r, x.rows, experts[i].top_k, 1, DT_I32, 0),
                          .weights = slab_mat(s, r, x.rows, experts[i].top_k, 2, DT_F32, 1),
                          .gate = weights[0],
                          .up = weights[1],
                          .down = weights[2],
                          .expert0 = experts[i].expert0,
                          .n_local = n,
                          .n_experts = experts[i].n,
                          .ffn = ffn,
                          .weight_dtype = DT_BF16,
                          .out = slab_mat(s, r, x.rows, dim, 3, DT_BF16, 0)};
    for (int64_t row = 0; row < x.rows; row++)
        for (int k = 0; k < experts[i].top_k; k++)
            ((int32_t *)o->ids.data)[row * o->ids.stride + k] = (int32_t)((5 * row + 3 * k) % experts[i].n);
    return c;
}

Test(joins, experts)
{
    slab *s = slab_create(SLAB_BYTES);
    char what[96];
    static mat weights[3][16];
    for (size_t i = 0; i < sizeof experts / sizeof *experts; i++) {
        rng r = rng_make(i, 90);
        int rows = experts[i].rows, dim = experts[i].dim, f = experts[i].ffn * experts[i].n_shared;
        slab_reset(s);
        mat x = slab_mat(s, &r, rows, dim, 8, DT_BF16, 1);
        slab_case c[6] = {routed_case(s, &r, x, i, weights), product_case(s, &r, x, f, DT_BF16),
                          product_case(s, &r, x, f, DT_BF16)};
        op_matmul *gate = &c[1].call.matmul, *up = &c[2].call.matmul;
        gate->out = slab_mat(s, &r, rows, f, 8, DT_BF16, 0);
        c[2].out[0] = up->out = slab_mat(s, &r, rows, f, 8, DT_BF16, 0);
        c[1].out[0].data = NULL; /* silu_mul's result stands there */
        c[3] = (slab_case){.call = {.kind = OP_SILU_MUL}, .compute = DT_BF16};
        c[3].call.silu_mul = (op_silu_mul){.gate = gate->out, .up = up->out, .out = gate->out};
        c[3].out[0] = gate->out;
        c[3].tol[0] = (slab_tolerance){0.1 * sqrt((double)dim), 0x1p-4};
        c[4] = product_case(s, &r, gate->out, dim, DT_BF16);
        c[4].call.matmul.w = slab_mat(s, &r, dim, f, 8, DT_BF16, 0.05);
        c[4].call.matmul.out = c[0].call.moe_experts.out;
        c[4].call.matmul.accumulate = true;
        c[4].out[0] = c[0].call.moe_experts.out;
        c[4].tol[0] = (slab_tolerance){0.005 * sqrt((double)f * dim), 0x1p-5};
        c[5] = (slab_case){.call = {.kind = OP_ADD}, .compute = DT_BF16};
        c[5].call.add = (op_add){.x = c[0].call.moe_experts.out, .out = slab_mat(s, &r, rows, dim, 1, DT_BF16, 1)};
        c[5].out[0] = c[5].call.add.out;
        c[5].tol[0] = c[4].tol[0];
        snprintf(what, sizeof what, "experts with shared ones, %d rows, %d of %d", rows, experts[i].top_k,
                 experts[i].n);
        slab_check_join(s, c, 5 + experts[i].add, what);
    }
    slab_destroy(s);
}
