#include "bench/kernel_card.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench/kernel_reference.h"
#include "bench/pair.h"

enum { ALIGN = 256, MAX_RUNS = 16384, L2_TIMES = 3 };
static const double replay_us = 3000, launch_us = 1.5;

struct kernel_card {
    const kernel_case *c;
    gpu *card;
    gpu_queue *queue;
    const kernel_row *inject;
    kernel_memory m; /* the operands on the host, where the reference runs */
    dev_buf ref_scratch;
    kernel_reference ref;
    dev_buf shared;   /* what all copies read alike: the batch, page tables, rotary tables */
    dev_buf operands; /* [copies] of copy_bytes */
    size_t copy_bytes, *buf_at, *weight_at, kv_at[KV_N_STREAMS]; /* where they lie in a copy */
    int copies, runs;
    kernel_places at; /* those of one copy */
    void **bufs;
    bound_weight *bound;
    kv_view views[KV_N_STREAMS];
    batch_view batch;
    dev_buf scratch;
    kernel_ctx ctx;
    const kernel_row *row[KERNEL_MAX_STEPS];
    char row_name[32];
    gpu_graph *graph;
};

/* Bytes of a copy that the calls touch: in place once, and without rotary tables, which all copies share. */
static double case_bytes(const kernel_case *c)
{
    double sum = 0;
    for (int i = 0; i < c->n_steps; i++) {
        const kernel_case_step *s = &c->steps[i];
        bool once = s->in_place || s->kind == OP_ROPE;
        sum += once ? s->cost.bytes_written : s->cost.bytes_read + s->cost.bytes_written;
    }
    return sum > 1 ? sum : 1;
}

static int copies_for(const kernel_case *c, const gpu *card)
{
    double wanted = L2_TIMES * (double)gpu_get_facts(card)->l2_bytes / case_bytes(c);
    return wanted < MAX_RUNS ? (int)wanted + 1 : MAX_RUNS;
}

/* Whole rounds over all copies that take replay_us at least. */
static int runs_for(int copies, double bound_us)
{
    double rounds = replay_us / copies / fmax(bound_us, launch_us), most = MAX_RUNS / copies;
    return copies * (int)fmax(1, fmin(ceil(rounds), most));
}

kernel_card *kernel_card_create(const kernel_case *c, gpu *card, gpu_queue *q, double bound_us,
                                const kernel_row *inject)
{
    kernel_card *k = tpl_calloc(1, sizeof *k);
    k->c = c;
    k->card = card;
    k->queue = q;
    k->inject = inject;
    k->copies = copies_for(c, card);
    k->runs = runs_for(k->copies, bound_us);
    return k;
}

void kernel_card_destroy(kernel_card *k)
{
    if (!k)
        return;
    reference_fini(&k->ref);
    free(k);
}

const char *kernel_card_row(const kernel_card *k)
{
    return k->row_name;
}

int64_t kernel_card_n_checked(const kernel_card *k)
{
    return k->ref.n_checked;
}

int kernel_card_copies(const kernel_card *k)
{
    return k->copies;
}

int kernel_card_runs(const kernel_card *k)
{
    return k->runs;
}

double kernel_card_bytes(const kernel_case *c, const gpu *card)
{
    return case_bytes(c) * copies_for(c, card);
}

/* ---- places ---- */

static size_t cut(size_t *used, size_t bytes)
{
    size_t at = *used;
    *used += (bytes + ALIGN - 1) / ALIGN * ALIGN;
    return at;
}

static tpl_dtype buf_type(const kernel_card *k, int buf)
{
    return k->m.p && k->m.p->bufs[buf].f32 ? DT_F32 : k->at.act;
}

static size_t buf_bytes(const kernel_card *k, int buf)
{
    return k->m.bufs[buf].bytes / sizeof(float) * dtype_bytes(buf_type(k, buf));
}

static void lay_copy(kernel_card *k)
{
    size_t used = 0;
    k->buf_at = arena_array(&k->m.a, size_t, k->m.n_bufs);
    k->weight_at = arena_array(&k->m.a, size_t, k->m.n_weights);
    k->bufs = arena_array(&k->m.a, void *, k->m.n_bufs);
    k->bound = arena_array(&k->m.a, bound_weight, k->m.n_weights);
    for (int i = 0; i < k->m.n_bufs; i++)
        k->buf_at[i] = cut(&used, buf_bytes(k, i));
    for (int i = 0; i < k->m.n_weights; i++)
        k->weight_at[i] = cut(&used, k->m.weights[i].bytes);
    for (int i = 0; i < KV_N_STREAMS; i++)
        k->kv_at[i] = cut(&used, k->m.kv[i].bytes);
    k->copy_bytes = used;
}

