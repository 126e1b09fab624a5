#include "engine/speculate.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "engine/generate.h"

struct speculator {
    session *base, *draft;
    spec_options o;
    int32_t vocab;
    plan_phase first, next; /* the draft's lists: of what it lacks of the text, of the tree's levels */
    bool recompute;         /* calibration: rows of fuzzy passes are run again */
    int32_t n_top;          /* > 0: the draft's passes find its likeliest tokens themselves */
    spec_tree tree;
    accept_case judge;
    accept_result kept;
    int32_t *path_rows; /* [1 + depth] */
    batch_row *rows;    /* [n_rows] */
    int32_t n_rows;
};

/* One run in progress. */
typedef struct {
    spec_run *run;
    spec_stats *stats;
    rng r;
    int32_t *text; /* prompt and output; the last token is in no cache yet */
    int32_t n_text;
    int base_seq, draft_seq;
    int32_t exact_len; /* the draft's rows below it were written by an exact list */
    int32_t iteration;
    int64_t mark_ns; /* end of the last timed stage */
} state;

static const char *const method_names[] = {"vanilla", "sd", "tree", "easyspec"};

const char *spec_method_name(spec_method m)
{
    return method_names[m];
}

tpl_code spec_method_find(const char *name, spec_method *out, tpl_err *e)
{
    for (int i = 0; i < SPEC_N_METHODS; i++) {
        if (strcmp(method_names[i], name) == 0) {
            *out = (spec_method)i;
            return TPL_OK;
        }
    }
    return tpl_fail(e, TPL_E_USAGE, "--method", "'%s' is not one of vanilla, sd, tree, easyspec", name);
}

/* ---- records and sums ---- */

void spec_record_add(spec_record *r, int accepted)
{
    if (r->n == r->cap) {
        r->cap = r->cap ? 2 * r->cap : 64;
        r->accepted = tpl_realloc(r->accepted, (size_t)r->cap);
    }
    r->accepted[r->n++] = (uint8_t)accepted;
}

void spec_record_free(spec_record *r)
{
    free(r->accepted);
    *r = (spec_record){0};
}

void spec_stats_add(spec_stats *to, const spec_stats *x)
{
    to->n_tok += x->n_tok;
    to->n_iterations += x->n_iterations;
    to->n_drafted += x->n_drafted;
    to->n_accepted += x->n_accepted;
    to->n_draft_passes += x->n_draft_passes;
    for (int i = 0; i < SPEC_MAX_DEPTH; i++) {
        to->judged[i] += x->judged[i];
        to->accepted[i] += x->accepted[i];
    }
    to->prefill_s += x->prefill_s;
    to->draft_s += x->draft_s;
    to->first_s += x->first_s;
    to->calibrate_s += x->calibrate_s;
    to->verify_s += x->verify_s;
    to->other_s += x->other_s;
}

/* Adds the time since the last call to *stage. */
static void clock_stage(state *st, double *stage)
{
    int64_t now = clock_ns();
    *stage += (double)(now - st->mark_ns) * 1e-9;
    st->mark_ns = now;
}

/* ---- life ---- */

static spec_options normalised(const spec_options *o)
{
    spec_options n = *o;
    if (n.method == SPEC_VANILLA)
        n.depth = n.width = 0;
    else if (n.method == SPEC_SD)
        n.width = 1;
    if (n.temperature <= 0)
        n.children = CHILDREN_TOPK;
    if (n.draft_temperature <= 0)
        n.draft_temperature = n.temperature > 0 ? n.temperature : 1;
    if (n.top_p <= 0 || n.top_p > 1)
        n.top_p = 1;
    if (!n.accept)
        n.accept = accept_exact;
    return n;
}

enum { PREFILL_ROWS = 512 };

static int rows_of_session(int max_tok, int least)
{
    int rows = max_tok < PREFILL_ROWS ? max_tok : PREFILL_ROWS;
    return rows > least ? rows : least;
}

session_options spec_base_session(const spec_options *o, int max_tok)
{
    spec_options n = normalised(o);
    int rows = 1 + n.depth * n.width;
    return (session_options){.max_seqs = 1,
                             .max_tok = max_tok,
                             .max_rows = rows_of_session(max_tok, rows),
                             .max_logits = rows,
                             .max_tree = n.width > 1 ? rows : 0};
}

