/* suite.h - a suite file: the sections of a run, each a command with its options.
 * For:    cmd_run.c.  Enter: cli/, tests/.
 * Owns:   sections live in the caller's arena.
 * Fails:  TPL_E_INPUT with where = "file:line": an unknown command or key, a line that is neither.
 *
 * Format: UTF-8 lines. '#' begins a comment. "[command]" or "[command: title]" opens a section; "key = value" sets an option
 * of that command, by its long name; a flag takes on or off. A line that begins with a blank goes on with the value above. */
#ifndef TPL_CLI_SUITE_H
#define TPL_CLI_SUITE_H

#include "cli/command.h"

typedef struct {
    const cli_option *option;
    char *value;
    int line;
} suite_setting;

typedef struct {
    const cli_command *cmd;
    char *title; /* of its printed tables; the command's name if none was given */
    int line;
    suite_setting *settings;
    int n_settings;
} suite_section;

typedef struct {
    char *name; /* file name */
    char *base; /* folder above the file's: where relative paths start */
    suite_section *sections;
    int n_sections;
} suite;

tpl_code suite_read(arena *a, const char *path, suite *out, tpl_err *e);
/* From bytes; `name` is used in messages and `base` kept. */
tpl_code suite_parse(arena *a, const char *data, size_t len, const char *name, const char *base, suite *out, tpl_err *e);

#endif
