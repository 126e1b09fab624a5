/* shards.h - one weight of a plan in memory: a view of the model, or a copy where a view cannot serve.
 * For:    engine/team.c binds the weights of its ranks.
 * Enter:  engine/, tests/.
 * Owns:   shard_bind() puts what it allocates into a shard_memory (shard_free). Views borrow model and folded weights.
 * Fails:  TPL_E_MEMORY.
 *
 * f8 weights keep their type and their 128 x 128 block scales, so that memory does not grow. Only a region that does
 * not begin on a block's corner is widened to f32: no such cut is made of published models at tp 16 or less. */
#ifndef TPL_ENGINE_SHARDS_H
#define TPL_ENGINE_SHARDS_H

#include "device/memory.h"
#include "engine/bind.h"
#include "engine/transform.h"

typedef struct {
    dev_buf data, scales; /* empty where nothing was copied */
    mat *experts;         /* [n_heads] of expert matrices, which bound_weight.experts points to; else NULL */
} shard_memory;

/* `folded` may be NULL. `copy`: nothing of the model is read after this, not even by a view. */
tpl_code shard_bind(const model *m, const folded *f, const plan_weight *w, bool copy, bound_weight *out,
                    shard_memory *mem, tpl_err *e);
void shard_free(shard_memory *mem);

/* Bytes that this weight's elements take, scales included, copied or not. */
int64_t shard_bytes(const bound_weight *w);

#endif
