/* Attention and cache appends on a card, over the hostile caches of tests/kernels/world.h, against the reference. */
#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "tests/gpu/slab.h"
#include "tests/gpu/small.h"
#include "tests/kernels/world.h"

enum { SLAB_BYTES = 512 << 20 };

static const world_spec worlds[] = {
    {.name = "one_token", .n_seqs = 1, .prefix = {0}, .rows = {1}, .page_tok = 16, .mod = 1},
    {.name = "decode", .n_seqs = 3, .prefix = {130, 0, 257}, .rows = {1, 1, 1}, .page_tok = 7, .mod = 1},
    {.name = "long_decode", .n_seqs = 2, .prefix = {1500, 64}, .rows = {1, 1}, .page_tok = 64, .mod = 1},
    {.name = "prefill", .n_seqs = 2, .prefix = {0, 5}, .rows = {150, 33}, .page_tok = 16, .mod = 1},
    {.name = "chunk", .n_seqs = 1, .prefix = {129}, .rows = {140}, .page_tok = 64, .mod = 1},
    {.name = "tree", .n_seqs = 2, .prefix = {40, 0}, .rows = {70, 9}, .page_tok = 8, .mod = 1, .tree = true},
    {.name = "no_rows", .n_seqs = 3, .prefix = {9, 20, 4}, .rows = {2, 0, 3}, .page_tok = 4, .mod = 1},
    {.name = "dcp_0", .n_seqs = 2, .prefix = {0, 131}, .rows = {3, 1}, .page_tok = 4, .mod = 4, .rem = 0},
    {.name = "dcp_3", .n_seqs = 2, .prefix = {0, 131}, .rows = {3, 1}, .page_tok = 4, .mod = 4, .rem = 3},
    {.name = "dcp_tree", .n_seqs = 1, .prefix = {257}, .rows = {66}, .page_tok = 8, .mod = 2, .rem = 1, .tree = true},
};

static const world_spec window_worlds[] = {
    {.name = "window_1", .n_seqs = 1, .prefix = {0}, .rows = {20}, .page_tok = 4, .mod = 1, .window = 1},
    {.name = "window_decode", .n_seqs = 2, .prefix = {400, 3}, .rows = {1, 1}, .page_tok = 16, .mod = 1, .window = 130},
    {.name = "window_prefill", .n_seqs = 1, .prefix = {10}, .rows = {300}, .page_tok = 16, .mod = 1, .window = 64},
    {.name = "window_tree",
     .n_seqs = 1,
     .prefix = {30},
     .rows = {70},
     .page_tok = 16,
     .mod = 1,
     .tree = true,
     .window = 25},
};

/* Decode of more sequences than a warp has lanes, and of so many that a block's run has several whole ones. */
static const world_spec crowds[] = {
    {.name = "forty",
     .n_seqs = 40,
     .prefix = {[0] = 300, [1 ... 37] = 70, [38] = 0, [39] = 129},
     .rows = {[0 ... 39] = 1},
     .page_tok = 64,
     .mod = 1},
    {.name = "hundreds",
     .n_seqs = WORLD_SEQS,
     .prefix = {[0 ... WORLD_SEQS - 1] = 2},
     .rows = {[0 ... WORLD_SEQS - 1] = 1},
     .page_tok = 64,
     .mod = 1},
};

enum { N_WORLDS = sizeof worlds / sizeof *worlds, N_WINDOWS = sizeof window_worlds / sizeof *window_worlds };

/* f32: scores below 16 with errors of 8 u * 16, into weights, and averages of values below 1. bf16: probabilities are
 * rounded (2^-9), the MHA form's keys and values may round the other way, the result is stored in bf16. */
static slab_tolerance tol(tpl_dtype t)
{
    return t == DT_BF16 ? (slab_tolerance){6e-3, 0x1p-7} : (slab_tolerance){3e-5, 3e-5};
}

static const tpl_dtype kinds[][2] = {{DT_F32, DT_F32}, {DT_F32, DT_BF16}, {DT_BF16, DT_BF16}}; /* activations, cache */

/* Of small shapes: decode, empty sequences, a rank's own tokens, and a tree. */
static bool is_taken(const world_spec *w)
{
    static const char *const small[] = {"one_token", "decode", "no_rows", "dcp_3", "tree", "window_decode"};
    for (size_t i = 0; i < sizeof small / sizeof *small; i++)
        if (strcmp(w->name, small[i]) == 0)
            return true;
    return !shapes_are_small();
}

/* Of them: f32 over bf16 is what the two others are made of; wide heads decode in bf16, alone, in a batch, as a tree and as
 * a rank's own tokens. */
