/* gpu_comm.h - collectives between ranks that have a card each, through NCCL or peer memory, in one process or many.
 * For:    engine/exec_cuda*.c; the library is loaded at run time, when the first team asks for it.
 * Enter:  engine/, bench/, tests/.
 * Owns:   gpu_comm_create() owns this process's communicators.
 * Fails:  TPL_E_UNSUPPORTED where the build or the machine has no NCCL; TPL_E_DEVICE with NCCL's words.
 *
 * Everything is enqueued, and can be recorded. Rows are whole: `data` is [rows, width] without gaps. Sums through peer
 * memory are in rank order; the library's in the order of its rings or trees, which does not change between runs on the
 * same cards. */
#ifndef TPL_DEVICE_GPU_COMM_H
#define TPL_DEVICE_GPU_COMM_H

#include "base/dtype.h"
#include "device/comm.h"
#include "device/gpu.h"
#include "device/gpu_peer.h"

enum { GPU_COMM_ID = 128 };

/* What the processes of a team share to find each other. */
typedef struct {
    unsigned char bytes[GPU_COMM_ID];
} gpu_comm_id;

typedef struct gpu_comm gpu_comm;

bool gpu_comm_is_built(void);
tpl_code gpu_comm_new_id(gpu_comm_id *out, tpl_err *e);
/* Ranks first .. first + n_local - 1 of n live here, rank first + i on cards[i]. All processes must come here. */
tpl_code gpu_comm_create(gpu *const *cards, int first, int n_local, int n, const gpu_comm_id *id, gpu_comm **out,
                         tpl_err *e);
void gpu_comm_destroy(gpu_comm *c);
/* Makes groups of `size` neighbouring ranks ready; size divides n. All processes must come here, in the same order. */
tpl_code gpu_comm_split(gpu_comm *c, int size, tpl_err *e);
const char *gpu_comm_version(void); /* "2.28.3"; "" before the library is loaded */

/* What carries a collective: the library, our own exchange through peer memory (gpu_peer.h) where cards of one host can
 * map each other, or, at first, whichever is the faster for the size: measured for two
 * ranks, a guess for more. */
typedef enum { GPU_COMM_BEST, GPU_COMM_LIBRARY, GPU_COMM_PEER } gpu_comm_way;

void gpu_comm_choose(gpu_comm *c, gpu_comm_way way);
/* Whether a call will go through peer memory. Its gather and reduce-scatter then keep to comm.h's layouts: out [rows,
 * size * width] and data [rows, width]. */
bool gpu_comm_goes_peer(const gpu_comm *c, comm_op op, int size, tpl_dtype t, int64_t rows, int64_t width);
/* Why groups of `size` do not exchange through peer memory; "" where they can. */
const char *gpu_comm_why_not_peer(const gpu_comm *c, int size);

/* A collective in groups of `size`, one part a local rank. Unlike comm.h, a gather of the library puts one rank's rows
 * behind the other's (out [size, rows, width]) and its reduce-scatter takes them so (data [size, rows, width / size]).
 */
tpl_code gpu_comm_run(gpu_comm *c, comm_op op, int size, tpl_dtype t, int64_t rows, int64_t width,
                      const gpu_comm_part *parts, tpl_err *e);
/* After queues have been waited for: whether a rank was lost meanwhile. */
tpl_code gpu_comm_check(const gpu_comm *c, tpl_err *e);

#endif
