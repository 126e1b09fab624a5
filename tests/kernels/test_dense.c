#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/arena.h"
#include "tests/kernels/compare.h"

typedef struct {
    int64_t rows, n, k;
} shape;

static void say(char what[160], const char *op, shape s, tpl_dtype weight, tpl_dtype compute, const kernel_row *row)
{
    snprintf(what, 160, "%s [%ld, %ld] x [%ld] %s compute %s %s", op, (long)s.rows, (long)s.k, (long)s.n,
             dtype_name(weight), dtype_name(compute), row->name);
}

static double dot(const mat *x, int64_t xr, int64_t xc, const mat *w, int64_t wr, int64_t k, tpl_dtype compute)
{
    double sum = 0;
    for (int64_t i = 0; i < k; i++)
        sum += as_input(compute, mats_get(x, xr, xc + i)) * as_input(compute, mats_get(w, wr, i));
    return sum;
}

/* All four of: overwrite or accumulate, with bias or without. */
static void run_matmul(const kernel_row *row, op_call *call, tpl_dtype compute, const double *product, const mat *old,
                       const mat *bias, const char *what)
{
    op_matmul *o = &call->matmul;
    int64_t rows = o->x.rows, n = o->w.rows;
    double *expected = tpl_malloc((size_t)(rows * n) * sizeof *expected);
    for (int mode = 0; mode < 4; mode++) {
        o->accumulate = mode & 1;
        o->bias = mode & 2 ? *bias : (mat){0};
        o->out = guard_make(rows, n);
        if (o->accumulate)
            mats_copy(&o->out, old);
        for (int64_t i = 0; i < rows * n; i++)
            expected[i] = product[i] + (o->accumulate ? mats_get(old, i / n, i % n) : 0) +
                          (o->bias.data ? mats_get(bias, 0, i % n) : 0);
        run_row(row, compute, call, what);
        compare_mat(&o->out, expected, "sum", what);
        mats_free(&o->out);
    }
    free(expected);
}

static void check_matmul(shape s, tpl_dtype weight, tpl_dtype compute)
{
    rng r = rng_make(21, (uint64_t)s.k);
    mat old = mats_random(&r, s.rows, s.n, 1), bias = mats_typed(&r, 1, s.n, weight == DT_F8E4M3 ? DT_BF16 : weight, 1);
    op_call call = {.kind = OP_MATMUL};
    op_matmul *o = &call.matmul;
    *o = (op_matmul){.x = mats_random(&r, s.rows, s.k, 1), .w = mats_typed(&r, s.n, s.k, weight, 1)};
    double *product = tpl_malloc((size_t)(s.rows * s.n) * sizeof *product);
    for (int64_t i = 0; i < s.rows * s.n; i++)
        product[i] = dot(&o->x, i / s.n, 0, &o->w, i % s.n, s.k, compute);
    EACH_ROW(row, OP_MATMUL)
    {
        char what[160];
        say(what, "matmul", s, weight, compute, row);
        run_matmul(row, &call, compute, product, &old, &bias, what);
    }
    free(product);
    mats_free(&o->x);
    mats_free(&o->w);
    mats_free(&old);
    mats_free(&bias);
}

static const tpl_dtype weight_types[] = {DT_F32, DT_BF16, DT_F16, DT_F8E4M3};

Test(dense, matmul_of_every_type)
{
    static const shape shapes[] = {{1, 1, 1},     {1, 37, 75},   {4, 16, 64}, {6, 5, 33},
                                   {7, 130, 200}, {19, 67, 129}, {0, 5, 7}};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        for (int t = 0; t < 4; t++) {
            check_matmul(shapes[i], weight_types[t], DT_F32);
            check_matmul(shapes[i], weight_types[t], DT_BF16);
        }
}

/* A weight of several blocks along rows and columns, and more rows than are rounded at a time. */
Test(dense, matmul_block_by_block)
{
    for (int t = 0; t < 4; t++) {
        check_matmul((shape){2, 300, 2100}, weight_types[t], t % 2 ? DT_F32 : DT_BF16);
        check_matmul((shape){17, 300, 2100}, weight_types[t], DT_BF16);
        check_matmul((shape){9, 300, 2100}, weight_types[t], DT_F32);
        check_matmul((shape){17, 300, 2100}, weight_types[t], DT_F32);
    }
    check_matmul((shape){520, 3, 40}, DT_F16, DT_BF16);
}

