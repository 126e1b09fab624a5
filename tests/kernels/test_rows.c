#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/arena.h"
#include "tests/kernels/world.h"

static double *cells(int64_t rows, int64_t cols)
{
    return tpl_calloc((size_t)(rows * cols) + 1, sizeof(double));
}

/* Runs every row of an operation into a fresh `out`, which starts as `start` if that is given. */
static void check_all(op_call *call, mat *out, const mat *start, int64_t rows, int64_t cols, const double *expected,
                      const char *tol, const char *name)
{
    EACH_ROW(row, call->kind)
    {
        char what[96];
        snprintf(what, sizeof what, "%s %s", name, row->name);
        *out = guard_make(rows, cols);
        if (start)
            mats_copy(out, start);
        run_row(row, DT_F32, call, what);
        compare_mat(out, expected, tol, what);
        mats_free(out);
    }
}

Test(rows, embed_copies_the_table)
{
    static const tpl_dtype types[] = {DT_F32, DT_BF16, DT_F16};
    static const int32_t token[] = {4, 0, 4, 8};
    rng r = rng_make(31, 0);
    batch_view b = {.n_rows = 4, .row_token = token};
    for (int t = 0; t < 3; t++) {
        op_call call = {.kind = OP_EMBED};
        call.embed = (op_embed){.table = mats_typed(&r, 9, 21, types[t], 2), .batch = &b};
        double *e = cells(4, 21);
        for (int64_t i = 0; i < 4 * 21; i++)
            e[i] = mats_get(&call.embed.table, token[i / 21], i % 21);
        check_all(&call, &call.embed.out, NULL, 4, 21, e, "copy", "embed");
        free(e);
        mats_free(&call.embed.table);
    }
}

Test(rows, gather_rows_copies_in_order)
{
    static const int32_t index[] = {2, 2, 0};
    rng r = rng_make(32, 0);
    op_call call = {.kind = OP_GATHER_ROWS};
    call.gather_rows = (op_gather_rows){.x = mats_random(&r, 3, 5, 1), .index = index};
    double *e = cells(3, 5);
    for (int64_t i = 0; i < 15; i++)
        e[i] = mats_get(&call.gather_rows.x, index[i / 5], i % 5);
    check_all(&call, &call.gather_rows.out, NULL, 3, 5, e, "copy", "gather_rows");
    free(e);
    mats_free(&call.gather_rows.x);
}

Test(rows, add_adds)
{
    rng r = rng_make(33, 0);
    op_call call = {.kind = OP_ADD};
    mat old = mats_random(&r, 3, 37, 1);
    call.add.x = mats_random(&r, 3, 37, 1);
    double *e = cells(3, 37);
    for (int64_t i = 0; i < 3 * 37; i++)
        e[i] = mats_get(&old, i / 37, i % 37) + mats_get(&call.add.x, i / 37, i % 37);
    check_all(&call, &call.add.out, &old, 3, 37, e, "rotate", "add");
    free(e);
    mats_free(&old);
    mats_free(&call.add.x);
}

Test(rows, copy_heads_leaves_the_rest)
{
    rng r = rng_make(34, 0);
    op_call call = {.kind = OP_COPY_HEADS};
    mat old = mats_random(&r, 3, 3 * 11, 1);
    call.copy_heads = (op_copy_heads){
        .x = mats_random(&r, 3, 3 * 7, 1), .heads = 3, .cols = 5, .x_head_stride = 7, .out_head_stride = 11};
    double *e = cells(3, 33);
    for (int64_t i = 0; i < 99; i++) {
        int64_t row = i / 33, h = i % 33 / 11, c = i % 11;
        e[i] = c < 5 ? mats_get(&call.copy_heads.x, row, h * 7 + c) : mats_get(&old, row, i % 33);
    }
    check_all(&call, &call.copy_heads.out, &old, 3, 33, e, "copy", "copy_heads");
    free(e);
    mats_free(&old);
    mats_free(&call.copy_heads.x);
}

