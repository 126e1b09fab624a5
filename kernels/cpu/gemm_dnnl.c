/* oneDNN's products. Making one costs more than a small product takes, so each thread keeps those it made last. */
#include <oneapi/dnnl/dnnl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/arena.h"
#include "kernels/cpu/gemm.h"

enum { N_KEPT = 32 };

typedef struct {
    gemm_shape shape;
    dnnl_primitive_t run;
    dnnl_memory_t a, b, c;
} product;

typedef struct {
    dnnl_engine_t engine;
    dnnl_stream_t stream;
    product kept[N_KEPT]; /* run NULL: free */
    int next;             /* the slot to reuse */
} product_cache;

static pthread_key_t cache_key;
static pthread_once_t cache_once = PTHREAD_ONCE_INIT;

static void product_fini(product *p)
{
    dnnl_primitive_destroy(p->run);
    dnnl_memory_destroy(p->a);
    dnnl_memory_destroy(p->b);
    dnnl_memory_destroy(p->c);
    memset(p, 0, sizeof *p);
}

static void cache_destroy(void *at)
{
    product_cache *cache = at;
    for (int i = 0; i < N_KEPT; i++)
        product_fini(&cache->kept[i]);
    dnnl_stream_destroy(cache->stream);
    dnnl_engine_destroy(cache->engine);
    free(cache);
}

static void cache_make_key(void)
{
    pthread_key_create(&cache_key, cache_destroy);
}

/* This thread's cache; NULL if oneDNN has no CPU engine. */
static product_cache *cache_get(void)
{
    pthread_once(&cache_once, cache_make_key);
    product_cache *cache = pthread_getspecific(cache_key);
    if (cache)
        return cache;
    cache = tpl_calloc(1, sizeof *cache);
    if (dnnl_engine_create(&cache->engine, dnnl_cpu, 0) != dnnl_success ||
        dnnl_stream_create(&cache->stream, cache->engine, dnnl_stream_default_flags) != dnnl_success) {
        cache_destroy(cache);
        return NULL;
    }
    pthread_setspecific(cache_key, cache);
    return cache;
}

static bool shape_equal(const gemm_shape *a, const gemm_shape *b)
{
    return a->m == b->m && a->n == b->n && a->k == b->k && a->lda == b->lda && a->ldb == b->ldb && a->ldc == b->ldc &&
           a->accumulate == b->accumulate && a->plain == b->plain;
}

static dnnl_memory_desc_t describe(dnnl_data_type_t type, int64_t rows, int64_t cols, int64_t row_stride,
                                   int64_t col_stride)
{
    dnnl_memory_desc_t d;
    dnnl_dims_t dims = {rows, cols}, strides = {row_stride, col_stride};
    memset(&d, 0, sizeof d);
    dnnl_memory_desc_init_by_strides(&d, 2, dims, type, strides);
    return d;
}

static dnnl_status_t make_primitive(dnnl_engine_t engine, const dnnl_matmul_desc_t *desc, bool accumulate,
                                    dnnl_primitive_t *out)
{
    dnnl_primitive_attr_t attr = NULL;
    dnnl_post_ops_t after = NULL;
    dnnl_primitive_desc_t pd = NULL;
    dnnl_status_t status = dnnl_primitive_attr_create(&attr);
    if (status == dnnl_success && accumulate) {
        status = dnnl_post_ops_create(&after);
        if (status == dnnl_success)
            status = dnnl_post_ops_append_sum(after, 1.f);
        if (status == dnnl_success)
            status = dnnl_primitive_attr_set_post_ops(attr, after);
    }
    if (status == dnnl_success)
        status = dnnl_primitive_desc_create(&pd, desc, attr, engine, NULL);
    if (status == dnnl_success)
        status = dnnl_primitive_create(out, pd);
    dnnl_primitive_desc_destroy(pd);
    dnnl_post_ops_destroy(after);
    dnnl_primitive_attr_destroy(attr);
    return status;
}

