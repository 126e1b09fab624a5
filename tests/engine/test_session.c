#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include <criterion/criterion.h>

#include "base/rng.h"
#include "tests/support/rig.h"

enum { PAGE = 64, MAX_TOK = 256 };

static void open_fixture(fixture *f)
{
    model_config c = ckpt_small_mla();
    c.max_pos = MAX_TOK;
    fixture_open(f, &c, DT_F32, 70);
}

/* Feeds n tokens (row i has token i % vocab) and gives the code. */
static tpl_code feed(rig *r, plan_phase phase, int seq, int n, tpl_err *e)
{
    batch_row rows[MAX_TOK];
    int at = session_len(r->s, seq), vocab = team_plan(r->team, 0)->cfg.vocab;
    for (int i = 0; i < n; i++)
        rows[i] = (batch_row){seq, (at + i) % vocab, ROW_CHAIN, i == n - 1};
    return session_forward(r->s, phase, rows, n, e);
}

static void expect_code(tpl_code got, tpl_code want, const char *what, const tpl_err *e, const char *words)
{
    cr_expect(got == want, "%s: %s, expected %s", what, tpl_code_word(got), tpl_code_word(want));
    cr_expect(got == TPL_OK || strstr(e->what, words) != NULL, "%s: '%s' does not say '%s'", what, e->what, words);
}

/* ---- the pool of pages ---- */

/* total_tok 128 is 2 pages and one more a sequence: 4. */
Test(session, a_full_cache_is_an_error_that_changes_nothing)
{
    fixture f;
    rig r;
    tpl_err e = {0};
    team_options o = {.tp = 2};
    session_options so = {.max_seqs = 2, .max_tok = MAX_TOK, .total_tok = 2 * PAGE, .max_rows = MAX_TOK};
    open_fixture(&f);
    rig_open(&r, &f, "mla", &o, &so);
    int a = session_add_seq(r.s), b = session_add_seq(r.s);
    cr_assert(session_add_seq(r.s) == -1);
    int64_t page_bytes = session_kv_bytes(r.s, 0, KV_MAIN) / 4;
    cr_assert(feed(&r, PHASE_PREFILL, a, 2 * PAGE + 1, &e) == TPL_OK);
    cr_assert(feed(&r, PHASE_PREFILL, b, PAGE, &e) == TPL_OK);
    cr_expect(session_kv_used_bytes(r.s, 0, KV_MAIN) == 4 * page_bytes);
    expect_code(feed(&r, PHASE_DECODE, b, 1, &e), TPL_E_MEMORY, "b", &e, "1 more pages of 64 tokens needed, 0 of 4 free");
    batch_row both[2] = {{a, 1, ROW_CHAIN, true}, {b, 1, ROW_CHAIN, true}};
    expect_code(session_forward(r.s, PHASE_DECODE, both, 2, &e), TPL_E_MEMORY, "a and b", &e, "is full");
    cr_expect(session_len(r.s, a) == 2 * PAGE + 1 && session_len(r.s, b) == PAGE);
    cr_expect(feed(&r, PHASE_DECODE, a, PAGE - 1, &e) == TPL_OK, "what fits in pages already taken still runs");
    session_drop_seq(r.s, a);
    cr_expect(session_kv_used_bytes(r.s, 0, KV_MAIN) == page_bytes);
    cr_assert(feed(&r, PHASE_DECODE, b, 1, &e) == TPL_OK);
    float *after = tpl_malloc(sizeof(float) * (size_t)f.cfg.vocab);
    memcpy(after, session_logits(r.s, 0), sizeof(float) * (size_t)f.cfg.vocab);
    int fresh = session_add_seq(r.s);
    cr_assert(feed(&r, PHASE_PREFILL, fresh, PAGE, &e) == TPL_OK && feed(&r, PHASE_DECODE, fresh, 1, &e) == TPL_OK);
    cr_expect(rig_distance(after, session_logits(r.s, 0), (size_t)f.cfg.vocab) == 0, "the refused passes left a trace");
    free(after);
    rig_close(&r);
    fixture_close(&f);
}

/* ---- what a batch may not be ---- */