session_options spec_draft_session(const spec_options *o, int max_tok)
{
    spec_options n = normalised(o);
    int widest = n.width > n.depth + 1 ? n.width : n.depth + 1;
    return (session_options){.max_seqs = 1,
                             .max_tok = max_tok,
                             .max_rows = rows_of_session(max_tok, widest),
                             .max_logits = n.width ? n.width : 1,
                             .max_tree = n.width > 1 && n.depth > 1 ? n.width * (n.depth - 1) : 0,
                             .max_top = n.width};
}

static tpl_code check_session(session *s, session_options need, const char *who, tpl_err *e)
{
    const session_options *o = session_opts(s);
    ranks_kind ranks = team_opts(session_team(s))->ranks;
    if (ranks_are_processes(ranks))
        return tpl_fail(e, TPL_E_UNSUPPORTED, who, "ranks of kind %s cannot speculate, expected local, solo or nccl",
                        ranks_name(ranks));
    if (o->max_rows < need.max_logits || o->max_logits < need.max_logits || o->max_tree < need.max_tree)
        return tpl_fail(e, TPL_E_USAGE, who,
                        "session takes %d rows, %d logits, %d tree rows; speculation needs %d, %d, %d", o->max_rows,
                        o->max_logits, o->max_tree, need.max_logits, need.max_logits, need.max_tree);
    return TPL_OK;
}

static tpl_code check_options(const spec_options *o, int vocab, tpl_err *e)
{
    if (o->method == SPEC_VANILLA)
        return TPL_OK;
    if (o->depth < 1 || o->depth > SPEC_MAX_DEPTH)
        return tpl_fail(e, TPL_E_USAGE, "--depth", "is %d, expected 1 to %d", o->depth, SPEC_MAX_DEPTH);
    if (o->width < 1 || o->width > SPEC_MAX_WIDTH || o->width > vocab)
        return tpl_fail(e, TPL_E_USAGE, "--width", "is %d, expected 1 to %d and at most the vocabulary's %d", o->width,
                        SPEC_MAX_WIDTH, vocab);
    return TPL_OK;
}

static tpl_code check_draft(session *base, session *draft, const spec_options *o, tpl_err *e)
{
    const model_config *b = &team_plan(session_team(base), 0)->cfg, *d;
    if (!draft)
        return tpl_fail(e, TPL_E_USAGE, spec_method_name(o->method), "needs a draft model");
    const plan *p = team_plan(session_team(draft), 0);
    d = &p->cfg;
    if (b->vocab != d->vocab)
        return tpl_fail(e, TPL_E_INPUT, "draft", "%s has a vocabulary of %d tokens, the base %s %d", d->name, d->vocab,
                        b->name, b->vocab);
    if (o->width > 1 && (b->sliding_window || d->sliding_window))
        return tpl_fail(e, TPL_E_UNSUPPORTED, "tree",
                        "attention over a sliding window counts slots, which in a tree are no positions; use width 1");
    if (o->method == SPEC_EASYSPEC && p->list[PHASE_FUZZY].n == 0)
        return tpl_fail(e, TPL_E_USAGE, "draft", "was made without layer groups, which easyspec needs");
    return check_session(draft, spec_draft_session(o, 1), "draft", e);
}

static int32_t best_of(const void *session_of_base, int i)
{
    return session_best(session_of_base, i);
}

/* Top-k children need no more of the draft's distribution than its likeliest tokens, unless it is cut to top-p. */
static int top_of_draft(const speculator *s)
{
    bool whole = s->o.children == CHILDREN_SAMPLED || (s->o.temperature > 0 && s->o.top_p < 1);
    return s->draft && !whole && session_most_top(s->draft) >= s->o.width ? s->o.width : 0;
}