static bool is_kind_taken(const world_spec *w, int kind, bool wide)
{
    bool of_wide = strcmp(w->name, "no_rows") && strcmp(w->name, "window_decode");
    return !shapes_are_small() || (kind != 1 && (!wide || (kind == 2 && of_wide)));
}

/* A world whose arrays lie in the slab. */
typedef struct {
    world *w;
    batch_view batch;
    kv_view kv;
} place;

/* `room`: how far the bounds that size the launches lie above the truth. */
static place enter(slab *s, const world_spec *given, tpl_dtype cache, int32_t width, int32_t room)
{
    world_spec spec = *given;
    spec.dtype = cache;
    place p = {.w = world_create(&spec, width, 3)};
    const world *w = p.w;
    size_t rows = (size_t)w->batch.n_rows * 4, seqs = (size_t)w->batch.n_seqs * 4;
    p.batch = w->batch;
    p.batch.row_token = slab_copy(s, w->batch.row_token, rows);
    p.batch.row_seq = slab_copy(s, w->batch.row_seq, rows);
    p.batch.row_pos = slab_copy(s, w->batch.row_pos, rows);
    p.batch.seq_row0 = slab_copy(s, w->batch.seq_row0, seqs + 4);
    p.batch.seq_prefix = slab_copy(s, w->batch.seq_prefix, seqs);
    p.batch.seq_open = slab_copy(s, w->batch.seq_open, seqs);
    p.batch.row_mask = slab_copy(s, w->batch.row_mask, rows * 2 * (size_t)w->batch.mask_words);
    p.batch.max_slots = w->max_slots + room;
    for (int32_t i = 0; i < spec.n_seqs; i++)
        p.batch.max_seq_rows = spec.rows[i] > p.batch.max_seq_rows ? spec.rows[i] : p.batch.max_seq_rows;
    p.kv = w->kv;
    p.kv.pages =
        slab_copy(s, w->kv.pages, (size_t)w->n_pages * (size_t)w->kv.page_tok * (size_t)width * dtype_bytes(cache));
    p.kv.page_table = slab_copy(s, w->kv.page_table, seqs * (size_t)w->kv.max_pages);
    return p;
}

static void say(char what[160], const char *op, const world_spec *w, tpl_dtype act, tpl_dtype cache, int a, int b)
{
    snprintf(what, 160, "%s %s, %s over %s, %d %d", op, w->name, dtype_name(act), dtype_name(cache), a, b);
}

/* ---- latent ---- */

static const struct {
    int heads, lat, rope;
    bool units; /* an instance on matrix units is expected */
} latents[] = {{3, 20, 6, false},    {8, 64, 16, true},   {5, 512, 64, true},   {33, 256, 64, true},
               {16, 128, 64, true},  {8, 32, 16, true},   {4, 16, 16, true},    {64, 512, 64, true},
               {128, 512, 64, true}, {64, 256, 64, true}, {128, 256, 64, true}, {16, 512, 64, true},
               {7, 256, 64, true}};

static slab_case latent_case(slab *s, rng *r, const place *p, int i, tpl_dtype act)
{
    int heads = latents[i].heads, lat = latents[i].lat, rope = latents[i].rope, gap = latents[i].units ? 8 : 3;
    slab_case c = {.call = {.kind = OP_ATTN_LATENT}, .compute = act};
    op_attn_latent *o = &c.call.attn_latent;
    *o = (op_attn_latent){.q_lat = slab_mat(s, r, p->batch.n_rows, heads * (lat + gap), gap, act, 1),
                          .q_pe = slab_mat(s, r, p->batch.n_rows, heads * (rope + gap), gap, act, 1),
                          .q_lat_head_stride = lat + gap,
                          .q_pe_head_stride = rope + gap,
                          .heads = heads,
                          .lat = lat,
                          .rope = rope,
                          .lat_off = gap,
                          .rope_off = lat + gap,
                          .kv = p->kv,
                          .scale = lat > 100 ? 0.1f : 0.4f,
                          .batch = &p->batch};
    o->out = c.out[0] = slab_mat(s, r, p->batch.n_rows, heads * lat, gap, act, 0);
    o->lse = c.out[1] = slab_mat(s, r, p->batch.n_rows, heads, 3, DT_F32, 0);
    c.tol[0] = tol(act);
    c.tol[1] = (slab_tolerance){2e-5, 2e-5};
    return c;
}

