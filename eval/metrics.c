#include "eval/metrics.h"

#include <string.h>

#include "eval/align.h"
#include "eval/stats.h"

/* ---- words ---- */

static uni_text decode(arena *a, const char *s)
{
    return uni_decode(a, s, strlen(s));
}

static bool is_article(uni_text word)
{
    static const int32_t a[] = {'a'}, an[] = {'a', 'n'}, the[] = {'t', 'h', 'e'};
    return uni_equal(word, (uni_text){a, 1}) || uni_equal(word, (uni_text){an, 2}) ||
           uni_equal(word, (uni_text){the, 3});
}

/* Replaces each maximal run of word characters that is an article by one blank. In place. */
static size_t drop_articles(int32_t *cp, size_t n)
{
    size_t out = 0, i = 0;
    while (i < n) {
        size_t begin = i;
        while (i < n && uni_is_word(cp[i]))
            i++;
        if (is_article((uni_text){cp + begin, i - begin})) {
            cp[out++] = ' ';
            continue;
        }
        i += i == begin;
        memmove(cp + out, cp + begin, (i - begin) * sizeof *cp);
        out += i - begin;
    }
    return out;
}

uni_text metric_normalise(arena *a, const char *s, bool (*drop)(int32_t c))
{
    uni_text t = uni_lower(a, decode(a, s));
    int32_t *cp = arena_array(a, int32_t, t.n + 1);
    size_t n = 0;
    for (size_t i = 0; i < t.n; i++)
        if (!drop(t.cp[i]))
            cp[n++] = t.cp[i];
    return (uni_text){cp, drop_articles(cp, n)};
}

/* The words of two texts, numbered together. */
typedef struct {
    int32_t *p, *g;
    size_t n_p, n_g, n_ids;
} word_pair;

static word_pair number_words(arena *a, uni_text prediction, uni_text answer)
{
    uni_text *p, *g;
    size_t n_p = uni_split(a, prediction, &p), n_g = uni_split(a, answer, &g);
    uni_text *all = arena_array(a, uni_text, n_p + n_g + 1);
    int32_t *ids = arena_array(a, int32_t, n_p + n_g + 1);
    memcpy(all, p, n_p * sizeof *p);
    memcpy(all + n_p, g, n_g * sizeof *g);
    size_t n_ids = align_number_words(a, all, n_p + n_g, ids);
    return (word_pair){ids, ids + n_p, n_p, n_g, n_ids};
}

metric_overlap metric_count_words(arena *a, uni_text prediction, uni_text answer)
{
    word_pair w = number_words(a, prediction, answer);
    return (metric_overlap){w.n_p, w.n_g, align_count_shared(a, w.p, w.n_p, w.g, w.n_g, w.n_ids)};
}

/* ---- text metrics of the fixture ---- */

static bool is_punctuation(int32_t c)
{
    return !uni_is_word(c) && !uni_is_space(c);
}

/* Twice the shared part over both lengths; 0 where nothing is shared. */
static double dice(size_t n_shared, size_t n_x, size_t n_y)
{
    return n_shared ? 2.0 * (double)n_shared / (double)(n_x + n_y) : 0.0;
}

double metric_f1(const char *prediction, const char *answer)
{
    arena a;
    arena_init(&a);
    metric_overlap o = metric_count_words(&a, metric_normalise(&a, prediction, is_punctuation),
                                          metric_normalise(&a, answer, is_punctuation));
    arena_fini(&a);
    return dice(o.n_shared, o.n_prediction, o.n_answer);
}

double metric_rouge_l(const char *prediction, const char *answer)
{
    arena a;
    arena_init(&a);
    word_pair w = number_words(&a, uni_lower(&a, decode(&a, prediction)), uni_lower(&a, decode(&a, answer)));
    double score = dice(align_lcs(&a, w.p, w.n_p, w.g, w.n_g), w.n_p, w.n_g);
    arena_fini(&a);
    return score;
}

static double difflib_ratio(arena *a, uni_text p, uni_text g)
{
    return p.n + g.n ? dice(align_match_blocks(a, p.cp, p.n, g.cp, g.n), p.n, g.n) : 1.0;
}

double metric_difflib(const char *prediction, const char *answer)
{
    arena a;
    arena_init(&a);
    double score = difflib_ratio(&a, decode(&a, prediction), decode(&a, answer));
    arena_fini(&a);
    return score;
}

bool metric_exact(const char *prediction, const char *answer)
{
    arena a;
    arena_init(&a);
    bool same = uni_equal(uni_strip(decode(&a, prediction)), uni_strip(decode(&a, answer)));
    arena_fini(&a);
    return same;
}

static double exact_as_score(const char *prediction, const char *answer)
{
    return metric_exact(prediction, answer);
}

typedef double text_metric(const char *prediction, const char *answer);

static const struct {
    const char *task;
    text_metric *metric;
    bool keep_indent; /* blanks at the head of the line count */
} FIXTURE[] = {
    {"single_doc_qa", metric_f1, false}, {"multi_hop_qa", metric_f1, false},   {"summarisation", metric_rouge_l, false},
    {"few_shot", exact_as_score, false}, {"synthetic", exact_as_score, false}, {"code", metric_difflib, true},
};

/* First line after leading line feeds, blanks cut off its end and, unless its indent is kept, its head. */
static char *cut_line(arena *a, const char *generated, bool keep_indent)
{
    const char *s = generated + strspn(generated, "\n");
    uni_text line = uni_decode(a, s, strcspn(s, "\n"));
    while (line.n && uni_is_space(line.cp[line.n - 1]))
        line.n--;
    return uni_encode(a, keep_indent ? line : uni_strip(line));
}

tpl_code metric_score_fixture(const char *task, const char *generated, const char *answer, double *score, bool *exact,
                              tpl_err *e)
{
    for (size_t i = 0; i < sizeof FIXTURE / sizeof *FIXTURE; i++) {
        if (strcmp(FIXTURE[i].task, task) != 0)
            continue;
        arena a;
        arena_init(&a);
        const char *line = cut_line(&a, generated, FIXTURE[i].keep_indent);
        *score = FIXTURE[i].metric(line, answer);
        *exact = metric_exact(line, answer);
        arena_fini(&a);
        return TPL_OK;
    }
    return tpl_fail(e, TPL_E_USAGE, task, "has no text metric, expected a long task such as single_doc_qa");
}

/* ---- multiple choice ---- */

mc_score metric_choose(const double *loglik, char *const *texts, int n, int gold)
{
    arena a;
    arena_init(&a);
    double *by_cp = arena_array(&a, double, n), *by_bytes = arena_array(&a, double, n);
    for (int i = 0; i < n; i++) {
        by_cp[i] = loglik[i] / (double)uni_count(texts[i]);
        by_bytes[i] = loglik[i] / (double)strlen(texts[i]);
    }
    int p = (int)stat_argmax(loglik, (size_t)n), q = (int)stat_argmax(by_cp, (size_t)n),
        r = (int)stat_argmax(by_bytes, (size_t)n);
    arena_fini(&a);
    return (mc_score){p, q, r, p == gold, q == gold, r == gold};
}
