#include "engine/variant.h"

#include <stdio.h>
#include <string.h>

#include <criterion/criterion.h>

#include "base/rng.h"
#include "engine/plan.h"
#include "tests/support/checkpoint.h"

static bool same(const variant *a, const variant *b)
{
    return a->kind == b->kind && a->g == b->g && a->u == b->u && a->slice == b->slice && a->pd == b->pd &&
           a->alpha == b->alpha && a->mu == b->mu && a->proj == b->proj && a->seed == b->seed;
}

Test(variant, the_canonical_form_has_all_keys_and_parses_to_itself)
{
    static const struct {
        const char *text, *canonical, *brief;
    } cases[] = {
        {"mla", "mla", "mla"},
        {" mla-dcp ", "mla-dcp", "mla-dcp"},
        {"gqa", "gqa", "gqa"},
        {"gla", "gla:g=2:mu=1", "gla:g=2"},
        {"gla:mu=g:g=4", "gla:g=4:mu=g", "gla:g=4:mu=g"},
        {"tpla", "tpla:g=2:u=pca:slice=both:pd=on:alpha=recip:mu=alpha:proj=dup", "tpla:g=2:u=pca"},
        {"tpla:u=hadamard", "tpla:g=2:u=hadamard:slice=both:pd=on:alpha=recip:mu=alpha:proj=dup:seed=1234", "tpla:g=2:u=hadamard"},
        {"tpla:seed=7:u=hadamard:g=4", "tpla:g=4:u=hadamard:slice=both:pd=on:alpha=recip:mu=alpha:proj=dup:seed=7",
         "tpla:g=4:u=hadamard:seed=7"},
        {"tpla:u=mix:slice=softmax:mu=one", "tpla:g=2:u=mix:slice=softmax:pd=on:alpha=recip:mu=one:proj=dup",
         "tpla:g=2:u=mix:slice=softmax:mu=one"},
        {"tpla:g=8:u=id:slice=norm:pd=off:alpha=share:mu=fit:proj=rs+agq",
         "tpla:g=8:u=id:slice=norm:pd=off:alpha=share:mu=fit:proj=rs+agq",
         "tpla:g=8:u=id:slice=norm:pd=off:alpha=share:mu=fit:proj=rs+agq"},
        {"tpla : g = 2", NULL, NULL},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        variant v, again;
        char full[VARIANT_TEXT], brief[VARIANT_TEXT];
        tpl_err e = {0};
        tpl_code rc = variant_parse(cases[i].text, &v, &e);
        if (!cases[i].canonical) {
            cr_expect(rc == TPL_E_USAGE, "%s", cases[i].text);
            continue;
        }
        cr_assert(rc == TPL_OK, "%s: %s", cases[i].text, e.what);
        variant_format(&v, full);
        variant_format_short(&v, brief);
        cr_expect_str_eq(full, cases[i].canonical);
        cr_expect_str_eq(brief, cases[i].brief);
        cr_expect(variant_parse(full, &again, &e) == TPL_OK && same(&v, &again), "%s", full);
        cr_expect(variant_parse(brief, &again, &e) == TPL_OK && same(&v, &again), "%s", brief);
    }
}

/* Every combination of words. */
Test(variant, every_combination_survives_both_forms)
{
    int n = 0;
    for (int u = U_ID; u <= U_MIX; u++)
        for (int slice = SLICE_NONE; slice <= SLICE_BOTH; slice++)
            for (int pd = 0; pd < 2; pd++)
                for (int alpha = ALPHA_RECIP; alpha <= ALPHA_ONE; alpha++)
                    for (int mu = MU_ALPHA; mu <= MU_FIT; mu++)
                        for (int proj = PROJ_DUP; proj <= PROJ_RS_AGQ; proj++, n++) {
                            variant v, full, brief;
                            char a[VARIANT_TEXT], b[VARIANT_TEXT];
                            memset(&v, 0, sizeof v);
                            v.kind = VAR_TPLA;
                            v.g = 1 + n % 64;
                            v.u = (variant_u)u;
                            v.slice = (variant_slice)slice;
                            v.pd = pd;
                            v.alpha = (variant_alpha)alpha;
                            v.mu = (variant_mu)mu;
                            v.proj = (variant_proj)proj;
                            v.seed = u == U_HADAMARD ? (n % 2 ? 1234 : INT32_MAX) : 0;
                            variant_format(&v, a);
                            variant_format_short(&v, b);
                            cr_assert(variant_parse(a, &full, NULL) == TPL_OK && variant_parse(b, &brief, NULL) == TPL_OK, "%s", a);
                            char again[VARIANT_TEXT];
                            variant_format(&full, again);
                            cr_expect_str_eq(a, again);
                            variant_format(&brief, again);
                            cr_expect_str_eq(a, again);
                        }
    cr_expect(n == 4 * 4 * 2 * 3 * 3 * 3);
}

