/* schema.h - the kinds of result files, their columns and the status words.
 * For:    writing rows, reading runs and published tables, printing tables, checking docs/method.md.
 * Enter:  all rooms above results/.
 * Owns:   nothing; all names are static strings.
 * Fails:  never; look-ups give -1 for an unknown name. */
#ifndef TPL_RESULTS_SCHEMA_H
#define TPL_RESULTS_SCHEMA_H

#include <stdbool.h>

#include "base/text.h"
#include "results/columns.h"

/* enum, name; the file is the name with ".csv". */
#define RS_KIND_LIST(X)                                                                                                \
    X(RS_ACCURACY, accuracy)                                                                                           \
    X(RS_PLAN, plan)                                                                                                   \
    X(RS_LATENCY, latency)                                                                                             \
    X(RS_KERNELS, kernels)                                                                                             \
    X(RS_SPECULATE, speculate)                                                                                         \
    X(RS_TRACES, traces)                                                                                               \
    X(RS_HANDOFF, handoff)

typedef enum {
#define RS_KIND_ENUM(id, name) id,
    RS_KIND_LIST(RS_KIND_ENUM)
#undef RS_KIND_ENUM
        RS_N_KINDS
} rs_kind;

typedef enum { RS_TEXT, RS_INT, RS_REAL } rs_type;

typedef struct {
    const char *name;
    rs_type type;
    bool config;       /* part of the cell's configuration */
    const char *unit;  /* "" for none */
    const char *about; /* one line */
} rs_column;

/* Column numbers: ACC_model, LAT_tpot_ms, ... The four common ones have the same number in every kind. */
#define RS_NUMBER_COMMON(name, type, role, unit, about) RS_##name,
#define RS_NUMBER_ACC(name, type, role, unit, about) ACC_##name,
#define RS_NUMBER_PLAN(name, type, role, unit, about) PLAN_##name,
#define RS_NUMBER_LAT(name, type, role, unit, about) LAT_##name,
#define RS_NUMBER_KER(name, type, role, unit, about) KER_##name,
#define RS_NUMBER_SPEC(name, type, role, unit, about) SPEC_##name,
#define RS_NUMBER_TRACE(name, type, role, unit, about) TRACE_##name,
#define RS_NUMBER_HAND(name, type, role, unit, about) HAND_##name,
enum { RS_COMMON_COLUMNS(RS_NUMBER_COMMON) RS_N_COMMON };
enum { ACC_before = RS_N_COMMON - 1, RS_ACCURACY_COLUMNS(RS_NUMBER_ACC) ACC_N_COLUMNS };
enum { PLAN_before = RS_N_COMMON - 1, RS_PLAN_COLUMNS(RS_NUMBER_PLAN) PLAN_N_COLUMNS };
enum { LAT_before = RS_N_COMMON - 1, RS_LATENCY_COLUMNS(RS_NUMBER_LAT) LAT_N_COLUMNS };
enum { KER_before = RS_N_COMMON - 1, RS_KERNELS_COLUMNS(RS_NUMBER_KER) KER_N_COLUMNS };
enum { SPEC_before = RS_N_COMMON - 1, RS_SPECULATE_COLUMNS(RS_NUMBER_SPEC) SPEC_N_COLUMNS };
enum { TRACE_before = RS_N_COMMON - 1, RS_TRACES_COLUMNS(RS_NUMBER_TRACE) TRACE_N_COLUMNS };
enum { HAND_before = RS_N_COMMON - 1, RS_HANDOFF_COLUMNS(RS_NUMBER_HAND) HAND_N_COLUMNS };
#undef RS_NUMBER_COMMON
#undef RS_NUMBER_ACC
#undef RS_NUMBER_PLAN
#undef RS_NUMBER_LAT
#undef RS_NUMBER_KER
#undef RS_NUMBER_SPEC
#undef RS_NUMBER_TRACE
#undef RS_NUMBER_HAND

enum { RS_MAX_COLUMNS = 80 };

/* enum, word, meaning */
#define RS_STATUS_LIST(X)                                                                                              \
    X(RS_OK, ok, "measured and right")                                                                                 \
    X(RS_TOO_NOISY, too_noisy, "the samples did not settle before the count or the time ran out")                      \
    X(RS_THROTTLED, throttled, "the clock fell while sampling")                                                        \
    X(RS_WARM_CACHE, warm_cache, "the data could not be kept out of the caches")                                       \
    X(RS_WRONG_ANSWER, wrong_answer, "the output differs from the reference")                                          \
    X(RS_INCOMPLETE, incomplete, "interrupted, or a part is missing; a resumed run measures it again")                 \
    X(RS_UNSUPPORTED, unsupported, "this build, machine or model cannot run the configuration")                        \
    X(RS_OUT_OF_MEMORY, out_of_memory, "the configuration does not fit")                                               \
    X(RS_BAD_CEILING, bad_ceiling, "faster than the bound allows, so a ceiling is wrong")                              \
    X(RS_KERNEL_BELOW_BOUND, kernel_below_bound, "a side of the ratio stays below 0.80 of its bound")                  \
    X(RS_MODELLED, modelled, "computed from a cost model, not measured")                                               \
    X(RS_UNLIKE, unlike, "the two sides were not measured under like conditions")

typedef enum {
#define RS_STATUS_ENUM(id, word, about) id,
    RS_STATUS_LIST(RS_STATUS_ENUM)
#undef RS_STATUS_ENUM
        RS_N_STATUS
} rs_status;

const char *rs_kind_name(rs_kind kind); /* "accuracy" */
const char *rs_kind_file(rs_kind kind); /* "accuracy.csv" */
int rs_kind_find(const char *name);

const rs_column *rs_columns(rs_kind kind);
int rs_n_columns(rs_kind kind);
int rs_column_find(rs_kind kind, const char *name);

const char *rs_status_word(rs_status status);
int rs_status_find(const char *word);

/* Adds the column tables of all kinds and the status words as Markdown. */
void results_schema_markdown(text_buf *out);

#endif
