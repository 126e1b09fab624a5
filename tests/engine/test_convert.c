/* Converted checkpoints, loaded back: the same model as plain MLA, in files that others can read. */
#include <criterion/criterion.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "base/rng.h"
#include "engine/convert.h"
#include "engine/safetensors.h"
#include "tests/support/checkpoint.h"

#define PARITY SOURCE_ROOT "/tests/data/parity/"
#define WORLDLET SOURCE_ROOT "/models/worldlet-mla"

typedef struct {
    arena mem;
    model *m, *back;
    calibration cal;
    transform *t;
    folded *f;
    char *out;
    convert_report report;
    tpl_err e;
} trip;

/* Second moments of random vectors: any basis must keep the model exact. */
static void fill_calibration(calibration *cal, const model_config *c)
{
    int r = c->kv_lora_rank;
    calibration_init(cal, c->n_layers, r, c->n_heads, c->nope_dim);
    double *x = tpl_malloc(sizeof *x * (size_t)r);
    for (int l = 0; l < c->n_layers; l++) {
        rng g = rng_make(5, (uint64_t)l);
        for (int k = 0; k < 3 * r; k++) {
            for (int i = 0; i < r; i++)
                x[i] = rng_normal(&g) * (1 + i % 5);
            for (int i = 0; i < r * r; i++)
                cal->layers[l].raw[i] += x[i / r] * x[i % r] / (3 * r);
        }
    }
    free(x);
}

static tpl_code trip_write(trip *p, const char *dir, const char *variant_text, tpl_dtype dtype, int64_t shard_bytes)
{
    variant v;
    *p = (trip){0};
    arena_init(&p->mem);
    cr_assert_eq(model_open(dir, &p->m, &p->e), TPL_OK, "%s: %s", p->e.where, p->e.what);
    cr_assert_eq(variant_parse(variant_text, &v, &p->e), TPL_OK, "%s", p->e.what);
    fill_calibration(&p->cal, model_cfg(p->m));
    cr_assert_eq(transform_build(p->m, &v, &p->cal, NULL, &p->t, &p->e), TPL_OK, "%s: %s", p->e.where, p->e.what);
    cr_assert_eq(transform_fold(p->m, p->t, DT_F32, &p->f, &p->e), TPL_OK);
    p->out = ckpt_temp_dir(&p->mem);
    convert_options o = {.out = p->out, .dtype = dtype, .shard_bytes = shard_bytes, .calib = &p->cal};
    return convert_write(p->m, p->t, p->f, &o, &p->report, &p->e);
}

static void trip_free(trip *p)
{
    model_close(p->back);
    ckpt_remove_dir(p->out);
    folded_destroy(p->f);
    transform_destroy(p->t);
    calibration_free(&p->cal);
    model_close(p->m);
    arena_fini(&p->mem);
}

static convert_difference compare_rows(trip *p, const text_rows *rows)
{
    convert_difference d = {0};
    cr_assert_eq(model_open(p->out, &p->back, &p->e), TPL_OK, "%s: %s", p->e.where, p->e.what);
    cr_assert_eq(convert_compare(p->m, p->back, rows, &d, &p->e), TPL_OK, "%s: %s", p->e.where, p->e.what);
    cr_expect_eq(d.n_tok, (int64_t)rows->n_rows * rows->row_tok);
    return d;
}

/* Over random tokens. */
static convert_difference trip_compare(trip *p)
{
    enum { N_TOK = 60 };
    int32_t tokens[2 * N_TOK];
    rng g = rng_make(9, 9);
    for (int i = 0; i < 2 * N_TOK; i++)
        tokens[i] = (int32_t)rng_below(&g, (uint64_t)model_cfg(p->m)->vocab);
    return compare_rows(p, &(text_rows){.tokens = tokens, .n_rows = 2, .row_tok = N_TOK});
}

