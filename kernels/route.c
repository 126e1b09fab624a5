#include "kernels/route.h"

#include <math.h>
#include <string.h>

typedef struct {
    double *value; /* [n_experts] what the choice goes by */
    double *group; /* [n_group] */
    uint8_t *expert_taken, *group_taken;
} choice;

static choice choice_at(void *scratch, int64_t n_experts, int64_t n_group)
{
    double *d = scratch;
    uint8_t *flags = (uint8_t *)(d + n_experts + n_group);
    memset(flags, 0, (size_t)(n_experts + n_group));
    return (choice){d, d + n_experts, flags, flags + n_experts};
}

size_t route_scratch_bytes(const op_moe_route *o)
{
    size_t n = (size_t)(o->w.rows + o->n_group);
    return (n * (sizeof(double) + 1) + 63) / 64 * 64;
}

static void score_softmax(double *logits, int64_t n)
{
    double max = -INFINITY, sum = 0;
    for (int64_t i = 0; i < n; i++)
        max = fmax(max, logits[i]);
    for (int64_t i = 0; i < n; i++)
        sum += logits[i] = exp(logits[i] - max);
    for (int64_t i = 0; i < n; i++)
        logits[i] /= sum;
}

static void score_sigmoid(double *logits, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        logits[i] = 1 / (1 + exp(-logits[i]));
}

/* The greatest not taken; takes it. There is one. */
static int64_t take_best(const double *value, uint8_t *taken, int64_t n)
{
    int64_t best = -1;
    for (int64_t i = 0; i < n; i++)
        if (!taken[i] && (best < 0 || value[i] > value[best]))
            best = i;
    taken[best] = 1;
    return best;
}

static double group_value(const double *value, int64_t n, bool two_best)
{
    double best = -INFINITY, second = -INFINITY;
    for (int64_t i = 0; i < n; i++) {
        if (value[i] > best) {
            second = best;
            best = value[i];
        } else if (value[i] > second) {
            second = value[i];
        }
    }
    return two_best && n > 1 ? best + second : best;
}

/* Marks the experts of all but the best groups as taken. */
static void limit_groups(const op_moe_route *o, choice *c)
{
    int64_t size = o->w.rows / o->n_group;
    for (int64_t g = 0; g < o->n_group; g++)
        c->group[g] = group_value(c->value + g * size, size, o->bias.data != NULL);
    for (int32_t i = 0; i < o->topk_group; i++)
        take_best(c->group, c->group_taken, o->n_group);
    for (int64_t i = 0; i < o->w.rows; i++)
        c->expert_taken[i] = !c->group_taken[i / size];
}

void route_row(const op_moe_route *o, int64_t row, double *logits, void *scratch)
{
    int64_t n = o->w.rows;
    choice c = choice_at(scratch, n, o->n_group);
    int32_t *ids = (int32_t *)o->ids.data + row * o->ids.stride;
    float *weights = (float *)o->weights.data + row * o->weights.stride;
    const float *bias = o->bias.data;
    double sum = 0;
    if (o->scoring == MOE_SOFTMAX)
        score_softmax(logits, n);
    else
        score_sigmoid(logits, n);
    for (int64_t i = 0; i < n; i++)
        c.value[i] = bias ? logits[i] + bias[i] : logits[i];
    if (o->n_group > 1)
        limit_groups(o, &c);
    for (int32_t i = 0; i < o->top_k; i++) {
        ids[i] = (int32_t)take_best(c.value, c.expert_taken, n);
        sum += logits[ids[i]];
    }
    double by = o->normalise && sum > 0 ? o->scale / sum : o->scale;
    for (int32_t i = 0; i < o->top_k; i++)
        weights[i] = (float)(logits[ids[i]] * by);
}
