#include "bench/speculate.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "bench/spec_cells.h"
#include "bench/stats.h"
#include "engine/generate.h"
#include "engine/sampler.h"

/* One cell while it is measured. */
typedef struct {
    spec_cell cell;
    char name[SPEC_CELL_NAME];
    session *base, *draft;
    speculator *s;
    tpl_code failed; /* it cannot run; the words are in err */
    tpl_err err;
    spec_stats sum;
    double *seconds, *tokens; /* [n_prompts] */
    int32_t *out;             /* [max_new] of the prompt at hand */
    int32_t n_out;
    int n_differ, n_wrong; /* texts that differ from vanilla's, those of them at more than a near-tie */
    spec_profile profile;
    bool profiled;
} live_cell;

typedef struct {
    const speculate_request *q;
    run_dir *rd;
    spec_pool pool;
    live_cell *cells;
    int n;
    bool wrong;
} bench;

/* ---- numbers ---- */

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double rate_ratio(spec_times other, spec_times base, int n, rng *r)
{
    double sums[4] = {0};
    for (int i = 0; i < n; i++) {
        int at = r ? (int)rng_below(r, (uint64_t)n) : i;
        sums[0] += other.tokens[at];
        sums[1] += other.seconds[at];
        sums[2] += base.tokens[at];
        sums[3] += base.seconds[at];
    }
    return sums[0] / sums[1] / (sums[2] / sums[3]);
}

spec_ratio spec_ratio_of_rates(spec_times other, spec_times base, int n, uint64_t seed)
{
    enum { DRAWS = 2000 };
    spec_ratio out = {rate_ratio(other, base, n, NULL), NAN, NAN};
    double *draws = tpl_malloc(sizeof *draws * DRAWS);
    rng r = rng_make(seed, 77);
    for (int k = 0; k < DRAWS && n > 1; k++)
        draws[k] = rate_ratio(other, base, n, &r);
    if (n > 1) {
        qsort(draws, DRAWS, sizeof *draws, by_value);
        out.lo = bstat_quantile(draws, DRAWS, 0.025);
        out.hi = bstat_quantile(draws, DRAWS, 0.975);
    }
    free(draws);
    return out;
}

static double run_seconds(const spec_stats *x)
{
    return x->draft_s + x->verify_s + x->other_s;
}

static double draft_s_per_iteration(const live_cell *c)
{
    return c->sum.draft_s / (double)c->sum.n_iterations;
}

/* The ordinary draft of equal width that spends the least time an iteration; NULL if none was measured. */
static const live_cell *fastest_ordinary(const bench *b, const live_cell *of)
{
    const live_cell *best = NULL;
    for (int i = 0; i < b->n; i++) {
        const live_cell *c = &b->cells[i];
        bool ordinary = c->cell.method == SPEC_SD || c->cell.method == SPEC_TREE;
        if (!ordinary || c->failed || c->cell.width != of->cell.width || c->sum.n_iterations == 0)
            continue;
        if (!best || draft_s_per_iteration(c) < draft_s_per_iteration(best))
            best = c;
    }
    return best;
}

/* The ordinary draft of equal width on one rank, from whose profile the bound is computed. */
static const live_cell *ordinary_on_one_rank(const bench *b, const live_cell *of)
{
    for (int i = 0; i < b->n; i++) {
        const live_cell *c = &b->cells[i];
        bool ordinary = c->cell.method == SPEC_SD || c->cell.method == SPEC_TREE;
        if (ordinary && c->cell.draft_tp == 1 && c->cell.width == of->cell.width && c->profiled)
            return c;
    }
    return NULL;
}

static const live_cell *vanilla_like(const bench *b, const live_cell *of)
{
    const live_cell *first = NULL;
    for (int i = 0; i < b->n; i++) {
        const live_cell *c = &b->cells[i];
        if (c->cell.method != SPEC_VANILLA || c->failed)
            continue;
        first = first ? first : c;
        if (c->cell.base_tp == of->cell.base_tp)
            return c;
    }
    return first;
}

