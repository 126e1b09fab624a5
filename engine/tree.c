#include "engine/tree.h"

#include <assert.h>
#include <stdlib.h>

#include "base/arena.h"

void tree_init(spec_tree *t, int vocab, int width, int depth, tree_children rule)
{
    *t = (spec_tree){.vocab = vocab, .width = width, .depth = depth, .rule = rule};
    size_t dists = depth > 0 ? 1 + (size_t)width * (size_t)(depth - 1) : 1;
    t->nodes = tpl_calloc((size_t)width * (size_t)depth, sizeof *t->nodes);
    t->q = tpl_calloc(dists * (size_t)vocab, sizeof *t->q);
    t->top = tpl_calloc(dists * (size_t)width + 1, sizeof *t->top);
    t->top_share = tpl_calloc(dists * (size_t)width + 1, sizeof *t->top_share);
    t->order = tpl_calloc((size_t)vocab, sizeof *t->order);
    t->left = tpl_calloc((size_t)vocab, sizeof *t->left);
}

void tree_fini(spec_tree *t)
{
    free(t->nodes);
    free(t->q);
    free(t->top);
    free(t->top_share);
    free(t->order);
    free(t->left);
    *t = (spec_tree){0};
}

void tree_reset(spec_tree *t)
{
    t->n = t->level0 = t->n_dists = 0;
    t->only_top = false;
}

float *tree_add_dist(spec_tree *t, int node)
{
    assert(t->n_dists > 0 || node < 0);
    if (node >= 0)
        t->nodes[node].dist = t->n_dists;
    return t->q + (size_t)t->n_dists++ * (size_t)t->vocab;
}

void tree_add_top(spec_tree *t, int node, const int32_t *tokens, const float *shares, int n)
{
    size_t at = (size_t)t->n_dists * (size_t)t->width;
    assert(t->rule == CHILDREN_TOPK && n <= t->width);
    tree_add_dist(t, node);
    t->only_top = true;
    for (int i = 0; i < t->width; i++) {
        t->top[at + (size_t)i] = i < n ? tokens[i] : -1;
        t->top_share[at + (size_t)i] = i < n ? shares[i] : 0;
    }
}

const float *tree_dist(const spec_tree *t, int node)
{
    return t->q + (node < 0 ? 0 : (size_t)t->nodes[node].dist) * (size_t)t->vocab;
}

int tree_levels(const spec_tree *t)
{
    return t->n ? t->nodes[t->n - 1].level : 0;
}

double tree_confidence(const spec_tree *t)
{
    double best = t->n ? 0 : 1;
    for (int i = t->level0; i < t->n; i++)
        best = t->nodes[i].path > best ? t->nodes[i].path : best;
    return best;
}

int tree_next_child(const spec_tree *t, int node, int child)
{
    for (int i = child < 0 ? node + 1 : child + 1; i < t->n; i++)
        if (t->nodes[i].parent == node)
            return i;
    return -1;
}

static double path_of(const spec_tree *t, int node)
{
    return node < 0 ? 1 : t->nodes[node].path;
}

static void add_node(spec_tree *t, int parent, int32_t token, double path, int level)
{
    t->nodes[t->n++] = (tree_node){.token = token, .parent = parent, .level = level, .dist = -1, .path = path};
}

/* ---- top-k ---- */

/* Puts a candidate among the level's nodes [first, t->n), which fall in path and number at most `width`. */
static void offer(spec_tree *t, int first, int parent, int32_t token, double path, int level)
{
    int i = t->n;
    if (t->n - first == t->width) {
        if (path <= t->nodes[t->n - 1].path)
            return;
        i = --t->n;
    }
    for (; i > first && t->nodes[i - 1].path < path; i--)
        t->nodes[i] = t->nodes[i - 1];
    t->nodes[i] = (tree_node){.token = token, .parent = parent, .level = level, .dist = -1, .path = path};
    t->n++;
}

static void offer_top(spec_tree *t, int first, int parent, int level)
{
    size_t at = (parent < 0 ? 0 : (size_t)t->nodes[parent].dist) * (size_t)t->width;
    for (int i = 0; i < t->width; i++)
        if (t->top[at + (size_t)i] >= 0 && t->top_share[at + (size_t)i] > 0)
            offer(t, first, parent, t->top[at + (size_t)i], path_of(t, parent) * t->top_share[at + (size_t)i], level);
}

static void grow_topk(spec_tree *t, int first_parent, int end_parent, int level)
{
    int first = t->n;
    for (int parent = first_parent; parent < end_parent; parent++) {
        if (t->only_top) {
            offer_top(t, first, parent, level);
            continue;
        }
        const float *q = tree_dist(t, parent);
        double path = path_of(t, parent);
        for (int32_t token = 0; token < t->vocab; token++)
            if (q[token] > 0)
                offer(t, first, parent, token, path * q[token], level);
    }
}

/* ---- sampled ---- */

/* Children that parent number i of the level gets, by highest averages of the path products. */
static void deal_places(const spec_tree *t, int first_parent, int n_parents, int32_t *places)
{
    for (int i = 0; i < n_parents; i++)
        places[i] = 0;
    for (int place = 0; place < t->width; place++) {
        int best = 0;
        for (int i = 1; i < n_parents; i++)
            if (path_of(t, first_parent + i) / (places[i] + 1) > path_of(t, first_parent + best) / (places[best] + 1))
                best = i;
        places[best]++;
    }
}

static int32_t draw(const double *weight, int n, double total, rng *r)
{
    double at = rng_uniform(r) * total, sum = 0;
    int32_t last = -1;
    for (int32_t i = 0; i < n; i++) {
        if (weight[i] <= 0)
            continue;
        sum += weight[i];
        last = i;
        if (at < sum)
            break;
    }
    return last;
}

/* Up to n tokens of the parent's distribution without replacement. */
static void draw_children(spec_tree *t, int parent, int n, int level, rng *r)
{
    const float *q = tree_dist(t, parent);
    double path = path_of(t, parent);
    for (int32_t i = 0; i < t->vocab; i++)
        t->left[i] = q[i];
    while (n-- > 0) {
        double total = 0;
        for (int32_t i = 0; i < t->vocab; i++)
            total += t->left[i];
        int32_t token = draw(t->left, t->vocab, total, r);
        if (token < 0)
            return;
        add_node(t, parent, token, path * q[token], level);
        t->left[token] = 0;
    }
}

static void grow_sampled(spec_tree *t, int first_parent, int end_parent, int level, rng *r)
{
    int32_t *places = t->order; /* at most width parents, and width <= vocab */
    deal_places(t, first_parent, end_parent - first_parent, places);
    for (int parent = first_parent; parent < end_parent; parent++)
        draw_children(t, parent, places[parent - first_parent], level, r);
}

void tree_grow(spec_tree *t, rng *r)
{
    int level = tree_levels(t) + 1, first_parent = t->n ? t->level0 : -1, end_parent = t->n ? t->n : 0;
    assert(level <= t->depth);
    t->level0 = t->n;
    if (t->rule == CHILDREN_TOPK)
        grow_topk(t, first_parent, end_parent, level);
    else
        grow_sampled(t, first_parent, end_parent, level, r);
}
