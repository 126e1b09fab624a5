/* ops.h - the operations of a forward pass as plain data: what a kernel reads, writes and computes.
 * For:    engine/ fills an op_call from a step; kernels/ runs it; op_cost() counts it (pointers may then be NULL).
 * Enter:  kernels/, engine/, bench/, tests/.
 * Owns:   nothing; every pointer is borrowed for the duration of the call and lives in the backend's memory.
 * Fails:  nothing here can. Shapes are checked by kernel_run(), once, before the kernel trusts them. */
#ifndef TPL_KERNELS_OPS_H
#define TPL_KERNELS_OPS_H

#include <stdbool.h>
#include <stdint.h>

#include "base/dtype.h"

#define OP_LIST(X)                                                                                       \
    X(OP_EMBED, embed)             /* out[row] = table[token[row]] */                                    \
    X(OP_RMSNORM, rmsnorm)         /* per row and group: x / sqrt(mean(x^2) + eps) * weight */           \
    X(OP_SLICED_NORM, sliced_norm) /* TPLA approximation 1: each latent slice estimates the whole RMS */ \
    X(OP_MATMUL, matmul)           /* out (+)= x w^T (+ bias) */                                         \
    X(OP_HEAD_MATMUL, head_matmul) /* per head: out_h (+)= x_h w_h or x_h w_h^T (absorb, unabsorb) */    \
    X(OP_ROPE, rope)               /* rotary position embedding, in place */                             \
    X(OP_KV_APPEND, kv_append)     /* rows into the paged cache */                                       \
    X(OP_ATTN_LATENT, attn_latent) /* absorbed MLA: one shared latent head, many query heads */          \
    X(OP_ATTN_MHA, attn_mha)       /* MLA in MHA form: K and V expanded from cached latents */           \
    X(OP_ATTN_GQA, attn_gqa)       /* grouped-query attention over cached K and V */                     \
    X(OP_LSE_MERGE, lse_merge)     /* decode context parallel: weigh a part by its log-sum-exp */        \
    X(OP_SILU_MUL, silu_mul)       /* out = silu(gate) * up */                                           \
    X(OP_ADD, add)                 /* out += x */                                                        \
    X(OP_COPY_HEADS, copy_heads)   /* per head: out_h = x_h, from one head stride to another */            \
    X(OP_GATHER_ROWS, gather_rows) /* out[i] = x[index[i]] */                                            \
    X(OP_MOE_ROUTE, moe_route)     /* which experts a row goes to, and with what weights */              \
    X(OP_MOE_EXPERTS, moe_experts) /* out (+)= sum over a row's experts of weight * swiglu(x) */

typedef enum {
#define OP_ENUM(kind, name) kind,
    OP_LIST(OP_ENUM)
#undef OP_ENUM
    OP_COUNT
} op_kind;

const char *op_name(op_kind op);
bool op_is_attention(op_kind op); /* over cached tokens */

/* A row-major matrix of activations or weights. Element (r, c) is at data[r * stride + c]. */
typedef struct {
    void *data;
    tpl_dtype dtype;
    int64_t rows, cols;
    int64_t stride;     /* elements from row to row, >= cols */
    const float *scale; /* DT_F8E4M3 only: one factor a block of 128 x 128, [ceil(rows/128), ceil(cols/128)]; else NULL */
} mat;

/* One weight matrix a head: head i's matrix starts at data + i * head_stride. */
typedef struct {
    const void *data;
    tpl_dtype dtype;
    int32_t heads, rows, cols; /* of one head's matrix */
    int64_t row_stride, head_stride; /* elements */
} head_mat;

/* One layer of a paged cache as one rank sees it. Slot s (0, 1, ... in order of appending within a sequence) is kept here if
 * s % mod == rem; it is then local token t = s / mod, in page page_table[seq, t / page_tok] at row t % page_tok.
 * Entries of the table beyond a sequence's pages are undefined and must not be followed. */
typedef struct {
    void *pages; /* [n_pages, page_tok, width] */
    tpl_dtype dtype;
    int32_t width, page_tok;
    const int32_t *page_table; /* [n_seqs, max_pages] */
    int32_t max_pages;
    int32_t mod, rem; /* 1, 0 where every slot is kept */
} kv_view;