Test(session, malformed_batches_are_refused_and_change_nothing)
{
    static const struct {
        const char *name;
        int n;
        batch_row rows[6];
        tpl_code code;
        const char *words;
    } cases[] = {
        {"no rows", 0, {{0}}, TPL_E_USAGE, "has 0 rows, expected 1 to 4"},
        {"too many rows", 5, {{0, 1, -1, 0}, {0, 1, -1, 0}, {0, 1, -1, 0}, {0, 1, -1, 0}, {0, 1, -1, 0}}, TPL_E_USAGE, "has 5 rows"},
        {"negative token", 1, {{0, -1, -1, 0}}, TPL_E_INPUT, "row 0 has token -1, expected 0 to 47"},
        {"token of the size of the vocabulary", 2, {{0, 1, -1, 0}, {0, 48, -1, 0}}, TPL_E_INPUT, "row 1 has token 48"},
        {"negative sequence", 1, {{-1, 1, -1, 0}}, TPL_E_USAGE, "names sequence -1"},
        {"sequence out of range", 1, {{99, 1, -1, 0}}, TPL_E_USAGE, "names sequence 99"},
        {"sequence that is not alive", 1, {{2, 1, -1, 0}}, TPL_E_USAGE, "names sequence 2"},
        {"rows not adjacent", 3, {{0, 1, -1, 0}, {1, 1, -1, 0}, {0, 1, -1, 0}}, TPL_E_USAGE, "not adjacent"},
        {"parent is itself", 2, {{0, 1, -1, 0}, {0, 1, 1, 0}}, TPL_E_USAGE, "row 1 has parent 1"},
        {"parent is later", 2, {{0, 1, 1, 0}, {0, 1, -1, 0}}, TPL_E_USAGE, "row 0 has parent 1"},
        {"parent of another sequence", 2, {{0, 1, -1, 0}, {1, 1, 0, 0}}, TPL_E_USAGE, "row 1 has parent 0"},
        {"parent below all", 1, {{0, 1, -3, 0}}, TPL_E_USAGE, "has parent -3"},
        {"too many logits", 3, {{0, 1, -1, 1}, {0, 1, -1, 1}, {0, 1, -1, 1}}, TPL_E_USAGE, "wants logits of 3 rows, expected at most 2"},
        {"context", 3, {{1, 1, -1, 0}, {1, 1, -1, 0}, {1, 1, -1, 0}}, TPL_E_INPUT, "sequence 1 would hold 9 tokens, the limit is 8"},
    };
    fixture f;
    rig r;
    tpl_err e = {0};
    team_options o = {.tp = 1};
    session_options so = {.max_seqs = 3, .max_tok = 8, .max_rows = 4, .max_logits = 2};
    open_fixture(&f);
    rig_open(&r, &f, "mla", &o, &so);
    cr_assert(session_add_seq(r.s) == 0 && session_add_seq(r.s) == 1);
    cr_assert(feed(&r, PHASE_PREFILL, 1, 4, &e) == TPL_OK && feed(&r, PHASE_PREFILL, 1, 2, &e) == TPL_OK);
    int64_t used = session_kv_used_bytes(r.s, 0, KV_MAIN);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        for (int phase = 0; phase <= PHASE_DECODE; phase++) {
            tpl_code rc = session_forward(r.s, (plan_phase)phase, cases[i].rows, cases[i].n, &e);
            expect_code(rc, cases[i].code, cases[i].name, &e, cases[i].words);
        }
        cr_expect(session_len(r.s, 0) == 0 && session_len(r.s, 1) == 6, "%s", cases[i].name);
        cr_expect(session_kv_used_bytes(r.s, 0, KV_MAIN) == used, "%s", cases[i].name);
    }
    cr_expect(feed(&r, PHASE_DECODE, 1, 2, &e) == TPL_OK, "exactly the limit is allowed");
    rig_close(&r);
    fixture_close(&f);
}

Test(session, options_that_cannot_be_are_refused)
{
    static const struct {
        session_options o;
        tpl_code code;
        const char *words;
    } cases[] = {
        {{.max_seqs = 1, .max_tok = MAX_TOK + 1, .max_rows = 1, .max_logits = 1}, TPL_E_INPUT, "context of 257 tokens exceeds"},
        {{.max_seqs = 0, .max_tok = 8, .max_rows = 1, .max_logits = 1}, TPL_E_USAGE, "sequences 0"},
        {{.max_seqs = 1, .max_tok = 0, .max_rows = 1, .max_logits = 1}, TPL_E_USAGE, "tokens 0"},
        {{.max_seqs = 1, .max_tok = 8, .max_rows = 0, .max_logits = 1}, TPL_E_USAGE, "rows 0"},
        {{.max_seqs = 1, .max_tok = 8, .max_rows = 1, .max_logits = 0}, TPL_E_USAGE, "logits 0"},
        {{.max_seqs = 1, .max_tok = 8, .max_rows = 1, .max_logits = 1, .total_tok = -1}, TPL_E_USAGE, "-1 cached tokens"},
        {{.max_seqs = 1 << 20, .max_tok = MAX_TOK, .max_rows = 1, .max_logits = 1, .total_tok = INT64_C(1) << 50}, TPL_E_MEMORY, "needs"},
    };
    fixture f;
    rig r;
    team_options o = {.tp = 1};
    open_fixture(&f);
    rig_open(&r, &f, "mla", &o, NULL);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        session *s = NULL;
        tpl_err e = {0};
        tpl_code rc = session_create(r.team, &cases[i].o, &s, &e);
        expect_code(rc, cases[i].code, cases[i].words, &e, cases[i].words);
        cr_expect(s == NULL);
    }
    tpl_err e = {0};
    expect_code(session_set_attention_alone(r.s, true, &e), TPL_E_UNSUPPORTED, "attention alone", &e, "only on cards");
    rig_close(&r);
    fixture_close(&f);
}

