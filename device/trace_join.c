#include "device/trace_join.h"

#include <stdlib.h>
#include <string.h>

#include "base/arena.h"
#include "base/text.h"

typedef struct {
    const char *given;
    char *name;
} known_name;

const char *gpu_did_name(gpu_did d)
{
    static const char *const names[] = {"kernel", "copy", "fill", "replay"};
    return names[d];
}

static void *add(trace_list *l, size_t item)
{
    if (l->n == l->cap) {
        l->cap = l->cap ? 2 * l->cap : 1024;
        l->items = realloc(l->items, l->cap * item);
        if (!l->items)
            abort();
    }
    return (char *)l->items + l->n++ * item;
}

void trace_log_fini(trace_log *l)
{
    for (size_t i = 0; i < l->names.n; i++)
        free(((known_name *)l->names.items)[i].name);
    free(l->slices.items);
    free(l->marks.items);
    free(l->passes.items);
    free(l->nodes.items);
    free(l->held.items);
    free(l->names.items);
    *l = (trace_log){0};
}

void trace_add_slice(trace_log *l, gpu_slice s)
{
    *(gpu_slice *)add(&l->slices, sizeof s) = s;
}

void trace_add_mark(trace_log *l, uint32_t correlation, uint64_t mark)
{
    *(trace_outer *)add(&l->marks, sizeof(trace_outer)) = (trace_outer){correlation, mark};
}

void trace_add_pass(trace_log *l, uint32_t correlation, int32_t pass)
{
    *(trace_outer *)add(&l->passes, sizeof(trace_outer)) = (trace_outer){correlation, (uint64_t)pass};
}

void trace_add_node(trace_log *l, uint64_t node, uint64_t mark)
{
    if (mark)
        *(trace_node *)add(&l->nodes, sizeof(trace_node)) = (trace_node){node, mark};
}

/* Nodes are cloned soon after they were made: the search from the end is short. */
void trace_add_clone(trace_log *l, uint64_t node, uint64_t original)
{
    const trace_node *nodes = l->nodes.items;
    for (size_t i = l->nodes.n; i-- > 0;)
        if (nodes[i].node == original) {
            uint64_t mark = nodes[i].mark;
            *(trace_node *)add(&l->nodes, sizeof(trace_node)) = (trace_node){node, mark};
            return;
        }
}

void trace_add_held(trace_log *l, uint64_t node, gpu_did did)
{
    *(trace_held *)add(&l->held, sizeof(trace_held)) = (trace_held){node, 0, did};
}

void trace_shorten(char *name)
{
    char *to = name, *from = name;
    int depth = 0;
    if (strncmp(from, "void ", 5) == 0)
        from += 5;
    for (; *from; from++) {
        if (strncmp(from, "(anonymous namespace)::", 23) == 0) {
            from += 22;
            continue;
        }
        if (*from == '(' && depth == 0)
            break;
        depth += *from == '<';
        if (depth == 0)
            *to++ = *from;
        depth -= *from == '>' && depth > 0;
    }
    *to = 0;
}

extern char *__cxa_demangle(const char *mangled, char *out, size_t *length, int *status) __attribute__((weak));

const char *trace_name(trace_log *l, const char *given)
{
    const known_name *names = l->names.items;
    for (size_t i = l->names.n; i-- > 0;)
        if (names[i].given == given)
            return names[i].name;
    int status = -1;
    char *plain = __cxa_demangle ? __cxa_demangle(given, NULL, NULL, &status) : NULL;
    if (!plain || status != 0)
        plain = tpl_strdup(given);
    trace_shorten(plain);
    *(known_name *)add(&l->names, sizeof(known_name)) = (known_name){given, plain};
    return plain;
}

static int by_correlation(const void *a, const void *b)
{
    const trace_outer *x = a, *y = b;
    return x->correlation < y->correlation ? -1 : x->correlation > y->correlation;
}

static int by_node(const void *a, const void *b)
{
    const trace_node *x = a, *y = b;
    return x->node < y->node ? -1 : x->node > y->node;
}

static int by_begin(const void *a, const void *b)
{
    const gpu_slice *x = a, *y = b;
    if (x->begin_ns != y->begin_ns)
        return x->begin_ns < y->begin_ns ? -1 : 1;
    return x->end_ns < y->end_ns ? -1 : x->end_ns > y->end_ns;
}

static void sort(trace_list *l, size_t item, int (*order)(const void *, const void *))
{
    if (l->n > 1)
        qsort(l->items, l->n, item, order);
}

static const void *find(const trace_list *l, const void *key, size_t item, int (*order)(const void *, const void *))
{
    return l->n ? bsearch(key, l->items, l->n, item, order) : NULL;
}

static uint64_t mark_of_node(const trace_log *l, uint64_t node)
{
    trace_node key = {node, 0};
    const trace_node *made = find(&l->nodes, &key, sizeof key, by_node);
    return made ? made->mark : 0;
}

void trace_join(trace_log *l)
{
    sort(&l->marks, sizeof(trace_outer), by_correlation);
    sort(&l->passes, sizeof(trace_outer), by_correlation);
    sort(&l->nodes, sizeof(trace_node), by_node);
    gpu_slice *slices = l->slices.items;
    for (size_t i = 0; i < l->slices.n; i++) {
        gpu_slice *s = &slices[i];
        trace_outer call = {s->correlation, 0};
        const trace_outer *pass = find(&l->passes, &call, sizeof call, by_correlation);
        const trace_outer *mark = find(&l->marks, &call, sizeof call, by_correlation);
        s->pass = pass ? (int32_t)pass->id : -1;
        s->mark = s->node ? mark_of_node(l, s->node) : mark ? mark->id : 0;
    }
    trace_held *held = l->held.items;
    for (size_t i = 0; i < l->held.n; i++)
        held[i].mark = mark_of_node(l, held[i].node);
    sort(&l->slices, sizeof(gpu_slice), by_begin);
}

int64_t trace_recorded(const trace_log *l, uint64_t mark, gpu_did did)
{
    const trace_held *held = l->held.items;
    int64_t n = 0;
    for (size_t i = 0; i < l->held.n; i++)
        n += held[i].mark == mark && held[i].did == did;
    return n;
}
