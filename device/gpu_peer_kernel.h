/* gpu_peer_kernel.h - what gpu_peer.c hands to the launch in gpu_peer.cu.
 * For:    those two files.  Enter: nobody else.  Owns: nothing.  Fails: gpu_peer_launch() with TPL_E_DEVICE.
 *
 * Staging memory of a rank: [2 slots][size sources][slot_bytes], all bits set where nothing has arrived. A piece of 16
 * bytes has arrived when none of its four words has all bits set: senders turn such a word (a NaN, or two) into another
 * NaN, so data are their own flag and no fence is needed. Who has read a piece sets its bits again. Slots take turns:
 * a sender writes a slot again only after it has had the receiver's part of the exchange in between, which the receiver
 * sends after its launch that read and cleared the slot has ended. */
#ifndef TPL_DEVICE_GPU_PEER_KERNEL_H
#define TPL_DEVICE_GPU_PEER_KERNEL_H

#include "device/gpu_peer.h"

#ifdef __cplusplus
extern "C" {
#endif

/* In card memory, own rank's. */
typedef struct {
    uint32_t exchange; /* running number; its lowest bit is the slot */
    uint32_t arrived;  /* blocks of the running launch that have read it */
    uint32_t failed;
} peer_state;

/* In pinned host memory: the first failure a rank saw. */
typedef struct {
    volatile uint32_t failed, silent_rank, exchange;
} peer_failure;

/* One rank's view of its group, passed by value. */
typedef struct {
    int32_t me, size;
    bool lets_next; /* the next launch in as soon as all blocks stand */
    char *staging[GPU_PEER_MAX_RANKS]; /* of rank j of the group, as mapped here */
    peer_state *state;
    peer_failure *failure;
    int64_t slot_bytes, patience_ns;
} peer_view;

/* In 16-byte pieces: a source sends `n` of them, a row of the smaller side has row_n. */
typedef struct {
    comm_op op;
    tpl_dtype type;
    const void *data;
    void *out;
    int32_t n, row_n;
    int32_t pieces, threads;
} peer_call;

tpl_code gpu_peer_launch(const peer_view *v, const peer_call *c, gpu_queue *q, tpl_err *e);

#ifdef __cplusplus
}
#endif

#endif
