/* logit_store.h - logits of the exact model, kept in a nameless temporary file so that other variants can be compared.
 * For:    eval/text_task.c.  Enter: eval/, tests/.
 * Owns:   the file, gone with logit_store_close().
 * Fails:  TPL_E_IO (no room for temporary files). */
#ifndef TPL_EVAL_LOGIT_STORE_H
#define TPL_EVAL_LOGIT_STORE_H

#include <stdint.h>

#include "base/error.h"

typedef struct {
    int fd;
    int32_t vocab;
    int64_t n_rows;
} logit_store;

tpl_code logit_store_open(logit_store *s, int vocab, tpl_err *e);
void logit_store_close(logit_store *s);
tpl_code logit_store_add(logit_store *s, const float *logits, tpl_err *e);
tpl_code logit_store_get(const logit_store *s, int64_t row, float *logits, tpl_err *e);

#endif
