#include "engine/plan.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "engine/plans/build.h"

const char *phase_name(plan_phase p)
{
    static const char *const names[] = {"prefill", "decode", "fuzzy"};
    return names[p];
}

/* ---- the builder's pieces ---- */

const plan_ref no_ref = {-1, 0, 0};

plan_ref columns(int buf, int col, int cols)
{
    return (plan_ref){buf, col, cols};
}

plan_ref whole(const builder *b, int buf)
{
    return columns(buf, 0, b->p->bufs[buf].cols);
}

comm_group all_ranks(const plan *p)
{
    return (comm_group){0, p->tp};
}

/* Room for one more element in an array that lives in the plan's arena. */
static void *grow(arena *a, void *old, size_t size, int n, int *cap)
{
    if (n < *cap)
        return old;
    *cap = *cap ? *cap * 2 : 64;
    void *fresh = arena_alloc(a, size * (size_t)*cap);
    if (n)
        memcpy(fresh, old, size * (size_t)n);
    return fresh;
}

int need_buf(builder *b, const char *name, int cols)
{
    plan *p = b->p;
    for (int i = 0; i < p->n_bufs; i++) {
        if (strcmp(p->bufs[i].name, name) == 0) {
            assert(p->bufs[i].cols == cols);
            return i;
        }
    }
    p->bufs = grow(&p->mem, p->bufs, sizeof *p->bufs, p->n_bufs, &b->cap_bufs);
    p->bufs[p->n_bufs] = (plan_buf){.name = name, .cols = cols};
    return p->n_bufs++;
}

static int find_or_add_weight(builder *b, plan_weight w)
{
    plan *p = b->p;
    int i = 0;
    if (b->idle)
        return -1;
    for (; i < p->n_weights; i++) {
        const plan_weight *o = &p->weights[i];
        if (o->source == w.source && o->layer == w.layer && o->head0 == w.head0 && o->n_heads == w.n_heads && o->row0 == w.row0 && o->rows == w.rows &&
            o->col0 == w.col0 && o->cols == w.cols)
            break;
    }
    if (i == p->n_weights) {
        p->weights = grow(&p->mem, p->weights, sizeof *p->weights, p->n_weights, &b->cap_weights);
        p->weights[p->n_weights++] = w;
    }
    p->weights[i].used[b->phase] = true;
    return i;
}

int need_weight(builder *b, int source, int row0, int rows, int col0, int cols)
{
    bool per_layer = source >= W_N_ROLES || weight_role_per_layer((weight_role)source);
    return find_or_add_weight(b, (plan_weight){.source = source, .layer = per_layer ? b->layer : -1, .row0 = row0, .rows = rows, .col0 = col0, .cols = cols});
}

int need_heads(builder *b, int source, int head0, int n_heads, int rows, int col0, int cols)
{
    return find_or_add_weight(b, (plan_weight){.source = source, .layer = b->layer, .head0 = head0, .n_heads = n_heads, .rows = rows, .col0 = col0, .cols = cols});
}

int need_expert_rows(builder *b, int source, int first, int n, int row0, int rows)
{
    return find_or_add_weight(b, (plan_weight){.source = source, .layer = b->layer, .head0 = first, .n_heads = n, .row0 = row0, .rows = rows, .cols = b->p->cfg.dim});
}

static plan_step *add_step(builder *b, const char *name)
{
    plan_list *l = &b->p->list[b->phase];
    l->steps = grow(&b->p->mem, l->steps, sizeof *l->steps, l->n, &b->cap_steps[b->phase]);
    plan_step *s = &l->steps[l->n++];
    *s = (plan_step){.name = name, .layer = b->layer, .active = !b->idle, .in = {no_ref, no_ref, no_ref}, .out = no_ref, .w = {-1, -1, -1}, .stream = -1};
    return s;
}

static plan_step *add_kernel(builder *b, op_kind op, const char *name, plan_ref in, plan_ref out)
{
    plan_step *s = add_step(b, name);
    s->call.kind = op;
    s->in[0] = in;
    s->out = out;
    return s;
}

plan_step *add_matmul(builder *b, const char *name, plan_ref in, int w, plan_ref out)
{
    plan_step *s = add_kernel(b, OP_MATMUL, name, in, out);
    s->w[0] = w;
    return s;
}

void set_bias(builder *b, plan_step *matmul, bool wanted, int source, int first, int n)
{
    matmul->w[1] = wanted ? need_weight(b, source, 0, 1, first, n) : -1;
}

