/* one_run.h - a checkpoint, one variant and one tp, for commands that run a single prompt.
 * For:    cmd_generate.c, cmd_logits.c.  Enter: cli/.
 * Owns:   one_run_open() .. one_run_close().  Fails: as its parts do. */
#ifndef TPL_CLI_ONE_RUN_H
#define TPL_CLI_ONE_RUN_H

#include "cli/options.h"

typedef struct {
    const char *model, *variant, *calibrate;
    int tp;
    ranks_kind ranks;
    bool expert_parallel;
    tpl_dtype compute, kv;
    const char *backend;
    lab *lab;
    lab_run run;
    variant v;
} one_run;

/* The options every such command has, for its option table. */
#define ONE_RUN_OPTIONS                                                                                       \
    {"model", "DIR", "checkpoint folder (required)", true},                                                   \
    {"variant", "NAME", "attention variant (default mla or gqa, as the model is)", false},                    \
    {"tp", "N", "tensor-parallel ranks (default 1)", false},                                                  \
    {"ranks", "KIND", "local: threads; procs: processes; mpi: processes under mpirun (default local)", false}, \
    {"experts", "HOW", "tp: every rank holds a part of each expert; ep: whole experts (default tp)", false},  \
    {"backend", "NAME", "cpu, or cuda: on a card (default cuda where there is a card)", false},                                      \
    {"compute", "TYPE", "f32 or bf16 inputs to matrix products (default f32)", false},                        \
    {"kv", "TYPE", "f32 or bf16 cache (default as compute)", false},                                          \
    {"calibrate", "FILE", "calibration text for u=pca, u=mix, mu=fit (default: the bundled text)", true}

/* Sets one of those options; *taken tells whether key was one. */
tpl_code one_run_set(one_run *o, cli_context *c, const char *key, const char *value, bool *taken, tpl_err *e);
tpl_code one_run_open(one_run *o, cli_context *c, tpl_err *e);
void one_run_close(one_run *o);

/* The prompt's tokens, malloc'ed; `bos` puts the begin-of-text token before them. TPL_E_INPUT if there is none. */
tpl_code one_run_encode(const one_run *o, const char *text, bool bos, int32_t **ids, int *n, tpl_err *e);

#endif
