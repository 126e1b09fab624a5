/* session.h - sequences and their KV cache on a team; one forward pass over a batch of rows.
 * For:    everything that produces logits.
 * Enter:  engine/, eval/, bench/, cli/, tests/.
 * Owns:   session_create() owns caches, activations and scratch of all local ranks; it borrows the team.
 * Fails:  TPL_E_MEMORY (cache full, machine too small), TPL_E_INPUT (token or context out of range), TPL_E_USAGE. A failed
 *         session_forward() leaves every sequence as it was, unless a rank itself failed (TPL_E_DEVICE).
 *
 * A forward pass allocates nothing. Ranks of one process share page tables; token s of a sequence is slot s. */
#ifndef TPL_ENGINE_SESSION_H
#define TPL_ENGINE_SESSION_H

#include "engine/team.h"

typedef struct session session;

typedef struct {
    int32_t max_seqs;  /* sequences alive at once */
    int32_t max_tok;   /* longest sequence, at most the model's max_position_embeddings */
    int64_t total_tok; /* cached tokens over all sequences; 0: max_seqs * max_tok */
    int32_t max_rows;  /* rows of one forward pass */
    int32_t max_logits; /* rows of one forward pass whose logits are wanted */
    int32_t max_tree;   /* rows of an open tree; 0: none is ever opened */
    int32_t max_top;    /* likeliest tokens that session_top() may be asked for */
} session_options;

tpl_code session_create(team *t, const session_options *o, session **out, tpl_err *e);
void session_destroy(session *s);

/* A new, empty sequence: its handle, or -1 if max_seqs are alive. */
int session_add_seq(session *s);
void session_drop_seq(session *s, int seq);
int session_len(const session *s, int seq);
/* Forgets all slots from len on. */
void session_truncate(session *s, int seq, int len);

/* Stand-ins for a prompt, where only time is of interest: every cached value of every sequence becomes seeded random, in
 * [-1, 1), the same on all ranks and repeated every 256 MiB. TPL_E_UNSUPPORTED where ranks are in several processes. */
tpl_code session_fill_random(session *s, uint64_t seed, tpl_err *e);
/* The sequence holds len tokens from now on, no fewer than before; of the new ones whatever is in its pages. */
tpl_code session_assume(session *s, int seq, int len, tpl_err *e);
/* Leaves collectives out of passes, so that their time can be told from the rest: a gather repeats a rank's own part, a
 * reduce-scatter keeps it. TPL_E_UNSUPPORTED where ranks are neither on cards of their own nor threads of a host. */
tpl_code session_set_silent(session *s, bool silent, tpl_err *e);
/* The same, and only rank 0 works, until session_set_silent(). TPL_E_UNSUPPORTED but for threads of a host. */
tpl_code session_set_alone(session *s, tpl_err *e);
/* Passes do their attention over cached tokens and nothing else, so that its time can be told from the rest; what it
 * reads and leaves means nothing. TPL_E_UNSUPPORTED but on cards of this process. */
tpl_code session_set_attention_alone(session *s, bool on, tpl_err *e);

/* From now on the sequence's rows are nodes of a tree that grows over several passes; what is cached is its prefix.
 * session_keep_path() or a truncation to the prefix ends it. */
void session_open_tree(session *s, int seq);
/* Keeps a path of the open tree and forgets its other rows: rows[n] are numbers of tree rows in order of appending, each the
 * parent of the next, the first one a child of the prefix. Their cache slots move to where a chain would have them.
 * TPL_E_USAGE where they are no such path, TPL_E_UNSUPPORTED where a slot would come from a rank of another process; the
 * tree is then as it was. */
tpl_code session_keep_path(session *s, int seq, const int32_t *rows, int n, tpl_err *e);

/* parent: ROW_CHAIN, the sequence's previous row in this batch (or its last cached token); ROW_PREFIX, the last cached
 * token; the index in the batch of an earlier row of the same sequence; or ROW_OPEN(j), row j of its open tree. */
enum { ROW_CHAIN = -1, ROW_PREFIX = -2, ROW_OPEN_0 = -3 };
#define ROW_OPEN(j) (ROW_OPEN_0 - (j))

typedef struct {
    int32_t seq, token, parent;
    bool want_logits;
} batch_row;

/* Runs n rows through the phase's list. Rows of a sequence must be adjacent. Afterwards a sequence is longer by its rows;
 * one whose rows did not form a chain must be truncated to at most its old length before it is used again. A sequence that
 * has begun to decode cannot prefill again where the variant prefills exactly over a cache that decode gives back. */
tpl_code session_forward(session *s, plan_phase phase, const batch_row *rows, int n, tpl_err *e);

/* Logits of the i-th row that wanted them, in row order; [vocab], until the next forward pass. */
const float *session_logits(const session *s, int i);
int session_n_logits(const session *s);
/* Their best token, as sampler_argmax() chooses; found where the logits are, so that they need not be copied from a card. */
int32_t session_best(const session *s, int i);

/* Where logits lie on a card, passes can also find every wanted row's k likeliest tokens, falling (the lowest among
 * equals first), and their shares of softmax(logits / temperature), so that no logits need be copied. */
typedef struct {
    const int32_t *tokens; /* [k], -1 where there are no more */
    const float *shares;   /* [k] */
} session_likeliest;
/* Most that may be asked for: max_top or less; 0: logits are on the host anyway. */
int session_most_top(const session *s);
/* From the next pass on; k 0: no more. */
void session_want_top(session *s, int k, float temperature);
session_likeliest session_top(const session *s, int i);

team *session_team(session *s);
const session_options *session_opts(const session *s);
/* Bytes of KV pages that exist on a local rank, and of those that hold tokens now. */
int64_t session_kv_bytes(const session *s, int local_rank, int stream);
int64_t session_kv_used_bytes(const session *s, int local_rank, int stream);

/* Called around every step on the rank's own thread: for traces, time splits, calibration taps. `call` is NULL for
 * collectives; `out` is what the step wrote (in place steps: what they changed). Either function may be NULL. */
typedef struct {
    void (*begin)(void *user, int rank, const plan_step *step);
    void (*end)(void *user, int rank, const plan_step *step, const op_call *call, mat out);
    void *user;
} step_observer;

void session_observe(session *s, step_observer o);
/* On a card, whose work is seen by a tracer only (engine/card_trace.h): tells several sessions of one trace apart. */
void session_set_trace_tag(session *s, uint8_t tag);

/* What a card's own clock says of a rank's walks: time between the first step of a block (a layer's attention, its
 * feed-forward, an exchange with other ranks and the wait for them, the rest) and that of the next. */
typedef enum { BLOCK_ATTENTION, BLOCK_FEED_FORWARD, BLOCK_EXCHANGE, BLOCK_OTHER, N_BLOCKS } block_kind;
typedef struct {
    int64_t n_passes;
    double us[N_BLOCKS];                /* sums over passes */
    double attention_of_layer[GROUPS_MAX]; /* us */
} block_times;
/* Counts from zero. TPL_E_UNSUPPORTED on a host, where observers see the same. */
tpl_code session_time_blocks(session *s, bool on, tpl_err *e);
block_times session_block_times(const session *s, int local_rank, plan_phase phase);

#endif
