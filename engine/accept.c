#include "engine/accept.h"

#include <stdlib.h>

#include "base/arena.h"
#include "engine/sampler.h"

void accept_init(accept_case *c, const spec_tree *t, float temperature, float top_p)
{
    size_t n = (size_t)t->vocab;
    *c = (accept_case){.tree = t, .temperature = temperature, .top_p = top_p};
    c->p = tpl_calloc(n, sizeof *c->p);
    c->q = tpl_calloc(n, sizeof *c->q);
    c->prob = tpl_calloc(n, sizeof *c->prob);
    c->order = tpl_calloc(n, sizeof *c->order);
}

void accept_fini(accept_case *c)
{
    free(c->p);
    free(c->q);
    free(c->prob);
    free(c->order);
    *c = (accept_case){0};
}

int32_t accept_draw(const double *p, int n, rng *r)
{
    double total = 0, sum = 0;
    int32_t last = 0;
    for (int i = 0; i < n; i++)
        total += p[i];
    double at = rng_uniform(r) * total;
    for (int32_t i = 0; i < n; i++) {
        if (p[i] <= 0)
            continue;
        sum += p[i];
        last = i;
        if (at < sum)
            break;
    }
    return last;
}

static const float *base_logits(const accept_case *c, int node)
{
    return c->logits + (size_t)(node + 1) * (size_t)c->tree->vocab;
}

int32_t accept_best(const accept_case *c, int node)
{
    return c->best ? c->best(c->best_user, node + 1) : sampler_argmax(base_logits(c, node), c->tree->vocab);
}

void accept_load(accept_case *c, int node)
{
    int n = c->tree->vocab;
    sampler_probabilities(base_logits(c, node), n, c->temperature, c->top_p, c->prob, c->order);
    for (int i = 0; i < n; i++)
        c->p[i] = c->prob[i];
}

/* x [n] scaled to sum 1; false, and x untouched, where nothing is left. */
static bool rescale(double *x, int n)
{
    double total = 0;
    for (int i = 0; i < n; i++)
        total += x[i];
    if (!(total > 0))
        return false;
    for (int i = 0; i < n; i++)
        x[i] /= total;
    return true;
}

/* p <- norm(max(0, p - q)). Where rounding leaves nothing p and q are equal and p stays. */
static void take_residual(accept_case *c)
{
    int n = c->tree->vocab;
    double total = 0;
    for (int i = 0; i < n; i++)
        total += c->p[i] > c->q[i] ? c->p[i] - c->q[i] : 0;
    if (!(total > 0))
        return;
    for (int i = 0; i < n; i++)
        c->p[i] = c->p[i] > c->q[i] ? (c->p[i] - c->q[i]) / total : 0;
}

static bool try_sampled(accept_case *c, int32_t x, rng *r)
{
    if (c->q[x] > 0 && rng_uniform(r) * c->q[x] < c->p[x])
        return true;
    take_residual(c);
    c->q[x] = 0;
    rescale(c->q, c->tree->vocab);
    return false;
}

static bool try_point(accept_case *c, int32_t x, rng *r)
{
    if (rng_uniform(r) < c->p[x])
        return true;
    double kept = c->p[x];
    c->p[x] = 0;
    if (!rescale(c->p, c->tree->vocab))
        c->p[x] = kept;
    return false;
}

int accept_child(accept_case *c, int node, tree_children rule, rng *r)
{
    const spec_tree *t = c->tree;
    int child = tree_next_child(t, node, -1);
    if (child >= 0 && rule == CHILDREN_SAMPLED) {
        const float *q = tree_dist(t, node);
        for (int i = 0; i < t->vocab; i++)
            c->q[i] = q[i];
        rescale(c->q, t->vocab);
    }
    rescale(c->p, t->vocab);
    for (; child >= 0; child = tree_next_child(t, node, child)) {
        int32_t x = t->nodes[child].token;
        if (rule == CHILDREN_SAMPLED ? try_sampled(c, x, r) : try_point(c, x, r))
            return child;
    }
    return -1;
}

static int greedy_child(const accept_case *c, int node, int32_t best)
{
    for (int child = tree_next_child(c->tree, node, -1); child >= 0; child = tree_next_child(c->tree, node, child))
        if (c->tree->nodes[child].token == best)
            return child;
    return -1;
}

void accept_exact(void *user, accept_case *c, rng *r, accept_result *out)
{
    int node = -1;
    out->n = 0;
    for (;;) {
        int child;
        out->exhausted = tree_next_child(c->tree, node, -1) < 0;
        if (c->temperature > 0) {
            accept_load(c, node);
            child = accept_child(c, node, c->tree->rule, r);
        } else {
            out->bonus = accept_best(c, node);
            child = greedy_child(c, node, out->bonus);
        }
        if (child < 0)
            break;
        out->path[out->n++] = node = child;
    }
    if (c->temperature > 0)
        out->bonus = accept_draw(c->p, c->tree->vocab, r);
}
