/* gpu.h - one CUDA card as the engine uses it: memory, a queue of work, events, recorded walks, facts.
 * For:    engine/exec_cuda.c and the benches; kernels of backend "cuda" find their queue here. In a build without CUDA
 * the same functions stand, and gpu_open() says so. Enter:  kernels/, engine/, bench/, cli/, tests/. Owns:   gpu_open()
 * owns the card's context in this process; queues, events and graphs are closed before it. Fails:  TPL_E_DEVICE with
 * CUDA's name of the error, TPL_E_MEMORY with what was asked for and what is free.
 *
 * Everything on a queue is enqueued; only gpu_queue_wait() and gpu_copy_now() wait. One thread at a time may use a
 * queue. */
#ifndef TPL_DEVICE_GPU_H
#define TPL_DEVICE_GPU_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"
#include "device/memory.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct gpu gpu;
typedef struct gpu_queue gpu_queue;
typedef struct gpu_event gpu_event;
typedef struct gpu_graph gpu_graph;

typedef struct {
    char name[256], bus_id[32];
    int32_t ordinal, major, minor; /* compute capability */
    int32_t n_sm, clock_khz;
    int32_t driver, runtime; /* as CUDA numbers them: 13000 is 13.0 */
    int64_t memory_bytes, l2_bytes;
    int32_t block_shared_bytes; /* the most shared memory one block can have */
} gpu_facts;

/* True if this build has CUDA. */
bool gpu_is_built(void);
/* Cards that this process sees; 0 also where there is no driver. */
int gpu_count(void);

tpl_code gpu_open(int ordinal, gpu **out, tpl_err *e);
void gpu_close(gpu *g);
const gpu_facts *gpu_get_facts(const gpu *g);
/* Lets kernels on `from` read and write memory of `to`; TPL_E_UNSUPPORTED where the machine does not join them. */
tpl_code gpu_reach(gpu *from, gpu *to, tpl_err *e);
/* Makes the card current on this thread: launches go to queues of the current card only. */
tpl_code gpu_use(gpu *g, tpl_err *e);
tpl_code gpu_free_bytes(gpu *g, int64_t *out, tpl_err *e);

/* Card memory, 256-byte aligned, not cleared. `what` names it in messages. */
tpl_code gpu_alloc(gpu *g, dev_buf *b, size_t bytes, const char *what, tpl_err *e);
void gpu_free(gpu *g, dev_buf *b);
/* Host memory that copies to and from the card at full speed. */
tpl_code gpu_alloc_pinned(gpu *g, dev_buf *b, size_t bytes, const char *what, tpl_err *e);
void gpu_free_pinned(gpu *g, dev_buf *b);

/* ---- queues ---- */

tpl_code gpu_queue_create(gpu *g, gpu_queue **out, tpl_err *e);
void gpu_queue_destroy(gpu_queue *q);
gpu *gpu_queue_card(gpu_queue *q);
/* Where the copy lies (host or card) follows from the pointers; host memory must be pinned for the call not to wait. */
tpl_code gpu_copy(gpu_queue *q, void *to, const void *from, size_t bytes, tpl_err *e);
/* n pieces of `bytes`, which lie to_step and from_step bytes apart. */
tpl_code gpu_copy_pieces(gpu_queue *q, void *to, size_t to_step, const void *from, size_t from_step, size_t bytes, int n,
                         tpl_err *e);
/* Copies and waits. */
tpl_code gpu_copy_now(gpu_queue *q, void *to, const void *from, size_t bytes, tpl_err *e);
tpl_code gpu_fill(gpu_queue *q, void *to, int byte, size_t bytes, tpl_err *e);
tpl_code gpu_queue_wait(gpu_queue *q, tpl_err *e);

/* For kernels/cuda: a cudaStream_t, and a cublasHandle_t whose workspace is the queue's own. */
void *gpu_queue_stream(gpu_queue *q);
void *gpu_queue_blas(gpu_queue *q);
/* GPU_QUEUE_COUNTS words of the card's memory, zero: launches of this queue, which follow each other, count in them,
 * and each leaves zero what it used. */
enum { GPU_QUEUE_COUNTS = 64 };
unsigned *gpu_queue_counts(gpu_queue *q);

/* ---- events ---- */

tpl_code gpu_event_create(gpu *g, bool timed, gpu_event **out, tpl_err *e);
void gpu_event_destroy(gpu_event *v);
tpl_code gpu_event_record(gpu_event *v, gpu_queue *q, tpl_err *e);
/* What is enqueued on q from now on waits for the event. */
tpl_code gpu_event_join(gpu_event *v, gpu_queue *q, tpl_err *e);
/* Puts the passing of a timed event into what a recorded walk does, so that each of its runs stamps it anew; outside of
 * one the same as gpu_event_record(). */
tpl_code gpu_event_stamp(gpu_event *v, gpu_queue *q, tpl_err *e);
/* Time between two timed events that have both passed. */
tpl_code gpu_event_elapsed_us(gpu_event *from, gpu_event *to, double *us, tpl_err *e);

/* ---- recorded walks ---- */

/* Between begin and end, what is enqueued on q, and on queues that joined an event of it, is recorded instead of run.
 * After a failure in between, gpu_record_drop() takes the queue back. */
tpl_code gpu_record_begin(gpu_queue *q, tpl_err *e);
tpl_code gpu_record_end(gpu_queue *q, gpu_graph **out, tpl_err *e);
void gpu_record_drop(gpu_queue *q);
tpl_code gpu_graph_launch(gpu_graph *r, gpu_queue *q, tpl_err *e);
void gpu_graph_destroy(gpu_graph *r);
int gpu_graph_nodes(const gpu_graph *r);

#ifdef __cplusplus
}
#endif

#endif
