/* spec_rows.c - what a speculation bench says of its cells: rates, gains beside their bounds, and rows. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "bench/spec_card.h"
#include "bench/spec_live.h"
#include "bench/stats.h"

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

double spec_run_seconds(const spec_stats *x)
{
    return x->draft_s + x->verify_s + x->other_s;
}

static double draft_s_per_iteration(const spec_live *c)
{
    return c->sum.draft_s / (double)c->sum.n_iterations;
}

/* The ordinary draft of equal width that spends the least time an iteration; NULL if none was measured. */
static const spec_live *fastest_ordinary(const spec_bench *b, const spec_live *of)
{
    const spec_live *best = NULL;
    for (int i = 0; i < b->n; i++) {
        const spec_live *c = &b->cells[i];
        bool ordinary = c->cell.method == SPEC_SD || c->cell.method == SPEC_TREE;
        if (!ordinary || c->failed || c->cell.width != of->cell.width || c->sum.n_iterations == 0)
            continue;
        if (!best || draft_s_per_iteration(c) < draft_s_per_iteration(best))
            best = c;
    }
    return best;
}

/* The ordinary draft of equal width on one rank, from whose profile the bound is computed. */
static const spec_live *ordinary_on_one_rank(const spec_bench *b, const spec_live *of)
{
    for (int i = 0; i < b->n; i++) {
        const spec_live *c = &b->cells[i];
        bool ordinary = c->cell.method == SPEC_SD || c->cell.method == SPEC_TREE;
        if (ordinary && c->cell.draft_tp == 1 && c->cell.width == of->cell.width && c->profiled)
            return c;
    }
    return NULL;
}

const spec_live *spec_vanilla_like(const spec_bench *b, const spec_live *of)
{
    const spec_live *first = NULL;
    for (int i = 0; i < b->n; i++) {
        const spec_live *c = &b->cells[i];
        if (c->cell.method != SPEC_VANILLA || c->failed)
            continue;
        first = first ? first : c;
        if (c->cell.base_tp == of->cell.base_tp)
            return c;
    }
    return first;
}

/* Vanilla on the fewest ranks: what speed-ups are over. */
static const spec_live *plainest(const spec_bench *b)
{
    const spec_live *best = NULL;
    for (int i = 0; i < b->n; i++) {
        const spec_live *c = &b->cells[i];
        if (c->cell.method == SPEC_VANILLA && !c->failed && (!best || c->cell.base_tp < best->cell.base_tp))
            best = c;
    }
    return best;
}

/* ---- k devices from one ---- */

static spec_draft_times times_on_one(const spec_bench *b, const spec_live *ordinary, const spec_live *c)
{
    const spec_stats *x = &ordinary->sum, *y = &c->sum;
    double levels = (double)(x->n_draft_passes - x->n_iterations), n = (double)y->n_iterations;
    return (spec_draft_times){.first_s = y->first_s / n,
                              .level_s = levels > 0 ? (x->draft_s - x->first_s) / levels : 0,
                              .levels = (double)(y->n_draft_passes - y->n_iterations) / n,
                              .exchange_s = b->q->exchange_us * 1e-6};
}

void spec_model_devices(const spec_bench *b, spec_live *c)
{
    const speculate_request *q = b->q;
    const spec_live *ordinary = ordinary_on_one_rank(b, c);
    layer_groups g;
    int exchanges;
    bool wanted = spec_is_card(q) && q->ranks == RANKS_LOCAL && q->exchange_us > 0 && c->cell.draft_tp > 1;
    if (!wanted || c->failed || c->cell.method != SPEC_EASYSPEC || c->cell.whole_layers || !ordinary ||
        groups_parse(c->cell.groups, model_cfg(lab_model(q->draft))->n_layers, &g, NULL) != TPL_OK)
        return;
    double saved =
        spec_saved_by_devices(&g, c->cell.draft_tp, q->blocks, ordinary->profile.attention_of_layer, &exchanges);
    spec_draft_times t = times_on_one(b, ordinary, c);
    double before = spec_run_seconds(&c->sum);
    c->draft_s_timed = c->sum.draft_s;
    c->sum.draft_s = spec_draft_on_devices(&t, saved, exchanges) * (double)c->sum.n_iterations;
    for (int i = 0; i < q->n_prompts; i++)
        c->seconds[i] *= spec_run_seconds(&c->sum) / before;
    c->modelled = true;
}

/* ---- rows ---- */

