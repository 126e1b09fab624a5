#include "bench/evict.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__)
#include <emmintrin.h>
#endif

#include "base/arena.h"
#include "base/clock.h"
#include "base/text.h"
#include "device/memory.h"

enum { LINE = 64, PROBE_BYTES = 1 << 18, PROBE_TRIES = 5 };
static const size_t default_cache = (size_t)32 << 20, largest_cache = (size_t)512 << 20;

struct evict {
    dev_buf buf;
    uint64_t sink; /* keeps the walks from being optimised away */
    bool works;
};

/* "32768K" */
static size_t parse_size(const char *s)
{
    char *end;
    unsigned long long n = strtoull(s, &end, 10);
    int shift = *end == 'K' ? 10 : *end == 'M' ? 20 : 0;
    return n > 0 && n < 1ull << 40 ? (size_t)n << shift : 0;
}

size_t evict_cache_bytes(void)
{
    size_t most = 0;
    for (int i = 0; i < 8; i++) {
        char path[80], *text = NULL;
        size_t len;
        snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu0/cache/index%d/size", i);
        if (text_read_file(path, &text, &len, NULL) != TPL_OK)
            break;
        size_t bytes = parse_size(text);
        most = bytes > most ? bytes : most;
        free(text);
    }
    if (most == 0)
        return default_cache;
    return most < largest_cache ? most : largest_cache;
}

static uint64_t read_lines(const void *data, size_t bytes)
{
    uint64_t sum = 0;
    const volatile unsigned char *p = data;
    for (size_t i = 0; i < bytes; i += LINE)
        sum += p[i];
    return sum;
}

void evict_all(evict *v)
{
    v->sink += read_lines(v->buf.data, v->buf.bytes);
}

#if defined(__x86_64__)
void evict_ranges(evict *v, const evict_range *r, int n)
{
    for (int i = 0; i < n; i++) {
        const char *begin = (const char *)((uintptr_t)r[i].data / LINE * LINE);
        const char *end = (const char *)r[i].data + r[i].bytes;
        for (const char *p = begin; r[i].bytes > 0 && p < end; p += LINE)
            _mm_clflush(p);
    }
    _mm_mfence();
}
#else
void evict_ranges(evict *v, const evict_range *r, int n)
{
    evict_all(v);
}
#endif

static double probe_seconds(evict *v, const void *data)
{
    double begin = clock_seconds();
    v->sink += read_lines(data, PROBE_BYTES);
    return clock_seconds() - begin;
}

/* The least of several tries, so that an interruption is not taken for a miss. */
static bool measure_effect(evict *v, const void *probe, bool walk)
{
    double warm = 1, cold = 1;
    for (int i = 0; i < PROBE_TRIES; i++) {
        evict_range r = {probe, PROBE_BYTES};
        probe_seconds(v, probe);
        double w = probe_seconds(v, probe);
        if (walk)
            evict_all(v);
        else
            evict_ranges(v, &r, 1);
        double c = probe_seconds(v, probe);
        warm = w < warm ? w : warm;
        cold = c < cold ? c : cold;
    }
    return cold > 1.2 * warm;
}

tpl_code evict_create(evict **out, tpl_err *e)
{
    evict *v = tpl_calloc(1, sizeof *v);
    dev_buf probe;
    tpl_code rc = dev_alloc(&v->buf, 2 * evict_cache_bytes(), "cache eviction", e);
    if (rc == TPL_OK)
        rc = dev_alloc(&probe, PROBE_BYTES, "cache probe", e);
    if (rc != TPL_OK) {
        evict_destroy(v);
        return rc;
    }
    memset(v->buf.data, 1, v->buf.bytes); /* untouched pages would all be one page of zeros */
    memset(probe.data, 1, probe.bytes);
    v->works = measure_effect(v, probe.data, false) && measure_effect(v, probe.data, true);
    dev_free(&probe);
    *out = v;
    return TPL_OK;
}

void evict_destroy(evict *v)
{
    if (!v)
        return;
    dev_free(&v->buf);
    free(v);
}

bool evict_works(const evict *v)
{
    return v->works;
}
