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
        gpu_peer *peer;    /* NULL: not between these cards, and why */
        char why_not[224];
    } splits[MAX_SPLITS]; /* the first one is everybody */
    gpu **cards;          /* [n_local] */
    gpu_comm_way way;
};

/* ---- the library ---- */

#define EACH_CALL(X)                                                                                                   \
    X(GetErrorString)                                                                                                  \
    X(GetVersion)                                                                                                      \
    X(CommGetAsyncError)                                                                                               \
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

/* ---- peer memory ---- */

/* All processes' bytes, through the library's own gather. */
static tpl_code gather_bytes(void *user, const void *mine, size_t bytes, void *all, tpl_err *e)
{
    gpu_comm *c = user;
    gpu_queue *q = NULL;
    dev_buf from, to = {0};
    TPL_TRY(gpu_use(c->cards[0], e));
    TPL_TRY(gpu_alloc(c->cards[0], &from, bytes, "team set-up", e));
    tpl_code rc = gpu_alloc(c->cards[0], &to, bytes * (size_t)c->n, "team set-up", e);
    if (rc == TPL_OK)
        rc = gpu_queue_create(c->cards[0], &q, e);
    if (rc == TPL_OK)
        rc = gpu_copy_now(q, from.data, mine, bytes, e);
    if (rc == TPL_OK) {
        ncclResult_t got = nccl.AllGather(from.data, to.data, bytes, ncclInt8, c->splits[0].comms[0],
                                          (cudaStream_t)gpu_queue_stream(q));
        rc = got == ncclSuccess ? gpu_copy_now(q, all, to.data, bytes * (size_t)c->n, e)
                                : tpl_fail(e, TPL_E_DEVICE, "NCCL", "%s", nccl.GetErrorString(got));
    }
    gpu_queue_destroy(q);
    gpu_free(c->cards[0], &from);
    gpu_free(c->cards[0], &to);
    return rc;
}

/* Tries to join groups of a split through peer memory; where that cannot be, the library carries everything. */
static void join_peers(gpu_comm *c, int k)
{
    gpu_peer_share share = {gather_bytes, c}, *used = c->n_local < c->n ? &share : NULL;
    tpl_err why = {0};
    int size = c->splits[k].size;
    if (size < 2) {
        snprintf(c->splits[k].why_not, sizeof c->splits[k].why_not, "one rank");
        return;
    }
    tpl_code rc = used && c->n_local > 1
                      ? tpl_fail(&why, TPL_E_UNSUPPORTED, "peer memory", "several processes of several cards each")
                      : gpu_peer_create(c->cards, c->first, c->n_local, c->n, size, used, &c->splits[k].peer, &why);
    if (rc == TPL_OK && (rc = gpu_peer_prove(c->splits[k].peer, used, c->n, &why)) != TPL_OK) {
        gpu_peer_destroy(c->splits[k].peer);
        c->splits[k].peer = NULL;
    }
    if (rc != TPL_OK)
        snprintf(c->splits[k].why_not, sizeof c->splits[k].why_not, "%.80s: %.120s", why.where, why.what);
}

tpl_code gpu_comm_create(gpu *const *cards, int first, int n_local, int n, const gpu_comm_id *id, gpu_comm **out,
                         tpl_err *e)
{
    TPL_TRY(need_library(e));
    gpu_comm *c = tpl_calloc(1, sizeof *c);
    *c = (gpu_comm){.first = first, .n_local = n_local, .n = n, .n_splits = 1};
    c->ordinals = tpl_calloc((size_t)n_local, sizeof *c->ordinals);
    c->cards = tpl_calloc((size_t)n_local, sizeof *c->cards);
    for (int i = 0; i < n_local; i++) {
        c->cards[i] = cards[i];
        c->ordinals[i] = gpu_get_facts(cards[i])->ordinal;
    }
    c->splits[0].size = n;
    c->splits[0].comms = tpl_calloc((size_t)n_local, sizeof(ncclComm_t));
    tpl_code rc = join(c, id, e);
    if (rc == TPL_OK) {
        join_peers(c, 0);
        *out = c;
    } else {
        gpu_comm_destroy(c);
    }
    return rc;
}

