#include "device/gpu_peer.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cuda_runtime_api.h>

#include "base/arena.h"
#include "device/gpu_peer_kernel.h"

enum { STAGING_BYTES = 32 << 20, THREADS_AN_SM = 2048, PATIENCE_S = 10 };

typedef struct {
    gpu *card;
    dev_buf staging, state, failure;
    void *mapped[GPU_PEER_MAX_RANKS]; /* of other processes, opened here */
    peer_view view;
} peer_rank;

struct gpu_peer {
    int first, n_local, size;
    int64_t most_bytes;  /* of one source */
    int pieces, threads; /* 0: as measured best */
    peer_rank *ranks;    /* [n_local] */
};

/* What a rank of another process must know of this one. */
typedef struct {
    char host[64], bus[32];
    cudaIpcMemHandle_t handle;
} peer_card;

static tpl_code fail(tpl_err *e, const char *where, cudaError_t rc)
{
    cudaGetLastError();
    return tpl_fail(e, TPL_E_DEVICE, where, "%s: %s", cudaGetErrorName(rc), cudaGetErrorString(rc));
}

#define CUDA_TRY(call)                                                                                                 \
    do {                                                                                                               \
        cudaError_t cuda_rc_ = (call);                                                                                 \
        if (cuda_rc_ != cudaSuccess)                                                                                   \
            return fail(e, #call, cuda_rc_);                                                                           \
    } while (0)

static int ordinal_of(const gpu_peer *p, int local)
{
    return gpu_get_facts(p->ranks[local].card)->ordinal;
}

/* ---- mapping ---- */

static tpl_code map_card(int from, int to, tpl_err *e)
{
    int can = 0;
    CUDA_TRY(cudaDeviceCanAccessPeer(&can, from, to));
    if (!can)
        return tpl_fail(e, TPL_E_UNSUPPORTED, "peer memory", "card %d cannot map card %d's", from, to);
    CUDA_TRY(cudaSetDevice(from));
    cudaError_t rc = cudaDeviceEnablePeerAccess(to, 0);
    if (rc != cudaSuccess && rc != cudaErrorPeerAccessAlreadyEnabled)
        return fail(e, "cudaDeviceEnablePeerAccess", rc);
    cudaGetLastError();
    return TPL_OK;
}

tpl_code gpu_peer_map(gpu *from, gpu *to, tpl_err *e)
{
    int a = gpu_get_facts(from)->ordinal, b = gpu_get_facts(to)->ordinal;
    return a == b ? TPL_OK : map_card(a, b, e);
}

static tpl_code open_rank(gpu_peer *p, int local, tpl_err *e)
{
    peer_rank *r = &p->ranks[local];
    TPL_TRY(gpu_use(r->card, e));
    TPL_TRY(gpu_alloc(r->card, &r->staging, STAGING_BYTES, "staging between cards", e));
    TPL_TRY(gpu_alloc(r->card, &r->state, sizeof(peer_state), "staging between cards", e));
    TPL_TRY(gpu_alloc_pinned(r->card, &r->failure, sizeof(peer_failure), "staging between cards", e));
    memset(r->failure.data, 0, sizeof(peer_failure));
    CUDA_TRY(cudaMemset(r->staging.data, 0xff, STAGING_BYTES));
    CUDA_TRY(cudaMemset(r->state.data, 0, sizeof(peer_state)));
    CUDA_TRY(cudaDeviceSynchronize());
    r->view = (peer_view){.me = (p->first + local) % p->size,
                          .size = p->size,
                          .state = r->state.data,
                          .failure = r->failure.data,
                          .slot_bytes = STAGING_BYTES / 2 / p->size,
                          .patience_ns = PATIENCE_S * 1000000000LL};
    r->view.staging[r->view.me] = r->staging.data;
    return TPL_OK;
}

/* Ranks that share a card wait for each other, so that the threads of all must fit it at once: half of what it holds;
 * and none lets the next launch in, which could hold the room that another rank's part needs. */
static void limit_sharers(gpu_peer *p)
{
    const gpu_facts *f = gpu_get_facts(p->ranks[0].card);
    int sharers = 0;
    for (int i = 0; i < p->n_local; i++)
        sharers += ordinal_of(p, i) == ordinal_of(p, 0);
    int64_t most = (int64_t)f->n_sm * THREADS_AN_SM / 2 / sharers * 16;
    p->most_bytes = p->ranks[0].view.slot_bytes;
    if (sharers > 1 && most < p->most_bytes)
        p->most_bytes = most;
    for (int i = 0; i < p->n_local; i++)
        p->ranks[i].view.lets_next = sharers == 1;
}

/* All ranks of the group live in this process. */
static tpl_code map_own(gpu_peer *p, tpl_err *e)
{
    for (int i = 0; i < p->n_local; i++)
        for (int k = 0; k < p->size; k++) {
            int other = i / p->size * p->size + k;
            if (ordinal_of(p, i) != ordinal_of(p, other))
                TPL_TRY(map_card(ordinal_of(p, i), ordinal_of(p, other), e));
            p->ranks[i].view.staging[k] = p->ranks[other].staging.data;
        }
    return TPL_OK;
}

static tpl_code describe(const peer_rank *r, peer_card *out, tpl_err *e)
{
    char boot[40] = "";
    FILE *f = fopen("/proc/sys/kernel/random/boot_id", "r");
    if (f && !fgets(boot, sizeof boot, f))
        boot[0] = 0;
    if (f)
        fclose(f);
    memset(out, 0, sizeof *out);
    memcpy(out->host, boot, sizeof boot);
    CUDA_TRY(cudaDeviceGetPCIBusId(out->bus, sizeof out->bus, gpu_get_facts(r->card)->ordinal));
    CUDA_TRY(cudaIpcGetMemHandle(&out->handle, r->staging.data));
    return TPL_OK;
}

static tpl_code map_other(peer_rank *r, int k, const peer_card *mine, const peer_card *other, tpl_err *e)
{
    int ordinal = -1;
    if (!*mine->host || memcmp(mine->host, other->host, sizeof mine->host) != 0)
        return tpl_fail(e, TPL_E_UNSUPPORTED, "peer memory", "ranks are on several hosts");
    if (strcmp(mine->bus, other->bus) == 0)
        return tpl_fail(e, TPL_E_UNSUPPORTED, "peer memory", "processes share card %s", mine->bus);
    if (cudaDeviceGetByPCIBusId(&ordinal, other->bus) != cudaSuccess)
        return cudaGetLastError(),
               tpl_fail(e, TPL_E_UNSUPPORTED, "peer memory", "card %s is not seen here", other->bus);
    TPL_TRY(map_card(gpu_get_facts(r->card)->ordinal, ordinal, e));
    CUDA_TRY(cudaSetDevice(gpu_get_facts(r->card)->ordinal));
    CUDA_TRY(cudaIpcOpenMemHandle(&r->mapped[k], other->handle, cudaIpcMemLazyEnablePeerAccess));
    r->view.staging[k] = r->mapped[k];
    return TPL_OK;
}

/* What came of something, here and on all other ranks: own failures first, with their reason. */
static tpl_code agree(tpl_code rc, const tpl_err *why, int n, const gpu_peer_share *share, tpl_err *e)
{
    char good = rc == TPL_OK, *each = tpl_calloc((size_t)n, 1);
    tpl_code shared = share ? share->gather(share->user, &good, 1, each, e) : TPL_OK;
    int refused = -1;
    for (int k = 0; share && k < n && refused < 0; k++)
        refused = each[k] ? -1 : k;
    free(each);
    TPL_TRY(shared);
    if (rc != TPL_OK)
        return tpl_fail(e, TPL_E_UNSUPPORTED, why->where, "%s", why->what);
    return refused < 0 ? TPL_OK : tpl_fail(e, TPL_E_UNSUPPORTED, "peer memory", "rank %d cannot use it", refused);
}

/* Every rank is a process. They use their mappings only if all of the team could make theirs; one that has failed
 * already (opened, why) must tell the others all the same. */
static tpl_code map_processes(gpu_peer *p, int n, const gpu_peer_share *share, tpl_code opened, tpl_err why, tpl_err *e)
{
    peer_rank *r = &p->ranks[0];
    peer_card mine = {0}, *all = tpl_calloc((size_t)n, sizeof *all);
    tpl_code rc = opened == TPL_OK ? describe(r, &mine, &why) : opened;
    tpl_code shared = share->gather(share->user, &mine, sizeof mine, all, e);
    for (int k = 0; k < p->size && rc == TPL_OK && shared == TPL_OK; k++)
        if (k != r->view.me)
            rc = map_other(r, k, &mine, &all[p->first / p->size * p->size + k], &why);
    free(all);
    TPL_TRY(shared);
    return agree(rc, &why, n, share, e);
}

/* ---- life ---- */

static tpl_code open_all(gpu_peer *p, gpu *const *cards, int n, const gpu_peer_share *share, tpl_err *e)
{
    tpl_err why = {0};
    tpl_code rc = TPL_OK;
    for (int i = 0; i < p->n_local && rc == TPL_OK; i++) {
        p->ranks[i].card = cards[i];
        rc = open_rank(p, i, &why);
    }
    if (rc == TPL_OK)
        limit_sharers(p);
    if (share)
        return map_processes(p, n, share, rc, why, e);
    return rc == TPL_OK ? map_own(p, e) : tpl_fail(e, rc, why.where, "%s", why.what);
}

tpl_code gpu_peer_create(gpu *const *cards, int first, int n_local, int n, int size, const gpu_peer_share *share,
                         gpu_peer **out, tpl_err *e)
{
    assert(size > 0 && n % size == 0 && (share ? n_local == 1 : n_local == n));
    if (size != 2 && size != 4 && size != GPU_PEER_MAX_RANKS)
        return tpl_fail(e, TPL_E_UNSUPPORTED, "peer memory", "groups of %d, expected 2, 4 or 8", size);
    gpu_peer *p = tpl_calloc(1, sizeof *p);
    *p = (gpu_peer){.first = first, .n_local = n_local, .size = size};
    p->ranks = tpl_calloc((size_t)n_local, sizeof *p->ranks);
    tpl_code rc = open_all(p, cards, n, share, e);
    if (rc == TPL_OK)
        *out = p;
    else
        gpu_peer_destroy(p);
    return rc;
}

void gpu_peer_destroy(gpu_peer *p)
{
    if (!p)
        return;
    for (int i = 0; i < p->n_local; i++) {
        peer_rank *r = &p->ranks[i];
        for (int k = 0; k < p->size; k++)
            if (r->mapped[k])
                cudaIpcCloseMemHandle(r->mapped[k]);
        gpu_free(r->card, &r->staging);
        gpu_free(r->card, &r->state);
        gpu_free_pinned(r->card, &r->failure);
    }
    free(p->ranks);
    free(p);
}

void gpu_peer_set_patience(gpu_peer *p, int64_t ms)
{
    for (int i = 0; i < p->n_local; i++)
        p->ranks[i].view.patience_ns = ms * 1000000;
}

void gpu_peer_set_launch(gpu_peer *p, int pieces, int threads)
{
    p->pieces = pieces;
    p->threads = threads;
}

/* ---- running ---- */

bool gpu_peer_takes(const gpu_peer *p, comm_op op, tpl_dtype t, int64_t rows, int64_t width)
{
    int64_t row = width * (int64_t)dtype_bytes(t);
    if ((t != DT_F32 && t != DT_BF16) || rows < 1 || row < 1)
        return false;
    if (op == COMM_ALL_REDUCE) /* in as many exchanges as it takes, whatever its rows */
        return row * rows % 16 == 0;
    if (op == COMM_REDUCE_SCATTER && width % p->size != 0)
        return false;
    row = op == COMM_REDUCE_SCATTER ? row / p->size : row;
    return row % 16 == 0 && row <= p->most_bytes;
}

/* Few pieces want many blocks, many want loads in flight. Two ranks on one H100: 14 KB 2.06 us with {1, 128} and 3.58
 * with {4, 256}; 448 KB 3.70 with {2, 256}, 4.57 with {1, 128}; 1 MB 5.28 with {4, 256}, 8.26 with {1, 128}. */
static void shape_launch(const gpu_peer *p, peer_call *c)
{
    bool few = c->n < 1 << 14, many = c->n >= 1 << 16;
    c->pieces = p->pieces ? p->pieces : few ? 1 : many ? 4 : 2;
    c->threads = p->threads ? p->threads : few ? 128 : 256;
}

/* One launch on every local rank, of data and out from so many bytes on. */
static tpl_code exchange(gpu_peer *p, peer_call *c, const gpu_comm_part *parts, int64_t data_at, int64_t out_at,
                         tpl_err *e)
{
    shape_launch(p, c);
    for (int i = 0; i < p->n_local; i++) {
        bool in_place = c->op == COMM_ALL_REDUCE || c->op == COMM_BROADCAST;
        c->data = (char *)parts[i].data + data_at;
        c->out = in_place ? (char *)parts[i].data + data_at : (char *)parts[i].out + out_at;
        if (((uintptr_t)c->data | (uintptr_t)c->out) % 16)
            return tpl_fail(e, TPL_E_UNSUPPORTED, comm_op_name(c->op), "rows do not begin at a multiple of 16 bytes");
        TPL_TRY(gpu_use(p->ranks[i].card, e));
        TPL_TRY(gpu_peer_launch(&p->ranks[i].view, c, parts[i].queue, e));
    }
    return TPL_OK;
}

tpl_code gpu_peer_run(gpu_peer *p, comm_op op, tpl_dtype t, int64_t rows, int64_t width, const gpu_comm_part *parts,
                      tpl_err *e)
{
    assert(gpu_peer_takes(p, op, t, rows, width));
    int64_t given = width * (int64_t)dtype_bytes(t); /* a row of data, of a source, of out */
    int64_t sent = op == COMM_REDUCE_SCATTER ? given / p->size : given;
    int64_t made = op == COMM_ALL_GATHER ? given * p->size : sent;
    peer_call c = {.op = op, .type = t};
    if (op == COMM_ALL_REDUCE) { /* whatever its rows */
        for (int64_t at = 0, all = given * rows; at < all; at += p->most_bytes) {
            c.n = c.row_n = (int32_t)((all - at < p->most_bytes ? all - at : p->most_bytes) / 16);
            TPL_TRY(exchange(p, &c, parts, at, at, e));
        }
        return TPL_OK;
    }
    int64_t most = p->most_bytes / sent;
    c.row_n = (int32_t)(sent / 16);
    for (int64_t row = 0; row < rows; row += most) {
        c.n = (int32_t)((rows - row < most ? rows - row : most) * c.row_n);
        TPL_TRY(exchange(p, &c, parts, row * given, row * made, e));
    }
    return TPL_OK;
}

tpl_code gpu_peer_check(const gpu_peer *p, tpl_err *e)
{
    for (int i = 0; i < p->n_local; i++) {
        const peer_failure *f = p->ranks[i].failure.data;
        int rank = p->first + i, group = rank / p->size * p->size;
        if (f->failed)
            return tpl_fail(e, TPL_E_DEVICE, "ranks", "rank %d did not answer rank %d within %lld s (exchange %u)",
                            group + (int)f->silent_rank, rank, (long long)(p->ranks[i].view.patience_ns / 1000000000),
                            f->exchange);
    }
    return TPL_OK;
}

/* ---- proof ---- */

enum { PROOF_FLOATS = 1 << 18, PROOF_PATIENCE_MS = 2000, PROOF_ROUNDS = 4 };

static float proof_value(int rank, int64_t i)
{
    return (float)((rank + 1) * (int)(i % 1021));
}

static tpl_code fill_proof(const gpu_peer *p, int local, float *host, gpu_comm_part *part, tpl_err *e)
{
    for (int64_t i = 0; i < PROOF_FLOATS; i++)
        host[i] = proof_value(p->ranks[local].view.me, i);
    return gpu_copy_now(part->queue, part->data, host, PROOF_FLOATS * sizeof *host, e);
}

static tpl_code look_at_proof(const gpu_peer *p, float *host, const gpu_comm_part *part, int64_t n, tpl_err *e)
{
    TPL_TRY(gpu_copy_now(part->queue, host, part->data, (size_t)n * sizeof *host, e));
    for (int64_t i = 0; i < n; i++) {
        float sum = 0;
        for (int r = 0; r < p->size; r++)
            sum += proof_value(r, i);
        if (host[i] != sum)
            return tpl_fail(e, TPL_E_UNSUPPORTED, "peer memory", "element %lld of a sum is %g, expected %g",
                            (long long)i, (double)host[i], (double)sum);
    }
    return TPL_OK;
}

static tpl_code prove_round(gpu_peer *p, gpu_comm_part *parts, float *host, int64_t n, tpl_err *e)
{
    for (int i = 0; i < p->n_local; i++)
        TPL_TRY(fill_proof(p, i, host, &parts[i], e));
    TPL_TRY(gpu_peer_run(p, COMM_ALL_REDUCE, DT_F32, 1, n, parts, e));
    for (int i = 0; i < p->n_local; i++)
        TPL_TRY(gpu_queue_wait(parts[i].queue, e));
    TPL_TRY(gpu_peer_check(p, e));
    for (int i = 0; i < p->n_local; i++)
        TPL_TRY(look_at_proof(p, host, &parts[i], n, e));
    return TPL_OK;
}

static tpl_code prove(gpu_peer *p, gpu_comm_part *parts, dev_buf *bufs, float *host, tpl_err *e)
{
    for (int i = 0; i < p->n_local; i++) {
        TPL_TRY(gpu_use(p->ranks[i].card, e));
        TPL_TRY(gpu_queue_create(p->ranks[i].card, &parts[i].queue, e));
        TPL_TRY(gpu_alloc(p->ranks[i].card, &bufs[i], PROOF_FLOATS * sizeof(float), "proof of peer memory", e));
        parts[i].data = bufs[i].data;
    }
    int64_t most = p->most_bytes / (int64_t)sizeof(float) / 4 * 4;
    for (int k = 0; k < PROOF_ROUNDS; k++)
        TPL_TRY(prove_round(p, parts, host, k % 2 ? 4 : most < PROOF_FLOATS ? most : PROOF_FLOATS, e));
    return TPL_OK;
}

tpl_code gpu_peer_prove(gpu_peer *p, const gpu_peer_share *share, int n, tpl_err *e)
{
    gpu_comm_part *parts = tpl_calloc((size_t)p->n_local, sizeof *parts);
    dev_buf *bufs = tpl_calloc((size_t)p->n_local, sizeof *bufs);
    float *host = tpl_malloc(PROOF_FLOATS * sizeof *host);
    tpl_err why = {0};
    int64_t patience = p->ranks[0].view.patience_ns;
    gpu_peer_set_patience(p, PROOF_PATIENCE_MS);
    tpl_code rc = prove(p, parts, bufs, host, &why);
    gpu_peer_set_patience(p, patience / 1000000);
    for (int i = 0; i < p->n_local; i++) {
        gpu_queue_destroy(parts[i].queue);
        gpu_free(p->ranks[i].card, &bufs[i]);
    }
    free(parts);
    free(bufs);
    free(host);
    return agree(rc, &why, n, share, e);
}
