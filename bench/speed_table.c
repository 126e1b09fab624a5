#include "bench/speed_table.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/arena.h"
#include "engine/variant.h"

enum { MAX_CONTEXTS = 32 };

/* ---- reading rows ---- */

typedef struct {
    const csv_table *t;
    long row;
} line;

static const char *text_at(line l, const char *column)
{
    return csv_table_text(l.t, l.row, column);
}

static double real_at(line l, const char *column)
{
    double v = NAN;
    return csv_table_want_real(l.t, l.row, column, &v, NULL) == TPL_OK ? v : NAN;
}

static bool same(line a, line b, const char *column)
{
    return strcmp(text_at(a, column), text_at(b, column)) == 0;
}

/* Rows but the last of a cell are history. */
static bool is_last(line l)
{
    for (line k = {l.t, l.row + 1}; k.row < csv_table_n_rows(l.t); k.row++)
        if (same(k, l, "cell_id"))
            return false;
    return true;
}

static bool find_cell(const csv_table *t, const char *id, line *out)
{
    for (line l = {t, csv_table_n_rows(t) - 1}; *id && l.row >= 0; l.row--)
        if (strcmp(text_at(l, "cell_id"), id) == 0) {
            *out = l;
            return true;
        }
    return false;
}

/* The place in a sweep, but for context and batch. */
static bool same_place(line a, line b)
{
    static const char *const columns[] = {"layers",  "moe",      "tp",         "ranks",
                                          "backend", "kv_dtype", "decode_tok", "batch_rule"};
    for (size_t i = 0; i < sizeof columns / sizeof *columns; i++)
        if (!same(a, b, columns[i]))
            return false;
    return true;
}

static bool is_max(line l)
{
    return strcmp(text_at(l, "batch_rule"), "max") == 0;
}

/* The row that a row's ratio is against: its own baseline, or, for a counterpart of another model that was not paired,
 * that model's first row at the same place. *paired tells which. */
static bool find_base(line l, line *base, bool *paired)
{
    const char *name = text_at(l, "model"), *dash = strrchr(name, '-');
    *paired = find_cell(l.t, text_at(l, "baseline_cell"), base);
    if (*paired || !dash || (strcmp(dash, "-gqa") != 0 && strcmp(dash, "-gla") != 0))
        return *paired;
    for (line k = {l.t, 0}; k.row < csv_table_n_rows(l.t); k.row++) {
        const char *other = text_at(k, "model");
        bool of_model = strlen(other) == (size_t)(dash - name) && strncmp(other, name, strlen(other)) == 0;
        if (of_model && strcmp(text_at(k, "variant"), "mla") == 0 && same_place(k, l) && same(k, l, "context_tok") &&
            (is_max(l) || same(k, l, "batch")) && is_last(k)) {
            *base = k;
            return true;
        }
    }
    return false;
}

static double per_second(line l, const char *ms)
{
    return real_at(l, "batch") / real_at(l, ms);
}

/* ---- what was published ---- */

static const struct {
    const char *shape, *published;
} names[] = {{"deepseek-v3", "DeepSeek-V3-0324"}, {"kimi-k2", "Kimi-K2-Base"}};

static bool names_agree(line ours, line theirs)
{
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (strcmp(text_at(ours, "model"), names[i].shape) == 0)
            return strstr(text_at(theirs, "model"), names[i].published) != NULL;
    return false;
}

static bool agrees_where_given(line ours, line theirs, const char *column)
{
    return !*text_at(theirs, column) || same(ours, theirs, column);
}

/* The paper's own TPLA, projections duplicated, at the largest batch; ratios without a decode length are not of 4096.
 */
static const char *published_ratio(line l, const csv_table *published, const char *metric, int64_t long_decode)
{
    variant v;
    if (!published || variant_parse(text_at(l, "variant"), &v, NULL) != TPL_OK || v.kind != VAR_TPLA ||
        v.proj != PROJ_DUP)
        return "";
    for (line p = {published, 0}; p.row < csv_table_n_rows(published); p.row++) {
        bool of_length = *text_at(p, "decode_tok") || !(real_at(l, "decode_tok") >= (double)long_decode);
        if (strncmp(text_at(p, "metric"), metric, strlen(metric)) == 0 && names_agree(l, p) && of_length &&
            same(l, p, "tp") && agrees_where_given(l, p, "context_tok") && agrees_where_given(l, p, "decode_tok"))
            return text_at(p, "ratio");
    }
    return "";
}

