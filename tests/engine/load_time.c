/* How long a checkpoint takes until it is ready for its first token, beside reading its bytes once from the page cache.
 * TPL_LOAD_MODEL names the folder (one model.safetensors with a tokenizer.json); without it there is nothing to measure.
 *   meson test --benchmark -C build engine/load_time */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "engine/lab.h"

enum { SKIPPED = 77, MIB = 1 << 20 };

/* A line of /proc/self/status, in KiB. */
static long status_kib(const char *key)
{
    char line[256];
    long v = -1;
    FILE *f = fopen("/proc/self/status", "r");
    while (f && fgets(line, sizeof line, f))
        if (strncmp(line, key, strlen(key)) == 0)
            v = atol(line + strlen(key));
    if (f)
        fclose(f);
    return v;
}

/* Reads a file in pieces of 1 MiB and looks at every cache line. Gives seconds; sets *bytes. */
static double read_once(const char *path, int64_t *bytes)
{
    static unsigned char piece[MIB];
    volatile unsigned sum = 0;
    int fd = open(path, O_RDONLY);
    double begin = clock_seconds();
    *bytes = 0;
    for (ssize_t n; fd >= 0 && (n = read(fd, piece, MIB)) > 0; *bytes += n)
        for (ssize_t i = 0; i < n; i += 64)
            sum += piece[i];
    double end = clock_seconds();
    if (fd >= 0)
        close(fd);
    return end - begin;
}

static tpl_code load(const char *dir, lab **l, lab_run *run, session **s, tpl_err *e)
{
    TPL_TRY(lab_open(dir, &(lab_calibration){0}, l, e));
    variant v = variant_exact(model_cfg(lab_model(*l)));
    TPL_TRY(lab_run_open(*l, &v, &(team_options){.tp = 1}, run, e));
    return session_create(run->team, &(session_options){.max_seqs = 1, .max_tok = 128, .max_rows = 128, .max_logits = 1}, s,
                          e);
}

int main(void)
{
    const char *dir = getenv("TPL_LOAD_MODEL");
    char path[1024];
    lab *l = NULL;
    lab_run run = {0};
    session *s = NULL;
    tpl_err e;
    int64_t bytes;
    if (!dir)
        return SKIPPED;
    snprintf(path, sizeof path, "%s/model.safetensors", dir);
    read_once(path, &bytes);
    double read_s = read_once(path, &bytes), begin = clock_seconds();
    if (load(dir, &l, &run, &s, &e) != TPL_OK) {
        fprintf(stderr, "%s: %s\n", e.where, e.what);
        return 1;
    }
    double ready_s = clock_seconds() - begin;
    long own_kib = status_kib("RssAnon:");
    printf("file_gib,read_once_s,ready_s,ready_of_read,own_memory_of_file\n%.3f,%.3f,%.3f,%.2f,%.4f\n", (double)bytes / 0x1p30,
           read_s, ready_s, ready_s / read_s, 1024. * (double)own_kib / (double)bytes);
    session_destroy(s);
    lab_run_close(&run);
    lab_close(l);
    return 0;
}
