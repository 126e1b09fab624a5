#include "engine/generate.h"

#include <stdlib.h>

tpl_code generate_prefill(session *s, int seq, const int32_t *tokens, int n, tpl_err *e)
{
    int chunk = session_opts(s)->max_rows;
    if (n < 1)
        return tpl_fail(e, TPL_E_INPUT, "prompt", "is empty, expected at least one token");
    batch_row *rows = tpl_malloc(sizeof *rows * (size_t)(n < chunk ? n : chunk));
    tpl_code rc = TPL_OK;
    for (int at = 0; at < n && rc == TPL_OK; at += chunk) {
        int len = n - at < chunk ? n - at : chunk;
        for (int i = 0; i < len; i++)
            rows[i] = (batch_row){seq, tokens[at + i], ROW_CHAIN, at + i == n - 1};
        rc = session_forward(s, PHASE_PREFILL, rows, len, e);
    }
    free(rows);
    return rc;
}

/* Takes one token for generation i; returns whether it goes on. */
static bool take_token(generation *g, int i, int max_new, int32_t stop_id, int32_t token, bool (*on_token)(void *user, int i, int32_t token), void *user)
{
    if (token == stop_id) {
        g->stopped = true;
        return false;
    }
    g->out[g->n_out++] = token;
    bool wanted = !on_token || on_token(user, i, token);
    return wanted && g->n_out < max_new;
}

tpl_code generate(session *s, generation *g, int n, int max_new, int32_t stop_id, sampler *pick, bool (*on_token)(void *user, int i, int32_t token), void *user,
                  tpl_err *e)
{
    if (max_new < 1)
        return tpl_fail(e, TPL_E_USAGE, "generate", "%d new tokens wanted, expected at least 1", max_new);
    int *seq = tpl_malloc(sizeof *seq * (size_t)n), *row_of = tpl_malloc(sizeof *row_of * (size_t)n), running = 0;
    batch_row *rows = tpl_malloc(sizeof *rows * (size_t)n);
    tpl_code rc = TPL_OK;
    for (int i = 0; i < n; i++)
        seq[i] = -1;
    for (int i = 0; i < n; i++) {
        g[i].n_out = 0;
        g[i].stopped = false;
        seq[i] = session_add_seq(s);
        TPL_GOTO(rc, generate_prefill(s, seq[i], g[i].prompt, g[i].n_prompt, e), done);
        int32_t token = sampler_next(pick, session_logits(s, 0));
        if (take_token(&g[i], i, max_new, stop_id, token, on_token, user))
            row_of[running++] = i;
    }
    while (running > 0) {
        for (int k = 0; k < running; k++)
            rows[k] = (batch_row){seq[row_of[k]], g[row_of[k]].out[g[row_of[k]].n_out - 1], ROW_CHAIN, true};
        TPL_GOTO(rc, session_forward(s, PHASE_DECODE, rows, running, e), done);
        int left = 0;
        for (int k = 0; k < running; k++) {
            int i = row_of[k];
            if (take_token(&g[i], i, max_new, stop_id, sampler_next(pick, session_logits(s, k)), on_token, user))
                row_of[left++] = i;
        }
        running = left;
    }
done:
    for (int i = 0; i < n; i++)
        if (seq[i] >= 0)
            session_drop_seq(s, seq[i]);
    free(seq);
    free(row_of);
    free(rows);
    return rc;
}