/* Widths that warpgroups take run on one row of the table more where the card has them. */
static void check_latent(slab *s, const world_spec *spec, int i, tpl_dtype act, tpl_dtype cache, int32_t room)
{
    rng r = rng_make(11, (uint64_t)i);
    char what[160];
    int lat = latents[i].lat, gap = latents[i].units ? 8 : 3;
    slab_reset(s);
    place p = enter(s, spec, cache, lat + latents[i].rope + 2 * gap, room);
    slab_case c = latent_case(s, &r, &p, i, act);
    say(what, "latent", spec, act, cache, latents[i].heads, lat);
    int n = slab_check(s, &c, what), units = latents[i].units && act == DT_BF16 && cache == DT_BF16;
    cr_expect(n >= 1 + units && n <= 1 + units * (lat < 100 ? 1 : 2), "%s: %d rows of the table ran", what, n);
    world_destroy(p.w);
}

static void check_latents(bool wide)
{
    slab *s = slab_create(SLAB_BYTES);
    for (int w = 0; w < N_WORLDS; w++)
        for (int i = 0; i < (int)(sizeof latents / sizeof *latents); i++)
            for (int k = 0; k < 3; k++)
                if (is_taken(&worlds[w]) && is_kind_taken(&worlds[w], k, latents[i].lat >= 100) &&
                    wide == (latents[i].heads >= 64) && (latents[i].lat < 100 || k == 2) &&
                    !(wide && worlds[w].rows[0] > (latents[i].heads > 64 ? 3 : 70)))
                    check_latent(s, &worlds[w], i, kinds[k][0], kinds[k][1], w % 2 ? 0 : 3000);
    slab_destroy(s);
}

Test(attention, latent)
{
    check_latents(false);
}

Test(attention, latent_many_heads)
{
    check_latents(true);
}

/* One row's, and the product a head of the results, which is the same launch as the join of their parts; of few and of
 * many parts, and of none where the rank has no token. */
Test(attention, latent_and_unabsorb)
{
    static const world_spec rows[] = {
        {.name = "one_token", .n_seqs = 1, .prefix = {0}, .rows = {1}, .page_tok = 16, .mod = 1},
        {.name = "decode", .n_seqs = 1, .prefix = {1040}, .rows = {1}, .page_tok = 64, .mod = 1},
        {.name = "longer", .n_seqs = 1, .prefix = {2900}, .rows = {1}, .page_tok = 7, .mod = 1},
        {.name = "dcp", .n_seqs = 1, .prefix = {0}, .rows = {1}, .page_tok = 4, .mod = 4, .rem = 3}};
    slab *s = slab_create(SLAB_BYTES);
    for (int w = 0; w < (shapes_are_small() ? 2 : (int)(sizeof rows / sizeof *rows)); w++)
        for (int i = 0; i < (int)(sizeof latents / sizeof *latents); i++) {
            rng r = rng_make(13, (uint64_t)i);
            char what[160];
            int heads = latents[i].heads, lat = latents[i].lat, n = i % 2 ? 128 : 32;
            if (heads > 16 || lat < 256)
                continue;
            slab_reset(s);
            place p = enter(s, &rows[w], DT_BF16, lat + 64 + 16, w == 3 ? 600 : 0);
            slab_heads h = {.rows = 1, .heads = heads, .w_rows = n, .w_cols = lat, .turned = true, .w_gap = 8};
            slab_case c[2] = {latent_case(s, &r, &p, i, DT_BF16), slab_head_matmul(s, &r, DT_BF16, &h)};
            c[1].call.head_matmul.x = c[0].call.attn_latent.out;
            c[1].tol[0] = (slab_tolerance){0x1p-7 * sqrt(lat), 0x1p-6};
            snprintf(what, sizeof what, "latent and unabsorb, case %d, %d heads of %d", w, heads, lat);
            slab_check_join(s, c, 2, what);
            world_destroy(p.w);
        }
    slab_destroy(s);
}

/* ---- grouped queries ---- */

static const struct {
    int heads, kv_heads, dim;
} groups[] = {{4, 2, 6}, {8, 2, 32}, {8, 1, 64}, {6, 6, 64}, {28, 4, 128}, {44, 1, 144}, {80, 40, 128}};

