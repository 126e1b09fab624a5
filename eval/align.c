#include "eval/align.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

/* ---- words ---- */

typedef struct {
    uni_text word;
    size_t at;
} numbered;

static int compare_words(const void *x, const void *y)
{
    const uni_text *p = &((const numbered *)x)->word, *q = &((const numbered *)y)->word;
    size_t n = p->n < q->n ? p->n : q->n;
    int order = n ? memcmp(p->cp, q->cp, n * sizeof *p->cp) : 0;
    return order ? order : (p->n > q->n) - (p->n < q->n);
}

size_t align_number_words(arena *a, const uni_text *words, size_t n, int32_t *ids)
{
    numbered *list = arena_array(a, numbered, n + 1);
    int32_t id = -1;
    for (size_t i = 0; i < n; i++)
        list[i] = (numbered){words[i], i};
    qsort(list, n, sizeof *list, compare_words);
    for (size_t i = 0; i < n; i++) {
        id += i == 0 || !uni_equal(list[i].word, list[i - 1].word);
        ids[list[i].at] = id;
    }
    return (size_t)(id + 1);
}

size_t align_count_shared(arena *a, const int32_t *x, size_t n_x, const int32_t *y, size_t n_y, size_t n_ids)
{
    size_t *left = arena_array(a, size_t, n_ids + 1), shared = 0;
    for (size_t i = 0; i < n_x; i++)
        left[x[i]]++;
    for (size_t j = 0; j < n_y; j++)
        if (left[y[j]]) {
            left[y[j]]--;
            shared++;
        }
    return shared;
}

/* ---- longest common subsequence ---- */

/* One row of the table from the row above: entry j + 1 is the length for prefixes i + 1 and j + 1. */
static void fill_row(int32_t x, const int32_t *y, size_t n_y, const size_t *above, size_t *row)
{
    for (size_t j = 0; j < n_y; j++) {
        size_t up = above[j + 1], left = row[j];
        row[j + 1] = x == y[j] ? above[j] + 1 : up > left ? up : left;
    }
}

size_t align_lcs(arena *a, const int32_t *x, size_t n_x, const int32_t *y, size_t n_y)
{
    size_t *above = arena_array(a, size_t, n_y + 1), *row = arena_array(a, size_t, n_y + 1);
    for (size_t i = 0; i < n_x; i++) {
        fill_row(x[i], y, n_y, above, row);
        size_t *other = above;
        above = row;
        row = other;
    }
    return above[n_y];
}

tpl_code align_mark_lcs(arena *a, const int32_t *x, size_t n_x, const int32_t *y, size_t n_y, unsigned char *marks,
                        size_t *n_steps, tpl_err *e)
{
    if (n_y && n_x > ALIGN_MAX_CELLS / n_y)
        return tpl_fail(e, TPL_E_INPUT, "answer", "sentences of %zu and %zu words, expected a product up to %d", n_x,
                        n_y, ALIGN_MAX_CELLS);
    arena_mark mark = arena_get_mark(a);
    size_t *above = arena_array(a, size_t, n_y + 1), *row = arena_array(a, size_t, n_y + 1);
    unsigned char *go_up = arena_alloc(a, n_x * n_y / 8 + 1); /* bit i * n_y + j: table[i][j + 1] > table[i + 1][j] */
    for (size_t i = 0; i < n_x; i++) {
        fill_row(x[i], y, n_y, above, row);
        for (size_t j = 0, bit = i * n_y; j < n_y; j++, bit++)
            go_up[bit / 8] |= (unsigned char)((above[j + 1] > row[j]) << bit % 8);
        size_t *other = above;
        above = row;
        row = other;
    }
    size_t i = n_x, j = n_y, steps = 0;
    for (; i && j; steps++) {
        size_t bit = (i - 1) * n_y + j - 1;
        bool equal = x[i - 1] == y[j - 1], up = go_up[bit / 8] >> bit % 8 & 1;
        if (equal)
            marks[x[i - 1]] = 1;
        i -= equal || up;
        j -= equal || !up;
    }
    *n_steps = steps;
    arena_reset(a, mark);
    return TPL_OK;
}

/* ---- difflib ---- */

typedef struct {
    size_t x, y, size;
} block;

typedef struct {
    size_t x_begin, x_end, y_begin, y_end;
} window;

typedef struct {
    const int32_t *x, *y;
    size_t n_x, n_y;
    const int32_t *x_class; /* [n_x] index into first[], -1 for elements that y has not or that are too common in it */
    const size_t *first;    /* [n_classes + 1] where the class's places begin */
    const size_t *places;   /* [n_y] places in y by class, ascending */
    size_t *run,
        *run_before; /* [n_y + 1] entry j + 1: length of the common run that ends at y[j]; all 0 between uses */
} matcher;

typedef struct {
    int32_t value;
    size_t at;
} placed;