tpl_code spec_create(session *base, session *draft, const spec_options *options, speculator **out, tpl_err *e)
{
    spec_options o = normalised(options);
    int vocab = team_plan(session_team(base), 0)->cfg.vocab;
    TPL_TRY(check_options(&o, vocab, e));
    TPL_TRY(check_session(base, spec_base_session(&o, 1), "base", e));
    if (o.method != SPEC_VANILLA)
        TPL_TRY(check_draft(base, draft, &o, e));
    speculator *s = tpl_calloc(1, sizeof *s);
    *s = (speculator){.base = base,
                      .draft = o.method == SPEC_VANILLA ? NULL : draft,
                      .o = o,
                      .vocab = vocab,
                      .first = PHASE_DECODE,
                      .next = PHASE_DECODE};
    if (o.method == SPEC_EASYSPEC) {
        s->next = PHASE_FUZZY;
        s->recompute = !o.no_calibration;
        s->first = o.no_calibration ? PHASE_FUZZY : PHASE_DECODE;
    }
    tree_init(&s->tree, vocab, o.width, o.depth, o.children);
    accept_init(&s->judge, &s->tree, o.temperature, o.top_p);
    s->judge.best = best_of;
    s->judge.best_user = base;
    s->n_top = top_of_draft(s);
    s->kept.path = tpl_calloc((size_t)o.depth + 1, sizeof(int32_t));
    s->path_rows = tpl_calloc((size_t)o.depth + 1, sizeof(int32_t));
    s->n_rows = session_opts(base)->max_rows;
    if (s->draft && session_opts(draft)->max_rows > s->n_rows)
        s->n_rows = session_opts(draft)->max_rows;
    s->rows = tpl_calloc((size_t)s->n_rows, sizeof *s->rows);
    *out = s;
    return TPL_OK;
}

void spec_destroy(speculator *s)
{
    if (!s)
        return;
    tree_fini(&s->tree);
    accept_fini(&s->judge);
    free(s->kept.path);
    free(s->path_rows);
    free(s->rows);
    free(s);
}

/* ---- drafting ---- */

/* The draft's distribution after a node, from the i-th logits of its last pass. */
static void take_dist(speculator *s, int node, int i)
{
    float top_p = s->o.temperature > 0 ? s->o.top_p : 1;
    if (s->n_top > 0) {
        session_likeliest top = session_top(s->draft, i);
        tree_add_top(&s->tree, node, top.tokens, top.shares, s->n_top);
        return;
    }
    float *q = tree_add_dist(&s->tree, node);
    sampler_probabilities(session_logits(s->draft, i), s->vocab, s->o.draft_temperature, top_p, q, s->judge.order);
}

/* Runs the text's tokens that the draft lacks, or whose rows a fuzzy pass wrote; gives the root's distribution. */
static tpl_code run_text(speculator *s, state *st, tpl_err *e)
{
    int chunk = session_opts(s->draft)->max_rows;
    if (s->recompute && session_len(s->draft, st->draft_seq) > st->exact_len)
        session_truncate(s->draft, st->draft_seq, st->exact_len);
    for (int at = session_len(s->draft, st->draft_seq); at < st->n_text; at += chunk) {
        int n = st->n_text - at < chunk ? st->n_text - at : chunk;
        for (int i = 0; i < n; i++)
            s->rows[i] = (batch_row){st->draft_seq, st->text[at + i], ROW_CHAIN, at + i == st->n_text - 1};
        TPL_TRY(session_forward(s->draft, s->first, s->rows, n, e));
        st->stats->n_draft_passes++;
    }
    if (s->first != PHASE_FUZZY)
        st->exact_len = st->n_text;
    take_dist(s, -1, 0);
    return TPL_OK;
}

/* Runs the deepest level. In a tree wider than a chain, nodes are rows of the session's open tree in their own order.
 */
static tpl_code run_level(speculator *s, state *st, tpl_err *e)
{
    const spec_tree *t = &s->tree;
    int first = t->level0, n = t->n - first;
    for (int i = 0; i < n; i++) {
        const tree_node *node = &t->nodes[first + i];
        int parent = s->o.width == 1 ? ROW_CHAIN : node->parent < 0 ? ROW_PREFIX : ROW_OPEN(node->parent);
        s->rows[i] = (batch_row){st->draft_seq, node->token, parent, true};
    }
    TPL_TRY(session_forward(s->draft, s->next, s->rows, n, e));
    st->stats->n_draft_passes++;
    for (int i = 0; i < n; i++)
        take_dist(s, first + i, i);
    return TPL_OK;
}

/* Grows a tree of up to `depth` levels. */
static tpl_code draft_tree(speculator *s, state *st, int depth, tpl_err *e)
{
    spec_tree *t = &s->tree;
    tree_reset(t);
    if (depth == 0)
        return TPL_OK;
    TPL_TRY(run_text(s, st, e));
    double first = 0;
    clock_stage(st, &first);
    st->stats->draft_s += first;
    st->stats->first_s += first;
    st->stats->calibrate_s += s->recompute ? first : 0;
    if (s->o.width > 1 && depth > 1)
        session_open_tree(s->draft, st->draft_seq);
    tree_grow(t, &st->r);
    while (tree_levels(t) < depth && t->n > t->level0 && tree_confidence(t) >= s->o.stop_confidence) {
        TPL_TRY(run_level(s, st, e));
        tree_grow(t, &st->r);
    }
    clock_stage(st, &st->stats->draft_s);
    return TPL_OK;
}

