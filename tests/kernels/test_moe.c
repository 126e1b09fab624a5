#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/arena.h"
#include "tests/kernels/compare.h"

/* ---- routing, on logits given one to one: x is a unit row, w's columns are the logits ---- */

typedef struct {
    char name[24];
    int32_t n, top_k, n_group, topk_group;
    moe_scoring scoring;
    bool normalise, biased;
    float scale, logits[8], bias[8];
    int32_t ids[4];
    double weights[4];
} route_case;

#define SIGMOID(x) (1 / (1 + exp(-(x))))

static void check_route(const route_case *c)
{
    float x = 1;
    int32_t ids[4 + 2];
    op_call call = {.kind = OP_MOE_ROUTE};
    op_moe_route *o = &call.moe_route;
    *o = (op_moe_route){.x = {&x, DT_F32, 1, 1, 1, NULL},
                        .w = {(void *)(uintptr_t)c->logits, DT_F32, c->n, 1, 1, NULL},
                        .ids = {ids + 1, DT_I32, 1, c->top_k, c->top_k, NULL},
                        .top_k = c->top_k,
                        .n_group = c->n_group,
                        .topk_group = c->topk_group,
                        .scoring = c->scoring,
                        .normalise = c->normalise,
                        .scale = c->scale};
    if (c->biased)
        o->bias = (mat){(void *)(uintptr_t)c->bias, DT_F32, 1, c->n, c->n, NULL};
    EACH_ROW(row, OP_MOE_ROUTE)
    {
        for (int i = 0; i < 6; i++)
            ids[i] = -7;
        o->weights = guard_make(1, c->top_k);
        run_row(row, DT_F32, &call, c->name);
        compare_mat(&o->weights, c->weights, "f32", c->name);
        for (int i = 0; i < c->top_k; i++)
            cr_assert_eq(ids[1 + i], c->ids[i], "%s %s: id %d is %d, expected %d", c->name, row->name, i, ids[1 + i],
                         c->ids[i]);
        cr_assert(ids[0] == -7 && ids[1 + c->top_k] == -7, "%s %s wrote outside", c->name, row->name);
        mats_free(&o->weights);
    }
}