void gpu_comm_destroy(gpu_comm *c)
{
    if (!c)
        return;
    for (int k = c->n_splits - 1; k >= 0; k--) {
        gpu_peer_destroy(c->splits[k].peer);
        for (int i = 0; i < c->n_local; i++)
            if (c->splits[k].comms[i])
                nccl.CommDestroy(c->splits[k].comms[i]);
        free(c->splits[k].comms);
    }
    free(c->ordinals);
    free(c->cards);
    free(c);
}

static int split_of(const gpu_comm *c, int size)
{
    for (int k = 0; k < c->n_splits; k++)
        if (c->splits[k].size == size)
            return k;
    return -1;
}

tpl_code gpu_comm_split(gpu_comm *c, int size, tpl_err *e)
{
    if (split_of(c, size) >= 0)
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
    join_peers(c, c->n_splits - 1);
    return TPL_OK;
}

/* ---- running ---- */

void gpu_comm_choose(gpu_comm *c, gpu_comm_way way)
{
    c->way = way;
}

const char *gpu_comm_why_not_peer(const gpu_comm *c, int size)
{
    return c->splits[split_of(c, size)].why_not;
}

/* Bytes that a rank sends to each other up to which peer memory is the faster way. Two ranks, two H200 of one host: an
 * all-reduce of 8 MiB takes 31 us here and 48 through NCCL, one of 64 MiB 251 and 248. Of several rows, gathered or
 * scattered, NCCL's lie otherwise and are turned by a launch of their own: V3's logits of 45 rows, 12 MB, took 180 us
 * on two H100, those of 29, 7.5 MB, 30 here. More ranks send more; there the limit is a guess on the safe side. */
static int64_t peer_limit(int size, bool is_turned)
{
    return size == 2 ? (is_turned ? 32 << 20 : 8 << 20) : (512 << 10) / size;
}

bool gpu_comm_goes_peer(const gpu_comm *c, comm_op op, int size, tpl_dtype t, int64_t rows, int64_t width)
{
    const gpu_peer *p = c->splits[split_of(c, size)].peer;
    if (!p || c->way == GPU_COMM_LIBRARY || !gpu_peer_takes(p, op, t, rows, width))
        return false;
    int64_t bytes = rows * width * (int64_t)dtype_bytes(t) / (op == COMM_REDUCE_SCATTER ? size : 1);
    bool is_turned = rows > 1 && (op == COMM_ALL_GATHER || op == COMM_REDUCE_SCATTER);
    return c->way == GPU_COMM_PEER || bytes <= peer_limit(size, is_turned);
}

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
    int split = split_of(c, size);
    ncclDataType_t type = t == DT_F32 ? ncclFloat32 : ncclBfloat16;
    assert(split >= 0 && (t == DT_F32 || t == DT_BF16));
    if (gpu_comm_goes_peer(c, op, size, t, rows, width))
        return gpu_peer_run(c->splits[split].peer, op, t, rows, width, parts, e);
    ncclComm_t *comms = c->splits[split].comms;
    NCCL_TRY(nccl.GroupStart());
    ncclResult_t rc = ncclSuccess;
    for (int i = 0; i < c->n_local && rc == ncclSuccess; i++)
        rc = run_part(op, &parts[i], (size_t)(rows * width), size, type, comms[i]);
    ncclResult_t end = nccl.GroupEnd();
    NCCL_TRY(rc);
    NCCL_TRY(end);
    return TPL_OK;
}

tpl_code gpu_comm_check(const gpu_comm *c, tpl_err *e)
{
    for (int k = 0; k < c->n_splits; k++) {
        if (c->splits[k].peer)
            TPL_TRY(gpu_peer_check(c->splits[k].peer, e));
        for (int i = 0; i < c->n_local; i++) {
            ncclResult_t rc = ncclSuccess;
            NCCL_TRY(nccl.CommGetAsyncError(c->splits[k].comms[i], &rc));
            NCCL_TRY(rc);
        }
    }
    return TPL_OK;
}
