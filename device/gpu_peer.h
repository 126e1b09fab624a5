/* gpu_peer.h - small collectives of our own between cards of one host, through peer mappings: each rank writes its part
 * into all others' staging memory, waits for theirs and adds them up, in one launch.
 * For:    gpu_comm_nccl.c, which chooses between these and the library by size.
 * Enter:  device/, bench/, tests/.
 * Owns:   gpu_peer_create() owns this process's staging memory and its mappings of the others'.
 * Fails:  TPL_E_UNSUPPORTED where cards cannot map each other's memory; TPL_E_DEVICE with CUDA's words, and from
 * gpu_peer_check() with the rank that did not answer in time.
 *
 * Everything is enqueued, and can be recorded: what tells one exchange from the next is counted in card memory. All
 * ranks of a group make the same calls in the same order. Sums are made in f32 in rank order on every rank, so that
 * results are equal on all ranks and do not depend on timing. Layouts are those of comm.h with rows without gaps. */
#ifndef TPL_DEVICE_GPU_PEER_H
#define TPL_DEVICE_GPU_PEER_H

#include "base/dtype.h"
#include "device/comm.h"
#include "device/gpu.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { GPU_PEER_MAX_RANKS = 8 };

/* Lets launches on `from` read and write the other card's memory. Nothing to do where both are one. */
tpl_code gpu_peer_map(gpu *from, gpu *to, tpl_err *e);

typedef struct gpu_peer gpu_peer;

/* How ranks of several processes tell each other something once: all[i * bytes] is what rank i of the team gave.
 * All processes come here, in the same order. */
typedef struct {
    tpl_code (*gather)(void *user, const void *mine, size_t bytes, void *all, tpl_err *e);
    void *user;
} gpu_peer_share;

/* Ranks first .. first + n_local - 1 of n live here, rank first + i on cards[i]; groups are `size` neighbouring ranks.
 * n_local is n, or 1 with `share`. Cards may be the same one. All processes must come here. */
tpl_code gpu_peer_create(gpu *const *cards, int first, int n_local, int n, int size, const gpu_peer_share *share,
                         gpu_peer **out, tpl_err *e);
void gpu_peer_destroy(gpu_peer *p);

/* Whether these rows can go this way, in several exchanges where they are many: an all-reduce of whole 16-byte pieces,
 * or a gather, reduce-scatter or broadcast (of the group's first rank) whose rows are whole pieces and fit the staging
 * memory one by one. */
bool gpu_peer_takes(const gpu_peer *p, comm_op op, tpl_dtype t, int64_t rows, int64_t width);

/* One local rank's part of a collective. */
typedef struct {
    gpu_queue *queue;
    void *data, *out;
} gpu_comm_part;

/* parts[n_local]. */
tpl_code gpu_peer_run(gpu_peer *p, comm_op op, tpl_dtype t, int64_t rows, int64_t width, const gpu_comm_part *parts,
                      tpl_err *e);
/* Exchanges whole numbers and looks whether every rank has their sum: mappings that do not carry data are found here.
 * All processes must come here. */
tpl_code gpu_peer_prove(gpu_peer *p, const gpu_peer_share *share, int n, tpl_err *e);

/* After queues have been waited for: whether every exchange came about. One that did not leaves the others' results
 * undefined, and all later ones fail at once. */
tpl_code gpu_peer_check(const gpu_peer *p, tpl_err *e);
/* How long a rank waits for another before it gives up; 10 s at first. */
void gpu_peer_set_patience(gpu_peer *p, int64_t ms);
/* 16-byte pieces a thread sends before it waits, and threads a block; 0: as measured best. For tuning. */
void gpu_peer_set_launch(gpu_peer *p, int pieces, int threads);

#ifdef __cplusplus
}
#endif

#endif