Test(session, a_tree_must_be_cut_back_before_its_sequence_goes_on)
{
    fixture f;
    rig r;
    tpl_err e = {0};
    team_options o = {.tp = 1};
    open_fixture(&f);
    rig_open(&r, &f, "mla", &o, NULL);
    int seq = session_add_seq(r.s);
    batch_row tree[3] = {{seq, 1, ROW_CHAIN, true}, {seq, 2, ROW_CHAIN, true}, {seq, 3, 0, true}};
    cr_assert(feed(&r, PHASE_PREFILL, seq, 5, &e) == TPL_OK);
    rig_forward(&r, PHASE_DECODE, tree, 3);
    cr_expect(session_len(r.s, seq) == 8);
    expect_code(feed(&r, PHASE_DECODE, seq, 1, &e), TPL_E_USAGE, "after the tree", &e, "ends in a tree");
    session_truncate(r.s, seq, 6);
    expect_code(feed(&r, PHASE_DECODE, seq, 1, &e), TPL_E_USAGE, "cut inside the tree", &e, "ends in a tree");
    session_truncate(r.s, seq, 5);
    cr_expect(feed(&r, PHASE_DECODE, seq, 1, &e) == TPL_OK, "%s", e.what);
    tree[2].parent = 1; /* three rows that happen to form a chain */
    rig_forward(&r, PHASE_DECODE, tree, 3);
    cr_expect(feed(&r, PHASE_DECODE, seq, 1, &e) == TPL_OK && session_len(r.s, seq) == 10);
    rig_close(&r);
    fixture_close(&f);
}

Test(session, an_exact_prefill_cannot_follow_decoding)
{
    static const struct {
        const char *variant;
        bool refused;
    } cases[] = {{"tpla:g=2:u=hadamard:pd=on", true}, {"mla-dcp", true}, {"mla", false}, {"tpla:g=2:u=hadamard:pd=off", false}};
    fixture f;
    tpl_err e = {0};
    open_fixture(&f);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        rig r;
        team_options o = {.tp = 2};
        rig_open(&r, &f, cases[i].variant, &o, NULL);
        int seq = session_add_seq(r.s);
        cr_assert(feed(&r, PHASE_PREFILL, seq, 3, &e) == TPL_OK && feed(&r, PHASE_PREFILL, seq, 3, &e) == TPL_OK);
        cr_assert(feed(&r, PHASE_DECODE, seq, 1, &e) == TPL_OK);
        tpl_code rc = feed(&r, PHASE_PREFILL, seq, 1, &e);
        expect_code(rc, cases[i].refused ? TPL_E_UNSUPPORTED : TPL_OK, cases[i].variant, &e, "cannot prefill exactly again");
        session_truncate(r.s, seq, 0);
        cr_expect(feed(&r, PHASE_PREFILL, seq, 2, &e) == TPL_OK, "%s: an emptied sequence may prefill", cases[i].variant);
        rig_close(&r);
    }
    fixture_close(&f);
}

Test(session, a_pass_may_want_no_logits)
{
    fixture f;
    rig r;
    team_options o = {.tp = 2};
    open_fixture(&f);
    rig_open(&r, &f, "mla", &o, NULL);
    int seq = session_add_seq(r.s);
    batch_row rows[2] = {{seq, 1, ROW_CHAIN, false}, {seq, 2, ROW_CHAIN, false}};
    for (int phase = 0; phase <= PHASE_DECODE; phase++) {
        rig_forward(&r, (plan_phase)phase, rows, 2);
        cr_expect(session_n_logits(r.s) == 0);
    }
    rig_close(&r);
    fixture_close(&f);
}

/* ---- random use against a model of lengths and pages ---- */

enum { SEQS = 3, POOL_TOK = 4 * PAGE };

typedef struct {
    bool alive, decoding;
    int len;
} naive_seq;

