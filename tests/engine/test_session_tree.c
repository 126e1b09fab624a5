/* Trees that grow over several passes, and what is left when a path of one is kept: compared with plain sequences that
 * hold the same tokens, and with a naive model of lengths and pages. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include <criterion/criterion.h>
#include <criterion/parameterized.h>

#include "base/rng.h"
#include "tests/support/checkpoint.h"
#include "tests/support/side.h"

enum { VOCAB = 48, MAX_TOK = 64, MAX_TREE = 80 };

typedef struct {
    char name[24], variant[40];
    int tp;
    bool mla;
} tree_case;

static tree_case cases[] = {
    {"gqa", "gqa", 1, false},
    {"gqa_2", "gqa", 2, false},
    {"mla_2", "mla", 2, true},
    {"dcp_2", "mla-dcp", 2, true},
    {"tpla_2", "tpla:g=2:u=hadamard", 2, true},
    {"tpla_pd", "tpla:g=2:u=id:pd=on", 2, true},
};

static side open_case(const tree_case *c, arena *a, const char **dir)
{
    model_config cfg = c->mla ? ckpt_small_mla() : ckpt_small_gqa();
    tpl_err e = {0};
    cfg.n_layers = 2;
    cfg.max_pos = 256;
    cfg.weight_dtype = DT_F32;
    *dir = ckpt_temp_dir(a);
    cr_assert(ckpt_write(*dir, &cfg, DT_F32, 21, 1, &e) == TPL_OK, "%s", e.what);
    side x = side_open(*dir, c->variant, c->tp, NULL, (plan_fuzzy){0});
    side_add_session(
        &x, (session_options){.max_seqs = 3, .max_tok = 256, .max_rows = 96, .max_logits = 96, .max_tree = MAX_TREE});
    return x;
}

/* A random tree of n nodes: parents come before children. */
static void random_tree(rng *r, int n, int32_t *token, int32_t *parent)
{
    for (int i = 0; i < n; i++) {
        token[i] = (int32_t)rng_below(r, VOCAB);
        parent[i] = (int32_t)rng_below(r, (uint64_t)(i < 6 ? i : 6) + 1) - 1 + (i < 6 ? 0 : i - 6);
        if (rng_below(r, 4) == 0)
            parent[i] = -1;
    }
}

/* The nodes from the root to `node`, in order; returns how many. */
static int path_to(const int32_t *parent, int node, int32_t *path)
{
    int n = 0;
    for (int i = node; i >= 0; i = parent[i])
        path[n++] = i;
    for (int i = 0; i < n / 2; i++) {
        int32_t t = path[i];
        path[i] = path[n - 1 - i];
        path[n - 1 - i] = t;
    }
    return n;
}

/* Appends nodes [from, to) of a tree as rows of an open tree. */
static void run_nodes(side *x, int seq, const int32_t *token, const int32_t *parent, int from, int to)
{
    batch_row rows[96];
    for (int i = from; i < to; i++) {
        int up = parent[i] < 0 ? ROW_PREFIX : parent[i] < from ? ROW_OPEN(parent[i]) : parent[i] - from;
        rows[i - from] = (batch_row){seq, token[i], up, true};
    }
    side_forward(x, PHASE_DECODE, rows, to - from);
}

static double worst(const float *a, const float *b, int n)
{
    double most = 0;
    for (int i = 0; i < n; i++)
        most = fmax(most, fabs((double)a[i] - b[i]));
    return most;
}

ParameterizedTestParameters(session_tree, grown_in_steps_equals_one_path_a_sequence)
{
    return cr_make_param_array(tree_case, cases, sizeof cases / sizeof *cases);
}

/* 70 nodes (more than one mask word) in passes of random size: each node's logits are those of a plain sequence that
 * holds the prefix and the node's path. */
