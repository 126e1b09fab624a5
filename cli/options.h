/* options.h - values that several commands take: lists of variants, axes, types, formats, run directories.
 * For:    cli/cmd_*.c.  Enter: cli/.
 * Owns:   lists live in the context's arena.
 * Fails:  TPL_E_USAGE naming the option. */
#ifndef TPL_CLI_OPTIONS_H
#define TPL_CLI_OPTIONS_H

#include "cli/command.h"
#include "engine/lab.h"

typedef struct {
    variant *v;
    int n;
} cli_variants;

typedef struct {
    int64_t *v;
    int n;
} cli_axis;

typedef struct {
    char **v;
    int n;
} cli_words;

tpl_code cli_set_variants(cli_context *c, const char *value, cli_variants *out, tpl_err *e);
tpl_code cli_set_axis(cli_context *c, const char *key, const char *value, int64_t lo, int64_t hi, cli_axis *out, tpl_err *e);
tpl_code cli_set_int(const char *key, const char *value, int64_t lo, int64_t hi, int *out, tpl_err *e);
/* Memory: "4096", "80G" (2^30), "80GB" (1e9); K, M, G, T. */
tpl_code cli_set_bytes(const char *key, const char *value, double *out, tpl_err *e);
tpl_code cli_set_words(cli_context *c, const char *key, const char *value, cli_words *out, tpl_err *e);
tpl_code cli_set_compute(const char *key, const char *value, tpl_dtype *out, tpl_err *e); /* f32 or bf16 */
tpl_code cli_set_ranks(const char *value, ranks_kind *out, tpl_err *e);
/* tp: a rank holds a part of every expert; ep: whole experts. */
tpl_code cli_set_experts(const char *value, bool *expert_parallel, tpl_err *e);
/* cpu or cuda; TPL_E_UNSUPPORTED where the build has none, TPL_E_DEVICE where there is no card. */
tpl_code cli_set_backend(cli_context *c, const char *value, const char **out, tpl_err *e);
/* Whether the first card can run this build; if not, why. */
tpl_code cli_card_usable(tpl_err *e);
/* "cuda" where the build has it and a card is here that can run it, else "cpu". */
const char *cli_default_backend(void);
tpl_code cli_set_format(const char *value, table_format *out, tpl_err *e);
/* A checkpoint folder as given or as it came with the program ("models/worldlet-mla"), or "shape:NAME,..." with the bare name
 * of a bundled shape made a path. */
char *cli_find_model(cli_context *c, const char *value);
char *cli_keep(cli_context *c, const char *value);

/* Opens the run directory of a measuring command: the suite's own while one runs, else a new one under `root`, or `resume`
 * reopened. cli_close_run() ends it (with the state that `rc` tells) unless the suite owns it, and says where it is. */
typedef struct {
    run_dir *rd;
    bool owned;
} cli_run;
tpl_code cli_open_run(cli_context *c, const char *root, const char *resume, const char *label, cli_run *out, tpl_err *e);
tpl_code cli_close_run(cli_run *r, tpl_code rc, tpl_err *e);

/* Prints the rows of one CSV of a run from row `from` on (0: all) as a table. Nothing if the file is not there. */
tpl_code cli_print_rows(const run_dir *rd, rs_kind kind, long from, const char *title, const char *picks, table_format format, tpl_err *e);

#endif