static int naive_pages(const naive_seq *q, int mod, bool prefill_stream)
{
    int pages = 0;
    for (int i = 0; i < SEQS; i++) {
        int tok = q[i].alive && !(prefill_stream && q[i].decoding) ? q[i].len : 0;
        int local = (tok + mod - 1) / mod;
        pages += (local + PAGE - 1) / PAGE;
    }
    return pages;
}

static void expect_state(const rig *r, const naive_seq *q, const char *text, int step)
{
    for (int i = 0; i < SEQS; i++)
        if (q[i].alive)
            cr_expect(session_len(r->s, i) == q[i].len, "%s step %d sequence %d", text, step, i);
    for (int k = 0; k < KV_N_STREAMS; k++) {
        const plan *p = team_plan(r->team, 0);
        if (!p->streams[k].used)
            continue;
        int64_t page = (int64_t)PAGE * p->streams[k].width * p->cfg.n_layers * (int64_t)sizeof(float);
        int64_t want = page * naive_pages(q, p->streams[k].mod, k == KV_PREFILL);
        cr_expect(session_kv_used_bytes(r->s, 0, k) == want, "%s step %d stream %d: %lld bytes in use, expected %lld", text, step,
                  k, (long long)session_kv_used_bytes(r->s, 0, k), (long long)want);
    }
}

/* Whether a pass of n rows on sequence i fits the pages, as the naive model sees it. */
static bool naive_fits(const rig *r, const naive_seq *q, int i, int n, plan_phase phase)
{
    naive_seq after[SEQS];
    memcpy(after, q, sizeof after);
    after[i].len += n;
    for (int k = 0; k < KV_N_STREAMS; k++) {
        const plan_stream *s = &team_plan(r->team, 0)->streams[k];
        if (!s->used || (k == KV_PREFILL && phase == PHASE_DECODE))
            continue;
        int pool = (POOL_TOK / s->mod + PAGE - 1) / PAGE + SEQS, most = (MAX_TOK / s->mod + PAGE - 1) / PAGE * SEQS;
        if (naive_pages(after, s->mod, k == KV_PREFILL) > (pool < most ? pool : most))
            return false;
    }
    return true;
}

static void random_use(const fixture *f, const char *text, uint64_t seed)
{
    rig r;
    tpl_err e = {0};
    team_options o = {.tp = 2};
    session_options so = {.max_seqs = SEQS, .max_tok = MAX_TOK, .total_tok = POOL_TOK, .max_rows = MAX_TOK};
    naive_seq q[SEQS] = {0};
    rng random = rng_make(seed, 3);
    rig_open(&r, f, text, &o, &so);
    bool once = team_plan(r.team, 0)->streams[KV_PREFILL].used;
    for (int step = 0; step < 120; step++) {
        int i = (int)rng_below(&random, SEQS), what = (int)rng_below(&random, 10);
        if (!q[i].alive) {
            int got = session_add_seq(r.s);
            cr_assert(got >= 0 && !q[got].alive);
            q[got] = (naive_seq){.alive = true};
        } else if (what == 0) {
            session_drop_seq(r.s, i);
            q[i] = (naive_seq){0};
        } else if (what <= 2) {
            q[i].len = (int)rng_below(&random, (uint64_t)q[i].len + 1);
            q[i].decoding = q[i].decoding && q[i].len > 0;
            session_truncate(r.s, i, q[i].len);
        } else {
            plan_phase phase = what <= 6 ? PHASE_PREFILL : PHASE_DECODE;
            int n = phase == PHASE_PREFILL ? 1 + (int)rng_below(&random, 90) : 1 + (int)rng_below(&random, 3);
            bool again = once && phase == PHASE_PREFILL && q[i].decoding;
            tpl_code want = again                                      ? TPL_E_UNSUPPORTED
                            : q[i].len + n > MAX_TOK                   ? TPL_E_INPUT
                            : naive_fits(&r, q, i, n, phase)           ? TPL_OK
                                                                       : TPL_E_MEMORY;
            tpl_code rc = feed(&r, phase, i, n, &e);
            cr_expect(rc == want, "%s step %d: %s, expected %s", text, step, tpl_code_word(rc), tpl_code_word(want));
            q[i].len += rc == TPL_OK ? n : 0;
            q[i].decoding = q[i].decoding || (rc == TPL_OK && phase == PHASE_DECODE);
        }
        expect_state(&r, q, text, step);
    }
    rig_close(&r);
}

