/* order.c - the products of a layer that read the same columns are moved to stand together, where nothing in between
 * touches what they read or write: a backend may then run them as one launch. Results do not change. */
#include "engine/plans/build.h"

static bool overlap(plan_ref a, plan_ref b)
{
    return a.buf >= 0 && a.buf == b.buf && a.col < b.col + b.cols && b.col < a.col + a.cols;
}

static bool is_product(const plan_step *s)
{
    return !s->is_comm && s->call.kind == OP_MATMUL;
}

static bool same_input(const plan_step *a, const plan_step *b)
{
    return a->in[0].buf == b->in[0].buf && a->in[0].col == b->in[0].col && a->in[0].cols == b->in[0].cols;
}

/* Whether product m may run before s instead of behind it. */
static bool may_pass(const plan_step *m, const plan_step *s)
{
    for (int i = 0; i < STEP_MAX_IN; i++)
        if (overlap(s->in[i], m->out) || (overlap(s->in[i], m->in[0]) && !is_product(s)))
            return false;
    return !overlap(s->out, m->out) && !overlap(s->out, m->in[0]);
}

static bool may_move(const plan_list *l, int from, int to)
{
    bool may = !l->steps[from].call.matmul.accumulate;
    for (int i = to; i < from; i++)
        may = may && may_pass(&l->steps[from], &l->steps[i]);
    return may;
}

void plan_order(plan_list *l)
{
    for (int i = 0; i < l->n; i++) {
        int end = i + 1; /* of the products that stand together */
        for (int j = i + 1; is_product(&l->steps[i]) && j < l->n && l->steps[j].layer == l->steps[i].layer; j++) {
            plan_step s = l->steps[j];
            if (!is_product(&s) || !same_input(&s, &l->steps[i]) || !may_move(l, j, end))
                continue;
            for (int k = j; k > end; k--)
                l->steps[k] = l->steps[k - 1];
            l->steps[end++] = s;
        }
        i = end - 1;
    }
}
