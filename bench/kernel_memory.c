#include "bench/kernel_memory.h"

#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "engine/rope.h"

enum { PAGE_TOK = 64, TILE = 40009 /* prime: no row length divides it */ };

/* Scales of the seeded numbers: activations and cache, and weights (about 1 / sqrt of a latent's width, so that
 * expanded keys and values are of the size of the latent). */
typedef enum { SCALE_ONE, SCALE_WEIGHT, N_SCALES } scale;
static const float scales[N_SCALES] = {1.f, 0.05f};

static float tile_f32[N_SCALES][TILE];
static bf16 tile_bf16[N_SCALES][TILE];
static pthread_once_t tile_once = PTHREAD_ONCE_INIT;

static void make_tiles(void)
{
    rng r = rng_make(0x7470, 1);
    for (int i = 0; i < TILE; i++) {
        float x = (float)rng_normal(&r);
        for (int s = 0; s < N_SCALES; s++) {
            tile_f32[s][i] = scales[s] * x;
            tile_bf16[s][i] = bf16_from_f32(scales[s] * x);
        }
    }
}

/* n values: the tile from a place that the seed chooses, over and over. */
static void fill(void *data, tpl_dtype t, int64_t n, uint64_t seed, scale s)
{
    pthread_once(&tile_once, make_tiles);
    const char *tile = t == DT_BF16 ? (const char *)tile_bf16[s] : (const char *)tile_f32[s];
    size_t size = dtype_bytes(t), at = (size_t)(seed * 7919 % TILE);
    for (int64_t done = 0; done < n;) {
        int64_t run = TILE - (int64_t)at < n - done ? TILE - (int64_t)at : n - done;
        memcpy((char *)data + (size_t)done * size, tile + at * size, (size_t)run * size);
        done += run;
        at = 0;
    }
}

/* ---- the batch and its cache ---- */

static void make_batch(kernel_memory *m, const kernel_case *c)
{
    batch_shape s = kernel_case_batch(c);
    int32_t rows = (int32_t)s.rows, seqs = (int32_t)s.seqs, each = rows / seqs;
    int32_t prefix = (int32_t)(s.ctx_tok / seqs) - each;
    int32_t *token = arena_array(&m->a, int32_t, rows), *seq = arena_array(&m->a, int32_t, rows);
    int32_t *pos = arena_array(&m->a, int32_t, rows), *row0 = arena_array(&m->a, int32_t, seqs + 1);
    int32_t *prefixes = arena_array(&m->a, int32_t, seqs);
    for (int32_t i = 0; i < rows; i++) {
        seq[i] = i / each;
        pos[i] = prefix + i % each;
    }
    for (int32_t i = 0; i <= seqs; i++)
        row0[i] = i * each;
    for (int32_t i = 0; i < seqs; i++)
        prefixes[i] = prefix;
    m->batch = (batch_view){.n_rows = rows,
                            .n_seqs = seqs,
                            .row_token = token,
                            .row_seq = seq,
                            .row_pos = pos,
                            .seq_row0 = row0,
                            .seq_prefix = prefixes,
                            .ctx_tok = s.ctx_tok,
                            .visible_pairs = s.visible_pairs};
}

/* Physical pages in random order; a wild entry behind every sequence's last page. */
static int32_t *make_page_table(arena *a, int32_t seqs, int32_t pages)
{
    int32_t n = seqs * pages, *order = arena_array(a, int32_t, n);
    int32_t *page_table = arena_array(a, int32_t, seqs * (pages + 1));
    rng r = rng_make(0x7061, 1);
    for (int32_t i = 0; i < n; i++)
        order[i] = i;
    for (int32_t i = n - 1; i > 0; i--) {
        int32_t j = (int32_t)rng_below(&r, (uint64_t)i + 1), old = order[i];
        order[i] = order[j];
        order[j] = old;
    }
    for (int32_t s = 0; s < seqs; s++) {
        memcpy(page_table + s * (pages + 1), order + s * pages, (size_t)pages * sizeof *order);
        page_table[s * (pages + 1) + pages] = INT32_MAX;
    }
    return page_table;
}

