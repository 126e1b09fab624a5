#include "device/gpu_comm.h"

#include <assert.h>
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cuda_runtime_api.h>
#include <nccl.h>

#include "base/arena.h"

_Static_assert(GPU_COMM_ID == NCCL_UNIQUE_ID_BYTES, "an id is NCCL's");

enum { MAX_SPLITS = 8 };

struct gpu_comm {
    int first, n_local, n, n_splits;
    int *ordinals; /* [n_local] */
    struct {
        int size;
        ncclComm_t *comms; /* [n_local] */
    } splits[MAX_SPLITS];  /* the first one is everybody */
};

/* ---- the library ---- */

#define EACH_CALL(X)                                                                                                   \
    X(GetErrorString)                                                                                                  \
    X(GetVersion)                                                                                                      \
    X(GetUniqueId)                                                                                                     \
    X(CommInitRank)                                                                                                    \
    X(CommSplit)                                                                                                       \
    X(CommAbort)                                                                                                       \
    X(CommDestroy)                                                                                                     \
    X(GroupStart)                                                                                                      \
    X(GroupEnd)                                                                                                        \
    X(AllReduce)                                                                                                       \
    X(AllGather)                                                                                                       \
    X(ReduceScatter)                                                                                                   \
    X(Broadcast)

static struct {
#define DECLARE(name) __typeof__(&nccl##name) name;
    EACH_CALL(DECLARE)
#undef DECLARE
    char version[24], reason[160];
    bool there;
} nccl;

static bool find_call(void *library, const char *name, void *to)
{
    void *at = dlsym(library, name);
    memcpy(to, &at, sizeof at);
    if (!at)
        snprintf(nccl.reason, sizeof nccl.reason, "libnccl.so.2 has no %s, expected NCCL 2.18 or newer", name);
    return at != NULL;
}

static void load(void)
{
    int version = 0;
    void *library = dlopen("libnccl.so.2", RTLD_NOW | RTLD_LOCAL);
    if (!library) {
        snprintf(nccl.reason, sizeof nccl.reason, "%.150s", dlerror());
        return;
    }
    nccl.there = true;
#define FIND(name) nccl.there = nccl.there && find_call(library, "nccl" #name, &nccl.name);
    EACH_CALL(FIND)
#undef FIND
    if (nccl.there && nccl.GetVersion(&version) == ncclSuccess)
        snprintf(nccl.version, sizeof nccl.version, "%d.%d.%d", version / 10000, version / 100 % 100, version % 100);
}

static tpl_code need_library(tpl_err *e)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, load);
    return nccl.there ? TPL_OK : tpl_fail(e, TPL_E_UNSUPPORTED, "NCCL", "%s", nccl.reason);
}

#define NCCL_TRY(call)                                                                                                 \
    do {                                                                                                               \
        ncclResult_t nccl_rc_ = (call);                                                                                \
        if (nccl_rc_ != ncclSuccess)                                                                                   \
            return tpl_fail(e, TPL_E_DEVICE, "NCCL", "%s", nccl.GetErrorString(nccl_rc_));                             \
    } while (0)

bool gpu_comm_is_built(void)
{
    return true;
}

const char *gpu_comm_version(void)
{
    return nccl.version;
}

tpl_code gpu_comm_new_id(gpu_comm_id *out, tpl_err *e)
{
    ncclUniqueId id;
    TPL_TRY(need_library(e));
    NCCL_TRY(nccl.GetUniqueId(&id));
    memcpy(out->bytes, id.internal, sizeof out->bytes);
    return TPL_OK;
}

/* ---- communicators ---- */

static tpl_code join(gpu_comm *c, const gpu_comm_id *id, tpl_err *e)
{
    ncclUniqueId nccl_id;
    memcpy(nccl_id.internal, id->bytes, sizeof nccl_id.internal);
    NCCL_TRY(nccl.GroupStart());
    ncclResult_t rc = ncclSuccess;
    for (int i = 0; i < c->n_local && rc == ncclSuccess; i++) {
        cudaSetDevice(c->ordinals[i]);
        rc = nccl.CommInitRank(&c->splits[0].comms[i], c->n, nccl_id, c->first + i);
    }
    ncclResult_t end = nccl.GroupEnd();
    NCCL_TRY(rc);
    NCCL_TRY(end);
    return TPL_OK;
}

