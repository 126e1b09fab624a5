/* The second half of convert.h: how far a converted model's logits are from the original's. */
#include "engine/convert.h"

#include <math.h>
#include <stdlib.h>

#include "base/log.h"
#include "engine/session.h"

enum { CHUNK = 128 };

typedef struct {
    team *team;
    session *s;
    int seq;
} runner;

/* Sums over positions while a comparison runs. */
typedef struct {
    double max_diff, sum, square, kl;
    int64_t n_logits, n_tok, n_same;
} sums;

static tpl_code runner_open(runner *r, const model *m, int row_tok, tpl_err *e)
{
    variant exact = variant_exact(model_cfg(m));
    TPL_TRY(team_create(m, NULL, &exact, &(team_options){.tp = 1}, &r->team, e));
    int rows = row_tok < CHUNK ? row_tok : CHUNK;
    return session_create(
        r->team, &(session_options){.max_seqs = 1, .max_tok = row_tok, .max_rows = rows, .max_logits = rows}, &r->s, e);
}

static void runner_close(runner *r)
{
    session_destroy(r->s);
    team_destroy(r->team);
}

static double log_sum_exp(const float *x, int n, int *best)
{
    double sum = 0;
    *best = 0;
    for (int i = 1; i < n; i++)
        if (x[i] > x[*best])
            *best = i;
    for (int i = 0; i < n; i++)
        sum += exp((double)x[i] - x[*best]);
    return x[*best] + log(sum);
}

static void add_position(sums *s, const float *a, const float *b, int n)
{
    int best_a, best_b;
    double za = log_sum_exp(a, n, &best_a), zb = log_sum_exp(b, n, &best_b);
    for (int i = 0; i < n; i++) {
        double d = fabs((double)a[i] - b[i]), log_p = a[i] - za;
        s->max_diff = d > s->max_diff || isnan(d) ? d : s->max_diff;
        s->sum += a[i];
        s->square += (double)a[i] * a[i];
        s->kl += exp(log_p) * (log_p - (b[i] - zb));
    }
    s->n_logits += n;
    s->n_tok++;
    s->n_same += best_a == best_b;
}

static tpl_code compare_row(runner *a, runner *b, const int32_t *tokens, int n, int vocab, sums *s, tpl_err *e)
{
    batch_row rows[CHUNK];
    a->seq = session_add_seq(a->s);
    b->seq = session_add_seq(b->s);
    tpl_code rc = TPL_OK;
    for (int at = 0; at < n && rc == TPL_OK; at += CHUNK) {
        int len = n - at < CHUNK ? n - at : CHUNK;
        for (int i = 0; i < len; i++)
            rows[i] = (batch_row){a->seq, tokens[at + i], ROW_CHAIN, true};
        rc = session_forward(a->s, PHASE_PREFILL, rows, len, e);
        for (int i = 0; i < len; i++)
            rows[i].seq = b->seq;
        if (rc == TPL_OK)
            rc = session_forward(b->s, PHASE_PREFILL, rows, len, e);
        for (int i = 0; i < len && rc == TPL_OK; i++)
            add_position(s, session_logits(a->s, i), session_logits(b->s, i), vocab);
        if (rc == TPL_OK && interrupt_seen())
            rc = tpl_fail(e, TPL_E_INTERRUPTED, "comparison", "stopped by a signal");
    }
    session_drop_seq(a->s, a->seq);
    session_drop_seq(b->s, b->seq);
    return rc;
}

static convert_difference summarise(const sums *s)
{
    double mean = s->sum / (double)s->n_logits, n_tok = (double)s->n_tok;
    return (convert_difference){.n_tok = s->n_tok,
                                .max_diff = s->max_diff,
                                .deviation = sqrt(fmax(0, s->square / (double)s->n_logits - mean * mean)),
                                .kl_nats = fmax(0, s->kl / n_tok),
                                .same_top1 = (double)s->n_same / n_tok};
}

tpl_code convert_compare(const model *a, const model *b, const text_rows *rows, convert_difference *out, tpl_err *e)
{
    runner ra = {0}, rb = {0};
    sums s = {0};
    tpl_code rc;
    int vocab = model_cfg(a)->vocab;
    if (model_cfg(b)->vocab != vocab)
        return tpl_fail(e, TPL_E_INPUT, model_dir(b), "vocabulary %d, expected %d", model_cfg(b)->vocab, vocab);
    TPL_GOTO(rc, runner_open(&ra, a, rows->row_tok, e), done);
    TPL_GOTO(rc, runner_open(&rb, b, rows->row_tok, e), done);
    for (int i = 0; i < rows->n_rows; i++) {
        progress_show(i, rows->n_rows, "comparing logits");
        TPL_GOTO(rc,
                 compare_row(&ra, &rb, rows->tokens + (size_t)i * (size_t)rows->row_tok, rows->row_tok, vocab, &s, e),
                 done);
    }
    *out = summarise(&s);
done:
    progress_clear();
    runner_close(&ra);
    runner_close(&rb);
    return rc;
}