/* Vanilla on the fewest ranks: what speed-ups are over. */
static const live_cell *plainest(const bench *b)
{
    const live_cell *best = NULL;
    for (int i = 0; i < b->n; i++) {
        const live_cell *c = &b->cells[i];
        if (c->cell.method == SPEC_VANILLA && !c->failed && (!best || c->cell.base_tp < best->cell.base_tp))
            best = c;
    }
    return best;
}

/* ---- rows ---- */

static void set_times(rs_row *r, const spec_stats *x)
{
    double per = 100 / (double)x->n_tok;
    row_set_real(r, SPEC_tok_per_s, (double)x->n_tok / run_seconds(x));
    row_set_real(r, SPEC_total_s_per_100_tok, run_seconds(x) * per);
    row_set_real(r, SPEC_verify_s_per_100_tok, x->verify_s * per);
    row_set_int(r, SPEC_n_tok, x->n_tok);
}

static void set_acceptance(const speculate_request *q, rs_row *r, const spec_stats *x)
{
    double per = 100 / (double)x->n_tok;
    int64_t judged = 0, accepted = 0;
    text_buf by_position = {0};
    for (int i = 0; i < q->depth; i++) {
        judged += x->judged[i];
        accepted += x->accepted[i];
        if (x->judged[i])
            text_addf(&by_position, "%s%.4f", i ? ";" : "", (double)x->accepted[i] / (double)x->judged[i]);
    }
    row_set_real(r, SPEC_draft_s_per_100_tok, x->draft_s * per);
    row_set_real(r, SPEC_calibrate_s_per_100_tok, x->calibrate_s * per);
    row_set_real(r, SPEC_accept_frac_of_n, (double)x->n_accepted / (double)(x->n_iterations * q->depth));
    if (judged)
        row_set_real(r, SPEC_accept_per_draft_tok, (double)accepted / (double)judged);
    row_set_text(r, SPEC_accept_by_position, by_position.data);
    row_set_real(r, SPEC_tok_per_iteration, 1 + (double)x->n_accepted / (double)x->n_iterations);
    text_fini(&by_position);
}

static void set_gains(const bench *b, const live_cell *c, rs_row *r)
{
    const live_cell *fastest = fastest_ordinary(b, c), *single = ordinary_on_one_rank(b, c);
    layer_groups g;
    if (fastest)
        row_set_real(r, SPEC_draft_gain, draft_s_per_iteration(fastest) / draft_s_per_iteration(c));
    if (single && groups_parse(c->cell.groups, model_cfg(lab_model(b->q->draft))->n_layers, &g, NULL) == TPL_OK) {
        double part = c->cell.whole_layers ? single->profile.layers_of_pass : single->profile.attn_of_pass;
        row_set_real(r, SPEC_draft_gain_bound, spec_gain_bound(&g, c->cell.draft_tp, part, b->q->depth));
    }
}

static void set_profile(const live_cell *c, rs_row *r)
{
    text_buf idle = {0};
    if (!c->profiled)
        return;
    for (int i = 0; i < c->profile.n_ranks; i++)
        text_addf(&idle, "%s%.4f", i ? ";" : "", c->profile.idle_s_per_100_tok[i]);
    row_set_text(r, SPEC_idle_s_per_100_tok, idle.data);
    if (c->cell.method != SPEC_VANILLA)
        row_set_real(r, SPEC_attn_share, c->profile.attn_share);
    text_fini(&idle);
}

static void set_status(const live_cell *c, int n_prompts, bool compared, rs_row *r)
{
    char reason[512];
    if (c->failed) {
        rs_status status = c->failed == TPL_E_MEMORY ? RS_OUT_OF_MEMORY : RS_UNSUPPORTED;
        snprintf(reason, sizeof reason, "%s: %.200s", c->err.where, c->err.what);
        row_set_status(r, status, reason);
        return;
    }
    if (compared)
        row_set_int(r, SPEC_n_differ, c->n_differ);
    if (c->n_wrong || c->n_differ * 100 > n_prompts) {
        snprintf(reason, sizeof reason,
                 "%d of %d greedy texts differ from vanilla's, %d of them at more than near-ties", c->n_differ,
                 n_prompts, c->n_wrong);
        row_set_status(r, RS_WRONG_ANSWER, reason);
        return;
    }
    row_set_status(r, RS_OK, NULL);
}

