/* Runs one target over the files of a corpus folder, without libFuzzer. Some of them must parse, and some must not. */
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/text.h"
#include "tests/fuzz/fuzz.h"

static int run_file(const char *dir, const char *name)
{
    arena a;
    char *data;
    size_t len;
    tpl_err e;
    arena_init(&a);
    tpl_code rc = text_read_file(text_path_join(&a, dir, name), &data, &len, &e);
    arena_fini(&a);
    if (rc != TPL_OK) {
        fprintf(stderr, "%s: %s\n", e.where, e.what);
        return 1;
    }
    uint8_t *exact = malloc(len ? len : 1); /* no 0 byte behind the end */
    for (size_t i = 0; i < len; i++)
        exact[i] = (uint8_t)data[i];
    free(data);
    LLVMFuzzerTestOneInput(exact, len);
    free(exact);
    return 0;
}

int main(int argc, char **argv)
{
    int n = 0, failed = 0;
    DIR *d = argc == 2 ? opendir(argv[1]) : NULL;
    for (struct dirent *f; d && (f = readdir(d));)
        if (f->d_name[0] != '.') {
            failed += run_file(argv[1], f->d_name);
            n++;
        }
    if (d)
        closedir(d);
    printf("%d files, %ld of them taken\n", n, fuzz_n_parsed);
    return failed || fuzz_n_parsed == 0 || fuzz_n_parsed == n; /* both kinds are wanted */
}
