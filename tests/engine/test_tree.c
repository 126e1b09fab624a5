#include "engine/tree.h"

#include <math.h>
#include <string.h>

#include <criterion/criterion.h>

static void set_dist(spec_tree *t, int node, const float *q)
{
    memcpy(tree_add_dist(t, node), q, (size_t)t->vocab * sizeof *q);
}

static void expect_node(const spec_tree *t, int i, int token, int parent, int level, double path)
{
    const tree_node *n = &t->nodes[i];
    cr_expect(n->token == token && n->parent == parent && n->level == level && fabs(n->path - path) < 1e-6,
              "node %d: token %d, parent %d, level %d, path %g", i, n->token, n->parent, n->level, n->path);
}

/* Worked by hand: width 3. Level 1 takes 0.5, 0.3, 0.1 (the lower index of two equals). Level 2 takes the three largest
 * products: 0.5 * 0.6, 0.3 * 0.9, 0.5 * 0.4. */
Test(tree, topk_takes_the_likeliest_paths)
{
    static const float root[5] = {0.3f, 0.1f, 0.5f, 0.0f, 0.1f}, after_2[5] = {0.6f, 0, 0.4f, 0, 0},
                       after_0[5] = {0.1f, 0.9f, 0, 0, 0}, after_1[5] = {0, 0, 0, 1, 0};
    spec_tree t;
    rng r = {1};
    tree_init(&t, 5, 3, 2, CHILDREN_TOPK);
    set_dist(&t, -1, root);
    cr_expect(tree_confidence(&t) == 1 && tree_levels(&t) == 0);
    tree_grow(&t, &r);
    cr_assert_eq(t.n, 3);
    expect_node(&t, 0, 2, -1, 1, 0.5);
    expect_node(&t, 1, 0, -1, 1, 0.3);
    expect_node(&t, 2, 1, -1, 1, 0.1);
    cr_expect_float_eq(tree_confidence(&t), 0.5, 1e-6);
    set_dist(&t, 0, after_2);
    set_dist(&t, 1, after_0);
    set_dist(&t, 2, after_1);
    tree_grow(&t, &r);
    cr_assert_eq(t.n, 6);
    expect_node(&t, 3, 0, 0, 2, 0.30);
    expect_node(&t, 4, 1, 1, 2, 0.27);
    expect_node(&t, 5, 2, 0, 2, 0.20);
    cr_expect_eq(tree_next_child(&t, 0, -1), 3);
    cr_expect_eq(tree_next_child(&t, 0, 3), 5);
    cr_expect_eq(tree_next_child(&t, 0, 5), -1);
    cr_expect_eq(tree_next_child(&t, 2, -1), -1);
    cr_expect_eq(r.state, 1, "top-k drew a random number");
    tree_fini(&t);
}

/* Fewer tokens with any probability than places: the level is short, and never holds an impossible token. */
Test(tree, takes_no_token_of_probability_zero)
{
    static const float root[4] = {0, 0.75f, 0, 0.25f};
    for (int rule = 0; rule < 2; rule++) {
        spec_tree t;
        rng r = rng_make(1, 1);
        tree_init(&t, 4, 3, 1, (tree_children)rule);
        set_dist(&t, -1, root);
        tree_grow(&t, &r);
        cr_expect_eq(t.n, 2);
        for (int i = 0; i < t.n; i++)
            cr_expect(t.nodes[i].token == 1 || t.nodes[i].token == 3);
        cr_expect(t.nodes[0].token != t.nodes[1].token);
        tree_fini(&t);
    }
}

/* Ordered pairs drawn without replacement from (0.5, 0.3, 0.2): P(a, b) = q(a) q(b) / (1 - q(a)). Five standard
 * deviations of 40,000 draws. */
Test(tree, samples_children_without_replacement)
{
    static const float root[3] = {0.5f, 0.3f, 0.2f};
    enum { DRAWS = 40000 };
    int seen[3][3] = {{0}};
    spec_tree t;
    rng r = rng_make(5, 2);
    tree_init(&t, 3, 2, 1, CHILDREN_SAMPLED);
    for (int i = 0; i < DRAWS; i++) {
        tree_reset(&t);
        set_dist(&t, -1, root);
        tree_grow(&t, &r);
        cr_assert_eq(t.n, 2);
        seen[t.nodes[0].token][t.nodes[1].token]++;
    }
    for (int a = 0; a < 3; a++)
        for (int b = 0; b < 3; b++) {
            double p = a == b ? 0 : (double)root[a] * root[b] / (1 - (double)root[a]);
            cr_expect(fabs(seen[a][b] - DRAWS * p) <= 5 * sqrt(DRAWS * p * (1 - p)), "%d %d: %d, not %.0f", a, b,
                      seen[a][b], DRAWS * p);
        }
    tree_fini(&t);
}

/* Places by highest averages, worked by hand: paths 0.8 and 0.2, five places: 0.8, 0.4, 0.267 go to the first, then 0.2
 * twice (0.8 / 4 and 0.2 / 1): the tie goes to the first node, the last place to the second. */
Test(tree, deals_places_before_drawing)
{
    static const float root[6] = {0.8f, 0.2f, 0, 0, 0, 0}, flat[6] = {0.2f, 0.2f, 0.2f, 0.2f, 0.1f, 0.1f};
    for (uint64_t seed = 0; seed < 40; seed++) {
        spec_tree t;
        rng r = rng_make(seed, 9);
        int children[2] = {0};
        tree_init(&t, 6, 5, 2, CHILDREN_SAMPLED);
        set_dist(&t, -1, root);
        tree_grow(&t, &r);
        cr_assert_eq(t.n, 2);
        int likely = t.nodes[0].token == 0 ? 0 : 1;
        set_dist(&t, 0, flat);
        set_dist(&t, 1, flat);
        tree_grow(&t, &r);
        for (int i = 2; i < t.n; i++)
            children[t.nodes[i].parent]++;
        cr_expect(children[likely] >= 4 && children[0] + children[1] == 5, "%d and %d", children[likely],
                  children[1 - likely]);
        tree_fini(&t);
    }
}
