#include "tests/kernels/compare.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* u = 2^-24 = 6.0e-8 is the rounding error of f32, 2^-9 = 2.0e-3 that of bf16. */
static const tolerance table[] = {
    {"copy", 0, 0},
    /* A handful of roundings a value: 8 u. */
    {"f32", 1e-12, 5e-7},
    /* A rotation a c - b s cancels, so that an error of 4 u of terms below 1 stays. */
    {"rotate", 3e-7, 5e-7},
    /* A sum of n <= 2500 products of values below 1: partial sums stay below sqrt(n)/3 = 17, and at most n/4 of them
     * round (4 lanes), each by u times that, adding up as sqrt(n/4) = 25: 17 * 25 u = 2.5e-5. */
    {"sum", 3e-5, 1e-6},
    /* Scores below 16 in size carry errors of about 8 u * 16 = 8e-6 into weights; values are below 1 and the average
     * over at most a few hundred tokens adds 4 u. */
    {"attn", 2e-5, 2e-5},
    /* Whole-numbered inputs: scores are exact, exp is within 2 ulp, sums of few terms remain, of values up to 8. */
    {"attn_exact", 1e-5, 4e-6},
    /* Keys and values are rounded to bf16 after sums that may differ by u: now and then one lands on the other side of
     * a tie, 2^-8 of itself away; a row that sees a single token shows that in full. */
    {"attn_bf16", 4e-3, 8e-3},
    /* Likewise for the inner values of an expert, of which some tens are summed. */
    {"expert_bf16", 4e-3, 8e-3},
};

const tolerance *tolerance_find(const char *name)
{
    for (size_t i = 0; i < sizeof table / sizeof *table; i++)
        if (strcmp(table[i].name, name) == 0)
            return &table[i];
    cr_assert_fail("no tolerance is called %s", name);
    return NULL;
}

/* ---- guarded matrices: GUARD columns and rows of a NaN that no computation gives ---- */

enum { GUARD = 3 };
static const uint32_t poison = 0x7fc0dead;

static void fill_poison(float *at, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        memcpy(at + i, &poison, sizeof poison);
}

static bool is_poison(const float *at)
{
    return memcmp(at, &poison, sizeof poison) == 0;
}

mat guard_make(int64_t rows, int64_t cols)
{
    int64_t stride = cols + 2 * GUARD, n = (rows + 2) * stride;
    float *base = malloc((size_t)n * sizeof *base);
    fill_poison(base, n);
    return (mat){.data = base + stride + GUARD, .dtype = DT_F32, .rows = rows, .cols = cols, .stride = stride};
}

static float *guard_base(const mat *m)
{
    return (float *)m->data - m->stride - GUARD;
}

void guard_check(const mat *m, const char *what)
{
    const float *base = guard_base(m);
    for (int64_t r = 0; r < m->rows + 2; r++)
        for (int64_t c = 0; c < m->stride; c++) {
            bool inside = r >= 1 && r <= m->rows && c >= GUARD && c < GUARD + m->cols;
            cr_assert(inside || is_poison(base + r * m->stride + c), "%s: wrote outside, at row %ld column %ld", what,
                      (long)r - 1, (long)c - GUARD);
        }
}

void compare_mat(const mat *got, const double *expected, const char *tol, const char *what)
{
    const tolerance *t = tolerance_find(tol);
    double worst = -1, worst_got = 0, worst_expected = 0;
    int64_t at = 0;
    guard_check(got, what);
    for (int64_t r = 0; r < got->rows; r++)
        for (int64_t c = 0; c < got->cols; c++) {
            const float *g = (float *)got->data + r * got->stride + c;
            double want = expected[r * got->cols + c];
            cr_assert(!is_poison(g), "%s: [%ld, %ld] was not written", what, (long)r, (long)c);
            double over = fabs(*g - want) - t->abs - t->rel * fabs(want);
            if (isnan(want) ? isnan(*g) : *g == want)
                over = -1;
            else if (isnan(over) || isinf(over))
                over = INFINITY;
            if (over > worst) {
                worst = over;
                at = r * got->cols + c;
                worst_got = *g;
                worst_expected = want;
            }
        }
    cr_assert(worst <= 0, "%s: [%ld, %ld] is %.9g, expected %.9g (tolerance %s: abs %g, rel %g)", what,
              (long)(at / got->cols), (long)(at % got->cols), worst_got, worst_expected, t->name, t->abs, t->rel);
}

/* ---- inputs ---- */