/* ---- cells of tables ---- */

static const char *number(arena *a, double v)
{
    return isfinite(v) ? arena_printf(a, "%.17g", v) : "";
}

static const char *short_variant(arena *a, line l)
{
    variant v;
    char *text = arena_alloc(a, VARIANT_TEXT);
    if (variant_parse(text_at(l, "variant"), &v, NULL) != TPL_OK)
        return text_at(l, "variant");
    variant_format_short(&v, text);
    return text;
}

static const char *batch_text(arena *a, line l)
{
    return is_max(l) ? arena_printf(a, "%s (max)", text_at(l, "batch")) : text_at(l, "batch");
}

static const char *ranks_text(arena *a, line l)
{
    return arena_printf(a, "%s %s", text_at(l, "tp"), text_at(l, "ranks"));
}

/* Whether the ratio may be claimed. */
static const char *verdict(line l, bool paired)
{
    const char *status = text_at(l, "status");
    if (strcmp(status, "ok") == 0)
        return paired || !*text_at(l, "baseline_cell") ? "ok" : "not paired";
    return strcmp(status, "kernel_below_bound") == 0 ? "provisional" : status;
}

typedef struct {
    const char *name, *heading, *unit;
    rs_type type;
} column;

static table *make_table(const char *title, const column *columns, int n)
{
    table *t = table_create(title);
    for (int i = 0; i < n; i++)
        table_add_column(t, columns[i].name, columns[i].heading, columns[i].unit, columns[i].type);
    return t;
}

/* "Ours: NVIDIA H100, random weights, moe off": from the first row. */
static const char *ours(arena *a, const csv_table *rows, const char *what)
{
    line l = {rows, 0};
    return arena_printf(a, "%s; %s, %s weights%s%s", what, text_at(l, "device"), text_at(l, "weights"),
                        *text_at(l, "moe") ? ", moe=" : "", text_at(l, "moe"));
}

/* ---- decode ---- */

static void add_decode_line(table *out, line l, const csv_table *published, arena *a)
{
    line base = l;
    bool paired, found = find_base(l, &base, &paired);
    double bound = found ? per_second(l, "bound_ms") / per_second(base, "bound_ms") : NAN;
    double unpaired = found ? real_at(l, "tok_per_s") / real_at(base, "tok_per_s") : NAN;
    const char *cells[] = {text_at(l, "model"),
                           short_variant(a, l),
                           ranks_text(a, l),
                           text_at(l, "context_tok"),
                           text_at(l, "decode_tok"),
                           batch_text(a, l),
                           text_at(l, "tok_per_s"),
                           paired ? text_at(l, "ratio") : number(a, unpaired),
                           paired ? text_at(l, "ratio_lo") : "",
                           paired ? text_at(l, "ratio_hi") : "",
                           number(a, bound),
                           text_at(l, "bound_frac"),
                           text_at(l, "attn_bound_frac"),
                           text_at(l, "clock_mhz"),
                           text_at(l, "comm_exposed_ms"),
                           is_max(l) ? published_ratio(l, published, "decode throughput", 4096) : "",
                           found && !paired ? "not paired" : verdict(l, paired)};
    table_add_row(out, cells);
}

