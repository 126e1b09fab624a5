/* exec_cuda.h - the inside of the card's executor, shared by exec_cuda.c (walks) and exec_cuda_weights.c (teams).
 * For:    those two files.  Enter: nobody else.  Owns: see exec.h.  Fails: see exec.h. */
#ifndef TPL_ENGINE_EXEC_CUDA_H
#define TPL_ENGINE_EXEC_CUDA_H

#include "device/gpu.h"
#include "engine/exec.h"

/* A team on a card: weights of each rank in one allocation, tables shared by all ranks. */
typedef struct {
    gpu *card;
    gpu_queue *queue; /* for uploads */
    dev_buf *weights; /* [n_local] */
    dev_buf rope_cos, rope_sin, alpha;
    const float **alpha_rows; /* [n_layers] on the card; NULL where the team has none */
} cuda_team;

tpl_code cuda_team_open(team *t, tpl_err *e);
void cuda_team_close(team *t);

#endif