plan_step *add_rmsnorm(builder *b, const char *name, plan_ref in, int w, plan_ref out, int groups)
{
    plan_step *s = add_kernel(b, OP_RMSNORM, name, in, out);
    s->w[0] = w;
    s->call.rmsnorm.groups = groups;
    s->call.rmsnorm.eps = b->p->cfg.rms_eps;
    return s;
}

plan_step *add_sliced_norm(builder *b, const char *name, plan_ref x, int slice0, int n_slices)
{
    plan_step *s = add_kernel(b, OP_SLICED_NORM, name, x, x);
    s->alpha0 = slice0;
    s->call.sliced_norm.n_slices = n_slices;
    s->call.sliced_norm.kv_lora_rank = b->p->cfg.kv_lora_rank;
    s->call.sliced_norm.eps = b->p->cfg.latent_eps;
    return s;
}

plan_step *add_head_matmul(builder *b, const char *name, plan_ref in, int in_stride, int w, plan_ref out, int out_stride, bool transposed, bool accumulate)
{
    plan_step *s = add_kernel(b, OP_HEAD_MATMUL, name, in, out);
    s->w[0] = w;
    s->call.head_matmul.x_head_stride = in_stride;
    s->call.head_matmul.out_head_stride = out_stride;
    s->call.head_matmul.transposed = transposed;
    s->call.head_matmul.accumulate = accumulate;
    return s;
}

plan_step *add_rope(builder *b, const char *name, plan_ref x, int heads, int head_stride)
{
    plan_step *s = add_kernel(b, OP_ROPE, name, x, no_ref);
    s->call.rope.heads = heads;
    s->call.rope.head_stride = head_stride;
    s->call.rope.dim = b->p->cfg.rope_dim;
    s->call.rope.interleaved = b->p->cfg.rope_interleaved;
    return s;
}

plan_step *add_kv_append(builder *b, const char *name, plan_ref a, plan_ref pe, int stream, int a_off, int pe_off)
{
    plan_step *s = add_kernel(b, OP_KV_APPEND, name, a, no_ref);
    s->in[1] = pe;
    s->stream = stream;
    s->call.kv_append.a_off = a_off;
    s->call.kv_append.b_off = pe_off;
    return s;
}

plan_step *add_attn_latent(builder *b, const char *name, plan_ref q_lat, plan_ref q_pe, int pe_stride, int heads, int lat, int lat_off, int rope_off, plan_ref out,
                           plan_ref lse)
{
    plan_step *s = add_kernel(b, OP_ATTN_LATENT, name, q_lat, out);
    op_attn_latent *a = &s->call.attn_latent;
    s->in[1] = q_pe;
    s->in[2] = lse;
    s->stream = KV_MAIN;
    a->heads = heads;
    a->lat = lat;
    a->rope = b->p->cfg.rope_dim;
    a->q_lat_head_stride = q_lat.buf == q_pe.buf ? pe_stride : lat;
    a->q_pe_head_stride = pe_stride;
    a->lat_off = lat_off;
    a->rope_off = rope_off;
    a->scale = model_softmax_scale(&b->p->cfg);
    return s;
}

plan_step *add_attn_mha(builder *b, const char *name, plan_ref q, int uk, int uv, int heads, int lat, int lat_off, int rope_off, int stream, plan_ref out, bool accumulate)
{
    const model_config *c = &b->p->cfg;
    plan_step *s = add_kernel(b, OP_ATTN_MHA, name, q, out);
    op_attn_mha *a = &s->call.attn_mha;
    s->w[0] = uk;
    s->w[1] = uv;
    s->stream = stream;
    a->heads = heads;
    a->nope = c->nope_dim;
    a->rope = c->rope_dim;
    a->v_dim = c->v_dim;
    a->lat = lat;
    a->lat_off = lat_off;
    a->rope_off = rope_off;
    a->accumulate = accumulate;
    a->scale = model_softmax_scale(c);
    return s;
}

plan_step *add_attn_gqa(builder *b, const char *name, plan_ref q, int heads, int kv_heads, plan_ref out)
{
    plan_step *s = add_kernel(b, OP_ATTN_GQA, name, q, out);
    op_attn_gqa *a = &s->call.attn_gqa;
    s->stream = KV_MAIN;
    a->heads = heads;
    a->kv_heads = kv_heads;
    a->head_dim = b->p->cfg.head_dim;
    a->v_off = kv_heads * a->head_dim;
    a->window = model_layer_window(&b->p->cfg, b->layer);
    a->scale = model_softmax_scale(&b->p->cfg);
    return s;
}

