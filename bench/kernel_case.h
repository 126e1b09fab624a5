/* kernel_case.h - one configuration of `tplabench kernels`: which operation of which model, variant and rank, how
 * large. For:    bench/kernels_bench.c makes the list; kernel_world.c makes a case runnable. Enter:  bench/, tests/.
 * Owns:   cases live in the caller's arena.
 * Fails:  TPL_E_USAGE naming the option; TPL_E_IO, TPL_E_INPUT where a shape file is none.
 *
 * Sizes are those of a plan's first layer on rank 0: what is measured is what the engine would run. */
#ifndef TPL_BENCH_KERNEL_CASE_H
#define TPL_BENCH_KERNEL_CASE_H

#include "bench/measure.h"
#include "engine/plan.h"
#include "kernels/kernels.h"
#include "results/row.h"

/* enum, name of --op, what it is */
#define KERNEL_FAMILY_LIST(X)                                                                                          \
    X(FAM_ATTN_DECODE, attn_decode)   /* a variant's decode attention over a full cache */                             \
    X(FAM_ATTN_PREFILL, attn_prefill) /* a prompt's attention, MHA form for latent models */                           \
    X(FAM_MATMUL, matmul)             /* the projections and feed-forward products */                                  \
    X(FAM_HEAD_MATMUL, head_matmul)   /* absorb and unabsorb */                                                        \
    X(FAM_RMSNORM, rmsnorm)                                                                                            \
    X(FAM_ROPE, rope)                                                                                                  \
    X(FAM_HADAMARD, hadamard) /* rotation of the latent, as a product with the matrix */                               \
    X(FAM_COMM, comm)         /* collectives between thread ranks */

typedef enum {
#define KERNEL_FAMILY_ENUM(id, name) id,
    KERNEL_FAMILY_LIST(KERNEL_FAMILY_ENUM)
#undef KERNEL_FAMILY_ENUM
        FAM_N
} kernel_family;

const char *kernel_family_name(kernel_family f);

enum { KERNEL_MAX_STEPS = 8 };

/* What the bound of one step takes. */
typedef struct {
    op_kind kind;
    op_cost_sum cost;
    bool in_place;
} kernel_case_step;

typedef struct {
    kernel_family family;
    const char *op;          /* cell: "attn_latent", "matmul", "hadamard", "all_reduce" */
    char shape[96];          /* cell: "deepseek-v3/tp2/attn.q_b" */
    const model_config *cfg; /* one layer of the model */
    variant v;
    char variant_text[VARIANT_TEXT]; /* "" where the operation does not depend on it */
    plan_phase phase;
    char step[32]; /* all steps of this name in the layer run one after another */
    comm_op comm;
    int32_t tp, threads;
    int64_t batch, context_tok, query_tok; /* batch 0: the operation has no sequences, context_tok are its rows */
    tpl_dtype dtype;                       /* of weights, cache and inputs of products */
    const char *backend;                   /* a backend, or the name of one of its rows */
    int32_t heads, kv_rank, rope_dim;      /* 0: empty cell */
    op_cost_sum cost;                      /* of one call of all steps on one thread */
    kernel_case_step steps[KERNEL_MAX_STEPS];
    int32_t n_steps;
    int32_t group;     /* cases of a group differ in the variant only and are compared with its first */
    char why_not[192]; /* not empty: cannot run, and why */
} kernel_case;

/* Option texts; NULL means the default in brackets. Lists use commas, numbers are axes ("1K:128K*2"). */
typedef struct {
    const char *op;         /* families [all] */
    const char *shape;      /* model shapes [deepseek-v3,kimi-k2,llama-3-70b] */
    const char *shapes_dir; /* folder of NAME.json [models/shapes] */
    const char *variant;    /* [mla,mla-dcp,tpla:g=2,tpla:g=4,gqa]; the first that fits a model is the baseline */
    const char *backend;    /* [cpu]; all on the processor, or all on a card */
    const char *dtype;      /* bf16, f32 [bf16] */
    const char *tp;         /* [1,2,4] */
    const char *context;    /* cached tokens of decode attention [1K,8K] */
    const char *prompt;     /* tokens of prefill attention [512] */
    const char *batch;      /* sequences of attention [1] */
    const char *query;      /* new tokens a sequence in decode attention [1] */
    const char *rows;       /* rows of all other operations [1,512] */
    const char *threads;    /* independent copies that run at once [1] */
    const char *filter;     /* only cases whose kernel_case_name() matches: a pattern (*, ?, []), else a part of it */
} kernel_axes;

/* Every combination that makes sense, in order; groups are adjacent. */
tpl_code kernel_cases_make(const kernel_axes *axes, arena *a, kernel_case **cases, int *n, tpl_err *e);

/* "attn_latent deepseek-v3/tp2/attn.latent tpla:g=2:... bf16 cpu threads=1 batch=1 context=8192 query=1" */
void kernel_case_name(const kernel_case *c, char *buf, size_t bytes);
/* The command that measures this case alone. */
void kernel_case_command(const kernel_case *c, char *buf, size_t bytes);
/* Sets the configuration columns of a row of kernels.csv. They say what was asked for ("cpu", not the table row that
 * the machine then offers), so that a resumed run knows a cell before it measures. */
void kernel_case_fill(const kernel_case *c, rs_row *r);

/* Whether a backend is, or is a row of, "cuda"; and the case's. */
bool kernel_backend_is_card(const char *backend);
bool kernel_case_on_card(const kernel_case *c);
/* What runs a call of the case: `inject` if it is of the call's operation (NULL: none is), else the best row of the
 * backend, or the row of that name. TPL_E_UNSUPPORTED: none takes the shape. */
tpl_code kernel_case_row(const kernel_case *c, const kernel_row *inject, const op_call *call, const kernel_row **out,
                         tpl_err *e);

/* The plan and batch of a case (not of hadamard and comm); plan_destroy(). */
tpl_code kernel_case_plan(const kernel_case *c, plan **out, tpl_err *e);
batch_shape kernel_case_batch(const kernel_case *c);
plan_types kernel_case_types(const kernel_case *c);

#endif
