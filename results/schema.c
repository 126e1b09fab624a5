#include "results/schema.h"

#include <assert.h>
#include <string.h>

enum { ROLE_VALUE, ROLE_CONFIG };

#define COLUMN_ROW(name, type, role, unit, about) {#name, RS_##type, ROLE_##role == ROLE_CONFIG, unit, about},

static const rs_column accuracy_columns[] = {RS_COMMON_COLUMNS(COLUMN_ROW) RS_ACCURACY_COLUMNS(COLUMN_ROW)};
static const rs_column plan_columns[] = {RS_COMMON_COLUMNS(COLUMN_ROW) RS_PLAN_COLUMNS(COLUMN_ROW)};
static const rs_column latency_columns[] = {RS_COMMON_COLUMNS(COLUMN_ROW) RS_LATENCY_COLUMNS(COLUMN_ROW)};
static const rs_column kernels_columns[] = {RS_COMMON_COLUMNS(COLUMN_ROW) RS_KERNELS_COLUMNS(COLUMN_ROW)};
static const rs_column speculate_columns[] = {RS_COMMON_COLUMNS(COLUMN_ROW) RS_SPECULATE_COLUMNS(COLUMN_ROW)};
static const rs_column traces_columns[] = {RS_COMMON_COLUMNS(COLUMN_ROW) RS_TRACES_COLUMNS(COLUMN_ROW)};
static const rs_column handoff_columns[] = {RS_COMMON_COLUMNS(COLUMN_ROW) RS_HANDOFF_COLUMNS(COLUMN_ROW)};

typedef struct {
    const char *name, *file;
    const rs_column *columns;
    int n;
} kind_row;

#define KIND_ROW(id, name) [id] = {#name, #name ".csv", name##_columns, sizeof name##_columns / sizeof *name##_columns},
static const kind_row kinds[] = {RS_KIND_LIST(KIND_ROW)};

_Static_assert((int)LAT_N_COLUMNS <= (int)RS_MAX_COLUMNS, "the widest file fits a row");
_Static_assert((int)KER_N_COLUMNS <= (int)RS_MAX_COLUMNS, "the widest file fits a row");

static const struct {
    const char *word, *about;
} statuses[] = {
#define STATUS_ROW(id, word, about) {#word, about},
    RS_STATUS_LIST(STATUS_ROW)};

static const kind_row *kind_get(rs_kind kind)
{
    assert((unsigned)kind < RS_N_KINDS);
    return &kinds[kind];
}

const char *rs_kind_name(rs_kind kind)
{
    return kind_get(kind)->name;
}

const char *rs_kind_file(rs_kind kind)
{
    return kind_get(kind)->file;
}

int rs_kind_find(const char *name)
{
    for (int k = 0; k < RS_N_KINDS; k++)
        if (!strcmp(kinds[k].name, name))
            return k;
    return -1;
}

const rs_column *rs_columns(rs_kind kind)
{
    return kind_get(kind)->columns;
}

int rs_n_columns(rs_kind kind)
{
    return kind_get(kind)->n;
}

int rs_column_find(rs_kind kind, const char *name)
{
    const kind_row *k = kind_get(kind);
    for (int i = 0; i < k->n; i++)
        if (!strcmp(k->columns[i].name, name))
            return i;
    return -1;
}

const char *rs_status_word(rs_status status)
{
    assert((unsigned)status < RS_N_STATUS);
    return statuses[status].word;
}

int rs_status_find(const char *word)
{
    for (int s = 0; s < RS_N_STATUS; s++)
        if (!strcmp(statuses[s].word, word))
            return s;
    return -1;
}

/* ---- documentation ---- */

static void add_columns(text_buf *out, const rs_column *c, int n)
{
    static const char *const type_words[] = {[RS_TEXT] = "text", [RS_INT] = "int", [RS_REAL] = "real"};
    text_addf(out, "| column | type | unit | in cell_id | meaning |\n|---|---|---|---|---|\n");
    for (int i = 0; i < n; i++)
        text_addf(out, "| `%s` | %s | %s | %s | %s |\n", c[i].name, type_words[c[i].type], c[i].unit,
                  c[i].config ? "yes" : "", c[i].about);
    text_addf(out, "\n");
}

void results_schema_markdown(text_buf *out)
{
    text_addf(out, "### Columns that begin every file\n\n");
    add_columns(out, kinds[0].columns, RS_N_COMMON);
    for (int k = 0; k < RS_N_KINDS; k++) {
        text_addf(out, "### `%s`\n\n", kinds[k].file);
        add_columns(out, kinds[k].columns + RS_N_COMMON, kinds[k].n - RS_N_COMMON);
    }
    text_addf(out, "### Status words\n\n| status | meaning |\n|---|---|\n");
    for (int s = 0; s < RS_N_STATUS; s++)
        text_addf(out, "| `%s` | %s |\n", statuses[s].word, statuses[s].about);
}
