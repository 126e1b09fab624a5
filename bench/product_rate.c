#include "bench/product_rate.h"

#include <math.h>
#include <stdlib.h>

#include "base/arena.h"
#include "base/clock.h"
#include "base/rng.h"
#include "bench/crew.h"
#include "bench/packed_product.h"
#include "device/memory.h"
#include "kernels/kernels.h"

enum { RUNS = 5 };

/* One thread's operands of one shape. */
typedef struct {
    product_shape s;
    tpl_dtype compute;
    dev_buf x, w, out, scratch;
    packed_product *packed; /* NULL: the library offers none */
} operands;

typedef struct {
    const product_shape *shapes;
    int n;
    tpl_dtype compute;
    double *seconds; /* a thread */
} job;

static op_call own_call(const operands *o)
{
    mat x = {.data = o->x.data, .dtype = DT_F32, .rows = o->s.rows, .cols = o->s.k, .stride = o->s.k};
    mat w = {.data = o->w.data, .dtype = DT_BF16, .rows = o->s.n, .cols = o->s.k, .stride = o->s.k};
    mat out = {.data = o->out.data, .dtype = DT_F32, .rows = o->s.rows, .cols = o->s.n, .stride = o->s.n};
    return (op_call){.kind = OP_MATMUL, .matmul = {.x = x, .w = w, .out = out}};
}

static tpl_code open_own(operands *o, tpl_err *e)
{
    rng r = rng_make(1, 0);
    TPL_TRY(dev_alloc(&o->x, (size_t)(o->s.rows * o->s.k) * sizeof(float), "product", e));
    TPL_TRY(dev_alloc(&o->w, (size_t)(o->s.n * o->s.k) * sizeof(float), "product", e));
    TPL_TRY(dev_alloc(&o->out, (size_t)(o->s.rows * o->s.n) * sizeof(float), "product", e));
    for (int64_t i = 0; i < o->s.rows * o->s.k; i++)
        ((float *)o->x.data)[i] = (float)(rng_uniform(&r) - 0.5);
    for (int64_t i = 0; i < o->s.n * o->s.k; i++)
        ((bf16 *)o->w.data)[i] = bf16_from_f32((float)(rng_uniform(&r) - 0.5));
    op_call call = own_call(o);
    return dev_alloc(&o->scratch, kernel_scratch_bytes("cpu", &call), "product", e);
}

static double time_own(operands *o)
{
    op_call call = own_call(o);
    kernel_ctx ctx = {.compute = o->compute, .scratch = o->scratch.data, .scratch_bytes = o->scratch.bytes};
    double begun = clock_seconds();
    return kernel_run("cpu", &ctx, &call, NULL) == TPL_OK ? clock_seconds() - begun : INFINITY;
}

static double time_packed(operands *o)
{
    double begun = clock_seconds();
    return packed_product_run(o->packed) ? clock_seconds() - begun : INFINITY;
}

static void close_operands(operands *o)
{
    packed_product_close(o->packed);
    dev_free(&o->x);
    dev_free(&o->w);
    dev_free(&o->out);
    dev_free(&o->scratch);
}

static tpl_code time_shape(operands *o, double *best, tpl_err *e)
{
    TPL_TRY(open_own(o, e));
    if (packed_product_open(o->s.rows, o->s.n, o->s.k, o->compute, &o->packed, NULL) != TPL_OK)
        o->packed = NULL;
    *best = INFINITY;
    for (int i = 0; i < RUNS; i++) {
        *best = fmin(*best, time_own(o));
        *best = o->packed ? fmin(*best, time_packed(o)) : *best;
    }
    return TPL_OK;
}

static tpl_code run_member(void *arg, int member, tpl_err *e)
{
    job *j = arg;
    tpl_code rc = TPL_OK;
    for (int i = 0; i < j->n && rc == TPL_OK; i++) {
        operands o = {.s = j->shapes[i], .compute = j->compute == DT_BF16 ? DT_BF16 : DT_F32};
        double best = INFINITY;
        rc = time_shape(&o, &best, e);
        j->seconds[member] += (double)o.s.times * best;
        close_operands(&o);
    }
    return rc;
}

tpl_code product_rate(const product_shape *s, int n, tpl_dtype compute, int threads, double *gflops, tpl_err *e)
{
    job j = {.shapes = s, .n = n, .compute = compute, .seconds = tpl_calloc((size_t)threads, sizeof *j.seconds)};
    double flops = 0, slowest = 0;
    crew *c;
    tpl_code rc = crew_create(threads, &c, e);
    if (rc == TPL_OK) {
        rc = crew_run(c, run_member, &j, e);
        crew_destroy(c);
    }
    for (int i = 0; i < n; i++)
        flops += 2. * (double)(s[i].rows * s[i].n * s[i].k * s[i].times);
    for (int i = 0; i < threads; i++)
        slowest = fmax(slowest, j.seconds[i]);
    free(j.seconds);
    *gflops = slowest > 0 && isfinite(slowest) ? 1e-9 * flops * threads / slowest : 0;
    return rc;
}
