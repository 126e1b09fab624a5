/* tokenizer.json; what parses must also encode and decode. */
#include <stdlib.h>

#include "engine/tokenizer.h"
#include "tests/fuzz/fuzz.h"

static const char sample[] = "The \xc3\xa9t\xc3\xa9 of 1987:  x += 1;\n\t\xe6\x97\xa5\xe6\x9c\xac \xff <s>";

long fuzz_n_parsed;

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    tokenizer *t = NULL;
    tpl_err e = {0};
    int32_t *ids;
    int n;
    if (tokenizer_parse((const char *)data, size, "fuzz", &t, &e) != TPL_OK)
        return fuzz_check_error(&e);
    fuzz_n_parsed++;
    if (tokenizer_encode(t, sample, sizeof sample - 1, &ids, &n, &e) == TPL_OK) {
        text_buf out = {0};
        for (int i = 0; i < n; i++)
            if (ids[i] < 0 || ids[i] >= tokenizer_vocab(t))
                abort();
        tokenizer_decode(t, ids, n, false, &out);
        text_fini(&out);
        free(ids);
    } else {
        fuzz_check_error(&e);
    }
    tokenizer_close(t);
    return 0;
}
