/* gpu_comm.h - collectives between ranks that have a card each, through NCCL, in one process or many.
 * For:    engine/exec_cuda*.c; the library is loaded at run time, when the first team asks for it.
 * Enter:  engine/, bench/, tests/.
 * Owns:   gpu_comm_create() owns this process's communicators.
 * Fails:  TPL_E_UNSUPPORTED where the build or the machine has no NCCL; TPL_E_DEVICE with NCCL's words.
 *
 * Everything is enqueued, and can be recorded. Rows are whole: `data` is [rows, width] without gaps. Sums are NCCL's,
 * in the order of its rings or trees, which does not change between runs on the same cards. */
#ifndef TPL_DEVICE_GPU_COMM_H
#define TPL_DEVICE_GPU_COMM_H

#include "base/dtype.h"
#include "device/comm.h"
#include "device/gpu.h"

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

/* One local rank's part of a collective in groups of `size`. Unlike comm.h, a gather puts one rank's rows behind the
 * other's (out [size, rows, width]) and a reduce-scatter takes them so (data [size, rows, width / size]). */
typedef struct {
    gpu_queue *queue;
    void *data, *out;
} gpu_comm_part;

tpl_code gpu_comm_run(gpu_comm *c, comm_op op, int size, tpl_dtype t, int64_t rows, int64_t width,
                      const gpu_comm_part *parts, tpl_err *e);

#endif
