/* gpu_trace.c - gpu_trace.h over CUPTI, which is loaded when the first trace begins: a program that never traces needs
 * none, and is not slowed by it. */
#include "device/gpu_trace.h"

#include <assert.h>
#include <dlfcn.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>

#include <cuda_runtime_api.h>
#include <cupti.h>

#include "base/arena.h"
#include "device/trace_join.h"

#define CUPTI_LIST(X)                                                                                                  \
    X(cuptiGetVersion)                                                                                                 \
    X(cuptiGetResultString)                                                                                            \
    X(cuptiSubscribe)                                                                                                  \
    X(cuptiUnsubscribe)                                                                                                \
    X(cuptiEnableCallback)                                                                                             \
    X(cuptiGetGraphNodeId)                                                                                             \
    X(cuptiActivityRegisterCallbacks)                                                                                  \
    X(cuptiActivityEnable)                                                                                             \
    X(cuptiActivityDisable)                                                                                            \
    X(cuptiActivityFlushAll)                                                                                           \
    X(cuptiActivityGetNextRecord)                                                                                      \
    X(cuptiActivityGetNumDroppedRecords)                                                                               \
    X(cuptiActivityPushExternalCorrelationId)                                                                          \
    X(cuptiActivityPopExternalCorrelationId)

/* CUPTI's functions, each by its own name. */
static struct {
#define CUPTI_POINTER(name) __typeof__(name) *name;
    CUPTI_LIST(CUPTI_POINTER)
#undef CUPTI_POINTER
} cupti;

enum { BUFFER_BYTES = 4 << 20, BUFFER_ALIGN = 8 };
static const CUpti_ExternalCorrelationKind of_pass = CUPTI_EXTERNAL_CORRELATION_KIND_CUSTOM0,
                                           of_mark = CUPTI_EXTERNAL_CORRELATION_KIND_CUSTOM1;

static const CUpti_ActivityKind wanted[] = {
    CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL,    CUPTI_ACTIVITY_KIND_MEMCPY,  CUPTI_ACTIVITY_KIND_MEMCPY2, CUPTI_ACTIVITY_KIND_MEMSET,
    CUPTI_ACTIVITY_KIND_EXTERNAL_CORRELATION, CUPTI_ACTIVITY_KIND_RUNTIME, CUPTI_ACTIVITY_KIND_DRIVER,
};
enum { N_WANTED = sizeof wanted / sizeof *wanted };

struct gpu_trace {
    CUpti_SubscriberHandle subscriber;
    bool subscribed, ended;
    int n_enabled;
    trace_log log;
    _Atomic int64_t dropped;
};

/* Records come on a thread of CUPTI's. */
static pthread_mutex_t log_lock = PTHREAD_MUTEX_INITIALIZER;
static gpu_trace *running;
static uint64_t mark_now;
static bool has_mark, has_pass;
static int32_t number, number_last;

static tpl_code fail(tpl_err *e, const char *where, CUptiResult rc)
{
    const char *text = NULL;
    cupti.cuptiGetResultString(rc, &text);
    return tpl_fail(e, rc == CUPTI_ERROR_MULTIPLE_SUBSCRIBERS_NOT_SUPPORTED ? TPL_E_UNSUPPORTED : TPL_E_DEVICE, where,
                    "CUPTI says %s (%d)", text ? text : "?", (int)rc);
}

