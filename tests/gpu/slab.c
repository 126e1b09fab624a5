#include "tests/gpu/slab.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/arena.h"
#include "kernels/card.h"

enum { SCRATCH_GUARD = 4096 };

struct slab {
    gpu *card;
    gpu_queue *queue;
    dev_buf card_mem;
    char *host, *before, *got;
    size_t bytes, used, touched; /* touched: what was cut since the slab was all 0xff */
};

slab *slab_create(size_t bytes)
{
    tpl_err e = {0};
    if (gpu_count() == 0)
        cr_skip_test("no CUDA card is here");
    slab *s = tpl_calloc(1, sizeof *s);
    cr_assert(gpu_open(0, &s->card, &e) == TPL_OK, "%s: %s", e.where, e.what);
    cr_assert(gpu_queue_create(s->card, &s->queue, &e) == TPL_OK, "%s: %s", e.where, e.what);
    cr_assert(gpu_alloc(s->card, &s->card_mem, bytes, "slab", &e) == TPL_OK, "%s: %s", e.where, e.what);
    s->host = aligned_alloc(256, bytes);
    s->before = tpl_malloc(bytes);
    s->got = tpl_malloc(bytes);
    s->bytes = s->touched = bytes;
    slab_reset(s);
    return s;
}

void slab_destroy(slab *s)
{
    gpu_free(s->card, &s->card_mem);
    gpu_queue_destroy(s->queue);
    gpu_close(s->card);
    free(s->host);
    free(s->before);
    free(s->got);
    free(s);
}

void slab_reset(slab *s)
{
    memset(s->host, 0xff, s->touched);
    s->used = s->touched = 0;
}

void *slab_cut(slab *s, size_t bytes)
{
    void *at = s->host + s->used;
    s->used += (bytes + 511) / 256 * 256; /* at least 256 bytes that nobody has */
    s->touched = s->used > s->touched ? s->used : s->touched;
    cr_assert(s->used <= s->bytes, "the slab's %zu bytes are too few", s->bytes);
    return at;
}

void *slab_copy(slab *s, const void *from, size_t bytes)
{
    return from ? memcpy(slab_cut(s, bytes), from, bytes) : NULL;
}

mat slab_mat(slab *s, rng *r, int64_t rows, int64_t cols, int64_t gap, tpl_dtype t, double size)
{
    mat m = {.dtype = t, .rows = rows, .cols = cols, .stride = cols + gap};
    m.data = slab_cut(s, (size_t)(rows * m.stride) * dtype_bytes(t));
    for (int64_t i = 0; i < rows && size > 0; i++)
        for (int64_t c = 0; c < cols; c++) {
            float v = (float)(size * (2 * rng_uniform(r) - 1));
            dtype_from_f32((char *)m.data + (size_t)(i * m.stride + c) * dtype_bytes(t), t, &v, 1);
        }
    return m;
}

/* ---- the call as the card sees it: words that point into the slab point into the card's ---- */

static void translate(const slab *s, void *object, size_t bytes)
{
    for (size_t i = 0; i + sizeof(uintptr_t) <= bytes; i += sizeof(uintptr_t)) {
        uintptr_t word;
        memcpy(&word, (char *)object + i, sizeof word);
        if (word < (uintptr_t)s->host || word >= (uintptr_t)s->host + s->bytes)
            continue;
        word += (uintptr_t)s->card_mem.data - (uintptr_t)s->host;
        memcpy((char *)object + i, &word, sizeof word);
    }
}

/* A batch and the arrays of experts lie outside of the slab: the card's call has its own. */
typedef struct {
    op_call call;
    batch_view batch;
    mat *experts;
} card_call;

static const batch_view **batch_of(op_call *c)
{
    switch (c->kind) {
    case OP_EMBED:
        return &c->embed.batch;
    case OP_ROPE:
        return &c->rope.batch;
    case OP_KV_APPEND:
        return &c->kv_append.batch;
    case OP_ATTN_LATENT:
        return &c->attn_latent.batch;
    case OP_ATTN_MHA:
        return &c->attn_mha.batch;
    case OP_ATTN_GQA:
        return &c->attn_gqa.batch;
    default:
        return NULL;
    }
}

static void make_card_call(const slab *s, const op_call *host, card_call *c)
{
    *c = (card_call){.call = *host};
    const batch_view **batch = batch_of(&c->call);
    if (batch) {
        c->batch = **batch;
        translate(s, &c->batch, sizeof c->batch);
    }
    translate(s, &c->call, sizeof c->call);
    if (batch)
        *batch = &c->batch;
    if (host->kind != OP_MOE_EXPERTS || host->moe_experts.n_local == 0)
        return;
    size_t n = (size_t)host->moe_experts.n_local;
    c->experts = tpl_malloc(3 * n * sizeof(mat));
    memcpy(c->experts, host->moe_experts.gate, n * sizeof(mat));
    memcpy(c->experts + n, host->moe_experts.up, n * sizeof(mat));
    memcpy(c->experts + 2 * n, host->moe_experts.down, n * sizeof(mat));
    translate(s, c->experts, 3 * n * sizeof(mat));
    c->call.moe_experts.gate = c->experts;
    c->call.moe_experts.up = c->experts + n;
    c->call.moe_experts.down = c->experts + 2 * n;
}

