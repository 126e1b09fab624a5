#include "engine/variant.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- the keys, once ---- */

typedef struct {
    const char *key;
    const char *words[5]; /* NULL: a number */
} key_row;

enum { KEY_G, KEY_U, KEY_SLICE, KEY_PD, KEY_ALPHA, KEY_MU, KEY_PROJ, KEY_SEED, N_KEYS };

static const key_row tpla_keys[N_KEYS] = {
    [KEY_G] = {"g", {NULL}},
    [KEY_U] = {"u", {"id", "hadamard", "pca", "mix"}},
    [KEY_SLICE] = {"slice", {"none", "norm", "softmax", "both"}},
    [KEY_PD] = {"pd", {"off", "on"}},
    [KEY_ALPHA] = {"alpha", {"recip", "share", "one"}},
    [KEY_MU] = {"mu", {"alpha", "one", "fit"}},
    [KEY_PROJ] = {"proj", {"dup", "rs", "rs+agq"}},
    [KEY_SEED] = {"seed", {NULL}},
};

static const struct {
    const char *name;
    variant_kind kind;
} kinds[] = {{"mla", VAR_MLA}, {"mla-dcp", VAR_MLA_DCP}, {"gqa", VAR_GQA}, {"gla", VAR_GLA}, {"tpla", VAR_TPLA}};

enum { N_KINDS = sizeof kinds / sizeof *kinds, MAX_G = 64, HADAMARD_SEED = 1234 };

static tpl_code set_number(const char *text, const char *key, const char *value, int32_t lo, int32_t hi, int32_t *out, tpl_err *e)
{
    int64_t n;
    if (!text_parse_i64(value, &n) || n < lo || n > hi)
        return tpl_fail(e, TPL_E_USAGE, text, "key '%s' is '%s', expected a number from %d to %d", key, value, lo, hi);
    *out = (int32_t)n;
    return TPL_OK;
}

static tpl_code set_word(const char *text, const key_row *row, const char *value, int *out, tpl_err *e)
{
    char all[80] = "";
    for (int i = 0; i < 5 && row->words[i]; i++) {
        if (strcmp(row->words[i], value) == 0) {
            *out = i;
            return TPL_OK;
        }
        snprintf(all + strlen(all), sizeof all - strlen(all), "%s%s", i ? "|" : "", row->words[i]);
    }
    return tpl_fail(e, TPL_E_USAGE, text, "key '%s' is '%s', expected %s", row->key, value, all);
}

static tpl_code set_tpla_key(variant *v, const char *text, const char *key, const char *value, tpl_err *e)
{
    int k = 0, word = 0;
    while (k < N_KEYS && strcmp(tpla_keys[k].key, key) != 0)
        k++;
    if (k == N_KEYS)
        return tpl_fail(e, TPL_E_USAGE, text, "unknown key '%s', expected g, u, slice, pd, alpha, mu, proj or seed", key);
    if (k == KEY_G)
        return set_number(text, key, value, 1, MAX_G, &v->g, e);
    if (k == KEY_SEED)
        return set_number(text, key, value, 0, INT32_MAX, &v->seed, e);
    TPL_TRY(set_word(text, &tpla_keys[k], value, &word, e));
    switch (k) {
    case KEY_U:
        v->u = (variant_u)word;
        break;
    case KEY_SLICE:
        v->slice = (variant_slice)word;
        break;
    case KEY_PD:
        v->pd = word == 1;
        break;
    case KEY_ALPHA:
        v->alpha = (variant_alpha)word;
        break;
    case KEY_MU:
        v->mu = (variant_mu)word;
        break;
    default:
        v->proj = (variant_proj)word;
    }
    return TPL_OK;
}

static tpl_code set_gla_key(variant *v, const char *text, const char *key, const char *value, tpl_err *e)
{
    if (strcmp(key, "g") == 0)
        return set_number(text, key, value, 1, MAX_G, &v->g, e);
    if (strcmp(key, "mu") != 0)
        return tpl_fail(e, TPL_E_USAGE, text, "unknown key '%s', expected g or mu", key);
    if (strcmp(value, "1") != 0 && strcmp(value, "g") != 0)
        return tpl_fail(e, TPL_E_USAGE, text, "key 'mu' is '%s', expected 1|g", value);
    v->mu = value[0] == 'g' ? MU_G : MU_ONE;
    return TPL_OK;
}

static variant defaults(variant_kind kind)
{
    variant v = {.kind = kind, .g = 1, .slice = SLICE_NONE, .mu = MU_ONE};
    if (kind == VAR_TPLA)
        v = (variant){VAR_TPLA, 2, U_PCA, SLICE_BOTH, true, ALPHA_RECIP, MU_ALPHA, PROJ_DUP, HADAMARD_SEED};
    if (kind == VAR_GLA) {
        v.g = 2;
        v.slice = SLICE_BOTH;
    }
    return v;
}

