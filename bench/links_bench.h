/* links_bench.h - collectives by size between the ranks of one machine: measured, checked, written as rows of
 * kernels.csv, and fitted into a link model.
 * For:    `tplabench kernels --op all_reduce,all_gather,reduce_scatter`.
 * Enter:  cli/, tests/.
 * Owns:   nothing; a request borrows its texts.
 * Fails:  TPL_E_USAGE, TPL_E_UNSUPPORTED and TPL_E_DEVICE where no such ranks can be; TPL_E_MISMATCH at the end if an
 * output was wrong (all rows are there); TPL_E_IO; TPL_E_INTERRUPTED, with rows of finished sizes kept.
 *
 * The ways that can carry an operation take turns sample by sample: thread ranks have one, cards the library and peer
 * memory; the ratio is against the first. A model is fitted to the way that teams take at each size. */
#ifndef TPL_BENCH_LINKS_BENCH_H
#define TPL_BENCH_LINKS_BENCH_H

#include "bench/links.h"
#include "bench/measure.h"
#include "results/run_dir.h"

typedef struct {
    bool ops[COMM_N_OPS];
    const int64_t *tps, *bytes; /* NULL: 2; a ladder from 512 bytes to 64 MiB, on a host to 4 MiB */
    int n_tps, n_bytes;
    bool cuda;       /* between cards, else thread ranks */
    bool share_card; /* all ranks on card 0 */
    bool trace;      /* of cards only */
    tpl_dtype dtype; /* DT_NONE: bf16 between cards; thread ranks carry f32 */
    measure_options measure;
    const char *fit_path; /* NULL: no model is written */
    const char *command;
    void (*on_row)(void *user, const rs_row *row);
    void *user;
} links_request;

/* The operation that a word of --op names: COMM_N_OPS where it is no collective. */
comm_op links_op_from_name(const char *name);
/* What is wrong with a request whatever the machine: TPL_E_USAGE. */
tpl_code links_bench_check(const links_request *q, tpl_err *e);
tpl_code links_bench_run(const links_request *q, run_dir *rd, link_model *out, tpl_err *e);

#endif
