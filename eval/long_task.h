/* long_task.h - long inputs: greedy continuations, scored as text.
 * For:    tasks single_doc_qa, multi_hop_qa, summarisation, few_shot, synthetic, code of the harness.  Enter: eval/, tests/.
 * Owns:   long_result arrays (long_result_free).
 * Fails:  what generation and the metrics fail with; TPL_E_INTERRUPTED. */
#ifndef TPL_EVAL_LONG_TASK_H
#define TPL_EVAL_LONG_TASK_H

#include "datasets/tasks.h"
#include "engine/lab.h"

typedef struct {
    int32_t n;
    double *score;       /* [n] 0..1 */
    double *exact;       /* [n] 0 or 1; NULL where the protocol has none */
    char **prediction;   /* [n] as generated, owned */
    int32_t *n_prompt;   /* [n] tokens */
    int64_t n_generated; /* tokens, all items; the first of each comes from prefill */
    int32_t n_truncated; /* prompts cut in the middle to fit */
} long_result;

typedef struct {
    const tokenizer *tok;
    int32_t bos, eos;
    const char *task;
    ds_protocol protocol; /* DS_FIXTURE or DS_LONGBENCH */
} long_options;

tpl_code long_task_run(const lab_run *run, const long_options *o, const ds_long_item *items, int n, long_result *out, tpl_err *e);
void long_result_free(long_result *r);

#endif
