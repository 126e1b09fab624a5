/* plan.h - the list of steps that one forward pass takes on one rank: pure arithmetic from (config, variant, tp).
 * For:    the executor walks it; `tplabench plan` prints it; costs, bounds and ledgers are sums over it; traces name it.
 * Enter:  engine/, eval/, bench/, cli/, tests/. Weights are not needed.
 * Owns:   plan_create() owns everything in the plan.
 * Fails:  TPL_E_USAGE where the variant does not fit the model and tp (variant_fit()).
 *
 * Every rank of a team has a list of the same length whose steps correspond, so that collectives meet; a step in which a
 * rank takes no part is inactive there. Nothing that walks a plan asks which variant it came from. */
#ifndef TPL_ENGINE_PLAN_H
#define TPL_ENGINE_PLAN_H

#include "base/arena.h"
#include "device/comm.h"
#include "engine/groups.h"
#include "engine/model.h"
#include "engine/variant.h"
#include "kernels/ops.h"

/* PHASE_FUZZY is decode by an approximate list (plan_fuzzy); plans without groups have none. */
typedef enum { PHASE_PREFILL, PHASE_DECODE, PHASE_FUZZY, N_PHASES } plan_phase;

const char *phase_name(plan_phase p);

/* ---- what a step touches ---- */

/* Where a weight comes from: a role of the checkpoint, or something derived from it. */
enum {
    W_UK = W_N_ROLES, /* per head [nope, latent columns]: kv_b's key half, folded if the variant has a transform */
    W_UK_WHOLE,       /* the same for exact scores over the whole latent: without a slice's score scale */
    W_UV,             /* per head [v_dim, latent columns]: kv_b's value half */
    W_N_SOURCES
};

/* A region of a logical weight matrix that one rank holds. Heads are used by W_UK and W_UV, and by expert matrices, where an
 * expert is a head (n_heads 0 elsewhere). */
typedef struct {
    int32_t source, layer; /* weight_role or W_UK...; layer -1 for one-a-model roles */
    int32_t head0, n_heads;
    int32_t row0, rows, col0, cols;
    bool used[N_PHASES];
} plan_weight;

/* An activation buffer: [rows, cols] of the activation type, or of f32. */
typedef struct {
    const char *name;
    int32_t cols;
    bool logit_rows; /* one row a wanted logit row instead of one a batch row */
    bool f32;        /* f32, or i32, whatever the activation type: logits, log-sum-exps, routes */
} plan_buf;

/* Columns [col, col + cols) of a buffer; buf -1: nothing. */
typedef struct {
    int32_t buf, col, cols;
} plan_ref;

/* A stream of the KV cache. Stream 0 is what decode reads. Stream 1, where it exists, holds the whole latent while a
 * prompt is prefilled exactly; its pages go back when the sequence begins to decode. */
typedef struct {
    bool used;
    int32_t width;    /* values a token and layer on this rank */
    int32_t mod, rem; /* slots kept: s % mod == rem */
} plan_stream;

enum { KV_MAIN, KV_PREFILL, KV_N_STREAMS };

enum { STEP_MAX_IN = 3, STEP_MAX_W = 3 };

typedef struct {
    const char *name; /* "attn.q_b"; the same in every layer */
    int32_t layer;    /* -1: outside the layers */
    bool active;      /* this rank takes part */
    bool is_comm;
    op_call call; /* kernel steps: sizes and constants filled in, pointers and rows not */
    comm_op comm; /* collective steps: on in[0], and out where the collective has one */
    comm_group group;
    plan_ref in[STEP_MAX_IN], out;
    int32_t w[STEP_MAX_W]; /* indices of plan.weights, -1: none */
    int32_t stream;        /* KV stream read or written, -1: none */
    int32_t alpha0;        /* sliced_norm: first latent slice */
} plan_step;

typedef struct {
    plan_step *steps;
    int32_t n;
} plan_list;

typedef struct {
    arena mem;
    model_config cfg;
    variant v;
    int32_t tp, rank;
    plan_list list[N_PHASES];
    plan_weight *weights;
    int32_t n_weights;
    plan_buf *bufs;
    int32_t n_bufs, logits_buf;
    plan_stream streams[KV_N_STREAMS];
} plan;

