/* Header of a safetensors file: whatever the bytes, tensors lie inside them and every error is a message. */
#include <stdlib.h>
#include <string.h>

#include "engine/safetensors.h"
#include "tests/fuzz/fuzz.h"

static volatile unsigned char sink;

long fuzz_n_parsed;

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    st_file *f = NULL;
    tpl_err e = {0};
    if (st_parse(data, size, "fuzz", &f, &e) != TPL_OK)
        return fuzz_check_error(&e);
    fuzz_n_parsed++;
    char text[ST_SHAPE_TEXT];
    for (int32_t i = 0; i < st_count(f); i++) {
        const st_tensor *t = st_at(f, i);
        st_shape_text(t->n_dims, t->shape, text);
        if (st_find(f, t->name) != t)
            abort();
        for (int64_t k = 0; k < t->bytes; k += t->bytes / 8 + 1)
            sink = ((const unsigned char *)t->data)[k];
    }
    st_close(f);
    return 0;
}
