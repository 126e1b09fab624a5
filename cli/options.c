#include "cli/options.h"

#include <stdlib.h>
#include <string.h>

#include "device/gpu.h"

#include <oneapi/dnnl/dnnl.h>

#include "base/log.h"

tpl_code cli_set_variants(cli_context *c, const char *value, cli_variants *out, tpl_err *e)
{
    char **parts;
    int n = text_split(&c->mem, value, ',', &parts);
    if (n == 0)
        return tpl_fail(e, TPL_E_USAGE, "--variant", "is empty, expected such as mla,tpla:g=2");
    variant *v = arena_array(&c->mem, variant, n);
    for (int i = 0; i < n; i++)
        TPL_TRY(variant_parse(parts[i], &v[i], e));
    *out = (cli_variants){v, n};
    return TPL_OK;
}

tpl_code cli_set_axis(cli_context *c, const char *key, const char *value, int64_t lo, int64_t hi, cli_axis *out, tpl_err *e)
{
    cli_axis a;
    char *option = arena_printf(&c->mem, "--%s", key);
    TPL_TRY(text_parse_axis(&c->mem, option, value, &a.v, &a.n, e));
    for (int i = 0; i < a.n; i++)
        if (a.v[i] < lo || a.v[i] > hi)
            return tpl_fail(e, TPL_E_USAGE, option, "has %lld, expected %lld to %lld", (long long)a.v[i], (long long)lo, (long long)hi);
    *out = a;
    return TPL_OK;
}

tpl_code cli_set_int(const char *key, const char *value, int64_t lo, int64_t hi, int *out, tpl_err *e)
{
    int64_t v;
    char option[64];
    snprintf(option, sizeof option, "--%s", key);
    if (!text_parse_i64(value, &v) || v < lo || v > hi)
        return tpl_fail(e, TPL_E_USAGE, option, "is '%s', expected a whole number from %lld to %lld", value, (long long)lo, (long long)hi);
    *out = (int)v;
    return TPL_OK;
}

tpl_code cli_set_bytes(const char *key, const char *value, double *out, tpl_err *e)
{
    static const char letters[] = "KMGT";
    char *end, option[64];
    double v = strtod(value, &end), unit = 1;
    const char *letter = *end ? strchr(letters, *end) : NULL;
    snprintf(option, sizeof option, "--%s", key);
    if (letter) {
        bool decimal = end[1] == 'B';
        for (long i = letter - letters; i >= 0; i--)
            unit *= decimal ? 1000 : 1024;
        end += decimal ? 2 : 1;
    }
    if (end == value || *end || !(v * unit >= 1 && v * unit < 1e18))
        return tpl_fail(e, TPL_E_USAGE, option, "is '%s', expected bytes such as 80G (2^30) or 80GB (1e9)", value);
    *out = v * unit;
    return TPL_OK;
}

tpl_code cli_set_words(cli_context *c, const char *key, const char *value, cli_words *out, tpl_err *e)
{
    out->n = text_split(&c->mem, value, ',', &out->v);
    if (out->n == 0)
        return tpl_fail(e, TPL_E_USAGE, key, "is empty, expected a comma list");
    return TPL_OK;
}

tpl_code cli_set_compute(const char *key, const char *value, tpl_dtype *out, tpl_err *e)
{
    char option[64];
    tpl_dtype t = dtype_from_name(value);
    snprintf(option, sizeof option, "--%s", key);
    if (t != DT_F32 && t != DT_BF16)
        return tpl_fail(e, TPL_E_USAGE, option, "is '%s', expected f32 or bf16", value);
    *out = t;
    return TPL_OK;
}

tpl_code cli_set_ranks(const char *value, ranks_kind *out, tpl_err *e)
{
    if (!ranks_from_name(value, out))
        return tpl_fail(e, TPL_E_USAGE, "--ranks", "is '%s', expected local, solo, procs, mpi or nccl", value);
    return TPL_OK;
}

tpl_code cli_set_backend(cli_context *c, const char *value, const char **out, tpl_err *e)
{
    bool cuda = strcmp(value, "cuda") == 0;
    tpl_err why = {0};
    if (!cuda && strcmp(value, "cpu") != 0 && strcmp(value, "ref") != 0)
        return tpl_fail(e, TPL_E_USAGE, "--backend", "is '%s', expected cpu, cuda or ref", value);
    if (cuda && !gpu_is_built())
        return tpl_fail(e, TPL_E_UNSUPPORTED, "--backend", "is cuda, which this build lacks (configure with -Dcuda=enabled)");
    if (cuda && cli_card_usable(&why) != TPL_OK)
        return tpl_fail(e, why.code, "--backend", "is cuda; %s: %s", why.where, why.what);
    *out = cli_keep(c, value);
    return TPL_OK;
}