/* ---- a matrix a head ---- */

static void check_heads(shape s, int32_t heads, tpl_dtype weight, bool transposed, tpl_dtype compute)
{
    rng r = rng_make(22, (uint64_t)s.k);
    int32_t w_rows = (int32_t)(transposed ? s.n : s.k), w_cols = (int32_t)(transposed ? s.k : s.n);
    mat w = mats_typed(&r, heads * (w_rows + 1), w_cols, weight, 1);
    op_call call = {.kind = OP_HEAD_MATMUL};
    op_head_matmul *o = &call.head_matmul;
    int32_t x_stride = (int32_t)s.k + 2, out_stride = (int32_t)s.n + 1;
    *o = (op_head_matmul){.x = mats_random(&r, s.rows, heads * x_stride, 1),
                          .w = {w.data, weight, heads, w_rows, w_cols, w.stride, (w_rows + 1) * w.stride},
                          .x_head_stride = x_stride,
                          .out_head_stride = out_stride,
                          .transposed = transposed};
    int64_t cols = heads * out_stride;
    mat old = mats_random(&r, s.rows, cols, 1);
    double *sum = tpl_malloc((size_t)(s.rows * cols) * sizeof *sum);
    for (int64_t i = 0; i < s.rows * cols; i++) { /* columns between heads keep what they held */
        int64_t row = i / cols, h = i % cols / out_stride, c = i % cols % out_stride;
        sum[i] = mats_get(&old, row, i % cols);
        for (int64_t p = 0; c < s.n && p < s.k; p++)
            sum[i] += as_input(compute, mats_get(&o->x, row, h * x_stride + p)) *
                      as_input(compute, mats_get(&w, h * (w_rows + 1) + (transposed ? c : p), transposed ? p : c));
    }
    EACH_ROW(row, OP_HEAD_MATMUL)
    {
        char what[160];
        say(what, transposed ? "heads w^T" : "heads w", s, weight, compute, row);
        o->out = guard_make(s.rows, cols);
        mats_copy(&o->out, &old);
        o->accumulate = true;
        run_row(row, compute, &call, what);
        compare_mat(&o->out, sum, "sum", what);
        mats_copy(&o->out, &old);
        o->accumulate = false;
        run_row(row, compute, &call, what);
        for (int64_t i = 0; i < s.rows * cols; i++) /* turn "overwritten" into "added" to compare once more */
            if (i % cols % out_stride < s.n)
                ((float *)o->out.data)[i / cols * o->out.stride + i % cols] +=
                    (float)mats_get(&old, i / cols, i % cols);
        compare_mat(&o->out, sum, "sum", what);
        mats_free(&o->out);
    }
    free(sum);
    mats_free(&o->x);
    mats_free(&old);
    mats_free(&w);
}

Test(dense, head_matmul_of_every_type)
{
    static const shape shapes[] = {{1, 64, 32}, {3, 7, 5}, {9, 20, 33}, {70, 32, 64}, {5, 512, 16}};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        for (int t = 0; t < 3; t++)
            for (int way = 0; way < 4; way++)
                check_heads(shapes[i], 3, weight_types[t], way & 1, way & 2 ? DT_BF16 : DT_F32);
}

/* Inner dimensions beyond one block, and rows beyond those rounded at a time. */
Test(dense, head_matmul_block_by_block)
{
    check_heads((shape){2, 5, 1100}, 1, DT_F16, true, DT_F32);
    check_heads((shape){8, 5, 1100}, 2, DT_BF16, true, DT_F32);
    check_heads((shape){17, 5, 1100}, 2, DT_BF16, true, DT_F32);
    check_heads((shape){8, 300, 1100}, 1, DT_F16, false, DT_F32);
    check_heads((shape){515, 16, 8}, 1, DT_BF16, false, DT_BF16);
}