Test(variant, malformed_text_names_the_key_and_what_would_do)
{
    static const struct {
        const char *text, *what;
    } cases[] = {
        {"", "no such variant, expected mla, mla-dcp, gqa, gla or tpla"},
        {"mha", "no such variant, expected mla, mla-dcp, gqa, gla or tpla"},
        {"MLA", "no such variant, expected mla, mla-dcp, gqa, gla or tpla"},
        {":g=2", "no such variant, expected mla, mla-dcp, gqa, gla or tpla"},
        {"mla:g=2", "unknown key 'g', mla takes none"},
        {"mla-dcp:pd=on", "unknown key 'pd', mla-dcp takes none"},
        {"gqa:foo=1", "unknown key 'foo', gqa takes none"},
        {"gla:u=id", "unknown key 'u', expected g or mu"},
        {"gla:mu=2", "key 'mu' is '2', expected 1|g"},
        {"gla:g=0", "key 'g' is '0', expected a number from 1 to 64"},
        {"tpla:g=65", "key 'g' is '65', expected a number from 1 to 64"},
        {"tpla:g=-2", "key 'g' is '-2', expected a number from 1 to 64"},
        {"tpla:g=two", "key 'g' is 'two', expected a number from 1 to 64"},
        {"tpla:g=99999999999999999999", "key 'g' is '99999999999999999999', expected a number from 1 to 64"},
        {"tpla:g=", "key 'g' is '', expected a number from 1 to 64"},
        {"tpla:u=svd", "key 'u' is 'svd', expected id|hadamard|pca|mix"},
        {"tpla:u=PCA", "key 'u' is 'PCA', expected id|hadamard|pca|mix"},
        {"tpla:slice=all", "key 'slice' is 'all', expected none|norm|softmax|both"},
        {"tpla:pd=yes", "key 'pd' is 'yes', expected off|on"},
        {"tpla:alpha=2", "key 'alpha' is '2', expected recip|share|one"},
        {"tpla:mu=g", "key 'mu' is 'g', expected alpha|one|fit"},
        {"tpla:proj=agq", "key 'proj' is 'agq', expected dup|rs|rs+agq"},
        {"tpla:U=id", "unknown key 'U', expected g, u, slice, pd, alpha, mu, proj or seed"},
        {"tpla:=1", "unknown key '', expected g, u, slice, pd, alpha, mu, proj or seed"},
        {"tpla:pd", "'pd' is no key=value"},
        {"tpla:", "'' is no key=value"},
        {"tpla:g=2::u=id", "'' is no key=value"},
        {"tpla:g=2:g=4", "key 'g' is given twice"},
        {"gla:mu=1:mu=g", "key 'mu' is given twice"},
        {"tpla:u=id:seed=3", "key 'seed' needs u=hadamard"},
        {"tpla:seed=3", "key 'seed' needs u=hadamard"},
        {"tpla:u=hadamard:seed=-1", "key 'seed' is '-1', expected a number from 0 to 2147483647"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        variant v = {.kind = VAR_GQA, .g = 77};
        tpl_err e = {0};
        cr_expect(variant_parse(cases[i].text, &v, &e) == TPL_E_USAGE, "'%s'", cases[i].text);
        cr_expect(strcmp(e.what, cases[i].what) == 0, "'%s': '%s', expected '%s'", cases[i].text, e.what, cases[i].what);
        cr_expect(v.kind == VAR_GQA && v.g == 77, "'%s': the variant was touched", cases[i].text);
    }
}

static variant parsed(const char *text)
{
    variant v;
    tpl_err e = {0};
    cr_assert(variant_parse(text, &v, &e) == TPL_OK, "%s: %s", text, e.what);
    return v;
}

Test(variant, what_does_not_fit_is_told_with_what_would)
{
    static const struct {
        const char *text;
        int tp, heads, rank, ffn;
        const char *what;
    } cases[] = {
        {"mla", 3, 8, 16, 24, "tp=3 does not divide num_attention_heads 8; these would: 1, 2, 4, 8"},
        {"mla", 16, 16, 16, 24, "tp=16 does not divide intermediate_size 24; these would: 1, 2, 3, 4, 6, 8, 12, 24"},
        {"mla", 0, 8, 16, 24, "is 0, expected 1 to 64"},
        {"mla", 65, 65, 16, 65, "is 65, expected 1 to 64"},
        {"mla-dcp", 3, 8, 16, 24, "tp=3 does not divide num_attention_heads 8; these would: 1, 2, 4, 8"},
        {"gqa", 1, 8, 16, 24, "has latent attention, which runs as mla, mla-dcp, gla or tpla"},
        {"tpla:g=3:u=id", 1, 8, 16, 24, "g=3 does not divide kv_lora_rank 16; these would: 1, 2, 4, 8, 16"},
        {"tpla:g=2:u=hadamard", 1, 8, 24, 24, "u=hadamard needs a kv_lora_rank that is a power of two, not 24"},
        {"gla:g=4", 1, 6, 16, 24, "g=4 does not divide num_attention_heads 6; these would: 1, 2, 3, 6"},
        {"tpla:g=4:u=id", 6, 24, 16, 24, "tp=6 neither divides g=4 nor is a multiple of it"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        model_config c = ckpt_small_mla();
        variant v = parsed(cases[i].text);
        tpl_err e = {0};
        plan *p = NULL;
        c.n_heads = c.n_kv_heads = cases[i].heads;
        c.kv_lora_rank = cases[i].rank;
        c.ffn_dim = cases[i].ffn;
        cr_expect(variant_fit(&v, &c, cases[i].tp, &e) == TPL_E_USAGE, "%s tp %d", cases[i].text, cases[i].tp);
        cr_expect(strstr(e.what, cases[i].what) != NULL, "%s: '%s', expected '%s'", cases[i].text, e.what, cases[i].what);
        cr_expect(plan_create(&c, &v, cases[i].tp, 0, (plan_options){0}, &p, NULL) == TPL_E_USAGE && !p);
    }
    model_config gqa = ckpt_small_gqa();
    variant v = parsed("gqa"), mla = parsed("mla");
    tpl_err e = {0};
    cr_expect(variant_fit(&v, &gqa, 4, &e) == TPL_E_USAGE);
    cr_expect_str_eq(e.what, "tp=4 does not divide num_key_value_heads 2; these would: 1, 2");
    cr_expect(variant_fit(&mla, &gqa, 1, &e) == TPL_E_USAGE && strstr(e.what, "which runs as gqa only"));
}

/* Random sizes: whatever fits gives a plan on every rank, whose steps divide without remainder (asserted inside). */
Test(variant, whatever_fits_has_a_plan_on_every_rank)
{
    static const char *const texts[] = {"mla", "mla-dcp", "gla:g=2", "gla:g=4:mu=g", "tpla:g=2:u=id", "tpla:g=4:u=hadamard:pd=off",
                                        "tpla:g=3:u=id:pd=off:proj=rs", "tpla:g=4:u=pca:proj=rs+agq", "tpla:g=6:u=id:slice=softmax",
                                        "tpla:g=4:u=id:slice=none", "tpla:g=2:u=mix:slice=norm:pd=off:proj=rs+agq", "tpla:g=1:u=id"};
    rng r = rng_make(8, 0);
    int fits = 0, misfits = 0;
    for (int k = 0; k < 4000; k++) {
        model_config c = ckpt_small_mla();
        variant v = parsed(texts[rng_below(&r, sizeof texts / sizeof *texts)]);
        int tp = 1 + (int)rng_below(&r, 6);
        c.n_heads = c.n_kv_heads = 1 + (int)rng_below(&r, 24);
        c.kv_lora_rank = 4 * (1 + (int)rng_below(&r, 12));
        c.ffn_dim = 1 + (int)rng_below(&r, 48);
        c.vocab = 1 + (int)rng_below(&r, 40);
        c.q_lora_rank = (int)rng_below(&r, 2) * 7;
        if (variant_fit(&v, &c, tp, NULL) != TPL_OK) {
            misfits++;
            continue;
        }
        fits++;
        for (int rank = 0; rank < tp; rank++) {
            plan *p = NULL;
            cr_assert(plan_create(&c, &v, tp, rank, (plan_options){0}, &p, NULL) == TPL_OK);
            batch_shape b = batch_shape_uniform(2, 5, 3);
            step_cost cost = plan_cost(p, PHASE_DECODE, &b, (plan_types){.act = DT_BF16, .kv = DT_BF16});
            cr_expect(cost.flops > 0 && cost.bytes_read > 0 && (tp == 1) == (cost.bytes_sent == 0));
            plan_destroy(p);
        }
    }
    cr_expect(fits > 300 && misfits > 300, "%d fit, %d do not", fits, misfits);
}

Test(variant, exact_and_derived_needs)
{
    model_config mla = ckpt_small_mla(), gqa = ckpt_small_gqa();
    cr_expect(variant_exact(&mla).kind == VAR_MLA && variant_exact(&gqa).kind == VAR_GQA);
    static const struct {
        const char *text;
        bool transform, calibration;
    } cases[] = {
        {"mla", false, false},         {"mla-dcp", false, false},        {"gqa", false, false},
        {"gla:g=2", true, false},      {"tpla:u=id", true, false},       {"tpla:u=hadamard", true, false},
        {"tpla:u=pca", true, true},    {"tpla:u=mix", true, true},       {"tpla:u=id:mu=fit", true, true},
        {"gla:g=2:mu=g", true, false},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        variant v = parsed(cases[i].text);
        cr_expect(variant_needs_transform(&v) == cases[i].transform, "%s", cases[i].text);
        cr_expect(variant_needs_calibration(&v) == cases[i].calibration, "%s", cases[i].text);
    }
}