static void set_times(rs_row *r, const spec_stats *x)
{
    double per = 100 / (double)x->n_tok;
    row_set_real(r, SPEC_tok_per_s, (double)x->n_tok / spec_run_seconds(x));
    row_set_real(r, SPEC_total_s_per_100_tok, spec_run_seconds(x) * per);
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

static void set_gains(const spec_bench *b, const spec_live *c, rs_row *r)
{
    const spec_live *fastest = fastest_ordinary(b, c), *single = ordinary_on_one_rank(b, c);
    layer_groups g;
    if (fastest)
        row_set_real(r, SPEC_draft_gain, draft_s_per_iteration(fastest) / draft_s_per_iteration(c));
    if (single && groups_parse(c->cell.groups, model_cfg(lab_model(b->q->draft))->n_layers, &g, NULL) == TPL_OK) {
        double part = c->cell.whole_layers ? single->profile.layers_of_pass : single->profile.attn_of_pass;
        double bound = spec_gain_bound(&g, c->cell.draft_tp, part, b->q->depth);
        double gain = draft_s_per_iteration(single) / draft_s_per_iteration(c);
        row_set_real(r, SPEC_draft_gain_one, gain);
        row_set_real(r, SPEC_draft_gain_bound, bound);
        row_set_real(r, SPEC_draft_bound_frac, gain / bound);
    }
}

static void set_profile(const spec_live *c, rs_row *r)
{
    text_buf idle = {0};
    if (!c->profiled)
        return;
    for (int i = 0; i < c->profile.n_ranks; i++)
        text_addf(&idle, "%s%.4f", i ? ";" : "", c->profile.idle_s_per_100_tok[i]);
    row_set_text(r, SPEC_idle_s_per_100_tok, idle.data);
    if (c->cell.method != SPEC_VANILLA)
        row_set_real(r, SPEC_attn_share, c->profile.attn_share);
    if (isfinite(c->profile.overlap))
        row_set_real(r, SPEC_attn_overlap, c->profile.overlap);
    text_fini(&idle);
}

static void set_status(const spec_live *c, int n_prompts, bool compared, rs_row *r)
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
    if (c->modelled)
        row_set_status(r, RS_MODELLED, "drafting of a card a rank from the times of one card's blocks");
    else
        row_set_status(r, RS_OK, NULL);
}

/* Single passes that a stage is compared with, and what exchanging takes. */
static void set_passes(const spec_bench *b, const spec_live *c, rs_row *r)
{
    double n = (double)c->sum.n_iterations;
    layer_groups g;
    int exchanges = 0;
    const double none[GROUPS_MAX] = {0};
    if (c->base_token_s > 0)
        row_set_real(r, SPEC_verify_over_tok, c->sum.verify_s / n / c->base_token_s);
    if (c->one_token_s > 0 && c->sum.calibrate_s > 0)
        row_set_real(r, SPEC_calibrate_over_tok, c->sum.calibrate_s / n / c->one_token_s);
    if (c->modelled) {
        row_set_real(r, SPEC_exchange_us, b->q->exchange_us);
        row_set_real(r, SPEC_draft_ms_measured, c->draft_s_timed / n * 1e3);
        return;
    }
    if (!c->cell.groups || c->profile.draft_passes == 0 ||
        groups_parse(c->cell.groups, model_cfg(lab_model(b->q->draft))->n_layers, &g, NULL) != TPL_OK)
        return;
    spec_saved_by_devices(&g, c->cell.draft_tp, b->q->blocks, none, &exchanges);
    if (exchanges)
        row_set_real(r, SPEC_exchange_us,
                     c->profile.exchange_s * 1e6 / (double)(c->profile.draft_passes * exchanges));
}

static void set_comm(const spec_bench *b, const spec_live *c, rs_row *r)
{
    bool alone = c->cell.base_tp == 1 && c->cell.draft_tp <= 1;
    row_set_text(r, SPEC_comm_source, alone ? "none" : c->modelled ? "modelled" : "measured");
    if (spec_is_card(b->q) && b->q->ranks == RANKS_LOCAL && !alone && !c->modelled)
        row_set_text(r, SPEC_note, "ranks share one card: times are no team's");
}

/* Only judged greedy texts must equal vanilla's. */
bool spec_is_compared(const spec_bench *b, const spec_live *c)
{
    return c->cell.method != SPEC_VANILLA && c->cell.temperature <= 0 && !b->q->replay &&
           b->q->sampling.assume_accept <= 0 && spec_vanilla_like(b, c);
}

tpl_code spec_write_row(spec_bench *b, spec_live *c, tpl_err *e)
{
    const speculate_request *q = b->q;
    const spec_live *first = plainest(b);
    rs_row r;
    spec_cell_row(q, &c->cell, &r);
    set_status(c, q->n_prompts, spec_is_compared(b, c), &r);
    if (!c->failed && c->sum.n_tok > 0) {
        set_times(&r, &c->sum);
        set_profile(c, &r);
        row_set_int(&r, SPEC_n_samples, q->n_prompts);
        set_comm(b, c, &r);
        if (c->cell.method != SPEC_VANILLA && c->sum.n_iterations > 0) {
            set_acceptance(q, &r, &c->sum);
            set_passes(b, c, &r);
        }
        if (c->cell.method == SPEC_EASYSPEC && c->sum.n_iterations > 0)
            set_gains(b, c, &r);
    }
    if (first && first != c && !c->failed) {
        spec_times mine = {c->tokens, c->seconds}, plain = {first->tokens, first->seconds};
        spec_ratio ratio = spec_ratio_of_rates(mine, plain, q->n_prompts, q->sampling.seed);
        row_set_real(&r, SPEC_speedup, ratio.ratio);
        if (isfinite(ratio.lo)) {
            row_set_real(&r, SPEC_speedup_lo, ratio.lo);
            row_set_real(&r, SPEC_speedup_hi, ratio.hi);
        }
    }
    b->wrong = b->wrong || c->n_wrong || (spec_is_compared(b, c) && c->n_differ * 100 > q->n_prompts);
    rs_cell_id id = row_cell_id(&r);
    tpl_code rc = rd_has_cell(b->rd, RS_SPECULATE, id.hex) ? TPL_OK : rd_append(b->rd, &r, e);
    row_fini(&r);
    return rc;
}