/* Local tokens from n_tok to the end of the last page become NaN. */
static void poison_tail(const kv_view *v, int32_t seq, int64_t n_tok, int32_t pages)
{
    size_t row = (size_t)v->width * dtype_bytes(v->dtype);
    for (int64_t t = n_tok; t < (int64_t)pages * v->page_tok; t++) {
        int64_t page = v->page_table[(int64_t)seq * v->max_pages + t / v->page_tok];
        dev_poison((char *)v->pages + (size_t)(page * v->page_tok + t % v->page_tok) * row, row);
    }
}

static tpl_code make_stream(kernel_memory *m, const kernel_case *c, int stream, tpl_err *e)
{
    const plan_stream *s = &m->p->streams[stream];
    int64_t len = m->batch.ctx_tok / m->batch.n_seqs, kept = len > s->rem ? (len - s->rem + s->mod - 1) / s->mod : 0;
    int32_t pages = (int32_t)((kept + PAGE_TOK - 1) / PAGE_TOK), seqs = m->batch.n_seqs;
    int64_t values = (int64_t)seqs * pages * PAGE_TOK * s->width;
    TPL_TRY(dev_alloc(&m->kv[stream], (size_t)values * dtype_bytes(c->dtype), "cache of the bench", e));
    fill(m->kv[stream].data, c->dtype, values, 3, SCALE_ONE);
    m->views[stream] = (kv_view){.pages = m->kv[stream].data,
                                 .dtype = c->dtype,
                                 .width = s->width,
                                 .page_tok = PAGE_TOK,
                                 .page_table = make_page_table(&m->a, seqs, pages),
                                 .max_pages = pages + 1,
                                 .mod = s->mod,
                                 .rem = s->rem};
    for (int32_t i = 0; i < seqs; i++)
        poison_tail(&m->views[stream], i, kept, pages);
    return TPL_OK;
}

/* ---- operands of the steps ---- */

static tpl_code make_buf(kernel_memory *m, int buf, tpl_err *e)
{
    if (buf < 0 || m->bufs[buf].data)
        return TPL_OK;
    return dev_alloc(&m->bufs[buf], (size_t)m->batch.n_rows * (size_t)m->p->bufs[buf].cols * sizeof(float),
                     "activations of the bench", e);
}

static tpl_code make_weight(kernel_memory *m, const kernel_case *c, int w, tpl_err *e)
{
    if (w < 0 || m->weights[w].data)
        return TPL_OK;
    bound_weight *b = &m->bound[w];
    *b = weight_sizes(m->p, w, c->dtype);
    bool heads = b->h.heads > 0;
    int64_t values = heads ? (int64_t)b->h.heads * b->h.rows * b->h.cols : b->m.rows * b->m.cols;
    TPL_TRY(dev_alloc(&m->weights[w], (size_t)values * dtype_bytes(c->dtype), "weights of the bench", e));
    fill(m->weights[w].data, c->dtype, values, (uint64_t)w + 11, SCALE_WEIGHT);
    if (heads)
        b->h.data = m->weights[w].data;
    else
        b->m.data = m->weights[w].data;
    return TPL_OK;
}

static tpl_code make_step(kernel_memory *m, const kernel_case *c, const plan_step *s, tpl_err *e)
{
    for (int i = 0; i < STEP_MAX_IN; i++)
        TPL_TRY(make_buf(m, s->in[i].buf, e));
    TPL_TRY(make_buf(m, s->out.buf, e));
    for (int i = 0; i < STEP_MAX_W; i++)
        TPL_TRY(make_weight(m, c, s->w[i], e));
    if (s->stream >= 0 && !m->kv[s->stream].data)
        TPL_TRY(make_stream(m, c, s->stream, e));
    return TPL_OK;
}

static tpl_code make_tables(kernel_memory *m, const kernel_case *c, tpl_err *e)
{
    size_t half = (size_t)c->cfg->rope_dim / 2, bytes = (size_t)c->cfg->max_pos * half * sizeof(float);
    int32_t g = c->v.g > 1 ? c->v.g : 1;
    if (c->family == FAM_ROPE) {
        TPL_TRY(dev_alloc(&m->rope_cos, bytes, "rotary tables", e));
        TPL_TRY(dev_alloc(&m->rope_sin, bytes, "rotary tables", e));
        rope_fill(c->cfg, c->cfg->max_pos, m->rope_cos.data, m->rope_sin.data);
    }
    TPL_TRY(dev_alloc(&m->alpha, (size_t)g * sizeof(float), "slice factors", e));
    for (int32_t i = 0; i < g; i++)
        ((float *)m->alpha.data)[i] = 1;
    return TPL_OK;
}

