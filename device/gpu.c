#include "device/gpu.h"

#include <stdio.h>
#include <stdlib.h>

#include <cublas_v2.h>
#include <cuda_runtime_api.h>

#include "base/arena.h"
#include "device/gpu_judge.h"
#include "device/gpu_trace.h"

/* cuBLAS takes its work space from here, so that a recorded walk allocates nothing. NVIDIA's advice for Hopper. */
enum { BLAS_WORKSPACE = 32 << 20 };

struct gpu {
    gpu_facts facts;
};

struct gpu_queue {
    gpu *card;
    cudaStream_t stream;
    cublasHandle_t blas;
    void *workspace; /* cuBLAS's, then the counts */
};

struct gpu_event {
    cudaEvent_t event;
};

struct gpu_graph {
    cudaGraphExec_t exec;
    int n_nodes;
};

static tpl_code fail(tpl_err *e, const char *where, cudaError_t rc)
{
    cudaGetLastError(); /* the failure is reported here and must not show up again */
    return tpl_fail(e, rc == cudaErrorMemoryAllocation ? TPL_E_MEMORY : TPL_E_DEVICE, where, "%s: %s",
                    cudaGetErrorName(rc), cudaGetErrorString(rc));
}

#define CUDA_TRY(call)                                                                                                 \
    do {                                                                                                               \
        cudaError_t cuda_rc_ = (call);                                                                                 \
        if (cuda_rc_ != cudaSuccess)                                                                                   \
            return fail(e, #call, cuda_rc_);                                                                           \
    } while (0)

/* ---- the card ---- */

bool gpu_is_built(void)
{
    return true;
}

int gpu_count(void)
{
    int n = 0;
    if (cudaGetDeviceCount(&n) != cudaSuccess) {
        cudaGetLastError();
        return 0;
    }
    return n;
}

static tpl_code read_facts(int ordinal, gpu_facts *f, tpl_err *e)
{
    struct cudaDeviceProp p;
    CUDA_TRY(cudaGetDeviceProperties(&p, ordinal));
    snprintf(f->name, sizeof f->name, "%s", p.name);
    CUDA_TRY(cudaDeviceGetPCIBusId(f->bus_id, sizeof f->bus_id, ordinal));
    f->ordinal = ordinal;
    f->major = p.major;
    f->minor = p.minor;
    f->n_sm = p.multiProcessorCount;
    f->memory_bytes = (int64_t)p.totalGlobalMem;
    f->l2_bytes = p.l2CacheSize;
    f->block_shared_bytes = (int32_t)p.sharedMemPerBlockOptin;
    CUDA_TRY(cudaDeviceGetAttribute(&f->clock_khz, cudaDevAttrClockRate, ordinal));
    CUDA_TRY(cudaDriverGetVersion(&f->driver));
    CUDA_TRY(cudaRuntimeGetVersion(&f->runtime));
    return TPL_OK;
}

/* The reason behind a count of cards that failed: no driver, or one too old, or what CUDA says. */
static tpl_code fail_to_count(cudaError_t rc, tpl_err *e)
{
    int driver = 0, runtime = 0;
    cudaGetLastError();
    if (rc == cudaErrorNoDevice)
        return tpl_fail(e, TPL_E_DEVICE, "card", "none is here, or none may be seen");
    if (cudaDriverGetVersion(&driver) == cudaSuccess && cudaRuntimeGetVersion(&runtime) == cudaSuccess)
        TPL_TRY(gpu_judge_driver(driver, runtime, e));
    return fail(e, "card", rc);
}

tpl_code gpu_open(int ordinal, gpu **out, tpl_err *e)
{
    int n = 0;
    cudaError_t rc = cudaGetDeviceCount(&n);
    if (rc != cudaSuccess)
        return fail_to_count(rc, e);
    if (ordinal < 0 || ordinal >= n)
        return tpl_fail(e, TPL_E_DEVICE, "card", "number %d was asked for, %d are here", ordinal, n);
    gpu_facts f = {0};
    TPL_TRY(read_facts(ordinal, &f, e));
    TPL_TRY(gpu_judge(&f, e));
    CUDA_TRY(cudaSetDevice(ordinal));
    gpu *g = tpl_calloc(1, sizeof *g);
    g->facts = f;
    *out = g;
    return TPL_OK;
}

void gpu_close(gpu *g)
{
    free(g);
}

const gpu_facts *gpu_get_facts(const gpu *g)
{
    return &g->facts;
}

tpl_code gpu_use(gpu *g, tpl_err *e)
{
    CUDA_TRY(cudaSetDevice(g->facts.ordinal));
    return TPL_OK;
}

tpl_code gpu_reach(gpu *from, gpu *to, tpl_err *e)
{
    int can = 0;
    if (from->facts.ordinal == to->facts.ordinal)
        return TPL_OK;
    CUDA_TRY(cudaDeviceCanAccessPeer(&can, from->facts.ordinal, to->facts.ordinal));
    if (!can)
        return tpl_fail(e, TPL_E_UNSUPPORTED, from->facts.name, "card %d cannot reach the memory of card %d",
                        from->facts.ordinal, to->facts.ordinal);
    CUDA_TRY(cudaSetDevice(from->facts.ordinal));
    cudaError_t rc = cudaDeviceEnablePeerAccess(to->facts.ordinal, 0);
    if (rc == cudaErrorPeerAccessAlreadyEnabled) {
        cudaGetLastError();
        return TPL_OK;
    }
    return rc == cudaSuccess ? TPL_OK : fail(e, "peer access", rc);
}

tpl_code gpu_free_bytes(gpu *g, int64_t *out, tpl_err *e)
{
    size_t left = 0, total = 0;
    CUDA_TRY(cudaSetDevice(g->facts.ordinal));
    CUDA_TRY(cudaMemGetInfo(&left, &total));
    *out = (int64_t)left;
    return TPL_OK;
}

/* ---- memory ---- */

tpl_code gpu_alloc(gpu *g, dev_buf *b, size_t bytes, const char *what, tpl_err *e)
{
    *b = (dev_buf){0};
    if (bytes == 0)
        return TPL_OK;
    CUDA_TRY(cudaSetDevice(g->facts.ordinal));
    cudaError_t rc = cudaMalloc(&b->data, bytes);
    if (rc != cudaSuccess) {
        size_t left = 0, total = 0;
        cudaGetLastError();
        cudaMemGetInfo(&left, &total);
        b->data = NULL;
        return tpl_fail(e, rc == cudaErrorMemoryAllocation ? TPL_E_MEMORY : TPL_E_DEVICE, what,
                        "needs %.3f GiB on the card, %.3f of %.3f GiB are free (%s)", (double)bytes / 0x1p30,
                        (double)left / 0x1p30, (double)total / 0x1p30, cudaGetErrorName(rc));
    }
    b->bytes = bytes;
    return TPL_OK;
}

void gpu_free(gpu *g, dev_buf *b)
{
    if (b->data)
        cudaFree(b->data);
    *b = (dev_buf){0};
}

tpl_code gpu_alloc_pinned(gpu *g, dev_buf *b, size_t bytes, const char *what, tpl_err *e)
{
    *b = (dev_buf){0};
    if (bytes == 0)
        return TPL_OK;
    cudaError_t rc = cudaMallocHost(&b->data, bytes);
    if (rc != cudaSuccess) {
        cudaGetLastError();
        b->data = NULL;
        return tpl_fail(e, TPL_E_MEMORY, what, "needs %.3f GiB of pinned host memory (%s)", (double)bytes / 0x1p30,
                        cudaGetErrorName(rc));
    }
    b->bytes = bytes;
    return TPL_OK;
}

void gpu_free_pinned(gpu *g, dev_buf *b)
{
    if (b->data)
        cudaFreeHost(b->data);
    *b = (dev_buf){0};
}

/* ---- queues ---- */

unsigned *gpu_queue_counts(gpu_queue *q)
{
    return (unsigned *)(void *)((char *)q->workspace + BLAS_WORKSPACE);
}

static tpl_code open_queue(gpu_queue *q, tpl_err *e)
{
    CUDA_TRY(cudaSetDevice(q->card->facts.ordinal));
    CUDA_TRY(cudaStreamCreateWithFlags(&q->stream, cudaStreamNonBlocking));
    CUDA_TRY(cudaMalloc(&q->workspace, BLAS_WORKSPACE + GPU_QUEUE_COUNTS * sizeof(unsigned)));
    CUDA_TRY(cudaMemsetAsync(gpu_queue_counts(q), 0, GPU_QUEUE_COUNTS * sizeof(unsigned), q->stream));
    cublasStatus_t rc = cublasCreate(&q->blas);
    if (rc == CUBLAS_STATUS_SUCCESS)
        rc = cublasSetStream(q->blas, q->stream);
    if (rc == CUBLAS_STATUS_SUCCESS)
        rc = cublasSetWorkspace(q->blas, q->workspace, BLAS_WORKSPACE);
    if (rc != CUBLAS_STATUS_SUCCESS)
        return tpl_fail(e, TPL_E_DEVICE, "cuBLAS", "%s", cublasGetStatusString(rc));
    return TPL_OK;
}

tpl_code gpu_queue_create(gpu *g, gpu_queue **out, tpl_err *e)
{
    gpu_queue *q = tpl_calloc(1, sizeof *q);
    q->card = g;
    tpl_code rc = open_queue(q, e);
    if (rc == TPL_OK)
        *out = q;
    else
        gpu_queue_destroy(q);
    return rc;
}

void gpu_queue_destroy(gpu_queue *q)
{
    if (!q)
        return;
    if (q->stream)
        cudaStreamSynchronize(q->stream);
    if (q->blas)
        cublasDestroy(q->blas);
    if (q->workspace)
        cudaFree(q->workspace);
    if (q->stream)
        cudaStreamDestroy(q->stream);
    free(q);
}

gpu *gpu_queue_card(gpu_queue *q)
{
    return q->card;
}

tpl_code gpu_copy(gpu_queue *q, void *to, const void *from, size_t bytes, tpl_err *e)
{
    if (bytes)
        CUDA_TRY(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, q->stream));
    return TPL_OK;
}

