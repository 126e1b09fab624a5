/* Traces of a card: every record of a pass finds its step, replays show what was recorded, and times lie in order. */
#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/arena.h"
#include "base/text.h"
#include "device/gpu.h"
#include "engine/card_marks.h"
#include "engine/card_trace.h"
#include "engine/lab.h"

enum { PROMPT = 150, PASSES = 4, MANY_SEQS = 160 };

static void need_card(void)
{
    if (gpu_count() == 0)
        cr_skip_test("no CUDA card is here");
}

static gpu_trace *begin(void)
{
    gpu_trace *t = NULL;
    tpl_err e = {0};
    tpl_code rc = gpu_trace_begin(&t, &e);
    if (rc == TPL_E_UNSUPPORTED)
        cr_skip_test("%s: %s", e.where, e.what);
    cr_assert(rc == TPL_OK, "%s: %s", e.where, e.what);
    return t;
}

typedef struct {
    lab *l;
    lab_run run;
    session *s;
    int seqs[MANY_SEQS], n_seqs;
} world;

static void open_world(world *w, const char *name, const char *text, int tp, ranks_kind ranks, int n_seqs)
{
    const char *home = getenv("TPLABENCH_HOME");
    char path[512];
    variant v;
    tpl_err e = {0};
    team_options o = {.tp = tp, .ranks = ranks, .backend = "cuda"};
    session_options so = {.max_seqs = n_seqs, .max_tok = 400, .max_rows = MANY_SEQS, .max_logits = n_seqs};
    if (strncmp(name, "shape:", 6) == 0)
        snprintf(path, sizeof path, "%s", name);
    else
        snprintf(path, sizeof path, "%s/models/%s", home && *home ? home : SOURCE_ROOT, name);
    cr_assert(lab_open(path, &(lab_calibration){0}, &w->l, &e) == TPL_OK, "%s: %s", e.where, e.what);
    cr_assert(variant_parse(text, &v, &e) == TPL_OK, "%s", e.what);
    cr_assert(lab_run_open(w->l, &v, &o, &w->run, &e) == TPL_OK, "%s: %s", e.where, e.what);
    cr_assert(session_create(w->run.team, &so, &w->s, &e) == TPL_OK, "%s: %s", e.where, e.what);
    w->n_seqs = n_seqs;
    for (int i = 0; i < n_seqs; i++)
        w->seqs[i] = session_add_seq(w->s);
}

static void close_world(world *w)
{
    session_destroy(w->s);
    lab_run_close(&w->run);
    lab_close(w->l);
}

static void prefill(world *w)
{
    batch_row rows[PROMPT];
    tpl_err e = {0};
    for (int i = 0; i < PROMPT; i++)
        rows[i] = (batch_row){w->seqs[0], 1 + i * 37 % 1000, ROW_CHAIN, i == PROMPT - 1};
    cr_assert(session_forward(w->s, PHASE_PREFILL, rows, PROMPT, &e) == TPL_OK, "%s: %s", e.where, e.what);
}

static void decode(world *w)
{
    batch_row rows[MANY_SEQS];
    tpl_err e = {0};
    for (int i = 0; i < w->n_seqs; i++)
        rows[i] = (batch_row){w->seqs[i], 7, ROW_CHAIN, true};
    cr_assert(session_forward(w->s, PHASE_DECODE, rows, w->n_seqs, &e) == TPL_OK, "%s: %s", e.where, e.what);
}

/* How many active steps of the list no kernel, copy or fill of the pass shows; one launch may show several. */
static int64_t steps_unseen(const world *w, const spans *sp, int rank, plan_phase phase, int pass)
{
    const plan_list *list = &team_plan(w->run.team, rank)->list[phase];
    int64_t unseen = 0;
    for (int k = 0; k < list->n; k++) {
        bool seen = false;
        for (int r = 0; r < team_n_local(w->run.team) && !seen; r++)
            for (int64_t i = 0; i < spans_count(sp, r) && !seen; i++) {
                const span *a = spans_at(sp, r, i);
                int n = a->n_steps ? a->n_steps : 1;
                seen = a->pass == pass && a->step && a->step <= &list->steps[k] && &list->steps[k] < a->step + n;
            }
        unseen += list->steps[k].active && !list->steps[k].is_comm && !seen;
    }
    return unseen;
}

static void expect_order(const spans *sp, int n_ranks)
{
    for (int r = 0; r < n_ranks; r++)
        for (int64_t i = 1; i < spans_count(sp, r); i++) {
            const span *a = spans_at(sp, r, i - 1), *b = spans_at(sp, r, i);
            cr_assert(a->begin_ns <= b->begin_ns && b->begin_ns <= b->end_ns, "record %lld", (long long)i);
        }
}

