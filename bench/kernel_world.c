#include "bench/kernel_world.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "bench/crew.h"
#include "bench/kernel_memory.h"
#include "bench/pair.h"

enum { MAX_PARTS = 3 * KERNEL_MAX_STEPS, MAX_RANGES = 256, CORNER = 16, FEW_ROWS = 2 };
/* A head's reference costs about this many multiply-adds at most before one head must do. */
static const double cheap_macs = 2e7;
/* Both sides round inputs alike, so only sums differ; in bf16 a value that is rounded after a sum may fall to the other
 * side of a tie, 2^-8 of itself away. */
static const double tol_f32 = 5e-4, tol_bf16 = 1.5e-2;

/* A rectangle of one call's output and what the reference says of it. */
typedef struct {
    int call;
    int64_t row0, col0, rows, cols;
    float *values; /* [rows, cols]; owned */
} expected;

struct kernel_world {
    const kernel_case *c;
    evict *ev;
    const kernel_row *inject;
    kernel_memory *m; /* [threads] */
    dev_buf *scratch; /* [threads] */
    kernel_ctx *ctx;
    crew *crew; /* NULL: one thread */
    const kernel_row *row[KERNEL_MAX_STEPS];
    char row_name[32];
    expected parts[MAX_PARTS];
    int n_parts; /* 0: the reference has not run yet */
    int64_t n_checked;
};

kernel_world *kernel_world_create(const kernel_case *c, evict *ev, const kernel_row *inject)
{
    kernel_world *w = tpl_calloc(1, sizeof *w);
    w->c = c;
    w->ev = ev;
    w->inject = inject;
    w->m = tpl_calloc((size_t)c->threads, sizeof *w->m);
    w->scratch = tpl_calloc((size_t)c->threads, sizeof *w->scratch);
    w->ctx = tpl_calloc((size_t)c->threads, sizeof *w->ctx);
    return w;
}

void kernel_world_destroy(kernel_world *w)
{
    if (!w)
        return;
    for (int i = 0; i < w->n_parts; i++)
        free(w->parts[i].values);
    free(w->m);
    free(w->scratch);
    free(w->ctx);
    free(w);
}

const char *kernel_world_row(const kernel_world *w)
{
    return w->row_name;
}

int64_t kernel_world_n_checked(const kernel_world *w)
{
    return w->n_checked;
}

double kernel_world_bytes(const kernel_case *c)
{
    return c->threads * (c->cost.bytes_read + c->cost.bytes_written);
}

/* ---- prepare and release ---- */

/* A row by its own name, or the best of a backend. */
static const kernel_row *choose_row(const kernel_world *w, const op_call *call)
{
    const kernel_row *const *rows;
    if (w->inject && w->inject->op == call->kind)
        return w->inject;
    const kernel_row *best = kernel_find(w->c->backend, call);
    if (best)
        return best;
    for (int i = kernel_rows(call->kind, &rows) - 1; i >= 0; i--)
        if (strcmp(rows[i]->name, w->c->backend) == 0 && (!rows[i]->available || rows[i]->available()) &&
            (!rows[i]->supports || rows[i]->supports(call)))
            return rows[i];
    return NULL;
}

static tpl_code choose_rows(kernel_world *w, tpl_err *e)
{
    for (int i = 0; i < w->m[0].n_calls; i++) {
        const op_call *call = &w->m[0].calls[i];
        w->row[i] = choose_row(w, call);
        if (!w->row[i])
            return tpl_fail(e, TPL_E_UNSUPPORTED, op_name(call->kind),
                            "'%s' has no kernel for this shape and type on this machine", w->c->backend);
        snprintf(w->row_name, sizeof w->row_name, "%s", w->row[i]->name);
    }
    return TPL_OK;
}