ParameterizedTest(tree_case *c, session_tree, grown_in_steps_equals_one_path_a_sequence)
{
    arena a;
    arena_init(&a);
    const char *dir;
    side x = open_case(c, &a, &dir);
    rng r = rng_make(31, 1);
    enum { N = 70, PREFIX = 11 };
    int32_t prefix[PREFIX], token[N], parent[N], path[N];
    float *logits = tpl_calloc((size_t)N * VOCAB, sizeof *logits);
    for (int i = 0; i < PREFIX; i++)
        prefix[i] = (int32_t)rng_below(&r, VOCAB);
    random_tree(&r, N, token, parent);
    int seq = session_add_seq(x.s);
    side_run(&x, seq, PHASE_PREFILL, prefix, PREFIX);
    session_open_tree(x.s, seq);
    for (int at = 0; at < N;) {
        int n = 1 + (int)rng_below(&r, 15), end = at + n < N ? at + n : N;
        run_nodes(&x, seq, token, parent, at, end);
        for (int i = at; i < end; i++)
            memcpy(logits + (size_t)i * VOCAB, session_logits(x.s, i - at), VOCAB * sizeof *logits);
        at = end;
    }
    for (int i = 0; i < N; i++) {
        int plain = session_add_seq(x.s), n = path_to(parent, i, path);
        side_run(&x, plain, PHASE_PREFILL, prefix, PREFIX);
        for (int k = 0; k < n; k++)
            side_run(&x, plain, PHASE_DECODE, token + path[k], 1);
        cr_expect(worst(logits + (size_t)i * VOCAB, session_logits(x.s, 0), VOCAB) < 1e-4, "%s: node %d", c->name, i);
        session_drop_seq(x.s, plain);
    }
    free(logits);
    side_close(&x);
    ckpt_remove_dir(dir);
    arena_fini(&a);
}

ParameterizedTestParameters(session_tree, kept_paths_leave_what_a_chain_would)
{
    return cr_make_param_array(tree_case, cases, sizeof cases / sizeof *cases);
}

/* One iteration of the property test: a random tree, a random accepted path, of which the plain sequence gets a copy.
 */
static int grow_and_keep(side *x, int seq, int plain, int len, rng *r)
{
    int32_t token[40], parent[40], path[40];
    int n = 1 + (int)rng_below(r, 40), kept = 0;
    tpl_err e = {0};
    random_tree(r, n, token, parent);
    session_open_tree(x->s, seq);
    int half = (int)rng_below(r, (uint64_t)n);
    if (half > 0)
        run_nodes(x, seq, token, parent, 0, half);
    run_nodes(x, seq, token, parent, half, n);
    cr_assert_eq(session_len(x->s, seq), len + n);
    if (rng_below(r, 5) > 0)
        kept = path_to(parent, (int)rng_below(r, (uint64_t)n), path);
    cr_assert(session_keep_path(x->s, seq, path, kept, &e) == TPL_OK, "%s", e.what);
    for (int k = 0; k < kept; k++)
        side_run(x, plain, PHASE_DECODE, token + path[k], 1);
    return kept;
}

static int pages_of(int tok)
{
    return (tok + 63) / 64;
}

/* Cache rows and lengths after random accept patterns are those of a sequence that never speculated; pages of both are
 * counted against ceil(tokens / 64). */
ParameterizedTest(tree_case *c, session_tree, kept_paths_leave_what_a_chain_would)
{
    arena a;
    arena_init(&a);
    const char *dir;
    side x = open_case(c, &a, &dir);
    rng r = rng_make(77, 2);
    int32_t prefix[5] = {3, 1, 4, 1, 5};
    float got[128], want[128];
    int seq = session_add_seq(x.s), plain = session_add_seq(x.s), len = 5,
        mod = strcmp(c->variant, "mla-dcp") == 0 ? 2 : 1;
    side_run(&x, seq, PHASE_PREFILL, prefix, 5);
    side_run(&x, plain, PHASE_PREFILL, prefix, 5);
    for (int round = 0; len < 150; round++) {
        len += grow_and_keep(&x, seq, plain, len, &r);
        cr_assert(session_len(x.s, seq) == len && session_len(x.s, plain) == len, "%s: lengths %d, %d, not %d", c->name,
                  session_len(x.s, seq), session_len(x.s, plain), len);
        int64_t page = session_kv_bytes(x.s, 0, KV_MAIN) / (3 * pages_of(256 / mod));
        cr_assert_eq(session_kv_used_bytes(x.s, 0, KV_MAIN), 2 * page * pages_of((len + mod - 1) / mod));
        for (int slot = 0; slot < len; slot++)
            for (int layer = 0; layer < 2; layer++) {
                int rank = mod > 1 ? slot % mod : c->tp - 1, n = side_cached(&x, rank, seq, layer, slot, got);
                side_cached(&x, rank, plain, layer, slot, want);
                cr_assert(worst(got, want, n) < 1e-4, "%s: round %d, layer %d, slot %d", c->name, round, layer, slot);
            }
    }
    side_close(&x);
    ckpt_remove_dir(dir);
    arena_fini(&a);
}

