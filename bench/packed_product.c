#include "bench/packed_product.h"

#include <stdlib.h>
#include <string.h>

#include <oneapi/dnnl/dnnl.h>

#include "base/arena.h"

struct packed_product {
    dnnl_engine_t engine;
    dnnl_stream_t stream;
    dnnl_primitive_desc_t desc;
    dnnl_primitive_t run;
    dnnl_memory_t x, w, out;
};

static dnnl_status_t describe(packed_product *p, int64_t rows, int64_t n, int64_t k, dnnl_data_type_t type)
{
    dnnl_dims_t x = {rows, k}, w = {k, n}, out = {rows, n};
    dnnl_memory_desc_t a, b, c;
    dnnl_matmul_desc_t d;
    dnnl_memory_desc_init_by_tag(&a, 2, x, type, dnnl_ab);
    dnnl_memory_desc_init_by_tag(&b, 2, w, type, dnnl_format_tag_any);
    dnnl_memory_desc_init_by_tag(&c, 2, out, dnnl_f32, dnnl_ab);
    dnnl_status_t status = dnnl_matmul_desc_init(&d, &a, &b, NULL, &c);
    return status == dnnl_success ? dnnl_primitive_desc_create(&p->desc, &d, NULL, p->engine, NULL) : status;
}

/* The memory that the product wants for one operand; oneDNN owns its bytes. Small numbers, so that none is denormal. */
static dnnl_status_t make_operand(packed_product *p, dnnl_query_t which, dnnl_memory_t *out)
{
    const dnnl_memory_desc_t *d = dnnl_primitive_desc_query_md(p->desc, which, 0);
    void *data = NULL;
    dnnl_status_t status = d ? dnnl_memory_create(out, d, p->engine, DNNL_MEMORY_ALLOCATE) : dnnl_unimplemented;
    if (status == dnnl_success)
        status = dnnl_memory_get_data_handle(*out, &data);
    if (status == dnnl_success)
        memset(data, 0x3c, dnnl_memory_desc_get_size(d)); /* 0x3c3c is 0.0115 in bf16 and 0x3c3c3c3c in f32 */
    return status;
}

tpl_code packed_product_open(int64_t rows, int64_t n, int64_t k, tpl_dtype type, packed_product **out, tpl_err *e)
{
    packed_product *p = tpl_calloc(1, sizeof *p);
    dnnl_status_t status = dnnl_engine_create(&p->engine, dnnl_cpu, 0);
    if (status == dnnl_success)
        status = dnnl_stream_create(&p->stream, p->engine, dnnl_stream_default_flags);
    if (status == dnnl_success)
        status = describe(p, rows, n, k, type == DT_BF16 ? dnnl_bf16 : dnnl_f32);
    if (status == dnnl_success)
        status = make_operand(p, dnnl_query_src_md, &p->x);
    if (status == dnnl_success)
        status = make_operand(p, dnnl_query_weights_md, &p->w);
    if (status == dnnl_success)
        status = make_operand(p, dnnl_query_dst_md, &p->out);
    if (status == dnnl_success)
        status = dnnl_primitive_create(&p->run, p->desc);
    if (status == dnnl_success) {
        *out = p;
        return TPL_OK;
    }
    packed_product_close(p);
    return tpl_fail(e, TPL_E_UNSUPPORTED, "oneDNN", "offers no product of this type: status %d", (int)status);
}

void packed_product_close(packed_product *p)
{
    if (!p)
        return;
    dnnl_primitive_destroy(p->run);
    dnnl_primitive_desc_destroy(p->desc);
    dnnl_memory_destroy(p->x);
    dnnl_memory_destroy(p->w);
    dnnl_memory_destroy(p->out);
    dnnl_stream_destroy(p->stream);
    dnnl_engine_destroy(p->engine);
    free(p);
}

bool packed_product_run(packed_product *p)
{
    dnnl_exec_arg_t args[] = {{DNNL_ARG_SRC, p->x}, {DNNL_ARG_WEIGHTS, p->w}, {DNNL_ARG_DST, p->out}};
    return dnnl_primitive_execute(p->run, p->stream, 3, args) == dnnl_success &&
           dnnl_stream_wait(p->stream) == dnnl_success;
}
