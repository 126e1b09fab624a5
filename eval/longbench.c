#include "eval/longbench.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/arena.h"
#include "eval/align.h"
#include "eval/metrics.h"

static const lb_dataset DATASETS[] = {
    {"narrativeqa", "single_doc_qa", LB_QA_F1, 128, false, false, false},
    {"qasper", "single_doc_qa", LB_QA_F1, 128, false, false, true},
    {"multifieldqa_en", "single_doc_qa", LB_QA_F1, 64, false, false, true},
    {"multifieldqa_zh", "single_doc_qa", LB_SEGMENTED, 64, false, false, false},
    {"hotpotqa", "multi_hop_qa", LB_QA_F1, 32, false, false, true},
    {"2wikimqa", "multi_hop_qa", LB_QA_F1, 32, false, false, true},
    {"musique", "multi_hop_qa", LB_QA_F1, 32, false, false, false},
    {"dureader", "multi_hop_qa", LB_SEGMENTED, 128, false, false, false},
    {"gov_report", "summarisation", LB_ROUGE, 512, false, false, true},
    {"qmsum", "summarisation", LB_ROUGE, 512, false, false, false},
    {"multi_news", "summarisation", LB_ROUGE, 512, false, false, true},
    {"vcsum", "summarisation", LB_SEGMENTED, 512, false, false, false},
    {"trec", "few_shot", LB_CLASSIFICATION, 64, true, true, true},
    {"triviaqa", "few_shot", LB_QA_F1, 32, true, true, true},
    {"samsum", "few_shot", LB_ROUGE, 128, true, true, true},
    {"lsht", "few_shot", LB_CLASSIFICATION, 64, true, true, false},
    {"passage_count", "synthetic", LB_COUNT, 32, false, false, true},
    {"passage_retrieval_en", "synthetic", LB_RETRIEVAL, 32, false, false, true},
    {"passage_retrieval_zh", "synthetic", LB_RETRIEVAL_ZH, 32, false, false, false},
    {"lcc", "code", LB_CODE_SIM, 64, false, true, true},
    {"repobench-p", "code", LB_CODE_SIM, 64, false, true, true},
};

const lb_dataset *lb_find_dataset(const char *name)
{
    for (size_t i = 0; i < sizeof DATASETS / sizeof *DATASETS; i++)
        if (strcmp(DATASETS[i].name, name) == 0)
            return &DATASETS[i];
    return NULL;
}

/* ---- question answering ---- */

static bool is_ascii_punctuation(int32_t c)
{
    return c > ' ' && c < 0x7F && !(c >= '0' && c <= '9') && !(c >= 'A' && c <= 'Z') && !(c >= 'a' && c <= 'z');
}

static double qa_f1(arena *a, const char *prediction, const char *answer)
{
    metric_overlap o = metric_count_words(a, metric_normalise(a, prediction, is_ascii_punctuation),
                                          metric_normalise(a, answer, is_ascii_punctuation));
    if (o.n_shared == 0)
        return 0.0;
    double precision = (double)o.n_shared / (double)o.n_prediction;
    double recall = (double)o.n_shared / (double)o.n_answer;
    return 2 * precision * recall / (precision + recall);
}

/* ---- ROUGE-L ---- */

typedef struct {
    size_t begin, end; /* words of one sentence */
} sentence;

/* Sentences of several texts, and all their words in one row. */
typedef struct {
    uni_text *words;
    sentence *sentences;
    size_t n_words, n_sentences;
} corpus;

/* Adds the pieces between full stops; a piece of blanks only is a sentence of one empty word. */
static void add_sentences(arena *a, corpus *c, uni_text t)
{
    for (size_t begin = 0, i = 0; i <= t.n; i++) {
        if (i < t.n && t.cp[i] != '.')
            continue;
        if (i > begin) {
            uni_text *words;
            size_t n = uni_split(a, uni_slice(t, begin, i), &words);
            memcpy(c->words + c->n_words, words, n * sizeof *words);
            n += n == 0; /* the array's zeroed entry is the empty word */
            c->sentences[c->n_sentences++] = (sentence){c->n_words, c->n_words + n};
            c->n_words += n;
        }
        begin = i + 1;
    }
}

static size_t count_distinct(arena *a, const int32_t *ids, size_t n, size_t n_ids)
{
    unsigned char *seen = arena_alloc(a, n_ids + 1);
    size_t distinct = 0;
    for (size_t i = 0; i < n; i++) {
        distinct += !seen[ids[i]];
        seen[ids[i]] = 1;
    }
    return distinct;
}

/* Calls that the reference's recursion allows: CPython's limit of 1000 less the frames above it, as its script stands.
 */
enum { ROUGE_MAX_CALLS = 991 };