static dnnl_status_t product_init(product *p, dnnl_engine_t engine, const gemm_shape *s)
{
    dnnl_memory_desc_t a = describe(dnnl_bf16, s->m, s->k, s->lda, 1), b = describe(dnnl_bf16, s->k, s->n, s->plain ? s->ldb : 1, s->plain ? 1 : s->ldb);
    dnnl_memory_desc_t c = describe(dnnl_f32, s->m, s->n, s->ldc, 1);
    dnnl_matmul_desc_t desc;
    dnnl_status_t status = dnnl_matmul_desc_init(&desc, &a, &b, NULL, &c);
    if (status == dnnl_success)
        status = make_primitive(engine, &desc, s->accumulate, &p->run);
    if (status == dnnl_success)
        status = dnnl_memory_create(&p->a, &a, engine, DNNL_MEMORY_NONE);
    if (status == dnnl_success)
        status = dnnl_memory_create(&p->b, &b, engine, DNNL_MEMORY_NONE);
    if (status == dnnl_success)
        status = dnnl_memory_create(&p->c, &c, engine, DNNL_MEMORY_NONE);
    p->shape = *s;
    if (status != dnnl_success)
        product_fini(p);
    return status;
}

static dnnl_status_t cache_find(product_cache *cache, const gemm_shape *s, product **out)
{
    for (int i = 0; i < N_KEPT; i++)
        if (cache->kept[i].run && shape_equal(&cache->kept[i].shape, s)) {
            *out = &cache->kept[i];
            return dnnl_success;
        }
    *out = &cache->kept[cache->next];
    cache->next = (cache->next + 1) % N_KEPT;
    product_fini(*out);
    return product_init(*out, cache->engine, s);
}

static tpl_code fail(const char *what, const gemm_shape *s, dnnl_status_t status, tpl_err *e)
{
    return tpl_fail(e, TPL_E_DEVICE, what, "oneDNN refused a product of [%lld, %lld] and [%lld, %lld]: status %d",
                    (long long)s->m, (long long)s->k, (long long)s->n, (long long)s->k, (int)status);
}

tpl_code gemm_bf16(const gemm_shape *s, const bf16 *a, const bf16 *b, float *c, tpl_err *e)
{
    product_cache *cache = cache_get();
    product *p = NULL;
    dnnl_status_t status = cache ? cache_find(cache, s, &p) : dnnl_unimplemented;
    if (status != dnnl_success)
        return fail("matmul bf16", s, status, e);
    dnnl_memory_set_data_handle(p->a, (void *)(uintptr_t)a);
    dnnl_memory_set_data_handle(p->b, (void *)(uintptr_t)b);
    dnnl_memory_set_data_handle(p->c, c);
    dnnl_exec_arg_t args[] = {{DNNL_ARG_SRC, p->a}, {DNNL_ARG_WEIGHTS, p->b}, {DNNL_ARG_DST, p->c}};
    status = dnnl_primitive_execute(p->run, cache->stream, 3, args);
    if (status == dnnl_success)
        status = dnnl_stream_wait(cache->stream);
    return status == dnnl_success ? TPL_OK : fail("matmul bf16", s, status, e);
}

static pthread_once_t probe_once = PTHREAD_ONCE_INIT;
static bool probe_result;

static void probe_bf16(void)
{
    product_cache *cache = cache_get();
    gemm_shape s = {.m = 8, .n = 8, .k = 8, .lda = 8, .ldb = 8, .ldc = 8};
    product *p;
    probe_result = cache && cache_find(cache, &s, &p) == dnnl_success;
}

bool gemm_has_bf16(void)
{
    pthread_once(&probe_once, probe_bf16);
    return probe_result;
}

tpl_code gemm_f32(const gemm_shape *s, const float *a, const float *b, float *c, tpl_err *e)
{
    dnnl_status_t status =
        dnnl_sgemm('N', 'T', s->m, s->n, s->k, 1.f, a, s->lda, b, s->ldb, s->accumulate ? 1.f : 0.f, c, s->ldc);
    return status == dnnl_success ? TPL_OK : fail("matmul f32", s, status, e);
}
