#include "datasets/unicode.h"

#include <stdlib.h>
#include <string.h>

#include <utf8proc.h>

/* ---- bytes and code points ---- */

/* Length of the valid sequence at s and its code point; 0 if there is none. */
static size_t read_one(const char *s, size_t n_bytes, int32_t *cp)
{
    utf8proc_int32_t c;
    size_t n = n_bytes < 4 ? n_bytes : 4;
    utf8proc_ssize_t len = utf8proc_iterate((const utf8proc_uint8_t *)s, (utf8proc_ssize_t)n, &c);
    if (len <= 0)
        return 0;
    *cp = c;
    return (size_t)len;
}

uni_text uni_decode(arena *a, const char *s, size_t n_bytes)
{
    int32_t *cp = arena_array(a, int32_t, n_bytes ? n_bytes : 1);
    size_t n = 0;
    for (size_t i = 0; i < n_bytes; n++) {
        size_t len = read_one(s + i, n_bytes - i, &cp[n]);
        if (len == 0)
            cp[n] = 0xFFFD;
        i += len ? len : 1;
    }
    return (uni_text){cp, n};
}

char *uni_encode(arena *a, uni_text t)
{
    utf8proc_uint8_t *s = arena_alloc(a, 4 * t.n + 1);
    size_t n = 0;
    for (size_t i = 0; i < t.n; i++)
        n += (size_t)utf8proc_encode_char(t.cp[i], s + n);
    s[n] = 0;
    return (char *)s;
}

size_t uni_find_bad(const char *s, size_t n_bytes)
{
    size_t i = 0, len;
    int32_t c;
    while (i < n_bytes && (len = read_one(s + i, n_bytes - i, &c)) > 0)
        i += len;
    return i;
}

size_t uni_count(const char *s)
{
    size_t n = 0, left = strlen(s);
    int32_t c;
    for (; left; n++) {
        size_t len = read_one(s, left, &c);
        s += len ? len : 1;
        left -= len ? len : 1;
    }
    return n;
}

/* ---- classes ---- */