/* Marks the words of the longest common subsequence of every pair of sentences. *too_deep: the reference would fail. */
static tpl_code mark_common(arena *a, const corpus *c, size_t n_hyp, const int32_t *ids, unsigned char *marks,
                            bool *too_deep, tpl_err *e)
{
    for (size_t r = n_hyp; r < c->n_sentences; r++)
        for (size_t h = 0; h < n_hyp; h++) {
            sentence x = c->sentences[r], y = c->sentences[h];
            size_t n_steps;
            TPL_TRY(
                align_mark_lcs(a, ids + x.begin, x.end - x.begin, ids + y.begin, y.end - y.begin, marks, &n_steps, e));
            *too_deep |= n_steps + 1 > ROUGE_MAX_CALLS;
        }
    return TPL_OK;
}

static tpl_code rouge_l(arena *a, const lb_options *o, const char *prediction, const char *answer, double *score,
                        tpl_err *e)
{
    uni_text p = uni_decode(a, prediction, strlen(prediction)), g = uni_decode(a, answer, strlen(answer));
    size_t most = p.n + g.n + 2;
    corpus c = {.words = arena_array(a, uni_text, most), .sentences = arena_array(a, sentence, most)};
    int32_t *ids = arena_array(a, int32_t, most);
    add_sentences(a, &c, p);
    size_t n_hyp = c.n_sentences, n_hyp_words = c.n_words;
    add_sentences(a, &c, g);
    *score = 0;
    if (n_hyp == 0 || c.n_sentences == n_hyp)
        return TPL_OK;
    size_t n_ids = align_number_words(a, c.words, c.n_words, ids);
    unsigned char *marks = arena_alloc(a, n_ids);
    bool too_deep = false;
    TPL_TRY(mark_common(a, &c, n_hyp, ids, marks, &too_deep, e));
    if (too_deep && o->recursion_limit)
        return TPL_OK;
    double common = 0;
    for (size_t i = 0; i < n_ids; i++)
        common += marks[i];
    double precision = common / (double)count_distinct(a, ids, n_hyp_words, n_ids);
    double recall = common / (double)count_distinct(a, ids + n_hyp_words, c.n_words - n_hyp_words, n_ids);
    *score = 2.0 * ((precision * recall) / (precision + recall + 1e-8));
    return TPL_OK;
}

/* ---- classification ---- */

/* Classes inside the prediction, less those that are only a part of the answer. The reference deletes while it walks,
 * so that the class after a deleted one is never looked at; kept. */
static double classification(arena *a, const lb_item *item, const char *answer)
{
    const char **matched = arena_array(a, const char *, item->n_classes + 1);
    int n = 0;
    for (int i = 0; i < item->n_classes; i++)
        if (strstr(item->prediction, item->all_classes[i]))
            matched[n++] = item->all_classes[i];
    for (int i = 0; i < n; i++) {
        if (!strstr(answer, matched[i]) || strcmp(answer, matched[i]) == 0)
            continue;
        int first = 0;
        while (strcmp(matched[first], matched[i]) != 0)
            first++;
        memmove(matched + first, matched + first + 1, (size_t)(n - first - 1) * sizeof *matched);
        n--;
    }
    for (int i = 0; i < n; i++)
        if (strcmp(matched[i], answer) == 0)
            return 1.0 / n;
    return 0.0;
}

/* ---- numbers ---- */

/* End of the run of decimal digits of any script at `i`. */
static size_t end_of_digits(uni_text t, size_t i)
{
    while (i < t.n && uni_is_digit(t.cp[i]))
        i++;
    return i;
}

/* Share of the text's numbers that are spelt like `number`; 0 where there is none. */
static double share_of_number(uni_text t, uni_text number)
{
    size_t n = 0, right = 0;
    for (size_t i = 0; i < t.n;) {
        size_t end = end_of_digits(t, i);
        if (end > i) {
            n++;
            right += uni_equal(uni_slice(t, i, end), number);
        }
        i = end + (end == i);
    }
    return n ? (double)right / (double)n : 0.0;
}

static tpl_code retrieval(arena *a, const char *mark, const char *prediction, const char *answer, double *score,
                          tpl_err *e)
{
    uni_text p = uni_decode(a, prediction, strlen(prediction));
    for (const char *at = answer; (at = strstr(at, mark)); at++) {
        const char *rest = at + strlen(mark);
        uni_text g = uni_decode(a, rest, strlen(rest));
        size_t end = end_of_digits(g, 0);
        if (end == 0)
            continue;
        *score = share_of_number(p, uni_slice(g, 0, end));
        return TPL_OK;
    }
    return tpl_fail(e, TPL_E_INPUT, "answer", "'%.60s' names no paragraph, expected '%s' and a number", answer, mark);
}

/* ---- code ---- */

/* The first line that holds no backtick, '#' or "//"; "" if there is none. Blank lines count, except leading empty
 * ones. */
static char *first_code_line(arena *a, const char *s)
{
    s += strspn(s, "\n");
    for (;;) {
        size_t n = strcspn(s, "\n");
        char *line = arena_strndup(a, s, n);
        if (!strpbrk(line, "`#") && !strstr(line, "//"))
            return line;
        if (!s[n])
            return arena_strdup(a, "");
        s += n + 1;
    }
}

