#include "kernels/ops.h"

#include <criterion/criterion.h>
#include <string.h>

static mat shape(tpl_dtype t, int64_t rows, int64_t cols)
{
    return (mat){.dtype = t, .rows = rows, .cols = cols, .stride = cols};
}

static void expect(const op_call *call, double read, double written, double flops)
{
    op_cost_sum c = op_cost(call);
    cr_assert(c.bytes_read == read && c.bytes_written == written && c.flops == flops,
              "%s: reads %.17g, writes %.17g, computes %.17g; expected %.17g, %.17g, %.17g", op_name(call->kind),
              c.bytes_read, c.bytes_written, c.flops, read, written, flops);
}

Test(ops, names_are_the_members)
{
    cr_assert_str_eq(op_name(OP_ATTN_LATENT), "attn_latent");
    cr_assert_str_eq(op_name(OP_MOE_EXPERTS), "moe_experts");
    for (int i = 0; i < OP_COUNT; i++)
        cr_assert(strlen(op_name((op_kind)i)) > 0, "operation %d", i);
}

Test(ops, cost_of_products)
{
    op_call c = {.kind = OP_MATMUL};
    c.matmul = (op_matmul){.x = shape(DT_F32, 3, 64), .w = shape(DT_BF16, 8, 64), .out = shape(DT_F32, 3, 8)};
    expect(&c, 3 * 64 * 4 + 8 * 64 * 2, 3 * 8 * 4, 2 * 3 * 8 * 64);
    c.matmul.accumulate = true;
    c.matmul.bias = shape(DT_F32, 1, 8);
    expect(&c, 3 * 64 * 4 + 8 * 64 * 2 + 3 * 8 * 4 + 32, 3 * 8 * 4, 2 * 3 * 8 * 64);
    c.matmul.w = shape(DT_F8E4M3, 130, 256); /* 2 x 2 scales */
    c.matmul.x = shape(DT_F32, 3, 256);
    c.matmul.out = shape(DT_F32, 3, 130);
    c.matmul.accumulate = false;
    c.matmul.bias = (mat){0};
    expect(&c, 3 * 256 * 4 + 130 * 256 + 16, 3 * 130 * 4, 2 * 3 * 130 * 256);
    op_call h = {.kind = OP_HEAD_MATMUL};
    h.head_matmul = (op_head_matmul){.x = shape(DT_F32, 5, 999),
                                     .w = {.dtype = DT_BF16, .heads = 4, .rows = 6, .cols = 10},
                                     .out = shape(DT_F32, 5, 999)};
    expect(&h, 5 * 4 * 6 * 4 + 4 * 60 * 2, 5 * 4 * 10 * 4, 2 * 5 * 4 * 60);
    h.head_matmul.transposed = h.head_matmul.accumulate = true;
    expect(&h, 5 * 4 * 10 * 4 + 4 * 60 * 2 + 5 * 4 * 6 * 4, 5 * 4 * 6 * 4, 2 * 5 * 4 * 60);
}

/* One row over 64 cached tokens, 128 heads, rank 512, rope 64, bf16 throughout. */
Test(ops, cost_of_latent_attention)
{
    batch_view b = {.n_rows = 1, .n_seqs = 1, .ctx_tok = 64, .visible_pairs = 64};
    op_call c = {.kind = OP_ATTN_LATENT};
    op_attn_latent *o = &c.attn_latent;
    *o = (op_attn_latent){.q_lat = shape(DT_BF16, 1, 128 * 512),
                          .q_pe = shape(DT_BF16, 1, 128 * 64),
                          .heads = 128,
                          .lat = 512,
                          .rope = 64,
                          .kv = {.dtype = DT_BF16, .width = 576, .mod = 1},
                          .out = shape(DT_BF16, 1, 128 * 512),
                          .batch = &b};
    expect(&c, 128 * 576 * 2 + 64 * 576 * 2, 128 * 512 * 2, 2. * 128 * 64 * (2 * 512 + 64));
    o->lse = shape(DT_F32, 1, 128);
    o->kv.mod = 4; /* a quarter of the tokens on each rank */
    expect(&c, 128 * 576 * 2 + 16 * 576 * 2, 128 * 512 * 2 + 512, 2. * 128 * 16 * (2 * 512 + 64));
}

/* 3 rows behind a prefix of 2: 5 tokens, 3 + 4 + 5 pairs; 2 heads of 4 + 3 and 6, rank 8. */
Test(ops, cost_of_multi_head_form)
{
    batch_view b = {.n_rows = 3, .n_seqs = 1, .ctx_tok = 5, .visible_pairs = 12};
    op_call c = {.kind = OP_ATTN_MHA};
    op_attn_mha *o = &c.attn_mha;
    *o = (op_attn_mha){.q = shape(DT_F32, 3, 14),
                       .w_uk = {.dtype = DT_BF16, .heads = 2, .rows = 4, .cols = 8},
                       .w_uv = {.dtype = DT_BF16, .heads = 2, .rows = 6, .cols = 8},
                       .heads = 2,
                       .nope = 4,
                       .rope = 3,
                       .v_dim = 6,
                       .lat = 8,
                       .kv = {.dtype = DT_F32, .width = 20, .mod = 1},
                       .out = shape(DT_F32, 3, 12),
                       .batch = &b};
    double read = 3 * 14 * 4 + (2 * 4 * 8 + 2 * 6 * 8) * 2 + 5 * 11 * 4;
    expect(&c, read, 3 * 12 * 4, 2 * 5 * 2 * 8 * 10 + 2 * 2 * 13 * 12);
    o->accumulate = true;
    expect(&c, read + 3 * 12 * 4, 3 * 12 * 4, 2 * 5 * 2 * 8 * 10 + 2 * 2 * 13 * 12);
}