tpl_code cli_card_usable(tpl_err *e)
{
    gpu *card;
    TPL_TRY(gpu_open(0, &card, e));
    gpu_close(card);
    return TPL_OK;
}

const char *cli_default_backend(void)
{
    tpl_err why = {0};
    if (!gpu_is_built() || gpu_count() == 0)
        return "cpu";
    if (cli_card_usable(&why) == TPL_OK)
        return "cuda";
    log_note("the card is not used: %s: %s", why.where, why.what);
    return "cpu";
}

tpl_code cli_set_experts(const char *value, bool *expert_parallel, tpl_err *e)
{
    *expert_parallel = strcmp(value, "ep") == 0;
    if (*expert_parallel || strcmp(value, "tp") == 0)
        return TPL_OK;
    return tpl_fail(e, TPL_E_USAGE, "--experts", "is '%s', expected tp or ep", value);
}

tpl_code cli_set_format(const char *value, table_format *out, tpl_err *e)
{
    if (!table_format_find(value, out))
        return tpl_fail(e, TPL_E_USAGE, "--format", "is '%s', expected table, csv, json, jsonl or md", value);
    return TPL_OK;
}

char *cli_find_model(cli_context *c, const char *value)
{
    static const char mark[] = "shape:";
    size_t n = sizeof mark - 1, name = 0;
    if (strncmp(value, mark, n) == 0) {
        name = strcspn(value + n, ",");
        if (memchr(value + n, '/', name))
            return cli_keep(c, value);
        return arena_printf(&c->mem, "%s%s/models/shapes/%.*s.json%s", mark, cli_home(), (int)name, value + n, value + n + name);
    }
    char *bundled = text_path_join(&c->mem, cli_home(), value);
    return !text_is_dir(value) && text_is_dir(bundled) ? bundled : cli_keep(c, value);
}

char *cli_keep(cli_context *c, const char *value)
{
    return arena_strdup(&c->mem, value);
}

tpl_code cli_open_run(cli_context *c, const char *root, const char *resume, const char *label, cli_run *out, tpl_err *e)
{
    const dnnl_version_t *dnnl = dnnl_version();
    char *version = arena_printf(&c->mem, "%d.%d.%d", dnnl->major, dnnl->minor, dnnl->patch);
    char *cache = NULL;
    if (c->rd) {
        *out = (cli_run){c->rd, false};
        return TPL_OK;
    }
    if (text_cache_dir(&c->mem, &cache, NULL) != TPL_OK)
        cache = NULL;
    rd_pair libraries[] = {{"oneDNN", version}, {"Jansson", JANSSON_VERSION}};
    rd_options o = {.root = root, .label = label, .argc = c->argc, .argv = c->argv, .libraries = libraries, .n_libraries = 2, .transform_cache = cache};
    out->owned = true;
    return resume ? rd_open_resume(resume, &o, &out->rd, e) : rd_create(&o, &out->rd, e);
}

tpl_code cli_close_run(cli_run *r, tpl_code rc, tpl_err *e)
{
    if (!r->rd || !r->owned)
        return rc;
    if (rc == TPL_OK)
        rc = rd_finish(r->rd, RD_DONE, e);
    else
        rd_finish(r->rd, RD_INTERRUPTED, NULL);
    log_note(rc == TPL_OK ? "run directory: %s" : "run directory: %s (not finished; go on with --resume)", rd_path(r->rd));
    rd_close(r->rd);
    r->rd = NULL;
    return rc;
}

/* For reading, a variant goes without the keys that have their default. */
static const char *short_variant(const char *cell)
{
    static char text[VARIANT_TEXT];
    variant v;
    if (variant_parse(cell, &v, NULL) != TPL_OK)
        return NULL;
    variant_format_short(&v, text);
    return text;
}

tpl_code cli_print_rows(const run_dir *rd, rs_kind kind, long from, const char *title, const char *picks, table_format format, tpl_err *e)
{
    arena a;
    csv_table *csv = NULL;
    table *t = NULL;
    arena_init(&a);
    char *path = text_path_join(&a, rd_path(rd), rs_kind_file(kind));
    tpl_code rc = TPL_OK;
    if (text_is_file(path)) {
        rc = csv_table_load(path, &csv, e);
        if (rc == TPL_OK)
            rc = table_from_csv(title, picks, (int)kind, csv, &t, e);
        if (rc == TPL_OK)
            table_skip_rows(t, from);
        if (rc == TPL_OK && (format == TABLE_ALIGNED || format == TABLE_MD))
            table_map_text(t, "variant", short_variant);
        if (rc == TPL_OK)
            rc = table_print(t, format, stdout, e);
    }
    table_destroy(t);
    csv_table_destroy(csv);
    arena_fini(&a);
    return rc;
}