plan_step *add_binary(builder *b, op_kind op, const char *name, plan_ref in0, plan_ref in1, plan_ref out)
{
    plan_step *s = add_kernel(b, op, name, in0, out);
    s->in[1] = in1;
    return s;
}

plan_step *add_copy(builder *b, const char *name, plan_ref in, plan_ref out)
{
    plan_step *s = add_kernel(b, OP_COPY_HEADS, name, in, out);
    s->call.copy_heads = (op_copy_heads){.heads = 1, .cols = in.cols, .x_head_stride = in.cols, .out_head_stride = in.cols};
    return s;
}

void add_comm(builder *b, const char *name, comm_op op, comm_group group, plan_ref data, plan_ref out)
{
    if (group.size == 1)
        return;
    plan_step *s = add_step(b, name);
    s->is_comm = true;
    s->comm = op;
    s->group = group;
    s->in[0] = data;
    s->out = out;
}

/* ---- the list ---- */

static const struct {
    void (*attention)(builder *b);
    void (*streams)(plan *p);
} variants[] = {
    [VAR_MLA] = {plan_attn_mla, plan_streams_mla},    [VAR_MLA_DCP] = {plan_attn_dcp, plan_streams_dcp},
    [VAR_GQA] = {plan_attn_gqa, plan_streams_gqa},    [VAR_GLA] = {plan_attn_gla, plan_streams_gla},
    [VAR_TPLA] = {plan_attn_tpla, plan_streams_tpla},
};

void plan_attention(builder *b)
{
    const model_config *c = &b->p->cfg;
    int x = need_buf(b, "x", c->dim), xn = need_buf(b, "xn", c->dim);
    add_rmsnorm(b, "attn.norm", whole(b, x), need_weight(b, W_ATTN_NORM, 0, 1, 0, c->dim), whole(b, xn), 1);
    variants[b->p->v.kind].attention(b);
}

static void fill_list(builder *b)
{
    const model_config *c = &b->p->cfg;
    b->layer = -1;
    plan_embed(b);
    for (b->layer = 0; b->layer < c->n_layers; b->layer++) {
        plan_attention(b);
        if (!b->o.attention_only)
            plan_mlp(b);
    }
    b->layer = -1;
    plan_logits(b);
}

tpl_code plan_fit(const model_config *c, const variant *v, int tp, const plan_options *o, tpl_err *e)
{
    const layer_groups *g = &o->fuzzy.groups;
    if (g->n == 0)
        return variant_fit(v, c, tp, e);
    if (groups_n_layers(g) != c->n_layers)
        return tpl_fail(e, TPL_E_USAGE, "--groups", "hold %d layers, the model has %d", groups_n_layers(g), c->n_layers);
    return variant_fit(v, c, 1, e);
}

/* Every list of an ordinary plan, or of one whose layers are spread over ranks whole. */
static void fill_lists(builder *b)
{
    plan *p = b->p;
    int32_t tp = p->tp, rank = p->rank;
    bool fuzzy = b->o.fuzzy.groups.n > 0;
    if (fuzzy) { /* the pieces see a single rank that computes a layer whole */
        p->tp = 1;
        p->rank = 0;
    }
    variants[p->v.kind].streams(p);
    bool elsewhere = b->o.decode_only && p->streams[KV_PREFILL].used;
    if (elsewhere)
        p->streams[KV_PREFILL].used = false;
    for (int phase = 0; phase < N_PHASES; phase++) {
        b->phase = (plan_phase)phase;
        if (fuzzy)
            plan_fill_fuzzy(b, tp, rank);
        else if (phase == PHASE_DECODE || (phase == PHASE_PREFILL && !elsewhere))
            fill_list(b);
    }
    p->tp = tp;
    p->rank = rank;
}

tpl_code plan_create(const model_config *c, const variant *v, int tp, int rank, plan_options o, plan **out, tpl_err *e)
{
    TPL_TRY(plan_fit(c, v, tp, &o, e));
    plan *p = tpl_calloc(1, sizeof *p);
    arena_init(&p->mem);
    p->cfg = *c;
    p->v = *v;
    p->tp = tp;
    p->rank = rank;
    builder b = {.p = p, .o = o};
    fill_lists(&b);
    *out = p;
    return TPL_OK;
}

void plan_destroy(plan *p)
{
    if (!p)
        return;
    arena_fini(&p->mem);
    free(p);
}
