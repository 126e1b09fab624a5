/* Byte-pair encoding of one piece: its characters merge, the lowest rank first and among equal ranks the leftmost,
 * until no neighbouring pair has a rank. A heap of candidates over a linked list of symbols: O(n log n). */
#include <string.h>

#include "engine/tokenizer_impl.h"

/* ---- tables ---- */

static uint32_t table_mask(size_t n)
{
    uint32_t size = 16;
    while (size < 2 * n)
        size *= 2;
    return size - 1;
}

static uint32_t hash_bytes(const char *s, size_t n)
{
    uint64_t h = 0xcbf29ce484222325u;
    for (size_t i = 0; i < n; i++)
        h = (h ^ (unsigned char)s[i]) * 0x100000001b3u;
    return (uint32_t)(h ^ h >> 32);
}

void tok_map_init(tok_map *m, arena *a, size_t n_entries)
{
    m->mask = table_mask(n_entries);
    m->slots = arena_array(a, tok_map_slot, m->mask + 1u);
}

static tok_map_slot *map_find(const tok_map *m, const char *s, size_t len)
{
    uint32_t i = hash_bytes(s, len) & m->mask;
    while (m->slots[i].s && (m->slots[i].len != len || memcmp(m->slots[i].s, s, len) != 0))
        i = (i + 1) & m->mask;
    return &m->slots[i];
}

bool tok_map_put(tok_map *m, const char *s, size_t len, int32_t id)
{
    tok_map_slot *slot = map_find(m, s, len);
    if (slot->s)
        return false;
    *slot = (tok_map_slot){.s = s, .len = (uint32_t)len, .id = id};
    return true;
}

int32_t tok_map_get(const tok_map *m, const char *s, size_t len)
{
    const tok_map_slot *slot = map_find(m, s, len);
    return slot->s ? slot->id : -1;
}

void tok_merges_init(tok_merges *m, arena *a, size_t n_merges, uint32_t n_ranks)
{
    m->mask = table_mask(n_merges);
    m->slots = arena_array(a, tok_merge, m->mask + 1u);
    m->result = arena_array(a, int32_t, n_ranks + 1u);
    m->n_ranks = n_ranks;
    for (uint32_t i = 0; i <= m->mask; i++)
        m->slots[i].pair = UINT64_MAX;
    memset(m->result, 0xFF, sizeof *m->result * n_ranks);
}

