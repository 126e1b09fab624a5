/* The acceptance rules on distributions small enough to enumerate: whatever is proposed, the token at a position must
 * come out with the base's probability. */
#include "engine/accept.h"

#include <math.h>
#include <string.h>

#include <criterion/criterion.h>

enum { VOCAB = 5, DRAWS = 200000 };

static const double base_p[VOCAB] = {0.40, 0.05, 0.25, 0.28, 0.02};
static const float draft_q[VOCAB] = {0.15f, 0.45f, 0.20f, 0.20f, 0.0f};

typedef struct {
    spec_tree tree;
    accept_case c;
    accept_result out;
    int32_t path[4];
    float logits[8][VOCAB];
} bench;

static void open_bench(bench *b, int width, tree_children rule, float temperature)
{
    memset(b, 0, sizeof *b);
    tree_init(&b->tree, VOCAB, width, 2, rule);
    accept_init(&b->c, &b->tree, temperature, 1);
    for (int i = 0; i < 8; i++)
        for (int v = 0; v < VOCAB; v++)
            b->logits[i][v] = (float)log(base_p[v]);
    b->c.logits = b->logits[0];
    b->out.path = b->path;
}

static void close_bench(bench *b)
{
    accept_fini(&b->c);
    tree_fini(&b->tree);
}

static void propose(bench *b, rng *r)
{
    tree_reset(&b->tree);
    memcpy(tree_add_dist(&b->tree, -1), draft_q, sizeof draft_q);
    tree_grow(&b->tree, r);
}

/* Chi-square of the first token over DRAWS iterations against the base's distribution, 4 degrees of freedom. */
static double first_token_chi2(int width, tree_children draw, tree_children rule, uint64_t seed)
{
    bench b;
    rng r = rng_make(seed, 4);
    int64_t seen[VOCAB] = {0};
    double chi2 = 0;
    open_bench(&b, width, draw, 1);
    for (int i = 0; i < DRAWS; i++) {
        propose(&b, &r);
        accept_load(&b.c, -1);
        int child = accept_child(&b.c, -1, rule, &r);
        seen[child >= 0 ? b.tree.nodes[child].token : accept_draw(b.c.p, VOCAB, &r)]++;
    }
    for (int v = 0; v < VOCAB; v++)
        chi2 += (seen[v] - DRAWS * base_p[v]) * (seen[v] - DRAWS * base_p[v]) / (DRAWS * base_p[v]);
    close_bench(&b);
    return chi2;
}

/* 18.47 is the 0.999 quantile of chi-square with 4 degrees of freedom. */
Test(accept, keeps_the_base_distribution)
{
    for (int width = 1; width <= 4; width++) {
        double sampled = first_token_chi2(width, CHILDREN_SAMPLED, CHILDREN_SAMPLED, 100 + (uint64_t)width);
        double topk = first_token_chi2(width, CHILDREN_TOPK, CHILDREN_TOPK, 200 + (uint64_t)width);
        cr_expect(sampled < 18.47, "sampled, width %d: chi2 %.2f", width, sampled);
        cr_expect(topk < 18.47, "top-k, width %d: chi2 %.2f", width, topk);
    }
}

/* The trap: min(1, p/q) with the draft's q on children that were not drawn from it. */
Test(accept, would_be_biased_with_the_ratio_on_topk_children)
{
    for (int width = 1; width <= 3; width++)
        cr_expect_gt(first_token_chi2(width, CHILDREN_TOPK, CHILDREN_SAMPLED, 300 + (uint64_t)width), 1000, "width %d",
                     width);
}

/* One sampled child x of q: P(accept) = sum over x of min(p, q) = 0.15 + 0.05 + 0.20 + 0.20 = 0.60. Top-1 is token 1 as
 * a point mass: P(accept) = p(1) = 0.05. Five standard deviations. */