Test(convert, f32_round_trip_is_the_same_model)
{
    static const struct {
        const char *dir, *variant;
        int64_t shard_bytes;
        int32_t n_files; /* 0: more than one */
    } cases[] = {
        {WORLDLET, "tpla:g=2:u=hadamard", 0, 1},
        {WORLDLET, "tpla:g=4:u=pca:mu=one", 1 << 20, 0},
        {PARITY "deepseek-v3", "tpla:g=2:u=pca", 0, 1},
        {PARITY "deepseek-v3-mtp", "gla:g=2", 0, 1},
        {PARITY "deepseek-v3-fp8", "tpla:g=2:u=pca", 100000, 0},
        {PARITY "deepseek-v2-lite", "tpla:g=4:u=pca", 0, 1},
        {PARITY "transmla", "tpla:g=2:u=id", 0, 1},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        trip p;
        cr_assert_eq(trip_write(&p, cases[i].dir, cases[i].variant, DT_F32, cases[i].shard_bytes), TPL_OK, "%s: %s",
                     p.e.where, p.e.what);
        cr_expect(cases[i].n_files ? p.report.n_files == cases[i].n_files : p.report.n_files > 1, "case %zu: %d files",
                  i, p.report.n_files);
        convert_difference d = trip_compare(&p);
        cr_expect_leq(d.max_diff, 1e-4 * d.deviation, "case %zu: %g of %g", i, d.max_diff, d.deviation);
        cr_expect_eq(d.same_top1, 1.0, "case %zu", i);
        cr_expect_eq(model_cfg(p.back)->weight_dtype, DT_F32);
        cr_expect_str_empty(model_cfg(p.back)->quant_method);
        trip_free(&p);
    }
}

Test(convert, bf16_round_trip_costs_rounding_only)
{
    trip p;
    cr_assert_eq(trip_write(&p, WORLDLET, "tpla:g=2:u=hadamard", DT_BF16, 0), TPL_OK, "%s: %s", p.e.where, p.e.what);
    tokenizer *t = NULL;
    text_rows rows = {0};
    cr_assert_eq(tokenizer_open(WORLDLET, &t, &p.e), TPL_OK, "%s", p.e.what);
    cr_assert_eq(text_rows_read(SOURCE_ROOT "/datasets/worldlet/heldout.txt", t, 0, 2, 256, &rows, &p.e), TPL_OK, "%s",
                 p.e.what);
    convert_difference d = compare_rows(&p, &rows);
    cr_expect_eq(model_cfg(p.back)->weight_dtype, DT_BF16);
    cr_expect(d.kl_nats > 0 && d.kl_nats <= 1e-5, "KL %g", d.kl_nats);
    cr_expect_geq(d.same_top1, 0.98);
    text_rows_free(&rows);
    tokenizer_close(t);
    trip_free(&p);
}

/* u=id leaves columns in place: kv_b times gamma, column by column, and kv_a as it was. */
Test(convert, identity_folds_gamma_alone)
{
    trip p;
    cr_assert_eq(trip_write(&p, WORLDLET, "tpla:g=2:u=id", DT_F32, 0), TPL_OK, "%s: %s", p.e.where, p.e.what);
    cr_assert_eq(model_open(p.out, &p.back, &p.e), TPL_OK, "%s: %s", p.e.where, p.e.what);
    const model_config *c = model_cfg(p.m);
    float gamma[64], row[192], want[192];
    cr_assert_eq(c->kv_lora_rank, 64);
    for (int layer = 0; layer < c->n_layers; layer++) {
        mat norm = model_weight(p.m, W_KV_A_NORM, layer), one = model_weight(p.back, W_KV_A_NORM, layer);
        mat b = model_weight(p.m, W_KV_B, layer), folded_b = model_weight(p.back, W_KV_B, layer);
        mat a = model_weight(p.m, W_KV_A, layer), folded_a = model_weight(p.back, W_KV_A, layer);
        model_read_row(&norm, 0, 0, 64, gamma);
        model_read_row(&one, 0, 0, 64, row);
        for (int k = 0; k < 64; k++)
            cr_assert_eq(row[k], 1.f);
        for (int64_t i = 0; i < b.rows; i++) {
            model_read_row(&b, i, 0, 64, want);
            model_read_row(&folded_b, i, 0, 64, row);
            for (int k = 0; k < 64; k++)
                cr_assert_float_eq(row[k], want[k] * gamma[k], 1e-6f * fabsf(want[k] * gamma[k]) + 1e-12f, "layer %d",
                                   layer);
        }
        for (int64_t i = 0; i < a.rows; i++) {
            model_read_row(&a, i, 0, c->dim, want);
            model_read_row(&folded_a, i, 0, c->dim, row);
            cr_assert_eq(memcmp(row, want, sizeof(float) * (size_t)c->dim), 0, "layer %d row %lld", layer,
                         (long long)i);
        }
    }
    trip_free(&p);
}