/* The rows of one forward pass. Rows of a sequence are adjacent: sequence s owns rows [seq_row0[s], seq_row0[s + 1]).
 * Its row number i (from 0) is written to slot seq_prefix[s] + i. A row sees every slot below seq_prefix[s] and, among
 * its sequence's rows, those of row_mask: bit j of word j/64 stands for row seq_row0[s] + j; with row_mask NULL it sees
 * rows 0..i (a causal chain). A row always sees itself.
 * Where seq_open is given, seq_open[s] earlier rows of an unfinished tree lie between the prefix and this batch's rows:
 * row number i is then written to slot seq_prefix[s] + seq_open[s] + i, and bit j of its mask stands for slot
 * seq_prefix[s] + j. seq_open comes with a row_mask. */
typedef struct {
    int32_t n_rows, n_seqs;
    const int32_t *row_token;  /* [n_rows] */
    const int32_t *row_seq;    /* [n_rows] index into this batch's sequences */
    const int32_t *row_pos;    /* [n_rows] position for RoPE */
    const int32_t *seq_row0;   /* [n_seqs + 1] */
    const int32_t *seq_prefix; /* [n_seqs] */
    const int32_t *seq_open;   /* [n_seqs] or NULL */
    const uint64_t *row_mask;  /* [n_rows, mask_words] or NULL */
    int32_t mask_words;
    int64_t ctx_tok;       /* sum over sequences of prefix + open + rows: tokens an attention reads (for op_cost) */
    int64_t visible_pairs; /* sum over rows of slots seen (for op_cost) */
    /* Upper bounds of a sequence's rows in this batch and of its slots after it, by which a card, whose arrays the host
     * does not read, sizes its launches. Kernels of the host ignore them. */
    int32_t max_seq_rows, max_slots;
} batch_view;

typedef struct {
    mat table; /* [vocab, dim] */
    mat out;   /* [rows, dim] */
    const batch_view *batch;
} op_embed;

typedef struct {
    mat x, out;    /* [rows, groups * width]; out may be x */
    mat weight;    /* [1, width], shared by the groups; data NULL: ones */
    int32_t groups; /* 1, or heads for q/k norms */
    float eps;
} op_rmsnorm;

/* out^j = c^j / sqrt(alpha_j |c^j|^2 / kv_lora_rank + eps): TPLA paper, Section on RMSNorm slicing. */
typedef struct {
    mat x, out;         /* [rows, n_slices * width]; out may be x */
    const float *alpha; /* [n_slices] */
    int32_t n_slices, kv_lora_rank;
    float eps;
} op_sliced_norm;

typedef struct {
    mat x;    /* [rows, k] */
    mat w;    /* [n, k] */
    mat out;  /* [rows, n] */
    mat bias; /* [1, n]; data NULL: none */
    bool accumulate; /* add to what out holds */
} op_matmul;

typedef struct {
    mat x;      /* head h's input: columns [h * x_head_stride, + k) */
    head_mat w; /* transposed: [n, k] a head, y = x w^T; else [k, n], y = x w */
    mat out;    /* head h's output: columns [h * out_head_stride, + n) */
    int32_t x_head_stride, out_head_stride;
    bool transposed, accumulate;
} op_head_matmul;

/* Rotates the first `dim` of every head's columns; head h starts at column h * head_stride. Pairs are (2i, 2i+1) if
 * interleaved (DeepSeek), else (i, i + dim/2) (Llama); the result is always stored in the latter, half-split order, as
 * transformers does, so that queries and keys agree. */
typedef struct {
    mat x;
    int32_t heads, head_stride, dim;
    const float *cos, *sin; /* [max_pos, dim / 2] */
    bool interleaved;
    const batch_view *batch;
} op_rope;

/* Writes a row's `a` to columns [a_off, + a.cols) of its slot and `b` (data may be NULL) to [b_off, + b.cols).
 * Rows whose slot this rank does not keep are skipped. */
typedef struct {
    mat a, b;
    int32_t a_off, b_off;
    kv_view kv;
    const batch_view *batch;
} op_kv_append;

/* For head h and row i: s_t = scale (q_lat . lat_t + q_pe . pe_t) over visible kept slots t; p = softmax(s);
 * out = sum p_t lat_t; lse = log sum exp(s) (natural). No visible kept slot: out = 0, lse = -inf. */
