/* remote.h - teams whose ranks are processes: rank 0 runs the command, the others repeat its calls on the engine.
 * For:    lab.c and session.c announce each call on rank 0; followers serve until rank 0 ends.
 * Enter:  engine/, cli/main.c.
 * Owns:   followers own the labs, runs and sessions that mirror rank 0's.
 * Fails:  announcing gives TPL_E_DEVICE. A follower that fails ends all processes with its rank and reason.
 *
 * A message is a header {call, number of int64 arguments, text bytes} and its payload, broadcast from rank 0. Objects are
 * named by numbers that rank 0 gives out. */
#ifndef TPL_ENGINE_REMOTE_H
#define TPL_ENGINE_REMOTE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"

typedef enum {
    REMOTE_END,
    REMOTE_LAB_OPEN,     /* lab, rows, row_tok, cache, tp | dir \n calibration text */
    REMOTE_LAB_CLOSE,    /* lab */
    REMOTE_RUN_OPEN,     /* run, lab, tp, compute, kv, isolate, attention_only | variant \n backend */
    REMOTE_RUN_CLOSE,    /* run */
    REMOTE_SESSION_OPEN, /* session, run, max_seqs, max_tok, total_tok, max_rows, max_logits */
    REMOTE_SESSION_CLOSE,
    REMOTE_ADD_SEQ,      /* session */
    REMOTE_DROP_SEQ,     /* session, seq */
    REMOTE_TRUNCATE,     /* session, seq, len */
    REMOTE_FORWARD,      /* session, phase, then seq, token, parent, want_logits a row */
} remote_call;

/* True on rank 0 of a launch with several processes. */
bool remote_leads(void);
int64_t remote_new_id(void);
tpl_code remote_announce(remote_call call, const int64_t *args, int n, const char *text, tpl_err *e);

/* The follower's loop; returns when rank 0 announced its end. */
tpl_code remote_serve(tpl_err *e);

#endif