table *speed_table_decode(const csv_table *rows, const csv_table *published)
{
    static const column columns[] = {{"model", "model", "", RS_TEXT},
                                     {"variant", "variant", "", RS_TEXT},
                                     {"ranks", "ranks", "", RS_TEXT},
                                     {"context", "context", "tok", RS_INT},
                                     {"decode", "decode", "tok", RS_INT},
                                     {"batch", "batch", "", RS_TEXT},
                                     {"tok_per_s", "tok/s", "", RS_REAL},
                                     {"ratio", "ratio", "", RS_REAL},
                                     {"from", "from", "", RS_REAL},
                                     {"to", "to", "", RS_REAL},
                                     {"bound_ratio", "bound's", "", RS_REAL},
                                     {"bound_frac", "of bound", "", RS_REAL},
                                     {"attn_bound_frac", "attention", "of bound", RS_REAL},
                                     {"clock_mhz", "clock", "MHz", RS_REAL},
                                     {"comm_exposed_ms", "comm", "ms", RS_REAL},
                                     {"published", "published", "", RS_REAL},
                                     {"verdict", "claim", "", RS_TEXT}};
    arena a;
    if (csv_table_n_rows(rows) == 0)
        return NULL;
    arena_init(&a);
    table *out = make_table(ours(&a, rows, "Decode throughput over the first variant"), columns,
                            sizeof columns / sizeof *columns);
    for (line l = {rows, 0}; l.row < csv_table_n_rows(rows); l.row++)
        if (is_last(l))
            add_decode_line(out, l, published, &a);
    arena_fini(&a);
    return out;
}

/* ---- time to first token ---- */

table *speed_table_ttft(const csv_table *rows, const csv_table *published)
{
    static const column columns[] = {{"model", "model", "", RS_TEXT},        {"variant", "variant", "", RS_TEXT},
                                     {"ranks", "ranks", "", RS_TEXT},        {"context", "context", "tok", RS_INT},
                                     {"batch", "batch", "", RS_TEXT},        {"ttft", "TTFT", "ms", RS_REAL},
                                     {"over", "baseline", "", RS_TEXT},      {"ratio", "ratio", "", RS_REAL},
                                     {"from", "from", "", RS_REAL},          {"to", "to", "", RS_REAL},
                                     {"bound", "of bound", "", RS_REAL},     {"matrix", "of matrix rate", "", RS_REAL},
                                     {"published", "published", "", RS_REAL}};
    arena a;
    table *out = NULL;
    arena_init(&a);
    for (line l = {rows, 0}; l.row < csv_table_n_rows(rows); l.row++) {
        line base;
        bool paired;
        if (!isfinite(real_at(l, "ttft_ms")) || !is_last(l))
            continue;
        bool has_base = isfinite(real_at(l, "ttft_ratio")) && find_base(l, &base, &paired);
        if (!out)
            out = make_table(ours(&a, rows, "Time to first token, the baseline's over each"), columns,
                             sizeof columns / sizeof *columns);
        variant v;
        bool over_pd_off =
            has_base && variant_parse(text_at(base, "variant"), &v, NULL) == TPL_OK && v.kind == VAR_TPLA && !v.pd;
        const char *cells[] = {text_at(l, "model"),
                               short_variant(&a, l),
                               ranks_text(&a, l),
                               text_at(l, "context_tok"),
                               batch_text(&a, l),
                               text_at(l, "ttft_ms"),
                               has_base ? short_variant(&a, base) : "",
                               text_at(l, "ttft_ratio"),
                               text_at(l, "ttft_ratio_lo"),
                               text_at(l, "ttft_ratio_hi"),
                               text_at(l, "ttft_bound_frac"),
                               text_at(l, "ttft_matrix_frac"),
                               over_pd_off ? published_ratio(l, published, "time to first token", INT64_MAX) : ""};
        table_add_row(out, cells);
    }
    arena_fini(&a);
    return out;
}

/* ---- crossover ---- */

double speed_crossing(const double *contexts, const double *base, const double *own, int n)
{
    int first = n;
    while (first > 0 && own[first - 1] < base[first - 1])
        first--;
    if (first == n)
        return NAN;
    if (first == 0)
        return contexts[0];
    double lost = own[first - 1] - base[first - 1], won = base[first] - own[first];
    return contexts[first - 1] + (contexts[first] - contexts[first - 1]) * lost / (lost + won);
}

/* One variant at one batch over the contexts that both sides have times of. */
typedef struct {
    double contexts[MAX_CONTEXTS], base[MAX_CONTEXTS], own[MAX_CONTEXTS], base_bound[MAX_CONTEXTS],
        own_bound[MAX_CONTEXTS];
    int n;
    bool provisional;
} series;