slab_case slab_head_matmul(slab *s, rng *r, tpl_dtype t, const slab_heads *h)
{
    int in = h->turned ? h->w_cols : h->w_rows, n = h->turned ? h->w_rows : h->w_cols;
    mat w = slab_mat(s, r, (int64_t)h->heads * (h->w_rows + 2), h->w_cols, h->w_gap, t, 1);
    slab_case c = {.call = {.kind = OP_HEAD_MATMUL}, .compute = t};
    op_head_matmul *o = &c.call.head_matmul;
    *o = (op_head_matmul){.w = {.data = w.data,
                                .dtype = t,
                                .heads = h->heads,
                                .rows = h->w_rows,
                                .cols = h->w_cols,
                                .row_stride = w.stride,
                                .head_stride = (h->w_rows + 2) * w.stride},
                          .x = slab_mat(s, r, h->rows, h->heads * (in + h->x_gap), h->row_gap, t, 1),
                          .x_head_stride = in + h->x_gap,
                          .out_head_stride = n + h->out_gap,
                          .transposed = h->turned,
                          .accumulate = h->accumulate};
    o->out = slab_mat(s, r, h->rows, h->heads * (n + h->out_gap), 5, t, h->accumulate ? 1 : 0);
    c.out[0] = o->out;
    return c;
}

/* ---- running ---- */

static void run_ref(const slab_case *c, const char *what)
{
    tpl_err e = {0};
    size_t bytes = kernel_scratch_bytes("ref", &c->call);
    kernel_ctx ctx = {
        .compute = c->compute, .scratch = aligned_alloc(64, (bytes + 64) / 64 * 64), .scratch_bytes = bytes};
    cr_assert(kernel_run("ref", &ctx, &c->call, &e) == TPL_OK, "%s: ref: %s: %s", what, e.where, e.what);
    free(ctx.scratch);
}

static void run_card(slab *s, const kernel_row *row, const slab_case *c, const char *what)
{
    tpl_err e = {0};
    card_call card;
    dev_buf scratch;
    size_t bytes = row->scratch_bytes ? row->scratch_bytes(&c->call) : 0;
    unsigned char guard[SCRATCH_GUARD];
    make_card_call(s, &c->call, &card);
    cr_assert(gpu_alloc(s->card, &scratch, bytes + SCRATCH_GUARD, "scratch", &e) == TPL_OK, "%s: %s", e.where, e.what);
    cr_assert(gpu_fill(s->queue, scratch.data, 0xff, scratch.bytes, &e) == TPL_OK, "%s", e.what);
    cr_assert(gpu_copy_now(s->queue, s->card_mem.data, s->before, s->used, &e) == TPL_OK, "%s", e.what);
    kernel_ctx ctx = {.compute = c->compute, .scratch = scratch.data, .scratch_bytes = bytes, .queue = s->queue};
    tpl_code rc = row->run(&ctx, &card.call, &e);
    cr_assert(rc == TPL_OK, "%s: %s: %s: %s", what, row->name, e.where, e.what);
    rc = gpu_copy_now(s->queue, s->got, s->card_mem.data, s->used, &e);
    cr_assert(rc == TPL_OK, "%s: %s: %s: %s", what, row->name, e.where, e.what);
    cr_assert(gpu_copy_now(s->queue, guard, (char *)scratch.data + bytes, sizeof guard, &e) == TPL_OK, "%s", e.what);
    for (size_t i = 0; i < sizeof guard; i++)
        cr_assert(guard[i] == 0xff, "%s: %s wrote past its %zu bytes of scratch", what, row->name, bytes);
    gpu_free(s->card, &scratch);
    free(card.experts);
}

/* ---- comparing ---- */

static double element(const slab *s, const char *base, const mat *m, int64_t r, int64_t c)
{
    const char *at = base + ((const char *)m->data - s->host) + (size_t)(r * m->stride + c) * dtype_bytes(m->dtype);
    if (m->dtype == DT_I32)
        return *(const int32_t *)(const void *)at;
    float v;
    dtype_to_f32(&v, at, m->dtype, 1);
    return v;
}

/* Takes the output out of the byte comparison once its elements agree. */
static void compare_out(slab *s, const mat *m, slab_tolerance t, const char *what, const char *name)
{
    double worst = -1, got_at = 0, want_at = 0;
    int64_t at = 0;
    for (int64_t r = 0; r < m->rows; r++)
        for (int64_t c = 0; c < m->cols; c++) {
            double got = element(s, s->got, m, r, c), want = element(s, s->host, m, r, c);
            double over = fabs(got - want) - t.abs - t.rel * fabs(want);
            if (isnan(want) ? isnan(got) : got == want)
                over = -1;
            else if (isnan(over) || isinf(over))
                over = INFINITY;
            if (over > worst) {
                worst = over;
                at = r * m->cols + c;
                got_at = got;
                want_at = want;
            }
        }
    cr_assert(worst <= 0, "%s: %s: [%ld, %ld] is %.9g, expected %.9g (abs %g, rel %g)", what, name,
              (long)(at / m->cols), (long)(at % m->cols), got_at, want_at, t.abs, t.rel);
    for (int64_t r = 0; r < m->rows; r++) {
        size_t off = (size_t)((char *)m->data - s->host) + (size_t)(r * m->stride) * dtype_bytes(m->dtype);
        memcpy(s->got + off, s->host + off, (size_t)m->cols * dtype_bytes(m->dtype));
    }
}