Test(convert, tpla_json_holds_what_slicing_needs)
{
    trip p;
    json_t *root = NULL;
    cr_assert_eq(trip_write(&p, WORLDLET, "tpla:g=2:u=pca:mu=one", DT_BF16, 0), TPL_OK, "%s: %s", p.e.where, p.e.what);
    cr_assert_eq(json_load_path(text_path_join(&p.mem, p.out, "tpla.json"), &root, &p.e), TPL_OK, "%s", p.e.what);
    cr_expect_str_eq(json_string_value(json_object_get(root, "variant")),
                     "tpla:g=2:u=pca:slice=both:pd=on:alpha=recip:mu=one:proj=dup");
    cr_expect_eq(json_integer_value(json_object_get(root, "g")), 2);
    cr_expect_str_eq(json_string_value(json_object_get(json_object_get(root, "u"), "basis")), "pca");
    sha256_hex sha;
    cr_assert_eq(model_sha256(p.m, &sha, &p.e), TPL_OK);
    cr_expect_str_eq(json_string_value(json_object_get(json_object_get(root, "source"), "sha256")), sha.hex);
    json_t *layers = json_object_get(root, "layers");
    cr_assert_eq(json_array_size(layers), 6);
    for (size_t l = 0; l < 6; l++)
        for (size_t k = 0; k < 2; k++) {
            json_t *layer = json_array_get(layers, l);
            cr_expect_float_eq(json_real_value(json_array_get(json_object_get(layer, "alpha"), k)),
                               p.t->layers[l].alpha[k], 1e-6 * p.t->layers[l].alpha[k]);
            cr_expect_float_eq(json_real_value(json_array_get(json_object_get(layer, "mu"), k)), 1, 0);
        }
    json_decref(root);
    cr_expect(text_is_file(text_path_join(&p.mem, p.out, "tokenizer.json")));
    trip_free(&p);
}

/* The multi-token-prediction layer goes along; f8 weights and their scales become floats. */
Test(convert, other_tensors_stay)
{
    static const struct {
        const char *dir, *tensor, *type; /* type NULL: gone */
    } cases[] = {
        {PARITY "deepseek-v3-mtp", "model.layers.2.eh_proj.weight", "BF16"},
        {PARITY "deepseek-v3-mtp", "model.layers.1.mlp.gate.e_score_correction_bias", "F32"},
        {PARITY "deepseek-v3-fp8", "model.layers.1.mlp.experts.3.up_proj.weight", "BF16"},
        {PARITY "deepseek-v3-fp8", "model.layers.1.mlp.experts.3.up_proj.weight_scale_inv", NULL},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        trip p;
        st_set *files = NULL;
        cr_assert_eq(trip_write(&p, cases[i].dir, "gla:g=2", DT_BF16, 0), TPL_OK, "%s: %s", p.e.where, p.e.what);
        cr_assert_eq(st_set_open(p.out, &files, &p.e), TPL_OK);
        const st_tensor *t = st_set_find(files, cases[i].tensor);
        cr_expect_eq(t != NULL, cases[i].type != NULL, "case %zu", i);
        cr_expect(!t || strcmp(t->type, cases[i].type) == 0, "case %zu: %s", i, t ? t->type : "");
        cr_expect_eq(st_set_count(files), p.report.n_tensors);
        st_set_close(files);
        trip_free(&p);
    }
}

Test(convert, does_not_write_into_a_used_folder)
{
    trip p;
    convert_report r;
    cr_assert_eq(trip_write(&p, WORLDLET, "gla:g=2", DT_BF16, 0), TPL_OK);
    convert_options o = {.out = p.out, .dtype = DT_BF16};
    cr_expect_eq(convert_write(p.m, p.t, p.f, &o, &r, &p.e), TPL_E_USAGE);
    cr_expect(strstr(p.e.what, "is not empty"), "%s", p.e.what);
    o.out = WORLDLET "/config.json/below";
    cr_expect_eq(convert_write(p.m, p.t, p.f, &o, &r, &p.e), TPL_E_IO);
    trip_free(&p);
}