/* ---- misuse ---- */

typedef struct {
    char name[24], words[40];
    int32_t rows[3];
    int n;
} bad_path;

Test(session_tree, refuses_what_is_no_path)
{
    static const bad_path bad[] = {
        {"sibling", "row 1, number 1", {0, 1}, 2},
        {"skips", "row 3, number 1", {0, 3}, 2},
        {"not_first", "row 2, number 0", {2}, 1},
        {"beyond", "row 4, number 0", {4}, 1},
        {"negative", "row -1", {-1}, 1},
        {"twice", "row 0, number 1", {0, 0}, 2},
        {"other_branch", "row 2, number 1", {1, 2, 3}, 3},
    };
    arena a;
    arena_init(&a);
    const char *dir;
    side x = open_case(&cases[0], &a, &dir);
    tpl_err e = {0};
    int32_t prefix[2] = {1, 2}, token[4] = {5, 6, 7, 8}, parent[4] = {-1, -1, 0, 2};
    int seq = session_add_seq(x.s);
    side_run(&x, seq, PHASE_PREFILL, prefix, 2);
    cr_expect_eq(session_keep_path(x.s, seq, prefix, 0, &e), TPL_E_USAGE, "no tree was open");
    session_open_tree(x.s, seq);
    run_nodes(&x, seq, token, parent, 0, 4);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        cr_expect_eq(session_keep_path(x.s, seq, bad[i].rows, bad[i].n, &e), TPL_E_USAGE, "%s is taken", bad[i].name);
        cr_expect(strstr(e.what, bad[i].words), "%s: %s", bad[i].name, e.what);
        cr_expect_eq(session_len(x.s, seq), 6);
    }
    cr_expect(session_keep_path(x.s, seq, (int32_t[]){0, 2, 3}, 3, &e) == TPL_OK, "%s", e.what);
    cr_expect_eq(session_len(x.s, seq), 5);
    side_close(&x);
    ckpt_remove_dir(dir);
    arena_fini(&a);
}

Test(session_tree, limits_rows_and_parents)
{
    arena a;
    arena_init(&a);
    const char *dir;
    side x = open_case(&cases[0], &a, &dir);
    tpl_err e = {0};
    int32_t prefix[2] = {1, 2};
    batch_row rows[MAX_TREE + 1];
    int seq = session_add_seq(x.s);
    side_run(&x, seq, PHASE_PREFILL, prefix, 2);
    rows[0] = (batch_row){seq, 1, ROW_OPEN(0), true};
    cr_expect_eq(session_forward(x.s, PHASE_DECODE, rows, 1, &e), TPL_E_USAGE, "a parent in a tree that is not open");
    session_open_tree(x.s, seq);
    cr_expect_eq(session_forward(x.s, PHASE_DECODE, rows, 1, &e), TPL_E_USAGE, "a parent that is not there yet");
    for (int i = 0; i <= MAX_TREE; i++)
        rows[i] = (batch_row){seq, 1, ROW_PREFIX, true};
    cr_expect_eq(session_forward(x.s, PHASE_DECODE, rows, MAX_TREE + 1, &e), TPL_E_USAGE);
    cr_expect(strstr(e.what, "would have 81 rows, the limit is 80"), "%s", e.what);
    cr_expect_eq(session_len(x.s, seq), 2);
    side_forward(&x, PHASE_DECODE, rows, 3);
    session_truncate(x.s, seq, 4);
    rows[0].parent = ROW_OPEN(2);
    cr_expect_eq(session_forward(x.s, PHASE_DECODE, rows, 1, &e), TPL_E_USAGE, "a parent that was truncated");
    rows[0].parent = ROW_OPEN(1);
    cr_expect(session_forward(x.s, PHASE_DECODE, rows, 1, &e) == TPL_OK, "%s", e.what);
    session_truncate(x.s, seq, 2);
    rows[0].parent = ROW_CHAIN;
    cr_expect(session_forward(x.s, PHASE_DECODE, rows, 1, &e) == TPL_OK, "the tree did not end: %s", e.what);
    side_close(&x);
    ckpt_remove_dir(dir);
    arena_fini(&a);
}
