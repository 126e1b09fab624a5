#include "engine/groups.h"

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void add(layer_groups *g, int size)
{
    if (size > 0)
        g->size[g->n++] = (uint8_t)size;
}

/* Layer 0; [1, first_end), then n at a time up to the last layer, which stays alone. */
static layer_groups spread(int n_layers, int first_end, int n)
{
    layer_groups g = {0};
    int last = n_layers - 1, at = 1;
    add(&g, 1);
    for (int end = first_end; at < last; end += n) {
        int stop = end < last ? end : last;
        add(&g, stop - at);
        at = stop;
    }
    if (last > 0)
        add(&g, 1);
    return g;
}

static bool read_number(const char **at, int *out)
{
    char *end;
    if (**at < '0' || **at > '9')
        return false;
    long v = strtol(*at, &end, 10);
    *at = end;
    *out = v < 0 || v > 1 << 20 ? 1 << 20 : (int)v;
    return true;
}

static tpl_code parse_generator(const char *text, int n_layers, layer_groups *out, tpl_err *e)
{
    const char *at = text + 5;
    int n = 0;
    if (!read_number(&at, &n) || *at || n < 1 || n > GROUPS_MAX)
        return tpl_fail(e, TPL_E_USAGE, "--groups", "'%s' has no group size from 1 to %d", text, GROUPS_MAX);
    *out = spread(n_layers, *text == 'r' ? n : n + 1, n);
    return TPL_OK;
}

/* One group "3" or "4-7" that must begin at layer `next`. */
static tpl_code parse_group(const char **at, const char *text, int next, int n_layers, int *size, tpl_err *e)
{
    int first = 0, last = 0;
    bool range = false, ok = read_number(at, &first);
    last = first;
    if (ok && **at == '-') {
        (*at)++;
        range = true;
        ok = read_number(at, &last);
    }
    if (!ok || (**at && **at != '/'))
        return tpl_fail(e, TPL_E_USAGE, "--groups", "'%.100s' is not rule:N, pack:N or a list such as 0/1-3/4", text);
    if (first != next || last < first || last >= n_layers)
        return tpl_fail(e, TPL_E_USAGE, "--groups",
                        "'%.60s' has %s%d where a group from layer %d up to at most %d is expected", text,
                        range ? "a range from " : "", first, next, n_layers - 1);
    *size = last - first + 1;
    return TPL_OK;
}

tpl_code groups_parse(const char *text, int n_layers, layer_groups *out, tpl_err *e)
{
    layer_groups g = {0};
    const char *at = text;
    int next = 0;
    if (n_layers < 1 || n_layers > GROUPS_MAX)
        return tpl_fail(e, TPL_E_USAGE, "--groups", "the draft has %d layers, groups take 1 to %d", n_layers,
                        GROUPS_MAX);
    if (strncmp(text, "rule:", 5) == 0 || strncmp(text, "pack:", 5) == 0)
        return parse_generator(text, n_layers, out, e);
    for (;;) {
        int size = 0;
        TPL_TRY(parse_group(&at, text, next, n_layers, &size, e));
        add(&g, size);
        next += size;
        if (!*at)
            break;
        at++;
    }
    if (next != n_layers)
        return tpl_fail(e, TPL_E_USAGE, "--groups", "'%.100s' ends at layer %d, the draft's last is %d", text, next - 1,
                        n_layers - 1);
    *out = g;
    return TPL_OK;
}

void groups_format(const layer_groups *g, char text[GROUPS_TEXT])
{
    size_t used = 0;
    int first = 0;
    text[0] = 0;
    for (int i = 0; i < g->n; i++) {
        int last = first + g->size[i] - 1;
        used += (size_t)snprintf(text + used, GROUPS_TEXT - used, last > first ? "%s%d-%d" : "%s%d", i ? "/" : "",
                                 first, last);
        first = last + 1;
    }
}

int groups_n_layers(const layer_groups *g)
{
    int n = 0;
    for (int i = 0; i < g->n; i++)
        n += g->size[i];
    return n;
}

int groups_widest(const layer_groups *g)
{
    int most = 0;
    for (int i = 0; i < g->n; i++)
        most = g->size[i] > most ? g->size[i] : most;
    return most;
}

int groups_stages(const layer_groups *g, int k)
{
    int n = 0;
    for (int i = 0; i < g->n; i++)
        n += (g->size[i] + k - 1) / k;
    return n;
}