static bool is_step(const kernel_case *c, const plan_step *s)
{
    return s->layer == 0 && s->active && !s->is_comm && strcmp(s->name, c->step) == 0;
}

static tpl_code init_from_plan(kernel_memory *m, const kernel_case *c, tpl_err *e)
{
    TPL_TRY(kernel_case_plan(c, &m->p, e));
    const plan_list *l = &m->p->list[c->phase];
    m->n_bufs = m->p->n_bufs;
    m->n_weights = m->p->n_weights;
    m->bufs = arena_array(&m->a, dev_buf, m->n_bufs);
    m->weights = arena_array(&m->a, dev_buf, m->n_weights);
    m->bound = arena_array(&m->a, bound_weight, m->n_weights);
    make_batch(m, c);
    TPL_TRY(make_tables(m, c, e));
    for (int32_t i = 0; i < l->n; i++)
        if (is_step(c, &l->steps[i]))
            TPL_TRY(make_step(m, c, &l->steps[i], e));
    return TPL_OK;
}

/* Sylvester's matrix over sqrt(n), n the power of two that the width must be. */
static tpl_code init_hadamard(kernel_memory *m, const kernel_case *c, tpl_err *e)
{
    int64_t n = c->cfg->kv_lora_rank, rows = c->context_tok;
    if (n & (n - 1))
        return tpl_fail(e, TPL_E_UNSUPPORTED, "hadamard", "width %lld is no power of two", (long long)n);
    m->n_bufs = 2;
    m->n_weights = 1;
    m->bufs = arena_array(&m->a, dev_buf, 2);
    m->weights = arena_array(&m->a, dev_buf, 1);
    m->bound = arena_array(&m->a, bound_weight, 1);
    for (int i = 0; i < 2; i++)
        TPL_TRY(dev_alloc(&m->bufs[i], (size_t)(rows * n) * sizeof(float), "activations of the bench", e));
    TPL_TRY(dev_alloc(&m->weights[0], (size_t)(n * n) * dtype_bytes(c->dtype), "Hadamard matrix", e));
    float size = (float)(1 / sqrt((double)n)), *row = arena_array(&m->a, float, n);
    for (int64_t i = 0; i < n; i++) {
        for (int64_t j = 0; j < n; j++)
            row[j] = __builtin_parityll((unsigned long long)(i & j)) ? -size : size;
        dtype_from_f32((char *)m->weights[0].data + (size_t)(i * n) * dtype_bytes(c->dtype), c->dtype, row, (size_t)n);
    }
    m->bound[0].m = (mat){.data = m->weights[0].data, .dtype = c->dtype, .rows = n, .cols = n, .stride = n};
    return TPL_OK;
}

/* ---- calls ---- */

static op_call bind_hadamard(const kernel_case *c, const kernel_places *at)
{
    int64_t n = c->cfg->kv_lora_rank;
    mat x = {.data = at->bufs[0], .dtype = at->act, .rows = c->context_tok, .cols = n, .stride = n}, out = x;
    out.data = at->bufs[1];
    return (op_call){.kind = OP_MATMUL, .matmul = {.x = x, .w = at->bound[0].m, .out = out}};
}

int memory_bind(const kernel_memory *m, const kernel_case *c, const kernel_places *at, op_call *calls)
{
    static const int64_t one_layer[KV_N_STREAMS];
    if (c->family == FAM_HADAMARD) {
        calls[0] = bind_hadamard(c, at);
        return 1;
    }
    bind_env env = {.p = m->p,
                    .rows = m->batch.n_rows,
                    .logit_rows = 1,
                    .act = at->act,
                    .weights = at->bound,
                    .bufs = at->bufs,
                    .batch = at->batch,
                    .streams = at->views,
                    .layer_bytes = one_layer,
                    .rope_cos = at->rope_cos,
                    .rope_sin = at->rope_sin,
                    .alpha = &at->alpha};
    const plan_list *l = &m->p->list[c->phase];
    int n = 0;
    for (int32_t i = 0; i < l->n && n < KERNEL_MAX_STEPS; i++)
        if (is_step(c, &l->steps[i]))
            calls[n++] = step_bind(&l->steps[i], &env);
    return n;
}

