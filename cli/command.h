/* command.h - what a command is: options that the command line and suites share, and a function that runs them.
 * For:    cli/ only: one file a command; main.c parses argv, suite.c parses files, both set the same options.
 * Enter:  cli/.
 * Owns:   a command's state is zeroed memory of state_bytes; strings it keeps live in the context's arena.
 * Fails:  TPL_E_USAGE for a value that does not parse; whatever the run fails with. */
#ifndef TPL_CLI_COMMAND_H
#define TPL_CLI_COMMAND_H

#include "results/run_dir.h"
#include "results/table.h"

typedef struct {
    const char *key;   /* long option and suite key */
    const char *value; /* what --help calls the value; NULL: a flag */
    const char *help;  /* with default and unit */
    bool is_path;      /* relative paths in a suite start above the suite's folder */
} cli_option;

typedef struct {
    arena mem;
    int argc;
    char **argv;        /* as the user gave them */
    run_dir *rd;        /* set while a suite runs: the run all its sections share */
    const char *command; /* the words that make this command's rows again */
} cli_context;

typedef struct {
    const char *name, *about;
    const char *examples; /* two lines, shown at the end of --help */
    const char *args;     /* what --help calls positional arguments; NULL: none */
    const cli_option *options; /* ends with a NULL key */
    size_t state_bytes;
    bool in_suite; /* may be a section of a suite */
    /* key NULL: a positional argument. */
    tpl_code (*set)(void *state, cli_context *c, const char *key, const char *value, tpl_err *e);
    tpl_code (*run)(void *state, cli_context *c, tpl_err *e);
} cli_command;

extern const cli_command cmd_run, cmd_convert, cmd_eval, cmd_kernels, cmd_latency, cmd_handoff, cmd_speculate, cmd_published, cmd_plan, cmd_info, cmd_generate, cmd_tokenize, cmd_logits;

const cli_command *cli_find(const char *name);
const cli_option *cli_find_option(const cli_command *c, const char *key);

/* Where bundled models, datasets and suites are: the source tree this program was built from. */
const char *cli_home(void);

#endif