tpl_code variant_parse(const char *text, variant *out, tpl_err *e)
{
    arena a;
    arena_init(&a);
    char **parts;
    int n = text_split(&a, text, ':', &parts), kind = 0;
    unsigned seen = 0;
    tpl_code rc = TPL_OK;
    while (n && kind < N_KINDS && strcmp(kinds[kind].name, parts[0]) != 0)
        kind++;
    if (n == 0 || kind == N_KINDS) {
        rc = tpl_fail(e, TPL_E_USAGE, *text ? text : "--variant", "no such variant, expected mla, mla-dcp, gqa, gla or tpla");
        goto done;
    }
    variant v = defaults(kinds[kind].kind);
    for (int i = 1; i < n; i++) {
        char *equals = strchr(parts[i], '=');
        if (!equals) {
            rc = tpl_fail(e, TPL_E_USAGE, text, "'%s' is no key=value", parts[i]);
            goto done;
        }
        *equals = 0;
        for (int k = 0; k < N_KEYS; k++) {
            if (strcmp(tpla_keys[k].key, parts[i]) != 0)
                continue;
            if (seen & 1u << k) {
                rc = tpl_fail(e, TPL_E_USAGE, text, "key '%s' is given twice", parts[i]);
                goto done;
            }
            seen |= 1u << k;
        }
        if (v.kind == VAR_TPLA)
            rc = set_tpla_key(&v, text, parts[i], equals + 1, e);
        else if (v.kind == VAR_GLA)
            rc = set_gla_key(&v, text, parts[i], equals + 1, e);
        else
            rc = tpl_fail(e, TPL_E_USAGE, text, "unknown key '%s', %s takes none", parts[i], parts[0]);
        if (rc != TPL_OK)
            goto done;
    }
    if (v.kind == VAR_TPLA && v.u != U_HADAMARD) {
        if (seen & 1u << KEY_SEED) {
            rc = tpl_fail(e, TPL_E_USAGE, text, "key 'seed' needs u=hadamard");
            goto done;
        }
        v.seed = 0;
    }
    *out = v;
done:
    arena_fini(&a);
    return rc;
}

void variant_format(const variant *v, char text[VARIANT_TEXT])
{
    const key_row *k = tpla_keys;
    if (v->kind == VAR_TPLA) {
        int n = snprintf(text, VARIANT_TEXT, "tpla:g=%d:u=%s:slice=%s:pd=%s:alpha=%s:mu=%s:proj=%s", v->g, k[KEY_U].words[v->u], k[KEY_SLICE].words[v->slice],
                         k[KEY_PD].words[v->pd], k[KEY_ALPHA].words[v->alpha], k[KEY_MU].words[v->mu], k[KEY_PROJ].words[v->proj]);
        if (v->u == U_HADAMARD)
            snprintf(text + n, (size_t)(VARIANT_TEXT - n), ":seed=%d", v->seed);
    } else if (v->kind == VAR_GLA)
        snprintf(text, VARIANT_TEXT, "gla:g=%d:mu=%s", v->g, v->mu == MU_G ? "g" : "1");
    else
        snprintf(text, VARIANT_TEXT, "%s", kinds[v->kind].name);
}

static void add_word(char text[VARIANT_TEXT], int key, int word, int usual)
{
    size_t n = strlen(text);
    if (word != usual)
        snprintf(text + n, VARIANT_TEXT - n, ":%s=%s", tpla_keys[key].key, tpla_keys[key].words[word]);
}

void variant_format_short(const variant *v, char text[VARIANT_TEXT])
{
    variant usual = defaults(v->kind);
    if (v->kind == VAR_GLA && v->mu == usual.mu)
        snprintf(text, VARIANT_TEXT, "gla:g=%d", v->g);
    else if (v->kind != VAR_TPLA)
        variant_format(v, text);
    if (v->kind != VAR_TPLA)
        return;
    snprintf(text, VARIANT_TEXT, "tpla:g=%d:u=%s", v->g, tpla_keys[KEY_U].words[v->u]);
    add_word(text, KEY_SLICE, v->slice, usual.slice);
    add_word(text, KEY_PD, v->pd, usual.pd);
    add_word(text, KEY_ALPHA, v->alpha, usual.alpha);
    add_word(text, KEY_MU, v->mu, usual.mu);
    add_word(text, KEY_PROJ, v->proj, usual.proj);
    size_t n = strlen(text);
    if (v->u == U_HADAMARD && v->seed != HADAMARD_SEED)
        snprintf(text + n, VARIANT_TEXT - n, ":seed=%d", v->seed);
}

