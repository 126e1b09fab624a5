/* exec_cuda.h - the inside of the card's executor, shared by exec_cuda.c (walks) and exec_cuda_weights.c (teams).
 * For:    those two files.  Enter: nobody else.  Owns: see exec.h.  Fails: see exec.h. */
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
    gpu_comm *comm;   /* between ranks that have a card each; NULL where ranks share one, or are alone */
    gpu *comm_cards[CARD_MAX_RANKS]; /* the communicator's own, where all ranks live in this process */
} cuda_team;

cuda_place *cuda_place_of(cuda_team *c, int local_rank);
tpl_code cuda_team_open(team *t, tpl_err *e);
void cuda_team_close(team *t);

#endif
