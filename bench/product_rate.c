#include "bench/product_rate.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include <oneapi/dnnl/dnnl.h>

#include "base/arena.h"
#include "base/clock.h"
#include "base/rng.h"
#include "bench/crew.h"
#include "device/memory.h"
#include "kernels/kernels.h"

enum { RUNS = 5 };

/* One thread's operands of one shape. */
typedef struct {
    product_shape s;
    tpl_dtype compute;
    dev_buf x, w, out, scratch;
    dnnl_engine_t engine;
    dnnl_stream_t stream;
    dnnl_primitive_desc_t desc;
    dnnl_primitive_t run;
    dnnl_memory_t a, b, c;
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

/* ---- the library ---- */

static dnnl_status_t describe(operands *o)
{
    dnnl_data_type_t type = o->compute == DT_BF16 ? dnnl_bf16 : dnnl_f32;
    dnnl_dims_t x = {o->s.rows, o->s.k}, w = {o->s.k, o->s.n}, out = {o->s.rows, o->s.n};
    dnnl_memory_desc_t a, b, c;
    dnnl_matmul_desc_t d;
    dnnl_memory_desc_init_by_tag(&a, 2, x, type, dnnl_ab);
    dnnl_memory_desc_init_by_tag(&b, 2, w, type, dnnl_format_tag_any);
    dnnl_memory_desc_init_by_tag(&c, 2, out, dnnl_f32, dnnl_ab);
    dnnl_status_t status = dnnl_matmul_desc_init(&d, &a, &b, NULL, &c);
    return status == dnnl_success ? dnnl_primitive_desc_create(&o->desc, &d, NULL, o->engine, NULL) : status;
}

/* Small numbers, so that none is denormal. */
static dnnl_status_t make_operand(operands *o, dnnl_query_t which, dnnl_memory_t *out)
{
    const dnnl_memory_desc_t *d = dnnl_primitive_desc_query_md(o->desc, which, 0);
    void *data = NULL;
    dnnl_status_t status = d ? dnnl_memory_create(out, d, o->engine, DNNL_MEMORY_ALLOCATE) : dnnl_unimplemented;
    if (status == dnnl_success)
        status = dnnl_memory_get_data_handle(*out, &data);
    if (status == dnnl_success)
        memset(data, 0x3c, dnnl_memory_desc_get_size(d));
    return status;
}

static dnnl_status_t open_packed(operands *o)
{
    dnnl_status_t status = dnnl_engine_create(&o->engine, dnnl_cpu, 0);
    if (status == dnnl_success)
        status = dnnl_stream_create(&o->stream, o->engine, dnnl_stream_default_flags);
    if (status == dnnl_success)
        status = describe(o);
    if (status == dnnl_success)
        status = make_operand(o, dnnl_query_src_md, &o->a);
    if (status == dnnl_success)
        status = make_operand(o, dnnl_query_weights_md, &o->b);
    if (status == dnnl_success)
        status = make_operand(o, dnnl_query_dst_md, &o->c);
    return status == dnnl_success ? dnnl_primitive_create(&o->run, o->desc) : status;
}

static double time_packed(operands *o)
{
    dnnl_exec_arg_t args[] = {{DNNL_ARG_SRC, o->a}, {DNNL_ARG_WEIGHTS, o->b}, {DNNL_ARG_DST, o->c}};
    double begun = clock_seconds();
    dnnl_status_t status = dnnl_primitive_execute(o->run, o->stream, 3, args);
    if (status == dnnl_success)
        status = dnnl_stream_wait(o->stream);
    return status == dnnl_success ? clock_seconds() - begun : INFINITY;
}

static void close_operands(operands *o)
{
    dnnl_primitive_destroy(o->run);
    dnnl_primitive_desc_destroy(o->desc);
    dnnl_memory_destroy(o->a);
    dnnl_memory_destroy(o->b);
    dnnl_memory_destroy(o->c);
    dnnl_stream_destroy(o->stream);
    dnnl_engine_destroy(o->engine);
    dev_free(&o->x);
    dev_free(&o->w);
    dev_free(&o->out);
    dev_free(&o->scratch);
}

static tpl_code time_shape(operands *o, double *best, tpl_err *e)
{
    TPL_TRY(open_own(o, e));
    bool packed = open_packed(o) == dnnl_success;
    *best = INFINITY;
    for (int i = 0; i < RUNS; i++) {
        *best = fmin(*best, time_own(o));
        *best = packed ? fmin(*best, time_packed(o)) : *best;
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
