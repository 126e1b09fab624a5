/* team.h - the ranks that run a model together: each with its plan, its weight shards and its place in the collectives.
 * For:    sessions run on a team; one team can serve several sessions, one after the other.
 * Enter:  engine/, eval/, bench/, cli/, tests/.
 * Owns:   team_create() owns ranks, threads and copied shards; it borrows the model and the folded weights.
 * Fails:  TPL_E_USAGE (variant, tp), TPL_E_MEMORY, TPL_E_DEVICE (library check, ranks).
 *
 * Backend "cuda": all ranks of this process share one card, and the caller's thread enqueues for all of them. Otherwise
 * rank 0 runs on the caller's thread, the others on threads of their own, each with one OpenMP thread. */
#ifndef TPL_ENGINE_TEAM_H
#define TPL_ENGINE_TEAM_H

#include "device/memory.h"
#include "engine/bind.h"
#include "engine/plan.h"
#include "engine/shards.h"
#include "engine/transform.h"
#include "kernels/kernels.h"

/* Threads (or one shared card); rank 0 alone; processes under mpirun, one rank each; one process with a card a rank;
 * processes that the program started itself. */
typedef enum { RANKS_LOCAL, RANKS_SOLO, RANKS_MPI, RANKS_NCCL, RANKS_PROCS } ranks_kind;

const char *ranks_name(ranks_kind k);
bool ranks_from_name(const char *name, ranks_kind *out);
bool ranks_are_processes(ranks_kind k);
/* TPL_E_USAGE where a team of k would need other processes than were launched. */
tpl_code ranks_check(ranks_kind k, int tp, tpl_err *e);

/* Backend "cuda": which runs of steps one launch may do. Feed-forward: those of the layers' feed-forward only. */
typedef enum { JOINS_ALL, JOINS_FEED_FORWARD, JOINS_OFF } joins_kind;

typedef struct {
    int32_t tp;
    ranks_kind ranks;
    tpl_dtype compute, kv; /* DT_F32 or DT_BF16; DT_NONE: f32 (cuda: bf16), and kv as compute */
    const char *backend;   /* row of the kernels table: "cpu" (NULL), "ref" or "cuda" */
    int32_t first_card;    /* of this process's ranks on cards: rank i is on first_card + i, or all share first_card */
    bool isolate;          /* copy every shard, so that nothing outside it is read; caches start as NaN */
    bool no_graph;         /* backend "cuda": never replay recorded walks, enqueue every step of every pass */
    joins_kind joins;
    plan_options plan;
    int64_t remote_id; /* ranks that are processes: what followers call this team; set by lab.c */
} team_options;

typedef struct team team;

/* `folded` is needed where variant_needs_transform(), else NULL. */
tpl_code team_create(const model *m, const folded *f, const variant *v, const team_options *o, team **out, tpl_err *e);
void team_destroy(team *t);

int team_n_local(const team *t); /* ranks in this process */
const plan *team_plan(const team *t, int local_rank);
const team_options *team_opts(const team *t);
const model *team_model(const team *t);
/* Bytes of weight shards this rank copied (isolate) or views (else). */
int64_t team_weight_bytes(const team *t, int local_rank);

/* ---- for engine/session.c ---- */

typedef struct {
    plan *p;
    bound_weight *weights;
    shard_memory *memory; /* [n_weights] what was copied of them */
    comm *comm;
} team_rank;

team_rank *team_get_rank(team *t, int local_rank);
const struct exec_ops *team_exec(const team *t);
void **team_exec_state(team *t); /* the executor's own */
const float *team_rope_cos(const team *t);
const float *team_rope_sin(const team *t);
const float *const *team_alpha(const team *t); /* NULL without a transform */

/* Whether local ranks have threads of their own. */
bool team_has_threads(const team *t);
/* Calls fn(arg, local_rank) on every local rank's thread and waits; gives the first failing rank's error. Between passes
 * others may use the threads too (eval/ for what it makes of logits); a card's ranks have none: one after the other. */
tpl_code team_run(team *t, tpl_code (*fn)(void *arg, int local_rank, tpl_err *e), void *arg, tpl_err *e);

#endif