tpl_code gpu_copy_pieces(gpu_queue *q, void *to, size_t to_step, const void *from, size_t from_step, size_t bytes, int n,
                         tpl_err *e)
{
    if (bytes && n)
        CUDA_TRY(cudaMemcpy2DAsync(to, to_step, from, from_step, bytes, (size_t)n, cudaMemcpyDefault, q->stream));
    return TPL_OK;
}

tpl_code gpu_copy_now(gpu_queue *q, void *to, const void *from, size_t bytes, tpl_err *e)
{
    TPL_TRY(gpu_copy(q, to, from, bytes, e));
    return gpu_queue_wait(q, e);
}

tpl_code gpu_fill(gpu_queue *q, void *to, int byte, size_t bytes, tpl_err *e)
{
    if (bytes)
        CUDA_TRY(cudaMemsetAsync(to, byte, bytes, q->stream));
    return TPL_OK;
}

tpl_code gpu_queue_wait(gpu_queue *q, tpl_err *e)
{
    CUDA_TRY(cudaStreamSynchronize(q->stream));
    return TPL_OK;
}

void *gpu_queue_stream(gpu_queue *q)
{
    return q->stream;
}

void *gpu_queue_blas(gpu_queue *q)
{
    return q->blas;
}

/* ---- events ---- */