Test(moe, route_by_hand)
{
    double e3 = exp(3), e2 = exp(2), all = exp(1) + e3 + e2 + exp(0), s4 = SIGMOID(4), s1 = SIGMOID(1), s3 = SIGMOID(3);
    route_case cases[] = {
        {"softmax", 4, 2, 1, 1, MOE_SOFTMAX, false, false, 1, {1, 3, 2, 0}, {0}, {1, 2}, {e3 / all, e2 / all}},
        {"normalised",
         4,
         2,
         1,
         1,
         MOE_SOFTMAX,
         true,
         false,
         2.5f,
         {1, 3, 2, 0},
         {0},
         {1, 2},
         {2.5 * e3 / (e3 + e2), 2.5 * e2 / (e3 + e2)}},
        {"ties", 4, 3, 1, 1, MOE_SIGMOID, false, false, 1, {0, 0, 0, 0}, {0}, {0, 1, 2}, {.5, .5, .5}},
        /* The bias lifts expert 0 over expert 2 but does not enter its weight. */
        {"bias",
         4,
         2,
         1,
         1,
         MOE_SIGMOID,
         true,
         true,
         1,
         {1, 4, 3, 0},
         {.9f, 0, 0, 0},
         {0, 1},
         {s1 / (s1 + s4), s4 / (s1 + s4)}},
        /* Without a bias a group counts by its best: group 1 (4) and group 2 (3) win; expert 1 (2.9) is shut out. */
        {"groups_by_best",
         6,
         3,
         3,
         2,
         MOE_SIGMOID,
         false,
         false,
         1,
         {2.5f, 2.9f, 4, -4, 3, 1},
         {0},
         {2, 4, 5},
         {s4, s3, s1}},
        /* With one, by the sum of its two best: group 0 beats group 1, whose second is poor. */
        {"groups_by_two", 6, 2, 3, 1, MOE_SIGMOID, false, true, 1, {3, 1, 4, -4, 0, 0}, {0}, {0, 1}, {s3, s1}},
        /* Scores that the bias makes negative still beat the experts of groups that lost. */
        {"negative", 4, 2, 2, 1, MOE_SIGMOID, false, true, 1, {1, 3, 0, 0}, {-1, -1, -3, -3}, {1, 0}, {s3, s1}},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        check_route(&cases[i]);
}

/* Broken activations must not lead out of the experts. */
Test(moe, route_of_nan_stays_in_range)
{
    rng r = rng_make(41, 0);
    op_call call = {.kind = OP_MOE_ROUTE};
    op_moe_route *o = &call.moe_route;
    int32_t ids[8];
    *o = (op_moe_route){.x = mats_random(&r, 1, 3, 1),
                        .w = mats_random(&r, 16, 3, 1),
                        .ids = {ids, DT_I32, 1, 8, 8, NULL},
                        .top_k = 8,
                        .n_group = 4,
                        .topk_group = 2,
                        .scale = 1};
    *(float *)o->x.data = NAN;
    EACH_ROW(row, OP_MOE_ROUTE)
    {
        o->weights = guard_make(1, 8);
        run_row(row, DT_F32, &call, "nan");
        uint32_t seen = 0;
        for (int i = 0; i < 8; i++) {
            cr_assert(ids[i] >= 0 && ids[i] < 16 && !(seen >> ids[i] & 1), "%s: id %d is %d", row->name, i, ids[i]);
            seen |= 1u << ids[i];
        }
        mats_free(&o->weights);
    }
    mats_free(&o->x);
    mats_free(&o->w);
}

/* Rows beyond one chunk; ids of well-separated scores agree with a plain sort. */
Test(moe, route_of_many_rows)
{
    rng r = rng_make(42, 0);
    enum { ROWS = 300, N = 12, DIM = 33 };
    op_call call = {.kind = OP_MOE_ROUTE};
    op_moe_route *o = &call.moe_route;
    *o = (op_moe_route){.x = mats_random(&r, ROWS, DIM, 1),
                        .w = mats_typed(&r, N, DIM, DT_BF16, 1),
                        .top_k = 1,
                        .n_group = 1,
                        .topk_group = 1,
                        .scale = 1};
    double *e = tpl_malloc(ROWS * sizeof *e);
    int32_t *ids = tpl_malloc(ROWS * sizeof *ids), *best = tpl_malloc(ROWS * sizeof *ids);
    for (int row = 0; row < ROWS; row++) {
        double logit[N], sum = 0;
        best[row] = 0;
        for (int i = 0; i < N; i++) {
            logit[i] = 0;
            for (int c = 0; c < DIM; c++)
                logit[i] += mats_get(&o->x, row, c) * mats_get(&o->w, i, c);
            sum += exp(logit[i]);
            if (logit[i] > logit[best[row]])
                best[row] = i;
        }
        e[row] = exp(logit[best[row]]) / sum;
    }
    o->ids = (mat){ids, DT_I32, ROWS, 1, 1, NULL};
    EACH_ROW(row, OP_MOE_ROUTE)
    {
        o->weights = guard_make(ROWS, 1);
        run_row(row, DT_F32, &call, "many");
        compare_mat(&o->weights, e, "sum", row->name);
        cr_assert(memcmp(ids, best, ROWS * sizeof *ids) == 0, "%s", row->name);
        mats_free(&o->weights);
    }
    mats_free(&o->x);
    mats_free(&o->w);
    free(e);
    free(ids);
    free(best);
}

/* ---- experts ---- */

enum { N_EXPERTS = 6, TOP_K = 3 };

typedef struct {
    int64_t rows, dim, ffn;
    int32_t expert0, n_local;
    tpl_dtype weight, compute;
} expert_case;

static double dot(const mat *x, int64_t row, const mat *w, int64_t w_row, tpl_dtype compute)
{
    double sum = 0;
    for (int64_t i = 0; i < w->cols; i++)
        sum += as_input(compute, mats_get(x, row, i)) * as_input(compute, mats_get(w, w_row, i));
    return sum;
}

static void expert_add(const op_moe_experts *o, int64_t row, int64_t expert, double weight, tpl_dtype compute,
                       double *sum)
{
    double *inner = tpl_malloc((size_t)o->ffn * sizeof *inner);
    for (int64_t i = 0; i < o->ffn; i++) {
        double g = dot(&o->x, row, &o->gate[expert], i, compute), u = dot(&o->x, row, &o->up[expert], i, compute);
        inner[i] = as_input(compute, g * SIGMOID(g) * u);
    }
    for (int64_t c = 0; c < o->x.cols; c++)
        for (int64_t i = 0; i < o->ffn; i++)
            sum[c] += weight * inner[i] * as_input(compute, mats_get(&o->down[expert], c, i));
    free(inner);
}

/* Different experts a row; every third row has none of this rank's. */
static void fill_ids(const expert_case *c, rng *r, int32_t *ids)
{
    for (int64_t row = 0; row < c->rows; row++)
        for (int i = 0; i < TOP_K; i++)
            ids[row * TOP_K + i] = row % 3 == 2 && c->n_local < N_EXPERTS
                                       ? (c->expert0 + c->n_local) % N_EXPERTS
                                       : (int32_t)((rng_below(r, 2) + 2 * (uint64_t)i) % N_EXPERTS);
}

static void check_experts(const expert_case *c)
{
    rng r = rng_make(43, 0);
    mat gate[N_EXPERTS], up[N_EXPERTS], down[N_EXPERTS];
    for (int i = 0; i < c->n_local; i++) {
        gate[i] = mats_typed(&r, c->ffn, c->dim, c->weight, 0.3);
        up[i] = mats_typed(&r, c->ffn, c->dim, c->weight, 0.3);
        down[i] = mats_typed(&r, c->dim, c->ffn, c->weight, 0.1);
    }
    int32_t *ids = tpl_malloc((size_t)(c->rows * TOP_K) * sizeof *ids);
    fill_ids(c, &r, ids);
    op_call call = {.kind = OP_MOE_EXPERTS};
    op_moe_experts *o = &call.moe_experts;
    *o = (op_moe_experts){.x = mats_random(&r, c->rows, c->dim, 0.3),
                          .ids = {ids, DT_I32, c->rows, TOP_K, TOP_K, NULL},
                          .weights = mats_random(&r, c->rows, TOP_K, 1),
                          .gate = gate,
                          .up = up,
                          .down = down,
                          .expert0 = c->expert0,
                          .n_local = c->n_local,
                          .n_experts = N_EXPERTS,
                          .ffn = (int32_t)c->ffn,
                          .weight_dtype = c->weight};
    size_t n = (size_t)(c->rows * c->dim);
    double *plain = tpl_calloc(n, sizeof *plain), *sum = tpl_calloc(n, sizeof *sum);
    mat old = mats_random(&r, c->rows, c->dim, 1);
    for (int64_t row = 0; row < c->rows; row++)
        for (int i = 0; i < TOP_K; i++) {
            int32_t local = ids[row * TOP_K + i] - c->expert0;
            if (local >= 0 && local < c->n_local)
                expert_add(o, row, local, mats_get(&o->weights, row, i), c->compute, plain + row * c->dim);
        }
    for (size_t i = 0; i < n; i++)
        sum[i] = plain[i] + mats_get(&old, (int64_t)i / c->dim, (int64_t)i % c->dim);
    const char *tol = c->compute == DT_BF16 ? "expert_bf16" : "sum";
    EACH_ROW(row, OP_MOE_EXPERTS)
    {
        char what[120];
        snprintf(what, sizeof what, "experts %ld rows %s compute %s %s", (long)c->rows, dtype_name(c->weight),
                 dtype_name(c->compute), row->name);
        o->out = guard_make(c->rows, c->dim);
        o->accumulate = false;
        run_row(row, c->compute, &call, what);
        compare_mat(&o->out, plain, tol, what);
        mats_copy(&o->out, &old);
        o->accumulate = true;
        run_row(row, c->compute, &call, what);
        compare_mat(&o->out, sum, tol, what);
        mats_free(&o->out);
    }
    for (int i = 0; i < c->n_local; i++) {
        mats_free(&gate[i]);
        mats_free(&up[i]);
        mats_free(&down[i]);
    }
    mats_free(&o->x);
    mats_free(&o->weights);
    mats_free(&old);
    free(ids);
    free(plain);
    free(sum);
}

Test(moe, experts_match_definition)
{
    static const expert_case cases[] = {
        {1, 20, 12, 0, 6, DT_F32, DT_F32},       {7, 33, 17, 2, 3, DT_BF16, DT_F32},
        {7, 33, 17, 0, 6, DT_BF16, DT_BF16},     {40, 24, 16, 1, 4, DT_F8E4M3, DT_F32},
        {5, 130, 140, 3, 2, DT_F8E4M3, DT_BF16}, {600, 8, 8, 0, 6, DT_F16, DT_F32},
        {4, 8, 8, 5, 0, DT_F32, DT_F32},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        check_experts(&cases[i]);
}
