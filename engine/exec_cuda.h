/* exec_cuda.h - the inside of the card's executor, shared by exec_cuda.c (walks), exec_cuda_blocks.c (their time by
 * block), exec_cuda_threads.c (a thread a rank) and exec_cuda_weights.c (teams).
 * For:    those files.  Enter: nobody else.  Owns: see exec.h.  Fails: see exec.h. */
#ifndef TPL_ENGINE_EXEC_CUDA_H
#define TPL_ENGINE_EXEC_CUDA_H

#include "device/gpu.h"
#include "device/gpu_comm.h"
#include "engine/exec.h"
#include "kernels/card.h"

/* A card that ranks of this process live on, with the tables they share. */
typedef struct {
    gpu *card;
    gpu_queue *queue; /* for uploads */
    dev_buf rope_cos, rope_sin, alpha;
    const float **alpha_rows; /* [n_layers] on the card; NULL where the team has none */
} cuda_place;

/* A team on cards: all local ranks on one, or each on its own. Weights of a rank are one allocation. */
typedef struct {
    cuda_place *places;
    int n_places;
    dev_buf *weights; /* [n_local] */
    gpu_comm *comm;   /* between ranks that have a card each; NULL where ranks share one, are alone, or reach each
                       * other's memory: then a collective is one launch on its first rank's card (fuzzy plans) */
    gpu_peer *spread; /* without comm: exchanges of all ranks through each other's memory, each in a launch of its own;
                       * NULL where cards cannot */
    gpu *comm_cards[CARD_MAX_RANKS]; /* the communicator's own, where all ranks live in this process */
} cuda_team;

/* Stamps of the card's clock where a rank's walk goes on to another block. */
typedef struct cuda_clock cuda_clock;

tpl_code cuda_clock_create(const session *s, cuda_clock **out, tpl_err *e);
void cuda_clock_destroy(cuda_clock *c);
block_kind cuda_block_of(const plan_step *step);
/* Forgets the passes that were added. */
void cuda_clock_zero(cuda_clock *c);
/* A walk of a phase: from begin on, before each of a rank's active steps, and at its end. All may be recorded. */
void cuda_clock_begin(cuda_clock *c);
tpl_code cuda_clock_step(cuda_clock *c, int rank, const plan_step *step, gpu_queue *q, tpl_err *e);
tpl_code cuda_clock_end(cuda_clock *c, int rank, gpu_queue *q, tpl_err *e);
/* Adds a pass that has run. */
tpl_code cuda_clock_read(cuda_clock *c, plan_phase phase, tpl_err *e);
block_times cuda_clock_times(const cuda_clock *c, int rank, plan_phase phase);

/* Enqueues the session's batch, all ranks' lists at once; step() enqueues one step, a collective for all its ranks. */
typedef tpl_code (*cuda_step_fn)(session *s, int rank, int index, tpl_err *e);
tpl_code cuda_walk_by_threads(session *s, cuda_step_fn step, tpl_err *e);

cuda_place *cuda_place_of(cuda_team *c, int local_rank);
tpl_code cuda_team_open(team *t, tpl_err *e);
void cuda_team_close(team *t);

#endif