/* Points all places at one copy. */
static void point_at(kernel_card *k, int copy)
{
    char *base = (char *)k->operands.data + (size_t)copy * k->copy_bytes;
    for (int i = 0; i < k->m.n_bufs; i++)
        k->bufs[i] = k->m.bufs[i].data ? base + k->buf_at[i] : NULL;
    for (int i = 0; i < k->m.n_weights; i++) {
        k->bound[i] = k->m.bound[i];
        if (!k->m.weights[i].data)
            continue;
        k->bound[i].m.data = base + k->weight_at[i];
        k->bound[i].h.data = base + k->weight_at[i];
    }
    for (int i = 0; i < KV_N_STREAMS; i++)
        if (k->m.kv[i].data)
            k->views[i].pages = base + k->kv_at[i];
}

/* One array to the card's shared memory. */
static tpl_code share(kernel_card *k, size_t *used, const void *from, size_t bytes, const void **to, tpl_err *e)
{
    *to = NULL;
    if (!from || bytes == 0)
        return TPL_OK;
    char *at = (char *)k->shared.data + cut(used, bytes);
    *to = at;
    return gpu_copy_now(k->queue, at, from, bytes, e);
}

static size_t shared_bytes(const kernel_memory *m)
{
    size_t i32 = sizeof(int32_t), rows = (size_t)m->batch.n_rows, seqs = (size_t)m->batch.n_seqs;
    size_t bytes = (3 * rows + 2 * seqs + 1) * i32 + m->rope_cos.bytes + m->rope_sin.bytes + m->alpha.bytes;
    for (int i = 0; i < KV_N_STREAMS; i++)
        bytes += seqs * (size_t)m->views[i].max_pages * i32;
    return bytes + (8 + KV_N_STREAMS) * ALIGN;
}

static tpl_code share_batch(kernel_card *k, size_t *used, tpl_err *e)
{
    const batch_view *b = &k->m.batch;
    size_t rows = (size_t)b->n_rows * sizeof(int32_t), seqs = (size_t)b->n_seqs * sizeof(int32_t);
    k->batch = *b;
    TPL_TRY(share(k, used, b->row_token, rows, (const void **)&k->batch.row_token, e));
    TPL_TRY(share(k, used, b->row_seq, rows, (const void **)&k->batch.row_seq, e));
    TPL_TRY(share(k, used, b->row_pos, rows, (const void **)&k->batch.row_pos, e));
    TPL_TRY(share(k, used, b->seq_row0, b->n_rows ? seqs + sizeof(int32_t) : 0, (const void **)&k->batch.seq_row0, e));
    TPL_TRY(share(k, used, b->seq_prefix, seqs, (const void **)&k->batch.seq_prefix, e));
    if (b->n_seqs > 0) {
        k->batch.max_seq_rows = b->n_rows / b->n_seqs;
        k->batch.max_slots = (int32_t)(b->ctx_tok / b->n_seqs);
    }
    return TPL_OK;
}

static tpl_code share_tables(kernel_card *k, tpl_err *e)
{
    kernel_memory *m = &k->m;
    size_t used = 0;
    TPL_TRY(gpu_alloc(k->card, &k->shared, shared_bytes(m), "batch of the bench", e));
    TPL_TRY(share_batch(k, &used, e));
    for (int i = 0; i < KV_N_STREAMS; i++) {
        size_t bytes = (size_t)m->batch.n_seqs * (size_t)m->views[i].max_pages * sizeof(int32_t);
        k->views[i] = m->views[i];
        TPL_TRY(share(k, &used, m->views[i].page_table, bytes, (const void **)&k->views[i].page_table, e));
    }
    TPL_TRY(share(k, &used, m->rope_cos.data, m->rope_cos.bytes, (const void **)&k->at.rope_cos, e));
    TPL_TRY(share(k, &used, m->rope_sin.data, m->rope_sin.bytes, (const void **)&k->at.rope_sin, e));
    TPL_TRY(share(k, &used, m->alpha.data, m->alpha.bytes, (const void **)&k->at.alpha, e));
    k->at.bufs = k->bufs;
    k->at.bound = k->bound;
    k->at.views = k->views;
    k->at.batch = &k->batch;
    return TPL_OK;
}

