/* session_impl.h - the inside of a session, shared by session.c (life, pages) and forward.c (batches, the walk).
 * For:    those two files and the executors.  Enter: nobody else.  Owns: see session.h.  Fails: see session.h. */
#ifndef TPL_ENGINE_SESSION_IMPL_H
#define TPL_ENGINE_SESSION_IMPL_H

#include "engine/exec.h"

enum { PAGE_TOK = 64 };

typedef struct {
    bool alive;
    bool decoding; /* its prefill stream was given back */
    bool branched; /* its last rows were a tree: must be truncated to chain_len or less */
    bool open;     /* its rows from chain_len on are an open tree */
    int32_t len, chain_len;
    int32_t n_pages[KV_N_STREAMS];
} session_seq;

typedef struct {
    int32_t n_pages, n_free, max_pages, mod; /* max_pages: of one sequence; n_pages 0: the stream is not used */
    int32_t *table;      /* [max_seqs, max_pages] by sequence handle */
    int32_t *view;       /* [max_seqs, max_pages] by place in the batch: what kernels see */
    int32_t *free_pages; /* [n_pages] a stack */
} page_pool;

typedef struct {
    void **bufs; /* [n_bufs] */
    dev_buf *buf_mem, kv[KV_N_STREAMS], scratch;
    kv_view views[KV_N_STREAMS];
    int64_t layer_bytes[KV_N_STREAMS];
    bind_env env;
    kernel_ctx ctx;
} session_rank;

struct session {
    team *t;
    session_options o;
    session_seq *seqs;
    page_pool pools[KV_N_STREAMS];
    session_rank *ranks;
    int n_ranks;
    const exec_ops *exec;
    void *exec_state; /* the executor's own */
    /* The batch in flight: contents that change between passes. */
    int32_t *row_token, *row_seq, *row_pos, *seq_row0, *seq_prefix, *seq_open, *batch_seqs, *logit_index;
    uint64_t *row_mask;
    /* Open trees: of row j of sequence i the position and the ancestors, itself included. */
    int32_t *tree_pos;   /* [max_seqs, max_tree] */
    uint64_t *tree_mask; /* [max_seqs, max_tree, tree_words] */
    int32_t tree_words;
    batch_view view;
    int n_logits;
    int32_t top_k; /* 0: not wanted */
    float top_temperature;
    plan_phase phase;
    step_observer observer;
    uint8_t trace_tag; /* tells the records of several sessions apart in a card's trace */
    bool silent; /* collectives are left out */
    bool alone;  /* only rank 0 walks */
    bool attention_alone; /* all other steps are left out */
    int64_t remote_id; /* teams of processes: what followers call this session; 0: none */
    int64_t *remote_args; /* [2 + 4 * max_rows] a forward pass, to announce */
};

/* Takes the pages the batch needs (all or nothing) and lays out the page tables that kernels see. */
tpl_code session_reserve(session *s, plan_phase phase, int n_seqs, tpl_err *e);

#endif