static tpl_code make_scratch(kernel_world *w, int i, tpl_err *e)
{
    size_t most = 0;
    for (int k = 0; k < w->m[i].n_calls; k++) {
        const op_call *call = &w->m[i].calls[k];
        size_t own = w->row[k]->scratch_bytes ? w->row[k]->scratch_bytes(call) : 0,
               ref = kernel_scratch_bytes("ref", call);
        most = own > most ? own : most;
        most = ref > most ? ref : most;
    }
    TPL_TRY(dev_alloc(&w->scratch[i], most, "kernel scratch", e));
    w->ctx[i] = (kernel_ctx){.compute = w->c->dtype, .scratch = w->scratch[i].data, .scratch_bytes = most};
    return TPL_OK;
}

static tpl_code prepare_member(void *arg, int i, tpl_err *e)
{
    kernel_world *w = arg;
    return memory_init(&w->m[i], w->c, e);
}

static tpl_code run_all(kernel_world *w, crew_fn fn, tpl_err *e)
{
    return crew_run(w->crew, fn, w, e);
}

static tpl_code world_prepare(void *self, tpl_err *e)
{
    kernel_world *w = self;
    if (*w->c->why_not)
        return tpl_fail(e, TPL_E_UNSUPPORTED, w->c->op, "%s", w->c->why_not);
    /* Asked for here, because a system that promises more than it has ends the process instead. */
    double bytes = kernel_world_bytes(w->c), free_bytes = pair_free_bytes();
    if (bytes > 0.9 * free_bytes)
        return tpl_fail(e, TPL_E_MEMORY, w->c->op, "needs %.3f GiB, the machine has %.3f GiB left", bytes / 0x1p30,
                        free_bytes / 0x1p30);
    TPL_TRY(crew_create(w->c->threads, &w->crew, e));
    TPL_TRY(run_all(w, prepare_member, e));
    TPL_TRY(choose_rows(w, e));
    for (int i = 0; i < w->c->threads; i++)
        TPL_TRY(make_scratch(w, i, e));
    return TPL_OK;
}

static void world_release(void *self)
{
    kernel_world *w = self;
    crew_destroy(w->crew);
    w->crew = NULL;
    for (int i = 0; i < w->c->threads; i++) {
        memory_fini(&w->m[i]);
        dev_free(&w->scratch[i]);
    }
}

/* ---- run ---- */

static tpl_code run_member(void *arg, int i, tpl_err *e)
{
    kernel_world *w = arg;
    for (int k = 0; k < w->m[i].n_calls; k++)
        TPL_TRY(w->row[k]->run(&w->ctx[i], &w->m[i].calls[k], e));
    return TPL_OK;
}

static tpl_code world_run(void *self, tpl_err *e)
{
    return run_all(self, run_member, e);
}

static bool world_make_cold(void *self)
{
    kernel_world *w = self;
    evict_range r[MAX_RANGES];
    for (int i = 0; i < w->c->threads; i++)
        evict_ranges(w->ev, r, memory_ranges(&w->m[i], r, MAX_RANGES));
    return evict_works(w->ev);
}

/* ---- the reference: a few rectangles of each output ---- */

static mat columns_from(mat m, int64_t col, int64_t cols)
{
    m.data = (char *)m.data + (size_t)col * dtype_bytes(m.dtype);
    m.cols = cols;
    return m;
}

static mat rows_from(mat m, int64_t row, int64_t rows)
{
    m.data = (char *)m.data + (size_t)(row * m.stride) * dtype_bytes(m.dtype);
    m.rows = rows;
    return m;
}

static head_mat heads_from(head_mat h, int32_t head, int32_t n)
{
    h.data = (const char *)h.data + (size_t)(head * h.head_stride) * dtype_bytes(h.dtype);
    h.heads = n;
    return h;
}