#define CUPTI_TRY(name, ...)                                                                                           \
    do {                                                                                                               \
        CUptiResult cupti_rc_ = cupti.name(__VA_ARGS__);                                                               \
        if (cupti_rc_ != CUPTI_SUCCESS)                                                                                \
            return fail(e, #name, cupti_rc_);                                                                          \
    } while (0)

/* ---- loading ---- */

static void *open_library(void)
{
    char numbered[64];
    snprintf(numbered, sizeof numbered, "libcupti.so.%d", CUDART_VERSION / 1000);
    const char *const names[] = {numbered, TPL_CUDA_HOME "/extras/CUPTI/lib64/libcupti.so", TPL_CUDA_HOME "/lib64/libcupti.so",
                                 "libcupti.so"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        void *library = dlopen(names[i], RTLD_NOW | RTLD_LOCAL);
        if (library)
            return library;
    }
    return NULL;
}

static tpl_code load(tpl_err *e)
{
    static bool loaded;
    uint32_t version = 0;
    if (loaded)
        return TPL_OK;
    void *library = open_library();
    if (!library)
        return tpl_fail(e, TPL_E_UNSUPPORTED, "--trace", "libcupti.so.%d is not here; it comes with the CUDA toolkit",
                        CUDART_VERSION / 1000);
#define CUPTI_LOAD(name)                                                                                               \
    *(void **)&cupti.name = dlsym(library, #name);                                                                     \
    if (!cupti.name)                                                                                                   \
        return tpl_fail(e, TPL_E_UNSUPPORTED, "--trace", "libcupti.so has no " #name);
    CUPTI_LIST(CUPTI_LOAD)
#undef CUPTI_LOAD
    CUPTI_TRY(cuptiGetVersion, &version);
    if (version < CUPTI_API_VERSION)
        return tpl_fail(e, TPL_E_UNSUPPORTED, "--trace", "libcupti.so has version %u, this build needs %d or newer",
                        version, CUPTI_API_VERSION);
    loaded = true;
    return TPL_OK;
}

/* ---- records ---- */

static void add_kernel(gpu_trace *t, const CUpti_ActivityKernel9 *k)
{
    trace_add_slice(&t->log, (gpu_slice){.kind = GPU_DID_KERNEL,
                                         .name = trace_name(&t->log, k->name),
                                         .begin_ns = (int64_t)k->start,
                                         .end_ns = (int64_t)k->end,
                                         .card = (int32_t)k->deviceId,
                                         .queue = k->streamId,
                                         .correlation = k->correlationId,
                                         .node = k->graphNodeId});
}

/* Copies and fills differ in their type only. */
#define ADD_MEMORY(t, did, r)                                                                                          \
    trace_add_slice(&(t)->log, (gpu_slice){.kind = (did),                                                              \
                                           .name = gpu_did_name(did),                                                  \
                                           .begin_ns = (int64_t)(r)->start,                                            \
                                           .end_ns = (int64_t)(r)->end,                                                \
                                           .card = (int32_t)(r)->deviceId,                                             \
                                           .queue = (r)->streamId,                                                     \
                                           .correlation = (r)->correlationId,                                          \
                                           .node = (r)->graphNodeId,                                                   \
                                           .bytes = (int64_t)(r)->bytes})

static void add_call(gpu_trace *t, const CUpti_ActivityAPI *a)
{
    if (a->kind != CUPTI_ACTIVITY_KIND_RUNTIME || (a->cbid != CUPTI_RUNTIME_TRACE_CBID_cudaGraphLaunch_v10000 &&
                                                   a->cbid != CUPTI_RUNTIME_TRACE_CBID_cudaGraphLaunch_ptsz_v10000))
        return;
    trace_add_slice(&t->log, (gpu_slice){.kind = GPU_DID_REPLAY,
                                         .name = gpu_did_name(GPU_DID_REPLAY),
                                         .begin_ns = (int64_t)a->start,
                                         .end_ns = (int64_t)a->end,
                                         .card = -1,
                                         .queue = a->threadId,
                                         .correlation = a->correlationId});
}

static void add_outer(gpu_trace *t, const CUpti_ActivityExternalCorrelation *x)
{
    if (x->externalKind == of_pass)
        trace_add_pass(&t->log, x->correlationId, (int32_t)x->externalId);
    else if (x->externalKind == of_mark)
        trace_add_mark(&t->log, x->correlationId, x->externalId);
}

static void add_record(gpu_trace *t, const CUpti_Activity *r)
{
    switch (r->kind) {
    case CUPTI_ACTIVITY_KIND_KERNEL:
    case CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL:
        return add_kernel(t, (const void *)r);
    case CUPTI_ACTIVITY_KIND_MEMCPY:
        ADD_MEMORY(t, GPU_DID_COPY, (const CUpti_ActivityMemcpy5 *)(const void *)r);
        return;
    case CUPTI_ACTIVITY_KIND_MEMCPY2:
        ADD_MEMORY(t, GPU_DID_COPY, (const CUpti_ActivityMemcpyPtoP4 *)(const void *)r);
        return;
    case CUPTI_ACTIVITY_KIND_MEMSET:
        ADD_MEMORY(t, GPU_DID_FILL, (const CUpti_ActivityMemset4 *)(const void *)r);
        return;
    case CUPTI_ACTIVITY_KIND_EXTERNAL_CORRELATION:
        return add_outer(t, (const void *)r);
    case CUPTI_ACTIVITY_KIND_RUNTIME:
        return add_call(t, (const void *)r);
    default:
        return;
    }
}

static void CUPTIAPI give_buffer(uint8_t **buffer, size_t *bytes, size_t *max_records)
{
    *buffer = aligned_alloc(BUFFER_ALIGN, BUFFER_BYTES);
    *bytes = *buffer ? BUFFER_BYTES : 0;
    *max_records = 0;
}

static void CUPTIAPI take_buffer(CUcontext context, uint32_t stream, uint8_t *buffer, size_t bytes, size_t valid)
{
    CUpti_Activity *record = NULL;
    size_t dropped = 0;
    pthread_mutex_lock(&log_lock);
    if (running) {
        while (valid && cupti.cuptiActivityGetNextRecord(buffer, valid, &record) == CUPTI_SUCCESS)
            add_record(running, record);
        if (cupti.cuptiActivityGetNumDroppedRecords(context, stream, &dropped) == CUPTI_SUCCESS)
            running->dropped += (int64_t)dropped;
    }
    pthread_mutex_unlock(&log_lock);
    free(buffer);
}

/* ---- recorded nodes ---- */

static void CUPTIAPI on_node(void *user, CUpti_CallbackDomain domain, CUpti_CallbackId id, const void *data)
{
    gpu_trace *t = user;
    uint64_t node, original;
    if (domain != CUPTI_CB_DOMAIN_RESOURCE)
        return;
    const CUpti_GraphData *g = ((const CUpti_ResourceData *)data)->resourceDescriptor;
    if (cupti.cuptiGetGraphNodeId(g->node, &node) != CUPTI_SUCCESS)
        return;
    pthread_mutex_lock(&log_lock);
    if (id == CUPTI_CBID_RESOURCE_GRAPHNODE_CREATED)
        trace_add_node(&t->log, node, mark_now);
    else if (cupti.cuptiGetGraphNodeId(g->originalNode, &original) == CUPTI_SUCCESS)
        trace_add_clone(&t->log, node, original);
    pthread_mutex_unlock(&log_lock);
}

void gpu_trace_hold(void *node, gpu_did did)
{
    uint64_t id;
    if (!running || cupti.cuptiGetGraphNodeId(node, &id) != CUPTI_SUCCESS)
        return;
    pthread_mutex_lock(&log_lock);
    trace_add_held(&running->log, id, did);
    pthread_mutex_unlock(&log_lock);
}

/* ---- life ---- */

static tpl_code start(gpu_trace *t, tpl_err *e)
{
    CUPTI_TRY(cuptiSubscribe, &t->subscriber, on_node, t);
    t->subscribed = true;
    CUPTI_TRY(cuptiEnableCallback, 1, t->subscriber, CUPTI_CB_DOMAIN_RESOURCE, CUPTI_CBID_RESOURCE_GRAPHNODE_CREATED);
    CUPTI_TRY(cuptiEnableCallback, 1, t->subscriber, CUPTI_CB_DOMAIN_RESOURCE, CUPTI_CBID_RESOURCE_GRAPHNODE_CLONED);
    CUPTI_TRY(cuptiActivityRegisterCallbacks, give_buffer, take_buffer);
    for (; t->n_enabled < N_WANTED; t->n_enabled++)
        CUPTI_TRY(cuptiActivityEnable, wanted[t->n_enabled]);
    return TPL_OK;
}

static void stop(gpu_trace *t)
{
    gpu_trace_mark(0);
    gpu_trace_pass(-1);
    cupti.cuptiActivityFlushAll(CUPTI_ACTIVITY_FLAG_FLUSH_FORCED);
    while (t->n_enabled > 0)
        cupti.cuptiActivityDisable(wanted[--t->n_enabled]);
    if (t->subscribed)
        cupti.cuptiUnsubscribe(t->subscriber);
    pthread_mutex_lock(&log_lock);
    running = NULL;
    pthread_mutex_unlock(&log_lock);
    number = 0;
    t->ended = true;
}

tpl_code gpu_trace_check(tpl_err *e)
{
    return load(e);
}

bool gpu_trace_has_run(void)
{
    return number_last > 0;
}

tpl_code gpu_trace_begin(gpu_trace **out, tpl_err *e)
{
    assert(!running);
    TPL_TRY(load(e));
    gpu_trace *t = tpl_calloc(1, sizeof *t);
    running = t;
    mark_now = 0;
    number = ++number_last;
    tpl_code rc = start(t, e);
    if (rc == TPL_OK)
        *out = t;
    else
        gpu_trace_destroy(t);
    return rc;
}

tpl_code gpu_trace_end(gpu_trace *t, tpl_err *e)
{
    if (t->ended)
        return TPL_OK;
    gpu_trace_mark(0);
    gpu_trace_pass(-1);
    CUPTI_TRY(cuptiActivityFlushAll, CUPTI_ACTIVITY_FLAG_FLUSH_FORCED);
    stop(t);
    trace_join(&t->log);
    return TPL_OK;
}

void gpu_trace_destroy(gpu_trace *t)
{
    if (!t)
        return;
    if (!t->ended)
        stop(t);
    trace_log_fini(&t->log);
    free(t);
}

const gpu_slice *gpu_trace_slices(const gpu_trace *t, int64_t *n)
{
    *n = (int64_t)t->log.slices.n;
    return t->log.slices.items;
}

int64_t gpu_trace_dropped(const gpu_trace *t)
{
    return t->dropped;
}

int64_t gpu_trace_recorded(const gpu_trace *t, uint64_t mark, gpu_did did)
{
    return trace_recorded(&t->log, mark, did);
}

/* ---- marks ---- */

static void change(CUpti_ExternalCorrelationKind kind, bool *has, bool set, uint64_t id)
{
    uint64_t last;
    if (*has)
        cupti.cuptiActivityPopExternalCorrelationId(kind, &last);
    if (set)
        cupti.cuptiActivityPushExternalCorrelationId(kind, id);
    *has = set;
}

void gpu_trace_mark(uint64_t mark)
{
    if (!running)
        return;
    mark_now = mark;
    change(of_mark, &has_mark, mark != 0, mark);
}

void gpu_trace_pass(int32_t pass)
{
    if (running)
        change(of_pass, &has_pass, pass >= 0, (uint64_t)pass);
}

int32_t gpu_trace_number(void)
{
    return number;
}
