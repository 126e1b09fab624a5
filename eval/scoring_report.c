#include "eval/scoring_report.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"

static bool is_product(op_kind op)
{
    return op == OP_MATMUL || op == OP_HEAD_MATMUL || op == OP_MOE_EXPERTS;
}

static bool is_attention(op_kind op)
{
    return op == OP_ATTN_LATENT || op == OP_ATTN_MHA || op == OP_ATTN_GQA;
}

void scoring_add_flops(const plan *p, plan_phase phase, const batch_shape *b, scoring_work *w)
{
    const plan_types t = {.act = DT_F32, .kv = DT_F32};
    for (int i = 0; i < p->list[phase].n; i++) {
        const plan_step *s = &p->list[phase].steps[i];
        if (!s->active || s->is_comm)
            continue;
        double flops = plan_step_cost(p, s, b, t).flops;
        w->flops += is_product(s->call.kind) ? flops : 0;
        w->attn_flops += is_attention(s->call.kind) ? flops : 0;
    }
}

static void add_product(scoring_work *w, scoring_product a)
{
    for (int i = 0; i < w->n_products; i++) {
        scoring_product *b = &w->products[i];
        if (a.rows == b->rows && a.n == b->n && a.k == b->k) {
            b->times += a.times;
            return;
        }
    }
    if (w->n_products < SCORING_SHAPES)
        w->products[w->n_products++] = a;
}

void scoring_list_products(const plan *p, int64_t rows, int64_t logit_rows, scoring_work *w)
{
    for (int i = 0; i < p->list[PHASE_PREFILL].n; i++) {
        const plan_step *s = &p->list[PHASE_PREFILL].steps[i];
        if (!s->active || s->is_comm || s->call.kind != OP_MATMUL)
            continue;
        const plan_weight *m = &p->weights[s->w[0]];
        bool few = p->bufs[s->in[0].buf].logit_rows;
        add_product(w, (scoring_product){few ? logit_rows : rows, m->rows, m->cols, 1});
    }
}

static double ratio(double a, double b)
{
    return b > 0 ? a / b : 0;
}

double scoring_sharing(const scoring_work *w)
{
    return ratio((double)w->n_tok_unshared, (double)w->n_tok);
}

double scoring_batching(const scoring_work *w)
{
    return ratio(ratio(w->alone_seconds, w->alone_tok), ratio(w->seconds, (double)w->n_tok));
}

double scoring_gflops(const scoring_work *w)
{
    return ratio((w->flops + w->attn_flops) * 1e-9, w->seconds);
}

static void format_split(const scoring_work *w, char *buf, size_t bytes)
{
    double rest = w->seconds;
    int n = snprintf(buf, bytes, "%s: of %.3f s:", w->task, w->seconds);
    for (int k = 0; k < SPANS_N_KINDS; k++) {
        rest -= w->kind_seconds[k];
        if (w->kind_seconds[k] >= 0.001 * w->seconds && n < (int)bytes)
            n += snprintf(buf + n, bytes - (size_t)n, " %s %.1f%%,", spans_kind_name(k), 100 * ratio(w->kind_seconds[k], w->seconds));
    }
    if (n < (int)bytes)
        snprintf(buf + n, bytes - (size_t)n, " between passes %.1f%%", 100 * ratio(rest, w->seconds));
}

void scoring_format(const scoring_work *w, const scoring_ceiling *c, char line[SCORING_LINE], char split[SCORING_LINE])
{
    double all = scoring_gflops(w), products = ratio(w->flops * 1e-9, w->seconds);
    snprintf(line, SCORING_LINE,
             "%s: %" PRId64 " items, %" PRId64 " choices; %" PRId64 " tokens scored as %" PRId64
             " (sharing %.2fx), %.1f rows a pass (batching %.2fx); %.1f GFLOP/s, attention's products included: %.2f of the "
             "%s ceiling %.1f, %.2f of %.1f that products of these shapes reach (without attention %.1f: %.2f, %.2f)",
             w->task, w->n_items, w->n_choices, w->n_tok_unshared, w->n_tok, scoring_sharing(w),
             ratio((double)w->n_tok, (double)w->n_pass), scoring_batching(w), all, ratio(all, c->matrix), c->name, c->matrix,
             ratio(all, c->shapes), c->shapes, products, ratio(products, c->matrix), ratio(products, c->shapes));
    format_split(w, split, SCORING_LINE);
}

/* ---- time by operation ---- */

/* Each rank writes its own cache lines. */
typedef struct {
    _Alignas(64) int64_t begun_ns;
    int64_t total_ns[SPANS_N_KINDS];
} rank_clock;

struct scoring_clock {
    int n;
    rank_clock *ranks;
};

scoring_clock *scoring_clock_create(int n_ranks)
{
    scoring_clock *c = tpl_calloc(1, sizeof *c);
    c->n = n_ranks;
    c->ranks = aligned_alloc(64, sizeof *c->ranks * (size_t)n_ranks);
    if (!c->ranks)
        abort();
    memset(c->ranks, 0, sizeof *c->ranks * (size_t)n_ranks);
    return c;
}

void scoring_clock_destroy(scoring_clock *c)
{
    if (!c)
        return;
    free(c->ranks);
    free(c);
}

static void on_begin(void *user, int rank, const plan_step *step)
{
    ((scoring_clock *)user)->ranks[rank].begun_ns = clock_ns();
}

static void on_end(void *user, int rank, const plan_step *step, const op_call *call, mat out)
{
    rank_clock *r = &((scoring_clock *)user)->ranks[rank];
    r->total_ns[spans_kind_of(step)] += clock_ns() - r->begun_ns;
}

step_observer scoring_clock_observer(scoring_clock *c)
{
    return (step_observer){.begin = on_begin, .end = on_end, .user = c};
}

void scoring_clock_read(const scoring_clock *c, scoring_work *w)
{
    for (int k = 0; k < SPANS_N_KINDS; k++) {
        w->kind_seconds[k] = 0;
        for (int i = 0; i < c->n; i++)
            w->kind_seconds[k] += 1e-9 * (double)c->ranks[i].total_ns[k] / c->n;
    }
}