/* Whole per cent, half to even. */
static double code_similarity(arena *a, const lb_options *o, const char *prediction, const char *answer)
{
    const char *line = first_code_line(a, prediction);
    if (strcmp(line, answer) == 0)
        return 1.0;
    uni_text x = uni_decode(a, line, strlen(line)), y = uni_decode(a, answer, strlen(answer));
    if (x.n == 0 || y.n == 0)
        return 0.0;
    size_t shared = o->levenshtein ? align_lcs(a, x.cp, x.n, y.cp, y.n) : align_match_blocks(a, x.cp, x.n, y.cp, y.n);
    return rint(100.0 * (2.0 * (double)shared / (double)(x.n + y.n))) / 100;
}

/* ---- items ---- */

static tpl_code score_answer(arena *a, lb_metric metric, const lb_options *o, const lb_item *item, const char *answer,
                             double *score, tpl_err *e)
{
    switch (metric) {
    case LB_QA_F1:
        *score = qa_f1(a, item->prediction, answer);
        return TPL_OK;
    case LB_ROUGE:
        return rouge_l(a, o, item->prediction, answer, score, e);
    case LB_CLASSIFICATION:
        *score = classification(a, item, answer);
        return TPL_OK;
    case LB_RETRIEVAL:
        return retrieval(a, "Paragraph ", item->prediction, answer, score, e);
    case LB_RETRIEVAL_ZH:
        return retrieval(a, "\u6bb5\u843d", item->prediction, answer, score, e);
    case LB_COUNT:
        *score = share_of_number(uni_decode(a, item->prediction, strlen(item->prediction)),
                                 uni_decode(a, answer, strlen(answer)));
        return TPL_OK;
    case LB_CODE_SIM:
        *score = code_similarity(a, o, item->prediction, answer);
        return TPL_OK;
    case LB_SEGMENTED:
        break;
    }
    return tpl_fail(e, TPL_E_UNSUPPORTED, "metric", "needs Chinese word segmentation, which this build does not have");
}

tpl_code lb_score_answer(lb_metric metric, const lb_options *o, const lb_item *item, const char *answer, double *score,
                         tpl_err *e)
{
    arena a;
    double got = 0;
    arena_init(&a);
    tpl_code rc = score_answer(&a, metric, o, item, answer, &got, e);
    arena_fini(&a);
    if (rc == TPL_OK)
        *score = got;
    return rc;
}

tpl_code lb_score_item(const lb_dataset *d, const lb_options *o, const lb_item *item, double *score, tpl_err *e)
{
    lb_item cut = *item;
    char *line = NULL;
    double best = 0;
    tpl_code rc = TPL_OK;
    if (d->first_line) {
        const char *s = item->prediction + strspn(item->prediction, "\n");
        size_t n = strcspn(s, "\n");
        line = tpl_malloc(n + 1);
        memcpy(line, s, n);
        line[n] = 0;
        cut.prediction = line;
    }
    for (int i = 0; i < item->n_answers; i++) {
        double one = 0;
        TPL_GOTO(rc, lb_score_answer(d->metric, o, &cut, item->answers[i], &one, e), done);
        best = one > best ? one : best;
    }
    *score = best;
done:
    free(line);
    return rc;
}

/* ---- aggregates ---- */

double lb_round2(double x)
{
    char decimal[350]; /* the longest double has 309 digits before the point */
    snprintf(decimal, sizeof decimal, "%.2f", x);
    return strtod(decimal, NULL);
}

double lb_round2_numpy(double x)
{
    return rint(x * 100) / 100;
}

double lb_score_dataset(const double *scores, size_t n)
{
    double sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += scores[i];
    return lb_round2(100 * sum / (double)n);
}

/* numpy's summation order: eight partial sums up to 128 numbers, halves beyond. */
static double sum_pairwise(const double *x, size_t n)
{
    if (n > 128) {
        size_t half = n / 2 - n / 2 % 8;
        return sum_pairwise(x, half) + sum_pairwise(x + half, n - half);
    }
    double sum = 0, r[8] = {0};
    size_t i = 0;
    for (; n >= 8 && i < n - n % 8; i++)
        r[i % 8] += x[i];
    if (n >= 8)
        sum = ((r[0] + r[1]) + (r[2] + r[3])) + ((r[4] + r[5]) + (r[6] + r[7]));
    for (; i < n; i++)
        sum += x[i];
    return sum;
}

void lb_score_by_length(const double *scores, const int64_t *n_words, size_t n, double per_cent[3])
{
    static const int64_t from[] = {INT64_MIN, 4000, 8000}, to[] = {4000, 8000, INT64_MAX};
    double *some = tpl_malloc(n * sizeof *some);
    for (int b = 0; b < 3; b++) {
        size_t count = 0;
        for (size_t i = 0; i < n; i++)
            if (n_words[i] >= from[b] && (n_words[i] < to[b] || b == 2))
                some[count++] = scores[i];
        per_cent[b] = count ? lb_round2_numpy(100 * (sum_pairwise(some, count) / (double)count)) : NAN;
    }
    free(some);
}
