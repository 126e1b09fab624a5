#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "engine/lab.h"
#include "engine/shape.h"
#include "tests/support/checkpoint.h"

static const struct {
    const char *text, *name;
    int32_t layers;
    bool attention_only;
    uint64_t seed;
} good[] = {
    {"shape:deepseek-v3", "deepseek-v3", 0, false, 1},
    {"shape:kimi-k2,layers=4,moe=off", "kimi-k2", 4, true, 1},
    {"shape:a/b.json,moe=full,seed=7", "a/b.json", 0, false, 7},
};

Test(shape, reads_names_and_keys)
{
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        shape_spec s;
        tpl_err e = {0};
        cr_assert(shape_parse(good[i].text, &s, &e) == TPL_OK, "%s: %s", good[i].text, e.what);
        cr_expect(strcmp(s.name, good[i].name) == 0 && s.layers == good[i].layers, "%s", good[i].text);
        cr_expect(s.attention_only == good[i].attention_only && s.seed == good[i].seed, "%s", good[i].text);
    }
}

static const struct {
    const char *text, *word;
} bad[] = {
    {"shape:", "name"},
    {"shape:x,layers=0", "layers"},
    {"shape:x,layers=two", "'two'"},
    {"shape:x,moe=half", "off or full"},
    {"shape:x,moe", "no value"},
    {"shape:x,depth=3", "no key"},
};

Test(shape, names_what_is_wrong)
{
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        shape_spec s;
        tpl_err e = {0};
        cr_assert(shape_parse(bad[i].text, &s, &e) == TPL_E_USAGE, "%s", bad[i].text);
        cr_expect(strstr(e.what, bad[i].word), "%s: '%s' does not say '%s'", bad[i].text, e.what, bad[i].word);
    }
}

/* From a transcription of splitmix64 in Python: next() of state key is mix(key + (i + 1) * 0x9e3779b97f4a7c15). */
Test(shape, values_are_splitmix64)
{
    static const struct {
        uint64_t key, index;
        double unit;
    } cases[] = {{0, 0, 0.7666215896606445}, {1, 0, 0.13312304019927979}, {1234567, 5, -0.15382421016693115}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        random_recipe r = {.key = cases[i].key, .size = 0.5f};
        cr_expect(random_value(r, cases[i].index) == (float)(0.5 * cases[i].unit), "case %zu: %.9g", i,
                  (double)random_value(r, cases[i].index));
        r.offset = 4;
        cr_expect(fabs(random_value(r, cases[i].index) - 0.5 * (cases[i].unit + 4)) < 3e-7, "case %zu", i);
    }
}

typedef struct {
    arena mem;
    char *dir, *spec;
} folder;

static folder make_shape(const model_config *c, const char *keys, const char *extra)
{
    folder f;
    tpl_err e = {0};
    arena_init(&f.mem);
    f.dir = ckpt_temp_dir(&f.mem);
    char *text = ckpt_config_text(&f.mem, c, extra), *path = text_path_join(&f.mem, f.dir, "tiny.json");
    cr_assert(text_write_file(path, text, strlen(text), &e) == TPL_OK, "%s", e.what);
    f.spec = arena_printf(&f.mem, "shape:%s%s", path, keys);
    return f;
}

static void drop_shape(folder *f)
{
    ckpt_remove_dir(f->dir);
    arena_fini(&f->mem);
}

Test(shape, weights_follow_their_recipe)
{
    model_config c = ckpt_small_mla();
    folder f = make_shape(&c, ",layers=3", NULL);
    model *m;
    tpl_err e = {0};
    cr_assert(model_open_shape(f.spec, NULL, &m, &e) == TPL_OK, "%s: %s", e.where, e.what);
    cr_assert(model_cfg(m)->n_layers == 3 && model_is_random(m) && !model_attention_only(m));
    cr_assert(model_make_weights(m, &e) == TPL_OK, "%s", e.what);
    mat w = model_weight(m, W_KV_B, 2);
    const bf16 *at = (const bf16 *)w.data + 3 * w.stride + 5;
    random_recipe r;
    uint64_t index;
    cr_assert(model_weight_recipe(m, at, &r, &index));
    cr_expect(index == (uint64_t)(3 * w.stride + 5));
    cr_expect(*at == bf16_from_f32(random_value(r, index)));
    double sum = 0, squares = 0, n = (double)(w.rows * w.cols);
    for (int64_t i = 0; i < w.rows * w.cols; i++) {
        double v = bf16_to_f32(((const bf16 *)w.data)[i]);
        sum += v;
        squares += v * v;
    }
    cr_expect(fabs(sum / n) < 0.05, "mean %g", sum / n); /* sd of the mean: 0.25 / sqrt(896) = 0.008 */
    cr_expect(fabs(squares / n * (double)w.cols - 1) < 0.2, "variance %g", squares / n);
    cr_expect(bf16_to_f32(*(const bf16 *)model_weight(m, W_ATTN_NORM, 1).data) >= 0.75f);
    model_close(m);
    drop_shape(&f);
}