Test(ops, cost_of_grouped_queries)
{
    batch_view b = {.n_rows = 2, .n_seqs = 1, .ctx_tok = 100, .visible_pairs = 199};
    op_call c = {.kind = OP_ATTN_GQA};
    c.attn_gqa = (op_attn_gqa){.q = shape(DT_F32, 2, 6 * 10),
                               .heads = 6,
                               .kv_heads = 2,
                               .head_dim = 10,
                               .kv = {.dtype = DT_BF16, .width = 40, .mod = 1},
                               .out = shape(DT_F32, 2, 60),
                               .batch = &b};
    expect(&c, 2 * 60 * 4 + 100 * 40 * 2, 2 * 60 * 4, 4 * 6 * 10 * 199);
    c.attn_gqa.window = 8; /* the rows see 16 pairs of 9 tokens */
    expect(&c, 2 * 60 * 4 + 9 * 40 * 2, 2 * 60 * 4, 4 * 6 * 10 * 16);
}

Test(ops, cost_of_rows)
{
    batch_view b = {.n_rows = 3};
    op_call embed = {.kind = OP_EMBED,
                     .embed = {.table = shape(DT_BF16, 1000, 16), .out = shape(DT_F32, 3, 16), .batch = &b}};
    expect(&embed, 3 * 16 * 2, 3 * 16 * 4, 0);
    op_call norm = {
        .kind = OP_RMSNORM,
        .rmsnorm = {
            .x = shape(DT_F32, 3, 16), .out = shape(DT_F32, 3, 16), .weight = shape(DT_BF16, 1, 16), .groups = 1}};
    expect(&norm, 3 * 16 * 4 + 32, 3 * 16 * 4, 4 * 48);
    op_call sliced = {.kind = OP_SLICED_NORM,
                      .sliced_norm = {.x = shape(DT_F32, 3, 16), .out = shape(DT_F32, 3, 16), .n_slices = 2}};
    expect(&sliced, 3 * 16 * 4 + 8, 3 * 16 * 4, 3 * 48);
    op_call rope = {.kind = OP_ROPE,
                    .rope = {.x = shape(DT_F32, 3, 90), .heads = 2, .head_stride = 40, .dim = 8, .batch = &b}};
    expect(&rope, 3 * 16 * 4 + 3 * 8 * 4, 3 * 16 * 4, 3 * 48);
    op_call append = {
        .kind = OP_KV_APPEND,
        .kv_append = {
            .a = shape(DT_F32, 4, 8), .b = shape(DT_F32, 4, 2), .kv = {.dtype = DT_BF16, .mod = 2}, .batch = &b}};
    expect(&append, 2 * 10 * 4, 2 * 10 * 2, 0);
    op_call merge = {
        .kind = OP_LSE_MERGE,
        .lse_merge = {.o = shape(DT_F32, 3, 16), .lse = shape(DT_F32, 3, 8), .heads = 2, .lat = 8, .parts = 4}};
    expect(&merge, 3 * 16 * 4 + 3 * 8 * 4, 3 * 16 * 4, 48 + 6 * 11);
    op_call silu = {.kind = OP_SILU_MUL,
                    .silu_mul = {shape(DT_F32, 3, 16), shape(DT_F32, 3, 16), shape(DT_F32, 3, 16)}};
    expect(&silu, 2 * 3 * 16 * 4, 3 * 16 * 4, 4 * 48);
    op_call add = {.kind = OP_ADD, .add = {shape(DT_BF16, 3, 16), shape(DT_F32, 3, 16)}};
    expect(&add, 3 * 16 * 6, 3 * 16 * 4, 48);
    op_call copy = {.kind = OP_COPY_HEADS,
                    .copy_heads = {.x = shape(DT_F32, 3, 99), .out = shape(DT_F32, 3, 99), .heads = 2, .cols = 8}};
    expect(&copy, 3 * 16 * 4, 3 * 16 * 4, 0);
    op_call gather = {.kind = OP_GATHER_ROWS, .gather_rows = {.x = shape(DT_F32, 50, 16), .out = shape(DT_F32, 2, 16)}};
    expect(&gather, 2 * 16 * 4, 2 * 16 * 4, 0);
}

/* One row that goes to 2 of 8 experts, half of them here: 1 of 4 on average. */
Test(ops, cost_of_experts)
{
    op_call c = {.kind = OP_MOE_EXPERTS};
    c.moe_experts = (op_moe_experts){.x = shape(DT_F32, 1, 16),
                                     .ids = shape(DT_I32, 1, 2),
                                     .weights = shape(DT_F32, 1, 2),
                                     .n_local = 4,
                                     .n_experts = 8,
                                     .ffn = 32,
                                     .weight_dtype = DT_BF16,
                                     .out = shape(DT_F32, 1, 16)};
    expect(&c, 64 + 8 + 8 + 3 * 16 * 32 * 2, 64, 6 * 16 * 32);
    op_call r = {.kind = OP_MOE_ROUTE};
    r.moe_route = (op_moe_route){.x = shape(DT_F32, 3, 16),
                                 .w = shape(DT_BF16, 8, 16),
                                 .ids = shape(DT_I32, 3, 2),
                                 .weights = shape(DT_F32, 3, 2),
                                 .bias = shape(DT_F32, 1, 8)};
    expect(&r, 3 * 16 * 4 + 8 * 16 * 2 + 32, 3 * 2 * 8, 2 * 3 * 8 * 16);
}
