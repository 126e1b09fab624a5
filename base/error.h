/* error.h - the one error type of tplabench: what went wrong, and where in the user's input or machine.
 * For:    every function that can fail for a reason outside the program returns tpl_code and fills a tpl_err.
 * Enter:  all rooms. Only cli/main.c prints a tpl_err and turns its code into an exit status.
 * Owns:   nothing; a tpl_err is a plain value on the caller's stack.
 * Fails:  never. A failed assert(), by contrast, always means a bug in tplabench. */
#ifndef TPL_BASE_ERROR_H
#define TPL_BASE_ERROR_H

/* code, exit status, word. Exit statuses: 0 ok, 1 ran and found a mismatch, 2 usage, 3 input or output, 4 device or memory. */
#define TPL_CODE_LIST(X)                                                                           \
    X(TPL_OK, 0, "ok")                                                                             \
    X(TPL_E_MISMATCH, 1, "mismatch")         /* ran to the end and found a wrong answer */         \
    X(TPL_E_USAGE, 2, "usage")               /* an option, a variant, a tp that does not fit */    \
    X(TPL_E_INPUT, 3, "input")               /* a file's content is malformed or contradictory */  \
    X(TPL_E_IO, 3, "io")                     /* open, read, write, rename failed; disk full */     \
    X(TPL_E_UNSUPPORTED, 3, "unsupported")   /* valid, but a feature this build does not have */   \
    X(TPL_E_MEMORY, 4, "out_of_memory")      /* host or device memory, a cache that is full */     \
    X(TPL_E_DEVICE, 4, "device")             /* driver, card, rank or collective failed */         \
    X(TPL_E_INTERRUPTED, 130, "interrupted") /* SIGINT or SIGTERM; what was measured is kept */

typedef enum {
#define TPL_CODE_ENUM(code, status, word) code,
    TPL_CODE_LIST(TPL_CODE_ENUM)
#undef TPL_CODE_ENUM
} tpl_code;

typedef struct {
    tpl_code code;
    char where[160]; /* "quality.jsonl:1824", "config.json", "layer 3 kv_b" */
    char what[256];  /* "field 'choices' has 3 items, expected 4" */
} tpl_err;

/* Fills *e (e may be NULL) and returns code, so that `return tpl_fail(...)` reads as one line. */
tpl_code tpl_fail(tpl_err *e, tpl_code code, const char *where, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));

const char *tpl_code_word(tpl_code code);
int tpl_exit_status(tpl_code code);

/* Forwards a failure upward. */
#define TPL_TRY(expr)                         \
    do {                                      \
        tpl_code tpl_try_code_ = (expr);      \
        if (tpl_try_code_ != TPL_OK)          \
            return tpl_try_code_;             \
    } while (0)

/* The same, where something must be released first: sets `rc` and jumps to `done`. */
#define TPL_GOTO(rc, expr, done)  \
    do {                          \
        (rc) = (expr);            \
        if ((rc) != TPL_OK)       \
            goto done;            \
    } while (0)

#endif