tpl_code gpu_comm_create(gpu *const *cards, int first, int n_local, int n, const gpu_comm_id *id, gpu_comm **out,
                         tpl_err *e)
{
    TPL_TRY(need_library(e));
    gpu_comm *c = tpl_calloc(1, sizeof *c);
    *c = (gpu_comm){.first = first, .n_local = n_local, .n = n, .n_splits = 1};
    c->ordinals = tpl_calloc((size_t)n_local, sizeof *c->ordinals);
    for (int i = 0; i < n_local; i++)
        c->ordinals[i] = gpu_get_facts(cards[i])->ordinal;
    c->splits[0].size = n;
    c->splits[0].comms = tpl_calloc((size_t)n_local, sizeof(ncclComm_t));
    tpl_code rc = join(c, id, e);
    if (rc == TPL_OK)
        *out = c;
    else
        gpu_comm_destroy(c);
    return rc;
}

void gpu_comm_destroy(gpu_comm *c)
{
    if (!c)
        return;
    for (int k = c->n_splits - 1; k >= 0; k--) {
        for (int i = 0; i < c->n_local; i++)
            if (c->splits[k].comms[i])
                nccl.CommDestroy(c->splits[k].comms[i]);
        free(c->splits[k].comms);
    }
    free(c->ordinals);
    free(c);
}

static ncclComm_t *comms_of(const gpu_comm *c, int size)
{
    for (int k = 0; k < c->n_splits; k++)
        if (c->splits[k].size == size)
            return c->splits[k].comms;
    return NULL;
}

tpl_code gpu_comm_split(gpu_comm *c, int size, tpl_err *e)
{
    if (comms_of(c, size))
        return TPL_OK;
    assert(c->n_splits < MAX_SPLITS && size > 0 && c->n % size == 0);
    ncclComm_t *comms = tpl_calloc((size_t)c->n_local, sizeof *comms);
    c->splits[c->n_splits].size = size;
    c->splits[c->n_splits++].comms = comms;
    NCCL_TRY(nccl.GroupStart());
    ncclResult_t rc = ncclSuccess;
    for (int i = 0; i < c->n_local && rc == ncclSuccess; i++)
        rc = nccl.CommSplit(c->splits[0].comms[i], (c->first + i) / size, (c->first + i) % size, &comms[i], NULL);
    ncclResult_t end = nccl.GroupEnd();
    NCCL_TRY(rc);
    NCCL_TRY(end);
    return TPL_OK;
}

/* ---- running ---- */

static ncclResult_t run_part(comm_op op, const gpu_comm_part *p, size_t n, int size, ncclDataType_t t, ncclComm_t group)
{
    cudaStream_t stream = gpu_queue_stream(p->queue);
    switch (op) {
    case COMM_ALL_REDUCE:
        return nccl.AllReduce(p->data, p->data, n, t, ncclSum, group, stream);
    case COMM_ALL_GATHER:
        return nccl.AllGather(p->data, p->out, n, t, group, stream);
    case COMM_REDUCE_SCATTER:
        return nccl.ReduceScatter(p->data, p->out, n / (size_t)size, t, ncclSum, group, stream);
    default:
        return nccl.Broadcast(p->data, p->data, n, t, 0, group, stream);
    }
}

tpl_code gpu_comm_run(gpu_comm *c, comm_op op, int size, tpl_dtype t, int64_t rows, int64_t width,
                      const gpu_comm_part *parts, tpl_err *e)
{
    ncclComm_t *comms = comms_of(c, size);
    ncclDataType_t type = t == DT_F32 ? ncclFloat32 : ncclBfloat16;
    assert(comms && (t == DT_F32 || t == DT_BF16));
    NCCL_TRY(nccl.GroupStart());
    ncclResult_t rc = ncclSuccess;
    for (int i = 0; i < c->n_local && rc == ncclSuccess; i++)
        rc = run_part(op, &parts[i], (size_t)(rows * width), size, type, comms[i]);
    ncclResult_t end = nccl.GroupEnd();
    NCCL_TRY(rc);
    NCCL_TRY(end);
    return TPL_OK;
}
