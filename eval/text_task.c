#include "eval/text_task.h"

#include <stdlib.h>

#include "base/log.h"
#include "eval/stats.h"

enum { LOGIT_BYTES = 32 << 20 }; /* rows whose logits are wanted at once are limited to this much memory */

typedef struct {
    session *s;
    const text_rows *rows;
    logit_store *reference;
    bool fill;
    int vocab, chunk;
    batch_row *batch;
    float *exact; /* [vocab] */
    text_result *out;
} text_job;

/* Adds what position `pos` of row `row` says. */
static tpl_code score_position(text_job *j, int row, int pos, const float *logits, tpl_err *e)
{
    int half = j->rows->row_tok / 2;
    text_result *r = j->out;
    const int32_t *tokens = j->rows->tokens + (int64_t)row * j->rows->row_tok;
    double nll = -stat_log_prob(logits, (size_t)j->vocab, (size_t)tokens[pos + 1]);
    if (pos < half) {
        r->nll_prefill[row] += nll / (double)r->n_prefill;
        return TPL_OK;
    }
    r->nll_decode[row] += nll / (double)r->n_decode;
    if (j->fill)
        TPL_TRY(logit_store_add(j->reference, logits, e));
    if (!r->kl)
        return TPL_OK;
    if (!j->fill)
        TPL_TRY(logit_store_get(j->reference, (int64_t)row * r->n_decode + pos - half, j->exact, e));
    stat_divergence d = stat_compare_rows(j->fill ? logits : j->exact, logits, (size_t)j->vocab);
    r->kl[row] += d.kl_nats / (double)r->n_decode;
    r->top1[row] += d.top1_same / (double)r->n_decode;
    return TPL_OK;
}

static tpl_code run_span(text_job *j, int row, int seq, plan_phase phase, int begin, int end, tpl_err *e)
{
    const int32_t *tokens = j->rows->tokens + (int64_t)row * j->rows->row_tok;
    for (int at = begin; at < end; at += j->chunk) {
        int n = end - at < j->chunk ? end - at : j->chunk;
        if (interrupt_seen())
            return tpl_fail(e, TPL_E_INTERRUPTED, "text", "stopped by a signal");
        for (int i = 0; i < n; i++)
            j->batch[i] = (batch_row){seq, tokens[at + i], ROW_CHAIN, true};
        TPL_TRY(session_forward(j->s, phase, j->batch, n, e));
        for (int i = 0; i < n; i++)
            TPL_TRY(score_position(j, row, at + i, session_logits(j->s, i), e));
    }
    return TPL_OK;
}

static tpl_code run_rows(text_job *j, tpl_err *e)
{
    int half = j->rows->row_tok / 2;
    for (int row = 0; row < j->rows->n_rows; row++) {
        progress_show(row, j->rows->n_rows, "text");
        int seq = session_add_seq(j->s);
        TPL_TRY(run_span(j, row, seq, PHASE_PREFILL, 0, half, e));
        TPL_TRY(run_span(j, row, seq, PHASE_DECODE, half, j->rows->row_tok - 1, e));
        session_drop_seq(j->s, seq);
    }
    return TPL_OK;
}

static double *zeros(int n)
{
    return tpl_calloc((size_t)n, sizeof(double));
}

tpl_code text_task_run(const lab_run *run, const text_rows *rows, logit_store *reference, bool fill, text_result *out, tpl_err *e)
{
    int vocab = team_plan(run->team, 0)->cfg.vocab, half = rows->row_tok / 2;
    text_result r = {.n_rows = rows->n_rows, .n_prefill = half, .n_decode = rows->row_tok - 1 - half, .nll_prefill = zeros(rows->n_rows), .nll_decode = zeros(rows->n_rows)};
    text_job j = {.rows = rows, .reference = reference, .fill = fill, .vocab = vocab, .chunk = LOGIT_BYTES / (vocab * (int)sizeof(float)), .out = &r};
    j.chunk = j.chunk > half ? half : j.chunk < 1 ? 1 : j.chunk;
    j.exact = tpl_malloc(sizeof(float) * (size_t)vocab);
    j.batch = tpl_malloc(sizeof *j.batch * (size_t)j.chunk);
    if (reference) {
        r.kl = zeros(rows->n_rows);
        r.top1 = zeros(rows->n_rows);
    }
    session_options o = {.max_seqs = 1, .max_tok = rows->row_tok, .max_rows = j.chunk, .max_logits = j.chunk};
    tpl_code rc = session_create(run->team, &o, &j.s, e);
    if (rc == TPL_OK)
        rc = run_rows(&j, e);
    progress_clear();
    session_destroy(j.s);
    free(j.exact);
    free(j.batch);
    if (rc == TPL_OK)
        *out = r;
    else
        text_result_free(&r);
    return rc;
}

void text_result_free(text_result *r)
{
    free(r->nll_prefill);
    free(r->nll_decode);
    free(r->kl);
    free(r->top1);
    *r = (text_result){0};
}