Test(rows, silu_mul_of_all_sizes)
{
    rng r = rng_make(35, 0);
    op_call call = {.kind = OP_SILU_MUL};
    op_silu_mul *o = &call.silu_mul;
    o->gate = mats_random(&r, 3, 37, 12);
    o->up = mats_random(&r, 3, 37, 3);
    static const float extreme[] = {0, -0.f, 80, 200, 1e30f, -80, -200, -1e30f, 1e-30f};
    memcpy(o->gate.data, extreme, sizeof extreme);
    double *e = cells(3, 37);
    for (int64_t i = 0; i < 3 * 37; i++) {
        double g = mats_get(&o->gate, i / 37, i % 37);
        e[i] = g / (1 + exp(-g)) * mats_get(&o->up, i / 37, i % 37);
    }
    check_all(&call, &o->out, NULL, 3, 37, e, "f32", "silu_mul");
    mat start = o->gate;
    EACH_ROW(row, OP_SILU_MUL) /* out may be gate */
    {
        o->gate = guard_make(3, 37);
        mats_copy(&o->gate, &start);
        o->out = o->gate;
        run_row(row, DT_F32, &call, "silu_mul in place");
        compare_mat(&o->out, e, "f32", row->name);
        mats_free(&o->gate);
    }
    free(e);
    mats_free(&start);
    mats_free(&o->up);
}

/* ---- norms ---- */

static void check_rmsnorm(int64_t rows, int32_t groups, int64_t width, tpl_dtype weight, double size)
{
    rng r = rng_make(36, (uint64_t)width);
    int64_t cols = groups * width;
    op_call call = {.kind = OP_RMSNORM};
    op_rmsnorm *o = &call.rmsnorm;
    *o = (op_rmsnorm){.x = mats_random(&r, rows, cols, size), .groups = groups, .eps = 1e-6f};
    if (weight != DT_NONE)
        o->weight = mats_typed(&r, 1, width, weight, 2);
    memset((float *)o->x.data, 0, (size_t)width * sizeof(float)); /* a group of zeros gives zeros */
    double *e = cells(rows, cols);
    for (int64_t g = 0; g < rows * groups; g++) {
        double sum = 0;
        for (int64_t c = 0; c < width; c++)
            sum += pow(mats_get(&o->x, g / groups, g % groups * width + c), 2);
        for (int64_t c = 0; c < width; c++)
            e[g * width + c] = mats_get(&o->x, g / groups, g % groups * width + c) /
                               sqrt(sum / (double)width + o->eps) *
                               (weight != DT_NONE ? mats_get(&o->weight, 0, c) : 1);
    }
    check_all(&call, &o->out, NULL, rows, cols, e, "f32", "rmsnorm");
    mat x = o->x;
    EACH_ROW(row, OP_RMSNORM) /* out may be x */
    {
        o->x = guard_make(rows, cols);
        mats_copy(&o->x, &x);
        o->out = o->x;
        run_row(row, DT_F32, &call, "rmsnorm in place");
        compare_mat(&o->out, e, "f32", row->name);
        mats_free(&o->x);
    }
    free(e);
    mats_free(&x);
    if (weight != DT_NONE)
        mats_free(&o->weight);
}

Test(rows, rmsnorm_of_groups)
{
    check_rmsnorm(3, 1, 97, DT_BF16, 1);
    check_rmsnorm(2, 5, 20, DT_F32, 30);
    check_rmsnorm(2, 3, 64, DT_NONE, 1e-3);
    check_rmsnorm(1, 1, 1, DT_F16, 1);
}

/* Hand-worked: c = (3, 4 | 0, 5), alpha = (2, 4), rank 4: norms sqrt(2 * 25 / 4) and sqrt(4 * 25 / 4). */
Test(rows, sliced_norm_estimates_the_whole)
{
    static const float alpha[] = {2, 4};
    op_call call = {.kind = OP_SLICED_NORM};
    op_sliced_norm *o = &call.sliced_norm;
    float x[] = {3, 4, 0, 5};
    *o = (op_sliced_norm){.x = {x, DT_F32, 1, 4, 4, NULL}, .alpha = alpha, .n_slices = 2, .kv_lora_rank = 4, .eps = 0};
    double e[] = {3 / sqrt(12.5), 4 / sqrt(12.5), 0, 1};
    check_all(&call, &o->out, NULL, 1, 4, e, "f32", "sliced_norm");
    o->eps = 0.25f;
    double with_eps[] = {3 / sqrt(12.75), 4 / sqrt(12.75), 0, 5 / sqrt(25.25)};
    check_all(&call, &o->out, NULL, 1, 4, with_eps, "f32", "sliced_norm");
}

