/* tree.h - the tokens a draft proposes in one iteration: a tree of a given width, grown level by level. Width 1 is a
 * chain. For:    speculate.c grows it, accept.c judges it. Enter:  engine/, bench/, tests/. Owns:   tree_init() owns
 * nodes and distributions (tree_fini). Fails:  never.
 *
 * "Width" counts the nodes of a level. Which nodes a level gets, by rule:
 * top-k     the `width` likeliest continuations of the level above, by the product of draft probabilities along the
 * path; sampled   the level's places are dealt to its parents by those products (highest averages), before anything is
 * drawn; a parent's children are then drawn from its distribution without replacement. Siblings stand in the order in
 * which they are tried: falling probability, or the order of drawing. */
#ifndef TPL_ENGINE_TREE_H
#define TPL_ENGINE_TREE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/rng.h"

typedef enum { CHILDREN_TOPK, CHILDREN_SAMPLED } tree_children;

typedef struct {
    int32_t token, parent; /* parent: a node's number; -1: the root, the last token of the text */
    int32_t level;         /* from 1 */
    int32_t dist;          /* the distribution after it, in tree.q; -1: the draft did not run it */
    double path;           /* product of draft probabilities */
} tree_node;

typedef struct {
    int32_t vocab, width, depth;
    tree_children rule;
    tree_node *nodes;  /* [width * depth] level by level */
    int32_t n, level0; /* nodes, first node of the deepest level */
    float *q;          /* [1 + width * (depth - 1), vocab]: 0 is the root's, then in order of tree_add_dist() */
    int32_t n_dists;
    int32_t *top;      /* [1 + width * (depth - 1), width]: where tree_add_top() gave no more than the likeliest */
    float *top_share;  /* the same */
    bool only_top;
    int32_t *order; /* scratch [vocab] */
    double *left;   /* scratch [vocab] */
} spec_tree;

void tree_init(spec_tree *t, int vocab, int width, int depth, tree_children rule);
void tree_fini(spec_tree *t);
void tree_reset(spec_tree *t);

/* Space [vocab] for the draft's distribution after a node (-1: the root); to be filled before the next level grows. */
float *tree_add_dist(spec_tree *t, int node);
/* The same where only the likeliest tokens of it are known: n of at most `width`, falling; -1 where there are no more.
 * Enough for children by top-k, whose judging needs no q; a tree has either these or whole distributions. */
void tree_add_top(spec_tree *t, int node, const int32_t *tokens, const float *shares, int n);
/* Adds a level below the deepest one, whose nodes all have distributions. Only `sampled` draws from r. */
void tree_grow(spec_tree *t, rng *r);

int tree_levels(const spec_tree *t);
/* Largest `path` of the deepest level; 1 for an empty tree. */
double tree_confidence(const spec_tree *t);
/* Next child of `node` after `child` (-1: the first), or -1. */
int tree_next_child(const spec_tree *t, int node, int child);
const float *tree_dist(const spec_tree *t, int node);

#endif