static void compare(slab *s, const slab_case *cases, int n, const char *what, const char *name)
{
    for (int k = 0; k < n; k++)
        for (int i = 0; i < SLAB_MAX_OUT && cases[k].out[i].data; i++)
            compare_out(s, &cases[k].out[i], cases[k].tol[i], what, name);
    for (size_t i = 0; i < s->used; i++)
        cr_assert(s->got[i] == s->host[i], "%s: %s changed byte %zu, which is no output", what, name, i);
}

int slab_check(slab *s, const slab_case *c, const char *what)
{
    const kernel_row *const *rows;
    int n = kernel_rows(c->call.kind, &rows), n_run = 0;
    memcpy(s->before, s->host, s->used);
    run_ref(c, what);
    for (int i = 0; i < n; i++) {
        if (strcmp(rows[i]->backend, "cuda") != 0 || !rows[i]->available() || !rows[i]->supports(&c->call))
            continue;
        run_card(s, rows[i], c, what);
        compare(s, c, 1, what, rows[i]->name);
        n_run++;
    }
    memcpy(s->host, s->before, s->used);
    cr_assert(n_run > 0, "%s: no row of backend cuda takes it", what);
    return n_run;
}

void slab_check_join(slab *s, const slab_case *cases, int n, const char *what)
{
    tpl_err e = {0};
    card_call card[SLAB_MAX_CALLS];
    op_call calls[SLAB_MAX_CALLS];
    int taken;
    memcpy(s->before, s->host, s->used);
    for (int i = 0; i < n; i++) {
        run_ref(&cases[i], what);
        make_card_call(s, &cases[i].call, &card[i]);
        calls[i] = card[i].call;
    }
    const kernel_join *join = kernel_find_join("cuda", calls, n, &taken);
    cr_assert(join && taken == n, "%s: %d of %d calls are one launch", what, taken, n);
    cr_assert(gpu_copy_now(s->queue, s->card_mem.data, s->before, s->used, &e) == TPL_OK, "%s", e.what);
    dev_buf scratch;
    size_t bytes = kernel_scratch_bytes("cuda", &calls[0]) + SCRATCH_GUARD;
    cr_assert(gpu_alloc(s->card, &scratch, bytes, "scratch", &e) == TPL_OK, "%s: %s", e.where, e.what);
    cr_assert(gpu_fill(s->queue, scratch.data, 0xff, scratch.bytes, &e) == TPL_OK, "%s", e.what);
    kernel_ctx ctx = {.compute = cases[0].compute, .scratch = scratch.data, .scratch_bytes = bytes, .queue = s->queue};
    tpl_code rc = kernel_run_join(join, &ctx, calls, n, &e);
    cr_assert(rc == TPL_OK, "%s: %s: %s: %s", what, join->name, e.where, e.what);
    rc = gpu_copy_now(s->queue, s->got, s->card_mem.data, s->used, &e);
    cr_assert(rc == TPL_OK, "%s: %s: %s: %s", what, join->name, e.where, e.what);
    compare(s, cases, n, what, join->name);
    gpu_free(s->card, &scratch);
    for (int i = 0; i < n; i++)
        free(card[i].experts);
    memcpy(s->host, s->before, s->used);
}

bool slab_has_warpgroups(void)
{
    const kernel_row *const *rows;
    bool has = false;
    for (int i = kernel_rows(OP_ATTN_LATENT, &rows); i-- > 0;)
        has = has || (strcmp(rows[i]->name, "cuda_wgmma") == 0 && rows[i]->available());
    return has;
}

void slab_best(slab *s, const mat *logits, int32_t *out)
{
    tpl_err e = {0};
    dev_buf found;
    size_t rows = (size_t)logits->rows, bytes = rows * sizeof(int32_t);
    const float *at = (const float *)(const void *)((char *)s->card_mem.data + ((char *)logits->data - s->host));
    cr_assert(gpu_alloc(s->card, &found, bytes * (1 + CARD_BEST_SPACE), "best", &e) == TPL_OK, "%s", e.what);
    cr_assert(gpu_copy_now(s->queue, s->card_mem.data, s->host, s->used, &e) == TPL_OK, "%s", e.what);
    int32_t *tokens = found.data;
    cr_assert(card_best(s->queue, at, logits->rows, logits->cols, tokens, tokens + rows, &e) == TPL_OK, "%s", e.what);
    cr_assert(gpu_copy_now(s->queue, out, tokens, bytes, &e) == TPL_OK, "%s", e.what);
    gpu_free(s->card, &found);
}
