/* checkpoint.h - tiny checkpoints with seeded random weights, written as Hugging Face folders.
 * For:    tests of the loader, plans, sessions and transforms that need sizes which the bundled models do not have.
 * Enter:  tests/ only.
 * Owns:   tensors and texts live in the caller's arena; folders stay until ckpt_remove_dir().
 * Fails:  TPL_E_IO when a file cannot be written; ckpt_temp_dir() gives NULL. */
#ifndef TPL_TESTS_SUPPORT_CHECKPOINT_H
#define TPL_TESTS_SUPPORT_CHECKPOINT_H

#include "base/text.h"
#include "engine/model.h"

/* DeepseekV3, dense: 2 layers, width 32, 4 heads, q_lora 12, kv_lora 16, nope 8, rope 4, v 6, ffn 24, vocab 48. */
model_config ckpt_small_mla(void);
/* Llama: 2 layers, width 32, 4 heads over 2 KV heads of 8, ffn 24, vocab 48. */
model_config ckpt_small_gqa(void);

typedef struct {
    const char *name;
    tpl_dtype dtype;
    int32_t n_dims;
    int64_t shape[4];
    const void *data;
} ckpt_tensor;

typedef struct {
    ckpt_tensor *tensors;
    int32_t n;
} ckpt_list;

/* The file bytes of a safetensors file with these tensors. */
void ckpt_safetensors(text_buf *out, const ckpt_tensor *tensors, int32_t n);

/* Every tensor that the configuration implies. Values depend on seed and tensor name only, before rounding to dtype. */
ckpt_list ckpt_tensors(arena *a, const model_config *c, tpl_dtype dtype, uint64_t seed);

/* config.json of c; `extra` (may be NULL) holds more members, each followed by a comma: "\"mlp_bias\": true,". Where a
 * member is given twice, the one in extra counts. */
char *ckpt_config_text(arena *a, const model_config *c, const char *extra);

/* Writes a folder; n_shards 0 or 1: model.safetensors, else so many shards and their index. */
tpl_code ckpt_save(const char *dir, const char *config_text, const ckpt_list *list, int32_t n_shards, tpl_err *e);
/* All of it: tensors of type dtype, plain config. */
tpl_code ckpt_write(const char *dir, const model_config *c, tpl_dtype dtype, uint64_t seed, int32_t n_shards,
                    tpl_err *e);

char *ckpt_temp_dir(arena *a);
void ckpt_remove_dir(const char *dir);

#endif
