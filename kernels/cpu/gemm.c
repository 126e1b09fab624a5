#include "kernels/cpu/gemm.h"

#include <string.h>

enum {
    BLOCK_VALUES = 256 * 1024, /* f32 of a widened weight block: 1 MiB, about what a core's L2 cache holds */
    THIN_VALUES = 32 * 1024,   /* the same where little is computed with it: it should still be near when it is read */
    BLOCK_K = 1024,            /* a multiple of the 128 columns that share an f8 scale */
    ROUND_ROWS = 512,          /* rows of x rounded to bf16 at a time */
    LONG_K = 256,              /* from here on a sum along k outweighs its last step across a vector */
    THIN_ROWS = 6,             /* up to here reading the weight takes longer than the arithmetic */
    THIN_ROWS_FAR = 16,        /* likewise where the library first would have to fetch, widen or pack a weight */
    PACK_X_VALUES = 128 * 1024 /* of x that meet one packed block at a time: half of a 1 MiB L2 cache */
};

static int64_t least(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static int64_t round_up(int64_t n, int64_t unit)
{
    return (n + unit - 1) / unit * unit;
}

size_t gemm_scratch_bytes(int64_t rows, int64_t k, int64_t n)
{
    int64_t block = round_up(n, SIMD_MAX_LANES) > BLOCK_VALUES ? round_up(n, SIMD_MAX_LANES) : BLOCK_VALUES;
    return (size_t)(block + least(rows, ROUND_ROWS) * round_up(k, SIMD_MAX_LANES)) * sizeof(float);
}

/* The weight block lies at the start of scratch, the rounded rows of x at its end. */
static float *weight_block(const gemm_env *env)
{
    return env->scratch;
}

static float *rounded_block(const gemm_env *env, int64_t n)
{
    return (float *)env->scratch + (gemm_scratch_bytes(0, 0, n) / sizeof(float));
}

static const void *mat_at(const mat *m, int64_t row, int64_t col)
{
    return (const char *)m->data + (size_t)(row * m->stride + col) * dtype_bytes(m->dtype);
}

static mat mat_rows(const mat *m, int64_t row, int64_t rows)
{
    mat part = *m;
    part.data = (char *)m->data + (size_t)(row * m->stride) * dtype_bytes(m->dtype);
    part.rows = rows;
    return part;
}

/* Multiplies columns [c0, c0 + n) of a row with the factors of their blocks of 128 x 128. */
static void scale_row(const gemm_env *env, const mat *w, int64_t row, int64_t c0, int64_t n, float *dst)
{
    const float *scale = w->scale + row / 128 * ((w->cols + 127) / 128);
    for (int64_t c = c0; c < c0 + n;) {
        int64_t end = least((c / 128 + 1) * 128, c0 + n);
        env->simd->scale(dst + (c - c0), scale[c / 128], end - c);
        c = end;
    }
}

/* One row's columns [c0, c0 + n), widened and scaled, rounded if products take bf16. */
static void load_row(const gemm_env *env, const mat *w, int64_t row, int64_t c0, int64_t n, float *dst)
{
    if (env->compute == DT_BF16 && w->dtype == DT_F32) {
        env->simd->round_bf16(dst, mat_at(w, row, c0), n);
        return;
    }
    env->simd->widen(dst, mat_at(w, row, c0), w->dtype, n);
    if (w->scale)
        scale_row(env, w, row, c0, n, dst);
    if (env->compute == DT_BF16 && w->dtype != DT_BF16)
        env->simd->round_bf16(dst, dst, n);
}

/* ---- blocks of a large weight ---- */

typedef struct {
    const gemm_env *env;
    const mat *w;
    mat x;          /* rounded to bf16 if need be; DT_BF16 where a library product wants it so */
    tpl_dtype type; /* of the weight blocks: DT_F32 or DT_BF16 */
    bool thin;
} plan_nt;

static bool weight_is_direct(const plan_nt *p)
{
    bool rounded = p->env->compute == DT_BF16 && p->w->dtype != DT_BF16;
    return p->w->dtype == p->type && !rounded;
}

/* Gives the weight's rows [n0, +n) and columns [k0, +k) as p->type, with their stride. */
static const void *block_load(const plan_nt *p, int64_t n0, int64_t n, int64_t k0, int64_t k, int64_t *stride)
{
    *stride = p->w->stride;
    if (weight_is_direct(p))
        return mat_at(p->w, n0, k0);
    *stride = k;
    float *block = weight_block(p->env);
    for (int64_t r = 0; r < n; r++) {
        if (p->type == DT_F32) {
            load_row(p->env, p->w, n0 + r, k0, k, block + r * k);
        } else {
            float row[BLOCK_K];
            load_row(p->env, p->w, n0 + r, k0, k, row);
            p->env->simd->to_bf16((bf16 *)block + r * k, row, k);
        }
    }
    return block;
}

static tpl_code block_multiply(const plan_nt *p, int64_t n0, int64_t n, int64_t k0, int64_t k, const mat *out, bool add,
                               tpl_err *e)
{
    int64_t stride;
    const void *w = block_load(p, n0, n, k0, k, &stride), *x = mat_at(&p->x, 0, k0);
    float *c = (float *)out->data + n0;
    if (p->thin) {
        simd_gemm g = {p->x.rows, n, k, x, p->x.stride, w, stride, p->type == DT_BF16, c, out->stride, add};
        p->env->simd->gemm_nt(&g);
        return TPL_OK;
    }
    gemm_shape s = {p->x.rows, n, k, p->x.stride, stride, out->stride, add, false};
    return p->type == DT_BF16 ? gemm_bf16(&s, x, w, c, e) : gemm_f32(&s, x, w, c, e);
}

/* x as the product takes it; rounded rows go to scratch. */
static mat round_x(const gemm_env *env, const mat *x, tpl_dtype type, int64_t n)
{
    if (env->compute != DT_BF16)
        return *x;
    float *block = rounded_block(env, n);
    int64_t stride = round_up(x->cols, SIMD_MAX_LANES);
    for (int64_t r = 0; r < x->rows; r++) {
        if (type == DT_BF16)
            env->simd->to_bf16((bf16 *)block + r * stride, mat_at(x, r, 0), x->cols);
        else
            env->simd->round_bf16(block + r * stride, mat_at(x, r, 0), x->cols);
    }
    return (mat){.data = block, .dtype = type, .rows = x->rows, .cols = x->cols, .stride = stride};
}

/* Up to how many rows gemm_nt of simd.h is the faster way (measured at n 2048, k 7168 and n 512, k 192). The library
 * holds its own earlier where it can read the weight as it lies; in f32 only while the weight is small. */
static int64_t thin_rows(const gemm_env *env, const mat *w)
{
    bool near = env->compute == DT_BF16 ? w->dtype == DT_BF16 : w->dtype == DT_F32 && w->rows * w->cols <= BLOCK_VALUES;
    return near ? THIN_ROWS : THIN_ROWS_FAR;
}

static tpl_code multiply_rows(const gemm_env *env, const mat *x, const mat *w, const mat *out, bool accumulate,
                              tpl_err *e)
{
    bool thin = x->rows <= thin_rows(env, w), library_bf16 = !thin && env->compute == DT_BF16 && gemm_has_bf16();
    plan_nt p = {.env = env, .w = w, .thin = thin};
    p.type = library_bf16 || (thin && w->dtype == DT_BF16) ? DT_BF16 : DT_F32;
    p.x = round_x(env, x, library_bf16 ? DT_BF16 : DT_F32, w->rows);
    bool direct = weight_is_direct(&p);
    int64_t k_step = direct ? w->cols : least(w->cols, BLOCK_K),
            n_step = direct ? w->rows : (thin ? THIN_VALUES : BLOCK_VALUES) / k_step;
    for (int64_t n0 = 0; n0 < w->rows; n0 += n_step)
        for (int64_t k0 = 0; k0 < w->cols; k0 += k_step) {
            int64_t n = least(n_step, w->rows - n0), k = least(k_step, w->cols - k0);
            TPL_TRY(block_multiply(&p, n0, n, k0, k, out, accumulate || k0 > 0, e));
        }
    return TPL_OK;
}

/* ---- packed weights ---- */

/* In f32 our own product is the faster one while a packed panel stays near: for inner sizes up to BLOCK_K (measured at
 * 380 and 900 rows, k 96 to 512: 115 to 117 GFLOP/s against 104 to 112 of the library's). */
static bool goes_packed(const gemm_env *env, const mat *x, const mat *w)
{
    bool plain = w->dtype == DT_F32 || w->dtype == DT_BF16;
    return env->simd->pack && env->compute == DT_F32 && plain && w->cols <= BLOCK_K && x->rows > thin_rows(env, w);
}

/* A panel is packed right before it is used and into the same place, so that it stays in the first cache. */
static void multiply_packed(const gemm_env *env, const mat *x, const mat *w, const mat *out, bool accumulate)
{
    int64_t panel = 2 * env->simd->lanes, k = w->cols, m_step = PACK_X_VALUES / k;
    float *block = weight_block(env);
    for (int64_t m0 = 0; m0 < x->rows; m0 += m_step)
        for (int64_t n0 = 0; n0 < w->rows; n0 += panel) {
            int64_t n = least(panel, w->rows - n0);
            env->simd->pack(block, mat_at(w, n0, 0), w->dtype == DT_BF16, w->stride, n, k);
            simd_gemm g = {.m = least(m_step, x->rows - m0),
                           .n = n,
                           .k = k,
                           .a = mat_at(x, m0, 0),
                           .lda = x->stride,
                           .b = block,
                           .ldb = panel,
                           .c = (float *)out->data + m0 * out->stride + n0,
                           .ldc = out->stride,
                           .accumulate = accumulate};
            env->simd->gemm_nn(&g);
        }
}

tpl_code gemm_nt(const gemm_env *env, const mat *x, const mat *w, const mat *out, bool accumulate, tpl_err *e)
{
    int64_t step = env->compute == DT_BF16 ? ROUND_ROWS : x->rows;
    if (goes_packed(env, x, w)) {
        multiply_packed(env, x, w, out, accumulate);
        return TPL_OK;
    }
    for (int64_t r = 0; r < x->rows; r += step) {
        int64_t rows = least(step, x->rows - r);
        mat x_part = mat_rows(x, r, rows), out_part = mat_rows(out, r, rows);
        TPL_TRY(multiply_rows(env, &x_part, w, &out_part, accumulate, e));
    }
    return TPL_OK;
}

/* ---- small weights ---- */

/* Rows [k0, k0 + k) of b [k, n], transposed from w if need be; what lies behind n is left as it is. */
static void small_load(const gemm_env *env, const mat *w, bool transposed, int64_t k0, int64_t k, int64_t n,
                       int64_t stride, float *b)
{
    enum { STRIP = 16 };
    float strip[STRIP * BLOCK_K];
    for (int64_t r = 0; r < k && !transposed; r++)
        load_row(env, w, k0 + r, 0, n, b + r * stride);
    for (int64_t c = 0; c < n && transposed; c += STRIP) {
        int64_t cols = least(STRIP, n - c);
        for (int64_t i = 0; i < cols; i++)
            load_row(env, w, c + i, k0, k, strip + i * k);
        env->simd->transpose(b + c, stride, strip, k, cols, k);
    }
}

/* x as f32, rounded if need be, in rows that do not fall on the same lines of the cache however far apart they were. */
static mat pack_x(const gemm_env *env, const mat *x, int64_t n)
{
    if (env->compute == DT_BF16)
        return round_x(env, x, DT_F32, n);
    if (x->rows == 1)
        return *x;
    mat packed = {.data = rounded_block(env, n), .dtype = DT_F32, .rows = x->rows, .cols = x->cols};
    packed.stride = round_up(x->cols, SIMD_MAX_LANES);
    for (int64_t r = 0; r < x->rows; r++)
        memcpy((float *)packed.data + r * packed.stride, mat_at(x, r, 0), (size_t)x->cols * sizeof(float));
    return packed;
}

/* From here on the library's product of bf16 values is the faster one (measured at k 128, n 512). */
static bool small_is_library(const gemm_env *env, const mat *x, const mat *w)
{
    return env->compute == DT_BF16 && w->dtype == DT_BF16 && x->rows > THIN_ROWS_FAR && gemm_has_bf16();
}

static tpl_code small_library(const gemm_env *env, const mat *x, const mat *w, const mat *out, bool transposed,
                              bool accumulate, tpl_err *e)
{
    int64_t k = transposed ? w->cols : w->rows, n = transposed ? w->rows : w->cols;
    mat in = round_x(env, x, DT_BF16, n);
    gemm_shape s = {x->rows, n, k, in.stride, w->stride, out->stride, accumulate, !transposed};
    return gemm_bf16(&s, in.data, w->data, out->data, e);
}

static void small_rows(const gemm_env *env, const mat *x, const mat *w, const mat *out, bool transposed,
                       bool accumulate)
{
    int64_t k = transposed ? w->cols : w->rows, n = transposed ? w->rows : w->cols, rows = x->rows;
    mat in = pack_x(env, x, n);
    bool rounded = env->compute == DT_BF16 && w->dtype != DT_BF16;
    bool direct = (w->dtype == DT_F32 || w->dtype == DT_BF16) && !rounded;
    simd_gemm g = {rows,      n,           k,         in.data, in.stride, w->data, w->stride, w->dtype == DT_BF16,
                   out->data, out->stride, accumulate};
    if (direct && transposed && rows <= (k >= LONG_K ? THIN_ROWS_FAR : THIN_ROWS)) {
        env->simd->gemm_nt(&g);
        return;
    }
    if (direct && !transposed && n % env->simd->lanes == 0) {
        env->simd->gemm_nn(&g);
        return;
    }
    g.b = weight_block(env);
    g.ldb = round_up(n, SIMD_MAX_LANES);
    g.b_bf16 = false;
    int64_t step = least(BLOCK_K, g.ldb > BLOCK_VALUES ? 1 : BLOCK_VALUES / g.ldb);
    for (int64_t k0 = 0; k0 < k; k0 += step) {
        g.k = least(step, k - k0);
        g.a = (const float *)in.data + k0;
        g.accumulate = accumulate || k0 > 0;
        small_load(env, w, transposed, k0, g.k, n, g.ldb, weight_block(env));
        env->simd->gemm_nn(&g);
    }
}

tpl_code gemm_small(const gemm_env *env, const mat *x, const mat *w, const mat *out, bool transposed, bool accumulate,
                    tpl_err *e)
{
    for (int64_t r = 0; r < x->rows; r += ROUND_ROWS) {
        int64_t rows = least(ROUND_ROWS, x->rows - r);
        mat x_part = mat_rows(x, r, rows), out_part = mat_rows(out, r, rows);
        if (small_is_library(env, &x_part, w))
            TPL_TRY(small_library(env, &x_part, w, &out_part, transposed, accumulate, e));
        else
            small_rows(env, &x_part, w, &out_part, transposed, accumulate);
    }
    return TPL_OK;
}