/* With one slice of the whole rank and alpha 1 it is the exact norm. */
Test(rows, sliced_norm_of_one_slice_is_rmsnorm)
{
    rng r = rng_make(37, 0);
    float one = 1;
    op_call call = {.kind = OP_SLICED_NORM};
    op_sliced_norm *o = &call.sliced_norm;
    *o = (op_sliced_norm){
        .x = mats_random(&r, 2, 40, 1), .alpha = &one, .n_slices = 1, .kv_lora_rank = 40, .eps = 1e-5f};
    double e[80];
    for (int row = 0; row < 2; row++) {
        double sum = 0;
        for (int c = 0; c < 40; c++)
            sum += pow(mats_get(&o->x, row, c), 2);
        for (int c = 0; c < 40; c++)
            e[row * 40 + c] = mats_get(&o->x, row, c) / sqrt(sum / 40 + o->eps);
    }
    check_all(&call, &o->out, NULL, 2, 40, e, "f32", "sliced_norm");
    mats_free(&o->x);
}

/* ---- rotary embedding ---- */

static void check_rope(int32_t heads, int32_t stride, int32_t dim, bool interleaved)
{
    static const int32_t pos[] = {3, 0, 9};
    rng r = rng_make(38, (uint64_t)dim);
    batch_view b = {.n_rows = 3, .row_pos = pos};
    int32_t half = dim / 2, cols = (heads - 1) * stride + dim;
    float *cosine = tpl_malloc((size_t)(10 * half) * sizeof(float)),
          *sine = tpl_malloc((size_t)(10 * half) * sizeof(float));
    for (int i = 0; i < 10 * half; i++) {
        cosine[i] = (float)cos(i / half / pow(100, (double)(i % half) / half));
        sine[i] = (float)sin(i / half / pow(100, (double)(i % half) / half));
    }
    mat old = mats_random(&r, 3, cols, 1);
    op_call call = {.kind = OP_ROPE};
    call.rope = (op_rope){.heads = heads,
                          .head_stride = stride,
                          .dim = dim,
                          .cos = cosine,
                          .sin = sine,
                          .interleaved = interleaved,
                          .batch = &b};
    double *e = cells(3, cols);
    for (int64_t i = 0; i < 3 * cols; i++)
        e[i] = mats_get(&old, i / cols, i % cols);
    for (int64_t row = 0; row < 3; row++)
        for (int64_t h = 0; h < heads; h++)
            for (int64_t i = 0; i < half; i++) { /* the pair as a complex number, turned by its angle */
                int64_t at = h * stride, first = interleaved ? 2 * i : i, second = interleaved ? 2 * i + 1 : i + half;
                double x = mats_get(&old, row, at + first), y = mats_get(&old, row, at + second);
                double c = cosine[pos[row] * half + i], s = sine[pos[row] * half + i];
                e[row * cols + at + i] = x * c - y * s;
                e[row * cols + at + i + half] = x * s + y * c;
            }
    check_all(&call, &call.rope.x, &old, 3, cols, e, "rotate", interleaved ? "rope interleaved" : "rope");
    free(cosine);
    free(sine);
    free(e);
    mats_free(&old);
}

Test(rows, rope_turns_pairs)
{
    for (int interleaved = 0; interleaved < 2; interleaved++) {
        check_rope(1, 0, 16, interleaved);
        check_rope(3, 11, 6, interleaved);
        check_rope(2, 40, 34, interleaved);
    }
}

/* ---- the cache ---- */

