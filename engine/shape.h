/* shape.h - how users name a model without weights: "shape:deepseek-v3,layers=4,moe=off,seed=1".
 * For:    model_open_shape(); options of commands that time.
 * Enter:  engine/, bench/, cli/, tests/.
 * Owns:   nothing; a shape_spec is a plain value.
 * Fails:  TPL_E_USAGE naming the key, what was given and what would fit. */
#ifndef TPL_ENGINE_SHAPE_H
#define TPL_ENGINE_SHAPE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"

enum { SHAPE_NAME = 512 };

typedef struct {
    char name[SHAPE_NAME]; /* of a file in models/shapes, without .json; or the path of such a file */
    int32_t layers;        /* 0: as many as the file says */
    bool attention_only;   /* moe=off: the feed-forward of all layers is left out */
    uint64_t seed;
} shape_spec;

/* Whether a model's name begins with "shape:". */
bool shape_is_spec(const char *model);
tpl_code shape_parse(const char *text, shape_spec *out, tpl_err *e);

#endif
