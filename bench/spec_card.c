#include "bench/spec_card.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/arena.h"
#include "base/clock.h"
#include "bench/stats.h"
#include "engine/generate.h"
#include "engine/sampler.h"

bool spec_on_card(session *s)
{
    return s && strcmp(team_opts(session_team(s))->backend, "cuda") == 0;
}

/* ---- single passes ---- */

enum { WARM_PASSES = 3, TIMED_PASSES = 15 };

static void choose_tokens(session *s, float *prob, int vocab)
{
    if (session_most_top(s) > 0)
        session_top(s, 0);
    else
        sampler_probabilities(session_logits(s, 0), vocab, 1, 1, prob, NULL);
}

static tpl_code time_passes(session *s, int seq, bool choose, double *seconds, tpl_err *e)
{
    double taken[TIMED_PASSES];
    int vocab = team_plan(session_team(s), 0)->cfg.vocab;
    float *prob = tpl_malloc(sizeof *prob * (size_t)vocab);
    tpl_code rc = TPL_OK;
    for (int i = -WARM_PASSES; i < TIMED_PASSES && rc == TPL_OK; i++) {
        batch_row row = {seq, 1, ROW_CHAIN, true};
        int64_t begin = clock_ns();
        rc = session_forward(s, PHASE_DECODE, &row, 1, e);
        if (rc == TPL_OK && choose)
            choose_tokens(s, prob, vocab);
        if (i >= 0)
            taken[i] = (double)(clock_ns() - begin) * 1e-9;
        session_truncate(s, seq, session_len(s, seq) - (rc == TPL_OK));
    }
    if (rc == TPL_OK)
        *seconds = bstat_median(taken, TIMED_PASSES);
    free(prob);
    return rc;
}

tpl_code spec_time_one_token(session *s, const int32_t *prompt, int n_prompt, bool choose, double *seconds, tpl_err *e)
{
    int seq = session_add_seq(s);
    if (choose && session_most_top(s) > 0)
        session_want_top(s, 1, 1);
    tpl_code rc = generate_prefill(s, seq, prompt, n_prompt, e);
    if (rc == TPL_OK)
        rc = time_passes(s, seq, choose, seconds, e);
    session_drop_seq(s, seq);
    return rc;
}

/* ---- blocks ---- */

/* Sums over what a draft runs; prefill is not part of it. */
static block_times times_of(const session *s, int rank)
{
    block_times sum = {0};
    for (int phase = PHASE_DECODE; phase <= PHASE_FUZZY; phase++) {
        block_times t = session_block_times(s, rank, (plan_phase)phase);
        sum.n_passes += t.n_passes;
        for (int k = 0; k < N_BLOCKS; k++)
            sum.us[k] += t.us[k];
        for (int i = 0; i < GROUPS_MAX; i++)
            sum.attention_of_layer[i] += t.attention_of_layer[i];
    }
    return sum;
}

/* Waiting for others is part of an exchange, so that it does not count. */
static double busy_s(const session *s, int rank)
{
    block_times t = times_of(s, rank);
    return (t.us[BLOCK_ATTENTION] + t.us[BLOCK_FEED_FORWARD] + t.us[BLOCK_OTHER]) * 1e-6;
}

static void sum_up(session *base, session *draft, const spec_stats *x, spec_profile *out)
{
    int base_ranks = team_n_local(session_team(base)), draft_ranks = draft ? team_n_local(session_team(draft)) : 0;
    double wall = x->draft_s + x->verify_s + x->other_s, attention = 0, feed_forward = 0;
    *out = (spec_profile){.n_ranks = base_ranks > draft_ranks ? base_ranks : draft_ranks};
    if (out->n_ranks > SPEC_PROFILE_RANKS)
        out->n_ranks = SPEC_PROFILE_RANKS;
    for (int r = 0; r < out->n_ranks; r++) {
        double busy = r < base_ranks ? busy_s(base, r) : 0;
        busy += r < draft_ranks ? busy_s(draft, r) : 0;
        out->idle_s_per_100_tok[r] = (wall > busy ? wall - busy : 0) * 100 / (double)x->n_tok;
    }
    for (int r = 0; r < draft_ranks; r++) {
        block_times t = times_of(draft, r);
        attention += t.us[BLOCK_ATTENTION] * 1e-6;
        feed_forward += t.us[BLOCK_FEED_FORWARD] * 1e-6;
        out->draft_passes = r == 0 ? t.n_passes : out->draft_passes;
        out->exchange_s += r == 0 ? t.us[BLOCK_EXCHANGE] * 1e-6 : 0;
        for (int i = 0; i < GROUPS_MAX; i++)
            out->attention_of_layer[i] += t.attention_of_layer[i] * 1e-6 / (double)(t.n_passes ? t.n_passes : 1);
    }
    out->overlap = NAN;
    out->attn_share = draft_ranks ? attention / (attention + feed_forward) : NAN;
    out->attn_of_pass = draft_ranks ? attention / x->draft_s : NAN;
    out->layers_of_pass = draft_ranks ? (attention + feed_forward) / x->draft_s : NAN;
}

static tpl_code set_clocks(session *base, session *draft, bool on, tpl_err *e)
{
    TPL_TRY(session_time_blocks(base, on, e));
    return draft ? session_time_blocks(draft, on, e) : TPL_OK;
}

/* Walks are recorded in the first two runs. */
tpl_code spec_profile_card(speculator *s, session *base, session *draft, spec_run run, spec_profile *out, tpl_err *e)
{
    tpl_code rc = TPL_OK;
    spec_stats x = {0};
    for (int i = 0; i < 3 && rc == TPL_OK; i++) {
        x = (spec_stats){0};
        rc = set_clocks(base, draft, true, e);
        if (rc == TPL_OK)
            rc = spec_generate(s, &run, &x, e);
    }
    if (rc == TPL_OK)
        sum_up(base, draft, &x, out);
    tpl_code off = set_clocks(base, draft, false, rc == TPL_OK ? e : NULL);
    return rc == TPL_OK ? off : rc;
}

/* ---- k devices ---- */

double spec_saved_by_devices(const layer_groups *g, int k, bool blocks, const double *attention_of_layer,
                             int *n_exchanges)
{
    double saved = 0;
    *n_exchanges = 0;
    for (int i = 0, first = 0; i < g->n; first += g->size[i++]) {
        double by_device[GROUPS_MAX] = {0}, all = 0, longest = 0;
        int size = g->size[i], devices = size < k ? size : k, each = (size + devices - 1) / devices;
        for (int j = 0; j < size; j++) {
            double *device = &by_device[blocks ? j / each : j % devices];
            *device += attention_of_layer[first + j];
            all += attention_of_layer[first + j];
            longest = *device > longest ? *device : longest;
        }
        saved += all - longest;
        *n_exchanges += devices > 1;
    }
    return saved;
}

double spec_draft_on_devices(const spec_draft_times *t, double saved_s, int n_exchanges)
{
    return t->first_s + t->levels * (t->level_s - saved_s + n_exchanges * t->exchange_s);
}