static void check_gqa(slab *s, const world_spec *spec, int i, tpl_dtype act, tpl_dtype cache, int32_t room)
{
    rng r = rng_make(12, (uint64_t)i);
    char what[160];
    int heads = groups[i].heads, kv = groups[i].kv_heads, dim = groups[i].dim;
    slab_reset(s);
    place p = enter(s, spec, cache, 2 * kv * dim + 16, room);
    slab_case c = {.call = {.kind = OP_ATTN_GQA}, .compute = act};
    op_attn_gqa *o = &c.call.attn_gqa;
    *o = (op_attn_gqa){.q = slab_mat(s, &r, p.batch.n_rows, heads * dim, 8, act, 1),
                       .heads = heads,
                       .kv_heads = kv,
                       .head_dim = dim,
                       .k_off = 8,
                       .v_off = kv * dim + 8,
                       .window = spec->window,
                       .kv = p.kv,
                       .scale = dim > 100 ? 0.2f : 0.4f,
                       .batch = &p.batch};
    o->out = c.out[0] = slab_mat(s, &r, p.batch.n_rows, heads * dim, 8, act, 0);
    c.tol[0] = tol(act);
    say(what, "gqa", spec, act, cache, heads, dim);
    slab_check(s, &c, what);
    world_destroy(p.w);
}

Test(attention, grouped)
{
    slab *s = slab_create(SLAB_BYTES);
    for (int w = 0; w < N_WORLDS + N_WINDOWS; w++)
        for (int i = 0; i < (int)(sizeof groups / sizeof *groups); i++)
            for (int k = groups[i].kv_heads > 8 ? 2 : 0; k < 3; k++) {
                const world_spec *spec = w < N_WORLDS ? &worlds[w] : &window_worlds[w - N_WORLDS];
                if (is_taken(spec) && is_kind_taken(spec, k, groups[i].dim > 100))
                    check_gqa(s, spec, i, kinds[k][0], kinds[k][1], w % 2 ? 0 : 3000);
            }
    slab_destroy(s);
}

/* Of small shapes: few vectors, a warpgroup's, and heads whose parts are joined by less than whole warps. */
static bool is_crowd_taken(int heads)
{
    return !shapes_are_small() || heads == 7 || heads == 16 || heads == 28 || heads == 44 || heads == 64;
}

Test(attention, many_sequences)
{
    slab *s = slab_create(SLAB_BYTES);
    for (int w = 0; w < (shapes_are_small() ? 1 : 2); w++) {
        for (int i = 0; i < (int)(sizeof latents / sizeof *latents); i++)
            if (latents[i].lat >= 100 && latents[i].heads <= (w ? 64 : 128) && is_crowd_taken(latents[i].heads))
                check_latent(s, &crowds[w], i, DT_BF16, DT_BF16, w ? 0 : 3000);
        for (int i = 2; i < (int)(sizeof groups / sizeof *groups) - 1; i++)
            if (is_crowd_taken(groups[i].heads))
                check_gqa(s, &crowds[w], i, DT_BF16, DT_BF16, w ? 0 : 3000);
    }
    slab_destroy(s);
}

/* ---- multi-head form ---- */

static const struct {
    int heads, nope, rope, v, lat;
} multis[] = {{3, 5, 4, 7, 20},      {8, 32, 16, 32, 64},     {2, 128, 64, 128, 512}, {3, 32, 16, 32, 16},
              {512, 32, 16, 32, 16}, {512, 128, 64, 128, 16}, {128, 128, 64, 128, 16}};

enum { N_MULTIS = sizeof multis / sizeof *multis - 3 }; /* the last three are for many tokens only */

static head_mat weights(slab *s, rng *r, tpl_dtype t, int heads, int rows, int cols, int gap)
{
    mat m = slab_mat(s, r, (int64_t)heads * (rows + gap), cols, gap, t, 0.3);
    return (head_mat){.data = m.data,
                      .dtype = t,
                      .heads = heads,
                      .rows = rows,
                      .cols = cols,
                      .row_stride = m.stride,
                      .head_stride = (rows + gap) * m.stride};
}

static void check_mha(slab *s, const world_spec *spec, int i, tpl_dtype act, tpl_dtype cache, bool accumulate)
{
    rng r = rng_make(13, (uint64_t)i);
    char what[160];
    int heads = multis[i].heads, nope = multis[i].nope, rope = multis[i].rope, v = multis[i].v, lat = multis[i].lat;
    slab_reset(s);
    place p = enter(s, spec, cache, lat + rope + 8, accumulate ? 0 : 100);
    slab_case c = {.call = {.kind = OP_ATTN_MHA}, .compute = act};
    op_attn_mha *o = &c.call.attn_mha;
    *o = (op_attn_mha){.q = slab_mat(s, &r, p.batch.n_rows, heads * (nope + rope), 8, act, 1),
                       .w_uk = weights(s, &r, act, heads, nope, lat, accumulate ? 1 : 0),
                       .w_uv = weights(s, &r, act, heads, v, lat, 0),
                       .heads = heads,
                       .nope = nope,
                       .rope = rope,
                       .v_dim = v,
                       .lat = lat,
                       .lat_off = rope + 8,
                       .rope_off = 0,
                       .kv = p.kv,
                       .scale = nope > 100 ? 0.05f : 0.3f,
                       .accumulate = accumulate,
                       .batch = &p.batch};
    if (rope % 8)
        o->lat_off = rope + 1;
    o->out = c.out[0] = slab_mat(s, &r, p.batch.n_rows, heads * v, 8, act, accumulate ? 1 : 0);
    c.tol[0] = tol(act);
    if (act == DT_BF16) /* values reach lat^(1/2) / 6 and carry the rounding of keys: a hundredth of them */
        c.tol[0].abs = lat > 100 ? 3e-2 : 1e-2;
    say(what, "mha", spec, act, cache, heads, nope);
    slab_check(s, &c, what);
    world_destroy(p.w);
}