static double mean_prompt(const speculate_request *q)
{
    double sum = 0;
    for (int i = 0; i < q->n_prompts; i++)
        sum += q->prompts[i].n;
    return sum / q->n_prompts;
}

/* Only judged greedy texts must equal vanilla's. */
static bool is_compared(const bench *b, const live_cell *c)
{
    return c->cell.method != SPEC_VANILLA && c->cell.temperature <= 0 && !b->q->replay &&
           b->q->sampling.assume_accept <= 0 && vanilla_like(b, c);
}

static tpl_code write_row(bench *b, live_cell *c, tpl_err *e)
{
    const speculate_request *q = b->q;
    const live_cell *first = plainest(b);
    rs_row r;
    spec_cell_row(q, &c->cell, &r);
    set_status(c, q->n_prompts, is_compared(b, c), &r);
    row_set_real(&r, SPEC_prompt_tok, mean_prompt(q));
    if (!c->failed && c->sum.n_tok > 0) {
        set_times(&r, &c->sum);
        set_profile(c, &r);
        row_set_int(&r, SPEC_n_samples, q->n_prompts);
        if (c->cell.method != SPEC_VANILLA && c->sum.n_iterations > 0)
            set_acceptance(q, &r, &c->sum);
        if (c->cell.method == SPEC_EASYSPEC && c->sum.n_iterations > 0)
            set_gains(b, c, &r);
    }
    if (first && first != c && !c->failed) {
        spec_times mine = {c->tokens, c->seconds}, plain = {first->tokens, first->seconds};
        spec_ratio ratio = spec_ratio_of_rates(mine, plain, q->n_prompts, q->sampling.seed);
        row_set_real(&r, SPEC_speedup, ratio.ratio);
        row_set_real(&r, SPEC_speedup_lo, ratio.lo);
        row_set_real(&r, SPEC_speedup_hi, ratio.hi);
    }
    b->wrong = b->wrong || c->n_wrong || (is_compared(b, c) && c->n_differ * 100 > q->n_prompts);
    rs_cell_id id = row_cell_id(&r);
    tpl_code rc = rd_has_cell(b->rd, RS_SPECULATE, id.hex) ? TPL_OK : rd_append(b->rd, &r, e);
    row_fini(&r);
    return rc;
}

/* ---- running ---- */

static bool skippable(tpl_code rc)
{
    return rc == TPL_E_UNSUPPORTED || rc == TPL_E_MEMORY || rc == TPL_E_USAGE;
}

static tpl_code open_cell(bench *b, live_cell *c, tpl_err *e)
{
    const speculate_request *q = b->q;
    spec_options o = spec_cell_options(q, &c->cell);
    spec_cell_name(q, &c->cell, c->name);
    c->seconds = tpl_calloc((size_t)q->n_prompts, sizeof *c->seconds);
    c->tokens = tpl_calloc((size_t)q->n_prompts, sizeof *c->tokens);
    c->out = tpl_calloc((size_t)q->max_new, sizeof *c->out);
    c->failed = spec_pool_open_cell(&b->pool, q, &c->cell, &c->base, &c->draft, &c->err);
    if (!c->failed)
        c->failed = spec_create(c->base, c->draft, &o, &c->s, &c->err);
    if (!c->failed || skippable(c->failed))
        return TPL_OK;
    *e = c->err;
    return c->failed;
}

static spec_run run_of(const bench *b, const live_cell *c, int prompt, const spec_record *replay)
{
    const speculate_request *q = b->q;
    return (spec_run){.prompt = q->prompts[prompt].tokens,
                      .n_prompt = q->prompts[prompt].n,
                      .max_new = q->max_new,
                      .stop_id = q->stop_id,
                      .stream = (uint64_t)prompt,
                      .out = c->out,
                      .replay = replay};
}

