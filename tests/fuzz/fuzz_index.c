/* model.safetensors.index.json beside two good shards, in a folder of its own (below TMPDIR: memory is faster). */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/text.h"
#include "engine/safetensors.h"
#include "tests/fuzz/fuzz.h"

static char dir[96];

static void put(const char *name, const void *data, size_t n)
{
    char path[160];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    FILE *f = fopen(path, "wb");
    if (!f || (n > 0 && fwrite(data, 1, n, f) != n) || fclose(f) != 0)
        abort();
}

static void put_shard(const char *name, const char *tensor)
{
    char file[128];
    int n = snprintf(file + 8, sizeof file - 8, "{\"%s\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]}}    ",
                     tensor);
    memset(file, 0, 8);
    file[0] = (char)(n - 4);
    put(name, file, 8 + (size_t)n);
}

static void remove_dir(void)
{
    static const char *const names[] = {"a.safetensors", "b.safetensors", "model.safetensors.index.json"};
    char path[160];
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        snprintf(path, sizeof path, "%s/%s", dir, names[i]);
        unlink(path);
    }
    rmdir(dir);
}

static void make_dir(void)
{
    const char *base = getenv("TMPDIR");
    if (dir[0])
        return;
    if (!base || strlen(base) >= sizeof dir - 24)
        base = "/tmp";
    snprintf(dir, sizeof dir, "%s/fuzz-index-XXXXXX", base);
    if (!mkdtemp(dir))
        abort();
    put_shard("a.safetensors", "x");
    put_shard("b.safetensors", "y");
    atexit(remove_dir);
}

long fuzz_n_parsed;

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    st_set *s = NULL;
    tpl_err e = {0};
    make_dir();
    put("model.safetensors.index.json", data, size);
    if (st_set_open(dir, &s, &e) != TPL_OK)
        return fuzz_check_error(&e);
    fuzz_n_parsed++;
    for (int32_t i = 0; i < st_set_count(s); i++)
        if (st_set_find(s, st_set_at(s, i)->name) == NULL)
            abort();
    st_set_close(s);
    return 0;
}