static int compare_placed(const void *p, const void *q)
{
    const placed *x = p, *y = q;
    return x->value != y->value ? (x->value > y->value) - (x->value < y->value) : (x->at > y->at) - (x->at < y->at);
}

/* Class of a value by bisection over the classes' values; -1 if there is none. */
static int32_t find_class(const int32_t *values, size_t n, int32_t value)
{
    size_t lo = 0, hi = n;
    while (lo < hi) {
        size_t mid = lo + (hi - lo) / 2;
        if (values[mid] < value)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo < n && values[lo] == value ? (int32_t)lo : -1;
}

static matcher build_matcher(arena *a, const int32_t *x, size_t n_x, const int32_t *y, size_t n_y)
{
    placed *sorted = arena_array(a, placed, n_y + 1);
    size_t *first = arena_array(a, size_t, n_y + 2), *places = arena_array(a, size_t, n_y + 1), n = 0;
    int32_t *values = arena_array(a, int32_t, n_y + 1), *x_class = arena_array(a, int32_t, n_x + 1);
    for (size_t j = 0; j < n_y; j++)
        sorted[j] = (placed){y[j], j};
    qsort(sorted, n_y, sizeof *sorted, compare_placed);
    for (size_t k = 0; k < n_y; k++) {
        if (k == 0 || sorted[k].value != sorted[k - 1].value) {
            values[n] = sorted[k].value;
            first[n++] = k;
        }
        places[k] = sorted[k].at;
    }
    first[n] = n_y;
    for (size_t i = 0; i < n_x; i++) {
        int32_t c = find_class(values, n, x[i]);
        bool common = c >= 0 && n_y >= 200 && first[c + 1] - first[c] > n_y / 100 + 1;
        x_class[i] = common ? -1 : c;
    }
    return (matcher){.x = x,
                     .y = y,
                     .n_x = n_x,
                     .n_y = n_y,
                     .x_class = x_class,
                     .first = first,
                     .places = places,
                     .run = arena_array(a, size_t, n_y + 1),
                     .run_before = arena_array(a, size_t, n_y + 1)};
}

/* Zeroes what the row of element c wrote into run[]. */
static void clear_row(const matcher *m, int32_t c, size_t *run)
{
    for (size_t k = c < 0 ? 0 : m->first[c]; c >= 0 && k < m->first[c + 1]; k++)
        run[m->places[k] + 1] = 0;
}

/* Extends the common runs by x[i]; a longer one than *best replaces it. */
static void walk_row(const matcher *m, size_t i, const window *w, const size_t *before, size_t *run, block *best)
{
    int32_t c = m->x_class[i];
    for (size_t k = c < 0 ? 0 : m->first[c]; c >= 0 && k < m->first[c + 1]; k++) {
        size_t j = m->places[k];
        if (j < w->y_begin)
            continue;
        if (j >= w->y_end)
            break;
        size_t size = run[j + 1] = before[j] + 1;
        if (size > best->size)
            *best = (block){i + 1 - size, j + 1 - size, size};
    }
}

/* Longest block in the window, of those the first in x, then in y; then grown over equal neighbours, common ones too.
 */
static block find_longest(const matcher *m, const window *w)
{
    block best = {w->x_begin, w->y_begin, 0};
    size_t *before = m->run_before, *run = m->run;
    for (size_t i = w->x_begin; i < w->x_end; i++) {
        walk_row(m, i, w, before, run, &best);
        if (i > w->x_begin)
            clear_row(m, m->x_class[i - 1], before);
        size_t *other = before;
        before = run;
        run = other;
    }
    if (w->x_end > w->x_begin)
        clear_row(m, m->x_class[w->x_end - 1], before);
    while (best.x > w->x_begin && best.y > w->y_begin && m->x[best.x - 1] == m->y[best.y - 1])
        best = (block){best.x - 1, best.y - 1, best.size + 1};
    while (best.x + best.size < w->x_end && best.y + best.size < w->y_end &&
           m->x[best.x + best.size] == m->y[best.y + best.size])
        best.size++;
    return best;
}

size_t align_match_blocks(arena *a, const int32_t *x, size_t n_x, const int32_t *y, size_t n_y)
{
    matcher m = build_matcher(a, x, n_x, y, n_y);
    window *todo = arena_array(a, window, n_x + 1); /* disjoint and not empty in x, so never more than n_x wait */
    size_t n_todo = 0, total = 0;
    todo[n_todo++] = (window){0, n_x, 0, n_y};
    while (n_todo) {
        window w = todo[--n_todo];
        block b = find_longest(&m, &w);
        total += b.size;
        if (b.size && w.x_begin < b.x && w.y_begin < b.y)
            todo[n_todo++] = (window){w.x_begin, b.x, w.y_begin, b.y};
        if (b.size && b.x + b.size < w.x_end && b.y + b.size < w.y_end)
            todo[n_todo++] = (window){b.x + b.size, w.x_end, b.y + b.size, w.y_end};
    }
    return total;
}