/* The call cut to one head (GQA: one KV head and its queries), and which columns of the output that is. */
static op_call cut_head(op_call c, int32_t head, int64_t *col0, int64_t *cols)
{
    if (c.kind == OP_ATTN_LATENT) {
        op_attn_latent *a = &c.attn_latent;
        a->q_lat = columns_from(a->q_lat, (int64_t)head * a->q_lat_head_stride, a->lat);
        a->q_pe = columns_from(a->q_pe, (int64_t)head * a->q_pe_head_stride, a->rope);
        *cols = a->lat;
        a->lse = (mat){0};
        a->out = columns_from(a->out, *col0 = head * *cols, *cols);
        a->heads = 1;
    } else if (c.kind == OP_ATTN_MHA) {
        op_attn_mha *a = &c.attn_mha;
        a->q = columns_from(a->q, (int64_t)head * (a->nope + a->rope), a->nope + a->rope);
        a->w_uk = heads_from(a->w_uk, head, 1);
        a->w_uv = heads_from(a->w_uv, head, 1);
        *cols = a->v_dim;
        a->out = columns_from(a->out, *col0 = head * *cols, *cols);
        a->heads = 1;
    } else if (c.kind == OP_ATTN_GQA) {
        op_attn_gqa *a = &c.attn_gqa;
        int32_t each = a->heads / a->kv_heads;
        *cols = (int64_t)each * a->head_dim;
        a->q = columns_from(a->q, head * *cols, *cols);
        a->out = columns_from(a->out, *col0 = head * *cols, *cols);
        a->k_off += head * a->head_dim;
        a->v_off += head * a->head_dim;
        a->heads = each;
        a->kv_heads = 1;
    } else {
        op_head_matmul *h = &c.head_matmul;
        int64_t k = h->transposed ? h->w.cols : h->w.rows;
        *cols = h->transposed ? h->w.rows : h->w.cols;
        h->x = columns_from(h->x, (int64_t)head * h->x_head_stride, k);
        h->out = columns_from(h->out, *col0 = (int64_t)head * h->out_head_stride, *cols);
        h->w = heads_from(h->w, head, 1);
    }
    return c;
}

/* A product cut to some rows of x and some rows of the weight. */
static op_call cut_product(op_call c, int64_t row0, int64_t rows, int64_t col0, int64_t cols)
{
    op_matmul *m = &c.matmul;
    m->x = rows_from(m->x, row0, rows);
    m->w = rows_from(m->w, col0, cols);
    m->out = columns_from(rows_from(m->out, row0, rows), col0, cols);
    return c;
}

/* Heads that cut_head() tells apart; 0: the operation has none. */
static int32_t n_heads(const op_call *c)
{
    switch (c->kind) {
    case OP_ATTN_LATENT:
        return c->attn_latent.heads;
    case OP_ATTN_MHA:
        return c->attn_mha.heads;
    case OP_ATTN_GQA:
        return c->attn_gqa.kv_heads;
    case OP_HEAD_MATMUL:
        return c->head_matmul.w.heads;
    default:
        return 0;
    }
}

/* Runs the cut call on fresh activations and keeps what it wrote. */
static tpl_code keep_part(kernel_world *w, int call, const op_call *cut, int64_t row0, int64_t col0, int64_t cols,
                          tpl_err *e)
{
    const mat *out = call_output(cut);
    memory_fill_activations(&w->m[0]);
    TPL_TRY(kernel_run("ref", &w->ctx[0], cut, e));
    expected x = {.call = call, .row0 = row0, .col0 = col0, .rows = out->rows, .cols = cols};
    x.values = tpl_malloc((size_t)(x.rows * cols) * sizeof(float));
    for (int64_t r = 0; r < x.rows; r++)
        memcpy(x.values + r * cols, (float *)out->data + r * out->stride, (size_t)cols * sizeof(float));
    w->parts[w->n_parts++] = x;
    w->n_checked += x.rows * cols;
    return TPL_OK;
}

static tpl_code reference_by_head(kernel_world *w, int i, tpl_err *e)
{
    const op_call *call = &w->m[0].calls[i];
    int32_t heads = n_heads(call), picks[] = {0, heads - 1, heads / 2};
    op_cost_sum cost = op_cost(call);
    int n = cost.flops / 2 / heads > cheap_macs ? 1 : heads < 3 ? heads : 3;
    for (int k = 0; k < n; k++) {
        int64_t col0 = 0, cols = 0;
        /* With one head only, its number depends on the case, so that not always head 0 is looked at. */
        int32_t head = n == 1 ? (int32_t)(w->c->context_tok % 7919 % heads) : picks[k];
        op_call cut = cut_head(*call, head, &col0, &cols);
        TPL_TRY(keep_part(w, i, &cut, 0, col0, cols, e));
    }
    return TPL_OK;
}

