/* tiktoken.model, then a 0 byte and tokenizer_config.json; without the 0 byte a fixed configuration. */
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "engine/tokenizer_impl.h"
#include "tests/fuzz/fuzz.h"

static const char usual[] = "{\"auto_map\": {\"AutoTokenizer\": [\"tokenization_kimi.TikTokenTokenizer\", null]}}";
static const char sample[] = "abc \xe6\x97\xa5 1987\n";

long fuzz_n_parsed;

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const uint8_t *zero = size ? memchr(data, 0, size) : NULL;
    size_t len = zero ? (size_t)(zero - data) : size;
    json_t *config;
    tokenizer *t = NULL;
    tpl_err e = {0};
    tpl_code rc = zero ? json_load_bytes((const char *)zero + 1, size - len - 1, "config", &config, &e)
                       : json_load_bytes(usual, sizeof usual - 1, "config", &config, &e);
    if (rc != TPL_OK)
        return fuzz_check_error(&e);
    rc = tok_load_tiktoken((const char *)data, len, config, "fuzz", &t, &e);
    json_decref(config);
    if (rc != TPL_OK)
        return fuzz_check_error(&e);
    fuzz_n_parsed++;
    int32_t *ids;
    int n;
    if (tokenizer_encode(t, sample, sizeof sample - 1, &ids, &n, &e) == TPL_OK)
        free(ids);
    tokenizer_close(t);
    return 0;
}