static void check_append(const world_spec *spec)
{
    rng r = rng_make(39, 0);
    world *w = world_create(spec, 12, 4);
    mat a = mats_random(&r, w->batch.n_rows, 5, 1), b = mats_random(&r, w->batch.n_rows, 3, 1);
    size_t bytes = (size_t)w->n_pages * (size_t)spec->page_tok * 12 * dtype_bytes(spec->dtype);
    op_call call = {.kind = OP_KV_APPEND};
    call.kv_append = (op_kv_append){.a = a, .b = b, .a_off = 6, .b_off = 1, .kv = w->kv, .batch = &w->batch};
    EACH_ROW(row, OP_KV_APPEND)
    {
        int64_t kept = 0;
        memset(w->kv.pages, 0xff, bytes);
        run_row(row, DT_F32, &call, spec->name);
        for (int32_t i = 0; i < w->batch.n_rows; i++) {
            int32_t seq = w->batch.row_seq[i], slot = spec->prefix[seq] + i - w->batch.seq_row0[seq];
            if (slot % spec->mod != spec->rem)
                continue;
            kept++;
            int32_t token = slot / spec->mod, page = w->kv.page_table[seq * w->kv.max_pages + token / spec->page_tok];
            size_t at = ((size_t)page * (size_t)spec->page_tok + (size_t)(token % spec->page_tok)) * 12;
            for (int c = 0; c < 8; c++) {
                float want = (float)(c < 5 ? mats_get(&a, i, c) : mats_get(&b, i, c - 5)), got;
                size_t cell = at + (size_t)(c < 5 ? 6 + c : 1 + c - 5);
                if (spec->dtype == DT_BF16)
                    want = bf16_to_f32(bf16_from_f32(want));
                dtype_to_f32(&got, (char *)w->kv.pages + cell * dtype_bytes(spec->dtype), spec->dtype, 1);
                cr_assert_eq(got, want, "%s %s: row %d value %d is %g, expected %g", spec->name, row->name, i, c, got,
                             want);
            }
        }
        int64_t all = (int64_t)w->n_pages * spec->page_tok * 12;
        cr_assert_eq(world_count_nan(w), all - 8 * kept, "%s %s wrote elsewhere", spec->name, row->name);
    }
    mats_free(&a);
    mats_free(&b);
    world_destroy(w);
}

Test(rows, kv_append_writes_kept_slots_only)
{
    static const world_spec specs[] = {
        {.name = "all",
         .n_seqs = 3,
         .prefix = {0, 7, 30},
         .rows = {9, 1, 0},
         .page_tok = 4,
         .mod = 1,
         .dtype = DT_F32,
         .empty = true},
        {.name = "bf16",
         .n_seqs = 2,
         .prefix = {15, 0},
         .rows = {3, 20},
         .page_tok = 16,
         .mod = 1,
         .dtype = DT_BF16,
         .empty = true},
        {.name = "dcp",
         .n_seqs = 2,
         .prefix = {15, 0},
         .rows = {30, 2},
         .page_tok = 4,
         .mod = 4,
         .rem = 3,
         .dtype = DT_BF16,
         .empty = true},
    };
    for (size_t i = 0; i < sizeof specs / sizeof *specs; i++)
        check_append(&specs[i]);
}

/* Two parts with weights e^1 : e^2 and a third that saw nothing; a head no part saw; one that only another part saw. */
Test(rows, lse_merge_weighs_a_part)
{
    float lse[] = {1, -INFINITY, -INFINITY, /* part 0 */ 2, -INFINITY, 5, /* part 1 */ -INFINITY, -INFINITY, -INFINITY};
    mat old = guard_make(1, 6);
    float o[] = {3, -6, NAN, 1, 0, 7};
    memcpy(old.data, o, sizeof o);
    op_call call = {.kind = OP_LSE_MERGE};
    call.lse_merge = (op_lse_merge){.lse = {lse, DT_F32, 1, 9, 9, NULL}, .heads = 3, .lat = 2, .parts = 3};
    double share = exp(1) / (exp(1) + exp(2)), part_0[] = {3 * share, -6 * share, 0, 0, 0, 0};
    double part_1[] = {3 * (1 - share), -6 * (1 - share), 0, 0, 0, 7}, part_2[6] = {0};
    check_all(&call, &call.lse_merge.o, &old, 1, 6, part_0, "f32", "lse_merge part 0");
    call.lse_merge.part = 1;
    check_all(&call, &call.lse_merge.o, &old, 1, 6, part_1, "f32", "lse_merge part 1");
    call.lse_merge.part = 2;
    check_all(&call, &call.lse_merge.o, &old, 1, 6, part_2, "f32", "lse_merge part 2");
    mats_free(&old);
}
