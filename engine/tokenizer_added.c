/* Added tokens: found in the text before anything else looks at it, leftmost first, longest first. */
#include <string.h>

#include "engine/tokenizer_impl.h"

/* ---- the trie ---- */

static int32_t trie_new(tokenizer *t, tok_trie *trie, uint8_t byte, int32_t sibling)
{
    if (trie->n == trie->cap) {
        int32_t cap = trie->cap ? 2 * trie->cap : 64;
        tok_trie_node *v = arena_array(&t->mem, tok_trie_node, cap);
        if (trie->n)
            memcpy(v, trie->v, sizeof *v * (size_t)trie->n);
        else
            memset(trie->root, 0xFF, sizeof trie->root);
        trie->v = v;
        trie->cap = cap;
    }
    trie->v[trie->n] = (tok_trie_node){.child = -1, .sibling = sibling, .id = -1, .byte = byte};
    return trie->n++;
}

static int32_t trie_child(const tok_trie *trie, int32_t node, uint8_t byte)
{
    int32_t c = node < 0 ? trie->root[byte] : trie->v[node].child;
    while (c >= 0 && trie->v[c].byte != byte)
        c = trie->v[c].sibling;
    return c;
}

/* The node of `byte` under `node` (-1: the root), made if absent. */
static int32_t trie_step(tokenizer *t, tok_trie *trie, int32_t node, uint8_t byte)
{
    int32_t c = trie->n ? trie_child(trie, node, byte) : -1;
    if (c >= 0)
        return c;
    c = trie_new(t, trie, byte, node < 0 ? -1 : trie->v[node].child);
    if (node < 0)
        trie->root[byte] = c;
    else
        trie->v[node].child = c;
    return c;
}

/* The longest token that starts at s[0..n): its length, 0 for none. */
static size_t trie_match(const tok_trie *trie, const char *s, size_t n, int32_t *id)
{
    size_t best = 0;
    int32_t node = -1;
    for (size_t i = 0; i < n; i++) {
        node = trie_child(trie, node, (uint8_t)s[i]);
        if (node < 0)
            break;
        if (trie->v[node].id >= 0) {
            best = i + 1;
            *id = trie->v[node].id;
        }
    }
    return best;
}

/* ---- filling it ---- */

/* Runs the normaliser over a token's content; the result lives in the arena. */
static tpl_code normalize_content(tokenizer *t, tok_token *k, tpl_err *e)
{
    tok_work w;
    tok_work_init(&w, t);
    tok_next_begin(&w);
    tok_next_add(&w, k->text, strlen(k->text), true);
    tok_next_done(&w);
    tpl_code rc = tok_steps_run(&t->normalizers, &w, e);
    if (rc == TPL_OK) {
        k->decoded = arena_strndup(&t->mem, w.now.text.data, w.now.text.len);
        k->decoded_len = (uint32_t)w.now.text.len;
    }
    tok_work_fini(&w);
    return rc;
}

tpl_code tok_added_insert(tokenizer *t, int32_t id, tpl_err *e)
{
    tok_token *k = &t->tokens[id];
    tok_trie *trie = k->normalized ? &t->normalized_added : &t->plain_added;
    int32_t node = -1;
    if (k->normalized)
        TPL_TRY(normalize_content(t, k, e));
    if (k->decoded_len == 0)
        return tpl_fail(e, TPL_E_INPUT, t->where, "added token '%.60s' is empty once normalised", k->text);
    for (uint32_t i = 0; i < k->decoded_len; i++)
        node = trie_step(t, trie, node, (uint8_t)k->decoded[i]);
    if (trie->v[node].id >= 0)
        return tpl_fail(e, TPL_E_INPUT, t->where, "added tokens %d and %d are the same once normalised: '%.60s'",
                        trie->v[node].id, id, k->text);
    trie->v[node].id = id;
    return TPL_OK;
}

/* ---- finding ---- */

static bool is_word(tok_work *w, const char *s, size_t n)
{
    return tok_pattern_matches(w->t->word, w, s, n);
}

static bool stands_alone(tok_work *w, const char *s, size_t n, size_t begin, size_t end)
{
    if (begin > 0) {
        size_t last = tok_utf8_back(s, begin);
        if (is_word(w, s + last, begin - last))
            return false;
    }
    return end == n || !is_word(w, s + end, tok_utf8_valid(s + end, n - end));
}

static size_t spaces_before(const char *s, size_t at)
{
    size_t len;
    while (at > 0) {
        size_t last = tok_utf8_back(s, at);
        if (!tok_is_space(tok_utf8_get(s + last, &len)))
            break;
        at = last;
    }
    return at;
}

static size_t spaces_after(const char *s, size_t n, size_t at)
{
    size_t len;
    while (at < n && tok_is_space(tok_utf8_get(s + at, &len)))
        at += len;
    return at;
}

/* The search goes on behind the token's own bytes, even where rstrip took more; `done` is what pieces already cover. */
static void split_piece(const tok_trie *trie, tok_work *w, const char *s, size_t n, bool first)
{
    size_t at = 0, done = 0, len;
    int32_t id = -1;
    while (at < n) {
        if (trie->root[(uint8_t)s[at]] < 0 || !(len = trie_match(trie, s + at, n - at, &id))) {
            at++;
            continue;
        }
        const tok_token *k = &w->t->tokens[id];
        size_t begin = at, end = at + len;
        at = end;
        if (k->single_word && !stands_alone(w, s, n, begin, end))
            continue;
        if (k->lstrip) {
            begin = spaces_before(s, begin);
            begin = begin > done ? begin : done;
        }
        if (k->rstrip)
            end = spaces_after(s, n, end);
        if (done < begin)
            tok_next_add(w, s + done, begin - done, first && done == 0);
        tok_next_add_token(w, id);
        done = end;
    }
    if (done < n)
        tok_next_add(w, s + done, n - done, first && done == 0);
}

void tok_added_split(const tok_trie *trie, tok_work *w)
{
    tok_next_begin(w);
    for (size_t i = 0; i < w->now.n; i++) {
        const tok_span *v = &w->now.v[i];
        const char *s = tok_span_text(w, v);
        if (v->id >= 0)
            tok_next_add_token(w, v->id);
        else if (trie->n)
            split_piece(trie, w, s, v->end - v->begin, v->first);
        else if (v->end > v->begin)
            tok_next_add(w, s, v->end - v->begin, v->first);
    }
    tok_next_done(w);
}