/* EasySpec's draft over `tp` ranks. A layer's attention runs whole on one rank, its owner, which keeps the layer's cache:
 * layer i of a group of several on rank i mod tp, a layer alone on rank 0. The rest runs on rank 0. In the fuzzy list all
 * attention of a group reads the group's input; its outputs are gathered, and residual adds and feed-forwards follow in
 * order. The exact lists (prefill, decode) keep to the same owners' caches. */
typedef struct {
    layer_groups groups; /* n 0: an ordinary plan */
    bool whole_layers;   /* ablation: a group's feed-forwards are parallel too; layer i reads input + own attention */
    bool blocks;         /* layer i of a group on rank i / ceil(size / tp) instead */
    bool visit;          /* exact lists go from owner to owner. Else rank 0 runs them, with a cache of all layers of its own,
                          * and sends the new rows to their owners; rows of a fuzzy pass must then be truncated before it. */
} plan_fuzzy;

typedef struct {
    plan_fuzzy fuzzy;
    bool attention_only; /* leave the feed-forward of all layers out (the TPLA paper's timing) */
    bool decode_only; /* a decode team's: where prompts are prefilled exactly over the whole latent, no list, no weights and no
                       * cache for that; they come from another team */
    bool expert_parallel; /* a rank holds whole experts, 1/tp of them; else 1/tp of the inner columns of each expert */
} plan_options;

/* Whether the variant fits the model over tp ranks; a fuzzy plan does not split heads, so any tp does. */
tpl_code plan_fit(const model_config *c, const variant *v, int tp, const plan_options *o, tpl_err *e);
tpl_code plan_create(const model_config *c, const variant *v, int tp, int rank, plan_options o, plan **out, tpl_err *e);
void plan_destroy(plan *p);

/* What a rank's row of KV_MAIN holds of a token's whole one: columns [col, col + cols) are [whole, whole + cols) of the
 * latent with its key part, or of all heads' keys with all heads' values. */
typedef struct {
    int32_t col, whole, cols;
} plan_row_span;
void plan_row_spans(const plan *p, plan_row_span out[2]);

/* ---- sums over a plan ---- */

/* The shape of a batch, as far as costs depend on it. */
typedef struct {
    int64_t rows, logit_rows, seqs;
    int64_t ctx_tok;       /* sum over sequences of cached tokens an attention reads, the batch's own included */
    int64_t visible_pairs; /* sum over rows of tokens seen */
} batch_shape;

/* n_seqs sequences with `prefix` cached tokens each, `rows` new rows each (a causal chain), logits for the last row. */
batch_shape batch_shape_uniform(int64_t n_seqs, int64_t prefix, int64_t rows);

typedef struct {
    tpl_dtype act, kv;  /* element types to count with */
    tpl_dtype weight;   /* DT_NONE: as cfg.weight_dtype */
    tpl_dtype folded;   /* of weights that a transform rewrote; DT_NONE: as weight */
} plan_types;

typedef struct {
    double bytes_read, bytes_written, flops, bytes_sent;
} step_cost;

/* The type that counts for one of the plan's weights. */
tpl_dtype plan_weight_type(const plan *p, int w, plan_types t);
step_cost plan_step_cost(const plan *p, const plan_step *s, const batch_shape *b, plan_types t);
step_cost plan_cost(const plan *p, plan_phase phase, const batch_shape *b, plan_types t);

/* Bytes of the weights this rank holds for a phase, or for both (phase N_PHASES). */
int64_t plan_weight_bytes(const plan *p, plan_phase phase, plan_types t);
/* Average bytes of KV cache a token takes on this rank, all layers. */
double plan_kv_bytes_per_tok(const plan *p, int stream, plan_types t);
/* Bytes of the activation buffers for a batch of up to `rows` rows and `logit_rows` wanted logits. */
int64_t plan_act_bytes(const plan *p, int64_t rows, int64_t logit_rows, plan_types t);

#endif
