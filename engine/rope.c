#include "engine/rope.h"

#include <math.h>

/* 1 / theta^(2i / dim), in f32. */
static float plain_inv_freq(const model_config *c, int i)
{
    return 1.f / powf((float)c->rope_theta, (float)(2 * i) / (float)c->rope_dim);
}

/* ---- Llama 3: long waves are stretched, short ones kept, those between blended ---- */

static float llama3_inv_freq(const rope_scaling *s, float inv_freq)
{
    float factor = (float)s->factor, low = (float)s->low_freq_factor, high = (float)s->high_freq_factor;
    float context = (float)s->original_max_pos, wave = 2 * (float)M_PI / inv_freq;
    if (wave > context / low)
        return inv_freq / factor;
    if (wave < context / high)
        return inv_freq;
    float smooth = (context / wave - low) / (high - low);
    return (1 - smooth) * inv_freq / factor + smooth * inv_freq;
}

/* ---- YaRN (arXiv 2309.00071): a ramp over the dimensions from kept to stretched frequencies ---- */

/* The dimension whose wave turns `rotations` times within the original context. */
static double yarn_dimension(const model_config *c, double rotations)
{
    return c->rope_dim * log(c->rope.original_max_pos / (rotations * 2 * M_PI)) / (2 * log(c->rope_theta));
}

static float yarn_inv_freq(const model_config *c, int i)
{
    const rope_scaling *s = &c->rope;
    double low = yarn_dimension(c, s->beta_fast), high = yarn_dimension(c, s->beta_slow);
    if (!s->keep_fraction) {
        low = floor(low);
        high = ceil(high);
    }
    low = fmax(low, 0);
    high = fmin(high, c->rope_dim - 1);
    if (low == high)
        high += .001;
    float wave = powf((float)c->rope_theta, (float)(2 * i) / (float)c->rope_dim);
    float ramp = ((float)i - (float)low) / (float)(high - low);
    float keep = 1 - fminf(fmaxf(ramp, 0), 1);
    return 1 / ((float)s->factor * wave) * (1 - keep) + 1 / wave * keep;
}

static double yarn_mscale(double factor, double mscale)
{
    return factor <= 1 ? 1 : .1 * mscale * log(factor) + 1;
}

/* What YaRN multiplies cos and sin with. */
static float yarn_attention(const rope_scaling *s)
{
    if (s->attention_factor != 0)
        return (float)s->attention_factor;
    if (s->mscale != 0 && s->mscale_all_dim != 0)
        return (float)(yarn_mscale(s->factor, s->mscale) / yarn_mscale(s->factor, s->mscale_all_dim));
    return (float)yarn_mscale(s->factor, 1);
}

void rope_fill(const model_config *c, int n_pos, float *cos_table, float *sin_table)
{
    int half = c->rope_dim / 2;
    float scale = c->rope.kind == ROPE_YARN ? yarn_attention(&c->rope) : 1;
    for (int i = 0; i < half; i++) {
        float inv_freq = c->rope.kind == ROPE_YARN ? yarn_inv_freq(c, i) : plain_inv_freq(c, i);
        if (c->rope.kind == ROPE_LLAMA3)
            inv_freq = llama3_inv_freq(&c->rope, inv_freq);
        cos_table[i] = inv_freq; /* of position 0, which is filled last */
    }
#pragma omp parallel for schedule(static)
    for (int pos = n_pos - 1; pos > 0; pos--) {
        for (int i = 0; i < half; i++) {
            float angle = (float)pos * cos_table[i];
            cos_table[(size_t)pos * (size_t)half + (size_t)i] = cosf(angle) * scale;
            sin_table[(size_t)pos * (size_t)half + (size_t)i] = sinf(angle) * scale;
        }
    }
    for (int i = 0; i < half; i++) {
        cos_table[i] = scale; /* cos and sin of nothing */
        sin_table[i] = 0;
    }
}
