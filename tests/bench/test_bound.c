/* Hand-worked bounds on a made-up machine: read 20, copy 10, in place 40 GB/s; f32 100, bf16 250 GFLOP/s; two
 * threads 1.5 times that. */
#include "bench/bound.h"

#include <criterion/criterion.h>
#include <math.h>
#include <string.h>

static const ceilings machine = {
    .cores = 2, .n = 2, .threads = {1, 2}, .rate = {{20, 30}, {10, 15}, {100, 150}, {250, 375}, {40, 60}}};

TestSuite(bound);

Test(bound, says_what_it_is_made_of)
{
    bound_parts p = {0};
    char text[BOUND_TEXT];
    bound_describe(&p, text);
    cr_expect_str_eq(text, "");
    bound_add_parts(&machine, (op_cost_sum){20e6, 0, 1e6}, false, DT_BF16, 1, &p); /* 1000 us of reading */
    bound_describe(&p, text);
    cr_expect_str_eq(text, "read");
    bound_add_parts(&machine, (op_cost_sum){3e6, 1e6, 0}, false, DT_F32, 1, &p); /* 200 copied, 100 read */
    bound_add_parts(&machine, (op_cost_sum){1e3, 0, 0.2e9}, false, DT_BF16, 1, &p); /* 800 us of products */
    bound_add_parts(&machine, (op_cost_sum){1e3, 0, 1e6}, false, DT_F32, 1, &p); /* 10 us: too little to say */
    bound_describe(&p, text);
    cr_expect_str_eq(text, "read 52% bf16 38% copy 9%");
}

Test(bound, is_the_larger_of_bytes_at_their_own_mix_and_flops)
{
    static const struct {
        const char *name;
        op_cost_sum cost;
        bool in_place;
        tpl_dtype compute;
        int threads;
        double us;
    } cases[] = {
        {"read only", {20e6, 0, 0}, false, DT_F32, 1, 1000},
        {"copy", {5e6, 5e6, 0}, false, DT_F32, 1, 1000},
        {"one written of three read", {3e6, 1e6, 0}, false, DT_F32, 1, 200 + 100},
        {"mostly written", {1e6, 9e6, 0}, false, DT_F32, 1, 1000},
        {"f32 products", {1e3, 0, 1e9}, false, DT_F32, 1, 10000},
        {"bf16 products", {1e3, 0, 1e9}, false, DT_BF16, 1, 4000},
        {"bytes above products", {40e6, 0, 1e6}, false, DT_BF16, 1, 2000},
        {"two at once", {15e6, 0, 0}, false, DT_F32, 2, 1000},
        {"more than cores", {15e6, 0, 0}, false, DT_F32, 4, 2000},
        {"in place", {5e6, 5e6, 0}, true, DT_F32, 1, 250},
        {"summed in place", {10e6, 5e6, 0}, true, DT_F32, 1, 250 + 250},
        {"nothing", {0, 0, 0}, false, DT_F32, 1, 0},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        double got = bound_us(&machine, cases[i].cost, cases[i].in_place, cases[i].compute, cases[i].threads);
        cr_expect(fabs(got - cases[i].us) <= 1e-9 * cases[i].us, "%s: %g, expected %g", cases[i].name, got,
                  cases[i].us);
    }
}

Test(bound, bf16_inputs_may_be_computed_in_f32)
{
    ceilings c = machine;
    c.rate[CEIL_BF16][0] = 0; /* no such instructions */
    cr_expect_float_eq(bound_us(&c, (op_cost_sum){0, 0, 1e9}, false, DT_BF16, 1), 10000, 1e-6);
    c.rate[CEIL_F32][0] = 0;
    cr_expect(isnan(bound_us(&c, (op_cost_sum){0, 0, 1e9}, false, DT_BF16, 1)), "no rate, no bound");
}

Test(bound, only_products_and_attention_run_at_the_matrix_rate)
{
    cr_expect(bound_rate_type(OP_ATTN_LATENT, DT_BF16) == DT_BF16);
    cr_expect(bound_rate_type(OP_MATMUL, DT_BF16) == DT_BF16);
    cr_expect(bound_rate_type(OP_RMSNORM, DT_BF16) == DT_F32);
    cr_expect(bound_rate_type(OP_SILU_MUL, DT_BF16) == DT_F32);
}

static bool is_in_place(const char *step)
{
    static const char *const names[] = {"attn.q_rope", "attn.k_rope",  "attn.add",
                                        "mlp.add",     "mlp.silu_mul", "logits.norm"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (strcmp(step, names[i]) == 0)
            return true;
    return false;
}

/* One GQA layer, attention only, small enough to count: every step is bound by bytes, and the plan's bound is at least
 * that of its bytes read in one go and at most that plus what is written at the copy rate. */
Test(bound, of_a_plan_is_the_sum_over_its_steps)
{
    model_config c = {.attn = ATTN_GQA,
                      .n_layers = 1,
                      .vocab = 64,
                      .dim = 32,
                      .ffn_dim = 64,
                      .n_heads = 4,
                      .n_kv_heads = 2,
                      .head_dim = 8,
                      .rope_dim = 8,
                      .max_pos = 128,
                      .rms_eps = 1e-5f,
                      .weight_dtype = DT_F32};
    variant v = {.kind = VAR_GQA, .g = 1};
    plan *p;
    tpl_err err = {0};
    cr_assert(plan_create(&c, &v, 1, 0, (plan_options){0}, &p, &err) == TPL_OK, "%s", err.what);
    batch_shape b = batch_shape_uniform(1, 99, 1);
    plan_types t = {.act = DT_F32, .kv = DT_F32};
    double sum = 0, all = bound_plan_us(&machine, p, PHASE_DECODE, &b, t, DT_F32, 1);
    for (int i = 0; i < p->list[PHASE_DECODE].n; i++) {
        step_cost s = plan_step_cost(p, &p->list[PHASE_DECODE].steps[i], &b, t);
        double w = fmin(s.bytes_read, s.bytes_written);
        double copy = is_in_place(p->list[PHASE_DECODE].steps[i].name) ? 40e3 : 10e3;
        double bytes = s.bytes_written > s.bytes_read ? (s.bytes_read + s.bytes_written) / copy
                                                      : 2 * w / copy + (s.bytes_read - w) / 20e3;
        sum += fmax(bytes, s.flops / 100e3);
    }
    cr_expect(fabs(all - sum) <= 1e-9 * sum && all > 0, "%g, expected %g", all, sum);
    step_cost whole = plan_cost(p, PHASE_DECODE, &b, t);
    cr_expect(all >= whole.bytes_read / 20e3);
    double two = bound_plan_us(&machine, p, PHASE_DECODE, &b, t, DT_F32, 2);
    cr_expect(fabs(two - all * 2 / 1.5) <= 1e-9 * two, "two ranks share one and a half machines");
    plan_destroy(p);
}