static tpl_code run_prompt(bench *b, live_cell *c, int prompt, tpl_err *e)
{
    const speculate_request *q = b->q;
    spec_record record = {0};
    spec_stats x = {0};
    const spec_record *replay = NULL;
    if (q->replay && c->cell.method != SPEC_VANILLA && !(replay = spec_replay_find(q->replay, c->name, prompt)))
        return tpl_fail(e, TPL_E_INPUT, "--replay", "has no run '%s' of prompt %d", c->name, prompt);
    spec_run run = run_of(b, c, prompt, replay);
    run.record = q->record ? &record : NULL;
    tpl_code rc = spec_generate(c->s, &run, &x, e);
    if (rc == TPL_OK && q->record && c->cell.method != SPEC_VANILLA)
        rc = spec_replay_write(q->record, c->name, prompt, &record, e);
    c->n_out = run.n_out;
    c->seconds[prompt] = run_seconds(&x);
    c->tokens[prompt] = (double)x.n_tok;
    spec_stats_add(&c->sum, &x);
    spec_record_free(&record);
    return rc;
}

/* Whether vanilla's text has a near-tie where the other one leaves it. */
static tpl_code is_near_tie(const bench *b, const live_cell *plain, int prompt, int at, bool *near, tpl_err *e)
{
    const spec_prompt *p = &b->q->prompts[prompt];
    int vocab = model_cfg(lab_model(b->q->base))->vocab, n = p->n + at, seq = session_add_seq(plain->base);
    int32_t *text = tpl_malloc(sizeof *text * (size_t)n);
    memcpy(text, p->tokens, sizeof *text * (size_t)p->n);
    memcpy(text + p->n, plain->out, sizeof *text * (size_t)at);
    tpl_code rc = generate_prefill(plain->base, seq, text, n, e);
    if (rc == TPL_OK) {
        const float *x = session_logits(plain->base, 0);
        int best = sampler_argmax(x, vocab);
        double second = -INFINITY, largest = 0;
        for (int v = 0; v < vocab; v++) {
            second = v != best && x[v] > second ? x[v] : second;
            largest = fabs((double)x[v]) > largest ? fabs((double)x[v]) : largest;
        }
        *near = x[best] - second < spec_near_tie(model_cfg(lab_model(b->q->base)), largest);
    }
    session_drop_seq(plain->base, seq);
    free(text);
    return rc;
}

static tpl_code compare_text(bench *b, live_cell *c, int prompt, tpl_err *e)
{
    const live_cell *plain = is_compared(b, c) ? vanilla_like(b, c) : NULL;
    int at = 0;
    bool near = false;
    while (plain && at < plain->n_out && at < c->n_out && plain->out[at] == c->out[at])
        at++;
    if (!plain || (at == plain->n_out && at == c->n_out))
        return TPL_OK;
    c->n_differ++;
    TPL_TRY(is_near_tie(b, plain, prompt, at, &near, e));
    c->n_wrong += !near;
    return TPL_OK;
}

/* Every cell runs the prompt, one after the other; the first prompt is run once more beforehand, to warm up. */
static tpl_code run_prompts(bench *b, double temperature, tpl_err *e)
{
    for (int p = -1; p < b->q->n_prompts; p++) {
        progress_show(p < 0 ? 0 : p, b->q->n_prompts, "speculate at temperature %g: %d cells", temperature, b->n);
        for (int i = 0; i < b->n; i++) {
            live_cell *c = &b->cells[i];
            if (interrupt_seen())
                return tpl_fail(e, TPL_E_INTERRUPTED, "speculate", "stopped by a signal");
            if (c->failed)
                continue;
            if (p < 0) {
                spec_stats warm = {0};
                spec_run run = run_of(b, c, 0, NULL);
                run.max_new = run.max_new < 16 ? run.max_new : 16;
                TPL_TRY(spec_generate(c->s, &run, &warm, e));
                continue;
            }
            TPL_TRY(run_prompt(b, c, p, e));
            TPL_TRY(compare_text(b, c, p, e));
        }
    }
    return TPL_OK;
}

static tpl_code profile_cell(bench *b, live_cell *c, arena *a, tpl_err *e)
{
    char *path = NULL;
    const spec_record *replay = b->q->replay ? spec_replay_find(b->q->replay, c->name, 0) : NULL;
    if (b->q->trace) {
        rs_row r;
        spec_cell_row(b->q, &c->cell, &r);
        rs_cell_id id = row_cell_id(&r);
        row_fini(&r);
        TPL_TRY(rd_trace_path(b->rd, id.hex, a, &path, e));
    }
    TPL_TRY(spec_profile_run(c->s, c->base, c->draft, run_of(b, c, 0, replay), path, &c->profile, e));
    c->profiled = true;
    return TPL_OK;
}