/* ---- verification ---- */

/* Judging samples needs the base's distributions; greedy and assumed acceptance need its likeliest tokens alone. */
static bool looks_at_logits(const speculator *s, const state *st)
{
    return s->o.temperature > 0 && !st->run->replay && s->o.assume_accept <= 0;
}

static tpl_code verify(speculator *s, state *st, tpl_err *e)
{
    const spec_tree *t = &s->tree;
    if (s->o.width > 1)
        session_open_tree(s->base, st->base_seq);
    s->rows[0] = (batch_row){st->base_seq, st->text[st->n_text - 1], ROW_CHAIN, true};
    for (int i = 0; i < t->n; i++)
        s->rows[1 + i] = (batch_row){st->base_seq, t->nodes[i].token, 1 + t->nodes[i].parent, true};
    TPL_TRY(session_forward(s->base, PHASE_DECODE, s->rows, 1 + t->n, e));
    s->judge.logits = looks_at_logits(s, st) ? session_logits(s->base, 0) : NULL;
    clock_stage(st, &st->stats->verify_s);
    return TPL_OK;
}

/* Keeps as many levels as `wanted`, or level by level by chance, of the path to the deepest level's first node: a tree's
 * likeliest children may have none of their own. */
static void accept_by_count(speculator *s, state *st, int wanted)
{
    accept_result *k = &s->kept;
    int levels = tree_levels(&s->tree);
    for (int node = s->tree.level0, i = levels - 1; i >= 0; node = s->tree.nodes[node].parent)
        k->path[i--] = node;
    for (k->n = 0; k->n < levels; k->n++)
        if (wanted >= 0 ? k->n >= wanted : rng_uniform(&st->r) >= s->o.assume_accept)
            break;
    k->exhausted = k->n == levels;
    k->bonus = accept_best(&s->judge, k->n ? k->path[k->n - 1] : -1);
}

static void judge(speculator *s, state *st)
{
    const spec_record *replay = st->run->replay;
    accept_result *k = &s->kept;
    if (replay)
        accept_by_count(s, st, st->iteration < replay->n ? replay->accepted[st->iteration] : 0);
    else if (s->o.assume_accept > 0)
        accept_by_count(s, st, -1);
    else
        s->o.accept(s->o.accept_user, &s->judge, &st->r, k);
    spec_stats *x = st->stats;
    for (int i = 0; i < k->n; i++) {
        x->judged[i]++;
        x->accepted[i]++;
    }
    if (!k->exhausted)
        x->judged[k->n]++;
    x->n_iterations++;
    x->n_drafted += s->tree.n;
    x->n_accepted += k->n;
    if (st->run->record)
        spec_record_add(st->run->record, k->n);
}

/* Forgets in both caches what was not accepted. */
static tpl_code keep_accepted(speculator *s, state *st, tpl_err *e)
{
    const accept_result *k = &s->kept;
    int n = k->n, in_draft = 0;
    s->path_rows[0] = 0;
    for (int i = 0; i < n; i++)
        s->path_rows[1 + i] = 1 + k->path[i];
    if (s->o.width > 1)
        TPL_TRY(session_keep_path(s->base, st->base_seq, s->path_rows, 1 + n, e));
    else
        session_truncate(s->base, st->base_seq, st->n_text + n);
    if (s->tree.n == 0)
        return TPL_OK;
    while (in_draft < n && s->tree.nodes[k->path[in_draft]].dist >= 0)
        in_draft++;
    if (s->recompute)
        session_truncate(s->draft, st->draft_seq, st->exact_len);
    else if (s->o.width > 1 && session_len(s->draft, st->draft_seq) > st->n_text)
        TPL_TRY(session_keep_path(s->draft, st->draft_seq, k->path, in_draft, e));
    else
        session_truncate(s->draft, st->draft_seq, st->n_text + in_draft);
    return TPL_OK;
}

/* ---- the loop ---- */