/* The same logits from every rank's share of the experts. */
static void run_shape(const char *spec, const char *text, int tp, bool mlp, float *logits);

Test(shape, makes_experts)
{
    static const char extra[] =
        "\"n_routed_experts\": 8, \"num_experts_per_tok\": 2, \"n_shared_experts\": 1, \"moe_intermediate_size\": 8,"
        "\"first_k_dense_replace\": 1, \"n_group\": 2, \"topk_group\": 1,";
    model_config c = ckpt_small_mla();
    folder f = make_shape(&c, ",moe=full", extra);
    float one[48], two[48];
    run_shape(f.spec, "mla", 1, true, one);
    run_shape(f.spec, "mla", 2, true, two);
    for (int i = 0; i < 48; i++)
        cr_expect(fabsf(one[i] - two[i]) < 1e-4f, "logit %d: %g and %g", i, (double)one[i], (double)two[i]);
    drop_shape(&f);
}

static bool has_step(const plan *p, const char *name)
{
    for (int i = 0; i < p->list[PHASE_DECODE].n; i++)
        if (strcmp(p->list[PHASE_DECODE].steps[i].name, name) == 0)
            return true;
    return false;
}

/* Logits of 5 rows, the same whatever the number of ranks. */
static void run_shape(const char *spec, const char *text, int tp, bool mlp, float *logits)
{
    lab *l;
    lab_run run;
    session *s;
    variant v;
    tpl_err e = {0};
    cr_assert(lab_open(spec, &(lab_calibration){0}, &l, &e) == TPL_OK, "%s: %s", e.where, e.what);
    cr_assert(variant_parse(text, &v, &e) == TPL_OK);
    cr_assert(lab_run_open(l, &v, &(team_options){.tp = tp}, &run, &e) == TPL_OK, "%s: %s", e.where, e.what);
    cr_expect(has_step(team_plan(run.team, 0), "mlp.down") == mlp);
    session_options o = {.max_seqs = 1, .max_tok = 8, .max_rows = 8, .max_logits = 1};
    cr_assert(session_create(run.team, &o, &s, &e) == TPL_OK, "%s: %s", e.where, e.what);
    int seq = session_add_seq(s);
    batch_row rows[5];
    for (int i = 0; i < 5; i++)
        rows[i] = (batch_row){.seq = seq, .token = 7 * i, .parent = ROW_CHAIN, .want_logits = i == 4};
    cr_assert(session_forward(s, PHASE_DECODE, rows, 5, &e) == TPL_OK, "%s: %s", e.where, e.what);
    memcpy(logits, session_logits(s, 0), 48 * sizeof *logits);
    session_destroy(s);
    lab_run_close(&run);
    lab_close(l);
}

Test(shape, runs_without_a_transform)
{
    model_config c = ckpt_small_mla();
    for (int off = 0; off < 2; off++) {
        folder f = make_shape(&c, off ? ",moe=off" : "", NULL);
        float one[48], two[48], size = 0;
        run_shape(f.spec, "tpla:g=2:u=pca", 1, !off, one);
        run_shape(f.spec, "tpla:g=2:u=pca", 2, !off, two);
        for (int i = 0; i < 48; i++) {
            size = fmaxf(size, fabsf(one[i]));
            cr_expect(fabsf(one[i] - two[i]) < 1e-4f, "logit %d: %g and %g", i, (double)one[i], (double)two[i]);
        }
        cr_expect(size > 0.1f && size < 100);
        drop_shape(&f);
    }
}
