/* speed_table.h - what a run's latency rows say of variants against each other, beside what was published.
 * For:    `tplabench published`, the tables that end suites.
 * Enter:  cli/, tests/.
 * Owns:   each function gives a table (table_destroy), NULL where no row has to do with it.
 * Fails:  never; a cell that a row lacks is left empty.
 *
 * A ratio is of tokens a second, as the row has it. The bound's own ratio is what it would be if both sides reached
 * their bounds and communication were free. A cell measured again counts as it was measured last. */
#ifndef TPL_BENCH_SPEED_TABLE_H
#define TPL_BENCH_SPEED_TABLE_H

#include "results/csv_table.h"
#include "results/table.h"

/* Decode throughput: every variant at every place, with published ratios of the same model, ranks and context. */
table *speed_table_decode(const csv_table *rows, const csv_table *published);
/* Time to first token, where rows have one: of its bound, of the matrix rate, and over its baseline. */
table *speed_table_ttft(const csv_table *rows, const csv_table *published);
/* From which context a variant wins, by batch: where the straight line between two measured contexts, the last lost and
 * the first won for good, meets that of the baseline. */
table *speed_table_crossover(const csv_table *rows);

/* The context from which own[] is below base[] for good; NaN: never up to the last one; the first one where it wins
 * everywhere. contexts ascend. */
double speed_crossing(const double *contexts, const double *base, const double *own, int n);

#endif