/* ---- operands ---- */

/* The host's activations, in the card's type, into copy 0. */
static tpl_code send_activations(kernel_card *k, tpl_err *e)
{
    memory_fill_activations(&k->m);
    for (int i = 0; i < k->m.n_bufs; i++) {
        size_t bytes = buf_bytes(k, i), n = bytes / dtype_bytes(buf_type(k, i));
        if (bytes == 0)
            continue;
        void *narrow = tpl_malloc(bytes);
        dtype_from_f32(narrow, buf_type(k, i), k->m.bufs[i].data, n);
        tpl_code rc = gpu_copy_now(k->queue, (char *)k->operands.data + k->buf_at[i], narrow, bytes, e);
        free(narrow);
        TPL_TRY(rc);
    }
    return TPL_OK;
}

static tpl_code send(kernel_card *k, size_t at, const dev_buf *b, tpl_err *e)
{
    return b->bytes ? gpu_copy_now(k->queue, (char *)k->operands.data + at, b->data, b->bytes, e) : TPL_OK;
}

static tpl_code send_operands(kernel_card *k, tpl_err *e)
{
    TPL_TRY(gpu_alloc(k->card, &k->operands, k->copy_bytes * (size_t)k->copies, "operands of the bench", e));
    TPL_TRY(send_activations(k, e));
    for (int i = 0; i < k->m.n_weights; i++)
        TPL_TRY(send(k, k->weight_at[i], &k->m.weights[i], e));
    for (int i = 0; i < KV_N_STREAMS; i++)
        TPL_TRY(send(k, k->kv_at[i], &k->m.kv[i], e));
    for (int i = 1; i < k->copies; i++)
        TPL_TRY(gpu_copy(k->queue, (char *)k->operands.data + (size_t)i * k->copy_bytes, k->operands.data,
                         k->copy_bytes, e));
    return gpu_queue_wait(k->queue, e);
}

/* ---- calls ---- */

static tpl_code choose_rows(kernel_card *k, tpl_err *e)
{
    op_call calls[KERNEL_MAX_STEPS];
    size_t most = 0, ref_most = 0;
    int n = memory_bind(&k->m, k->c, &k->at, calls);
    for (int i = 0; i < n; i++) {
        TPL_TRY(kernel_case_row(k->c, k->inject, &calls[i], &k->row[i], e));
        snprintf(k->row_name, sizeof k->row_name, "%s", k->row[i]->name);
        size_t own = k->row[i]->scratch_bytes ? k->row[i]->scratch_bytes(&calls[i]) : 0,
               ref = kernel_scratch_bytes("ref", &k->m.calls[i]);
        most = own > most ? own : most;
        ref_most = ref > ref_most ? ref : ref_most;
    }
    TPL_TRY(dev_alloc(&k->ref_scratch, ref_most, "kernel scratch", e));
    TPL_TRY(gpu_alloc(k->card, &k->scratch, most, "kernel scratch", e));
    k->ctx = (kernel_ctx){.compute = k->c->dtype, .scratch = k->scratch.data, .scratch_bytes = most, .queue = k->queue};
    return TPL_OK;
}

static tpl_code enqueue(kernel_card *k, int copy, tpl_err *e)
{
    op_call calls[KERNEL_MAX_STEPS];
    point_at(k, copy);
    int n = memory_bind(&k->m, k->c, &k->at, calls);
    for (int i = 0; i < n; i++)
        TPL_TRY(k->row[i]->run(&k->ctx, &calls[i], e));
    return TPL_OK;
}

static tpl_code enqueue_runs(kernel_card *k, tpl_err *e)
{
    for (int i = 0; i < k->runs; i++)
        TPL_TRY(enqueue(k, i % k->copies, e));
    return TPL_OK;
}

static tpl_code record(kernel_card *k, tpl_err *e)
{
    TPL_TRY(enqueue(k, 0, e)); /* libraries set themselves up */
    TPL_TRY(gpu_queue_wait(k->queue, e));
    TPL_TRY(gpu_record_begin(k->queue, e));
    tpl_code rc = enqueue_runs(k, e);
    if (rc == TPL_OK)
        return gpu_record_end(k->queue, &k->graph, e);
    gpu_record_drop(k->queue);
    return rc;
}

/* ---- the target ---- */