static tpl_code finish_cells(bench *b, tpl_err *e)
{
    arena a;
    tpl_code rc = TPL_OK;
    arena_init(&a);
    for (int i = 0; i < b->n && rc == TPL_OK; i++)
        if (!b->cells[i].failed)
            rc = profile_cell(b, &b->cells[i], &a, e);
    for (int i = 0; i < b->n && rc == TPL_OK; i++)
        rc = write_row(b, &b->cells[i], e);
    arena_fini(&a);
    return rc;
}

static bool all_done(const bench *b)
{
    for (int i = 0; i < b->n; i++) {
        rs_row r;
        spec_cell_row(b->q, &b->cells[i].cell, &r);
        rs_cell_id id = row_cell_id(&r);
        row_fini(&r);
        if (!rd_has_cell(b->rd, RS_SPECULATE, id.hex))
            return false;
    }
    return true;
}

static tpl_code run_temperature(bench *b, double temperature, tpl_err *e)
{
    spec_cell *list = tpl_calloc(SPEC_MAX_CELLS, sizeof *list);
    tpl_code rc = TPL_OK;
    b->n = spec_list_cells(b->q, temperature, list);
    b->cells = tpl_calloc((size_t)b->n + 1, sizeof *b->cells);
    for (int i = 0; i < b->n; i++)
        b->cells[i].cell = list[i];
    free(list);
    if (!all_done(b)) {
        for (int i = 0; i < b->n && rc == TPL_OK; i++)
            rc = open_cell(b, &b->cells[i], e);
        if (rc == TPL_OK)
            rc = run_prompts(b, temperature, e);
        progress_clear();
        if (rc == TPL_OK)
            rc = finish_cells(b, e);
    }
    for (int i = 0; i < b->n; i++) {
        spec_destroy(b->cells[i].s);
        free(b->cells[i].seconds);
        free(b->cells[i].tokens);
        free(b->cells[i].out);
    }
    free(b->cells);
    return rc;
}

/* The longest prompt with its continuation and a tree behind it. */
static int tokens_needed(const speculate_request *q)
{
    int prompt = 0, width = 1;
    for (int i = 0; i < q->n_prompts; i++)
        prompt = q->prompts[i].n > prompt ? q->prompts[i].n : prompt;
    for (int i = 0; i < q->n_widths; i++)
        width = q->widths[i] > width ? (int)q->widths[i] : width;
    return prompt + q->max_new + width * q->depth;
}

tpl_code speculate_bench_run(const speculate_request *q, run_dir *rd, tpl_err *e)
{
    bench *b = tpl_calloc(1, sizeof *b);
    tpl_code rc = TPL_OK;
    b->q = q;
    b->rd = rd;
    b->pool.max_tok = tokens_needed(q);
    if (q->draft)
        rc = spec_check_pair(q->base, q->draft, e);
    for (int i = 0; i < q->n_temperatures && rc == TPL_OK; i++)
        rc = run_temperature(b, q->temperatures[i], e);
    spec_pool_close(&b->pool);
    if (rc == TPL_OK && b->wrong)
        rc = tpl_fail(e, TPL_E_MISMATCH, "speculate", "greedy texts differ from vanilla's; see the rows' reasons");
    free(b);
    return rc;
}

tpl_code speculate_bench_list(const speculate_request *q, FILE *out, tpl_err *e)
{
    spec_cell *list = tpl_calloc(SPEC_MAX_CELLS, sizeof *list);
    for (int t = 0; t < q->n_temperatures; t++) {
        int n = spec_list_cells(q, q->temperatures[t], list);
        for (int i = 0; i < n; i++) {
            char name[SPEC_CELL_NAME];
            spec_cell_name(q, &list[i], name);
            fprintf(out, "%s: %s, base tp %d", q->task, name, list[i].base_tp);
            fprintf(out, list[i].draft_tp ? ", draft tp %d\n" : "\n", list[i].draft_tp);
        }
    }
    free(list);
    return ferror(out) ? tpl_fail(e, TPL_E_IO, "output", "cannot be written") : TPL_OK;
}