Test(session, random_use_keeps_to_a_naive_model_of_lengths_and_pages)
{
    fixture f;
    open_fixture(&f);
    for (uint64_t seed = 1; seed <= 3; seed++) {
        random_use(&f, "mla", seed);
        random_use(&f, "mla-dcp", seed);
        random_use(&f, "tpla:g=2:u=hadamard:pd=on", seed);
    }
    fixture_close(&f);
}

/* ---- allocation ---- */

static atomic_bool counting;
static atomic_int n_allocations;

static void count_one(void)
{
    if (atomic_load(&counting))
        atomic_fetch_add(&n_allocations, 1);
}

#if defined(__SANITIZE_ADDRESS__)
extern int __sanitizer_install_malloc_and_free_hooks(void (*on_malloc)(const volatile void *, size_t),
                                                     void (*on_free)(const volatile void *));

static void on_malloc(const volatile void *p, size_t n)
{
    count_one();
}

static void on_free(const volatile void *p)
{
}

static void install_counter(void)
{
    cr_assert(__sanitizer_install_malloc_and_free_hooks(on_malloc, on_free) != 0);
}
#else
extern void *__libc_malloc(size_t n);
extern void *__libc_calloc(size_t n, size_t size);
extern void *__libc_realloc(void *p, size_t n);
void *malloc(size_t n);
void *calloc(size_t n, size_t size);
void *realloc(void *p, size_t n);

void *malloc(size_t n)
{
    count_one();
    return __libc_malloc(n);
}

void *calloc(size_t n, size_t size)
{
    count_one();
    return __libc_calloc(n, size);
}

void *realloc(void *p, size_t n)
{
    count_one();
    return __libc_realloc(p, n);
}

static void install_counter(void)
{
}
#endif

/* The first passes may build what later ones reuse (the products' compiled code); after them, nothing is allocated. */
Test(session, a_decode_step_allocates_nothing)
{
    static const char *const variants[] = {"mla", "mla-dcp", "gla:g=2", "tpla:g=2:u=hadamard:pd=on:proj=rs+agq"};
    fixture f;
    tpl_err e = {0};
    open_fixture(&f);
    install_counter();
    atomic_store(&counting, true);
    void *volatile probe = malloc(10);
    atomic_store(&counting, false);
    free(probe);
    cr_assert(atomic_load(&n_allocations) > 0, "the counter does not count");
    for (int compute = 0; compute < 2; compute++) {
        for (size_t i = 0; i < sizeof variants / sizeof *variants; i++) {
            rig r;
            team_options o = {.tp = 2, .compute = compute ? DT_BF16 : DT_F32};
            rig_open(&r, &f, variants[i], &o, NULL);
            int seq = session_add_seq(r.s);
            cr_assert(feed(&r, PHASE_PREFILL, seq, 20, &e) == TPL_OK);
            for (int k = 0; k < 3; k++)
                cr_assert(feed(&r, PHASE_DECODE, seq, 1, &e) == TPL_OK);
            atomic_store(&n_allocations, 0);
            atomic_store(&counting, true);
            for (int k = 0; k < 80; k++) /* over a page's end */
                cr_assert(feed(&r, PHASE_DECODE, seq, 1, &e) == TPL_OK);
            atomic_store(&counting, false);
            cr_expect(atomic_load(&n_allocations) == 0, "%s: %d allocations in 80 decode steps", variants[i],
                      atomic_load(&n_allocations));
            rig_close(&r);
        }
    }
    fixture_close(&f);
}

/* ---- a rank that fails ---- */

Test(session, a_rank_that_fails_ends_the_pass_for_all, .timeout = 30)
{
    fixture f;
    rig r;
    tpl_err e = {0};
    team_options o = {.tp = 2};
    open_fixture(&f);
    rig_open(&r, &f, "mla", &o, NULL);
    int seq = session_add_seq(r.s);
    cr_assert(feed(&r, PHASE_PREFILL, seq, 4, &e) == TPL_OK);
    team_rank *last = team_get_rank(r.team, 1);
    for (int i = 0; i < last->p->n_weights; i++)
        if (last->p->weights[i].source == W_UP)
            last->weights[i].m.dtype = DT_I32; /* no backend multiplies such weights */
    cr_expect(feed(&r, PHASE_DECODE, seq, 1, &e) == TPL_E_UNSUPPORTED, "%s", e.what);
    cr_expect(session_len(r.s, seq) == 4);
    for (int i = 0; i < last->p->n_weights; i++)
        if (last->p->weights[i].source == W_UP)
            last->weights[i].m.dtype = DT_F32;
    cr_expect(feed(&r, PHASE_DECODE, seq, 1, &e) == TPL_OK, "the session goes on after the fault is gone");
    rig_close(&r);
    fixture_close(&f);
}
