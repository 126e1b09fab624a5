/* exec.h - how a backend runs a team's step lists: where weights, caches and activations live, and who walks the lists.
 * For:    team.c and session.c, which leave to it all that differs between a host and a card.
 * Enter:  engine/ only.
 * Owns:   what team_open() and open() allocate, until team_close() and close(), which take half-made objects too.
 * Fails:  as team.h and session.h say. */
#ifndef TPL_ENGINE_EXEC_H
#define TPL_ENGINE_EXEC_H

#include "engine/session.h"

typedef struct exec_ops {
    bool host;         /* ranks run on threads of this process and read the model's weights in place */
    tpl_dtype compute; /* where team_options name none */
    /* After every rank's plan and weights (views of the model) stand: brings them where the backend wants them. */
    tpl_code (*team_open)(team *t, tpl_err *e);
    void (*team_close)(team *t);
    /* Caches, activations and scratch of all local ranks, once the session's pages are laid out. */
    tpl_code (*open)(session *s, tpl_err *e);
    void (*close)(session *s);
    /* Runs the batch laid out in the session through its phase's list, on all local ranks; returns when it has run. */
    tpl_code (*forward)(session *s, tpl_err *e);
    const float *(*logits)(const session *s, int i);
    int32_t (*best)(const session *s, int i);
    /* Makes a stream's cache of one rank random (session_fill_random()). */
    tpl_code (*fill)(session *s, int local_rank, int stream, uint64_t seed, tpl_err *e);
    /* Moves cached values of one rank or between local ranks, after the last pass and before the next: n pieces that lie
     * to_step and from_step bytes apart. */
    tpl_code (*move)(session *s, void *to, size_t to_step, const void *from, size_t from_step, size_t bytes, int n,
                     tpl_err *e);
    /* session_top(), session_time_blocks(), session_block_times(); NULL: a host has none. */
    session_likeliest (*top)(const session *s, int i);
    tpl_code (*time_blocks)(session *s, bool on, tpl_err *e);
    block_times (*times)(const session *s, int local_rank, plan_phase phase);
} exec_ops;

/* The executor of a backend: the card's for "cuda", the host's for all others. */
const exec_ops *exec_find(const char *backend);

extern const exec_ops exec_cpu, exec_cuda;

/* ---- for executors ---- */

/* Bytes of one layer's pages of a KV stream on a rank. */
int64_t exec_layer_bytes(const session *s, int local_rank, int stream);
enum { EXEC_FILL_BYTES = 256 << 20 }; /* random values are repeated after so many bytes */
/* Scratch that any step of any batch of the session may want; the rank's bind_env must stand. */
tpl_code exec_scratch_bytes(session *s, int local_rank, size_t *out, tpl_err *e);
/* What a step wrote. */
mat exec_written(const plan_step *step, const bind_env *env);

#endif