bool uni_is_space(int32_t c)
{
    return (c >= 0x09 && c <= 0x0D) || (c >= 0x1C && c <= 0x20) || c == 0x85 || c == 0xA0 || c == 0x1680 ||
           (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000;
}

bool uni_is_word(int32_t c)
{
    utf8proc_category_t k = utf8proc_category(c);
    return c == '_' || (k >= UTF8PROC_CATEGORY_LU && k <= UTF8PROC_CATEGORY_LO) ||
           (k >= UTF8PROC_CATEGORY_ND && k <= UTF8PROC_CATEGORY_NO);
}

bool uni_is_digit(int32_t c)
{
    return utf8proc_category(c) == UTF8PROC_CATEGORY_ND;
}

/* ---- pieces ---- */

uni_text uni_slice(uni_text t, size_t begin, size_t end)
{
    return (uni_text){t.cp + begin, end - begin};
}

uni_text uni_strip(uni_text t)
{
    while (t.n && uni_is_space(t.cp[t.n - 1]))
        t.n--;
    while (t.n && uni_is_space(t.cp[0]))
        t = uni_slice(t, 1, t.n);
    return t;
}

bool uni_equal(uni_text x, uni_text y)
{
    return x.n == y.n && (x.n == 0 || memcmp(x.cp, y.cp, x.n * sizeof *x.cp) == 0);
}

size_t uni_split(arena *a, uni_text t, uni_text **words)
{
    uni_text *w = arena_array(a, uni_text, t.n / 2 + 1);
    size_t n = 0, i = 0;
    while (i < t.n) {
        size_t begin = i;
        while (i < t.n && !uni_is_space(t.cp[i]))
            i++;
        if (i > begin)
            w[n++] = uni_slice(t, begin, i);
        i += i == begin;
    }
    *words = w;
    return n;
}

/* ---- case; the rules of Unicode's SpecialCasing.txt that no one-to-one table can hold ---- */

/* Property Case_Ignorable: marks, formats, modifiers and the punctuation that stands inside words. */
static bool is_case_ignorable(int32_t c)
{
    static const int32_t inside_words[] = {0x27,   0x2E,   0x3A,   0xB7,   0x387,  0x55F,  0x5F4,  0x2018, 0x2019,
                                           0x2024, 0x2027, 0xFE13, 0xFE52, 0xFE55, 0xFF07, 0xFF0E, 0xFF1A};
    switch (utf8proc_category(c)) {
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_SK:
        return true;
    default:
        for (size_t i = 0; i < sizeof inside_words / sizeof *inside_words; i++)
            if (inside_words[i] == c)
                return true;
        return false;
    }
}

/* Property Cased, for code points that are not Case_Ignorable. */
static bool is_cased(int32_t c)
{
    utf8proc_category_t k = utf8proc_category(c);
    return (k >= UTF8PROC_CATEGORY_LU && k <= UTF8PROC_CATEGORY_LT) || c == 0xAA || c == 0xBA ||
           (c >= 0x2160 && c <= 0x217F) || (c >= 0x24B6 && c <= 0x24E9) || (c >= 0x1F130 && c <= 0x1F149) ||
           (c >= 0x1F150 && c <= 0x1F169) || (c >= 0x1F170 && c <= 0x1F189);
}

/* A capital sigma at i ends a word: a cased letter before it and none after it, case-ignorable ones passed over. */
static bool is_final_sigma(uni_text t, size_t i)
{
    size_t before = i, after = i + 1;
    while (before > 0 && is_case_ignorable(t.cp[before - 1]))
        before--;
    while (after < t.n && is_case_ignorable(t.cp[after]))
        after++;
    return before > 0 && is_cased(t.cp[before - 1]) && !(after < t.n && is_cased(t.cp[after]));
}

/* Appends the lower case of t.cp[i] at out; gives how many were written, at most 2. */
static size_t lower_one(uni_text t, size_t i, int32_t *out)
{
    int32_t c = t.cp[i];
    out[0] = c == 0x3A3 ? (is_final_sigma(t, i) ? 0x3C2 : 0x3C3) : c == 0x130 ? 'i' : utf8proc_tolower(c);
    if (c != 0x130)
        return 1;
    out[1] = 0x307;
    return 2;
}

uni_text uni_lower(arena *a, uni_text t)
{
    int32_t *out = arena_array(a, int32_t, 2 * t.n + 1);
    size_t n = 0;
    for (size_t i = 0; i < t.n; i++)
        n += lower_one(t, i, out + n);
    return (uni_text){out, n};
}

typedef struct {
    int32_t from, to[3]; /* 0 ends a shorter `to` */
} title_row;

/* Title cases of more than one code point, in ascending order. */
static const title_row TITLES[] = {
    {0x00DF, {0x0053, 0x0073}},         {0x0149, {0x02BC, 0x004E}},         {0x01F0, {0x004A, 0x030C}},
    {0x0390, {0x0399, 0x0308, 0x0301}}, {0x03B0, {0x03A5, 0x0308, 0x0301}}, {0x0587, {0x0535, 0x0582}},
    {0x1E96, {0x0048, 0x0331}},         {0x1E97, {0x0054, 0x0308}},         {0x1E98, {0x0057, 0x030A}},
    {0x1E99, {0x0059, 0x030A}},         {0x1E9A, {0x0041, 0x02BE}},         {0x1F50, {0x03A5, 0x0313}},
    {0x1F52, {0x03A5, 0x0313, 0x0300}}, {0x1F54, {0x03A5, 0x0313, 0x0301}}, {0x1F56, {0x03A5, 0x0313, 0x0342}},
    {0x1FB2, {0x1FBA, 0x0345}},         {0x1FB4, {0x0386, 0x0345}},         {0x1FB6, {0x0391, 0x0342}},
    {0x1FB7, {0x0391, 0x0342, 0x0345}}, {0x1FC2, {0x1FCA, 0x0345}},         {0x1FC4, {0x0389, 0x0345}},
    {0x1FC6, {0x0397, 0x0342}},         {0x1FC7, {0x0397, 0x0342, 0x0345}}, {0x1FD2, {0x0399, 0x0308, 0x0300}},
    {0x1FD3, {0x0399, 0x0308, 0x0301}}, {0x1FD6, {0x0399, 0x0342}},         {0x1FD7, {0x0399, 0x0308, 0x0342}},
    {0x1FE2, {0x03A5, 0x0308, 0x0300}}, {0x1FE3, {0x03A5, 0x0308, 0x0301}}, {0x1FE4, {0x03A1, 0x0313}},
    {0x1FE6, {0x03A5, 0x0342}},         {0x1FE7, {0x03A5, 0x0308, 0x0342}}, {0x1FF2, {0x1FFA, 0x0345}},
    {0x1FF4, {0x038F, 0x0345}},         {0x1FF6, {0x03A9, 0x0342}},         {0x1FF7, {0x03A9, 0x0342, 0x0345}},
    {0xFB00, {0x0046, 0x0066}},         {0xFB01, {0x0046, 0x0069}},         {0xFB02, {0x0046, 0x006C}},
    {0xFB03, {0x0046, 0x0066, 0x0069}}, {0xFB04, {0x0046, 0x0066, 0x006C}}, {0xFB05, {0x0053, 0x0074}},
    {0xFB06, {0x0053, 0x0074}},         {0xFB13, {0x0544, 0x0576}},         {0xFB14, {0x0544, 0x0565}},
    {0xFB15, {0x0544, 0x056B}},         {0xFB16, {0x054E, 0x0576}},         {0xFB17, {0x0544, 0x056D}},
};

static int compare_title(const void *key, const void *row)
{
    int32_t c = *(const int32_t *)key, from = ((const title_row *)row)->from;
    return (c > from) - (c < from);
}

uni_text uni_capitalise(arena *a, uni_text t)
{
    int32_t *out = arena_array(a, int32_t, 2 * t.n + 3);
    size_t n = 0;
    if (t.n == 0)
        return t;
    const title_row *row = bsearch(t.cp, TITLES, sizeof TITLES / sizeof *TITLES, sizeof *TITLES, compare_title);
    if (row)
        while (n < 3 && row->to[n]) {
            out[n] = row->to[n];
            n++;
        }
    else
        out[n++] = utf8proc_totitle(t.cp[0]);
    for (size_t i = 1; i < t.n; i++)
        n += lower_one(t, i, out + n);
    return (uni_text){out, n};
}