/* For whoever must find out why records and steps did not meet. */
static void show_records(const world *w, const gpu_trace *t)
{
    int64_t n, recorded = 0;
    const gpu_slice *s = gpu_trace_slices(t, &n);
    for (int i = 0; i < team_plan(w->run.team, 0)->list[PHASE_DECODE].n; i++)
        recorded += gpu_trace_recorded(t, card_mark(0, 0, PHASE_DECODE, i), GPU_DID_KERNEL);
    fprintf(stderr, "kernels recorded for steps of rank 0: %lld\n", (long long)recorded);
    for (int64_t i = 0; i < n && i < 400; i += i < 20 ? 1 : 19)
        fprintf(stderr, "%lld %s %.40s pass %d mark %llx correlation %u node %llu queue %u card %d\n", (long long)i,
                gpu_did_name(s[i].kind), s[i].name, s[i].pass, (unsigned long long)s[i].mark, s[i].correlation,
                (unsigned long long)s[i].node, s[i].queue, s[i].card);
}

/* Collectives on every rank: their spans go by the step, whatever kernels do them. */
static int64_t n_comm_spans(const spans *sp, int rank)
{
    int64_t n = 0;
    for (int64_t i = 0; i < spans_count(sp, rank); i++)
        n += spans_at(sp, rank, i)->step->is_comm;
    return n;
}

static void trace_decode(const char *name, const char *text, int tp, ranks_kind ranks, int n_seqs)
{
    world w;
    card_trace_check check;
    open_world(&w, name, text, tp, ranks, n_seqs);
    prefill(&w);
    decode(&w);
    gpu_trace *t = begin();
    decode(&w);
    decode(&w);
    for (int i = 0; i < PASSES; i++) {
        gpu_trace_pass(i);
        decode(&w);
        gpu_trace_pass(-1);
    }
    tpl_err e = {0};
    cr_assert(gpu_trace_end(t, &e) == TPL_OK, "%s: %s", e.where, e.what);
    spans *sp = card_trace_spans(w.s, t, PASSES, true, &check);
    int64_t n_slices, n_spans = 0;
    gpu_trace_slices(t, &n_slices);
    for (int r = 0; r < tp; r++)
        n_spans += spans_count(sp, r);
    spans_pass_time p = spans_passes(sp, 0);
    fprintf(stderr, "%s tp %d: %lld records, %lld in %d passes (%lld unmarked, %lld unlike, %lld dropped); a pass %.1f us, idle %.1f us in %lld pieces, %.1f us to the next; unlike: %s\n",
            text, tp, (long long)n_slices, (long long)n_spans, p.n_passes, (long long)check.n_unmarked, (long long)check.n_unlike,
            (long long)check.n_dropped, (double)p.pass_ns / 1e3 / PASSES, (double)p.idle_ns / 1e3 / PASSES, (long long)p.n_idle / PASSES,
            (double)p.between_ns / 1e3 / (PASSES - 1), check.first_unlike);
    if (check.n_unmarked || check.n_unlike)
        show_records(&w, t);
    cr_expect_eq(check.n_dropped, 0);
    cr_expect_eq(check.n_unmarked, 0);
    cr_expect_eq(check.n_unlike, 0, "%s", check.first_unlike);
    cr_expect_eq(p.n_passes, PASSES);
    cr_expect(p.idle_ns < p.pass_ns);
    expect_order(sp, tp);
    for (int r = 0; r < tp && ranks == RANKS_NCCL; r++)
        cr_expect_geq(n_comm_spans(sp, r), PASSES, "rank %d shows no collectives", r);
    for (int i = 0; i < PASSES; i++)
        cr_expect(p.n_kernels >= PASSES && steps_unseen(&w, sp, 0, PHASE_DECODE, i) <= 1, "pass %d: %lld unseen", i,
                  (long long)steps_unseen(&w, sp, 0, PHASE_DECODE, i));
    gpu_trace_destroy(t);
    spans_destroy(sp);
    /* Graphs that were recorded before the trace serve again. */
    decode(&w);
    close_world(&w);
}

Test(gpu_trace, replays_show_every_step_of_one_rank)
{
    need_card();
    trace_decode("worldlet-mla", "mla", 1, RANKS_LOCAL, 1);
}

Test(gpu_trace, replays_show_every_rank_on_one_card)
{
    need_card();
    trace_decode("worldlet-mla", "tpla:g=2:u=id", 2, RANKS_LOCAL, 1);
    trace_decode("worldlet-gqa", "gqa", 2, RANKS_LOCAL, 1);
}

Test(gpu_trace, ranks_with_a_card_each)
{
    if (gpu_count() < 2)
        cr_skip_test("%d CUDA cards are here, two are needed", gpu_count());
    trace_decode("worldlet-mla", "mla", 2, RANKS_NCCL, 1);
    trace_decode("worldlet-mla", "mla-dcp", 2, RANKS_NCCL, 1);
}