Test(attention, multi_head_form)
{
    slab *s = slab_create(SLAB_BYTES);
    for (int w = 0; w < N_WORLDS; w++)
        for (int i = 0; i < N_MULTIS; i++)
            for (int k = 0; k < 3; k++)
                if (is_taken(&worlds[w]) && (multis[i].nope < 100 || (k == 2 && w != 2)))
                    check_mha(s, &worlds[w], i, kinds[k][0], kinds[k][1], w % 2);
    slab_destroy(s);
}

/* Expanded keys and values of 512 heads outgrow their 256 MiB after 4,080 tokens in bf16, half of that in f32: then
 * some heads come after the others. */
Test(attention, multi_head_form_by_heads)
{
    static const world_spec spec = {
        .name = "by_heads", .n_seqs = 2, .prefix = {4200, 100}, .rows = {2, 1}, .page_tok = 64, .mod = 1};
    slab *s = slab_create(SLAB_BYTES);
    if (shapes_are_small())
        cr_skip_test("no head of this has a small shape");
    check_mha(s, &spec, N_MULTIS, DT_BF16, DT_BF16, true);
    check_mha(s, &spec, N_MULTIS, DT_F32, DT_F32, false);
    static const world_spec wide = {
        .name = "wide_by_heads", .n_seqs = 2, .prefix = {1100, 100}, .rows = {2, 1}, .page_tok = 64, .mod = 1};
    check_mha(s, &wide, N_MULTIS + 1, DT_BF16, DT_BF16, true);
    check_mha(s, &wide, N_MULTIS + 1, DT_BF16, DT_BF16, false);
    slab_destroy(s);
}

/* Half of 128 heads would not fill a card: then some tokens come after the others. */
Test(attention, multi_head_form_in_blocks)
{
    static const world_spec spec = {
        .name = "blocks", .n_seqs = 2, .prefix = {4200, 100}, .rows = {2, 1}, .page_tok = 64, .mod = 1};
    slab *s = slab_create(SLAB_BYTES);
    if (shapes_are_small())
        cr_skip_test("no block of this has a small shape");
    check_mha(s, &spec, N_MULTIS + 2, DT_BF16, DT_BF16, true);
    static const world_spec half = {
        .name = "f32_blocks", .n_seqs = 1, .prefix = {2300}, .rows = {2}, .page_tok = 64, .mod = 1};
    check_mha(s, &half, N_MULTIS + 2, DT_F32, DT_F32, false);
    slab_destroy(s);
}

/* ---- appending ---- */

Test(attention, append)
{
    slab *s = slab_create(SLAB_BYTES);
    char what[160];
    for (int w = 0; w < N_WORLDS; w++)
        for (int k = 0; k < 3; k++) {
            rng r = rng_make(14, (uint64_t)w);
            world_spec spec = worlds[w];
            spec.empty = true;
            slab_reset(s);
            place p = enter(s, &spec, kinds[k][1], 40, 0);
            slab_case c = {.call = {.kind = OP_KV_APPEND}, .compute = kinds[k][0]};
            c.call.kv_append = (op_kv_append){.a = slab_mat(s, &r, p.batch.n_rows, 21, 2, kinds[k][0], 1),
                                              .a_off = 3,
                                              .b_off = 30,
                                              .kv = p.kv,
                                              .batch = &p.batch};
            if (w % 2)
                c.call.kv_append.b = slab_mat(s, &r, p.batch.n_rows, 7, 2, kinds[k][0], 1);
            say(what, "append", &spec, kinds[k][0], kinds[k][1], 21, 7);
            slab_check(s, &c, what);
            world_destroy(p.w);
        }
    slab_destroy(s);
}
