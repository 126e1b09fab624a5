/* model_roles.h - what each weight role is called in a checkpoint, and its shape there.
 * For:    engine/model.c binds tensors by it, engine/convert.c writes them.
 * Enter:  engine/, tests/.
 * Owns:   nothing.
 * Fails:  never. */
#ifndef TPL_ENGINE_MODEL_ROLES_H
#define TPL_ENGINE_MODEL_ROLES_H

#include "engine/model.h"

enum { ROLE_TENSOR_NAME = 96 };

/* n_dims 0: the model has no such weight. */
typedef struct {
    int32_t n_dims;
    int64_t dims[2];
} role_dims;

#define ROLE_SCALE_SUFFIX "_scale_inv" /* after the name of an f8 weight: its block scales */

role_dims role_shape(const model_config *c, weight_role r, int layer);
void role_tensor_name(const model_config *c, weight_role r, int layer, int expert, char name[ROLE_TENSOR_NAME]);

/* One weight an expert. */
bool role_is_expert(weight_role r);
/* Roles that an "fp8" checkpoint may store so: the projections. */
bool role_may_be_f8(weight_role r);

#endif
