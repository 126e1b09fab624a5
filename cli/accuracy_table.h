/* accuracy_table.h - the rows of accuracy.csv as the paper's Table 1 has them: a line a variant, a column a task.
 * For:    cmd_eval.c.  Enter: cli/.  Owns: nothing.
 * Fails:  TPL_E_IO, TPL_E_INPUT if the run's file is damaged. */
#ifndef TPL_CLI_ACCURACY_TABLE_H
#define TPL_CLI_ACCURACY_TABLE_H

#include <stdio.h>

#include "results/run_dir.h"
#include "results/table.h"

/* Formats other than `table` and `md` give the rows as they are stored. */
tpl_code accuracy_table_print(const run_dir *rd, const char *model, table_format format, FILE *out, tpl_err *e);

#endif