/* Puts out a token; false: that was the last one. */
static bool put_out(state *st, int32_t token)
{
    spec_run *r = st->run;
    if (token == r->stop_id) {
        r->stopped = true;
        return false;
    }
    r->out[r->n_out++] = token;
    st->text[st->n_text++] = token;
    return r->n_out < r->max_new;
}

/* Levels that fit into both caches: the base takes the last token and all nodes, the draft all but the last level. */
static int depth_that_fits(const speculator *s, const state *st)
{
    if (!s->draft)
        return 0;
    int width = s->o.width, depth = s->o.depth;
    int base_room = session_opts(s->base)->max_tok - st->n_text,
        draft_room = session_opts(s->draft)->max_tok - st->n_text;
    if (draft_room < 0)
        return 0;
    if (depth * width > base_room)
        depth = base_room / width;
    if ((depth - 1) * width > draft_room)
        depth = 1 + draft_room / width;
    return depth;
}

static tpl_code iterate(speculator *s, state *st, bool *more, tpl_err *e)
{
    int depth = depth_that_fits(s, st);
    if (st->n_text > session_opts(s->base)->max_tok)
        return tpl_fail(e, TPL_E_INPUT, "context", "of %d tokens is full", session_opts(s->base)->max_tok);
    TPL_TRY(draft_tree(s, st, depth, e));
    TPL_TRY(verify(s, st, e));
    judge(s, st);
    TPL_TRY(keep_accepted(s, st, e));
    *more = true;
    for (int i = 0; i < s->kept.n && *more; i++)
        *more = put_out(st, s->tree.nodes[s->kept.path[i]].token);
    if (*more)
        *more = put_out(st, s->kept.bonus);
    st->iteration++;
    clock_stage(st, &st->stats->other_s);
    return TPL_OK;
}

static tpl_code prefill(speculator *s, state *st, bool *more, tpl_err *e)
{
    spec_run *r = st->run;
    TPL_TRY(generate_prefill(s->base, st->base_seq, r->prompt, r->n_prompt, e));
    tree_reset(&s->tree);
    if (s->o.temperature > 0) {
        s->judge.logits = session_logits(s->base, 0);
        accept_load(&s->judge, -1);
        *more = put_out(st, accept_draw(s->judge.p, s->vocab, &st->r));
    } else {
        *more = put_out(st, session_best(s->base, 0));
    }
    if (s->draft && *more && r->n_prompt <= session_opts(s->draft)->max_tok)
        TPL_TRY(generate_prefill(s->draft, st->draft_seq, r->prompt, r->n_prompt, e));
    st->exact_len = r->n_prompt;
    clock_stage(st, &st->stats->prefill_s);
    return TPL_OK;
}

tpl_code spec_generate(speculator *s, spec_run *run, spec_stats *stats, tpl_err *e)
{
    state st = {.run = run,
                .stats = stats,
                .r = rng_make(s->o.seed, run->stream),
                .base_seq = -1,
                .draft_seq = -1,
                .mark_ns = clock_ns()};
    bool more = true;
    tpl_code rc = TPL_OK;
    run->n_out = 0;
    run->stopped = false;
    if (s->draft)
        session_want_top(s->draft, s->n_top, s->o.draft_temperature);
    if (run->n_prompt < 1 || run->max_new < 1)
        return tpl_fail(e, TPL_E_INPUT, "prompt", "has %d tokens and %d are to follow, expected at least one of each",
                        run->n_prompt, run->max_new);
    st.text = tpl_malloc(sizeof *st.text * ((size_t)run->n_prompt + (size_t)run->max_new));
    memcpy(st.text, run->prompt, sizeof *st.text * (size_t)run->n_prompt);
    st.n_text = run->n_prompt;
    st.base_seq = session_add_seq(s->base);
    st.draft_seq = s->draft ? session_add_seq(s->draft) : -1;
    if (st.base_seq < 0 || (s->draft && st.draft_seq < 0))
        rc = tpl_fail(e, TPL_E_USAGE, "session", "has no free sequence");
    if (rc == TPL_OK)
        rc = prefill(s, &st, &more, e);
    while (rc == TPL_OK && more)
        rc = iterate(s, &st, &more, e);
    if (rc == TPL_OK)
        stats->n_tok += run->n_out;
    if (st.base_seq >= 0)
        session_drop_seq(s->base, st.base_seq);
    if (st.draft_seq >= 0)
        session_drop_seq(s->draft, st.draft_seq);
    free(st.text);
    return rc;
}