tpl_code gpu_event_create(gpu *g, bool timed, gpu_event **out, tpl_err *e)
{
    cudaEvent_t event;
    CUDA_TRY(cudaSetDevice(g->facts.ordinal));
    CUDA_TRY(cudaEventCreateWithFlags(&event, timed ? cudaEventDefault : cudaEventDisableTiming));
    *out = tpl_calloc(1, sizeof **out);
    (*out)->event = event;
    return TPL_OK;
}

void gpu_event_destroy(gpu_event *v)
{
    if (!v)
        return;
    cudaEventDestroy(v->event);
    free(v);
}

tpl_code gpu_event_record(gpu_event *v, gpu_queue *q, tpl_err *e)
{
    CUDA_TRY(cudaEventRecord(v->event, q->stream));
    return TPL_OK;
}

tpl_code gpu_event_stamp(gpu_event *v, gpu_queue *q, tpl_err *e)
{
    enum cudaStreamCaptureStatus recording;
    CUDA_TRY(cudaStreamIsCapturing(q->stream, &recording));
    unsigned flags = recording == cudaStreamCaptureStatusActive ? cudaEventRecordExternal : cudaEventRecordDefault;
    CUDA_TRY(cudaEventRecordWithFlags(v->event, q->stream, flags));
    return TPL_OK;
}

