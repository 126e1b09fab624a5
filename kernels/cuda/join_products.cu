/* Products of few rows with what stands around them, in one launch: the norm in front, other products of the same rows,
 * SwiGLU or the residual add behind. All that the calls write is written.
 * bytes  weights; flops as the calls'; bound: memory. check  the calls one by one. */
#include "kernels/cuda/skinny.cuh"

#include "kernels/cuda/joins.h"

/* Every block makes the norm for itself: of 4 rows of 4096 and Llama-3-8B's q, k, v that takes 27.3 us on an H100, and
 * 20.8 behind a norm of its own. */
enum { NORM_ROWS = 2, NORM_COLS = SK_NORM_PIECES * SK_THREADS * 8 };

static bool in_pieces(const mat *m)
{
    return m->dtype == DT_BF16 && (uintptr_t)m->data % 16 == 0 && m->stride % 8 == 0;
}

static bool same_place(const mat *a, const mat *b)
{
    return a->data == b->data && a->cols == b->cols && a->rows == b->rows && a->stride == b->stride;
}

bool cuda_products_apart(const op_call *calls, int n)
{
    for (int i = 0; i < n; i++) {
        if (!cuda_mats_apart(&calls[i].matmul.out, &calls[i].matmul.x))
            return false;
        for (int k = 0; k < i; k++)
            if (!cuda_mats_apart(&calls[i].matmul.out, &calls[k].matmul.out))
                return false;
    }
    return true;
}

/* A norm whose result goes elsewhere: blocks read x while the first writes. */
static bool is_norm(const op_call *c)
{
    const op_rmsnorm *o = &c->rmsnorm;
    return c->kind == OP_RMSNORM && o->groups == 1 && o->x.rows <= NORM_ROWS && o->x.cols <= NORM_COLS &&
           o->x.cols % 8 == 0 && o->x.data != o->out.data && in_pieces(&o->x) && in_pieces(&o->out) &&
           (!o->weight.data || in_pieces(&o->weight));
}

static bool is_product(const op_call *c, const mat *x)
{
    const op_matmul *o = &c->matmul;
    return c->kind == OP_MATMUL && same_place(&o->x, x) && cuda_skinny_wins((int)x->rows, x->cols) &&
           o->w.cols == x->cols && x->cols % 8 == 0 && in_pieces(&o->x) && in_pieces(&o->w) && o->out.rows > 0 &&
           o->out.cols > 0;
}

/* silu_mul of two products' results. */
static bool is_swiglu(const op_call *c, const op_matmul *gate, const op_matmul *up)
{
    const op_silu_mul *o = &c->silu_mul;
    return c->kind == OP_SILU_MUL && same_place(&o->gate, &gate->out) && same_place(&o->up, &up->out) &&
           gate->out.dtype == DT_BF16 && !gate->accumulate && !up->accumulate && gate->w.rows == up->w.rows &&
           o->out.data != up->out.data;
}

static bool is_add(const op_call *c, const op_matmul *y)
{
    return c->kind == OP_ADD && same_place(&c->add.x, &y->out) && y->out.dtype == DT_BF16 &&
           c->add.out.data != y->out.data && c->add.out.data != y->x.data;
}

int cuda_join_products_takes(const op_call *calls, int n)
{
    int norm = n > 1 && is_norm(&calls[0]), parts = 0;
    if (n < 2 || (!norm && calls[0].kind != OP_MATMUL))
        return 0;
    const mat *x = norm ? &calls[0].rmsnorm.out : &calls[0].matmul.x;
    while (norm + parts < n && parts < SK_PARTS && is_product(&calls[norm + parts], x) &&
           cuda_products_apart(calls + norm, parts + 1) &&
           (!norm || cuda_mats_apart(&calls[norm + parts].matmul.out, &calls[0].rmsnorm.x)))
        parts++;
    if (parts == 2 && norm + 2 < n && is_swiglu(&calls[norm + 2], &calls[norm].matmul, &calls[norm + 1].matmul))
        return norm + 3;
    if (!norm && parts == 1 && is_add(&calls[1], &calls[0].matmul))
        return 2;
    return norm + parts > 1 && parts > 0 ? norm + parts : 0;
}

static void set_part(skinny_part *p, const op_matmul *o)
{
    p->w = (const cu_bf16 *)o->w.data;
    p->ldw = o->w.stride;
    p->n = (int)o->w.rows;
    p->out = o->out.data;
    p->ldo = o->out.stride;
    p->out_f32 = o->out.dtype == DT_F32;
    p->accumulate = o->accumulate;
    p->bias = o->bias.data;
    p->bias_type = o->bias.dtype;
}

tpl_code cuda_join_products(kernel_ctx *ctx, const op_call *calls, int n, tpl_err *e)
{
    skinny_args a = {};
    int norm = calls[0].kind == OP_RMSNORM;
    const op_call *last = &calls[n - 1];
    const mat *x = norm ? &calls[0].rmsnorm.x : &calls[0].matmul.x;
    a.x = (const cu_bf16 *)x->data;
    a.ldx = x->stride;
    a.rows = (int)x->rows;
    a.k = (int)x->cols;
    if (norm) {
        const op_rmsnorm *o = &calls[0].rmsnorm;
        a.gamma = (const cu_bf16 *)o->weight.data;
        a.xn = (cu_bf16 *)o->out.data;
        a.ld_xn = o->out.stride;
        a.eps = o->eps;
    }
    for (int i = norm; i < n && calls[i].kind == OP_MATMUL; i++)
        set_part(&a.part[a.n_parts++], &calls[i].matmul);
    if (last->kind == OP_ADD) {
        a.part[0].residual = (cu_bf16 *)last->add.out.data;
        a.part[0].ldr = last->add.out.stride;
    }
    bool swiglu = last->kind == OP_SILU_MUL, done;
    if (swiglu) {
        a.inner = (cu_bf16 *)last->silu_mul.out.data;
        a.ld_inner = last->silu_mul.out.stride;
    }
    if (norm)
        done = swiglu ? skinny_run<true, true>(ctx, a, 1) : skinny_run<true, false>(ctx, a, 1);
    else
        done = swiglu ? skinny_run<false, true>(ctx, a, 1) : skinny_run<false, false>(ctx, a, 1);
    if (done)
        return cu_launched("matmul", e);
    for (int i = 0; i < n; i++)
        TPL_TRY(kernel_run("cuda", ctx, &calls[i], e));
    return TPL_OK;
}