/* ---- what fits ---- */

/* "4 does not divide 6; 1, 2, 3, 6 would": the divisors of n, for messages. */
static const char *divisors(int n, char text[64])
{
    text[0] = 0;
    for (int d = 1; d <= n && strlen(text) < 56; d++)
        if (n % d == 0)
            snprintf(text + strlen(text), 64 - strlen(text), "%s%d", *text ? ", " : "", d);
    return text;
}

static tpl_code must_divide(const char *where, const char *what, int n, int by, tpl_err *e)
{
    char fit[64];
    if (n % by == 0)
        return TPL_OK;
    return tpl_fail(e, TPL_E_USAGE, where, "tp=%d does not divide %s %d; these would: %s", by, what, n, divisors(n, fit));
}

static tpl_code latent_fit(const variant *v, const model_config *c, int tp, const char *text, tpl_err *e)
{
    char fit[64];
    if (c->kv_lora_rank % v->g)
        return tpl_fail(e, TPL_E_USAGE, text, "g=%d does not divide kv_lora_rank %d; these would: %s", v->g, c->kv_lora_rank, divisors(c->kv_lora_rank, fit));
    if (v->u == U_HADAMARD && v->kind == VAR_TPLA && (c->kv_lora_rank & (c->kv_lora_rank - 1)))
        return tpl_fail(e, TPL_E_USAGE, text, "u=hadamard needs a kv_lora_rank that is a power of two, not %d", c->kv_lora_rank);
    if (v->kind == VAR_GLA && c->n_heads % v->g)
        return tpl_fail(e, TPL_E_USAGE, text, "g=%d does not divide num_attention_heads %d; these would: %s", v->g, c->n_heads, divisors(c->n_heads, fit));
    if (tp % v->g && v->g % tp)
        return tpl_fail(e, TPL_E_USAGE, text, "tp=%d neither divides g=%d nor is a multiple of it", tp, v->g);
    return TPL_OK;
}

/* Into how many parts the query heads are cut: tp, except where every rank of a TPLA group keeps all of the group's heads. */
static int head_parts(const variant *v, int tp)
{
    bool sliced = v->kind == VAR_TPLA && (v->slice == SLICE_SOFTMAX || v->slice == SLICE_BOTH);
    bool group_keeps_all = sliced && !v->pd && v->proj == PROJ_DUP;
    return group_keeps_all && tp % v->g == 0 ? tp / v->g : group_keeps_all && v->g % tp == 0 ? 1 : tp;
}

tpl_code variant_fit(const variant *v, const model_config *c, int tp, tpl_err *e)
{
    char text[VARIANT_TEXT];
    variant_format(v, text);
    bool wants_gqa = v->kind == VAR_GQA;
    if (wants_gqa != (c->attn == ATTN_GQA))
        return tpl_fail(e, TPL_E_USAGE, text, "model '%s' has %s attention, which runs as %s", c->name, c->attn == ATTN_GQA ? "grouped-query" : "latent",
                        c->attn == ATTN_GQA ? "gqa only" : "mla, mla-dcp, gla or tpla");
    if (tp < 1 || tp > 64)
        return tpl_fail(e, TPL_E_USAGE, "--tp", "is %d, expected 1 to 64", tp);
    TPL_TRY(must_divide(text, "num_attention_heads", c->n_heads, head_parts(v, tp), e));
    if (wants_gqa)
        TPL_TRY(must_divide(text, "num_key_value_heads", c->n_kv_heads, tp, e));
    if (c->n_experts == 0 || c->first_dense_layers > 0)
        TPL_TRY(must_divide(text, "intermediate_size", c->ffn_dim, tp, e));
    if (c->n_experts > 0)
        TPL_TRY(must_divide(text, "moe_intermediate_size", c->expert_ffn_dim, tp, e));
    if (v->kind == VAR_GLA || v->kind == VAR_TPLA)
        TPL_TRY(latent_fit(v, c, tp, text, e));
    return TPL_OK;
}

variant variant_exact(const model_config *c)
{
    return defaults(c->attn == ATTN_GQA ? VAR_GQA : VAR_MLA);
}

bool variant_needs_transform(const variant *v)
{
    return v->kind == VAR_TPLA || v->kind == VAR_GLA;
}

bool variant_needs_calibration(const variant *v)
{
    return v->kind == VAR_TPLA && (v->u == U_PCA || v->u == U_MIX || v->mu == MU_FIT);
}
