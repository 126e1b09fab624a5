#include "bench/ceil_work.h"

#include <stdlib.h>
#include <string.h>

#include <oneapi/dnnl/dnnl.h>

#include "base/arena.h"
#include "base/dtype.h"
#include "base/rng.h"
#include "bench/packed_product.h"
#include "kernels/kernels.h"

static const struct {
    const char *name, *unit;
} kinds[CEIL_N] = {
#define CEIL_ROW(kind, name, unit) [kind] = {#name, unit},
    CEIL_LIST(CEIL_ROW)
#undef CEIL_ROW
};

const char *ceil_name(ceil_kind k)
{
    return kinds[k].name;
}

const char *ceil_unit(ceil_kind k)
{
    return kinds[k].unit;
}

static void close_buffers(ceil_state *s)
{
    dev_free(&s->a);
    dev_free(&s->b);
    dev_free(&s->c);
}

/* ---- memory ---- */

/* Kernels read operands of very different sizes, and the rate changes with size (pages in reach of the address
 * translation, distance between streams): the ceiling is the best over these. All are read cold. */
static const size_t sizes[] = {(size_t)1 << 20, (size_t)4 << 20, (size_t)16 << 20};
enum { N_SIZES = sizeof sizes / sizeof *sizes, LARGEST = 16 << 20 };

static size_t turn_bytes(const ceil_state *s)
{
    return sizes[s->turn % N_SIZES];
}

static tpl_code open_memory(ceil_state *s, tpl_err *e)
{
    TPL_TRY(dev_alloc(&s->a, LARGEST, "ceiling buffer", e));
    TPL_TRY(dev_alloc(&s->b, LARGEST, "ceiling buffer", e));
    memset(s->a.data, 1, s->a.bytes);
    memset(s->b.data, 2, s->b.bytes);
    return TPL_OK;
}

static void cool_memory(ceil_state *s)
{
    s->turn++;
    evict_range r[] = {{s->a.data, turn_bytes(s)}, {s->b.data, turn_bytes(s)}};
    evict_ranges(s->ev, r, 2);
}

typedef uint64_t lane8 __attribute__((vector_size(64)));

/* Sums the whole range as `streams` equal parts read side by side. */
static inline uint64_t sum_streams(const void *data, size_t bytes, int streams)
{
    size_t part = bytes / (size_t)streams / sizeof(lane8);
    const lane8 *p = data;
    lane8 sum[8] = {{0}};
    for (size_t i = 0; i + 8 / (size_t)streams <= part; i += 8 / (size_t)streams)
        for (int k = 0; k < 8; k++)
            sum[k] += p[(size_t)(k % streams) * part + i + (size_t)(k / streams)];
    uint64_t all = 0;
    for (int k = 0; k < 8; k++)
        for (int j = 0; j < 8; j++)
            all += sum[k][j];
    return all;
}

static double read_one_stream(ceil_state *s)
{
    s->sink += sum_streams(s->a.data, turn_bytes(s), 1);
    return (double)turn_bytes(s);
}

static double read_four_streams(ceil_state *s)
{
    s->sink += sum_streams(s->a.data, turn_bytes(s), 4);
    return (double)turn_bytes(s);
}

/* The buffer holds no 0, so that the search goes to the end. */
static double read_memchr(ceil_state *s)
{
    s->sink += memchr(s->a.data, 0, turn_bytes(s)) != NULL;
    return (double)turn_bytes(s);
}

static double copy_memcpy(ceil_state *s)
{
    memcpy(s->b.data, s->a.data, turn_bytes(s));
    return 2. * (double)turn_bytes(s);
}

static double copy_own(ceil_state *s)
{
    lane8 *to = s->b.data;
    const lane8 *from = s->a.data;
    size_t n = turn_bytes(s) / sizeof *to;
    for (size_t i = 0; i < n; i += 4) {
        lane8 x0 = from[i], x1 = from[i + 1], x2 = from[i + 2], x3 = from[i + 3];
        to[i] = x0;
        to[i + 1] = x1;
        to[i + 2] = x2;
        to[i + 3] = x3;
        __asm__ volatile("" ::: "memory"); /* or the compiler makes a memcpy of it */
    }
    return 2. * (double)turn_bytes(s);
}

/* Every line is written where it was read, so that it has to come from memory once only. */
static double update_own(ceil_state *s)
{
    lane8 *x = s->a.data;
    size_t n = turn_bytes(s) / sizeof *x;
    for (size_t i = 0; i < n; i++)
        x[i] |= 1;
    return 2. * (double)turn_bytes(s);
}

/* ---- matrix products ---- */

enum { SIDE = 512 }; /* m = n = k: operands of 1 MiB in f32, some milliseconds */
static const double product_flops = 2. * SIDE * SIDE * SIDE;

static tpl_code open_product(ceil_state *s, tpl_err *e)
{
    size_t bytes = (size_t)SIDE * SIDE * sizeof(float);
    rng r = rng_make(1, 0);
    TPL_TRY(dev_alloc(&s->a, bytes, "ceiling buffer", e));
    TPL_TRY(dev_alloc(&s->b, bytes, "ceiling buffer", e));
    TPL_TRY(dev_alloc(&s->c, bytes, "ceiling buffer", e));
    for (int i = 0; i < SIDE * SIDE; i++) {
        ((float *)s->a.data)[i] = (float)(rng_uniform(&r) - 0.5);
        ((float *)s->b.data)[i] = (float)(rng_uniform(&r) - 0.5);
    }
    return TPL_OK;
}

