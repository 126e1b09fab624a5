/* accept.h - which drafted tokens are kept, so that the text is distributed exactly as the base model alone would have
 * it. For:    speculate.c; tests put wrong rules in its place. Enter:  engine/, tests/. Owns:   accept_init() owns
 * scratch of the vocabulary's size (accept_fini). Fails:  never.
 *
 * Temperature 0: a child is kept if it is the base's likeliest token (the lowest among equals).
 * Else, with p the base's distribution after a node and q the draft's (both tempered and cut to top-p), siblings in
 * turn: sampled   keep x with min(1, p(x) / q(x)); otherwise p <- norm(max(0, p - q)), and q loses x and is rescaled
 *           (SpecInfer's recursive rejection, for children drawn without replacement);
 * top-k     the children are no random draw, so q is a point mass on each in turn: keep x with p(x); otherwise p loses
 * x and is rescaled. The ratio rule would be biased here. No child kept: the bonus token is drawn from what p has
 * become, at the position of the rejection; all levels kept: from p. */
#ifndef TPL_ENGINE_ACCEPT_H
#define TPL_ENGINE_ACCEPT_H

#include "engine/tree.h"

typedef struct {
    const spec_tree *tree;
    const float *logits; /* [1 + tree->n, vocab]: the base's after the root and after each node; NULL at temperature 0 */
    int32_t (*best)(const void *user, int i); /* temperature 0: the likeliest token by row of `logits`; NULL: sought there */
    const void *best_user;
    float temperature, top_p;
    double *p, *q;  /* [vocab] */
    float *prob;    /* [vocab] */
    int32_t *order; /* [vocab] */
} accept_case;

typedef struct {
    int32_t *path; /* [depth] nodes kept, from the root */
    int32_t n;
    int32_t bonus;  /* the token after them */
    bool exhausted; /* the path ended at a node without children, not by a rejection */
} accept_result;

typedef void (*accept_fn)(void *user, accept_case *c, rng *r, accept_result *out);

void accept_init(accept_case *c, const spec_tree *t, float temperature, float top_p);
void accept_fini(accept_case *c);

/* The rule above; `user` is not used. */
void accept_exact(void *user, accept_case *c, rng *r, accept_result *out);

/* Its parts: c->p = the base's distribution after a node (-1: the root); the child of `node` that is kept, or -1, with
 * c->p left as the bonus token's distribution; a draw from p [n] >= 0 that need not sum to 1. */
void accept_load(accept_case *c, int node);
int accept_child(accept_case *c, int node, tree_children rule, rng *r);
int32_t accept_best(const accept_case *c, int node); /* the base's likeliest token after a node */
int32_t accept_draw(const double *p, int n, rng *r);

#endif