/* 160 rows of half of 129,280 logits are 41 MB a rank, more than goes through peer memory: a gather of the library's,
 * and a turn of its rows. */
Test(gpu_trace, a_gather_by_the_library)
{
    if (gpu_count() < 2)
        cr_skip_test("%d CUDA cards are here, two are needed", gpu_count());
    trace_decode("shape:deepseek-v3,moe=off,layers=1", "mla", 2, RANKS_NCCL, MANY_SEQS);
}

/* What is timed as a step's attention is its attention, of every layer and nothing else, and leaves later passes as they
 * were. */
static void check_attention_alone(int tp, const char *text)
{
    world w;
    card_trace_check check;
    tpl_err e = {0};
    open_world(&w, "worldlet-mla", text, tp, RANKS_LOCAL, 1);
    prefill(&w);
    decode(&w);
    int vocab = team_plan(w.run.team, 0)->cfg.vocab, attentions = 0;
    float *before = tpl_calloc((size_t)vocab, sizeof *before);
    memcpy(before, session_logits(w.s, 0), (size_t)vocab * sizeof *before);
    cr_assert(session_set_attention_alone(w.s, true, &e) == TPL_OK, "%s: %s", e.where, e.what);
    gpu_trace *t = begin();
    for (int i = 0; i < PASSES + 2; i++) {
        session_truncate(w.s, w.seqs[0], PROMPT);
        gpu_trace_pass(i - 2);
        decode(&w);
        gpu_trace_pass(-1);
    }
    cr_assert(gpu_trace_end(t, &e) == TPL_OK, "%s: %s", e.where, e.what);
    spans *sp = card_trace_spans(w.s, t, PASSES, true, &check);
    for (int r = 0; r < tp; r++)
        for (int64_t i = 0; i < spans_count(sp, r); i++) {
            const span *a = spans_at(sp, r, i);
            bool attention = !a->outside && op_is_attention(a->step->call.kind) && a->n_steps == 1;
            cr_expect(attention || a->outside, "%s of a pass of attention alone", a->step->name);
            attentions += attention;
        }
    cr_expect_geq(attentions, PASSES * tp * team_plan(w.run.team, 0)->cfg.n_layers);
    cr_expect_eq(check.n_unlike + check.n_unmarked, 0, "%s", check.first_unlike);
    cr_assert(session_set_attention_alone(w.s, false, &e) == TPL_OK);
    session_truncate(w.s, w.seqs[0], PROMPT);
    decode(&w);
    cr_expect_arr_eq(before, session_logits(w.s, 0), (size_t)vocab * sizeof *before);
    free(before);
    gpu_trace_destroy(t);
    spans_destroy(sp);
    close_world(&w);
}

Test(gpu_trace, attention_alone_is_attention_alone)
{
    need_card();
    check_attention_alone(1, "mla");
    check_attention_alone(2, "tpla:g=2:u=id");
}

/* A prefill is launched directly: external ids, not nodes, say what belongs to what. */
Test(gpu_trace, direct_launches_are_joined_by_external_ids)
{
    world w;
    card_trace_check check;
    tpl_err e = {0};
    need_card();
    open_world(&w, "worldlet-mla", "mla", 1, RANKS_LOCAL, 1);
    gpu_trace *t = begin();
    gpu_trace_pass(0);
    prefill(&w);
    gpu_trace_pass(-1);
    cr_assert(gpu_trace_end(t, &e) == TPL_OK, "%s: %s", e.where, e.what);
    spans *sp = card_trace_spans(w.s, t, 1, false, &check);
    fprintf(stderr, "prefill: %lld records, %lld unmarked, %lld steps unseen\n", (long long)spans_count(sp, 0), (long long)check.n_unmarked,
            (long long)steps_unseen(&w, sp, 0, PHASE_PREFILL, 0));
    cr_expect_gt(spans_count(sp, 0), 20);
    cr_expect_eq(check.n_unmarked, 0);
    cr_expect_eq(check.n_dropped, 0);
    expect_order(sp, 1);
    for (int64_t i = 0; i < spans_count(sp, 0); i++)
        cr_expect_eq(spans_at(sp, 0, i)->node, 0);
    gpu_trace_destroy(t);
    spans_destroy(sp);
    close_world(&w);
}

Test(gpu_trace, a_second_trace_begins_where_the_first_ended)
{
    need_card();
    trace_decode("worldlet-mla", "mla", 1, RANKS_LOCAL, 1);
    trace_decode("worldlet-mla", "mla-dcp", 2, RANKS_LOCAL, 1);
}