static bool of_series(line l, line like)
{
    return same(l, like, "model") && same(l, like, "variant") && same_place(l, like) && same(l, like, "batch");
}

static void insert(series *s, line l, line base)
{
    double context = real_at(l, "context_tok");
    int at = s->n++;
    for (; at > 0 && s->contexts[at - 1] > context; at--) {
        s->contexts[at] = s->contexts[at - 1];
        s->base[at] = s->base[at - 1];
        s->own[at] = s->own[at - 1];
        s->base_bound[at] = s->base_bound[at - 1];
        s->own_bound[at] = s->own_bound[at - 1];
    }
    s->contexts[at] = context;
    s->base[at] = real_at(base, "tpot_ms");
    s->own[at] = real_at(l, "tpot_ms");
    s->base_bound[at] = real_at(base, "bound_ms");
    s->own_bound[at] = real_at(l, "bound_ms");
    s->provisional = s->provisional || strcmp(text_at(l, "status"), "ok") != 0;
}

static series gather(line like)
{
    series s = {.n = 0};
    for (line l = {like.t, 0}; l.row < csv_table_n_rows(like.t) && s.n < MAX_CONTEXTS; l.row++) {
        line base;
        bool paired;
        if (of_series(l, like) && is_last(l) && find_base(l, &base, &paired) && paired &&
            isfinite(real_at(l, "tpot_ms") + real_at(base, "tpot_ms") + real_at(l, "ratio")))
            insert(&s, l, base);
    }
    return s;
}

/* "1.23 at 1024; ..." */
static const char *ratios_text(arena *a, const series *s)
{
    const char *text = "";
    for (int i = 0; i < s->n; i++)
        text = arena_printf(a, "%s%s%.2f at %.0f", text, i ? "; " : "", s->base[i] / s->own[i], s->contexts[i]);
    return text;
}

static const char *crossing_text(arena *a, const series *s, const double *base, const double *own)
{
    double at = speed_crossing(s->contexts, base, own, s->n);
    if (isnan(at))
        return arena_printf(a, "not up to %.0f", s->contexts[s->n - 1]);
    return at <= s->contexts[0] ? arena_printf(a, "%.0f or less", at) : arena_printf(a, "about %.0f", at);
}

table *speed_table_crossover(const csv_table *rows)
{
    static const column columns[] = {
        {"model", "model", "", RS_TEXT},           {"variant", "variant", "", RS_TEXT},
        {"ranks", "ranks", "", RS_TEXT},           {"batch", "batch", "", RS_INT},
        {"decode", "decode", "tok", RS_INT},       {"measured", "wins from", "tok", RS_TEXT},
        {"bound", "by the bound", "tok", RS_TEXT}, {"ratios", "ratios", "", RS_TEXT},
        {"verdict", "claim", "", RS_TEXT}};
    arena a;
    table *out = NULL;
    arena_init(&a);
    for (line l = {rows, 0}; l.row < csv_table_n_rows(rows); l.row++) {
        bool first = !is_max(l) && *text_at(l, "baseline_cell");
        for (line k = {rows, 0}; k.row < l.row && first; k.row++)
            first = !of_series(k, l);
        series s = first ? gather(l) : (series){.n = 0};
        if (s.n < 2)
            continue;
        if (!out)
            out = make_table(ours(&a, rows, "Context from which a variant decodes faster than the first"), columns,
                             sizeof columns / sizeof *columns);
        const char *cells[] = {text_at(l, "model"),
                               short_variant(&a, l),
                               ranks_text(&a, l),
                               text_at(l, "batch"),
                               text_at(l, "decode_tok"),
                               crossing_text(&a, &s, s.base, s.own),
                               crossing_text(&a, &s, s.base_bound, s.own_bound),
                               ratios_text(&a, &s),
                               s.provisional ? "provisional" : "ok"};
        table_add_row(out, cells);
    }
    arena_fini(&a);
    return out;
}
