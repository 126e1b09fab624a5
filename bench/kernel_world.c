#include "bench/kernel_world.h"

#include <stdlib.h>
#include <string.h>

#include "bench/crew.h"
#include "bench/kernel_memory.h"
#include "bench/kernel_reference.h"
#include "bench/pair.h"

enum { MAX_RANGES = 256 };

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
    kernel_reference ref;
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
    reference_fini(&w->ref);
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
    return w->ref.n_checked;
}

double kernel_world_bytes(const kernel_case *c)
{
    return c->threads * (c->cost.bytes_read + c->cost.bytes_written);
}

/* ---- prepare and release ---- */

static tpl_code choose_rows(kernel_world *w, tpl_err *e)
{
    for (int i = 0; i < w->m[0].n_calls; i++) {
        TPL_TRY(kernel_case_row(w->c, w->inject, &w->m[0].calls[i], &w->row[i], e));
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

/* ---- verify ---- */

static void poison_output(const op_call *call)
{
    const mat *out = call_output(call);
    if (call_updates_output(call))
        return;
    for (int64_t r = 0; r < out->rows; r++)
        dev_poison((float *)out->data + r * out->stride, (size_t)out->cols * sizeof(float));
}

/* Every call of every thread's copy from fresh activations; the copies are alike and share the reference. */
static tpl_code world_verify(void *self, int64_t *n_wrong, tpl_err *e)
{
    kernel_world *w = self;
    if (w->ref.n_parts == 0)
        TPL_TRY(reference_make(&w->ref, &w->m[0], w->c, &w->ctx[0], e));
    *n_wrong = 0;
    for (int t = 0; t < w->c->threads; t++)
        for (int i = 0; i < w->m[t].n_calls; i++) {
            memory_fill_activations(&w->m[t]);
            poison_output(&w->m[t].calls[i]);
            TPL_TRY(w->row[i]->run(&w->ctx[t], &w->m[t].calls[i], e));
            *n_wrong += reference_wrong(&w->ref, &w->m[t], i, w->c->dtype);
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
