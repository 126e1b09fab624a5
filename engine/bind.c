#include "engine/bind.h"

#include <assert.h>

mat ref_bind(plan_ref r, const bind_env *env)
{
    if (r.buf < 0)
        return (mat){0};
    const plan_buf *b = &env->p->bufs[r.buf];
    tpl_dtype type = b->f32 ? DT_F32 : env->act;
    mat m = {.dtype = type, .rows = b->logit_rows ? env->logit_rows : env->rows, .cols = r.cols, .stride = b->cols};
    if (env->bufs)
        m.data = (char *)env->bufs[r.buf] + (size_t)r.col * dtype_bytes(type);
    return m;
}

bound_weight weight_sizes(const plan *p, int w, tpl_dtype weight)
{
    const plan_weight *pw = &p->weights[w];
    bound_weight b = {0};
    b.m = (mat){.dtype = weight, .rows = pw->rows, .cols = pw->cols, .stride = pw->cols};
    b.h = (head_mat){.dtype = weight, .heads = pw->n_heads, .rows = pw->rows, .cols = pw->cols, .row_stride = pw->cols, .head_stride = (int64_t)pw->rows * pw->cols};
    return b;
}

static mat weight_mat(const bind_env *env, int w)
{
    return w < 0 ? (mat){0} : env->weights[w].m;
}

static head_mat weight_heads(const bind_env *env, int w)
{
    return w < 0 ? (head_mat){0} : env->weights[w].h;
}

static const mat *weight_experts(const bind_env *env, int w)
{
    return w < 0 ? NULL : env->weights[w].experts;
}

static kv_view stream_view(const plan_step *s, const bind_env *env)
{
    kv_view v = env->streams[s->stream];
    if (v.pages)
        v.pages = (char *)v.pages + env->layer_bytes[s->stream] * s->layer;
    return v;
}

static void bind_attention(op_call *c, const plan_step *s, const bind_env *env)
{
    kv_view kv = stream_view(s, env);
    switch (c->kind) {
    case OP_KV_APPEND:
        c->kv_append.a = ref_bind(s->in[0], env);
        c->kv_append.b = ref_bind(s->in[1], env);
        c->kv_append.kv = kv;
        c->kv_append.batch = env->batch;
        break;
    case OP_ATTN_LATENT:
        c->attn_latent.q_lat = ref_bind(s->in[0], env);
        c->attn_latent.q_pe = ref_bind(s->in[1], env);
        c->attn_latent.lse = ref_bind(s->in[2], env);
        c->attn_latent.out = ref_bind(s->out, env);
        c->attn_latent.kv = kv;
        c->attn_latent.batch = env->batch;
        break;
    case OP_ATTN_MHA:
        c->attn_mha.q = ref_bind(s->in[0], env);
        c->attn_mha.w_uk = weight_heads(env, s->w[0]);
        c->attn_mha.w_uv = weight_heads(env, s->w[1]);
        c->attn_mha.out = ref_bind(s->out, env);
        c->attn_mha.kv = kv;
        c->attn_mha.batch = env->batch;
        break;
    default:
        assert(c->kind == OP_ATTN_GQA);
        c->attn_gqa.q = ref_bind(s->in[0], env);
        c->attn_gqa.out = ref_bind(s->out, env);
        c->attn_gqa.kv = kv;
        c->attn_gqa.batch = env->batch;
    }
}

static void bind_norm(op_call *c, const plan_step *s, const bind_env *env)
{
    if (c->kind == OP_RMSNORM) {
        c->rmsnorm.x = ref_bind(s->in[0], env);
        c->rmsnorm.weight = weight_mat(env, s->w[0]);
        c->rmsnorm.out = ref_bind(s->out, env);
    } else {
        c->sliced_norm.x = ref_bind(s->in[0], env);
        c->sliced_norm.out = ref_bind(s->out, env);
        c->sliced_norm.alpha = env->alpha ? env->alpha[s->layer] + s->alpha0 : NULL;
    }
}

static mat as_i32(mat m)
{
    m.dtype = DT_I32;
    return m;
}

static void bind_moe(op_call *c, const plan_step *s, const bind_env *env)
{
    if (c->kind == OP_MOE_ROUTE) {
        c->moe_route.x = ref_bind(s->in[0], env);
        c->moe_route.ids = as_i32(ref_bind(s->in[1], env));
        c->moe_route.weights = ref_bind(s->out, env);
        c->moe_route.w = weight_mat(env, s->w[0]);
        c->moe_route.bias = weight_mat(env, s->w[1]);
    } else {
        c->moe_experts.x = ref_bind(s->in[0], env);
        c->moe_experts.ids = as_i32(ref_bind(s->in[1], env));
        c->moe_experts.weights = ref_bind(s->in[2], env);
        c->moe_experts.gate = weight_experts(env, s->w[0]);
        c->moe_experts.up = weight_experts(env, s->w[1]);
        c->moe_experts.down = weight_experts(env, s->w[2]);
        c->moe_experts.weight_dtype = weight_heads(env, s->w[0]).dtype;
        c->moe_experts.out = ref_bind(s->out, env);
    }
}

op_call step_bind(const plan_step *s, const bind_env *env)
{
    op_call c = s->call;
    mat in = ref_bind(s->in[0], env), out = ref_bind(s->out, env);
    switch (c.kind) {
    case OP_EMBED:
        c.embed.table = weight_mat(env, s->w[0]);
        c.embed.out = out;
        c.embed.batch = env->batch;
        break;
    case OP_RMSNORM:
    case OP_SLICED_NORM:
        bind_norm(&c, s, env);
        break;
    case OP_MATMUL:
        c.matmul.x = in;
        c.matmul.w = weight_mat(env, s->w[0]);
        c.matmul.bias = weight_mat(env, s->w[1]);
        c.matmul.out = out;
        break;
    case OP_HEAD_MATMUL:
        c.head_matmul.x = in;
        c.head_matmul.w = weight_heads(env, s->w[0]);
        c.head_matmul.out = out;
        break;
    case OP_ROPE:
        c.rope.x = in;
        c.rope.cos = env->rope_cos;
        c.rope.sin = env->rope_sin;
        c.rope.batch = env->batch;
        break;
    case OP_LSE_MERGE:
        c.lse_merge.o = in;
        c.lse_merge.lse = ref_bind(s->in[1], env);
        break;
    case OP_SILU_MUL:
        c.silu_mul.gate = in;
        c.silu_mul.up = ref_bind(s->in[1], env);
        c.silu_mul.out = out;
        break;
    case OP_ADD:
        c.add.x = in;
        c.add.out = out;
        break;
    case OP_COPY_HEADS:
        c.copy_heads.x = in;
        c.copy_heads.out = out;
        break;
    case OP_MOE_ROUTE:
    case OP_MOE_EXPERTS:
        bind_moe(&c, s, env);
        break;
    case OP_GATHER_ROWS:
        c.gather_rows.x = in;
        c.gather_rows.index = env->logit_index;
        c.gather_rows.out = out;
        break;
    default:
        bind_attention(&c, s, env);
    }
    return c;
}
