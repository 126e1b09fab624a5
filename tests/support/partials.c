#include "tests/support/partials.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <criterion/criterion.h>

#include "device/gpu.h"
#include "engine/session_impl.h"

enum { PROMPT = 9 };

typedef struct {
    session *s;
    partials *out;
    bool on_card, met; /* met: the pass's first collective has come */
} eye;

static void read_rows(const eye *w, mat m, float *to)
{
    size_t size = dtype_bytes(m.dtype), bytes = (size_t)((m.rows - 1) * m.stride + m.cols) * size;
    char *host = malloc(bytes);
    if (w->on_card)
        cr_assert(gpu_copy_now(w->s->ranks[0].ctx.queue, host, m.data, bytes, NULL) == TPL_OK);
    else
        memcpy(host, m.data, bytes);
    for (int64_t r = 0; r < m.rows; r++)
        dtype_to_f32(to + r * m.cols, host + (size_t)(r * m.stride) * size, m.dtype, (size_t)m.cols);
    free(host);
}

static void after_step(void *user, int rank, const plan_step *step, const op_call *call, mat out)
{
    eye *w = user;
    if (rank != 0)
        return;
    w->met = w->met || step->is_comm;
    if (w->met || !out.data || out.rows == 0 || w->out->n == PARTIALS_MOST)
        return;
    size_t n = (size_t)(out.rows * out.cols);
    int i = w->out->n++;
    snprintf(w->out->step[i].name, sizeof w->out->step[i].name, "%s", step->name);
    w->out->step[i].n = n;
    w->out->step[i].values = malloc(n * sizeof(float));
    read_rows(w, out, w->out->step[i].values);
}

void partials_collect(lab *l, const char *variant_text, const team_options *o, partials *out)
{
    variant v;
    lab_run run;
    session *s;
    tpl_err e = {0};
    batch_row rows[PROMPT], next = {0, 77, ROW_CHAIN, true};
    *out = (partials){.n = 0};
    cr_assert(variant_parse(variant_text, &v, &e) == TPL_OK, "%s", e.what);
    cr_assert(lab_run_open(l, &v, o, &run, &e) == TPL_OK, "%s: %s: %s", variant_text, e.where, e.what);
    session_options so = {.max_seqs = 1, .max_tok = 64, .max_rows = 16, .max_logits = 1};
    cr_assert(session_create(run.team, &so, &s, &e) == TPL_OK, "%s: %s", e.where, e.what);
    next.seq = session_add_seq(s);
    for (int i = 0; i < PROMPT; i++)
        rows[i] = (batch_row){next.seq, 5 + 31 * i, ROW_CHAIN, i == PROMPT - 1};
    eye w = {.s = s, .out = out, .on_card = o->backend && strcmp(o->backend, "cuda") == 0};
    session_observe(s, (step_observer){.end = after_step, .user = &w});
    cr_assert(session_forward(s, PHASE_PREFILL, rows, PROMPT, &e) == TPL_OK, "%s: %s", e.where, e.what);
    w.met = false;
    cr_assert(session_forward(s, PHASE_DECODE, &next, 1, &e) == TPL_OK, "%s: %s", e.where, e.what);
    session_destroy(s);
    lab_run_close(&run);
}

void partials_free(partials *p)
{
    for (int i = 0; i < p->n; i++)
        free(p->step[i].values);
    p->n = 0;
}

void partials_expect_equal(const partials *got, const partials *want, double tolerance, const char *what)
{
    cr_assert(got->n == want->n && want->n > 4, "%s: %d steps, expected %d", what, got->n, want->n);
    for (int i = 0; i < want->n; i++) {
        double worst = 0, scale = 0;
        cr_assert(strcmp(got->step[i].name, want->step[i].name) == 0 && got->step[i].n == want->step[i].n,
                  "%s: step %d is %s", what, i, got->step[i].name);
        size_t written = 0; /* what a step leaves out between heads is zero on a host, NaN on a card */
        for (size_t k = 0; k < want->step[i].n; k++) {
            if (want->step[i].values[k] == 0)
                continue;
            written++;
            double d = fabs((double)got->step[i].values[k] - want->step[i].values[k]);
            worst = fmax(worst, isnan(d) ? INFINITY : d);
            scale = fmax(scale, fabs((double)want->step[i].values[k]));
        }
        cr_expect(written >= want->step[i].n / 4, "%s: %s has %zu values", what, want->step[i].name, written);
        cr_expect(worst <= tolerance * scale, "%s: %s is off by %g, values reach %g", what, want->step[i].name, worst,
                  scale);
    }
}
