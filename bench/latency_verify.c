/* Whether a cell of the latency bench decodes right, and what its steps take without collectives: what is done around
 * sampling. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/threads.h"
#include "bench/latency_impl.h"

enum { SILENT_WARM = 2, SILENT_RUNS = 5 };

/* ---- without collectives ---- */

/* One sample, per step. */
static tpl_code time_sample(lat_cell *c, double *us, tpl_err *e)
{
    TPL_TRY(lat_back_to_context(c, e));
    int64_t begin = clock_ns();
    TPL_TRY(lat_run_decode(c, e));
    *us = (double)(clock_ns() - begin) / 1e3 / c->steps;
    return TPL_OK;
}

/* The same samples without collectives, to tell their time from the rest, and where ranks are threads that have a core
 * each, those of one rank alone too: in turns, because a shared machine changes from minute to minute. Values are wrong
 * afterwards. */
static tpl_code time_silent(lat_cell *c, tpl_err *e)
{
    double joint[SILENT_RUNS], silent[SILENT_RUNS], alone[SILENT_RUNS], warm;
    bool threads = c->q->ranks == RANKS_LOCAL;
    c->sampling = false;
    for (int i = -SILENT_WARM; i < SILENT_RUNS; i++) {
        if (threads)
            TPL_TRY(time_sample(c, i < 0 ? &warm : &joint[i], e));
        TPL_TRY(session_set_silent(c->s, true, e));
        TPL_TRY(time_sample(c, i < 0 ? &warm : &silent[i], e));
        if (threads) {
            TPL_TRY(session_set_alone(c->s, e));
            TPL_TRY(time_sample(c, i < 0 ? &warm : &alone[i], e));
            TPL_TRY(session_set_silent(c->s, false, e));
        }
    }
    c->silent_us = bstat_median(silent, SILENT_RUNS);
    c->joint_us = threads ? bstat_median(joint, SILENT_RUNS) : NAN;
    c->alone_us = threads ? bstat_median(alone, SILENT_RUNS) : NAN;
    return session_set_silent(c->s, false, e);
}

static bool has_silence(const lat_cell *c)
{
    bool threads = c->q->ranks == RANKS_LOCAL && !lat_on_card(c->q) && c->tp <= threads_usable_cores();
    return c->tp > 1 && (c->q->ranks == RANKS_NCCL || threads);
}

/* ---- checking ---- */

static int64_t count_wrong(const float *got, const float *want, int n, double tolerance)
{
    double scale = 0;
    int64_t wrong = 0;
    for (int i = 0; i < n; i++)
        scale = fmax(scale, fabs((double)want[i]));
    for (int i = 0; i < n; i++)
        wrong += !(fabs((double)got[i] - want[i]) <= tolerance * scale);
    return wrong;
}

/* Decode is another algebraic form of prefill's attention (absorbed against MHA form), so the two must agree, except
 * under prefill-decode separation, where decode approximates. Timing may change nothing: the step must come out the
 * same, bit for bit, before and after. Tolerances: f32 sums of up to ~1e4 terms, and bf16 inputs rounded to 2^-9
 * through all layers. */
tpl_code lat_verify(void *self, int64_t *n_wrong, tpl_err *e)
{
    lat_cell *c = self;
    int vocab = team_plan(c->run.team, 0)->cfg.vocab;
    bool bf16_used = team_opts(c->run.team)->compute == DT_BF16 || team_opts(c->run.team)->kv == DT_BF16;
    TPL_TRY(lat_back_to_context(c, e));
    TPL_TRY(lat_decode_step(c, e));
    const float *got = session_logits(c->s, 0);
    *n_wrong = 0;
    for (int i = 0; i < vocab; i++)
        *n_wrong += !isfinite(got[i]);
    if (c->expected)
        *n_wrong += count_wrong(got, c->expected, vocab, bf16_used ? 0.1 : 1e-3);
    bool first = !c->first_logits;
    if (first) {
        c->first_logits = tpl_malloc(sizeof *got * (size_t)vocab);
        memcpy(c->first_logits, got, sizeof *got * (size_t)vocab);
    }
    for (int i = 0; i < vocab; i++)
        *n_wrong += memcmp(&got[i], &c->first_logits[i], sizeof *got) != 0;
    if (c->n_itl > 0 && !c->split && (c->q->trace || !lat_on_card(c->q))) /* only a tracer sees what a card does */
        TPL_TRY(lat_observe(c, e));
    if (c->n_itl > 0 && has_silence(c) && isnan(c->silent_us))
        TPL_TRY(time_silent(c, e));
    if (c->n_itl > 0 && isnan(c->attention_us) && lat_has_attention(c))
        TPL_TRY(lat_time_attention(c, e));
    return lat_back_to_context(c, e);
}

/* Alone, a rank of a team that spreads tokens sees only its own when it decodes. */
static bool decode_approximates(const lat_cell *c)
{
    const variant *v = c->v;
    if (v->kind == VAR_MLA_DCP && c->q->ranks == RANKS_SOLO && c->tp > 1)
        return true;
    return v->kind == VAR_TPLA && v->pd && v->slice != SLICE_NONE && v->g > 1;
}

/* The first decode step's logits by the prefill list: the context and one more token. */
tpl_code lat_expect(lat_cell *c, tpl_err *e)
{
    int vocab = team_plan(c->run.team, 0)->cfg.vocab;
    if (decode_approximates(c) || team_plan(c->run.team, 0)->list[PHASE_PREFILL].n == 0)
        return TPL_OK;
    batch_row row = {c->seqs[0], c->prompt[0], ROW_CHAIN, true};
    TPL_TRY(session_forward(c->s, PHASE_PREFILL, &row, 1, e));
    c->expected = tpl_malloc(sizeof(float) * (size_t)vocab);
    memcpy(c->expected, session_logits(c->s, 0), sizeof(float) * (size_t)vocab);
    return TPL_OK;
}
