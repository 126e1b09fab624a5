#include "kernels/cpu/attn_gqa_decode.h"

#include <math.h>
#include <string.h>

#include "kernels/cpu/cpu.h"
#include "kernels/paging.h"

enum { HEADS = SIMD_GQA_HEADS, STATE = 2 * SIMD_MAX_LANES, LINE = 64, FIRST_TOK = 8 };

/* The heads of a key head in sets of HEADS; the last set is filled up with queries of 0. */
static int64_t sets_of(const op_attn_gqa *o)
{
    return (o->heads / o->kv_heads + HEADS - 1) / HEADS;
}

bool gqa_decode_fits(const simd_ops *v, tpl_dtype compute, const op_attn_gqa *o)
{
    bool types = compute == DT_BF16 && o->kv.dtype == DT_BF16, has = v->pairs && v->pairs->gqa_add && v->pairs->available();
    int64_t group = o->heads / o->kv_heads;
    return types && has && o->head_dim % 32 == 0 && 4 * group > 2 * HEADS * sets_of(o); /* else most queries were 0 */
}

/* Of one set: queries in bf16, outputs, the running maximum and sum; in floats. */
static int64_t set_floats(const op_attn_gqa *o)
{
    return HEADS * o->head_dim / 2 + HEADS * o->head_dim + STATE;
}

size_t gqa_decode_scratch(const op_attn_gqa *o)
{
    return (size_t)(o->kv_heads * sets_of(o) * set_floats(o)) * sizeof(float);
}

/* Part i of a sequence: a set of query heads with the key head that they share. */
static simd_gqa part_at(const op_attn_gqa *o, int64_t i, float *state)
{
    float *at = state + i * set_floats(o);
    simd_gqa g = {.dim = o->head_dim, .step = o->kv.width, .q = (bf16 *)at, .scale_log2 = o->scale * 1.44269504f};
    g.o = at + HEADS * g.dim / 2;
    g.max = g.o + HEADS * g.dim;
    g.sum = g.max + SIMD_MAX_LANES;
    return g;
}

/* Its first query head, and how many it has. */
static int64_t first_head(const op_attn_gqa *o, int64_t i, int64_t *n)
{
    int64_t group = o->heads / o->kv_heads, before = i % sets_of(o) * HEADS;
    *n = group - before < HEADS ? group - before : HEADS;
    return i / sets_of(o) * group + before;
}

static void begin_part(const simd_ops *v, const op_attn_gqa *o, int32_t row, int64_t i, float *state)
{
    simd_gqa g = part_at(o, i, state);
    int64_t n, h0 = first_head(o, i, &n);
    bf16 *q = (bf16 *)(state + i * set_floats(o));
    memset(q, 0, (size_t)set_floats(o) * sizeof *state);
    for (int lane = 0; lane < SIMD_MAX_LANES; lane++)
        g.max[lane] = -INFINITY;
    for (int64_t h = 0; h < n; h++)
        for (int64_t c = 0; c < g.dim; c += 4)
            v->to_bf16(q + c * HEADS + h * 4, cpu_row(&o->q, row) + (h0 + h) * g.dim + c, 4);
}

/* Tokens from `first` on that lie in a row in one page; few at the start, which nothing fetched ahead. */
static int64_t run_length(const op_attn_gqa *o, int64_t first, int64_t n_tok)
{
    int64_t run = o->kv.page_tok - first % o->kv.page_tok, most = first == 0 ? FIRST_TOK : SIMD_GQA_TOK;
    run = run < most ? run : most;
    return run < n_tok - first ? run : n_tok - first;
}

/* Tokens [t, t + n) for all parts; what lies at `next` is fetched meanwhile, each part its share. */
static void add_tokens(const simd_ops *v, const op_attn_gqa *o, int32_t seq, int64_t t, int64_t n, const char *next,
                       int64_t lines, float *state)
{
    int64_t sets = sets_of(o), parts = o->kv_heads * sets;
    for (int64_t i = 0; i < parts; i++) {
        simd_gqa g = part_at(o, i, state);
        g.n = n;
        g.keys = paging_row(&o->kv, seq, t, o->k_off + i / sets * g.dim);
        g.values = paging_row(&o->kv, seq, t, o->v_off + i / sets * g.dim);
        g.ahead = next ? next + lines * i / parts * LINE : NULL;
        g.ahead_bytes = (lines * (i + 1) / parts - lines * i / parts) * LINE;
        v->pairs->gqa_add(&g);
    }
}

void gqa_decode(const simd_ops *v, const op_attn_gqa *o, int32_t seq, void *scratch)
{
    int32_t row = o->batch->seq_row0[seq];
    int64_t n_tok = paging_n_kept(&o->kv, batch_row_slot(o->batch, row) + 1), parts = o->kv_heads * sets_of(o);
    for (int64_t i = 0; i < parts; i++)
        begin_part(v, o, row, i, scratch);
    for (int64_t t = 0, n; t < n_tok; t += n) {
        n = run_length(o, t, n_tok);
        int64_t after = t + n < n_tok ? run_length(o, t + n, n_tok) : 0;
        const char *next = after ? paging_row(&o->kv, seq, t + n, 0) : NULL;
        add_tokens(v, o, seq, t, n, next, (after * o->kv.width * 2 + LINE - 1) / LINE, scratch);
    }
    for (int64_t i = 0; i < parts; i++) {
        simd_gqa g = part_at(o, i, scratch);
        int64_t n, h0 = first_head(o, i, &n);
        v->pairs->gqa_end(&g, n, cpu_row(&o->out, row) + h0 * g.dim);
    }
}