Test(accept, keeps_as_many_as_the_rule_says)
{
    static const double want[2] = {[CHILDREN_TOPK] = 0.05, [CHILDREN_SAMPLED] = 0.60};
    for (int rule = 0; rule < 2; rule++) {
        bench b;
        rng r = rng_make(3, 4);
        int kept = 0;
        open_bench(&b, 1, (tree_children)rule, 1);
        for (int i = 0; i < DRAWS; i++) {
            propose(&b, &r);
            accept_load(&b.c, -1);
            kept += accept_child(&b.c, -1, (tree_children)rule, &r) >= 0;
        }
        cr_expect_float_eq((double)kept / DRAWS, want[rule], 5 * sqrt(want[rule] * (1 - want[rule]) / DRAWS));
        close_bench(&b);
    }
}

/* q equal to p: everything is kept, whatever the rounding. */
Test(accept, keeps_all_of_an_equal_draft)
{
    bench b;
    rng r = rng_make(8, 4);
    open_bench(&b, 1, CHILDREN_SAMPLED, 1);
    for (int i = 0; i < 10000; i++) {
        tree_reset(&b.tree);
        float *q = tree_add_dist(&b.tree, -1);
        accept_load(&b.c, -1);
        for (int v = 0; v < VOCAB; v++)
            q[v] = (float)b.c.p[v];
        tree_grow(&b.tree, &r);
        cr_assert_geq(accept_child(&b.c, -1, CHILDREN_SAMPLED, &r), 0);
    }
    close_bench(&b);
}

/* A tree of two levels walked at temperature 0: the base prefers 2, then 0 (both 0.5 and equal to token 3's: the lower
 * index), then, after the leaf, 3. */
Test(accept, walks_greedily_to_the_first_disagreement)
{
    bench b;
    rng r = rng_make(8, 4);
    static const float likes_2[VOCAB] = {0, 0, 9, 1, 1}, likes_0[VOCAB] = {5, 0, 1, 5, 1},
                       likes_3[VOCAB] = {0, 1, 2, 3, 0}, after[VOCAB] = {0.6f, 0, 0, 0.4f, 0};
    static const float root[VOCAB] = {0.2f, 0.6f, 0.2f, 0, 0};
    open_bench(&b, 2, CHILDREN_TOPK, 0);
    memcpy(tree_add_dist(&b.tree, -1), root, sizeof root);
    tree_grow(&b.tree, &r); /* nodes 0: token 1; 1: token 0 */
    b.tree.nodes[1].token = 2;
    memcpy(tree_add_dist(&b.tree, 0), after, sizeof after);
    memcpy(tree_add_dist(&b.tree, 1), after, sizeof after);
    tree_grow(&b.tree, &r); /* nodes 2: 0 after node 0; 3: 3 after node 0 */
    b.tree.nodes[3] = (tree_node){.token = 0, .parent = 1, .level = 2, .dist = -1};
    memcpy(b.logits[0], likes_2, sizeof likes_2);
    memcpy(b.logits[2], likes_0, sizeof likes_0);
    memcpy(b.logits[4], likes_3, sizeof likes_3);
    accept_exact(NULL, &b.c, &r, &b.out);
    cr_expect(b.out.n == 2 && b.path[0] == 1 && b.path[1] == 3, "%d kept: %d, %d", b.out.n, b.path[0], b.path[1]);
    cr_expect_eq(b.out.bonus, 3);
    cr_expect(b.out.exhausted);
    memcpy(b.logits[2], likes_3, sizeof likes_3);
    accept_exact(NULL, &b.c, &r, &b.out);
    cr_expect(b.out.n == 1 && b.out.bonus == 3 && !b.out.exhausted);
    memcpy(b.logits[0], likes_3, sizeof likes_3);
    accept_exact(NULL, &b.c, &r, &b.out);
    cr_expect(b.out.n == 0 && b.out.bonus == 3 && !b.out.exhausted);
    close_bench(&b);
}
