/* comm.h - collectives between the ranks of a team, whatever joins them.
 * For:    engine/ executes collective steps through it; bench/ times it.
 * Enter:  engine/, bench/, tests/.
 * Owns:   comm_local_create() owns all ranks' handles of one process; comm_destroy() ends them.
 * Fails:  local collectives cannot fail; process backends return TPL_E_DEVICE with the rank and reason.
 *
 * All data is f32 on the CPU. Every rank of a group must make the same calls in the same order. Reductions add in rank
 * order on every rank, so that results are equal on all ranks and independent of timing. */
#ifndef TPL_DEVICE_COMM_H
#define TPL_DEVICE_COMM_H

#include <stdint.h>

#include "base/error.h"

typedef enum { COMM_ALL_REDUCE, COMM_ALL_GATHER, COMM_REDUCE_SCATTER, COMM_BROADCAST, COMM_N_OPS } comm_op;

const char *comm_op_name(comm_op op);

/* Ranks first .. first + size - 1 of the team. */
typedef struct {
    int32_t first, size;
} comm_group;

typedef struct comm comm; /* one rank's handle */

struct comm {
    int rank, n_ranks;
    const char *backend; /* "local", "solo", "mpi" */
    /* all_reduce:     data [rows, width] += the others', in place
     * all_gather:     out [rows, size * width] = the parts in rank order, from data [rows, width]
     * reduce_scatter: out [rows, width / size] = own part of the columns of the sum of data [rows, width]
     * broadcast:      data [rows, width] from rank `first` of the group
     * Strides are in elements; out is unused (NULL) for the in-place operations. */
    tpl_code (*run)(comm *c, comm_op op, comm_group g, float *data, int64_t data_stride, float *out, int64_t out_stride,
                    int64_t rows, int64_t width, tpl_err *e);
    tpl_code (*barrier)(comm *c, tpl_err *e);
    void (*destroy)(comm *c);
    void *self;
};

/* n handles for n threads of this process: handles[i] belongs to rank i. Destroy each; the last frees the shared part. */
tpl_code comm_local_create(int n, comm **handles, tpl_err *e);
/* One handle that stands for rank 0 of n and exchanges nothing: a reduce keeps its own part, a gather fills the others'
 * parts with its own. For timing one rank alone; every row made with it says comm_source=none. */
tpl_code comm_solo_create(int n, comm **handle, tpl_err *e);
/* What that rank makes of a collective: a gather repeats its own part, a reduce-scatter keeps it, the rest changes nothing. */
void comm_alone(comm_op op, int rank, comm_group g, const float *data, int64_t data_stride, float *out, int64_t out_stride, int64_t rows, int64_t width);
void comm_destroy(comm *c);

/* Bytes a rank of the group of k sends for one call whose `data` argument holds `bytes`, ring algorithm: all_reduce
 * 2 (k-1)/k, all_gather k-1, reduce_scatter (k-1)/k, broadcast 1 times that. */
double comm_bytes_sent(comm_op op, int size, double bytes);

#endif
