#include "bench/card_ceilings.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

#include "bench/stats.h"
#include "kernels/card.h"
#include "kernels/kernels.h"

enum { WARM = 2, RUNS = 5, SIDE = 8192 };
static const size_t sweep_bytes = (size_t)2 << 30;

typedef struct {
    gpu *card;
    gpu_queue *queue;
    gpu_event *begin, *end;
    dev_buf a, b;
} bench_card;

static tpl_code run_once(bench_card *c, ceil_kind k, tpl_err *e)
{
    char *half = (char *)c->a.data + sweep_bytes / 2;
    tpl_dtype t = k == CEIL_F32 ? DT_F32 : DT_BF16;
    size_t matrix = (size_t)SIDE * SIDE * dtype_bytes(t);
    mat x = {.data = c->a.data, .dtype = t, .rows = SIDE, .cols = SIDE, .stride = SIDE}, w = x, out = x;
    w.data = (char *)c->a.data + matrix;
    out.data = c->b.data;
    op_call call = {.kind = OP_MATMUL, .matmul = {.x = x, .w = w, .out = out}};
    kernel_ctx ctx = {.compute = t, .queue = c->queue};
    switch (k) {
    case CEIL_READ:
    case CEIL_UPDATE:
        return card_sweep(c->queue, c->a.data, sweep_bytes, k == CEIL_UPDATE, e);
    case CEIL_COPY:
        return gpu_copy(c->queue, half, c->a.data, sweep_bytes / 2, e);
    default:
        return kernel_run("cuda", &ctx, &call, e);
    }
}

/* Bytes or FLOPs of one run. */
static double amount_of(ceil_kind k)
{
    double side = SIDE;
    return k == CEIL_READ || k == CEIL_COPY ? (double)sweep_bytes
           : k == CEIL_UPDATE               ? 2 * (double)sweep_bytes
                                            : 2 * side * side * side;
}

static tpl_code measure(bench_card *c, ceil_kind k, double *rate, tpl_err *e)
{
    double us[RUNS];
    for (int i = -WARM; i < RUNS; i++) {
        TPL_TRY(gpu_event_record(c->begin, c->queue, e));
        TPL_TRY(run_once(c, k, e));
        TPL_TRY(gpu_event_record(c->end, c->queue, e));
        TPL_TRY(gpu_queue_wait(c->queue, e));
        if (i >= 0)
            TPL_TRY(gpu_event_elapsed_us(c->begin, c->end, &us[i], e));
    }
    *rate = amount_of(k) / bstat_median(us, RUNS) / 1e3;
    return TPL_OK;
}

static const char *const sources[CEIL_N] = {[CEIL_READ] = "own sweep",
                                            [CEIL_COPY] = "driver's copy",
                                            [CEIL_UPDATE] = "own sweep",
                                            [CEIL_F32] = "cuBLAS",
                                            [CEIL_BF16] = "cuBLAS"};

static tpl_code open_card(bench_card *c, int ordinal, tpl_err *e)
{
    TPL_TRY(gpu_open(ordinal, &c->card, e));
    TPL_TRY(gpu_queue_create(c->card, &c->queue, e));
    TPL_TRY(gpu_event_create(c->card, true, &c->begin, e));
    TPL_TRY(gpu_event_create(c->card, true, &c->end, e));
    TPL_TRY(gpu_alloc(c->card, &c->a, sweep_bytes, "ceilings", e));
    return gpu_alloc(c->card, &c->b, (size_t)SIDE * SIDE * sizeof(float), "ceilings", e);
}

static void close_card(bench_card *c)
{
    if (!c->card)
        return;
    gpu_free(c->card, &c->a);
    gpu_free(c->card, &c->b);
    gpu_event_destroy(c->begin);
    gpu_event_destroy(c->end);
    gpu_queue_destroy(c->queue);
    gpu_close(c->card);
}

/* Products of zeros run faster than products of numbers do. */
static tpl_code draw(bench_card *c, tpl_dtype t, tpl_err *e)
{
    card_random r = {.dst = c->a.data,
                     .dtype = t,
                     .heads = 1,
                     .rows = 2 * SIDE,
                     .cols = SIDE,
                     .row_stride = SIDE,
                     .recipe = {.key = 1, .size = 1}};
    return card_fill_random(c->queue, &r, e);
}

static tpl_code measure_all(bench_card *c, ceilings *out, tpl_err *e)
{
    static const ceil_kind order[CEIL_N] = {CEIL_F32, CEIL_BF16, CEIL_READ, CEIL_COPY, CEIL_UPDATE};
    for (int i = 0; i < CEIL_N; i++) {
        ceil_kind k = order[i];
        if (k == CEIL_F32 || k == CEIL_BF16)
            TPL_TRY(draw(c, k == CEIL_F32 ? DT_F32 : DT_BF16, e));
        TPL_TRY(measure(c, k, &out->rate[k][0], e));
        snprintf(out->source[k], sizeof out->source[k], "%s", sources[k]);
    }
    return TPL_OK;
}

tpl_code card_ceilings_measure(int ordinal, ceilings *out, tpl_err *e)
{
    bench_card c = {0};
    ceilings found = {.cores = 1, .n = 1, .threads = {1}, .measured_at = (int64_t)time(NULL)};
    tpl_code rc = open_card(&c, ordinal, e);
    if (rc == TPL_OK) {
        snprintf(found.cpu, sizeof found.cpu, "%.90s", gpu_get_facts(c.card)->name);
        rc = measure_all(&c, &found, e);
    }
    close_card(&c);
    if (rc == TPL_OK)
        *out = found;
    return rc;
}

/* Of this process: a suite's sections stand against the same ceilings. */
static struct {
    bool known;
    int ordinal;
    ceilings found;
} kept;

tpl_code card_ceilings_open(int ordinal, ceilings *out, tpl_err *e)
{
    if (!kept.known || kept.ordinal != ordinal) {
        TPL_TRY(card_ceilings_measure(ordinal, &kept.found, e));
        kept.known = true;
        kept.ordinal = ordinal;
    }
    *out = kept.found;
    return TPL_OK;
}
