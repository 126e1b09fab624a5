/* config.json, and the arithmetic on what was read of it. */
#include <math.h>
#include <stdlib.h>

#include "engine/model.h"
#include "tests/fuzz/fuzz.h"

long fuzz_n_parsed;

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    model_config c;
    tpl_err e = {0};
    if (model_config_parse((const char *)data, size, "fuzz", &c, &e) != TPL_OK)
        return fuzz_check_error(&e);
    fuzz_n_parsed++;
    if (model_param_count(&c) <= 0 || c.n_layers < 1 || c.n_layers > MODEL_MAX_LAYERS || c.rope_dim < 2 ||
        c.rope_dim % 2)
        abort();
    if (!(model_softmax_scale(&c) > 0) || !isfinite(model_softmax_scale(&c)))
        abort();
    for (int i = 0; i < c.n_layers; i++)
        if (model_layer_window(&c, i) < 0 || (model_layer_is_moe(&c, i) && c.n_experts_per_tok < 1))
            abort();
    return model_config_runnable(&c, &e) == TPL_OK ? 0 : fuzz_check_error(&e);
}
