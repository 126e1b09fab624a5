/* Attention over a paged cache. Each form gathers a block of tokens into f32 once, brings it into the shape that
 * flash.h wants, and meets it with as many query rows as fit beside it in the cache. Scratch does not grow with the
 * context. */
#include <string.h>

#include "kernels/cpu/attn_gqa_decode.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/flash.h"
#include "kernels/paging.h"

enum {
    STATE_VALUES = 128 * 1024,     /* queries and outputs kept at a time: half of a 1 MiB L2 cache */
    WEIGHT_VALUES = 256 * 1024,    /* widened weights kept at a time */
    GQA_STATE_VALUES = 512 * 1024, /* of all heads; a head's part passes through the cache on its own */
    GQA_PAIR_TOK = 32, /* with pairs: a block as it lies, its values and the queries then share an L2 cache */
    MHA_ROWS = 1024,   /* rows that share one expansion of keys and values: it costs them a few per cent */
    WIDE_ROW = 256,    /* from this width on, blocks are half as long, to stay in the cache */
    SHORT_ROW = 512    /* up to this width the heads of a block are read one after the other where they lie */
};

static int64_t least(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static int64_t most(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

static int64_t pad(int64_t n)
{
    return (n + SIMD_MAX_LANES - 1) / SIMD_MAX_LANES * SIMD_MAX_LANES;
}

/* A block's length that is a multiple of the lanes. */
static int64_t clamp_block(int64_t n)
{
    return most(SIMD_MAX_LANES, least(FLASH_TOK, n / SIMD_MAX_LANES * SIMD_MAX_LANES));
}

/* Cuts f32 arrays off scratch; with base NULL it only counts. */
typedef struct {
    float *base;
    int64_t used;
} cutter;

static float *cut(cutter *c, int64_t values)
{
    float *at = c->base ? c->base + c->used : NULL;
    c->used += pad(values);
    return at;
}

static void cut_state(cutter *c, flash *f, int64_t rows, int64_t dk, int64_t dv)
{
    f->dk = dk;
    f->dv = pad(dv);
    f->ldq = pad(dk);
    f->q = cut(c, rows * f->ldq);
    f->o = cut(c, rows * f->dv);
    f->max = cut(c, rows);
    f->sum = cut(c, rows);
}

static void cut_scores(cutter *c, flash *f)
{
    f->scores = cut(c, FLASH_ROWS * FLASH_TOK);
    f->weights = cut(c, FLASH_ROWS * FLASH_TOK / 2);
}

/* ---- moving rows ---- */

typedef struct {
    const simd_ops *v;
    tpl_dtype compute;
    const kv_view *kv;
    int32_t seq;
    const simd_pairs *pairs; /* not NULL: the cache is multiplied as it lies, in bf16 pairs (flash.h) */
} source;

/* `even`: whether all widths and offsets fall on whole pairs. */
static const simd_pairs *pairs_of(const simd_ops *v, tpl_dtype compute, const kv_view *kv, bool even)
{
    bool fits = compute == DT_BF16 && kv->dtype == DT_BF16 && kv->width % 2 == 0 && even;
    return fits && v->pairs && v->pairs->available() ? v->pairs : NULL;
}

static bool is_even(int64_t a, int64_t b, int64_t c, int64_t d)
{
    return ((a | b | c | d) & 1) == 0;
}

/* 4-byte words that n elements of a query or key take. */
static int64_t words(const source *s, int64_t n)
{
    return s->pairs ? n / 2 : n;
}

/* dst [n, width] = columns [off, + width) of tokens [first, first + n), as products take them. */
static void gather(const source *s, int64_t first, int64_t n, int64_t off, int64_t width, float *dst, int64_t ldd)
{
    size_t step = (size_t)s->kv->width * dtype_bytes(s->kv->dtype);
    for (int64_t t = 0; t < n;) {
        const char *row = paging_row(s->kv, s->seq, first + t, off);
        int64_t end = least(n, t + s->kv->page_tok - (first + t) % s->kv->page_tok);
        for (; t < end; t++, row += step, dst += ldd) {
            s->v->widen(dst, row, s->kv->dtype, width);
            if (s->compute == DT_BF16 && s->kv->dtype != DT_BF16)
                s->v->round_bf16(dst, dst, width);
        }
    }
}

/* keys [words, n], rows ldk apart, from columns [off, + width) of tokens [first, first + n) as they lie: f32 values, or
 * bf16 pairs. */
static void transpose_cached(const source *s, int64_t first, int64_t n, int64_t off, int64_t width, float *keys,
                             int64_t ldk)
{
    for (int64_t t = 0; t < n;) {
        int64_t run = least(n - t, s->kv->page_tok - (first + t) % s->kv->page_tok);
        s->v->transpose(keys + t, ldk, paging_row(s->kv, s->seq, first + t, off), words(s, s->kv->width), run,
                        words(s, width));
        t += run;
    }
}

/* dst [ceil(n / 2), width] of words: tokens two by two. */
static void interleave_pairs(const source *s, int64_t first, int64_t n, int64_t off, int64_t width, float *dst,
                             int64_t ldd)
{
    for (int64_t t = 0; t < n; t += 2, dst += ldd)
        s->pairs->interleave(dst, paging_row(s->kv, s->seq, first + t, off),
                             t + 1 < n ? paging_row(s->kv, s->seq, first + t + 1, off) : NULL, width);
}

static void copy_query(const source *s, float *dst, const float *src, int64_t n)
{
    if (s->pairs)
        s->v->to_bf16((bf16 *)dst, src, n);
    else if (s->compute == DT_BF16)
        s->v->round_bf16(dst, src, n);
    else
        memcpy(dst, src, (size_t)n * sizeof *dst);
}

/* Tokens that rows [0, rows) of a sequence may see: [0, n) in a causal chain, all of them under a mask. */
static int64_t tokens_in_sight(const batch_view *b, const kv_view *kv, int32_t seq, int64_t rows)
{
    int64_t in_batch = b->row_mask ? batch_seq_rows(b, seq) : rows;
    return paging_n_kept(kv, batch_seq_slot0(b, seq) + in_batch);
}

/* ---- latent ---- */

typedef struct {
    flash f;
    int64_t rows, block;           /* batch rows and tokens at a time */
    float *tokens, *keys;          /* [block, pad(lat) + pad(rope)], [lat + rope, block] */
    int64_t ld_tokens, rope_start; /* of tokens */
} latent_work;

static size_t latent_cut(const op_attn_latent *o, float *base, latent_work *w)
{
    cutter c = {base, 0};
    int64_t width = (int64_t)o->lat + o->rope;
    w->block = width > WIDE_ROW ? FLASH_TOK / 2 : FLASH_TOK;
    w->rows = most(1, STATE_VALUES / (o->heads * (pad(width) + pad(o->lat))));
    cut_state(&c, &w->f, least(w->rows, o->batch->n_rows) * o->heads, width, o->lat);
    cut_scores(&c, &w->f);
    w->rope_start = pad(o->lat);
    w->ld_tokens = w->rope_start + pad(o->rope);
    w->tokens = cut(&c, w->block * w->ld_tokens);
    w->keys = cut(&c, width * w->block);
    return (size_t)c.used * sizeof(float);
}

size_t cpu_scratch_attn_latent(const op_call *call)
{
    latent_work w;
    return latent_cut(&call->attn_latent, NULL, &w);
}

static void latent_queries(const source *s, const op_attn_latent *o, latent_work *w, int64_t row0, int64_t rows)
{
    float *q = (float *)(uintptr_t)w->f.q;
    for (int64_t i = 0; i < rows * o->heads; i++, q += w->f.ldq) {
        int64_t row = row0 + i / o->heads, h = i % o->heads;
        copy_query(s, q, cpu_row(&o->q_lat, row) + h * o->q_lat_head_stride, o->lat);
        if (o->rope > 0)
            copy_query(s, q + words(s, o->lat), cpu_row(&o->q_pe, row) + h * o->q_pe_head_stride, o->rope);
    }
}

static void latent_load_block(const source *s, const op_attn_latent *o, latent_work *w, int64_t first, int64_t n)
{
    float *rope_keys = w->keys + words(s, o->lat) * w->block;
    if (s->pairs) {
        transpose_cached(s, first, n, o->lat_off, o->lat, w->keys, w->block);
        transpose_cached(s, first, n, o->rope_off, o->rope, rope_keys, w->block);
        interleave_pairs(s, first, n, o->lat_off, o->lat, w->tokens, w->ld_tokens);
        return;
    }
    gather(s, first, n, o->lat_off, o->lat, w->tokens, w->ld_tokens);
    gather(s, first, n, o->rope_off, o->rope, w->tokens + w->rope_start, w->ld_tokens);
    s->v->transpose(w->keys, w->block, w->tokens, w->ld_tokens, n, o->lat);
    s->v->transpose(rope_keys, w->block, w->tokens + w->rope_start, w->ld_tokens, n, o->rope);
}

static void latent_add_block(const source *s, const op_attn_latent *o, latent_work *w, int64_t first, int64_t n)
{
    latent_load_block(s, o, w, first, n);
    flash_block b = {
        .first = first, .n = n, .keys = w->keys, .ldk = w->block, .values = w->tokens, .ldv = w->ld_tokens};
    flash_add(&w->f, &b);
}

static void latent_store(const op_attn_latent *o, const latent_work *w, int64_t row0, int64_t rows)
{
    for (int64_t i = 0; i < rows * o->heads; i++) {
        int64_t row = row0 + i / o->heads, h = i % o->heads;
        memcpy(cpu_row(&o->out, row) + h * o->lat, w->f.o + i * w->f.dv, (size_t)o->lat * sizeof(float));
        if (o->lse.data)
            cpu_row(&o->lse, row)[h] = flash_lse(&w->f, i);
    }
}

/* Rows [i, i + rows) of a sequence. */
static void latent_rows(const source *s, const op_attn_latent *o, latent_work *w, int64_t i, int64_t rows)
{
    int64_t row0 = o->batch->seq_row0[s->seq] + i, n_tok = tokens_in_sight(o->batch, s->kv, s->seq, i + rows);
    w->f.row0 = (int32_t)row0;
    w->f.m = rows * o->heads;
    latent_queries(s, o, w, row0, rows);
    flash_begin(&w->f);
    for (int64_t t = 0; t < n_tok; t += w->block)
        latent_add_block(s, o, w, t, least(w->block, n_tok - t));
    flash_end(&w->f);
    latent_store(o, w, row0, rows);
}

tpl_code cpu_attn_latent(const simd_ops *v, kernel_ctx *ctx, const op_call *call, tpl_err *e)
{
    const op_attn_latent *o = &call->attn_latent;
    latent_work w = {.f = {.simd = v, .batch = o->batch, .kv = &o->kv, .per_row = o->heads, .scale = o->scale}};
    latent_cut(o, ctx->scratch, &w);
    w.f.pairs = pairs_of(v, ctx->compute, &o->kv, is_even(o->lat, o->rope, o->lat_off, o->rope_off));
    if (w.f.pairs) {
        w.f.dk /= 2;
        w.block = FLASH_TOK; /* half as wide, twice as long */
    }
    for (int32_t seq = 0; seq < o->batch->n_seqs; seq++) {
        source s = {v, ctx->compute, &o->kv, seq, w.f.pairs};
        int64_t n = batch_seq_rows(o->batch, seq);
        for (int64_t i = 0; i < n; i += w.rows)
            latent_rows(&s, o, &w, i, least(w.rows, n - i));
    }
    return TPL_OK;
}

/* ---- multi-head form of MLA ---- */

typedef struct {
    flash f;             /* of the head at hand; its arrays move along q, o, max and sum */
    int64_t rows, heads; /* batch rows and heads at a time */
    float *q, *o, *max, *sum;
    float *w_uk, *w_uv;      /* [heads][nope, lat], [heads][lat, pad(v_dim)] */
    float *tokens, *latents; /* [FLASH_TOK, pad(lat) + pad(rope)], [lat, FLASH_TOK] */
    float *keys, *values;    /* [nope + rope, FLASH_TOK], [FLASH_TOK, pad(v_dim)] */
    int64_t ld_tokens, rope_start, ld_lat;
} mha_work;

static size_t mha_cut(const op_attn_mha *o, float *base, mha_work *w)
{
    cutter c = {base, 0};
    int64_t v_pad = pad(o->v_dim), a_head = pad(o->nope * (int64_t)o->lat) + o->lat * v_pad, dk = o->nope + o->rope;
    w->rows = least(MHA_ROWS, o->batch->n_rows);
    int64_t state = most(1, w->rows) * (pad(dk) + v_pad);
    w->heads = most(1, least(o->heads, least(WEIGHT_VALUES / a_head, STATE_VALUES / state)));
    cut_state(&c, &w->f, w->rows * w->heads, dk, o->v_dim);
    w->q = (float *)(uintptr_t)w->f.q;
    w->o = w->f.o;
    w->max = w->f.max;
    w->sum = w->f.sum;
    cut_scores(&c, &w->f);
    w->w_uk = cut(&c, w->heads * o->nope * o->lat);
    w->w_uv = cut(&c, w->heads * o->lat * v_pad);
    w->rope_start = pad(o->lat);
    w->ld_tokens = w->rope_start + pad(o->rope);
    w->tokens = cut(&c, FLASH_TOK * w->ld_tokens);
    w->latents = cut(&c, (int64_t)o->lat * FLASH_TOK);
    w->keys = cut(&c, dk * FLASH_TOK);
    w->values = cut(&c, FLASH_TOK * v_pad);
    return (size_t)c.used * sizeof(float);
}

size_t cpu_scratch_attn_mha(const op_call *call)
{
    mha_work w;
    return mha_cut(&call->attn_mha, NULL, &w);
}

static void load_weight_row(const source *s, const head_mat *w, int64_t head, int64_t row, float *dst)
{
    size_t at = (size_t)(head * w->head_stride + row * w->row_stride) * dtype_bytes(w->dtype);
    s->v->widen(dst, (const char *)w->data + at, w->dtype, w->cols);
    if (s->compute == DT_BF16 && w->dtype != DT_BF16)
        s->v->round_bf16(dst, dst, w->cols);
}

/* Head h's weights to place g: W_UK as it is, W_UV transposed (through the space of `tokens`, idle here). */
static void mha_load_head(const source *s, const op_attn_mha *o, const mha_work *w, int64_t h, int64_t g)
{
    int64_t ldv = w->f.dv;
    float *uk = w->w_uk + g * o->nope * o->lat, *uv = w->w_uv + g * o->lat * ldv;
    for (int64_t r = 0; r < o->nope; r++)
        load_weight_row(s, &o->w_uk, h, r, uk + r * o->lat);
    memset(uv, 0, (size_t)(o->lat * ldv) * sizeof *uv);
    for (int64_t r = 0; r < o->v_dim; r += FLASH_TOK) {
        int64_t n = least(FLASH_TOK, o->v_dim - r);
        for (int64_t i = 0; i < n; i++)
            load_weight_row(s, &o->w_uv, h, r + i, w->tokens + i * w->ld_tokens);
        s->v->transpose(uv + r, ldv, w->tokens, w->ld_tokens, n, o->lat);
    }
}

static void mha_load_block(const source *s, const op_attn_mha *o, const mha_work *w, int64_t first, int64_t n)
{
    gather(s, first, n, o->lat_off, o->lat, w->tokens, w->ld_tokens);
    gather(s, first, n, o->rope_off, o->rope, w->tokens + w->rope_start, w->ld_tokens);
    s->v->transpose(w->latents, FLASH_TOK, w->tokens, w->ld_tokens, n, o->lat);
    s->v->transpose(w->keys + (int64_t)o->nope * FLASH_TOK, FLASH_TOK, w->tokens + w->rope_start, w->ld_tokens, n,
                    o->rope);
}

/* Keys and values of one head from the block's latents. */
static void mha_expand(const source *s, const op_attn_mha *o, const mha_work *w, int64_t g, int64_t n)
{
    int64_t ldv = w->f.dv;
    simd_gemm key = {.m = o->nope,
                     .n = pad(n),
                     .k = o->lat,
                     .a = w->w_uk + g * o->nope * o->lat,
                     .lda = o->lat,
                     .b = w->latents,
                     .ldb = FLASH_TOK,
                     .c = w->keys,
                     .ldc = FLASH_TOK};
    s->v->gemm_nn(&key);
    simd_gemm value = {.m = n,
                       .n = ldv,
                       .k = o->lat,
                       .a = w->tokens,
                       .lda = w->ld_tokens,
                       .b = w->w_uv + g * o->lat * ldv,
                       .ldb = ldv,
                       .c = w->values,
                       .ldc = ldv};
    s->v->gemm_nn(&value);
    if (s->compute != DT_BF16)
        return;
    s->v->round_bf16(w->keys, w->keys, (int64_t)o->nope * FLASH_TOK);
    s->v->round_bf16(w->values, w->values, n * ldv);
}

static void mha_point_at(mha_work *w, int64_t g)
{
    w->f.q = w->q + g * w->rows * w->f.ldq;
    w->f.o = w->o + g * w->rows * w->f.dv;
    w->f.max = w->max + g * w->rows;
    w->f.sum = w->sum + g * w->rows;
}

static void mha_begin_head(const source *s, const op_attn_mha *o, mha_work *w, int64_t h, int64_t g)
{
    mha_point_at(w, g);
    float *q = w->q + g * w->rows * w->f.ldq;
    for (int64_t i = 0; i < w->f.m; i++)
        copy_query(s, q + i * w->f.ldq, cpu_row(&o->q, w->f.row0 + i) + h * w->f.dk, w->f.dk);
    flash_begin(&w->f);
}

static void mha_end_head(const op_attn_mha *o, mha_work *w, int64_t h, int64_t g)
{
    mha_point_at(w, g);
    flash_end(&w->f);
    for (int64_t i = 0; i < w->f.m; i++) {
        float *to = cpu_row(&o->out, w->f.row0 + i) + h * o->v_dim;
        const float *from = w->f.o + i * w->f.dv;
        if (o->accumulate)
            w->f.simd->add(to, from, o->v_dim);
        else
            memcpy(to, from, (size_t)o->v_dim * sizeof *to);
    }
}

/* Heads [h0, h0 + heads), whose weights are loaded, of the rows that w->f says. */
static void mha_heads(const source *s, const op_attn_mha *o, mha_work *w, int64_t h0, int64_t heads, int64_t n_tok)
{
    for (int64_t g = 0; g < heads; g++)
        mha_begin_head(s, o, w, h0 + g, g);
    for (int64_t t = 0; t < n_tok; t += FLASH_TOK) {
        int64_t n = least(FLASH_TOK, n_tok - t);
        mha_load_block(s, o, w, t, n);
        for (int64_t g = 0; g < heads; g++) {
            mha_expand(s, o, w, g, n);
            mha_point_at(w, g);
            flash_block b = {
                .first = t, .n = n, .keys = w->keys, .ldk = FLASH_TOK, .values = w->values, .ldv = w->f.dv};
            flash_add(&w->f, &b);
        }
    }
    for (int64_t g = 0; g < heads; g++)
        mha_end_head(o, w, h0 + g, g);
}

static void mha_sequence(const op_attn_mha *o, mha_work *w, source s, int64_t h0, int64_t heads)
{
    int64_t n = batch_seq_rows(o->batch, s.seq);
    for (int64_t i = 0; i < n; i += w->rows) {
        w->f.row0 = (int32_t)(o->batch->seq_row0[s.seq] + i);
        w->f.m = least(w->rows, n - i);
        mha_heads(&s, o, w, h0, heads, tokens_in_sight(o->batch, &o->kv, s.seq, i + w->f.m));
    }
}

tpl_code cpu_attn_mha(const simd_ops *v, kernel_ctx *ctx, const op_call *call, tpl_err *e)
{
    const op_attn_mha *o = &call->attn_mha;
    mha_work w = {.f = {.simd = v, .batch = o->batch, .kv = &o->kv, .per_row = 1, .scale = o->scale}};
    mha_cut(o, ctx->scratch, &w);
    for (int64_t h = 0; h < o->heads; h += w.heads) {
        int64_t heads = least(w.heads, o->heads - h);
        source any = {v, ctx->compute, &o->kv, 0, NULL};
        for (int64_t g = 0; g < heads; g++)
            mha_load_head(&any, o, &w, h + g, g);
        for (int32_t seq = 0; seq < o->batch->n_seqs; seq++)
            mha_sequence(o, &w, (source){v, ctx->compute, &o->kv, seq, NULL}, h, heads);
    }
    return TPL_OK;
}

/* ---- grouped queries ---- */

/* All heads of a block are gathered at once, along the cached rows: one head at a time would touch a page of memory for
 * every few hundred bytes (measured at 8 heads of 128: less than half of the speed). */
typedef struct {
    flash f;                       /* of the key head at hand; its arrays move along q, o, max and sum */
    int64_t rows, block, group;    /* batch rows and tokens at a time; query heads that share a key */
    float *q, *o, *max, *sum;      /* a key head's part is rows * group query rows long */
    float *tokens, *keys, *values; /* [block, kv_heads * dim], [dim, block], the same */
    int64_t ld;                    /* of tokens and values */
    bool in_place;                 /* nothing is gathered: rows are short, and products take values as they lie */
} gqa_work;

static size_t gqa_cut(const op_attn_gqa *o, float *base, gqa_work *w)
{
    cutter c = {base, 0};
    w->group = o->heads / o->kv_heads;
    w->ld = pad((int64_t)o->kv_heads * o->head_dim + SIMD_MAX_LANES);
    w->block = clamp_block(WEIGHT_VALUES / (2 * w->ld));
    w->rows = least(o->batch->n_rows, most(1, GQA_STATE_VALUES / (o->heads * 2 * pad(o->head_dim))));
    cut_state(&c, &w->f, w->rows * o->heads, o->head_dim, o->head_dim);
    w->q = (float *)(uintptr_t)w->f.q;
    w->o = w->f.o;
    w->max = w->f.max;
    w->sum = w->f.sum;
    cut_scores(&c, &w->f);
    w->tokens = cut(&c, w->block * w->ld);
    w->keys = cut(&c, o->head_dim * w->block);
    w->values = cut(&c, w->block * w->ld);
    return (size_t)c.used * sizeof(float);
}

size_t cpu_scratch_attn_gqa(const op_call *call)
{
    gqa_work w;
    size_t bytes = gqa_cut(&call->attn_gqa, NULL, &w), decode = gqa_decode_scratch(&call->attn_gqa);
    return bytes > decode ? bytes : decode;
}

static void gqa_point_at(gqa_work *w, int64_t kv_head)
{
    int64_t row = kv_head * w->rows * w->group;
    w->f.q = w->q + row * w->f.ldq;
    w->f.o = w->o + row * w->f.dv;
    w->f.max = w->max + row;
    w->f.sum = w->sum + row;
}

/* A block as it lies goes to `tokens` in one pass along the cache, keys before values, and is taken apart there. */
static void gqa_load_pairs(const source *s, const op_attn_gqa *o, gqa_work *w, int64_t first, int64_t n)
{
    int64_t width = o->kv_heads * (int64_t)o->head_dim, bytes = width * (int64_t)sizeof(bf16);
    for (int64_t t = 0; t < n; t++) {
        float *to = w->tokens + t * w->ld;
        memcpy(to, paging_row(s->kv, s->seq, first + t, o->k_off), (size_t)bytes);
        memcpy(to + width / 2, paging_row(s->kv, s->seq, first + t, o->v_off), (size_t)bytes);
    }
    const float *even = w->tokens + width / 2;
    for (int64_t t = 0; t < n; t += 2, even += 2 * w->ld)
        s->pairs->interleave(w->values + t / 2 * w->ld, (const bf16 *)even,
                             t + 1 < n ? (const bf16 *)(even + w->ld) : NULL, width);
}

static void gqa_load_block(const source *s, const op_attn_gqa *o, gqa_work *w, int64_t first, int64_t n)
{
    int64_t width = o->kv_heads * (int64_t)o->head_dim;
    if (s->pairs) {
        gqa_load_pairs(s, o, w, first, n);
        return;
    }
    gather(s, first, n, o->k_off, width, w->tokens, w->ld);
    gather(s, first, n, o->v_off, width, w->values, w->ld);
}

static void gqa_add_block(const source *s, const op_attn_gqa *o, gqa_work *w, int64_t first, int64_t n)
{
    int64_t dim = o->head_dim;
    if (!w->in_place)
        gqa_load_block(s, o, w, first, n);
    for (int64_t g = 0; g < o->kv_heads; g++) {
        flash_block b = {
            .first = first, .n = n, .keys = w->keys, .ldk = w->block, .ldv = w->ld, .column = o->v_off + g * dim};
        if (w->in_place) {
            transpose_cached(s, first, n, o->k_off + g * dim, dim, w->keys, w->block);
        } else {
            s->v->transpose(w->keys, w->block, w->tokens + g * words(s, dim), w->ld, n, words(s, dim));
            b.values = w->values + g * dim;
        }
        gqa_point_at(w, g);
        flash_add(&w->f, &b);
    }
}

/* The first token that any of the rows from `row0` on may see through the window. */
static int64_t gqa_first_token(const op_attn_gqa *o, int32_t row0)
{
    int64_t slot = o->window > 0 ? batch_row_slot(o->batch, row0) - o->window + 1 : 0;
    return slot > 0 ? paging_n_kept(&o->kv, slot) : 0;
}

static void gqa_begin_head(const source *s, const op_attn_gqa *o, gqa_work *w, int64_t g)
{
    int64_t dim = o->head_dim;
    gqa_point_at(w, g);
    float *q = (float *)(uintptr_t)w->f.q;
    for (int64_t m = 0; m < w->f.m; m++, q += w->f.ldq)
        copy_query(s, q, cpu_row(&o->q, w->f.row0 + m / w->group) + (g * w->group + m % w->group) * dim, dim);
    flash_begin(&w->f);
}

static void gqa_end_head(const op_attn_gqa *o, gqa_work *w, int64_t g)
{
    int64_t dim = o->head_dim;
    gqa_point_at(w, g);
    flash_end(&w->f);
    for (int64_t m = 0; m < w->f.m; m++)
        memcpy(cpu_row(&o->out, w->f.row0 + m / w->group) + (g * w->group + m % w->group) * dim, w->f.o + m * w->f.dv,
               (size_t)dim * sizeof(float));
}

static void gqa_rows(const source *s, const op_attn_gqa *o, gqa_work *w, int64_t i, int64_t rows)
{
    int64_t n_tok = tokens_in_sight(o->batch, s->kv, s->seq, i + rows);
    w->f.row0 = (int32_t)(o->batch->seq_row0[s->seq] + i);
    w->f.m = rows * w->group;
    for (int64_t g = 0; g < o->kv_heads; g++)
        gqa_begin_head(s, o, w, g);
    for (int64_t t = gqa_first_token(o, w->f.row0); t < n_tok; t += w->block)
        gqa_add_block(s, o, w, t, least(w->block, n_tok - t));
    for (int64_t g = 0; g < o->kv_heads; g++)
        gqa_end_head(o, w, g);
}

tpl_code cpu_attn_gqa(const simd_ops *v, kernel_ctx *ctx, const op_call *call, tpl_err *e)
{
    const op_attn_gqa *o = &call->attn_gqa;
    gqa_work w = {.f = {.simd = v, .batch = o->batch, .kv = &o->kv, .window = o->window, .scale = o->scale}};
    gqa_cut(o, ctx->scratch, &w);
    w.f.per_row = (int32_t)w.group;
    w.f.pairs = pairs_of(v, ctx->compute, &o->kv, is_even(o->head_dim, o->k_off, o->v_off, 0));
    if (w.f.pairs) {
        w.f.dk /= 2;
        w.block = least(w.block, GQA_PAIR_TOK);
    }
    w.in_place =
        ctx->compute == DT_F32 && o->kv.dtype == DT_F32 && o->kv.width <= SHORT_ROW && o->head_dim % v->lanes == 0;
    bool decode_in_place = o->window == 0 && !o->batch->row_mask && gqa_decode_fits(v, ctx->compute, o);
    for (int32_t seq = 0; seq < o->batch->n_seqs; seq++) {
        source s = {v, ctx->compute, &o->kv, seq, w.f.pairs};
        int64_t n = batch_seq_rows(o->batch, seq);
        if (decode_in_place && n == 1) {
            gqa_decode(v, o, seq, ctx->scratch);
            continue;
        }
        for (int64_t i = 0; i < n; i += w.rows)
            gqa_rows(&s, o, &w, i, least(w.rows, n - i));
    }
    return TPL_OK;
}
