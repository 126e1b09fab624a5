/* cmd_published.c - `tplabench published`: a run's latency rows against each other and beside the published ratios. */
#include <string.h>

#include "bench/speed_table.h"
#include "cli/options.h"

typedef struct {
    const char *run;
    table_format format;
} published_state;

static const cli_option options[] = {
    {"run", "DIR", "run directory whose latency.csv is read (in a suite: the suite's own)", true},
    {"format", "NAME", "table, csv, json, jsonl, md (default table)", false},
    {0},
};

static tpl_code set(void *state, cli_context *c, const char *key, const char *value, tpl_err *e)
{
    published_state *s = state;
    if (strcmp(key, "format") == 0)
        return cli_set_format(value, &s->format, e);
    s->run = cli_keep(c, value);
    return TPL_OK;
}

/* Prints a table, if there is one, and destroys it. */
static tpl_code show(table *t, const published_state *s, bool *any, tpl_err *e)
{
    if (!t)
        return TPL_OK;
    if (*any)
        putchar('\n');
    *any = true;
    tpl_code rc = table_print(t, s->format, stdout, e);
    table_destroy(t);
    return rc;
}

static tpl_code run(void *state, cli_context *c, tpl_err *e)
{
    published_state *s = state;
    csv_table *rows = NULL, *papers = NULL;
    bool any = false;
    const char *dir = s->run ? s->run : c->rd ? rd_path(c->rd) : NULL;
    if (!dir)
        return tpl_fail(e, TPL_E_USAGE, "--run", "is missing, expected a run directory");
    TPL_TRY(csv_table_load(text_path_join(&c->mem, dir, rs_kind_file(RS_LATENCY)), &rows, e));
    tpl_code rc = csv_table_load(text_path_join(&c->mem, cli_home(), "results/published/tpla_speed.csv"), &papers, e);
    if (rc == TPL_OK)
        rc = show(speed_table_decode(rows, papers), s, &any, e);
    if (rc == TPL_OK)
        rc = show(speed_table_crossover(rows), s, &any, e);
    if (rc == TPL_OK)
        rc = show(speed_table_ttft(rows, papers), s, &any, e);
    if (rc == TPL_OK && s->format == TABLE_ALIGNED)
        puts("\n"
             "Published: TPLA (arXiv 2508.15881), two H800, TP=2, bf16, FlashAttention-3, MoE removed, the largest\n"
             "batch at 32K context; about 2x at decode length 4096; time to first token at a 1K prompt. bound's:\n"
             "the ratio if both sides reached their bounds and communication were free. A ratio is a claim only if\n"
             "both sides reach 0.80 of their bounds, collectives taken out, and so does the decode attention of\n"
             "both where it was timed alone; else it is provisional.");
    csv_table_destroy(rows);
    csv_table_destroy(papers);
    return rc;
}

const cli_command cmd_published = {
    .name = "published",
    .about = "Print a run's ratios of decode throughput and TTFT beside the published ones.",
    .examples = "  tplabench published --run runs/20260101T120000Z-tpla-speed\n"
                "  tplabench published --run runs/20260101T120000Z-tpla-speed --format md",
    .options = options,
    .state_bytes = sizeof(published_state),
    .in_suite = true,
    .set = set,
    .run = run,
};
