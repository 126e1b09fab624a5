/* Shards of experts and of f8 weights: what a rank holds, and in which type. */
#include <criterion/criterion.h>

#include "engine/session.h"
#include "engine/shards.h"

#define PARITY SOURCE_ROOT "/tests/data/parity/"

static model *open_case(const char *dir)
{
    model *m = NULL;
    tpl_err e = {0};
    cr_assert_eq(model_open(dir, &m, &e), TPL_OK, "%s: %s", e.where, e.what);
    return m;
}

/* By hand, an expert's gate of deepseek-v3-fp8, [256, 160] in 128 x 128 blocks: tp 2 cuts at row 128, tp 4 at 64. What
 * begins within a block is widened, all else keeps one byte an element and its own scales. */
Test(shards, f8_stays_f8_where_blocks_allow)
{
    static const struct {
        int tp, rank;
        tpl_dtype type;
        int64_t scales;
    } want[] = {
        {1, 0, DT_F8E4M3, 4}, {2, 1, DT_F8E4M3, 2}, {4, 0, DT_F8E4M3, 2}, {4, 1, DT_F32, 0}, {4, 2, DT_F8E4M3, 2}};
    model *m = open_case(PARITY "deepseek-v3-fp8");
    tpl_err e = {0};
    for (size_t i = 0; i < sizeof want / sizeof *want; i++)
        for (int copy = 0; copy < 2; copy++) {
            int rows = 256 / want[i].tp, row0 = want[i].rank * rows;
            plan_weight w = {
                .source = W_EXPERT_GATE, .layer = 1, .n_heads = 4, .row0 = row0, .rows = rows, .cols = 160};
            bound_weight b;
            shard_memory mem;
            float whole[160], part[160];
            cr_assert_eq(shard_bind(m, NULL, &w, copy, &b, &mem, &e), TPL_OK);
            for (int k = 0; k < 4; k++) {
                mat full = model_expert(m, W_EXPERT_GATE, 1, k);
                cr_expect_eq(b.experts[k].dtype, want[i].type, "tp %d rank %d", want[i].tp, want[i].rank);
                for (int r = 0; r < rows; r += 7) {
                    model_read_row(&full, row0 + r, 0, 160, whole);
                    model_read_row(&b.experts[k], r, 0, 160, part);
                    cr_assert_arr_eq(whole, part, sizeof whole, "tp %d expert %d row %d", want[i].tp, k, r);
                }
            }
            cr_expect_eq(shard_bytes(&b), 4 * (rows * 160 * (int64_t)dtype_bytes(want[i].type) + want[i].scales * 4));
            shard_free(&mem);
        }
    model_close(m);
}

/* Columns of a down projection [160, 256]: half of them are one block of 128 columns, so its scales are compacted. */
Test(shards, f8_columns_take_their_scales_along)
{
    model *m = open_case(PARITY "deepseek-v3-fp8");
    mat full = model_expert(m, W_EXPERT_DOWN, 1, 2);
    tpl_err e = {0};
    for (int half = 0; half < 2; half++) {
        plan_weight w = {.source = W_EXPERT_DOWN,
                         .layer = 1,
                         .head0 = 2,
                         .n_heads = 1,
                         .rows = 160,
                         .col0 = 128 * half,
                         .cols = 128};
        bound_weight b;
        shard_memory mem;
        float whole[256], part[128];
        cr_assert_eq(shard_bind(m, NULL, &w, false, &b, &mem, &e), TPL_OK);
        cr_expect(b.experts[0].dtype == DT_F8E4M3 && mem.data.data == NULL && mem.scales.bytes == 2 * sizeof(float));
        for (int r = 0; r < 160; r++) {
            model_read_row(&full, r, 0, 256, whole);
            model_read_row(&b.experts[0], r, 0, 128, part);
            cr_assert_arr_eq(whole + 128 * half, part, sizeof part, "row %d", r);
        }
        shard_free(&mem);
    }
    model_close(m);
}

static int held_experts(const plan *p)
{
    for (int i = 0; i < p->n_weights; i++)
        if (p->weights[i].source == W_EXPERT_GATE)
            return p->weights[i].n_heads;
    return 0;
}

static plan *make_plan(const model_config *c, int tp, int rank, bool ep)
{
    variant v = variant_exact(c);
    plan *p = NULL;
    tpl_err e = {0};
    cr_assert_eq(plan_create(c, &v, tp, rank, (plan_options){.expert_parallel = ep}, &p, &e), TPL_OK, "%s", e.what);
    return p;
}

/* 8 experts over 4 ranks: two whole ones, or a quarter of each. Both hold and, on average, compute the same. */
Test(shards, experts_split_either_way_hold_the_same)
{
    model *m = open_case(PARITY "deepseek-v3");
    batch_shape b = batch_shape_uniform(16, 32, 1);
    plan_types t = {.act = DT_F32, .kv = DT_F32};
    for (int rank = 0; rank < 4; rank++) {
        plan *tp = make_plan(model_cfg(m), 4, rank, false), *ep = make_plan(model_cfg(m), 4, rank, true);
        cr_expect_eq(held_experts(tp), 8);
        cr_expect_eq(held_experts(ep), 2);
        cr_expect_eq(plan_weight_bytes(tp, N_PHASES, t), plan_weight_bytes(ep, N_PHASES, t));
        cr_expect_float_eq(plan_cost(tp, PHASE_DECODE, &b, t).flops, plan_cost(ep, PHASE_DECODE, &b, t).flops, 1);
        plan_destroy(tp);
        plan_destroy(ep);
    }
    model_close(m);
}

/* 7 experts over 4 ranks. */
Test(shards, experts_that_tp_does_not_divide_are_all_held_once)
{
    model *m = open_case(PARITY "deepseek-v3");
    model_config c = *model_cfg(m);
    static const int want[] = {1, 2, 2, 2};
    c.n_experts = 7;
    c.n_group = c.topk_group = 1;
    for (int rank = 0; rank < 4; rank++) {
        plan *p = make_plan(&c, 4, rank, true);
        cr_expect_eq(held_experts(p), want[rank], "rank %d", rank);
        plan_destroy(p);
    }
    model_close(m);
}

/* A plan counts an f8 model's weights as the team holds them, scales apart: one f32 a block of up to 16 KiB. */
Test(shards, plan_counts_f8_models_as_held)
{
    model *m = open_case(PARITY "deepseek-v3-fp8");
    variant v = variant_exact(model_cfg(m));
    team *t = NULL;
    tpl_err e = {0};
    cr_assert_eq(team_create(m, NULL, &v, &(team_options){.tp = 1}, &t, &e), TPL_OK, "%s", e.what);
    int64_t planned = plan_weight_bytes(team_plan(t, 0), N_PHASES, (plan_types){.act = DT_F32, .kv = DT_F32});
    int64_t held = team_weight_bytes(t, 0);
    cr_expect(held > planned && held - planned < planned / 1000, "planned %lld, held %lld", (long long)planned,
              (long long)held);
    team_destroy(t);
    model_close(m);
}