static tpl_code prepare(void *self, tpl_err *e)
{
    kernel_card *k = self;
    if (*k->c->why_not)
        return tpl_fail(e, TPL_E_UNSUPPORTED, k->c->op, "%s", k->c->why_not);
    double bytes = case_bytes(k->c), free_bytes = pair_free_bytes();
    if (bytes > 0.9 * free_bytes)
        return tpl_fail(e, TPL_E_MEMORY, k->c->op, "needs %.3f GiB of the host, which has %.3f GiB left",
                        bytes / 0x1p30, free_bytes / 0x1p30);
    k->at.act = kernel_case_types(k->c).act;
    TPL_TRY(gpu_use(k->card, e));
    TPL_TRY(memory_init(&k->m, k->c, e));
    lay_copy(k);
    TPL_TRY(share_tables(k, e));
    TPL_TRY(send_operands(k, e));
    point_at(k, 0);
    TPL_TRY(choose_rows(k, e));
    return record(k, e);
}

static void release(void *self)
{
    kernel_card *k = self;
    gpu_graph_destroy(k->graph);
    k->graph = NULL;
    gpu_free(k->card, &k->scratch);
    gpu_free(k->card, &k->operands);
    gpu_free(k->card, &k->shared);
    dev_free(&k->ref_scratch);
    memory_fini(&k->m);
}

/* False where MAX_RUNS copies do not fill the cache. */
static bool is_cold(void *self)
{
    const kernel_card *k = self;
    return (double)k->copies * case_bytes(k->c) >= 2 * (double)gpu_get_facts(k->card)->l2_bytes;
}

static tpl_code run(void *self, tpl_err *e)
{
    kernel_card *k = self;
    TPL_TRY(gpu_graph_launch(k->graph, k->queue, e));
    return gpu_queue_wait(k->queue, e);
}

/* ---- verify ---- */

/* Fills what a call of copy 0 writes with NaN, unless the old content matters. */
static tpl_code poison(kernel_card *k, const op_call *call, tpl_err *e)
{
    const mat *out = call_output(call);
    size_t each = dtype_bytes(out->dtype);
    for (int64_t r = 0; r < out->rows && !call_updates_output(call); r++)
        TPL_TRY(gpu_fill(k->queue, (char *)out->data + (size_t)(r * out->stride) * each, 0xff, (size_t)out->cols * each,
                         e));
    return TPL_OK;
}

/* What a call of copy 0 wrote, as f32 to where the same call writes on the host. */
static tpl_code bring(kernel_card *k, const op_call *there, const op_call *here, tpl_err *e)
{
    const mat *from = call_output(there), *to = call_output(here);
    size_t each = dtype_bytes(from->dtype),
           bytes = ((size_t)((from->rows - 1) * from->stride) + (size_t)from->cols) * each;
    char *whole = tpl_malloc(bytes);
    tpl_code rc = gpu_copy_now(k->queue, whole, from->data, bytes, e);
    for (int64_t r = 0; r < from->rows && rc == TPL_OK; r++)
        dtype_to_f32((float *)to->data + r * to->stride, whole + (size_t)(r * from->stride) * each, from->dtype,
                     (size_t)from->cols);
    free(whole);
    return rc;
}

static tpl_code make_reference(kernel_card *k, tpl_err *e)
{
    kernel_ctx ctx = {.compute = k->c->dtype, .scratch = k->ref_scratch.data, .scratch_bytes = k->ref_scratch.bytes};
    return reference_make(&k->ref, &k->m, k->c, &ctx, e);
}

/* Every call on copy 0, from fresh activations. */
static tpl_code verify(void *self, int64_t *n_wrong, tpl_err *e)
{
    kernel_card *k = self;
    op_call calls[KERNEL_MAX_STEPS];
    if (k->ref.n_parts == 0)
        TPL_TRY(make_reference(k, e));
    *n_wrong = 0;
    point_at(k, 0);
    int n = memory_bind(&k->m, k->c, &k->at, calls);
    for (int i = 0; i < n; i++) {
        TPL_TRY(send_activations(k, e));
        TPL_TRY(poison(k, &calls[i], e));
        TPL_TRY(k->row[i]->run(&k->ctx, &calls[i], e));
        TPL_TRY(bring(k, &calls[i], &k->m.calls[i], e));
        *n_wrong += reference_wrong(&k->ref, &k->m, i, k->c->dtype);
    }
    return send_activations(k, e);
}

bench_target kernel_card_target(kernel_card *k)
{
    return (bench_target){.self = k,
                          .prepare = prepare,
                          .release = release,
                          .verify = verify,
                          .make_cold = is_cold,
                          .run = run,
                          .units = k->runs};
}