static double product_sgemm(ceil_state *s)
{
    dnnl_status_t status =
        dnnl_sgemm('N', 'T', SIDE, SIDE, SIDE, 1.f, s->a.data, SIDE, s->b.data, SIDE, 0.f, s->c.data, SIDE);
    return status == dnnl_success ? product_flops : 0;
}

static void close_packed(ceil_state *s)
{
    packed_product_close(s->library);
    s->library = NULL;
    close_buffers(s);
}

static tpl_code open_packed(ceil_state *s, tpl_dtype type, tpl_err *e)
{
    packed_product *p;
    TPL_TRY(packed_product_open(SIDE, SIDE, SIDE, type, &p, e));
    s->library = p;
    return TPL_OK;
}

static tpl_code open_packed_f32(ceil_state *s, tpl_err *e)
{
    return open_packed(s, DT_F32, e);
}

static tpl_code open_packed_bf16(ceil_state *s, tpl_err *e)
{
    return open_packed(s, DT_BF16, e);
}

static double product_packed(ceil_state *s)
{
    return packed_product_run(s->library) ? product_flops : 0;
}

/* Our own product, as the kernels table runs it for one head. */
static double own_product(ceil_state *s, tpl_dtype type)
{
    head_mat w = {.data = s->b.data, .dtype = type, .heads = 1, .rows = SIDE, .cols = SIDE, .row_stride = SIDE};
    mat a = {.data = s->a.data, .dtype = DT_F32, .rows = SIDE, .cols = SIDE, .stride = SIDE}, c = a;
    c.data = s->c.data;
    op_call call = {.kind = OP_HEAD_MATMUL,
                    .head_matmul = {.x = a, .w = w, .out = c, .x_head_stride = SIDE, .out_head_stride = SIDE}};
    kernel_ctx ctx = {.compute = type, .scratch = s->library, .scratch_bytes = kernel_scratch_bytes("cpu", &call)};
    return kernel_run("cpu", &ctx, &call, NULL) == TPL_OK ? product_flops : 0;
}

static double own_f32(ceil_state *s)
{
    return own_product(s, DT_F32);
}

static double own_bf16(ceil_state *s)
{
    return own_product(s, DT_BF16);
}

static tpl_code open_own(ceil_state *s, tpl_err *e)
{
    TPL_TRY(open_product(s, e));
    mat m = {.dtype = DT_F32, .rows = SIDE, .cols = SIDE, .stride = SIDE};
    head_mat w = {.dtype = DT_BF16, .heads = 1, .rows = SIDE, .cols = SIDE, .row_stride = SIDE};
    op_call call = {.kind = OP_HEAD_MATMUL,
                    .head_matmul = {.x = m, .w = w, .out = m, .x_head_stride = SIDE, .out_head_stride = SIDE}};
    size_t bytes = kernel_scratch_bytes("cpu", &call);
    w.dtype = DT_F32;
    call.head_matmul.w = w;
    size_t f32 = kernel_scratch_bytes("cpu", &call);
    bytes = f32 > bytes ? f32 : bytes;
    s->library = aligned_alloc(64, (bytes + 64) / 64 * 64);
    return s->library ? TPL_OK : tpl_fail(e, TPL_E_MEMORY, "ceilings", "no room for %zu bytes of scratch", bytes);
}

static tpl_code open_own_bf16(ceil_state *s, tpl_err *e)
{
    TPL_TRY(open_own(s, e));
    dtype_from_f32(s->b.data, DT_BF16, s->a.data, (size_t)SIDE * SIDE);
    return TPL_OK;
}

static void close_own(ceil_state *s)
{
    free(s->library);
    s->library = NULL;
    close_buffers(s);
}

static const ceil_probe probes_[] = {
    {CEIL_READ, "memchr", open_memory, cool_memory, read_memchr, close_buffers},
    {CEIL_READ, "own, 1 stream", open_memory, cool_memory, read_one_stream, close_buffers},
    {CEIL_READ, "own, 4 streams", open_memory, cool_memory, read_four_streams, close_buffers},
    {CEIL_COPY, "memcpy", open_memory, cool_memory, copy_memcpy, close_buffers},
    {CEIL_COPY, "own", open_memory, cool_memory, copy_own, close_buffers},
    {CEIL_UPDATE, "own", open_memory, cool_memory, update_own, close_buffers},
    {CEIL_F32, "oneDNN sgemm", open_product, NULL, product_sgemm, close_buffers},
    {CEIL_F32, "oneDNN, packed weight", open_packed_f32, NULL, product_packed, close_packed},
    {CEIL_F32, "own", open_own, NULL, own_f32, close_own},
    {CEIL_BF16, "oneDNN, packed weight", open_packed_bf16, NULL, product_packed, close_packed},
    {CEIL_BF16, "own", open_own_bf16, NULL, own_bf16, close_own},
};

int ceil_probes(const ceil_probe **probes)
{
    *probes = probes_;
    return sizeof probes_ / sizeof *probes_;
}