typedef struct {
    mat q_lat, q_pe; /* head h: columns [h * q_lat_head_stride, + lat) and [h * q_pe_head_stride, + rope) */
    int32_t q_lat_head_stride, q_pe_head_stride;
    int32_t heads, lat, rope;
    int32_t lat_off, rope_off; /* columns of a cached row */
    kv_view kv;
    mat out; /* [rows, heads * lat] */
    mat lse; /* [rows, heads] f32; data NULL: not wanted */
    float scale;
    const batch_view *batch;
} op_attn_latent;

/* k_h,t = (lat_t W_UK,h^T, pe_t), v_h,t = lat_t W_UV,h^T; ordinary attention of heads `nope + rope` wide. */
typedef struct {
    mat q;        /* [rows, heads * (nope + rope)] */
    head_mat w_uk; /* [nope, lat] a head */
    head_mat w_uv; /* [v_dim, lat] a head */
    int32_t heads, nope, rope, v_dim, lat;
    int32_t lat_off, rope_off;
    kv_view kv;
    mat out; /* [rows, heads * v_dim] */
    bool accumulate; /* add to what out holds (the sum over latent slices) */
    float scale;
    const batch_view *batch;
} op_attn_mha;

typedef struct {
    mat q; /* [rows, heads * head_dim] */
    int32_t heads, kv_heads, head_dim;
    int32_t k_off, v_off; /* columns of a cached row: K and V, each [kv_heads, head_dim] */
    int32_t window;       /* a row sees only the last `window` slots, itself included; 0: all */
    kv_view kv;
    mat out; /* [rows, heads * head_dim] */
    float scale;
    const batch_view *batch;
} op_attn_gqa;

/* o_h *= exp(lse_part,h - logsumexp over parts of lse_h); all parts -inf: o_h = 0. */
typedef struct {
    mat o;   /* [rows, heads * lat], in place */
    mat lse; /* [rows, parts * heads]: part p's heads at columns [p * heads, + heads) */
    int32_t heads, lat, parts, part;
} op_lse_merge;

typedef struct {
    mat gate, up, out; /* [rows, width]; out may be gate */
} op_silu_mul;

typedef struct {
    mat x, out; /* [rows, width] */
} op_add;

typedef struct {
    mat x, out;
    int32_t heads, cols, x_head_stride, out_head_stride;
} op_copy_heads;

typedef enum { MOE_SOFTMAX, MOE_SIGMOID } moe_scoring;

/* scores = softmax or sigmoid of x w^T. Selection: of scores (+ bias, where data is given), only in the topk_group best of
 * n_group groups (a group's value is the sum of its two best with a bias, else its best), the top_k best. A row's weights
 * are the chosen experts' scores without bias, divided by their sum if `normalise`, times `scale`. */
typedef struct {
    mat x;       /* [rows, dim] */
    mat w;       /* [n_experts, dim] */
    mat bias;    /* [1, n_experts] f32; data NULL: none */
    mat ids;     /* out: [rows, top_k] DT_I32 */
    mat weights; /* out: [rows, top_k] f32 */
    int32_t top_k, n_group, topk_group;
    moe_scoring scoring;
    bool normalise;
    float scale;
} op_moe_route;

/* This rank's experts expert0 .. expert0 + n_local - 1; routes to others are skipped. */
typedef struct {
    mat x;                     /* [rows, dim] */
    mat ids, weights;          /* [rows, top_k] */
    const mat *gate, *up, *down; /* [n_local] matrices: [ffn, dim], [ffn, dim], [dim, ffn]; NULL when counting */
    int32_t expert0, n_local, n_experts, ffn;
    tpl_dtype weight_dtype;
    mat out; /* [rows, dim] */
    bool accumulate;
} op_moe_experts;

typedef struct {
    mat x;                /* [any, width] */
    const int32_t *index; /* [out.rows] rows of x */
    mat out;
} op_gather_rows;

typedef struct {
    op_kind kind;
    union {
#define OP_MEMBER(kind_, name) op_##name name;
        OP_LIST(OP_MEMBER)
#undef OP_MEMBER
    };
} op_call;

/* Least work of one call: each input read once, each output written once. Weights count as stored. */
typedef struct {
    double bytes_read, bytes_written, flops;
} op_cost_sum;

op_cost_sum op_cost(const op_call *call);

#endif
