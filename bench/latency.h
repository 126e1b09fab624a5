/* latency.h - time to first token and time per output token of a model, by variant, tp, context and batch.
 * For:    `tplabench latency`.  Enter: cli/, tests/.
 * Owns:   nothing; lab and run directory are the caller's.
 * Fails:  what is wrong with the request; a cell that does not fit or is not supported becomes a row and the sweep goes
 * on. TPL_E_MEMORY if none fits. TPL_E_MISMATCH if a row's answers were wrong; TPL_E_INTERRUPTED after a signal; rows
 * written before stay.
 *
 * As vLLM defines them: TTFT, from the request to its first token (here: prefill of the whole batch and the choice of
 * the first tokens); ITL, the time between two tokens of a sequence; TPOT, (E2EL - TTFT) / (tokens - 1) of a request;
 * E2EL, from the request to its last token. Variants of a cell take turns sample by sample, or in blocks where they do
 * not fit side by side; ratios are against the first one, tokens a second over tokens a second.
 *
 * Of many decoded tokens only some steps are run: step k of n at context + (k + 1/2) decode_tok / n cached tokens,
 * those in between standing in as random values, and a sample is the mean. Where the time of a step grows linearly with
 * what is cached, that is the mean over all of them. */
#ifndef TPL_BENCH_LATENCY_H
#define TPL_BENCH_LATENCY_H

#include "bench/bound.h"
#include "bench/links.h"
#include "bench/measure.h"
#include "engine/lab.h"
#include "results/run_dir.h"

enum { LATENCY_BATCH_MAX = 0 };

typedef struct {
    lab *lab;
    const variant *variants; /* the first is what ratios are taken against */
    int n_variants;
    const int64_t *tps, *contexts, *batches, *decode_toks; /* batches: LATENCY_BATCH_MAX: each variant's own largest */
    int n_tps, n_contexts, n_batches, n_decode_toks;       /* decode_toks: tokens decoded after the first */
    int decode_steps; /* of them run in one sample, spread evenly; 0: all up to 128, else 32 */
    bool fill_random; /* the prompts' caches are seeded random values instead of prefilled */
    ranks_kind ranks;
    const char *backend; /* NULL: "cpu" */
    tpl_dtype compute, kv;
    const link_model *links; /* of ranks alone: what collectives would take, beside the times; NULL: none */
    const ceilings *ceil;    /* of what the backend runs on */
    double free_bytes;       /* of the card that has least, or of the machine */
    double taken_bytes;      /* of the card that has most: taken when the command began, by others */
    bool pretend;            /* free_bytes is what the user said: cells are held to it on a machine too */
    measure_options measure;
    int ttft_runs; /* prefills timed a cell before decoding, the median is ttft_ms; 0: the cache is filled once, untimed
                    */
    bool trace;    /* write traces/<cell_id>.json of one decode run */
    bool aa;       /* compare the first variant with itself first: the noise floor */
    FILE *samples; /* every sample as CSV; may be NULL */
    const char *device, *command;
} latency_request;

/* Whether the request makes sense, before anything is made for it. */
tpl_code latency_check(const latency_request *q, tpl_err *e);
tpl_code latency_run(const latency_request *q, run_dir *rd, tpl_err *e);
/* One line a cell that latency_run() would measure. */
tpl_code latency_list(const latency_request *q, const run_dir *rd, FILE *out, tpl_err *e);

#endif