tpl_code gpu_event_join(gpu_event *v, gpu_queue *q, tpl_err *e)
{
    CUDA_TRY(cudaStreamWaitEvent(q->stream, v->event, 0));
    return TPL_OK;
}

tpl_code gpu_event_elapsed_us(gpu_event *from, gpu_event *to, double *us, tpl_err *e)
{
    float ms = 0;
    CUDA_TRY(cudaEventElapsedTime(&ms, from->event, to->event));
    *us = 1e3 * ms;
    return TPL_OK;
}

/* ---- recorded walks ---- */

tpl_code gpu_record_begin(gpu_queue *q, tpl_err *e)
{
    CUDA_TRY(cudaStreamBeginCapture(q->stream, cudaStreamCaptureModeThreadLocal));
    return TPL_OK;
}

/* What a replay does, for a trace: by what the graph holds, not by what was made while it was recorded. */
static tpl_code tell_trace(cudaGraph_t graph, size_t n, tpl_err *e)
{
    cudaGraphNode_t *nodes = tpl_calloc(n, sizeof *nodes);
    cudaError_t rc = cudaGraphGetNodes(graph, nodes, &n);
    for (size_t i = 0; i < n && rc == cudaSuccess; i++) {
        enum cudaGraphNodeType type = cudaGraphNodeTypeEmpty;
        rc = cudaGraphNodeGetType(nodes[i], &type);
        if (type == cudaGraphNodeTypeKernel)
            gpu_trace_hold(nodes[i], GPU_DID_KERNEL);
        else if (type == cudaGraphNodeTypeMemcpy)
            gpu_trace_hold(nodes[i], GPU_DID_COPY);
        else if (type == cudaGraphNodeTypeMemset)
            gpu_trace_hold(nodes[i], GPU_DID_FILL);
    }
    free(nodes);
    CUDA_TRY(rc);
    return TPL_OK;
}

static tpl_code instantiate(cudaGraph_t graph, gpu_graph *r, tpl_err *e)
{
    size_t n = 0;
    CUDA_TRY(cudaGraphGetNodes(graph, NULL, &n));
    if (gpu_trace_number())
        TPL_TRY(tell_trace(graph, n, e));
    CUDA_TRY(cudaGraphInstantiate(&r->exec, graph, 0));
    r->n_nodes = (int)n;
    return TPL_OK;
}

tpl_code gpu_record_end(gpu_queue *q, gpu_graph **out, tpl_err *e)
{
    cudaGraph_t graph = NULL;
    CUDA_TRY(cudaStreamEndCapture(q->stream, &graph));
    gpu_graph *r = tpl_calloc(1, sizeof *r);
    tpl_code rc = instantiate(graph, r, e);
    cudaGraphDestroy(graph);
    if (rc == TPL_OK)
        *out = r;
    else
        free(r);
    return rc;
}

void gpu_record_drop(gpu_queue *q)
{
    cudaGraph_t graph = NULL;
    cudaStreamEndCapture(q->stream, &graph);
    if (graph)
        cudaGraphDestroy(graph);
    cudaGetLastError();
}

tpl_code gpu_graph_launch(gpu_graph *r, gpu_queue *q, tpl_err *e)
{
    CUDA_TRY(cudaGraphLaunch(r->exec, q->stream));
    return TPL_OK;
}

void gpu_graph_destroy(gpu_graph *r)
{
    if (!r)
        return;
    cudaGraphExecDestroy(r->exec);
    free(r);
}

int gpu_graph_nodes(const gpu_graph *r)
{
    return r->n_nodes;
}