/* On the host activations are f32. */
static void bind_here(kernel_memory *m, const kernel_case *c)
{
    void **bufs = arena_array(&m->a, void *, m->n_bufs);
    for (int32_t i = 0; i < m->n_bufs; i++)
        bufs[i] = m->bufs[i].data;
    kernel_places here = {.act = DT_F32,
                          .bufs = bufs,
                          .bound = m->bound,
                          .views = m->views,
                          .batch = &m->batch,
                          .rope_cos = m->rope_cos.data,
                          .rope_sin = m->rope_sin.data,
                          .alpha = m->alpha.data};
    m->n_calls = memory_bind(m, c, &here, m->calls);
}

tpl_code memory_init(kernel_memory *m, const kernel_case *c, tpl_err *e)
{
    *m = (kernel_memory){0};
    arena_init(&m->a);
    TPL_TRY(c->family == FAM_HADAMARD ? init_hadamard(m, c, e) : init_from_plan(m, c, e));
    bind_here(m, c);
    memory_fill_activations(m);
    return TPL_OK;
}

void memory_fini(kernel_memory *m)
{
    for (int32_t i = 0; i < m->n_bufs && m->bufs; i++)
        dev_free(&m->bufs[i]);
    for (int32_t i = 0; i < m->n_weights && m->weights; i++)
        dev_free(&m->weights[i]);
    for (int i = 0; i < KV_N_STREAMS; i++)
        dev_free(&m->kv[i]);
    dev_free(&m->rope_cos);
    dev_free(&m->rope_sin);
    dev_free(&m->alpha);
    plan_destroy(m->p);
    arena_fini(&m->a);
    *m = (kernel_memory){0};
}

void memory_fill_activations(kernel_memory *m)
{
    for (int32_t i = 0; i < m->n_bufs; i++)
        if (m->bufs[i].data)
            fill(m->bufs[i].data, DT_F32, (int64_t)(m->bufs[i].bytes / sizeof(float)), (uint64_t)i + 101, SCALE_ONE);
}

static void add_range(const dev_buf *b, evict_range *r, int cap, int *n)
{
    if (b->data && *n < cap)
        r[(*n)++] = (evict_range){b->data, b->bytes};
}

int memory_ranges(const kernel_memory *m, evict_range *r, int cap)
{
    int n = 0;
    for (int32_t i = 0; i < m->n_bufs; i++)
        add_range(&m->bufs[i], r, cap, &n);
    for (int32_t i = 0; i < m->n_weights; i++)
        add_range(&m->weights[i], r, cap, &n);
    for (int i = 0; i < KV_N_STREAMS; i++)
        add_range(&m->kv[i], r, cap, &n);
    add_range(&m->rope_cos, r, cap, &n);
    add_range(&m->rope_sin, r, cap, &n);
    return n;
}

/* ---- what a call writes ---- */

const mat *call_output(const op_call *c)
{
    switch (c->kind) {
    case OP_RMSNORM:
        return &c->rmsnorm.out;
    case OP_SLICED_NORM:
        return &c->sliced_norm.out;
    case OP_MATMUL:
        return &c->matmul.out;
    case OP_HEAD_MATMUL:
        return &c->head_matmul.out;
    case OP_ROPE:
        return &c->rope.x;
    case OP_ATTN_LATENT:
        return &c->attn_latent.out;
    case OP_ATTN_MHA:
        return &c->attn_mha.out;
    case OP_ATTN_GQA:
        return &c->attn_gqa.out;
    default:
        return NULL;
    }
}

bool call_updates_output(const op_call *c)
{
    switch (c->kind) {
    case OP_RMSNORM:
        return c->rmsnorm.out.data == c->rmsnorm.x.data;
    case OP_SLICED_NORM:
        return c->sliced_norm.out.data == c->sliced_norm.x.data;
    case OP_MATMUL:
        return c->matmul.accumulate;
    case OP_HEAD_MATMUL:
        return c->head_matmul.accumulate;
    case OP_ATTN_MHA:
        return c->attn_mha.accumulate;
    default:
        return c->kind == OP_ROPE;
    }
}
