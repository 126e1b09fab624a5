#include "engine/remote.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "device/procs.h"
#include "engine/lab.h"

enum { MAX_OBJECTS = 4096, HEADER = 3 };

bool remote_leads(void)
{
    return procs_opened() && procs_count() > 1 && procs_rank() == 0;
}

int64_t remote_new_id(void)
{
    static int64_t last;
    return ++last % MAX_OBJECTS;
}

tpl_code remote_announce(remote_call call, const int64_t *args, int n, const char *text, tpl_err *e)
{
    int64_t head[HEADER] = {call, n, text ? (int64_t)strlen(text) : 0};
    TPL_TRY(procs_broadcast(head, sizeof head, e));
    if (n)
        TPL_TRY(procs_broadcast((void *)args, sizeof *args * (size_t)n, e));
    return head[2] ? procs_broadcast((void *)text, (size_t)head[2], e) : TPL_OK;
}

/* ---- followers ---- */

typedef struct {
    lab *labs[MAX_OBJECTS];
    lab_run runs[MAX_OBJECTS];
    session *sessions[MAX_OBJECTS];
    int64_t *args;
    int64_t n_args, cap_args;
    char *text;
    batch_row *rows;
    int64_t cap_rows;
} follower;

static tpl_code receive(follower *f, remote_call *call, tpl_err *e)
{
    int64_t head[HEADER];
    TPL_TRY(procs_broadcast(head, sizeof head, e));
    *call = (remote_call)head[0];
    f->n_args = head[1];
    if (f->n_args > f->cap_args) {
        f->cap_args = 2 * f->n_args;
        f->args = tpl_realloc(f->args, sizeof *f->args * (size_t)f->cap_args);
    }
    if (f->n_args)
        TPL_TRY(procs_broadcast(f->args, sizeof *f->args * (size_t)f->n_args, e));
    free(f->text);
    f->text = tpl_calloc((size_t)head[2] + 1, 1);
    return head[2] ? procs_broadcast(f->text, (size_t)head[2], e) : TPL_OK;
}

/* Cuts the text at its line feed; the second half may be empty (NULL). */
static char *second_line(char *text)
{
    char *feed = strchr(text, '\n');
    if (!feed)
        return NULL;
    *feed = 0;
    return feed[1] ? feed + 1 : NULL;
}

static tpl_code follow_lab(follower *f, tpl_err *e)
{
    const int64_t *a = f->args;
    lab_calibration c = {.text = second_line(f->text), .rows = (int32_t)a[1], .row_tok = (int32_t)a[2], .cache = a[3] != 0, .tp = (int32_t)a[4]};
    char *kept = c.text ? tpl_strdup(c.text) : NULL; /* the lab borrows it until it is closed, which may be the end */
    c.text = kept;
    return lab_open(f->text, &c, &f->labs[a[0]], e);
}

static tpl_code follow_run(follower *f, tpl_err *e)
{
    const int64_t *a = f->args;
    char *backend = second_line(f->text);
    variant v;
    TPL_TRY(variant_parse(f->text, &v, e));
    team_options o = {.tp = (int32_t)a[2], .ranks = procs_are_own() ? RANKS_PROCS : RANKS_MPI, .compute = (tpl_dtype)a[3], .kv = (tpl_dtype)a[4], .isolate = a[5] != 0,
                      .backend = backend && strcmp(backend, "ref") == 0 ? "ref" : backend && strcmp(backend, "cuda") == 0 ? "cuda" : "cpu", .plan = {.attention_only = a[6] & 1, .expert_parallel = a[6] >> 1 & 1}};
    return lab_run_open(f->labs[a[1]], &v, &o, &f->runs[a[0]], e);
}

static tpl_code follow_session(follower *f, tpl_err *e)
{
    const int64_t *a = f->args;
    session_options o = {.max_seqs = (int32_t)a[2], .max_tok = (int32_t)a[3], .total_tok = a[4], .max_rows = (int32_t)a[5], .max_logits = (int32_t)a[6]};
    return session_create(f->runs[a[1]].team, &o, &f->sessions[a[0]], e);
}

static tpl_code follow_forward(follower *f, tpl_err *e)
{
    const int64_t *a = f->args;
    int64_t n = (f->n_args - 2) / 4;
    if (n > f->cap_rows) {
        f->cap_rows = 2 * n;
        f->rows = tpl_realloc(f->rows, sizeof *f->rows * (size_t)f->cap_rows);
    }
    for (int64_t i = 0; i < n; i++) {
        const int64_t *r = a + 2 + 4 * i;
        f->rows[i] = (batch_row){(int32_t)r[0], (int32_t)r[1], (int32_t)r[2], r[3] != 0};
    }
    return session_forward(f->sessions[a[0]], (plan_phase)a[1], f->rows, (int)n, e);
}

static tpl_code follow(follower *f, remote_call call, tpl_err *e)
{
    const int64_t *a = f->args;
    switch (call) {
    case REMOTE_END:
        return TPL_OK;
    case REMOTE_LAB_OPEN:
        return follow_lab(f, e);
    case REMOTE_LAB_CLOSE:
        lab_close(f->labs[a[0]]);
        f->labs[a[0]] = NULL;
        return TPL_OK;
    case REMOTE_RUN_OPEN:
        return follow_run(f, e);
    case REMOTE_RUN_CLOSE:
        lab_run_close(&f->runs[a[0]]);
        return TPL_OK;
    case REMOTE_SESSION_OPEN:
        return follow_session(f, e);
    case REMOTE_SESSION_CLOSE:
        session_destroy(f->sessions[a[0]]);
        f->sessions[a[0]] = NULL;
        return TPL_OK;
    case REMOTE_ADD_SEQ:
        session_add_seq(f->sessions[a[0]]);
        return TPL_OK;
    case REMOTE_DROP_SEQ:
        session_drop_seq(f->sessions[a[0]], (int)a[1]);
        return TPL_OK;
    case REMOTE_TRUNCATE:
        session_truncate(f->sessions[a[0]], (int)a[1], (int)a[2]);
        return TPL_OK;
    case REMOTE_FORWARD:
        return follow_forward(f, e);
    }
    return tpl_fail(e, TPL_E_DEVICE, "ranks", "rank 0 announced call %d, which this build does not know", (int)call);
}

tpl_code remote_serve(tpl_err *e)
{
    follower *f = tpl_calloc(1, sizeof *f);
    remote_call call;
    tpl_code rc;
    log_set_level(LOG_ERROR);
    do {
        rc = receive(f, &call, e);
        if (rc == TPL_OK)
            rc = follow(f, call, e);
    } while (rc == TPL_OK && call != REMOTE_END);
    free(f->args);
    free(f->text);
    free(f->rows);
    free(f);
    return rc;
}