/* The first, middle and last columns of the last rows. */
static tpl_code reference_by_corner(kernel_world *w, int i, tpl_err *e)
{
    const op_call *call = &w->m[0].calls[i];
    const mat *out = &call->matmul.out;
    int64_t cols = out->cols < CORNER ? out->cols : CORNER, rows = out->rows < FEW_ROWS ? out->rows : FEW_ROWS;
    int64_t starts[] = {0, (out->cols - cols) / 2, out->cols - cols};
    for (int k = 0; k < 3; k++) {
        int64_t row0 = k == 0 ? 0 : out->rows - rows;
        op_call cut = cut_product(*call, row0, rows, starts[k], cols);
        TPL_TRY(keep_part(w, i, &cut, row0, starts[k], cols, e));
    }
    return TPL_OK;
}

static tpl_code make_reference(kernel_world *w, tpl_err *e)
{
    for (int i = 0; i < w->m[0].n_calls; i++) {
        const op_call *call = &w->m[0].calls[i];
        if (n_heads(call) > 0)
            TPL_TRY(reference_by_head(w, i, e));
        else if (call->kind == OP_MATMUL)
            TPL_TRY(reference_by_corner(w, i, e));
        else
            TPL_TRY(keep_part(w, i, call, 0, 0, call_output(call)->cols, e));
    }
    return TPL_OK;
}

/* ---- verify ---- */

int64_t kernel_count_wrong(const float *got, int64_t got_stride, const float *want, int64_t rows, int64_t cols,
                           double tol)
{
    double squares = 0;
    int64_t wrong = 0, n = 0;
    for (int64_t i = 0; i < rows * cols; i++)
        if (isfinite(want[i])) {
            squares += (double)want[i] * want[i];
            n++;
        }
    double rms = n > 0 ? sqrt(squares / (double)n) : 0;
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < cols; c++) {
            double g = got[r * got_stride + c], x = want[r * cols + c];
            bool same = isfinite(x) ? fabs(g - x) <= tol * (rms + fabs(x)) : isnan(x) ? isnan(g) : g == x;
            wrong += !same;
        }
    return wrong;
}

static void poison_output(const op_call *call)
{
    const mat *out = call_output(call);
    if (call_updates_output(call))
        return;
    for (int64_t r = 0; r < out->rows; r++)
        dev_poison((float *)out->data + r * out->stride, (size_t)out->cols * sizeof(float));
}

static int64_t wrong_parts(const kernel_world *w, const kernel_memory *m, int call)
{
    int64_t wrong = 0;
    const mat *out = call_output(&m->calls[call]);
    for (int i = 0; i < w->n_parts; i++) {
        const expected *x = &w->parts[i];
        if (x->call == call)
            wrong += kernel_count_wrong((float *)out->data + x->row0 * out->stride + x->col0, out->stride, x->values,
                                        x->rows, x->cols, w->c->dtype == DT_BF16 ? tol_bf16 : tol_f32);
    }
    return wrong;
}

/* Every call of every thread's copy from fresh activations; the copies are alike and share the reference. */
static tpl_code world_verify(void *self, int64_t *n_wrong, tpl_err *e)
{
    kernel_world *w = self;
    if (w->n_parts == 0)
        TPL_TRY(make_reference(w, e));
    *n_wrong = 0;
    for (int t = 0; t < w->c->threads; t++)
        for (int i = 0; i < w->m[t].n_calls; i++) {
            memory_fill_activations(&w->m[t]);
            poison_output(&w->m[t].calls[i]);
            TPL_TRY(w->row[i]->run(&w->ctx[t], &w->m[t].calls[i], e));
            *n_wrong += wrong_parts(w, &w->m[t], i);
        }
    memory_fill_activations(&w->m[0]);
    return TPL_OK;
}

bench_target kernel_world_target(kernel_world *w)
{
    return (bench_target){.self = w,
                          .prepare = world_prepare,
                          .release = world_release,
                          .verify = world_verify,
                          .make_cold = world_make_cold,
                          .run = world_run};
}