mat mats_random(rng *r, int64_t rows, int64_t cols, double size)
{
    mat m = guard_make(rows, cols);
    for (int64_t i = 0; i < rows; i++)
        for (int64_t c = 0; c < cols; c++)
            ((float *)m.data)[i * m.stride + c] = (float)(size * (2 * rng_uniform(r) - 1));
    return m;
}

static void typed_put(const mat *m, int64_t row, int64_t col, float v, rng *r)
{
    int64_t i = row * m->stride + col;
    if (m->dtype == DT_F8E4M3) {
        uint8_t b = (uint8_t)rng_below(r, 256);
        ((uint8_t *)m->data)[i] = (b & 0x7f) > 0x50 ? b & 0xcf : b; /* up to 13 / 4 in size, no NaN */
    } else {
        dtype_from_f32((char *)m->data + (size_t)i * dtype_bytes(m->dtype), m->dtype, &v, 1);
    }
}

static const float *random_scales(rng *r, int64_t rows, int64_t cols)
{
    int64_t n = (rows + 127) / 128 * ((cols + 127) / 128);
    float *s = malloc((size_t)n * sizeof *s);
    for (int64_t i = 0; i < n; i++)
        s[i] = (float)(0.05 + 0.1 * rng_uniform(r));
    return s;
}

/* The gap between rows holds NaNs in every type. */
mat mats_typed(rng *r, int64_t rows, int64_t cols, tpl_dtype t, double size)
{
    mat m = {.dtype = t, .rows = rows, .cols = cols, .stride = cols + 3};
    size_t bytes = (size_t)(rows * m.stride) * dtype_bytes(t);
    m.data = malloc(bytes);
    memset(m.data, 0xff, bytes);
    for (int64_t i = 0; i < rows; i++)
        for (int64_t c = 0; c < cols; c++)
            typed_put(&m, i, c, (float)(size * (2 * rng_uniform(r) - 1)), r);
    if (t == DT_F8E4M3)
        m.scale = random_scales(r, rows, cols);
    return m;
}

void mats_free(mat *m)
{
    bool guarded = m->dtype == DT_F32 && m->stride == m->cols + 2 * GUARD;
    free(guarded ? guard_base(m) : m->data);
    free((void *)(uintptr_t)m->scale);
    memset(m, 0, sizeof *m);
}

double mats_get(const mat *m, int64_t r, int64_t c)
{
    float v;
    dtype_to_f32(&v, (const char *)m->data + (size_t)(r * m->stride + c) * dtype_bytes(m->dtype), m->dtype, 1);
    return m->scale ? (double)v * m->scale[r / 128 * ((m->cols + 127) / 128) + c / 128] : v;
}

void mats_copy(const mat *to, const mat *from)
{
    for (int64_t r = 0; r < from->rows; r++)
        memcpy((float *)to->data + r * to->stride, (float *)from->data + r * from->stride,
               (size_t)from->cols * sizeof(float));
}

double as_input(tpl_dtype compute, double v)
{
    return compute == DT_BF16 ? bf16_to_f32(bf16_from_f32((float)v)) : v;
}

/* ---- running ---- */

void run_row(const kernel_row *row, tpl_dtype compute, const op_call *call, const char *what)
{
    size_t bytes = row->scratch_bytes ? row->scratch_bytes(call) : 0, whole = (bytes + 64) / 64 * 64;
    char *base = malloc(whole + 64); /* the end of scratch is the end of the allocation, up to alignment */
    char *scratch = (char *)(((uintptr_t)base + 63) / 64 * 64);
    memset(base, 0xff, whole + 64);
    kernel_ctx ctx = {.compute = compute, .scratch = scratch, .scratch_bytes = bytes};
    tpl_err e = {0};
    tpl_code code = row->run(&ctx, call, &e);
    cr_assert(code == TPL_OK, "%s: %s failed: %s: %s", what, row->name, e.where, e.what);
    for (const char *p = scratch + bytes; p < base + whole + 64; p++)
        cr_assert(*p == (char)0xff, "%s: %s wrote past its %zu bytes of scratch", what, row->name, bytes);
    free(base);
}

const kernel_row *next_row(op_kind op, int *index)
{
    const kernel_row *const *rows;
    int n = kernel_rows(op, &rows);
    while (*index < n) {
        const kernel_row *row = rows[(*index)++];
        if (strcmp(row->backend, "cuda") == 0) /* its memory is elsewhere: tests/gpu */
            continue;
        if (!row->available || row->available())
            return row;
    }
    return NULL;
}