static tok_merge *merges_find(const tok_merges *m, int32_t left, int32_t right)
{
    uint64_t pair = (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
    uint64_t h = pair * 0x9E3779B97F4A7C15u;
    uint32_t i = (uint32_t)(h >> 32 ^ h >> 15) & m->mask;
    while (m->slots[i].pair != UINT64_MAX && m->slots[i].pair != pair)
        i = (i + 1) & m->mask;
    return &m->slots[i];
}

bool tok_merges_put(tok_merges *m, int32_t left, int32_t right, uint32_t rank, int32_t result)
{
    tok_merge *slot = merges_find(m, left, right);
    if (slot->pair != UINT64_MAX)
        return false;
    *slot = (tok_merge){.pair = (uint64_t)(uint32_t)left << 32 | (uint32_t)right, .rank = rank, .result = result};
    m->result[rank] = result;
    return true;
}

const tok_merge *tok_merges_get(const tok_merges *m, int32_t left, int32_t right)
{
    const tok_merge *slot = merges_find(m, left, right);
    return slot->pair == UINT64_MAX ? NULL : slot;
}

/* ---- the heap ---- */

static void heap_push(tok_work *w, uint64_t key)
{
    tok_reserve((void **)&w->heap, &w->cap_heap, w->n_heap, sizeof *w->heap);
    size_t i = w->n_heap++;
    for (size_t up = (i - 1) / 2; i > 0 && w->heap[up] > key; up = (i - 1) / 2) {
        w->heap[i] = w->heap[up];
        i = up;
    }
    w->heap[i] = key;
}

static uint64_t heap_pop(tok_work *w)
{
    uint64_t top = w->heap[0], key = w->heap[--w->n_heap];
    size_t i = 0, n = w->n_heap, c;
    while ((c = 2 * i + 1) < n) {
        if (c + 1 < n && w->heap[c + 1] < w->heap[c])
            c++;
        if (w->heap[c] >= key)
            break;
        w->heap[i] = w->heap[c];
        i = c;
    }
    w->heap[i] = key;
    return top;
}

/* ---- symbols of a piece ---- */

static void add_symbol(tok_work *w, int32_t id)
{
    tok_reserve((void **)&w->symbols, &w->cap_symbols, w->n_symbols, sizeof *w->symbols);
    int32_t i = (int32_t)w->n_symbols++;
    if (i > 0)
        w->symbols[i - 1].next = i;
    w->symbols[i] = (tok_symbol){.id = id, .prev = i - 1, .next = -1};
}

static int32_t char_id(const tokenizer *t, const char *s, size_t len, uint32_t cp)
{
    return cp < TOK_DIRECT_CHARS ? t->char_id[cp] : tok_map_get(&t->vocab, s, len);
}

static bool add_bytes(tok_work *w, const char *s, size_t len)
{
    for (size_t i = 0; i < len; i++)
        if (w->t->byte_id[(uint8_t)s[i]] < 0)
            return false;
    for (size_t i = 0; i < len; i++)
        add_symbol(w, w->t->byte_id[(uint8_t)s[i]]);
    return true;
}

/* A pending unknown is added before the next known character, but not before fallback bytes: the reference does so, and
 * exactness goes first. */
static void make_symbols(tok_work *w, const char *s, size_t n)
{
    const tokenizer *t = w->t;
    bool unknown = false;
    size_t len;
    w->n_symbols = 0;
    for (size_t i = 0; i < n; i += len) {
        uint32_t cp = tok_utf8_get(s + i, &len);
        int32_t id = char_id(t, s + i, len, cp);
        if (id >= 0) {
            if (unknown)
                add_symbol(w, t->unk_id);
            unknown = false;
            add_symbol(w, id);
            continue;
        }
        if (t->byte_fallback && add_bytes(w, s + i, len))
            continue;
        if (unknown && !t->fuse_unk)
            add_symbol(w, t->unk_id);
        unknown = t->unk_id >= 0;
    }
    if (unknown)
        add_symbol(w, t->unk_id);
}

/* ---- merging ---- */

static void push_pair(tok_work *w, int32_t left)
{
    const tok_symbol *s = &w->symbols[left];
    const tok_merge *m = tok_merges_get(&w->t->merges, s->id, w->symbols[s->next].id);
    if (m)
        heap_push(w, (uint64_t)m->rank << 32 | (uint32_t)left);
}

/* A candidate is stale when its symbol went away or its neighbours changed into a pair with another result. */
static void merge_at(tok_work *w, int32_t at, uint32_t rank)
{
    tok_symbol *v = w->symbols, *s = &v[at];
    int32_t result = w->t->merges.result[rank];
    if (s->id < 0 || s->next < 0)
        return;
    const tok_merge *m = tok_merges_get(&w->t->merges, s->id, v[s->next].id);
    if (!m || m->result != result)
        return;
    int32_t gone = s->next;
    s->id = result;
    s->next = v[gone].next;
    v[gone].id = -1;
    if (s->next >= 0)
        v[s->next].prev = at;
    if (s->prev >= 0)
        push_pair(w, s->prev);
    if (s->next >= 0)
        push_pair(w, at);
}

static void merge_symbols(tok_work *w)
{
    w->n_heap = 0;
    for (size_t i = 0; i + 1 < w->n_symbols; i++)
        push_pair(w, (int32_t)i);
    while (w->n_heap) {
        uint64_t top = heap_pop(w);
        merge_at(w, (int32_t)(uint32_t)top, (uint32_t)(top >> 32));
    }
}

void tok_add_id(tok_work *w, int32_t id)
{
    tok_reserve((void **)&w->ids, &w->cap_ids, w->n_ids, sizeof *w->ids);
    w->ids[w->n_ids++] = id;
}

void tok_bpe_encode(tok_work *w, const char *s, size_t n)
{
    int32_t whole = w->t->ignore_merges ? tok_map_get(&w->t->vocab, s, n) : -1;
    if (whole >= 0) {
        tok_add_id(w, whole);
        return;
    }
    make_symbols(w, s, n);
    merge_symbols(w);
    for (size_t i = 0; i < w->n_symbols; i++)
        if (w->symbols[i].id >= 0)
            tok_add_id(w, w->symbols[i].id);
}
